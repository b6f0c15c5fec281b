"""benchmarks/gpu.py, which is for a machine with a GPU, in its emulated form: every line of it runs."""

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from support.long import LONG

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu.py"
TIMED = {"of the bandwidth", "×", "× the time", "tokens/s", "off", "s", "GB/s", "TFLOP/s", "TOP/s", "of the time", "µs"}
PEER = '''
"""Stands in for bitsandbytes: the two names that the benchmark uses."""
import types

import torch


class Int8Params(torch.nn.Parameter):
    def __new__(cls, data, requires_grad=False, has_fp16_weights=True):
        return torch.nn.Parameter.__new__(torch.nn.Parameter, data, requires_grad)


class Linear8bitLt(torch.nn.Linear):
    def __init__(self, columns, rows, bias, has_fp16_weights, threshold):
        super().__init__(columns, rows, bias=bias)


nn = types.SimpleNamespace(Int8Params=Int8Params, Linear8bitLt=Linear8bitLt)
'''
WORKER = '''
"""Stands in for the measuring process: "a", "d" and "e" are fine, "b" breaks it, and "c" never ends."""
import json
import os
import sys
import time

for name in sys.argv[2].split(","):
    row = {"name": name, "figure": 1.0, "unit": "", "bar": "", "met": None, "note": "half" if name == "b" else "fine"}
    print(json.dumps({"name": name, "begun": True}), flush=True)
    if name == "c":
        time.sleep(60)
    print(json.dumps({"name": name, "row": row}), flush=True)
    if name == "b":
        print("a last word", file=sys.stderr, flush=True)
        os.abort()
    print(json.dumps({"name": name, "done": True}), flush=True)
'''


def benchmark(*arguments: Any, path: str = "") -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
    for name in ("BIGRUN_GPU", "TRITON_INTERPRET"):
        environment.pop(name, None)
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """What an emulated run printed and wrote."""
    out, fake = tmp_path_factory.mktemp("results"), tmp_path_factory.mktemp("peers")
    (fake / "bitsandbytes").mkdir()
    (fake / "bitsandbytes" / "__init__.py").write_text(PEER)
    done = benchmark("--emulate", "--out", out, path=str(fake))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    names = re.search(r"--only NAME,\.\.\.\s+of (.*?)\n\s*--", benchmark("--help").stdout, re.DOTALL)
    assert names is not None
    return {
        "out": out, "printed": done.stdout, "told": done.stderr, "names": re.sub(r"\s", "", names[1]).split(","),
        "runs": json.loads((out / "gpu-results.json").read_text()),
    }  # fmt: skip


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module("gpu_report")


def rows_of(emulated: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    rows = emulated["runs"][0]["rows"]
    assert len({row["name"] for row in rows}) == len(rows), "names tell rows apart"
    return {row["name"]: row for row in rows}


@LONG
def test_every_measurement_gives_rows_and_none_fails(emulated: Mapping[str, Any]) -> None:
    rows = rows_of(emulated)
    assert [row for row in rows.values() if row["figure"] is None or row["note"].startswith("failed")] == []
    counts = {name: int(count) for name, count in re.findall(r" s  (\S+): (\d+) rows", emulated["told"])}
    assert set(counts) == set(emulated["names"]), "of each that --help names"
    assert min(counts.values()) > 0
    assert sum(counts.values()) == len(rows)


@LONG
def test_checks_hold_and_what_was_timed_without_a_gpu_meets_no_bar(emulated: Mapping[str, Any]) -> None:
    bars = [row for row in rows_of(emulated).values() if row["bar"]]
    timed = [row for row in bars if row["unit"] in TIMED]
    assert len(timed) >= 30
    assert len(bars) - len(timed) >= 100
    assert [row for row in timed if row["met"] is not None] == []
    assert [row for row in bars if row["unit"] not in TIMED and row["met"] is not True] == []


@LONG
def test_results_have_their_form(emulated: Mapping[str, Any]) -> None:
    (run,) = emulated["runs"]
    assert list(run) == ["date", "card", "capability", "driver", "torch", "triton", "python", "commit", "rows"]
    for row in run["rows"]:
        assert list(row) == ["name", "figure", "unit", "bar", "met", "note"]
        assert row["bar"] == "" or row["bar"][0] in "≥≤"
    assert run["card"] == "emulated: shows that the script runs, measures nothing"
    page = (emulated["out"] / "gpu-results.md").read_text()
    assert f"## {run['date']}, {run['card']}" in page
    assert f"torch {run['torch']}, triton {run['triton']}" in page
    assert sum(line.startswith("| ") for line in page.splitlines()) == len(run["rows"]) + 1
    assert run["card"] in emulated["printed"]
    assert "7b: decode beside torch bfloat16" in emulated["printed"]


@LONG
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["terminated", "killed"])
def test_a_run_that_is_stopped_keeps_what_it_measured_and_leaves_nobody(tmp_path: Path, how: signal.Signals) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(SCRIPT), "--emulate", "--only", "check-table,blocks", "--out", str(tmp_path / "out")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    watch = threading.Timer(120, process.kill)
    watch.start()
    assert process.stderr is not None
    told = iter(process.stderr.readline, "")
    assert any("check-table: " in line for line in told)
    process.send_signal(how)
    assert process.wait(60) == (143 if how == signal.SIGTERM else -9)
    watch.cancel()
    (run,) = json.loads((tmp_path / "out" / "gpu-results.json").read_text())
    assert {row["name"].partition(":")[0] for row in run["rows"]} == {"table"}
    assert "| table: " in (tmp_path / "out" / "gpu-results.md").read_text()
    until = time.monotonic() + 20
    while (alive := workers(tmp_path)) and time.monotonic() < until:
        time.sleep(0.1)
    assert alive == []
    left = list(tmp_path.glob("bigrun-gpu-*"))
    assert bool(left) == (how == signal.SIGKILL)
    subprocess.run(
        [*command[:3], "--only", "check-table"], env=environment, capture_output=True, timeout=120, check=True
    )
    assert not list(tmp_path.glob("bigrun-gpu-*")), "the next run takes away what a killed one left"


def workers(folder: Path) -> list[int]:
    """Processes that measure for a run whose temporary folder is in `folder`."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "--worker" in words and any(word.startswith(str(folder)) for word in words):
            found.append(process.pid)
    return found


def test_runs_are_added_to_those_before(tmp_path: Path, report: Any) -> None:
    row = {"name": "copy", "figure": 1.5, "unit": "GB/s", "bar": "≥ 1", "met": True, "note": ""}
    run = {**dict.fromkeys(report.ABOUT, "some"), "rows": [row]}
    for date in ("first", "second"):
        report.append({**run, "date": date}, tmp_path)
    runs = json.loads((tmp_path / "gpu-results.json").read_text())
    assert [kept["date"] for kept in runs] == ["first", "second"]
    report.append({**run, "date": "second", "rows": [row, row]}, tmp_path)  # more of the same run
    runs = json.loads((tmp_path / "gpu-results.json").read_text())
    assert [(kept["date"], len(kept["rows"])) for kept in runs] == [("first", 1), ("second", 2)]
    page = (tmp_path / "gpu-results.md").read_text()
    assert page.index("## second") < page.index("## first")
    (tmp_path / "gpu-results.json").write_text("[{}]")
    with pytest.raises(ValueError, match="no list of runs"):
        report.append(run, tmp_path)


def test_a_process_that_breaks_or_hangs_costs_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import gpu
    from gpu_worker import Measurement

    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    monkeypatch.setattr(gpu, "SCRIPT", script)
    monkeypatch.setattr(gpu, "MEASUREMENTS", {name: Measurement("", "", 0.3) for name in "abcde"})
    session = gpu.Session(True, tmp_path, 60)
    session.phase([["a", "b", "c", "d"], ["e"]])
    notes = {name: [row["note"] for row in rows] for name, rows in session.rows.items()}
    assert notes["a"] == ["fine"]
    assert notes["b"] == ["half", "failed: its process ended with status -6: a last word"]
    assert notes["c"] == ["failed: it was stopped: it did not end"]
    assert notes["d"] == notes["e"] == ["fine"]
    assert gpu.failures(row for rows in session.rows.values() for row in rows) == 2


def test_without_a_gpu_one_line_says_so(tmp_path: Path) -> None:
    done = benchmark("--out", tmp_path / "out")
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "no CUDA GPU" in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_page_of_results_is_that_of_the_kept_runs(report: Any) -> None:
    runs = json.loads((ROOT / "docs" / "gpu-results.json").read_text())
    assert (ROOT / "docs" / "gpu-results.md").read_text() == report.page(runs)

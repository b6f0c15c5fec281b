"""benchmarks/gpu.py, which is for a machine with a GPU, in its emulated form: every line of it runs."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu.py"
BARS = {  # what the project asks of an H100
    "decode: [128256, 4096]": "≥ 0.8", "decode: [57344, 8192]": "≥ 0.8", "decode: [28672, 4096]": "≥ 0.8",
    "decode: [4096, 4096]": "≥ 0.6", "decode: [28672, 4096] beside torch float16": "≥ 1.6",
    "decode: [4096, 4096] beside torch float16": "≥ 1.6", "few rows: [28672, 4096], 16 rows beside one": "≤ 1.4",
    **{f"few rows: [28672, 4096], {m} rows": "≥ 0.65" for m in (2, 4, 8, 16)},
    **{
        f"prefill: {shape}, {mode}, {outliers} outliers, beside torch bfloat16": "≥ 1.2" if outliers else "≥ 1.3"
        for shape in ("[12288, 4096]", "[4096, 11008]") for mode in ("llm.int8", "grouped") for outliers in (0, 8, 64)
    },
    "attention: decode, 16,384 positions, float16": "≥ 0.7", "attention: decode, int8 beside float16": "≥ 1.5",
    "7b: decode at 512 positions": "≥ 300", "7b: decode beside torch bfloat16": "≥ 1.5",
    "7b: decode beside bitsandbytes LLM.int8()": "≥ 8", "7b: memory beside its plan": "≤ 0.02",
    "7b: prefill of 2,048, auto, beside torch bfloat16": "≥ 1.2",
    "7b: prefill of 2,048, llm.int8, beside torch bfloat16": "≥ 1.2",
    "hybrid: decode step beside its halves alone": "≤ 1.1",
}  # fmt: skip
CHECKS = [
    *(f"exact: {path}" for path in ("decode [28672, 4096], 1 rows", "small [4096, 4096]", "tile [4096, 11008]")),
    *(f"int8: {mode} [12288, 4096], {n} outliers" for mode in ("llm.int8", "grouped") for n in (0, 8, 64, 200)),
    "int8: integers of [4096, 11008]", "int8: exact [12288, 4096], 0 outliers, from the unquantised layer",
    "elementwise: RMSNorm", "elementwise: quantiser, a constant for 64 columns", "elementwise: gather", "table: look-up",
    "table: head", "store: float16 cache, keys", "store: int8 cache, values",
    *(
        f"{phase} attention: {cache} cache, {kind}"
        for phase in ("decode", "prompt") for cache in ("float16", "int8")
        for kind in ("plain", "ALiBi", "window", "softcap", "sinks")
    ),
    *(f"{size}: mean KL, {mode}, from float32" for size in ("0.1b", "7b") for mode in ("exact", "auto", "llm.int8")),
    "0.1b: logits, exact, from the host's", "hybrid: logits from the GPU's alone",
]  # fmt: skip
FREE = [
    "roof: copy", "roof: torch bfloat16", "0.1b: memory beside its plan", "7b: device idle in decode", "hybrid: decode",
    "decode block, exact: whole, in a CUDA graph", "prefill block, llm.int8: whole, launched one by one",
    "decode block, exact: launch gaps in the graph", *(f"7b: prefill of 2,048, {mode}" for mode in ("exact", "grouped")),
]  # fmt: skip
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
    return {"out": out, "printed": done.stdout, "runs": json.loads((out / "gpu-results.json").read_text())}


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module("gpu_report")


def rows_of(emulated: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    rows = emulated["runs"][0]["rows"]
    assert len({row["name"] for row in rows}) == len(rows), "names tell rows apart"
    return {row["name"]: row for row in rows}


def test_every_measurement_gives_rows_and_none_fails(emulated: Mapping[str, Any]) -> None:
    rows = rows_of(emulated)
    assert [row for row in rows.values() if row["figure"] is None or row["note"].startswith("failed")] == []
    for start in (*CHECKS, *BARS, *FREE):
        assert any(name.startswith(start) for name in rows), start
    assert {name: rows[name]["bar"] for name in BARS} == BARS


def test_checks_hold_and_nothing_else_is_claimed(emulated: Mapping[str, Any]) -> None:
    rows = rows_of(emulated)
    checks = {name for name in rows if any(name.startswith(start) for start in CHECKS)}
    assert {name for name in checks if rows[name]["met"] is not True} == set()
    assert {name for name in BARS if rows[name]["met"] is not None} == set()


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


def test_runs_are_added_to_those_before(emulated: Mapping[str, Any], tmp_path: Path, report: Any) -> None:
    (run,) = emulated["runs"]
    for date in ("first", "second"):
        report.append({**run, "date": date}, tmp_path)
    runs = json.loads((tmp_path / "gpu-results.json").read_text())
    assert [kept["date"] for kept in runs] == ["first", "second"]
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

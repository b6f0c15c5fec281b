#!/usr/bin/env python3
"""bigrun on an NVIDIA GPU in one command of less than eight minutes: is it right, is it in its plan, how fast is it?

    python3 benchmarks/gpu.py [--only NAME,...] [--skip-7b] [--limit-s 460] [--out DIR]      on a machine with a GPU
    python3 benchmarks/gpu.py --emulate [--out DIR]                                           anywhere, measuring nothing

From a checkout, installed or not. The checks and timings of kernels need torch, triton and numpy; those of models need bigrun's
own requirements as well (`pip install -e .`, or as much of it as `import bigrun` asks for), and fail alone where something is
missing. docs/gpu-results.md says what is measured and what earlier runs found.

Everything runs in processes of its own, so that a kernel that breaks its process, or never ends, costs one row: first the
checks, side by side (they compile kernels, and time nothing), while checkpoints are written; then timings, one after
the other; what the bars ask for before what a developer wants for tuning. What --limit-s leaves no time for is skipped.
"""

import argparse
import datetime
import json
import os
import platform
import queue
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from gpu_report import ABOUT, EMULATED, append, failures, short_table

ROOT = Path(__file__).resolve().parents[1]
LARGE = ("files-7b", "large-model", "hybrid")
SLACK = 12  # seconds that a measurement may go on beyond the limit


@dataclass(frozen=True)
class Measurement:
    """A function of a module that yields rows; `seconds` it may take: with less than that left it is skipped, and after
    four times that it is stopped."""

    module: str
    function: str
    seconds: int


MEASUREMENTS = {
    "check-exact": Measurement("gpu_checks", "exact", 30),
    "check-int8": Measurement("gpu_checks", "int8", 40),
    "check-elementwise": Measurement("gpu_checks", "elementwise", 20),
    "check-table": Measurement("gpu_checks", "table", 15),
    "check-store": Measurement("gpu_checks", "store", 15),
    "check-decode-attention": Measurement("gpu_checks", "attention_decode", 40),
    "check-prompt-attention": Measurement("gpu_checks", "attention_prompt", 40),
    "files-0.1b": Measurement("gpu_models", "small_files", 15),
    "host-kernels": Measurement("gpu_models", "host_kernels", 40),
    "files-7b": Measurement("gpu_models", "large_files", 45),
    "roofs": Measurement("gpu_kernels", "roofs", 10),
    "decode": Measurement("gpu_kernels", "decode", 20),
    "few-rows": Measurement("gpu_kernels", "few_rows", 15),
    "prefill": Measurement("gpu_kernels", "prefill", 40),
    "attention": Measurement("gpu_kernels", "attention", 20),
    "small-model": Measurement("gpu_models", "small_model", 30),
    "large-model": Measurement("gpu_models", "large_model", 80),
    "hybrid": Measurement("gpu_models", "hybrid", 45),
    "head": Measurement("gpu_kernels", "head", 10),
    "blocks": Measurement("gpu_kernels", "blocks", 40),
}
PHASES: Sequence[Sequence[Sequence[str]]] = (  # one after the other; what is in a phase goes side by side
    (
        ("check-exact", "check-table"),
        ("check-int8",),
        ("check-store", "check-elementwise", "check-decode-attention"),
        ("check-prompt-attention",),
        ("files-0.1b", "host-kernels", "files-7b"),
    ),
    (("roofs", "decode", "few-rows", "prefill", "attention"),),
    (("small-model", "large-model", "hybrid"),),
    (("head", "blocks"),),
)
Rows = dict[str, list[dict[str, Any]]]

# ----------------------------------------------------------------------------------------------- in the measuring process


def work(names: Sequence[str], emulate: bool, folder: Path, deadline: float) -> int:
    """Runs measurements, telling each event as a line of JSON on what was standard output."""
    told = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.path[1:1] = [str(ROOT), str(ROOT / "kernels")]

    def tell(**event: Any) -> None:
        print(json.dumps(event), file=told, flush=True)

    import torch

    if not emulate and not torch.cuda.is_available():
        tell(absent=f"torch {torch.__version__} finds no CUDA GPU")
        return 2
    tell(about=about(emulate))
    from gpu_bench import Bench

    bench = Bench(emulate, folder)
    for name in names:
        measurement = MEASUREMENTS[name]
        if (left := deadline - time.time()) < measurement.seconds:
            tell(name=name, row=empty(name, f"skipped: {max(0, left):.0f} s of the limit were left"), done=True)
            continue
        tell(name=name, begun=True)
        try:
            for row in getattr(import_module(measurement.module), measurement.function)(bench):
                tell(name=name, row=asdict(row))
        except Exception as error:
            tell(name=name, row=failed(name, error), trace="".join(traceback.format_exc().splitlines(True)[-9:]))
            error.__traceback__ = None  # its frames hold tensors
        tell(name=name, done=True)
        if not emulate and not usable(torch):
            return 3  # the rest is for a new process
    return 0


def usable(torch: Any) -> bool:
    """Whether this process can go on with its GPU; after an illegal access, say, it cannot."""
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError:
        return False
    return True


def about(emulate: bool) -> dict[str, str]:
    import torch
    import triton

    found = {"torch": torch.__version__, "triton": triton.__version__, "python": platform.python_version()}
    if emulate:
        return {"card": EMULATED, "capability": "none", "driver": "none", **found}
    major, minor = torch.cuda.get_device_capability()
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        driver = "unknown"
    return {"card": torch.cuda.get_device_name(), "capability": f"{major}.{minor}", "driver": driver, **found}


def empty(name: str, note: str, met: bool | None = None) -> dict[str, Any]:
    """The row of a measurement that has nothing to say."""
    return {"name": name, "figure": None, "unit": "", "bar": "", "met": met, "note": note}


def failed(name: str, why: object) -> dict[str, Any]:
    text = f"{type(why).__name__}: {why}" if isinstance(why, BaseException) else str(why)
    return empty(name, f"failed: {text.strip().splitlines()[0][:200]}", False)


# ------------------------------------------------------------------------------------------------------- in the first one


class Session:
    """Everything that was asked for, in processes; rows by measurement, as they come."""

    def __init__(self, emulate: bool, folder: Path, limit: float):
        self.emulate, self.folder = emulate, folder
        self.started = time.time()
        self.deadline = self.started + limit
        self.rows: Rows = {}
        self.about: dict[str, str] = {}
        self.absent = ""
        self._processes: list[subprocess.Popen[str]] = []

    def phase(self, lanes: Sequence[Sequence[str]]) -> None:
        threads = [threading.Thread(target=self._lane, args=(list(lane),)) for lane in lanes if lane]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def close(self) -> None:
        for process in self._processes:
            process.kill()

    def _lane(self, names: list[str]) -> None:
        while names and not self.absent:
            self._process(names)

    def _process(self, names: list[str]) -> None:
        """Takes from `names` what was done: all, or as much as one process could."""
        environment = dict(os.environ, PYTHONUNBUFFERED="1")
        if self.emulate:  # both are read when torch's and Triton's users are imported
            environment |= {"BIGRUN_GPU": "emulate", "TRITON_INTERPRET": "1"}
        given = ["--worker", ",".join(names), "--folder", str(self.folder), "--deadline", str(self.deadline)]
        command = [sys.executable, str(Path(__file__).resolve()), *given, *(["--emulate"] if self.emulate else [])]
        with tempfile.TemporaryFile("w+", dir=self.folder) as errors:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
            self._processes.append(process)
            lines: queue.Queue[str] = queue.Queue()
            threading.Thread(target=partial(forward, process, lines), daemon=True).start()
            current, until = "", self.deadline + SLACK
            while True:
                try:
                    line = lines.get(timeout=max(0.1, until - time.time()))
                except queue.Empty:
                    process.kill()
                    self._put(current or names[0], failed(current or names[0], "it was stopped: it did not end"))
                    names.remove(current or names[0])
                    break
                if not line:
                    break
                event = json.loads(line)
                current, until = self._took(event, names, current, until)
            process.wait()
            errors.seek(0)
            last = (errors.read().strip().splitlines() or ["it said nothing"])[-1]
        if current in names or (process.returncode not in (0, 2, 3) and names and not current):
            name = current or names[0]
            self._put(name, failed(name, f"its process ended with status {process.returncode}: {last}"))
            names.remove(name)

    def _took(self, event: Mapping[str, Any], names: list[str], current: str, until: float) -> tuple[str, float]:
        """One event of a process; what it is at now, and until when it may be."""
        self.about = event.get("about", self.about)
        self.absent = event.get("absent", self.absent)
        if "row" in event:
            self._put(event["name"], event["row"])
        if "trace" in event:
            print(event["trace"], file=sys.stderr, flush=True)
        if "begun" in event:
            current = event["name"]
            until = min(self.deadline + SLACK, time.time() + 4 * MEASUREMENTS[current].seconds)
        if "done" in event:
            names.remove(event["name"])
            count = len(self.rows.get(event["name"], ()))
            print(f"{time.time() - self.started:6.1f} s  {event['name']}: {count} rows", file=sys.stderr, flush=True)
            current, until = "", self.deadline + SLACK
        return current, until

    def _put(self, name: str, row: dict[str, Any]) -> None:
        self.rows.setdefault(name, []).append(row)


def forward(process: "subprocess.Popen[str]", lines: "queue.Queue[str]") -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    lines.put("")


def commit() -> str:
    """The checkout's, with a + where files differ from it; "unknown" outside git."""
    asked = partial(subprocess.run, cwd=ROOT, capture_output=True, text=True, timeout=10)
    try:
        found = asked(["git", "rev-parse", "--short=12", "HEAD"], check=True).stdout.strip()
        changed = asked(["git", "status", "--porcelain", "--untracked-files=no"], check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found + ("+" if changed else "")


def room() -> str | None:
    """A folder in memory with room for checkpoints, if there is one: disks are slow."""
    try:
        found = os.statvfs("/dev/shm")
    except OSError:
        return None
    return "/dev/shm" if found.f_bavail * found.f_frsize > 24e9 and "TMPDIR" not in os.environ else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="NAME,...", help=f"of {', '.join(MEASUREMENTS)}")
    parser.add_argument("--skip-7b", action="store_true", help="leave out what needs a 7B checkpoint")
    parser.add_argument("--limit-s", type=float, default=460, help="seconds for all of it")
    parser.add_argument("--out", type=Path, help="where the results go (docs/; with --emulate, nowhere)")
    parser.add_argument("--commit", help="what is measured, where git cannot tell")
    parser.add_argument("--emulate", action="store_true", help="run every line, without a GPU, on tiny shapes")
    for hidden in ("--worker", "--folder", "--deadline"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        return work(given.worker.split(","), given.emulate, Path(given.folder), float(given.deadline))
    wanted = given.only.split(",") if given.only else list(MEASUREMENTS)
    if unknown := [name for name in wanted if name not in MEASUREMENTS]:
        parser.error(f"--only {','.join(unknown)}: choose of {', '.join(MEASUREMENTS)}")
    wanted = [name for name in wanted if not (given.skip_7b and name in LARGE)]
    phases = [[[name for name in lane if name in wanted] for lane in phase] for phase in PHASES]
    if given.emulate:  # one process: imports would be most of it
        phases = [[[name for phase in phases for lane in phase for name in lane]]]
    with tempfile.TemporaryDirectory(prefix="bigrun-gpu-", dir=room()) as folder:
        session = Session(given.emulate, Path(folder), given.limit_s)
        try:
            for phase in phases:
                session.phase(phase)
                if session.absent:
                    print(f"{session.absent}: --emulate runs this script without one", file=sys.stderr)
                    return 2
        finally:
            session.close()
    rows = {name: session.rows[name] for name in MEASUREMENTS if name in session.rows}
    flat = [row for some in rows.values() for row in some]
    now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    known = {"date": now, "commit": given.commit or commit(), **session.about}
    run = {**{name: known.get(name, "unknown") for name in ABOUT}, "rows": flat}
    if given.out or not given.emulate:
        append(run, given.out or ROOT / "docs")
    print(f"\n{run['card']}; {', '.join(f'{name} {run[name]}' for name in ABOUT[2:])}")
    print(short_table(rows))
    print(f"{len(flat)} rows, {failures(flat)} failed, {time.time() - session.started:.0f} s")
    return 1 if failures(flat) else 0


if __name__ == "__main__":
    sys.exit(main())

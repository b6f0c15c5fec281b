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
import ctypes
import datetime
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from gpu_report import ABOUT, append, failures, short_table, shown, verdict
from gpu_worker import GO_ON, MEASUREMENTS, failed

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu_worker.py"
LARGE = ("files-7b", "large-model", "hybrid")
PREFIX = "bigrun-gpu-"  # of temporary folders; then the process that made it
SLACK = 12  # seconds that a measurement may go on beyond the limit
PHASES: Sequence[Sequence[Sequence[str]]] = (  # one after the other; what is in a phase goes side by side
    (
        ("check-exact", "check-table"),
        ("check-int8",),
        ("check-store", "check-elementwise", "check-decode-attention"),
        ("check-prompt-attention",),
        ("files-0.1b", "host-kernels", "gpu-kernels"),
        ("files-7b",),
    ),
    (("roofs", "decode", "few-rows", "prefill", "attention"),),
    (("small-model", "large-model", "hybrid"),),
    (("head", "blocks"),),
)
Rows = dict[str, list[dict[str, Any]]]


class Session:
    """Everything that was asked for, in processes; rows by measurement, as they come."""

    def __init__(self, emulate: bool, folder: Path, limit: float):
        self.emulate, self.folder = emulate, folder
        self.started = time.time()
        self.deadline = self.started + limit
        self.rows: Rows = {}
        self.about: dict[str, str] = {}
        self.absent = ""
        self.closed = False
        self.keep: Callable[[], None] = lambda: None  # called whenever there is more to keep
        self._processes: list[subprocess.Popen[str]] = []

    def phase(self, lanes: Sequence[Sequence[str]]) -> None:
        threads = [threading.Thread(target=self._lane, args=(list(lane),)) for lane in lanes if lane]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def close(self) -> None:
        self.closed = True  # for lanes that go on after Ctrl-C
        for process in self._processes:
            process.kill()

    def _lane(self, names: list[str]) -> None:
        while names and not self.absent and not self.closed:
            self._process(names)

    def _process(self, names: list[str]) -> None:
        """Takes from `names` what was done: all, or as much as one process could."""
        environment = dict(os.environ, TEARDOWN_CUPTI="0")  # profiled CUDA graphs need it with older drivers
        if self.emulate:  # read when torch, Triton and what uses them are imported
            environment |= {"BIGRUN_GPU": "emulate", "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
        arguments = ["--worker", ",".join(names), "--folder", str(self.folder), "--deadline", str(self.deadline)]
        command = [sys.executable, str(SCRIPT), *arguments, *(["--emulate"] if self.emulate else [])]
        with tempfile.TemporaryFile("w+", dir=self.folder) as errors:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
            self._processes.append(process)
            lines: queue.Queue[str] = queue.Queue()
            threading.Thread(target=partial(forward, process, lines), daemon=True).start()
            current, until, stopped = "", self.deadline + SLACK, False
            while True:
                try:
                    line = lines.get(timeout=max(0.1, until - time.time()))
                except queue.Empty:
                    process.kill()
                    stopped = True
                    break
                if not line:
                    break
                event = json.loads(line)
                current, until = self._took(event, names, current, until)
            process.wait()
            errors.seek(0)
            last = (errors.read().strip().splitlines() or ["it said nothing"])[-1]
        if names and not self.absent and process.returncode != GO_ON:
            name = current or names[0]
            ended = f"its process ended with status {process.returncode}: {last}"
            self._put(name, failed(name, "it was stopped: it did not end" if stopped else ended))
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
            self.keep()
            count = len(self.rows.get(event["name"], ()))
            print(f"{time.time() - self.started:6.1f} s  {event['name']}: {count} rows", file=sys.stderr, flush=True)
            current, until = "", self.deadline + SLACK
        return current, until

    def _put(self, name: str, row: dict[str, Any]) -> None:
        self.rows.setdefault(name, []).append(row)
        said = f"{row['name']}: {shown(row['figure'])} {row['unit']} {row['bar']} {verdict(row['met'])} {row['note']}"
        print(f"         {' '.join(said.split())}", file=sys.stderr, flush=True)  # a run that is cut short leaves these


def forward(process: "subprocess.Popen[str]", lines: "queue.Queue[str]") -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    lines.put("")


def no_gpu() -> str:
    """Why there is no GPU to measure, by the driver's own word, which takes no import of torch; "" where there is one."""
    count = ctypes.c_int()
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no CUDA GPU: there is no driver (libcuda.so.1)"
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    return (
        f"no CUDA GPU: the driver says {status}"
        if status
        else ""
        if count.value
        else "no CUDA GPU: the driver has none"
    )


def commit() -> str:
    """The checkout's, with a + where files differ from it; "unknown" outside git."""
    asked = partial(subprocess.run, cwd=ROOT, capture_output=True, text=True, timeout=10)
    try:
        revision = asked(["git", "rev-parse", "--short=12", "HEAD"], check=True).stdout.strip()
        changed = asked(["git", "status", "--porcelain", "--untracked-files=no"], check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return revision + ("+" if changed else "")


def room() -> str | None:
    """A folder in memory with room for checkpoints, if there is one: disks are slow."""
    try:
        filesystem = os.statvfs("/dev/shm")
    except OSError:
        return None
    return "/dev/shm" if filesystem.f_bavail * filesystem.f_frsize > 24e9 and "TMPDIR" not in os.environ else None


def remove_left(folder: str | None) -> None:
    """Take away what earlier runs left that were killed: checkpoints of 14 GB, in memory."""
    for left in Path(folder or tempfile.gettempdir()).glob(f"{PREFIX}*-*"):
        number = left.name.removeprefix(PREFIX).partition("-")[0]
        if number.isdigit() and not Path(f"/proc/{number}").exists():
            shutil.rmtree(left, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="NAME,...", help=f"of {', '.join(MEASUREMENTS)}")
    parser.add_argument("--skip-7b", action="store_true", help="leave out what needs a 7B checkpoint")
    parser.add_argument("--limit-s", type=float, default=460, help="seconds for all of it")
    parser.add_argument("--out", type=Path, help="where the results go (docs/; with --emulate, nowhere)")
    parser.add_argument("--commit", help="what is measured, where git cannot tell")
    parser.add_argument("--emulate", action="store_true", help="run every line, without a GPU, on tiny shapes")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else list(MEASUREMENTS)
    if unknown := [name for name in names if name not in MEASUREMENTS]:
        parser.error(f"--only {','.join(unknown)}: choose of {', '.join(MEASUREMENTS)}")
    if not options.emulate and (absent := no_gpu()):
        print(f"{absent}; --emulate runs this script without one", file=sys.stderr)
        return 2
    names = [name for name in names if not (options.skip_7b and name in LARGE)]
    phases = [[[name for name in lane if name in names] for lane in phase] for phase in PHASES]
    if options.emulate:  # one process: imports would be most of it
        phases = [[[name for phase in phases for lane in phase for name in lane]]]
    started = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    known = {"date": started, "commit": options.commit or commit()}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what is below is put away
    remove_left(room())
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-", dir=room()) as folder:
        session = Session(options.emulate, Path(folder), options.limit_s)
        lock = threading.Lock()

        def so_far() -> dict[str, Any]:
            flat = [row for name in MEASUREMENTS for row in session.rows.get(name, ())]
            return {**{name: {**known, **session.about}.get(name, "unknown") for name in ABOUT}, "rows": flat}

        def keep() -> None:
            with lock:
                append(so_far(), options.out or ROOT / "docs")

        if options.out or not options.emulate:
            session.keep = keep
        try:
            for phase in phases:
                session.phase(phase)
                if session.absent:
                    print(f"{session.absent}; --emulate runs this script without one", file=sys.stderr)
                    return 2
        finally:
            session.close()
    session.keep()
    rows = {name: session.rows[name] for name in MEASUREMENTS if name in session.rows}
    run = so_far()
    flat = run["rows"]
    print(f"\n{run['card']}; {', '.join(f'{name} {run[name]}' for name in ABOUT[2:])}")
    print(short_table(rows))
    print(f"{len(flat)} rows, {failures(flat)} failed, {time.time() - session.started:.0f} s")
    return 1 if failures(flat) else 0


if __name__ == "__main__":
    sys.exit(main())

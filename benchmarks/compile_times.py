"""The table TIMES of bigrun_kernels/cpu/compile_times.py: seconds of one core that each kernel of a first run takes to compile,
without the kernels that it calls, into a cache folder of its own.

python benchmarks/compile_times.py
"""

import os
import sys
import tempfile
import time
from typing import Any

from numba.core import event

from bigrun import Runner
from bigrun_kernels.cpu.compile_times import name_of


class Times(event.Listener):  # type: ignore[misc]
    """Seconds by kernel; what Numba compiles of its own counts for the kernel that needs it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.open: list[tuple[float, float, str | None]] = []  # (began, seconds of the kernels within, name)

    def on_start(self, compilation: event.Event) -> None:
        self.open.append((time.thread_time(), 0.0, name_of(compilation.data.get("dispatcher"))))

    def on_end(self, compilation: event.Event) -> None:
        began, within, name = self.open.pop()
        took = time.thread_time() - began
        if name is not None:
            self.seconds[name] = self.seconds.get(name, 0.0) + took - within
        if self.open:
            outer, inner, above = self.open[-1]
            self.open[-1] = outer, inner + (within if name is None else took), above


def measure() -> dict[str, float]:
    """By kernel, of the demo model's first run."""
    times: Any = Times()
    event.register("numba:compile", times)
    with Runner(progress=False) as runner:
        runner.generate([1, 2, 3], 3)
    seconds: dict[str, float] = times.seconds
    return seconds


if __name__ == "__main__":
    if "NUMBA_CACHE_DIR" not in os.environ or os.listdir(os.environ["NUMBA_CACHE_DIR"]):
        with tempfile.TemporaryDirectory() as folder:
            os.environ["NUMBA_CACHE_DIR"] = folder  # read when Numba is imported: in a process of its own
            sys.exit(os.spawnv(os.P_WAIT, sys.executable, [sys.executable, *sys.argv]))
    for name, seconds in sorted(measure().items()):
        print(f'    "{name}": {seconds:.2f},')

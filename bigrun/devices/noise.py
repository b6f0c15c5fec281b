"""Whether a measurement was disturbed: how far its repeats lie apart, and what other processes took of the CPU meanwhile."""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bigrun_kernels.cpu.cgroups import usable_cpus

MOST_FOREIGN = 0.10  # of this process's cores that others may use in a quiet minute
MOST_SPREAD = 0.15  # by which the median of the repeats may fall short of the best of them
STAT = Path("/proc/stat")
BUSY_FIELDS = (0, 1, 2, 5, 6, 7)  # of a line of /proc/stat: user, nice, system, irq, softirq, steal


@dataclass(frozen=True)
class Noise:
    """Of one measured figure: how often it was measured (0: not at all, it is assumed), 1 − median/best of the repeats, the
    share of this process's cores that others used meanwhile, the day, and `busy`: why it is not believed, "" if it is."""

    repeats: int
    spread: float
    foreign_cpu_share: float
    measured_on: str
    busy: str = ""


def noise(rates: Sequence[float], foreign: float, day: str) -> Noise:
    """The noise of a measurement, by its repeats and what `watch_others` saw."""
    spread = 1 - statistics.median(rates) / max(rates)
    return Noise(len(rates), spread, foreign, day, why_busy(foreign, spread))


def why_busy(foreign: float, spread: float = 0.0) -> str:
    """In words, which bound is exceeded; "" if none is."""
    if foreign > MOST_FOREIGN:
        return f"other processes used {foreign:.0%} of the CPU"
    if spread > MOST_SPREAD:
        return f"its repeats lay {spread:.0%} apart"
    return ""


def watch_others(stat: Path = STAT) -> Callable[[], float]:
    """Starts to watch; the returned function says what share of this process's cores others have used since.

    Others are other processes and, on a virtual machine, its neighbours (`steal`). 0 where the system does not tell. What a
    control group's quota keeps from this process is free for others to use.
    """
    cores = os.sched_getaffinity(0)
    ours_to_use = usable_cpus()
    began, ours, all_of = time.monotonic(), time.process_time(), _busy_seconds(stat, cores)

    def seen() -> float:
        passed, own = time.monotonic() - began, time.process_time() - ours
        total = _busy_seconds(stat, cores)
        if all_of is None or total is None or passed <= 0:
            return 0.0
        others = (total - all_of - own) / passed  # in cores
        return min(1.0, max(0.0, (others - (len(cores) - ours_to_use)) / ours_to_use))

    return seen


def _busy_seconds(stat: Path, cores: set[int]) -> float | None:
    """Seconds that these cores have worked since the system started, for whomever (Linux, proc(5))."""
    try:
        lines = stat.read_text().splitlines()
        names = {f"cpu{core}" for core in cores}
        rows = [line.split() for line in lines if line.split(" ", 1)[0] in names]
        ticks = sum(int(row[1 + field]) for row in rows for field in BUSY_FIELDS)
    except (OSError, ValueError, IndexError):
        return None
    return ticks / os.sysconf("SC_CLK_TCK") if rows else None

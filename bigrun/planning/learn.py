"""Learning a host's rates from its own runs: what steps took, against what they were made of.

A run is a step (or a prompt) as counts of equal parts and their Work, with the seconds it took. `fit` finds the rates
whose predictions are nearest to all runs, in ratios; what the runs say little about stays near the measured roofs.

Fixed costs and rates are told apart: a run teaches rates where its variable part is at least TELLING times the fixed cost
of its blocks (an overhead of a tiny model's step is no slow memory); the others teach the fixed cost alone. No rate goes
further from the roofs than `bounded` lets it, and a run of a busy minute counts only where there are no others.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from typing import Any

from bigrun.devices.rates import Rates, bounded
from bigrun.planning.cost import Costs, Phase, Work, seconds
from bigrun.planning.ledger import Ledger

LEARNED = ("read", "cache", "int8", "wide", "attention", "elements", "block", "overlap")
PRIOR = 0.01  # what a rate e times the measured one weighs beside a run that is predicted at 1/e of its time
NEAR = 0.03  # runs that are nearer than this are not told apart, and one that was disturbed does not outweigh many
OVERLAPS = (1.0, 16.0)
MOST_RUNS = 64  # that a host file keeps: the latest
FINEST = 1e-4  # of the logarithm of a rate
TELLING = 2.0


@dataclass(frozen=True)
class Run:
    """`parts`: (how many, the work of each); `seconds` that all of them took together; `busy`: what disturbed it, or ""."""

    name: str
    parts: tuple[tuple[int, Work], ...]
    seconds: float
    busy: str = ""

    def predicted(self, rates: Rates) -> float:
        return sum(count * seconds(work, rates) for count, work in self.parts)

    def tells_rates(self, rates: Rates) -> bool:
        """Whether it is long enough to show rates, and not the fixed cost of its blocks."""
        fixed = sum(count * rates.block for count, work in self.parts if work.products)
        return self.predicted(rates) - fixed >= TELLING * fixed


def observe(name: str, ledger: Ledger, phase: Phase, measured: float, busy: str = "") -> Run:
    """A run of a whole model on one device."""
    costs = Costs(ledger, phase)
    counts: dict[Work, int] = {}
    for part in ledger.spec.parts:
        work = costs.work(part.name)
        times = phase.steps if part.name not in ("norm", "head") else 1
        counts[work] = counts.get(work, 0) + times
    return Run(name, tuple((count, work) for work, count in counts.items()), measured, busy)


def fit(runs: Sequence[Run], start: Rates) -> Rates:
    """Fits the rates to these runs, from `start` on, by a pattern search over their logarithms. The same runs give the
    same rates."""
    runs = [run for run in runs if not run.busy] or runs
    if not runs:
        return start
    shift = _search([run for run in runs if run.tells_rates(start)], start, dict.fromkeys(LEARNED, 0.0), LEARNED)
    shift = _search(runs, start, shift, ("block",))
    return replace(_shifted(start, shift), source=f"learned from {len(runs)} runs")


def _search(runs: Sequence[Run], start: Rates, shift: dict[str, float], names: Sequence[str]) -> dict[str, float]:
    """The logarithms of these rates, against those of `start`, that predict the runs best."""

    def apart(shift: dict[str, float]) -> float:
        rates = _shifted(start, shift)
        wrong = sum(math.hypot(math.log(run.predicted(rates) / run.seconds), NEAR) for run in runs)
        return wrong + PRIOR * sum(value**2 for value in shift.values())

    best, step = apart(shift), 0.5
    while step > FINEST:
        improved = False
        for name in names:
            for sign in (step, -step):
                tried = {**shift, name: shift[name] + sign}
                distance = apart(tried)
                if distance < best * (1 - 1e-9):
                    shift, best, improved = tried, distance, True
                    break
        step = step if improved else step / 2
    return shift


def _shifted(start: Rates, shift: dict[str, float]) -> Rates:
    rates = {name: getattr(start, name) * math.exp(value) for name, value in shift.items()}
    rates["overlap"] = min(max(rates["overlap"], OVERLAPS[0]), OVERLAPS[1])
    return bounded(replace(start, **rates), start)


def to_data(runs: Iterable[Run]) -> tuple[Any, ...]:
    """Runs as JSON holds them."""
    return tuple(
        {
            "name": r.name,
            "seconds": r.seconds,
            "busy": r.busy,
            "parts": [[count, asdict(work)] for count, work in r.parts],
        }
        for r in runs
    )


def _parts(data: Any) -> tuple[tuple[int, Work], ...]:
    return tuple((int(count), Work(**work)) for count, work in data)


def keep_runs(runs: Sequence[Run]) -> tuple[Run, ...]:
    """The MOST_RUNS of them that a host file keeps: the latest quiet ones, then the latest of busy minutes."""
    numbers = sorted(range(len(runs)), key=lambda i: (not runs[i].busy, i))[-MOST_RUNS:]
    return tuple(runs[i] for i in sorted(numbers))


def from_data(data: Iterable[Any]) -> tuple[Run, ...]:
    """The inverse; ValueError, TypeError or KeyError where it is not such data."""
    runs = tuple(Run(str(d["name"]), _parts(d["parts"]), float(d["seconds"]), str(d.get("busy", ""))) for d in data)
    for run in runs:
        figures = [figure for count, work in run.parts for figure in (count, *astuple(work)[:-1])]
        known = all(0 <= figure < math.inf for figure in (run.seconds, *figures))
        if not known or not run.seconds or not any(count * sum(astuple(work)[:-1]) for count, work in run.parts):
            raise ValueError(f"{run.name[:40]!r} is not made of work that takes time")
    return runs

"""Why a plan does not fit, and the single changes that make it fit, each planned again."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from bigrun.devices.rig import Rig
from bigrun.planning.best import fits
from bigrun.planning.ledger import Ledger
from bigrun.planning.plan import Plan
from bigrun.planning.words import several
from bigrun.sizes import format_size

MOST_MORE = 64  # cards that are tried
LEAST_CONTEXT = 256  # tokens: a shorter context mends nothing for anybody


def largest(low: int, high: int, good: Callable[[int], bool]) -> int:
    """The largest number in [low, high] that is good, where all below a good one are; 0 if none is."""
    if not good(low):
        return 0
    step = 1
    while low < high and good(min(high, low + step)):
        low, step = min(high, low + step), step * 2
    high = min(high, low + step)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if good(middle) else (low, middle)
    return low


def smallest(high: int, good: Callable[[int], bool]) -> int:
    """The smallest number in [1, high] that is good, where all above a good one are; 0 if none is."""
    if not good(high):
        return 0
    return high - largest(0, high - 1, lambda n: good(high - n))


def why_not(plan: Plan, ledger: Ledger, rig: Rig) -> Plan:
    """A plan that does not fit, with what each device needs and has, and the changes that mend it, the smallest first."""
    experts = sum(name.endswith(".experts") for name in plan.unplaced)
    blocks = sum(name.startswith("blocks.") for name in plan.unplaced) - experts
    others = [name for name in plan.unplaced if not name.startswith("blocks.")]
    counts = (several(blocks, "block") if blocks else "", f"experts of {several(experts, 'block')}" if experts else "")
    what = " and ".join(filter(None, [*counts, ", ".join(others)]))
    missing = sum(ledger.weights(name) + ledger.kv(name) for name in plan.unplaced)
    missing -= sum(p.weights_bytes for p in plan.placements if p.part in plan.unplaced)  # slices that found a place
    left = ", ".join(
        f"{d.name} has {format_size(max(0, d.free_bytes))} of {format_size(d.budget_bytes)} left"
        for d in plan.devices[:4]
    )
    left += f" and {len(plan.devices) - 4} more" if len(plan.devices) > 4 else ""
    mends = list(_mends(ledger, rig))
    advice = f"give {', or '.join(mends)}" if mends else "no change of --cpu, --gpus, --kv or --context alone mends it"
    return replace(plan, hint=f"{format_size(missing)} are missing for {what}: {left}; {advice}")


def _mends(ledger: Ledger, rig: Rig) -> Iterator[str]:
    """Single changes that make it fit, each of them planned again."""
    spec, options = ledger.spec, ledger.options
    if options.storage.kv == "16bit" and fits(Ledger(spec, options.with_kv("int8")), rig):
        yield "--kv int8"
    have = rig.device("cpu").budget_bytes
    total = sum(ledger.weights(p.name) + ledger.kv(p.name) for p in spec.parts) + 2 * ledger.workspace(32, True, True)
    unit = 10**9 if total > 10**10 else 10**6
    base = -(-have // unit)
    more = smallest(
        -(-total * 102 // 100 // unit) + 1, lambda n: fits(ledger, rig.with_budget("cpu", (base + n) * unit))
    )
    if more:
        yield f"--cpu {base + more}{'GB' if unit == 10**9 else 'MB'}"
    if rig.gpus:
        last = rig.gpus[-1]
        count = smallest(MOST_MORE, lambda n: fits(ledger, rig.with_gpus([*rig.gpus, *[last] * n])))
        if count:
            yield f"--gpus {rig.with_gpus([*rig.gpus, *[last] * count]).gpus_text}"

    def shorter(n: int) -> Ledger:
        return Ledger(spec, replace(options, context=n, prompt=None))

    if options.context > LEAST_CONTEXT and fits(shorter(LEAST_CONTEXT), rig):
        tokens = largest(LEAST_CONTEXT, options.context, lambda n: fits(shorter(n), rig))
        if tokens >= (options.prompt or 1):
            yield f"--context {tokens}"
    if options.batch > 1:
        batch = largest(1, options.batch, lambda n: fits(Ledger(spec, replace(options, batch=n)), rig))
        if batch:
            yield f"--batch {batch}"

"""The search over chunks, stream targets and overflow costs: the plan with the quickest request, without hints.

For each of these, search.py finds the best cuts, and the quickest plan that keeps every budget is taken. Also the checks
and limits of what can be planned.
"""

import math

from bigrun.devices.rig import Rig
from bigrun.errors import CallError
from bigrun.model.buffers import LONGEST_CHUNK
from bigrun.model.spec import ModelSpec
from bigrun.planning.account import account, predict, rated
from bigrun.planning.exhaustive import is_small, least
from bigrun.planning.ledger import Ledger
from bigrun.planning.options import PlanOptions
from bigrun.planning.placing import arrange, place, placement
from bigrun.planning.plan import Plan
from bigrun.planning.plan_data import Placement
from bigrun.planning.search import EXPERT_NOWHERE, Problem, Search

CHUNKS = (LONGEST_CHUNK, 256, 128, 64, 32)  # tokens of a prefill step
MOST_TOKENS, MOST_BATCH = 2**28, 65536
STREAM_TARGETS = 2  # GPUs that are tried to stream through: those with the best links


def check(spec: ModelSpec, options: PlanOptions) -> None:
    """CallError for options that this model cannot have."""
    if not 1 <= options.context <= MOST_TOKENS:
        raise CallError(f"--context {options.context}: give a number of tokens between 1 and {MOST_TOKENS}")
    if options.context > spec.context_limit and spec.blocks[0].positions != "alibi":  # which has no end
        what = "learned positions for" if spec.position_rows else "a maximum of"
        raise CallError(f"--context {options.context}: {spec.name} has {what} {spec.context_limit} tokens; give fewer")
    if not 1 <= options.batch <= MOST_BATCH:
        raise CallError(f"--batch {options.batch}: give a number of sequences between 1 and {MOST_BATCH}")
    if not 1 <= options.prompt_tokens <= options.context:
        raise CallError(f"--prompt-tokens {options.prompt}: give a number between 1 and the context, {options.context}")
    options.storage.check_names(spec)


def fits(ledger: Ledger, rig: Rig) -> bool:
    """Whether any placement holds everything: those that leave most room are asked."""
    for through in (None, *_targets(ledger, rig)):
        problem = Problem(ledger, rig, _chunks(ledger)[-1], through)
        search = Search(problem, 0.0)
        search.overflow_cost = EXPERT_NOWHERE / search.each if search.each else 0.0
        loads = search.solve()
        if loads is not None and not place(problem, loads)[1]:
            return True
    return is_small(problem) and best_plan(ledger, rig).fits


def _chunks(ledger: Ledger) -> list[int]:
    return [chunk for chunk in CHUNKS if chunk < 2 * ledger.options.context] or [CHUNKS[-1]]


def best_plan(ledger: Ledger, rig: Rig) -> Plan:
    """The best of all chunks, stream targets and overflow costs; nothing is said of why it may not fit."""
    chunks = _chunks(ledger)
    smallest = Problem(ledger, rig, chunks[-1])
    best, overflow_cost = _first(smallest)
    host = any(p.decode_on == "cpu" and p.part not in ("embed", "norm") for p in best.placements)
    targets = _targets(ledger, rig) if host or not best.fits or is_small(smallest) else []
    if smallest.experts and not is_small(smallest):  # each takes longer to try, and the best link is nearly always it
        targets = targets[:1]
    for chunk in chunks:
        for through in (None, *targets):
            problem = Problem(ledger, rig, chunk, through)
            if (chunk, through) != (chunks[-1], None):
                plan = _plan(problem, overflow_cost)
                best = min(best, plan, key=rated) if plan else best
            if problem.experts and through is None:  # runs of whole blocks, their experts with them
                plan = _plan(problem, 0.0, joined=True)
                best = min(best, plan, key=rated) if plan else best
            if is_small(problem):
                best = _exhausted(problem, best)
    return best


def _targets(ledger: Ledger, rig: Rig) -> list[str]:
    """GPUs worth streaming through, by their links; runs on virtual GPUs do not stream yet."""
    if not ledger.options.streams:
        return []
    best: dict[tuple[float, float, int], str] = {}
    for gpu in rig.gpus:
        if not gpu.virtual:
            best.setdefault((gpu.rates.link, gpu.rates.int8, gpu.budget_bytes), gpu.name)
    return [best[key] for key in sorted(best, reverse=True)[:STREAM_TARGETS]]


def _first(problem: Problem) -> tuple[Plan, float]:
    """The best plan of the chunk that leaves most room, and what its last expert costs: the price at which others give
    way to it. The last expert is on the host nearly always; where it is not, every device is tried."""
    nothing = _written(problem, [], [part.name for part in problem.ledger.spec.parts])
    if not problem.experts:
        return _plan(problem, 0.0) or nothing, 0.0
    search = Search(problem, 0.0)
    hosts = {search.expert_cost(d) for d in problem.rig.devices if d.kind != "gpu" and d.budget_bytes}
    overflow_costs = [*sorted(hosts), EXPERT_NOWHERE / search.each]
    candidates = [(plan, overflow_cost) for overflow_cost in overflow_costs if (plan := _plan(problem, overflow_cost))]
    best = min(candidates, key=lambda pair: rated(pair[0]), default=(nothing, overflow_costs[0]))
    if best[0].fits and all(p.stored_on.startswith("cuda") for p in best[0].placements if p.part.endswith(".experts")):
        for overflow_cost in sorted({search.expert_cost(gpu) for gpu in problem.rig.gpus}):
            plan = _plan(problem, overflow_cost)
            best = min(best, (plan, overflow_cost), key=lambda pair: rated(pair[0])) if plan else best
    return best


def _plan(problem: Problem, overflow_cost: float, joined: bool = False) -> Plan | None:
    """The best plan of one problem; None where what it stages does not even fit, or a budget would be exceeded."""
    loads = Search(problem, overflow_cost, joined).solve()
    if loads is None:
        return None
    plan = _written(problem, *place(problem, arrange(problem, loads), joined))
    return plan if all(device.used_bytes <= device.budget_bytes for device in plan.devices) else None


def _exhausted(problem: Problem, best: Plan) -> Plan:
    """The best of all placements of a very small model, if it is better than `best`."""
    below = best.predicted.request_seconds * (1 - 1e-9) if best.predicted else math.inf
    placements = least(problem, below)
    return best if placements is None else _written(problem, placements, [])


def _written(problem: Problem, placements: list[Placement], unplaced: list[str]) -> Plan:
    spec, options = problem.ledger.spec, problem.ledger.options
    fits = not unplaced
    placements = _feeding_itself(problem, placements) if fits else placements
    return Plan(
        model=spec.name,
        family=spec.family,
        parameters=spec.parameters,
        fits=fits,
        context_tokens=options.context,
        batch=options.batch,
        prefill_chunk_tokens=problem.chunk,
        storage=options.storage,
        devices=account(problem, placements),
        placements=tuple(placements),
        predicted=predict(problem, placements) if fits else None,
        unplaced=tuple(unplaced),
    )


def _feeding_itself(problem: Problem, placements: list[Placement]) -> list[Placement]:
    """The embedding beside everything else, where that is all on one real GPU with room for it: then the card looks up the
    tokens that it chose, and no step waits for the host."""
    homes = {p.stored_on for p in placements if p.part != "embed"}
    device = problem.rig.device(min(homes))
    if len(homes) > 1 or not device.is_gpu or problem.ledger.spec.tied:
        return placements
    moved = [placement(problem, p.part, device, None) if p.part == "embed" else p for p in placements]
    card = next(d for d in account(problem, moved) if d.name == device.name)
    return moved if card.used_bytes <= card.budget_bytes else placements

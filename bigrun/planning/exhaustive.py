"""Toys: every placement of a few parts on a few devices, for models too small for their numbers to decide.

Runs and prices (search.py) are the best where blocks are many and alike. Of eight parts any mixture of sizes, windows and
experts may be found, and hops may cost more than blocks: there all placements are tried, the hopeless ones left out.
"""

from bigrun.devices.rig import Device
from bigrun.planning.account import account, predict
from bigrun.planning.placing import placement
from bigrun.planning.plan_data import Placement
from bigrun.planning.search import Problem

MOST_PARTS, MOST_DEVICES = 8, 3  # norm is with the head, and a tied table too: seven choices at most


def is_small(problem: Problem) -> bool:
    devices = sum(device.budget_bytes > 0 for device in problem.rig.devices)
    return len(problem.ledger.spec.parts) <= MOST_PARTS and devices <= MOST_DEVICES


def least(problem: Problem, below: float) -> list[Placement] | None:
    """The placements of whole parts with the quickest request, if that is quicker than `below` seconds; else None."""
    spec, rig = problem.ledger.spec, problem.rig
    names = [part.name for part in spec.parts]
    beside = {"norm": "head", **({"embed": "head"} if spec.tied else {})}
    order = [name for name in names if name not in beside]
    choices = {name: [d for d in rig.devices if d.kind != "disk" or name not in ("head", "norm")] for name in order}
    floor = {name: min(problem.cost(name, device) for device in choices[name]) for name in order}
    rest = [sum(floor[name] for name in order[i:]) for i in range(len(order) + 1)]
    homes: dict[str, Device] = {}
    best: tuple[float, list[Placement] | None] = (below, None)

    def place(number: int, spent: float, free: dict[str, int]) -> None:
        nonlocal best
        if number == len(order):
            placed = [placement(problem, name, homes[beside.get(name, name)], None) for name in names]
            request_seconds = predict(problem, placed).request_seconds
            if request_seconds < best[0] and all(d.used_bytes <= d.budget_bytes for d in account(problem, placed)):
                best = request_seconds, placed
            return
        name = order[number]
        for device in choices[name]:
            now = spent + problem.cost(name, device)
            left = free[device.name] - problem.ledger.weights(name)
            if now + rest[number + 1] < best[0] and left >= 0:
                homes[name] = device
                place(number + 1, now, {**free, device.name: left})

    place(0, 0.0, {device.name: device.budget_bytes for device in rig.devices})
    return best[1]

"""From what each device takes (search.py) to placements: one for each part, or slice of experts."""

from bigrun.devices.rig import Device
from bigrun.planning.plan_data import Placement
from bigrun.planning.search import Load, Problem


def arrange(problem: Problem, loads: list[Load]) -> list[Load]:
    """Runs of equal blocks in the order with the fewest hops, on equal devices from the first on.

    The device of the embedding (the host's, if it is there) comes first and that of the head last.
    """
    spec = problem.ledger.spec
    skip = problem.ledger.options.storage.skip
    if len(set(spec.blocks)) > 1 or any(name.startswith("blocks.") for name in skip):
        return loads
    classes: dict[object, list[Load]] = {}
    for load in loads:
        classes.setdefault(_equal(problem, load), []).append(load)
    for group in classes.values():
        names = [load.device for load in group]
        group.sort(key=lambda load: (load.stop == load.first and not load.head, _rank(load), load.first - load.stop))
        for name, load in zip(names, group, strict=True):
            load.device = name
    order = {device.name: i for i, device in enumerate(problem.rig.devices)}
    placed = sorted((load for load in loads if load.device), key=lambda load: (_rank(load), order[load.device]))
    placed += [load for load in loads if not load.device]
    first = 0
    for load in placed:
        length, on_disk = load.stop - load.first, load.stop - load.disk_from
        load.first, load.stop = first, first + length
        load.disk_from = load.stop - (on_disk if load.device == "cpu" else 0)
        first = load.stop
    return placed


def _equal(problem: Problem, load: Load) -> object:
    """The key by which devices are interchangeable."""
    device = problem.rig.device(load.device) if load.device else None
    if device is None or device.kind != "gpu":
        return load.device
    return device.budget_bytes, device.rates, device.virtual, problem.staging(device)


def _rank(load: Load) -> int:
    """The sort key of devices: the host with the embedding, any device with it, the others, the device of the head."""
    if load.head:
        return 3
    return (0 if load.device == "cpu" else 1) if load.embed else 2


def place(problem: Problem, loads: list[Load], joined: bool = False) -> tuple[list[Placement], list[str]]:
    """Placements in the order of execution, and the names of parts (or parts of them) without a place."""
    rig, spec = problem.rig, problem.ledger.spec
    homes: dict[str, Device | None] = {}
    for load in loads:
        device = rig.device(load.device) if load.device else None
        disk = next((d for d in rig.devices if d.kind == "disk"), None)
        for i in range(load.first, load.stop):
            homes[f"blocks.{i}"] = disk if load.device == "cpu" and i >= load.disk_from else device
        if load.embed:
            homes["embed"] = disk if load.embed_on_disk else device
        if load.head:
            homes["norm"] = homes["head"] = device
            if spec.tied:
                homes["embed"] = device
    slices = _experts(problem, loads, homes)
    if joined:  # experts are where their block is
        slices = {p: [(homes[p.removesuffix(".experts")], 0, spec.expert_count(p))] for p in problem.experts}
    placements, unplaced = [], []
    for part in spec.parts:
        if part.name.endswith(".experts"):
            for home, first, stop in slices[part.name]:
                whole = stop - first == spec.expert_count(part.name)
                if home is None:
                    unplaced += [part.name] * (part.name not in unplaced)
                else:
                    placements.append(placement(problem, part.name, home, None if whole else (first, stop)))
        elif home := homes[part.name]:
            placements.append(placement(problem, part.name, home, None))
        else:
            unplaced.append(part.name)
    return placements, unplaced


def _experts(
    problem: Problem, loads: list[Load], homes: dict[str, Device | None]
) -> dict[str, list[tuple[Device | None, int, int]]]:
    """Part → [(home, first expert, stop)]: beside their block's attention first, then wherever there is room, the
    fastest device first, then the CPU, the disk, nowhere."""
    if not problem.experts:
        return {}
    rig, spec = problem.rig, problem.ledger.spec
    room: dict[str, int] = {}
    for load in loads:
        if load.device:
            room[load.device] = room.get(load.device, 0) + load.room
    room |= {d.name: load.disk_room for d in rig.devices if d.kind == "disk" for load in loads if load.device == "cpu"}
    costs = {d.name: problem.cost(problem.experts[0], d) for d in rig.devices}
    left = sum(spec.expert_count(part) for part in problem.experts)
    quota = {}
    for name in sorted(costs, key=lambda name: (costs[name], list(costs).index(name))):
        quota[name] = min(room.get(name, 0), left)
        left -= quota[name]
    missing = {part: spec.expert_count(part) for part in problem.experts}
    taken: dict[str, list[tuple[str, int]]] = {part: [] for part in problem.experts}

    def take(part: str, name: str) -> None:
        count = min(quota.get(name, 0), missing[part])
        if count:
            taken[part].append((name, count))
            quota[name] -= count
            missing[part] -= count

    for part in problem.experts:
        own = homes[part.removesuffix(".experts")]
        if own is not None:
            take(part, own.name)
    for part in sorted(problem.experts, key=lambda part: -missing[part]):
        for name in quota:
            take(part, name)
    result: dict[str, list[tuple[Device | None, int, int]]] = {}
    for part in problem.experts:
        first, result[part] = 0, []
        for name, count in taken[part]:
            result[part].append((rig.device(name), first, first + count))
            first += count
        if missing[part]:
            result[part].append((None, first, first + missing[part]))
    return result


def placement(problem: Problem, part: str, home: Device, cut: tuple[int, int] | None) -> Placement:
    """A part, or the experts [first, stop) of it, stored on a device."""
    ledger, spec = problem.ledger, problem.ledger.spec
    _, _, decode_on, prefill_on = problem.part_seconds(part, home)
    stored = ledger.layouts["embed" if part == "head" and spec.tied else part]
    has_keys = part.startswith("blocks.") and not part.endswith(".experts")
    return Placement(
        part=part,
        slice=cut,
        stored_on=home.name,
        stored_as=stored.stored_as,
        prefill_on=prefill_on,
        decode_on=decode_on,
        kv_on=("cpu" if home.kind == "disk" else home.name) if has_keys else None,
        weights_bytes=ledger.slice_bytes(part, cut[1] - cut[0]) if cut else ledger.weights(part),
        kv_cache_bytes=ledger.kv(part),
    )

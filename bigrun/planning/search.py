"""The search for a placement: which device takes how many blocks, the embedding, the head, and how many experts.

Blocks lie in the order of execution and a device takes a run of them, so a placement is a sequence of cuts; the
cheapest one is found by dynamic programming over devices and cuts. Where all blocks are alike (nearly always) that is
the best of all placements, whatever their order, because only the numbers matter; else it is the best one of runs in
the rig's order. Budgets, workspace, staging and hops are all in the cost of a run. What finds no place goes to a device
that is not there and costs more than any step.

Experts of a mixture are many and small: they fill what runs leave free, at the price that an expert saves against the
place where the last one would be (the sink). Which place that is is tried out by the caller.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bigrun.planning.cost import Costs, decode_phase, prefill_phase, seconds, streamed_seconds
from bigrun.planning.ledger import Ledger
from bigrun.rig import Device, Rig

NOWHERE = 1e9  # seconds that a part without a place costs: more than any request takes
STAGING_SLOTS, SLOT_BYTES = 4, 32 * 2**20  # what is streamed comes in pieces: some are filled while one is computed
EMBED, HEAD, BOTH = 1, 2, 3


@dataclass
class Load:
    """What one device takes: blocks [first, stop), those from `disk_from` on stored on the disk; the ends of the model;
    room for `room` experts beside them."""

    device: str
    first: int
    stop: int
    embed: bool = False
    head: bool = False
    embed_on_disk: bool = False
    disk_from: int = 0
    room: int = 0
    disk_room: int = 0


@dataclass(frozen=True)
class Problem:
    """A model on a rig with a chunk of prefill, and a GPU that weights from the host may be streamed to."""

    ledger: Ledger
    rig: Rig
    chunk: int
    target: str | None = None

    @cached_property
    def decode(self) -> Costs:
        options = self.ledger.options
        return Costs(self.ledger, decode_phase(options.batch, options.context))

    @cached_property
    def prefill(self) -> Costs:
        return Costs(self.ledger, prefill_phase(self.ledger.options.prompt_tokens, self.chunk))

    @cached_property
    def link(self) -> float:
        """Bytes/s that the residual stream hops with: the slowest of the rig's."""
        return min((gpu.rates.link for gpu in self.rig.gpus), default=float("inf"))

    @cached_property
    def new(self) -> int:
        """Tokens that a request generates after its prompt."""
        return self.ledger.options.new_tokens

    @cached_property
    def hop(self) -> float:
        """Seconds of a request that one hop takes, in all its steps."""
        return self.new * self.decode.hop(self.link) + self.prefill.phase.steps * self.prefill.hop(self.link)

    def part_seconds(self, part: str, home: Device) -> tuple[float, float, str, str]:
        """(decode seconds, prefill seconds of the whole prompt, where each is computed) of a part stored on a device."""
        key = (self.ledger.kinds[part], home.name)
        if key not in self._seconds:
            self._seconds[key] = self._part_seconds(part, home)
        return self._seconds[key]

    @cached_property
    def _seconds(self) -> dict[tuple[int, str], tuple[float, float, str, str]]:
        return {}

    def _part_seconds(self, part: str, home: Device) -> tuple[float, float, str, str]:
        cpu = self.rig.device("cpu") if home.kind == "disk" else home
        results, places = [], []
        for costs in (self.decode, self.prefill):
            work = costs.work(part)
            found = seconds(work, cpu.rates)
            if home.kind == "disk":
                found = max(found, work.weights / home.rates.read)
            place = cpu.name
            if self.target and home.kind != "gpu" and part not in ("embed", "norm", "head"):
                gpu = self.rig.device(self.target)
                streamed = streamed_seconds(work, work.weights + work.cache, gpu.rates, gpu.rates.link)
                if home.kind == "disk":
                    streamed = max(streamed, work.weights / home.rates.read)
                if streamed < found:
                    found, place = streamed, gpu.name
            steps = costs.phase.steps if part != "head" else 1
            results.append(found * steps)
            places.append(place)
        return results[0], results[1], places[0], places[1]

    def cost(self, part: str, home: Device) -> float:
        """Seconds of a request that a part takes."""
        decode, prefill, _, _ = self.part_seconds(part, home)
        return self.new * decode + prefill

    @cached_property
    def slot(self) -> int:
        """Bytes of a staging slot: a piece of a block, or all of a small one."""
        return min(SLOT_BYTES, max(self.ledger.weights(p) + self.ledger.kv(p) for p in (*self.blocks, *self.experts)))

    @cached_property
    def blocks(self) -> tuple[str, ...]:
        return tuple(f"blocks.{i}" for i in range(len(self.ledger.spec.blocks)))

    @cached_property
    def experts(self) -> tuple[str, ...]:
        return tuple(part.name for part in self.ledger.spec.parts if part.name.endswith(".experts"))

    def staging(self, device: Device) -> int:
        """Bytes kept on a device for what streams through it; on the CPU, pinned, for what passes on its way."""
        streams = self.target is not None and device.name in (self.target, "cpu")
        return STAGING_SLOTS * self.slot if streams else 0


class Search:
    """Dynamic programming over the rig's devices. f[flags][i]: the least cost with the first i blocks placed, and the
    embedding (bit 0) and the head with the norm (bit 1) or not."""

    def __init__(self, problem: Problem, sink: float):
        self.problem, self.sink = problem, sink
        ledger, spec = problem.ledger, problem.ledger.spec
        self.count = len(spec.blocks)
        self.weights = np.concatenate([[0], np.cumsum([ledger.weights(p) for p in problem.blocks])])
        self.kv = np.concatenate([[0], np.cumsum([ledger.kv(p) for p in problem.blocks])])
        embed, head = ledger.weights("embed"), ledger.weights("head") + ledger.weights("norm")
        self.ends = {0: 0, EMBED: embed, HEAD: head, BOTH: embed + head}
        self.adds = (0, BOTH) if spec.tied else (0, EMBED, HEAD, BOTH)
        # A lookup on the host costs no hop and no time; where its memory or the disk has room for all, no GPU need do it.
        whole = int(self.weights[-1] + self.kv[-1]) + self.ends[BOTH] + sum(ledger.weights(p) for p in problem.experts)
        whole += problem.staging(problem.rig.device("cpu")) + STAGING_SLOTS * SLOT_BYTES
        whole += ledger.workspace(problem.chunk, True, True)
        roomy = any(d.kind != "gpu" and d.budget_bytes - d.reserve_bytes >= whole for d in problem.rig.devices)
        self.gpu_adds = tuple(add for add in self.adds if add in (0, HEAD)) if roomy and not spec.tied else self.adds
        rows = np.arange(self.count + 1)
        self.length = rows[None, :] - rows[:, None]
        self.run = (self.weights + self.kv)[None, :] - (self.weights + self.kv)[:, None]
        self.some, self.valid = self.length > 0, self.length >= 0
        self._prefixes: dict[str, np.ndarray] = {}
        self.each = 0  # experts of a block, their bytes and where they are
        if problem.experts:
            self.each = spec.expert_count(problem.experts[0])
            self.expert_bytes = max(ledger.slice_bytes(p, 1) for p in problem.experts)
            self.all_experts = self.each * len(problem.experts)

    def expert_cost(self, home: Device) -> float:
        """Of one expert of one block, a share of what all take there (the launches of its block aside)."""
        part = self.problem.experts[0]
        return self.problem.cost(part, home) / self.each

    def _prefix(self, home: Device) -> np.ndarray:
        """Seconds of a request in the first i blocks, if they are all stored there."""
        if home.name not in self._prefixes:
            kinds = self.problem.ledger.kinds
            each = {kinds[part]: part for part in self.problem.blocks}
            cost = {kind: self.problem.cost(part, home) for kind, part in each.items()}
            costs = [cost[kinds[part]] for part in self.problem.blocks]
            self._prefixes[home.name] = np.concatenate([[0.0], np.cumsum(costs)])
        return self._prefixes[home.name]

    def _end_cost(self, add: int, home: Device) -> float:
        cost = self.problem.cost("head", home) + self.problem.cost("norm", home) if add & HEAD else 0.0
        # A lookup is as free in host memory as anywhere, and there it takes no room from a block.
        return cost + (self.problem.cost("embed", home) + 1e-9 * (home.kind == "gpu") if add & EMBED else 0.0)

    def _workspace(self, blocks: bool, add: int) -> int:
        if not blocks and not add:
            return 0
        return self.problem.ledger.workspace(self.problem.chunk, blocks, bool(add & HEAD))

    def _room(self, free: np.ndarray, idle: int) -> np.ndarray:
        """Experts that fit what is free; `idle`: the workspace that a device without blocks would need for them."""
        if not self.each:
            return free
        free = free - np.where(self.length == 0, idle, 0)
        return np.clip(free // self.expert_bytes, 0, self.all_experts)

    def _gain(self, room: np.ndarray, home: Device) -> np.ndarray | float:
        """Seconds saved by experts in that room; those of blocks that are elsewhere cost two hops a block."""
        if not self.each:
            return 0.0
        strangers = np.ceil(np.maximum(room - self.length * self.each, 0) / self.each)
        saved = room * (self.sink - self.expert_cost(home)) - 2 * self.problem.hop * strangers
        gain: np.ndarray = np.maximum(saved, 0.0)
        return gain

    def gpu(self, device: Device, add: int) -> tuple[np.ndarray, np.ndarray]:
        """(cost, room for experts) [first, stop] of a GPU that takes a run of blocks and the ends in `add`."""
        hop = self.problem.hop
        fixed = self.ends[add] + device.reserve_bytes + self.problem.staging(device)
        busy, idle = self._workspace(True, add), self._workspace(False, add)
        free = (device.budget_bytes - fixed - busy) - self.run
        np.fill_diagonal(free, device.budget_bytes - fixed - idle)
        prefix = self._prefix(device)
        cost = prefix[None, :] - (prefix[:, None] - (self._end_cost(add, device) + hop))
        if not add:
            np.fill_diagonal(cost, 0.0)
        if add == BOTH:  # the way leads out to the other blocks and back
            cost += hop
            cost[0, self.count] -= hop
        room = self._room(free, busy - idle)
        if self.each:
            cost -= self._gain(room, device)
        cost[~self.valid | (free < 0)] = np.inf
        return cost, room

    def host(self, add: int, embed_on_disk: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The same of the CPU and the disk together: blocks that the CPU cannot store are read from the disk for each
        step. (cost, room, disk room, first block on the disk) [first, stop]."""
        rig, hop = self.problem.rig, self.problem.hop
        cpu = rig.device("cpu")
        disk = next((d for d in rig.devices if d.kind == "disk"), None)
        stored = self.ends[add] - (self.ends[EMBED] if embed_on_disk else 0)
        fixed = stored + cpu.reserve_bytes + self.problem.staging(cpu)
        busy, idle = self._workspace(True, add), self._workspace(False, add)
        have = cpu.budget_bytes - fixed - np.where(self.some, busy, idle)
        free = have - self.run
        cut = np.broadcast_to(np.arange(self.count + 1)[None, :], free.shape).copy()
        prefix = self._prefix(cpu)
        cost = prefix[None, :] - prefix[:, None] + self._end_cost(add, cpu)
        ok = free >= 0
        disk_free = np.full(free.shape, (disk.budget_bytes if disk else 0) - embed_on_disk * self.ends[EMBED])
        if disk is not None:
            slots = max(STAGING_SLOTS * self.problem.slot - self.problem.staging(cpu), 0)
            keys = self.kv[None, :] - self.kv[:, None]
            left = have - slots - keys + self.weights[:, None]
            split = np.minimum(np.searchsorted(self.weights, left, side="right") - 1, cut)
            first = np.arange(self.count + 1)[:, None]
            on_disk = self.weights[None, :] - self.weights[np.maximum(split, 0)]
            possible = ~ok & (split >= first) & (have - slots - keys >= 0) & (on_disk <= disk_free)
            from_disk = self._prefix(disk)
            split = np.maximum(split, 0)
            mixed = prefix[split] - prefix[:, None] + from_disk[None, :] - from_disk[split] + self._end_cost(add, cpu)
            cost = np.where(possible, mixed, cost)
            free = np.where(possible, 0, free - slots * bool(self.each))
            cut = np.where(possible, split, cut)
            disk_free = disk_free - np.where(possible, on_disk, 0)
            ok = ok | possible
            ok = ok & (disk_free >= 0)
        cost = cost + hop  # from here to the GPUs, once; taken off where nothing is there
        if not add:
            cost = cost + hop * self.some  # both ends elsewhere: the way leads here and back
        if add == BOTH:
            cost[0, self.count] -= hop
        room = self._room(free, busy - idle)
        gain = self._gain(room, cpu)
        disk_room = self._room(disk_free, 0) if disk is not None else np.zeros_like(room)
        if disk is not None and self.each:
            gain = gain + np.maximum(disk_room * (self.sink - self.expert_cost(disk)), 0.0)
        return np.where(self.valid & ok, cost - gain, np.inf), room, disk_room, cut

    def nowhere(self, add: int) -> np.ndarray:
        names = {0: 0, EMBED: 1, HEAD: 2, BOTH: 3}[add]
        return np.where(self.valid, NOWHERE * (self.length + names), np.inf)

    def solve(self) -> list[Load] | None:
        """The loads of the cheapest placement, in the rig's order; what has no place is on the device "". None where
        staging alone does not fit."""
        start = np.full((4, self.count + 1), np.inf)
        start[0, 0] = 0.0
        layers = []
        made: dict[tuple[object, ...], list[tuple]] = {}
        for gpu in self.problem.rig.gpus:
            key = (gpu.budget_bytes, gpu.rates, self.problem.staging(gpu))
            if key not in made:
                made[key] = [(add, *self.gpu(gpu, add)) for add in self.gpu_adds]
            layers.append((gpu.name, made[key]))
        host: list[tuple] = [(add, *self.host(add, False)) for add in self.adds]
        if any(d.kind == "disk" for d in self.problem.rig.devices) and not self.problem.ledger.spec.tied:
            host += [(add, *self.host(add, True), True) for add in self.adds if add & EMBED]
        layers.append(("cpu", host))
        layers.append(("", [(add, self.nowhere(add)) for add in self.adds]))
        states, choices = [start], []
        for _, moves in layers:
            state, choice = self._step(states[-1], moves)
            states.append(state)
            choices.append(choice)
        return self._trace(layers, choices) if np.isfinite(states[-1][BOTH, self.count]) else None

    def _step(self, before: np.ndarray, moves: list[tuple]) -> tuple[np.ndarray, np.ndarray]:
        """One device further: the least cost of each state, and (flags before, first block, move) that gave it."""
        after = np.full(before.shape, np.inf)
        choice = np.zeros((*before.shape, 3), np.int64)
        columns = np.arange(self.count + 1)
        for number, move in enumerate(moves):
            add, cost = move[0], move[1]
            for flags in range(4):
                if flags & add or not np.isfinite(before[flags]).any():
                    continue
                total = before[flags][:, None] + cost
                first = total.argmin(axis=0)
                found = total[first, columns]
                better = found < after[flags | add]
                after[flags | add][better] = found[better]
                choice[flags | add][better] = np.stack(
                    [np.full(len(columns), flags), first, np.full(len(columns), number)], axis=1
                )[better]
        return after, choice

    def _trace(self, layers: list, choices: list[np.ndarray]) -> list[Load]:
        flags, stop = BOTH, self.count
        loads = []
        for (name, moves), choice in zip(reversed(layers), reversed(choices), strict=True):
            before, first, number = (int(value) for value in choice[flags, stop])
            move = moves[number]
            add = move[0]
            load = Load(name, first, stop, bool(add & EMBED), bool(add & HEAD), len(move) > 5, stop)
            if len(move) > 2:
                load.room = int(move[2][first, stop])
            if len(move) > 3:
                load.disk_room, load.disk_from = int(move[3][first, stop]), int(move[4][first, stop])
            loads.append(load)
            flags, stop = before, first
        return loads[::-1]

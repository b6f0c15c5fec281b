"""The search for a placement: which device takes how many blocks, the embedding, the head, and how many experts.

Blocks lie in the order of execution and a device takes a run of them, so a placement is a sequence of cuts; the
cheapest one is found by dynamic programming over devices and cuts. Where all blocks are alike (nearly always) that is
the best of all placements, whatever their order, because only the numbers matter; else it is the best one of runs in
the rig's order. Budgets, workspace, staging and hops are all in the cost of a run. What finds no place goes to a device
that is not there and costs more than any step.

Experts of a mixture are many and small: they fill what runs leave free, at the price that an expert saves against the
place where the last one would be (`overflow_cost`). The caller tries which place that is.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from bigrun.devices.rig import Device, Rig
from bigrun.planning.cost import Costs, decode_phase, prefill_phase, seconds, streamed_seconds
from bigrun.planning.ledger import Ledger

NOWHERE = 1e9  # seconds that a part without a place costs: more than any request takes
EXPERT_NOWHERE = 1e6  # a block's experts: more than they take anywhere, and less than a block, which comes first
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
    def new(self) -> int:
        """Tokens that a request generates after its prompt: the decode steps of all sequences together."""
        return self.ledger.options.new_tokens

    @cached_property
    def prompts(self) -> int:
        """Prompts of a request: one of each sequence."""
        return self.ledger.options.batch

    def crossing(self, device: Device) -> float:
        """Seconds of a request that the way of its steps into a device and out again takes: none on the host."""
        if device.kind != "gpu":
            return 0.0
        once = self.new * self.decode.hop(device.rates.link)
        return 2 * (once + self.prompts * self.prefill.phase.steps * self.prefill.hop(device.rates.link))

    def part_seconds(self, part: str, home: Device) -> tuple[float, float, str, str]:
        """(decode seconds, prefill seconds of one whole prompt, where each is computed) of a part stored on a device."""
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
            step_seconds = seconds(work, cpu.rates)
            if home.kind == "disk":
                step_seconds = max(step_seconds, work.weights / home.rates.read)
            place = cpu.name
            if self.target and home.kind != "gpu" and part not in ("embed", "norm", "head"):
                gpu = self.rig.device(self.target)
                streamed = streamed_seconds(work, work.weights + work.cache, gpu.rates, gpu.rates.link)
                if home.kind == "disk":
                    streamed = max(streamed, work.weights / home.rates.read)
                if streamed < step_seconds:
                    step_seconds, place = streamed, gpu.name
            steps = costs.phase.steps if part != "head" else 1
            results.append(step_seconds * steps)
            places.append(place)
        return results[0], results[1], places[0], places[1]

    def cost(self, part: str, home: Device) -> float:
        """Seconds of a request that a part takes."""
        decode, prefill, _, _ = self.part_seconds(part, home)
        return self.new * decode + self.prompts * prefill

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
    embedding (bit 0) and the head with the norm (bit 1) or not. `joined`: experts always with their block."""

    def __init__(self, problem: Problem, overflow_cost: float, joined: bool = False):
        self.problem, self.overflow_cost, self.joined = problem, overflow_cost, joined
        ledger, spec = problem.ledger, problem.ledger.spec
        self.count = len(spec.blocks)
        more = {e.removesuffix(".experts"): ledger.weights(e) for e in problem.experts} if joined else {}
        self.weights = np.concatenate([[0], np.cumsum([ledger.weights(p) + more.get(p, 0) for p in problem.blocks])])
        self.kv = np.concatenate([[0], np.cumsum([ledger.kv(p) for p in problem.blocks])])
        embed, head = ledger.weights("embed"), ledger.weights("head") + ledger.weights("norm")
        self.ends = {0: 0, EMBED: embed, HEAD: head, BOTH: embed + head}
        self.adds = (0, BOTH) if spec.tied else (0, EMBED, HEAD, BOTH)
        self.gpu_adds = tuple(add for add in self.adds if add in (0, HEAD)) if self._free_lookup() else self.adds
        rows = np.arange(self.count + 1)
        self.length = rows[None, :] - rows[:, None]
        self.run = (self.weights + self.kv)[None, :] - (self.weights + self.kv)[:, None]
        self.some, self.valid = self.length > 0, self.length >= 0
        self._prefixes: dict[str, np.ndarray] = {}
        self.each = 0  # experts of a block, their bytes and where they are
        parts = {part.removesuffix(".experts") for part in problem.experts}
        mixed = np.concatenate([[0], np.cumsum([part in parts for part in problem.blocks])])
        self.mixed = mixed[None, :] - mixed[:, None]  # blocks of a run that have experts
        if problem.experts and not joined:
            self.each = spec.expert_count(problem.experts[0])
            self.expert_bytes = max(ledger.slice_bytes(p, 1) for p in problem.experts)
            self.all_experts = self.each * len(problem.experts)

    def _free_lookup(self) -> bool:
        """Whether the host surely has room for the embedding: there a lookup costs no hop and no time, and no GPU need
        do it. Its own memory holds everything, or a disk does and the memory holds a step's buffers."""
        problem, ledger = self.problem, self.problem.ledger
        if ledger.spec.tied:
            return False
        cpu = problem.rig.device("cpu")
        have = cpu.budget_bytes - cpu.reserve_bytes - problem.staging(cpu)
        buffers = ledger.workspace(problem.chunk, True, True)
        whole = int(self.weights[-1] + self.kv[-1]) + self.ends[BOTH] + sum(ledger.weights(p) for p in problem.experts)
        on_disk = any(d.kind == "disk" and d.budget_bytes >= whole for d in problem.rig.devices)
        return have >= whole + buffers or (on_disk and have >= buffers)

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
            if self.joined:
                beside = self.problem.cost(self.problem.experts[0], home)
                have = {e.removesuffix(".experts") for e in self.problem.experts}
                costs = [c + beside * (p in have) for c, p in zip(costs, self.problem.blocks, strict=True)]
            self._prefixes[home.name] = np.concatenate([[0.0], np.cumsum(costs)])
        return self._prefixes[home.name]

    def _end_cost(self, add: int, home: Device) -> float:
        cost = self.problem.cost("head", home) + self.problem.cost("norm", home) if add & HEAD else 0.0
        # A lookup is as free in host memory as anywhere, and there it takes no room from a block.
        return cost + (self.problem.cost("embed", home) + 1e-9 * (home.kind == "gpu") if add & EMBED else 0.0)

    def _workspace(self, blocks: bool, add: int, home: Device) -> int:
        if not blocks and not add:
            return 0
        return self.problem.ledger.workspace(self.problem.chunk, blocks, bool(add & HEAD), home.is_gpu)

    def _room(self, free: np.ndarray, idle: int) -> np.ndarray:
        """Experts that fit what is free; `idle`: the workspace that a device without blocks would need for them."""
        if not self.each:
            return free
        free = free - np.where(self.length == 0, idle, 0)
        return np.asarray(np.clip(free // self.expert_bytes, 0, self.all_experts))

    def _saved(self, room: np.ndarray, home: Device) -> np.ndarray:
        """Seconds that experts in that room save, against `overflow_cost`. On a GPU, blocks whose attention is elsewhere cost a
        way here and back; of its own blocks, those that have all their experts here need no way out."""
        crossing = self.problem.crossing(home)
        strangers = np.ceil(np.maximum(room - self.length * self.each, 0) / self.each)
        at_home = np.minimum(room // self.each, self.mixed)
        saved: np.ndarray = room * (self.overflow_cost - self.expert_cost(home)) - crossing * (strangers - at_home)
        return saved

    def gpu(self, device: Device, add: int) -> tuple[np.ndarray, np.ndarray]:
        """(cost, room for experts) [first, stop] of a GPU that takes a run of blocks and the ends in `add`."""
        crossing = self.problem.crossing(device)
        fixed = self.ends[add] + device.reserve_bytes + self.problem.staging(device)
        busy, idle = self._workspace(True, add, device), self._workspace(False, add, device)
        if device.name == self.problem.target:  # it computes what is streamed through it
            idle = busy
        free = (device.budget_bytes - fixed - busy) - self.run
        np.fill_diagonal(free, device.budget_bytes - fixed - idle)
        prefix = self._prefix(device)
        cost = prefix[None, :] - (prefix[:, None] - (self._end_cost(add, device) + crossing))
        if not add:
            np.fill_diagonal(cost, 0.0)
        if add == BOTH:  # the way leads out to the other blocks and back
            cost += crossing
            cost[0, self.count] -= crossing
        room = self._room(free, busy - idle)
        if self.each:  # every block goes out to its experts, unless they are here
            saved = self._saved(room, device)
            cost += crossing * self.mixed - np.maximum(saved, 0.0)
            if self.overflow_cost != self.expert_cost(device):  # the place of the last expert takes what no other does
                room = np.where(saved > 0, room, 0)
        cost[~self.valid | (free < 0)] = np.inf
        return cost, room

    def _computes(self, home: Device) -> bool:
        """Whether a block or expert that is stored there is computed by the CPU."""
        kinds = {self.problem.ledger.kinds[part]: part for part in (*self.problem.blocks, *self.problem.experts)}
        return any("cpu" in self.problem.part_seconds(part, home)[2:] for part in kinds.values())

    def host(
        self, add: int, embed_on_disk: bool, slots_first: bool = False
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The same of the CPU and the disk together: what the CPU cannot store is read from the disk for each step.
        (cost, room, disk room, first block on the disk) [first, stop]. `slots_first`: the CPU has room for the disk's
        slots, even where blocks have to leave it for them, because experts may."""
        rig = self.problem.rig
        cpu = rig.device("cpu")
        disk = next((d for d in rig.devices if d.kind == "disk"), None)
        stored = self.ends[add] - (self.ends[EMBED] if embed_on_disk else 0)
        fixed = stored + cpu.reserve_bytes + self.problem.staging(cpu)
        busy, idle = self._workspace(True, add, cpu), self._workspace(False, add, cpu)
        if not any(self._computes(home) for home in (cpu, disk) if home):  # all is streamed, in both phases
            busy = idle
        have = cpu.budget_bytes - fixed - np.where(self.some, busy, idle)
        free = have - self.run
        cut = np.broadcast_to(np.arange(self.count + 1)[None, :], free.shape).copy()
        prefix, ends = self._prefix(cpu), self._end_cost(add, cpu)
        cost = prefix[None, :] - prefix[:, None] + ends
        ok, disk_room = free >= 0, np.zeros_like(free)
        if disk is None:
            room = self._room(free, busy - idle)
            if self.each:
                cost = cost - np.maximum(self._saved(room, cpu), 0.0)
            return np.where(self.valid & ok, cost, np.inf), room, disk_room, cut
        slots = max(STAGING_SLOTS * self.problem.slot - self.problem.staging(cpu), 0)
        keys = self.kv[None, :] - self.kv[:, None]
        left = have - slots - keys + self.weights[:, None]
        split = np.minimum(np.searchsorted(self.weights, left, side="right") - 1, cut)
        possible = (split >= np.arange(self.count + 1)[:, None]) & (have - slots - keys >= 0)
        possible, ok = (possible, np.zeros_like(ok)) if slots_first else (possible & ~ok, ok)
        split = np.maximum(split, 0)
        on_disk = np.where(possible, self.weights[None, :] - self.weights[split], 0)
        disk_free = disk.budget_bytes - embed_on_disk * self.ends[EMBED] - on_disk
        from_disk = self._prefix(disk)
        mixed = prefix[split] - prefix[:, None] + from_disk[None, :] - from_disk[split] + ends
        cost, cut = np.where(possible, mixed, cost), np.where(possible, split, cut)
        free = np.where(possible, left - self.weights[split], free)
        ok = (ok | possible) & (disk_free >= 0)
        room = self._room(free, busy - idle)
        if self.each:  # experts on the disk need slots and a step's buffers on the host
            beside = free - np.where(possible, 0, slots) - np.where(self.some, 0, busy - idle)
            other = self._room(beside, 0) * (beside >= 0)
            disk_room = self._room(disk_free, 0) * (beside >= 0)
            with_disk = np.maximum(disk_room * (self.overflow_cost - self.expert_cost(disk)), 0.0)
            with_disk = with_disk + np.maximum(self._saved(other, cpu), 0.0)
            without = np.maximum(self._saved(room, cpu), 0.0)
            cost = cost - np.maximum(with_disk, without)
            room = np.where(with_disk > without, other, room)
            disk_room = np.where(with_disk > without, disk_room, 0)
        return np.where(self.valid & ok, cost, np.inf), room, disk_room, cut

    def nowhere(self, add: int) -> np.ndarray:
        names = {0: 0, EMBED: 1, HEAD: 2, BOTH: 3}[add]
        return np.where(self.valid, NOWHERE * (self.length + names), np.inf)

    def solve(self) -> list[Load] | None:
        """The loads of the cheapest placement, in the rig's order; what has no place is on the device "". None where
        staging alone does not fit."""
        start = np.full((4, self.count + 1), np.inf)
        start[0, 0] = 0.0
        layers = []
        made: dict[tuple[object, ...], list[tuple[Any, ...]]] = {}
        for gpu in self.problem.rig.gpus:
            key = (gpu.budget_bytes, gpu.rates, gpu.virtual, self.problem.staging(gpu))
            if key not in made:
                made[key] = [(add, *self.gpu(gpu, add)) for add in self.gpu_adds]
            layers.append((gpu.name, made[key]))
        host: list[tuple[Any, ...]] = [(add, *self.host(add, False)) for add in self.adds]
        if self.each and any(d.kind == "disk" for d in self.problem.rig.devices):
            host += [(add, *self.host(add, False, True)) for add in self.adds]
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

    def _step(self, before: np.ndarray, moves: list[tuple[Any, ...]]) -> tuple[np.ndarray, np.ndarray]:
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
                least_cost = total[first, columns]
                better = least_cost < after[flags | add]
                after[flags | add][better] = least_cost[better]
                choice[flags | add][better] = np.stack(
                    [np.full(len(columns), flags), first, np.full(len(columns), number)], axis=1
                )[better]
        return after, choice

    def _trace(self, layers: list[Any], choices: list[np.ndarray]) -> list[Load]:
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

"""The executor: one step of any tokens through all parts, each on its device, the residual stream hopping between."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bigrun.execute.compiled import CompiledBlocks, compilable
from bigrun.execute.kv_cache import PageTables
from bigrun.loader import LoadedPart
from bigrun.memory import HostMemory
from bigrun.model.decoder import BlockCache, StepArrays, alibi_slopes, rope_frequencies, rotation, run_block, run_head
from bigrun.model.memory import LOGIT_ROWS, kv_buffers, kv_dtype, step_buffers
from bigrun.model.opt import POSITION_OFFSET
from bigrun.model.spec import ModelSpec
from bigrun.model.weights import BlockWeights, block_weights, linear, norm_weights
from bigrun.planning.plan import Plan
from bigrun_kernels.ops import CpuOps, Ops, Pages

NOTHING, NO_SCALE = np.empty(0, np.float32), np.empty(0, np.uint16)


@dataclass(frozen=True)
class Batch:
    """One step's tokens, in any mixture of sequences: token ids, positions, sequence numbers and cache slots, each
    int64 [T]; `rows` are the tokens whose logits are wanted; `phase` is prefill or decode."""

    ids: np.ndarray
    positions: np.ndarray
    sequences: np.ndarray
    slots: np.ndarray
    rows: np.ndarray
    phase: str


@dataclass(frozen=True)
class Arithmetic:
    """The mode of each phase and the outlier threshold (NUMERICS)."""

    prefill: str = "exact"
    decode: str = "exact"
    threshold: float = 6.0


class Executor:
    """A loaded model. Holds every buffer it will ever use: a step allocates nothing on a device."""

    def __init__(
        self, spec: ModelSpec, plan: Plan, parts: Iterable[LoadedPart], memories: Mapping[str, HostMemory],
        ops: Ops, arithmetic: Arithmetic,
    ):  # fmt: skip
        self.spec, self.plan, self.memories, self.ops, self.arithmetic = spec, plan, memories, ops, arithmetic
        self.pages = PageTables(plan.context_tokens, plan.batch)
        self.parts = {part.part.name: part for part in parts}
        self._blocks: list[BlockWeights] = []
        self._caches: list[BlockCache] = []
        self._work: dict[str, Mapping[str, Any]] = {}
        self._place_blocks()
        self._place_ends()
        for device in plan.devices:
            if device.workspace_bytes:
                rows = max(plan.prefill_chunk_tokens, plan.batch)
                buffers = step_buffers(spec, rows, plan.batch, plan.context_tokens, *self._computes(device.name))
                self._work[device.name] = memories[device.name].buffers(buffers, "workspace", "workspace")
        self._runs = self._compile(ops) if isinstance(ops, CpuOps) else {}
        rope = spec.blocks[0].rope
        self._frequencies = rope_frequencies(rope) if rope else None

    def _place_blocks(self) -> None:
        dtype = kv_dtype(self.plan.kv, self.plan.weights)
        for i, block in enumerate(self.spec.blocks):
            name = f"blocks.{i}"
            part, placement = self.parts[name], self.plan.placement(name)
            self._blocks.append(block_weights(part.part, part.layout, part.arrays, NOTHING))
            buffers = kv_buffers(block, self.plan.context_tokens, self.plan.batch, dtype)
            pages = self.memories[str(placement.kv_on)].buffers(buffers, "kv_cache", f"the KV cache of {name}")
            slopes = alibi_slopes(block.heads) if block.positions == "alibi" else np.zeros(block.heads, np.float32)
            k, v = (Pages(pages[name], pages.get(f"{name}.scale", NO_SCALE)) for name in ("k", "v"))
            self._caches.append(BlockCache(k, v, slopes))

    def _compile(self, ops: CpuOps) -> dict[int, tuple[int, CompiledBlocks]]:
        """First block → (stop, run) of consecutive equal blocks on one device that one compiled call can take."""
        runs, first, count = {}, 0, len(self.spec.blocks)
        devices = [self.plan.placement(f"blocks.{i}").decode_on for i in range(count)]
        while first < count:
            stop = first
            while (
                stop < count and compilable(self._blocks[stop]) and self.spec.blocks[stop] == self.spec.blocks[first]
                and devices[stop] == devices[first]
            ):  # fmt: skip
                stop += 1
            if stop > first:
                part, work = slice(first, stop), self._work[devices[first]]
                compiled = CompiledBlocks(ops, self.spec.blocks[first], self._blocks[part], self._caches[part], work)
                runs[first] = stop, compiled
            first = max(stop, first + 1)
        return runs

    def _place_ends(self) -> None:
        embed, norm, head = (self.parts[name] for name in ("embed", "norm", "head"))
        self._table = linear(embed.part, embed.layout, embed.arrays, "table", NOTHING)
        owner = embed if self.spec.tied else head
        self._head = linear(owner.part, owner.layout, owner.arrays, "table", NOTHING)
        self._norm = norm_weights(norm.arrays, "norm", NOTHING)
        self._embed_norm = norm_weights(embed.arrays, "norm", NOTHING) if self.spec.embed_norm else None

    def _computes(self, device: str) -> tuple[bool, bool]:
        """Whether a device computes blocks, and the head."""
        names = [p.part for p in self.plan.placements if p.decode_on == device]
        return any(name.startswith("blocks.") for name in names), "head" in names

    def step(self, batch: Batch) -> np.ndarray:
        """Logits float32 [rows, vocab] of the wanted tokens. At most `prefill_chunk_tokens` (or `batch`) tokens."""
        device = self.plan.placement("embed").decode_on
        x = self._embed(batch, device)
        mode = self.arithmetic.decode if batch.phase == "decode" else self.arithmetic.prefill
        turn = None if self._frequencies is None else rotation(self._frequencies, batch.positions)
        step = StepArrays(
            batch.positions, batch.sequences, batch.slots, self.pages.tables, turn, mode, self.arithmetic.threshold
        )
        i = 0
        while i < len(self.spec.blocks):
            x, device = self._hop(x, device, self.plan.placements[i + 1].decode_on)
            if mode == "exact" and i in self._runs:
                i, compiled = self._runs[i]
                compiled.run(x, step)
                continue
            run_block(self.ops, self.spec.blocks[i], self._blocks[i], step, self._caches[i], self._work[device], x)
            i += 1
        return self._logits(x, device, batch.rows)

    def _embed(self, batch: Batch, device: str) -> np.ndarray:
        x = self._work[device]["x"][: len(batch.ids)]
        self.ops.lookup(batch.ids, self._table, x)
        if self.spec.position_rows:
            x += self.parts["embed"].arrays["positions"][batch.positions + POSITION_OFFSET]
        if self._embed_norm is not None:
            self.ops.norm(x, self._embed_norm.weight, self._embed_norm.bias, self.spec.blocks[0].norm_eps, x)
        return x

    def _hop(self, x: np.ndarray, device: str, target: str) -> tuple[np.ndarray, str]:
        """The residual stream on the next device: a copy into its own buffer."""
        if device == target:
            return x, device
        copy = self._work[target]["x"][: len(x)]
        copy[:] = x
        return copy, target

    def _logits(self, x: np.ndarray, device: str, rows: np.ndarray) -> np.ndarray:
        target = self.plan.placement("head").decode_on
        result = np.empty((len(rows), self.spec.vocab), np.float32)
        held = max(self.plan.batch, LOGIT_ROWS)
        work = self._work[target]
        for start in range(0, len(rows), held):
            wanted = np.ascontiguousarray(x[rows[start : start + held]])
            out = work["logits"][: len(wanted)]
            run_head(self.ops, self._norm, self.spec.blocks[0].norm_eps, self._head, wanted, work, out)
            result[start : start + len(wanted)] = out
        return result

    def feed(self, tokens: Mapping[int, Sequence[int] | np.ndarray], every: bool = False) -> dict[int, np.ndarray]:
        """Take tokens into sequences, in as many steps as the chunk asks for; logits of each one's last token, float32
        [vocab], or of every token, [count, vocab]."""
        decode = all(len(ids) == 1 and self.pages.lengths[s] > 0 for s, ids in tokens.items())
        limit = max(self.plan.prefill_chunk_tokens, self.plan.batch)
        queue = [(s, np.asarray(ids, np.int64)) for s, ids in tokens.items()]
        found: dict[int, list[np.ndarray]] = {s: [] for s in tokens}
        while queue:
            taken, room = [], limit
            while queue and room:
                sequence, ids = queue.pop(0)
                if len(ids) > room:
                    queue.insert(0, (sequence, ids[room:]))
                    ids = ids[:room]
                room -= len(ids)
                last = not any(waiting == sequence for waiting, _ in queue)
                taken.append((sequence, ids, last))
            batch = self._batch(taken, every, "decode" if decode else "prefill")
            logits = self.step(batch)
            for row, sequence in zip(logits, batch.sequences[batch.rows], strict=True):
                found[int(sequence)].append(row)
        return {s: np.stack(rows) if every else rows[-1] for s, rows in found.items()}

    def _batch(self, taken: list[tuple[int, np.ndarray, bool]], every: bool, phase: str) -> Batch:
        ids, positions, sequences, slots, rows = [], [], [], [], []
        count = 0
        for sequence, tokens, last in taken:
            where, slot = self.pages.extend(sequence, len(tokens))
            ids.append(tokens)
            positions.append(where)
            slots.append(slot)
            sequences.append(np.full(len(tokens), sequence, np.int64))
            count += len(tokens)
            if every:
                rows.append(np.arange(count - len(tokens), count))
            elif last:
                rows.append(np.array([count - 1]))
        parts = (ids, positions, sequences, slots, rows or [np.empty(0, np.int64)])
        joined = [np.concatenate(part) for part in parts]
        return Batch(joined[0], joined[1], joined[2], joined[3], joined[4], phase)

    def clear(self, sequence: int) -> None:
        self.pages.clear(sequence)

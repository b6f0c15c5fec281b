"""The engine of the CPU, and of virtual GPUs, which are the CPU under another budget."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from bigrun.execute.block_weights import BlockWeights
from bigrun.execute.compiled import CompiledBlocks, compilable
from bigrun.execute.engine import Arithmetic, Batch, EmbeddingAndHead
from bigrun.execute.forward import BlockCache, StepArrays, rope_cos_sin, rope_frequencies, run_head, run_program
from bigrun.execute.kv_cache import ring_slots, ring_tables
from bigrun.model.program import lower, rewrite
from bigrun.model.spec import ModelSpec
from bigrun_kernels.cpu.ops import CpuOps
from bigrun_kernels.ops import Ops


class CpuEngine:
    """Blocks and ends of a model on one device of host memory."""

    def __init__(
        self, spec: ModelSpec, ops: Ops, arithmetic: Arithmetic, work: Mapping[str, Any], ends: EmbeddingAndHead,
        blocks: Mapping[int, BlockWeights], caches: Mapping[int, BlockCache],
    ):  # fmt: skip
        self.spec, self.ops, self.arithmetic, self.work, self.ends = spec, ops, arithmetic, work, ends
        self.blocks, self.caches = blocks, caches
        self.programs = {i: rewrite(lower(spec.blocks[i]), "host") for i in blocks}
        exact = "exact" in (arithmetic.prefill, arithmetic.decode)  # which is all that the compiled call computes
        self.compiled = self._compile(ops) if exact and isinstance(ops, CpuOps) else {}
        rope = next((block.rope for block in spec.blocks if block.positions == "rope"), None)
        self._frequencies = rope_frequencies(rope) if rope else None
        self._ring_tables: dict[int, np.ndarray] = {}
        self._batch: Batch
        self._step: StepArrays

    def _compile(self, ops: CpuOps) -> dict[int, tuple[int, CompiledBlocks]]:
        """First block → (stop, run) of consecutive equal blocks that one compiled call can take."""
        runs: dict[int, tuple[int, CompiledBlocks]] = {}
        numbers = sorted(self.blocks)
        done = -1
        for first in numbers:
            if first < done or not self._compilable(first):
                continue
            stop = first + 1
            while stop in self.blocks and self._compilable(stop) and self.spec.blocks[stop] == self.spec.blocks[first]:
                stop += 1
            weights, caches = [self.blocks[i] for i in range(first, stop)], [self.caches[i] for i in range(first, stop)]
            program = rewrite(lower(self.spec.blocks[first]), "compiled")
            runs[first] = stop, CompiledBlocks(ops, program, weights, caches, self.work)
            done = stop
        return runs

    def _compilable(self, i: int) -> bool:
        return compilable(self.spec.blocks[i], self.blocks[i])

    @property
    def x(self) -> np.ndarray:
        x: np.ndarray = self.work["x"][: len(self._batch.ids)]
        return x

    @property
    def repeatable(self) -> bool:
        return self.arithmetic.repeatable  # which the kernels keep to the bit, for any number of tokens

    def begin(self, batch: Batch, page_tables: np.ndarray) -> None:
        self._batch = batch
        cos_sin = None if self._frequencies is None else rope_cos_sin(self._frequencies, batch.positions)
        mode = self.arithmetic.mode(batch.phase)
        if not self._ring_tables:  # which are the same in every step
            sizes = {cache.ring for cache in self.caches.values()} - {0}
            self._ring_tables = {ring: ring_tables(ring, *page_tables.shape) for ring in sizes}
        rings = {
            ring: (ring_slots(ring, batch.positions, batch.sequences), tables)
            for ring, tables in self._ring_tables.items()
        }
        self._step = StepArrays(
            batch.positions, batch.sequences, batch.slots, page_tables, cos_sin, mode, self.arithmetic.threshold, rings
        )

    def embed(self) -> None:
        x, ends, batch = self.x, self.ends, self._batch
        assert ends.table is not None, "the embedding is here"
        self.ops.lookup(batch.ids, ends.table, x)
        if self.spec.embed_scale != 1.0:
            x *= np.float32(self.spec.embed_scale)
        if ends.positions is not None:
            x += ends.positions[batch.positions + self.spec.position_offset]
        if ends.embed_norm is not None:
            self.ops.norm(x, ends.embed_norm.weight, ends.embed_norm.bias, self.spec.blocks[0].norm_eps, x)

    def run(self, first: int, stop: int) -> None:
        x, i = self.x, first
        while i < stop:
            if self._step.mode == "exact" and i in self.compiled and self.compiled[i][0] <= stop:
                i, compiled = self.compiled[i]
                compiled.run(x, self._step)
                continue
            run_program(self.ops, self.programs[i], self.blocks[i], self._step, self.caches[i], self.work, x)
            i += 1

    def logits(self) -> np.ndarray:
        rows, x, ends = self._batch.logit_rows, self.x, self.ends
        assert ends.norm is not None, "the norm is here"
        assert ends.head is not None, "and the head"
        result = np.empty((len(rows), self.spec.vocab), np.float32)
        held = len(self.work["logits"])
        for start in range(0, len(rows), held):
            inputs = np.ascontiguousarray(x[rows[start : start + held]])
            out = self.work["logits"][: len(inputs)]
            run_head(self.ops, ends.norm, self.spec.blocks[0].norm_eps, ends.head, inputs, self.work, out)
            result[start : start + len(inputs)] = out
        return result

    def give(self) -> np.ndarray:
        return self.x

    def take(self, x: np.ndarray) -> None:
        self.x[:] = x

    def close(self) -> None:
        """Nothing to do: its arrays are freed with it."""

"""Runs of equal blocks on one device as one compiled call (bigrun_kernels/cpu/blocks.py): what decode is made of.

A table of addresses stands for the blocks' arrays; this object keeps those arrays alive.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bigrun.model.decoder import BlockCache, StepArrays
from bigrun.model.memory import PAGE_TOKENS
from bigrun.model.spec import Block
from bigrun.model.weights import BlockWeights
from bigrun_kernels.ops import ACTIVATIONS, CpuOps

FEW = 16  # tokens: a step of more goes block by block, so that Ctrl-C need not wait for all of them
NO_TURN = np.empty((0, 0), np.float32)


def compilable(weights: BlockWeights) -> bool:
    """Whether every linear of a block is int8: kernels of other forms are called one by one."""
    return all(w.form == "int8" for w in (weights.qkv, weights.out, weights.up, weights.down))


class CompiledBlocks:
    """Consecutive blocks of one description, with their caches and the step's buffers of their device."""

    def __init__(
        self, ops: CpuOps, block: Block, weights: Sequence[BlockWeights], caches: Sequence[BlockCache],
        work: Mapping[str, Any],
    ):  # fmt: skip
        from bigrun_kernels.cpu import blocks
        from bigrun_kernels.cpu.planes import FORMS

        self._kernel, self._block, self._work = blocks, block, work
        self._held = [_arrays(w, cache) for w, cache in zip(weights, caches, strict=True)]
        addresses = [[array.ctypes.data for array in arrays] for arrays in self._held]
        self._pointers = np.array(addresses, np.int64)
        self._counters = np.zeros(self._pointers.shape[0] * blocks.PHASES * blocks.SLOTS, np.int64)
        self._planes = work["planes"].reshape(-1).view(FORMS[ops.form])
        pages = caches[0].k.values
        self._like = (np.empty(0, np.int8), np.empty(0, np.float32), np.empty(0, np.uint16), np.empty(0, pages.dtype))
        sizes = {
            "hidden": block.hidden, "heads": block.heads, "kv_heads": block.kv_heads, "head_dim": block.head_dim,
            "kv_dim": pages.shape[3], "intermediate": block.intermediate, "page": PAGE_TOKENS, "pages": len(pages),
            "activation": ACTIVATIONS[block.activation], "gated": block.gated, "layer_norm": block.norm == "layer",
            "int8_kv": pages.dtype == np.int8, "qkv_bias": block.qkv_bias, "out_bias": block.out_bias,
            "mlp_bias": block.mlp_bias,
        }  # fmt: skip
        self._dims = np.array([int(sizes[name]) for name in blocks.DIMS], np.int64)

    def run(self, x: np.ndarray, step: StepArrays) -> None:
        """x [T, hidden] ← the blocks' output."""
        import numba

        work, count, span = self._work, len(x), self._kernel.SPAN_PAGES * PAGE_TOKENS
        each = len(self._pointers) if count <= FEW else 1
        spans = int(step.positions.max()) // span + 1 if count <= len(work["partial"]) else 0
        rotation = NO_TURN if step.rotation is None else step.rotation
        up = work["up"][:count]
        inner = work["gated"][:count] if self._block.gated else up
        team = numba.get_num_threads()
        for first in range(0, len(self._pointers), each):
            pointers = self._pointers[first : first + each]
            self._counters[: len(pointers) * self._kernel.PHASES * self._kernel.SLOTS] = 0
            self._kernel.run_blocks(
                pointers.reshape(-1), self._dims, self._block.norm_eps,
                np.float32(1.0 / math.sqrt(self._block.head_dim)), x, rotation, step.positions, step.sequences, step.slots,
                step.tables, work["normed"][:count], work["qkv"][:count], work["attention"][:count], up, inner, self._planes,
                work["row_scale"], work["row_sum"], work["partial"].reshape(-1), spans, self._like, self._counters, team,
            )  # fmt: skip


def _arrays(w: BlockWeights, cache: BlockCache) -> list[np.ndarray]:
    """In the order of FIELDS, then LINEARS; an address of something, never read, where a block has nothing."""
    norms = (w.attention_norm.weight, w.attention_norm.bias, w.mlp_norm.weight, w.mlp_norm.bias)
    arrays = [*norms, cache.k.values, cache.v.values, cache.k.scale, cache.v.scale, cache.slopes]
    for linear in (w.qkv, w.out, w.up, w.down):
        arrays += [linear.values, linear.scale, linear.bias]
    return arrays

"""Executes runs of equal blocks on one device by one compiled call (bigrun_kernels/cpu/blocks.py).

A table of addresses stands for the blocks' arrays; this object keeps those arrays alive.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bigrun.execute.block_weights import BlockWeights
from bigrun.execute.forward import BlockCache, StepArrays
from bigrun.model.buffers import PAGE_TOKENS, SPAN_TOKENS
from bigrun.model.program import lower, rewrite
from bigrun.model.spec import Block
from bigrun_kernels.cpu.ops import CpuOps
from bigrun_kernels.ops import ACTIVATIONS

# The steps that blocks.participate goes through.
COMPILED = [
    "norm_quantise", "linear", "rope_store", "attend", "merge_quantise", "linear", "norm_quantise", "linear",
    "activate_quantise", "linear",
]  # fmt: skip
FEW = 16  # tokens: a step of more goes block by block, so that Ctrl-C need not wait for all of them
NO_COS_SIN = np.empty((0, 0), np.float32)


def compilable(block: Block, weights: BlockWeights) -> bool:
    """Whether the compiled call takes a block: its steps in their order, and every linear in int8. Others go op by op."""
    steps = rewrite(lower(block), "compiled").steps
    linears = [weights[step.weights[0]] for step in steps if step.op == "linear"]
    return [step.op for step in steps] == COMPILED and all(weight.form == "int8" for weight in linears)


class CompiledBlocks:
    """Consecutive blocks of one description, with their caches and the step's buffers of their device."""

    def __init__(
        self, ops: CpuOps, block: Block, weights: Sequence[BlockWeights], caches: Sequence[BlockCache],
        work: Mapping[str, Any],
    ):  # fmt: skip
        from bigrun_kernels.cpu import blocks, team
        from bigrun_kernels.cpu.planes import FORMS

        self._kernel, self._launch, self._block = blocks, team.launch, block
        self._held = [_arrays(w, cache) for w, cache in zip(weights, caches, strict=True)]
        self._addresses = np.array([[_number(array) for array in arrays] for arrays in self._held], np.int64)
        self.counters = np.zeros(len(weights) * blocks.PHASES * blocks.SLOTS, np.int64)
        self._work = work
        pages = caches[0].k.values
        self._numbers = np.array([block.norm_eps, 1.0 / math.sqrt(block.head_dim)])
        self._likes = np.empty(0, FORMS[ops.form]), np.empty(0, pages.dtype)
        sizes = {
            "hidden": block.hidden, "heads": block.heads, "kv_heads": block.kv_heads, "head_dim": block.head_dim,
            "kv_dim": pages.shape[3], "intermediate": block.intermediate, "page": PAGE_TOKENS, "pages": len(pages),
            "activation": ACTIVATIONS[block.activation], "gated": block.gated, "layer_norm": block.norm == "layer",
            "int8_kv": pages.dtype == np.int8, "qkv_bias": block.qkv_bias, "out_bias": block.out_bias,
            "mlp_bias": block.mlp_bias,
        }  # fmt: skip
        kept = {
            **work, "numbers": self._numbers, "counters": self.counters, "partial_size": work["partial"].size,
            "planes_size": work["planes"].size // self._likes[0].itemsize,
            "gated": work["gated"] if block.gated else work["up"],
        }  # fmt: skip
        header = [_number(kept.get(name, 0)) for name in blocks.HEADER]
        self._table = np.array(header + [int(sizes[name]) for name in blocks.DIMS], np.int64)
        self._where = {name: i for i, name in enumerate(blocks.HEADER)}

    def run(self, x: np.ndarray, step: StepArrays) -> None:
        """x [T, hidden] ← the blocks' output."""
        import numba

        count, kernel = len(x), self._kernel
        if not count:
            return
        cos_sin = NO_COS_SIN if step.cos_sin is None else step.cos_sin
        split = count <= len(self._work["partial"])
        each = len(self._addresses) if count <= FEW else 1
        entries = {
            "count": each, "tokens": count, "team": numba.get_num_threads(), "rope_dims": cos_sin.shape[1],
            "spans": int(step.positions.max()) // SPAN_TOKENS + 1 if split else 0,
            "batch": step.page_tables.shape[0], "per_sequence": step.page_tables.shape[1], "x": x, "cos_sin": cos_sin,
            "positions": step.positions, "sequences": step.sequences, "slots": step.slots, "tables": step.page_tables,
        }  # fmt: skip
        for name, value in entries.items():
            self._table[self._where[name]] = _number(value)
        for first in range(0, len(self._addresses), each):
            table = np.concatenate([self._table, self._addresses[first : first + each].reshape(-1)])
            self.counters[: each * kernel.PHASES * kernel.SLOTS] = 0
            self._launch(kernel.participate, table, *self._likes)


def _number(value: Any) -> int:
    """An array's address, or a number."""
    return int(value.__array_interface__["data"][0] if isinstance(value, np.ndarray) else value)


def _arrays(w: BlockWeights, cache: BlockCache) -> list[np.ndarray]:
    """The arrays of a block in the order of FIELDS, then LINEARS; a placeholder that is never read where it has none."""
    norms = [array for name in ("attention_norm", "mlp_norm") for array in (w[name].weight, w[name].bias)]
    arrays = [*norms, cache.k.values, cache.v.values, cache.k.scale, cache.v.scale, cache.slopes]
    for linear in (w[name] for name in ("qkv", "out", "up", "down")):
        arrays += [linear.values, linear.scale, linear.bias]
    return arrays

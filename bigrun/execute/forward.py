"""The forward pass of a decoder-only transformer, op by op: it executes a block's program (model/program.py).

This walker runs on any backend of `bigrun_kernels.ops`. Arithmetic depends on the step's mode alone, never on how many
tokens share the step (but for llm.int8's outlier columns), so chunks, batches and placements give the same tokens.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bigrun.execute.block_weights import BlockWeights, NormWeights
from bigrun.model.program import Program, Step, X
from bigrun.model.spec import Rope
from bigrun_kernels.ops import Array, Ops, Pages, Weight


@dataclass(frozen=True)
class StepArrays:
    """A step's tokens as one device sees them: T tokens of any sequences, each with its place in the cache.

    positions, sequences, slots int64 [T]; page_tables int32 [S, pages]; cos_sin float32 [T, dims] or None. rings: by their
    pages, the slots and page tables of blocks that keep a window (kv_cache.py).
    """

    positions: Array
    sequences: Array
    slots: Array
    page_tables: Array
    cos_sin: Array | None
    mode: str
    threshold: float
    rings: Mapping[int, tuple[Array, Array]] = field(default_factory=dict)

    def places(self, cache: "BlockCache") -> tuple[Array, Array]:
        """The slots and page tables in one block's cache."""
        return self.rings[cache.ring] if cache.ring else (self.slots, self.page_tables)


@dataclass(frozen=True)
class BlockCache:
    """One block's keys and values, its ALiBi slopes (zeros elsewhere) [heads], and the pages of a sequence's ring; 0 where
    all of the context is kept."""

    k: Pages
    v: Pages
    slopes: Array
    ring: int = 0


def run_program(
    ops: Ops, program: Program, weights: BlockWeights, step: StepArrays, cache: BlockCache, work: Mapping[str, Any], x: Array
) -> None:  # fmt: skip
    """x [T, hidden] ← the block's output, by the steps of its program; `work` holds the step's buffers (model/buffers.py)."""
    walk = _Walk(ops, weights, step, cache, work, x, ops.scratch(work))
    for each in program.steps:
        EXECUTE[each.op](walk, each)


@dataclass(frozen=True)
class _Walk:
    """What the steps of one block work on."""

    ops: Ops
    weights: BlockWeights
    step: StepArrays
    cache: BlockCache
    work: Mapping[str, Any]
    x: Array
    scratch: Any

    def buffer(self, name: str) -> Array:
        return self.x if name == X else self.work[name][: len(self.x)]

    @property
    def arithmetic(self) -> tuple[str, float, Any]:
        return self.step.mode, self.step.threshold, self.scratch


def _norm(walk: _Walk, s: Step) -> None:
    norm = walk.weights[s.weights[0]]
    walk.ops.norm(walk.buffer(s.reads[0]), norm.weight, norm.bias, s.attribute["eps"], walk.buffer(s.writes))


def _norm_heads(walk: _Walk, s: Step) -> None:
    heads, kv_heads, head_dim = (int(s.attribute[name]) for name in ("heads", "kv_heads", "head_dim"))
    q, k = (walk.weights[name].weight for name in s.weights)
    walk.ops.norm_heads(walk.buffer(s.writes), heads, kv_heads, head_dim, q, k, s.attribute["eps"])


def _linear(walk: _Walk, s: Step) -> None:
    out = walk.buffer(s.writes)
    walk.ops.linear(walk.buffer(s.reads[0]), walk.weights[s.weights[0]], *walk.arithmetic, out, s.adds)


def _norm_linear(walk: _Walk, s: Step) -> None:
    (x, normed), (norm, weight) = map(walk.buffer, s.reads), (walk.weights[name] for name in s.weights)
    out = walk.buffer(s.writes)
    walk.ops.norm_linear(x, norm.weight, norm.bias, s.attribute["eps"], normed, weight, *walk.arithmetic, out)


def _rope_store(walk: _Walk, s: Step) -> None:
    step, cache = walk.step, walk.cache
    heads, kv_heads, head_dim = (int(s.attribute[name]) for name in ("heads", "kv_heads", "head_dim"))
    cos_sin, (slots, _) = step.cos_sin if "cos_sin" in s.reads else None, step.places(cache)
    walk.ops.rope_and_store_kv(walk.buffer("qkv"), heads, kv_heads, head_dim, cos_sin, slots, cache.k, cache.v)


def _attend(walk: _Walk, s: Step) -> None:
    step, cache = walk.step, walk.cache
    _, tables = step.places(cache)
    walk.ops.attention(
        walk.buffer(s.reads[0]), s.attribute["heads"], cache.k, cache.v, tables, step.sequences, step.positions,
        cache.slopes, s.attribute["scale"], walk.buffer(s.writes), s.attribute.get("window", 0),
    )  # fmt: skip


def _activate_linear(walk: _Walk, s: Step) -> None:
    up, inner = map(walk.buffer, s.reads)
    weight, out = walk.weights[s.weights[0]], walk.buffer(s.writes)
    walk.ops.activate_linear(s.attribute["kind"], up, s.attribute["gated"], inner, weight, *walk.arithmetic, out)


# One function for each op of EXECUTES["host"] and ["gpu"].
EXECUTE: Mapping[str, Callable[[_Walk, Step], None]] = {
    "norm": _norm, "norm_heads": _norm_heads,
    "linear": _linear, "norm_linear": _norm_linear, "rope_store": _rope_store, "attend": _attend,
    "activate_linear": _activate_linear,
}  # fmt: skip


def run_head(
    ops: Ops, norm: NormWeights, eps: float, table: Weight, x: Array, work: Mapping[str, Any], out: Array
) -> None:
    """out [R, vocab] = logits of x [R, hidden]. Always exact: a head's rows are few and its errors go straight out."""
    normed = work["normed"][: len(x)]
    ops.norm(x, norm.weight, norm.bias, eps, normed)
    ops.linear(normed, table, "exact", 0.0, ops.scratch(work), out, False)


def alibi_slopes(heads: int) -> np.ndarray:
    """float32 [heads]: 2^(−8i/n) for the largest power of two n ≤ heads, the rest from 2n (Press et al. 2022, code)."""
    n = 2 ** math.floor(math.log2(heads))
    slopes = [2.0 ** (-8.0 * (i + 1) / n) for i in range(n)]
    slopes += [2.0 ** (-4.0 * (2 * i + 1) / n) for i in range(heads - n)]
    return np.array(slopes, np.float32)


def rope_frequencies(rope: Rope) -> np.ndarray:
    """float64 [dims/2]: radians a position. llama3 slows the low frequencies by `factor`, the high ones not at all, and
    blends between (Llama 3.1's published code); longrope divides each by a factor of its own (Ding et al. 2024)."""
    frequencies = rope.theta ** -(np.arange(0, rope.dims, 2, dtype=np.float64) / rope.dims)
    if rope.kind == "linear":
        return frequencies / rope.factor
    if rope.kind == "longrope":
        return frequencies / np.array(rope.factors, np.float64)
    if rope.kind == "llama3":
        turns = rope.original_context * frequencies / (2 * math.pi)
        span = rope.high_freq_factor - rope.low_freq_factor
        blend = np.clip((turns - rope.low_freq_factor) / span, 0.0, 1.0)
        return frequencies * (blend + (1 - blend) / rope.factor)
    return frequencies


def rope_cos_sin(frequencies: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """float32 [T, dims]: cosines, then sines, of each position."""
    angles = positions[:, None].astype(np.float64) * frequencies[None, :]
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)

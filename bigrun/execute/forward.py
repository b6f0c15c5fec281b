"""The forward pass of a decoder-only transformer, op by op, for all families: a block's description says which ops it has.

This walker runs on any backend of `bigrun_kernels.ops`. Arithmetic depends on the step's mode alone, never on how many
tokens share the step (but for llm.int8's outlier columns), so chunks, batches and placements give the same tokens.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bigrun.execute.block_weights import BlockWeights, NormWeights
from bigrun.model.spec import Block, Rope
from bigrun_kernels.ops import Array, Ops, Pages, Weight


@dataclass(frozen=True)
class StepArrays:
    """A step's tokens as one device sees them: T tokens of any sequences, each with its place in the cache.

    positions, sequences, slots int64 [T]; page_tables int32 [S, pages]; cos_sin float32 [T, dims] or None.
    """

    positions: Array
    sequences: Array
    slots: Array
    page_tables: Array
    cos_sin: Array | None
    mode: str
    threshold: float


@dataclass(frozen=True)
class BlockCache:
    """One block's keys and values, and its ALiBi slopes (zeros elsewhere) [heads]."""

    k: Pages
    v: Pages
    slopes: Array


def run_block(
    ops: Ops, block: Block, w: BlockWeights, step: StepArrays, cache: BlockCache, work: Mapping[str, Any], x: Array
) -> None:
    """x [T, hidden] ← the block's output; `work` holds the step's buffers (model/buffers.py)."""
    count, scratch = len(x), ops.scratch(work)
    mode, threshold = step.mode, step.threshold
    normed, qkv, attended = work["normed"][:count], work["qkv"][:count], work["attention"][:count]
    up = work["up"][:count]
    first, second = w.attention_norm, w.mlp_norm
    ops.norm_linear(x, first.weight, first.bias, block.norm_eps, normed, w.qkv, mode, threshold, scratch, qkv)
    ops.rope_and_store_kv(
        qkv, block.heads, block.kv_heads, block.head_dim, step.cos_sin, step.slots, cache.k, cache.v
    )  # fmt: skip
    scale = 1.0 / math.sqrt(block.head_dim)
    ops.attention(
        qkv, block.heads, cache.k, cache.v, step.page_tables, step.sequences, step.positions, cache.slopes, scale,
        attended,
    )  # fmt: skip
    ops.linear(attended, w.out, mode, threshold, scratch, x, True)
    ops.norm_linear(x, second.weight, second.bias, block.norm_eps, normed, w.up, mode, threshold, scratch, up)
    inner = work["gated"][:count] if block.gated else work.get("inner", work["up"])[:count]
    ops.activate_linear(block.activation, up, block.gated, inner, w.down, mode, threshold, scratch, x)


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
    blends between (Llama 3.1's published code)."""
    frequencies = rope.theta ** -(np.arange(0, rope.dims, 2, dtype=np.float64) / rope.dims)
    if rope.kind == "linear":
        return frequencies / rope.factor
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

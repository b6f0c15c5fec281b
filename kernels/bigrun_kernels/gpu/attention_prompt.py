"""Attention of a prompt over a paged KV cache in Triton: FlashAttention-2 (Dao 2023), by pages of 64 keys.

One program takes a tile of tokens of one head from the first page that any of them may look at to the last, pages in
order, with an online softmax. Pages that all tokens of the tile see whole need no mask; the others, at a window's start
and at the diagonal, have a loop of their own. Pages begin at fixed positions and are summed in order, so that how a
prompt was cut into chunks changes a token's result by float rounding at most.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from bigrun_kernels.gpu.attention import PAGE, check, full, score, soften, weigh


class Tile(NamedTuple):
    """Tokens that one program takes, and with what."""

    rows: int
    warps: int
    stages: int


def tile_for(width: int, pages: torch.dtype, full: bool) -> Tile:
    """The tile for heads of `width` entries (a power of two); `full`: products in float32, without tensor cores.

    All fit the 99 KiB of shared memory that a consumer card gives a block, and keep a thread's state in its registers
    (of int8 pages too, which are widened there). Not yet run, nor tuned, on hardware.
    """
    if full:
        return Tile(16, 8, 1)
    if width > 128:
        return Tile(32 if pages == torch.int8 else 64, 8, 1)
    return Tile(64, 8, 2) if pages == torch.int8 else Tile(128, 8, 2)


@triton.jit
def _pages(
    acc, total, most, q, position, begin, end, limit, k, v, k_scale, v_scale, table, g, slope, scale, last,
    KV_HEADS: tl.constexpr, DP: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, WIDTH: tl.constexpr,
    PAGE: tl.constexpr, EDGE: tl.constexpr,
):  # fmt: skip
    """The softmax's state after pages begin … end − 1. EDGE: some of their keys are not for all of the tile's tokens.

    What a token must not see has weight zero there; a value that is not finite is taken out, since zero times it is NaN,
    and whoever sees it gets NaN through the score instead. Keys beyond `last`, or before `limit`, are not read.
    """
    d = tl.arange(0, WIDTH)
    n = tl.arange(0, PAGE)
    kind = q.dtype
    for page in range(begin, end):
        key = n + page * PAGE
        first = (tl.load(table + page).to(tl.int64) * KV_HEADS + g) * PAGE
        at = first * DP + n.to(tl.int64)[:, None] * DP + d
        read = tl.full([PAGE], 1, tl.int1)
        if EDGE:
            read &= (key <= last) & (key >= limit)
        inside = read[:, None] & (d < DP)[None, :]
        keys = tl.load(k + at, mask=inside, other=0)
        k_unit = None
        v_unit = None
        if k_scale is not None:
            k_unit = tl.load(k_scale + first + n, mask=read, other=0.0).to(tl.float32)
            v_unit = tl.load(v_scale + first + n, mask=read, other=0.0).to(tl.float32)
        s = tl.dot(q, tl.trans(keys.to(kind)), input_precision="ieee")
        s = score(s, scale, key[None, :] - position[:, None], slope, k_unit, SOFTCAP)
        values = tl.load(v + at, mask=inside, other=0)
        if EDGE:
            seen = key[None, :] <= position[:, None]
            if WINDOW > 0:
                seen = seen & (position[:, None] - key[None, :] < WINDOW)
            if v_scale is not None:
                good = tl.abs(v_unit) < float("inf")
                v_unit = tl.where(good, v_unit, 0.0)
            else:
                good = tl.max((tl.abs(values) < float("inf")).to(tl.int32) ^ 1, axis=1) == 0
                values = tl.where(good[:, None], values, 0.0)
            s = tl.where(seen, tl.where(good[None, :], s, float("nan")), float("-inf"))
        p, kept, most = soften(s, most)
        total = total * kept + tl.sum(p, axis=1)
        acc = weigh(acc * kept[:, None], p, values.to(kind), v_unit)
    return acc, total, most


@triton.jit(do_not_specialize=["first", "tokens"])
def prompt_kernel(
    qkv, k, v, k_scale, v_scale, table, slopes, sinks, out, scale, first, tokens, qkv_row, out_row,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr, FULL: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, PAGE: tl.constexpr,
):  # fmt: skip
    """ROWS tokens of one head. The last tiles, which have the longest way, start first; heads of a tile together."""
    head = tl.program_id(0) % HEADS
    tile = (tl.num_programs(0) - 1 - tl.program_id(0)) // HEADS
    g = head // (HEADS // KV_HEADS)
    row = tile * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, WIDTH)
    kind = tl.float32 if FULL else tl.float16
    inside = (row < tokens)[:, None] & (d < D)[None, :]
    q = tl.load(qkv + row.to(tl.int64)[:, None] * qkv_row + head * D + d, mask=inside, other=0.0).to(kind)
    slope = None
    if slopes is not None:
        slope = tl.load(slopes + head)
    acc = tl.zeros([ROWS, WIDTH], tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    most = tl.full([ROWS], float("-inf"), tl.float32)
    if sinks is not None:  # the score of a key without a value
        most = tl.load(sinks + head) + total
        total += 1.0
    low = first + tile * ROWS  # positions of the tile: low … last
    last = first + tl.minimum(tile * ROWS + ROWS, tokens) - 1
    position = first + row
    limit = 0
    begin = 0
    whole = (low + 1) // PAGE  # pages before this one end at or before the tile's first token
    if WINDOW > 0:
        limit = tl.maximum(low - WINDOW + 1, 0)
        begin = tl.minimum((tl.maximum(last - WINDOW + 1, 0) + PAGE - 1) // PAGE, whole)  # in every window from here
        acc, total, most = _pages(
            acc, total, most, q, position, limit // PAGE, begin, limit, k, v, k_scale, v_scale, table, g, slope, scale,
            last, KV_HEADS, DP, WINDOW, SOFTCAP, WIDTH, PAGE, True,
        )  # fmt: skip
    acc, total, most = _pages(
        acc, total, most, q, position, begin, whole, limit, k, v, k_scale, v_scale, table, g, slope, scale,
        last, KV_HEADS, DP, WINDOW, SOFTCAP, WIDTH, PAGE, False,
    )  # fmt: skip
    whole = tl.maximum(whole, limit // PAGE)
    acc, total, most = _pages(
        acc, total, most, q, position, whole, last // PAGE + 1, limit, k, v, k_scale, v_scale, table, g, slope, scale,
        last, KV_HEADS, DP, WINDOW, SOFTCAP, WIDTH, PAGE, True,
    )  # fmt: skip
    y = (acc / total[:, None]).to(out.dtype.element_ty)
    tl.store(out + row.to(tl.int64)[:, None] * out_row + head * D + d, y, mask=inside)


def attention_prompt(
    qkv: Tensor, heads: int, k: Tensor, v: Tensor, k_scale: Tensor | None, v_scale: Tensor | None, table: Tensor,
    first: int, slopes: Tensor | None, scale: float, out: Tensor, window: int = 0, softcap: float = 0.0,
    sinks: Tensor | None = None,
) -> None:  # fmt: skip
    """out[t] = softmax attention of the token at position first + t over positions 0 … first + t, all in the pages.

    table: int32 [pages of the sequence], enough for position first + T − 1; qkv, pages, scales, slopes, scale, out,
    window, softcap and sinks as in attention.attention. One launch, no sync.
    """
    if table.dim() != 1 or table.dtype != torch.int32 or not table.is_contiguous():
        raise ValueError(f"table is {list(table.shape)} of {table.dtype}; it must be int32 [pages], contiguous")
    if first < 0 or len(table) * PAGE < first + len(qkv):
        raise ValueError(f"{len(qkv)} tokens from position {first} on do not fit the {len(table)} pages of the table")
    head_dim = check(qkv, heads, k, v, k_scale, v_scale, slopes, out, window, softcap, sinks)
    if not len(qkv):
        return
    width = max(16, triton.next_power_of_2(k.shape[3]))
    tile = tile_for(width, k.dtype, full(qkv, k))
    with torch.cuda.device_of(qkv):
        prompt_kernel[(triton.cdiv(len(qkv), tile.rows) * heads,)](
            qkv, k, v, k_scale, v_scale, table, slopes, sinks, out, scale, first, len(qkv), qkv.stride(0),
            out.stride(0), HEADS=heads, KV_HEADS=k.shape[1], D=head_dim, DP=k.shape[3], WINDOW=window,
            SOFTCAP=softcap, FULL=full(qkv, k), ROWS=tile.rows, WIDTH=width, PAGE=PAGE,
            num_warps=tile.warps, num_stages=tile.stages, enable_fp_fusion=False,
        )  # fmt: skip

"""Rotary embedding and the KV cache's write in one Triton launch: a warp for each vector of each token.

Both are bound by launches in decode and by memory in a prompt; fused, a key is read once and never written back.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

PAGE = 64  # tokens of a page
VECTOR = 8  # a page's vectors are padded with zeros to a multiple of this
STORED = (torch.float32, torch.float16, torch.int8)


class Launch(NamedTuple):
    """One program takes one vector of head_dim entries."""

    warps: int
    stages: int


LAUNCH = Launch(1, 1)  # not yet run, nor tuned, on hardware


@triton.jit
def _store(x, d, inside, pages, scale, index, DP: tl.constexpr):
    """Vector x (float32 [WIDTH], zero where not inside) as vector number `index` of the pages; see turn_and_store."""
    at = pages + index * DP + d
    if scale is not None:
        size = tl.abs(x)
        largest = tl.max(tl.where(size < 8e6, size, float("inf")), axis=0)  # 8e6: 127 times what a float16 can be
        good = largest < 8e6  # a NaN made it inf
        largest = tl.where(good, largest, 0.0)
        unit = tl.div_rn(largest, 127.0).to(tl.float16)
        up = (unit.to(tl.float32) * 127.49 < largest).to(tl.uint16)
        unit = (unit.to(tl.uint16, bitcast=True) + up).to(tl.float16, bitcast=True)  # the next float16, unit ≥ 0
        tl.store(scale + index, tl.where(good, unit.to(tl.float32), float("nan")).to(tl.float16))
        used = good & (unit.to(tl.float32) > 0)
        x = tl.div_rn(tl.where(used, x, 0.0), tl.where(used, unit.to(tl.float32), 1.0) + tl.zeros_like(x))
        x = (x + 12582912.0) - 12582912.0  # 1.5 · 2²³: what is left is rounded to an integer, half to even
    elif pages.dtype.element_ty == tl.float16:
        x = tl.where(x > 65504.0, 65504.0, x)  # NaN is neither
        x = tl.where(x < -65504.0, -65504.0, x)
    tl.store(at, x.to(pages.dtype.element_ty), mask=inside)


@triton.jit
def turn_and_store_kernel(
    qkv, cos_sin, slots, k_pages, v_pages, k_scale, v_scale, row,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, DIMS: tl.constexpr, DP: tl.constexpr,
    FIRST: tl.constexpr, WIDTH: tl.constexpr, PAGE: tl.constexpr,
):  # fmt: skip
    """Vector `head` of token t, counted through q, k, v from FIRST on: turned in float32, then written to where it goes.

    FIRST is HEADS where nothing turns: then the queries stay as they are.
    """
    VECTORS: tl.constexpr = HEADS + 2 * KV_HEADS - FIRST
    t = (tl.program_id(0) // VECTORS).to(tl.int64)
    head = FIRST + tl.program_id(0) % VECTORS
    d = tl.arange(0, WIDTH)
    source = qkv + t * row + head * D
    x = tl.load(source + d, mask=d < D, other=0.0).to(tl.float32)
    if DIMS > 0:
        HALF: tl.constexpr = DIMS // 2
        turned = d < tl.where(head < HEADS + KV_HEADS, DIMS, 0)  # not the values
        low = d < HALF
        other = tl.load(source + tl.where(low, d + HALF, d - HALF), mask=turned, other=0.0).to(tl.float32)
        angle = cos_sin + t * DIMS + tl.where(low, d, d - HALF)
        cos = tl.load(angle, mask=turned, other=1.0)
        sin = tl.load(angle + HALF, mask=turned, other=0.0)
        x = tl.where(turned, x * cos + other * tl.where(low, -sin, sin), x)
    if head < HEADS:
        tl.debug_barrier()  # every thread has loaded its partner's entry before any is overwritten
        tl.store(source + d, x.to(qkv.dtype.element_ty), mask=d < DIMS)
    else:
        slot = tl.load(slots + t)
        if slot >= 0:
            kept = (head - HEADS) % KV_HEADS
            index = (slot // PAGE * KV_HEADS + kept) * PAGE + slot % PAGE
            if head < HEADS + KV_HEADS:
                _store(x, d, d < DP, k_pages, k_scale, index, DP)
            else:
                _store(x, d, d < DP, v_pages, v_scale, index, DP)


def rope_and_store_kv(
    qkv: Tensor, heads: int, kv_heads: int, head_dim: int, cos_sin: Tensor | None, slots: Tensor,
    k_pages: Tensor, v_pages: Tensor, k_scale: Tensor | None, v_scale: Tensor | None,
) -> None:  # fmt: skip
    """Turns the queries of qkv in place, and writes turned keys and values into the cache's pages. One launch, no sync.

    qkv: fp16 or fp32 [T, (heads + 2·kv_heads)·head_dim], rows of q, then k, then v, each row contiguous; its keys and
    values stay as they are. cos_sin: float32 [T, dims], cosines then sines (reference.rope: Su et al. 2021, GPT-NeoX
    pairing), dims ≤ head_dim and even, or None: nothing turns. slots: int64 [T], page·64 + offset; of a token with a
    negative slot nothing is stored. Pages: [P, kv_heads, 64, Dp], Dp = head_dim to a multiple of 8, the rest zeros, in
    float32, float16 (saturated at ±65504, NaN kept) or int8 with scales float16 [P, kv_heads, 64], quantised as
    reference.quantise_vectors says. Keys are rounded once, from the turned float32. Two tokens must not share a slot.
    """
    _check(qkv, heads, kv_heads, head_dim, cos_sin, slots, k_pages, v_pages, k_scale, v_scale)
    dims = 0 if cos_sin is None else cos_sin.shape[1]
    if not len(qkv):
        return
    first = 0 if dims else heads
    with torch.cuda.device_of(qkv):
        turn_and_store_kernel[(len(qkv) * (heads + 2 * kv_heads - first),)](
            qkv, cos_sin, slots, k_pages, v_pages, k_scale, v_scale, qkv.stride(0),
            HEADS=heads, KV_HEADS=kv_heads, D=head_dim, DIMS=dims, DP=k_pages.shape[3], FIRST=first,
            WIDTH=triton.next_power_of_2(k_pages.shape[3]), PAGE=PAGE,
            num_warps=LAUNCH.warps, num_stages=LAUNCH.stages, enable_fp_fusion=False,
        )  # fmt: skip


def _check(
    qkv: Tensor, heads: int, kv_heads: int, head_dim: int, cos_sin: Tensor | None, slots: Tensor,
    k_pages: Tensor, v_pages: Tensor, k_scale: Tensor | None, v_scale: Tensor | None,
) -> None:  # fmt: skip
    """Raises ValueError for what the kernel would misread."""
    if qkv.device.type != "cuda" and isinstance(turn_and_store_kernel, triton.JITFunction):
        raise ValueError(f"qkv is on {qkv.device}: this kernel needs a GPU (or TRITON_INTERPRET=1)")
    rows, width = len(qkv), (heads + 2 * kv_heads) * head_dim
    if qkv.dtype not in (torch.float16, torch.float32) or qkv.shape != (rows, width) or qkv.stride(1) != 1:
        raise ValueError(f"qkv is {list(qkv.shape)} of {qkv.dtype}; it must be [T, {width}] of fp16 or fp32, in rows")
    if slots.dtype != torch.int64 or slots.shape != (rows,) or not slots.is_contiguous():
        raise ValueError(f"slots is {list(slots.shape)} of {slots.dtype}; it must be [{rows}] of torch.int64")
    padded = -(-head_dim // VECTOR) * VECTOR
    for name, pages, scale in (("k", k_pages, k_scale), ("v", v_pages, v_scale)):
        if pages.dtype not in STORED or pages.dtype != k_pages.dtype or not pages.is_contiguous():
            raise ValueError(f"{name}_pages is {pages.dtype}; both must be contiguous and one of {STORED}")
        if pages.shape[1:] != (kv_heads, PAGE, padded):
            raise ValueError(f"{name}_pages is {list(pages.shape)}; it must be [P, {kv_heads}, {PAGE}, {padded}]")
        if (scale is not None) != (pages.dtype == torch.int8):
            raise ValueError(f"{name}_pages is {pages.dtype}: int8 pages, and no others, have a scale")
        if scale is not None and (
            scale.shape != pages.shape[:3] or scale.dtype != torch.float16 or not scale.is_contiguous()
        ):
            raise ValueError(f"{name}_scale is {list(scale.shape)} of {scale.dtype}; it must be the pages' float16")
    if cos_sin is not None and (
        cos_sin.dtype != torch.float32
        or len(cos_sin) != rows
        or cos_sin.shape[1] % 2
        or not 0 < cos_sin.shape[1] <= head_dim
        or not cos_sin.is_contiguous()
    ):
        raise ValueError(f"cos_sin is {list(cos_sin.shape)} of {cos_sin.dtype}; it must be float32 [{rows}, dims]")

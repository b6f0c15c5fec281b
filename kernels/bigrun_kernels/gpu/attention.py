"""Decode attention over a paged KV cache in Triton, split over the context.

Flash-Decoding (Dao, Haziza, Massa & Sizov 2023): one program for each token, key head and span of 128 positions gives
the span's unnormalised output with its maximum and its sum of weights; a second kernel merges spans first to last. All
query heads of a key head go together, so that the cache is read once, as the rows of one tensor-core product.

The grid is the buffers', not the contexts': programs whose span a token does not reach leave at once, hence one CUDA
graph serves every step. Which programs run, and in which order spans are merged, depends on a token's own position
alone: the same token gets the same bits in any company.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

PAGE = 64  # tokens of a page
SPAN = 2 * PAGE
MOST_SPANS = 65_535  # CUDA's limit of a grid's second dimension
VECTOR = 8  # a page's vectors are padded with zeros to a multiple of this
STORED = (torch.float32, torch.float16, torch.int8)


class Span(NamedTuple):
    """What one program of the first kernel has: at least `rows` of query heads (a matrix instruction takes 16), and so
    many keys at a time (at most a page)."""

    rows: int
    keys: int
    warps: int
    stages: int


class Combine(NamedTuple):
    """What one program of the second kernel has: it takes this many spans of a head at a time."""

    spans: int
    warps: int
    stages: int


# Not yet run, nor tuned, on hardware. One stage: a page's keys and values are asked for together, and several programs
# share a multiprocessor, which hides what a pipeline would. Float32's products take no tensor cores, and more memory.
SPAN_LAUNCH = Span(16, 64, 4, 1)
INT8_SPAN_LAUNCH = Span(16, 32, 4, 1)  # widened in registers: with 64 keys they would not do on sm_120
FULL_SPAN_LAUNCH = Span(16, 16, 4, 1)
COMBINE_LAUNCH = Combine(16, 4, 1)


@triton.jit
def score(s, factor, distance, slopes, k_unit, SOFTCAP: tl.constexpr):
    """Scores of products s [rows, keys]: times the factor and the keys' scales, capped, with ALiBi's term.

    softcap · tanh(s / softcap) as 1 − 2 / (e²ˣ + 1), which neither overflows nor loses a NaN.
    """
    s = s * factor
    if k_unit is not None:
        s = s * k_unit[None, :]
    if SOFTCAP > 0:
        s = SOFTCAP - (2.0 * SOFTCAP) / (tl.exp(s * (2.0 / SOFTCAP)) + 1.0)
    if slopes is not None:
        s = s + slopes * distance.to(tl.float32)
    return s


@triton.jit
def soften(s, most):
    """Online softmax (Milakov & Gimelshein 2018): weights of scores s [rows, keys], what earlier sums keep, the maximum.

    A NaN is no maximum; its weight is NaN, and so is all that is summed with it.
    """
    new = tl.maximum(most, tl.max(s, axis=1))
    safe = tl.where(new == float("-inf"), 0.0, new)  # no key yet: weights are zero, not NaN
    return tl.exp(s - safe[:, None]), tl.exp(most - safe), new


@triton.jit
def weigh(acc, p, v, v_unit):
    """acc + p·v, p [rows, keys] in float32, v [keys, D] already of the type of the product.

    Int8 values have scales, from 6e-8 to 65504: p times such a scale need not fit a float16. Divided by the
    page's largest one it is in [0, 1], as p is; what a weight below 6e-5 then loses is at most 2⁻²⁵ of a value as large
    as the page's largest, a hundred thousand times less than int8 lost. The sum is multiplied back in float32.
    """
    if v_unit is None:
        acc = tl.dot(p.to(v.dtype), v, acc, input_precision="ieee")
    else:
        largest = tl.max(v_unit, axis=0)  # a NaN is no maximum, and stays in its own entry
        largest = tl.where(largest > 0, largest, 1.0)
        p = p * (v_unit / largest)[None, :]
        acc += largest * tl.dot(p.to(v.dtype), v, input_precision="ieee")
    return acc


@triton.jit(do_not_specialize=["tables_row", "spans"])
def span_kernel(
    qkv, k, v, k_scale, v_scale, tables, sequences, positions, slopes, partial, scale, qkv_row, tables_row, spans,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr, FULL: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr,
    PAGE: tl.constexpr,
):  # fmt: skip
    """partial[t, heads of g, span] = the sum over one span [D], its maximum at Dp, its sum of weights at Dp + 1.

    FULL: products in float32, not rounded to float16 or tf32. Rows beyond the group are zeros, and not stored.
    """
    t = (tl.program_id(0) // KV_HEADS).to(tl.int64)
    g = tl.program_id(0) % KV_HEADS
    span = tl.program_id(1)
    position = tl.load(positions + t).to(tl.int32)
    begin = 0
    if WINDOW > 0:
        begin = tl.maximum(position - WINDOW + 1, 0)
    if (position < span * (2 * PAGE)) | (begin >= (span + 1) * (2 * PAGE)):
        return
    kind = tl.float32 if FULL else tl.float16
    d = tl.arange(0, WIDTH)
    r = tl.arange(0, ROWS)
    n = tl.arange(0, KEYS)
    head = (g * GROUP + r).to(tl.int64)
    q = tl.load(qkv + t * qkv_row + head[:, None] * D + d, mask=(r < GROUP)[:, None] & (d < D), other=0.0).to(kind)
    slope = None
    if slopes is not None:
        slope = tl.load(slopes + head, mask=r < GROUP, other=0.0)[:, None]
    table = tables + tl.load(sequences + t) * tables_row
    acc = tl.zeros([ROWS, WIDTH], tl.float32)
    most = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    last = tl.minimum(position, (span + 1) * (2 * PAGE) - 1)
    for low in range(tl.maximum(begin // KEYS * KEYS, span * (2 * PAGE)), last + 1, KEYS):
        key = n + low
        inside = (key <= position) & (key >= begin)
        first = (tl.load(table + low // PAGE).to(tl.int64) * KV_HEADS + g) * PAGE + low % PAGE
        at = first * DP + n.to(tl.int64)[:, None] * DP + d
        both = inside[:, None] & (d < DP)[None, :]
        keys = tl.load(k + at, mask=both, other=0)
        values = tl.load(v + at, mask=both, other=0)
        k_unit = None
        v_unit = None
        if k_scale is not None:
            k_unit = tl.load(k_scale + first + n, mask=inside, other=0.0).to(tl.float32)
            v_unit = tl.load(v_scale + first + n, mask=inside, other=0.0).to(tl.float32)
        s = tl.dot(q, tl.trans(keys.to(kind)), input_precision="ieee")
        s = score(s, scale, (key - position)[None, :], slope, k_unit, SOFTCAP)
        p, kept, most = soften(tl.where(inside[None, :], s, float("-inf")), most)
        total = total * kept + tl.sum(p, axis=1)
        acc = weigh(acc * kept[:, None], p, values.to(kind), v_unit)
    at = partial + ((t * KV_HEADS * GROUP + head) * spans + span) * (DP + 2)
    tl.store(at[:, None] + d, acc, mask=(r < GROUP)[:, None] & (d < DP))
    tl.store(at + DP, most, mask=r < GROUP)
    tl.store(at + DP + 1, total, mask=r < GROUP)


@triton.jit(do_not_specialize=["spans"])
def combine_kernel(
    partial, positions, sinks, out, out_row, spans,
    HEADS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, WINDOW: tl.constexpr, WIDTH: tl.constexpr,
    SPAN: tl.constexpr, SPANS: tl.constexpr,
):  # fmt: skip
    """out[t, head] = the spans that token t reaches, SPANS at a time from the first to the last, over their weights."""
    t = (tl.program_id(0) // HEADS).to(tl.int64)
    head = tl.program_id(0) % HEADS
    position = tl.load(positions + t).to(tl.int32)
    begin = 0
    if WINDOW > 0:
        begin = tl.maximum(position - WINDOW + 1, 0) // SPAN
    d = tl.arange(0, WIDTH)
    acc = tl.zeros([WIDTH], tl.float32)
    most = tl.full([1], float("-inf"), tl.float32)
    total = tl.zeros([1], tl.float32)
    if sinks is not None:  # the score of a key without a value
        most = tl.load(sinks + head) + total
        total += 1.0
    last = tl.where(position < 0, -1, position // SPAN)
    for some in range(begin, last + 1, SPANS):
        span = some + tl.arange(0, SPANS)
        inside = span <= last
        at = partial + ((t * HEADS + head) * spans + span) * (DP + 2)
        m = tl.load(at + DP, mask=inside, other=float("-inf"))
        p, kept, most = soften(m[None, :], most)
        p = tl.sum(p, axis=0)
        sums = tl.load(at[:, None] + d, mask=inside[:, None] & (d < DP), other=0.0)
        acc = acc * kept + tl.sum(sums * p[:, None], axis=0)
        total = total * kept + tl.sum(tl.load(at + DP + 1, mask=inside, other=0.0) * p, axis=0)
    y = tl.where(position < 0, 0.0, acc / total)
    tl.store(out + t * out_row + head * D + d, y.to(out.dtype.element_ty), mask=d < D)


def attention(
    qkv: Tensor, heads: int, k: Tensor, v: Tensor, k_scale: Tensor | None, v_scale: Tensor | None, tables: Tensor,
    sequences: Tensor, positions: Tensor, slopes: Tensor | None, scale: float, out: Tensor, partial: Tensor,
    window: int = 0, softcap: float = 0.0, sinks: Tensor | None = None,
) -> None:  # fmt: skip
    """out[t] = softmax attention of token t over positions 0 … positions[t] of its sequence. Two launches, no sync.

    qkv: fp16 or fp32 [T, ≥ heads·D], queries first, each row contiguous; k, v: pages [P, kv_heads, 64, Dp], Dp = D to a
    multiple of 8, padded with zeros, in float32, float16, or int8 with scales float16 [P, kv_heads, 64]; tables: int32
    [S, pages of a sequence]; sequences, positions: int64 [T]; out: fp16 or fp32 [T, heads·D]; partial: float32 [at least
    T, heads, spans of 128 positions, Dp + 2], overwritten, with spans enough for the highest position.

    score = q·key·scale, with softcap: softcap·tanh(score / softcap); with slopes (float32 [heads]) then ALiBi (Press et
    al. 2022): + slope·(key position − position). window: only keys with position − key position < window. sinks
    (float32 [heads]): a learned score that joins each head's softmax, without a value. A token of position < 0 is
    padding: zeros, and nothing is read for it. Products are float16's, summed in float32; float32's if qkv or pages are.
    """
    if partial.dim() != 4 or len(partial) < len(qkv) or partial.shape[1:2] != (heads,):
        raise ValueError(f"partial is {list(partial.shape)}; it must be [≥ {len(qkv)}, {heads}, spans, Dp + 2]")
    if partial.shape[3] != k.shape[-1] + 2 or partial.dtype != torch.float32 or not partial.is_contiguous():
        raise ValueError(f"partial is {list(partial.shape)}; it must be contiguous float32 [..., {k.shape[-1]} + 2]")
    for name, t in (("sequences", sequences), ("positions", positions)):
        if t.shape != (len(qkv),) or t.dtype != torch.int64 or not t.is_contiguous():
            raise ValueError(f"{name} is {list(t.shape)} of {t.dtype}; it must be [{len(qkv)}] of torch.int64")
    if tables.dim() != 2 or tables.dtype != torch.int32 or tables.stride(1) != 1:
        raise ValueError(f"tables is {list(tables.shape)} of {tables.dtype}; it must be int32 [S, pages], in rows")
    head_dim = check(qkv, heads, k, v, k_scale, v_scale, slopes, out, window, softcap, sinks)
    if not len(qkv):
        return
    kv_heads, padded, spans = k.shape[1], k.shape[3], partial.shape[2]
    if spans > MOST_SPANS:
        raise ValueError(
            f"partial has {spans} spans; a launch has at most {MOST_SPANS}, a context of {MOST_SPANS * SPAN:,} tokens"
        )
    launch = FULL_SPAN_LAUNCH if full(qkv, k) else INT8_SPAN_LAUNCH if k.dtype == torch.int8 else SPAN_LAUNCH
    rows = max(launch.rows, triton.next_power_of_2(heads // kv_heads))
    width = max(16, triton.next_power_of_2(padded))
    with torch.cuda.device_of(qkv):
        span_kernel[(len(qkv) * kv_heads, spans)](
            qkv, k, v, k_scale, v_scale, tables, sequences, positions, slopes, partial, scale, qkv.stride(0),
            tables.stride(0), spans, KV_HEADS=kv_heads, GROUP=heads // kv_heads, D=head_dim, DP=padded, WINDOW=window,
            SOFTCAP=softcap, FULL=full(qkv, k), ROWS=rows, KEYS=launch.keys, WIDTH=width, PAGE=PAGE,
            num_warps=launch.warps * (1 if rows <= 32 else 2), num_stages=launch.stages,
            enable_fp_fusion=False,
        )  # fmt: skip
        combine_kernel[(len(qkv) * heads,)](
            partial, positions, sinks, out, out.stride(0), spans, HEADS=heads, D=head_dim, DP=padded, WINDOW=window,
            WIDTH=width, SPAN=SPAN, SPANS=COMBINE_LAUNCH.spans, num_warps=COMBINE_LAUNCH.warps,
            num_stages=COMBINE_LAUNCH.stages, enable_fp_fusion=False,
        )  # fmt: skip


def full(qkv: Tensor, pages: Tensor) -> bool:
    """Whether products must be float32's."""
    return torch.float32 in (qkv.dtype, pages.dtype)


def check(
    qkv: Tensor, heads: int, k: Tensor, v: Tensor, k_scale: Tensor | None, v_scale: Tensor | None,
    slopes: Tensor | None, out: Tensor, window: int, softcap: float, sinks: Tensor | None,
) -> int:  # fmt: skip
    """Raises ValueError for what a kernel of attention would misread; returns the size of a head."""
    if qkv.device.type != "cuda" and isinstance(span_kernel, triton.JITFunction):
        raise ValueError(f"qkv is on {qkv.device}: these kernels need a GPU (or TRITON_INTERPRET=1)")
    if qkv.is_cuda and torch.cuda.get_device_capability(qkv.device) < (8, 0):
        raise ValueError(f"{torch.cuda.get_device_name(qkv.device)} is below compute capability 8.0: use torch there")
    floats = (torch.float16, torch.float32)
    for name, t in (("qkv", qkv), ("out", out)):
        if t.dim() != 2 or t.dtype not in floats or t.stride(1) != 1 or len(t) != len(qkv):
            raise ValueError(f"{name} is {list(t.shape)} of {t.dtype}; it must be [T, ...] of fp16 or fp32, in rows")
    head_dim = out.shape[1] // heads
    if out.shape[1] != heads * head_dim or qkv.shape[1] < out.shape[1]:
        raise ValueError(f"qkv is {list(qkv.shape)} and out {list(out.shape)}; out must be [T, {heads}·D], qkv no less")
    for name, pages, unit in (("k", k, k_scale), ("v", v, v_scale)):
        padded = -(-head_dim // VECTOR) * VECTOR
        if pages.dtype not in STORED or pages.dtype != k.dtype or not pages.is_contiguous():
            raise ValueError(f"{name} is {pages.dtype}; both must be contiguous and one of {STORED}")
        if pages.shape != k.shape or pages.dim() != 4 or pages.shape[2:] != (PAGE, padded) or heads % pages.shape[1]:
            raise ValueError(f"{name} is {list(pages.shape)}; it must be [P, a divisor of {heads}, {PAGE}, {padded}]")
        if (unit is not None) != (pages.dtype == torch.int8):
            raise ValueError(f"{name} is {pages.dtype}: int8 pages, and no others, have a scale")
        if unit is not None and (
            unit.shape != pages.shape[:3] or unit.dtype != torch.float16 or not unit.is_contiguous()
        ):
            raise ValueError(f"{name}_scale is {list(unit.shape)} of {unit.dtype}; it must be the pages' float16")
    for name, each in (("slopes", slopes), ("sinks", sinks)):
        if each is not None and (each.shape != (heads,) or each.dtype != torch.float32 or not each.is_contiguous()):
            raise ValueError(f"{name} is {list(each.shape)} of {each.dtype}; it must be float32 [{heads}], or None")
    if window < 0 or softcap < 0 or not math.isfinite(softcap):
        raise ValueError(f"window is {window} and softcap {softcap}; neither can be below zero (zero is: none)")
    return head_dim

"""Int8 linear layers of few rows in Triton: the kernels of decode, bound by reading the weight.

Up to four rows go through multiply-adds (`decode_kernel`), up to sixteen through tensor cores (`small_kernel`). Both can
split K: partial sums are kept and added first to last (`combine_kernel`), so the order is always the same.
"""

import triton
import triton.language as tl


@triton.jit
def scales_and_bias(scale, bias, n, N):
    """Scale and bias of the columns n as float32 vectors; a bias that is None is zeros."""
    s = tl.load(scale + n, mask=n < N, other=0.0)
    b = tl.zeros_like(s)
    if bias is not None:
        b = tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)
    return s, b


@triton.jit
def put(at, y, inside, ADD: tl.constexpr):
    """y stored in the type of what `at` points to, or added to what is there; finite values end at ±65,504 in fp16."""
    if ADD:
        y += tl.load(at, mask=inside, other=0.0).to(tl.float32)
    if at.dtype.element_ty == tl.float16:
        kept = tl.minimum(tl.maximum(y, -65504.0), 65504.0)
        y = tl.where(tl.abs(y) < float("inf"), kept, y)  # inf and NaN stay what they are
    tl.store(at, y.to(at.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["M"])
def decode_kernel(
    x, q, scale, bias, out, partial, M, N, K, Kp, span, x_row, x_col, out_row, out_col,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """ROWS rows of x by COLUMNS rows of q over `span` entries of K: multiply-adds, and one sum after the loop.

    Each row of x has an accumulator of its own, [COLUMNS, DEPTH], laid out as the weight's load is: hence the order in
    which it is summed is the same for every ROWS. Groups of ROWS follow each other in the grid, so that the second
    finds its weights in the L2 cache. With `partial` (float32 [splits, M, N]) the sums go there, unscaled.
    """
    groups = tl.cdiv(M, ROWS)
    row = tl.program_id(0) % groups * ROWS
    n = tl.program_id(0) // groups * COLUMNS + tl.arange(0, COLUMNS)
    split = tl.program_id(1)
    weights = q + n.to(tl.int64)[:, None] * Kp
    x0 = x + row.to(tl.int64) * x_row  # rows beyond the last are the last again, and not stored
    x1 = x + tl.minimum(row + 1, M - 1).to(tl.int64) * x_row
    x2 = x + tl.minimum(row + 2, M - 1).to(tl.int64) * x_row
    x3 = x + tl.minimum(row + 3, M - 1).to(tl.int64) * x_row
    across = tl.zeros([COLUMNS, 1], tl.int64)  # x is loaded as wide as w, in w's layout: no trip through shared memory
    a0 = tl.zeros([COLUMNS, DEPTH], tl.float32)
    a1 = a0
    a2 = a0
    a3 = a0
    for first in range(split * span, tl.minimum(split * span + span, Kp), DEPTH):
        k = first + tl.arange(0, DEPTH)[None, :]
        w = tl.load(weights + k, mask=(n < N)[:, None] & (k < Kp), other=0).to(tl.float32)
        at = k.to(tl.int64) * x_col + across
        a0 = tl.fma(w, tl.load(x0 + at, mask=k < K, other=0.0).to(tl.float32), a0)
        if ROWS > 1:
            a1 = tl.fma(w, tl.load(x1 + at, mask=k < K, other=0.0).to(tl.float32), a1)
        if ROWS > 2:
            a2 = tl.fma(w, tl.load(x2 + at, mask=k < K, other=0.0).to(tl.float32), a2)
            a3 = tl.fma(w, tl.load(x3 + at, mask=k < K, other=0.0).to(tl.float32), a3)
    s, b = scales_and_bias(scale, bias, n, N)
    for i in tl.static_range(ROWS):
        y = tl.sum(a0 if i == 0 else a1 if i == 1 else a2 if i == 2 else a3, axis=1)
        m = (row + i).to(tl.int64)
        inside = (n < N) & (m + tl.zeros_like(n) < M)
        if partial is None:
            put(out + m * out_row + n.to(tl.int64) * out_col, y * s + b, inside, ADD)
        else:
            tl.store(partial + (split.to(tl.int64) * M + m) * N + n, y, mask=inside)


@triton.jit(do_not_specialize=["M"])
def small_kernel(
    x, q, scale, bias, out, partial, M, N, K, Kp, span, x_row, x_col, out_row, out_col,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """One tile of yᵀ = q xᵀ over `span` entries of K on the tensor cores, for the few rows that one instruction takes
    anyway. With `partial` (float32 [splits, M, N]) the sums go there, unscaled."""
    tiles = tl.cdiv(M, ROWS)
    m = tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)
    n = tl.program_id(0) // tiles * COLUMNS + tl.arange(0, COLUMNS)
    split = tl.program_id(1)
    weights = q + n.to(tl.int64)[:, None] * Kp
    inputs = x + m.to(tl.int64)[None, :] * x_row
    acc = tl.zeros([COLUMNS, ROWS], tl.float32)
    for first in range(split * span, tl.minimum(split * span + span, Kp), DEPTH):
        k = first + tl.arange(0, DEPTH)
        w = tl.load(weights + k[None, :], mask=(n < N)[:, None] & (k < Kp)[None, :], other=0)
        v = tl.load(inputs + k.to(tl.int64)[:, None] * x_col, mask=(k < K)[:, None] & (m < M)[None, :], other=0)
        acc = tl.dot(w.to(x.dtype.element_ty), v, acc, input_precision="ieee")
    inside = (m < M)[None, :] & (n < N)[:, None]
    if partial is None:
        s, b = scales_and_bias(scale, bias, n, N)
        at = out + m.to(tl.int64)[None, :] * out_row + n.to(tl.int64)[:, None] * out_col
        put(at, acc * s[:, None] + b[:, None], inside, ADD)
    else:
        at = partial + (split.to(tl.int64) * M + m.to(tl.int64)[None, :]) * N + n.to(tl.int64)[:, None]
        tl.store(at, acc, mask=inside)


@triton.jit(do_not_specialize=["M"])
def combine_kernel(partial, scale, bias, out, M, N, splits, out_row, out_col, COLUMNS: tl.constexpr, ADD: tl.constexpr):
    """Partials float32 [splits, M, N] added first to last, then scale and bias: the second half of the kernels above."""
    m = (tl.program_id(0) % M).to(tl.int64)
    n = tl.program_id(0) // M * COLUMNS + tl.arange(0, COLUMNS)
    y = tl.zeros([COLUMNS], tl.float32)
    at = partial + m * N + n
    for _ in range(splits):
        y += tl.load(at, mask=n < N, other=0.0)
        at += (m * 0 + M) * N  # 64 bits, from m
    s, b = scales_and_bias(scale, bias, n, N)
    put(out + m * out_row + n.to(tl.int64) * out_col, y * s + b, n < N, ADD)

"""Int8 linear layers of many rows in Triton: the kernel of prefill, on tensor cores."""

import triton
import triton.language as tl

from bigrun_kernels.gpu.gemv import put, scales_and_bias

MAGIC_BITS = tl.constexpr(
    0x4B400000
)  # the bits of 12,582,912.0: an integer n below 2²² added to them is that float plus n
MAGIC = tl.constexpr(12582912.0)


@triton.jit
def _outliers(x, weights, columns, count, m, n, M, N, x_row, total, WIDE: tl.constexpr, PIECE: tl.constexpr):
    """total [COLUMNS, ROWS] += the products of the outlier columns, in 16 bits. `side` and `weights` are dense copies of
    those columns, [·, WIDE], or, where there are more than WIDE, the whole x and weight, of which they are gathered."""
    for first in range(0, count, PIECE):
        j = first + tl.arange(0, PIECE)
        k = tl.load(columns + j, mask=j < count, other=0).to(tl.int64) if WIDE == 0 else j.to(tl.int64)
        v = tl.load(
            x + m.to(tl.int64)[None, :] * x_row + k[:, None], mask=(j < count)[:, None] & (m < M)[None, :], other=0.0
        )
        w = tl.load(weights + k[None, :], mask=(n < N)[:, None] & (j < count)[None, :], other=0)
        total = tl.dot(w.to(v.dtype), v, total, input_precision="ieee")
    return total


@triton.jit(do_not_specialize=["M"])
def tile_kernel(
    x, sx, q, scale, bias, out, wide, wide_side, side, columns, count,
    M, N, K, Kp, x_row, x_col, out_row, out_col, wide_row,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, CHUNKS: tl.constexpr, CHUNK: tl.constexpr,
    GROUP: tl.constexpr, SIDE: tl.constexpr, PIECE: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """One tile of yᵀ = q xᵀ, ROWS of x by COLUMNS of q; `sx` tells int8 x from 16/32-bit x.

    Transposed so that the converted weight is the left operand, which Hopper takes from registers, and so that few
    rows of x pad the cheaper side. int8 x has a scale a row (then K is summed in int32 in CHUNKS of CHUNK entries, the
    last taking what is left, and each sum turned into float32) or one for each GROUP entries of a row: then every group's
    int32 sum starts at the bits of a float whose fraction it fills, which spares a conversion.

    With `columns`, the first count[0] of them are outlier columns, zero in x and in `wide` (float16 or wider, [M, K]) as they
    are; `wide_side` [M, SIDE] and `side` [N, SIDE] are dense copies of them where count[0] ≤ SIDE.
    """
    tiles = tl.cdiv(M, ROWS)  # tiles of x follow each other in the grid: a weight tile leaves DRAM once
    m = tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)
    n = tl.program_id(0) // tiles * COLUMNS + tl.arange(0, COLUMNS)
    weights = q + n.to(tl.int64)[:, None] * Kp
    inputs = x + m.to(tl.int64)[None, :] * x_row
    total = tl.zeros([COLUMNS, ROWS], tl.float32)
    if GROUP > 0:
        groups = tl.cdiv(Kp, GROUP)
        first = sx + m.to(tl.int64) * groups
        for group in range(groups):
            k = group * GROUP + tl.arange(0, GROUP)
            w = tl.load(weights + k[None, :], mask=(n < N)[:, None] & (k < Kp)[None, :], other=0)
            v = tl.load(inputs + k.to(tl.int64)[:, None] * x_col, mask=(k < K)[:, None] & (m < M)[None, :], other=0)
            bits = tl.dot(w, v, tl.full([COLUMNS, ROWS], MAGIC_BITS, tl.int32), out_dtype=tl.int32)
            s = tl.load(first + group, mask=m < M, other=0.0)
            total = tl.fma(bits.to(tl.float32, bitcast=True) - MAGIC, s[None, :] + tl.zeros_like(total), total)
    else:
        for chunk in tl.static_range(CHUNKS):
            acc = tl.zeros([COLUMNS, ROWS], tl.float32 if sx is None else tl.int32)
            for first in range(chunk * CHUNK, Kp if chunk == CHUNKS - 1 else chunk * CHUNK + CHUNK, DEPTH):
                k = first + tl.arange(0, DEPTH)
                w = tl.load(weights + k[None, :], mask=(n < N)[:, None] & (k < Kp)[None, :], other=0)
                v = tl.load(inputs + k.to(tl.int64)[:, None] * x_col, mask=(k < K)[:, None] & (m < M)[None, :], other=0)
                if sx is None:
                    acc = tl.dot(w.to(x.dtype.element_ty), v, acc, input_precision="ieee")
                else:
                    acc = tl.dot(w, v, acc, out_dtype=tl.int32)
            total += acc.to(tl.float32)
        if sx is not None:
            total *= tl.load(sx + m, mask=m < M, other=0.0)[None, :]
    if columns is not None:
        number = tl.load(count)
        if number <= SIDE:
            dense = side + n.to(tl.int64)[:, None] * SIDE
            total = _outliers(wide_side, dense, columns, number, m, n, M, N, SIDE, total, SIDE, PIECE)
        else:
            total = _outliers(wide, weights, columns, number, m, n, M, N, wide_row, total, 0, PIECE)
    s, b = scales_and_bias(scale, bias, n, N)
    at = out + m.to(tl.int64)[None, :] * out_row + n.to(tl.int64)[:, None] * out_col
    put(at, total * s[:, None] + b[:, None], (m < M)[None, :] & (n < N)[:, None], ADD)

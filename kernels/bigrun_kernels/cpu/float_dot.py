"""Linears with float accumulators, for weights kept in 16 or 32 bits.

Eight lanes run along K and are added in order at the end, then what K leaves over: one order for every shape of tile, so
an output depends on its own two rows alone.
"""

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from bigrun_kernels.cpu.compile import kernel, parallel_kernel
from bigrun_kernels.cpu.scalar import bfloat_to_float, half_to_float
from bigrun_kernels.cpu.vectors import F32, I16, I32, I64, halves_to_floats, load, multiply_add, vector

LANES = 8
ROW_BLOCK = 16


def _widen(builder, value, kind: str):
    """<8 x> of the stored form → <8 x float>."""
    if kind == "float32":
        return value
    if kind == "float16":  # weights are checked to be finite when they are read
        return halves_to_floats(builder, value)
    wide = builder.zext(value, vector(I32, LANES))
    return builder.bitcast(builder.shl(wide, ir.Constant(wide.type, [16] * LANES)), vector(F32, LANES))


def _in_order(builder, value):
    """The sum of eight lanes, first to last."""
    total = builder.extract_element(value, I32(0))
    for lane in range(1, LANES):
        total = builder.fadd(total, builder.extract_element(value, I32(lane)))
    return total


def _prepare(context, builder, signature, args, count: int):
    """The arrays x, w and sums of a tile's arguments, its accumulators, and the widths of x and w."""
    x, w, sums = (context.make_array(signature.args[i])(context, builder, args[i]) for i in (0, 2, len(args) - 1))
    zero = ir.Constant(vector(F32, LANES), None)
    slots = [cgutils.alloca_once_value(builder, zero) for _ in range(count)]
    for slot in slots:
        builder.store(zero, slot)
    return x, w, sums, slots, *(cgutils.unpack_tuple(builder, array.shape)[1] for array in (x, w))


def _finish(builder, slots, sums):
    for i, slot in enumerate(slots):
        builder.store(_in_order(builder, builder.load(slot)), builder.gep(sums.data, [I64(i)]))


def _make_float_tile(rows: int, columns: int, kind: str):
    """An intrinsic: sums[i·columns + j] = Σ over the first K − K mod 8 columns of x[m + i, k] · w[n + j, k]."""
    stored = F32 if kind == "float32" else I16

    @intrinsic
    def tile(typingctx, x, m, w, n, sums):
        def generate(context, builder, signature, args):
            x_array, w_array, out, slots, x_width, w_width = _prepare(context, builder, signature, args, rows * columns)
            x_rows = [builder.mul(builder.add(args[1], I64(i)), x_width) for i in range(rows)]
            w_rows = [builder.mul(builder.add(args[3], I64(j)), w_width) for j in range(columns)]
            stop = builder.and_(x_width, I64(-LANES))
            with cgutils.for_range_slice(builder, I64(0), stop, I64(LANES), I64) as (k, _):
                weights = [
                    _widen(
                        builder,
                        load(builder, builder.gep(w_array.data, [builder.add(r, k)]), vector(stored, LANES)),
                        kind,
                    )
                    for r in w_rows
                ]
                for i, row in enumerate(x_rows):
                    activation = load(builder, builder.gep(x_array.data, [builder.add(row, k)]), vector(F32, LANES))
                    for j, weight in enumerate(weights):
                        slot = slots[i * columns + j]
                        builder.store(multiply_add(builder, activation, weight, builder.load(slot)), slot)
            _finish(builder, slots, out)
            return context.get_dummy_value()

        return types.void(x, types.int64, w, types.int64, sums), generate

    return tile


float32_1x1, float32_4x2 = _make_float_tile(1, 1, "float32"), _make_float_tile(4, 2, "float32")
float16_1x1, float16_4x2 = _make_float_tile(1, 1, "float16"), _make_float_tile(4, 2, "float16")
bfloat16_1x1, bfloat16_4x2 = _make_float_tile(1, 1, "bfloat16"), _make_float_tile(4, 2, "bfloat16")


def _tile(x, m, tall, w, is_bfloat, n, sums):
    """sums of a 4x2 tile (tall = 4), or of one output, without the last K mod 8 columns. An overload a dtype of w."""


def _weight(w, is_bfloat, n, k):
    """w[n, k] as float32."""


@overload(_tile)
def _tile_overload(x, m, tall, w, is_bfloat, n, sums):
    if w.dtype == types.float32:

        def tile_32(x, m, tall, w, is_bfloat, n, sums):
            if tall == 4:
                float32_4x2(x, m, w, n, sums)
            else:
                float32_1x1(x, m, w, n, sums)

        return tile_32

    def tile_16(x, m, tall, w, is_bfloat, n, sums):
        if tall == 4 and is_bfloat:
            bfloat16_4x2(x, m, w, n, sums)
        elif tall == 4:
            float16_4x2(x, m, w, n, sums)
        elif is_bfloat:
            bfloat16_1x1(x, m, w, n, sums)
        else:
            float16_1x1(x, m, w, n, sums)

    return tile_16


@overload(_weight)
def _weight_overload(w, is_bfloat, n, k):
    if w.dtype == types.float32:
        return lambda w, is_bfloat, n, k: w[n, k]
    return lambda w, is_bfloat, n, k: bfloat_to_float(w[n, k]) if is_bfloat else half_to_float(w[n, k])


@kernel
def _outputs(x, m, tall, w, is_bfloat, n, sums, bias, out, accumulate):
    """A tile's outputs, written: eight (tall = 4) or one."""
    _tile(x, m, tall, w, is_bfloat, n, sums)
    for i in range(8 if tall == 4 else 1):
        row, column, total = m + i // 2, n + i % 2, sums[i]
        for k in range(x.shape[1] - x.shape[1] % LANES, x.shape[1]):
            total += x[row, k] * _weight(w, is_bfloat, column, k)
        if bias.size:
            total += bias[column]
        out[row, column] = total + (out[row, column] if accumulate else np.float32(0.0))


@parallel_kernel
def linear_float(x, w, is_bfloat, bias, out, accumulate):
    """out [M, N] = (or +=) x Wᵀ + b: x float32 [M, K]; w [N, K] float32, or uint16: the bits of float16 or bfloat16;
    bias float32 [N] or [0]."""
    rows, columns = x.shape[0], w.shape[0]
    for block in prange((columns + ROW_BLOCK - 1) // ROW_BLOCK):
        stop = min((block + 1) * ROW_BLOCK, columns)
        sums = np.empty(8, np.float32)
        for m in range(0, rows, 4):
            for n in range(block * ROW_BLOCK, stop, 2):
                if m + 4 <= rows and n + 2 <= stop:
                    _outputs(x, m, 4, w, is_bfloat, n, sums, bias, out, accumulate)
                    continue
                for i in range(m, min(m + 4, rows)):
                    for j in range(n, min(n + 2, stop)):
                        _outputs(x, i, 1, w, is_bfloat, j, sums, bias, out, accumulate)

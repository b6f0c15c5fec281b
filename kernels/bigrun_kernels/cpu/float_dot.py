"""Dot products with float accumulators: weights kept in 16 or 32 bits, and int8 tables with a scale a group.

Eight lanes run along K and are added in order at the end, then what K leaves over: one order for every shape of tile, so
an output depends on its own two rows alone.
"""

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from bigrun_kernels.cpu.compile import kernel, parallel_kernel
from bigrun_kernels.cpu.dot import F32, I8, I16, I32, I64, call, load, multiply_add_16, vector
from bigrun_kernels.cpu.isa import features
from bigrun_kernels.cpu.linear import quantise_int16
from bigrun_kernels.cpu.scalar import bfloat_to_float, half_to_float

LANES = 8
GROUP = 32  # columns of a table's row that share a scale: four products a lane, exact in float32 (4·127·32,385 < 2^24)
ROW_BLOCK = 16


def _widen(builder, value, kind: str):
    """<8 x> of the stored form → <8 x float>."""
    if kind == "float32":
        return value
    if kind == "float16" and "f16c" in features():
        return builder.fpext(builder.bitcast(value, vector(ir.HalfType(), LANES)), vector(F32, LANES))
    wide = builder.zext(value, vector(I32, LANES))
    if kind == "bfloat16":
        return builder.bitcast(builder.shl(wide, _all(I32, 16)), vector(F32, LANES))
    # A finite half is a float of smaller exponents, times 2^112 (weights are checked to be finite when they are read).
    magnitude = builder.shl(builder.and_(wide, _all(I32, 0x7FFF)), _all(I32, 13))
    value = builder.fmul(builder.bitcast(magnitude, vector(F32, LANES)), _all(F32, 2.0**112))
    sign = builder.shl(builder.and_(wide, _all(I32, 0x8000)), _all(I32, 16))
    return builder.bitcast(builder.or_(builder.bitcast(value, vector(I32, LANES)), sign), vector(F32, LANES))


def _all(kind: ir.Type, value):
    return ir.Constant(vector(kind, LANES), [value] * LANES)


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
                    _widen(builder, load(builder, w_array, builder.add(r, k), stored, LANES), kind) for r in w_rows
                ]
                for i, row in enumerate(x_rows):
                    activation = load(builder, x_array, builder.add(row, k), F32, LANES)
                    for j, weight in enumerate(weights):
                        slot = slots[i * columns + j]
                        values = [activation, weight, builder.load(slot)]
                        builder.store(call(builder, "llvm.fmuladd.v8f32", vector(F32, LANES), values), slot)
            _finish(builder, slots, out)
            return context.get_dummy_value()

        return types.void(x, types.int64, w, types.int64, sums), generate

    return tile


def _make_table_tile(columns: int):
    """An intrinsic: sums[j] = Σ_g scale[n + j, g] · Σ_k∈g x[m, k] · w[n + j, k]; x int16, w int8, scale float16 bits."""

    @intrinsic
    def tile(typingctx, x, m, w, n, scale, sums):
        def generate(context, builder, signature, args):
            x_array, w_array, out, slots, x_width, w_width = _prepare(context, builder, signature, args, columns)
            scales = context.make_array(signature.args[4])(context, builder, args[4])
            groups = cgutils.unpack_tuple(builder, scales.shape)[1]
            x_row = builder.mul(args[1], x_width)
            rows = [builder.add(args[3], I64(j)) for j in range(columns)]
            with cgutils.for_range_slice(builder, I64(0), groups, I64(1), I64) as (g, _):
                k = builder.mul(g, I64(GROUP))
                first = builder.add(x_row, k)
                activations = [load(builder, x_array, builder.add(first, I64(h)), I16, 16) for h in (0, 16)]
                for row, slot in zip(rows, slots, strict=True):
                    start = builder.add(builder.mul(row, w_width), k)
                    total = None
                    for half, activation in zip((0, 16), activations, strict=True):
                        weight = load(builder, w_array, builder.add(start, I64(half)), I8, 16)
                        product = multiply_add_16(builder, activation, builder.sext(weight, vector(I16, 16)))
                        total = product if total is None else builder.add(total, product)
                    bits = builder.load(builder.gep(scales.data, [builder.add(builder.mul(row, groups), g)]))
                    shifted = builder.shl(builder.zext(bits, I32), I32(13))
                    unit = builder.fmul(builder.bitcast(shifted, F32), F32(2.0**112))
                    spread = builder.insert_element(ir.Constant(vector(F32, LANES), ir.Undefined), unit, I32(0))
                    spread = builder.shuffle_vector(spread, spread, ir.Constant(vector(I32, LANES), None))
                    values = [builder.sitofp(total, vector(F32, LANES)), spread, builder.load(slot)]
                    builder.store(call(builder, "llvm.fmuladd.v8f32", vector(F32, LANES), values), slot)
            _finish(builder, slots, out)
            return context.get_dummy_value()

        return types.void(x, types.int64, w, types.int64, scale, sums), generate

    return tile


float32_1x1, float32_4x2 = _make_float_tile(1, 1, "float32"), _make_float_tile(4, 2, "float32")
float16_1x1, float16_4x2 = _make_float_tile(1, 1, "float16"), _make_float_tile(4, 2, "float16")
bfloat16_1x1, bfloat16_4x2 = _make_float_tile(1, 1, "bfloat16"), _make_float_tile(4, 2, "bfloat16")
table_1x1, table_1x4 = _make_table_tile(1), _make_table_tile(4)


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


@parallel_kernel
def linear_table(x, w, w_scale, bias, values, scale, mask, out, accumulate):
    """out [M, V] = (or +=) x Wᵀ + b for a table: w int8 [V, Kp], w_scale uint16 [V, Kp/32] (float16 bits); x float32
    [M, K] is taken in the exact mode. Scratch: values int16 [M, Kp], scale float64 [M], mask int8 [K]."""
    rows, columns = x.shape[0], w.shape[0]
    mask[:] = 0
    for m in range(rows):
        quantise_int16(x, m, True, mask, False, values, scale)
    for block in prange((columns + ROW_BLOCK - 1) // ROW_BLOCK):
        stop = min((block + 1) * ROW_BLOCK, columns)
        sums = np.empty(4, np.float32)
        n = block * ROW_BLOCK
        while n < stop:
            count = 4 if n + 4 <= stop else 1
            for m in range(rows):
                if count == 4:
                    table_1x4(values, m, w, n, w_scale, sums)
                else:
                    table_1x1(values, m, w, n, w_scale, sums)
                for j in range(count):
                    y = np.float32(np.float64(sums[j]) * scale[m] + (np.float64(bias[n + j]) if bias.size else 0.0))
                    out[m, n + j] = y + out[m, n + j] if accumulate else y
            n += count

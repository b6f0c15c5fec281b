"""Rows of floats into int8 lanes (lanes.py), sixteen columns at a time: what the quantiser's inner loops are made of.

`peak` finds a row's largest magnitude on the bits themselves, which are ordered as integers without their sign; `pack` divides,
rounds half to even and lays each four columns where their row's lane has them. Sources are overloads by dtype: float32, or
uint16 with the bits of float16 or bfloat16.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from bigrun_kernels.cpu.scalar import bfloat_to_float, float_to_bits, half_to_float
from bigrun_kernels.cpu.vectors import (
    F32,
    I8,
    I16,
    I32,
    I64,
    accumulators,
    call,
    everywhere,
    halves_to_floats,
    load,
    loop,
    store,
    vector,
)  # fmt: skip

STEP = 16  # columns at a time


@intrinsic
def _peak(typingctx, row, first, count):
    """The largest magnitude among row[first : first + count] (count a multiple of STEP), as bits of the row's own dtype."""

    def generate(context, builder, signature, args):
        wide = signature.args[0].dtype.bitwidth == 32
        item, lanes = (I32, 8) if wide else (I16, 16)
        kind = vector(item, lanes)
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        data = builder.gep(builder.bitcast(data, item.as_pointer()), [args[1]])
        magnitude = ir.Constant(kind, [0x7FFFFFFF if wide else 0x7FFF] * lanes)
        slots = accumulators(builder, kind, STEP // lanes)
        with loop(builder, args[2], STEP) as k:
            for i, slot in enumerate(slots):
                value = load(builder, builder.gep(data, [builder.add(k, I64(i * lanes))]), kind)
                value = builder.and_(value, magnitude)
                top = builder.load(slot)
                builder.store(builder.select(builder.icmp_unsigned(">", value, top), value, top), slot)
        result = I32(0)
        for slot in slots:
            slot_peak = call(builder, f"llvm.vector.reduce.umax.v{lanes}i{item.width}", item, [builder.load(slot)])
            slot_peak = slot_peak if wide else builder.zext(slot_peak, I32)
            result = builder.select(builder.icmp_unsigned(">", slot_peak, result), slot_peak, result)
        return result

    return types.uint32(row, types.int64, types.int64), generate


def _floats(builder, pointer, kind):
    """<16 x float> from sixteen entries of a kind."""
    if kind == "float32":
        return load(builder, pointer, vector(F32, STEP))
    bits = load(builder, pointer, vector(I16, STEP))
    if kind == "float16":
        return halves_to_floats(builder, bits)
    wide = vector(I32, STEP)
    bits = builder.shl(builder.zext(bits, wide), ir.Constant(wide, [16] * STEP))
    return builder.bitcast(bits, vector(F32, STEP))


def _layer(kind):
    """The intrinsic that lays entries of one kind."""

    @intrinsic
    def pack_kind(typingctx, row, first, count, unit, target, offset, line):
        def generate(context, builder, signature, args):
            source, to = (context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 4))
            source = builder.gep(source, [args[1]])
            to = builder.gep(builder.bitcast(to, I8.as_pointer()), [args[5]])
            unit, stride = everywhere(builder, args[3], STEP), args[6]
            with loop(builder, args[2], STEP) as k:
                values = builder.fdiv(_floats(builder, builder.gep(source, [k]), kind), unit)
                values = call(builder, f"llvm.rint.v{STEP}f32", values.type, [values])
                whole = builder.trunc(builder.fptosi(values, vector(I32, STEP)), vector(I8, STEP))
                words = builder.bitcast(whole, vector(I32, STEP // 4))
                quad = builder.gep(to, [builder.mul(builder.lshr(k, I64(2)), stride)])
                for i in range(STEP // 4):
                    place = builder.gep(quad, [builder.mul(stride, I64(i))])
                    store(builder, builder.extract_element(words, I32(i)), place)
            return context.get_dummy_value()

        return types.void(row, types.int64, types.int64, types.float32, target, types.int64, types.int64), generate

    return pack_kind


_pack_float, _pack_half, _pack_bfloat = (_layer(kind) for kind in ("float32", "float16", "bfloat16"))


def peak(row, first, count, is_bfloat):
    """max |x| of row[first : first + count], a multiple of sixteen, as the bits of a float32; inf and NaN are largest."""


@overload(peak)
def _peak_overload(row, first, count, is_bfloat):
    if row.dtype == types.float32:

        def peak_float(row, first, count, is_bfloat):
            return _peak(row, first, count)

        return peak_float

    def peak_half(row, first, count, is_bfloat):
        bits = np.uint16(_peak(row, first, count))
        return float_to_bits(bfloat_to_float(bits) if is_bfloat else half_to_float(bits))

    return peak_half


def pack(row, first, count, is_bfloat, unit, target, offset, line):
    """Columns first … first + count of a row, a multiple of sixteen, as round(x / unit) into a lane of `target` int8 that has
    the first of them at `offset`; `line` bytes lie between four columns and the next four. A unit of inf makes zeros."""


@overload(pack)
def _pack_overload(row, first, count, is_bfloat, unit, target, offset, line):
    if row.dtype == types.float32:

        def pack_float(row, first, count, is_bfloat, unit, target, offset, line):
            _pack_float(row, first, count, unit, target, offset, line)

        return pack_float

    def pack_half(row, first, count, is_bfloat, unit, target, offset, line):
        if is_bfloat:
            _pack_bfloat(row, first, count, unit, target, offset, line)
        else:
            _pack_half(row, first, count, unit, target, offset, line)

    return pack_half

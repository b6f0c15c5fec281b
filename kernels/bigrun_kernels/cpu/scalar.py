"""Scalars that LLVM vectorises: 16-bit floats kept as their bits in integers (Numba has neither kind), and exp."""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from bigrun_kernels.cpu.compile import inlined
from bigrun_kernels.cpu.isa import features


def _cast(source, target, *steps):
    """An intrinsic that takes a scalar through llvmlite builder calls (name, type), each a reinterpretation or a cast."""

    @intrinsic
    def cast(typingctx, value):
        def generate(context, builder, signature, args):
            result = args[0]
            for name, kind in steps:
                result = getattr(builder, name)(result, kind)
            return result

        return target(source), generate

    return cast


float_to_bits = _cast(types.float32, types.uint32, ("bitcast", ir.IntType(32)))
bits_to_float = _cast(types.uint32, types.float32, ("bitcast", ir.FloatType()))
_half_to_float_f16c = _cast(types.uint16, types.float32, ("bitcast", ir.HalfType()), ("fpext", ir.FloatType()))
_float_to_half_f16c = _cast(types.float32, types.uint16, ("fptrunc", ir.HalfType()), ("bitcast", ir.IntType(16)))


@inlined
def half_to_float_portable(bits):
    """IEEE binary16 → float32, exact: a half is a float of smaller exponents, times 2^112."""
    magnitude = np.uint32(bits & np.uint16(0x7FFF))
    value = bits_to_float(np.uint32(magnitude << np.uint32(13))) * np.float32(2.0**112)
    if magnitude >= np.uint32(0x7C00):  # inf and NaN keep their payload
        value = bits_to_float(np.uint32(np.uint32(0x7F800000) | np.uint32(magnitude << np.uint32(13))))
    sign = np.uint32(np.uint32(bits & np.uint16(0x8000)) << np.uint32(16))
    return bits_to_float(np.uint32(float_to_bits(value) | sign))


@inlined
def float_to_half_portable(value):
    """float32 → IEEE binary16, ties to even: adding a number 2^13 ulps larger leaves the rounded bits at the bottom."""
    bits = float_to_bits(value)
    sign = np.uint16((bits >> np.uint32(16)) & np.uint32(0x8000))
    magnitude = np.uint32(bits & np.uint32(0x7FFFFFFF))
    if magnitude >= np.uint32(0x7F800000):
        return np.uint16(sign | np.uint16(0x7E00 if magnitude > np.uint32(0x7F800000) else 0x7C00))
    if magnitude < np.uint32(0x38800000):  # below 2^-14: a multiple of 2^-24, which is the last bit of floats near 1/2
        shifted = float_to_bits(np.float32(bits_to_float(magnitude) + np.float32(0.5)))
        return np.uint16(sign | np.uint16(shifted - np.uint32(0x3F000000)))
    odd = (magnitude >> np.uint32(13)) & np.uint32(1)
    rounded = np.uint32(magnitude - np.uint32(0x38000000) + np.uint32(0xFFF) + odd) >> np.uint32(13)
    return np.uint16(sign | np.uint16(min(rounded, np.uint32(0x7C00))))


half_to_float = _half_to_float_f16c if "f16c" in features() else half_to_float_portable
float_to_half = _float_to_half_f16c if "f16c" in features() else float_to_half_portable


@inlined
def bfloat_to_float(bits):
    """bfloat16 is the upper half of a float32."""
    return bits_to_float(np.uint32(np.uint32(bits) << np.uint32(16)))


@inlined
def fp8_to_float(bits):
    """float8 e4m3 (OCP FP8 specification: the form with NaN and without inf) → float32, exact: a half of another bias."""
    magnitude = np.uint16(bits) & np.uint16(0x7F)
    value = half_to_float(np.uint16(magnitude << np.uint16(7))) * np.float32(256.0)
    value = np.float32(np.nan) if magnitude == np.uint16(0x7F) else value
    return -value if bits & np.uint8(0x80) else value


LOG2E = np.float32(1.4426950408889634)
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)  # Cody and Waite's split: n·high is exact
SHIFT = np.float32(1.5 * 2**23)
# e^r = 1 + r + r²·p(r) on half an octave around 0, highest power first
EXP_TERMS = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)


@inlined
def exp(x):
    """e^x in float32 for −87.3 ≤ x ≤ 88, within 2 ulps; e^−87.3 below, NaN for NaN. No branch, no call: loops vectorise."""
    x = max(x, np.float32(-87.3)) if x == x else x
    shifted = x * LOG2E + SHIFT
    n = shifted - SHIFT
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    p = np.float32(EXP_TERMS[0]) * r + np.float32(EXP_TERMS[1])
    p = p * r + np.float32(EXP_TERMS[2])
    p = p * r + np.float32(EXP_TERMS[3])
    p = p * r + np.float32(EXP_TERMS[4])
    p = p * r + np.float32(EXP_TERMS[5])
    p = p * r * r + r + np.float32(1.0)
    exponent = np.uint32(float_to_bits(shifted) - float_to_bits(SHIFT) + np.uint32(127))
    return p * bits_to_float(np.uint32(exponent << np.uint32(23)))

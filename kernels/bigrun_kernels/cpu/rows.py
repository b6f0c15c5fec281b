"""Rows of numbers between their stored form and float32: the one place where a dtype decides what is compiled.

Stored forms are float32, uint16 (the bits of float16 or bfloat16), and int8 whose scale is elsewhere. These are
overloads, so that each caller is compiled for the dtype it is given.
"""

import numpy as np
from numba import types
from numba.extending import overload

from bigrun_kernels.cpu.scalar import bfloat_to_float, float_to_bits, float_to_half, half_to_float


def read_row(source, is_bfloat, target):
    """target float32 [K] = a row of the source. An overload a dtype."""


@overload(read_row)
def _read_row(source, is_bfloat, target):
    if source.dtype == types.float32:

        def row_32(source, is_bfloat, target):
            for k in range(source.size):  # an array assignment would compile NumPy's broadcasting too
                target[k] = source[k]

        return row_32

    if source.dtype == types.int8:

        def row_8(source, is_bfloat, target):
            for k in range(source.size):
                target[k] = np.float32(source[k])

        return row_8

    def row_16(source, is_bfloat, target):
        if is_bfloat:
            for k in range(source.size):
                target[k] = bfloat_to_float(source[k])
        else:
            for k in range(source.size):
                target[k] = half_to_float(source[k])

    return row_16


def write_row(values, to_bfloat, target):
    """target [K] = values in the target's dtype. An overload a dtype."""


@overload(write_row)
def _write_row(values, to_bfloat, target):
    if target.dtype == types.float32:

        def write_32(values, to_bfloat, target):
            for k in range(values.size):
                target[k] = values[k]

        return write_32

    if target.dtype == types.int8:

        def write_8(values, to_bfloat, target):
            for k in range(values.size):
                target[k] = np.int8(values[k])

        return write_8

    def write_16(values, to_bfloat, target):
        if to_bfloat:
            for k in range(values.size):
                bits = float_to_bits(values[k])
                odd = (bits >> np.uint32(16)) & np.uint32(1)
                target[k] = np.uint16((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))
        else:
            for k in range(values.size):
                target[k] = float_to_half(values[k])

    return write_16

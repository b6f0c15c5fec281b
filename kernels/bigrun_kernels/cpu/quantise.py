"""Weights into their stored forms, row by row, at the speed of memory: vector-wise int8 (Dettmers et al. 2022, section
2), int8 in groups for tables, or a copy in another float type. Each returns the number of rows with NaN or inf.

Sources are float32, or uint16: the bits of float16 or bfloat16. `rows` [n] says which row of the result each source row
becomes, so that a family's own order of rows costs nothing.
"""

import numpy as np
from numba import prange

from bigrun_kernels.cpu.compile import kernel, parallel_kernel
from bigrun_kernels.cpu.planes import INFINITY, MAGNITUDE, ROUNDER, spread
from bigrun_kernels.cpu.rows import read_row, write_row
from bigrun_kernels.cpu.scalar import bits_to_float, float_to_half, half_to_float

ROWS, GROUP = 16, 32
HALF_LIMIT = np.float32(65520.0).view(np.uint32)


@kernel
def _largest(values):
    """max |x| as the bits of a float32; at least INFINITY where an entry is inf or NaN."""
    bits = values.view(np.uint32)
    largest = np.uint32(0)
    for k in range(bits.size):
        largest = max(largest, bits[k] & MAGNITUDE)
    return largest


@kernel
def _round(values, first, count, unit, target):
    """Columns first … first + count of an int8 row = round(values / unit)."""
    for k in range(first, first + count):
        target[k] = np.int8((values[k] / unit + ROUNDER) - ROUNDER)


@kernel
def _place(target, q, n):
    """An int8 row [Kp] into row n of q, in lanes."""
    quads = q.shape[1]
    spread(target, q.reshape(q.size), (n // ROWS * quads * ROWS + n % ROWS) * 4, ROWS * 4, quads)


@parallel_kernel
def per_row(source, is_bfloat, rows, q, scale):
    """q int8 in lanes, scale float32 [N]: s = max|w|/127, q = round(w/s), half to even; an all-zero row has s = 1."""
    width = source.shape[1]
    bad = 0
    for i in prange(source.shape[0]):
        values, target = np.empty(width, np.float32), np.zeros(q.shape[1] * 4, np.int8)
        read_row(source[i], is_bfloat, values)
        largest, n = _largest(values), rows[i]
        bad += largest >= INFINITY
        unit = bits_to_float(largest) / np.float32(127.0)
        # Below the smallest normal number division loses its meaning: such a row is all zero for a model.
        if largest >= INFINITY or unit < np.float32(1.2e-38):
            scale[n] = 1.0
        else:
            _round(values, 0, width, unit, target)
            scale[n] = unit
        _place(target, q, n)
    return bad


@kernel
def _group_row(values, target, scale, n):
    """One row [Kp] in groups; True if it has NaN or inf, or an entry too large for a float16 constant (8 million)."""
    bad = _largest(values) >= INFINITY
    for g in range(scale.shape[1]):
        largest = bits_to_float(_largest(values[g * GROUP : (g + 1) * GROUP]))
        code = float_to_half(largest / np.float32(127.0))
        if half_to_float(code) * np.float32(127.49) < largest:
            code += np.uint16(1)
        bad = bad or code >= 0x7C00
        scale[n // ROWS, g, n % ROWS] = 0 if code >= 0x7C00 else code
        if 0 < code < 0x7C00:
            _round(values, g * GROUP, GROUP, half_to_float(code), target)
    return bad


@parallel_kernel
def per_group(source, is_bfloat, rows, q, scale):
    """q int8 and scale uint16 in lanes: float16 constants, rounded up so that no entry exceeds 127."""
    width, padded = source.shape[1], q.shape[1] * 4
    bad = 0
    for i in prange(source.shape[0]):
        values, target = np.zeros(padded, np.float32), np.zeros(padded, np.int8)
        read_row(source[i], is_bfloat, values[:width])
        bad += 1 if _group_row(values, target, scale, rows[i]) else 0
        _place(target, q, rows[i])
    return bad


@parallel_kernel
def copy(source, is_bfloat, rows, to_bfloat, target):
    """target [N, K] float32, or uint16 (float16 or bfloat16 bits, ties to even) = source, converted where they differ."""
    bad = 0
    for i in prange(source.shape[0]):
        values = np.empty(source.shape[1], np.float32)
        read_row(source[i], is_bfloat, values)
        # what float16 cannot hold becomes inf: 65,520 is the first number that rounds to it
        limit = INFINITY if to_bfloat or target.itemsize == 4 else HALF_LIMIT
        bad += _largest(values) >= limit
        write_row(values, to_bfloat, target[rows[i]])
    return bad

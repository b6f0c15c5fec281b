"""Weights into their stored forms, row by row, at the speed of memory: vector-wise int8 (Dettmers et al. 2022, section
2), int8 in groups for tables, or a copy in another float type. Each returns the number of rows with NaN or inf.

Sources are float32, or uint16: the bits of float16 or bfloat16. `rows` [n] says which row of the result each source row
becomes, so that a family's own order of rows costs nothing.
"""

import numpy as np
from numba import prange

from bigrun_kernels.cpu.compile import inlined, kernel, parallel_kernel
from bigrun_kernels.cpu.planes import INFINITY, MAGNITUDE, ROUNDER, spread
from bigrun_kernels.cpu.rows import read_row, write_row
from bigrun_kernels.cpu.scalar import bits_to_float, float_to_half, half_to_float
from bigrun_kernels.cpu.team import SLOTS, array_at, claim, fetch_add, finish, launch, matrix_at, table_of

ROWS, GROUP = 16, 32
NOTHING = np.empty(0, np.int8)
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


@inlined
def _row(values, target, scale, n):
    """One row [K] with one constant; True if it has NaN or inf."""
    largest = _largest(values)
    unit = bits_to_float(largest) / np.float32(127.0)
    # Below the smallest normal number division loses its meaning: such a row is all zero for a model.
    if largest >= INFINITY or unit < np.float32(1.2e-38):
        scale[n] = 1.0
    else:
        _round(values, 0, values.size, unit, target)
        scale[n] = unit
    return largest >= INFINITY


@inlined
def _group_row(values, target, scale, n, groups):
    """One row [Kp] in groups; True if it has NaN or inf, or an entry too large for a float16 constant (8 million)."""
    bad = _largest(values) >= INFINITY
    for g in range(groups):
        largest = bits_to_float(_largest(values[g * GROUP : (g + 1) * GROUP]))
        code = float_to_half(largest / np.float32(127.0))
        if half_to_float(code) * np.float32(127.49) < largest:
            code += np.uint16(1)
        bad = bad or code >= 0x7C00
        scale[(n // ROWS * groups + g) * ROWS + n % ROWS] = 0 if code >= 0x7C00 else code
        if 0 < code < 0x7C00:
            _round(values, g * GROUP, GROUP, half_to_float(code), target)
    return bad


@kernel
def _participate(table, source_like, unused):
    """One thread's share of the rows, some at a time."""
    rows, width, panels, quads, groups, is_bfloat = table[0], table[1], table[2], table[3], table[4], table[5] > 0
    source, where = matrix_at(table, 6, rows, width, source_like), array_at(table, 7, rows, np.empty(0, np.int64))
    q = array_at(table, 8, panels * quads * 64, np.empty(0, np.int8))
    constants = array_at(table, 9, panels * ROWS * groups, np.empty(0, np.uint16))
    scale = array_at(table, 9, 0 if groups else table[11], np.empty(0, np.float32))
    counters = array_at(table, 10, 2 * SLOTS, np.empty(0, np.int64))
    values, target = np.zeros(quads * 4, np.float32), np.zeros(quads * 4, np.int8)
    done = bad = 0
    while True:
        first = claim(counters, 0, ROWS)
        if first >= rows:
            break
        for i in range(first, min(first + ROWS, rows)):
            n = where[i]
            read_row(source[i], is_bfloat, values[:width])
            target[:] = 0
            bad += (
                _group_row(values, target, constants, n, groups) if groups else _row(values[:width], target, scale, n)
            )
            spread(target, q, (n // ROWS * quads * ROWS + n % ROWS) * 4, ROWS * 4, quads)
            done += 1
    fetch_add(counters, SLOTS, bad)
    finish(counters, 0, done, rows, table, 0)


def _quantise(source, is_bfloat, rows, q, scale, groups):
    counters = np.zeros(2 * SLOTS, np.int64)
    rows = np.ascontiguousarray(rows, np.int64)
    table = table_of(*source.shape, *q.shape[:2], groups, is_bfloat, source, rows, q, scale, counters, scale.size)
    launch(_participate, table, np.empty(0, source.dtype), NOTHING)
    return int(counters[SLOTS])


def per_row(source, is_bfloat, rows, q, scale):
    """q int8 in lanes, scale float32 [N]: s = max|w|/127, q = round(w/s), half to even; an all-zero row has s = 1."""
    return _quantise(np.ascontiguousarray(source), is_bfloat, rows, q, scale, 0)


def per_group(source, is_bfloat, rows, q, scale):
    """q int8 and scale uint16 in lanes: float16 constants, rounded up so that no entry exceeds 127."""
    return _quantise(np.ascontiguousarray(source), is_bfloat, rows, q, scale, scale.shape[1])


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

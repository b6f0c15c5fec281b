"""Int8 tables in lanes (embedding, head): a float16 scale for each 32 columns of a row. Lookups, and logits in the exact
mode: each group's integer sum is exact, then float32 in the order of groups, so forms, tiles and threads agree to the bit."""

import numpy as np
from numba import types
from numba.extending import overload

from bigrun_kernels.cpu import dot
from bigrun_kernels.cpu.compile import kernel
from bigrun_kernels.cpu.planes import FORMS, TOKENS, quantise
from bigrun_kernels.cpu.scalar import half_to_float
from bigrun_kernels.cpu.team import SLOTS, array_at, claim, finish, launch, matrix_at, table_of

ROWS, GROUP = 16, 32
AHEAD = 1024
TASK = 8  # panels
NOTHING = np.empty(0, np.int8)


@kernel
def lookup(ids, values, scale, out):
    """out [T, H] = rows of a table: values int8 and scale float16 (as its bits), both in lanes."""
    for t in range(ids.size):
        panel, row = ids[t] // ROWS, ids[t] % ROWS
        for j in range(out.shape[1]):
            unit = half_to_float(scale[panel, j // GROUP, row])
            out[t, j] = np.float32(values[panel, j // 4, row, j % 4]) * unit


def _sums(planes, tokens, first, quads, w, panel, scale, sums):
    """sums float32 [16·4] of four tokens (16: of one) from token `first` on with a panel. An overload a form."""


def _make_sums(tile, tile_one, shape, shape_one):
    rows, rows_one = shape.rows, shape_one.rows

    def table_sums(planes, tokens, first, quads, w, panel, scale, sums):
        groups = quads * 4 // GROUP
        w_at, scale_at = panel * quads * 64, panel * groups * ROWS
        if tokens == 1:
            tile_one(planes, 0 * rows_one, w, w_at, groups, scale, scale_at, sums, 0, AHEAD)
        else:
            tile(planes, first // TOKENS * quads * 4 * rows, w, w_at, groups, scale, scale_at, sums, 0, AHEAD)

    return table_sums


_PORTABLE = _make_sums(dot.portable_table_4, dot.portable_table_1, dot.PORTABLE, dot.PORTABLE_ONE)
_VNNI512 = _make_sums(dot.vnni512_table_4, dot.vnni512_table_1, dot.VNNI512, dot.VNNI512_ONE)
_VNNI256 = _make_sums(dot.vnni256_table_4, dot.vnni256_table_1, dot.VNNI256, dot.VNNI256_ONE)


@overload(_sums)
def _sums_overload(planes, tokens, first, quads, w, panel, scale, sums):
    return {types.int16: _PORTABLE, types.int8: _VNNI512, types.uint8: _VNNI256}[planes.dtype]


@kernel
def _participate(table, planes_like, unused):
    """One thread's part: tokens quantised, then panels of the table, some at a time."""
    tokens, columns, rows, quads = table[0], table[1], table[2], table[3]
    doubles, floats, ints = np.empty(0, np.float64), np.empty(0, np.float32), np.empty(0, np.int32)
    x, out = matrix_at(table, 7, tokens, columns, floats), matrix_at(table, 8, tokens, rows, floats)
    panels = (rows + ROWS - 1) // ROWS
    w = array_at(table, 9, panels * quads * 64, np.empty(0, np.int8))
    units = array_at(table, 10, panels * quads * 4 // GROUP * ROWS, np.empty(0, np.uint16))
    bias = array_at(table, 11, rows if table[4] else 0, floats)
    planes, scale = array_at(table, 12, table[6], planes_like), array_at(table, 13, tokens, doubles)
    row_sum, counters = matrix_at(table, 14, tokens, 2, ints), array_at(table, 15, 2 * SLOTS, np.empty(0, np.int64))
    mask, sums = np.empty(0, np.int8), np.empty(64, np.float32)
    done, total = 0, (tokens + TOKENS - 1) // TOKENS
    while True:
        task = claim(counters, 0, 1)
        if task >= total:
            break
        for t in range(task * TOKENS, min((task + 1) * TOKENS, tokens)):
            quantise(x, t, tokens, True, mask, False, planes, 4 * quads, scale, row_sum)
        done += 1
    finish(counters, 0, done, total, table, 9)
    done = 0
    while True:
        task = claim(counters, 1, TASK)
        if task >= panels:
            break
        for panel in range(task, min(task + TASK, panels)):
            first = panel * ROWS
            for start in range(0, tokens, TOKENS):
                _sums(planes, tokens, start, quads, w, panel, units, sums)
                for t in range(start, min(start + TOKENS, tokens)):
                    for j in range(min(ROWS, rows - first)):
                        n = first + j
                        shift = np.float64(bias[n]) if bias.size else 0.0
                        y = np.float32(np.float64(sums[(t - start) * ROWS + j]) * scale[t] + shift)
                        out[t, n] = y + out[t, n] if table[5] else y
            done += 1
    finish(counters, 1, done, panels, table, 0)


def linear_table(form, x, w, w_scale, bias, planes, scale, row_sum, out, add):
    """out [M, V] = (or +=) x Wᵀ + b for a table in lanes: w int8 [panels, quads, 16, 4], w_scale uint16 [panels, groups, 16]
    (float16 bits); x float32 [M, K] is taken in the exact mode. Scratch as of `linear`."""
    kind = FORMS[form]
    counters = np.zeros(2 * SLOTS, np.int64)
    sizes = *x.shape, out.shape[1], w.shape[1], bool(bias.size), add, planes.size // np.dtype(kind).itemsize
    table = table_of(*sizes, x, out, w, w_scale, bias, planes, scale, row_sum, counters)
    launch(_participate, table, np.empty(0, kind), NOTHING)

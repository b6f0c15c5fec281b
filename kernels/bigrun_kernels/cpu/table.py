"""Int8 tables in lanes (embedding, head): a float16 constant for each 32 columns of a row. Lookups, and logits in the exact
mode: each group's integer sum is exact, then float32 in the order of the groups, so forms, tiles and threads agree to the bit."""

import numpy as np
from numba import prange, types
from numba.extending import overload

from bigrun_kernels.cpu import dot
from bigrun_kernels.cpu.compile import kernel, parallel_kernel
from bigrun_kernels.cpu.planes import FORMS, TOKENS, quantise
from bigrun_kernels.cpu.scalar import half_to_float

ROWS, GROUP = 16, 32
AHEAD = 1024
TASK = 8  # panels


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


@parallel_kernel
def _linear_table(x, w, w_scale, bias, planes, scale, row_sum, mask, out, add):
    tokens, quads = x.shape[0], w.shape[1]
    flat, units = w.reshape(w.size), w_scale.reshape(w_scale.size)
    for t in range(tokens):
        quantise(x, np.int64(t), tokens, True, mask, False, planes, 4 * quads, scale, row_sum)
    for task in prange((w.shape[0] + TASK - 1) // TASK):
        sums = np.empty(64, np.float32)
        for panel in range(task * TASK, min((task + 1) * TASK, w.shape[0])):
            first = panel * ROWS
            width = min(ROWS, out.shape[1] - first)
            for start in range(0, tokens, TOKENS):
                _sums(planes, tokens, start, quads, flat, np.int64(panel), units, sums)
                for t in range(start, min(start + TOKENS, tokens)):
                    for j in range(width):
                        n = first + j
                        shift = np.float64(bias[n]) if bias.size else 0.0
                        y = np.float32(np.float64(sums[(t - start) * ROWS + j]) * scale[t] + shift)
                        out[t, n] = y + out[t, n] if add else y


def linear_table(form, x, w, w_scale, bias, planes, scale, row_sum, mask, out, add):
    """out [M, V] = (or +=) x Wᵀ + b for a table in lanes: w int8 [panels, quads, 16, 4], w_scale uint16 [panels, groups, 16]
    (float16 bits); x float32 [M, K] is taken in the exact mode. Scratch as of `linear`."""
    _linear_table(x, w, w_scale, bias, planes.reshape(-1).view(FORMS[form]), scale, row_sum, mask, out, add)

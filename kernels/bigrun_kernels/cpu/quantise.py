"""Weights into their stored forms, row by row, at the speed of memory: vector-wise int8 (Dettmers et al. 2022, section
2), int8 in groups for tables, or a copy in another float type. Each returns the number of rows with NaN or inf.

Sources are float32, or uint16: the bits of float16 or bfloat16. `rows` [n] says which row of the result each source row
becomes, so that a family's own order of rows costs nothing.
"""

import numpy as np
from numba import prange, types
from numba.extending import overload

from bigrun_kernels.cpu.compile import inlined, kernel, parallel_kernel
from bigrun_kernels.cpu.pack import pack, peak
from bigrun_kernels.cpu.planes import INFINITY, MAGNITUDE
from bigrun_kernels.cpu.rows import read_row, write_row
from bigrun_kernels.cpu.scalar import bits_to_float, float_to_half, fp8_to_float, half_to_float
from bigrun_kernels.cpu.team import SLOTS, array_at, claim, fetch_add, finish, launch, matrix_at, table_of

ROWS, GROUP, COLUMNS = 16, 32, 64
BLOCK = 512  # columns laid at a time
HALF_LIMIT = np.float32(65520.0).view(np.uint32)


@kernel
def _largest(values):
    """max |x| as the bits of a float32; at least INFINITY where an entry is inf or NaN."""
    bits = values.view(np.uint32)
    largest = np.uint32(0)
    for k in range(bits.size):
        largest = max(largest, bits[k] & MAGNITUDE)
    return largest


def _hold(source, first, count, scale, numbers, scratch):
    """Rows first … first + count of the source, as what `peak` and `pack` take. An overload a dtype."""


@overload(_hold)
def _hold_overload(source, first, count, scale, numbers, scratch):
    if source.dtype != types.uint8:
        return lambda source, first, count, scale, numbers, scratch: source[first : first + count]

    def hold_fp8(source, first, count, scale, numbers, scratch):
        """float8 e4m3 with scales in blocks: what DeepSeek-V3's report calls fine-grained quantisation (section 3.3)."""
        start, tall, across = numbers[0], numbers[1], numbers[2]
        for r in range(count):
            scales, row = scale[(start + first + r) // tall], source[first + r]
            for block in range(scales.size):
                for k in range(block * across, min((block + 1) * across, row.size)):
                    scratch[r, k] = fp8_to_float(row[k]) * scales[block]
        return scratch[:count, : source.shape[1]]

    return hold_fp8


@inlined
def _unit(top):
    """The scale of a row by its largest magnitude, as bits. Below the smallest normal number division loses its meaning:
    such a row is all zero for a model, and its unit inf."""
    unit = bits_to_float(top) / np.float32(127.0)
    return np.float32(np.inf) if top >= INFINITY or unit < np.float32(1.2e-38) else unit


@kernel
def _rows(held, is_bfloat, rest, where, q, scale, quads, height):
    """Rows with one scale each; returns how many have NaN or inf."""
    count, whole, bad = len(held), held.shape[1] // COLUMNS * COLUMNS, 0
    units = np.empty(ROWS, np.float32)
    for r in range(count):
        top = max(peak(held[r], 0, whole, is_bfloat), peak(rest[r], 0, COLUMNS, is_bfloat))
        units[r] = unit = _unit(top)
        scale[where[r]] = np.float32(1.0) if np.isinf(unit) else unit
        bad += top >= INFINITY
    for first in range(0, whole, BLOCK):  # of columns, for all rows: a panel's lines stay in the first cache meanwhile
        for r in range(count):
            offset = ((where[r] // height * quads + first // 4) * height + where[r] % height) * 4
            pack(held[r], first, min(BLOCK, whole - first), is_bfloat, units[r], q, offset, 4 * height)
    if whole < quads * 4:
        for r in range(count):
            offset = ((where[r] // height * quads + whole // 4) * height + where[r] % height) * 4
            pack(rest[r], 0, COLUMNS, is_bfloat, units[r], q, offset, 4 * height)
    return bad


@inlined
def _group(row, first, is_bfloat, q, offset, line, scales, at):
    """A group of a table's row with a float16 scale, rounded up so that no entry exceeds 127; True if it has NaN or inf, or
    an entry too large for such a scale (8 million)."""
    largest = bits_to_float(peak(row, first, GROUP, is_bfloat))
    code = float_to_half(largest / np.float32(127.0))
    if half_to_float(code) * np.float32(127.49) < largest:
        code += np.uint16(1)
    bad = code >= 0x7C00
    scales[at] = 0 if bad else code
    unit = half_to_float(code) if 0 < code < 0x7C00 else np.float32(np.inf)
    pack(row, first, GROUP, is_bfloat, unit, q, offset, line)
    return bad


@kernel
def _group_rows(held, is_bfloat, rest, where, q, scales, quads, groups, height):
    """Rows with a scale for each 32 columns; returns how many are bad."""
    whole, bad_rows = held.shape[1] // COLUMNS * COLUMNS, 0
    for r in range(len(held)):
        panel, lane = where[r] // height, where[r] % height
        bad = False
        for g in range(groups):
            first = g * GROUP
            offset = ((panel * quads + first // 4) * height + lane) * 4
            at = (panel * groups + g) * height + lane
            if first < whole:
                bad |= _group(held[r], first, is_bfloat, q, offset, 4 * height, scales, at)
            else:
                bad |= _group(rest[r], first - whole, is_bfloat, q, offset, 4 * height, scales, at)
        bad_rows += bad
    return bad_rows


@kernel
def _participate(table, source_like, like):
    """One thread's share of the rows, some at a time."""
    rows, width, height, quads, groups, is_bfloat = table[0], table[1], table[2], table[3], table[4], table[5] > 0
    source, where = matrix_at(table, 6, rows, width, source_like), array_at(table, 7, rows, np.empty(0, np.int64))
    q = array_at(table, 8, table[18], np.empty(0, np.int8))
    scales = array_at(table, 9, table[11] if groups else 0, np.empty(0, np.uint16))
    scale = array_at(table, 9, 0 if groups else table[11], np.empty(0, np.float32))
    counters = array_at(table, 10, 2 * SLOTS, np.empty(0, np.int64))
    blocks, numbers = matrix_at(table, 12, table[13], table[14], np.empty(0, np.float32)), table[15:18]
    scratch = np.empty((ROWS if table[14] else 0, width), np.float32)
    rest, whole = np.zeros((ROWS, COLUMNS), like.dtype), width // COLUMNS * COLUMNS
    done = bad = 0
    while True:
        first = claim(counters, 0, ROWS)
        if first >= rows:
            break
        count = min(ROWS, rows - first)
        held = _hold(source, first, count, blocks, numbers, scratch)
        for r in range(count if whole < width else 0):
            for k in range(whole, width):
                rest[r, k - whole] = held[r, k]
        some = where[first : first + count]
        if groups:
            bad += _group_rows(held, is_bfloat, rest, some, q, scales, quads, groups, height)
        else:
            bad += _rows(held, is_bfloat, rest, some, q, scale, quads, height)
        done += count
    fetch_add(counters, SLOTS, bad)
    finish(counters, 0, done, rows, table, 0)


def _quantise(source, is_bfloat, rows, q, scale, groups, blocks, block):
    counters = np.zeros(2 * SLOTS, np.int64)
    source, rows = np.ascontiguousarray(source), np.ascontiguousarray(rows, np.int64)
    fp8 = source.dtype == np.uint8
    if fp8:
        blocks = np.ascontiguousarray(blocks, np.float32)
    else:
        blocks, block = np.empty((0, 0), np.float32), (0, 1, 1)
    height, quads = (ROWS, q.shape[1]) if q.ndim == 4 else (1, q.shape[1] // 4)
    table = table_of(
        *source.shape, height, quads, groups, is_bfloat, source, rows, q, scale, counters, scale.size, blocks, *blocks.shape,
        *block, q.size,
    )  # fmt: skip
    launch(_participate, table, np.empty(0, source.dtype), np.empty(0, np.float32 if fp8 else source.dtype))
    return int(counters[SLOTS])


def per_row(source, is_bfloat, rows, q, scale, blocks=None, block=(0, 1, 1)):
    """q int8 in lanes, or row by row [N, K padded to 64] as GPUs hold it; scale float32 [N]: s = max|w|/127, q = round(w/s),
    half to even; an all-zero row has s = 1.

    A source of uint8 is float8 e4m3 with `blocks` float32 [⌈N/tall⌉, ⌈K/across⌉] to multiply by; `block` is (the first
    source row's number, tall, across).
    """
    return _quantise(source, is_bfloat, rows, q, scale, 0, blocks, block)


def per_group(source, is_bfloat, rows, q, scale, blocks=None, block=(0, 1, 1)):
    """q int8 and scale uint16 in lanes, or row by row [N, K padded to 64] and [N, groups]: float16 scales, rounded up so
    that no entry exceeds 127."""
    return _quantise(source, is_bfloat, rows, q, scale, scale.shape[1], blocks, block)


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

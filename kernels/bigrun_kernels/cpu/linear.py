"""Int8 linears: y = x Wᵀ + b with W int8 per row, in the modes of NUMERICS, on any number of rows of x.

One function a form (dot.py) and the activation quantisers they share. Sums are exact
integers S until the epilogue, y = f32(S · s_x · s_w + b) in float64: equal to the bit on every form, batch and thread count.
"""

import numpy as np
from numba import prange, types
from numba.extending import overload

from bigrun_kernels.cpu.compile import kernel, parallel_kernel
from bigrun_kernels.cpu.dot import (
    portable_1x1,
    portable_1x4,
    portable_4x2,
    vnni256_1x1,
    vnni256_1x4,
    vnni256_4x2,
    vnni512_1x1,
    vnni512_1x4,
    vnni512_4x2,
)

# The dtype that scratch planes are seen as tells a form: int16 values, or two int8 planes for registers of 512 or 256 bits.
FORMS = (np.int16, np.int8, np.uint8)
ROW_BLOCK = 16  # weight rows of one task: they stay in the second-level cache while activation rows pass by
MAGNITUDE, INFINITY = np.uint32(0x7FFFFFFF), np.uint32(0x7F800000)
ROUNDER = np.float32(1.5 * 2**23)  # adding and taking off rounds half to even, as the sum's last bit is one
FINE = 254.0  # steps of the second plane to one of the first: x ≈ (h + l/254)·s


@kernel
def _largest(x, i, mask, masked):
    """max |x_ij| of row i over the columns outside the mask; NaN if any entry of the row is NaN or inf.

    The bits of a float without its sign are ordered as integers, with inf and NaN above all: integers vectorise.
    """
    bits = x[i].view(np.uint32)
    largest = np.uint32(0)
    for j in range(bits.size):
        largest = max(largest, bits[j] & MAGNITUDE)
    if largest >= INFINITY:
        return np.float32(np.nan)
    if masked:
        largest = np.uint32(0)
        for j in range(bits.size):
            largest = max(largest, np.uint32(0) if mask[j] else bits[j] & MAGNITUDE)
    found = np.empty(1, np.uint32)
    found[0] = largest
    return found.view(np.float32)[0]


@kernel
def outlier_columns(x, threshold, mask):
    """mask[j] = 1 where some finite row of x has |x_ij| ≥ threshold; returns their numbers. threshold 0: none."""
    mask[:] = 0
    count = 0
    if threshold > 0.0:
        for i in range(x.shape[0]):
            if _largest(x, i, mask, False) >= threshold:
                for j in range(x.shape[1]):
                    if abs(x[i, j]) >= threshold:
                        count += 1 - mask[j]
                        mask[j] = 1
    result = np.empty(count, np.int64)
    found = 0
    for j in range(x.shape[1]):
        if mask[j] and found < count:
            result[found] = j
            found += 1
    return result


@kernel
def quantise_int16(x, i, exact, mask, masked, planes, scale):
    """Row i as int16: v = 254·h + l (exact), or h, the int8 value, alone. scale[i]: what one unit of v is worth."""
    width = x.shape[1]
    row, values = planes[i], x[i]
    largest = _largest(x, i, mask, masked)
    row[width:] = 0
    if not largest > 0.0:  # an all-zero row, or one with NaN or inf, whose scale then makes all its outputs NaN
        row[:] = 0
        scale[i] = largest if np.isnan(largest) else 1.0
        return
    unit = largest / np.float32(127.0)
    scale[i] = np.float64(unit) / (FINE if exact else 1.0)
    if exact:
        for j in range(width):
            value = values[j] / unit
            high = (value + ROUNDER) - ROUNDER
            low = ((value - high) * np.float32(FINE) + ROUNDER) - ROUNDER
            row[j] = np.int16(high * np.float32(FINE) + low)
    else:
        for j in range(width):
            value = np.float32(0.0) if mask[j] else values[j] / unit
            row[j] = np.int16((value + ROUNDER) - ROUNDER)


@kernel
def quantise_planes(x, i, exact, mask, masked, planes, scale, row_sum):
    """Row i as int8 planes h, l side by side; row_sum[i] their sums, for taking off the weights' offset."""
    width, padded = x.shape[1], planes.shape[1] // 2
    values, high_row, low_row = x[i], planes[i, :padded], planes[i, padded:]
    largest = _largest(x, i, mask, masked)
    high_row[:] = 0
    low_row[:] = 0
    row_sum[i, 0] = row_sum[i, 1] = 0
    if not largest > 0.0:
        scale[i] = largest if np.isnan(largest) else 1.0
        return
    unit = largest / np.float32(127.0)
    scale[i] = np.float64(unit) / (FINE if exact else 1.0)
    fine = np.float32(FINE if exact else 0.0)
    high_sum, low_sum = np.int32(0), np.int32(0)
    for j in range(width):
        value = np.float32(0.0) if mask[j] else values[j] / unit
        high = (value + ROUNDER) - ROUNDER
        low = ((value - high) * fine + ROUNDER) - ROUNDER
        high_row[j] = np.int8(high)
        low_row[j] = np.int8(low)
        high_sum += np.int32(high)
        low_sum += np.int32(low)
    row_sum[i, 0] = high_sum
    row_sum[i, 1] = low_sum


@kernel
def _outlier_part(x, m, w, n, outliers):
    """Σ over the outlier columns of x[m, j] · w[n, j], in the order of the columns."""
    total = 0.0
    for i in range(outliers.size):
        total += np.float64(x[m, outliers[i]]) * np.float64(w[n, outliers[i]])
    return total


def _tile(planes, row_sum, m, tall, w, n, wide, exact, sums):
    """sums[c·tall + i] = S of output (m + i, n + c), an exact integer in float64. tall, wide is 4, 2 or 1, 4 or 1, 1.

    An overload a form, told by the dtype of planes (FORMS): a kernel is compiled for the one in use alone.
    """


@overload(_tile, inline="always")
def _tile_overload(planes, row_sum, m, tall, w, n, wide, exact, sums):
    if planes.dtype == types.int16:

        def portable(planes, row_sum, m, tall, w, n, wide, exact, sums):
            if tall == 4:
                portable_4x2(planes, m, w, n, sums)
            elif wide == 4:
                portable_1x4(planes, m, w, n, sums)
            else:
                portable_1x1(planes, m, w, n, sums)

        return portable

    wide_registers = planes.dtype == types.int8
    tile_4x2 = vnni512_4x2 if wide_registers else vnni256_4x2
    tile_1x4 = vnni512_1x4 if wide_registers else vnni256_1x4
    tile_1x1 = vnni512_1x1 if wide_registers else vnni256_1x1

    def vnni(planes, row_sum, m, tall, w, n, wide, exact, sums):
        if tall == 4:
            tile_4x2(planes, m, w, n, sums)
        elif wide == 4:
            tile_1x4(planes, m, w, n, sums)
        else:
            tile_1x1(planes, m, w, n, sums)
        count = tall * wide
        fine = 254.0 if exact else 1.0
        for i in range(count):  # the weights went in with 128 added
            row = m + i % tall
            high = sums[i] - 128.0 * row_sum[row, 0]
            sums[i] = fine * high + (sums[count + i] - 128.0 * row_sum[row, 1])

    return vnni


def _quantise(x, i, exact, mask, masked, planes, scale, row_sum):
    """Row i of x in the form of planes."""


@overload(_quantise)
def _quantise_overload(x, i, exact, mask, masked, planes, scale, row_sum):
    if planes.dtype == types.int16:
        return lambda x, i, exact, mask, masked, planes, scale, row_sum: quantise_int16(
            x, i, exact, mask, masked, planes, scale
        )
    return lambda x, i, exact, mask, masked, planes, scale, row_sum: quantise_planes(
        x, i, exact, mask, masked, planes, scale, row_sum
    )


@parallel_kernel
def _linear(x, w, w_scale, bias, exact, threshold, planes, scale, row_sum, mask, out, accumulate):
    rows, columns = x.shape[0], w.shape[0]
    outliers = outlier_columns(x, 0.0 if exact else threshold, mask)
    masked, biased = outliers.size > 0, bias.size > 0
    if rows == 1:  # not worth a launch of the threads
        _quantise(x, np.int64(0), exact, mask, masked, planes, scale, row_sum)
    else:
        for i in prange(rows):
            _quantise(x, np.int64(i), exact, mask, masked, planes, scale, row_sum)
    for block in prange((columns + ROW_BLOCK - 1) // ROW_BLOCK):
        first = block * ROW_BLOCK
        stop = min(first + ROW_BLOCK, columns)
        sums = np.empty(16, np.float64)
        m = 0
        while m < rows:
            tall = 4 if m + 4 <= rows else 1
            n = first
            while n < stop:
                wide = 2 if tall == 4 else 4
                high = tall
                if n + wide > stop:  # the last few weight rows, one pair at a time
                    wide, high = 1, 1
                for top in range(m, m + tall, high):
                    _tile(planes, row_sum, top, high, w, n, wide, exact, sums)
                    for c in range(wide):
                        unit, shift = np.float64(w_scale[n + c]), np.float64(bias[n + c]) if biased else 0.0
                        for i in range(high):
                            value = sums[c * high + i] * scale[top + i]
                            if masked:
                                value += _outlier_part(x, top + i, w, n + c, outliers)
                            y = np.float32(value * unit + shift)
                            out[top + i, n + c] = y + out[top + i, n + c] if accumulate else y
                n += wide
            m += tall


def linear(form, x, w, w_scale, bias, exact, threshold, planes, scale, row_sum, mask, out, accumulate):
    """out [M, N] = (or +=) x Wᵀ + b. form: 0 portable, 1 vnni512, 2 vnni256.

    x float32 [M, K]; w int8 [N, Kp]; w_scale float32 [N]; bias float32 [N] or [0]. exact, or LLM.int8() with that
    threshold (0: no decomposition), whose outlier columns are those of all rows together. Scratch: planes int8
    [M, 2·Kp], scale float64 [M], row_sum int32 [M, 2], mask int8 [K].
    """
    planes = planes.view(FORMS[form])
    _linear(x, w, w_scale, bias, exact, threshold, planes, scale, row_sum, mask, out, accumulate)

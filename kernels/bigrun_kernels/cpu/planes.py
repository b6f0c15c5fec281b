"""Activations into packed integer panels: what the tiles of dot.py multiply weights with.

A row of x becomes v = 254·h + l with x ≈ v·s/254 (exact), or h alone (llm.int8). Four tokens make a panel, in quads of columns
as weights are: portable int16 [quads, 4 tokens, 4], vnni int8 [quads, 8 rows h, l, h, l …, 4]. A single token is a
panel of its own, of one or two rows. What a last panel lacks is left as it was: its sums are never looked at.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from bigrun_kernels.cpu.compile import kernel
from bigrun_kernels.cpu.vectors import I64, load, loop, store, vector

# The dtype that scratch planes are seen as tells a form: int16 values, or two int8 planes for registers of 512 or 256 bits.
FORMS = (np.int16, np.int8, np.uint8)
TOKENS = 4  # of a panel
MAGNITUDE, INFINITY = np.uint32(0x7FFFFFFF), np.uint32(0x7F800000)
ROUNDER = np.float32(1.5 * 2**23)  # adding and taking off rounds half to even, as the sum's last bit is one
FINE = 254.0  # steps of the second plane to one of the first: x ≈ (h + l/254)·s


@intrinsic
def spread(typingctx, row, target, offset, stride, quads):
    """target[offset + q·stride : … + 4] = row[4·q : 4·q + 4] for each quad."""

    def generate(context, builder, signature, args):
        source, to = (context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 1))
        item = ir.IntType(signature.args[0].dtype.bitwidth)
        source, to = (builder.bitcast(pointer, item.as_pointer()) for pointer in (source, to))
        with loop(builder, args[4]) as q:
            word = load(builder, builder.gep(source, [builder.mul(q, I64(4))]), vector(item, 4))
            store(builder, word, builder.gep(to, [builder.add(args[2], builder.mul(q, args[3]))]))
        return context.get_dummy_value()

    return types.void(row, target, types.int64, types.int64, types.int64), generate


@kernel
def largest(x, i, mask, masked):
    """max |x_ij| of row i over the columns outside the mask; NaN if any entry of the row is NaN or inf.

    The bits of a float without its sign are ordered as integers, with inf and NaN above all: integers vectorise.
    """
    bits = x[i].view(np.uint32)
    peak = np.uint32(0)
    for j in range(bits.size):
        peak = max(peak, bits[j] & MAGNITUDE)
    if peak >= INFINITY:
        return np.float32(np.nan)
    if masked:
        peak = np.uint32(0)
        for j in range(bits.size):
            peak = max(peak, np.uint32(0) if mask[j] else bits[j] & MAGNITUDE)
    one = np.empty(1, np.uint32)
    one[0] = peak
    return one.view(np.float32)[0]


@kernel
def outlier_columns(x, threshold, mask):
    """mask[j] = 1 where some finite row of x has |x_ij| ≥ threshold; returns their numbers. threshold 0: none."""
    mask[:] = 0
    count = 0
    if threshold > 0.0:
        for i in range(x.shape[0]):
            if largest(x, i, mask, False) >= threshold:
                for j in range(x.shape[1]):
                    if abs(x[i, j]) >= threshold:
                        count += 1 - mask[j]
                        mask[j] = 1
    result = np.empty(count, np.int64)
    place = 0
    for j in range(x.shape[1]):
        if mask[j] and place < count:
            result[place] = j
            place += 1
    return result


@kernel
def _int16_row(values, exact, mask, unit, row):
    """row int16 [Kp] = 254·h + l of each value, or h; the padding becomes zero."""
    for j in range(values.size, row.size):
        row[j] = 0
    if exact:
        for j in range(values.size):
            value = values[j] / unit
            high = (value + ROUNDER) - ROUNDER
            low = ((value - high) * np.float32(FINE) + ROUNDER) - ROUNDER
            row[j] = np.int16(high * np.float32(FINE) + low)
    else:
        for j in range(values.size):
            value = np.float32(0.0) if mask[j] else values[j] / unit
            row[j] = np.int16((value + ROUNDER) - ROUNDER)


@kernel
def _int8_rows(values, exact, mask, masked, unit, high_row, low_row):
    """high_row, low_row int8 [Kp] = h and l; returns their sums, for taking off the weights' offset."""
    high_sum, low_sum = np.int32(0), np.int32(0)
    fine = np.float32(FINE if exact else 0.0)
    for j in range(values.size):
        value = values[j] / unit
        if masked:
            value = np.float32(0.0) if mask[j] else value
        high = (value + ROUNDER) - ROUNDER
        low = ((value - high) * fine + ROUNDER) - ROUNDER
        high_row[j] = np.int8(high)
        low_row[j] = np.int8(low)
        high_sum += np.int32(high)
        low_sum += np.int32(low)
    for j in range(values.size, high_row.size):
        high_row[j] = low_row[j] = 0
    return high_sum, low_sum


def quantise(x, i, tokens, exact, mask, masked, planes, padded, scale, row_sum):
    """Row i of x [≥ tokens, K] into packed planes (flat, in a dtype of FORMS) of `padded` columns. scale[i]: what a unit of
    v is worth; NaN for a row with NaN or inf, 1 for an all-zero one. row_sum[i]: Σh and Σl (vnni)."""


@overload(quantise)
def _quantise_overload(x, i, tokens, exact, mask, masked, planes, padded, scale, row_sum):
    if planes.dtype == types.int16:

        def portable(x, i, tokens, exact, mask, masked, planes, padded, scale, row_sum):
            rows = 1 if tokens == 1 else TOKENS
            top = largest(x, i, mask, masked)
            unit = top / np.float32(127.0)
            row = np.empty(padded, np.int16)
            if top > 0.0:
                scale[i] = np.float64(unit) / (FINE if exact else 1.0)
                _int16_row(x[i], exact, mask, unit, row)
            else:
                scale[i] = top if np.isnan(top) else 1.0
                for j in range(padded):
                    row[j] = 0
            offset = (i // TOKENS * padded) * rows + (i % TOKENS) * 4
            spread(row, planes, offset, 4 * rows, padded // 4)

        return portable

    def vnni(x, i, tokens, exact, mask, masked, planes, padded, scale, row_sum):
        rows = 2 if tokens == 1 else 2 * TOKENS
        top = largest(x, i, mask, masked)
        unit = top / np.float32(127.0)
        high, low = np.zeros(padded, np.int8), np.zeros(padded, np.int8)
        if top > 0.0:
            scale[i] = np.float64(unit) / (FINE if exact else 1.0)
            row_sum[i, 0], row_sum[i, 1] = _int8_rows(x[i], exact, mask, masked, unit, high, low)
        else:
            scale[i] = top if np.isnan(top) else 1.0
            row_sum[i, 0] = row_sum[i, 1] = 0
        offset = (i // TOKENS * padded) * rows + (i % TOKENS) * 8
        spread(high, planes, offset, 4 * rows, padded // 4)
        spread(low, planes, offset + 4, 4 * rows, padded // 4)

    return vnni

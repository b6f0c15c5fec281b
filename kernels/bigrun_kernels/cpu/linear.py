"""Int8 linears: y = x Wᵀ + b with W int8 in lanes, in the modes of NUMERICS, on any number of rows of x.

Sums are exact integers S until the epilogue, y = f32(S · s_x · s_w + b) in float64: equal to the bit on every form, batch
and thread count.
"""

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic, overload

from bigrun_kernels.cpu import dot
from bigrun_kernels.cpu.compile import kernel, parallel_kernel
from bigrun_kernels.cpu.dot import CHUNK, UNROLL
from bigrun_kernels.cpu.planes import FINE, FORMS, TOKENS, outlier_columns, quantise
from bigrun_kernels.cpu.vectors import F32, F64, I64, load, store, vector

ROWS = 16  # of a panel of weights
AHEAD = 1024  # bytes between what one token reads and what it asks for: the latency of memory at its speed


@intrinsic
def _epilogue(typingctx, sums, so, fine, correction, unit, w_scale, wo, bias, bo, biased, out, oo, add):
    """out[oo : oo + 16] = (or +=) f32((S − correction) · unit · w_scale + bias), S = sums, or fine·sums + sums 16 further."""

    def generate(context, builder, signature, args):
        order = [
            "sums",
            "so",
            "fine",
            "correction",
            "unit",
            "w_scale",
            "wo",
            "bias",
            "bo",
            "biased",
            "out",
            "oo",
            "add",
        ]
        names = {name: i for i, name in enumerate(order)}
        data = {n: context.make_array(signature.args[names[n]])(context, builder, args[names[n]]).data
                for n in ("sums", "w_scale", "bias", "out")}  # fmt: skip
        wide, narrow = vector(F64, 8), vector(F32, 8)

        def spread(value):
            one = builder.insert_element(ir.Constant(wide, ir.Undefined), value, ir.IntType(32)(0))
            return builder.shuffle_vector(one, one, ir.Constant(vector(ir.IntType(32), 8), None))

        fine, correction, unit = (spread(args[names[n]]) for n in ("fine", "correction", "unit"))
        two = builder.fcmp_ordered("!=", args[names["fine"]], F64(0.0))
        for half in (0, 8):
            at = lambda name, offset, half=half: builder.gep(  # noqa: E731
                data[name], [builder.add(args[names[offset]], I64(half))]
            )
            total = load(builder, at("sums", "so"), wide)
            second = builder.gep(at("sums", "so"), [builder.select(two, I64(16), I64(0))])
            both = builder.fadd(builder.fmul(total, fine), load(builder, second, wide))
            total = builder.fsub(builder.select(two, both, total), correction)
            value = builder.fmul(total, unit)
            scale = builder.fpext(load(builder, at("w_scale", "wo"), narrow), wide)
            shift = builder.fpext(load(builder, at("bias", "bo"), narrow), wide)
            shift = builder.select(args[names["biased"]], shift, ir.Constant(wide, None))
            y = builder.fptrunc(builder.fadd(builder.fmul(value, scale), shift), narrow)
            old = load(builder, at("out", "oo"), narrow)
            store(builder, builder.select(args[names["add"]], builder.fadd(y, old), y), at("out", "oo"))
        return context.get_dummy_value()

    integer, number, flag = types.int64, types.float64, types.boolean
    arguments = (sums, integer, number, number, number, w_scale, integer, bias, integer, flag, out, integer, flag)
    return types.void(*arguments), generate


def panel_sums(planes, tokens, quads, w, panel, sums):
    """sums[16·row + j] = Σ of activation row · weight row 16·panel + j, exact, over all quads. An overload a form."""


def _make_panel_sums(tile, tile_one, shape, shape_one):
    rows, rows_one, passes = shape.rows, shape_one.rows, len(shape.passes())

    def form_sums(planes, tokens, quads, w, panel, sums):
        count = (tokens + TOKENS - 1) // TOKENS
        for i in range(16 * (rows_one if tokens == 1 else count * rows)):
            sums[i] = 0.0
        # each turn of each pass asks for its share of what comes after this chunk
        stride = 64 * UNROLL // (count * passes)
        for start in range(0, quads, CHUNK):
            size = min(CHUNK, quads - start)
            first = (panel * quads + start) * 64
            if tokens == 1:
                tile_one(planes, start * 4 * rows_one, w, first, size, sums, 0, first + AHEAD, 64)
                continue
            ahead = first + size * 64
            for t in range(count):
                x_first = (t * quads + start) * 4 * rows
                tile(planes, x_first, w, first, size, sums, t * 16 * rows, ahead, stride)
                ahead += size // UNROLL * passes * stride

    return form_sums


_PORTABLE = _make_panel_sums(dot.portable_4, dot.portable_1, dot.PORTABLE, dot.PORTABLE_ONE)
_VNNI512 = _make_panel_sums(dot.vnni512_4, dot.vnni512_1, dot.VNNI512, dot.VNNI512_ONE)
_VNNI256 = _make_panel_sums(dot.vnni256_4, dot.vnni256_1, dot.VNNI256, dot.VNNI256_ONE)


@overload(panel_sums)
def _panel_sums_overload(planes, tokens, quads, w, panel, sums):
    return {types.int16: _PORTABLE, types.int8: _VNNI512, types.uint8: _VNNI256}[planes.dtype]


def _offset(planes, row_sum, t, fine):
    """What the weights' offset of 128 adds to the sums of token t. An overload a form."""


def _rows(planes):
    """Activation rows of a token."""


@overload(_offset)
def _offset_overload(planes, row_sum, t, fine):
    if planes.dtype == types.int16:
        return lambda planes, row_sum, t, fine: 0.0
    return lambda planes, row_sum, t, fine: 128.0 * (fine * row_sum[t, 0] + row_sum[t, 1])


@overload(_rows)
def _rows_overload(planes):
    count = 1 if planes.dtype == types.int16 else 2
    return lambda planes: count


@kernel
def _outlier_part(x, t, w, quads, n, outliers):
    """Σ over the outlier columns of x[t, k] · w[n, k], in the order of the columns."""
    total = 0.0
    for i in range(outliers.size):
        k = outliers[i]
        weight = w[(n // ROWS * quads + k // 4) * 64 + n % ROWS * 4 + k % 4]
        total += np.float64(x[t, k]) * np.float64(weight)
    return total


@kernel
def panel_linear(x, planes, scale, row_sum, tokens, exact, outliers, quads, w, w_scale, bias, panel, sums, out, add):
    """out[:tokens, 16·panel : + 16] = (or +=) y of one panel of weights (flat), from packed planes. sums: float64 scratch of
    16 for each activation row. outliers: their columns, whose products are taken from x."""
    rows, biased = _rows(planes), bias.size > 0
    fine = FINE if exact else 1.0
    first = panel * ROWS
    width = min(ROWS, w_scale.size - first)
    panel_sums(planes, tokens, quads, w, panel, sums)
    for t in range(tokens):
        at, correction = t * rows * 16, _offset(planes, row_sum, t, fine)
        if width == ROWS and outliers.size == 0:
            combine = fine if rows == 2 else 0.0
            shifts = bias if biased else w_scale
            _epilogue(
                sums,
                at,
                combine,
                correction,
                scale[t],
                w_scale,
                first,
                shifts,
                first,
                biased,
                out,
                t * w_scale.size + first,
                add,
            )
            continue
        for j in range(width):
            total = sums[at + j]
            if rows == 2:
                total = fine * total + sums[at + 16 + j]
            value = (total - correction) * scale[t]
            if outliers.size:
                value += _outlier_part(x, t, w, quads, first + j, outliers)
            n = first + j
            y = np.float32(value * np.float64(w_scale[n]) + (np.float64(bias[n]) if biased else 0.0))
            out[t, n] = y + out[t, n] if add else y


@parallel_kernel
def _linear(x, w, w_scale, bias, exact, threshold, planes, scale, row_sum, mask, out, add):
    tokens, padded = x.shape[0], w.shape[1] * 4
    flat = w.reshape(w.size)
    outliers = outlier_columns(x, 0.0 if exact else threshold, mask)
    masked = outliers.size > 0
    if tokens == 1:  # not worth a launch of the threads
        quantise(x, np.int64(0), tokens, exact, mask, masked, planes, padded, scale, row_sum)
    else:
        for t in prange(tokens):
            quantise(x, np.int64(t), tokens, exact, mask, masked, planes, padded, scale, row_sum)
    for panel in prange(w.shape[0]):
        sums = np.empty((tokens + TOKENS) * 32, np.float64)
        panel_linear(
            x,
            planes,
            scale,
            row_sum,
            tokens,
            exact,
            outliers,
            w.shape[1],
            flat,
            w_scale,
            bias,
            np.int64(panel),
            sums,
            out,
            add,
        )


def linear(form, x, w, w_scale, bias, exact, threshold, planes, scale, row_sum, mask, out, add):
    """out [M, N] = (or +=) x Wᵀ + b. form: 0 portable, 1 vnni512, 2 vnni256.

    x float32 [M, K]; w int8 in lanes (lanes.py); w_scale float32 [N]; bias float32 [N] or [0]. exact, or LLM.int8() with
    that threshold (0: no decomposition), whose outlier columns are those of all rows together. Scratch: planes int8
    [≥ M to a multiple of 4, 2·Kp], scale float64 [M], row_sum int32 [M, 2], mask int8 [K].
    """
    planes = planes.reshape(-1).view(FORMS[form])
    _linear(x, w, w_scale, bias, exact, threshold, planes, scale, row_sum, mask, out, add)

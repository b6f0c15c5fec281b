"""Attention's two products in register tiles: queries by keys, weights by values. Keys and values are float32, float16 (as
their bits) or int8; sums are float32 in one order, whatever the tile, so a token's answer depends on nothing beside it.

A score adds up eight lanes along the head, then the lanes in pairs. An output adds up the tokens from first to last.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from bigrun_kernels.cpu.scalar import EXP_TERMS, LN2_HIGH, LN2_LOW, LOG2E, SHIFT
from bigrun_kernels.cpu.vectors import (
    F32,
    I8,
    I16,
    I32,
    I64,
    accumulators,
    everywhere,
    halves_to_floats,
    load,
    loop,
    multiply_add,
    pick,
    prefetch,
    store,
    vector,
)  # fmt: skip

LANES = 8
# Keys, and vectors of outputs, that a tile of one or two queries holds: eight sums keep two multipliers busy.
KEYS = {1: 8, 2: 4}
VECTORS = {1: 8, 2: 4}
STORED = {"float32": F32, "float16": I16, "int8": I8}
BYTES = {"float32": 4, "float16": 2, "int8": 1}


def _widen(builder, value, kind: str):
    """Stored lanes → <8 x float>; float16 pages hold finite numbers, or what no token looks at."""
    if kind == "float32":
        return value
    return halves_to_floats(builder, value) if kind == "float16" else builder.sitofp(value, vector(F32, LANES))


def _pointers(context, builder, signature, args, pairs):
    """Pointers of (array, offset) argument pairs."""
    pointers = []
    for array, offset in pairs:
        data = context.make_array(signature.args[array])(context, builder, args[array]).data
        pointers.append(builder.gep(data, [args[offset]]))
    return pointers


def _ask(builder, array, index, count: int, kind: str) -> None:
    """Prefetch `count` items of a stored kind from `index` of an array's pointer on."""
    start = builder.bitcast(builder.gep(array, [index]), I8.as_pointer())
    for byte in range(0, count * BYTES[kind], 64):
        prefetch(builder, builder.gep(start, [I64(byte)]))


def _pairs_added(builder, values):
    """The lanes of four <8 x float>, each added up in pairs of pairs → <4 x float>."""
    ab, cd = (
        builder.fadd(*(pick(builder, x, y, [i + odd for i in (0, 2, 8, 10, 4, 6, 12, 14)]) for odd in (0, 1)))
        for x, y in (values[:2], values[2:])
    )
    four = builder.fadd(*(pick(builder, ab, cd, [i + odd for i in (0, 2, 8, 10, 4, 6, 12, 14)]) for odd in (0, 1)))
    return builder.fadd(pick(builder, four, four, range(4)), pick(builder, four, four, range(4, 8)))


def _make_scores(rows: int, kind: str):
    """An intrinsic: scores[so + r·row_scores + j] = q[r] · key j, for `rows` queries and some keys of `dim` (of 8) entries.
    Meanwhile it asks for as many bytes of `ahead`, from item `ao` on."""
    count = KEYS[rows]

    @intrinsic
    def tile(typingctx, q, qo, keys, ko, dim, scores, so, row_scores, ahead, ao):
        def generate(context, builder, signature, args):
            q_at, k_at, out, next_at = _pointers(context, builder, signature, args, ((0, 1), (2, 3), (5, 6), (8, 9)))
            dim, wide = args[4], vector(F32, LANES)
            slots = accumulators(builder, wide, rows * count)
            with loop(builder, dim, LANES) as d:
                _ask(builder, next_at, builder.mul(d, I64(count)), count * LANES, kind)
                at = [builder.add(d, builder.mul(dim, I64(i))) for i in range(count)]
                mine = [
                    _widen(builder, load(builder, builder.gep(k_at, [i]), vector(STORED[kind], LANES)), kind)
                    for i in at
                ]
                for r in range(rows):
                    query = load(builder, builder.gep(q_at, [at[r]]), wide)
                    for j, key in enumerate(mine):
                        slot = slots[r * count + j]
                        builder.store(multiply_add(builder, query, key, builder.load(slot)), slot)
            for r in range(rows):
                for j in range(0, count, 4):
                    four = _pairs_added(builder, [builder.load(s) for s in slots[r * count + j : r * count + j + 4]])
                    store(builder, four, builder.gep(out, [builder.add(builder.mul(args[7], I64(r)), I64(j))]))
            return context.get_dummy_value()

        n = types.int64
        return types.void(q, n, keys, n, n, scores, n, n, ahead, n), generate

    return tile


def _make_outputs(rows: int, vectors: int, kind: str):
    """An intrinsic: out[oo + r·dim : + 8·vectors] += Σ_t weights[po + r·row_weights + t] · values[vo + t·dim : …].
    Meanwhile it asks for as many bytes of `ahead`, from item `ao` on."""

    @intrinsic
    def tile(typingctx, weights, po, row_weights, values, vo, dim, count, out, oo, ahead, ao):
        def generate(context, builder, signature, args):
            p_at, v_at, o_at, next_at = _pointers(context, builder, signature, args, ((0, 1), (3, 4), (7, 8), (9, 10)))
            dim, wide = args[5], vector(F32, LANES)
            slots = accumulators(builder, wide, rows * vectors)
            where = [
                builder.gep(o_at, [builder.add(builder.mul(dim, I64(r)), I64(LANES * v))])
                for r in range(rows) for v in range(vectors)
            ]  # fmt: skip
            for slot, pointer in zip(slots, where, strict=True):
                builder.store(load(builder, pointer, wide), slot)
            with loop(builder, args[6]) as t:
                _ask(builder, next_at, builder.mul(t, I64(vectors * LANES)), vectors * LANES, kind)
                first = builder.mul(t, dim)
                mine = [
                    _widen(builder, load(builder, builder.gep(v_at, [builder.add(first, I64(LANES * v))]),
                                         vector(STORED[kind], LANES)), kind)
                    for v in range(vectors)
                ]  # fmt: skip
                for r in range(rows):
                    at = builder.add(t, builder.mul(args[2], I64(r)))
                    weight = everywhere(builder, load(builder, builder.gep(p_at, [at]), F32), LANES)
                    for v, value in enumerate(mine):
                        slot = slots[r * vectors + v]
                        builder.store(multiply_add(builder, weight, value, builder.load(slot)), slot)
            for slot, pointer in zip(slots, where, strict=True):
                store(builder, builder.load(slot), pointer)
            return context.get_dummy_value()

        n = types.int64
        return types.void(weights, n, n, values, n, n, n, out, n, ahead, n), generate

    return tile


def _exp(builder, x):
    """e^x of <8 x float>, as scalar.exp: e^−87.3 below −87.3, NaN for NaN."""
    wide, bits = x.type, vector(I32, LANES)
    constant = lambda value: ir.Constant(wide, [float(value)] * LANES)  # noqa: E731
    low = builder.fcmp_ordered("<", x, constant(-87.3))
    x = builder.select(low, constant(-87.3), x)
    shifted = multiply_add(builder, x, constant(LOG2E), constant(SHIFT))
    n = builder.fsub(shifted, constant(SHIFT))
    r = multiply_add(builder, n, constant(-LN2_HIGH), x)
    r = multiply_add(builder, n, constant(-LN2_LOW), r)
    p = constant(EXP_TERMS[0])
    for term in EXP_TERMS[1:]:
        p = multiply_add(builder, p, r, constant(term))
    p = builder.fadd(multiply_add(builder, builder.fmul(p, r), r, r), constant(1.0))
    offset = ir.Constant(bits, [127 - int(SHIFT.view("int32"))] * LANES)
    exponent = builder.shl(builder.add(builder.bitcast(shifted, bits), offset), ir.Constant(bits, [23] * LANES))
    return builder.fmul(p, builder.bitcast(exponent, wide))


def _larger(builder, a, b):
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _across(builder, value, combine):
    """The eight lanes combined in pairs of pairs."""
    for step in (4, 2, 1):
        value = combine(value, pick(builder, value, value, [(i + step) % LANES for i in range(LANES)]))
    return builder.extract_element(value, I32(0))


@intrinsic
def soften(typingctx, scores, at, count, distance, slope, scale, k_units, v_units, state, so):
    """Scores [count] of one page → weights: e^(s − m), with s = score · scale · k_unit + slope · (distance + t) and m the
    larger of state[so] and their maximum; then times v_unit. state[so] = m, and state[so + 1] = their sum before v_unit: of
    this page alone. Rows of a page are whole vectors: what lies beyond count is overwritten."""

    def generate(context, builder, signature, args):
        s_at, state_at = _pointers(context, builder, signature, args, ((0, 1), (8, 9)))
        k_at, v_at = (context.make_array(signature.args[i])(context, builder, args[i]).data for i in (6, 7))
        wide = vector(F32, LANES)
        numbers = ir.Constant(vector(I64, LANES), list(range(LANES)))
        count, slope, scale = args[2], everywhere(builder, args[4], LANES), everywhere(builder, args[5], LANES)
        lowest = ir.Constant(wide, [float("-inf")] * LANES)
        (highest,), (total,) = accumulators(builder, wide, 1), accumulators(builder, wide, 1)
        builder.store(everywhere(builder, builder.load(state_at), LANES), highest)
        with loop(builder, count, LANES) as t:
            index = builder.add(everywhere(builder, t, LANES), numbers)
            away = builder.sitofp(builder.add(index, everywhere(builder, args[3], LANES)), wide)
            score = builder.fmul(load(builder, builder.gep(s_at, [t]), wide), scale)
            score = builder.fmul(score, load(builder, builder.gep(k_at, [t]), wide))
            score = multiply_add(builder, slope, away, score)
            inside = builder.icmp_signed("<", index, everywhere(builder, count, LANES))
            score = builder.select(inside, score, lowest)
            store(builder, score, builder.gep(s_at, [t]))
            builder.store(_larger(builder, score, builder.load(highest)), highest)
        top = _across(builder, builder.load(highest), lambda a, b: _larger(builder, a, b))
        builder.store(top, state_at)
        with loop(builder, count, LANES) as t:
            weight = _exp(
                builder, builder.fsub(load(builder, builder.gep(s_at, [t]), wide), everywhere(builder, top, LANES))
            )
            builder.store(builder.fadd(builder.load(total), weight), total)
            weight = builder.fmul(weight, load(builder, builder.gep(v_at, [t]), wide))
            store(builder, weight, builder.gep(s_at, [t]))
        builder.store(_across(builder, builder.load(total), builder.fadd), builder.gep(state_at, [I64(1)]))
        return context.get_dummy_value()

    n, f = types.int64, types.float32
    return types.void(scores, n, n, n, f, f, k_units, v_units, state, n), generate


def score_rows(q, first, rows, keys, key_first, count, dim, scores, row_scores, ahead, ahead_first):
    """scores[r, t] of `rows` (1 or 2) queries from row `first` of q (flat, rows of dim), and the keys of a page (flat)."""


def output_rows(weights, at, row_weights, rows, values, value_first, count, dim, out, first, ahead, ahead_first):
    """out rows `first` … (flat, rows of dim) += weights[at + r·row_weights : + count] · values (flat, from value_first on)."""


def _of(array) -> str:
    return {types.float32: "float32", types.uint16: "float16", types.int8: "int8"}[array.dtype]


@overload(score_rows)
def _score_rows(q, first, rows, keys, key_first, count, dim, scores, row_scores, ahead, ahead_first):
    one, two = _make_scores(1, _of(keys)), _make_scores(2, _of(keys))

    def run(q, first, rows, keys, key_first, count, dim, scores, row_scores, ahead, ahead_first):
        x, key, to = first * dim, key_first, ahead_first
        if rows == 2:
            for t in range(0, count, 4):
                two(q, x, keys, key, dim, scores, t, row_scores, ahead, to)
                key, to = key + 4 * dim, to + 4 * dim
        else:
            for t in range(0, count, 8):
                one(q, x, keys, key, dim, scores, t, row_scores, ahead, to)
                key, to = key + 8 * dim, to + 8 * dim

    return run


@overload(output_rows)
def _output_rows(weights, at, row_weights, rows, values, value_first, count, dim, out, first, ahead, ahead_first):
    kind = _of(values)
    one_8, one_1 = _make_outputs(1, VECTORS[1], kind), _make_outputs(1, 1, kind)
    two_4, two_1 = _make_outputs(2, VECTORS[2], kind), _make_outputs(2, 1, kind)

    def run(weights, at, row_weights, rows, values, value_first, count, dim, out, first, ahead, ahead_first):
        d, to = 0, ahead_first
        while d < dim:
            step = 64 // rows if d + 64 // rows <= dim else 8
            v, o = value_first + d, first * dim + d
            if rows == 2 and step == 32:
                two_4(weights, at, row_weights, values, v, dim, count, out, o, ahead, to)
            elif rows == 2:
                two_1(weights, at, row_weights, values, v, dim, count, out, o, ahead, to)
            elif step == 64:
                one_8(weights, at, row_weights, values, v, dim, count, out, o, ahead, to)
            else:
                one_1(weights, at, row_weights, values, v, dim, count, out, o, ahead, to)
            d, to = d + step, to + step * count

    return run

"""Attention's two products in register tiles: queries by keys, weights by values. Keys and values are float32, float16 (as
their bits) or int8; sums are float32 in one order, whatever the tile, so a token's answer depends on nothing beside it.

A score adds up eight lanes along the head, then the lanes in pairs. An output adds up the tokens from first to last.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from bigrun_kernels.cpu.vectors import (
    F32, I8, I16, I64, accumulators, everywhere, halves_to_floats, load, loop, multiply_add, pick, store, vector,
)  # fmt: skip

LANES = 8
KEYS = 4  # keys of a tile: their number in a page divides by it
STORED = {"float32": F32, "float16": I16, "int8": I8}


def _widen(builder, value, kind: str):
    """Stored lanes → <8 x float>; float16 pages hold finite numbers, or what no token looks at."""
    if kind == "float32":
        return value
    return halves_to_floats(builder, value) if kind == "float16" else builder.sitofp(value, vector(F32, LANES))


def _pointers(context, builder, signature, args, pairs):
    """Pointers of (array, offset) argument pairs."""
    found = []
    for array, offset in pairs:
        data = context.make_array(signature.args[array])(context, builder, args[array]).data
        found.append(builder.gep(data, [args[offset]]))
    return found


def _pairs_added(builder, values):
    """The lanes of four <8 x float>, each added up in pairs of pairs → <4 x float>."""
    ab, cd = (
        builder.fadd(*(pick(builder, x, y, [i + odd for i in (0, 2, 8, 10, 4, 6, 12, 14)]) for odd in (0, 1)))
        for x, y in (values[:2], values[2:])
    )
    four = builder.fadd(*(pick(builder, ab, cd, [i + odd for i in (0, 2, 8, 10, 4, 6, 12, 14)]) for odd in (0, 1)))
    return builder.fadd(pick(builder, four, four, range(4)), pick(builder, four, four, range(4, 8)))


def _make_scores(rows: int, kind: str):
    """An intrinsic: scores[so + r·KEYSTRIDE + j] = q[r] · key j, for `rows` queries and four keys of `dim` (of 8) entries."""

    @intrinsic
    def tile(typingctx, q, qo, keys, ko, dim, scores, so, row_scores):
        def generate(context, builder, signature, args):
            q_at, k_at, out = _pointers(context, builder, signature, args, ((0, 1), (2, 3), (5, 6)))
            dim, wide = args[4], vector(F32, LANES)
            slots = accumulators(builder, wide, rows * KEYS)
            with loop(builder, dim, LANES) as d:
                at = [builder.add(d, builder.mul(dim, I64(i))) for i in range(KEYS)]
                mine = [_widen(builder, load(builder, builder.gep(k_at, [i]), vector(STORED[kind], LANES)), kind) for i in at]
                for r in range(rows):
                    query = load(builder, builder.gep(q_at, [at[r]]), wide)
                    for j, key in enumerate(mine):
                        slot = slots[r * KEYS + j]
                        builder.store(multiply_add(builder, query, key, builder.load(slot)), slot)
            for r in range(rows):
                four = _pairs_added(builder, [builder.load(s) for s in slots[r * KEYS : (r + 1) * KEYS]])
                store(builder, four, builder.gep(out, [builder.mul(args[7], I64(r))]))
            return context.get_dummy_value()

        n = types.int64
        return types.void(q, n, keys, n, n, scores, n, n), generate

    return tile


def _make_outputs(rows: int, vectors: int, kind: str):
    """An intrinsic: out[oo + r·dim : + 8·vectors] += Σ_t weights[po + r·row_weights + t] · values[vo + t·dim : …]."""

    @intrinsic
    def tile(typingctx, weights, po, row_weights, values, vo, dim, count, out, oo):
        def generate(context, builder, signature, args):
            p_at, v_at, o_at = _pointers(context, builder, signature, args, ((0, 1), (3, 4), (7, 8)))
            dim, wide = args[5], vector(F32, LANES)
            slots = accumulators(builder, wide, rows * vectors)
            where = [
                builder.gep(o_at, [builder.add(builder.mul(dim, I64(r)), I64(LANES * v))])
                for r in range(rows) for v in range(vectors)
            ]  # fmt: skip
            for slot, pointer in zip(slots, where, strict=True):
                builder.store(load(builder, pointer, wide), slot)
            with loop(builder, args[6]) as t:
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
        return types.void(weights, n, n, values, n, n, n, out, n), generate

    return tile


def score_rows(q, first, rows, keys, key_first, count, dim, scores, row_scores):
    """scores[r, t] of `rows` (1 or 2) queries from row `first` of q (flat, rows of dim), and the keys of a page (flat)."""


def output_rows(weights, row_weights, rows, values, value_first, count, dim, out, first):
    """out rows `first` … (flat, rows of dim) += weights[r, :count] · values (flat, from value_first on)."""


def _of(array) -> str:
    return {types.float32: "float32", types.uint16: "float16", types.int8: "int8"}[array.dtype]


@overload(score_rows)
def _score_rows(q, first, rows, keys, key_first, count, dim, scores, row_scores):
    one, two = _make_scores(1, _of(keys)), _make_scores(2, _of(keys))

    def run(q, first, rows, keys, key_first, count, dim, scores, row_scores):
        for t in range(0, count, KEYS):
            if rows == 2:
                two(q, first * dim, keys, key_first + t * dim, dim, scores, t, row_scores)
            else:
                one(q, first * dim, keys, key_first + t * dim, dim, scores, t, row_scores)

    return run


@overload(output_rows)
def _output_rows(weights, row_weights, rows, values, value_first, count, dim, out, first):
    kind = _of(values)
    one_4, one_1, two_4, two_1 = (_make_outputs(rows, vectors, kind) for rows in (1, 2) for vectors in (4, 1))

    def run(weights, row_weights, rows, values, value_first, count, dim, out, first):
        d = 0
        while d < dim:
            four = d + 32 <= dim
            at = first * dim + d
            if rows == 2 and four:
                two_4(weights, 0, row_weights, values, value_first + d, dim, count, out, at)
            elif rows == 2:
                two_1(weights, 0, row_weights, values, value_first + d, dim, count, out, at)
            elif four:
                one_4(weights, 0, row_weights, values, value_first + d, dim, count, out, at)
            else:
                one_1(weights, 0, row_weights, values, value_first + d, dim, count, out, at)
            d += 32 if four else 8

    return run

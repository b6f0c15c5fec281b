"""Integer dot products in register tiles over weights in lanes, exact to the bit: what `vpmaddwd` and `vpdpbusd` are for.

Two forms compute the same integers from a quantised activation (planes.py):
  portable  one int16 row a token, v = 254·h + l (|v| ≤ 32,385); weights widened in registers, `vpmaddwd`: exact mode costs
            what plain int8 costs
  vnni      two int8 rows a token, h and l; weights offset to unsigned in registers, `vpdpbusd`; the offset comes off
            at the end: 128·Σx of each row, the same for all outputs
A tile is R activation rows by one panel of 16 weight rows, over at most CHUNK quads: int32 lanes cannot overflow in them
(256 steps of two products below 127·32,385), and 16 KiB of weights stay in the first-level cache while rows pass by.
Its sums are added up in float64, where integers are exact below 2^53, so an answer depends on nothing but its rows.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from bigrun_kernels.cpu.isa import features
from bigrun_kernels.cpu.vectors import (
    F32,
    F64,
    I8,
    I16,
    I32,
    I64,
    accumulators,
    call,
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

CHUNK = 256  # quads
UNROLL = 2  # quads a turn of the loop; with four, LLVM reorders sums until registers run out
GROUP_QUADS = 8  # of a table's scales


def multiply_add_16(builder, a, b):
    """<16 x i16> · <16 x i16> → <8 x i32>, neighbours added: one instruction on AVX2, the same integers elsewhere."""
    if "avx2" in features():
        return call(builder, "llvm.x86.avx2.pmadd.wd", vector(I32, 8), [a, b])
    product = builder.mul(builder.sext(a, vector(I32, 16)), builder.sext(b, vector(I32, 16)))
    return builder.add(*(pick(builder, product, product, range(odd, 16, 2)) for odd in (0, 1)))


def dot_accumulate_8(builder, total, unsigned, signed):
    """total + groups of four products u8·s8 → <lanes x i32>: `vpdpbusd`, or the same integers without it."""
    from llvmlite.binding import llvm_version_info

    lanes = total.type.count
    name = {16: "llvm.x86.avx512.vpdpbusd.512", 8: "llvm.x86.avx512.vpdpbusd.256"}[lanes]
    native = "avx512vnni" in features() if lanes == 16 else {"avxvnni", "avx512vnni"} & features()
    if native:
        if llvm_version_info[0] < 22:  # where the operands are still declared as 32-bit lanes
            unsigned, signed = (builder.bitcast(value, vector(I32, lanes)) for value in (unsigned, signed))
        return call(builder, name, vector(I32, lanes), [total, unsigned, signed])
    return builder.call(_emulated_dot(builder.module, lanes), [total, unsigned, signed])


def _emulated_dot(module, lanes: int):
    """A function of the module that computes what `vpdpbusd` does. Not inlined: it is for checking, not for speed."""
    name = f"bigrun.dot_accumulate_8.{lanes}"
    if name in module.globals:
        return module.globals[name]
    bytes_, lane = vector(I8, 4 * lanes), vector(I32, lanes)
    function = ir.Function(module, ir.FunctionType(lane, [lane, bytes_, bytes_]), name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    builder = ir.IRBuilder(function.append_basic_block())
    total, unsigned, signed = function.args
    wide = vector(I32, 4 * lanes)
    product = builder.mul(builder.zext(unsigned, wide), builder.sext(signed, wide))
    for part in range(4):
        total = builder.add(total, pick(builder, product, product, range(part, 4 * lanes, 4)))
    builder.ret(total)
    return function


class Shape:
    """A tile's shape: how many activation rows, and how many of them and of weight vectors a pass holds in registers.

    vnni: lanes of a register, 16 or 8 (each a weight row); 0: portable, 4 weight rows a register, two lanes each.
    """

    def __init__(self, vnni: int, rows: int, pass_rows: int, pass_vectors: int):
        self.vnni, self.rows, self.pass_rows, self.pass_vectors = vnni, rows, pass_rows, pass_vectors
        self.lanes = vnni or 8
        self.vector_rows = vnni or 4  # weight rows of a vector
        self.item = I8 if vnni else I16
        self.one = rows <= 2  # a single token: bound by memory

    def passes(self):
        """(first activation row, first weight vector) of each pass."""
        vectors = range(0, 16 // self.vector_rows, self.pass_vectors)
        return [(row, v) for row in range(0, self.rows, self.pass_rows) for v in vectors]

    def weights(self, builder, w, quad, first: int):
        """The pass's weight vectors of one quad, as the multiplier takes them."""
        vectors = []
        for v in range(first, first + self.pass_vectors):
            size = 4 * self.vector_rows
            offset = builder.add(builder.mul(quad, I64(64)), I64(v * size))
            value = load(builder, builder.gep(w, [offset]), vector(I8, size))
            if self.vnni:
                vectors.append(builder.xor(value, ir.Constant(value.type, [-128] * size)))
            else:
                vectors.append(builder.sext(value, vector(I16, size)))
        return vectors

    def activation(self, builder, x, quad, row: int):
        """Four columns of one activation row, in every lane."""
        offset = builder.add(builder.mul(quad, I64(4 * self.rows)), I64(4 * row))
        scalar = I32 if self.vnni else I64
        spread = everywhere(builder, load(builder, builder.gep(x, [offset]), scalar), self.vnni or 4)
        return builder.bitcast(spread, vector(self.item, 4 * spread.type.count))

    def accumulate(self, builder, slot, weight, activation) -> None:
        total = builder.load(slot)
        if self.vnni:
            total = dot_accumulate_8(builder, total, weight, activation)
        else:
            total = builder.add(total, multiply_add_16(builder, weight, activation))
        builder.store(total, slot)

    def quad(self, builder, x, w, quad, row0: int, first: int, slots) -> None:
        """One quad of a pass."""
        weights = self.weights(builder, w, quad, first)
        for i in range(self.pass_rows):
            activation = self.activation(builder, x, quad, row0 + i)
            for j, weight in enumerate(weights):
                self.accumulate(builder, slots[i * self.pass_vectors + j], weight, activation)

    def by_row(self, builder, totals):
        """A pass's totals of one activation row → vectors of eight or sixteen weight rows, in parts that add up to them."""
        if self.vnni:
            return [[total] for total in totals]
        pairs = zip(totals[::2], totals[1::2], strict=True)
        return [[pick(builder, a, b, range(odd, 16, 2)) for odd in (0, 1)] for a, b in pairs]


def _pointer(context, builder, signature, args, i: int, kind: ir.Type):
    """Argument i, an array, and argument i + 1, an offset in its items: a pointer."""
    array = context.make_array(signature.args[i])(context, builder, args[i])
    return builder.bitcast(builder.gep(array.data, [args[i + 1]]), kind.as_pointer())


def make_tile(shape: Shape):
    """An intrinsic: sums[s + 16·i + j] += Σ over `quads` of activation row i · weight row j, in float64.

    x: packed activations from item `xo` on; w: a panel's weights from byte `wo` on. Meanwhile each turn of two quads
    (each quad, for a single token) asks for the cache line at byte `ahead` of w, which moves on by `stride` bytes.
    """

    @intrinsic
    def tile(typingctx, x, xo, w, wo, quads, sums, so, ahead, stride):
        def generate(context, builder, signature, args):
            x_at, w_at = (_pointer(context, builder, signature, args, i, k) for i, k in ((0, shape.item), (2, I8)))
            sums_at = _pointer(context, builder, signature, args, 5, F64)
            w_array = context.make_array(signature.args[2])(context, builder, args[2])
            next_at = builder.bitcast(builder.gep(w_array.data, [args[7]]), I8.as_pointer())
            turns, quads_, stride_ = builder.sdiv(args[4], I64(UNROLL)), args[4], args[8]
            for number, (row0, first) in enumerate(shape.passes()):
                slots = accumulators(builder, vector(I32, shape.lanes), shape.pass_rows * shape.pass_vectors)
                skipped = builder.mul(turns, I64(number))
                with loop(builder, quads_, UNROLL) as q:
                    turn = builder.add(builder.sdiv(q, I64(UNROLL)), skipped)
                    for u in range(UNROLL):
                        if shape.one or not u:
                            step = builder.add(q, I64(u)) if shape.one else turn
                            prefetch(builder, builder.gep(next_at, [builder.mul(step, stride_)]))
                        shape.quad(builder, x_at, w_at, builder.add(q, I64(u)), row0, first, slots)
                for i in range(shape.pass_rows):
                    mine = [builder.load(s) for s in slots[i * shape.pass_vectors : (i + 1) * shape.pass_vectors]]
                    at = 16 * (row0 + i) + first * shape.vector_rows
                    for parts in shape.by_row(builder, mine):
                        pointer, count = builder.gep(sums_at, [I64(at)]), parts[0].type.count
                        value = load(builder, pointer, vector(F64, count))
                        for part in parts:  # two lanes of extremes together would not fit 32 bits
                            value = builder.fadd(value, builder.sitofp(part, value.type))
                        store(builder, value, pointer)
                        at += count
            return context.get_dummy_value()

        integer = types.int64
        return types.void(x, integer, w, integer, integer, sums, integer, integer, integer), generate

    return tile


def make_table_tile(shape: Shape):
    """An intrinsic: sums[s + 16·i + j] (float32) = Σ over groups g of scale[g, j] · (Σ_k∈g v_i·w_j), an exact integer.

    scale: float16 bits [groups, 16] of the panel from item `co` on. The portable form's v, or 254·h + l of row pairs.
    """
    tokens = shape.rows // 2 if shape.vnni else shape.rows
    outputs = 16 // shape.vector_rows if shape.vnni else 2  # vectors of weight rows once lanes are complete
    out_lanes = 16 // outputs

    @intrinsic
    def tile(typingctx, x, xo, w, wo, groups, scale, co, sums, so, ahead):
        def generate(context, builder, signature, args):
            x_at, w_at = (_pointer(context, builder, signature, args, i, k) for i, k in ((0, shape.item), (2, I8)))
            scale_at = _pointer(context, builder, signature, args, 5, I16)
            sums_at = _pointer(context, builder, signature, args, 7, F32)
            kind = vector(F32, out_lanes)
            floats = accumulators(builder, kind, tokens * outputs)
            with loop(builder, args[4]) as g:
                start = builder.mul(g, I64(GROUP_QUADS))
                base = builder.mul(start, I64(64))
                for line in range(GROUP_QUADS):
                    prefetch(builder, builder.gep(w_at, [builder.add(builder.add(base, args[9]), I64(64 * line))]))
                units = [
                    halves_to_floats(
                        builder,
                        load(builder, builder.gep(scale_at, [builder.add(builder.mul(g, I64(16)), I64(o * out_lanes))]),
                             vector(I16, out_lanes)),
                    )
                    for o in range(outputs)
                ]  # fmt: skip
                for row0, first in shape.passes():
                    slots = accumulators(builder, vector(I32, shape.lanes), shape.pass_rows * shape.pass_vectors)
                    for u in range(GROUP_QUADS):
                        shape.quad(builder, x_at, w_at, builder.add(start, I64(u)), row0, first, slots)
                    rows = []
                    for i in range(shape.pass_rows):
                        mine = [builder.load(s) for s in slots[i * shape.pass_vectors : (i + 1) * shape.pass_vectors]]
                        if shape.vnni:  # take the weights' offset off: 128·Σx of the group
                            ones = ir.Constant(vector(I8, 4 * shape.lanes), [1] * (4 * shape.lanes))
                            offset = ir.Constant(vector(I32, shape.lanes), None)
                            for u in range(GROUP_QUADS):
                                activation = shape.activation(builder, x_at, builder.add(start, I64(u)), row0 + i)
                                offset = dot_accumulate_8(builder, offset, ones, activation)
                            shift = ir.Constant(offset.type, [7] * shape.lanes)
                            mine = [builder.sub(value, builder.shl(offset, shift)) for value in mine]
                        parts = shape.by_row(builder, mine)  # of 32 columns: far from what 32 bits hold
                        rows.append([p[0] if len(p) == 1 else builder.add(*p) for p in parts])
                    if shape.vnni:  # S = 254·H + L
                        fine = ir.Constant(vector(I32, shape.lanes), [254] * shape.lanes)
                        rows = [
                            [builder.add(builder.mul(h, fine), low) for h, low in zip(high, lows, strict=True)]
                            for high, lows in zip(rows[::2], rows[1::2], strict=True)
                        ]
                    token0 = row0 // 2 if shape.vnni else row0
                    for i, values in enumerate(rows):
                        for o, value in enumerate(values, first * shape.vector_rows // out_lanes):
                            slot = floats[(token0 + i) * outputs + o]
                            total = multiply_add(builder, builder.sitofp(value, kind), units[o], builder.load(slot))
                            builder.store(total, slot)
            for i, slot in enumerate(floats):
                store(builder, builder.load(slot), builder.gep(sums_at, [I64(i * out_lanes)]))
            return context.get_dummy_value()

        integer = types.int64
        return types.void(x, integer, w, integer, integer, scale, integer, sums, integer, integer), generate

    return tile


# Activation rows of a full panel, and of a single token: the packed activations' own shape (planes.py).
PORTABLE, PORTABLE_ONE = Shape(0, 4, 4, 2), Shape(0, 1, 1, 4)
VNNI512, VNNI512_ONE = Shape(16, 8, 8, 1), Shape(16, 2, 2, 1)
VNNI256, VNNI256_ONE = Shape(8, 8, 4, 2), Shape(8, 2, 2, 2)
portable_4, portable_1 = make_tile(PORTABLE), make_tile(PORTABLE_ONE)
vnni512_4, vnni512_1 = make_tile(VNNI512), make_tile(VNNI512_ONE)
vnni256_4, vnni256_1 = make_tile(VNNI256), make_tile(VNNI256_ONE)
portable_table_4, portable_table_1 = make_table_tile(PORTABLE), make_table_tile(PORTABLE_ONE)
vnni512_table_4, vnni512_table_1 = make_table_tile(VNNI512), make_table_tile(VNNI512_ONE)
vnni256_table_4, vnni256_table_1 = make_table_tile(VNNI256), make_table_tile(VNNI256_ONE)

"""Integer dot products in register tiles, exact to the bit: what `vpmaddwd` and `vpdpbusd` are for.

Two forms compute the same integers:
  portable  the activation as one int16, v = 254·h + l (|v| ≤ 32,385), weights widened in registers, `vpmaddwd`;
            exact mode costs what plain int8 costs. int32 lanes hold 4,096 products; longer sums go through int64.
  vnni      the activation as two int8 planes h and l, weights offset to unsigned in registers, `vpdpbusd`; the offset
            is taken off at the end: 128·Σx of each row and plane, the same for all outputs.
int32 lanes are added up in float64, where integers are exact below 2^53, so the answer does not depend on form, tile,
batch or threads.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from bigrun_kernels.cpu.isa import features

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F32, F64 = ir.FloatType(), ir.DoubleType()
# Columns that int32 lanes can hold. vpmaddwd: 256 steps of two products below 127·32,385; vpdpbusd: 255·127 four at a time.
PORTABLE_CHUNK = 4096
VNNI_CHUNK = 65536
LINE = 64  # bytes of a cache line; rows are padded to it
AHEAD = 2048  # bytes between what is read and what is asked for: some lines' latency at the speed of memory


def vector(kind: ir.Type, lanes: int) -> ir.VectorType:
    return ir.VectorType(kind, lanes)


def load(builder, array, index, kind: ir.Type, lanes: int):
    """Unaligned load of `lanes` items from element `index` of an array's data."""
    pointer = builder.gep(array.data, [index])
    value = builder.load(builder.bitcast(pointer, vector(kind, lanes).as_pointer()))
    value.align = 1
    return value


def prefetch(builder, array, index) -> None:
    """Ask for the 64 bytes around element `index` of an int8 array, which may lie beyond its end."""
    pointer = builder.bitcast(builder.gep(array.data, [index]), I8.as_pointer())
    kind = ir.FunctionType(ir.VoidType(), [pointer.type, I32, I32, I32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [pointer, I32(0), I32(3), I32(1)])


def call(builder, name: str, result: ir.Type, args):
    """Call an LLVM intrinsic by its full name (llvmlite cannot spell the vector ones)."""
    kind = ir.FunctionType(result, [arg.type for arg in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)


def multiply_add_16(builder, a, b):
    """<16 x i16> · <16 x i16> → <8 x i32>, neighbours added: one instruction on AVX2, the same integers elsewhere."""
    if "avx2" in features():
        return call(builder, "llvm.x86.avx2.pmadd.wd", vector(I32, 8), [a, b])
    product = builder.mul(builder.sext(a, vector(I32, 16)), builder.sext(b, vector(I32, 16)))
    halves = [
        builder.shuffle_vector(product, product, ir.Constant(vector(I32, 8), list(range(odd, 16, 2)))) for odd in (0, 1)
    ]
    return builder.add(*halves)


def _dot_accumulate_8(builder, total, unsigned, signed, lanes: int):
    """total + groups of four products u8·s8 → <lanes x i32>: `vpdpbusd`, or the same integers without it."""
    from llvmlite.binding import llvm_version_info

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
        every_fourth = ir.Constant(lane, list(range(part, 4 * lanes, 4)))
        total = builder.add(total, builder.shuffle_vector(product, product, every_fourth))
    builder.ret(total)
    return function


def _to_double(builder, value, lanes: int):
    """<lanes x i32> → <4 x double>, neighbouring halves added: exact, as no sum reaches 2^53."""
    double = vector(F64, 4)
    parts = []
    for start in range(0, lanes, 4):
        pick = ir.Constant(vector(I32, 4), list(range(start, start + 4)))
        parts.append(builder.sitofp(builder.shuffle_vector(value, value, pick), double))
    while len(parts) > 1:
        parts = [builder.fadd(parts[i], parts[i + 1]) for i in range(0, len(parts), 2)]
    return parts[0]


def _sums_of_four(builder, a, b, c, d):
    """<4 x double>: the sum of the lanes of each."""

    def halves(left, right, even, odd):
        picks = (ir.Constant(vector(I32, 4), lanes) for lanes in (even, odd))
        return builder.fadd(*(builder.shuffle_vector(left, right, pick) for pick in picks))

    first, second = (halves(x, y, [0, 4, 2, 6], [1, 5, 3, 7]) for x, y in ((a, b), (c, d)))
    return halves(first, second, [0, 1, 4, 5], [2, 3, 6, 7])


def _make_tile(rows: int, columns: int, vnni: int):
    """An intrinsic: sums[(p·columns + j)·rows + i] = Σ_k of x[m + i, (p,) k] · w[n + j, k] over all of w's columns.

    portable (vnni = 0): x int16 [M, Kp], one sum a pair. vnni = 16 or 8 lanes: x int8 [M, 2·Kp], the planes h and l
    side by side, two sums a pair, still with the weights' offset in. Kp is a multiple of 64; sums is float64, exact.
    """
    planes = 2 if vnni else 1
    step = 4 * vnni if vnni else 16
    lanes = vnni or 8
    chunk = VNNI_CHUNK if vnni else PORTABLE_CHUNK
    kind = vector(I32, lanes)

    def add_products(builder, x_array, w_array, x_rows, w_rows, width, k, slots):
        """One step along K of every pair of the tile."""
        weights = [load(builder, w_array, builder.add(row, k), I8, step) for row in w_rows]
        if vnni:
            weights = [builder.xor(v, ir.Constant(v.type, [-128] * step)) for v in weights]
        else:
            weights = [builder.sext(v, vector(I16, step)) for v in weights]
        for plane in range(planes):
            for i, row in enumerate(x_rows):
                where = builder.add(row, k)
                if plane:
                    where = builder.add(where, width)
                activation = load(builder, x_array, where, I8 if vnni else I16, step)
                for j, weight in enumerate(weights):
                    slot = slots[(plane * columns + j) * rows + i]
                    total = builder.load(slot)
                    if vnni:
                        total = _dot_accumulate_8(builder, total, weight, activation, lanes)
                    else:
                        total = builder.add(total, multiply_add_16(builder, activation, weight))
                    builder.store(total, slot)

    @intrinsic
    def tile(typingctx, x, m, w, n, sums):
        def generate(context, builder, signature, args):
            x_array, w_array, out = (
                context.make_array(signature.args[i])(context, builder, args[i]) for i in (0, 2, 4)
            )
            x_width = cgutils.unpack_tuple(builder, x_array.shape)[1]
            width = cgutils.unpack_tuple(builder, w_array.shape)[1]
            zero, nought, none = ir.Constant(kind, None), I64(0), ir.Constant(vector(F64, 4), None)
            slots = [cgutils.alloca_once_value(builder, zero) for _ in range(planes * rows * columns)]
            totals = [cgutils.alloca_once_value(builder, none) for _ in slots]
            x_rows = [builder.mul(builder.add(args[1], I64(i)), x_width) for i in range(rows)]
            w_rows = [builder.mul(builder.add(args[3], I64(j)), width) for j in range(columns)]
            for total in totals:
                builder.store(none, total)
            with cgutils.for_range_slice(builder, nought, width, I64(chunk), I64) as (start, _):
                for slot in slots:
                    builder.store(zero, slot)
                end = builder.add(start, I64(chunk))
                end = builder.select(builder.icmp_signed("<", end, width), end, width)
                with cgutils.for_range_slice(builder, start, end, I64(LINE), I64) as (k, _):
                    if rows == 1:  # a single row of x is bound by memory: ask for weights before they are needed
                        for row in w_rows:
                            prefetch(builder, w_array, builder.add(builder.add(row, k), I64(AHEAD)))
                    for part in range(0, LINE, step):
                        add_products(builder, x_array, w_array, x_rows, w_rows, width, builder.add(k, I64(part)), slots)
                for slot, total in zip(slots, totals, strict=True):
                    wide = _to_double(builder, builder.load(slot), lanes)
                    builder.store(builder.fadd(builder.load(total), wide), total)
            found = [builder.load(total) for total in totals]
            for i in range(0, len(found), 4):
                four = (found[i : i + 4] + [none] * 4)[:4]
                values = _sums_of_four(builder, *four)
                pointer = builder.gep(out.data, [I64(i)])
                if len(found) - i >= 4:
                    store = builder.store(values, builder.bitcast(pointer, values.type.as_pointer()))
                    store.align = 8
                else:
                    for lane in range(len(found) - i):
                        value = builder.extract_element(values, I32(lane))
                        builder.store(value, builder.gep(out.data, [I64(i + lane)]))
            return context.get_dummy_value()

        return types.void(x, types.int64, w, types.int64, sums), generate

    return tile


portable_1x1, portable_1x4, portable_4x2 = _make_tile(1, 1, 0), _make_tile(1, 4, 0), _make_tile(4, 2, 0)
vnni512_1x1, vnni512_1x4, vnni512_4x2 = _make_tile(1, 1, 16), _make_tile(1, 4, 16), _make_tile(4, 2, 16)
vnni256_1x1, vnni256_1x4, vnni256_4x2 = _make_tile(1, 1, 8), _make_tile(1, 4, 8), _make_tile(4, 2, 8)

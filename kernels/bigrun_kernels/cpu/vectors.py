"""Vectors in LLVM's builder, for the intrinsics beside this file: what llvmlite cannot spell by itself."""

from llvmlite import ir
from numba.core import cgutils

from bigrun_kernels.cpu.isa import features

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F32, F64 = ir.FloatType(), ir.DoubleType()


def vector(kind: ir.Type, lanes: int) -> ir.VectorType:
    return ir.VectorType(kind, lanes)


def call(builder, name: str, result: ir.Type, args):
    """Call an LLVM intrinsic by its full name."""
    kind = ir.FunctionType(result, [arg.type for arg in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)


def load(builder, pointer, kind: ir.Type):
    """Unaligned load of a vector (or scalar) `kind`."""
    value = builder.load(builder.bitcast(pointer, kind.as_pointer()))
    value.align = 1
    return value


def store(builder, value, pointer) -> None:
    """Unaligned store."""
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer())).align = 1


def everywhere(builder, value, lanes: int):
    """<lanes x> of one scalar."""
    one = builder.insert_element(ir.Constant(vector(value.type, lanes), ir.Undefined), value, I32(0))
    return builder.shuffle_vector(one, one, ir.Constant(vector(I32, lanes), None))


def pick(builder, a, b, indices):
    """The lanes of a and b, side by side, with these indices."""
    return builder.shuffle_vector(a, b, ir.Constant(vector(I32, len(indices)), list(indices)))


def multiply_add(builder, a, b, c):
    """a·b + c, of float vectors."""
    return call(builder, f"llvm.fmuladd.v{a.type.count}f32", a.type, [a, b, c])


def prefetch(builder, pointer) -> None:
    """Ask for the 64 bytes around a pointer, which may lie beyond an array's end."""
    kind = ir.FunctionType(ir.VoidType(), [pointer.type, I32, I32, I32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [pointer, I32(0), I32(3), I32(1)])


def halves_to_floats(builder, value):
    """<n x i16> bits of finite float16 → <n x float>."""
    lanes = value.type.count
    wide = vector(F32, lanes)
    if "f16c" in features():
        return builder.fpext(builder.bitcast(value, vector(ir.HalfType(), lanes)), wide)
    # A finite half is a float of smaller exponents, times 2^112.
    bits = vector(I32, lanes)
    value = builder.zext(value, bits)
    constant = lambda item: ir.Constant(bits, [item] * lanes)  # noqa: E731
    magnitude = builder.shl(builder.and_(value, constant(0x7FFF)), constant(13))
    scaled = builder.fmul(builder.bitcast(magnitude, wide), ir.Constant(wide, [2.0**112] * lanes))
    sign = builder.shl(builder.and_(value, constant(0x8000)), constant(16))
    return builder.bitcast(builder.or_(builder.bitcast(scaled, bits), sign), wide)


def loop(builder, stop, step: int = 1):
    """`with loop(...) as index`: int64 from 0 to stop."""
    return _Loop(builder, stop, step)


class _Loop:
    def __init__(self, builder, stop, step):
        self.inner = cgutils.for_range_slice(builder, I64(0), stop, I64(step), I64)

    def __enter__(self):
        return self.inner.__enter__()[0]

    def __exit__(self, *what):
        return self.inner.__exit__(*what)


def accumulators(builder, kind: ir.Type, count: int):
    """`count` zeroed slots of a vector kind, which LLVM keeps in registers."""
    zero = ir.Constant(kind, None)
    slots = [cgutils.alloca_once_value(builder, zero) for _ in range(count)]
    for slot in slots:
        builder.store(zero, slot)
    return slots

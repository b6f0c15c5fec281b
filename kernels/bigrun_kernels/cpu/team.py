"""Threads that go through a list of phases together, inside one parallel region.

Each phase has so many tasks. A thread claims tasks until none is left, then waits until those claimed by others are done.
No thread ever waits for one that has not started, so nothing depends on how many really run, or when: a thread that comes
late, or never, finds the work done. `counters` holds two numbers a phase, claimed and done, in cache lines of their own,
and the time when it ended.
"""

from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import get_num_threads, prange, typeof, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from bigrun_kernels.cpu.compile import kernel, parallel_kernel
from bigrun_kernels.cpu.isa import features
from bigrun_kernels.cpu.vectors import prefetch

SLOTS = 16  # int64 of a phase: claimed at 0, when it ended at 4, done at 8
AHEAD = 1 << 17  # bytes that waiting threads fetch at most
SPINS = 4000  # looks at a counter before the core is offered to others


def _slot(context, builder, signature, args):
    return builder.gep(context.make_array(signature.args[0])(context, builder, args[0]).data, [args[1]])


@intrinsic
def fetch_add(typingctx, array, index, value):
    """array[index] += value as one step, seen by all threads; returns what was there before. int64."""

    def generate(context, builder, signature, args):
        return builder.atomic_rmw("add", _slot(context, builder, signature, args), args[2], "acq_rel")

    return types.int64(array, types.int64, types.int64), generate


@intrinsic
def read(typingctx, array, index):
    """array[index] as other threads left it. int64."""

    def generate(context, builder, signature, args):
        return builder.load_atomic(_slot(context, builder, signature, args), "acquire", 8)

    return types.int64(array, types.int64), generate


@intrinsic
def _pause(typingctx):
    """Tell the core that this is a waiting loop."""

    def generate(context, builder, signature, args):
        if "sse2" in features():
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def _give_way(typingctx):
    """Let another thread have this core (POSIX sched_yield)."""

    def generate(context, builder, signature, args):
        kind = ir.FunctionType(ir.IntType(32), [])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def array_at(typingctx, pointers, index, size, like):
    """A flat array of `size` items of like's dtype at the address pointers[index]; whoever holds the table keeps it alive."""
    result = types.Array(like.dtype, 1, "C")

    def generate(context, builder, signature, args):
        table = context.make_array(signature.args[0])(context, builder, args[0])
        array = context.make_array(result)(context, builder)
        slot = builder.bitcast(builder.gep(table.data, [args[1]]), array.data.type.as_pointer())
        item = context.get_abi_sizeof(context.get_data_type(like.dtype))
        size, itemsize = args[2], ir.IntType(64)(item)
        populate_array(array, builder.load(slot), [size], [itemsize], itemsize, None)
        return array._getvalue()

    return result(pointers, types.int64, types.int64, like), generate


@intrinsic
def cycles(typingctx):
    """The time stamp counter: how benchmarks tell where a block's time goes."""

    def generate(context, builder, signature, args):
        kind = ir.FunctionType(ir.IntType(64), [])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.readcyclecounter"), [])

    return types.int64(), generate


@intrinsic
def matrix_at(typingctx, pointers, index, rows, columns, like):
    """A [rows, columns] array of like's dtype at the address pointers[index]."""
    result = types.Array(like.dtype, 2, "C")

    def generate(context, builder, signature, args):
        table = context.make_array(signature.args[0])(context, builder, args[0])
        array = context.make_array(result)(context, builder)
        slot = builder.bitcast(builder.gep(table.data, [args[1]]), array.data.type.as_pointer())
        itemsize = ir.IntType(64)(context.get_abi_sizeof(context.get_data_type(like.dtype)))
        strides = [builder.mul(args[3], itemsize), itemsize]
        populate_array(array, builder.load(slot), [args[2], args[3]], strides, itemsize, None)
        return array._getvalue()

    return result(pointers, types.int64, types.int64, types.int64, like), generate


@intrinsic
def _call(typingctx, address, table):
    """Calls a compiled kernel of (table, array, array) through a function pointer, so that it is not compiled again into its
    caller. The empty arrays only fix its dtypes."""
    kinds = [table, table, table]

    def generate(context, builder, signature, args):
        kind = context.call_conv.get_function_type(types.none, kinds)
        function = builder.inttoptr(args[0], kind.as_pointer())
        nothing = ir.Constant(args[1].type, None)
        context.call_conv.call_function(builder, function, types.none, kinds, [args[1], nothing, nothing])
        return context.get_dummy_value()

    return types.void(types.int64, table), generate


@intrinsic
def call_op(typingctx, address, table, state):
    """Calls a compiled kernel of (table, state, array, array) through a function pointer, as `_call` does."""
    kinds = [table, state, table, table]

    def generate(context, builder, signature, args):
        kind = context.call_conv.get_function_type(types.none, kinds)
        function = builder.inttoptr(args[0], kind.as_pointer())
        nothing = ir.Constant(args[1].type, None)
        context.call_conv.call_function(builder, function, types.none, kinds, [args[1], args[2], nothing, nothing])
        return context.get_dummy_value()

    return types.void(types.int64, table, state), generate


@parallel_kernel
def _launch(address, table, team):
    for _ in prange(team):
        _call(address, table)


@cache
def address_of(compilable, *dtypes):
    """The address of a kernel compiled for flat arrays of these dtypes, which stays where it is."""
    kinds = tuple(typeof(np.empty(0, dtype)) for dtype in dtypes)
    compilable.compile(kinds)
    compiled = compilable.overloads[kinds]
    return compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)


def table_of(*items: Any) -> np.ndarray:
    """int64: whole numbers as they are, and the address of each array; whoever launches keeps the arrays."""
    return np.array([item.ctypes.data if isinstance(item, np.ndarray) else int(item) for item in items], np.int64)


def launch(participant, table: np.ndarray, first: np.ndarray, second: np.ndarray) -> None:
    """Each thread of this thread's pool calls participant(table, first, second), a kernel without a result.

    table: int64, where the participant finds everything; first, second: empty flat arrays, for their dtypes.
    """
    _launch(address_of(participant, np.dtype(np.int64), first.dtype, second.dtype), table, get_num_threads())


@kernel
def claim(counters, phase, step):
    """The first of the next `step` tasks of a phase; beyond its last task when none is left."""
    return fetch_add(counters, phase * SLOTS, step)


@intrinsic
def _ask(typingctx, pointers, index, offset):
    """Prefetch the line at byte `offset` from the address pointers[index], which may lie anywhere."""

    def generate(context, builder, signature, args):
        table = context.make_array(signature.args[0])(context, builder, args[0])
        byte = ir.IntType(8).as_pointer()
        start = builder.load(builder.bitcast(builder.gep(table.data, [args[1]]), byte.as_pointer()))
        prefetch(builder, builder.gep(start, [args[2]]))
        return context.get_dummy_value()

    return types.void(pointers, types.int64, types.int64), generate


@kernel
def share(counters, phase, total, most, team):
    """How many tasks to claim next: many at first, few towards the end, so that all threads end together."""
    return max(1, min(most, (total - read(counters, phase * SLOTS)) // (2 * team)))


@kernel
def finish(counters, phase, done, total, table, following):
    """Report `done` tasks of a phase, then wait until all `total` are; returns the next phase. Whoever waits meanwhile fetches
    the beginning of what is read next, at the address table[following], unless that is 0."""
    at, asked = phase * SLOTS + 8, 0
    if done:
        fetch_add(counters, at, done)
    spins = 0
    while read(counters, at) < total:
        spins += 1
        if following and asked < AHEAD:
            _ask(table, following, asked)
            asked += 64
        elif spins < SPINS:
            _pause()
        else:
            _give_way()
    counters[phase * SLOTS + 4] = cycles()
    return phase + 1

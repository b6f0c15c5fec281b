"""Warming up: a model of a few thousand weights and the same kinds as the real one goes the whole way, from rows to
logits, so that every kernel the real one will call is compiled (the first time ever) or loaded (every time after).

Memory measured after this is the model's own, and a first run can say beforehand why it takes its time.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bigrun.checkpoint.base import Limits, Rows, TensorInfo
from bigrun.checkpoint.tensor_map import TensorMap, map_tensors, validate
from bigrun.devices.host_memory import HostMemory
from bigrun.devices.make_rig import RigOptions, make_rig
from bigrun.execute.engine import Arithmetic
from bigrun.execute.executor import Executor
from bigrun.loading.loader import LoadedPart, load
from bigrun.model.families.registry import BY_NAME
from bigrun.model.source import Dialect
from bigrun.model.spec import ModelSpec
from bigrun.model.storage import Storage
from bigrun.planning.ledger import Ledger
from bigrun.planning.options import PlanOptions
from bigrun.planning.plan import Plan
from bigrun.planning.planner import make_plan
from bigrun.progress import compiling
from bigrun_kernels.cpu.ops import CpuOps

CONTEXT, TOKENS, WIDTH = 16, 5, 64


class TinyCheckpoint:
    """Ones, in the dtype (and, for Numba, the writability) of the rows of a real checkpoint."""

    where = format = "warm-up"
    dialect: Dialect = "hf"
    paths = ()
    folder = Path()
    metadata: Mapping[str, Any] | None = None

    def __init__(self, spec: ModelSpec, like: Rows):
        self.like, self.limits = like, Limits(0)
        self.notes: list[str] = []
        self.config: Mapping[str, Any] = {}
        sources = [
            s for p in spec.parts for group in BY_NAME[spec.family].tensors(spec, p.name, "hf").values() for s in group
        ]
        self.tensors: Mapping[str, TensorInfo] = {s.name: TensorInfo("", s.shape, 0, True, self.where) for s in sources}

    def rows(self, name: str, start: int, stop: int) -> Rows:
        values = np.full((stop - start, *self.tensors[name].shape[1:]), 1, self.like.values.dtype)
        values.flags.writeable = self.like.values.flags.writeable
        if self.like.blocks is None or values.ndim < 2:
            return Rows(values, self.like.is_bfloat)
        return Rows(values, False, np.ones((1, 1), np.float32), (0, *values.shape))

    def companions(self) -> Mapping[str, bytes]:
        return {}

    def ahead(self, name: str, start: int, stop: int) -> None:
        """Nothing to read ahead."""

    def done(self, name: str, start: int, stop: int, drop: bool = False) -> None:
        """Nothing to release."""


def tiny(spec: ModelSpec) -> ModelSpec:
    """A model of one small block of the same kind: the same ops, dtypes and flags."""
    block = spec.blocks[0]
    rope = replace(block.rope, dims=16, kind="default", factors=()) if block.rope else None
    kv_heads = 4 if block.kv_heads == block.heads else 2
    small = replace(
        block, window=0, hidden=WIDTH, heads=4, kv_heads=kv_heads, head_dim=16, intermediate=WIDTH, rope=rope
    )
    positions = CONTEXT + spec.position_offset if spec.position_rows else 0
    return replace(spec, vocab=WIDTH, hidden=WIDTH, blocks=(small,), context_limit=CONTEXT, position_rows=positions)


@cache
def _warm(
    spec: ModelSpec, options: PlanOptions, is_bfloat: bool, dtype: str, writeable: bool, ops: CpuOps, how: Arithmetic
) -> None:
    plan, memories, parts = _load(spec, options, is_bfloat, dtype, writeable)
    executor = Executor(spec, plan, parts, memories, ops, how)
    executor.forward({0: range(TOKENS)})
    executor.forward({0: [1]})


def _load(
    spec: ModelSpec, options: PlanOptions, is_bfloat: bool, dtype: str, writeable: bool
) -> tuple[Plan, dict[str, HostMemory], list[LoadedPart]]:
    """A tiny model's parts, converted from rows of this kind."""
    values = np.zeros(1, dtype)
    values.flags.writeable = writeable
    plan = make_plan(spec, make_rig(RigOptions("none", "1GB")), options)
    memories = {"cpu": HostMemory("cpu", 10**9)}
    blocks = np.ones((1, 1), np.float32) if values.dtype == np.uint8 else None
    source = validate(map_tensors(TinyCheckpoint(spec, Rows(values, is_bfloat, blocks)), spec))
    return plan, memories, list(load(spec, source, plan, Ledger(spec, options).layouts, memories))


def _kinds(tensor_map: TensorMap) -> set[tuple[str, bool, bool]]:
    """The kinds of rows that a model is made from, (dtype, bfloat16?, writable?): each has kernels of its own."""
    checkpoint = tensor_map.checkpoint
    used = [source.name for _, sources in tensor_map.parts for group in sources.values() for source in group]
    infos = {name: checkpoint.tensors[name] for name in used}
    names = {(info.dtype, len(info.shape) > 1): name for name, info in infos.items()}
    rows = [checkpoint.rows(name, 0, 1) for name in names.values()]
    return {(some.values.dtype.str, some.is_bfloat, some.values.flags.writeable) for some in rows}


def warm_up(
    spec: ModelSpec, source: TensorMap | None, options: PlanOptions, ops: CpuOps, how: Arithmetic, shown: bool
) -> None:
    """Compile or load every kernel that this model needs; says so on standard error if it will take long. Without a
    source (of a conversion) nothing will be converted."""
    storage = replace(options.storage, skip=())
    small = _small(options, storage)
    kinds = {("<f4", False, True)} if source is None else _kinds(source)
    with compiling(shown):
        for dtype, is_bfloat, writeable in kinds:
            _warm(tiny(spec), small, is_bfloat, dtype, writeable, ops, how)
        if options.storage.skip:  # the linears kept in 16 bits have kernels of their own
            _warm(tiny(spec), replace(small, storage=replace(storage, skip=("qkv",))), False, "<f4", True, ops, how)


def warm_conversion(spec: ModelSpec, source: TensorMap, options: PlanOptions, shown: bool) -> None:
    """Compile or load the kernels that converting this model takes, and no other; says so as `warm_up` does."""
    small = _small(options, replace(options.storage, skip=()))
    with compiling(shown, ("quantise", "team")):
        for dtype, is_bfloat, writeable in _kinds(source):
            _load(tiny(spec), small, is_bfloat, dtype, writeable)


def _small(options: PlanOptions, storage: Storage) -> PlanOptions:
    return replace(options, context=CONTEXT, batch=1, storage=storage, prompt=None)


def warm_gpus(executor: Executor) -> None:
    """Prompts of a few lengths and three tokens through everything: kernels are compiled or loaded, and the graphs of decode
    captured, before the first request. (Long prompts only where no block is the host's, which would take seconds for them.)
    An emulated GPU has neither."""
    from bigrun.devices.gpu_memory import emulated

    if emulated():
        return
    plan, vocab = executor.plan, executor.spec.vocab
    limit = plan.context_tokens
    longest = plan.prefill_chunk_tokens if all(p.decode_on != "cpu" for p in plan.blocks) else 17
    for count in sorted({min(count, limit) for count in (2, 17, 65, longest) if count <= longest}):
        executor.clear(0)
        executor.forward({0: [i % vocab for i in range(count)]})
    for sequences in sorted({1, plan.batch}):
        for s in range(sequences):
            executor.clear(s)
            executor.forward({s: [0]})
        for _ in range(min(3, limit - 1)):
            executor.forward({s: [0] for s in range(sequences)})
        for s in range(sequences):
            executor.clear(s)

"""read → int8 → place, part by part. A generator: the run can show progress, and stop, between any two parts."""

import fnmatch
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bigrun.checkpoint.base import Checkpoint, Rows, TensorInfo
from bigrun.errors import CheckpointError
from bigrun.memory import HostMemory
from bigrun.model.families import BY_NAME
from bigrun.model.layout import Layout
from bigrun.model.source import Source
from bigrun.model.spec import ModelSpec, Part
from bigrun.planning.plan import Plan

SMALL = 1 << 18  # entries that NumPy copies about as fast
CHUNK_BYTES = 16 * 2**20  # of source rows converted at a time
# What published checkpoints hold beside a model's weights: tables that the code computes anew.
IGNORED = ("*.rotary_emb.inv_freq", "*.attn.bias", "*.attn.masked_bias", "*.attention.masked_bias", "rope_freqs.weight")


@dataclass(frozen=True)
class LoadedPart:
    """A part where it lives: its arrays by their stored names (layout.py)."""

    part: Part
    layout: Layout
    device: str
    arrays: Mapping[str, np.ndarray]
    read_bytes: int


def load(
    checkpoint: Checkpoint,
    spec: ModelSpec,
    plan: Plan,
    layouts: Mapping[str, Layout],
    memories: Mapping[str, HostMemory],
) -> Iterator[LoadedPart]:
    """Load every part to the device of the plan, converted as it arrives, in the order of execution.

    Peak host memory is the parts loaded so far and the current one in their stored form, and CHUNK_BYTES of source rows,
    twice where they are dequantised: the 16-bit form of a whole layer never exists. CheckpointError names the tensor
    and the file: missing, of another shape or dtype, with NaN or inf, or left over without a place in the model.
    """
    named = _names(checkpoint, spec)
    taken: set[str] = set()
    work = [(part, _sources(named, checkpoint, spec, part)) for part in spec.parts]
    for part, sources in work:  # everything that headers can tell is checked before any weight is read
        for tensor in part.tensors:
            for source in sources[tensor.name]:
                _check(checkpoint, source)
                taken.add(source.name)
    _check_nothing_left(checkpoint, spec, taken)
    for part, sources in work:
        placement = plan.placement(part.name)
        layout = layouts[part.name]
        arrays = memories[placement.stored_on].part(layout, part.name) if part.tensors else {}
        read = 0
        for tensor in part.tensors:
            first = 0
            for source in sources[tensor.name]:
                _convert(checkpoint, source, first, tensor.name, layout, arrays)
                first += source.shape[0]
                read += checkpoint.tensors[source.name].nbytes
        yield LoadedPart(part, layout, placement.stored_on, arrays, read)


def _names(checkpoint: Checkpoint, spec: ModelSpec) -> str:
    """The prefix that this checkpoint's names lack: published ones differ in whether they carry the model class's."""
    if checkpoint.dialect != "hf":
        return ""
    for prefix in BY_NAME[spec.family].prefixes:
        wanted = BY_NAME[spec.family].tensors(spec, "embed", "hf")["table"][0].name
        if wanted.removeprefix(prefix) in checkpoint.tensors and not (prefix and wanted in checkpoint.tensors):
            return prefix
    return ""


def _sources(prefix: str, checkpoint: Checkpoint, spec: ModelSpec, part: Part) -> dict[str, tuple[Source, ...]]:
    found = BY_NAME[spec.family].tensors(spec, part.name, checkpoint.dialect)
    if not prefix:
        return found
    return {
        name: tuple(Source(s.name.removeprefix(prefix), s.shape, s.grid, s.axes) for s in sources)
        for name, sources in found.items()
    }


def _check(checkpoint: Checkpoint, source: Source) -> TensorInfo:
    info = checkpoint.tensors.get(source.name)
    if info is None:
        raise CheckpointError(f"{checkpoint.where}: tensor {source.name} is missing")
    if info.shape != source.shape:
        raise CheckpointError(
            f"{info.where}: tensor {source.name} has shape {list(info.shape)}, the configuration says {list(source.shape)}"
        )
    if not info.readable:
        raise CheckpointError(f"{info.where}: tensor {source.name} is {info.dtype}, which bigrun does not read yet")
    return info


def _check_nothing_left(checkpoint: Checkpoint, spec: ModelSpec, taken: set[str]) -> None:
    for name in checkpoint.tensors:
        tied = spec.tied and name in ("lm_head.weight", "output.weight")
        if name not in taken and not tied and not any(fnmatch.fnmatch(name, pattern) for pattern in IGNORED):
            where = checkpoint.tensors[name].where
            raise CheckpointError(
                f"{where}: tensor {name[:100]} has no place in a {spec.family} model as its configuration describes it"
            )


def _convert(
    checkpoint: Checkpoint, source: Source, first: int, name: str, layout: Layout, arrays: Mapping[str, np.ndarray]
) -> None:
    """One source into its rows of a canonical tensor, from row `first` on, a chunk at a time."""
    rows, info = source.shape[0], checkpoint.tensors[source.name]
    if rows == 0:
        return
    destinations = source.destinations() + first
    # float32 is the largest that a row becomes on its way
    step = max(1, CHUNK_BYTES // max(1, 4 * int(np.prod(source.shape[1:], dtype=np.int64))))
    bad = 0
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        bad += _store(checkpoint.rows(source.name, start, stop), destinations[start:stop], name, layout, arrays)
    if bad:
        # a table's constants are float16, which end at 65,504: 127 of them at 8 million
        limit = " (or an entry beyond 8 million)" if name == "table" and layout.by_name[name].dtype == "int8" else ""
        raise CheckpointError(f"{info.where}: tensor {source.name} holds NaN or inf in {bad} of its {rows} rows{limit}")


def _store(rows: Rows, where: np.ndarray, name: str, layout: Layout, arrays: Mapping[str, np.ndarray]) -> int:
    """Convert rows into the stored form; returns how many are not finite."""
    from bigrun_kernels.cpu import quantise

    values: Any = rows.values if rows.values.ndim == 2 else rows.values[:, None]
    target, stored = arrays[name], layout.by_name[name]
    if stored.dtype == "int8":
        scale = arrays[f"{name}.scale"]
        kernel = quantise.per_row if scale.ndim == 1 else quantise.per_group
        return int(kernel(values, rows.is_bfloat, where, target, scale))
    target = target if target.ndim == 2 else target[:, None]
    if stored.dtype == "float32" and values.size <= SMALL:  # norms and biases: no kernel to compile for them
        return _copy_small(values, rows.is_bfloat, where, target)
    return int(quantise.copy(values, rows.is_bfloat, where, stored.dtype == "bfloat16", target))


def _copy_small(values: np.ndarray, is_bfloat: bool, where: np.ndarray, target: np.ndarray) -> int:
    """The same in NumPy."""
    if is_bfloat:
        values = (values.astype(np.uint32) << 16).view(np.float32)
    elif values.dtype == np.uint16:
        values = values.view(np.float16)
    target[where] = values
    return int((~np.isfinite(values)).any(axis=1).sum())

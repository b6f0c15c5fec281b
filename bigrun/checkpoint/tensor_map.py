"""Maps each part's tensors to a checkpoint's, and checks them by the headers alone, before a weight is read."""

import fnmatch
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bigrun.checkpoint.base import Checkpoint
from bigrun.errors import CheckpointError
from bigrun.model.families.registry import BY_NAME
from bigrun.model.source import Source
from bigrun.model.spec import ModelSpec, Part

# What published checkpoints hold beside a model's weights: tables that the code computes anew, and the scales of
# activations, which bigrun measures as they come.
IGNORED = (
    "*.rotary_emb.inv_freq", "*.attn.bias", "*.attn.masked_bias", "*.attention.masked_bias",
    "*.input_scale",
)  # fmt: skip

PartSources = Mapping[str, tuple[Source, ...]]  # canonical tensor → where its rows come from


@dataclass(frozen=True)
class TensorMap:
    """Where the tensors of every part lie in a checkpoint, in the order of execution."""

    checkpoint: Checkpoint
    spec: ModelSpec
    parts: tuple[tuple[Part, PartSources], ...]


def map_tensors(checkpoint: Checkpoint, spec: ModelSpec) -> TensorMap:
    """The map of a checkpoint, from its family's names alone: `validate` holds it against the headers."""
    prefix = _prefix(checkpoint, spec)
    return TensorMap(checkpoint, spec, tuple((part, _sources(prefix, checkpoint, spec, part)) for part in spec.parts))


def validate(tensor_map: TensorMap) -> TensorMap:
    """Returns the map if it is sound; CheckpointError with the first of the `problems` otherwise."""
    for problem in problems(tensor_map):
        raise CheckpointError(problem)
    return tensor_map


def problems(tensor_map: TensorMap) -> Iterator[str]:
    """A line for each tensor that is missing, of another shape, unreadable, or without a place in the model."""
    checkpoint, spec = tensor_map.checkpoint, tensor_map.spec
    taken: set[str] = set()
    for part, sources in tensor_map.parts:
        for source in (source for tensor in part.tensors for source in sources[tensor.name]):
            taken.add(source.name)
            info = checkpoint.tensors.get(source.name)
            if info is None:
                yield f"{checkpoint.where}: tensor {source.name} is missing"
            elif info.shape != source.shape:
                yield (
                    f"{info.where}: tensor {source.name} has shape {list(info.shape)}, "
                    f"the configuration says {list(source.shape)}"
                )
            elif not info.readable:
                why = "without scales that fit it" if info.dtype == "F8_E4M3" else "which bigrun does not read yet"
                yield f"{info.where}: tensor {source.name} is {info.dtype}, {why}"
    for name in checkpoint.tensors:
        tied = spec.tied and name in ("lm_head.weight", "output.weight")
        if name not in taken and not tied and not any(fnmatch.fnmatch(name, pattern) for pattern in IGNORED):
            where = checkpoint.tensors[name].where
            yield f"{where}: tensor {name[:100]} has no place in a {spec.family} model as its configuration describes it"


def count(spec: ModelSpec) -> int:
    """The most tensors that a checkpoint may hold: several times what the model needs, a bound for hostile headers."""
    sources = BY_NAME[spec.family].sources
    if sources is None:
        return 256 + sum(8 * len(part.tensors) * max(1, spec.expert_count(part.name)) for part in spec.parts)
    needed = sum(len(group) for part in spec.parts for group in sources(spec, part.name, "hf").values())
    return 4 * needed + 256


def _prefix(checkpoint: Checkpoint, spec: ModelSpec) -> str:
    """The prefix that this checkpoint's names lack: some publishers leave out the prefix of the model class."""
    if checkpoint.dialect != "hf":
        return ""
    for prefix in BY_NAME[spec.family].prefixes:
        table = BY_NAME[spec.family].tensors(spec, "embed", "hf")["table"][0].name
        if table.removeprefix(prefix) in checkpoint.tensors and not (prefix and table in checkpoint.tensors):
            return prefix
    return ""


def _sources(prefix: str, checkpoint: Checkpoint, spec: ModelSpec, part: Part) -> PartSources:
    part_sources = BY_NAME[spec.family].tensors(spec, part.name, checkpoint.dialect)
    if not prefix:
        return part_sources
    return {
        name: tuple(Source(s.name.removeprefix(prefix), s.shape, s.grid, s.axes) for s in sources)
        for name, sources in part_sources.items()
    }

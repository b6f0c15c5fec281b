"""Maps each part's tensors to a checkpoint's, and checks them by the headers alone, before a weight is read."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from bigrun.checkpoint.base import Checkpoint, TensorInfo
from bigrun.checkpoint.leftovers import READ, quantised, useless
from bigrun.errors import CheckpointError
from bigrun.model.families.registry import BY_NAME
from bigrun.model.source import Source
from bigrun.model.spec import ModelSpec, Part

LONGEST_BIAS = 2**24
PACKED = ("I8", "U8", "I32", "U32", "F8_E8M0")  # dtypes of tensors that formats pack numbers in

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
    """A line for each tensor that is `unfit`, or without a place in the model."""
    some = list(unfit(tensor_map))
    yield from some
    checkpoint = tensor_map.checkpoint
    if some and _packed(checkpoint):
        return  # one line says it all
    for name, why in surplus(tensor_map):
        if not why:
            where, family = checkpoint.tensors[name].where, tensor_map.spec.family
            yield f"{where}: tensor {name[:100]} has no place in a {family} model as its configuration describes it"


def unfit(tensor_map: TensorMap) -> Iterator[str]:
    """A line for each tensor that is missing, of another shape or unreadable; of a quantised checkpoint one for them all."""
    lines = _unfit(tensor_map)
    first = next(lines, None)
    if first is None:
        return
    checkpoint = tensor_map.checkpoint
    if how := _packed(checkpoint):
        yield f"{checkpoint.where}: quantised ({how}): {READ}"
        return
    yield first
    yield from lines


def _packed(checkpoint: Checkpoint) -> str:
    """How the tensors are quantised; "" where none is, whatever the configuration says."""
    tensors = checkpoint.tensors
    if any(info.dtype in PACKED for info in tensors.values()) or quantised({}, tensors):
        return quantised(checkpoint.config, tensors)
    return ""


def _unfit(tensor_map: TensorMap) -> Iterator[str]:
    checkpoint = tensor_map.checkpoint
    for source in _all_sources(tensor_map):
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


def _all_sources(tensor_map: TensorMap) -> Iterator[Source]:
    for part, sources in tensor_map.parts:
        for tensor in part.tensors:
            yield from sources[tensor.name]


def surplus(tensor_map: TensorMap) -> Iterator[tuple[str, str]]:
    """(name, why it is ignored) of each tensor that no part is made from; "" where nothing says that it is of no use."""
    checkpoint, spec = tensor_map.checkpoint, tensor_map.spec
    taken = {source.name for source in _all_sources(tensor_map)}
    heads = _tied_names(checkpoint, spec) if spec.tied else ()
    for name, info in checkpoint.tensors.items():
        if name in taken:
            continue
        if name in heads:
            yield name, _table_again(checkpoint, spec, info)
        elif why := useless(name, info.shape):
            yield name, why
        else:
            yield name, _of_zeros(checkpoint, name, info)


def _table_again(checkpoint: Checkpoint, spec: ModelSpec, info: TensorInfo) -> str:
    """Why the second table of a tied model is ignored: reconcile.py has compared them, and they are one; "" for what it could
    not compare, which is no such table."""
    if info.shape != (spec.vocab, spec.hidden) or not info.readable:
        return ""
    return "the one table of embedding and head, again" if checkpoint.paths else "a head, compared once it is fetched"


def _of_zeros(checkpoint: Checkpoint, name: str, info: TensorInfo) -> str:
    """Why a bias without a place is ignored: it is of zeros. One that is still to be fetched is looked at then."""
    if not name.endswith(".bias") or len(info.shape) != 1:
        return ""
    if not checkpoint.paths:
        return "a bias, refused once it is fetched unless it is of zeros"
    if not info.readable or info.shape[0] > LONGEST_BIAS or np.any(checkpoint.rows(name, 0, info.shape[0]).floats()):
        return ""
    return "a bias of zeros"


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
    family, tensors = BY_NAME[spec.family], checkpoint.tensors
    ends = [family.tensors(spec, part, "hf") for part in ("embed", "blocks.0", "norm")]
    names = [source.name for part_sources in ends for group in part_sources.values() for source in group]
    found = {prefix: sum(name.removeprefix(prefix) in tensors for name in names) for prefix in family.prefixes}
    return max(sorted(found), key=found.__getitem__, default="")  # of equals the shortest: names as the class has them


def _tied_names(checkpoint: Checkpoint, spec: ModelSpec) -> tuple[str, str]:
    """(embedding, head): the two names under which a tied table is published."""
    family = BY_NAME[spec.family]
    embed = family.tensors(spec, "embed", checkpoint.dialect)["table"][0]
    head = family.tensors(replace(spec, tied=False), "head", checkpoint.dialect)["table"][0]
    prefix = _prefix(checkpoint, spec)
    return embed.name.removeprefix(prefix), head.name.removeprefix(prefix)


def tied_tables(checkpoint: Checkpoint, spec: ModelSpec) -> tuple[str, str] | None:
    """(embedding, head) of a tied model whose files hold both; None where they hold one, or neither."""
    names = _tied_names(checkpoint, spec)
    return names if spec.tied and all(name in checkpoint.tensors for name in names) else None


def _sources(prefix: str, checkpoint: Checkpoint, spec: ModelSpec, part: Part) -> PartSources:
    part_sources = BY_NAME[spec.family].tensors(spec, part.name, checkpoint.dialect)
    result = {
        name: tuple(replace(source, name=source.name.removeprefix(prefix)) for source in sources)
        for name, sources in part_sources.items()
    }
    if part.name == "embed" and spec.tied:
        embed, head = _tied_names(checkpoint, spec)
        if embed not in checkpoint.tensors and head in checkpoint.tensors:  # saved under the head's name alone
            result["table"] = tuple(replace(source, name=head) for source in result["table"])
    return result

"""The families of models that bigrun runs: one module each, which reads a configuration and knows its tensor names."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bigrun.errors import CheckpointError
from bigrun.model import bloom, llama, opt
from bigrun.model.fields import Fields
from bigrun.model.source import Dialect, Source
from bigrun.model.spec import ModelSpec

Module = Literal["embed", "block", "norm", "head"]


@dataclass(frozen=True)
class Family:
    """`describe` makes the spec, `sources` says which checkpoint tensors fill a part, `modules` names accelerate's."""

    name: str
    architectures: tuple[str, ...]
    describe: Callable[[Fields, str], ModelSpec]
    sources: Callable[[ModelSpec, str, Dialect], dict[str, tuple[Source, ...]]]
    prefixes: tuple[str, ...]  # that published checkpoints put before the names of the decoder's tensors
    modules: Mapping[Module, tuple[str, ...]]


FAMILIES = tuple(
    Family(m.NAME, m.ARCHITECTURES, m.describe, m.sources, m.PREFIXES, m.MODULES) for m in (llama, bloom, opt)
)
BY_NAME = {family.name: family for family in FAMILIES}
BY_ARCHITECTURE = {name: family for family in FAMILIES for name in family.architectures}


def spec_from_config(config: Mapping[str, Any], name: str, where: str = "config.json") -> ModelSpec:
    """The ModelSpec of a Hugging Face configuration. CheckpointError names the field, or the architectures there are."""
    fields = Fields(config, where)
    architectures = config.get("architectures")
    known = ", ".join(sorted(BY_ARCHITECTURE))
    if not isinstance(architectures, list) or not architectures or not isinstance(architectures[0], str):
        raise CheckpointError(f"{where}: field 'architectures' names no model class; bigrun runs {known}")
    family = BY_ARCHITECTURE.get(architectures[0])
    if family is None:
        raise CheckpointError(f"{where}: architecture {architectures[0][:60]!r} is unknown; bigrun runs {known}")
    return family.describe(fields, name)


def device_map(family: str, devices: Mapping[str, str]) -> dict[str, int | str]:
    """accelerate's form of a placement: Hugging Face module name → GPU number, "cpu" or "disk"."""
    modules, result = BY_NAME[family].modules, {}
    for part, device in devices.items():
        kind, _, number = part.partition(".")
        place: int | str = int(device.partition(":")[2]) if ":" in device else device
        for module in modules["block" if kind == "blocks" else kind]:  # type: ignore[index]
            result[f"{module}.{number}" if number else module] = place
    return result

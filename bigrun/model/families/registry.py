"""The families of models that bigrun runs, or plans alone: each reads a configuration and knows names of what it describes."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from bigrun.errors import CheckpointError
from bigrun.model.families import bloom, llama, mixtures, opt, parallel, relatives
from bigrun.model.families.family import Family
from bigrun.model.families.fields import Fields
from bigrun.model.spec import ModelSpec

FAMILIES = (
    *(Family(m.NAME, m.ARCHITECTURES, m.describe, m.sources, m.PREFIXES, m.MODULES) for m in (llama, bloom, opt)),
    *relatives.FAMILIES,
    *parallel.FAMILIES,
    *mixtures.FAMILIES,
)
BY_NAME = {family.name: family for family in FAMILIES}
BY_ARCHITECTURE = {name: family for family in FAMILIES for name in family.architectures}
# The same classes in other case, and without the head on top, which is saved with a base model's name.
_BY_SPELLING = {
    name.removesuffix("ForCausalLM").lower() + ending: family
    for name, family in BY_ARCHITECTURE.items()
    for ending in ("forcausallm", "lmheadmodel", "model")
}


def supported_architectures() -> str:
    """The architectures there are, for messages."""
    runs, plans = (
        sorted(
            name.removesuffix("ForCausalLM")
            for name, family in BY_ARCHITECTURE.items()
            if bool(family.sources) is there
        )
        for there in (True, False)
    )
    return f"bigrun runs {', '.join(runs)}; it only plans {', '.join(plans)}"


def _nearest(name: str) -> str:
    """The known architecture that is spelt most alike, for a message; "" where none is."""
    stems = {known.removesuffix("ForCausalLM").lower(): known for known in BY_ARCHITECTURE}
    close = get_close_matches(name[:100].removesuffix("ForCausalLM").lower(), stems, 1, 0.7)
    return f"; do you mean {stems[close[0]]}?" if close else ""


def spec_from_config(config: Mapping[str, Any], name: str, where: str = "config.json") -> ModelSpec:
    """The ModelSpec of a Hugging Face configuration. CheckpointError names the field, or the architectures there are."""
    fields = Fields(config, where)
    return _family(config, where).describe(fields, name)


def _family(config: Mapping[str, Any], where: str) -> Family:
    """The family that `architectures` names, or, where that is absent, null or spelt in an old way, `model_type`, by which
    transformers goes. Where the two name different families the configuration is refused."""
    architectures, model_type = config.get("architectures"), config.get("model_type")
    by_type = BY_NAME.get(model_type) if isinstance(model_type, str) else None
    if isinstance(architectures, str):
        architectures = [architectures]
    if architectures in (None, []):
        if by_type is None:
            raise CheckpointError(
                f"{where}: fields 'architectures' and 'model_type' name no model; {supported_architectures()}"
            )
        return by_type
    if not isinstance(architectures, list) or not isinstance(architectures[0], str):
        raise CheckpointError(f"{where}: field 'architectures' names no model class; {supported_architectures()}")
    name = architectures[0]
    family = BY_ARCHITECTURE.get(name) or _BY_SPELLING.get(name.lower())
    if family is None:
        raise CheckpointError(
            f"{where}: architecture {name[:60]!r} is unknown{_nearest(name)}; {supported_architectures()}"
        )
    if by_type is not None and by_type is not family:
        raise CheckpointError(
            f"{where}: field 'architectures' names {name[:60]}, but 'model_type' is {by_type.name!r}: take out the one "
            "that is wrong"
        )
    return family


def device_map(family: str, devices: Mapping[str, str]) -> dict[str, int | str]:
    """accelerate's form of a placement: Hugging Face module name → GPU number, "cpu" or "disk".

    A block whose experts live elsewhere is named by its inner modules, since accelerate knows no exceptions in a module.
    """
    modules = BY_NAME[family].modules
    result: dict[str, int | str] = {}
    for part, device in devices.items():
        kind, _, number = part.partition(".")
        number, _, experts = number.partition(".")
        place: int | str = int(device.partition(":")[2]) if ":" in device else device
        if kind != "blocks":
            result |= dict.fromkeys(modules[kind], place)  # type: ignore[index]
            continue
        split = devices.get(f"blocks.{number}.experts", devices[f"blocks.{number}"]) != devices[f"blocks.{number}"]
        inner = modules["experts" if experts else "inside"] if split else ("",)
        for module in modules["block"]:
            result |= {f"{module}.{number}.{name}".rstrip("."): place for name in inner}
    return result

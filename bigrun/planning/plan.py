"""Plan: the planner's answer as frozen data, in and out of JSON."""

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from bigrun.model.families import device_map
from bigrun.model.layout import Storage


@dataclass(frozen=True)
class Options:
    """What the user asked for, beside the model and the rig."""

    context: int = 2048
    batch: int = 1
    storage: Storage = field(default_factory=Storage)
    kv: str = "16bit"


@dataclass(frozen=True)
class DevicePlan:
    """One device's account. The six kinds of bytes add up to `used_bytes`."""

    name: str
    kind: str
    virtual: bool
    budget_bytes: int
    used_bytes: int
    free_bytes: int
    weights_bytes: int
    kv_cache_bytes: int
    workspace_bytes: int
    staging_bytes: int
    pinned_bytes: int
    reserve_bytes: int
    parts: tuple[str, ...]


@dataclass(frozen=True)
class Placement:
    """Where one part is stored and computed, and where its keys and values live. `slice` is None for a whole part."""

    part: str
    slice: tuple[int, int] | None
    stored_on: str
    stored_as: str
    prefill_on: str
    decode_on: str
    kv_on: str | None
    weights_bytes: int
    kv_cache_bytes: int


@dataclass(frozen=True)
class Predicted:
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    load_seconds: float
    assumptions: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """Everything a run needs to know of where things go. `unplaced` and `hint` are empty when it fits."""

    model: str
    family: str
    parameters: int
    fits: bool
    context_tokens: int
    batch: int
    prefill_chunk_tokens: int
    weights: str
    kv: str
    devices: tuple[DevicePlan, ...]
    placements: tuple[Placement, ...]
    predicted: Predicted | None
    unplaced: tuple[str, ...] = ()
    hint: str = ""

    def placement(self, part: str) -> Placement:
        return next(placement for placement in self.placements if placement.part == part)

    def device(self, name: str) -> DevicePlan:
        return next(device for device in self.devices if device.name == name)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object that DESIGN promises; `unplaced` and `hint` only where the plan does not fit."""
        result = asdict(self)
        if self.fits:
            del result["unplaced"], result["hint"]
        return result

    def to_json(self, indent: int | None = 1) -> str:
        return json.dumps(self.to_dict(), indent=indent)

    def to_device_map(self) -> dict[str, int | str]:
        """accelerate's form: module name → GPU number, "cpu" or "disk"."""
        return device_map(self.family, {placement.part: placement.stored_on for placement in self.placements})

    def __str__(self) -> str:
        from bigrun.planning.report import plan_text

        return plan_text(self)


def plan_from_json(text: str) -> Plan:
    """The inverse of `Plan.to_json`."""
    values = json.loads(text)
    values["devices"] = tuple(DevicePlan(**_tuples(device)) for device in values["devices"])
    values["placements"] = tuple(Placement(**_tuples(placement)) for placement in values["placements"])
    if values["predicted"] is not None:
        values["predicted"] = Predicted(**_tuples(values["predicted"]))
    values = _tuples(values)
    return Plan(**{known.name: values[known.name] for known in fields(Plan) if known.name in values})


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}

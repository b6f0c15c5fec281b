"""The data of a plan: devices with their bytes, where each part is, and what was predicted."""

from dataclasses import dataclass
from typing import Any


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
    """Where one part is stored and computed, and where its keys and values live. `slice` is None for a whole part, else
    the experts [first, stop) of it that are meant."""

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
    """Of decode at the end of the context (all sequences' tokens counted), of a prompt of `prompt_tokens`, and of a request
    that reads such a prompt and generates `new_tokens`. `measured` and `assumptions` say what it rests on."""

    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    request_seconds: float
    load_seconds: float
    assumptions: tuple[str, ...]
    measured: tuple[str, ...] = ()
    prompt_tokens: int = 0
    new_tokens: int = 0


@dataclass(frozen=True)
class PlanData:
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
    head: str = "int8"
    skip: tuple[str, ...] = ()
    model_id: str = ""  # what the model was asked for by: a folder, a file, a hub id or a name
    revision: str | None = None
    answer: dict[str, Any] | None = None  # of --solve, --what-if or --target

    @property
    def part_names(self) -> tuple[str, ...]:
        """Every part, placed or not, once."""
        return tuple(dict.fromkeys([*(p.part for p in self.placements), *self.unplaced]))

    def placement(self, part: str) -> Placement:
        """The placement of a part; of experts in slices, the first."""
        return next(placement for placement in self.placements if placement.part == part)

    @property
    def blocks(self) -> tuple[Placement, ...]:
        """The placements of all blocks, their experts' among them."""
        return tuple(placement for placement in self.placements if placement.part.startswith("blocks."))

    def device(self, name: str) -> DevicePlan:
        """The account of a device, such as cuda:0."""
        return next(device for device in self.devices if device.name == name)

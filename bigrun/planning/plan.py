"""Plan: the planner's answer as frozen data, in and out of JSON."""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from bigrun.errors import CallError
from bigrun.model.families import device_map
from bigrun.model.layout import Storage


@dataclass(frozen=True)
class Options:
    """What the user asked for, beside the model and the rig."""

    context: int = 2048
    batch: int = 1
    storage: Storage = field(default_factory=Storage)
    kv: str = "16bit"
    prompt: int | None = None  # tokens of the prompt of a request; None: three quarters of the context
    streams: bool = field(default=True, compare=False)  # whether prompts may pass the host's parts on a GPU

    @property
    def prompt_tokens(self) -> int:
        return max(1, self.context * 3 // 4) if self.prompt is None else self.prompt

    @property
    def new_tokens(self) -> int:
        """What a request generates: the rest of its context."""
        return max(1, self.context - self.prompt_tokens)


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
        return next(placement for placement in self.placements if placement.part == part)

    @property
    def blocks(self) -> tuple[Placement, ...]:
        return tuple(placement for placement in self.placements if placement.part.startswith("blocks."))

    def device(self, name: str) -> DevicePlan:
        return next(device for device in self.devices if device.name == name)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object that DESIGN promises; `unplaced` and `hint` only where the plan does not fit."""
        result = asdict(self)
        if self.fits:
            del result["unplaced"], result["hint"]
        if self.answer is None:
            del result["answer"]
        return result

    def to_json(self, indent: int | None = 1) -> str:
        return json.dumps(self.to_dict(), indent=indent)

    def save(self, path: str | Path) -> None:
        Path(path).write_text(self.to_json() + "\n", encoding="utf-8")

    @staticmethod
    def load(path: str | Path) -> "Plan":
        """A plan that `bigrun plan --json` printed or `save` wrote; CallError says what is wrong with the file."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CallError(
                f"plan {path}: cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8'}"
            ) from error
        try:
            return plan_from_json(text)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise CallError(f"plan {path}: not a plan as `bigrun plan --json` prints it ({str(error)[:80]})") from error

    def to_device_map(self) -> dict[str, int | str]:
        """accelerate's form: module name → GPU number, "cpu" or "disk". Experts that are split are named by where most are."""
        most: dict[str, Placement] = {}
        for placement in self.placements:
            if placement.part not in most or placement.weights_bytes > most[placement.part].weights_bytes:
                most[placement.part] = placement
        return device_map(self.family, {part: placement.stored_on for part, placement in most.items()})

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

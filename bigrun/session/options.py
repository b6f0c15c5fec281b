"""Options: everything that a user asks for, as one frozen object. Commands parse into it; `plan` and `Runner` fill it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import Field, dataclass, field, fields, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from bigrun.devices.make_rig import RigOptions
from bigrun.errors import CallError, shortly
from bigrun.model.resolve import DEFAULT
from bigrun.model.spec import ModelSpec
from bigrun.model.storage import Storage
from bigrun.planning.options import DEFAULT_CONTEXT, PlanOptions
from bigrun.planning.plan import Plan

MODES = {"auto": "auto", "exact": "exact", "llm.int8": "llm.int8", "w8a16": "exact", "w8a8": "llm.int8"}
KERNELS = ("auto", "triton", "reference")


@dataclass(frozen=True)
class ArithmeticOptions:
    """How a run computes. CallError for a value that no run can take."""

    mode: str = "auto"  # exact (or w8a16), llm.int8 (or w8a8), or auto
    threshold: float = 6.0  # llm.int8 takes activations from this magnitude on apart; 0: none
    threads: int | None = None  # of the CPU; None: as many as the process may use
    kernels: str = "auto"  # on GPUs: triton, reference (torch alone), or auto

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise CallError(f"--mode {self.mode!r}: choose one of {', '.join(MODES)}")
        if not 0 <= self.threshold < float("inf"):
            raise CallError(f"--threshold {self.threshold}: give a number of at least 0 (0: no decomposition)")
        if self.threads is not None and self.threads < 1:
            raise CallError(f"--threads {self.threads}: give at least 1")
        if self.kernels not in KERNELS:
            raise CallError(f"--kernels {self.kernels!r}: choose one of {', '.join(KERNELS)}")
        object.__setattr__(self, "mode", MODES[self.mode])  # an alias is the same object as what it stands for


@dataclass(frozen=True)
class Options:
    """A model, the devices for it, how it is stored and computed, and what it is planned for."""

    model: str | None = None  # a folder, a GGUF file, a hub id or a catalog name; None: the plan's, or the default
    revision: str | None = None  # branch, tag or commit of a hub model
    rig: RigOptions = field(default_factory=RigOptions)  # the devices
    storage: Storage = field(default_factory=Storage)  # forms of weights, keys and values
    arithmetic: ArithmeticOptions = field(default_factory=ArithmeticOptions)  # how a run computes
    context: int | None = None  # tokens; None: the model's, 2,048 at most
    batch: int = 1  # sequences at a time
    prompt_tokens: int | None = None  # of the request that is planned for; None: three quarters of the context
    plan: Plan | None = None  # made before: it says what goes where
    cache: str | Path | None = None  # a folder of int8 conversions
    progress: bool = True

    @property
    def model_id(self) -> str:
        """The model's name, or the default."""
        return DEFAULT if self.model is None else self.model

    @staticmethod
    def of(**values: Any) -> Options:
        """Options from flat names: `of(model="opt-30b", gpus="2x24GB", kv="int8")`. TypeError for one that is unknown."""
        values = {name: _checked(name, value) for name, value in values.items()}
        groups: dict[str, dict[str, Any]] = {}
        for name, (group, _) in flat_fields().items():
            if name in values:
                groups.setdefault(group, {})[name] = values.pop(name)
        if values:
            raise TypeError(f"no such option: {', '.join(values)}")
        made = {name: GROUPS[name](**inner) for name, inner in groups.items() if name in GROUPS}
        return Options(**groups.get("", {}), **made)

    def for_planning(self, spec: ModelSpec) -> PlanOptions:
        """What the planner takes; the context defaults to what the model has, 2,048 tokens at most. Plans are of what runs
        do, which is not to stream the host's parts through a GPU."""
        tokens = min(DEFAULT_CONTEXT, spec.context_limit) if self.context is None else self.context
        return PlanOptions(tokens, self.batch, self.storage, self.prompt_tokens, streams=False)

    def check_replay(self) -> None:
        """CallError where a plan that was made before comes with options of what it says already."""
        kept = {"model", "revision", "plan", "cache", "progress", "arithmetic"}
        if self != replace(Options(), **{name: getattr(self, name) for name in kept}):
            raise CallError("--plan already says what goes where: leave out the options of the rig and of storage")


WHOLE = ("context", "batch", "prompt_tokens", "threads")
TEXTS = ("model", "revision", "gpus", "weights", "head", "kv", "mode", "kernels")
PATHS = ("model", "rig", "host", "cache", "plan")
SWITCHES = ("virtual", "progress")


def _checked(name: str, value: Any) -> Any:
    """An option's value as it is kept: names of `skip` as a tuple, a plan's file as the plan, a model's path as text.

    CallError for a value of another type."""
    flag = f"--{name.replace('_', '-')}"
    if value is None:
        return value
    if name in WHOLE and (isinstance(value, bool) or not isinstance(value, Integral)):
        raise CallError(f"{flag} {shortly(value)}: give a whole number")
    if name == "threshold" and (isinstance(value, bool) or not isinstance(value, Real)):
        raise CallError(f"{flag} {shortly(value)}: give a number")
    if name in SWITCHES and not isinstance(value, bool):
        raise CallError(f"{flag} {shortly(value)}: give True or False")
    if name == "skip":
        names = value.split(",") if isinstance(value, str) else list(value) if isinstance(value, Iterable) else [value]
        if not all(isinstance(each, str) for each in names):
            raise CallError(f"{flag} {shortly(value)}: give names, as ['blocks.3', 'down']")
        return tuple(each.strip() for each in names if each.strip())
    if name == "plan" and isinstance(value, str | Path):
        return Plan.load(value)
    if name in PATHS and isinstance(value, Path):
        return str(value) if name == "model" else value
    if name == "plan":
        if not hasattr(value, "placements"):
            raise CallError(f"{flag} {shortly(value)}: give a Plan, or the file of one")
    elif name in (*TEXTS, *PATHS) and not isinstance(value, str):
        raise CallError(f"{flag} {shortly(value)}: give a text")
    return int(value) if name in WHOLE else value


GROUPS: dict[str, type] = {"rig": RigOptions, "storage": Storage, "arithmetic": ArithmeticOptions}


def flat_fields() -> dict[str, tuple[str, Field[Any]]]:
    """Flat name → (the group that it belongs to, "" for none, and its field)."""

    def every() -> Iterator[tuple[str, tuple[str, Field[Any]]]]:
        for each in fields(Options):
            if each.name not in GROUPS:
                yield each.name, ("", each)
        for group, kind in GROUPS.items():
            for each in fields(kind):
                yield each.name, (group, each)

    return dict(every())

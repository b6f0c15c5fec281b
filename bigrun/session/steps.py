"""The five steps from options to a running model, each a function: resolve → plan → open → load → start."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from bigrun.devices.here import beyond_this_host
from bigrun.devices.make_rig import make_rig
from bigrun.errors import BigrunError, CallError, RunError
from bigrun.execute.supported import why_not_executable
from bigrun.model.resolve import Model
from bigrun.model.resolve import resolve as resolve_name
from bigrun.model.spec import ModelSpec
from bigrun.planning.ledger import Ledger
from bigrun.planning.options import PlanOptions
from bigrun.planning.plan import Plan
from bigrun.planning.replay import check_plan, check_types, options_of
from bigrun.progress import reporting
from bigrun.session.findings import Findings, examine
from bigrun.session.options import ArithmeticOptions, Options
from bigrun.session.preflight import check_runnable, memories, real_gpus, why_not_runnable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bigrun.checkpoint.tensor_map import TensorMap
    from bigrun.devices.host_memory import Memory
    from bigrun.execute.executor import Executor, MakeEngine
    from bigrun.loading.int8_cache import Int8Cache
    from bigrun.loading.loader import LoadedPart
    from bigrun.loading.open import ModelFiles
    from bigrun.model.layout import Layout
    from bigrun.session.prompts import TextCheck
    from bigrun_kernels.cpu.ops import CpuOps

T = TypeVar("T")


@dataclass(frozen=True)
class Planned:
    """What was planned by a model's configuration, which took `fetch_seconds` to get from a hub. What is on this disk is open
    by then, as its headers are the configuration (`files`); what a hub has is not: it may not fit, and is fetched after that
    is known."""

    model: Model
    spec: ModelSpec
    options: PlanOptions
    plan: Plan
    files: ModelFiles | None
    fetch_seconds: float = 0.0


@dataclass(frozen=True)
class Opened:
    """A model whose headers agree with its configuration, and its plan. `tensor_map` is None for an int8 conversion, which
    has parts instead of tensors. `fetch_seconds`: what a hub took for all of it, by the end of which it is on this disk."""

    model: Model
    spec: ModelSpec
    options: PlanOptions
    plan: Plan
    files: ModelFiles
    tensor_map: TensorMap | None
    findings: Findings
    fetch_seconds: float = 0.0


@dataclass(frozen=True)
class Loaded:
    """A model's parts on their devices. `warm_bytes`: what the process took with warm kernels and without the model;
    `parts_seconds`: what reading, converting and placing the parts took, without what a load takes whatever its size."""

    opened: Opened
    parts: tuple[LoadedPart, ...]
    memories: Mapping[str, Memory]
    int8_cache: Int8Cache | None
    warm_bytes: int
    parts_seconds: float
    notes: tuple[str, ...]


class Timed(Generic[T]):
    """A call that knows what it took: `seconds`, 0 before it is made."""

    def __init__(self, what: Callable[[], T]):
        self.what, self.seconds = what, 0.0

    def __call__(self) -> T:
        started = time.perf_counter()
        result = self.what()
        self.seconds = time.perf_counter() - started
        return result


def resolve(options: Options) -> Model:
    """What the options name: a folder, a file, a catalog entry or a hub id. Nothing is opened."""
    if options.plan is not None:
        options.check_replay()
        check_types(options.plan)
        if options.model is None:
            return resolve_name(options.plan.model_id or options.plan.model)
    return resolve_name(options.model_id)


def plan(options: Options, model: Model) -> Planned:
    """The plan, by the configuration alone: the one that the options bring, or a new one."""
    from bigrun.loading.open import model_spec, open_model

    ask = Timed(lambda: model_spec(model, _revision(options)))
    files, spec = (None, ask()) if model.repo else open_model(model)
    if options.plan is not None:
        return Planned(model, spec, options_of(options.plan), options.plan, files, ask.seconds)
    return Planned(model, spec, *_plan(options, spec), files, ask.seconds)


def _plan(options: Options, spec: ModelSpec) -> tuple[PlanOptions, Plan]:
    from bigrun.planning.planner import make_plan

    chosen = options.for_planning(spec)
    rig = make_rig(options.rig)
    for beyond in beyond_this_host(options.rig, rig, to_run=True):
        raise CallError(f"{beyond}; give less")
    made = make_plan(spec, rig, chosen)
    runs = why_not_runnable(made, spec) or True
    return chosen, replace(made, model_id=options.model_id, revision=options.revision, runs=runs)


def _revision(options: Options) -> str | None:
    return options.revision or (options.plan.revision if options.plan is not None else None)


def open_files(options: Options, planned: Planned, text_check: TextCheck | None = None, text: bool = True) -> Opened:
    """The files, fetched if the plan fits and nothing is found that keeps them from running, and the plan that is right for
    them.

    CheckpointError where headers and configuration contradict each other; what `text_check` raises. Without `text` nobody looks
    at the tokenizer; without a `text_check` what is wrong with it is a warning.
    """
    from bigrun.checkpoint.tensor_map import map_tensors
    from bigrun.loading.conversion_folder import Conversion, check_cache
    from bigrun.loading.open import open_model
    from bigrun.session.fetching import fetching

    def check(findings: Findings, table: int, context: int) -> None:
        findings.check(text_check is not None)
        if text_check is not None and findings.tokenizer is not None:
            text_check(findings.tokenizer, table, context)

    model, files, spec, fetch_seconds = planned.model, planned.files, planned.spec, planned.fetch_seconds
    if options.cache is not None and not isinstance(files, Conversion):
        check_cache(_cache_folder(options.cache), planned.options.storage)
    if files is None:
        check_runnable(planned.plan, None)
        revision, context = _revision(options), planned.plan.context_tokens
        said: list[str] = []

        def before_weights(findings: Findings, hub_spec: ModelSpec) -> None:
            check(findings, hub_spec.vocab, context)
            for line in findings.text_problems if options.progress and text else ():
                print(f"bigrun: {BigrunError(line)}", file=sys.stderr, flush=True)
                said.append(line)

        fetch = Timed(lambda: fetching(model, revision, planned.plan, options.progress, before_weights))
        files, spec = open_model(model, revision, fetch)
        fetch_seconds += fetch.seconds
    findings = examine(files, spec, text)
    if planned.files is None and said:  # before the weights came
        findings = replace(findings, text_problems=())
    if why_not_executable(spec):
        check_runnable(planned.plan, spec)  # which names the model as the user did
    findings.check(text_check is not None)
    tensor_map = None if isinstance(files, Conversion) else map_tensors(files, spec)
    chosen, made = planned.options, planned.plan
    if options.plan is not None:
        check_plan(made, spec, chosen)
    elif spec != planned.spec:  # a catalog's, or a hub's configuration, says less than the files
        chosen, made = _plan(options, spec)
    check_runnable(made, spec)
    check(findings, spec.vocab, made.context_tokens)
    return Opened(model, spec, chosen, made, files, tensor_map, findings, fetch_seconds)


def load(options: Options, opened: Opened) -> Loaded:
    """Warm kernels, and every part on its device. What GPUs hold is given back where this fails."""
    from bigrun.devices.measure import host_bytes
    from bigrun.loading.loader import beginning
    from bigrun.loading.loader import load as load_parts
    from bigrun.session.warmup import warm_up

    spec, how = opened.spec, host_arithmetic(options.arithmetic)
    layouts = Ledger(spec, opened.options).layouts
    early: list[str] = []
    int8_cache = _int8_cache(options, opened, layouts, early.append)
    places = memories(opened.plan, spec, layouts, options.arithmetic.kernels)
    with _given_back(places):
        try:
            with beginning(spec, opened.tensor_map, int8_cache):
                warm_up(spec, opened.tensor_map, opened.options, cpu_ops(), how, options.progress)
            warm_bytes = host_bytes()
            with reporting(f"loading {spec.name}", options.progress) as report:
                for note in (*opened.findings.warnings, *opened.findings.text_problems, *early):
                    report.note(note)
                if int8_cache is not None:
                    int8_cache.note = report.note
                started = time.perf_counter()
                parts = tuple(load_parts(spec, opened.tensor_map, opened.plan, layouts, places, int8_cache, report))
                parts_seconds = time.perf_counter() - started
        finally:
            if int8_cache is not None:
                int8_cache.settle()
    return Loaded(opened, parts, places, int8_cache, warm_bytes, parts_seconds, tuple(report.notes))


def start(options: Options, loaded: Loaded, note: Callable[[str], None]) -> Executor:
    """The executor of a loaded model, its GPUs warm; `note` is told what the user should know."""
    from bigrun.execute.executor import Executor
    from bigrun.session.warmup import warm_gpus

    spec, made, how = loaded.opened.spec, loaded.opened.plan, host_arithmetic(options.arithmetic)
    gpus = bool(real_gpus(made))
    if gpus and any(p.stored_on == "cpu" == p.prefill_on for p in made.blocks):
        note("prompts pass the host's blocks on the CPU: streaming those to a GPU is not built yet")
    with _given_back(loaded.memories):
        make_engine = _gpu_engine(options.arithmetic, note) if gpus else None
        executor = Executor(spec, made, loaded.parts, loaded.memories, cpu_ops(), how, make_engine)
        if gpus:
            warm_gpus(executor)
    return executor


@contextmanager
def _given_back(places: Mapping[str, Memory]) -> Iterator[None]:
    """Frees the memory of real GPUs if what happens meanwhile fails: what was placed there is of no use."""
    try:
        yield
    except BaseException:
        for memory in places.values():
            if memory.is_gpu:
                memory.close()
        raise


def _cache_folder(cache: str | Path) -> Path:
    """The folder of --cache; CallError for that of a user that is not there, or that has no home."""
    try:
        return Path(cache).expanduser()
    except RuntimeError as error:
        raise CallError(f"--cache {cache}: {error}") from error


def _int8_cache(
    options: Options, opened: Opened, layouts: Mapping[str, Layout], note: Callable[[str], None]
) -> Int8Cache | None:
    """Opens the int8 cache of this model: its own if it is a conversion, else that of the cache folder."""
    from bigrun.loading.conversion_folder import Conversion, open_int8_cache

    if isinstance(opened.files, Conversion):
        opened.files.check_storage(opened.options.storage)
        return opened.files.int8_cache(layouts, note)
    if options.cache is None or opened.tensor_map is None:
        return None
    cache, storage = _cache_folder(options.cache), opened.options.storage
    try:
        return open_int8_cache(cache, opened.tensor_map, storage, layouts, opened.model.source, note)
    except RunError as error:
        note(f"{error}; going on without it")
        return None


def host_arithmetic(options: ArithmeticOptions) -> Any:
    """The CPU's arithmetic: auto is exact in both phases, which is what holds the loss bar (docs/architecture.md)."""
    from bigrun.execute.engine import Arithmetic

    chosen = "exact" if options.mode == "auto" else options.mode
    return Arithmetic(chosen, chosen, options.threshold)


def _gpu_engine(options: ArithmeticOptions, note: Callable[[str], None]) -> MakeEngine:
    """What makes the engine of each real GPU."""
    from bigrun.execute.gpu_engine import GpuEngine

    def make(spec: ModelSpec, plan: Plan, device: Any, memory: Any, parts: Any) -> Any:
        return GpuEngine(spec, plan, device, memory, parts, options.mode, options.threshold, options.kernels, note)

    return make


@cache
def cpu_ops() -> CpuOps:
    """The CPU's kernels: one set for the process."""
    from bigrun_kernels.cpu.ops import CpuOps

    return CpuOps()

"""Runner: a model on a rig, from its name to its tokens. spec → rig → plan → load → execute."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigrun.devices.make_rig import make_rig
from bigrun.errors import CallError, RunError
from bigrun.model.families.registry import BY_NAME
from bigrun.model.resolve import DEFAULT, resolve
from bigrun.model.spec import ModelSpec
from bigrun.planning.options import Options, make_options
from bigrun.planning.plan import Plan
from bigrun.session.dry_run import plan
from bigrun.session.generation import Generation, Stats, Stream
from bigrun.session.preflight import check_arithmetic, check_generation, check_runnable, memories, real_gpus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np

    from bigrun.checkpoint.base import Checkpoint
    from bigrun.loading.int8_cache import Int8Cache
    from bigrun.model.layout import Layout
    from bigrun.text.tokenizer import Tokenizer
    from bigrun_kernels.cpu.ops import CpuOps


class Runner:
    """A model, loaded. A context manager; `close()` gives its memory back. `plan` is one made before (Plan.load): then it
    says what goes where, and the options of rig and storage are its own. `cache` is a folder for int8 conversions: the parts
    that it has of this model are mapped, the others are written to it as they are converted.

    Loads on construction: PlanDoesNotFit before anything is read, CheckpointError if the files are bad. `threads` is the
    number of CPU threads (None: all cores). One Runner serves one caller at a time; several can live in a process.
    """

    def __init__(
        self,
        model_id: str | None = None,
        max_memory: Mapping[int | str, str | int] | None = None,
        context: int | None = None,
        batch: int = 1,
        *,
        gpus: str | None = None,
        cpu: str | int | None = None,
        disk: str | int | None = None,
        weights: str = "int8",
        mode: str = "auto",
        threshold: float = 6.0,
        skip: Sequence[str] = (),
        head: str = "int8",
        kv: str = "16bit",
        threads: int | None = None,
        virtual: bool = False,
        progress: bool = True,
        revision: str | None = None,
        rig: str | Path | None = None,
        host: str | Path | None = None,
        prompt_tokens: int | None = None,
        plan: Plan | None = None,
        cache: str | Path | None = None,
        kernels: str = "auto",
    ):
        from bigrun.loading.open import model_spec
        from bigrun.planning.planner import make_plan
        from bigrun.planning.replay import check_plan, check_types, options_of

        check_arithmetic(mode, threshold, threads, kernels)
        self._in_use = False
        started = time.perf_counter()
        if plan is not None:
            given = (max_memory, context, gpus, cpu, disk, rig, host, prompt_tokens)
            storage = (batch, weights, head, kv, tuple(skip), virtual)
            if any(option is not None for option in given) or storage != (1, "int8", "int8", "16bit", (), False):
                raise CallError("plan= already says what goes where: leave out the options of the rig and of storage")
            check_types(plan)
            self.model = resolve(plan.model_id or plan.model if model_id is None else model_id)
            self.checkpoint, self.spec = self._open(revision or plan.revision, plan, progress)
            self.options = options_of(plan, self.spec)
            check_plan(plan, self.spec, self.options)
            self.plan = plan
        else:
            self.model = resolve(DEFAULT if model_id is None else model_id)
            devices = make_rig(gpus, cpu, disk, max_memory, virtual, rig, host)

            def planned(spec: ModelSpec) -> tuple[Options, Plan]:
                options = make_options(spec, context, batch, weights, head, skip, kv, prompt_tokens)
                options = replace(options, streams=False)  # which runs do not do yet
                made = make_plan(spec, devices, options)
                return options, replace(made, model_id=DEFAULT if model_id is None else model_id, revision=revision)

            # what is not here yet is planned before it is fetched: it may not fit
            first = planned(model_spec(self.model, revision))[1] if self.model.repo else None
            self.checkpoint, self.spec = self._open(revision, first, progress)
            self.options, self.plan = planned(self.spec)
        self.threads, self._kernels = threads, kernels
        self._load(mode, threshold, progress, None if cache is None else Path(cache).expanduser())
        self.load_seconds = time.perf_counter() - started

    def _open(self, revision: str | None, plan: Plan | None, shown: bool) -> tuple[Checkpoint, ModelSpec]:
        """The checkpoint and its spec; what a hub has of it is fetched, if the plan fits, and the plan shown before."""
        from bigrun.checkpoint.tensor_map import map_tensors, validate
        from bigrun.loading.open import open_checkpoint
        from bigrun.session.fetching import fetching

        if plan is not None and self.model.repo is not None:
            check_runnable(plan, None)
        checkpoint, spec = open_checkpoint(self.model, revision, lambda: fetching(self.model, revision, plan, shown))
        if BY_NAME[spec.family].sources is not None and not hasattr(checkpoint, "manifest"):
            # a checkpoint that contradicts its configuration is refused before it is planned for
            validate(checkpoint, spec, map_tensors(checkpoint, spec))
        return checkpoint, spec

    def _int8_cache(
        self, cache: Path | None, layouts: Mapping[str, Layout], note: Callable[[str], None]
    ) -> Int8Cache | None:
        """The int8 cache of this model: the conversion that it is itself, else that of a cache folder."""
        from bigrun.loading.conversion_folder import ConvertedCheckpoint, open_int8_cache

        if isinstance(self.checkpoint, ConvertedCheckpoint):
            self.checkpoint.check_storage(self.options.storage)
            return self.checkpoint.int8_cache(layouts, note)
        if cache is None:
            return None
        source = self.model.repo or str(self.model.gguf or self.model.folder)
        try:
            return open_int8_cache(cache, self.checkpoint, self.spec, self.options.storage, layouts, source, note)
        except RunError as error:
            note(f"{error}; going on without it")
            return None

    def _load(self, mode: str, threshold: float, progress: bool, cache: Path | None) -> None:
        check_runnable(self.plan, self.spec)
        from bigrun.devices.measure import host_bytes
        from bigrun.execute.engine import Arithmetic
        from bigrun.execute.executor import Executor
        from bigrun.loading.loader import beginning, load
        from bigrun.planning.ledger import Ledger
        from bigrun.progress import reporting
        from bigrun.session.warmup import warm_gpus, warm_up

        self._use_threads()
        # auto: exact in both phases for now; it is what holds the loss bar on the CPU (docs/architecture.md)
        chosen = "exact" if mode == "auto" else mode
        how = Arithmetic(chosen, chosen, threshold)
        layouts = Ledger(self.spec, self.options).layouts
        early: list[str] = []
        int8_cache = self._int8_cache(cache, layouts, early.append)
        self.memories = memories(self.plan, self.spec, layouts, self._kernels)
        try:
            with beginning(self.checkpoint, self.spec, int8_cache):
                warm_up(self.spec, self.checkpoint, self.options, cpu_ops(), how, progress)
            self.warm_bytes = host_bytes()
            with reporting(self.spec.name, progress) as report:
                for note in early:
                    report.note(note)
                if int8_cache is not None:
                    int8_cache.note = report.note
                parts = load(self.checkpoint, self.spec, self.plan, layouts, self.memories, int8_cache, report)
                if real_gpus(self.plan) and any(p.stored_on == "cpu" == p.prefill_on for p in self.plan.blocks):
                    report.note("prompts pass the host's blocks on the CPU: streaming those to a GPU is not built yet")
                gpus = self._gpu_engine(mode, threshold, report.note) if real_gpus(self.plan) else None
                self.executor = Executor(self.spec, self.plan, parts, self.memories, cpu_ops(), how, gpus)
                if gpus is not None:
                    warm_gpus(self.executor)
        except BaseException:
            for memory in self.memories.values():
                if memory.is_gpu:  # what was placed there is of no use
                    memory.close()
            raise
        finally:
            if int8_cache is not None:
                int8_cache.settle()
        self._mapped = int8_cache  # held while its files are mapped
        self.notes = tuple(report.notes)

    def _gpu_engine(self, mode: str, threshold: float, note: Callable[[str], None]) -> Any:
        """What makes the engine of each real GPU."""
        from bigrun.execute.gpu_engine import GpuEngine

        def make(spec: ModelSpec, plan: Plan, device: Any, memory: Any, parts: Any) -> Any:
            return GpuEngine(spec, plan, device, memory, parts, mode, threshold, self._kernels, note)

        return make

    @property
    def kernels(self) -> str:
        """The kernels in use, for reports."""
        from bigrun_kernels.cpu import isa

        engines = self.executor.engines
        on_gpus = {engines[name].ops.name: None for name in engines if self.memories[name].is_gpu}
        on_host = len(on_gpus) == 0 or any(not self.memories[name].is_gpu for name in engines)
        return " and ".join([*on_gpus, *([isa.describe()] if on_host else [])]) + " kernels"

    def _use_threads(self) -> None:
        from bigrun_kernels.cpu import threads

        threads.use(self.threads)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer, read when it is first asked for."""
        from bigrun.text.tokenizer import Tokenizer

        metadata = getattr(self.checkpoint, "metadata", None)
        if metadata is not None:
            return Tokenizer.from_gguf(metadata)
        return Tokenizer.from_folder(self.checkpoint.folder)  # type: ignore[attr-defined]

    def encode(self, prompt: str, raw: bool = False) -> list[int]:
        """Token ids of a prompt: as the user's turn of the model's chat template, if it has one and `raw` is not set."""
        if not prompt:
            raise CallError("the prompt is empty: give --prompt TEXT, or text on standard input")
        if raw or self.tokenizer.chat_template is None:
            ids = self.tokenizer.encode(prompt)
        else:
            ids = self.tokenizer.encode(self.tokenizer.render_chat([{"role": "user", "content": prompt}]))
        if len(ids) >= self.plan.context_tokens:
            raise CallError(
                f"the prompt has {len(ids)} tokens and the context {self.plan.context_tokens}: shorten it, or give --context"
            )
        return ids

    def generate(
        self, prompt: str | Sequence[int], max_new_tokens: int = 128, raw: bool = False, **sampling: Any
    ) -> Generation:
        """The continuation of a prompt (text, or token ids). Greedy unless `temperature` is given; `top_k`, `top_p`,
        `seed` as well. Stops at the model's end token, at `max_new_tokens`, or where the context is full."""
        stream = self.stream(prompt, max_new_tokens, raw, **sampling)
        text = "".join(stream)
        return Generation(text, tuple(stream.token_ids), stream.stats)

    def stream(
        self, prompt: str | Sequence[int], max_new_tokens: int = 128, raw: bool = False, **sampling: Any
    ) -> Stream:
        """The same as an iterator over pieces of text, as they come."""
        chosen = check_generation(max_new_tokens, sampling)
        ids = self.encode(prompt, raw) if isinstance(prompt, str) else self._checked(prompt)
        return Stream(self, ids, max_new_tokens, chosen)

    def _checked(self, ids: Sequence[int] | np.ndarray) -> list[int]:
        result = [int(token) for token in ids]
        if not result:
            raise CallError("the prompt is empty: give at least one token")
        if min(result) < 0 or max(result) >= self.spec.vocab:
            raise CallError(f"a token id is outside the vocabulary of {self.spec.vocab}")
        if len(result) > self.plan.context_tokens:
            raise CallError(
                f"{len(result)} tokens do not fit the context of {self.plan.context_tokens}: give a larger context"
            )
        return result

    @contextmanager
    def sole_use(self) -> Iterator[None]:
        """Meanwhile the one sequence of this Runner is the caller's; CallError where another has begun and not ended."""
        if self._in_use:
            raise CallError(
                "another stream of this Runner is not at its end: read it to the end or close() it, or make a second Runner"
            )
        self._in_use = True
        try:
            yield
        finally:
            self._in_use = False

    def logits(self, ids: Any) -> Any:
        """Logits of every position: ids [batch, seq] int64 → [batch, seq, vocab] float32 (torch tensors, or as given)."""
        import numpy as np

        rows = np.asarray(ids)
        if rows.ndim != 2 or rows.dtype.kind not in "iu" or rows.shape[1] == 0:
            raise CallError("logits: ids must be a whole-number array [batch, seq] with at least one token a row")
        checked = [self._checked(row) for row in rows]
        result = np.empty((*rows.shape, self.spec.vocab), np.float32)
        with self.sole_use():
            self._use_threads()
            for i, row in enumerate(checked):
                self.executor.clear(0)
                result[i] = self.executor.forward({0: row}, every=True)[0]
            self.executor.clear(0)
        if type(ids).__module__.startswith("torch"):
            import torch

            return torch.from_numpy(result)
        return result

    def close(self) -> None:
        """Give the memory back; the Runner is of no use afterwards."""
        if (executor := self.__dict__.pop("executor", None)) is not None:
            executor.close()
        if (int8_cache := self.__dict__.pop("_mapped", None)) is not None:
            int8_cache.close()

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@cache
def cpu_ops() -> CpuOps:
    """The CPU's kernels: one set for the process."""
    from bigrun_kernels.cpu.ops import CpuOps

    return CpuOps()


__all__ = ["Generation", "Runner", "Stats", "Stream", "plan"]

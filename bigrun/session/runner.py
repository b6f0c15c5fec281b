"""Runner: a model on a rig, from its name to its tokens, in five steps (steps.py): resolve → plan → open → load → start."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from weakref import WeakSet

from bigrun.planning.plan import Plan
from bigrun.progress import reporting
from bigrun.session import steps
from bigrun.session.calls import checked_call
from bigrun.session.dry_run import plan
from bigrun.session.generation import Generation, Stats, Stream
from bigrun.session.inference import Inference
from bigrun.session.options import Options
from bigrun.session.prompts import TextCheck


class Runner(Inference):
    """A model, loaded. A context manager; `close()` gives its memory back.

    One Runner serves one caller at a time; several can live in a process. Loads on construction: CallError where options
    contradict each other or the model, PlanDoesNotFit before anything is read, CheckpointError if the files are bad,
    RunError where the devices do not give what the plan wants of them.
    """

    @checked_call("Runner")
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
        """Load a model.

        model_id: a folder, a GGUF file, a hub id or a catalog name; None: the plan's, or smollm2-135m.
        max_memory: budgets as accelerate has them, {0: "24GB", "cpu": "64GB"}, in place of `gpus`, `cpu` and `disk`.
        context: tokens of context; None: the model's, 2,048 at most.
        batch: sequences at a time.
        gpus: GPUs as "8x24GB", "2x24GB,1x12GB", "4xRTX3090" or "none"; None: those that are there.
        cpu: host memory to use, as "64GB", "64GiB" or bytes; None: what is available, less a reserve.
        disk: disk space for what fits nowhere else; None: none. Planned for, but not run yet.
        weights: the form of the weights: "int8", "16bit" or "float32".
        mode: the arithmetic: "exact" ("w8a16"), "llm.int8" ("w8a8"), by which small models lose quality, or "auto".
        threshold: llm.int8 takes activations from this magnitude on apart; 0: none.
        skip: parts or linears that stay in 16 bits: "blocks.3", "down", "blocks.3.down".
        head: the form of the embedding and the head: "int8" or "16bit".
        kv: the form of keys and values: "16bit" or "int8".
        threads: CPU threads; None: as many as the process may use.
        virtual: the GPUs named are imagined: budgets enforced, computed by the CPU.
        progress: whether progress and notes are shown on standard error.
        revision: branch, tag or commit of a hub model.
        rig: a YAML or JSON file that describes the devices (docs/planning.md).
        host: a file of what `bigrun info` measured; None: this host's own, if any.
        prompt_tokens: of the request that is planned for; None: three quarters of the context.
        plan: a Plan made before (Plan.load): it says what goes where, in place of the options of rig and storage.
        cache: a folder for int8 conversions: the parts that it has of this model are mapped, the others written to it.
        kernels: on GPUs: "triton", "reference" (torch alone), or "auto".
        """
        self._start(
            Options.of(
                model=model_id, max_memory=max_memory, context=context, batch=batch, gpus=gpus, cpu=cpu, disk=disk,
                weights=weights, mode=mode, threshold=threshold, skip=skip, head=head, kv=kv, threads=threads,
                virtual=virtual, progress=progress, revision=revision, rig=rig, host=host, prompt_tokens=prompt_tokens,
                plan=plan, cache=cache, kernels=kernels,
            )
        )  # fmt: skip

    @classmethod
    def from_options(cls, options: Options, text_check: TextCheck | None = None, text: bool = True) -> Runner:
        """Load a model by options that were made before, as the commands make them.

        options: everything that the constructor's parameters say.
        text_check: what the run will do with text, tried before a weight is read; None: nothing, and no tokenizer is needed.
        text: whether there may be text at all, and somebody looks at the tokenizer.
        """
        runner = cls.__new__(cls)
        runner._start(options, text_check, text)
        return runner

    def _start(self, options: Options, text_check: TextCheck | None = None, text: bool = True) -> None:
        from bigrun.devices.measure import host_bytes

        started, self.start_bytes = time.perf_counter(), host_bytes()
        self.options, self.live_streams = options, WeakSet()
        self.model = steps.resolve(options)
        planned = steps.plan(options, self.model)
        opened = steps.open_files(options, planned, text_check, text)
        if opened.findings.tokenizer is not None:
            self.tokenizer = opened.findings.tokenizer
        self.files, self.spec, self.plan, self.plan_options = opened.files, opened.spec, opened.plan, opened.options
        self.fetch_seconds = opened.fetch_seconds  # of the load_seconds
        self.open_bytes = host_bytes()  # with headers and vocabulary
        self.use_threads()
        loaded = steps.load(options, opened)
        self.memories, self.warm_bytes, self.parts_seconds = loaded.memories, loaded.warm_bytes, loaded.parts_seconds
        self._int8_cache = loaded.int8_cache  # held while its files are mapped
        self.wrote_cache = loaded.int8_cache is not None and loaded.int8_cache.written > 0
        with reporting(self.spec.name, options.progress) as report:
            self.executor = steps.start(options, loaded, report.note)
        self.notes = (*loaded.notes, *report.notes)
        self.load_seconds = time.perf_counter() - started

    @property
    def kernels(self) -> str:
        """The kernels in use, for reports."""
        self.check_open()
        from bigrun_kernels.cpu import isa

        engines = self.executor.engines
        on_gpus = {engines[name].ops.name: None for name in engines if self.memories[name].is_gpu}
        on_host = len(on_gpus) == 0 or any(not self.memories[name].is_gpu for name in engines)
        return " and ".join([*on_gpus, *([isa.describe()] if on_host else [])]) + " kernels"

    def __repr__(self) -> str:
        """One line for a notebook: which model, in which form, where."""
        if "plan" not in self.__dict__:
            return "Runner(not loaded)"
        devices = ", ".join(device.name for device in self.plan.devices if device.parts)
        context = f"{self.plan.context_tokens:,} tokens of context"
        closed = "" if "executor" in self.__dict__ else ", closed"
        return f"Runner({self.plan.model}: {self.plan.weights} on {devices}, {context}{closed})"

    def close(self) -> None:
        """Give the memory back; the Runner is of no use afterwards, and streams of it that are not at their end stop."""
        for stream in list(self.__dict__.get("live_streams", ())):
            with suppress(ValueError):  # running at this moment, in another thread
                stream.close()
        if (executor := self.__dict__.pop("executor", None)) is not None:
            executor.close()
        if (int8_cache := self.__dict__.pop("_int8_cache", None)) is not None:
            int8_cache.close()

    def __enter__(self) -> Runner:
        self.check_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


__all__ = ["Generation", "Runner", "Stats", "Stream", "plan"]

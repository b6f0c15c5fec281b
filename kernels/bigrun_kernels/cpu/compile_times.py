"""How far the compiling of kernels is, judged by what each took once."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from numba.core import event

from bigrun_kernels.cpu import kernel_cache

# Seconds that the kernels of a first run took on one core of an AMD EPYC (Zen 3), each without the kernels that it calls;
# only their shares matter. Written by benchmarks/compile_times.py.
TIMES: dict[str, float] = {
    "attention._span": 2.63, "attention._store_vector": 1.01, "attention.attend": 2.17, "attention.merge_spans": 1.24,
    "attention.store_token": 0.25, "blocks._pages": 0.20, "blocks._quantise_panel": 1.02, "blocks._quantised": 0.32,
    "blocks.activate_quantise": 0.62, "blocks.attend_spans": 1.94, "blocks.counters_of": 0.10, "blocks.linear": 0.80,
    "blocks.merge_quantise": 0.92, "blocks.norm_quantise": 0.72, "blocks.participate": 0.34,
    "blocks.rope_store": 0.73, "elementwise._activate": 1.10, "elementwise._layer_row": 0.45,
    "elementwise._rms_row": 0.29, "elementwise.activate_row": 0.25, "elementwise.norm": 0.21,
    "elementwise.norm_row": 0.24, "elementwise.rotate_head": 0.19, "linear._outlier_part": 0.25,
    "linear.panel_linear": 1.10, "planes._int16_row": 0.25, "planes.largest": 0.79, "quantise._group_rows": 0.72,
    "quantise._participate": 1.89, "quantise._rows": 0.59, "table._participate": 1.69, "table.lookup": 0.35,
    "team._launch": 0.28, "team.claim": 0.39, "team.finish": 1.56, "team.share": 0.12,
}  # fmt: skip
LITTLE = 0.25  # of all: where less is left to compile, the table says too little of it


def expected(modules: Collection[str] | None = None) -> float:
    """Seconds of the table that are still to be compiled, of these modules (None: of all)."""
    there = kernel_cache.names()
    return sum(seconds for name, seconds in _of(modules).items() if name not in there)


def _of(modules: Collection[str] | None) -> dict[str, float]:
    return {name: seconds for name, seconds in TIMES.items() if modules is None or name.split(".")[0] in modules}


class Watch(event.Listener):  # type: ignore[misc]
    """Tells `progress` of every kernel that is begun or done the share of all that are to be compiled: None where that is
    not known."""

    def __init__(self, progress: Callable[[float | None], None], modules: Collection[str] | None = None):
        self.progress, self.total, self.done = progress, expected(modules), set[str]()
        self.known = self.total > LITTLE * sum(_of(modules).values())

    def on_start(self, compilation: event.Event) -> None:
        self._tell()

    def on_end(self, compilation: event.Event) -> None:
        if (name := name_of(compilation.data.get("dispatcher"))) is not None:
            self.done.add(name)
        self._tell()

    def _tell(self) -> None:
        done = sum(TIMES.get(name, 0.0) for name in self.done)
        self.progress(min(done / self.total, 0.99) if self.known else None)


def name_of(dispatcher: Any) -> str | None:
    """module.function of one of our kernels."""
    cached = getattr(dispatcher, "_cache", None)
    return cached.kernel if isinstance(cached, kernel_cache.KernelCache) else None


@contextmanager
def watching(progress: Callable[[float | None], None], modules: Collection[str] | None = None) -> Iterator[None]:
    """Meanwhile `progress` is told how far the compiling is, whenever a kernel is begun or done."""
    watch = Watch(progress, modules)
    event.register("numba:compile", watch)
    try:
        yield
    finally:
        event.unregister("numba:compile", watch)

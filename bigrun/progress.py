"""Progress, on standard error: of loading, only where that is a terminal, and of the first run's compiling."""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from bigrun.checkpoint.base import Checkpoint
from bigrun.loader import LoadedPart
from bigrun.model.spec import ModelSpec


@contextmanager
def loading(
    parts: Iterable[LoadedPart], checkpoint: Checkpoint, spec: ModelSpec, shown: bool
) -> Iterator[Iterable[LoadedPart]]:
    """The parts, with a bar of the bytes read while they are taken, where there is a terminal."""
    if not shown or not sys.stderr.isatty():
        yield parts
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    total = sum(info.nbytes for info in checkpoint.tensors.values())
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"loading {spec.name}", total=total)

        def counted() -> Iterator[LoadedPart]:
            for part in parts:
                bar.update(task, advance=part.read_bytes, description=f"{part.part.name} → {part.device}")
                yield part

        yield counted()


@contextmanager
def compiling(shown: bool) -> Iterator[None]:
    """Says that kernels are compiled, which kernel it is at and how long it took."""
    if not shown:
        yield
        return
    from numba.core import event

    started, done, live = time.perf_counter(), 0, sys.stderr.isatty()

    class Listener(event.Listener):
        def on_start(self, found: event.Event) -> None:
            if live:
                name = getattr(found.data.get("dispatcher"), "__name__", "")
                passed = time.perf_counter() - started
                print(f"\r\x1b[K  {passed:3.0f} s, {done} compiled, now {name}", end="", file=sys.stderr, flush=True)

        def on_end(self, found: event.Event) -> None:
            nonlocal done
            done += 1

    print(
        "first run: compiling kernels for this CPU; this takes about half a minute, once", file=sys.stderr, flush=True
    )
    listener = Listener()
    event.register("numba:compile", listener)
    try:
        yield
    finally:
        event.unregister("numba:compile", listener)
        passed = time.perf_counter() - started
        start = "\r\x1b[K" if live else ""
        print(f"{start}  {done} kernels compiled in {passed:.0f} s", file=sys.stderr, flush=True)

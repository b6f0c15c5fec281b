"""Progress, on standard error: of loading, only where that is a terminal, and of the first run's compiling."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bigrun.errors import BigrunError


class Report:
    """Receives the progress of a long task. This one keeps the notes and shows nothing."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def expect(self, nbytes: int) -> None:
        """A task of so many bytes begins."""

    def moved(self, what: str, nbytes: int) -> None:
        """`nbytes` more are done; `what` is at hand."""

    def note(self, text: str) -> None:
        """A message for the user that does not end the task."""
        self.notes.append(text)


QUIET = Report()


class _Bar(Report):
    """A bar on a terminal: what is at hand, bytes, rate, time left."""

    def __init__(self, bar: Any, name: str):
        super().__init__()
        self._bar, self._name, self._task = bar, name, bar.add_task(name, total=None)

    def expect(self, nbytes: int) -> None:
        self._bar.reset(self._task, total=nbytes, description=self._name)

    def moved(self, what: str, nbytes: int) -> None:
        self._bar.update(self._task, advance=nbytes, description=what)

    def note(self, text: str) -> None:
        super().note(text)
        self._bar.console.print(f"bigrun: {BigrunError(text)}", markup=False, highlight=False, soft_wrap=True)


class _Lines(Report):
    """Notes alone, for standard error that is no terminal."""

    def note(self, text: str) -> None:
        super().note(text)
        print(f"bigrun: {BigrunError(text)}", file=sys.stderr, flush=True)


@contextmanager
def reporting(name: str, shown: bool) -> Iterator[Report]:
    """A Report that fits: a bar where standard error is a terminal, notes where it is not, nothing if not `shown`.

    The bar is gone and the cursor is back when this ends, however it ends.
    """
    if not shown:
        yield Report()
        return
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield _Bar(bar, name)


@contextmanager
def compiling(shown: bool) -> Iterator[None]:
    """Says that kernels are compiled, which kernel it is at and how long it took."""
    if not shown:
        yield
        return
    from numba.core import event

    started, done, live = time.perf_counter(), 0, sys.stderr.isatty()

    class Listener(event.Listener):
        def on_start(self, compilation: event.Event) -> None:
            if live:
                name = getattr(compilation.data.get("dispatcher"), "__name__", "")
                passed = time.perf_counter() - started
                print(f"\r\x1b[K  {passed:3.0f} s, {done} compiled, now {name}", end="", file=sys.stderr, flush=True)

        def on_end(self, compilation: event.Event) -> None:
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

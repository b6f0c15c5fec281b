"""Progress, on standard error: of fetching, loading and converting, and of the compiling of kernels."""

import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from bigrun.errors import BigrunError
from bigrun.sizes import format_size


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
WIDE, NARROW = 100, 60  # columns: a terminal that is not WIDE sees no rate, one that is below NARROW no bar


class _Bar(Report):
    """A bar on a terminal: the task and what is at hand, bytes, rate, time left."""

    def __init__(self, bar: Any, name: str):
        super().__init__()
        self._bar, self._name, self._task = bar, name, bar.add_task(name, total=None, visible=False)

    def expect(self, nbytes: int) -> None:
        self._bar.reset(self._task, total=nbytes, description=self._fitting(self._name), visible=True)

    def moved(self, what: str, nbytes: int) -> None:
        self._bar.update(self._task, advance=nbytes, description=self._fitting(f"{self._name}: {what}"))

    def _fitting(self, text: str) -> str:
        """As much of a text as the other columns leave room for in one line."""
        width = self._bar.console.width
        room = max(width - (50 if width >= WIDE else 40 if width >= NARROW else 30), 8)
        return text if len(text) <= room else text[: room - 1] + "…"

    def note(self, text: str) -> None:
        super().note(text)
        self._bar.console.print(f"bigrun: {BigrunError(text)}", markup=False, highlight=False, soft_wrap=True)


class _Lines(Report):
    """For standard error that is no terminal: notes, and a line now and then of a task that takes long."""

    FIRST, EVERY = 10.0, 30.0  # seconds until a line

    def __init__(self, name: str):
        super().__init__()
        self._name = name
        self.expect(0)

    def expect(self, nbytes: int) -> None:
        self._total, self._done, self._began = nbytes, 0, time.monotonic()
        self._next = self._began + self.FIRST

    def moved(self, what: str, nbytes: int) -> None:
        self._done += nbytes
        now = time.monotonic()
        if now < self._next or not 0 < self._done < self._total:
            return
        self._next = now + self.EVERY
        share = self._done / self._total
        left = seconds_left(now - self._began, share)
        sizes = f"{format_size(self._done)} of {format_size(self._total)} ({share:.0%})"
        print(f"bigrun: {BigrunError(f'{self._name}: {sizes}, {left}')}", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        super().note(text)
        print(f"bigrun: {BigrunError(text)}", file=sys.stderr, flush=True)


@contextmanager
def reporting(name: str, shown: bool) -> Iterator[Report]:
    """A Report that fits: a bar where standard error is a terminal, lines where it is not, nothing if not `shown`. `name` says
    what is done to what ("loading bloom-176b").

    The bar is gone and the cursor is back when this ends, however it ends.
    """
    if not shown:
        yield Report()
        return
    if not sys.stderr.isatty():
        yield _Lines(name)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.table import Column

    console, line = Console(stderr=True), Column(no_wrap=True)
    columns = (
        TextColumn("{task.description}", markup=False, table_column=line),
        *([BarColumn()] if console.width >= NARROW else []),
        DownloadColumn(table_column=line),
        *([TransferSpeedColumn(table_column=line)] if console.width >= WIDE else []),
        TimeRemainingColumn(table_column=line),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        yield _Bar(bar, name)


def seconds_left(passed: float, share: float) -> str:
    """How long a task takes on, judged by the share of it that took `passed` seconds."""
    left = max(passed * (1 - share) / share, 1.0)
    return f"about {left:.0f} s left" if left < 100 else f"about {left / 60:.0f} min left"


@contextmanager
def compiling(shown: bool, modules: Collection[str] | None = None) -> Iterator[None]:
    """Says, if a kernel has to be compiled meanwhile, why; on a terminal how far that is; and how long it took. `modules`
    of bigrun_kernels.cpu: whose kernels may be needed; None: all that a model needs."""
    if not shown:
        yield
        return
    from bigrun_kernels.cpu import compile_times, kernel_cache

    begun: list[float] = []
    expected = compile_times.expected(modules)

    def progress(share: float | None) -> None:
        if not begun:
            begun.append(time.monotonic())
            text = kernel_cache.announcement(expected)
            print(f"bigrun: {BigrunError(text)}", file=sys.stderr, flush=True)
        if sys.stderr.isatty():
            passed = time.monotonic() - begun[0]
            known = share is not None and share > 0.03  # before that, the time left is a guess
            far = f"{share:.0%}, {seconds_left(passed, share)}" if known and share else f"{passed:.0f} s"
            print(f"\r\x1b[K  {far}", end="", file=sys.stderr, flush=True)

    try:
        with compile_times.watching(progress, modules):
            yield
    finally:
        if begun:
            start = "\r\x1b[K" if sys.stderr.isatty() else ""
            where = f", kept in {kernel_cache.folder()}" if kernel_cache.kept() else ""
            print(
                f"{start}  kernels compiled in {time.monotonic() - begun[0]:.0f} s{where}", file=sys.stderr, flush=True
            )

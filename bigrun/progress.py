"""The one progress bar: on standard error, and only where that is a terminal."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from bigrun.checkpoint.base import Checkpoint
from bigrun.loader import LoadedPart
from bigrun.model.spec import ModelSpec


def kernels_are_compiled() -> bool:
    """Whether a first run has left compiled kernels; without them it compiles for some tens of seconds."""
    from bigrun_kernels.cpu import compiled

    return compiled()


@contextmanager
def loading(
    parts: Iterable[LoadedPart], checkpoint: Checkpoint, spec: ModelSpec, shown: bool
) -> Iterator[Iterable[LoadedPart]]:
    """The parts, with a bar of the bytes read while they are taken; one line instead where there is no terminal."""
    if shown and not kernels_are_compiled():
        print("first run: compiling kernels for this CPU, once; this takes under a minute", file=sys.stderr, flush=True)
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


__all__ = ["kernels_are_compiled", "loading"]

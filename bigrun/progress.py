"""The one progress bar: on standard error, and only where that is a terminal."""

import sys
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

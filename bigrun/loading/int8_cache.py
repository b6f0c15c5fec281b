"""A conversion on the disk as a load sees it: which parts are ready to be mapped, and where new ones are written."""

import errno
import fcntl
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bigrun.checkpoint.files import COMPANIONS, CONFIG, GGUF_METADATA
from bigrun.checkpoint.mapped import DONTNEED, Mapped
from bigrun.devices.host_memory import HostMemory, Memory, views
from bigrun.errors import CheckpointError
from bigrun.loading import part_file
from bigrun.loading.manifest import MANIFEST
from bigrun.model.layout import Layout
from bigrun.model.spec import Part

LEFTOVER = re.compile(rf"\.(.+)\.[A-Za-z0-9_]{{8}}{re.escape(part_file.TEMPORARY)}")
CHECKERS = 2  # threads that sum up files: two read memory as fast as it goes


@dataclass(frozen=True)
class ReadyPart:
    """A part that the cache has, mapped and checked."""

    mapped: Mapped
    data: np.ndarray

    def place(self, memory: Memory, layout: Layout) -> Mapping[str, Any]:
        """Its arrays in a device's memory: mapped on the CPU, copied elsewhere."""
        if isinstance(memory, HostMemory) and memory.shares_files:
            return views(memory.adopt(self.data, self.mapped, "weights", layout.part), layout)
        arrays = memory.upload(self.data, layout)
        self.mapped.advise(0, self.mapped.size, DONTNEED)
        return arrays


class Int8Cache:
    """A conversion's folder, held open: others may read it and write to it meanwhile, none may remove it.

    `identities`: part → what its file must have been made from. `alone`: there is no source to convert from, so that every
    part must be ready. `note` is told what a user should know: a damaged file, a disk that is full.
    """

    def __init__(
        self, folder: Path, lock: int, layouts: Mapping[str, Layout], identities: Mapping[str, str], alone: bool,
        note: Callable[[str], None],
    ):  # fmt: skip
        self.folder, self.alone = folder, alone
        self._layouts, self._identities, self.note = layouts, identities, note
        self._lock = lock
        self._checker = ThreadPoolExecutor(CHECKERS, "bigrun-check")
        self._coming: dict[str, Future[tuple[Mapped, np.ndarray] | None]] = {}
        self._writer = ThreadPoolExecutor(1, "bigrun-write")
        self._writing: list[Future[None]] = []
        self.failure: OSError | None = None
        self.written = 0

    def begin(self, parts: Iterable[Part]) -> None:
        """Begin to check the files of these parts, in the background."""
        for part in parts:
            if part.tensors and part.name not in self._coming:
                self._coming[part.name] = self._checker.submit(self._read, part.name)

    def ready(
        self, parts: Iterable[Part], seen: Callable[[str, int], None] = lambda part, nbytes: None
    ) -> dict[str, ReadyPart]:
        """The parts that the cache has, each checked to the last byte. Damaged ones are noted, and missing from the result;
        where there is no source to make them anew from, CheckpointError says which file is bad or missing."""
        self.begin(parts := list(parts))
        result = {}
        for part in parts:
            if part.tensors and (ready_part := self._checked(part.name, self._coming.pop(part.name))) is not None:
                result[part.name] = ready_part
                seen(part.name, ready_part.data.nbytes)
        return result

    def _read(self, name: str) -> tuple[Mapped, np.ndarray] | None:
        return part_file.read(self.folder / part_file.file_name(name), self._layouts[name], self._identities[name])

    def _checked(self, name: str, future: "Future[tuple[Mapped, np.ndarray] | None]") -> ReadyPart | None:
        try:
            contents = future.result()
        except CheckpointError as error:
            if self.alone:
                raise CheckpointError(f"{error}; convert the model again") from error
            self.note(f"{error}; it is converted anew")
            return None
        if contents is None and self.alone:
            path = self.folder / part_file.file_name(name)
            raise CheckpointError(
                f"{path}: missing: the conversion was not finished; run the same `bigrun convert` again"
            )
        return None if contents is None else ReadyPart(*contents)

    def write(self, part: Part, data: np.ndarray) -> None:
        """Write a converted part, in the background, once the one before is written: two are held at a time."""
        if self.failure is None:
            while self._writing:
                self._settle(self._writing.pop(0))
            layout, identity = self._layouts[part.name], self._identities[part.name]
            self._writing.append(self._writer.submit(part_file.write, self.folder, layout, identity, data))

    def _settle(self, writing: "Future[None]") -> None:
        try:
            writing.result()
            self.written += 1
        except OSError as error:
            if self.failure is None:
                self.failure = error

    def finish(self) -> None:
        """Wait for what is being written."""
        while self._writing:
            self._settle(self._writing.pop(0))

    def problem(self) -> str:
        """Why the cache could not be written whole, and what to do; "" if it could."""
        if self.failure is None:
            return ""
        full = self.failure.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        mend = "free some space" if full else "mend that"
        return f"{self.folder}: the int8 cache could not be written whole: {self.failure.strerror}; {mend}"

    def settle(self) -> None:
        """Stop checking and writing, waiting for the file at hand. The folder stays in use: its files are mapped."""
        for pool in (self._checker, self._writer):
            pool.shutdown(wait=True, cancel_futures=True)

    def close(self) -> None:
        """Stops, and releases the folder."""
        self.settle()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __del__(self) -> None:
        if getattr(self, "_lock", -1) >= 0:
            os.close(self._lock)


def hold(folder: Path) -> int:
    """Marks the folder as in use while the returned handle is open. If no other process uses it, first removes what
    an interrupted write has left."""
    handle = os.open(folder, os.O_RDONLY)
    if claim(handle):
        with suppress(OSError):  # on a read-only disk nothing is left over that matters
            for file in list(leftovers(folder)):
                file.unlink(missing_ok=True)
    fcntl.flock(handle, fcntl.LOCK_SH)
    with suppress(OSError):
        os.utime(folder / MANIFEST)  # when the conversion was last used
    return handle


def claim(handle: int) -> bool:
    """Whether no other process holds the folder."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def leftovers(folder: Path) -> Iterator[Path]:
    """Temporary files that an interrupted write has left."""
    yield from (file for file in folder.iterdir() if (match := LEFTOVER.fullmatch(file.name)) and is_own(match[1]))


def is_own(name: str) -> bool:
    """Whether a file of a conversion bears this name."""
    return name in (*COMPANIONS, CONFIG, GGUF_METADATA, MANIFEST) or part_file.is_part_file(name)

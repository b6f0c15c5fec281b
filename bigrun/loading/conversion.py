"""A checkpoint's rows into the stored form of a part: read ahead, on some threads, while others are converted."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Thread
from typing import Any, Protocol

import numpy as np

from bigrun.checkpoint.base import Checkpoint, Rows
from bigrun.checkpoint.tensor_map import PartSources
from bigrun.devices.host_memory import NUMPY
from bigrun.errors import CheckpointError
from bigrun.model.layout import Layout
from bigrun.model.source import Source
from bigrun.model.spec import Part

SMALL = 1 << 18  # entries that NumPy copies about as fast
CHUNK_BYTES = 16 * 2**20  # of source rows converted at a time, counted as float32
READERS = 2  # threads that map, or dequantise, what is converted next
READY = 3  # chunks that they may have ready
AHEAD_BYTES = 128 * 2**20  # of source rows that the disk is asked for beforehand: it is never idle while there is more

EARLY_BYTES = 2**30  # the same, at the start


@dataclass(frozen=True)
class Chunk:
    """Rows [start, stop) of a source, which become rows `where` of a canonical tensor of a part."""

    part: str
    tensor: str
    source: Source
    start: int
    stop: int
    first: int  # canonical row of the source's first

    @property
    def nbytes(self) -> int:
        return 4 * (self.stop - self.start) * int(np.prod(self.source.shape[1:], dtype=np.int64))


def chunks(work: Iterable[tuple[Part, PartSources]]) -> Iterator[Chunk]:
    """All rows of these parts, in the order in which they are converted."""
    for part, sources in work:
        for tensor in part.tensors:
            first = 0
            for source in sources[tensor.name]:
                rows = source.shape[0]
                # float32 is the largest that a row becomes on its way
                step = max(1, CHUNK_BYTES // max(1, 4 * int(np.prod(source.shape[1:], dtype=np.int64))))
                step = max(1, step // 16 * 16) if step >= 16 else step  # whole panels, where rows keep their order
                for start in range(0, rows, step):
                    yield Chunk(part.name, tensor.name, source, start, min(start + step, rows), first)
                first += rows


class Reader:
    """The rows of chunks, one after the other: READY of them are read meanwhile, AHEAD_BYTES asked of the disk."""

    def __init__(self, checkpoint: Checkpoint, rest: Iterator[Chunk], pool: ThreadPoolExecutor, drop: bool):
        self.checkpoint, self._pool, self._drop = checkpoint, pool, drop
        self._rest = rest
        self._asked: deque[Chunk] = deque()
        self._asked_bytes = 0
        self._ready: deque[tuple[Chunk, Future[Rows]]] = deque()

    def next(self) -> tuple[Chunk, Rows]:
        """The next chunk and its rows."""
        while self._asked_bytes < AHEAD_BYTES and (chunk := next(self._rest, None)) is not None:
            self.checkpoint.ahead(chunk.source.name, chunk.start, chunk.stop)
            self._asked.append(chunk)
            self._asked_bytes += chunk.nbytes
        while self._asked and len(self._ready) < READY:
            chunk = self._asked.popleft()
            self._asked_bytes -= chunk.nbytes
            rows = self._pool.submit(self.checkpoint.rows, chunk.source.name, chunk.start, chunk.stop)
            self._ready.append((chunk, rows))
        chunk, coming = self._ready.popleft()
        return chunk, coming.result()

    def done(self, chunk: Chunk) -> None:
        self.checkpoint.done(chunk.source.name, chunk.start, chunk.stop, self._drop)


@contextmanager
def asked_early(checkpoint: Checkpoint, work: Iterable[tuple[Part, PartSources]]) -> Iterator[None]:
    """Reads ahead the first EARLY_BYTES of these parts from the disk while kernels are compiled."""
    done = Event()

    def ask() -> None:
        left = EARLY_BYTES
        for chunk in chunks(work):
            if done.is_set() or left <= 0:
                return
            checkpoint.ahead(chunk.source.name, chunk.start, chunk.stop)
            left -= chunk.nbytes

    thread = Thread(target=ask, name="bigrun-early", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def reading(checkpoint: Checkpoint, work: Iterable[tuple[Part, PartSources]], drop: bool = False) -> Iterator[Reader]:
    """A Reader of all rows of these parts, which drops from the page cache what is converted if it is told to. What it has
    under way is waited for at the end, nothing more is begun."""
    pool = ThreadPoolExecutor(READERS, "bigrun-read")
    try:
        yield Reader(checkpoint, chunks(work), pool, drop)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def convert(
    part: Part, sources: PartSources, layout: Layout,
    target: "Mapping[str, np.ndarray] | Elsewhere", reader: Reader, moved: Callable[[str, int], None], what: str,
) -> int:  # fmt: skip
    """One part into its arrays, or to where it goes piece by piece; the reader's next chunks are its own. Returns the bytes
    read; `moved(what, bytes)` is told of them as they are converted.

    CheckpointError names a tensor with NaN or inf in it.
    """
    read = 0
    for chunk in chunks([(part, sources)]):
        next_chunk, rows = reader.next()
        assert next_chunk == chunk, "the reader goes through the same chunks"
        where = chunk.source.destinations()[chunk.start : chunk.stop] + chunk.first
        if chunk.source.plus:
            rows = Rows(rows.floats() + np.float32(chunk.source.plus), False)
        into = store if isinstance(target, Mapping) else store_elsewhere
        bad = into(rows, where, chunk.tensor, layout, target)  # type: ignore[arg-type]
        reader.done(chunk)
        if bad:
            _refuse(reader.checkpoint, chunk, bad, layout)
        info = reader.checkpoint.tensors[chunk.source.name]
        nbytes = info.nbytes * (chunk.stop - chunk.start) // max(1, chunk.source.shape[0])
        moved(what, nbytes)
        read += nbytes
    return read


def _refuse(checkpoint: Checkpoint, chunk: Chunk, bad: int, layout: Layout) -> None:
    # a table's scales are float16, which end at 65,504: 127 of them at 8 million
    table = chunk.tensor == "table" and layout.by_name["table"].dtype == "int8"
    limit = " (or an entry beyond 8 million)" if table else ""
    name, rows = chunk.source.name, chunk.source.shape[0]
    which = f"{rows} rows" if chunk.stop - chunk.start == rows else f"rows {chunk.start} to {chunk.stop - 1}"
    where = checkpoint.tensors[name].where
    raise CheckpointError(f"{where}: tensor {name} holds NaN or inf in {bad} of its {which}{limit}")


class Elsewhere(Protocol):
    """A part whose arrays are not in host memory."""

    def put(self, name: str, where: np.ndarray, stored: np.ndarray) -> None:
        """Some rows of an array, row by row: they become the rows `where`."""


def store_elsewhere(rows: Rows, where: np.ndarray, name: str, layout: Layout, part: Elsewhere) -> int:
    """Converts rows in a temporary piece of host memory, row by row (never in lanes), and puts them into the part."""
    count, names = len(where), [name]
    if layout.by_name[name].dtype == "int8":
        names.append(f"{name}.scale")
    pieces = {}
    for each in names:
        stored = layout.by_name[each]
        pieces[each] = np.zeros((count, *stored.row_shape[1:]), NUMPY[stored.dtype])
    bad = store(rows, np.arange(count), name, layout, pieces)
    for each, piece in pieces.items():
        part.put(each, where, piece)
    return bad


def store(rows: Rows, where: np.ndarray, name: str, layout: Layout, arrays: Mapping[str, np.ndarray]) -> int:
    """Convert rows into the stored form; returns how many are not finite."""
    from bigrun_kernels.cpu import quantise

    target, stored = arrays[name], layout.by_name[name]
    values: Any = rows.values if rows.values.ndim == 2 else rows.values[:, None]
    if stored.dtype == "int8":
        scale = arrays[f"{name}.scale"]
        kernel = quantise.per_row if scale.ndim == 1 else quantise.per_group
        return int(kernel(values, rows.is_bfloat, where, target, scale, rows.blocks, rows.block))
    target = target if target.ndim == 2 else target[:, None]
    if rows.blocks is not None or (stored.dtype == "float32" and values.size <= SMALL):
        values = rows.floats().reshape(values.shape)  # norms and biases: no kernel to compile for them
        if stored.dtype == "float32":
            target[where] = values
            return int((~np.isfinite(values)).any(axis=1).sum())
    is_bfloat = rows.is_bfloat and values.dtype == np.uint16
    return int(quantise.copy(values, is_bfloat, where, stored.dtype == "bfloat16", target))

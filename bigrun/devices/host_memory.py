"""Device memory in a run: arenas under an enforced budget. What is asked for is counted before it is taken."""

import mmap
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from bigrun.errors import BudgetExceeded, RunError
from bigrun.model.buffers import Buffer
from bigrun.model.layout import Layout
from bigrun.sizes import format_size

# 16-bit floats are held as their bits: NumPy has no bfloat16, and Numba neither of them.
NUMPY = {
    "int8": np.int8,
    "float32": np.float32,
    "float16": np.uint16,
    "bfloat16": np.uint16,
    "float64": np.float64,
    "int32": np.int32,
}


class Memory(Protocol):
    """One device's memory in a run; bytes taken so far, at most, and by kind."""

    name: str
    used_bytes: int
    by_kind: dict[str, int]
    is_gpu: bool  # a real one: its arrays are torch tensors

    @property
    def peak_bytes(self) -> int: ...

    def buffers(self, buffers: Sequence[Buffer], kind: str, what: str) -> Mapping[str, Any]: ...

    def upload(self, data: np.ndarray, layout: Layout) -> Mapping[str, Any]: ...

    def close(self) -> None: ...


class HostMemory:
    """The CPU's memory, or that of a virtual GPU, which is the CPU's under a smaller budget."""

    is_gpu = False

    def __init__(self, name: str, budget_bytes: int):
        self.name, self.budget_bytes = name, budget_bytes
        self.used_bytes = self.peak_bytes = 0
        self.by_kind: dict[str, int] = {}

    def take(self, nbytes: int, kind: str, what: str) -> np.ndarray:
        """uint8 [nbytes], page-aligned, zero; BudgetExceeded names the device, the need and what is left.

        Memory comes straight from the system and goes back to it when the array is dropped.
        """
        self._check(nbytes, what)
        try:
            arena = mmap.mmap(-1, max(nbytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise RunError(
                f"{self.name}: the system has no {format_size(nbytes)} left for {what}; lower --cpu"
            ) from error
        if hasattr(mmap, "MADV_HUGEPAGE") and nbytes >= 2**21:
            arena.madvise(mmap.MADV_HUGEPAGE)  # weights are read from end to end: fewer page-table walks
        self._count(nbytes, kind, arena)
        return np.frombuffer(arena, np.uint8, nbytes)

    def adopt(self, data: np.ndarray, owner: Any, kind: str, what: str) -> np.ndarray:
        """Count uint8 data that is here already, mapped from a file, until its owner goes; BudgetExceeded as `take`."""
        self._check(data.nbytes, what)
        self._count(data.nbytes, kind, owner)
        return data

    def _check(self, nbytes: int, what: str) -> None:
        if self.used_bytes + nbytes > self.budget_bytes:
            raise BudgetExceeded(
                f"{self.name}: {what} needs {format_size(nbytes)}, of {format_size(self.budget_bytes)} only "
                f"{format_size(self.budget_bytes - self.used_bytes)} are left; the plan was wrong: please report it"
            )

    def _count(self, nbytes: int, kind: str, owner: Any) -> None:
        self.used_bytes += nbytes
        self.peak_bytes = max(self.peak_bytes, self.used_bytes)
        self.by_kind[kind] = self.by_kind.get(kind, 0) + nbytes
        weakref.finalize(owner, self._give_back, nbytes, kind)

    def _give_back(self, nbytes: int, kind: str) -> None:
        self.used_bytes -= nbytes
        self.by_kind[kind] -= nbytes

    def close(self) -> None:
        """Nothing: memory goes with its arrays."""

    @property
    def shares_files(self) -> bool:
        """Whether what is mapped from a file is in this memory: on the CPU, not on a GPU, virtual or not."""
        return self.name == "cpu"

    def arena(self, layout: Layout, what: str) -> np.ndarray:
        """uint8 for the arrays of a part."""
        return self.take(layout.nbytes, "weights", what)

    def upload(self, data: np.ndarray, layout: Layout) -> Mapping[str, np.ndarray]:
        """A copy of a part, given as its bytes."""
        arena = self.arena(layout, layout.part)
        np.copyto(arena, data)
        return views(arena, layout)

    def buffers(self, buffers: Sequence[Buffer], kind: str, what: str) -> Mapping[str, Any]:
        """Named buffers, in one arena."""
        arena = self.take(sum(b.nbytes for b in buffers), kind, what)
        result, offset = {}, 0
        for buffer in buffers:
            result[buffer.name] = _view(arena, offset, buffer.dtype, buffer.shape)
            offset += buffer.nbytes
        return result


def views(arena: np.ndarray, layout: Layout) -> dict[str, np.ndarray]:
    """The arrays of a part in its run of bytes."""
    return {a.name: _view(arena, a.offset, a.dtype, a.shape) for a in layout.arrays}


def _view(arena: np.ndarray, offset: int, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    kind = np.dtype(NUMPY[dtype])
    return arena[offset : offset + int(np.prod(shape, dtype=np.int64)) * kind.itemsize].view(kind).reshape(shape)

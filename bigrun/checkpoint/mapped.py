"""Files mapped into memory, with advice to the system: read ahead, map now, release.

Mapped pages are the page cache's: they are shared between processes and go when memory is short. Mapping a stretch at once
costs a tenth of a fault for each of its pages, and forgetting it afterwards keeps a process small that reads a large file.
"""

import ctypes
import mmap
import os
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bigrun.checkpoint.files import open_file
from bigrun.errors import CheckpointError

WILLNEED, DONTNEED, HUGEPAGE, POPULATE_READ = 3, 4, 14, 22  # madvise(2), Linux


class Mapped:
    """A file's bytes, read-only. CheckpointError names the file that cannot be mapped."""

    def __init__(self, path: Path):
        self.path = path
        with open_file(path) as stream:
            try:
                self.data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            except ValueError as error:
                raise CheckpointError(f"{path}: cut short: it is empty; fetch it again") from error
            except OSError as error:
                raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
            self._handle = os.dup(stream.fileno())
        self.size = len(self.data)
        self.address = np.frombuffer(self.data, np.uint8).ctypes.data

    def forget(self, offset: int, nbytes: int, drop: bool) -> None:
        """Unmap these bytes' pages, which are mapped again if they are looked at; `drop` them from the page cache as well."""
        self.advise(offset, nbytes, DONTNEED)
        if drop:
            with suppress(OSError):
                os.posix_fadvise(self._handle, offset, nbytes, os.POSIX_FADV_DONTNEED)

    def __del__(self) -> None:
        if handle := self.__dict__.pop("_handle", 0):
            os.close(handle)

    def array(self, dtype: Any, count: int, offset: int) -> np.ndarray:
        """A read-only view of `count` items from byte `offset` on."""
        return np.frombuffer(self.data, dtype, count, offset)

    def held(self, offset: int, nbytes: int) -> np.ndarray:
        """uint8 [nbytes] that keeps the mapping alive and looks writable; writing to it would end the process."""
        return np.asarray(_Held(self, offset, nbytes))

    def advise(self, offset: int, nbytes: int, advice: int) -> bool:
        """Advises the system about these bytes (in whole pages); False where it does not know the advice."""
        first = offset // mmap.PAGESIZE * mmap.PAGESIZE
        stop = min(offset + nbytes, self.size)
        return first < stop and _madvise()(self.address + first, stop - first, advice) == 0


class _Held:
    """An object that NumPy makes an array from by its address, and that keeps the mapping alive."""

    def __init__(self, mapped: Mapped, offset: int, nbytes: int):
        self.mapped = mapped
        data = (mapped.address + offset, False)
        self.__array_interface__ = {"data": data, "shape": (nbytes,), "typestr": "|u1", "version": 3}


@cache
def _madvise() -> Any:
    """madvise(2), which Python's own mmap calls with the interpreter's lock held."""
    function = ctypes.CDLL(None, use_errno=True).madvise
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function

"""One converted part in a safetensors file, whose data is the part's run of bytes as it lies in memory.

The header names the part, its identity and a checksum of the data, and nothing in it is free: a file's header must be, byte
for byte, what this module would write. With the checksum every damaged byte is found before anything is computed from it.
Data begins on a page, so that it can be mapped; what lies between arrays is a tensor of its own, as the format wants no gaps.
"""

import json
import os
import re
import tempfile
from pathlib import Path

import numpy as np
import xxhash

from bigrun.checkpoint.mapped import HUGEPAGE, POPULATE_READ, Mapped
from bigrun.errors import CheckpointError
from bigrun.model.layout import Layout

PAGE = 4096
PIECE = 32 * 2**20  # bytes that are written, or read and summed up, at a time
DTYPES = {"int8": "I8", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
TEMPORARY = ".tmp"
MODE = 0o644  # others of this host may map it too
NAME = re.compile(r"(embed|norm|head|blocks\.\d+(\.experts)?)\.safetensors", re.ASCII)
UNSUMMED = "0" * 32


def file_name(part: str) -> str:
    return f"{part}.safetensors"


def is_part_file(name: str) -> bool:
    return NAME.fullmatch(name) is not None


def header(layout: Layout, identity: str, checksum: str) -> bytes:
    """The header of a part's file, to the beginning of its data."""
    entries: dict[str, object] = {
        "__metadata__": {"bigrun": "int8 part", "part": layout.part, "identity": identity, "xxh3_128": checksum}
    }
    end = 0
    for array in sorted(layout.arrays, key=lambda array: array.offset):
        if array.offset > end:
            entries[f"padding.{end}"] = _entry("U8", (array.offset - end,), end, array.offset)
        end = array.offset + array.nbytes
        entries[array.name] = _entry(DTYPES[array.dtype], array.shape, array.offset, end)
    if layout.nbytes > end:
        entries[f"padding.{end}"] = _entry("U8", (layout.nbytes - end,), end, layout.nbytes)
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % PAGE)
    return len(text).to_bytes(8, "little") + text


def _entry(dtype: str, shape: tuple[int, ...], begin: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def write(folder: Path, layout: Layout, identity: str, data: np.ndarray) -> None:
    """Write a part's file: under a temporary name, to the disk, then under its own. OSError leaves nothing behind."""
    handle, name = tempfile.mkstemp(dir=folder, prefix=f".{file_name(layout.part)}.", suffix=TEMPORARY)
    try:
        os.fchmod(handle, MODE)
        with os.fdopen(handle, "wb", buffering=0) as file:
            write_all(file.fileno(), header(layout, identity, UNSUMMED))
            total = xxhash.xxh3_128()
            for start in range(0, data.size, PIECE):
                piece = data[start : start + PIECE].data
                total.update(piece)
                write_all(file.fileno(), piece)
            os.lseek(file.fileno(), 0, os.SEEK_SET)
            write_all(file.fileno(), header(layout, identity, total.hexdigest()))
            os.fsync(file.fileno())
        target = folder / file_name(layout.part)
        if target.is_dir() and not target.is_symlink():
            target.rmdir()  # an OSError where there is something in it
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise
    sync_folder(folder)


def write_all(handle: int, data: bytes | memoryview) -> None:
    """Writes all bytes: one call of write(2) takes 2 GiB at most, and less if interrupted."""
    left = memoryview(data).cast("B")
    while left:
        left = left[os.write(handle, left) :]


def sync_folder(folder: Path) -> None:
    """Flushes a folder's renames to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read(path: Path, layout: Layout, identity: str) -> tuple[Mapped, np.ndarray] | None:
    """A part's file and its data, uint8 [layout.nbytes], mapped and checked to the last byte; None where there is none.
    CheckpointError where it is damaged, or was made from something else.

    The array looks writable, as Numba compiles read-only ones anew, but its pages are not.
    """
    if path.is_symlink():
        raise CheckpointError(f"{path}: damaged: a link, where a file was written")
    if not path.exists():
        return None
    mapped = Mapped(path)
    size = int.from_bytes(mapped.data[:8], "little")
    if not 8 + size <= mapped.size or size > len(header(layout, identity, UNSUMMED)) + PAGE:
        raise CheckpointError(f"{path}: damaged: its header does not end where it should")
    try:
        metadata = json.loads(mapped.data[8 : 8 + size])["__metadata__"]
        origin, checksum = str(metadata["identity"]), str(metadata["xxh3_128"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged: its header is no part's") from error
    if mapped.data[: 8 + size] != header(layout, identity, checksum):
        why = "it was made from something else" if origin != identity else f"its header is not that of {layout.part}"
        raise CheckpointError(f"{path}: damaged, or of another conversion: {why}")
    if mapped.size != 8 + size + layout.nbytes:
        raise CheckpointError(f"{path}: cut short: it has {mapped.size} bytes of {8 + size + layout.nbytes}")
    mapped.advise(0, mapped.size, HUGEPAGE)
    data = mapped.held(8 + size, layout.nbytes)
    if _sum(mapped, data, 8 + size) != checksum:
        raise CheckpointError(f"{path}: damaged: its bytes are not those that were written (checksum)")
    return mapped, data


def _sum(mapped: Mapped, data: np.ndarray, offset: int) -> str:
    total = xxhash.xxh3_128()
    for start in range(0, data.size, PIECE):
        # not asked for ahead of time, which would fill the page cache in single pages: a fault may bring large ones
        mapped.advise(offset + start, PIECE, POPULATE_READ)
        total.update(data[start : start + PIECE].data)
    return str(total.hexdigest())

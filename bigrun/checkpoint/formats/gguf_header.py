"""The header of a GGUF file (specification: docs/gguf.md of ggml, version 2 and 3), read with every count checked
against the bytes that are there, and against what any model has: a Python list takes many times the bytes of its file.

The gguf library's reader takes seconds over a tokenizer's arrays; this takes tens of milliseconds, and the library
still does what it is best at: the block types and their dequantisers.
"""

import math
import struct
from dataclasses import dataclass
from typing import Any

from bigrun.errors import CheckpointError
from bigrun.model.file_kind import GGUF, HEAD, what_it_is

STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
MOST_DIMENSIONS = 4
MOST_VALUES = 2**20  # of all arrays; the largest vocabularies have a quarter of a million tokens
MOST_ENTRIES = 2**16
MOST_TENSORS = 2**17
IN_A_BLOCK = 64  # tensors; most architectures have about twelve
LONGEST_NAME = 2**16
LARGEST_HEADER = 64 * 2**20
MOST_IN_A_BYTE = 8  # numbers: no block type takes less than a bit for one


@dataclass(frozen=True)
class GgufTensor:
    """`shape` is in ggml's order, fastest dimension first; `offset` from the start of the file."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


class Reader:
    """A cursor over the file's bytes that cannot run past their end."""

    def __init__(self, data: Any, where: str):
        self.data, self.where, self.position = data, where, 0
        self.end, self.values = min(len(data), LARGEST_HEADER), 0

    def bad(self, why: str) -> CheckpointError:
        return CheckpointError(f"{self.where}: not a sound GGUF file: {why} at byte {self.position}")

    def short(self) -> CheckpointError:
        if self.end < len(self.data):
            return self.bad(f"its header is longer than {LARGEST_HEADER >> 20} MiB")
        return self.bad("the header is cut short")

    def scalar(self, code: str) -> Any:
        size = struct.calcsize("<" + code)
        if self.position + size > self.end:
            raise self.short()
        (value,) = struct.unpack_from("<" + code, self.data, self.position)
        self.position += size
        return value

    def string(self, most: int = LARGEST_HEADER) -> str:
        size = self.scalar("Q")
        if size > len(self.data) - self.position:
            raise self.bad("a string is longer than the file")
        if size > most:
            raise self.bad(f"a string of {size} bytes, where {most} is the most")
        if size > self.end - self.position:
            raise self.short()
        raw = bytes(self.data[self.position : self.position + size])
        self.position += size
        return raw.decode("utf-8", errors="replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind in SCALARS:
            return self.scalar(SCALARS[kind])
        if kind == STRING:
            return self.string()
        if kind != ARRAY or depth:
            raise self.bad(f"a value of unknown type {kind}")
        inner, count = self.scalar("I"), self.scalar("Q")
        least = 8 if inner in (STRING, ARRAY) else struct.calcsize(SCALARS.get(inner, "B"))
        if count > (len(self.data) - self.position) // least:
            raise self.bad(f"an array of {count} values, more than the file holds")
        self.values += count
        if self.values > MOST_VALUES:
            raise self.bad(f"arrays of {self.values} values, where {MOST_VALUES} is the most")
        if count * least > self.end - self.position:
            raise self.short()
        if inner in SCALARS:
            values = struct.unpack_from(f"<{count}{SCALARS[inner]}", self.data, self.position)
            self.position += count * least
            return list(values)
        if inner == STRING:
            return self.strings(count)
        return [self.value(inner, depth + 1) for _ in range(count)]

    def strings(self, count: int) -> list[str]:
        """As `string`, for the hundred thousand of a tokenizer."""
        length, view, end, position = (
            struct.Struct("<Q").unpack_from,
            memoryview(self.data),
            self.end,
            self.position,
        )
        texts = []
        for _ in range(count):
            if position + 8 > end:
                raise self.short()
            start = position + 8
            position = start + length(view, position)[0]
            if position > end:
                raise self.short()
            texts.append(str(view[start:position], "utf-8", "replace"))
        self.position = position
        return texts


def metadata_end(data: Any, where: str) -> int:
    """The byte at which a GGUF file's metadata ends and its list of tensors begins."""
    return _metadata(data, where)[0].position


def _metadata(data: Any, where: str) -> tuple[Reader, dict[str, Any], int]:
    """(a reader behind the metadata, the metadata, how many tensors follow)."""
    reader = Reader(data, where)
    if why := what_it_is(bytes(data[:HEAD])):
        raise CheckpointError(f"{where}: {why}")
    reader.position = len(GGUF)
    version = reader.scalar("I")
    if version & 0xFFFF == 0 and version >> 16:
        raise CheckpointError(f"{where}: a big-endian GGUF file, which is not read: convert it (gguf-convert-endian)")
    if version not in (2, 3):
        raise CheckpointError(f"{where}: GGUF version {version}; bigrun reads 2 and 3")
    tensor_count, value_count = reader.scalar("Q"), reader.scalar("Q")
    if tensor_count > len(data) // 24 or value_count > len(data) // 12:
        raise reader.bad("more entries than the file could hold")
    if tensor_count > MOST_TENSORS:
        raise reader.bad(f"{tensor_count} tensors, where {MOST_TENSORS} is the most")
    if value_count > MOST_ENTRIES:
        raise reader.bad(f"{value_count} entries, where {MOST_ENTRIES} is the most")
    metadata: dict[str, Any] = {}
    for _ in range(value_count):
        name = reader.string(LONGEST_NAME)
        metadata[name] = reader.value(reader.scalar("I"))
    return reader, metadata, tensor_count


def read_header(data: Any, where: str) -> tuple[dict[str, Any], list[GgufTensor]]:
    """(metadata, tensors) of a GGUF file's bytes; CheckpointError says what is unsound."""
    reader, metadata, tensor_count = _metadata(data, where)
    layers = metadata.get(f"{metadata.get('general.architecture')}.block_count")
    most = IN_A_BLOCK * layers + 256 if type(layers) is int and 0 <= layers <= MOST_TENSORS else 2**12
    if tensor_count > most:
        raise reader.bad(f"{tensor_count} tensors, far more than this model has")
    tensors: dict[str, tuple[tuple[int, ...], int, int]] = {}
    for _ in range(tensor_count):
        name, dimensions = reader.string(LONGEST_NAME), reader.scalar("I")
        if name in tensors:
            raise reader.bad(f"a second tensor {name[:60]!r}")
        if not 1 <= dimensions <= MOST_DIMENSIONS:
            raise reader.bad(f"tensor {name[:60]!r} of {dimensions} dimensions")
        shape = tuple(reader.scalar("Q") for _ in range(dimensions))
        if not 1 <= math.prod(shape) <= len(data) * MOST_IN_A_BYTE:
            raise reader.bad(f"tensor {name[:60]!r} of {math.prod(shape)} numbers, which the file cannot hold")
        tensors[name] = (shape, reader.scalar("I"), reader.scalar("Q"))
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 2**20:
        raise reader.bad(f"an alignment of {alignment!r:.30}")
    start = -(-reader.position // alignment) * alignment
    return metadata, [GgufTensor(name, shape, kind, start + offset) for name, (shape, kind, offset) in tensors.items()]

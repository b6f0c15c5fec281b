"""GGUF files of the Llama architecture: tensors dequantised some rows at a time with the gguf library's own code."""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bigrun.checkpoint.base import Limits, Rows, TensorInfo
from bigrun.checkpoint.files import GGUF_METADATA
from bigrun.checkpoint.formats.gguf_config import ROPE_FREQS, absent_biases, make_config
from bigrun.checkpoint.formats.gguf_header import MOST_TENSORS, GgufTensor, metadata_end, read_header
from bigrun.checkpoint.mapped import WILLNEED, Mapped
from bigrun.errors import CheckpointError
from bigrun.model.source import Dialect

# What the gguf library and llama.cpp name the files of a set; what follows the numbers is the user's business
SPLIT = re.compile(r"(.*-)([0-9]{5})-of-([0-9]{5})((?:\.[^/]*)?)", re.DOTALL)
MOST_LINKS = 40  # that are followed to a name; the system follows as many
ZEROS = "zeros"  # the dtype of a bias that the file leaves out


@dataclass(frozen=True)
class _File:
    """One file of a checkpoint, mapped, its header read."""

    path: Path
    mapped: Mapped
    metadata: dict[str, Any]
    tensors: list[GgufTensor]


class GgufCheckpoint:
    """A GGUF file, or any of a split set's, which is then all opened. `config` is its metadata in Hugging Face's words."""

    format = "GGUF"
    dialect: Dialect = "gguf"

    def __init__(self, path: Path):
        self.where, self.folder = str(path), path.parent
        self.limits = Limits(MOST_TENSORS)  # which the header is held to here: nothing of it is left to be read
        self.notes: list[str] = []
        self._files = _open_all(path)
        self.paths = tuple(file.path for file in self._files)
        self.metadata: Mapping[str, Any] | None = self._files[0].metadata
        self._entries: dict[str, GgufTensor] = {}
        self._homes: dict[str, _File] = {}
        tensors: dict[str, TensorInfo] = {}
        for file in self._files:
            for tensor in file.tensors:
                name = tensor.name
                if name in self._entries:
                    other = self._homes[name].path.name
                    raise CheckpointError(f"{file.path}: tensor {name[:80]!r} is in {other} too; fetch the set again")
                self._entries[name], self._homes[name], tensors[name] = tensor, file, _info(tensor, file)
            _check_apart(file, tensors)
        self.tensors: Mapping[str, TensorInfo] = tensors
        where = str(self.paths[0])
        self.config: Mapping[str, Any] = make_config(self._files[0].metadata, self._entries, self._vector, where)
        tensors.pop(ROPE_FREQS, None)  # the configuration has its numbers
        for name, count in absent_biases(self._entries, self.config).items():
            tensors[name] = TensorInfo(ZEROS, (count,), 0, True, where)

    def companions(self) -> Mapping[str, bytes]:
        """The file without its tensors: what a tokenizer is made from, as a GGUF file of its own."""
        data = self._files[0].mapped.data
        return {GGUF_METADATA: bytes(data[:8]) + bytes(8) + bytes(data[16 : metadata_end(data, str(self.paths[0]))])}

    def _vector(self, name: str) -> np.ndarray:
        """All numbers of a small tensor."""
        info = self.tensors[name]
        if not info.readable:
            raise CheckpointError(f"{info.where}: tensor {name} is {info.dtype}, which bigrun does not read yet")
        return self.rows(name, 0, info.shape[0]).values

    def rows(self, name: str, start: int, stop: int) -> Rows:
        from gguf import GGMLQuantizationType, dequantize

        if self.tensors[name].dtype == ZEROS:
            return Rows(np.zeros(stop - start, np.float32))
        tensor, mapped = self._entries[name], self._homes[name].mapped.data
        kind = GGMLQuantizationType(tensor.kind)
        row_bytes = _row_bytes(tensor)
        shape = tuple(reversed(tensor.shape))
        if len(shape) == 1:  # a vector's rows are its entries, and it is stored as one row of blocks
            entries = np.frombuffer(mapped, np.uint8, row_bytes, tensor.offset)
            return Rows(_floats(entries, kind, dequantize).reshape(-1)[start:stop])
        width = row_bytes * math.prod(shape[1:-1])  # a row of more than a matrix's is several of blocks
        data = np.frombuffer(mapped, np.uint8, (stop - start) * width, tensor.offset + start * width)
        values = _floats(data.reshape(-1, row_bytes), kind, dequantize)
        return Rows(values.reshape(stop - start, *shape[1:]))

    def ahead(self, name: str, start: int, stop: int) -> None:
        if name in self._homes:
            self._homes[name].mapped.advise(*self._span(name, start, stop), WILLNEED)

    def done(self, name: str, start: int, stop: int, drop: bool = False) -> None:
        if name in self._homes:
            self._homes[name].mapped.forget(*self._span(name, start, stop), drop)

    def _span(self, name: str, start: int, stop: int) -> tuple[int, int]:
        """(first byte, bytes) of some rows of a tensor."""
        tensor = self._entries[name]
        if len(tensor.shape) == 1:  # one row of blocks
            start, stop = 0, 1
        width = math.prod(tensor.shape[1:-1]) * _row_bytes(tensor)
        return tensor.offset + start * width, (stop - start) * width


def _open_all(path: Path) -> tuple[_File, ...]:
    """Opens a file, or all files of its split set in order: their names follow from the file's own, never from its content."""
    named_file = _open(path)
    total = _split(named_file, "count")
    if total is None or total < 2:
        return (named_file,)
    path, parts = _name_in_set(path, total)
    named_file = replace(named_file, path=path)
    files: list[_File] = []
    file_count = int(parts[3])
    for at in range(file_count):
        other = path.with_name(f"{parts[1]}{at + 1:05}-of-{parts[3]}{parts[4]}")
        file = named_file if other == path else _open(other)
        number, total = _split(file, "no"), _split(file, "count")
        if (number, total) != (at, file_count):
            says = "no split at all" if number is None or total is None else f"{number + 1} of {total}"
            raise CheckpointError(f"{other}: its header says {says}, its name {at + 1} of {file_count}; fetch it again")
        files.append(replace(file, metadata=file.metadata if at == 0 else {}))
        count = sum(len(file.tensors) for file in files)
        if count > MOST_TENSORS:
            raise CheckpointError(f"{other}: {count} tensors in its set so far, where {MOST_TENSORS} is the most")
    tensors = _split(files[0], "tensors.count")
    if count != tensors:
        raise CheckpointError(f"{files[0].path}: split.tensors.count is {tensors}, the set has {count}; fetch it again")
    return tuple(files)


def _name_in_set(path: Path, total: int) -> tuple[Path, re.Match[str]]:
    """The path, or the one that it links to, whose name says which file of a set it is; CheckpointError where none does."""
    at = path
    for _ in range(MOST_LINKS):
        parts = SPLIT.fullmatch(at.name)
        if parts is not None and 1 <= int(parts[2]) <= int(parts[3]) and int(parts[3]) > 1:
            return at, parts
        try:
            at = at.parent / os.readlink(at)
        except OSError:  # no link
            break
    raise CheckpointError(
        f"{path}: one file of a set of {total}; give it the name that it had, NAME-00001-of-{total:05}.gguf"
    )


def _check_apart(file: _File, tensors: Mapping[str, TensorInfo]) -> None:
    """CheckpointError where two tensors of a file share a byte."""
    end, before = 0, ""
    for tensor in sorted(file.tensors, key=lambda tensor: tensor.offset):
        if tensor.offset < end:
            raise CheckpointError(
                f"{file.path}: damaged: tensors {before[:60]} and {tensor.name[:60]} overlap; fetch it again"
            )
        end, before = tensor.offset + tensors[tensor.name].nbytes, tensor.name


def _open(path: Path) -> _File:
    mapped = Mapped(path)
    return _File(path, mapped, *read_header(mapped.data, str(path)))


def _split(file: _File, key: str) -> int | None:
    value = file.metadata.get(f"split.{key}")
    if value is None or (type(value) is int and 0 <= value < 2**31):
        return value
    raise CheckpointError(
        f"{file.path}: split.{key} is {value!r:.40}, not a number of files or tensors; fetch it again"
    )


def _info(tensor: GgufTensor, file: _File) -> TensorInfo:
    from gguf import GGMLQuantizationType

    try:
        kind = GGMLQuantizationType(tensor.kind)
        row_bytes = _row_bytes(tensor)
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{file.path}: tensor {tensor.name[:80]!r} has unknown type {tensor.kind}") from error
    nbytes = row_bytes * math.prod(tensor.shape[1:])
    if nbytes > file.mapped.size - tensor.offset:
        raise CheckpointError(
            f"{file.path}: cut short: tensor {tensor.name[:80]!r} ends beyond the file; fetch it again"
        )
    return TensorInfo(kind.name, tuple(reversed(tensor.shape)), nbytes, _readable(kind), str(file.path))


DEQUANTISED_BYTES = 1 << 17  # of blocks at a time


def _readable(kind: Any) -> bool:
    from gguf import GGMLQuantizationType, quants

    plain = (GGMLQuantizationType.F32, GGMLQuantizationType.F16)
    return kind in plain or kind in quants._type_traits


def _floats(data: np.ndarray, kind: Any, dequantize: Any) -> np.ndarray:
    """Rows of blocks → float32 [rows, columns]. The library is given some rows as one: it would take them sixteen at a time,
    and its temporary arrays are best kept in the cache."""
    data = np.atleast_2d(data)
    step, parts = max(1, DEQUANTISED_BYTES // data.shape[1]), []
    with np.errstate(all="ignore"):  # an inf among the scales is reported when the rows are converted
        for start in range(0, len(data), step):
            some = data[start : start + step]
            parts.append(np.array(dequantize(some.reshape(1, -1), kind), dtype=np.float32).reshape(len(some), -1))
    return np.concatenate(parts) if parts else np.empty((0, 0), np.float32)


def _row_bytes(tensor: GgufTensor) -> int:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    block, size = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.kind)]
    if tensor.shape[0] % block:
        raise KeyError(tensor.kind)
    return tensor.shape[0] // block * size

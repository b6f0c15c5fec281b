"""Sharded and single safetensors, mapped, never read as a whole: float64 to bfloat16, and float8 e4m3 with scales in
blocks, as DeepSeek-V3 and others are published (NAME beside NAME_scale_inv or NAME_scale)."""

import json
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from bigrun.checkpoint.base import Limits, Rows, TensorInfo
from bigrun.checkpoint.files import read_companions, read_file
from bigrun.checkpoint.formats.float8 import block_of, block_size, scale_of
from bigrun.checkpoint.formats.safetensors_header import MOST_TENSORS, Entry, data_bytes, longest, parse, weight_map
from bigrun.checkpoint.mapped import POPULATE_READ, WILLNEED, Mapped
from bigrun.errors import CheckpointError
from bigrun.model.source import Dialect

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.uint16, "BF16": np.uint16, "F8_E4M3": np.uint8}
LONGEST_NAME = 255
LARGEST_JSON = 2**18  # bytes; the configurations of language models have some thousand


def read_json(path: Path, most: int = LARGEST_JSON) -> Any:
    """A JSON file of reasonable size; CheckpointError names the file."""
    try:
        return json.loads(read_file(path, most).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON: {str(error)[:120]}") from error


def read_config(folder: Path) -> dict[str, Any]:
    """A folder's config.json."""
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise CheckpointError(f"{folder / 'config.json'}: not a JSON object")
    return config


def inside(folder: Path, file: str, index: str) -> Path:
    """The path of a file that an index names; CheckpointError where the name leads out of the folder, or a link to no plain
    file.

    Links are followed: the hub's cache links into its blobs, its client and shared stores to folders of their own, and it
    was no index that made them.
    """
    pure, path = PurePosixPath(file), folder / file
    bad = pure.is_absolute() or ".." in pure.parts or "\\" in file or not file.isprintable()
    bad = bad or not 1 <= len(file.encode("utf-8", "replace")) <= LONGEST_NAME
    if bad:
        says = f"{folder / index}: names {file[:80]!r}, which" if (folder / index).exists() else str(path)
        raise CheckpointError(f"{says} is outside the checkpoint's folder")
    try:
        plain = path.is_file() or not path.exists()  # what is missing is said by whoever opens it
    except (OSError, RuntimeError):  # links in a circle, among others
        plain = False
    if not plain:
        raise CheckpointError(f"{path}: is no plain file; fetch it again")
    return path


def chosen(folder: Path, index: str, single: str, named: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """(the files of a folder with an index that names these, "" or a note for the user): the shards, unless some are missing
    and there is a single file beside the index. transformers takes the single file in either case; an older one that was
    left behind is more likely than an index without a use."""
    shards = tuple(dict.fromkeys(named))
    if not (folder / single).exists():
        return shards, ""
    if single in shards:
        return shards, ""
    missing = [file for file in shards if not inside(folder, file, index).exists()]
    if missing:
        return (single,), f"{folder / index}: {missing[0][:80]} is missing: {single} is read instead"
    return shards, f"{folder / single}: not read: {index} and its shards are beside it; remove the one that is stale"


def twice(index: Path, doubled: Sequence[tuple[str, str]]) -> list[str]:
    """A note for each shard from which tensors are read that another one holds as well."""
    by_file: dict[str, list[str]] = {}
    for name, file in doubled:
        by_file.setdefault(file, []).append(name)
    return [
        f"{index}: {_some(names)} in another shard as well: read from {file[:80]}" for file, names in by_file.items()
    ]


def lost_names(names: Sequence[str]) -> str:
    """What to say of tensors that an index names and no shard holds."""
    return f"{_some(names)} named, but not in its shard"


def _some(names: Sequence[str]) -> str:
    return f"tensor {names[0][:100]}" + (f" and {len(names) - 1} more are" if len(names) > 1 else " is")


class SafetensorsCheckpoint:
    """A folder with config.json and model.safetensors, or its index and shards.

    `limits` bounds what its headers and its index may hold; whoever knows the model sets it before they are read.
    """

    format = "safetensors"
    dialect: Dialect = "hf"
    metadata: Mapping[str, Any] | None = None

    def __init__(self, folder: Path):
        self.folder, self.where = folder, str(folder)
        self.config: Mapping[str, Any] = read_config(folder)
        self.limits = Limits(MOST_TENSORS)
        self.notes: list[str] = []
        self._doubled: list[tuple[str, str]] = []  # tensors in two shards, and the one that they are read from
        self._maps: dict[str, tuple[Mapped, int, dict[str, Entry]]] = {}
        self._blocks: dict[str, np.ndarray] = {}

    @cached_property
    def _weight_map(self) -> Mapping[str, str]:
        """Tensor → file as the index says; empty where there is none."""
        index = self.folder / INDEX
        if not index.exists():
            return {}
        most = self.limits.tensors
        return weight_map(read_file(index, longest(most)), str(index), most)

    @cached_property
    def files(self) -> tuple[str, ...]:
        """The shards, in the order of the index, or the single file."""
        if not (self.folder / INDEX).exists():
            if not os.path.lexists(self.folder / SINGLE):
                raise CheckpointError(f"{self.folder}: holds neither {SINGLE} nor {INDEX}, nor pytorch_model.bin")
            return (SINGLE,)
        files, note = chosen(self.folder, INDEX, SINGLE, list(self._weight_map.values()))
        self.notes += [note] if note else []
        return files

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(self.folder / file for file in self.files)

    def companions(self) -> Mapping[str, bytes]:
        return read_companions(self.folder)

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors but the scales of float8 ones, which belong to these."""
        self._home: dict[str, str] = {}
        entries: dict[str, Entry] = {}
        for file in self.files:
            for name, entry in self._open(file)[2].items():
                if name in entries and not self._decides(name, file):
                    continue
                entries[name], self._home[name] = entry, file
        self.notes += twice(self.folder / INDEX, self._doubled)
        if lost := [name for name in self._weight_map if name not in entries]:
            self.notes.append(f"{self.folder / INDEX}: {lost_names(lost)}")
        blocks = block_size(self.config)
        scales = {name: scale_of(name, entries, blocks) for name, entry in entries.items() if entry.dtype == "F8_E4M3"}
        self._scales = {name: scale for name, scale in scales.items() if scale}
        hidden = set(self._scales.values())
        result = {}
        for name, entry in entries.items():
            if name not in hidden:
                readable = entry.dtype in DTYPES and (entry.dtype != "F8_E4M3" or name in self._scales)
                where, scale_info, scale_bytes = str(self.folder / self._home[name]), None, 0
                if scale := self._scales.get(name):
                    scale_bytes = entries[scale].nbytes
                    height, width = entry.shape
                    block = self._block(height, width, entries[scale].shape)
                    scale_info = (scale, str(self.folder / self._home[scale]), *block)
                result[name] = TensorInfo(
                    entry.dtype, entry.shape, entry.nbytes, readable, where, scale_info, scale_bytes=scale_bytes
                )
        return result

    def _decides(self, name: str, file: str) -> bool:
        """Whether a tensor that two shards hold is read from this one: the index says which."""
        first, named = self._home[name], self._weight_map.get(name)
        if named not in self.files or name not in self._open(named)[2]:
            raise CheckpointError(
                f"{self.folder / file}: tensor {name[:100]} is in {first} as well, and {INDEX} does not say which to read"
            )
        self._doubled.append((name, named))
        return named == file

    def _block(self, rows: int, columns: int, shape: tuple[int, ...]) -> tuple[int, int]:
        return block_of(rows, columns, shape, block_size(self.config))

    def rows(self, name: str, start: int, stop: int) -> Rows:
        info = self.tensors[name]
        mapped, offset, nbytes = self._span(name, start, stop)
        mapped.advise(offset, nbytes, POPULATE_READ)
        dtype = np.dtype(DTYPES[info.dtype])
        values = mapped.array(dtype, nbytes // dtype.itemsize, offset).reshape(stop - start, *info.shape[1:])
        if info.dtype == "F64":  # rounded, as transformers does when it is asked for float32
            with np.errstate(over="ignore"):  # an inf is reported when the rows are converted
                return Rows(values.astype(np.float32))
        if info.dtype != "F8_E4M3":
            return Rows(values, info.dtype == "BF16")
        blocks = self._block_scales(name)
        height, width = info.shape
        tall, across = self._block(height, width, blocks.shape)
        blocks = blocks.reshape(-(-height // tall), -(-width // across))
        return Rows(values, False, blocks, (start, tall, across))

    def ahead(self, name: str, start: int, stop: int) -> None:
        mapped, offset, nbytes = self._span(name, start, stop)
        mapped.advise(offset, nbytes, WILLNEED)

    def done(self, name: str, start: int, stop: int, drop: bool = False) -> None:
        mapped, offset, nbytes = self._span(name, start, stop)
        mapped.forget(offset, nbytes, drop)

    def _span(self, name: str, start: int, stop: int) -> tuple[Mapped, int, int]:
        """(file, first byte, bytes) of some rows of a tensor."""
        mapped, base, header = self._open(self._home[name])
        entry = header[name]
        row = entry.nbytes // max(1, entry.shape[0] if entry.shape else 1)
        return mapped, base + entry.begin + start * row, (stop - start) * row

    def _block_scales(self, name: str) -> np.ndarray:
        if name not in self._blocks:
            scale = self._scales[name]
            mapped, base, header = self._open(self._home[scale])
            entry = header[scale]
            dtype = np.dtype(DTYPES[entry.dtype])
            values = mapped.array(dtype, entry.nbytes // dtype.itemsize, base + entry.begin).reshape(entry.shape)
            self._blocks[name] = Rows(values, entry.dtype == "BF16").floats()
        return self._blocks[name]

    def _open(self, file: str) -> tuple[Mapped, int, dict[str, Entry]]:
        """(mapping, where its data begins, header) of a shard."""
        if file not in self._maps:
            path = inside(self.folder, file, INDEX)
            if not path.exists():
                raise CheckpointError(f"{path}: missing, though {INDEX} names it")
            mapped = Mapped(path)
            size, most = int.from_bytes(mapped.data[:8], "little"), longest(self.limits.tensors)
            if mapped.size < 8 or 8 + size > mapped.size:
                raise CheckpointError(
                    f"{path}: damaged or cut short: its header would end at {8 + size}; fetch it again"
                )
            if size > most:
                raise CheckpointError(f"{path}: its header has {size} bytes, far more than this model's tensors take")
            header = parse(mapped.data[8 : 8 + size], str(path), self.limits.tensors)
            end = 8 + size + data_bytes(header)
            if end != mapped.size:
                raise CheckpointError(
                    f"{path}: damaged or cut short: has {mapped.size} bytes, its header describes {end}; fetch it again"
                )
            _agree(path)
            self._maps[file] = (mapped, 8 + size, header)
        return self._maps[file]


def _agree(path: Path) -> None:
    """CheckpointError where the format's own library, which goes second, does not take the file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged ({str(error)[:120]}); fetch it again") from error

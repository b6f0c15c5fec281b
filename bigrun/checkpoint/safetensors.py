"""Sharded and single safetensors (format: the safetensors library's README, "Format"), mapped, never read as a whole.

The library checks each header against its file (length, offsets, overlaps); rows then come straight from the mapping.
"""

import json
import mmap
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from bigrun.checkpoint.base import Rows, TensorInfo
from bigrun.errors import CheckpointError
from bigrun.model.source import Dialect

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
DTYPES = {"F32": np.float32, "F16": np.uint16, "BF16": np.uint16}
LONGEST_NAME = 255
LARGEST_JSON = 512 * 2**20  # an index of a hundred thousand tensors is 10 MB


def read_json(path: Path) -> Any:
    """A JSON file of reasonable size; CheckpointError names the file."""
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise CheckpointError(f"{path}: larger than {LARGEST_JSON >> 20} MiB, which no such file is")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON: {str(error)[:120]}") from error


class SafetensorsCheckpoint:
    """A folder with config.json and model.safetensors, or its index and shards."""

    dialect: Dialect = "hf"

    def __init__(self, folder: Path):
        self.folder, self.where = folder, str(folder)
        self.config: Mapping[str, Any] = read_json(folder / "config.json")
        if not isinstance(self.config, dict):
            raise CheckpointError(f"{folder / 'config.json'}: not a JSON object")
        self._maps: dict[str, tuple[mmap.mmap, int, dict[str, Any]]] = {}

    @cached_property
    def files(self) -> tuple[str, ...]:
        """The shards, in the order of the index."""
        index = self.folder / INDEX
        if not index.exists():
            if not (self.folder / SINGLE).exists():
                raise CheckpointError(
                    f"{self.folder}: holds neither {SINGLE} nor {INDEX}; other formats are not read yet"
                )
            return (SINGLE,)
        content = read_json(index)
        weight_map = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
            raise CheckpointError(f"{index}: has no 'weight_map' of tensor names to file names")
        return tuple(dict.fromkeys(weight_map.values()))

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        result: dict[str, TensorInfo] = {}
        self._home: dict[str, str] = {}
        for file in self.files:
            for name, entry in self._open(file)[2].items():
                begin, end = entry["data_offsets"]
                where = str(self.folder / file)
                readable = entry["dtype"] in DTYPES
                result[name] = TensorInfo(entry["dtype"], tuple(entry["shape"]), end - begin, readable, where)
                self._home[name] = file
        return result

    def rows(self, name: str, start: int, stop: int) -> Rows:
        info = self.tensors[name]
        data, base, header = self._open(self._home[name])
        dtype = np.dtype(DTYPES[info.dtype])
        width = int(np.prod(info.shape[1:], dtype=np.int64))
        offset = base + header[name]["data_offsets"][0] + start * width * dtype.itemsize
        values = np.frombuffer(data, dtype, (stop - start) * width, offset)
        return Rows(values.reshape(stop - start, *info.shape[1:]), info.dtype == "BF16")

    def _open(self, file: str) -> tuple[mmap.mmap, int, dict[str, Any]]:
        """(mapping, where its data begins, header) of a shard, checked by the safetensors library."""
        if file in self._maps:
            return self._maps[file]
        path = self._inside(file)
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy"):
                pass
            with open(path, "rb") as stream:
                mapping = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError as error:
            raise CheckpointError(f"{path}: missing, though {INDEX} names it") from error
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{path}: damaged or cut short ({str(error)[:120]}); fetch it again") from error
        size = int.from_bytes(mapping[:8], "little")
        header = json.loads(mapping[8 : 8 + size])
        header.pop("__metadata__", None)
        self._maps[file] = (mapping, 8 + size, header)
        return self._maps[file]

    def _inside(self, file: str) -> Path:
        """The shard's path; CheckpointError where the index, or a link, leads out of the folder.

        The hub's cache links from a snapshot into the blobs beside it: that is where its files are.
        """
        pure = PurePosixPath(file)
        bad = pure.is_absolute() or ".." in pure.parts or "\\" in file or not file.isprintable()
        bad = bad or not 1 <= len(file) <= LONGEST_NAME
        path = self.folder / file
        if not bad and path.exists():
            real, home = path.resolve(), self.folder.resolve()
            blobs = home.parent.parent / "blobs"
            bad = real.is_dir() or not (
                real.is_relative_to(home) or (home.parent.name == "snapshots" and real.is_relative_to(blobs))
            )
        if bad:
            raise CheckpointError(
                f"{self.folder / INDEX}: names {file[:80]!r}, which is outside the checkpoint's folder"
            )
        return path

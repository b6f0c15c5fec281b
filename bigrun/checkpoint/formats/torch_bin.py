"""Folders of torch.save's files, single or sharded, mapped by torch once they have been looked through.

Such a file is a zip of stored records: data.pkl, a program, and the tensors' bytes. torch's reader believes what it
reads, so a file goes to it only where there is one way to read the zip, and pickle_guard.py has passed the program.
"""

import contextlib
import ctypes
import mmap
import os
import struct
import zipfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from bigrun.checkpoint.base import Limits, Rows, TensorInfo
from bigrun.checkpoint.files import open_file, read_companions, read_file
from bigrun.checkpoint.formats.pickle_guard import ANEW, ITEM_BYTES, Bad, Record, StoredTensor, read_program
from bigrun.checkpoint.formats.safetensors import chosen, inside, lost_names, read_config, twice
from bigrun.checkpoint.formats.safetensors_header import MOST_TENSORS, weight_map
from bigrun.errors import CheckpointError
from bigrun.model.source import Dialect

INDEX = "pytorch_model.bin.index.json"
SINGLE = "pytorch_model.bin"
READABLE = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
LARGEST_INDEX = 2**20  # bytes
LARGEST_DIRECTORY = 2**20  # bytes of the zip's directory: ten thousand records
LARGEST_PROGRAM = 2**20  # bytes of data.pkl: some four thousand tensors
LARGEST_NOTE = 1024  # bytes of any record that is no tensor's


class TorchCheckpoint:
    """A folder with config.json and pytorch_model.bin, or its index and shards."""

    format = "torch"
    dialect: Dialect = "hf"
    metadata: Mapping[str, Any] | None = None

    def __init__(self, folder: Path):
        self.folder, self.where = folder, str(folder)
        self.limits = Limits(MOST_TENSORS)
        self.config: Mapping[str, Any] = read_config(folder)
        self.notes: list[str] = []
        self._doubled: list[tuple[str, str]] = []  # tensors in two shards, and the one that they are read from
        self._shards: dict[str, dict[str, StoredTensor]] = {}
        self._loaded: dict[str, Mapping[str, Any]] = {}

    @cached_property
    def _weight_map(self) -> Mapping[str, str]:
        """Tensor name → file as the index says; empty where there is none."""
        index = self.folder / INDEX
        if not index.exists():
            if not os.path.lexists(self.folder / SINGLE):
                raise CheckpointError(f"{self.folder}: holds neither {SINGLE} nor {INDEX}")
            return {}
        return weight_map(read_file(index, LARGEST_INDEX), str(index))

    @cached_property
    def _files(self) -> tuple[str, ...]:
        if not (self.folder / INDEX).exists():
            return (SINGLE,)
        files, note = chosen(self.folder, INDEX, SINGLE, list(self._weight_map.values()))
        self.notes += [note] if note else []
        return files

    @cached_property
    def paths(self) -> tuple[Path, ...]:
        """The shards, in the order of the index."""
        return tuple(inside(self.folder, file, INDEX) for file in self._files)

    @cached_property
    def _homes(self) -> Mapping[str, str]:
        """Tensor name → the file that it is read from: the index's where two hold it."""
        homes: dict[str, str] = {}
        index = {name: file for name, file in self._weight_map.items() if file in self._files}
        for file in self._files:
            for name in self._shard(file):
                if name in homes:
                    self._decide(name, homes[name], file)
                homes[name] = file
            if len(homes) > self.limits.tensors:
                raise CheckpointError(
                    f"{self.folder / file}: {len(homes)} tensors so far, far more than this model has"
                )
        lost = [name for name, file in index.items() if name not in self._shard(file)]
        if lost:
            self.notes.append(f"{self.folder / INDEX}: {lost_names(lost)}")
        self.notes += twice(self.folder / INDEX, self._doubled)
        return homes | {name: file for name, file in index.items() if name not in lost}

    def _decide(self, name: str, first: str, file: str) -> None:
        """Notes which of two shards a tensor is read from: the index says it."""
        named = self._weight_map.get(name)
        if named not in self._files or name not in self._shard(named):
            raise CheckpointError(
                f"{self.folder / file}: tensor {name[:100]} is in {first} as well, and {INDEX} does not say which to read"
            )
        self._doubled.append((name, named))

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return {name: self._info(file, self._shard(file)[name]) for name, file in self._homes.items()}

    def _info(self, file: str, tensor: StoredTensor) -> TensorInfo:
        where, readable = str(self.folder / file), tensor.dtype in READABLE
        place = (where, tensor.first, tensor.strides)
        return TensorInfo(tensor.dtype, tensor.shape, tensor.nbytes, readable, where, place=place)

    def companions(self) -> Mapping[str, bytes]:
        return read_companions(self.folder)

    def rows(self, name: str, start: int, stop: int) -> Rows:
        """Rows of a tensor: a view of the file where they are contiguous in it, otherwise a copy."""
        import torch

        info = self.tensors[name]
        some = self._load(self._homes[name])[name].detach()[start:stop].contiguous()
        if info.dtype == "F64":  # rounded, as transformers does when it is asked for float32
            some = some.float()
        values = some.numpy() if info.dtype in ("F64", "F32") else some.view(torch.int16).numpy().view("uint16")
        if not values.flags.aligned:
            values = values.copy()
        values.flags.writeable = False
        return Rows(values, info.dtype == "BF16")

    def ahead(self, name: str, start: int, stop: int) -> None:
        self._advise(name, start, stop, os.POSIX_FADV_WILLNEED)

    def _advise(self, name: str, start: int, stop: int, advice: int) -> None:
        skipped, nbytes = self._span(name, start, stop)
        with contextlib.suppress(OSError):  # a hint: whoever reads the rows says what is wrong
            descriptor = os.open(self.folder / self._homes[name], os.O_RDONLY)
            try:
                first = self._shard(self._homes[name])[name].first + skipped
                os.posix_fadvise(descriptor, first, nbytes, advice)
            finally:
                os.close(descriptor)

    def done(self, name: str, start: int, stop: int, drop: bool = False) -> None:
        """Unmaps the pages of these rows; a later read maps them again."""
        file = self._homes[name]
        if file in self._loaded:
            skipped, nbytes = self._span(name, start, stop)
            first = self._loaded[file][name].data_ptr() + skipped
            page = -(-first // mmap.PAGESIZE) * mmap.PAGESIZE  # the first and last pages are others' too
            length = (first + nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - page
            if length > 0:
                ctypes.CDLL(None).madvise(ctypes.c_void_p(page), ctypes.c_size_t(length), mmap.MADV_DONTNEED)
        if drop:
            self._advise(name, start, stop, os.POSIX_FADV_DONTNEED)

    def _span(self, name: str, start: int, stop: int) -> tuple[int, int]:
        """(bytes from the tensor's first on, their number) that these rows lie in, with what lies between them."""
        tensor = self._shard(self._homes[name])[name]
        if stop <= start or 0 in tensor.shape or not tensor.shape:
            return 0, 0
        row, item = tensor.strides[0], ITEM_BYTES[tensor.dtype]
        inner = zip(tensor.shape[1:], tensor.strides[1:], strict=True)
        entries = (stop - 1 - start) * row + sum((extent - 1) * stride for extent, stride in inner) + 1
        return start * row * item, entries * item

    def _shard(self, file: str) -> dict[str, StoredTensor]:
        """The tensors of a shard, as the pickle guard found them."""
        if file not in self._shards:
            self._shards[file] = stored_tensors(inside(self.folder, file, INDEX))
        return self._shards[file]

    def _load(self, file: str) -> Mapping[str, Any]:
        """A shard's tensors, mapped. torch must have read the same file in the same way as the guard."""
        if file in self._loaded:
            return self._loaded[file]
        shard = self._shard(file)
        import torch

        path = self.folder / file
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            loaded = loaded if loaded.keys() == shard.keys() else loaded["state_dict"]
            same = loaded.keys() == shard.keys() and all(
                (tuple(loaded[name].shape), loaded[name].stride()) == (tensor.shape, tensor.strides)
                and loaded[name].element_size() == ITEM_BYTES[tensor.dtype]
                and (tensor.dtype not in READABLE or loaded[name].dtype == getattr(torch, READABLE[tensor.dtype]))
                for name, tensor in shard.items()
            )
        except Exception as error:  # torch raises of all kinds, and what they say goes on for paragraphs
            why = (str(error).strip().splitlines() or [type(error).__name__])[0]
            # torch's mappings count in full against what the host may promise: its memory, and its swap
            advice = "save it anew in shards" if "Cannot allocate memory" in why else "fetch it again"
            raise CheckpointError(f"{path}: torch cannot map it ({why[:120]}); {advice}") from error
        if not same:
            raise CheckpointError(
                f"{path}: torch reads other tensors in it than its zip and pickle say; fetch it again"
            )
        self._loaded[file] = loaded
        return loaded


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file of torch.save by name; CheckpointError where it is unsound, or holds anything else."""
    try:
        if not path.is_file():
            raise Bad("is no file" if path.exists() else "is missing")
        with open_file(path) as stream:
            records, program = _records(stream)
        return read_program(program, records)
    except Bad as error:
        raise CheckpointError(f"{path}: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


def _records(stream: BinaryIO) -> tuple[dict[str, Record], bytes]:
    """(a tensor's record by its key, data.pkl) of a zip that every reader reads alike."""
    size = stream.seek(0, os.SEEK_END)
    head = _bytes(stream, 0, min(4, size))
    if head[:1] == b"\x80":
        raise Bad(f"a bare pickle, as torch wrote before 1.6, which cannot be mapped; {ANEW}")
    if head != b"PK\3\4":
        raise Bad("empty; fetch it again" if not size else "not a file of torch.save; fetch it again")
    directory = _directory(stream, size)
    try:
        archive = zipfile.ZipFile(stream)
        listed = sorted(archive.infolist(), key=lambda info: info.header_offset)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error) as error:
        raise Bad(f"not a sound zip: {str(error)[:80]}; fetch it again") from error
    prefix = listed[0].filename.partition("/")[0] + "/" if listed else "/"
    infos: dict[str, zipfile.ZipInfo] = {}
    places: dict[str, Record] = {}
    end = 0
    for info in listed:
        name = info.orig_filename
        # torch's reader does not tell upper from lower case
        if not name.startswith(prefix) or name != info.filename or name.removeprefix(prefix).lower() in infos:
            raise Bad(f"not a sound zip: a second {name[:80]!r}, or one beside its folder")
        short = name.removeprefix(prefix).lower()
        if (info.header_offset < end) or (end == 0 and info.header_offset):
            raise Bad(f"not a sound zip: record {name[:80]!r} overlaps another")
        first = _first_byte(stream, info)
        end = first + info.file_size
        if info.compress_size != info.file_size or end > directory:
            raise Bad(f"cut short, or not a sound zip: record {name[:80]!r} ends beyond its place; fetch it again")
        if short == "constants.pkl" or short.startswith("code/"):
            raise Bad("holds code: a TorchScript program; save the model's state_dict() alone")
        limit = LARGEST_PROGRAM if short == "data.pkl" else end if short.startswith("data/") else LARGEST_NOTE
        if info.file_size > limit:
            raise Bad(f"record {name[:80]!r} has {info.file_size} bytes, more than the {limit} that it may have")
        infos[short], places[name.removeprefix(prefix)] = info, Record(first, info.file_size)
    if "data.pkl" not in places:
        raise Bad("a zip without data.pkl, so not a file of torch.save")
    try:
        if "byteorder" in infos and archive.read(infos["byteorder"]) != b"little":
            raise Bad(f"not of little-endian numbers; {ANEW} on a little-endian machine")
        program = archive.read(infos["data.pkl"])
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error, EOFError) as error:
        raise Bad(f"damaged: {str(error)[:80]}; fetch it again") from error
    return {name.removeprefix("data/"): place for name, place in places.items() if name.startswith("data/")}, program


def _bytes(stream: BinaryIO, first: int, count: int) -> bytes:
    stream.seek(first)
    data = stream.read(count)
    if len(data) != count:
        raise Bad("cut short; fetch it again")
    return data


def _directory(stream: BinaryIO, size: int) -> int:
    """The offset of the zip's directory. Refuses a zip whose directory and end record are not side by side at the end of the
    file: readers disagree about those."""
    place = size - 22
    if place < 0 or (tail := _bytes(stream, place, 22))[:4] != b"PK\5\6" or tail[20:] != b"\0\0":
        raise Bad("cut short: no zip directory at its end; fetch it again")
    length, first = struct.unpack("<II", tail[12:20])
    if place >= 76 and (locator := _bytes(stream, place - 20, 20))[:4] == b"PK\6\7":
        place -= 76
        wide = _bytes(stream, place, 56)
        if wide[:4] != b"PK\6\6" or struct.unpack("<Q", locator[8:16])[0] != place:
            raise Bad("not a sound zip: its end is not where it says; fetch it again")
        length, first = struct.unpack("<QQ", wide[40:56])
    if first + length != place:
        raise Bad("not a sound zip: its directory is not where it says; fetch it again")
    if length > LARGEST_DIRECTORY:
        raise Bad(f"a zip directory of {length} bytes, more than the {LARGEST_DIRECTORY} that it may have")
    return first


def _first_byte(stream: BinaryIO, info: zipfile.ZipInfo) -> int:
    """The offset of a record's content. Refuses a record that is compressed, or that has another name in its own header."""
    signature, _, flags, method, name, extra = struct.unpack("<4sHHH16xHH", _bytes(stream, info.header_offset, 30))
    plain = info.orig_filename.encode("utf-8" if flags & 0x800 else "cp437", errors="replace")
    if (
        signature != b"PK\3\4"
        or (flags | info.flag_bits) & ~0x808  # 8: its sizes follow it; 0x800: its name is UTF-8
        or _bytes(stream, info.header_offset + 30, name) != plain
    ):
        raise Bad(f"not a sound zip: record {info.filename[:80]!r} is not what the directory says; fetch it again")
    if method or info.compress_type:
        raise Bad(f"record {info.filename[:80]!r} is compressed, which torch.save does not do; {ANEW}")
    return info.header_offset + 30 + name + extra

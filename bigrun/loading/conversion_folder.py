"""The folder of a conversion: found or begun for a model, complete enough to be a model by itself."""

import datetime
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import xxhash

from bigrun.checkpoint.base import Checkpoint
from bigrun.checkpoint.files import open_file, read_file
from bigrun.checkpoint.formats.safetensors import read_config
from bigrun.checkpoint.tensor_map import map_tensors, validate
from bigrun.errors import CallError, CheckpointError, RunError
from bigrun.loading.identity import digest, fingerprints, part_identity
from bigrun.loading.int8_cache import CONFIG, COPIED, GGUF_METADATA, Int8Cache, hold
from bigrun.loading.manifest import MANIFEST, Manifest, is_conversion, is_ours, read_manifest, write_file
from bigrun.model.layout import Layout, Storage
from bigrun.model.source import Dialect
from bigrun.model.spec import ModelSpec

LARGEST_COPIED = 64 * 2**20
PIECE = 2**20


def open_int8_cache(
    cache: Path, checkpoint: Checkpoint, spec: ModelSpec, storage: Storage, layouts: Mapping[str, Layout], source: str,
    note: Callable[[str], None], itself: bool = False,
) -> Int8Cache:  # fmt: skip
    """The conversion of a model in a cache folder, begun where there is none. `itself`: the folder is to be the conversion,
    not to hold it.

    CallError where the folder is another model's conversion, or no folder; RunError where it cannot be written to.
    """
    if storage.weights != "int8":
        raise CallError(f"the int8 cache keeps int8: leave out --weights {storage.weights}, or the cache")
    work = map_tensors(checkpoint, spec)
    validate(checkpoint, spec, work)
    try:
        prints = fingerprints(checkpoint)
    except OSError as error:
        raise CheckpointError(f"{error.filename}: cannot be read: {error.strerror}") from error
    parts = [(part, sources) for part, sources in work if part.tensors]
    identities = {part.name: part_identity(checkpoint, part, s, layouts[part.name], prints) for part, s in parts}
    key = digest(identities)[:12]
    beside = _beside(checkpoint)
    manifest = Manifest(
        model=spec.name,
        source=source,
        created=datetime.date.today().isoformat(),
        key=key,
        storage={**asdict(storage), "skip": sorted(storage.skip)},
        parts={name: (identity, layouts[name].nbytes) for name, identity in identities.items()},
        files={name: xxhash.xxh3_128_hexdigest(data) for name, data in beside.items()},
        source_files=prints,
    )
    itself = itself or is_conversion(cache)
    folder = cache if itself else cache / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', spec.name)[:80]}-{key}"
    for path in (cache, folder):
        if os.path.lexists(path) and not path.is_dir():
            raise CallError(f"{path}: is no folder: name another for the int8 cache")
    try:
        _check_free(folder, manifest)
        folder.mkdir(parents=True, exist_ok=True)
        lock = hold(folder)  # before anything is written: whoever comes meanwhile takes nothing away
        try:
            _begin(folder, manifest, beside, note)
        except BaseException:
            os.close(lock)
            raise
    except OSError as error:
        raise RunError(f"{folder}: the int8 cache cannot be kept here: {error.strerror}") from error
    return Int8Cache(folder, lock, layouts, identities, alone=False, note=note)


def _check_free(folder: Path, manifest: Manifest) -> None:
    """The folder is this conversion's, or free for it; otherwise an error, before anything is written or removed."""
    if not folder.is_dir() or not any(not file.name.startswith(".") for file in folder.iterdir()):
        return
    if not is_conversion(folder):
        raise CallError(f"{folder}: is not empty, and no conversion of bigrun's: name another folder")
    if not is_ours(folder) and (folder / MANIFEST).stat().st_size:
        raise CallError(
            f"{folder / MANIFEST}: damaged, or not bigrun's: remove it if it is a conversion's, or name another folder"
        )
    try:
        found = read_manifest(folder)
    except CheckpointError:
        return  # damaged: written anew
    if found.key != manifest.key:
        raise CallError(
            f"{folder}: is the conversion of {found.model} from {found.source}, or of another version of it: name "
            f"another folder, or remove this one"
        )


def _begin(folder: Path, manifest: Manifest, beside: Mapping[str, bytes], note: Callable[[str], None]) -> None:
    """The folder with everything but its parts: the manifest first, so that it is known for what it is from then on."""
    if is_conversion(folder):
        try:
            sound = read_manifest(folder).files == manifest.files
        except CheckpointError as error:
            note(f"{error}; it is written anew")
            sound = False
    else:
        sound = False
    if not sound:
        manifest.write(folder)
    for name, data in beside.items():
        path = folder / name
        if not _same(path, data):
            if sound and path.exists():
                note(f"{path}: damaged; it is written anew")
            write_file(path, data)


def _same(path: Path, data: bytes) -> bool:
    return path.is_file() and path.read_bytes() == data


def _beside(checkpoint: Checkpoint) -> dict[str, bytes]:
    """The small files of a conversion: configuration and tokenizer."""
    from bigrun.checkpoint.formats.gguf import GgufCheckpoint

    found = {CONFIG: json.dumps(dict(checkpoint.config), indent=1).encode() + b"\n"}
    if isinstance(checkpoint, GgufCheckpoint):
        return found | {GGUF_METADATA: checkpoint.metadata_only()}
    folder: Path = checkpoint.folder  # type: ignore[attr-defined]
    for name in COPIED:
        path = folder / name
        if path.is_file() and path.stat().st_size <= LARGEST_COPIED:
            found[name] = path.read_bytes()
    return found


class ConvertedCheckpoint:
    """A conversion as a model by itself: its configuration and tokenizer are here, its weights are parts (int8_cache.py)."""

    dialect: Dialect = "hf"

    def __init__(self, folder: Path):
        self.folder, self.where = folder, str(folder)
        self.manifest = read_manifest(folder)
        for name, expected in self.manifest.files.items():
            self._check(name, expected)
        self.config: Mapping[str, Any] = read_config(folder)
        self.tensors: Mapping[str, Any] = {}
        self.paths: tuple[Path, ...] = ()

    def _check(self, name: str, expected: str) -> None:
        path = self.folder / name
        if name not in (*COPIED, CONFIG, GGUF_METADATA):
            raise CheckpointError(f"{self.folder / MANIFEST}: damaged: names {name[:80]!r}")
        total = xxhash.xxh3_128()
        with open_file(path) as stream:
            while piece := stream.read(PIECE):
                total.update(piece)
        if total.hexdigest() != expected:
            raise CheckpointError(f"{path}: damaged, or changed since the conversion; convert the model again")

    @property
    def metadata(self) -> Mapping[str, Any] | None:
        """The GGUF metadata that the tokenizer is made from, of a model converted from GGUF."""
        if GGUF_METADATA not in self.manifest.files:
            return None
        from bigrun.checkpoint.formats.gguf_header import read_header

        return read_header(read_file(self.folder / GGUF_METADATA, LARGEST_COPIED), str(self.folder / GGUF_METADATA))[0]

    def rows(self, name: str, start: int, stop: int) -> Any:
        raise CheckpointError(f"{self.where}: holds int8 parts, not the tensors that they were made from ({name[:80]})")

    def ahead(self, name: str, start: int, stop: int) -> None:
        """Nothing is read by tensors here."""

    def done(self, name: str, start: int, stop: int, drop: bool = False) -> None:
        """Nor forgotten."""

    def check_storage(self, storage: Storage) -> None:
        """CallError where other forms are asked for than the conversion has."""
        held = self.manifest.storage
        asked = {**asdict(storage), "skip": sorted(storage.skip)}
        for option in ("weights", "head", "skip"):
            if asked[option] != held.get(option):
                value = ",".join(held[option]) if option == "skip" else held[option]
                need = f"give --{option} {value}" if value else f"leave out --{option}"
                raise CallError(f"{self.where}: this int8 conversion has other forms than were asked for: {need}")

    def int8_cache(self, layouts: Mapping[str, Layout], note: Callable[[str], None]) -> Int8Cache:
        identities = {name: identity for name, (identity, _) in self.manifest.parts.items()}
        for name, layout in layouts.items():
            if layout.arrays and name not in identities:
                raise CheckpointError(
                    f"{self.folder / MANIFEST}: has no part {name}, which its configuration describes"
                )
        return Int8Cache(self.folder, hold(self.folder), layouts, identities, alone=True, note=note)

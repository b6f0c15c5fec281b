"""The folder of an int8 conversion, which is a model by itself: opened or created for a model."""

import datetime
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import xxhash

from bigrun.checkpoint.files import COMPANIONS, CONFIG, GGUF_METADATA, LARGEST_COMPANION, open_file, read_file
from bigrun.checkpoint.formats.safetensors import read_config
from bigrun.checkpoint.tensor_map import TensorMap
from bigrun.errors import CallError, CheckpointError, RunError
from bigrun.loading.identity import digest, fingerprints, part_identity
from bigrun.loading.int8_cache import Int8Cache, hold
from bigrun.loading.manifest import MANIFEST, Manifest, is_conversion, is_ours, read_manifest, write_file
from bigrun.loading.part_file import file_name
from bigrun.model.layout import Layout
from bigrun.model.spec import ModelSpec
from bigrun.model.storage import Storage
from bigrun.planning.ledger import Ledger
from bigrun.planning.options import PlanOptions
from bigrun.sizes import format_size

PIECE = 2**20


def open_int8_cache(
    cache: Path, tensor_map: TensorMap, storage: Storage, layouts: Mapping[str, Layout], source: str,
    note: Callable[[str], None], itself: bool = False,
) -> Int8Cache:  # fmt: skip
    """The conversion of a model in a cache folder, begun where there is none. `itself`: the folder is to be the conversion,
    not to hold it.

    CallError where the folder is another model's conversion, or no folder; RunError where it cannot be written to, or its
    disk has no room for what is missing.
    """
    check_cache(cache, storage)
    checkpoint, spec = tensor_map.checkpoint, tensor_map.spec
    try:
        prints = fingerprints(checkpoint)
    except OSError as error:
        raise CheckpointError(f"{error.filename}: cannot be read: {error.strerror}") from error
    parts = [(part, sources) for part, sources in tensor_map.parts if part.tensors]
    identities = {part.name: part_identity(checkpoint, part, s, layouts[part.name], prints) for part, s in parts}
    key = digest(identities)[:12]
    beside = {CONFIG: json.dumps(dict(checkpoint.config), indent=1).encode() + b"\n", **checkpoint.companions()}
    manifest = Manifest(
        model=spec.name,
        source=source,
        created=datetime.date.today().isoformat(),
        key=key,
        storage=_forms(storage, spec),
        parts={name: (identity, layouts[name].nbytes) for name, identity in identities.items()},
        files={name: xxhash.xxh3_128_hexdigest(data) for name, data in beside.items()},
        source_files=prints,
    )
    itself = itself or is_conversion(cache)
    folder = cache if itself else cache / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', spec.name)[:80]}-{key}"
    try:
        _check_free(folder, manifest)
        _check_room(folder, manifest)
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


def _forms(storage: Storage, spec: ModelSpec) -> dict[str, Any]:
    """What a manifest says of the forms: those of keys and values are of a run, not of a conversion."""
    return {
        "weights": storage.weights, "head": storage.head, "skip": sorted(storage.skip),
        "checkpoint_dtype": spec.checkpoint_dtype,
    }  # fmt: skip


def check_cache(cache: Path, storage: Storage) -> None:
    """CallError for a cache that no model's conversion can be kept in: by the form that is asked for, or as it is no folder."""
    if storage.weights != "int8":
        raise CallError(f"the int8 cache keeps int8: leave out --weights {storage.weights}, or the cache")
    if os.path.lexists(cache) and not cache.is_dir():
        raise CallError(f"{cache}: is no folder: name another for the int8 cache")


def check_out(folder: Path) -> None:
    """CallError for what cannot become a model's conversion, whatever the model: no folder, or another program's."""
    if os.path.lexists(folder) and not folder.is_dir():
        raise CallError(f"{folder}: is no folder: name another for the int8 cache")
    if (
        folder.is_dir()
        and any(not file.name.startswith(".") for file in folder.iterdir())
        and not is_conversion(folder)
    ):
        raise CallError(f"{folder}: is not empty, and no conversion of bigrun's: name another folder")


def _check_free(folder: Path, manifest: Manifest) -> None:
    """Raises CallError unless the folder is empty or this conversion's, before anything is written."""
    check_out(folder)
    if not is_conversion(folder):
        return
    if not is_ours(folder) and (folder / MANIFEST).stat().st_size:
        raise CallError(
            f"{folder / MANIFEST}: damaged, or not bigrun's: remove it if it is a conversion's, or name another folder"
        )
    try:
        on_disk = read_manifest(folder)
    except CheckpointError:
        return  # damaged: written anew
    if on_disk.key != manifest.key:
        raise CallError(
            f"{folder}: is the conversion of {on_disk.model} from {on_disk.source}, or of another version of it: name "
            f"another folder, or remove this one"
        )


def _check_room(folder: Path, manifest: Manifest) -> None:
    """RunError where the folder's disk has less room than the parts take that are not there."""
    parts = ((folder / file_name(name), nbytes) for name, (_, nbytes) in manifest.parts.items())
    missing = sum(nbytes for path, nbytes in parts if not path.is_file())
    there = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(there).free
    if free < missing:
        raise RunError(
            f"{folder}: the int8 cache needs {format_size(missing)} more, where {format_size(free)} are free: free some, or "
            "name a folder on a larger disk"
        )


def _begin(folder: Path, manifest: Manifest, beside: Mapping[str, bytes], note: Callable[[str], None]) -> None:
    """Writes everything but the parts: the manifest first, so that an interrupted folder is still recognised."""
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


class Conversion:
    """A conversion as a model by itself: its configuration and tokenizer are here, its weights are parts (int8_cache.py).

    No Checkpoint: the tensors that the parts were made from are not in it.
    """

    format = "int8 conversion"

    def __init__(self, folder: Path):
        self.folder, self.where = folder, str(folder)
        self.manifest = read_manifest(folder)
        for name, expected in self.manifest.files.items():
            self._check(name, expected)
        self.config: Mapping[str, Any] = read_config(folder)

    def _check(self, name: str, expected: str) -> None:
        path = self.folder / name
        if name not in (*COMPANIONS, CONFIG, GGUF_METADATA):
            raise CheckpointError(f"{self.folder / MANIFEST}: damaged: names {name[:80]!r}")
        total = xxhash.xxh3_128()
        with open_file(path) as stream:
            while piece := stream.read(PIECE):
                total.update(piece)
        if total.hexdigest() != expected:
            raise CheckpointError(f"{path}: damaged, or changed since the conversion; convert the model again")

    @property
    def metadata(self) -> Mapping[str, Any] | None:
        """The GGUF metadata that the tokenizer is made from, of a model converted from GGUF; None of others."""
        if GGUF_METADATA not in self.manifest.files:
            return None
        from bigrun.checkpoint.formats.gguf_header import read_header

        path = self.folder / GGUF_METADATA
        return read_header(read_file(path, LARGEST_COMPANION), str(path))[0]

    def check_storage(self, storage: Storage) -> None:
        """CallError where other forms are asked for than the conversion has."""
        for option in ("weights", "head", "skip"):
            held = self.manifest.storage.get(option)
            asked = sorted(storage.skip) if option == "skip" else getattr(storage, option)
            if asked != held:
                value = ",".join(held or ()) if option == "skip" else held
                need = f"give --{option} {value}" if value else f"leave out --{option}"
                raise CallError(f"{self.where}: this int8 conversion has other forms than were asked for: {need}")

    def layouts(self, spec: ModelSpec) -> dict[str, Layout]:
        """The layouts of its parts, by the forms that its manifest states. CallError where it states what no form is."""
        held = self.manifest.storage
        return Ledger(spec, PlanOptions(1, 1, Storage(held["weights"], held["head"], tuple(held["skip"])))).layouts

    def int8_cache(self, layouts: Mapping[str, Layout], note: Callable[[str], None]) -> Int8Cache:
        """The cache that a load maps its parts from. CheckpointError where the manifest lacks one."""
        identities = {name: identity for name, (identity, _) in self.manifest.parts.items()}
        for name, layout in layouts.items():
            if layout.arrays and name not in identities:
                raise CheckpointError(
                    f"{self.folder / MANIFEST}: has no part {name}, which its configuration describes"
                )
        return Int8Cache(self.folder, hold(self.folder), layouts, identities, alone=True, note=note)

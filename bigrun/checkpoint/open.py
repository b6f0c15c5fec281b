"""From a resolved model to its open checkpoint and its spec, fetching from the hub where that is what it takes."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bigrun.checkpoint.base import Checkpoint
from bigrun.checkpoint.headers import check, headers
from bigrun.checkpoint.hub import config, fetch
from bigrun.model.families import spec_from_config
from bigrun.model.resolve import Model
from bigrun.model.spec import ModelSpec


def open_checkpoint(model: Model, revision: str | None = None) -> tuple[Checkpoint, ModelSpec]:
    """The checkpoint, with nothing of its weights read, and the spec of its configuration."""
    from bigrun.checkpoint.gguf import GgufCheckpoint
    from bigrun.checkpoint.safetensors import SafetensorsCheckpoint

    checkpoint: Checkpoint
    if model.gguf is not None:
        checkpoint = GgufCheckpoint(model.gguf)
        where = str(model.gguf)
    else:
        folder = model.folder or fetch(model, revision)
        checkpoint = SafetensorsCheckpoint(folder)
        where = str(folder / "config.json")
    return checkpoint, spec_from_config(checkpoint.config, model.name, where)


def model_spec(model: Model, revision: str | None = None) -> ModelSpec:
    """The spec alone: a catalog's from the catalog, a file's from its header, a hub id's from its config.json.

    Where the hub answers, the headers of a hub id's safetensors must agree with its config.json.
    """
    if model.folder is None and model.entry is not None and (model.repo or not model.gguf):
        return replace(model.entry.spec(), name=model.name)
    if model.repo is not None:
        from bigrun.checkpoint.safetensors import read_json

        path, reached = config(model.repo, revision)
        spec = spec_from_config(read_json(path), model.name, f"{model.repo}: config.json")
        found = headers(model.repo, revision) if reached else None
        if found is None:
            return spec
        check(spec, found, model.repo)
        return replace(spec, checkpoint_bytes=found.bytes)
    if model.folder is not None:
        from bigrun.checkpoint.safetensors import read_json

        where = model.folder / "config.json"
        return spec_from_config(read_json(where), model.name, str(where))
    return open_checkpoint(model)[1]


def model_config(model: Model, revision: str | None = None) -> Mapping[str, Any]:
    """The Hugging Face configuration that a model's spec is read from."""
    from bigrun.checkpoint.safetensors import read_json

    if model.entry is not None and model.folder is None:
        return model.entry.config
    if model.folder is not None:
        found: Mapping[str, Any] = read_json(model.folder / "config.json")
        return found
    if model.repo is not None:
        return read_json(config(model.repo, revision)[0])
    return open_checkpoint(model)[0].config

"""From a resolved model to its open checkpoint and its spec, fetching from the hub where that is what it takes."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from bigrun.checkpoint.base import Checkpoint
from bigrun.errors import BigrunError, CallError
from bigrun.model.families import spec_from_config
from bigrun.model.resolve import Model
from bigrun.model.spec import ModelSpec

WANTED = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]


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
    """The spec alone: a catalog's from the catalog, a file's from its header, a hub id's from its config.json."""
    if model.folder is None and model.entry is not None and (model.repo or not model.gguf):
        return replace(model.entry.spec(), name=model.name)
    if model.repo is not None:
        from bigrun.checkpoint.safetensors import read_json

        path = _hub(model.repo, lambda hub: hub.hf_hub_download(model.repo, "config.json", revision=revision))
        return spec_from_config(read_json(Path(path)), model.name, f"{model.repo}: config.json")
    if model.folder is not None:
        from bigrun.checkpoint.safetensors import read_json

        where = model.folder / "config.json"
        return spec_from_config(read_json(where), model.name, str(where))
    return open_checkpoint(model)[1]


def fetch(model: Model, revision: str | None) -> Path:
    """The model's files in the hub's cache, fetched where they are not there yet."""
    if model.repo is None:
        raise CallError(f"--model {model.name}: this name is for planning; its weights are not published to fetch")
    print(f"{model.note or model.name + ': fetching ' + model.repo + ' from the Hugging Face hub'}", file=sys.stderr)
    fetched = _hub(model.repo, lambda hub: hub.snapshot_download(model.repo, revision=revision, allow_patterns=WANTED))
    return Path(fetched)


def _hub(repo: str, call: Callable[[Any], str]) -> str:
    """Call huggingface_hub; its failures become one line that says which of the usual reasons it was."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return call(huggingface_hub)
    except errors.HFValidationError as error:
        raise CallError(f"--model {repo[:100]}: no folder, and no name that the hub could have") from error
    except errors.GatedRepoError as error:
        raise CallError(f"{repo}: gated; accept its terms on the hub and set HF_TOKEN") from error
    except errors.RepositoryNotFoundError as error:
        raise CallError(f"{repo}: no such model on the hub (a private one needs HF_TOKEN)") from error
    except errors.RevisionNotFoundError as error:
        raise CallError(f"{repo}: no such revision") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise BigrunError(f"{repo}: not in the local cache, and the hub cannot be reached") from error
    except errors.HfHubHTTPError as error:
        raise BigrunError(f"{repo}: the hub answered: {str(error).splitlines()[0][:160]}") from error
    except OSError as error:
        raise BigrunError(f"{repo}: fetching from the hub failed: {str(error)[:160]}") from error

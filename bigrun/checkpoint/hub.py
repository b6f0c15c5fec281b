"""The Hugging Face hub through huggingface_hub: a model's files, its config.json, or a range of a file's bytes."""

import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from bigrun.errors import BigrunError, CallError, CheckpointError
from bigrun.model.resolve import Model

T = TypeVar("T")

WANTED = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]

LARGEST_CONFIG = 16 * 2**20  # bytes
CHUNK_BYTES = 1 << 16


def fetch(model: Model, revision: str | None) -> Path:
    """The model's files in the hub's cache, fetched where they are not there yet."""
    if model.repo is None:
        raise CallError(f"--model {model.name}: this name is for planning; its weights are not published to fetch")
    print(f"{model.note or model.name + ': fetching ' + model.repo + ' from the Hugging Face hub'}", file=sys.stderr)
    fetched = call_hub(
        model.repo, lambda hub: hub.snapshot_download(model.repo, revision=revision, allow_patterns=WANTED)
    )
    return Path(fetched)


def config(repo: str, revision: str | None) -> tuple[Path, bool]:
    """(config.json in the hub's cache, fetched if need be; whether the hub was there to say that it is the newest).

    One request, for the file itself, asks whether the hub is there: huggingface_hub asks six times, for 23 seconds,
    before it says that a hub is not. Errors are those of `call_hub`; CheckpointError where the file is absurdly large.
    """
    from huggingface_hub import errors

    def call(hub: Any) -> tuple[Path, bool]:
        download = partial(hub.hf_hub_download, repo, "config.json", revision=revision)
        try:
            data, _ = read_range(repo, "config.json", revision, 0, LARGEST_CONFIG + 1)
        except (errors.RevisionNotFoundError, errors.EntryNotFoundError):
            raise
        except (errors.HTTPError, OSError) as error:
            try:
                return Path(download(local_files_only=True)), False
            except errors.LocalEntryNotFoundError:
                if isinstance(error, errors.HfHubHTTPError):
                    raise error from None  # what the hub said is more than that nothing is cached
                raise
        if len(data) > LARGEST_CONFIG:
            raise CheckpointError(f"{repo}: config.json: larger than {LARGEST_CONFIG >> 20} MiB, which no such file is")
        return Path(download()), True

    return call_hub(repo, call)


def read_range(repo: str, file: str, revision: str | None, start: int, stop: int) -> tuple[bytes, int | None]:
    """(bytes [start, stop) of a file, fewer at its end; the file's size where the answer tells).

    A server that ignores the range is read up to `stop` and then hung up on; huggingface_hub's own reader of headers
    would take the whole file. Redirects are followed, and the token is not sent on to another host.
    """
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    session: Any = get_session()
    url = hf_hub_url(repo, file, revision=revision)
    asked = {**build_hf_headers(), "Accept-Encoding": "identity", "Range": f"bytes={start}-{stop - 1}"}
    how = {"headers": asked, "timeout": constants.HF_HUB_DOWNLOAD_TIMEOUT}
    if callable(session.stream):  # httpx
        opened, body = session.stream("GET", url, follow_redirects=True, **how), "iter_raw"
    else:  # requests, before huggingface_hub 1.0: there `stream` is a flag
        opened, body = session.get(url, stream=True, **how), "iter_content"
    with opened as answer:
        if answer.status_code == 416:
            raise CheckpointError(f"{repo}: {file}: cut short: it has no byte {start}")
        hf_raise_for_status(answer)
        span = re.fullmatch(r"bytes (\d{1,16})-\d{1,16}/(\d{1,16}|\*)", answer.headers.get("Content-Range", ""))
        ranged = answer.status_code == 206
        if ranged and not (span and int(span[1]) == start):
            raise BigrunError(f"{repo}: {file}: the hub answered with another range than was asked for")
        first = 0 if ranged else start
        data = bytearray()
        for chunk in getattr(answer, body)(CHUNK_BYTES):
            data += chunk
            if len(data) > first + stop - start:  # not at its end: a connection read to its end is used again
                break
        size = span[2] if span else answer.headers.get("Content-Length", "")
    return bytes(data[first : first + stop - start]), int(size) if size.isdecimal() else None


def call_hub(repo: str, call: Callable[[Any], T]) -> T:
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
    except (errors.HTTPError, OSError) as error:  # httpx's own are no OSErrors
        raise BigrunError(f"{repo}: fetching from the hub failed: {str(error)[:160]}") from error

"""The Hugging Face hub through huggingface_hub: its cache, a model's config.json, a range of a file's bytes, or the rest."""

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from bigrun.errors import BigrunError, CallError, CheckpointError, RunError

T = TypeVar("T")

LARGEST_CONFIG = 2**20  # bytes
CHUNK_BYTES = 1 << 16
HASHED_AT_ONCE = 1 << 20
SHA256 = re.compile(r"[0-9a-f]{64}")  # what the ETag of a large file is
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds between tries that bring nothing


def cache_home() -> Path:
    """The folder of the hub's cache; RunError where the user has no home and no variable names one."""
    from huggingface_hub import constants

    try:
        return Path(constants.HF_HUB_CACHE).expanduser()
    except RuntimeError as error:
        raise RunError(
            "HF_HOME: this user has no home to keep the hub's files in: set HF_HOME to a folder that can be written"
        ) from error


class Cache:
    """Where huggingface_hub keeps a repository (its guide "Understand caching")."""

    def __init__(self, repo: str):
        self.repo, self.home = repo, cache_home()
        name = "--".join(("models", *repo.split("/")))
        self.folder, self.locks = self.home / name, self.home / ".locks" / name

    def snapshot(self, commit: str) -> Path:
        return self.folder / "snapshots" / commit

    def blob(self, etag: str) -> Path:
        return self.folder / "blobs" / etag

    def partial(self, etag: str) -> Path:
        return self.folder / "blobs" / f"{etag}.incomplete"

    def ref(self, revision: str | None) -> Path | None:
        """The file that says which commit a branch or tag means; None where no name leads to one."""
        refs = self.folder / "refs"
        path = refs / (revision or "main")
        return path if Path(os.path.abspath(path)).is_relative_to(os.path.abspath(refs)) else None

    def remember(self, revision: str | None, commit: str) -> None:
        """Records which commit a revision means, for use without a network."""
        ref = self.ref(revision)
        if ref is None or revision == commit:
            return
        try:
            if not ref.is_file() or ref.read_text() != commit:
                ref.parent.mkdir(parents=True, exist_ok=True)
                written = ref.with_name(f"{ref.name}.{os.getpid()}.tmp")
                written.write_text(commit)
                written.replace(ref)
        except OSError:  # a cache that can only be read, and holds all that is needed
            pass


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
    would take the whole file.
    """
    data = bytearray()
    with open_range(repo, file, revision, start, stop) as (begin, size, pieces):
        first = start - begin
        for piece in pieces:
            data += piece
            if len(data) > first + stop - start:  # not at its end: a connection read to its end is used again
                break
    return bytes(data[first : first + stop - start]), size


@contextmanager
def open_range(
    repo: str, file: str, revision: str | None, start: int, stop: int
) -> Iterator[tuple[int, int | None, Iterator[bytes]]]:
    """(`start`, or 0 where the server ignores ranges; the file's size where the answer tells; its bytes from there on).

    They come as they arrive, from a server that ignores ranges beyond `stop`. Redirects are followed, and the token is
    not sent on to another host.
    """
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    session: Any = get_session()
    url = hf_hub_url(repo, file, revision=revision)
    asked = {**build_hf_headers(), "Accept-Encoding": "identity", "Range": f"bytes={start}-{stop - 1}"}
    how = {"headers": asked, "timeout": constants.HF_HUB_DOWNLOAD_TIMEOUT}
    if callable(session.stream):  # httpx, whose chunks of a given size are lost where the connection breaks within one
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
        size = span[2] if span else answer.headers.get("Content-Length", "")
        pieces = getattr(answer, body)(*([CHUNK_BYTES] if body == "iter_content" else []))
        yield start if ranged else 0, int(size) if size.isdecimal() else None, pieces


def complete(
    repo: str, file: str, commit: str, partial: Path, size: int, etag: str, arrived: Callable[[int], None]
) -> None:
    """Go on with a file of `size` bytes where `partial` ends; `arrived` is told how many bytes are there.

    A connection that breaks is opened again, after PAUSES where it brings nothing, and then the error is raised.
    CheckpointError, and no partial file any more: its length or SHA-256 is not what the hub has for it. RunError: no room.
    """
    from huggingface_hub import errors

    with open(partial, "a+b", buffering=0) as stream:
        if partial.stat().st_size > size:
            stream.truncate(0)
        digest, at, stalled = hashlib.sha256(), 0, 0
        stream.seek(0)
        while block := stream.read(HASHED_AT_ONCE):
            digest.update(block)
            at += len(block)
        while at < size:
            before = at
            problem: Exception = OSError("its answer ends too early")
            try:
                with open_range(repo, file, commit, at, size) as (begin, _, pieces):
                    skip = at - begin
                    for piece in pieces:
                        new, skip = piece[skip:][: size - at], max(0, skip - len(piece))
                        _append(stream, new, partial)
                        digest.update(new)
                        at += len(new)
                        arrived(at)
                        if at == size:
                            break
            except (errors.HTTPError, OSError) as error:
                if isinstance(error, errors.HfHubHTTPError) and not passing(error):
                    raise
                problem = error
            if at < size:
                stalled = 0 if at > before else stalled + 1
                if stalled >= len(PAUSES):
                    raise problem
                time.sleep(PAUSES[stalled])
    # larger: two processes wrote, where the file system's locks do not hold
    if partial.stat().st_size != size or (SHA256.fullmatch(etag) and digest.hexdigest() != etag):
        partial.unlink()
        raise CheckpointError(f"{repo}: {file}: arrived damaged; the same command fetches it again")


def _append(stream: BinaryIO, data: bytes, path: Path) -> None:
    left = memoryview(data)
    try:
        while left:
            left = left[stream.write(left) :]
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror}; the same command goes on from there") from error


def passing(error: Any) -> bool:
    """Whether an HfHubHTTPError is temporary: the hub is busy or failing."""
    status = getattr(getattr(error, "response", None), "status_code", 0)
    return status in (408, 429) or status >= 500


def said(error: Exception) -> str:
    """The first line of an error's message, shortened; its type if it has none."""
    return (str(error).splitlines() or [""])[0][:160] or type(error).__name__


def by_xet(about: Any) -> bool:
    """Whether huggingface_hub takes this file from xet: faster, but a file that breaks off is begun again."""
    from huggingface_hub import constants

    stored = getattr(about, "xet_file_data", None) is not None
    return stored and not getattr(constants, "HF_HUB_DISABLE_XET", False) and find_spec("hf_xet") is not None


def silent_bar(arrived: Callable[[int], None]) -> type:
    """A stand-in for huggingface_hub's progress bar that counts bytes and shows nothing."""

    class Bar:
        def __init__(self, *_: Any, total: int | None = None, initial: int = 0, **__: Any):
            self.total, self.n = total, initial

        def __enter__(self) -> "Bar":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def update(self, count: int | None = 1) -> None:
            self.n += count or 0
            arrived(self.n)

        def update_transfer(self, count: int) -> None:
            """Bytes on the wire, of which xet reports besides: there is no second bar for them."""

        def __getattr__(self, name: str) -> Callable[..., None]:
            """Ignores the other methods of a progress bar."""
            if name.startswith("_"):
                raise AttributeError(name)
            return lambda *_, **__: None

    return Bar


def call_hub(repo: str, call: Callable[[Any], T]) -> T:
    """Call huggingface_hub; its failures become one line that says which of the usual reasons it was."""
    import huggingface_hub
    from huggingface_hub import errors

    cache_home()  # or it is said that there is none
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
        raise BigrunError(f"{repo}: the hub answered: {said(error)}") from error
    except (errors.HTTPError, OSError) as error:  # httpx's own are no OSErrors
        raise BigrunError(f"{repo}: fetching from the hub failed: {said(error)}") from error

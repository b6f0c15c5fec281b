"""A hub model's weights: the files that a run opens and no others, all of one commit, in the hub's own cache.

huggingface_hub says what there is, locks, and links a file into its snapshot. The bytes of a file are read here: its recent
versions throw the beginning of a file away when a download breaks off, and a shard has gigabytes. What has arrived lies
as `<etag>.incomplete` beside the finished blobs, where its earlier versions leave it and go on as well.
"""

import functools
import inspect
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bigrun.checkpoint.formats.safetensors import INDEX, SINGLE
from bigrun.checkpoint.hub.headers import LARGEST_INDEX, shards
from bigrun.checkpoint.hub.hub import (
    Cache,
    by_xet,
    cache_home,
    call_hub,
    complete,
    passing,
    read_range,
    said,
    silent_bar,
)
from bigrun.errors import BigrunError, CallError, CheckpointError, RunError
from bigrun.model.resolve import Model
from bigrun.sizes import format_size

Report = Callable[[str, int, int], None]  # file, bytes that are here, bytes of all files

CONFIG = "config.json"
BESIDE = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
    "chat_template.json", "tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json",
)  # fmt: skip
TORCH_INDEX, TORCH_SINGLE = "pytorch_model.bin.index.json", "pytorch_model.bin"
FORMATS = (("safetensors", INDEX, SINGLE, ".safetensors"), ("torch", TORCH_INDEX, TORCH_SINGLE, ".bin"))
OTHERS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".npz")  # worth naming
COMMIT = re.compile(r"[0-9a-f]{40}")
SNAPSHOT = re.compile(r"[0-9A-Za-z_-]{1,64}")  # a folder's name in the cache
ETAG = re.compile(r"[0-9A-Za-z][\w.-]{0,127}", re.ASCII)


@dataclass(frozen=True)
class Needed:
    """What a run opens: `files` (name, bytes) in the order in which they are fetched, weights last, at `commit`.

    `etags` says under which names the hub's cache keeps their contents, where the hub tells.
    """

    commit: str
    files: tuple[tuple[str, int], ...]
    weights: str  # "safetensors" or "torch"
    weight_files: frozenset[str] = frozenset()
    etags: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)


def needed(repo: str, revision: str | None) -> Needed:
    """The files of a hub model that a run opens, at the commit that the revision means now. Nothing is kept.

    CheckpointError: no weights that could be run, or an index that lies; other errors are those of `call_hub`.
    """
    return call_hub(repo, lambda hub: _needed(hub, repo, revision))


def fetch_small(listing: Needed, repo: str) -> Path:
    """The folder of a hub model's configuration and tokenizer in the hub's cache, fetched if need be: all but its weights."""
    small = [name for name, _ in listing.files if name not in listing.weight_files]

    def call(hub: Any) -> Path:
        paths = [Path(hub.hf_hub_download(repo, name, revision=listing.commit)) for name in small]
        return paths[0].parent

    return call_hub(repo, call)


def fetch(
    model: Model, revision: str | None, report: Report | None = None, begin: Callable[[int], None] | None = None,
    before_weights: Callable[[Path], None] | None = None,
) -> Path:  # fmt: skip
    """The folder of the model's files in the hub's cache; those that are not there are fetched.

    `begin(bytes)` is told, before anything is fetched, how many bytes are missing, if any are. `before_weights(folder)` is
    called when the small files are here, before the first weight is fetched, if one is to be; what it raises is raised.
    `report(file, done, total)` is told of bytes as they arrive; `done` counts what was there before. Without the hub, the
    cached files of that revision do if none is missing. CallError: no weights are published under this name. RunError: no
    room, or the connection broke (a second call goes on from there). Other errors are those of `needed`.
    """
    from huggingface_hub import errors

    repo = model.repo
    if repo is None:
        raise CallError(f"--model {model.name}: this name is for planning; its weights are not published to fetch")

    def call(hub: Any) -> Path:
        try:
            listing = _needed(hub, repo, revision)
        except errors.RevisionNotFoundError:
            raise
        except (errors.HTTPError, OSError) as error:
            return _cached(repo, revision, error)
        cache = Cache(repo)
        progress = _Progress(cache, listing, report)
        if progress.missing:
            _check_room(repo, progress.missing)
            if begin is not None:
                begin(progress.missing)
        missing = [file for file, size in listing.files if progress.here[file] < size]
        first = next((file for file in missing if file in listing.weight_files), None)
        for file, size in listing.files:
            if file == first and before_weights is not None:
                before_weights(cache.snapshot(listing.commit))
            try:
                _fetch_file(hub, cache, listing, file, size, progress)
            except (errors.HTTPError, OSError) as error:
                if isinstance(error, errors.HfHubHTTPError) and not passing(error):
                    raise
                if name := getattr(error, "filename", None):  # a file here, not the network
                    raise RunError(
                        f"{name}: {getattr(error, 'strerror', '')}; the hub's cache must be writable"
                    ) from error
                raise RunError(
                    f"{repo}: {file}: fetching stopped at {format_size(progress.here[file])} of {format_size(size)} "
                    f"({said(error)}); the same command goes on from there"
                ) from error
            progress.at(file, size)
        cache.remember(revision, listing.commit)
        return cache.snapshot(listing.commit)

    return call_hub(repo, call)


class _Progress:
    """Counts the bytes of each file as they arrive, for reports; the count never falls and ends at the total."""

    def __init__(self, cache: Cache, listing: Needed, report: Report | None):
        self.report, self.sizes, self.here = report, dict(listing.files), dict[str, int]()
        for file, size in listing.files:
            etag = listing.etags.get(file)
            self.here[file] = 0
            if _whole(cache.snapshot(listing.commit) / file, size) or (etag and _whole(cache.blob(etag), size)):
                self.here[file] = size
            elif etag and cache.partial(etag).is_file():
                self.here[file] = min(size, cache.partial(etag).stat().st_size)
        self.total, self.done = sum(self.sizes.values()), sum(self.here.values())
        self.missing, self.highest = self.total - self.done, self.done

    def at(self, file: str, count: int) -> None:
        count = min(count, self.sizes[file])
        self.done += count - self.here[file]
        self.here[file] = count
        self.highest = max(self.highest, self.done)
        if self.report is not None:
            self.report(file, self.highest, self.total)


def _needed(hub: Any, repo: str, revision: str | None) -> Needed:
    from huggingface_hub import constants, errors

    try:
        info = hub.HfApi().model_info(
            repo, revision=revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
        )
        listed = {str(file.rfilename): file for file in info.siblings or ()}
    except (errors.HTTPError, errors.HFValidationError, OSError):
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BigrunError(f"{repo}: the hub's list of its files cannot be read: {said(error)}") from error
    commit = str(info.sha)
    if not COMMIT.fullmatch(commit):
        raise BigrunError(f"{repo}: the hub's list of its files names no commit")
    sizes = {name: file.size if isinstance(file.size, int) and file.size > 0 else 0 for name, file in listed.items()}
    file_format = next((kind for kind in FORMATS if kind[1] in sizes or kind[2] in sizes), None)
    if file_format is None:
        raise CheckpointError(f"{repo}: {_what_else(list(sizes))}")
    weights, index, single, ending = file_format
    shards: tuple[str, ...] = (single,)
    if index in sizes:
        indexed = _named(_read_index(repo, index, commit, sizes[index]), repo, index, ending)
        # the rule of formats/safetensors.py: chosen
        if single not in sizes or single in indexed or all(file in sizes for file in indexed):
            shards = indexed
    names = (CONFIG, *(name for name in BESIDE if name in sizes), *((index,) if index in sizes else ()), *shards)
    for name in names:
        if name not in sizes:
            named = "needed to run it" if name == CONFIG else f"though {index} names it"
            raise CheckpointError(f"{repo}: {name}: missing, {named}")
    etags = {name: str(getattr(listed[name].lfs, "sha256", None) or listed[name].blob_id or "") for name in names}
    etags = {name: etag for name, etag in etags.items() if ETAG.fullmatch(etag)}
    return Needed(commit, tuple((name, sizes[name]) for name in names), weights, frozenset(shards), etags)


def _read_index(repo: str, index: str, commit: str, size: int) -> bytes:
    """Reads the index, from the cache if it is there, up to the size limit."""
    path = Cache(repo).snapshot(commit) / index
    if _whole(path, size):
        with path.open("rb") as stream:
            return stream.read(LARGEST_INDEX + 1)
    return read_range(repo, index, commit, 0, LARGEST_INDEX + 1)[0]


def _named(content: bytes, repo: str, index: str, ending: str) -> tuple[str, ...]:
    """The files that an index names; CheckpointError where one is not of the kind that the index is for."""
    files = shards(content, repo, index)
    for file in files:
        if not file.endswith(ending):
            raise CheckpointError(f"{repo}: {index}: names {file[:80]!r}, which is no {ending} file")
    return files


def _what_else(names: list[str]) -> str:
    """Says what a repository without usable weights has instead, and what to do."""
    ggufs = sorted(name for name in names if name.endswith(".gguf"))
    if ggufs:
        best = next((name for name in ggufs if "q8_0" in name.lower()), ggufs[0])
        return f"only GGUF files: download {best[:120]} and name the file: --model {best.rpartition('/')[2][:120]}"
    others = sorted(name for name in names if name.endswith(OTHERS))
    there = f"there is {', '.join(name[:80] for name in others[:3])}" if others else "it holds no weights"
    return f"has neither {SINGLE} nor {TORCH_SINGLE}, nor an index of either; {there}"


def _fetch_file(hub: Any, cache: Cache, listing: Needed, file: str, size: int, progress: _Progress) -> None:
    """One file into the snapshot, unless it is there."""
    from huggingface_hub import errors
    from huggingface_hub.file_download import are_symlinks_supported
    from huggingface_hub.utils import WeakFileLock

    linked = cache.snapshot(listing.commit) / file
    if _whole(linked, size):
        return
    linked.unlink(missing_ok=True)  # damaged, or a link to what is gone
    ask, url = hub.get_hf_file_metadata, hub.hf_hub_url(cache.repo, file, revision=listing.commit)
    about = ask(url, **({"retry_on_errors": True} if _takes(ask, "retry_on_errors") else {}))
    etag, expected = str(about.etag), size if about.size is None else about.size
    if not ETAG.fullmatch(etag) or (size and expected != size) or (about.size is None and not size):
        raise BigrunError(f"{cache.repo}: {file}: the hub's answer for it is not that of its list of files")
    blob, partial, lock = cache.blob(etag), cache.partial(etag), cache.locks / f"{etag}.lock"
    for path in (blob, lock, linked):
        path.parent.mkdir(parents=True, exist_ok=True)

    def arrived(count: int) -> None:
        progress.at(file, count)

    # finds the blob and links it; fetches one only by xet
    get, bar = functools.partial(hub.hf_hub_download, cache.repo, file, revision=listing.commit), {}
    if _takes(hub.hf_hub_download, "tqdm_class"):
        bar = {"tqdm_class": silent_bar(arrived)}
        if by_xet(about) and not partial.exists() and not _whole(blob, expected):
            blob.unlink(missing_ok=True)
            # xet has servers of its own: what they do not give, the hub does
            with suppress(errors.HTTPError, OSError, RuntimeError, ValueError):
                get(**bar)
    with WeakFileLock(lock):
        if not _whole(blob, expected) and not _whole(linked, expected):
            complete(cache.repo, file, listing.commit, partial, expected, etag, arrived)
            partial.replace(blob if are_symlinks_supported(cache.home) else linked)
    get(**bar)
    if not _whole(linked, expected):
        raise BigrunError(f"{cache.repo}: {file}: the hub gave it for another commit than {listing.commit}; try again")


def _cached(repo: str, revision: str | None, error: Exception) -> Path:
    """The cached files of a revision where none is missing; otherwise the hub's own error, or RunError says which is."""
    from huggingface_hub import errors

    cache, commit = Cache(repo), revision or ""
    ref = cache.ref(revision)
    if not COMMIT.fullmatch(commit) and ref is not None and ref.is_file():
        commit = ref.read_text(errors="replace")[:64].strip()
    folder = cache.snapshot(commit) if SNAPSHOT.fullmatch(commit) else None
    if folder is not None and not COMMIT.fullmatch(commit) and not folder.is_dir():
        folder = None
    missing = _first_missing(repo, folder) if folder else None
    if folder is not None and missing is None:
        return folder
    if isinstance(error, errors.HfHubHTTPError):
        raise error
    why = "HF_HUB_OFFLINE is set" if isinstance(error, errors.OfflineModeIsEnabled) else said(error)
    cut_off = f"the hub cannot be reached ({why})"
    if folder is None:
        raise RunError(f"{repo}: nothing of revision {revision or 'main'} is in the local cache, and {cut_off}")
    raise RunError(f"{repo}: {missing} is not in the local cache ({folder}), and {cut_off}")


def _first_missing(repo: str, folder: Path) -> str | None:
    """The first file that a run needs and a snapshot lacks, by its own index."""
    names: tuple[str, ...] = (SINGLE,)
    for _, index, single, ending in FORMATS:
        if (folder / index).is_file():
            with (folder / index).open("rb") as stream:
                names = _named(stream.read(LARGEST_INDEX + 1), repo, index, ending)
            if (
                single not in names
                and (folder / single).is_file()
                and not all((folder / name).is_file() for name in names)
            ):
                names = (single,)
            break
        if (folder / single).is_file():
            names = (single,)
            break
    return next((name for name in (CONFIG, *names) if not (folder / name).is_file()), None)


def _check_room(repo: str, missing: int) -> None:
    """RunError where the hub's cache lies on a disk with less room than that."""
    home = cache_home()
    there = next(path for path in (home, *home.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < missing:
        raise RunError(
            f"HF_HOME: {repo} needs {format_size(missing)} more in {home}, where {format_size(free)} are free; "
            "free some, or set HF_HOME to a folder on a larger disk"
        )


def _whole(path: Path, size: int) -> bool:
    """Whether a file is there with the size that the hub states (0: unknown)."""
    return path.is_file() and size in (0, path.stat().st_size)


def _takes(function: Callable[..., Any], name: str) -> bool:
    return name in inspect.signature(function).parameters

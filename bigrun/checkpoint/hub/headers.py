"""What the headers of a hub model's safetensors say, read by range requests: no tensor is fetched."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from bigrun.checkpoint.base import Limits, Rows, TensorInfo
from bigrun.checkpoint.files import read_companions
from bigrun.checkpoint.formats.float8 import block_size, scale_of
from bigrun.checkpoint.formats.safetensors import DTYPES, INDEX, LONGEST_NAME, SINGLE
from bigrun.checkpoint.formats.safetensors_header import MOST_TENSORS, data_bytes, parse, weight_map
from bigrun.checkpoint.hub.hub import call_hub, read_range
from bigrun.checkpoint.tensor_map import map_tensors, unfit
from bigrun.errors import CheckpointError
from bigrun.model.families.registry import BY_NAME
from bigrun.model.source import Dialect
from bigrun.model.spec import ModelSpec

FIRST_BYTES = 100_000  # asked for at once: nearly every header is shorter, and two requests take longer than its rest
LARGEST_INDEX = 64 * 2**20  # bytes; a trillion parameters in 200,000 tensors is 23 MB
MOST_FILES = 2000
LARGEST_HEADERS = 256 * 2**20  # bytes, of all the files together
AT_A_TIME = 8  # requests

PLAIN = ("F64", "F32", "F16", "BF16")
BUFFERS = ("I64", "BOOL")  # masks and position ids, beside weights that are plain
# Parameters in the files for one that the configuration describes: files also hold what is not planned, such as the towers
# of other senses and layers for speculation.
SLACK = (0.99, 1.25)


@dataclass(frozen=True)
class Headers:
    """What the headers of a model's safetensors say: `bytes` of tensor data, `dtypes` name → parameters, sorted."""

    files: int
    bytes: int
    dtypes: tuple[tuple[str, int], ...]
    tensors: Mapping[str, TensorInfo]


class HubFiles:
    """What the hub says of a model's safetensors, as a Checkpoint that is still to be fetched: its rows cannot be read."""

    format = "safetensors"
    dialect: Dialect = "hf"
    metadata: Mapping[str, Any] | None = None
    paths: tuple[Path, ...] = ()

    def __init__(self, repo: str, config: Mapping[str, Any], hub_headers: Headers, folder: Path = Path()):
        self.where, self.config, self.folder = repo, config, folder
        self.limits, self.notes = Limits(MOST_TENSORS), list[str]()
        tensors, blocks = hub_headers.tensors, block_size(config)
        scales = {name: scale_of(name, tensors, blocks) for name, info in tensors.items() if info.dtype == "F8_E4M3"}
        hidden = set(scales.values())
        self.tensors: dict[str, TensorInfo] = {}
        for name, info in tensors.items():
            if name not in hidden:
                scale = tensors.get(scales.get(name, ""))
                readable, scale_bytes = info.readable and scales.get(name) != "", scale.nbytes if scale else 0
                self.tensors[name] = replace(info, where=repo, readable=readable, scale_bytes=scale_bytes)

    def companions(self) -> Mapping[str, bytes]:
        return read_companions(self.folder)

    def rows(self, name: str, start: int, stop: int) -> Rows:
        raise CheckpointError(f"{self.where}: tensor {name[:100]} is still to be fetched")

    def ahead(self, name: str, start: int, stop: int) -> None:
        """Nothing to read ahead."""

    def done(self, name: str, start: int, stop: int, drop: bool = False) -> None:
        """Nothing to release."""


def headers(repo: str, revision: str | None) -> Headers | None:
    """What the headers of model.safetensors, or of the index's shards, say; no more of those files is read.

    None where the repository has neither, and where the hub cannot be reached: a plan then rests on config.json alone.
    CheckpointError names the file whose header is damaged, or beyond the limits above; other errors are those of `call_hub`.
    """
    from huggingface_hub import errors

    def call(hub: Any) -> Headers | None:
        try:
            return _headers(repo, revision)
        except errors.HfHubHTTPError:
            raise
        except (errors.HTTPError, OSError):  # no answer, or offline mode
            return None

    return call_hub(repo, call)


def check(spec: ModelSpec, hub_files: HubFiles) -> None:
    """CheckpointError names the first tensor of the spec that the files lack or hold in another shape, or how they are
    quantised.

    A family that is only planned has no list of its tensors: there the number of parameters is compared, within SLACK,
    unless some are quantised and packed.
    """
    if BY_NAME[spec.family].sources is None:
        tensors = hub_files.tensors
        held = sum(prod(info.shape) for info in tensors.values() if info.dtype in PLAIN)
        if spec.tied and "lm_head.weight" in tensors:  # some files hold the one table twice
            held -= prod(tensors["lm_head.weight"].shape)
        packed = any(info.dtype not in PLAIN + BUFFERS for info in tensors.values())
        if not packed and not SLACK[0] <= held / spec.parameters <= SLACK[1]:
            raise CheckpointError(
                f"{hub_files.where}: its safetensors hold {held:,} parameters, config.json describes {spec.parameters:,}"
            )
        return
    for problem in unfit(map_tensors(hub_files, spec)):
        raise CheckpointError(problem)


def _headers(repo: str, revision: str | None) -> Headers | None:
    from huggingface_hub import errors

    def shard(file: str) -> tuple[int, dict[str, TensorInfo]]:
        try:
            return _header(repo, file, revision)
        except errors.EntryNotFoundError as error:
            raise _Missing(f"{repo}: {file}: missing, though {INDEX} names it") from error

    try:
        index = read_range(repo, INDEX, revision, 0, LARGEST_INDEX + 1)[0]
        files = shards(index, repo)
    except errors.EntryNotFoundError:
        try:
            return _sum(1, _header(repo, SINGLE, revision)[1])
        except errors.EntryNotFoundError:
            return None
    try:
        return _sum(len(files), _of_shards(files, weight_map(index, f"{repo}: {INDEX}"), shard, repo))
    except _Missing as missing:  # an index that its shards have left behind: the single file, if there is one
        try:
            if SINGLE not in files:
                return _sum(1, _header(repo, SINGLE, revision)[1])
        except errors.EntryNotFoundError:
            pass
        raise CheckpointError(str(missing)) from missing


class _Missing(CheckpointError):
    """A shard that an index names is not there."""


def _of_shards(
    files: Sequence[str], index: Mapping[str, str], shard: Callable[[str], tuple[int, dict[str, TensorInfo]]], repo: str
) -> dict[str, TensorInfo]:  # fmt: skip
    """The tensors of all shards; of one that is in two the index says which."""
    tensors: dict[str, TensorInfo] = {}
    left = LARGEST_HEADERS
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        for start in range(0, len(files), AT_A_TIME):  # in rounds: the sum is known before more is asked for
            some_files = files[start : start + AT_A_TIME]
            for file, (size, some) in zip(some_files, pool.map(shard, some_files), strict=True):
                left -= size
                tensors |= {name: info for name, info in some.items() if index.get(name, file) == file}
            if left < 0:
                raise CheckpointError(f"{repo}: the headers of its safetensors exceed {LARGEST_HEADERS >> 20} MiB")
    return tensors


def _sum(files: int, tensors: dict[str, TensorInfo]) -> Headers:
    dtypes: dict[str, int] = {}
    for tensor in tensors.values():
        dtypes[tensor.dtype] = dtypes.get(tensor.dtype, 0) + prod(tensor.shape)
    nbytes = sum(tensor.nbytes for tensor in tensors.values())
    return Headers(files, nbytes, tuple(sorted(dtypes.items())), tensors)


def shards(index: bytes, repo: str, name: str = INDEX) -> tuple[str, ...]:
    """The files that an index (of this name) names, each once, in its order."""
    where = f"{repo}: {name}"
    if len(index) > LARGEST_INDEX:
        raise CheckpointError(f"{where}: larger than {LARGEST_INDEX >> 20} MiB, which no index is")
    weights = weight_map(index, where)
    files = tuple(dict.fromkeys(weights.values()))
    if not 1 <= len(files) <= MOST_FILES:
        raise CheckpointError(f"{where}: names {len(files)} files, not between 1 and {MOST_FILES}")
    for file in files:
        parts = file.split("/")
        if len(file) > LONGEST_NAME or "\\" in file or not file.isprintable() or {"", ".", ".."} & set(parts):
            raise CheckpointError(f"{where}: names {file[:80]!r}, which is no file of the repository")
    return files


def _header(repo: str, file: str, revision: str | None) -> tuple[int, dict[str, TensorInfo]]:
    """(bytes of a file's header, its tensors). The format is the safetensors library's, README, "Format"."""
    from huggingface_hub import constants

    where, longest = f"{repo}: {file}", constants.SAFETENSORS_MAX_HEADER_LENGTH
    data, total = read_range(repo, file, revision, 0, FIRST_BYTES)
    size = int.from_bytes(data[:8], "little")
    if len(data) >= 8 and size > longest:
        raise CheckpointError(f"{where}: says that its header has {size} bytes; {longest} is the most")
    if FIRST_BYTES <= len(data) < 8 + size:
        data += read_range(repo, file, revision, len(data), 8 + size)[0]
    if len(data) < 8 + size or len(data) < 8:
        raise CheckpointError(f"{where}: ends before its header does")
    entries = parse(data[8 : 8 + size], where)
    end = 8 + size + data_bytes(entries)
    if total is not None and total != end:
        raise CheckpointError(f"{where}: has {total} bytes, its header describes {end}")
    tensors = {
        name: TensorInfo(entry.dtype, entry.shape, entry.nbytes, entry.dtype in DTYPES, where)
        for name, entry in entries.items()
    }
    return 8 + size, tensors

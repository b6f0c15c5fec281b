"""What the headers of a hub model's safetensors say, read by range requests: no tensor is fetched."""

import json
from collections.abc import Container, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from typing import Any, TypeGuard

from bigrun.checkpoint.base import TensorInfo
from bigrun.checkpoint.hub import call_hub, read_range
from bigrun.checkpoint.safetensors import DTYPES, INDEX, LONGEST_NAME, SINGLE
from bigrun.errors import CheckpointError
from bigrun.model.families import BY_NAME
from bigrun.model.spec import ModelSpec

FIRST_BYTES = 100_000  # asked for at once: nearly every header is shorter, and two requests take longer than its rest
LARGEST_INDEX = 64 * 2**20  # bytes; a trillion parameters in 200,000 tensors is 23 MB
MOST_FILES = 2000
LARGEST_HEADERS = 256 * 2**20  # bytes, of all the files together
AT_A_TIME = 8  # requests
MOST_DIMENSIONS = 32
LARGEST_COUNT = 2**53

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
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
    shapes: Mapping[str, tuple[int, ...]]


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


def check(spec: ModelSpec, found: Headers, repo: str) -> None:
    """CheckpointError names the first tensor of the spec that the files lack or hold in another shape.

    A family that is only planned has no list of its tensors: there the number of parameters is compared, within SLACK,
    unless some are quantised and packed.
    """
    family = BY_NAME[spec.family]
    sources = family.sources
    if sources is None:
        held = sum(count for dtype, count in found.dtypes if dtype in PLAIN)
        if spec.tied:  # some files hold the one table twice
            held -= prod(found.shapes.get("lm_head.weight", (0,)))
        packed = any(dtype not in PLAIN + BUFFERS for dtype, _ in found.dtypes)
        if not packed and not SLACK[0] <= held / spec.parameters <= SLACK[1]:
            raise CheckpointError(
                f"{repo}: its safetensors hold {held:,} parameters, config.json describes {spec.parameters:,}"
            )
        return
    table = sources(spec, "embed", "hf")["table"][0].name
    # published names differ in whether they carry the model class's prefix, all or none
    bare = [prefix for prefix in family.prefixes if prefix and table.removeprefix(prefix) in found.shapes]
    prefix = bare[0] if bare and table not in found.shapes else ""
    for part in spec.parts:
        of_part = sources(spec, part.name, "hf")
        for source in (source for tensor in part.tensors for source in of_part[tensor.name]):
            name = source.name.removeprefix(prefix)
            shape = found.shapes.get(name)
            if shape is None:
                raise CheckpointError(f"{repo}: tensor {name} is missing from its safetensors")
            if shape != source.shape:
                raise CheckpointError(
                    f"{repo}: tensor {name} has shape {list(shape)}, config.json says {list(source.shape)}"
                )


def _headers(repo: str, revision: str | None) -> Headers | None:
    from huggingface_hub import errors

    def shard(file: str) -> tuple[int, dict[str, TensorInfo]]:
        try:
            return _header(repo, file, revision)
        except errors.EntryNotFoundError as error:
            raise CheckpointError(f"{repo}: {file}: missing, though {INDEX} names it") from error

    try:
        files = _shards(read_range(repo, INDEX, revision, 0, LARGEST_INDEX + 1)[0], repo)
    except errors.EntryNotFoundError:
        try:
            return _sum(1, _header(repo, SINGLE, revision)[1])
        except errors.EntryNotFoundError:
            return None
    tensors: dict[str, TensorInfo] = {}
    left = LARGEST_HEADERS
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        for start in range(0, len(files), AT_A_TIME):  # in rounds: the sum is known before more is asked for
            for size, some in pool.map(shard, files[start : start + AT_A_TIME]):
                left -= size
                tensors |= some
            if left < 0:
                raise CheckpointError(f"{repo}: the headers of its safetensors exceed {LARGEST_HEADERS >> 20} MiB")
    return _sum(len(files), tensors)


def _sum(files: int, tensors: dict[str, TensorInfo]) -> Headers:
    dtypes: dict[str, int] = {}
    for tensor in tensors.values():
        dtypes[tensor.dtype] = dtypes.get(tensor.dtype, 0) + prod(tensor.shape)
    nbytes = sum(tensor.nbytes for tensor in tensors.values())
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    return Headers(files, nbytes, tuple(sorted(dtypes.items())), shapes)


def _shards(index: bytes, repo: str) -> tuple[str, ...]:
    """The files that an index names, each once, in its order."""
    where = f"{repo}: {INDEX}"
    if len(index) > LARGEST_INDEX:
        raise CheckpointError(f"{where}: larger than {LARGEST_INDEX >> 20} MiB, which no index is")
    weight_map = _object(index, where).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CheckpointError(f"{where}: has no 'weight_map' of tensor names to file names")
    files = tuple(dict.fromkeys(weight_map.values()))
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
    entries = _object(data[8 : 8 + size], where)
    entries.pop("__metadata__", None)
    tensors = {name: _tensor(name, entry, where) for name, entry in entries.items()}
    filled = sum(tensor.nbytes for tensor in tensors.values())
    if filled != max((entry["data_offsets"][1] for entry in entries.values()), default=0):
        raise CheckpointError(f"{where}: its tensors overlap, or leave gaps")
    if total is not None and total != 8 + size + filled:
        raise CheckpointError(f"{where}: has {total} bytes, its header describes {8 + size + filled}")
    return 8 + size, tensors


def _tensor(name: str, entry: Any, where: str) -> TensorInfo:
    """An entry of a header, checked: its shape and dtype take the bytes that it claims."""
    fields: dict[str, Any] = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not (isinstance(dtype, str) and _counts(shape, range(MOST_DIMENSIONS)) and _counts(offsets, (2,))):
        raise CheckpointError(f"{where}: the entry of tensor {name[:100]} is damaged")
    nbytes = offsets[1] - offsets[0]
    if nbytes < 0 or (dtype in ITEM_BYTES and nbytes != prod(shape) * ITEM_BYTES[dtype]):
        raise CheckpointError(f"{where}: tensor {name[:100]} has {nbytes} bytes, not those of {dtype} {shape}")
    return TensorInfo(dtype, tuple(shape), nbytes, dtype in DTYPES, where)


def _counts(values: Any, lengths: Container[int]) -> TypeGuard[list[int]]:
    """Whether this is a list of so many whole numbers, none below 0 or absurd."""
    return (
        isinstance(values, list)
        and len(values) in lengths
        and all(type(value) is int and 0 <= value < LARGEST_COUNT for value in values)
    )


def _object(data: bytes, where: str) -> dict[str, Any]:
    try:
        content = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: not valid JSON: {str(error)[:120]}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{where}: not a JSON object")
    return content

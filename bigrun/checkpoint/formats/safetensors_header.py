"""The header of a safetensors file (format: the safetensors library's README, "Format"), from a disk or a hub, checked.

Everything that a header says is checked before it is used: lengths against the file, shapes and dtypes against the bytes
they claim, offsets against each other. Nothing is parsed that is longer than the model at hand could need.
"""

import json
import re
from collections.abc import Container
from dataclasses import dataclass
from math import prod
from typing import Any, TypeGuard

from bigrun.errors import CheckpointError

ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1,
    "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "C64": 8,
}  # fmt: skip
DTYPE = re.compile(r"[A-Z][A-Z0-9_]{0,19}", re.ASCII)
MOST_DIMENSIONS = 32
LARGEST_COUNT = 2**53
MOST_TENSORS = 2**18  # of a model that nothing is known of; a trillion parameters are in 200,000
ENTRY_BYTES = 250  # of a tensor's entry in a header or an index, on average; they have about 120
OTHER_BYTES = 2**20  # of whatever else a header or an index holds


@dataclass(frozen=True)
class Entry:
    """A tensor: `begin` is its first byte, counted from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    nbytes: int


def longest(tensors: int) -> int:
    """Bytes that a header, or an index, of so many tensors may have."""
    return OTHER_BYTES + ENTRY_BYTES * tensors


def parse(data: bytes, where: str, most: int = MOST_TENSORS) -> dict[str, Entry]:
    """The tensors of a header, given its JSON; CheckpointError says which entry is unsound.

    Tensors must fill the data without gaps or overlaps, as the format demands.
    """
    if data.count(b'"data_offsets"') > most:
        raise CheckpointError(f"{where}: its header has more than {most} tensors, far more than this model")
    entries = json_object(data, where)
    entries.pop("__metadata__", None)
    tensors = {name: _entry(name, entry, where) for name, entry in entries.items()}
    end = 0
    for entry in sorted(tensors.values(), key=lambda entry: (entry.begin, entry.nbytes)):
        if entry.begin != end:
            raise CheckpointError(f"{where}: damaged: its tensors overlap, or leave gaps; fetch it again")
        end += entry.nbytes
    return tensors


def data_bytes(tensors: dict[str, Entry]) -> int:
    return sum(entry.nbytes for entry in tensors.values())


def _entry(name: str, entry: Any, where: str) -> Entry:
    fields: dict[str, Any] = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not (
        isinstance(dtype, str)
        and DTYPE.fullmatch(dtype)
        and _counts(shape, range(MOST_DIMENSIONS))
        and _counts(offsets, (2,))
    ):
        raise CheckpointError(f"{where}: damaged: the entry of tensor {name[:100]}; fetch it again")
    nbytes = offsets[1] - offsets[0]
    if nbytes < 0 or (dtype in ITEM_BYTES and nbytes != prod(shape) * ITEM_BYTES[dtype]):
        raise CheckpointError(
            f"{where}: damaged: tensor {name[:100]} has {nbytes} bytes, not those of {dtype} {shape}; fetch it again"
        )
    return Entry(dtype, tuple(shape), offsets[0], nbytes)


def _counts(values: Any, lengths: Container[int]) -> TypeGuard[list[int]]:
    """Whether this is a list of so many whole numbers, none below 0 or absurd."""
    return (
        isinstance(values, list)
        and len(values) in lengths
        and all(type(value) is int and 0 <= value < LARGEST_COUNT for value in values)
    )


def json_object(data: bytes, where: str) -> dict[str, Any]:
    """A JSON object; CheckpointError otherwise."""
    try:
        content = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: not valid JSON: {str(error)[:120]}; fetch it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{where}: not a JSON object; fetch it again")
    return content


def weight_map(index: bytes, where: str, most: int = MOST_TENSORS) -> dict[str, str]:
    """Tensor → file, of an index; the file names are as the index has them."""
    if len(index) > longest(most):
        raise CheckpointError(f"{where}: larger than {longest(most) >> 10} KiB, far more than this model's index")
    files = json_object(index, where).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise CheckpointError(f"{where}: has no 'weight_map' of tensor names to file names")
    return files

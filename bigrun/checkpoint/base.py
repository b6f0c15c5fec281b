"""The interface of a checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bigrun.model.source import Dialect


@dataclass(frozen=True)
class TensorInfo:
    """`dtype` as the format names it; `readable` where its rows can be read; `where` is the file that messages name.

    `scales` are those of a float8 tensor: (name, file, rows of a block, columns of a block). `place` is where its bytes lie,
    (file, first byte, strides), where two tensors may have one.
    """

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    readable: bool
    where: str
    scales: tuple[str, str, int, int] | None = None
    place: tuple[str, int, tuple[int, ...]] | None = None


@dataclass(frozen=True)
class Rows:
    """Rows of a tensor: float32, uint16 with the bits of float16 or bfloat16, or uint8 with those of float8 e4m3.

    float8 has scales float32 [⌈rows/tall⌉, ⌈columns/across⌉] in `blocks`, for the whole tensor; `block` is (the number of
    the first row here, tall, across).
    """

    values: np.ndarray
    is_bfloat: bool = False
    blocks: np.ndarray | None = None
    block: tuple[int, int, int] = (0, 1, 1)

    def floats(self) -> np.ndarray:
        """The rows as float32, by NumPy: for small tensors."""
        if self.blocks is not None:
            first, tall, across = self.block
            rows = self.blocks[(first + np.arange(self.values.shape[0])) // tall]
            return _fp8_values()[self.values] * np.repeat(rows, across, axis=1)[:, : self.values.shape[1]]
        if self.is_bfloat:
            return (self.values.astype(np.uint32) << 16).view(np.float32)
        return (self.values.view(np.float16) if self.values.dtype == np.uint16 else self.values).astype(np.float32)


@cache
def _fp8_values() -> np.ndarray:
    """The 256 numbers of float8 e4m3 (OCP FP8 specification), NaN at 0x7F and 0xFF."""
    codes = np.arange(256)
    exponent, mantissa = (codes >> 3) & 15, codes & 7
    values = np.where(exponent > 0, (8 + mantissa) * 2.0 ** (exponent - 10), mantissa * 2.0**-9)
    values[(codes & 0x7F) == 0x7F] = np.nan
    return np.where(codes & 0x80, -values, values).astype(np.float32)


@dataclass(frozen=True)
class Limits:
    """What the headers of a checkpoint may hold. A hostile file could have them be of any length."""

    tensors: int


class Checkpoint(Protocol):
    """A model's files, open. Nothing is read until rows are asked for.

    `where` is what messages name; `format` is one of safetensors, torch and GGUF; `folder` holds the tokenizer's files, but
    for GGUF, whose `metadata` (None of other formats) has the tokenizer. `limits` may be set until `tensors` is first asked
    for. `notes`: what the user should know of the choice of its files, complete once `tensors` was asked for.
    """

    where: str
    format: str
    dialect: Dialect
    config: Mapping[str, Any]
    folder: Path
    metadata: Mapping[str, Any] | None
    limits: Limits
    notes: list[str]

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files that hold weights, in their order; none of what is still to be fetched, whose rows cannot be read."""

    def companions(self) -> Mapping[str, bytes]:
        """The small files that a model needs beside its configuration and weights, by name: those of its tokenizer."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors by name."""

    def rows(self, name: str, start: int, stop: int) -> Rows:
        """Rows [start, stop) of a tensor (entries, for a vector, as [stop − start, 1] … shape as stored)."""

    def ahead(self, name: str, start: int, stop: int) -> None:
        """Asks the system to read these rows from the disk in the background."""

    def done(self, name: str, start: int, stop: int, drop: bool = False) -> None:
        """Releases these rows, which are not read again; `drop` takes them out of the page cache as well."""

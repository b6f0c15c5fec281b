"""The interface of a checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bigrun.model.source import Dialect


@dataclass(frozen=True)
class TensorInfo:
    """`dtype` as the format names it; `readable` where its rows can be read; `where` is the file that messages name."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    readable: bool
    where: str


@dataclass(frozen=True)
class Rows:
    """Rows of a tensor: float32, or uint16 with the bits of float16 or bfloat16."""

    values: np.ndarray
    is_bfloat: bool = False


class Checkpoint(Protocol):
    """A model's files, open. Nothing is read until rows are asked for."""

    where: str
    dialect: Dialect
    config: Mapping[str, Any]

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files that hold weights, in their order."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors by name."""

    def rows(self, name: str, start: int, stop: int) -> Rows:
        """Rows [start, stop) of a tensor (entries, for a vector, as [stop − start, 1] … shape as stored)."""

    def ahead(self, name: str, start: int, stop: int) -> None:
        """Have the system read these rows from the disk, in the background: they are asked for soon."""

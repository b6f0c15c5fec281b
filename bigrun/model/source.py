"""Where a canonical tensor's rows come from in a checkpoint."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

Dialect = Literal["hf", "gguf"]


@dataclass(frozen=True)
class Source:
    """Rows of a checkpoint tensor, in the order of a canonical one.

    `shape` is the checkpoint tensor's. A canonical tensor is the concatenation, along its rows, of its sources. Where
    the checkpoint orders rows in another way, they are to be read as an array of shape `grid`, transposed by `axes`, and then
    what `order` says of its first axis, if it says anything: which comes first, second …
    """

    name: str
    shape: tuple[int, ...]
    grid: tuple[int, ...] = ()
    axes: tuple[int, ...] = ()
    order: tuple[int, ...] = ()
    plus: float = (
        0.0  # is added to every entry, of a tensor that is kept in 32 bits: Gemma's norms multiply by 1 + weight
    )

    def destinations(self) -> np.ndarray:
        """int64 [rows]: the canonical row (counted from this source's first) of each of the checkpoint's rows."""
        rows = self.shape[0]
        if not self.grid:
            return np.arange(rows)
        grid = np.arange(rows).reshape(self.grid).transpose(self.axes)
        origin = (grid[list(self.order)] if self.order else grid).ravel()
        result = np.empty(rows, np.int64)
        result[origin] = np.arange(rows)
        return result

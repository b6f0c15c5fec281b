"""The one layout of int8 weights, in memory and on disk: lanes. Version 1.

    int8 [panels, quads, 16, 4]: element (p, q, r, c) is row 16·p + r, column 4·q + c

Sixteen rows make a panel; four consecutive columns of each lie side by side, 64 bytes for the sixteen. That is what one
`vpdpbusd` of 512 bits takes, two of 256 bits, or four `vpmaddwd`: each 32-bit lane belongs to a row of its own, so a sum is
complete in its lane and a panel is read from memory in one sweep. Rows are padded to 16 and columns to 64, with zeros.
A table's scales, one for each 32 columns of a row, lie as [panels, groups, 16].
"""

from typing import Any

VERSION = 1
ROWS, QUAD, COLUMNS = 16, 4, 64
GROUP = 32  # columns of a table's row that share a scale


def panels(rows: int) -> int:
    return -(-rows // ROWS)


def shape(rows: int, columns: int) -> tuple[int, int, int, int]:
    """The stored shape of a weight [rows, columns]."""
    return panels(rows), -(-columns // COLUMNS) * COLUMNS // QUAD, ROWS, QUAD


def scale_shape(rows: int, columns: int) -> tuple[int, int, int]:
    """The stored shape of a table's scales."""
    return panels(rows), shape(rows, columns)[1] * QUAD // GROUP, ROWS


def unpack(values: Any, rows: int, columns: int) -> Any:
    """Stored values (NumPy or torch) → [rows, columns]."""
    swapped = values.swapaxes(1, 2)
    return swapped.reshape(values.shape[0] * ROWS, -1)[:rows, :columns]


def unpack_scale(scale: Any, rows: int) -> Any:
    """A table's stored scales (NumPy or torch) → [rows, groups]."""
    return scale.swapaxes(1, 2).reshape(scale.shape[0] * ROWS, -1)[:rows]


def pack(q: Any) -> Any:
    """int8 [N, K] (NumPy) → its stored form: the definition that the loader's kernels answer to."""
    import numpy as np

    count, quads, _, _ = shape(*q.shape)
    padded = np.zeros((count * ROWS, quads * QUAD), np.int8)
    padded[: q.shape[0], : q.shape[1]] = q
    return np.ascontiguousarray(padded.reshape(count, ROWS, quads, QUAD).swapaxes(1, 2))


def pack_scale(scale: Any) -> Any:
    """Scales [N, groups] (NumPy) → their stored form."""
    import numpy as np

    padded = np.zeros((panels(scale.shape[0]) * ROWS, scale.shape[1]), scale.dtype)
    padded[: scale.shape[0]] = scale
    return np.ascontiguousarray(padded.reshape(-1, ROWS, scale.shape[1]).swapaxes(1, 2))

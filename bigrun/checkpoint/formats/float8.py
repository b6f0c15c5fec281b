"""Which scales belong to a float8 tensor (NAME beside NAME_scale_inv or NAME_scale), by headers and configuration."""

from collections.abc import Mapping
from typing import Any, Protocol

SCALES = ("_scale_inv", "_scale")  # after the name of a float8 tensor


class Described(Protocol):
    """A tensor as a header has it."""

    @property
    def dtype(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...


def block_size(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Rows and columns that share a scale of float8, where a configuration says it."""
    quantisation = config.get("quantization_config")
    block = quantisation.get("weight_block_size") if isinstance(quantisation, dict) else None
    if isinstance(block, list) and len(block) == 2 and all(type(n) is int and 0 < n < 2**31 for n in block):
        return block[0], block[1]
    return None


def scale_of(name: str, entries: Mapping[str, Described], size: tuple[int, int] | None) -> str:
    """The scales of a float8 tensor: one for all, one a row, or one a block; "" where there are none that fit."""
    rows, columns = (*entries[name].shape, 0, 0)[:2]
    if not rows or not columns:
        return ""
    for suffix in SCALES:
        scale = entries.get(name + suffix)
        if scale is not None and scale.dtype in ("F32", "F16", "BF16") and len(entries[name].shape) == 2:
            tall, across = block_of(rows, columns, scale.shape, size)
            if tall and scale.shape in ((), (1,), (rows,), (-(-rows // tall), -(-columns // across))):
                return name + suffix
    return ""


def block_of(rows: int, columns: int, shape: tuple[int, ...], size: tuple[int, int] | None) -> tuple[int, int]:
    """Rows and columns that share a scale, by the shape of the scales; (0, 0) for none that is known."""
    if shape in ((), (1,), (1, 1)):
        return rows, columns
    if shape in ((rows,), (rows, 1)):
        return 1, columns
    if size is not None:
        return size
    return (128, 128) if shape == (-(-rows // 128), -(-columns // 128)) else (0, 0)

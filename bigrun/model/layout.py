"""How a part is stored: one run of bytes, its tensors at 64-byte boundaries. The ledger counts what this says and the
loader allocates what this says, so weights cannot be planned wrong.

Stored forms (NUMERICS: docs/architecture.md):
  linear   int8 [N, K] in lanes (bigrun_kernels/lanes.py: rows padded to 16, columns to 64); float32 scale [N]
  table    int8 [V, K] in lanes, with a float16 scale for each 32 entries of a row
           of experts one after the other, [E, ...], each padded for itself
  kept     16 bits: a router, the low-rank projections of latent attention
  small    float32: norms, biases, learned positions (lossless for every published dtype, and under 0.1 % of a model)
  16bit    linears and tables as 16-bit values, [N, K], in the checkpoint's dtype
  float32  the same in float32
"""

from dataclasses import dataclass
from functools import cached_property
from math import prod

from bigrun.model.spec import Part
from bigrun.model.storage import Storage
from bigrun_kernels import lanes

ALIGNMENT = 64
K_MULTIPLE = lanes.COLUMNS
ITEM_BYTES = {"int8": 1, "float16": 2, "bfloat16": 2, "int32": 4, "int64": 8, "float32": 4, "float64": 8}


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


@dataclass(frozen=True)
class Stored:
    """An array in a part's run of bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def in_lanes(self) -> bool:
        """Whether the array has the CPU's layout: an int8 weight, or the scales of a table."""
        if self.dtype == "int8":
            return len(self.shape) == 4
        return self.dtype == "float16" and self.name.endswith(".scale")

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of the array on a GPU, row by row; of as many bytes as in its stored form."""
        if not self.in_lanes:
            return self.shape
        panels, *rest = self.shape
        return panels * lanes.ROWS, prod(rest) // lanes.ROWS


@dataclass(frozen=True)
class Layout:
    """A part's arrays. Canonical tensor `x` in int8 is stored as `x` and `x.scale`."""

    part: str
    arrays: tuple[Stored, ...]
    nbytes: int
    stored_as: str

    @cached_property
    def by_name(self) -> dict[str, Stored]:
        return {array.name: array for array in self.arrays}


def layout(part: Part, storage: Storage, checkpoint_dtype: str) -> Layout:
    """The layout of one part of a checkpoint of that dtype; `nbytes` includes all padding."""
    arrays: list[Stored] = []
    end = 0

    def add(name: str, dtype: str, shape: tuple[int, ...]) -> None:
        nonlocal end
        arrays.append(Stored(name, dtype, shape, end))
        end = round_up(end + arrays[-1].nbytes, ALIGNMENT)

    forms = set()
    for tensor in part.tensors:
        form = storage.form(part.name, tensor, checkpoint_dtype)
        if tensor.role in ("linear", "table"):
            forms.add(form)
        if form != "int8":
            add(tensor.name, form, tensor.shape)
            continue
        *experts, rows, columns = tensor.shape
        add(tensor.name, "int8", (*experts, *lanes.shape(rows, columns)))
        if tensor.role == "table":
            add(f"{tensor.name}.scale", "float16", lanes.scale_shape(rows, columns))
        else:
            add(f"{tensor.name}.scale", "float32", (*experts, rows))
    return Layout(part.name, tuple(arrays), end, _widest(forms))


def _widest(forms: set[str]) -> str:
    """The widest form among a part's linears and tables, which a plan reports."""
    if forms & {"float16", "bfloat16"}:
        return "16bit"
    return "int8" if forms == {"int8"} else "float32"

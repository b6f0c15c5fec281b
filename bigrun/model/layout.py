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

from bigrun.errors import CallError
from bigrun.model.spec import ModelSpec, Part, Tensor
from bigrun_kernels import lanes

ALIGNMENT = 64
K_MULTIPLE = lanes.COLUMNS
ITEM_BYTES = {"int8": 1, "float16": 2, "bfloat16": 2, "int32": 4, "int64": 8, "float32": 4, "float64": 8}
FORMATS = ("int8", "16bit", "float32")


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


@dataclass(frozen=True)
class Storage:
    """What becomes of the weights: the options --weights, --head and --skip, and the checkpoint's dtype."""

    weights: str = "int8"
    head: str = "int8"
    skip: tuple[str, ...] = ()
    checkpoint_dtype: str = "float16"

    def __post_init__(self) -> None:
        if self.weights not in FORMATS:
            raise CallError(f"--weights {self.weights!r}: choose one of {', '.join(FORMATS)}")
        if self.head not in ("int8", "16bit"):
            raise CallError(f"--head {self.head!r}: choose int8 or 16bit")

    def form(self, part: str, tensor: Tensor) -> str:
        """'int8', 'float16', 'bfloat16' or 'float32': how this tensor is kept."""
        if tensor.role == "small" or self.weights == "float32":
            return "float32"
        if tensor.role == "kept" and self.checkpoint_dtype == "float32":
            return "float32"
        # A float32 checkpoint's 16 bits are bfloat16: its range is float32's, so nothing overflows.
        sixteen = "float16" if self.checkpoint_dtype == "float16" else "bfloat16"
        kept = self.weights == "16bit" or tensor.role == "kept" or self.skipped(part, tensor)
        if tensor.role == "table":
            return sixteen if kept or self.head == "16bit" else "int8"
        return sixteen if kept else "int8"

    def skipped(self, part: str, tensor: Tensor) -> bool:
        """--skip takes a part (`blocks.3`), a linear (`down`), or both (`blocks.3.down`)."""
        stem = tensor.name.rpartition(".")[0] or tensor.name
        block = part.removesuffix(".experts")
        return any(name in (part, stem, f"{block}.{stem}") for name in self.skip)

    def check_names(self, spec: ModelSpec) -> None:
        """CallError if a name of --skip matches nothing in this model."""
        for name in self.skip:
            only = Storage(skip=(name,))
            if not any(only.skipped(p.name, t) for p in spec.parts for t in p.tensors if t.role in ("linear", "table")):
                raise CallError(
                    f"--skip {name!r} matches nothing; name a part (blocks.3), a linear (qkv, out, up, down)"
                )


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


def layout(part: Part, storage: Storage) -> Layout:
    """The layout of one part; `nbytes` includes all padding."""
    arrays: list[Stored] = []
    end = 0

    def add(name: str, dtype: str, shape: tuple[int, ...]) -> None:
        nonlocal end
        arrays.append(Stored(name, dtype, shape, end))
        end = round_up(end + arrays[-1].nbytes, ALIGNMENT)

    forms = set()
    for tensor in part.tensors:
        form = storage.form(part.name, tensor)
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
    """What a plan says of a part: its widest form, small tensors aside."""
    if forms & {"float16", "bfloat16"}:
        return "16bit"
    return "int8" if forms == {"int8"} else "float32"

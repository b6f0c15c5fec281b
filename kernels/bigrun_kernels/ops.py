"""The public ops, each declared once; a backend implements all of them on its own kind of array.

  CpuOps        NumPy arrays, Numba kernels (cpu/ops.py)
  ReferenceOps  torch tensors on any device, plain torch (reference_ops.py): the definition of each op
  TorchOps      tensors of a GPU, weights row by row, torch alone (gpu/torch_ops.py)
  TritonOps     the same through Triton kernels (gpu/triton_ops.py)

Shapes: T tokens, H hidden, N outputs, K inputs, V vocabulary. Activations are float32. 16-bit floats are held by NumPy as
their bits in uint16. Every op writes into `out`, so that whoever plans memory also owns it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

Array = Any  # np.ndarray or torch.Tensor: each backend takes its own
ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3}
MODES = ("exact", "llm.int8", "grouped")  # grouped: on GPUs alone


@dataclass(frozen=True)
class Weight:
    """A linear's weight [N, K] as it is stored, with its bias [N] or an empty array.

    form int8: values int8 in lanes (lanes.py), scale float32 [N]; table: values and float16 scales in lanes; else values
    [N, K] alone. On a GPU int8 and table lie row by row, padded as in lanes (rows to 16, columns to 64).
    """

    form: str  # int8, table, float16, bfloat16 or float32
    values: Array
    scale: Array  # None without one
    bias: Array
    columns: int


@dataclass(frozen=True)
class Pages:
    """Keys or values of a block: float32, float16 or int8 [P, KVH, page, D]; scale: of int8, float16 [P, KVH, page]."""

    values: Array
    scale: Array


@dataclass(frozen=True)
class Scratch:
    """Buffers of a linear's quantised input, for as many rows as a step may have."""

    planes: Array  # int8 [rows to a multiple of 4 (or one), 2·Kp of the widest linear]
    row_scale: Array  # float64 [rows]
    row_sum: Array  # int32 [rows, 2]
    mask: Array  # int8 [K of the widest linear]


class Ops(Protocol):
    """What the decoder asks of a backend."""

    def scratch(self, work: Mapping[str, Array]) -> Any:
        """What `linear` needs of a step's buffers."""

    def norm(self, x: Array, weight: Array, bias: Array, eps: float, out: Array) -> None:
        """out [T, H] = RMSNorm (empty bias) or LayerNorm of each row."""

    def norm_heads(
        self, qkv: Array, heads: int, kv_heads: int, head_dim: int, q_weight: Array, k_weight: Array, eps: float
    ) -> None:
        """RMSNorm of each query and key of each row, in place; weights [head_dim]."""

    def linear(self, x: Array, w: Weight, mode: str, threshold: float, scratch: Scratch, out: Array, add: bool) -> None:
        """out [T, N] = (add: +=) x Wᵀ + b."""

    def rope(self, qkv: Array, heads: int, head_dim: int, cos_sin: Array) -> None:
        """Rotary embedding of the first `heads` heads of each row, in place."""

    def activate(self, kind: str, x: Array, gated: bool, out: Array) -> None:
        """out [T, I] = f(x), or f(first half) · second half."""

    def lookup(self, ids: Array, table: Weight, out: Array) -> None:
        """out [T, H] = rows of the table."""

    def store(self, qkv: Array, offset: int, size: int, slots: Array, pages: Pages) -> None:
        """Keys (or values), vectors of `size` of each row from `offset` on, into the cache's pages."""

    def attention(
        self, qkv: Array, heads: int, k: Pages, v: Pages, tables: Array, sequences: Array, positions: Array,
        slopes: Array, scale: float, out: Array, window: int = 0,
    ) -> None:  # fmt: skip
        """out [T, heads·D]: each token over its sequence up to its own position; over the last `window` positions, its own
        among them, if there is a window."""

    def norm_linear(
        self, x: Array, weight: Array, bias: Array, eps: float, normed: Array, w: Weight, mode: str, threshold: float,
        scratch: Any, out: Array,
    ) -> None:  # fmt: skip
        """out = linear(norm(x)), by way of `normed`."""

    def activate_linear(
        self, kind: str, x: Array, gated: bool, inner: Array, w: Weight, mode: str, threshold: float, scratch: Any,
        out: Array,
    ) -> None:  # fmt: skip
        """out += linear(activate(x)), by way of `inner`."""

    def rope_and_store_kv(
        self,
        qkv: Array,
        heads: int,
        kv_heads: int,
        head_dim: int,
        cos_sin: Array | None,
        slots: Array,
        k: Pages,
        v: Pages,
    ) -> None:
        """Rotary embedding of queries (and keys), then keys and values into the cache's pages."""


# What executes of a program (bigrun/model/program.py): target → op → the attributes that it knows.
_HEADS = frozenset(("heads", "kv_heads", "head_dim"))
_NORM = frozenset(("kind", "eps"))
_OPS = {
    "norm": _NORM,
    "norm_heads": _HEADS | {"eps"},
    "linear": frozenset(("bias",)),
    "norm_linear": _NORM | {"bias"},
    "rope_store": _HEADS | {"dims", "theta", "scaling"},
    "attend": _HEADS | {"scale", "value", "alibi", "window"},
    "activate_linear": frozenset(("kind", "gated", "bias")),
}
EXECUTES: Mapping[str, Mapping[str, frozenset[str]]] = {
    "host": _OPS,
    "gpu": _OPS,
    "compiled": {
        "norm": _NORM,
        "norm_quantise": _NORM,
        "norm_heads": _HEADS | {"eps"},
        "quantise": frozenset(),
        "linear": frozenset(("bias",)),
        "rope_store": _HEADS | {"dims", "theta", "scaling"},
        "attend": _OPS["attend"],
        "merge_quantise": _OPS["attend"],
        "activate_quantise": frozenset(("kind", "gated")),
    },
}


class Composed:
    """Ops of several steps, one after the other: what a backend does that has no kernel for the whole."""

    def norm_linear(
        self: Any, x: Array, weight: Array, bias: Array, eps: float, normed: Array, w: Weight, mode: str,
        threshold: float, scratch: Any, out: Array,
    ) -> None:  # fmt: skip
        self.norm(x, weight, bias, eps, normed)
        self.linear(normed, w, mode, threshold, scratch, out, False)

    def activate_linear(
        self: Any, kind: str, x: Array, gated: bool, inner: Array, w: Weight, mode: str, threshold: float, scratch: Any,
        out: Array,
    ) -> None:  # fmt: skip
        self.activate(kind, x, gated, inner)
        self.linear(inner, w, mode, threshold, scratch, out, True)

    def rope_and_store_kv(
        self: Any, qkv: Array, heads: int, kv_heads: int, head_dim: int, cos_sin: Array | None, slots: Array, k: Pages,
        v: Pages,
    ) -> None:  # fmt: skip
        if cos_sin is not None:  # q and k lie side by side: one call turns both
            self.rope(qkv, heads + kv_heads, head_dim, cos_sin)
        self.store(qkv, heads * head_dim, head_dim, slots, k)
        self.store(qkv, (heads + kv_heads) * head_dim, head_dim, slots, v)

    def scratch(self, work: Mapping[str, Array]) -> Any:
        return Scratch(work["planes"], work["row_scale"], work["row_sum"], work["mask"])

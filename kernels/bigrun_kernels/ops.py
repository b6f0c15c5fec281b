"""The public ops, each declared once; a backend implements all of them on its own kind of array.

  CpuOps        NumPy arrays, Numba kernels (cpu/)
  ReferenceOps  torch tensors on any device, plain torch (reference.py): the definition of each op
  TorchOps      tensors of a GPU, weights row by row, torch alone (gpu/torch_ops.py)
  TritonOps     the same through Triton kernels (gpu/triton_ops.py)

Shapes: T tokens, H hidden, N outputs, K inputs, V vocabulary. Activations are float32. 16-bit floats are held by NumPy as
their bits in uint16. Every op writes into `out`, so that whoever plans memory also owns it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from bigrun_kernels import lanes

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

    def linear(self, x: Array, w: Weight, mode: str, threshold: float, scratch: Scratch, out: Array, add: bool) -> None:
        """out [T, N] = (add: +=) x Wᵀ + b."""

    def rotate(self, qkv: Array, heads: int, head_dim: int, rotation: Array) -> None:
        """Rotary embedding of the first `heads` heads of each row, in place."""

    def activate(self, kind: str, x: Array, gated: bool, out: Array) -> None:
        """out [T, I] = f(x), or f(first half) · second half."""

    def lookup(self, ids: Array, table: Weight, out: Array) -> None:
        """out [T, H] = rows of the table."""

    def store(self, qkv: Array, offset: int, size: int, slots: Array, pages: Pages) -> None:
        """Keys (or values), vectors of `size` of each row from `offset` on, into the cache's pages."""

    def attention(
        self, qkv: Array, heads: int, k: Pages, v: Pages, tables: Array, sequences: Array, positions: Array,
        slopes: Array, scale: float, out: Array,
    ) -> None:  # fmt: skip
        """out [T, heads·D]: each token over its sequence up to its own position."""

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

    def turn_and_store(
        self,
        qkv: Array,
        heads: int,
        kv_heads: int,
        head_dim: int,
        rotation: Array | None,
        slots: Array,
        k: Pages,
        v: Pages,
    ) -> None:
        """Rotary embedding of queries (and keys), then keys and values into the cache's pages."""


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

    def turn_and_store(
        self: Any, qkv: Array, heads: int, kv_heads: int, head_dim: int, rotation: Array | None, slots: Array, k: Pages,
        v: Pages,
    ) -> None:  # fmt: skip
        if rotation is not None:  # q and k lie side by side: one call turns both
            self.rotate(qkv, heads + kv_heads, head_dim, rotation)
        self.store(qkv, heads * head_dim, head_dim, slots, k)
        self.store(qkv, (heads + kv_heads) * head_dim, head_dim, slots, v)

    def scratch(self, work: Mapping[str, Array]) -> Any:
        return Scratch(work["planes"], work["row_scale"], work["row_sum"], work["mask"])


class CpuOps(Composed):
    """Numba kernels. `form` is the kind of integer dot product, chosen once (isa.py)."""

    def __init__(self) -> None:
        from bigrun_kernels.cpu import isa, threads

        threads.prepare()
        from bigrun_kernels.cpu import attention, elementwise, float_dot, linear, table

        self._linear, self._float, self._elementwise, self._attention = linear, float_dot, elementwise, attention
        self._table = table
        self.form = isa.NUMBERS[isa.current()]

    def norm(self, x: Array, weight: Array, bias: Array, eps: float, out: Array) -> None:
        self._elementwise.norm(x, weight, bias, eps, out)

    def linear(self, x: Array, w: Weight, mode: str, threshold: float, scratch: Scratch, out: Array, add: bool) -> None:
        if not (x.flags.c_contiguous and out.flags.c_contiguous):
            raise ValueError("linear: x and out must be contiguous, row after row")
        if w.form in ("int8", "table") and w.values.shape != lanes.shape(out.shape[1], w.columns):
            raise ValueError(
                f"linear: weights of shape {w.values.shape} are not [{out.shape[1]}, {w.columns}] in lanes"
            )
        if w.form in ("int8", "table") and len(scratch.planes) < (1 if len(x) == 1 else -(-len(x) // 4) * 4):
            raise ValueError(f"linear: scratch of {len(scratch.planes)} rows for {len(x)}; give a multiple of four")
        if not len(x):
            return
        mask = scratch.mask[: w.columns]
        if w.form == "int8":
            self._linear.linear(
                self.form, x, w.values, w.scale, w.bias, mode == "exact", threshold, scratch.planes, scratch.row_scale,
                scratch.row_sum, mask, out, add,
            )  # fmt: skip
        elif w.form == "table":
            self._table.linear_table(
                self.form, x, w.values, w.scale, w.bias, scratch.planes, scratch.row_scale, scratch.row_sum, out, add
            )
        else:
            self._float.linear_float(x, w.values, w.form == "bfloat16", w.bias, out, add)

    def rotate(self, qkv: Array, heads: int, head_dim: int, rotation: Array) -> None:
        self._elementwise.rotate(qkv, heads, head_dim, rotation)

    def activate(self, kind: str, x: Array, gated: bool, out: Array) -> None:
        self._elementwise.activate(ACTIVATIONS[kind], x, gated, out)

    def lookup(self, ids: Array, table: Weight, out: Array) -> None:
        if table.form == "table":
            self._table.lookup(ids, table.values, table.scale, out)
        else:
            self._elementwise.lookup_float(ids, table.values, table.form == "bfloat16", out)

    def store(self, qkv: Array, offset: int, size: int, slots: Array, pages: Pages) -> None:
        self._attention.store(qkv, offset, size, slots, pages.values, pages.scale)

    def attention(
        self, qkv: Array, heads: int, k: Pages, v: Pages, tables: Array, sequences: Array, positions: Array,
        slopes: Array, scale: float, out: Array,
    ) -> None:  # fmt: skip
        self._attention.attention(
            qkv, heads, k.values, v.values, k.scale, v.scale, tables, sequences, positions, slopes, scale, out
        )


class ReferenceOps(Composed):
    """Plain torch, on whatever device its tensors are."""

    def norm(self, x: Array, weight: Array, bias: Array, eps: float, out: Array) -> None:
        from bigrun_kernels import reference

        out.copy_(reference.norm(x, weight, bias, eps))

    def linear(self, x: Array, w: Weight, mode: str, threshold: float, scratch: Scratch, out: Array, add: bool) -> None:
        from bigrun_kernels import reference

        bias = w.bias if w.bias.numel() else None
        rows = out.shape[1]
        if w.form == "int8":
            values = lanes.unpack(w.values, rows, w.columns)
            if mode == "exact":
                result = reference.linear_exact(x, values, w.scale, bias)
            else:
                result = reference.linear_llm_int8(x, values, w.scale, bias, threshold)
        elif w.form == "table":
            padded = w.values.shape[1] * lanes.QUAD
            values = lanes.unpack(w.values, rows, padded)
            table = reference.dequantise_table(values, lanes.unpack_scale(w.scale, rows))
            result = reference.linear(x, table[:, : w.columns], bias)
        else:
            result = reference.linear(x, w.values, bias)
        out.copy_(out + result if add else result)

    def rotate(self, qkv: Array, heads: int, head_dim: int, rotation: Array) -> None:
        from bigrun_kernels import reference

        part = qkv[:, : heads * head_dim].view(len(qkv), heads, head_dim)
        part.copy_(reference.rotate(part, rotation))

    def activate(self, kind: str, x: Array, gated: bool, out: Array) -> None:
        from bigrun_kernels import reference

        out.copy_(reference.activate(kind, x, gated))

    def lookup(self, ids: Array, table: Weight, out: Array) -> None:
        from bigrun_kernels import reference

        if table.form != "table":
            out.copy_(table.values[ids])
            return
        panel, row = ids // lanes.ROWS, ids % lanes.ROWS
        rows = reference.dequantise_table(table.values[panel, :, row].reshape(len(ids), -1), table.scale[panel, :, row])
        out.copy_(rows[:, : table.columns])

    def store(self, qkv: Array, offset: int, size: int, slots: Array, pages: Pages) -> None:
        from torch.nn import functional

        from bigrun_kernels import reference

        _, kv_heads, page, dim = pages.values.shape
        rows = qkv[:, offset : offset + kv_heads * size].reshape(-1, kv_heads, size)
        rows = functional.pad(rows, (0, dim - size))
        where = slots // page, slice(None), slots % page
        if pages.values.dtype.itemsize == 1:
            rows, pages.scale[where] = reference.quantise_vectors(rows)
        elif pages.values.dtype.itemsize == 2:
            rows = rows.clamp(-65504.0, 65504.0)
        pages.values[where] = rows.to(pages.values.dtype)

    def attention(
        self, qkv: Array, heads: int, k: Pages, v: Pages, tables: Array, sequences: Array, positions: Array,
        slopes: Array, scale: float, out: Array,
    ) -> None:  # fmt: skip
        from bigrun_kernels import reference

        dim = out.shape[1] // heads
        width = heads * dim
        keys, values = (p.values.float() * p.scale[..., None] if p.scale.numel() else p.values for p in (k, v))
        keys, values = keys[..., :dim], values[..., :dim]
        for t in range(len(positions)):
            table = tables[int(sequences[t])]
            out[t] = reference.attention(qkv[t, :width], keys, values, table, int(positions[t]), slopes, scale)

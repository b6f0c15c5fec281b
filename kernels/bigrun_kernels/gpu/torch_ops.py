"""The decoder's ops on a GPU through torch alone: for checking, for hosts without Triton, for what Triton cannot do.

Weights lie row by row. What is computed is what reference.py says, in slabs of rows so that temporary memory stays small.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from bigrun_kernels import reference
from bigrun_kernels.ops import Array, Composed, Pages, Weight

SLAB = 2**23  # entries of a weight that are widened at a time
HALF = 65504.0


class Run(NamedTuple):
    """Tokens [start, stop) of a step: of one sequence, at consecutive positions from `first` on."""

    start: int
    stop: int
    sequence: int
    first: int


class TorchOps(Composed):
    """Plain torch on tensors of one GPU. `work`: the device's step buffers (bigrun/model/gpu_memory.py). `group`: columns that
    share an activation's constant in the mode "grouped"."""

    name = "torch"
    capturable = False  # as one CUDA graph

    def __init__(self, work: Mapping[str, Tensor], group: int = 64):
        self.work, self.group = work, group
        self.decode = False
        self.runs: Sequence[Run] = ()

    def begin(self, decode: bool, runs: Sequence[Run]) -> None:
        """What the next ops belong to: a step of decode or of prefill, and whose tokens are in it."""
        self.decode, self.runs = decode, runs

    def scratch(self, work: Mapping[str, Array]) -> Any:
        """Nothing: buffers were given once."""

    def norm(self, x: Array, weight: Array, bias: Array, eps: float, out: Array) -> None:
        _put(out, reference.norm(x.float(), weight, bias, eps), False)

    def linear(self, x: Array, w: Weight, mode: str, threshold: float, scratch: Any, out: Array, add: bool) -> None:
        n, bias = out.shape[1], some(w.bias)
        if w.form not in ("int8", "table"):
            self._wide(x, w, out, add)
            return
        values, scale = w.values[:n], w.scale[:n]
        if w.form == "int8" and mode != "exact":
            q = values[:, : w.columns]
            if mode == "llm.int8":
                found = reference.linear_llm_int8(x.float(), q, scale, bias, threshold)
            else:
                found = reference.linear_grouped(x.float(), q, scale, bias, threshold, self.group)
            _put(out, found, add)
            return
        for a, b in _slabs(values):
            if w.form == "table":
                slab = reference.dequantise_table(values[a:b], scale[a:b])[:, : w.columns]
            else:
                slab = values[a:b, : w.columns].float() * scale[a:b, None]
            _put(out[:, a:b], functional.linear(x.float(), slab, None if bias is None else bias[a:b]), add)

    def _wide(self, x: Tensor, w: Weight, out: Tensor, add: bool) -> None:
        """Weights of 16 or 32 bits: torch's product, in the weights' type."""
        kind, (m, k), n = w.values.dtype, x.shape, out.shape[1]
        cast = self.work["cast"].view(kind)[: m * k].view(m, k)
        product = self.work["product"].view(kind)[: m * n].view(m, n)
        cast.copy_(x)
        torch.mm(cast, w.values.T, out=product)
        if (bias := some(w.bias)) is not None:
            product += bias
        if out.dtype == torch.float16:
            product.clamp_(-65280.0, 65280.0)  # bfloat16's last value that float16 has too
        if add:
            out += product
        else:
            out.copy_(product)

    def rotate(self, qkv: Array, heads: int, head_dim: int, rotation: Array) -> None:
        part = qkv[:, : heads * head_dim].view(len(qkv), heads, head_dim)
        part.copy_(reference.rotate(part.float(), rotation))

    def activate(self, kind: str, x: Array, gated: bool, out: Array) -> None:
        _put(out, reference.activate(kind, x.float(), gated), False)

    def lookup(self, ids: Array, table: Weight, out: Array) -> None:
        rows = table.values[ids]
        out.copy_(
            reference.dequantise_table(rows, table.scale[ids])[:, : table.columns] if table.form == "table" else rows
        )

    def store(self, qkv: Array, offset: int, size: int, slots: Array, pages: Pages) -> None:
        _, kv_heads, page, dim = pages.values.shape
        kept = slots >= 0
        rows = qkv[kept, offset : offset + kv_heads * size].reshape(-1, kv_heads, size).float()
        rows, slots = functional.pad(rows, (0, dim - size)), slots[kept]
        where = slots // page, slice(None), slots % page
        if pages.values.dtype == torch.int8:
            rows, pages.scale[where] = reference.quantise_vectors(rows)
        elif pages.values.dtype == torch.float16:
            rows = rows.clamp(-HALF, HALF)
        pages.values[where] = rows.to(pages.values.dtype)

    def attention(
        self, qkv: Array, heads: int, k: Pages, v: Pages, tables: Array, sequences: Array, positions: Array,
        slopes: Array, scale: float, out: Array,
    ) -> None:  # fmt: skip
        dim, page = out.shape[1] // heads, k.values.shape[2]
        for run in self.runs:
            used = tables[run.sequence, : -(-(run.first + run.stop - run.start) // page)].long()
            keys, values = (_floats(pages, used)[..., :dim] for pages in (k, v))
            q = qkv[run.start : run.stop, : heads * dim].view(-1, heads, dim)
            table = torch.arange(len(used), device=qkv.device)
            found = reference.attend(q, keys, values, table, run.first, some(slopes), scale)
            _put(out[run.start : run.stop], found.flatten(1), False)


def some(array: Array) -> Any:
    """An array, or None for one without entries."""
    return None if array is None or not array.numel() else array


def _floats(pages: Pages, used: Tensor) -> Tensor:
    values = pages.values[used].float()
    return values if pages.values.dtype != torch.int8 else values * pages.scale[used].float()[..., None]


def _slabs(values: Tensor) -> Iterator[tuple[int, int]]:
    rows, columns = values.shape
    step = max(1, SLAB // columns)
    return ((a, min(a + step, rows)) for a in range(0, rows, step))


def _put(out: Tensor, value: Tensor, add: bool) -> None:
    """value into out, or onto it; finite values end at ±65,504 in float16."""
    if add:
        value = out + value
    if out.dtype == torch.float16:
        value = torch.where(value.isfinite(), value.clamp(-HALF, HALF), value)
    out.copy_(value)

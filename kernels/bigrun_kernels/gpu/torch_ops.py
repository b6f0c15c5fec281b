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

SLAB = 2**21  # entries of a weight, of activations or of scores that are widened at a time
HALF = 65504.0


class Run(NamedTuple):
    """Tokens [start, stop) of a step: of one sequence, at consecutive positions from `first` on."""

    start: int
    stop: int
    sequence: int
    first: int


class TorchOps(Composed):
    """Plain torch on tensors of one GPU. `work`: the device's step buffers (bigrun/model/gpu_buffers.py). `group`: columns that
    share an activation's scale in the mode "grouped"."""

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
        for a, b in _slabs(x):
            _put(out[a:b], reference.norm(x[a:b].float(), weight, bias, eps), False)

    def linear(self, x: Array, w: Weight, mode: str, threshold: float, scratch: Any, out: Array, add: bool) -> None:
        n, bias = out.shape[1], some(w.bias)
        if w.form not in ("int8", "table"):
            self._wide(x, w, out, add)
            return
        values, scale, x = w.values[:n], w.scale[:n], x.float()
        for a, b in _slabs(values):
            part = None if bias is None else bias[a:b]
            if w.form == "int8" and mode != "exact":  # outliers are the columns of x: the same for every slab
                q = values[a:b, : w.columns]
                if mode == "llm.int8":
                    product = reference.linear_llm_int8(x, q, scale[a:b], part, threshold)
                else:
                    product = reference.linear_grouped(x, q, scale[a:b], part, threshold, self.group)
            elif w.form == "table":
                slab = reference.dequantise_table(values[a:b], scale[a:b])[:, : w.columns]
                product = functional.linear(x, slab, part)
            else:
                product = functional.linear(x, values[a:b, : w.columns].float() * scale[a:b, None], part)
            _put(out[:, a:b], product, add)

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

    def norm_heads(
        self, qkv: Array, heads: int, kv_heads: int, head_dim: int, q_weight: Array, k_weight: Array, eps: float
    ) -> None:
        part = qkv[:, : (heads + kv_heads) * head_dim].view(len(qkv), heads + kv_heads, head_dim)
        part.copy_(reference.norm_heads(part.float(), q_weight, k_weight, heads, eps))

    def rope(self, qkv: Array, heads: int, head_dim: int, cos_sin: Array) -> None:
        part = qkv[:, : heads * head_dim].view(len(qkv), heads, head_dim)
        part.copy_(reference.rope(part.float(), cos_sin))

    def activate(self, kind: str, x: Array, gated: bool, out: Array) -> None:
        for a, b in _slabs(x):
            _put(out[a:b], reference.activate(kind, x[a:b].float(), gated), False)

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
        slopes: Array, scale: float, out: Array, window: int = 0,
    ) -> None:  # fmt: skip
        dim, (_, kv_heads, page, _) = out.shape[1] // heads, k.values.shape
        group, slopes = heads // kv_heads, some(slopes)
        for run in self.runs:
            before = max(run.first - window + 1, 0) // page if window else 0  # pages that none of these tokens sees
            length = run.first + run.stop - run.start - before * page
            used = tables[run.sequence, before : before - (-length // page)].long()
            table = torch.arange(len(used), device=qkv.device)
            step = max(1, SLAB // (group * length))  # tokens whose scores are held at a time
            for kv in range(kv_heads):
                part = slice(kv * group * dim, (kv + 1) * group * dim)
                keys, values = (_floats(pages, used, kv)[..., :dim] for pages in (k, v))
                slope = None if slopes is None else slopes[kv * group : (kv + 1) * group]
                for a in range(run.start, run.stop, step):
                    b = min(a + step, run.stop)
                    q = qkv[a:b, part].unflatten(1, (group, dim))
                    first = run.first + a - run.start - before * page
                    result = reference.attend(q, keys, values, table, first, slope, scale, window)
                    _put(out[a:b, part], result.flatten(1), False)


def some(array: Array) -> Any:
    """An array, or None for one without entries."""
    return None if array is None or not array.numel() else array


def _floats(pages: Pages, used: Tensor, head: int) -> Tensor:
    """One head of some pages, [pages, 1, page, D] float32."""
    values = pages.values[used, head : head + 1].float()
    return (
        values if pages.values.dtype != torch.int8 else values * pages.scale[used, head : head + 1].float()[..., None]
    )


def _slabs(values: Tensor) -> Iterator[tuple[int, int]]:
    """(first, stop) of some rows at a time."""
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

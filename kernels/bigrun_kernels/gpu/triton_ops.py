"""The decoder's ops on a GPU through Triton. They launch and return: nothing is allocated, nothing waits for the device.

What Triton cannot do goes through torch, and `name` says so: for compute capability 7.5 it makes no matrix instructions, of
int8 or of 16 bits, so that prompts and attention are multiplied by torch there.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bigrun_kernels.gpu import norm as norms
from bigrun_kernels.gpu import quantise, table
from bigrun_kernels.gpu.attention import attention
from bigrun_kernels.gpu.attention_prompt import attention_prompt
from bigrun_kernels.gpu.cache import rope_and_store_kv
from bigrun_kernels.gpu.linear import Outliers, Path, linear_exact, linear_int8
from bigrun_kernels.gpu.tables import DECODE_ROWS, SIDE, SMALL_ROWS, Table
from bigrun_kernels.gpu.torch_ops import TorchOps, some
from bigrun_kernels.ops import Array, Pages, Weight


class TritonOps(TorchOps):
    """Triton kernels on tensors of one GPU. `sequences`: the most that decode together, by which the path of decode's linears
    is chosen once, so that a sequence gets the same tokens in any company; `products`: whether matrix products are there."""

    def __init__(self, work: Mapping[str, Tensor], tiles: Table, sequences: int, products: bool = True):
        super().__init__(work, tiles.tile("grouped", 1).depth)
        self._tiles, self._products = tiles, products
        self.capturable = products  # the rest is told by the host where each sequence ends
        most = DECODE_ROWS if products else SMALL_ROWS
        self._path: Path = "decode" if sequences <= most else "small" if sequences <= SMALL_ROWS else "tile"
        self.name = "Triton" if products else "Triton (torch for matrix products)"

    def norm(self, x: Array, weight: Array, bias: Array, eps: float, out: Array) -> None:
        norms.norm(x, weight, some(bias), eps, out)

    def norm_heads(
        self, qkv: Array, heads: int, kv_heads: int, head_dim: int, q_weight: Array, k_weight: Array, eps: float
    ) -> None:
        norms.norm_heads(qkv, heads, kv_heads, head_dim, q_weight, k_weight, eps)

    def linear(self, x: Array, w: Weight, mode: str, threshold: float, scratch: Any, out: Array, add: bool) -> None:
        marks = self._marks(w, mode, threshold)
        if marks is not None:
            norms.mark(x, marks, threshold)
        self._linear(x, w, mode, threshold, marks, out, add)

    def norm_linear(
        self, x: Array, weight: Array, bias: Array, eps: float, normed: Array, w: Weight, mode: str, threshold: float,
        scratch: Any, out: Array,
    ) -> None:  # fmt: skip
        marks = self._marks(w, mode, threshold)
        norms.norm(x, weight, some(bias), eps, normed, marks, threshold)
        self._linear(normed, w, mode, threshold, marks, out, False)

    def activate_linear(
        self, kind: str, x: Array, gated: bool, inner: Array, w: Weight, mode: str, threshold: float, scratch: Any,
        out: Array,
    ) -> None:  # fmt: skip
        marks = self._marks(w, mode, threshold)
        norms.activate(kind, x, gated, inner, marks, threshold)
        self._linear(inner, w, mode, threshold, marks, out, True)

    def activate(self, kind: str, x: Array, gated: bool, out: Array) -> None:
        norms.activate(kind, x, gated, out)

    def _marks(self, w: Weight, mode: str, threshold: float) -> Tensor | None:
        """Where the outlier columns of the next linear are marked; None where nothing asks for them."""
        needs_marks = w.form == "int8" and mode != "exact" and threshold > 0 and self._products
        return self.work["marks"][: w.columns] if needs_marks else None

    def _linear(
        self, x: Tensor, w: Weight, mode: str, threshold: float, marks: Tensor | None, out: Tensor, add: bool
    ) -> None:
        if w.form == "table":
            table.table_linear(x, w.values, w.scale, some(w.bias), out)
        elif w.form != "int8":
            self._wide(x, w, out, add)
        elif mode == "exact" and self.decode and (self._products or self._path == "decode"):
            self._exact(x, w, self._path, out, add)
        elif not self._products:
            super().linear(x, w, mode, threshold, None, out, add)
        elif mode == "exact":
            self._exact(x, w, "tile", out, add)
        else:
            self._int8(x, w, self.group if mode == "grouped" else 0, marks, out, add)

    def _exact(self, x: Tensor, w: Weight, path: Path, out: Tensor, add: bool) -> None:
        partial = self.work["split"].flatten()
        linear_exact(x, w.values[: out.shape[1]], w.scale, some(w.bias), out, path, partial, add, self._tiles)

    def _int8(self, x: Tensor, w: Weight, group: int, marks: Tensor | None, out: Tensor, add: bool) -> None:
        (rows, kp), n = (len(x), w.values.shape[1]), out.shape[1]
        xq = self.work["quantised"].flatten()[: rows * kp].view(rows, kp)
        groups = -(-kp // group) if group else 1
        scales = self.work["scales"].flatten()[: rows * groups]
        sx = scales.view(rows, groups) if group else scales
        quantise.quantise(x, marks, xq, sx, group)
        outliers, values = None, w.values[:n]
        if marks is not None:
            columns, count = self.work["columns"][: w.columns], self.work["count"]
            x_side, w_side = self.work["x_side"].flatten()[: rows * SIDE].view(rows, SIDE), self.work["w_side"][:n]
            quantise.compact(marks, columns, count)
            quantise.gather(x, columns, count, x_side)
            quantise.gather(values, columns, count, w_side)
            outliers = Outliers(columns, count, x, x_side, w_side)
        linear_int8(xq, sx, values, w.scale, some(w.bias), out, group, outliers, add, self._tiles)

    def lookup(self, ids: Array, table_: Weight, out: Array) -> None:
        if table_.form == "table":
            table.lookup(ids, table_.values, table_.scale, out)
        else:
            super().lookup(ids, table_, out)

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
        scales = some(k.scale), some(v.scale)
        rope_and_store_kv(qkv, heads, kv_heads, head_dim, cos_sin, slots, k.values, v.values, *scales)

    def attention(
        self, qkv: Array, heads: int, k: Pages, v: Pages, tables: Array, sequences: Array, positions: Array,
        slopes: Array, scale: float, out: Array, window: int = 0,
    ) -> None:  # fmt: skip
        pages = k.values, v.values, some(k.scale), some(v.scale)
        if not self._products:
            super().attention(qkv, heads, k, v, tables, sequences, positions, slopes, scale, out, window)
        elif self.decode:
            partial = self.work["partial"]
            attention(qkv, heads, *pages, tables, sequences, positions, some(slopes), scale, out, partial, window)
        else:
            for run in self.runs:
                part = slice(run.start, run.stop)
                table_ = tables[run.sequence]
                where = table_, run.first
                attention_prompt(qkv[part], heads, *pages, *where, some(slopes), scale, out[part], window)

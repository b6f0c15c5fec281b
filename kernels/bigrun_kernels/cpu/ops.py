"""The ops on NumPy arrays, by the Numba kernels beside this file."""

from bigrun_kernels import lanes
from bigrun_kernels.ops import ACTIVATIONS, Array, Composed, Pages, Scratch, Weight


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

    def norm_heads(
        self, qkv: Array, heads: int, kv_heads: int, head_dim: int, q_weight: Array, k_weight: Array, eps: float
    ) -> None:
        self._elementwise.norm_heads(qkv, heads, kv_heads, head_dim, q_weight, k_weight, eps)

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

    def rope(self, qkv: Array, heads: int, head_dim: int, cos_sin: Array) -> None:
        self._elementwise.rope(qkv, heads, head_dim, cos_sin)

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
        slopes: Array, scale: float, out: Array, window: int = 0,
    ) -> None:  # fmt: skip
        self._attention.attention(
            qkv, heads, k.values, v.values, k.scale, v.scale, tables, sequences, positions, slopes, scale, out, window
        )

"""The ops in plain torch, on whatever device the tensors are: the definition of each op."""

from bigrun_kernels import lanes, reference
from bigrun_kernels.ops import Array, Composed, Pages, Scratch, Weight


class ReferenceOps(Composed):
    """Plain torch, on whatever device its tensors are."""

    def norm(self, x: Array, weight: Array, bias: Array, eps: float, out: Array) -> None:
        out.copy_(reference.norm(x, weight, bias, eps))

    def linear(self, x: Array, w: Weight, mode: str, threshold: float, scratch: Scratch, out: Array, add: bool) -> None:
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

    def norm_heads(
        self, qkv: Array, heads: int, kv_heads: int, head_dim: int, q_weight: Array, k_weight: Array, eps: float
    ) -> None:
        part = qkv[:, : (heads + kv_heads) * head_dim].view(len(qkv), heads + kv_heads, head_dim)
        part.copy_(reference.norm_heads(part, q_weight, k_weight, heads, eps))

    def rope(self, qkv: Array, heads: int, head_dim: int, cos_sin: Array) -> None:
        part = qkv[:, : heads * head_dim].view(len(qkv), heads, head_dim)
        part.copy_(reference.rope(part, cos_sin))

    def activate(self, kind: str, x: Array, gated: bool, out: Array) -> None:
        out.copy_(reference.activate(kind, x, gated))

    def lookup(self, ids: Array, table: Weight, out: Array) -> None:
        if table.form != "table":
            out.copy_(table.values[ids])
            return
        panel, row = ids // lanes.ROWS, ids % lanes.ROWS
        rows = reference.dequantise_table(table.values[panel, :, row].reshape(len(ids), -1), table.scale[panel, :, row])
        out.copy_(rows[:, : table.columns])

    def store(self, qkv: Array, offset: int, size: int, slots: Array, pages: Pages) -> None:
        from torch.nn import functional

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
        slopes: Array, scale: float, out: Array, window: int = 0,
    ) -> None:  # fmt: skip
        dim = out.shape[1] // heads
        width = heads * dim
        keys, values = (p.values.float() * p.scale[..., None] if p.scale.numel() else p.values for p in (k, v))
        keys, values = keys[..., :dim], values[..., :dim]
        for t in range(len(positions)):
            table = tables[int(sequences[t])]
            query, position = qkv[t, :width], int(positions[t])
            out[t] = reference.attention(query, keys, values, table, position, slopes, scale, window)

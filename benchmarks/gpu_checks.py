"""Every GPU kernel at real shapes against its definition: reference.py, or float64 on the device.

Tolerances: integers are equal (the quantiser's: off by one in fewer than 0.1 %), float32 results within 1e-5 of float64
on the same integers, float16 ones within 2⁻¹⁰, by the Frobenius norm. Results are written over NaN.
"""

from collections.abc import Iterator
from math import ceil
from typing import Any

import torch
from gpu_bench import ALIGN, Bench, Row, apart, on_host, relative, unlike, worst_row
from torch import Tensor

FULL, HALF = 1e-5, 2.0**-10
EXACT = {(28672, 4096): (96, 128), (4096, 4096): (64, 64), (4096, 11008): (64, 172)}
INT8 = {(12288, 4096): (16, 64), (4096, 11008): (16, 140)}
VARIANTS = ("plain", "ALiBi", "window", "softcap", "sinks")
PAGE = 64


def exact(b: Bench) -> Iterator[Row]:
    """linear_exact on each of its paths."""
    from bigrun_kernels.gpu.linear import linear_exact

    for shape, tiny in EXACT.items():
        n, k = b.pick(shape, tiny)
        w = b.weight(n, k, bias=True)
        dense = w.values[:, :k].double().T * w.scale.double()
        for path, rows, few in (("decode", 1, 1), ("decode", 3, 3), ("small", 16, 16), ("tile", 300, 17)):
            x = b.normal(b.pick(rows, few), k)
            expected = x.double() @ dense + w.bias.double()
            out = b.poisoned(*expected.shape)
            linear_exact(x, w.values, w.scale, w.bias, out, path)  # type: ignore[arg-type]
            yield b.checked(f"exact: {path} {list(shape)}, {rows} rows", relative(out, expected), FULL)
        held = b.normal(*expected.shape)
        expected = expected + held.double()
        linear_exact(x, w.values, w.scale, w.bias, held, "tile", add=True)
        yield b.checked(f"exact: tile {list(shape)}, onto float16", relative(held, expected), HALF)


def int8(b: Bench) -> Iterator[Row]:
    """linear_int8 with all that goes before it, as the engine does it: marks, quantiser, compaction, dense copies."""
    from bigrun_kernels import reference
    from bigrun_kernels.gpu import tables
    from bigrun_kernels.gpu.linear import linear_int8

    m = b.pick(300, 2)
    for shape, tiny in INT8.items():
        n, k = b.pick(shape, tiny)
        w = b.weight(n, k, bias=True)
        q = w.values[:, :k]
        integers = b.integers(-127, 128, m, w.values.shape[1])
        ones = torch.ones(max(m, n), device=b.device)
        out = b.poisoned(m, n)
        linear_int8(integers, ones[:m], w.values, ones[:n], None, out)
        expected = (integers.double() @ w.values.double().T).float()
        yield b.checked(f"int8: integers of {list(shape)}", unlike(out, expected), 0, "entries")
        ops, group = b.ops(m, k, n), tables.current(b.device).tile("grouped", 1).depth
        for outliers in (0, 8, 64, 200):
            x = b.activations(m, k, b.pick(outliers, min(outliers, k)))
            expected = {
                "llm.int8": on_host(reference.linear_llm_int8, x.float(), q, w.scale, w.bias),
                "grouped": on_host(reference.linear_grouped, x.float(), q, w.scale, w.bias, group=group),
            }
            for mode, right in expected.items():
                out = b.poisoned(m, n)
                ops.linear(x, w, mode, 6.0, None, out, False)
                yield b.checked(f"int8: {mode} {list(shape)}, {outliers} outliers", relative(out, right), FULL)
        ops.begin(False, ())
        for mode, outliers, most in (
            ("exact", 0, 0.011),
            ("llm.int8", 0, 0.016),
            ("llm.int8", 64, 0.016),
            ("grouped", 64, 0.016),
        ):
            x, dense = b.activations(m, k, b.pick(outliers, outliers // 8)), b.normal(n, k, dtype=torch.float32)
            values, scale = on_host(reference.quantise_rows, dense)
            padded = torch.nn.functional.pad(values, (0, -k % ALIGN))
            of_them = type(w)("int8", padded, scale, torch.empty(0, device=b.device), k)
            ops.linear(x, of_them, mode, 6.0, None, out, False)
            far = relative(out, x.double() @ dense.double().T)
            yield b.checked(f"int8: {mode} {list(shape)}, {outliers} outliers, from the unquantised layer", far, most)


def elementwise(b: Bench) -> Iterator[Row]:
    """Norms, activations, the quantiser and the bookkeeping of outliers."""
    from bigrun_kernels import reference
    from bigrun_kernels.gpu import norm, quantise

    t, h, inner = b.pick((300, 4096, 11008), (5, 160, 96))
    x = b.normal(t, h, dtype=torch.float32)
    x[:, 7] *= 12  # an outlier column behind a norm too
    weight, bias = 1 + 0.1 * b.normal(h, dtype=torch.float32), b.normal(h, dtype=torch.float32)
    for name, offset in (("RMSNorm", None), ("LayerNorm", bias)):
        out, marks = b.poisoned(t, h, dtype=torch.float16), torch.zeros(h, dtype=torch.int32, device=b.device)
        norm.norm(x, weight, offset, 1e-5, out, marks, 6.0)
        none = torch.empty(0, device=b.device, dtype=torch.float64)
        expected = reference.norm(x.double(), weight.double(), none if offset is None else bias.double(), 1e-5)
        yield b.checked(f"elementwise: {name}", relative(out, expected), HALF)
        outlier_columns = (out.float().abs() >= 6).any(dim=0)
        yield b.checked(f"elementwise: {name}, outlier marks", unlike(marks, outlier_columns.int()), 0, "columns")
    two = b.normal(t, 2 * inner)
    out = b.poisoned(t, inner, dtype=torch.float16)
    for kind in ("silu", "gelu", "gelu_tanh", "relu"):
        norm.activate(kind, two, True, out)
        expected = reference.activate(kind, two.double(), True)
        yield b.checked(f"elementwise: {kind}, gated", relative(out, expected), HALF)
    k = b.pick(11008, 332)
    x, kp = b.activations(t, k, 9), ceil(k / ALIGN) * ALIGN
    marks, columns = (torch.zeros(k, dtype=torch.int32, device=b.device) for _ in range(2))
    count = torch.zeros(1, dtype=torch.int32, device=b.device)
    norm.mark(x, marks, 6.0)
    outlier = (x.float().abs() >= 6).any(dim=0)
    yield b.checked("elementwise: marks", unlike(marks, outlier.int()), 0, "columns")
    rest = torch.nn.functional.pad(x.float().masked_fill(outlier, 0), (0, kp - k))
    for group in (0, 64):
        xq = b.poisoned(t, kp, dtype=torch.int8)
        scale = b.poisoned(t, kp // group) if group else b.poisoned(t)
        quantise.quantise(x, marks, xq, scale, group)
        expected, unit = on_host(reference.quantise_rows, rest.reshape(-1, group or kp))
        name = f"elementwise: quantiser, a constant for {f'{group} columns' if group else 'a row'}"
        yield b.checked(name, apart(xq, expected.view(t, kp)), 1e-3, "of the integers")
        yield b.checked(f"{name}, constants", relative(scale.flatten(), unit), 1e-6)
    quantise.compact(marks, columns, count)
    listed = outlier.nonzero().flatten().int()
    right = int(count) == len(listed) and torch.equal(columns[: len(listed)], listed) and not marks.any()
    yield b.checked("elementwise: compaction", float(not right), 0, "wrong")
    side = b.poisoned(t, 128, dtype=torch.float16)
    quantise.gather(x, columns, count, side)
    yield b.checked("elementwise: gather", unlike(side[:, : len(listed)], x[:, outlier]), 0, "entries")


def table(b: Bench) -> Iterator[Row]:
    """The embedding's look-up and the head, 128,256 × 4,096."""
    from bigrun_kernels import reference
    from bigrun_kernels.gpu.table import lookup, table_linear

    v, k = b.pick((128256, 4096), (48, 64))
    q, scale = b.integers(-127, 128, v, k), b.constants(v, k // 32, dtype=torch.float16)
    ids = torch.tensor([0, v - 1, -1, v, 5, 5, v // 2], device=b.device)
    out = b.poisoned(len(ids), k)
    out[:] = 7
    lookup(ids, q, scale, out)
    expected = reference.dequantise_table(q[ids.clamp(0, v - 1)], scale[ids.clamp(0, v - 1)])
    expected[(ids < 0) | (ids >= v)] = float("nan")
    yield b.checked("table: look-up", unlike(out, expected), 0, "entries")
    for m in (1, 3):
        x, logits, expected = b.normal(m, k), b.poisoned(m, v), b.poisoned(m, v, dtype=torch.float64)
        table_linear(x, q, scale, None, logits)
        step = b.pick(16384, 48)
        for first in range(0, v, step):
            rows = slice(first, first + step)
            expected[:, rows] = x.double() @ reference.dequantise_table(q[rows], scale[rows]).double().T
        yield b.checked(f"table: head, {m} rows", relative(logits, expected), FULL)


class Cache:
    """Sequences of keys and values in pages dealt in a shuffled order."""

    def __init__(self, b: Bench, lengths: list[int], kv_heads: int, dim: int, kind: torch.dtype):
        from bigrun_kernels import reference

        per = ceil(max(lengths) / PAGE)
        count = per * len(lengths)
        numbers = torch.randperm(count, generator=torch.Generator().manual_seed(1)).to(torch.int32)
        self.tables = numbers.view(len(lengths), per).to(b.device)
        shape = (count, kv_heads, PAGE, dim)
        self.scales: list[Tensor | None] = [None, None]
        self.pages, self.known = [], []
        for i in range(2):
            vectors = b.normal(*shape, dtype=torch.float32)
            if kind == torch.int8:
                q, self.scales[i] = on_host(reference.quantise_vectors, vectors)
                self.known.append(q.float() * self.scales[i].float()[..., None])  # type: ignore[union-attr]
                self.pages.append(q)
            else:
                self.pages.append(vectors.to(kind))
                self.known.append(self.pages[i].float())


def shape_of_heads(b: Bench) -> tuple[int, int, int]:
    """Query heads, key heads and their size."""
    return b.pick((32, 8, 128), (2, 1, 16))


def variant(b: Bench, name: str) -> dict[str, Any]:
    """What makes one kind of attention of the plain one."""
    count, _, _ = shape_of_heads(b)
    heads = torch.arange(1, count + 1, device=b.device).float()
    slopes = 2.0 ** (-heads / 4) if name == "ALiBi" else None
    window = b.pick(1000, 70) if name == "window" else 0
    sinks = heads * 2 / count - 1 if name == "sinks" else None
    return {"slopes": slopes, "window": window, "softcap": 20.0 if name == "softcap" else 0.0, "sinks": sinks}


def attention_decode(b: Bench) -> Iterator[Row]:
    """One token of each sequence over contexts of up to 16,384, GQA 32 over 8."""
    from bigrun_kernels import reference
    from bigrun_kernels.gpu.attention import attention

    heads, kv_heads, dim = shape_of_heads(b)
    lengths = b.pick([16384, 5000, 130, 1], [140, 1])
    for kind in (torch.float16, torch.int8):
        cache = Cache(b, lengths, kv_heads, dim, kind)
        qkv, count = b.normal(len(lengths), (heads + 2 * kv_heads) * dim), len(lengths)
        sequences = torch.arange(count, device=b.device)
        positions = torch.tensor([length - 1 for length in lengths], device=b.device)
        partial = b.poisoned(count, heads, ceil(max(lengths) / 128), dim + 2)
        for name in VARIANTS:
            extra = variant(b, name)
            slopes = extra.pop("slopes")
            out = b.poisoned(count, heads * dim, dtype=torch.float16)
            attention(
                qkv, heads, *cache.pages, *cache.scales, cache.tables, sequences, positions, slopes, dim**-0.5, out,
                partial, **extra,
            )  # fmt: skip
            queries = qkv[:, : heads * dim].view(count, 1, heads, dim)
            expected = torch.cat(
                [
                    reference.attend(queries[i], *cache.known, cache.tables[i], n - 1, slopes, dim**-0.5, **extra)
                    for i, n in enumerate(lengths)
                ]
            )
            yield b.checked(f"decode attention: {shown(kind)} cache, {name}", worst_row(out, expected.flatten(1)), HALF)


def attention_prompt(b: Bench) -> Iterator[Row]:
    """700 tokens from position 1,345 on, GQA 32 over 8."""
    from bigrun_kernels import reference
    from bigrun_kernels.gpu import attention_prompt as kernels

    heads, kv_heads, dim = shape_of_heads(b)
    first, tokens = b.pick((1345, 700), (70, 3))
    for kind in (torch.float16, torch.int8):
        cache = Cache(b, [first + tokens], kv_heads, dim, kind)
        qkv = b.normal(tokens, (heads + 2 * kv_heads) * dim)
        queries = qkv[:, : heads * dim].view(tokens, heads, dim)
        for name in VARIANTS:
            extra = variant(b, name)
            slopes = extra.pop("slopes")
            out = b.poisoned(tokens, heads * dim, dtype=torch.float16)
            kernels.attention_prompt(
                qkv, heads, *cache.pages, *cache.scales, cache.tables[0], first, slopes, dim**-0.5, out, **extra
            )
            expected = reference.attend(queries, *cache.known, cache.tables[0], first, slopes, dim**-0.5, **extra)
            yield b.checked(f"prompt attention: {shown(kind)} cache, {name}", worst_row(out, expected.flatten(1)), HALF)


def store(b: Bench) -> Iterator[Row]:
    """Rotary embedding, and keys and values into the cache; some tokens are padding."""
    from bigrun_kernels.gpu.cache import rope_and_store_kv
    from bigrun_kernels.gpu.torch_ops import TorchOps
    from bigrun_kernels.ops import Pages

    heads, kv_heads, dim = shape_of_heads(b)
    tokens = b.pick(300, 3)
    count = ceil(tokens / PAGE) + 1
    slots = torch.randperm(count * PAGE, generator=torch.Generator().manual_seed(2))[:tokens].to(b.device)
    slots[1] = -1
    angles = b.normal(tokens, dim // 2, dtype=torch.float32) * 100
    cos_sin = torch.cat([angles.cos(), angles.sin()], dim=1)
    for kind in (torch.float16, torch.int8):
        qkv = b.normal(tokens, (heads + 2 * kv_heads) * dim)
        shape = (count, kv_heads, PAGE, dim)
        host, unit = qkv.float().cpu(), kind == torch.int8

        def pages(device: torch.device | str, shape: Any = shape, kind: torch.dtype = kind) -> list[Pages]:
            units = [torch.zeros(shape[:3], dtype=torch.float16, device=device) for _ in "kv"]
            values = [torch.zeros(shape, dtype=kind, device=device) for _ in "kv"]
            return [Pages(v, u if kind == torch.int8 else None) for v, u in zip(values, units, strict=True)]

        theirs, mine = pages("cpu"), pages(b.device)
        TorchOps({}).rope_and_store_kv(host, heads, kv_heads, dim, cos_sin.cpu(), slots.cpu(), *theirs)
        kept = *(page.values for page in mine), *(page.scale for page in mine)
        rope_and_store_kv(qkv, heads, kv_heads, dim, cos_sin, slots, *kept)
        queries = slice(0, heads * dim)
        yield b.checked(f"store: {shown(kind)} cache, queries", relative(qkv[:, queries].cpu(), host[:, queries]), HALF)
        for name, got, right in zip(("keys", "values"), mine, theirs, strict=True):
            values = got.values.cpu()
            if unit:
                yield b.checked(f"store: int8 cache, {name}", apart(values, right.values), 1e-3, "of the integers")
                yield b.checked(f"store: int8 cache, constants of {name}", relative(got.scale.cpu(), right.scale), HALF)
            else:
                yield b.checked(f"store: float16 cache, {name}", relative(values, right.values), HALF)


def shown(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")

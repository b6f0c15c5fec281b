"""How fast each GPU kernel is: beside the roof that the same run measures, and beside torch.

Weights, and keys and values, go through more memory than the L2 cache holds. Bytes are what a kernel must read; a share is
of the bandwidth that torch's copy reaches, read and write counted.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from gpu_bench import Bench, Row
from torch import Tensor
from torch.nn import functional

# (N, K): its tiny form, the least share of the bandwidth, the least speed beside torch's float16
DECODE: dict[tuple[int, int], tuple[tuple[int, int], float | None, float | None]] = {
    (128256, 4096): ((96, 64), 0.8, 1.6),
    (57344, 8192): ((64, 128), 0.8, 1.6),
    (28672, 4096): ((64, 64), 0.8, 1.6),
    (22016, 4096): ((64, 64), None, None),
    (12288, 4096): ((64, 64), None, None),
    (4096, 4096): ((64, 64), 0.6, 1.6),
    (4096, 11008): ((64, 128), None, None),
}
PREFILL = {(12288, 4096): (48, 128), (4096, 11008): (32, 192)}
SEVEN = (4096, 11008, 32, 128)  # hidden, intermediate, heads, size of a head


def roofs(b: Bench) -> Iterator[Row]:
    """What this card does through torch: copying, and multiplying large matrices of random numbers."""
    from bigrun_kernels.gpu import tables

    source = tables.current(b.device).source
    yield b.timed(
        "roof: copy, read and written", b.copy_bandwidth / 1e9, "GB/s", note=f"tiles of the kernels: {source}"
    )
    n = b.pick(8192, 32)
    for kind in (torch.bfloat16, torch.float16):
        x, w = b.normal(n, n, dtype=kind), b.normal(n, n, dtype=kind)
        out = torch.empty_like(x)
        took = b.seconds(lambda turn: torch.mm(x, w, out=out))  # noqa: B023
        yield b.timed(f"roof: torch {str(kind)[6:]} product", 2 * n**3 / took / 1e12, "TFLOP/s")
    q = b.integers(-127, 128, n, n)
    took = b.seconds(lambda turn: torch._int_mm(q, q.t()))
    yield b.timed("roof: torch int8 product", 2 * n**3 / took / 1e12, "TOP/s")


def exact_call(b: Bench, n: int, k: int, m: int, path: str = "auto") -> tuple[Callable[[int], object], int]:
    """A linear of float16 activations over copies of int8 weights, and how many copies there are."""
    from bigrun_kernels.gpu.linear import linear_exact

    weights = [b.weight(n, k) for _ in range(b.copies(n * k))]
    x, out = b.normal(m, k), b.poisoned(m, n, dtype=torch.float16)
    partial = torch.empty(16 * 2**17, device=b.device)

    def call(turn: int) -> object:
        w = weights[turn % len(weights)]
        return linear_exact(x, w.values, w.scale, None, out, path, partial)  # type: ignore[arg-type]

    return call, len(weights)


def torch_call(b: Bench, n: int, k: int, m: int, kind: torch.dtype) -> tuple[Callable[[int], object], int]:
    weights = [b.normal(n, k, dtype=kind) for _ in range(b.copies(2 * n * k))]
    x, out = b.normal(m, k, dtype=kind), b.poisoned(m, n, dtype=kind)
    return lambda turn: torch.mm(x, weights[turn % len(weights)].t(), out=out), len(weights)


def decode(b: Bench) -> Iterator[Row]:
    """One row of activations: bound by reading the weight."""
    for shape, (tiny, least, faster) in DECODE.items():
        n, k = b.pick(shape, tiny)
        mine = b.seconds(*exact_call(b, n, k, 1, "decode"))
        share = (n * k + 4 * n) / mine / b.copy_bandwidth
        yield b.timed(f"decode: {list(shape)}", share, "of the bandwidth", least, note=f"{1e6 * mine:.1f} µs")
        theirs = b.seconds(*torch_call(b, n, k, 1, torch.float16))
        yield b.timed(
            f"decode: {list(shape)} beside torch float16", theirs / mine, "×", faster, note=f"{1e6 * theirs:.1f} µs"
        )


def head(b: Bench) -> Iterator[Row]:
    """The head of 128,256 × 4,096, whose rows have a constant for each 32 entries."""
    from bigrun_kernels.gpu.table import table_linear

    v, k = b.pick((128256, 4096), (48, 64))
    tables = [
        (b.integers(-127, 128, v, k), b.constants(v, k // 32, dtype=torch.float16)) for _ in range(b.copies(v * k))
    ]
    for m in (1, 4):
        x, out = b.normal(m, k), b.poisoned(m, v)
        mine = b.seconds(lambda turn: table_linear(x, *tables[turn % len(tables)], None, out), len(tables))  # noqa: B023
        share = (v * k + v * k // 16) / mine / b.copy_bandwidth
        yield b.timed(f"head: [128256, 4096], {m} rows", share, "of the bandwidth", note=f"{1e6 * mine:.1f} µs")


def few_rows(b: Bench) -> Iterator[Row]:
    """2 to 16 rows: still bound by the weight."""
    n, k = b.pick((28672, 4096), (64, 64))
    took = {}
    for m in (1, 2, 4, 8, 16):
        took[m] = b.seconds(*exact_call(b, n, k, m))
        if m > 1:
            share = (n * k + 4 * n) / took[m] / b.copy_bandwidth
            yield b.timed(
                f"few rows: [28672, 4096], {m} rows", share, "of the bandwidth", 0.65, note=f"{1e6 * took[m]:.1f} µs"
            )
    yield b.timed("few rows: [28672, 4096], 16 rows beside one", took[16] / took[1], "× the time", most=1.4)


def prefill(b: Bench) -> Iterator[Row]:
    """2,048 rows, and 512, the engine's step: marking, quantising, compaction, dense copies of outlier columns and the
    product, beside torch's product alone."""
    for rows, shape, tiny in [(rows, *both) for rows in (2048, 512) for both in PREFILL.items()]:
        m = b.pick(rows, 2)
        whole = f"{list(shape)}" if rows == 2048 else f"{list(shape)}, {rows} rows"
        n, k = b.pick(shape, tiny)
        theirs = b.seconds(*torch_call(b, n, k, m, torch.bfloat16))
        yield b.timed(f"prefill: {whole}, torch bfloat16", 2 * m * n * k / theirs / 1e12, "TFLOP/s")
        ops, weights = b.ops(m, k, n), [b.weight(n, k) for _ in range(b.copies(n * k))]
        out = b.poisoned(m, n, dtype=torch.float16)
        some = (0, 8, 64) if rows == 2048 else (8,)
        for mode, counts in (("llm.int8", some), ("grouped", some), ("exact", (0,))):
            for outliers in counts:
                x = b.activations(m, k, outliers)

                def call(turn: int, x=x, mode=mode, weights=weights, ops=ops, out=out) -> None:
                    ops.linear(x, weights[turn % len(weights)], mode, 6.0, None, out, False)

                mine = b.seconds(call, len(weights))
                bar = None if mode == "exact" or rows < 2048 else 1.2 if outliers else 1.3
                note = f"{1e6 * mine:.0f} µs, {2 * m * n * k / mine / 1e12:.0f} TOP/s"
                name = f"prefill: {whole}, {mode}, {outliers} outliers, beside torch bfloat16"
                yield b.timed(name, theirs / mine, "×", bar, note=note)


def pages(b: Bench, kv_heads: int, context: int, dim: int, kind: torch.dtype) -> list[list[Any]]:
    """Copies of keys, values and their constants (None for float16), in pages."""
    shape = (-(-context // 64), kv_heads, 64, dim)
    int8 = kind == torch.int8
    copies: list[list[Any]] = []
    for _ in range(b.copies(2 * kv_heads * context * dim * kind.itemsize)):
        both = [b.integers(-127, 128, *shape) if int8 else b.normal(*shape) for _ in "kv"]
        units = [b.constants(*shape[:3], dtype=torch.float16) if int8 else None for _ in "kv"]
        copies.append([*both, *units])
    return copies


def attention(b: Bench) -> Iterator[Row]:
    """One token over 16,384 positions, 32 heads over 8; and a prompt of 2,048 tokens."""
    from bigrun_kernels.gpu.attention import attention as decode_attention
    from bigrun_kernels.gpu.attention_prompt import attention_prompt

    heads, kv_heads, dim = b.pick((32, 8, 128), (2, 1, 16))
    context = b.pick(16384, 128)
    table = torch.arange(context // 64, device=b.device, dtype=torch.int32)
    partial = torch.empty(1, heads, context // 128, dim + 2, device=b.device)
    sequence = torch.zeros(1, dtype=torch.int64, device=b.device)
    qkv, out = b.normal(1, (heads + 2 * kv_heads) * dim), b.poisoned(1, heads * dim, dtype=torch.float16)
    took = {}
    for kind, least in ((torch.float16, 0.7), (torch.int8, None)):
        copies = pages(b, kv_heads, context, dim, kind)
        position = sequence + context - 1
        took[kind] = b.seconds(
            lambda turn: decode_attention(
                qkv, heads, *copies[turn % len(copies)], table[None], sequence, position, None, dim**-0.5, out, partial  # noqa: B023
            ),
            len(copies),
        )  # fmt: skip
        nbytes = 2 * kv_heads * context * (dim * kind.itemsize + (2 if kind == torch.int8 else 0))
        share = nbytes / took[kind] / b.copy_bandwidth
        yield b.timed(
            f"attention: decode, 16,384 positions, {str(kind)[6:]}",
            share,
            "of the bandwidth",
            least,
            note=f"{1e6 * took[kind]:.1f} µs",
        )
    ratio = took[torch.float16] / took[torch.int8]
    yield b.timed("attention: decode, int8 beside float16", ratio, "×", 1.5)
    dense = [[b.normal(1, kv_heads, context, dim) for _ in "kv"] for _ in range(b.copies(4 * kv_heads * context * dim))]
    query = b.normal(1, heads, 1, dim)
    theirs = b.seconds(
        lambda turn: functional.scaled_dot_product_attention(query, *dense[turn % len(dense)], enable_gqa=True),
        len(dense),
    )
    yield b.timed("attention: decode, beside torch", theirs / took[torch.float16], "×", note=f"{1e6 * theirs:.1f} µs")

    tokens = b.pick(2048, 5)
    qkv, out = b.normal(tokens, (heads + 2 * kv_heads) * dim), b.poisoned(tokens, heads * dim, dtype=torch.float16)
    work = 2 * heads * dim * tokens * tokens  # half of all pairs, two products of two operations
    q, k, v = (b.normal(1, count, tokens, dim) for count in (heads, kv_heads, kv_heads))
    theirs = b.seconds(lambda turn: functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True))
    for kind in (torch.float16, torch.int8):
        some = pages(b, kv_heads, max(context, tokens), dim, kind)[0]
        mine = b.seconds(
            lambda turn: attention_prompt(qkv, heads, *some, table, 0, None, dim**-0.5, out)  # noqa: B023
        )
        yield b.timed(
            f"attention: prompt of 2,048, {str(kind)[6:]}, beside torch",
            theirs / mine,
            "×",
            note=f"{1e6 * mine:.0f} µs, {work / mine / 1e12:.0f} TFLOP/s",
        )


class SomeBlock:
    """A block of a 7B Llama on made-up weights, as the engine runs it; `calls` are its steps, each told a turn."""

    def __init__(self, b: Bench, decodes: bool, tokens: int, context: int, mode: str):
        from bigrun_kernels.gpu.torch_ops import Run
        from bigrun_kernels.ops import Pages

        hidden, inner, heads, dim = b.pick(SEVEN, (32, 24, 1, 16))
        width = heads * dim
        ops = b.ops(tokens, inner, 2 * inner, heads, dim, -(-context // 128))
        ops.begin(decodes, [] if decodes else [Run(0, tokens, 0, context - tokens)])
        count = b.copies(hidden * width)
        shapes = {
            "qkv": (3 * width, hidden),
            "out": (hidden, width),
            "up": (2 * inner, hidden),
            "down": (hidden, inner),
        }
        gains = {"up": 0.4}  # so that what the activation gives has no outliers, as in models
        w = [
            {name: b.weight(*shape, gain=gains.get(name, 1.0)) for name, shape in shapes.items()} for _ in range(count)
        ]
        kept = [[Pages(p[0], p[2]), Pages(p[1], p[3])] for p in pages(b, heads, context, dim, torch.float16)]
        x, none = b.normal(tokens, hidden, dtype=torch.float32), torch.empty(0, device=b.device)
        weight = torch.ones(hidden, device=b.device)
        weight[:6] = 12  # as many outlier columns as a 7B model has
        normed, qkv, attended = (b.normal(tokens, size) for size in (hidden, 3 * width, width))
        up, gated = b.normal(tokens, 2 * inner), b.normal(tokens, inner)
        table = torch.arange(-(-context // 64), device=b.device, dtype=torch.int32)[None]
        positions = torch.arange(context - tokens, context, device=b.device)
        sequences, slots = torch.zeros_like(positions), positions
        angles = b.normal(tokens, dim // 2, dtype=torch.float32)
        cos_sin = torch.cat([angles.cos(), angles.sin()], dim=1)

        def cache(turn: int) -> Any:
            return kept[turn % len(kept)]

        def linear(name: str, x: Tensor, out: Tensor, add: bool = False) -> Callable[[int], object]:
            return lambda turn: ops.linear(x, w[turn % count][name], mode, 6.0, None, out, add)

        def normed_linear(name: str, out: Tensor) -> Callable[[int], object]:
            return lambda turn: ops.norm_linear(
                x, weight, none, 1e-5, normed, w[turn % count][name], mode, 6.0, None, out
            )

        self.calls: dict[str, Callable[[int], object]] = {
            "norm, q, k, v": normed_linear("qkv", qkv),
            "rope and store": lambda turn: ops.rope_and_store_kv(qkv, heads, heads, dim, cos_sin, slots, *cache(turn)),
            "attention": lambda turn: ops.attention(
                qkv, heads, *cache(turn), table, sequences, positions, none, dim**-0.5, attended
            ),
            "attention's output": linear("out", attended, x, True),
            "norm, gate, up": normed_linear("up", up),
            "activation, down": lambda turn: ops.activate_linear(
                "silu", up, True, gated, w[turn % count]["down"], mode, 6.0, None, x
            ),
        }  # fmt: skip
        self.parts: dict[str, Callable[[int], object]] = {
            "norm alone": lambda turn: ops.norm(x, weight, none, 1e-5, normed),
            "activation alone": lambda turn: ops.activate("silu", up, True, gated),
            "q, k, v alone": linear("qkv", normed, qkv),
            "gate, up alone": linear("up", normed, up),
            "down alone": linear("down", gated, x, True),
        }
        self.copies = count

    def whole(self, turn: int) -> None:
        for call in self.calls.values():
            call(turn)


def blocks(b: Bench) -> Iterator[Row]:
    """Where the time of a 7B block goes: a decode step at 512 positions, and the last 512 tokens of a prompt of 2,048 in each
    mode: the engine takes prompts in such steps."""
    for phase, (tokens, context), modes in (
        ("decode", b.pick((1, 512), (1, 64)), ("exact",)),
        ("prefill", b.pick((512, 2048), (1, 64)), ("exact", "grouped", "llm.int8")),
    ):
        for mode in modes:
            block = SomeBlock(b, phase == "decode", tokens, context, mode)
            name = f"{phase} block, {mode}"
            alone = block.parts if mode == "exact" else {}
            for step, call in (block.calls | alone).items():
                yield b.timed(f"{name}: {step}", 1e6 * b.seconds(call, block.copies), "µs")
            whole = b.seconds(block.whole, block.copies)
            yield b.timed(f"{name}: whole, in a CUDA graph", 1e6 * whole, "µs")
            turns = b.pick(32, 1)
            eager = b.wall(lambda block=block, turns=turns: [block.whole(turn) for turn in range(turns)]) / turns  # type: ignore[misc]
            yield b.timed(
                f"{name}: whole, launched one by one", 1e6 * eager, "µs", note=f"{eager / whole:.2f} × the graph's"
            )
            replay = b.graph(lambda block=block, turns=turns: [block.whole(turn) for turn in range(turns)])  # type: ignore[misc]
            yield b.idle(f"{name}: launch gaps in the graph", replay, turns * whole, turns)
            del block, replay

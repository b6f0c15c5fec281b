#!/usr/bin/env python3
"""The CPU kernels beside their roofs and their torch counterparts, as a Markdown table.

    python benchmarks/kernels.py [--shape 7b] [--rounds 7] [--json OUT]

Roofs are measured in the same run: reading memory, and multiplying from the first-level cache in the exact mode. Ours and
torch's take turns, and the medians are compared. Weights are rotated through more memory than the caches hold. torch's
int8 product is one plane of integers with no quantising and no constants; ours is the whole linear in the exact mode.
Run nothing else meanwhile.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from bigrun.devices.host_memory import HostMemory
from bigrun.devices.measure import multiply_rate, read_bandwidth
from bigrun_kernels import lanes
from bigrun_kernels.cpu import isa, threads
from bigrun_kernels.cpu.ops import CpuOps
from bigrun_kernels.ops import Pages, Scratch, Weight

# name: hidden, intermediate, heads, key heads, head size
SHAPES = {
    "smollm2": (576, 1536, 9, 3, 64),
    "1.1b": (2048, 5632, 32, 4, 64),
    "7b": (4096, 11008, 32, 32, 128),
}
NOTHING = np.empty(0, np.float32)
ROTATED = 300_000_000  # bytes of weights that calls go through in turn


def huge(nbytes: int) -> np.ndarray:
    return HostMemory("cpu", nbytes).take(nbytes, "workspace", "a benchmark")


def weights(rows: int, columns: int) -> list[Weight]:
    shape = lanes.shape(rows, columns)
    size = int(np.prod(shape))
    copies = []
    for _ in range(max(1, ROTATED // size)):
        values = huge(size).view(np.int8)
        values[:] = np.resize(np.random.default_rng(0).integers(-127, 128, 1 << 16, np.int8), size)
        copies.append(Weight("int8", values.reshape(shape), np.full(rows, 1e-3, np.float32), NOTHING, columns))
    return copies


def in_turn(rounds: int, *calls: Callable[[int], object]) -> list[float]:
    """The median seconds of each call, which take turns; each is told the number of the turn."""
    for call in calls:
        call(0)
        call(1)
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(rounds):
        for mine, call in zip(times, calls, strict=True):
            start = time.perf_counter()
            call(turn)
            mine.append(time.perf_counter() - start)
    return [statistics.median(mine) for mine in times]


def linear_call(ops: CpuOps, some: list[Weight], tokens: int, rows: int) -> Callable[[int], object]:
    columns = some[0].columns
    x = np.random.default_rng(1).standard_normal((tokens, columns), np.float32)
    held = tokens if tokens == 1 else -(-tokens // 4) * 4
    scratch = Scratch(
        np.empty((held, 2 * some[0].values.shape[1] * 4), np.int8), np.empty(tokens), np.empty((tokens, 2), np.int32),
        np.empty(columns, np.int8),
    )  # fmt: skip
    out = np.empty((tokens, rows), np.float32)
    return lambda turn: ops.linear(x, some[turn % len(some)], "exact", 0.0, scratch, out, False)


def torch_calls(some: list[Weight], tokens: int, rows: int) -> dict[str, Callable[[int], object]]:
    columns = some[0].columns
    x = torch.randn(tokens, columns)
    calls: dict[str, Callable[[int], object]] = {}
    q = [torch.from_numpy(w.values.reshape(-1)[: rows * columns]).view(rows, columns) for w in some]
    if tokens > 16:
        whole = torch.randint(-127, 128, (tokens, columns), dtype=torch.int8)
        calls["_int_mm"] = lambda turn: torch._int_mm(whole, q[turn % len(q)].t())
    else:
        half, unit = x.bfloat16(), torch.full((rows,), 1e-3, dtype=torch.bfloat16)
        calls["_weight_int8pack_mm"] = lambda turn: torch._weight_int8pack_mm(half, q[turn % len(q)], unit)
    dense = torch.randn(rows, columns).bfloat16()
    half = x.bfloat16()
    calls["bfloat16 linear"] = lambda turn: torch.nn.functional.linear(half, dense)
    return calls


def linears(shape: str, ops: CpuOps, rounds: int, read: float, rate: float) -> list[dict]:
    hidden, inner = SHAPES[shape][:2]
    rows = []
    for n, k in ((2 * inner, hidden), (hidden, inner)):
        some = weights(n, k)
        for tokens in (1, 8, 16, 128, 512):
            theirs = torch_calls(some, tokens, n)
            mine, *others = in_turn(rounds, linear_call(ops, some, tokens, n), *theirs.values())
            roof = max(n * k / read, n * k * tokens / rate)
            best = min(zip(others, theirs, strict=True))
            rows.append(
                {
                    "kernel": "GEMV" if tokens == 1 else "GEMM",
                    "shape": f"[{n}, {k}], M = {tokens}",
                    "microseconds": 1e6 * mine,
                    "reached": f"{n * k / mine / 1e9:.1f} GB/s"
                    if tokens == 1
                    else f"{n * k * tokens / mine / 1e9:.0f} GMAC/s",
                    "of_roof": roof / mine,
                    "torch": {name: 1e6 * t for t, name in zip(others, theirs, strict=True)},
                    "best_torch": best[1],
                    "torch_ratio": best[0] / mine,
                }
            )
    return rows


def attention(shape: str, ops: CpuOps, rounds: int, read: float) -> list[dict]:
    """One token over a context, float16 and int8 pages, by the team's own kernel through a block's attention."""
    _, _, heads, kv_heads, dim = SHAPES[shape]
    rows = []
    for context in (128, 2048):
        for kind, dtype in (("float16", np.uint16), ("int8", np.int8)):
            pages = context // 64
            size = pages * kv_heads * 64 * dim
            count = max(2, ROTATED // (2 * size * np.dtype(dtype).itemsize))
            count = min(count, 64)
            caches = []
            for _ in range(count):
                values = [huge(size * np.dtype(dtype).itemsize).view(dtype) for _ in "kv"]
                for v in values:
                    v[:] = 1
                units = np.full((pages, kv_heads, 64) if kind == "int8" else 0, 0x3C00, np.uint16)
                caches.append([Pages(v.reshape(pages, kv_heads, 64, dim), units) for v in values])
            qkv = np.random.default_rng(0).standard_normal((1, (heads + 2 * kv_heads) * dim), np.float32)
            out = np.empty((1, heads * dim), np.float32)
            table = np.arange(pages, dtype=np.int32)[None]
            zero, position, slopes = np.zeros(1, np.int64), np.array([context - 1]), np.zeros(heads, np.float32)

            def mine(
                turn: int, caches=caches, qkv=qkv, out=out, table=table, position=position, slopes=slopes, zero=zero
            ) -> None:  # type: ignore[no-untyped-def]
                k, v = caches[turn % len(caches)]
                ops.attention(qkv, heads, k, v, table, zero, position, slopes, dim**-0.5, out)

            q = torch.randn(1, heads, 1, dim)
            dense = [torch.randn(1, kv_heads, context, dim) for _ in "kv"]

            def theirs(turn: int, q=q, dense=dense) -> None:  # type: ignore[no-untyped-def]
                torch.nn.functional.scaled_dot_product_attention(q, *dense, enable_gqa=heads != kv_heads)

            seconds, other = in_turn(rounds * 3, mine, theirs)
            nbytes = 2 * size * np.dtype(dtype).itemsize
            rows.append(
                {
                    "kernel": "attention",
                    "shape": f"{heads} heads over {kv_heads}, {context} tokens, {kind}",
                    "microseconds": 1e6 * seconds,
                    "reached": f"{nbytes / seconds / 1e9:.1f} GB/s",
                    "of_roof": nbytes / read / seconds,
                    "torch": {"sdpa float32": 1e6 * other},
                    "best_torch": "sdpa float32",
                    "torch_ratio": other / seconds,
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", dest="out")
    options = parser.parse_args()
    count = threads.use(None)
    torch.set_num_threads(count)
    ops = CpuOps()
    read, rate = read_bandwidth(), multiply_rate()
    rows = linears(options.shape, ops, options.rounds, read, rate) + attention(options.shape, ops, options.rounds, read)
    print(f"{options.shape}, {isa.describe()}, {count} threads, torch {torch.__version__}; ", end="")
    print(f"roofs: {read / 1e9:.1f} GB/s, {rate / 1e9:.0f} GMAC/s exact\n")
    print("| kernel | shape | µs | reached | of the roof | best of torch | × torch |\n|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['kernel']} | {row['shape']} | {row['microseconds']:.0f} | {row['reached']} | {row['of_roof']:.0%} "
            f"| {row['best_torch']} | {row['torch_ratio']:.2f} |"
        )
    if options.out:
        with open(options.out, "w") as file:
            json.dump({"shape": options.shape, "read": read, "rate": rate, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()

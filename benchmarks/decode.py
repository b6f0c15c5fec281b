#!/usr/bin/env python3
"""A model's decode steps: by context, by the form of the cache, by how many sequences go together, and where the time goes.

    python benchmarks/decode.py --model FOLDER [--contexts 128,2000] [--batches 1,2,4,8,16] [--steps 12]

Each row is the median of some steps of one process; rows that are compared come from the same process. Run nothing else.
"""

import argparse
import statistics
import time
from typing import Any

import numpy as np

from bigrun import Runner
from bigrun.devices.measure import multiply_rate, read_bandwidth
from bigrun.measure.bench import decode_bytes

PHASES = ("norm", "qkv", "rotary, cache", "attention", "merge", "out", "norm", "up", "activation", "down")


def steps(runner: Runner, sequences: range, count: int) -> float:
    """Median seconds of a decode step of some sequences."""
    times = []
    for i in range(count + 2):
        start = time.perf_counter()
        runner.executor.forward({s: [(10 + i) % 900] for s in sequences})
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def fill(runner: Runner, lengths: list[int]) -> None:
    """Sequences of these lengths, as if so many tokens had been read: the cache holds small numbers."""
    engine: Any = runner.executor.engines["cpu"]
    for cache in engine.caches.values():
        for pages in (cache.k, cache.v):
            pages.values[:] = 0x2C00 if pages.values.dtype == np.uint16 else 1
            pages.scale[:] = 0x2C00
    for s, length in enumerate(lengths):
        runner.executor.clear(s)
        runner.executor.pages.extend(s, length)


def shares(runner: Runner) -> str:
    """The phases' shares of the last step, from the time stamps that a team leaves."""
    total = np.zeros(len(PHASES))
    engine: Any = runner.executor.engines["cpu"]
    for _, run in engine.compiled.values():
        stamps = run.counters.reshape(-1, 16)[:, 4]
        spent = np.diff(stamps, prepend=stamps[0])
        total += spent.reshape(-1, len(PHASES)).sum(axis=0)
    merged: dict[str, float] = {}
    for name, value in zip(PHASES, total / total.sum(), strict=True):
        merged[name] = merged.get(name, 0.0) + value
    return ", ".join(f"{name} {value:.1%}" for name, value in merged.items())


def contexts(model: str, lengths: list[int], count: int) -> None:
    print(
        "\n| cache | "
        + " | ".join(f"{n} tokens" for n in lengths)
        + " | last / first |\n|---|"
        + "---|" * (len(lengths) + 1)
    )
    for kv in ("16bit", "int8"):
        with Runner(
            model, context=max(lengths) + 100, batch=len(lengths), kv=kv, gpus="none", progress=False
        ) as runner:
            times: dict[int, list[float]] = {n: [] for n in lengths}
            fill(runner, lengths)
            for _ in range(5):
                for s, length in enumerate(lengths):
                    times[length].append(steps(runner, range(s, s + 1), count))
            medians = [statistics.median(times[n]) for n in lengths]
            print(
                f"| {kv} | " + " | ".join(f"{1e3 * t:.1f} ms" for t in medians) + f" | {medians[-1] / medians[0]:.2f} |"
            )
            if kv == "16bit":
                print(f"\nshares at {lengths[-1]} tokens: {shares(runner)}\n")


def batches(model: str, counts: list[int], count: int) -> None:
    print("\n| sequences | step | tokens/s | × one | bytes / read roof | arithmetic / its roof | step / larger |")
    print("|---|---|---|---|---|---|---|")
    with Runner(model, context=128, batch=max(counts), gpus="none", progress=False) as runner:
        fill(runner, [32] * max(counts))
        products = runner.spec.parameters - (0 if runner.spec.tied else runner.spec.vocab * runner.spec.hidden)
        times: dict[int, list[float]] = {n: [] for n in counts}
        roofs = []
        for _ in range(3):  # three rounds
            roofs.append((read_bandwidth(), multiply_rate()))
            for n in counts:
                times[n].append(steps(runner, range(n), max(3, count // 3)))
        read, rate = (statistics.median(r[i] for r in roofs) for i in (0, 1))
        one = statistics.median(times[counts[0]]) / counts[0]
        for n in counts:
            step = statistics.median(times[n])
            by_bytes, by_work = decode_bytes(runner, 40) / read, products * n / rate
            print(
                f"| {n} | {1e3 * step:.1f} ms | {n / step:.1f} | {one * n / step:.2f} | {1e3 * by_bytes:.1f} ms "
                f"| {1e3 * by_work:.1f} ms | {step / max(by_bytes, by_work):.2f} |"
            )
        print(f"\nroofs: {read / 1e9:.1f} GB/s, {rate / 1e9:.0f} GMAC/s in the exact mode")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--contexts", default="128,2000")
    parser.add_argument("--batches", default="1,2,4,8,16")
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_args()
    if options.contexts:
        contexts(options.model, [int(n) for n in options.contexts.split(",")], options.steps)
    if options.batches:
        batches(options.model, [int(n) for n in options.batches.split(",")], options.steps)


if __name__ == "__main__":
    main()

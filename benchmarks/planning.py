#!/usr/bin/env python3
"""Is a plan right? Learn this host's rates from small models, predict a large one before it runs, then run all of them.

    python benchmarks/planning.py --learn 0.1B 1.1B --predict 7B [--rounds 3] [--host FILE]

Prints seconds predicted and measured, and their ratio, for prompts and decode steps of every model, and the host bytes
planned and measured. Each round learns and predicts from nothing but its own runs. Run nothing else.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from bigrun import Runner
from bigrun.devices.host_file import Host, write
from bigrun.devices.measure import host_bytes
from bigrun.measure.bench import _fill
from bigrun.measure.host import measure_host
from bigrun.measure.learning import calibrated
from bigrun.planning.cost import Phase, prefill_phase
from bigrun.planning.learn import Run, observe
from bigrun.planning.ledger import Ledger

CONTEXT = 1100
PROMPTS = (128, 512)
DECODES = ((144, 1), (1000, 1), (144, 4))  # tokens seen, sequences


def pretend(runner: Runner, seen: int, sequences: int) -> None:
    """Sequences of this length, as if so many tokens had been read: the cache holds small numbers."""
    executor = runner.executor
    engine: Any = executor.engines["cpu"]
    for cache in engine.caches.values():
        for pages in (cache.k, cache.v):
            pages.values[:] = 0x2C00 if pages.values.dtype == np.uint16 else 1
    for s in range(runner.plan.batch):
        executor.clear(s)
    for s in range(sequences):
        executor.pages.extend(s, seen)


def decode_step(runner: Runner, seen: int, sequences: int, count: int) -> float:
    """Median seconds."""
    times = []
    for i in range(count + 1):
        pretend(runner, seen, sequences)
        started = time.perf_counter()
        runner.executor.forward({s: [(10 + i) % 900] for s in range(sequences)})
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def prompt(runner: Runner, tokens: int, count: int) -> float:
    """Median seconds of a prompt."""
    times = []
    for _ in range(count):
        runner.executor.clear(0)
        started = time.perf_counter()
        _fill(runner.executor, range(1), tokens, runner.spec.vocab)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def measure(model: str, prompts: tuple[int, ...], quick: bool) -> tuple[list[Run], tuple[float, float]]:
    """(runs of one model, (host bytes planned, measured))."""
    # The reserve is not memory that is used, and the first touch of every buffer is what is measured.
    with Runner(model, context=CONTEXT, batch=4, gpus="none", host="none", progress=False) as runner:
        ledger = Ledger(runner.spec, runner.plan_options)
        name = Path(model).name
        chunk = runner.plan.prefill_chunk_tokens
        prompt(runner, 64, 1)
        runs = []
        for tokens in prompts:
            spent = prompt(runner, tokens, 2 if quick else 5)
            runs.append(observe(f"{name}: prompt of {tokens}", ledger, prefill_phase(tokens, chunk), spent))
        for seen, sequences in DECODES:
            spent = decode_step(runner, seen, sequences, 7 if quick else 21)
            phase = Phase("decode", 1, sequences, seen * sequences / runner.plan.batch, sequences)
            runs.append(observe(f"{name}: decode at {seen}, {sequences} sequences", ledger, phase, spent))
        planned = sum(d.used_bytes - d.reserve_bytes for d in runner.plan.devices if d.kind == "cpu")
        return runs, (planned, host_bytes() - runner.warm_bytes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--learn", nargs="+", required=True, metavar="MODEL")
    parser.add_argument("--predict", nargs="+", default=[], metavar="MODEL")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--host", type=Path, help="write what the last round learned to this host file")
    options = parser.parse_args()
    comparisons: dict[str, list[tuple[float, float]]] = {}
    memory: dict[str, list[tuple[float, float]]] = {}
    host: Host | None = None
    for round_ in range(options.rounds):
        host = measure_host(options.host or Path("host.json"))
        host = Host(**{**vars(host), "runs": (), "learned": None})
        all_runs: list[Run] = []
        for model in options.learn:
            runs, both = measure(model, PROMPTS, False)
            all_runs += runs
            memory.setdefault(Path(model).name, []).append(both)
        host = calibrated(host, all_runs)
        rates = host.rates()
        print(f"round {round_ + 1}: {host.says}", flush=True)
        for model in options.predict:  # the rates are fixed before this model is opened
            runs, both = measure(model, PROMPTS[:1], True)
            all_runs += runs
            memory.setdefault(Path(model).name, []).append(both)
        for run in all_runs:
            comparisons.setdefault(run.name, []).append((run.predicted(rates), run.seconds))
    print("\n| run | predicted | measured | ratio, each round | median |\n|---|---|---|---|---|")
    for name, pairs in comparisons.items():
        ratios = [predicted / measured for predicted, measured in pairs]
        middle = statistics.median_low(ratios)
        predicted, measured = pairs[ratios.index(middle)]
        each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        print(f"| {name} | {1e3 * predicted:.1f} ms | {1e3 * measured:.1f} ms | {each} | {middle:.2f} |")
    print("\n| host bytes | planned | measured | measured / planned |\n|---|---|---|---|")
    for name, both in memory.items():
        planned, grown = both[-1]
        ratios = ", ".join(f"{grown / planned:.3f}" for planned, grown in both)
        print(f"| {name} | {planned:,} | {grown:,} | {ratios} |")
    if options.host and host:
        write(host, options.host)


if __name__ == "__main__":
    main()

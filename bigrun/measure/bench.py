"""What `bigrun bench` measures: a run of given lengths, with its memory and the bandwidth it reached beside the roof."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bigrun.errors import CallError
from bigrun.sizes import format_size

WARM_TOKENS = 4


def measure(
    open_runner: Callable[..., Any], prompt_tokens: int, new_tokens: int, batch: int, learn: Path | None = None
) -> dict[str, Any]:
    """The JSON object of `bench`. `open_runner(context, prompt_tokens)` loads the model; speeds are totals over `batch`
    sequences. `learn` is a host file to keep the run in.

    A short warm-up compiles and touches what it must; then one prefill and the median of `new_tokens` decode steps.
    `host_growth_bytes` is what the process grew by from warm kernels on: what the plan's host bytes are held against.
    """
    from bigrun.devices.measure import host_bytes, read_bandwidth, watch_memory

    if prompt_tokens < 1 or new_tokens < 1:
        raise CallError("--prompt-tokens and --new-tokens: give at least 1")
    roof = read_bandwidth()
    stop = watch_memory()
    context = max(prompt_tokens + new_tokens, WARM_TOKENS + 1)
    with open_runner(context, min(prompt_tokens, context)) as runner:
        executor, vocab = runner.executor, runner.spec.vocab
        sequences = range(batch)
        _fill(executor, sequences, WARM_TOKENS, vocab)
        executor.forward({s: [5] for s in sequences})
        for s in sequences:
            executor.clear(s)
        started = time.perf_counter()
        _fill(executor, sequences, prompt_tokens, vocab)
        prefill = time.perf_counter() - started
        steps = []
        for i in range(new_tokens):
            started = time.perf_counter()
            executor.forward({s: [(10 + i) % vocab] for s in sequences})
            steps.append(time.perf_counter() - started)
        settled = host_bytes()
        peak = stop()
        step = statistics.median(steps)
        step_bytes = decode_bytes(runner, prompt_tokens + new_tokens // 2)
        plan = runner.plan
        planned = {d.name: d.used_bytes - d.reserve_bytes for d in plan.devices}
        if learn is not None:
            from bigrun.measure.learning import calibrate_from_run

            calibrate_from_run(learn, runner, prefill, step, prompt_tokens, prompt_tokens + new_tokens // 2)
        return {
            "model": plan.model,
            "prompt_tokens": prompt_tokens,
            "new_tokens": new_tokens,
            "batch": batch,
            "prefill_tokens_per_s": batch * prompt_tokens / prefill,
            "decode_tokens_per_s": batch / step,
            "load_seconds": runner.load_seconds,
            "first_token_seconds": runner.load_seconds + prefill,
            "peak_host_bytes": peak,
            "host_growth_bytes": settled - runner.warm_bytes,
            "planned_host_bytes": sum(planned[d.name] for d in plan.devices if d.kind == "cpu" or d.virtual),
            "peak_device_bytes": {name: memory.peak_bytes for name, memory in runner.memories.items()},
            "planned_device_bytes": planned,
            "decode_bytes_per_token": step_bytes / batch,
            "decode_bytes_per_s": step_bytes / step,
            "roof_bytes_per_s": roof,
            "kernels": runner.kernels,
            "predicted": vars(plan.predicted),
        }


def _fill(executor: Any, sequences: range, count: int, vocab: int) -> None:
    ids = np.array([(10 + i % 900) % vocab for i in range(count)])
    executor.forward(dict.fromkeys(sequences, ids))


def decode_bytes(runner: Any, length: int) -> int:
    """Bytes that one decode step reads: every weight but the looked-up table, and the keys and values so far."""
    plan = runner.plan
    total = 0
    for placement in plan.placements:
        if placement.part != "embed" or runner.spec.tied:
            total += placement.weights_bytes
        total += placement.kv_cache_bytes * length // plan.context_tokens
    return total


def describe(report: dict[str, Any]) -> str:
    """The report for a person."""
    reached = report["decode_bytes_per_s"] / report["roof_bytes_per_s"]
    predicted = {name: f"{report['predicted'][f'{name}_tokens_per_s']:.3g} predicted" for name in ("prefill", "decode")}
    lines = [
        f"{report['model']}: {report['prompt_tokens']} + {report['new_tokens']} tokens, batch {report['batch']}, "
        f"{report['kernels']}",
        f"  prefill   {report['prefill_tokens_per_s']:10.1f} tokens/s   {predicted['prefill']}",
        f"  decode    {report['decode_tokens_per_s']:10.2f} tokens/s   {predicted['decode']}",
        f"  reads     {report['decode_bytes_per_s'] / 1e9:10.1f} GB/s in decode, {reached:.0%} of the "
        f"{report['roof_bytes_per_s'] / 1e9:.1f} GB/s that this host reads",
        f"  load      {report['load_seconds']:10.2f} s",
        f"  memory    {format_size(report['host_growth_bytes'])} grown, {format_size(report['planned_host_bytes'])} planned; "
        f"peak of the process {format_size(report['peak_host_bytes'])}",
    ]
    return "\n".join(lines)

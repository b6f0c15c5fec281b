"""What `bigrun bench` measures: a run of given lengths, its memory stage by stage, the bandwidth it reached beside the
roof, and where it differs from its prediction."""

import contextlib
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
    `host_growth_bytes` is what the process grew by from warm kernels on: what the plan's host bytes are held against, but
    for `mapped_bytes` of an int8 conversion, which are the page cache's. Before that it grew in the stages
    `interpreter_bytes`, `files_bytes` (headers and vocabulary) and `kernels_bytes` (Numba's code and threads).
    `freed_bytes` are kept by the C library for later.
    """
    from bigrun.devices.measure import disk_read_bytes, freed_bytes, host_bytes, read_bandwidth, watch_memory
    from bigrun.devices.noise import watch_others
    from bigrun.measure.differences import differences
    from bigrun.measure.learning import mapped_bytes
    from bigrun_kernels.cpu import compiled

    if prompt_tokens < 1 or new_tokens < 1:
        raise CallError("--prompt-tokens and --new-tokens: give at least 1")
    interpreter, compiled_before = host_bytes(), compiled()
    roof = read_bandwidth()
    stop = watch_memory()
    context = max(prompt_tokens + new_tokens, WARM_TOKENS + 1)
    others, disk_before = watch_others(), disk_read_bytes()
    with contextlib.ExitStack() as ending:
        ending.callback(stop)  # whatever happens
        runner = ending.enter_context(open_runner(context, min(prompt_tokens, context)))
        load_foreign, disk_after = others(), disk_read_bytes()
        from_disk = None if disk_before is None or disk_after is None else disk_after - disk_before
        executor, vocab = runner.executor, runner.spec.vocab
        sequences = range(batch)
        _fill(executor, sequences, WARM_TOKENS, vocab)
        executor.forward({s: [5] for s in sequences})
        for s in sequences:
            executor.clear(s)
        others = watch_others()
        started = time.perf_counter()
        _fill(executor, sequences, prompt_tokens, vocab)
        prefill = time.perf_counter() - started
        steps = []
        for i in range(new_tokens):
            started = time.perf_counter()
            executor.forward({s: [(10 + i) % vocab] for s in sequences})
            steps.append(time.perf_counter() - started)
        foreign = others()
        settled = host_bytes()
        peak = stop()
        step = statistics.median(steps)
        step_bytes = decode_bytes(runner, prompt_tokens + new_tokens // 2)
        plan = runner.plan
        planned = {d.name: d.used_bytes - d.reserve_bytes for d in plan.devices}
        planned_host = sum(planned[d.name] for d in plan.devices if d.kind == "cpu" or d.virtual)
        load = runner.load_seconds - runner.fetch_seconds  # what is predicted, and what the next one takes
        measured = {"prefill": batch * prompt_tokens / prefill, "decode": batch / step, "load": load}
        differs = differences(measured, runner, foreign, load_foreign, from_disk, compiled_before)
        if learn is not None:
            from bigrun.devices.noise import why_busy
            from bigrun.measure.learning import calibrate_from_run

            busy = why_busy(max(foreign, load_foreign))
            calibrate_from_run(learn, runner, prefill, step, prompt_tokens, prompt_tokens + new_tokens // 2, busy)
        return {
            "model": plan.model,
            "prompt_tokens": prompt_tokens,
            "new_tokens": new_tokens,
            "batch": batch,
            "prefill_tokens_per_s": measured["prefill"],
            "decode_tokens_per_s": measured["decode"],
            "load_seconds": runner.load_seconds,
            "load_parts_seconds": runner.parts_seconds,
            "fetch_seconds": runner.fetch_seconds,
            "load_disk_bytes": from_disk,
            "first_token_seconds": runner.load_seconds + prefill,
            "peak_host_bytes": peak,
            "interpreter_bytes": interpreter,
            "files_bytes": runner.open_bytes - runner.start_bytes,
            "kernels_bytes": runner.start_bytes - interpreter + runner.warm_bytes - runner.open_bytes,
            "host_growth_bytes": settled - runner.warm_bytes,
            "planned_host_bytes": planned_host,
            "mapped_bytes": mapped_bytes(runner),
            "freed_bytes": freed_bytes(),
            "peak_device_bytes": {name: memory.peak_bytes for name, memory in runner.memories.items()},
            "planned_device_bytes": planned,
            "decode_bytes_per_token": step_bytes / batch,
            "decode_bytes_per_s": step_bytes / step,
            "roof_bytes_per_s": roof,
            "foreign_cpu_share": foreign,
            "kernels": runner.kernels,
            "predicted": vars(plan.predicted),
            "differs": [
                {
                    "what": each.what,
                    "measured": each.measured,
                    "predicted": each.predicted,
                    "ratio": each.ratio,
                    "reasons": list(each.reasons),
                }
                for each in differs
            ],
            "learned": learn is not None,
        }


def _fill(executor: Any, sequences: range, count: int, vocab: int) -> None:
    ids = np.array([(10 + i % 900) % vocab for i in range(count)])
    executor.forward(dict.fromkeys(sequences, ids))


def decode_bytes(runner: Any, length: int) -> float:
    """Bytes that one decode step reads: every weight but the looked-up table, and the keys and values of `length` tokens."""
    from bigrun.planning.cost import Costs, Phase
    from bigrun.planning.ledger import Ledger

    ledger, batch = Ledger(runner.spec, runner.plan_options), runner.plan.batch
    costs = Costs(ledger, Phase("decode", 1, batch, length, batch))
    total = 0.0
    for part in runner.spec.parts:
        work = costs.work(part.name)
        total += ledger.weights(part.name) if part.name == "norm" else work.weights + work.cache
    return total


def describe(report: dict[str, Any]) -> str:
    """The report for a person."""
    roof = "too little memory is available to measure what this host reads"
    if report["roof_bytes_per_s"]:
        reached = report["decode_bytes_per_s"] / report["roof_bytes_per_s"]
        roof = f"{reached:.0%} of the {report['roof_bytes_per_s'] / 1e9:.1f} GB/s that this host reads"
    predicted = {name: f"{report['predicted'][f'{name}_tokens_per_s']:.3g} predicted" for name in ("prefill", "decode")}
    fetched = f", {report['fetch_seconds']:.2f} s for what a hub has" if report["fetch_seconds"] else ""
    lines = [
        f"{report['model']}: {report['prompt_tokens']} + {report['new_tokens']} tokens, batch {report['batch']}, "
        f"{report['kernels']}",
        f"  prefill   {report['prefill_tokens_per_s']:10.1f} tokens/s   {predicted['prefill']}",
        f"  decode    {report['decode_tokens_per_s']:10.2f} tokens/s   {predicted['decode']}",
        f"  reads     {report['decode_bytes_per_s'] / 1e9:10.1f} GB/s in decode, {roof}",
        f"  load      {report['load_seconds']:10.2f} s          {report['predicted']['load_seconds']:.3g} predicted; "
        f"{report['load_parts_seconds']:.2f} s of it for the weights{fetched}",
        f"  memory    {_memory(report)}",
        f"  before    {format_size(report['interpreter_bytes'])} for Python, {format_size(report['files_bytes'])} for headers "
        f"and vocabulary, {format_size(report['kernels_bytes'])} for kernels and threads; peak of the process "
        f"{format_size(report['peak_host_bytes'])}",
    ]
    return "\n".join([*lines, *_differences(report)])


def _memory(report: dict[str, Any]) -> str:
    grown, mapped, planned = (report[f"{name}_bytes"] for name in ("host_growth", "mapped", "planned_host"))
    text = f"{format_size(grown)} grown"
    if mapped:
        text += f" and {format_size(mapped)} mapped from the int8 conversion"
    text += f", {format_size(planned)} planned"
    more, freed = grown + mapped - planned, min(report["freed_bytes"], max(0, grown + mapped - planned))
    if more > planned * 0.02:  # which the plan promises
        text += f"; {format_size(more)} more, of which {format_size(freed)} are freed and kept by the C library"
    return text


def _differences(report: dict[str, Any]) -> list[str]:
    lines = []
    for each in report["differs"]:
        why = "; ".join(each["reasons"]) or "no reason is known"
        lines.append(f"  differs   {each['what']}: {each['ratio']:.2f} of what was predicted ({why})")
    if lines and not report["learned"]:
        lines.append("            --learn keeps what this run took, for the predictions of later plans on this host")
    return lines

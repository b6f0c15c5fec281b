"""Adds a run to the host file: `bigrun bench --learn`."""

import datetime
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bigrun.devices.host_file import Host, machine, read, write
from bigrun.devices.rates import cpu_rates
from bigrun.errors import CallError
from bigrun.measure.host import measure_host
from bigrun.planning.cost import Phase
from bigrun.planning.learn import MOST_RUNS, Run, fit, from_data, observe, to_data
from bigrun.planning.ledger import Ledger


def calibrate_from_run(path: Path, runner: Any, prefill: float, step: float, prompt: int, seen: int) -> None:
    """Keep a prefill of `prompt` tokens a sequence and a decode step with `seen` tokens of context, in seconds."""
    if any(device.kind == "gpu" and device.parts and not device.virtual for device in runner.plan.devices):
        raise CallError("--learn: rates can be calibrated from runs on the CPU alone yet")
    ledger, batch = Ledger(runner.spec, runner.plan_options), runner.plan.batch
    steps = -(-batch * prompt // max(batch, runner.plan.prefill_chunk_tokens))  # which sequences share
    phase = Phase("prefill", steps, batch * prompt / steps, (prompt + 1) / 2, batch)
    runs = [
        observe(f"{runner.plan.model}: prompt of {prompt}", ledger, phase, prefill),
        observe(f"{runner.plan.model}: decode at {seen}", ledger, Phase("decode", 1, batch, seen, batch), step),
    ]
    read = [part.read_bytes for part in runner.executor.parts.values() if part.part.tensors]
    loaded = sum(read) / runner.load_seconds if all(read) else 0.0  # a cache's mapped parts tell nothing of converting
    _keep(calibrated(host_to_calibrate(path), runs, loaded), path)


def host_to_calibrate(path: Path) -> Host:
    """The host file of this machine, measured and written now if there is none."""
    if not path.is_file():
        _keep(measure_host(path), path)
    host = read(path)
    if (host.cpu, host.cores) != machine():
        raise CallError(f"--learn: {path} is of another machine ({host.cpu}); name another file with --host")
    return host


def _keep(host: Host, path: Path) -> None:
    try:
        write(host, path)
    except OSError as error:
        raise CallError(
            f"--learn: {path}: cannot be written: {error.strerror}; name another file with --host"
        ) from error


def calibrated(host: Host, runs: Sequence[Run], loaded: float = 0.0) -> Host:
    """A host with these runs added and its rates fitted anew; `loaded`: bytes/s of a checkpoint that became int8."""
    try:
        before = from_data(host.runs)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise CallError(f"--learn: {host.where}: its runs are damaged ({str(error)[:60]}); delete it") from error
    kept = (*before, *runs)[-MOST_RUNS:]
    roofs = host.read_bytes_per_s, host.int8_products_per_s, host.wide_products_per_s
    learned = fit(kept, cpu_rates(*roofs, "measured"))
    return replace(
        host,
        learned=learned,
        runs=to_data(kept),
        measured_on=datetime.date.today().isoformat(),
        conversion_bytes_per_s=max(host.conversion_bytes_per_s, loaded),
    )

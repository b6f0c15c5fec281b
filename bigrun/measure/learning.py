"""Adds a run to the host file: `bigrun bench --learn`."""

import contextlib
import datetime
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bigrun.devices.host_file import Host, locked, machine, read, write
from bigrun.devices.rates import cpu_rates
from bigrun.errors import CallError
from bigrun.measure.host import measure_host
from bigrun.planning.account import checkpoint
from bigrun.planning.cost import Phase
from bigrun.planning.learn import Run, fit, from_data, keep_runs, observe, to_data
from bigrun.planning.ledger import Ledger

LEAST_LOAD = 10**9  # bytes of a checkpoint from which on a load shows a rate: of less, what is fixed takes as long
COMPILED_SECONDS = 10.0  # a load that begins later than this compiled kernels, which the next one does not


def calibrate_from_run(
    path: Path, runner: Any, prefill: float, step: float, prompt: int, seen: int, busy: str = ""
) -> None:
    """Keep a prefill of `prompt` tokens a sequence and a decode step with `seen` tokens of context, in seconds, and what the
    load took. `busy`: what disturbed the run, "" if nothing did."""
    if any(device.kind == "gpu" and device.parts and not device.virtual for device in runner.plan.devices):
        raise CallError("--learn: rates can be calibrated from runs on the CPU alone yet")
    ledger, batch = Ledger(runner.spec, runner.plan_options), runner.plan.batch
    steps = -(-batch * prompt // max(batch, runner.plan.prefill_chunk_tokens))  # which sequences share
    phase = Phase("prefill", steps, batch * prompt / steps, (prompt + 1) / 2, batch)
    decode = Phase("decode", 1, batch, seen, batch)
    runs = [
        observe(f"{runner.plan.model}: prompt of {prompt}", ledger, phase, prefill, busy),
        observe(f"{runner.plan.model}: decode at {seen}", ledger, decode, step, busy),
    ]
    with _writing(path), locked(path):  # another's run may be added meanwhile
        host = host_to_calibrate(path)
        write(calibrated(host if busy else with_load(host, runner), runs), path)


def with_load(host: Host, runner: Any) -> Host:
    """A host that knows what this load took: its fixed seconds (the least so far), and a rate of its form (the highest so
    far) if it was all of one form and long enough to show one."""
    start = runner.load_seconds - runner.fetch_seconds - runner.parts_seconds
    if 0 < start < COMPILED_SECONDS:
        host = replace(host, start_seconds=min(start, host.start_seconds or start))
    read, mapped = read_bytes(runner), mapped_bytes(runner)
    kind = "int8" if mapped else checkpoint(runner.spec)[1]
    if bool(read) != bool(mapped) and read + mapped >= LEAST_LOAD and (mapped or not runner.wrote_cache):
        rates = dict(host.loads)
        rates[kind] = max(rates.get(kind, 0.0), (read + mapped) / runner.parts_seconds)
        host = replace(host, loads=tuple(sorted(rates.items())))
    return host


def read_bytes(runner: Any) -> int:
    """Bytes of a checkpoint that were read and converted."""
    return sum(loaded.read_bytes for loaded in runner.executor.parts.values())


def mapped_bytes(runner: Any) -> int:
    """Bytes of parts that came from an int8 cache, or a conversion, as they are."""
    parts = runner.executor.parts.values()
    return sum(loaded.layout.nbytes for loaded in parts if loaded.part.tensors and not loaded.read_bytes)


def host_to_calibrate(path: Path) -> Host:
    """The host file of this machine, measured and written now if there is none."""
    if not path.is_file():
        with _writing(path):
            write(measure_host(path), path)
    host = read(path)
    if (host.cpu, host.cores) != machine():
        raise CallError(f"--learn: {path} is of another machine ({host.cpu}); name another file with --host")
    return host


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Says of a host file that cannot be written what helps."""
    try:
        yield
    except OSError as error:
        raise CallError(
            f"--learn: {path}: cannot be written: {error.strerror}; name another file with --host"
        ) from error


def calibrated(host: Host, runs: Sequence[Run]) -> Host:
    """A host with these runs added and its rates fitted anew."""
    try:
        before = from_data(host.runs)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise CallError(f"--learn: {host.where}: its runs are damaged ({str(error)[:60]}); delete it") from error
    kept = keep_runs((*before, *runs))
    today = datetime.date.today().isoformat()
    return replace(host, learned=fit(kept, cpu_rates(*host.roofs, "measured")), runs=to_data(kept), measured_on=today)

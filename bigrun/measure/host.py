"""Measures this host for predictions and keeps it in the host file: in full for `bigrun info`, in seconds on the first use."""

import datetime
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from bigrun.devices.host_file import FIGURES, Host, default_path, find_host, is_none, machine, read, write
from bigrun.devices.make_rig import RigOptions
from bigrun.devices.noise import MOST_FOREIGN, Noise, noise, watch_others
from bigrun.devices.rates import ASSUMED_ROOFS, low_roofs
from bigrun.errors import CallError

AGAIN_SECONDS = 600  # a file of a busy minute is measured again no sooner than this after it was written
LOOK_SECONDS = 0.3  # at what others do, before it is


def measure_host(path: Path, quick: bool = False) -> Host:
    """This host, measured now, with what its file has that is better or was learned from runs.

    `quick`: what predictions of the CPU need, in seconds: memory and int8 arithmetic, and 16-bit arithmetic if its kernel is
    compiled; neither disk nor copies.
    """
    from bigrun.devices import measure
    from bigrun.progress import compiling
    from bigrun_kernels.cpu import compiled, isa, threads

    threads.prepare()
    measured: dict[str, tuple[float, Noise]] = {}
    day = datetime.date.today().isoformat()

    def take(name: str, rates: Callable[[], list[float]]) -> None:
        seen = watch_others()
        if values := rates():
            measured[name] = max(values), noise(values, seen(), day)

    with compiling(not quick, ("roof",)):
        measure.warm(wide := not quick or compiled("float_dot"))
        take("read_bytes_per_s", measure.read_rates)
        take("int8_products_per_s", measure.multiply_rates)
        if wide:
            take("wide_products_per_s", measure.wide_rates)
    copies: dict[str, float] = {}
    if not quick:
        take("disk_bytes_per_s", lambda: measure.file_rates(_existing(path.parent)))
        seen = watch_others()
        rates = measure.copy_rates()
        copies = {name: max(values) for name, values in rates.items()}
        if rates:
            worst = max(rates.values(), key=lambda values: noise(values, 0.0, day).spread)
            measured["copies"] = 0.0, noise(worst, seen(), day)
    cpu, cores = machine()
    if "read_bytes_per_s" not in measured:  # too little memory is available
        measured["read_bytes_per_s"] = low_roofs(cores)[0], Noise(0, 0.0, 0.0, day)
    if not wide:  # its share of the int8 rate on an assumed CPU
        share = ASSUMED_ROOFS[2] / ASSUMED_ROOFS[1]
        measured["wide_products_per_s"] = measured["int8_products_per_s"][0] * share, Noise(0, 0.0, 0.0, day)
    host = Host(
        cpu=cpu,
        cores=cores,
        kernels=isa.describe(),
        measured_on=day,
        read_bytes_per_s=measured["read_bytes_per_s"][0],
        int8_products_per_s=measured["int8_products_per_s"][0],
        wide_products_per_s=measured["wide_products_per_s"][0],
        disk_bytes_per_s=measured.get("disk_bytes_per_s", (0.0, None))[0],
        copies=tuple(copies.items()),
        noise=tuple((name, each) for name, (_, each) in measured.items()),
        where=str(path),
    )
    before = _before(path)
    return host if before is None else better(before, host)


def ensure_host(options: RigOptions, shown: bool, run: bool = False) -> bool:
    """Measures this host, once, where a plan of it, or a run, would else go by assumptions; and again where it was measured in
    a busy minute and is quiet now. Says so on standard error if `shown`. Returns whether it did.

    It needs compiled kernels (else it would take a minute, and the plan assumes) and a place to keep what it measures. Figures
    of another machine are left alone, and --host none, BIGRUN_HOST=none or a named file keep it from measuring at all.
    """
    from bigrun_kernels.cpu import compiled

    if options.host is not None or is_none(None) or not (run or options.of_this_host):
        return False
    path = default_path()
    host, _ = find_host()
    if host is None and os.path.lexists(path):  # of another machine, or damaged: a note of the plan says so
        return False
    if host is not None and not _again(host, path):
        return False
    if not compiled() or not _can_keep(path):
        return False
    started = time.perf_counter()
    if shown:
        why = "again: it was busy before" if host is not None else "once"
        print(
            f"bigrun: measuring this host, some seconds, {why}; --host none does without", file=sys.stderr, flush=True
        )
    host = measure_host(path, quick=True)
    try:
        write(host, path)
    except OSError as error:
        if shown:
            print(f"bigrun: {path}: cannot be written: {error.strerror}", file=sys.stderr)
        return False
    if shown:
        busy = f", in a busy minute: {host.busy_measuring}" if host.busy_measuring else ""
        print(f"bigrun: measured in {time.perf_counter() - started:.0f} s{busy}; kept in {path}", file=sys.stderr)
    return True


def _again(host: Host, path: Path) -> bool:
    """Whether figures are doubtful, and it is a good time to take them anew."""
    known = dict(host.noise)
    doubtful = host.busy_measuring or "read_bytes_per_s" not in known  # by a version that did not look
    if not doubtful or time.time() - path.stat().st_mtime < AGAIN_SECONDS:
        return False
    seen = watch_others()
    time.sleep(LOOK_SECONDS)
    return seen() <= MOST_FOREIGN


def _can_keep(path: Path) -> bool:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(path.parent, os.W_OK)


def better(before: Host, now: Host) -> Host:
    """What is known of a machine after it was measured again: of each figure the quieter measurement, of two busy ones the
    higher (a disturbance only takes away), of two quiet ones the later; and what was learned before."""
    if (before.cpu, before.cores, before.kernels) != (now.cpu, now.cores, now.kernels):
        return now
    kept: dict[str, Any] = {"learned": before.learned, "runs": before.runs}
    kept |= {"start_seconds": before.start_seconds, "loads": before.loads}
    old, noise = dict(before.noise), dict(now.noise)
    for name in FIGURES:
        was, new = getattr(before, name), getattr(now, name)
        was_rank, rank = _rank(was, old.get(name)), _rank(new, noise.get(name))
        if was_rank > rank or (was_rank == rank == 1 and name != "copies" and was > new):
            kept[name] = was
            noise.pop(name, None)
            if name in old:
                noise[name] = old[name]
    return replace(now, **kept, noise=tuple((name, noise[name]) for name in FIGURES if name in noise))


def _rank(figure: Any, noise: Noise | None) -> int:
    """0: not measured; 1: in a busy minute, or by a version that did not look; 2: in a quiet one."""
    if not figure or (noise is not None and not noise.repeats):
        return 0
    return 1 if noise is None or noise.busy else 2


def _before(path: Path) -> Host | None:
    try:
        return read(path) if path.is_file() else None
    except CallError:
        return None


def _existing(folder: Path) -> Path:
    there = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    return Path(tempfile.gettempdir()) if there == Path(os.devnull).parent else there  # of a user without a home

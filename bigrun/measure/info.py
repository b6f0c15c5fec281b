"""`bigrun info`: what this rig is, and what it measured of itself, kept for plans in the host file."""

import datetime
import os
import platform
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from bigrun.devices.host_file import NOWHERE, Host, default_path, machine, read, write
from bigrun.devices.probe import available_memory, probe_gpus
from bigrun.errors import CallError
from bigrun.sizes import format_size
from bigrun.version import __version__


def measure_host(path: Path) -> Host:
    """The roofs of this host, measured now (some seconds); what it has learned from runs is kept from its file."""
    from bigrun.devices.measure import copy_bandwidths, disk_bandwidth, multiply_rate, read_bandwidth, wide_rate
    from bigrun.progress import compiling
    from bigrun_kernels.cpu import isa, threads

    threads.prepare()
    with compiling(True, ("roof",)):
        figures = read_bandwidth(), multiply_rate(), wide_rate()
    cpu, cores = machine()
    host = Host(
        cpu=cpu,
        cores=cores,
        kernels=isa.describe(),
        measured_on=datetime.date.today().isoformat(),
        read_bytes_per_s=figures[0],
        int8_products_per_s=figures[1],
        wide_products_per_s=figures[2],
        disk_bytes_per_s=disk_bandwidth(Path(tempfile.gettempdir()) if path == NOWHERE else _existing(path.parent)),
        copies=tuple(copy_bandwidths().items()),
        where=str(path),
    )
    before = _before(path)
    if before is not None and (before.cpu, before.cores, before.kernels) == (cpu, cores, host.kernels):
        host = replace(
            host, learned=before.learned, runs=before.runs, conversion_bytes_per_s=before.conversion_bytes_per_s
        )
    return host


def _before(path: Path) -> Host | None:
    try:
        return read(path) if path.is_file() else None
    except CallError:
        return None


def _existing(folder: Path) -> Path:
    return next(parent for parent in (folder, *folder.parents) if parent.is_dir())


def gather(path: Path | None = None) -> dict[str, Any]:
    """Facts of this host, with figures measured now and written to the host file."""
    import numba
    import psutil

    from bigrun_kernels.cpu import threads

    started = time.perf_counter()
    budget, reserve = available_memory()
    path = path or default_path()
    host = measure_host(path)
    try:
        write(host, path)
        kept = str(path)
    except OSError as error:
        homeless = "this user has no home: give --host FILE"
        kept = f"not kept: {homeless if path == NOWHERE else f'{path}: {error.strerror}'}"
    gpus = [
        {"name": f"cuda:{i}", "card": card.name if card else None, "budget_bytes": size, "link_bytes_per_s": link}
        for i, (size, card, link) in enumerate(probe_gpus())
    ]
    return {
        "bigrun": __version__,
        "python": platform.python_version(),
        "numba": numba.__version__,
        "cpu": host.cpu,
        "cores": len(os.sched_getaffinity(0)),
        "kernels": host.kernels,
        "thread_pool": threads.layer(),
        "memory_bytes": psutil.virtual_memory().total,
        "budget_bytes": budget,
        "reserve_bytes": reserve,
        "gpus": gpus,
        "measured": {
            "read_bytes_per_s": host.read_bytes_per_s,
            "int8_products_per_s": host.int8_products_per_s,
            "wide_products_per_s": host.wide_products_per_s,
            "disk_bytes_per_s": host.disk_bytes_per_s,
            "copy_bytes_per_s": dict(host.copies),
        },
        "learned_runs": len(host.runs),
        "host_file": kept,
        "seconds": time.perf_counter() - started,
    }


def describe(report: dict[str, Any]) -> str:
    gpus = [f"{gpu['name']} {gpu['card'] or ''} {format_size(gpu['budget_bytes'])}" for gpu in report["gpus"]]
    measured = report["measured"]
    rows = {
        "bigrun": f"{report['bigrun']}, Python {report['python']}, Numba {report['numba']}",
        "cpu": f"{report['cpu']}, {report['cores']} cores",
        "kernels": f"{report['kernels']}, {report['thread_pool']} threads",
        "memory": f"{format_size(report['memory_bytes'])}, of which bigrun would use {format_size(report['budget_bytes'])}",
        "gpus": ", ".join(gpus) or "none found",
        "reads": f"{measured['read_bytes_per_s'] / 1e9:.1f} GB/s of memory, "
        f"{measured['disk_bytes_per_s'] / 1e9:.2f} GB/s of disk",
        "computes": f"{measured['int8_products_per_s'] / 1e9:.0f} G multiply-adds/s with int8 weights, "
        f"{measured['wide_products_per_s'] / 1e9:.0f} with 16-bit ones",
    }
    if measured["copy_bytes_per_s"]:
        rows["copies"] = ", ".join(
            f"{name} {rate / 1e9:.1f} GB/s" for name, rate in measured["copy_bytes_per_s"].items()
        )
    rows["kept"] = (
        f"{report['host_file']}, for plans ({report['seconds']:.1f} s; {report['learned_runs']} runs learned from)"
    )
    return "\n".join(f"{name:8} {text}" for name, text in rows.items())

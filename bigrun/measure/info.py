"""`bigrun info`: what this rig is, and what it measured of itself, kept for plans in the host file."""

import platform
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bigrun.devices.host_file import NOWHERE, VARIABLE, default_path, is_none, write
from bigrun.devices.probe import available_memory, host_memory, probe_gpus, why_no_gpu
from bigrun.measure.host import measure_host
from bigrun.sizes import format_size
from bigrun.version import __version__
from bigrun_kernels.cpu.cgroups import usable_cpus


def gather(path: Path | None = None) -> dict[str, Any]:
    """Facts of this host, with figures measured now and written to the host file."""
    import numba

    from bigrun_kernels.cpu import threads

    started = time.perf_counter()
    budget, reserve = available_memory()
    unnamed, path = path is None, path or default_path()
    host = measure_host(path)
    try:
        if unnamed and is_none(None):
            kept = f"not kept: {VARIABLE}=none"
        else:
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
        "cores": usable_cpus(),
        "kernels": host.kernels,
        "thread_pool": threads.layer(),
        "memory_bytes": host_memory(),
        "budget_bytes": budget,
        "reserve_bytes": reserve,
        "gpus": gpus,
        "why_no_gpu": "" if gpus else why_no_gpu(),
        "measured": {
            "read_bytes_per_s": host.read_bytes_per_s,
            "int8_products_per_s": host.int8_products_per_s,
            "wide_products_per_s": host.wide_products_per_s,
            "disk_bytes_per_s": host.disk_bytes_per_s,
            "copy_bytes_per_s": dict(host.copies),
        },
        "noise": {name: asdict(each) for name, each in host.noise},
        "busy": host.busy,
        "load": {"start_seconds": host.start_seconds, "bytes_per_s": dict(host.loads)},
        "learned_runs": len(host.runs),
        "host_file": kept,
        "seconds": time.perf_counter() - started,
    }


# The figures of a host file, as a person calls them.
WORDS = {
    "read_bytes_per_s": "memory", "int8_products_per_s": "int8 arithmetic", "wide_products_per_s": "16-bit arithmetic",
    "disk_bytes_per_s": "disk", "copies": "copies",
}  # fmt: skip


def describe(report: dict[str, Any]) -> str:
    gpus = [f"{gpu['name']} {gpu['card'] or ''} {format_size(gpu['budget_bytes'])}" for gpu in report["gpus"]]
    measured = report["measured"]
    looked = report["noise"].get("read_bytes_per_s")  # of a figure of an old version nothing is known
    assumed = " (assumed: too little is available to measure it)" if looked and not looked["repeats"] else ""
    rows = {
        "bigrun": f"{report['bigrun']}, Python {report['python']}, Numba {report['numba']}",
        "cpu": f"{report['cpu']}, {report['cores']} cores",
        "kernels": f"{report['kernels']}, {report['thread_pool']} threads",
        "memory": f"{format_size(report['memory_bytes'])}, of which bigrun would use {format_size(report['budget_bytes'])}",
        "gpus": ", ".join(gpus) or report["why_no_gpu"] or "none found",
        "reads": f"{measured['read_bytes_per_s'] / 1e9:.1f} GB/s of memory{assumed}, "
        f"{measured['disk_bytes_per_s'] / 1e9:.2f} GB/s of disk",
        "computes": f"{measured['int8_products_per_s'] / 1e9:.0f} G multiply-adds/s with int8 weights, "
        f"{measured['wide_products_per_s'] / 1e9:.0f} with 16-bit ones",
    }
    if measured["copy_bytes_per_s"]:
        rows["copies"] = ", ".join(
            f"{name} {rate / 1e9:.1f} GB/s" for name, rate in measured["copy_bytes_per_s"].items()
        )
    if report["busy"]:
        why = "; ".join(f"{WORDS[name]}: {why}" for name, why in report["busy"].items())
        rows["busy"] = f"measured in a busy minute ({why}); measured again when it is quiet"
    rows["kept"] = (
        f"{report['host_file']}, for plans ({report['seconds']:.1f} s; {report['learned_runs']} runs learned from)"
    )
    return "\n".join(f"{name:8} {text}" for name, text in rows.items())

"""`bigrun info`: what this rig is, and what it measured of itself."""

import os
import platform
from typing import Any

from bigrun import __version__
from bigrun.rig import available_memory, probe_gpus
from bigrun.sizes import format_size


def gather() -> dict[str, Any]:
    """Facts of this host. The bandwidth is measured now; it takes about a second."""
    import numba
    import psutil

    from bigrun.host import read_bandwidth
    from bigrun_kernels.cpu import isa, threads

    budget, reserve = available_memory()
    threads.prepare()
    bandwidth = read_bandwidth()
    return {
        "bigrun": __version__,
        "python": platform.python_version(),
        "numba": numba.__version__,
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "kernels": isa.describe(),
        "thread_pool": threads.layer(),
        "memory_bytes": psutil.virtual_memory().total,
        "budget_bytes": budget,
        "reserve_bytes": reserve,
        "gpus": [{"name": gpu.name, "budget_bytes": gpu.budget_bytes} for gpu in probe_gpus()],
        "measured": {"read_bytes_per_s": bandwidth},
    }


def describe(found: dict[str, Any]) -> str:
    gpus = [f"{gpu['name']} {format_size(gpu['budget_bytes'])}" for gpu in found["gpus"]]
    rows = {
        "bigrun": f"{found['bigrun']}, Python {found['python']}, Numba {found['numba']}",
        "cpu": f"{found['cpu']}, {found['cores']} cores",
        "kernels": f"{found['kernels']}, {found['thread_pool']} threads",
        "memory": f"{format_size(found['memory_bytes'])}, of which bigrun would use {format_size(found['budget_bytes'])}",
        "reads": f"{found['measured']['read_bytes_per_s'] / 1e9:.1f} GB/s (measured now)",
        "gpus": ", ".join(gpus) or "none found",
    }
    return "\n".join(f"{name:8} {text}" for name, text in rows.items())


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()

"""This process's control groups, and how many CPUs they leave it: what a container, a batch system or a service may use.

Versions 2 and 1 (Linux, Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/cgroups.rst). Imports no Numba.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path

ROOT = "/sys/fs/cgroup"


def folders(controller: str, root: str | Path = ROOT) -> Iterator[tuple[int, Path]]:
    """(version, folder) of each control group of this process that may limit `controller` ("memory", "cpu"), the innermost
    first; nothing where the kernel has none."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            version, mounts = 2, [""]
        elif controller in controllers.split(","):
            version, mounts = 1, [controllers, controller]  # "cpu,cpuacct" is often one folder
        else:
            continue
        mount = next((each for name in mounts if os.path.isdir(each := Path(root, name))), None)
        if mount is not None:
            yield from ((version, folder) for folder in _upwards(mount, path.strip()))


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """The folder of a group under `mount`, and those above it.

    A container often sees its host's path, with its own group as the mount's root: so it is the longest end of the path that
    is there. A path with ".." leads out of what is mounted; the root is as near as one comes.
    """
    names = [name for name in path.split("/") if name]
    if ".." in names:
        names = []
    while names and not os.path.isdir(mount / names[0]):
        names = names[1:]
    for count in range(len(names), -1, -1):
        yield mount.joinpath(*names[:count])


def cpu_quota(root: str | Path = ROOT) -> float | None:
    """CPUs' worth of time that this process's groups may take (docker's --cpus, Kubernetes' limit); None if unlimited."""
    quotas = [quota for version, folder in folders("cpu", root) if (quota := _quota(version, folder)) is not None]
    return min(quotas, default=None)


def _quota(version: int, folder: Path) -> float | None:
    try:
        if version == 2:
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
    except (OSError, ValueError):
        return None
    if not (quota.isascii() and quota.isdigit() and period.isascii() and period.isdigit()):  # "max"; -1
        return None
    return int(quota) / int(period) if int(quota) and int(period) else None


def usable_cpus(root: str | Path = ROOT) -> int:
    """How many threads this process can have at work at a time: the CPUs that it is bound to (which is what a cpuset limits),
    or its quota, rounded up, if that is less. More would wait for each other while the quota is used up."""
    bound, quota = len(os.sched_getaffinity(0)), cpu_quota(root)
    return bound if quota is None else max(1, min(bound, math.ceil(quota)))

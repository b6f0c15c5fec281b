"""What is available on this host: free memory, within the limits of its control groups, and GPUs."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bigrun.devices.cards import GB, Card, find
from bigrun.devices.links import LINKS
from bigrun.errors import RunError
from bigrun_kernels.cpu import cgroups

GPU_SHARE = 0.95  # of a card's free memory: the driver and other processes take a little more at any time
HOST_RESERVE = 2 * GB  # kept from the host's available memory, or a tenth of it if that is less
QUERY = ("uuid", "name", "pcie.link.gen.max", "pcie.link.width.current")
UNLIMITED = 2**60  # version 1 of control groups writes a number of this size where there is no limit
# version → limits, what is taken, and the line of memory.stat about files. Beyond memory.high a group is slowed down until it
# has given back what is more.
MEMORY_FILES = {
    1: (("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file "),
    2: (("memory.max", "memory.high"), "memory.current", "inactive_file "),
}


def available_memory() -> tuple[int, int]:
    """(budget, reserve) in bytes: what this host, or its control group, has available, less a tenth (2 GB at most)."""
    import psutil

    available = psutil.virtual_memory().available
    limit = cgroup_headroom()
    if limit is not None:
        available = min(available, limit)
    reserve = min(HOST_RESERVE, available // 10)
    return available - reserve, reserve


def host_memory() -> int:
    """Bytes of memory that this host has, or that its control group may take of it."""
    import psutil

    return min([psutil.virtual_memory().total, *(limit for limit, _ in _limits(cgroups.ROOT))])


def cgroup_headroom(root: str = cgroups.ROOT) -> int | None:
    """Bytes that this process may still take under its control group and those above it; None if unlimited.

    A group's file cache is counted as free: it goes when memory is asked for.
    """
    return max(0, min(room)) if (room := [left for _, left in _limits(root)]) else None


def _limits(root: str) -> list[tuple[int, int]]:
    """(limit, what is left of it) of this process's control group and of each above it that has a limit."""
    limits = []
    for version, group in cgroups.folders("memory", root):
        names, used_name, cached_name = MEMORY_FILES[version]
        try:
            used = int((group / used_name).read_text())
        except (OSError, ValueError):
            continue
        for name in names:
            limit = _number(group / name)
            if limit is not None and limit < UNLIMITED:
                limits.append((limit, limit - max(0, used - _cached(group, cached_name))))
    return limits


def _number(path: Path) -> int | None:
    """The whole number that a file holds; None where it holds another thing ("max"; -1), or is not there."""
    try:
        text = path.read_text().strip()
    except (OSError, ValueError):
        return None
    return int(text) if text.isascii() and text.isdigit() else None


def _cached(group: Path, name: str) -> int:
    """Bytes of a group's inactive file cache."""
    try:
        lines = (group / "memory.stat").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name))
    except (OSError, StopIteration, ValueError, IndexError):
        return 0


def has_driver() -> bool:
    """Whether this host has a driver of NVIDIA's."""
    return any(map(os.path.exists, ("/proc/driver/nvidia", "/dev/nvidia0", "/dev/dxg")))  # the last is WSL2's


def gpu_memories() -> tuple[int, ...]:
    """Bytes of each GPU of this host, as far as the driver's nvidia-smi tells: without torch, which takes its time."""
    if not has_driver():
        return ()
    mebibytes = [line.strip() for line in _smi("memory.total").splitlines()]
    return tuple(int(number) * 2**20 for number in mebibytes if number.isascii() and number.isdigit())


def probe_gpus() -> tuple[tuple[int, Card | None, float | None], ...]:
    """The CUDA devices of this host: (budget in bytes, its card if the table has it, bytes/s of its slot if the driver
    tells). Without a driver torch is not even imported."""
    if not has_driver():
        return ()
    import torch

    if not torch.cuda.is_available():
        return ()
    slots = driver_slots()
    gpus = []
    for number in range(torch.cuda.device_count()):
        try:
            free, _ = torch.cuda.mem_get_info(number)
            properties: Any = torch.cuda.get_device_properties(number)
        except RuntimeError as error:  # held by another process alone, or failed
            why = str(error).partition("\n")[0][:100]
            raise RunError(f"cuda:{number} does not answer: {why}; --gpus none leaves the GPUs out") from error
        link = slots.get(str(getattr(properties, "uuid", "")))
        gpus.append((int(free * GPU_SHARE), find(properties.name, properties.total_memory), link))
    return tuple(gpus)


def why_no_gpu() -> str:
    """Why torch sees none of the NVIDIA cards that the driver tells of; "" where it sees one, there is none, or they are hidden
    on purpose."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1") or not (count := len(gpu_memories())):
        return ""
    import torch

    if torch.cuda.is_available():
        return ""
    what = f"{count} NVIDIA {'card is' if count == 1 else 'cards are'} here and not used: torch {torch.__version__}"
    if torch.version.cuda is None:
        return f"{what} is built without CUDA; install one that has it (docs/install.md)"
    return (
        f"{what} cannot use {'it' if count == 1 else 'them'}, most often because the driver is older than its CUDA "
        f"{torch.version.cuda}: update the driver, or install a torch of an older CUDA (docs/install.md)"
    )


def driver_slots() -> Mapping[str, float]:
    """UUID of a card (without "GPU-") → bytes/s of its PCIe slot, as far as the driver's nvidia-smi tells."""
    return read_slots(_smi(",".join(QUERY)))


def _smi(query: str) -> str:
    """nvidia-smi's lines, one a GPU; nothing where it does not answer."""
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout


def read_slots(text: str) -> Mapping[str, float]:
    """nvidia-smi's lines of QUERY; those that say nothing of the slot ("[N/A]") are left out."""
    slots = {}
    for line in text.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == len(QUERY) and (slot := LINKS.get(f"pcie{fields[2]}x{fields[3]}")):
            slots[fields[0].removeprefix("GPU-")] = slot.usable
    return slots

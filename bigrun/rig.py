"""A rig: the memories that a model may be put into, described by the user ("8x24GB") or probed from this host."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from bigrun.cards import GB, TERA, Card, card
from bigrun.errors import CallError
from bigrun.sizes import format_size, parse_size

MOST_GPUS = 1024
RESERVE = 256 * 10**6  # kept back from a budget, or 1 % of it if that is less
# What an unnamed device is taken for, until it is measured. Every plan says that these were assumed.
ASSUMED_GPU = Card("", 0, 500 * GB, 100 * TERA, 50 * TERA, 12 * GB, "assumed")
ASSUMED_CPU = Card("", 0, 40 * GB, 0.6 * TERA, 0.1 * TERA, 0, "assumed")
ASSUMED_DISK = Card("", 0, 2 * GB, 0, 0, 0, "assumed")


@dataclass(frozen=True)
class Device:
    """One memory. `budget_bytes` is what bigrun may allocate there; `rates` its speeds and where they come from."""

    name: str  # cuda:N, cpu or disk
    kind: str  # gpu, cpu or disk
    budget_bytes: int
    rates: Card
    virtual: bool = False

    @property
    def reserve_bytes(self) -> int:
        return 0 if self.kind == "disk" else min(RESERVE, self.budget_bytes // 100)


@dataclass(frozen=True)
class Rig:
    """Devices in order of preference: GPUs, then the CPU, then the disk. `assumptions` are sentences for the plan."""

    devices: tuple[Device, ...]
    assumptions: tuple[str, ...] = ()

    def device(self, name: str) -> Device:
        return next(device for device in self.devices if device.name == name)

    @property
    def gpus(self) -> tuple[Device, ...]:
        return tuple(device for device in self.devices if device.kind == "gpu")


def make_rig(
    gpus: str | None = None,
    cpu: str | int | None = None,
    disk: str | int | None = None,
    max_memory: Mapping[int | str, str | int] | None = None,
    virtual: bool = False,
) -> Rig:
    """The rig of the options --gpus, --cpu, --disk, --max-memory, --virtual; what is left out is probed or empty."""
    if max_memory is not None:
        if gpus is not None or cpu is not None or disk is not None:
            raise CallError("--max-memory already names every device; leave out --gpus, --cpu and --disk")
        return _from_max_memory(max_memory, virtual)
    assumptions = []
    if gpus is None:
        if virtual:
            raise CallError("--virtual needs --gpus: say which GPUs to imagine, as in --gpus 2x60MB --virtual")
        found = probe_gpus()
        if found:
            assumptions.append(f"{len(found)} GPU(s) found here, their free memory less a reserve of 5 %")
    else:
        found = parse_gpus(gpus, virtual)
    if any(device.rates is ASSUMED_GPU for device in found):
        assumptions.append(f"a GPU known by its size alone reads {ASSUMED_GPU.bandwidth / GB:.0f} GB/s")
    if cpu is None:
        budget, reserve = available_memory()
        assumptions.append(
            f"cpu: {format_size(budget)}, this host's available memory less {format_size(reserve)} (--cpu sets it)"
        )
    else:
        budget = parse_size(cpu, "--cpu")
    devices = [*found, Device("cpu", "cpu", budget, ASSUMED_CPU)]
    if disk is not None:
        devices.append(Device("disk", "disk", parse_size(disk, "--disk"), ASSUMED_DISK))
    return Rig(tuple(devices), tuple(assumptions))


def parse_gpus(text: str, virtual: bool = False) -> tuple[Device, ...]:
    """GPUs of "8x24GB", "2x24GB,1x12GB", "24GB", "4xRTX3090", or "none"; CallError shows the forms."""
    if not isinstance(text, str):
        raise CallError(f"--gpus {text!r:.40}: write 8x24GB, 2x24GB,1x12GB or 4xRTX3090")
    if text.strip().lower() in ("", "0", "none"):
        return ()
    devices: list[Device] = []
    for item in text.split(","):
        match = re.fullmatch(r"\s*(?:([0-9]{1,6})\s*[xX*]\s*)?([A-Za-z0-9.][A-Za-z0-9. _-]{0,40}?)\s*", item)
        if match is None:
            raise CallError(f"--gpus {text!r}: {item!r} makes no sense; write 8x24GB, 2x24GB,1x12GB or 4xRTX3090")
        count = int(match[1] or 1)
        if not 1 <= count <= MOST_GPUS or len(devices) + count > MOST_GPUS:
            raise CallError(f"--gpus {text!r}: between 1 and {MOST_GPUS} GPUs can be planned for")
        if re.fullmatch(r"[0-9.]{1,6}", match[2]):
            raise CallError(f"--gpus {text!r}: {item!r} lacks a unit; write 8x24GB")
        if re.match(r"[0-9.]", match[2]):
            rates, budget = ASSUMED_GPU, parse_size(match[2], "--gpus")
        else:
            rates = card(match[2])
            budget = rates.memory_bytes
        if budget == 0:
            raise CallError(f"--gpus {text!r}: a GPU of no memory holds nothing; leave it out")
        devices += [Device(f"cuda:{len(devices) + i}", "gpu", budget, rates, virtual) for i in range(count)]
    return tuple(devices)


def _from_max_memory(budgets: Mapping[int | str, str | int], virtual: bool) -> Rig:
    """accelerate's max_memory: a device that is not named holds nothing."""
    if not isinstance(budgets, Mapping):
        raise CallError('--max-memory: give an object, such as {"0": "24GB", "cpu": "64GB"}')
    gpus: dict[int, Device] = {}
    seen: set[str] = set()
    cpu, disk = Device("cpu", "cpu", 0, ASSUMED_CPU), None
    for key, value in budgets.items():
        what = f"--max-memory {key!r:.40}" if isinstance(key, str) else "--max-memory"
        size = parse_size(value, what)
        name = key if isinstance(key, str) else f"cuda:{key}" if type(key) is int and 0 <= key < MOST_GPUS else ""
        name = f"cuda:{int(name)}" if re.fullmatch(r"[0-9]{1,4}", name, re.ASCII) else name
        if name in seen:
            raise CallError(f"{what}: {name} is named twice")
        seen.add(name)
        number = re.fullmatch(r"cuda:([0-9]{1,4})", name, re.ASCII)
        if name == "cpu":
            cpu = replace(cpu, budget_bytes=size)
        elif name == "disk":
            disk = Device("disk", "disk", size, ASSUMED_DISK)
        elif number and int(number[1]) < MOST_GPUS:
            gpus[int(number[1])] = Device(f"cuda:{int(number[1])}", "gpu", size, ASSUMED_GPU, virtual)
        else:
            raise CallError(f"{what}: not a device; the keys are GPU numbers, 'cpu' and 'disk'")
    cards = [gpus[number] for number in sorted(gpus) if gpus[number].budget_bytes]
    assumptions = [f"a GPU known by its size alone reads {ASSUMED_GPU.bandwidth / GB:.0f} GB/s"] if cards else []
    return Rig((*cards, cpu, *([disk] if disk else [])), tuple(assumptions))


def available_memory() -> tuple[int, int]:
    """(budget, reserve) in bytes: what this host, or its control group, has available, less a tenth (2 GB at most)."""
    import psutil

    available = psutil.virtual_memory().available
    limit = cgroup_headroom()
    if limit is not None:
        available = min(available, limit)
    reserve = min(2 * GB, available // 10)
    return available - reserve, reserve


def cgroup_headroom(root: str = "/sys/fs/cgroup") -> int | None:
    """Bytes that this process may still take under its control group (version 2) and those above it; None if unlimited.

    A group's file cache is counted as free: it goes when memory is asked for.
    """
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        path = next(line.split(":", 2)[2].strip() for line in lines if line.startswith("0:"))
    except (OSError, StopIteration, IndexError):
        return None
    rooms = []
    folder = Path(root + path)
    for group in (folder, *folder.parents):
        if not group.is_relative_to(root):
            break
        try:
            limit = (group / "memory.max").read_text().strip()
            used = int((group / "memory.current").read_text())
        except (OSError, ValueError):
            continue
        if limit.isdigit():
            rooms.append(int(limit) - max(0, used - _cached(group)))
    return max(0, min(rooms)) if rooms else None


def _cached(group: Path) -> int:
    """Bytes of a group's inactive file cache."""
    try:
        lines = (group / "memory.stat").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
    except (OSError, StopIteration, ValueError, IndexError):
        return 0


def probe_gpus() -> tuple[Device, ...]:
    """The CUDA devices of this host, with their free memory less 5 %. Without a driver torch is not even imported."""
    if not os.path.exists("/proc/driver/nvidia") and not os.path.exists("/dev/nvidia0"):
        return ()
    import torch

    if not torch.cuda.is_available():
        return ()
    devices = []
    for number in range(torch.cuda.device_count()):
        free, _ = torch.cuda.mem_get_info(number)
        devices.append(Device(f"cuda:{number}", "gpu", int(free * 0.95), ASSUMED_GPU))
    return tuple(devices)

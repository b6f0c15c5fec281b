"""A rig: the memories that a model may be put into, described by the user ("8x24GB") or probed from this host."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bigrun.cards import GB, TERA, card, find
from bigrun.errors import CallError
from bigrun.hostfile import Host, known_host
from bigrun.probe import available_memory, probe_gpus
from bigrun.rates import ASSUMED_CONVERSION, ASSUMED_CPU, ASSUMED_DISK, ASSUMED_GPU, Rates, gpu_rates
from bigrun.sizes import SIZE, format_size, parse_size

MOST_GPUS = 1024
RESERVE = 256 * 10**6  # kept back from a budget, or 1 % of it if that is less


@dataclass(frozen=True)
class Device:
    """One memory. `budget_bytes` is what bigrun may allocate there; `rates` what it does in a second (of a disk only
    `read`); `label` what the user called it: a card's name, or a size."""

    name: str  # cuda:N, cpu or disk
    kind: str  # gpu, cpu or disk
    budget_bytes: int
    rates: Rates
    virtual: bool = False
    label: str = ""

    @property
    def is_gpu(self) -> bool:
        """Whether GPU kernels compute here; on a virtual GPU the CPU's do."""
        return self.kind == "gpu" and not self.virtual

    @property
    def reserve_bytes(self) -> int:
        return 0 if self.kind == "disk" else min(RESERVE, self.budget_bytes // 100)


@dataclass(frozen=True)
class Rig:
    """Devices in order of preference: GPUs, then the CPU, then the disk. `assumptions` and `measured` are sentences for
    the plan; `load` is bytes/s of checkpoint that come from the disk and become int8."""

    devices: tuple[Device, ...]
    assumptions: tuple[str, ...] = ()
    measured: tuple[str, ...] = ()
    load: float = min(ASSUMED_DISK, ASSUMED_CONVERSION)

    def device(self, name: str) -> Device:
        return next(device for device in self.devices if device.name == name)

    @property
    def gpus(self) -> tuple[Device, ...]:
        return tuple(device for device in self.devices if device.kind == "gpu")

    @property
    def gpus_text(self) -> str:
        """The GPUs as --gpus takes them: 2xRTX3090,1x12GB."""
        runs: list[list] = []
        for gpu in self.gpus:
            label = gpu.label or format_size(gpu.budget_bytes).replace(" ", "")
            if runs and runs[-1][1] == label:
                runs[-1][0] += 1
            else:
                runs.append([1, label])
        return ",".join(f"{count}x{label}" for count, label in runs)

    def with_gpus(self, more: Sequence[Device]) -> "Rig":
        """The same rig with other GPUs, numbered anew."""
        named = tuple(replace(gpu, name=f"cuda:{i}") for i, gpu in enumerate(more))
        return replace(self, devices=(*named, *(device for device in self.devices if device.kind != "gpu")))

    def with_budget(self, name: str, nbytes: int) -> "Rig":
        """The same rig with another budget for one device."""
        changed = (replace(d, budget_bytes=nbytes) if d.name == name else d for d in self.devices)
        return replace(self, devices=tuple(changed))


def make_rig(
    gpus: str | None = None,
    cpu: str | int | None = None,
    disk: str | int | None = None,
    max_memory: Mapping[int | str, str | int] | None = None,
    virtual: bool = False,
    rig: str | Path | None = None,
    host: str | Path | None = None,
) -> Rig:
    """The rig of the options --gpus, --cpu, --disk, --max-memory, --virtual, --rig FILE and --host FILE; what is left out
    is probed or empty."""
    known, note = known_host(host)
    if rig is not None:
        if any(option is not None for option in (gpus, cpu, disk, max_memory)):
            raise CallError("--rig already describes every device; leave out --gpus, --cpu, --disk and --max-memory")
        if not isinstance(rig, str | Path):
            raise CallError(f"--rig: {rig!r:.40} is not the path of a file")
        from bigrun.rig_file import read_rig

        return _with_host(read_rig(Path(rig), virtual), known, note)
    if max_memory is not None:
        if gpus is not None or cpu is not None or disk is not None:
            raise CallError("--max-memory already names every device; leave out --gpus, --cpu and --disk")
        return _with_host(_from_max_memory(max_memory, virtual), known, note)
    assumptions = []
    if gpus is None:
        if virtual:
            raise CallError("--virtual needs --gpus: say which GPUs to imagine, as in --gpus 2x60MB --virtual")
        found = _probed()
        if found:
            assumptions.append(f"{len(found)} GPU(s) found here, their free memory less a reserve of 5 %")
    else:
        found = parse_gpus(gpus, virtual)
    if cpu is None:
        budget, reserve = available_memory()
        assumptions.append(
            f"cpu: {format_size(budget)}, this host's available memory less {format_size(reserve)} (--cpu sets it)"
        )
    else:
        budget = parse_size(cpu, "--cpu")
    devices = [*found, Device("cpu", "cpu", budget, ASSUMED_CPU)]
    if disk is not None:
        devices.append(Device("disk", "disk", parse_size(disk, "--disk"), disk_rates(ASSUMED_DISK)))
    return _with_host(Rig(tuple(devices), tuple(assumptions)), known, note)


def disk_rates(read: float, source: str = "assumed") -> Rates:
    """A disk's: it only reads."""
    return replace(ASSUMED_CPU, read=read, source=source)


def _probed() -> tuple[Device, ...]:
    devices = []
    for number, (budget, known, link) in enumerate(probe_gpus()):
        rates = gpu_rates(known) if known else ASSUMED_GPU
        rates = replace(rates, link=link or rates.link, source=f"probed: {rates.source}")
        devices.append(Device(f"cuda:{number}", "gpu", budget, rates, label=known.name if known else ""))
    return tuple(devices)


def _with_host(rig: Rig, host: Host | None, note: str) -> Rig:
    """The rig with what is known of its CPU, disk and links, and sentences that say which figures were assumed."""
    devices, assumed, measured = [], list(rig.assumptions), list(rig.measured)
    cpu = next((d.rates for d in rig.devices if d.kind == "cpu" and d.rates is not ASSUMED_CPU), None)
    if cpu is None and host is not None:
        measured.append(host.says)
    elif cpu is None:
        assumed.append(f"cpu: weights {ASSUMED_CPU.read / GB:.0f} GB/s, not measured: `bigrun info` measures this host")
    cpu = cpu or (host.rates() if host else ASSUMED_CPU)
    copies = dict(host.copies) if host else {}
    for device in rig.devices:
        rates = device.rates
        if device.kind == "cpu":
            rates = cpu
        elif device.kind == "gpu" and gpu_is_here(device, copies):
            rates = replace(rates, link=copies[device.name])
        elif device.kind == "disk" and rates.source == "assumed" and host and host.disk_bytes_per_s:
            rates = disk_rates(host.disk_bytes_per_s, f"measured on {host.measured_on}")
        devices.append(replace(device, rates=rates))
    if any(device.rates == ASSUMED_GPU for device in devices):
        assumed.append(f"a GPU known by its size alone reads {ASSUMED_GPU.read / GB:.0f} GB/s behind a 12 GB/s link")
    cards = [device for device in devices if device.kind == "gpu" and device.rates != ASSUMED_GPU]
    if any(device.rates.source.endswith("assumed") for device in cards):
        assumed.append(
            f"what is not known of a GPU is guessed: weights {ASSUMED_GPU.read / GB:.0f} GB/s, "
            f"{ASSUMED_GPU.int8 / TERA:.0f} T int8 multiply-adds/s, a 12 GB/s link"
        )
    if any(not device.rates.source.endswith(": assumed") for device in cards):
        assumed.append("kernels on a card reach 80 % of its bandwidth and 60 % of its rates as published")
    if any(device.virtual for device in devices):
        assumed.append("virtual GPUs are predicted as if they were there; here the CPU computes for them")
    disk = next((d for d in devices if d.kind == "disk"), None)
    if disk is not None:
        (assumed if disk.rates.source == "assumed" else measured).append(f"disk: {disk.rates.read / GB:.2g} GB/s")
    if note:
        assumed.append(note)
    read = disk.rates.read if disk is not None else (host and host.disk_bytes_per_s) or ASSUMED_DISK
    load = min(read, (host and host.conversion_bytes_per_s) or ASSUMED_CONVERSION)
    return Rig(tuple(devices), tuple(assumed), tuple(measured), load)


def gpu_is_here(device: Device, copies: Mapping[str, float]) -> bool:
    """Whether a link was measured for this device: a card that was described is not the one that was measured."""
    return device.rates.source.startswith("probed") and device.name in copies


def parse_gpus(text: str, virtual: bool = False) -> tuple[Device, ...]:
    """GPUs of "8x24GB", "2x24GB,1x12GB", "24GB", "4xRTX3090", "2x3090Ti", or "none"; CallError shows the forms."""
    if not isinstance(text, str):
        raise CallError(f"--gpus {text!r:.40}: write 8x24GB, 2x24GB,1x12GB or 4xRTX3090")
    if text.strip().lower() in ("", "0", "none"):
        return ()
    devices: list[Device] = []
    for item in text.split(","):
        match = re.fullmatch(r"\s*(?:([0-9]{1,6})\s*[xX*]\s*)?([A-Za-z0-9.][A-Za-z0-9. _-]{0,40}?)\s*", item)
        if match is None:
            raise CallError(
                f"--gpus {text!r:.60}: {item!r:.60} makes no sense; write 8x24GB, 2x24GB,1x12GB or 4xRTX3090"
            )
        count = int(match[1] or 1)
        if not 1 <= count <= MOST_GPUS or len(devices) + count > MOST_GPUS:
            raise CallError(f"--gpus {text!r:.60}: between 1 and {MOST_GPUS} GPUs can be planned for")
        name = match[2]
        sized = SIZE.fullmatch(name)
        known = None if sized or "." in name else find(name)
        if known is None and re.fullmatch(r"[0-9.]{1,6}", name):
            raise CallError(f"--gpus {text!r:.60}: {item!r} lacks a unit; write 8x24GB")
        if known is None and not sized and re.match(r"[A-Za-z]|[0-9]{4}[ _-]?[A-Za-z]", name):
            known = card(name)  # raises, and names the nearest
        budget = known.memory_bytes if known else parse_size(name, "--gpus")
        rates = gpu_rates(known) if known else ASSUMED_GPU
        if budget == 0:
            raise CallError(f"--gpus {text!r:.60}: a GPU of no memory holds nothing; leave it out")
        label = known.name if known else name
        devices += [Device(f"cuda:{len(devices) + i}", "gpu", budget, rates, virtual, label) for i in range(count)]
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
        if number := re.fullmatch(r"(?:cuda:)?([0-9]{1,4})", name, re.ASCII):
            name = f"cuda:{int(number[1])}"
        if name in seen:
            raise CallError(f"{what}: {name} is named twice")
        seen.add(name)
        if name == "cpu":
            cpu = replace(cpu, budget_bytes=size)
        elif name == "disk":
            disk = Device("disk", "disk", size, disk_rates(ASSUMED_DISK))
        elif number and int(number[1]) < MOST_GPUS:
            gpus[int(number[1])] = Device(name, "gpu", size, ASSUMED_GPU, virtual)
        else:
            raise CallError(f"{what}: not a device; the keys are GPU numbers, 'cpu' and 'disk'")
    cards = [gpus[number] for number in sorted(gpus) if gpus[number].budget_bytes]
    return Rig((*cards, cpu, *([disk] if disk else [])))

"""The rig of the user's options: described, read from a file, or probed from this host."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from bigrun.devices.cards import GB
from bigrun.devices.host_file import BUSY, Host, find_host
from bigrun.devices.notes import FOUND, GUESSED, SIZED, Note, disk_speed, reached
from bigrun.devices.probe import available_memory, probe_gpus, why_no_gpu
from bigrun.devices.rates import ASSUMED_CPU, ASSUMED_DISK, ASSUMED_GPU, ASSUMED_START, gpu_rates, low_rates
from bigrun.devices.rig import MOST_GPUS, Device, Loading, Rig, disk_rates, parse_gpus
from bigrun.devices.rig_file import read_rig
from bigrun.errors import CallError
from bigrun.sizes import format_size, parse_size
from bigrun_kernels.cpu.cgroups import usable_cpus


@dataclass(frozen=True)
class RigOptions:
    """What a user says of the devices; what is left out is probed or empty. Sizes are "24GB", "24GiB" or bytes."""

    gpus: str | None = None  # 8x24GB, 4xRTX3090, none; None: those that are there
    cpu: str | int | None = None  # host memory to use; None: what is available, less a reserve
    disk: str | int | None = None  # disk space for what fits nowhere else; None: none
    max_memory: Mapping[int | str, str | int] | None = None  # accelerate's form of the same budgets
    virtual: bool = False  # the GPUs named are imagined: budgets enforced, computed by the CPU
    rig: str | Path | None = None  # a file that describes the devices
    host: str | Path | None = None  # a file of what `bigrun info` measured; None: this host's own, if any

    @property
    def of_this_host(self) -> bool:
        """Whether the CPU is this host's: neither a file nor GPUs and memory, named together, describe another."""
        if self.rig is not None or self.virtual:
            return self.rig is None
        if isinstance(self.max_memory, Mapping):
            return all(name in ("cpu", "disk") for name in self.max_memory)
        no_gpus = self.gpus is None or str(self.gpus).strip().lower() in ("", "0", "none")
        return no_gpus or self.cpu is None


def make_rig(options: RigOptions) -> Rig:
    """The rig that the options describe. CallError where they contradict each other or make no sense."""
    gpus, cpu, disk, max_memory = options.gpus, options.cpu, options.disk, options.max_memory
    rig, virtual = options.rig, options.virtual
    host, note = find_host(options.host)
    cores = usable_cpus() if options.of_this_host else 0
    if rig is not None:
        if any(option is not None for option in (gpus, cpu, disk, max_memory)):
            raise CallError("--rig already describes every device; leave out --gpus, --cpu, --disk and --max-memory")
        if not isinstance(rig, str | Path):
            raise CallError(f"--rig: {rig!r:.40} is not the path of a file")
        return _with_host(read_rig(Path(rig), virtual), host, note, cores)
    if max_memory is not None:
        if gpus is not None or cpu is not None or disk is not None:
            raise CallError("--max-memory already names every device; leave out --gpus, --cpu and --disk")
        return _with_host(_from_max_memory(max_memory, virtual), host, note, cores)
    cpu_notes: tuple[Note, ...] = ()
    if gpus is None:
        if virtual:
            raise CallError("--virtual needs --gpus: say which GPUs to imagine, as in --gpus 2x60MB --virtual")
        gpu_devices = _probed()
        if not gpu_devices and (why := why_no_gpu()):
            cpu_notes = (Note("assumed", why, True),)
    else:
        gpu_devices = parse_gpus(gpus, virtual)
    if cpu is None:
        budget, reserve = available_memory()
        what = f"cpu: {format_size(budget)}, this host's available memory less {format_size(reserve)} (--cpu sets it)"
        cpu_notes = (*cpu_notes, Note("assumed", what, True))
    else:
        budget = parse_size(cpu, "--cpu")
    devices = [*gpu_devices, Device("cpu", "cpu", budget, ASSUMED_CPU, notes=cpu_notes)]
    if disk is not None:
        devices.append(Device("disk", "disk", parse_size(disk, "--disk"), disk_rates(ASSUMED_DISK)))
    return _with_host(Rig(tuple(devices)), host, note, cores)


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
            gpus[int(number[1])] = Device(name, "gpu", size, ASSUMED_GPU, virtual, notes=(SIZED,))
        else:
            raise CallError(f"{what}: not a device; the keys are GPU numbers, 'cpu' and 'disk'")
    cards = [gpus[number] for number in sorted(gpus) if gpus[number].budget_bytes]
    return Rig((*cards, cpu, *([disk] if disk else [])))


def _probed() -> tuple[Device, ...]:
    devices = []
    for number, (budget, card, link) in enumerate(probe_gpus()):
        rates = gpu_rates(card) if card else ASSUMED_GPU
        rates = replace(rates, link=link or rates.link, source=f"probed: {rates.source}")
        name, notes = card.name if card else "", (FOUND, reached("published") if card else GUESSED)
        devices.append(Device(f"cuda:{number}", "gpu", budget, rates, label=name, card=name, notes=notes))
    return tuple(devices)


def _with_host(rig: Rig, host: Host | None, note: str, cores: int = 0) -> Rig:
    """The rig with what is known of its CPU, disk and links, and sentences that say which figures were assumed. `cores`: this
    host's, where it is its CPU."""
    devices = [_known(device, host, cores) for device in rig.devices]
    doubt = ""
    if any(device.kind == "cpu" and device.rates is ASSUMED_CPU for device in rig.devices):
        unmeasured = host is None or (host.assumes_read and not host.learned)
        doubt = "not measured" if unmeasured else BUSY if host and host.busy_roof else ""
    disk = next((d for d in devices if d.kind == "disk"), None)
    read = disk.rates.read if disk is not None else (host and host.disk_bytes_per_s) or ASSUMED_DISK
    loading = Loading((host and host.start_seconds) or ASSUMED_START, read, host.loads if host else ())
    return Rig(tuple(devices), (Note("assumed", note),) if note else (), loading, doubt)


def _known(device: Device, host: Host | None, cores: int) -> Device:
    """A device with the rates that were measured of it, and what they rest on; what a file gives stays."""
    rates, more = device.rates, None
    if device.kind == "cpu" and rates is ASSUMED_CPU:
        rates = host.rates() if host else low_rates(cores) if cores else rates
        of = f" on {cores} cores" if cores else ""
        what = f"cpu: weights {rates.read / GB:.0f} GB/s{of}, not measured: `bigrun info` measures this host"
        kind = "learned" if host and host.learned else "measured"
        more = Note(kind, host.says) if host else Note("assumed", what)
    elif device.kind == "gpu" and host and gpu_is_here(device, dict(host.copies)):
        rates = replace(rates, link=dict(host.copies)[device.name])
        more = Note("measured", f"{device.name}: copies at {rates.link / GB:.3g} GB/s")
    elif device.kind == "disk":
        measured = rates.source == "assumed" and host and host.disk_bytes_per_s
        if host and measured:
            rates = disk_rates(host.disk_bytes_per_s, f"measured on {host.measured_on}")
        more = disk_speed(rates.read, "measured" if measured else rates.source)
    return replace(device, rates=rates, notes=(*device.notes, more) if more else device.notes)


def gpu_is_here(device: Device, copies: Mapping[str, float]) -> bool:
    """Whether a link was measured for this device: a card that was described is not the one that was measured."""
    return device.rates.source.startswith("probed") and device.name in copies

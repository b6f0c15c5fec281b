"""A rig: the memories that a model may be put into, described by the user ("8x24GB") or probed from this host."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from bigrun.devices.cards import card, find
from bigrun.devices.notes import SIZED, VIRTUAL, Note, card_memory, reached
from bigrun.devices.rates import (
    ASSUMED_CPU,
    ASSUMED_DISK,
    ASSUMED_GPU,
    ASSUMED_LOADS,
    ASSUMED_START,
    Rates,
    gpu_rates,
)  # fmt: skip
from bigrun.errors import CallError
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
    card: str = ""  # its name in the table of cards
    notes: tuple[Note, ...] = field(default=(), compare=False)  # what its figures rest on

    @property
    def is_gpu(self) -> bool:
        """Whether GPU kernels compute here; on a virtual GPU the CPU's do."""
        return self.kind == "gpu" and not self.virtual

    @property
    def reserve_bytes(self) -> int:
        return 0 if self.kind == "disk" else min(RESERVE, self.budget_bytes // 100)


@dataclass(frozen=True)
class Loading:
    """What a load takes: `start` seconds whatever the model, then its bytes, which come from the disk at `disk` bytes/s and
    become stored parts at a rate by their form (`rates`: form → bytes/s; what is not in it is assumed)."""

    start: float = ASSUMED_START
    disk: float = ASSUMED_DISK
    rates: tuple[tuple[str, float], ...] = ()

    def seconds(self, nbytes: int, form: str) -> float:
        """Of a checkpoint of so many bytes; `form`: 16bit, float32, float8, gguf, or int8 for a conversion."""
        return self.start + nbytes / min(self.disk, dict(self.rates).get(form, ASSUMED_LOADS[form]))


@dataclass(frozen=True)
class Rig:
    """Devices in order of preference: GPUs, then the CPU, then the disk. `notes` are about none of them alone; `doubt` says why
    what the CPU computes may be predicted wrong: "not measured", "measured in a busy minute"."""

    devices: tuple[Device, ...]
    notes: tuple[Note, ...] = ()
    loading: Loading = Loading()
    doubt: str = ""

    def said(self, kind: str, names: Collection[str] | None = None) -> tuple[str, ...]:
        """What figures of a kind (given, measured, learned, assumed) rest on, each sentence once: of the devices of these
        names, or of all."""
        devices = [device for device in self.devices if names is None or device.name in names]
        notes = [note for device in devices for note in device.notes]
        notes += [VIRTUAL] if any(device.virtual for device in devices) else []
        return tuple(dict.fromkeys(note.text for note in (*notes, *self.notes) if note.kind == kind))

    @property
    def assumptions(self) -> tuple[str, ...]:
        return self.said("assumed")

    @property
    def measured(self) -> tuple[str, ...]:
        return self.said("measured")

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
        changed = (
            replace(d, budget_bytes=nbytes, notes=tuple(note for note in d.notes if not note.of_memory))
            if d.name == name
            else d
            for d in self.devices
        )
        return replace(self, devices=tuple(changed))


def disk_rates(read: float, source: str = "assumed") -> Rates:
    """A disk's: it only reads."""
    return replace(ASSUMED_CPU, read=read, source=source)


def parse_gpus(text: str, virtual: bool = False, option: str = "--gpus") -> tuple[Device, ...]:
    """GPUs of "8x24GB", "2x24GB,1x12GB", "24GB", "4xRTX3090", "2x3090Ti", or "none"; CallError names the option and shows the
    forms."""
    if not isinstance(text, str):
        raise CallError(f"{option} {text!r:.40}: write 8x24GB, 2x24GB,1x12GB or 4xRTX3090")
    if text.strip().lower() in ("", "0", "none"):
        return ()
    devices: list[Device] = []
    for item in text.split(","):
        match = re.fullmatch(r"\s*(?:([0-9]{1,6})\s*[xX*]\s*)?([A-Za-z0-9.][A-Za-z0-9. _-]{0,40}?)\s*", item)
        if match is None:
            raise CallError(
                f"{option} {text!r:.60}: {item!r:.60} makes no sense; write 8x24GB, 2x24GB,1x12GB or 4xRTX3090"
            )
        count = int(match[1] or 1)
        if not 1 <= count <= MOST_GPUS or len(devices) + count > MOST_GPUS:
            raise CallError(f"{option} {text!r:.60}: between 1 and {MOST_GPUS} GPUs can be planned for")
        name = match[2]
        sized = SIZE.fullmatch(name)
        known = None if sized or "." in name else find(name)
        if known is None and re.fullmatch(r"[0-9.]{1,6}", name):
            raise CallError(
                f"{option} {text!r:.60}: {name} lacks a unit; write {item.strip()}GB, or the name of a card"
            )
        if known is None and not sized and re.match(r"[A-Za-z]|[0-9]{4}[ _-]?[A-Za-z]", name):
            known = card(name, option)  # raises, and names the nearest
        budget = known.usable_bytes if known else parse_size(name, option)
        rates = gpu_rates(known) if known else ASSUMED_GPU
        if budget == 0:
            raise CallError(f"{option} {text!r:.60}: a GPU of no memory holds nothing; leave it out")
        label = known.name if known else name
        notes = (card_memory(known), reached("published")) if known else (SIZED,)
        devices += [
            Device(f"cuda:{len(devices) + i}", "gpu", budget, rates, virtual, label, known.name if known else "", notes)
            for i in range(count)
        ]
    return tuple(devices)

"""What the figures of a rig rest on, in words: given by the user, measured or learned on this host, or assumed."""

from dataclasses import dataclass

from bigrun.devices.cards import GB, TERA, Card
from bigrun.devices.rates import ASSUMED_GPU, GPU_COMPUTE, GPU_READ
from bigrun.sizes import format_size

KINDS = ("given", "measured", "learned", "assumed")


@dataclass(frozen=True)
class Note:
    """A sentence about a figure of a device; `kind` is one of KINDS. `of_memory`: about its budget, not its speed."""

    kind: str
    text: str
    of_memory: bool = False


SIZED = Note("assumed", f"a GPU known by its size alone reads {ASSUMED_GPU.read / GB:.0f} GB/s behind a 12 GB/s link")
GUESSED = Note(
    "assumed",
    f"what is not known of a GPU is guessed: weights {ASSUMED_GPU.read / GB:.0f} GB/s, "
    f"{ASSUMED_GPU.int8 / TERA:.0f} T int8 multiply-adds/s, a 12 GB/s link",
)
VIRTUAL = Note("assumed", "virtual GPUs are predicted as if they were there; here the CPU computes for them")
FOUND = Note("assumed", "of a GPU found here, its free memory less a reserve of 5 %", True)


def reached(figures: str) -> Note:
    """`figures`: "published" or "given"."""
    shares = f"{GPU_READ:.0%} of its bandwidth and {GPU_COMPUTE:.0%} of its rates".replace("%", " %")
    return Note("assumed", f"kernels on a card reach {shares} as {figures}")


def card_memory(card: Card) -> Note:
    """What is left of a card of the table that nobody has looked at."""
    whole, left = format_size(card.memory_bytes), format_size(card.usable_bytes)
    text = f"{card.name}: {left} of its {whole}, which leaves the rest to the driver and a desktop"
    return Note("assumed", text, True)


def disk_speed(read: float, kind: str) -> Note:
    return Note(kind, f"disk: {read / GB:.2g} GB/s")

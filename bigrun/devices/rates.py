"""The speed of a device as the cost model needs it: rates that kernels reach, not a maker's figures.

A card's published figures are roofs. Until a card has been measured, kernels are taken to reach the shares below of
them: what good kernels reach on cards of several generations (docs/planning.md). A CPU's figures are those that this
host measured of itself (`bigrun info`) or learned from its own runs (`bigrun bench --learn`), where there are any.
"""

import math
from dataclasses import dataclass, replace

from bigrun.devices.cards import GB, TERA, Card

GPU_READ, GPU_CACHE, GPU_COMPUTE, GPU_ATTENTION = 0.8, 0.7, 0.6, 0.2  # of bandwidth (the first two) and of the rates
GPU_BLOCK = 40e-6  # seconds a block and step: the launches of a captured graph
GPU_ELEMENTS_BYTES = 8  # an entry that a norm, quantiser or activation passes is read and written in 32 bits
CPU_READ, CPU_CACHE, CPU_COMPUTE, CPU_ATTENTION = 0.85, 0.55, 0.85, 0.25
CPU_ELEMENTS = 0.4  # entries a second that pass a norm, quantiser or activation, for each byte a second that is read
CPU_BLOCK = 60e-6


@dataclass(frozen=True)
class Rates:
    """What a device does in a second.

    `read` bytes of weights, `cache` bytes of keys and values, `int8` and `wide` (16- and 32-bit weights) and `attention`
    multiply-adds, `elements` entries through norms, quantisers and activations, `link` bytes to or from host memory;
    `block` seconds that a block takes whatever its size. `overlap`: how reading and arithmetic go together, as the
    exponent p of (a^p + b^p)^(1/p): 1 one after the other, infinity fully at once.
    """

    read: float
    cache: float
    int8: float
    wide: float
    attention: float
    elements: float
    block: float
    link: float
    overlap: float
    source: str

    def together(self, reading: float, computing: float) -> float:
        """Seconds of both."""
        longer, shorter = max(reading, computing), min(reading, computing)
        if math.isinf(self.overlap) or not shorter:
            return longer
        return float(longer * (1 + (shorter / longer) ** self.overlap) ** (1 / self.overlap))


def gpu_rates(card: Card) -> Rates:
    """A card's, from its published figures (bytes/s, operations/s; a multiply-add is two operations)."""
    return Rates(
        read=card.bandwidth * GPU_READ,
        cache=card.bandwidth * GPU_CACHE,
        int8=card.int8 / 2 * GPU_COMPUTE,
        wide=card.fp16 / 2 * GPU_COMPUTE,
        attention=card.fp16 / 2 * GPU_ATTENTION,
        elements=card.bandwidth / GPU_ELEMENTS_BYTES,
        block=GPU_BLOCK,
        link=card.link,
        overlap=math.inf,
        source=card.source,
    )


def cpu_rates(read: float, int8: float, wide: float, source: str) -> Rates:
    """A CPU's, from its roofs: bytes/s that it reads, multiply-adds/s with int8 and with 16-bit weights.

    In decode it waits for memory and computes a little meanwhile: measured steps of one to sixteen sequences lie near
    the root of the sum of squares of both (docs/performance.md has the steps).
    """
    return Rates(
        read=read * CPU_READ,
        cache=read * CPU_CACHE,
        int8=int8 * CPU_COMPUTE,
        wide=wide * CPU_COMPUTE,
        attention=int8 * CPU_ATTENTION,
        elements=read * CPU_ELEMENTS,
        block=CPU_BLOCK,
        link=math.inf,
        overlap=2.0,
        source=source,
    )


# What an unnamed device is taken for, until it is measured. Every plan says that these were assumed.
UNKNOWN_CARD = Card("", 0, 500 * GB, 100 * TERA, 50 * TERA, 12 * GB, "assumed")
ASSUMED_GPU = gpu_rates(UNKNOWN_CARD)
ASSUMED_ROOFS = (40 * GB, 0.3 * TERA, 0.05 * TERA)  # of a desktop's CPU: bytes/s, int8 and 16-bit multiply-adds/s
ASSUMED_CPU = cpu_rates(*ASSUMED_ROOFS, "assumed")
ASSUMED_DISK = 2.0 * GB  # bytes/s read
ASSUMED_START = 1.5  # seconds of a load whatever the model's size: kernels, headers, the executor
# Bytes/s of a checkpoint that become stored parts, by its form; "int8" is a conversion, which is mapped and summed up.
ASSUMED_LOADS = {"16bit": 1.0 * GB, "float32": 1.0 * GB, "float8": 0.5 * GB, "gguf": 0.08 * GB, "int8": 4.0 * GB}
# A CPU of this host that was not measured is taken for no more than this a core: most are faster.
LOW = (10 * GB, 0.03 * TERA, 0.006 * TERA)
FURTHEST = (1 / 3, 2.0)  # a learned rate in those of the measured roofs: kernels are slower, a roof was taken too low
FURTHEST_BLOCK = (0.1, 50.0)  # the same of a block's fixed cost


def low_roofs(cores: int) -> tuple[float, float, float]:
    """Roofs of a CPU of which only the cores are known: an assumption that errs low, and no higher than for a desktop's."""
    read, int8, wide = (min(most, cores * each) for most, each in zip(ASSUMED_ROOFS, LOW, strict=True))
    return read, int8, wide


def low_rates(cores: int) -> Rates:
    """Rates of a CPU of which only the cores are known."""
    return cpu_rates(*low_roofs(cores), "assumed")


def bounded(learned: Rates, roofs: Rates) -> Rates:
    """Learned rates, none further from those of the roofs than runs of any size make believable."""
    near = {}
    for name in ("read", "cache", "int8", "wide", "attention", "elements", "block"):
        least, most = FURTHEST_BLOCK if name == "block" else FURTHEST
        near[name] = min(max(getattr(learned, name), getattr(roofs, name) * least), getattr(roofs, name) * most)
    return replace(learned, **near)

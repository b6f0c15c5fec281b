"""Graphics cards by name: memory and rates as their makers publish them, with the document each figure is from.

`int8` and `fp16` are dense tensor-core rates in operations a second (a multiply-add is two), fp16 with float32 sums:
never the rates "with sparsity", and on GeForce cards half of what they reach with 16-bit sums. A card without int8
tensor cores (Pascal, Volta) has the rate of its four-way dot product there, and its source says so.
"""

import difflib
import re
from dataclasses import dataclass

from bigrun.devices.card_table import AMD, NVIDIA, WITH_ECC, Row
from bigrun.devices.links import LINKS
from bigrun.errors import CallError

GB, GIB = 10**9, 2**30
TERA = 10**12
# What a driver and a desktop take of a card, so that a plan for a card that is not here fits the one that is. Of 24 GiB
# torch finds 23.64 to 23.70 on an RTX 3090 and 4090, of 10 GiB 9.78, of 80 GiB 79.1 (their out-of-memory messages); this
# process's own context takes 0.3 to 0.5 GiB, and a desktop a few hundred MB.
RESERVE_SHARE, RESERVE_BYTES = 0.02, GIB // 2


@dataclass(frozen=True)
class Card:
    """A card as its maker publishes it. `memory_bytes` is all of its memory."""

    name: str
    memory_bytes: int
    bandwidth: float  # bytes/s
    int8: float  # operations/s
    fp16: float  # operations/s
    link: float  # bytes/s to the host, one way, that copies reach in the slot it is made for
    source: str
    maker: str = "NVIDIA"

    @property
    def refusal(self) -> str:
        """Why no run computes on it; "" where one does."""
        return "" if self.maker == "NVIDIA" else f"cards by {self.maker} can be planned but not run yet"

    @property
    def usable_bytes(self) -> int:
        """What a run can take of it: without error correction, and a reserve for the driver and a desktop."""
        memory = self.memory_bytes * 15 // 16 if self.name in WITH_ECC else self.memory_bytes
        return int(memory * (1 - RESERVE_SHARE)) - RESERVE_BYTES


def _cards(rows: tuple[Row, ...], maker: str) -> dict[str, Card]:
    return {
        name.upper(): Card(name, gib * GIB, bandwidth * GB, int8 * TERA, fp16 * TERA, LINKS[slot].usable, source, maker)
        for name, gib, bandwidth, int8, fp16, slot, source in rows
    }


CARDS = {**_cards(NVIDIA, "NVIDIA"), **_cards(AMD, "AMD")}

# Cards by their name without its memory and signs: A100-PCIE-80GB is found under A100PCIE.
_BY_NAME: dict[str, list[Card]] = {}
for _each in CARDS.values():
    _BY_NAME.setdefault(re.sub(r"-[0-9]+GB$", "", _each.name.upper()).replace("-", ""), []).append(_each)
# What drivers and shops add to a name. The lists after the first are left out only where the name is unknown with them:
# a Quadro RTX 6000 is not an RTX 6000 Ada, and some cards are slower as PCIe boards. "Laptop" stays: those are others.
_ALWAYS_LEFT_OUT = {"NVIDIA", "AMD", "RADEON", "INSTINCT", "GENERATION", "EDITION", "WORKSTATION", "BLACKWELL", "GPU"}
_PREFIXES = ("", "RTX", "GTX", "RX", "PRO")
_LINES = {"GEFORCE", "QUADRO", "TESLA"}
_BOARDS = _LINES | {"PCIE", "SXM", "SXM2", "SXM3", "SXM4", "SXM5", "HBM2", "HBM2E", "HBM3", "HBM3E"}
_SIZE = re.compile(r"([0-9]{1,4})GI?B?", re.ASCII)


def find(name: str, memory_bytes: int = 0) -> Card | None:
    """The card of that name, however a person, torch or nvidia-smi spells it; None if the table lacks it.

    Drivers leave out which of several memories a card has: with `memory_bytes`, the nearest is taken.
    """
    words = _words(name)
    sizes = [int(match[1]) * GIB for word in words if (match := _SIZE.fullmatch(word))]
    words = [word for word in words if not _SIZE.fullmatch(word)]
    for left_out in (set(), _LINES, _BOARDS):
        key = "".join(word for word in words if word not in left_out)
        for prefix in _PREFIXES:
            cards = [
                each for each in _BY_NAME.get(prefix + key, ()) if all(size == each.memory_bytes for size in sizes)
            ]
            if cards and memory_bytes:
                return min(cards, key=lambda each: abs(each.memory_bytes - memory_bytes))
            if cards:
                return cards[0]
    return None


def card(name: str, where: str = "--gpus") -> Card:
    """The card of that name, however it is spelt (RTX3090, "rtx 3090", 3090); CallError names `where` it was asked for, and
    the nearest ones."""
    if entry := find(name):
        return entry
    key = "".join(word for word in _words(name) if word not in _BOARDS and not _SIZE.fullmatch(word))
    key = f"RTX{key}" if key[:1].isdigit() else key
    near = [known for known in _BY_NAME if len(key) > 2 and key in known]
    near += [known for known in difflib.get_close_matches(key, _BY_NAME, n=3) if known not in near]
    names = ", ".join(each.name for known in near[:4] for each in _BY_NAME[known])
    which = f"the nearest are {names}" if names else f"the table has RTX3090, RTX4090 and {len(CARDS) - 2} more"
    raise CallError(f"{where}: no card {name!r}; {which}; or give its memory (24GB)")


def _words(name: str) -> list[str]:
    text = re.sub(r"(?<=[0-9])\s+(?=GI?B\b)", "", name.upper()).replace("MOBILE", "LAPTOP")
    return [word for word in re.split(r"[^A-Z0-9]+", text) if word and word not in _ALWAYS_LEFT_OUT]

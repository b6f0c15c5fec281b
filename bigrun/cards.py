"""Graphics cards by name: memory and rates as their makers publish them, with the document each figure is from.

`int8` and `fp16` are dense tensor-core rates in operations a second (a multiply-add is two), fp16 with float32 sums.
"""

from dataclasses import dataclass

from bigrun.errors import CallError

GB = 10**9
TERA = 10**12


@dataclass(frozen=True)
class Card:
    name: str
    memory_bytes: int
    bandwidth: float  # bytes/s
    int8: float  # operations/s
    fp16: float  # operations/s
    link: float  # bytes/s to the host, one way, of the slot it is made for
    source: str


def _card(name: str, gb: int, bandwidth: float, int8: float, fp16: float, link: float, source: str) -> Card:
    return Card(name, gb * GB, bandwidth * GB, int8 * TERA, fp16 * TERA, link * GB, source)


AMPERE = "NVIDIA Ampere GA102 GPU architecture whitepaper, appendix A"
ADA = "NVIDIA Ada GPU architecture whitepaper, appendix A"
TURING = "NVIDIA Turing GPU architecture whitepaper, table 1"
CARDS = {
    card.name.upper(): card
    for card in (
        _card(
            "RTX3060",
            12,
            360,
            102,
            25.5,
            25,
            "NVIDIA GeForce RTX 3060 product page; rates from its tensor cores and boost clock",
        ),
        _card("RTX3090", 24, 936, 284, 71, 25, AMPERE),
        _card("RTX4090", 24, 1008, 660.6, 165.2, 25, ADA),
        _card("TITANRTX", 24, 672, 261, 65.2, 12, TURING),
        _card("T4", 16, 320, 130, 65, 12, "NVIDIA T4 datasheet"),
        _card("A100-80GB", 80, 2039, 624, 312, 25, "NVIDIA A100 datasheet, 80 GB SXM"),
        _card("H100-80GB", 80, 3350, 1979, 989.5, 50, "NVIDIA H100 datasheet, SXM, without sparsity"),
    )
}


def card(name: str) -> Card:
    """The card of that name, however it is spelt (RTX3090, "rtx 3090", rtx-3090); CallError lists the known ones."""
    key = name.upper().replace(" ", "").replace("_", "-")
    for candidate in (key, key.replace("-", "")):
        if candidate in CARDS:
            return CARDS[candidate]
    raise CallError(f"--gpus: no card {name!r} in the table; give its memory (24GB), or one of {', '.join(CARDS)}")

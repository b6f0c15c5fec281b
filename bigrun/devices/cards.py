"""Graphics cards by name: memory and rates as their makers publish them, with the document each figure is from.

`int8` and `fp16` are dense tensor-core rates in operations a second (a multiply-add is two), fp16 with float32 sums:
never the rates "with sparsity", and on GeForce cards half of what they reach with 16-bit sums. A card without int8
tensor cores (Pascal, Volta) has the rate of its four-way dot product there, and its source says so.
"""

import difflib
import re
from dataclasses import dataclass

from bigrun.devices.links import LINKS
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
    link: float  # bytes/s to the host, one way, that copies reach in the slot it is made for
    source: str


def _card(name: str, gb: int, bandwidth: float, int8: float, fp16: float, slot: str, source: str) -> Card:
    return Card(name, gb * GB, bandwidth * GB, int8 * TERA, fp16 * TERA, LINKS[slot].usable, source)


TURING = "NVIDIA Turing GPU architecture whitepaper, table 1 and appendices, reference clocks"
AMPERE = "NVIDIA Ampere GA102 GPU architecture whitepaper V2, tables of the GeForce cards"
AMPERE_PRO = "NVIDIA Ampere GA102 GPU architecture whitepaper V2, appendix C"
ADA = "NVIDIA Ada GPU architecture whitepaper V2, appendix A"
BLACKWELL = "NVIDIA RTX Blackwell GPU architecture whitepaper, appendices"
# Where only cores and clocks are published. From Turing to Blackwell a multiprocessor's tensor cores do 2048 int8
# operations a clock, and 1024 with fp16, or 512 where GeForce cards sum in float32 (tests/test_cards.py has the clocks).
GEFORCE = "NVIDIA GeForce product page; rates computed: multiprocessors x boost clock x 2048 (int8), 512 (fp16)"
PRO = "NVIDIA product page; rates computed: multiprocessors x boost clock x 2048 (int8), 1024 (fp16)"
TITAN = "NVIDIA TITAN RTX product page, 130 tensor TFLOPS, which it reaches with float32 sums; int8 is twice that"
# Datasheets that print one tensor rate only, and that with sparsity.
RTX_AMPERE = "NVIDIA RTX datasheet; its tensor rate is fp16 with sparsity: fp16 is half of it, int8 twice that"
RTX_ADA = "NVIDIA RTX datasheet; its tensor rate is FP8 with sparsity: int8 is half of it, fp16 a quarter"
GTX1080TI = "NVIDIA GTX 1080 Ti product page; no tensor cores: int8 is dp4a, fp16 is fp32, cores x boost clock"
P40 = "NVIDIA Tesla P40 datasheet; no tensor cores: int8 is dp4a, fp16 is fp32"
V100 = "NVIDIA V100 datasheet, PCIe; no int8 tensor cores: int8 is dp4a, cores x boost clock"
V100_SXM2 = "NVIDIA V100 datasheet, SXM2; no int8 tensor cores: int8 is dp4a, cores x boost clock"
H100_PCIE, H100_NVL = (
    "NVIDIA H100 datasheet, PCIe, halves of the rates with sparsity",
    "NVIDIA H100 datasheet, NVL, halved",
)
# Memory in GB as sold (10^9 here, which errs on the safe side), GB/s, int8 and fp16 in 10^12 operations/s, slot, source.
# Of cards of one name and several memories, the first is what the bare name means.
# fmt: off
_TABLE: tuple[tuple[str, int, float, float, float, str, str], ...] = (
    ("GTX1080Ti",         11,  484,   45.4,  11.3, "pcie3x16", GTX1080TI),
    ("RTX2060-6GB",        6,  336,    103,  25.8, "pcie3x16", GEFORCE),
    ("RTX2060-12GB",      12,  336,    115,  28.7, "pcie3x16", GEFORCE),
    ("RTX2060Super",       8,  448,    115,  28.7, "pcie3x16", GEFORCE),
    ("RTX2070",            8,  448,  119.4,  29.9, "pcie3x16", TURING),
    ("RTX2070Super",       8,  448,    145,  36.2, "pcie3x16", GEFORCE),
    ("RTX2080",            8,  448,  161.1,  40.3, "pcie3x16", TURING),
    ("RTX2080Super",       8,  496,    178,  44.6, "pcie3x16", GEFORCE),
    ("RTX2080Ti",         11,  616,  215.2,  53.8, "pcie3x16", TURING),
    ("TITANRTX",          24,  672,    261, 130.5, "pcie3x16", TITAN),
    ("QuadroRTX6000",     24,  672,    261, 130.5, "pcie3x16", TURING),
    ("RTX8000",           48,  672,    261, 130.5, "pcie3x16", "NVIDIA Quadro RTX 8000 datasheet"),
    ("RTX3050-8GB",        8,  224,   72.8,  18.2,  "pcie4x8", GEFORCE),
    ("RTX3060-12GB",      12,  360,    102,  25.5, "pcie4x16", GEFORCE),
    ("RTX3060-8GB",        8,  240,    102,  25.5, "pcie4x16", GEFORCE),
    ("RTX3060Ti",          8,  448,    130,  32.4, "pcie4x16", GEFORCE),
    ("RTX3070",            8,  448,  162.6,  40.6, "pcie4x16", AMPERE),
    ("RTX3070Ti",          8,  608,    174,  43.5, "pcie4x16", GEFORCE),
    ("RTX3080-10GB",      10,  760,    238,  59.5, "pcie4x16", AMPERE),
    ("RTX3080-12GB",      12,  912,    245,  61.3, "pcie4x16", GEFORCE),
    ("RTX3080Ti",         12,  912,    273,  68.2, "pcie4x16", GEFORCE),
    ("RTX3090",           24,  936,    284,    71, "pcie4x16", AMPERE),
    ("RTX3090Ti",         24, 1008,    320,    80, "pcie4x16", ADA),
    ("RTX4060",            8,  272,    121,  30.2,  "pcie4x8", GEFORCE),
    ("RTX4060Ti-8GB",      8,  288,    177,  44.1,  "pcie4x8", GEFORCE),
    ("RTX4060Ti-16GB",    16,  288,    177,  44.1,  "pcie4x8", GEFORCE),
    ("RTX4070",           12,  504,    233,  58.3, "pcie4x16", GEFORCE),
    ("RTX4070Super",      12,  504,    284,    71, "pcie4x16", GEFORCE),
    ("RTX4070Ti",         12,  504,    321,  80.2, "pcie4x16", GEFORCE),
    ("RTX4070TiSuper",    16,  672,    353,  88.2, "pcie4x16", GEFORCE),
    ("RTX4080",           16, 716.8, 389.9,  97.5, "pcie4x16", ADA),
    ("RTX4080Super",      16,  736,    418,   104, "pcie4x16", GEFORCE),
    ("RTX4090",           24, 1008,  660.6, 165.2, "pcie4x16", ADA),
    ("RTX5060",            8,  448,    153,  38.4,  "pcie5x8", GEFORCE),
    ("RTX5060Ti-16GB",    16,  448,    190,  47.4,  "pcie5x8", GEFORCE),
    ("RTX5060Ti-8GB",      8,  448,    190,  47.4,  "pcie5x8", GEFORCE),
    ("RTX5070",           12,  672,  246.9,  61.7, "pcie5x16", BLACKWELL),
    ("RTX5070Ti",         16,  896,  351.5,  87.9, "pcie5x16", BLACKWELL),
    ("RTX5080",           16,  960,  450.2, 112.6, "pcie5x16", BLACKWELL),
    ("RTX5090",           32, 1792,    838, 209.5, "pcie5x16", BLACKWELL),
    ("RTXA2000-12GB",     12,  288,   63.9,  31.9, "pcie4x16", RTX_AMPERE),
    ("RTXA2000-6GB",       6,  288,   63.9,  31.9, "pcie4x16", RTX_AMPERE),
    ("RTXA4000",          16,  448,  153.4,  76.7, "pcie4x16", RTX_AMPERE),
    ("RTXA4500",          20,  640,  189.2,  94.6, "pcie4x16", RTX_AMPERE),
    ("RTXA5000",          24,  768,  222.2, 111.1, "pcie4x16", RTX_AMPERE),
    ("RTXA6000",          48,  768,  309.7, 154.8, "pcie4x16", AMPERE_PRO),
    ("RTX4000SFFAda",     20,  280,  153.4,  76.7, "pcie4x16", RTX_ADA),
    ("RTX4000Ada",        20,  360,  163.8,  81.9, "pcie4x16", RTX_ADA),
    ("RTX4500Ada",        24,  432,    317, 158.5, "pcie4x16", RTX_ADA),
    ("RTX5000Ada",        32,  576,  522.2, 261.1, "pcie4x16", RTX_ADA),
    ("RTX6000Ada",        48,  960,  728.5, 364.2, "pcie4x16", RTX_ADA),
    ("RTXPRO6000",        96, 1792,   1008,   504, "pcie5x16", PRO),
    ("RTXPRO6000MaxQ",    96, 1792,    878,   439, "pcie5x16", PRO),
    ("P40",               24,  346,     47,  11.8, "pcie3x16", P40),
    ("V100-16GB",         16,  900,   56.5,   112, "pcie3x16", V100),
    ("V100-32GB",         32,  900,   56.5,   112, "pcie3x16", V100),
    ("V100-SXM2-16GB",    16,  900,   62.7,   125, "pcie3x16", V100_SXM2),
    ("V100-SXM2-32GB",    32,  900,   62.7,   125, "pcie3x16", V100_SXM2),
    ("T4",                16,  320,    130,    65, "pcie3x16", "NVIDIA T4 datasheet"),
    ("A10",               24,  600,    250,   125, "pcie4x16", "NVIDIA A10 datasheet"),
    ("A10G",              24,  600,    140,    70, "pcie4x16", "NVIDIA A10G datasheet"),
    ("A30",               24,  933,    330,   165, "pcie4x16", "NVIDIA A30 datasheet"),
    ("A40",               48,  696,  299.3, 149.7, "pcie4x16", "NVIDIA A40 datasheet"),
    ("L4",                24,  300,  242.5,   121, "pcie4x16", "NVIDIA L4 datasheet, halves of the rates with sparsity"),
    ("L40",               48,  864,    362,   181, "pcie4x16", "NVIDIA L40 datasheet"),
    ("L40S",              48,  864,    733,   362, "pcie4x16", "NVIDIA L40S datasheet"),
    ("A100-40GB",         40, 1555,    624,   312, "pcie4x16", "NVIDIA A100 datasheet, 40 GB"),
    ("A100-80GB",         80, 2039,    624,   312, "pcie4x16", "NVIDIA A100 datasheet, 80 GB SXM"),
    ("A100-PCIE-80GB",    80, 1935,    624,   312, "pcie4x16", "NVIDIA A100 datasheet, 80 GB PCIe"),
    ("H100-80GB",         80, 3350,   1979, 989.5, "pcie5x16", "NVIDIA H100 datasheet, SXM, halves of the rates with sparsity"),
    ("H100-PCIE-80GB",    80, 2000,   1513, 756.5, "pcie5x16", H100_PCIE),
    ("H100-NVL-94GB",     94, 3900, 1670.5, 835.5, "pcie5x16", H100_NVL),
    ("H200",             141, 4800,   1979, 989.5, "pcie5x16", "NVIDIA H200 datasheet, SXM, halves of the rates with sparsity"),
    ("H200-NVL",         141, 4800, 1670.5, 835.5, "pcie5x16", "NVIDIA H200 datasheet, NVL, halves of the rates with sparsity"),
)
# fmt: on
CARDS = {row[0].upper(): _card(*row) for row in _TABLE}

# Cards by their name without its memory and signs: A100-PCIE-80GB is found under A100PCIE.
_BY_NAME: dict[str, list[Card]] = {}
for _each in CARDS.values():
    _BY_NAME.setdefault(re.sub(r"-[0-9]+GB$", "", _each.name.upper()).replace("-", ""), []).append(_each)
# What drivers and shops add to a name. The lists after the first are left out only where the name is unknown with them:
# a Quadro RTX 6000 is not an RTX 6000 Ada, and some cards are slower as PCIe boards. "Laptop" stays: those are others.
_ALWAYS_LEFT_OUT = {"NVIDIA", "GENERATION", "EDITION", "WORKSTATION", "BLACKWELL"}
_LINES = {"GEFORCE", "QUADRO", "TESLA"}
_BOARDS = _LINES | {"PCIE", "SXM", "SXM2", "SXM3", "SXM4", "SXM5", "HBM2", "HBM2E", "HBM3", "HBM3E"}
_SIZE = re.compile(r"([0-9]{1,4})GI?B?", re.ASCII)


def find(name: str, memory_bytes: int = 0) -> Card | None:
    """The card of that name, however a person, torch or nvidia-smi spells it; None if the table lacks it.

    Drivers leave out which of several memories a card has: with `memory_bytes`, the nearest is taken.
    """
    words = _words(name)
    sizes = [int(match[1]) * GB for word in words if (match := _SIZE.fullmatch(word))]
    words = [word for word in words if not _SIZE.fullmatch(word)]
    for left_out in (set(), _LINES, _BOARDS):
        key = "".join(word for word in words if word not in left_out)
        for prefix in ("", "RTX", "GTX"):
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
    text = re.sub(r"(?<=[0-9])\s+(?=GI?B\b)", "", name.upper())
    return [word for word in re.split(r"[^A-Z0-9]+", text) if word and word not in _ALWAYS_LEFT_OUT]

"""What cards are plugged into: links by name, with their rate as specified and the part of it that copies reach."""

import re
from dataclasses import dataclass

from bigrun.errors import CallError

# The share of a link's rate that a long copy from or to pinned memory reaches. On PCI Express a packet of 128 bytes, the
# payload that desktop chipsets commonly set, carries 20 to 24 bytes of framing, sequence number, header and checksum,
# which leaves 0.84 to 0.86; acknowledgements and flow control take the rest. Usual results of NVIDIA's bandwidthTest
# agree: 12.5 GB/s of the 15.75 of a gen 3 x16 slot, 25 of the 31.5 of a gen 4 one. Bridges and tunnels are taken alike.
PRACTICAL = 0.8

TRANSFERS = {3: 8e9, 4: 16e9, 5: 32e9}  # a lane and second, by generation of PCI Express: one bit each, on the wire
LINE_CODE = 128 / 130  # bits of data in the bits on the wire, generations 3 to 5
LANES = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Link:
    """A link between two devices; `bytes_per_s` one way, after the line code, as its specification says."""

    name: str
    bytes_per_s: float
    source: str

    @property
    def usable(self) -> float:
        """Bytes/s one way that copies reach."""
        return self.bytes_per_s * PRACTICAL


def _pcie(generation: int, lanes: int) -> Link:
    rate = TRANSFERS[generation] * lanes * LINE_CODE / 8
    return Link(f"pcie{generation}x{lanes}", rate, f"PCI Express Base Specification {generation}.0, {lanes} lanes")


# A tunnel's rate is that of the packets which it may carry, not of its cable, which displays share.
LINKS = {
    item.name: item
    for item in (
        *(_pcie(generation, lanes) for generation in TRANSFERS for lanes in LANES),
        Link("oculink", _pcie(4, 4).bytes_per_s, "SFF-8611 cable, 4 lanes of PCI Express 4.0"),
        Link("thunderbolt3", 22e9 / 8, "PCIe data that Thunderbolt 3 controllers carry: 22 of the cable's 40 Gb/s"),
        Link("thunderbolt4", 32e9 / 8, "Intel Thunderbolt 4 requirements: 32 Gb/s of PCIe data"),
        Link("thunderbolt5", 64e9 / 8, "Intel Thunderbolt 5 technology brief: 64 Gb/s of PCIe data"),
        Link("usb4", 32e9 / 8, "USB4 specification 1.0: a PCIe tunnel of 4 lanes of 8 GT/s; hosts may offer less"),
        Link("nvlink-bridge-2080ti", 50e9, "NVIDIA Turing GPU architecture whitepaper: 100 GB/s both ways together"),
        Link(
            "nvlink-bridge-3090", 56.25e9, "NVIDIA Ampere GA102 GPU architecture whitepaper: 4 x 14.0625 GB/s one way"
        ),
    )
}
# Other spellings, once case, spaces and signs are gone.
_PCIE = re.compile(r"(?:pciexpress|pcie|pci)?(?:generation|gen|v)?([3-5])x(1|2|4|8|16)", re.ASCII)
_ALIASES = {"tb3": "thunderbolt3", "tb4": "thunderbolt4", "tb5": "thunderbolt5", "nvlink": "nvlink-bridge-3090"}
_ALIASES |= {re.sub("[^a-z0-9]", "", name): name for name in LINKS}


def link(name: str) -> Link:
    """The link of that name, however it is spelt ("PCIe 4.0 x8", gen4x8, pcie4x8); CallError lists the known ones."""
    key = re.sub(r"[^a-z0-9]", "", re.sub(r"(?<=[0-9])\.0", "", name.lower()))
    if match := _PCIE.fullmatch(key):
        return LINKS[f"pcie{match[1]}x{match[2]}"]
    if key in _ALIASES:
        return LINKS[_ALIASES[key]]
    others = ", ".join(known for known in LINKS if not known.startswith("pcie"))
    raise CallError(f"no link {name!r:.60}; links are pcie3, pcie4 or pcie5 with x1, x2, x4, x8 or x16, {others}")

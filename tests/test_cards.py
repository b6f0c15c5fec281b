"""Cards are found however they are spelt, and their figures agree with what is published and with cores times clocks."""

import re

import pytest

from bigrun.devices.cards import CARDS, GB, TERA, card, find
from bigrun.devices.links import LANES, LINKS, PRACTICAL, link
from bigrun.errors import CallError

# Streaming multiprocessors (of AMD compute units) and boost clock in MHz, from the whitepapers and product pages; of laptops
# the lowest. Hopper's clocks are those that its tensor rates are given for.
# fmt: off
CLOCKS = {
    "GTX1080Ti": (28, 1582), "RTX2060-6GB": (30, 1680), "RTX2060-12GB": (34, 1650), "RTX2060Super": (34, 1650),
    "RTX2070": (36, 1620), "RTX2070Super": (40, 1770), "RTX2080": (46, 1710), "RTX2080Super": (48, 1815),
    "RTX2080Ti": (68, 1545), "TITANRTX": (72, 1770), "QuadroRTX6000": (72, 1770), "RTX8000": (72, 1770),
    "RTX3050-8GB": (20, 1777), "RTX3060-12GB": (28, 1777), "RTX3060-8GB": (28, 1777), "RTX3060Ti": (38, 1665),
    "RTX3070": (46, 1725), "RTX3070Ti": (48, 1770), "RTX3080-10GB": (68, 1710), "RTX3080-12GB": (70, 1710),
    "RTX3080Ti": (80, 1665), "RTX3090": (82, 1695), "RTX3090Ti": (84, 1860), "RTX4060": (24, 2460),
    "RTX4060Ti-8GB": (34, 2535), "RTX4060Ti-16GB": (34, 2535), "RTX4070": (46, 2475), "RTX4070Super": (56, 2475),
    "RTX4070Ti": (60, 2610), "RTX4070TiSuper": (66, 2610), "RTX4080": (76, 2505), "RTX4080Super": (80, 2550),
    "RTX4090": (128, 2520), "RTX5060": (30, 2497), "RTX5060Ti-16GB": (36, 2572), "RTX5060Ti-8GB": (36, 2572),
    "RTX5070": (48, 2512), "RTX5070Ti": (70, 2452), "RTX5080": (84, 2617), "RTX5090": (170, 2407),
    "RTXA2000-12GB": (26, 1200), "RTXA2000-6GB": (26, 1200), "RTXA4000": (48, 1560), "RTXA4500": (56, 1650),
    "RTXA5000": (64, 1695), "RTXA6000": (84, 1800), "RTX4000SFFAda": (48, 1560), "RTX4500Ada": (60, 2580),
    "RTX5000Ada": (100, 2550), "RTX6000Ada": (142, 2505), "RTXPRO6000": (188, 2617), "RTXPRO6000MaxQ": (188, 2280),
    "P40": (30, 1531), "V100-16GB": (80, 1380), "V100-32GB": (80, 1380), "V100-SXM2-16GB": (80, 1530),
    "V100-SXM2-32GB": (80, 1530), "T4": (40, 1590), "A10": (72, 1695), "A10G": (80, 1710), "A30": (56, 1440),
    "A40": (84, 1740), "L4": (58, 2040), "L40S": (142, 2520), "A100-40GB": (108, 1410), "A100-80GB": (108, 1410),
    "RTX3050Laptop": (16, 1057), "RTX3050TiLaptop": (20, 1035), "RTX3060Laptop": (30, 1283), "RTX3070Laptop": (40, 1290),
    "RTX3070TiLaptop": (46, 1035), "RTX3080Laptop-8GB": (48, 1245), "RTX3080Laptop-16GB": (48, 1245),
    "RTX3080TiLaptop": (58, 1125), "RTX4050Laptop": (20, 1605), "RTX4060Laptop": (24, 1470), "RTX4070Laptop": (36, 1230),
    "RTX4080Laptop": (58, 1350), "RTX4090Laptop": (76, 1455),
    "RX6800": (60, 2105), "RX6800XT": (72, 2250), "RX6900XT": (80, 2250), "RX6950XT": (80, 2310), "PROW6800": (60, 2322),
    "RX7600": (32, 2655), "RX7600XT": (32, 2755), "RX7700XT": (54, 2544), "RX7800XT": (60, 2430), "RX7900GRE": (80, 2245),
    "RX7900XT": (84, 2400), "RX7900XTX": (96, 2500), "PROW7900": (96, 2495), "RX9070": (56, 2520), "RX9070XT": (64, 2970),
    "MI100": (120, 1502), "MI210": (104, 1700), "MI300X": (304, 2100), "MI325X": (304, 2100),
    "A100-PCIE-80GB": (108, 1410), "H100-80GB": (132, 1830), "H100-PCIE-80GB": (114, 1620), "H200": (132, 1830),
}
# fmt: on
# Published below what their cores and boost clock give: power (RTX 4000 Ada) or the maker (L40) holds them back. The
# clock that the NVL rates are for is not published.
UNEXPLAINED = {"RTX4000Ada", "L40", "H100-NVL-94GB", "H200-NVL"}


def operations(name: str) -> tuple[int, int]:
    """(int8, fp16 with float32 sums) operations a clock of one multiprocessor, as the whitepapers give them."""
    if name in ("GTX1080Ti", "P40"):  # 128 lanes: four-way dot products, and float32
        return 1024, 256
    if name.startswith("V100"):  # 64 lanes of dot products, eight tensor cores of 64 multiply-adds
        return 512, 1024
    if name.startswith(("A100", "A30")):
        return 4096, 2048
    if name.startswith("H"):
        return 8192, 4096
    if name == "A10G":
        return 1024, 512
    if name.startswith("MI"):  # CDNA 1 and 2 with the same rate for both, CDNA 3 with twice that for int8
        return (1024, 1024) if name in ("MI100", "MI210") else (4096, 2048)
    if name.startswith(("RX", "PROW")):  # RDNA 2, 3 and 4
        generation = re.search(r"[679]", name)
        return {"6": (512, 256), "7": (512, 512), "9": (2048, 1024)}[generation[0]]  # type: ignore[index]
    geforce = re.fullmatch(r"RTX[2-5]0[5-9]0.*", name)
    return 2048, 512 if geforce else 1024


def test_the_table_holds_the_cards_that_people_have() -> None:
    assert len(CARDS) >= 34
    assert len({each.name for each in CARDS.values()}) == len(CARDS)
    assert not [name for name, each in CARDS.items() if name != each.name.upper()]


@pytest.mark.parametrize("name", CARDS)
def test_figures_are_of_a_plausible_size_and_have_a_source(name: str) -> None:
    each = CARDS[name]
    assert 4 * GB <= each.memory_bytes <= 300 * GB
    assert 100 * GB <= each.bandwidth <= 6000 * GB
    assert 8 * TERA <= each.fp16 <= 1400 * TERA
    assert each.int8 >= each.fp16 or "no int8 tensor cores" in each.source
    assert 8 * GB < each.link < 64 * GB
    assert each.source.startswith(f"{each.maker} ")


@pytest.mark.parametrize(
    ("name", "memory", "bandwidth", "int8", "fp16"),
    [
        ("RTX2080Ti", 11, 616, 215.2, 53.8),
        ("TITANRTX", 24, 672, 261, 130.5),
        ("RTX3060", 12, 360, 102, 25.5),
        ("RTX3080", 10, 760, 238, 59.5),
        ("RTX3090", 24, 936, 284, 71),
        ("RTX4090", 24, 1008, 660.6, 165.2),
        ("RTX5090", 32, 1792, 838, 209.5),
        ("RTXA6000", 48, 768, 309.7, 154.8),
        ("T4", 16, 320, 130, 65),
        ("P40", 24, 346, 47, 11.8),
        ("A100-40GB", 40, 1555, 624, 312),
        ("A100-80GB", 80, 2039, 624, 312),
        ("H100-80GB", 80, 3350, 1979, 989.5),
        ("H200", 141, 4800, 1979, 989.5),
    ],
)
def test_well_known_figures_are_exact(name: str, memory: int, bandwidth: float, int8: float, fp16: float) -> None:
    each = card(name)
    assert each.memory_bytes == memory * 2**30
    assert each.bandwidth == bandwidth * GB
    assert (each.int8, each.fp16) == (int8 * TERA, fp16 * TERA)


# GiB that torch finds on a card, as its messages in public reports state them ("GPU 0 has a total capacity of 23.64 GiB").
FOUND = {
    "RTX2080Ti": 10.76, "RTX3070": 7.79, "RTX3080-10GB": 9.78, "RTX3090": 23.69, "RTX4090": 23.64, "RTX5090": 31.36,
    "RTXA4000": 15.61, "T4": 14.56, "A10G": 21.99, "A30": 23.53, "V100-32GB": 31.74, "A100-40GB": 39.39, "A100-80GB": 79.15,
    "L40S": 44.40, "H200": 139.8,
}  # fmt: skip
CONTEXT = 0.3  # GiB that a process takes of a card at least, before it allocates anything


@pytest.mark.parametrize("name", FOUND)
def test_what_a_run_can_take_is_there_on_a_card_beside_the_process_itself_and_nearly_all_of_it(name: str) -> None:
    usable = card(name).usable_bytes / 2**30
    assert 0.93 * FOUND[name] < usable <= FOUND[name] - CONTEXT


def test_every_rate_is_explained_by_cores_and_clock_or_known_not_to_be() -> None:
    assert {each.name for each in CARDS.values()} == CLOCKS.keys() | UNEXPLAINED


@pytest.mark.parametrize("name", CLOCKS)
def test_rates_are_multiprocessors_times_clock_to_two_percent(name: str) -> None:
    multiprocessors, megahertz = CLOCKS[name]
    int8, fp16 = operations(name)
    each = card(name)
    assert each.int8 == pytest.approx(multiprocessors * megahertz * 1e6 * int8, rel=0.02)
    assert each.fp16 == pytest.approx(multiprocessors * megahertz * 1e6 * fp16, rel=0.02)


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("RTX3090", "RTX3090"),
        ("rtx 3090", "RTX3090"),
        ("RTX-3090", "RTX3090"),
        ("rtx_3090", "RTX3090"),
        ("3090", "RTX3090"),
        ("3090 ti", "RTX3090Ti"),
        ("4070TiSuper", "RTX4070TiSuper"),
        ("4070 Ti SUPER", "RTX4070TiSuper"),
        ("1080 Ti", "GTX1080Ti"),
        ("RTX 3090 24GB", "RTX3090"),
        ("RTX 3060", "RTX3060-12GB"),
        ("RTX 3060 12GB", "RTX3060-12GB"),
        ("rtx3060-8 GB", "RTX3060-8GB"),
        ("RTX3080", "RTX3080-10GB"),
        ("RTX3080-12GB", "RTX3080-12GB"),
        ("4060Ti 16G", "RTX4060Ti-16GB"),
        ("RTX5060Ti", "RTX5060Ti-16GB"),
        ("rtx_a6000", "RTXA6000"),
        ("A6000", "RTXA6000"),
        ("6000 Ada", "RTX6000Ada"),
        ("a100", "A100-40GB"),
        ("a100-80gb", "A100-80GB"),
        ("V100", "V100-16GB"),
        ("Titan RTX", "TITANRTX"),
        # As torch.cuda.get_device_name and nvidia-smi print them.
        ("NVIDIA GeForce RTX 3090", "RTX3090"),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", "RTX4070TiSuper"),
        ("GeForce GTX 1080 Ti", "GTX1080Ti"),
        ("NVIDIA TITAN RTX", "TITANRTX"),
        ("Quadro RTX 6000", "QuadroRTX6000"),
        ("Quadro RTX 8000", "RTX8000"),
        ("NVIDIA RTX A6000", "RTXA6000"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX6000Ada"),
        ("NVIDIA RTX 4000 SFF Ada Generation", "RTX4000SFFAda"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "RTXPRO6000"),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", "RTXPRO6000MaxQ"),
        ("Tesla T4", "T4"),
        ("Tesla P40", "P40"),
        ("Tesla V100-PCIE-32GB", "V100-32GB"),
        ("Tesla V100-SXM2-16GB", "V100-SXM2-16GB"),
        ("NVIDIA A100-PCIE-40GB", "A100-40GB"),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("NVIDIA A100 80GB PCIe", "A100-PCIE-80GB"),
        ("NVIDIA H100 80GB HBM3", "H100-80GB"),
        ("NVIDIA H100 PCIe", "H100-PCIE-80GB"),
        ("NVIDIA H100 NVL", "H100-NVL-94GB"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA GeForce RTX 3080 Laptop GPU", "RTX3080Laptop-8GB"),
        ("3080 laptop 16GB", "RTX3080Laptop-16GB"),
        ("RTX 4090 mobile", "RTX4090Laptop"),
        ("AMD Radeon RX 7900 XTX", "RX7900XTX"),
        ("7900xtx", "RX7900XTX"),
        ("rx-6800-xt", "RX6800XT"),
        ("9070 XT", "RX9070XT"),
        ("AMD Radeon PRO W7900", "PROW7900"),
        ("W6800", "PROW6800"),
        ("AMD Instinct MI210", "MI210"),
        ("mi300x 192GB", "MI300X"),
    ],
    ids=repr,
)
def test_a_card_is_found_however_it_is_spelt(spelling: str, name: str) -> None:
    assert card(spelling).name == name
    assert find(spelling) is card(spelling)


@pytest.mark.parametrize("name", [each.name for each in CARDS.values()])
def test_every_name_finds_its_own_card(name: str) -> None:
    assert card(name).name == card(name.lower()).name == name
    assert card(name.replace("-", " ")).name == name


def test_the_memory_that_a_driver_reports_tells_cards_of_one_name_apart() -> None:
    reported = {"RTX3060": {8: "RTX3060-8GB", 12: "RTX3060-12GB"}, "RTX3080": {10: "RTX3080-10GB", 12: "RTX3080-12GB"}}
    reported |= {"A100-SXM4": {40: "A100-40GB", 80: "A100-80GB"}, "RTX 4060 Ti": {8: "RTX4060Ti-8GB"}}
    for name, names in reported.items():
        for gigabytes, expected in names.items():
            matched_card = find(f"NVIDIA {name}", round(gigabytes * 0.985 * 2**30))
            assert matched_card is not None
            assert matched_card.name == expected


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("RTX3091", "RTX3090"),
        ("3091", "RTX3090"),
        ("RTX3090 48GB", "RTX3090"),
        ("RTX6000", "RTX6000Ada"),
        ("GTX3090", "RTX3090"),
        ("RTX 4090 D", "RTX4090"),
        ("NVIDIA GeForce RTX 2080 Laptop GPU", "RTX3080Laptop-8GB"),
        ("RX 7900", "RX7900XT"),
        ("RTX 3060 6GB", "RTX3060-12GB"),
        ("A1000", "A100-40GB"),
    ],
    ids=repr,
)
def test_an_unknown_card_is_refused_with_the_nearest_names(name: str, nearest: str) -> None:
    assert find(name) is None
    with pytest.raises(CallError) as caught:
        card(name)
    assert str(caught.value).startswith(f"gpus: no card {name!r}")
    assert re.search(rf"\b{nearest}\b(?!-)", str(caught.value))
    assert "give its memory (24GB)" in str(caught.value)


@pytest.mark.parametrize(
    "name", ["", "24GB", "NVIDIA", "GeForce", "Quadro RTX 5000", "potato", "-", "３０９０", "RTX\n"]
)
def test_what_is_no_card_is_not_found(name: str) -> None:
    assert find(name) is None
    with pytest.raises(CallError, match=r"^gpus: no card '.*; .*give its memory \(24GB\)$"):
        card(name)


def test_pcie_links_have_the_rates_of_their_specification() -> None:
    assert LINKS["pcie3x16"].bytes_per_s == pytest.approx(15.75e9, rel=1e-3)
    assert LINKS["pcie4x16"].bytes_per_s == pytest.approx(31.5e9, rel=1e-3)
    assert LINKS["pcie5x16"].bytes_per_s == pytest.approx(63.0e9, rel=1e-3)
    for generation in (3, 4, 5):
        by_lanes = [LINKS[f"pcie{generation}x{lanes}"].bytes_per_s / lanes for lanes in LANES]
        assert by_lanes == pytest.approx([by_lanes[0]] * len(LANES))
    assert LINKS["oculink"].bytes_per_s == LINKS["pcie4x4"].bytes_per_s
    assert LINKS["thunderbolt4"].bytes_per_s == 4e9
    assert LINKS["thunderbolt5"].bytes_per_s == 8e9
    assert LINKS["nvlink-bridge-3090"].bytes_per_s == pytest.approx(112.5e9 / 2)
    assert all(name == each.name and each.source for name, each in LINKS.items())


def test_copies_reach_the_share_of_a_link_that_is_measured() -> None:
    """Usual results of bandwidthTest: 12 to 13 GB/s on generation 3, 25 to 26 on generation 4, 16 lanes each."""
    assert 12e9 < LINKS["pcie3x16"].usable < 13e9
    assert 25e9 < LINKS["pcie4x16"].usable < 26e9
    assert all(each.usable == each.bytes_per_s * PRACTICAL for each in LINKS.values())


def test_a_card_has_the_link_of_the_slot_it_is_made_for() -> None:
    assert card("RTX2080Ti").link == LINKS["pcie3x16"].usable
    assert card("RTX3090").link == LINKS["pcie4x16"].usable
    assert card("RTX4060").link == LINKS["pcie4x8"].usable == card("RTX3090").link / 2
    assert card("RTX5060Ti").link == LINKS["pcie5x8"].usable
    assert card("H100-80GB").link == LINKS["pcie5x16"].usable


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("pcie4x8", "pcie4x8"),
        ("PCIe 4.0 x8", "pcie4x8"),
        ("gen4x8", "pcie4x8"),
        ("PCIe Gen 3 x16", "pcie3x16"),
        ("PCI Express 5.0 x16", "pcie5x16"),
        ("Thunderbolt 4", "thunderbolt4"),
        ("TB3", "thunderbolt3"),
        ("USB4", "usb4"),
        ("OCuLink", "oculink"),
        ("NVLink bridge 3090", "nvlink-bridge-3090"),
        ("nvlink-bridge-2080ti", "nvlink-bridge-2080ti"),
    ],
    ids=repr,
)
def test_a_link_is_found_however_it_is_spelt(spelling: str, name: str) -> None:
    assert link(spelling) is LINKS[name]


@pytest.mark.parametrize("name", ["", "pcie4", "pcie4x3", "pcie2x16", "pcie40x16", "x16", "ethernet", "usb3"])
def test_an_unknown_link_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(CallError, match=r"^no link '.*pcie4.*x16.*oculink.*nvlink-bridge-3090"):
        link(name)

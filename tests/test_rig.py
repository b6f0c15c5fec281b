"""A rig is what the user wrote, to the byte; what makes no sense is refused with the forms that do."""

import re
from typing import Any

import pytest

from bigrun.devices import make_rig as rig_module
from bigrun.devices.cards import CARDS, card
from bigrun.devices.links import link
from bigrun.devices.make_rig import RigOptions, make_rig
from bigrun.devices.rates import ASSUMED_GPU, gpu_rates
from bigrun.devices.rig import MOST_GPUS, Rig, parse_gpus
from bigrun.errors import CallError

GB = 10**9


def repr_short(options: dict[str, Any]) -> str:
    key = next(key for key in ("max_memory", "rig", "host", "disk", "cpu", "gpus") if key in options)
    return f"{key} {type(options[key]).__name__}"


def budgets(rig: Rig) -> dict[str, int]:
    return {device.name: device.budget_bytes for device in rig.devices}


@pytest.mark.parametrize(
    ("text", "gigabytes"),
    [
        ("8x24GB", [24] * 8),
        ("2x24GB,1x12GB", [24, 24, 12]),
        ("24GB", [24]),
        ("12GB,24GB", [12, 24]),
        ("4xRTX3090", [24] * 4),
        ("2 x rtx 3090 , T4", [24, 24, 16]),
        ("rtx-4090", [24]),
        ("1xA100-80GB,h100-80gb", [80, 80]),
        ("2X500MB", [0.5, 0.5]),
        ("3090", [24]),
        ("2x3090Ti", [24, 24]),
        ("2x3090,1x24GB", [24, 24, 24]),
        ("4060 Ti 16GB", [16]),
        ("2*5090 , 6000 ada", [32, 32, 48]),
        ("4x2080Ti", [11] * 4),
        ("none", []),
        ("", []),
        ("0", []),
    ],
    ids=repr,
)
def test_gpus_are_numbered_in_the_order_they_are_written(text: str, gigabytes: list[float]) -> None:
    devices = parse_gpus(text)
    assert [(device.name, device.kind) for device in devices] == [(f"cuda:{i}", "gpu") for i in range(len(gigabytes))]
    for device, size in zip(devices, gigabytes, strict=True):
        expected = card(device.card).usable_bytes if device.card else int(size * GB)
        assert device.budget_bytes == expected
        assert not device.card or card(device.card).memory_bytes == size * 2**30


def test_a_card_brings_its_published_bandwidth_and_a_bare_size_an_assumed_one() -> None:
    by_card, by_size = parse_gpus("RTX3090,24GB")
    assert by_card.rates.read == pytest.approx(0.8 * 936e9)
    assert by_card.rates.source == card("RTX3090").source != "assumed"
    assert by_card.rates.link == link("pcie4x16").usable
    assert by_size.rates == ASSUMED_GPU
    assert by_size.rates.read == pytest.approx(0.8 * 500e9)
    assert by_size.rates.source == "assumed"
    assert not any("a GPU" in line for line in make_rig(RigOptions("RTX3090", cpu=0)).assumptions)
    assert any("published" in line for line in make_rig(RigOptions("RTX3090", cpu=0)).assumptions)
    assert any("GPU" in line and "400 GB/s" in line for line in make_rig(RigOptions("24GB", cpu=0)).assumptions)
    assert not any("published" in line for line in make_rig(RigOptions("24GB", cpu=0)).assumptions)


@pytest.mark.parametrize("text", ["3090", "rtx3090", "RTX 3090", "GeForce RTX 3090", "RTX-3090"])
def test_a_card_is_the_same_card_however_it_is_spelt(text: str) -> None:
    assert parse_gpus(text) == parse_gpus("RTX3090")


def test_each_card_of_the_table_can_be_asked_for_by_its_name_and_without_its_letters_if_digits_know_it() -> None:
    for known in CARDS.values():
        (gpu,) = parse_gpus(known.name)
        assert (gpu.budget_bytes, gpu.rates, gpu.label) == (known.usable_bytes, gpu_rates(known), known.name)
        bare = known.name.removeprefix("RTX").removeprefix("GTX")
        if bare[0].isdigit():
            assert parse_gpus(bare) == (gpu,)


@pytest.mark.parametrize("number", ["24", "0.5", "8", "2x24", "80", "999", "24."])
def test_a_number_without_a_unit_lacks_one_and_is_no_card(number: str) -> None:
    with pytest.raises(CallError, match=rf"gpus.*lacks a unit; write {re.escape(number)}GB"):
        parse_gpus(number)


def test_no_number_below_a_thousand_is_taken_for_a_card() -> None:
    for number in range(1, 1000):
        with pytest.raises(CallError, match="lacks a unit"):
            parse_gpus(str(number))


@pytest.mark.parametrize(
    ("text", "near"), [("3090Tii", "RTX3090Ti"), ("2x4090 Supr", "RTX4080Super"), ("4095Ti", "RTX4090|RTX4070")]
)
def test_digits_that_nearly_name_a_card_are_answered_with_the_nearest(text: str, near: str) -> None:
    with pytest.raises(CallError, match=f"gpus: no card .*(?:{near})"):
        parse_gpus(text)


def test_a_size_with_a_unit_is_a_size_though_its_digits_are_a_cards() -> None:
    (gpu,) = parse_gpus("3090GB")
    assert (gpu.budget_bytes, gpu.rates) == (3090 * GB, ASSUMED_GPU)


@pytest.mark.parametrize("text", ["x" * 10**6, "9" * 10**6, "24GB," * 10**5 + "!", "1x" * 10**5], ids=lambda t: t[:6])
def test_a_wrong_call_is_answered_in_a_line_however_long_it_was(text: str) -> None:
    with pytest.raises(CallError, match="gpus") as caught:
        parse_gpus(text)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "text",
    ["8x24GB", "2x24GB,1x12GB", "3090", "2 x rtx 3090 , T4", "24GB,3090,3090,24GB", "A100-PCIE-80GB", "2x24 GiB"],
)
def test_the_text_of_a_rigs_gpus_makes_the_same_gpus_again(text: str) -> None:
    rig = make_rig(RigOptions(text, cpu=0))
    assert parse_gpus(rig.gpus_text) == rig.gpus


def test_other_gpus_are_numbered_anew_and_the_rest_of_the_rig_stays() -> None:
    rig = make_rig(RigOptions("24GB", cpu="1GB", disk="2GB"))
    more = rig.with_gpus([*rig.gpus, *parse_gpus("T4,3090")])
    assert budgets(more) == {
        "cuda:0": 24 * GB, "cuda:1": card("T4").usable_bytes, "cuda:2": card("3090").usable_bytes, "cpu": GB, "disk": 2 * GB,
    }  # fmt: skip
    assert [gpu.card for gpu in more.gpus] == ["", "T4", "RTX3090"]
    assert more.gpus[2].rates == gpu_rates(card("3090"))
    assert budgets(more.with_gpus([])) == {"cpu": GB, "disk": 2 * GB}
    assert budgets(rig.with_budget("cpu", 7)) == {"cuda:0": 24 * GB, "cpu": 7, "disk": 2 * GB}
    assert budgets(rig) == {"cuda:0": 24 * GB, "cpu": GB, "disk": 2 * GB}


@pytest.mark.parametrize(
    "text",
    [
        "x24GB",
        "8x",
        "8xx24GB",
        "0x24GB",
        "-1x24GB",
        "1.5x24GB",
        "8x24G",
        "24GB x 2",
        "24GB;12GB",
        "24GB,,12GB",
        "24GB,",
        "1025x1GB",
        "600x1GB,600x1GB",
        "9999999x1GB",
        "1x0GB",
        "0GB",
        "RTX9999",
        "2xRTX",
        "24GB,none",
        "２x24GB",
        "cuda:0",
        "1e9GB",
        "24",
        "3090G",
        "2x30.90",
        "3090x3090",
        "1025x3090",
        "٣090",
    ],
    ids=repr,
)
def test_a_rig_that_makes_no_sense_is_a_wrong_call_that_names_the_flag(text: str) -> None:
    with pytest.raises(CallError, match="gpus"):
        parse_gpus(text)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("4xRTX3095", "RTX3095.*RTX3090"),
        ("RTX490", "RTX490.*RTX4090"),
        ("RTX9999", "RTX9999.*RTX3090.*RTX4090.*its memory .24GB"),
    ],
    ids=["a digit off", "a digit short", "nothing like it"],
)
def test_an_unknown_card_is_answered_with_the_nearest_or_with_its_memory(text: str, answer: str) -> None:
    with pytest.raises(CallError, match=answer):
        parse_gpus(text)


def test_options_make_a_rig_of_gpus_then_cpu_then_disk() -> None:
    rig = make_rig(RigOptions("2x24GB", cpu="64GB", disk="500GB"))
    assert budgets(rig) == {"cuda:0": 24 * GB, "cuda:1": 24 * GB, "cpu": 64 * GB, "disk": 500 * GB}
    assert list(budgets(rig)) == ["cuda:0", "cuda:1", "cpu", "disk"]
    assert [device.kind for device in rig.devices] == ["gpu", "gpu", "cpu", "disk"]
    assert [device.name for device in rig.gpus] == ["cuda:0", "cuda:1"]


def test_without_a_disk_option_the_disk_holds_nothing() -> None:
    assert "disk" not in budgets(make_rig(RigOptions("24GB", cpu="1GB")))


def test_a_cpu_budget_that_was_not_given_is_probed_and_said_to_be_assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rig_module, "available_memory", lambda: (30 * GB, 2 * GB))
    rig = make_rig(RigOptions("none"))
    assert budgets(rig) == {"cpu": 30 * GB}
    assert any("30.0 GB" in line and "2.00 GB" in line and "--cpu" in line for line in rig.assumptions)
    assumptions = make_rig(RigOptions("none", cpu="1GB")).assumptions
    assert not any("GB, this host's" in line or "--cpu" in line for line in assumptions)


def test_gpus_that_are_there_are_probed_and_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    a4000, slot = card("RTXA4000"), link("pcie3x8").usable
    monkeypatch.setattr(rig_module, "probe_gpus", lambda: ((15 * GB, a4000, slot), (9 * GB, a4000, None)))
    rig = make_rig(RigOptions(cpu=0))
    assert budgets(rig) == {"cuda:0": 15 * GB, "cuda:1": 9 * GB, "cpu": 0}
    assert [gpu.rates.link for gpu in rig.gpus] == [slot, a4000.link]
    assert all(gpu.rates.read == gpu_rates(a4000).read for gpu in rig.gpus)
    assert [gpu.label for gpu in rig.gpus] == ["RTXA4000", "RTXA4000"]
    assert "of a GPU found here, its free memory less a reserve of 5 %" in rig.assumptions
    assert any("as published" in line for line in rig.assumptions)
    assert not any("guessed" in line for line in rig.assumptions)


def test_a_probed_gpu_that_no_table_knows_is_guessed_and_the_plan_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rig_module, "probe_gpus", lambda: ((15 * GB, None, link("pcie3x8").usable),))
    rig = make_rig(RigOptions(cpu=0))
    (gpu,) = rig.gpus
    assert (gpu.rates.read, gpu.rates.link) == (ASSUMED_GPU.read, link("pcie3x8").usable)
    assert any("guessed" in line and "400 GB/s" in line for line in rig.assumptions)
    assert not any("published" in line for line in rig.assumptions)


def test_max_memory_is_accelerates_and_an_unnamed_device_holds_nothing() -> None:
    assert budgets(make_rig(RigOptions(max_memory={0: "24GB", 1: "24GB"}))) == {
        "cuda:0": 24 * GB,
        "cuda:1": 24 * GB,
        "cpu": 0,
    }
    assert budgets(make_rig(RigOptions(max_memory={"cpu": "64GiB"}))) == {"cpu": 64 * 2**30}
    assert budgets(make_rig(RigOptions(max_memory={}))) == {"cpu": 0}
    named = make_rig(RigOptions(max_memory={"disk": 500, "cpu": 1000, "2": "1GB", "cuda:0": 2 * GB}))
    assert budgets(named) == {"cuda:0": 2 * GB, "cuda:2": GB, "cpu": 1000, "disk": 500}
    assert list(budgets(named)) == ["cuda:0", "cuda:2", "cpu", "disk"]


def test_a_gpu_of_no_memory_is_as_one_that_is_not_named() -> None:
    assert budgets(make_rig(RigOptions(max_memory={0: 0, 1: 5, "cpu": 7}))) == {"cuda:1": 5, "cpu": 7}


@pytest.mark.parametrize(
    "max_memory",
    [
        "24GB",
        ["24GB"],
        {"gpu": "1GB"},
        {-1: "1GB"},
        {"1024": "1GB"},
        {True: "1GB"},
        {0: None},
        {0: True},
        {0: 1.5},
        {0: "much"},
        {0: -1},
        {"0": ["1GB"]},
    ],
    ids=repr,
)
def test_a_max_memory_that_makes_no_sense_is_a_wrong_call(max_memory: Any) -> None:
    with pytest.raises(CallError, match="max_memory"):
        make_rig(RigOptions(max_memory=max_memory))


@pytest.mark.parametrize("beside", [{"gpus": "24GB"}, {"cpu": "1GB"}, {"disk": "1GB"}], ids=str)
def test_max_memory_and_another_rig_option_contradict_each_other(beside: dict[str, str]) -> None:
    with pytest.raises(CallError, match="max_memory"):
        make_rig(RigOptions(max_memory={0: "24GB"}, **beside))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {"gpus": 8, "cpu": 1},
        {"gpus": b"24GB"},
        {"cpu": 1.5},
        {"disk": True},
        {"disk": [], "gpus": "none"},
        {"max_memory": {"9" * 5000: 1}},
        {"max_memory": {10**5000: 1}},
        {"max_memory": {(1, 2): 1}},
        {"max_memory": {0: 10**5000}},
        {"rig": 5},
        {"rig": b"rig.yaml"},
        {"rig": ["rig.yaml"]},
        {"gpus": "24GB", "host": 5},
        {"gpus": "24GB", "host": {"cpu": "x"}},
    ],
    ids=repr_short,
)
def test_options_of_another_type_are_a_wrong_call(options: Any) -> None:
    with pytest.raises(CallError):
        make_rig(RigOptions(**options))


@pytest.mark.parametrize(
    "max_memory",
    [{"cuda:cpu": 5}, {0: 5, "0": 6}, {"cuda:1": 5, "cuda:01": 6}, {1: 5, "01": 6}, {"cuda:0": 5, 0: 6}],
    ids=["cuda:cpu", "0 twice", "cuda:01", "01", "cuda:0 and 0"],
)
def test_keys_of_max_memory_name_each_device_once(max_memory: Any) -> None:
    with pytest.raises(CallError, match="max_memory"):
        make_rig(RigOptions(max_memory=max_memory))


@pytest.mark.parametrize(("budget", "reserve"), [(24 * GB, 240 * 10**6), (1000, 10), (99, 0), (80 * GB, 256 * 10**6)])
def test_the_reserve_of_a_named_budget_is_one_percent_and_at_most_256_megabytes(budget: int, reserve: int) -> None:
    for key, kind in (("0", "gpu"), ("cpu", "cpu")):
        device = next(d for d in make_rig(RigOptions(max_memory={key: budget})).devices if d.kind == kind)
        assert device.reserve_bytes == reserve
    assert make_rig(RigOptions(max_memory={"disk": budget})).device("disk").reserve_bytes == 0


def test_virtual_marks_the_gpus_and_nothing_else() -> None:
    for rig in (
        make_rig(RigOptions("2x60MB", cpu=1, virtual=True)),
        make_rig(RigOptions(max_memory={0: 5, 1: 5}, virtual=True)),
    ):
        assert [(device.name, device.virtual) for device in rig.devices] == [
            ("cuda:0", True),
            ("cuda:1", True),
            ("cpu", False),
        ]
    assert not any(device.virtual for device in make_rig(RigOptions("2x60MB", cpu=1)).devices)


def test_virtual_gpus_must_be_named() -> None:
    with pytest.raises(CallError, match="virtual needs gpus"):
        make_rig(RigOptions(virtual=True))


def test_the_most_gpus_make_a_rig_in_no_time() -> None:
    assert len(make_rig(RigOptions(f"{MOST_GPUS}x24GB", cpu=0)).gpus) == MOST_GPUS

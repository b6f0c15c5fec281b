"""A rig is what the user wrote, to the byte; what makes no sense is refused with the forms that do."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bigrun import rig as rig_module
from bigrun.errors import CallError
from bigrun.rig import Rig, available_memory, cgroup_headroom, make_rig, parse_gpus, probe_gpus

GB = 10**9


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
        ("none", []),
        ("", []),
        ("0", []),
    ],
    ids=repr,
)
def test_gpus_are_numbered_in_the_order_they_are_written(text: str, gigabytes: list[float]) -> None:
    found = parse_gpus(text)
    assert [(device.name, device.kind, device.budget_bytes) for device in found] == [
        (f"cuda:{i}", "gpu", int(size * GB)) for i, size in enumerate(gigabytes)
    ]


def test_a_card_brings_its_published_bandwidth_and_a_bare_size_an_assumed_one() -> None:
    by_card, by_size = parse_gpus("RTX3090,24GB")
    assert by_card.rates.bandwidth == 936e9
    assert by_card.rates.source != "assumed"
    assert by_size.rates.source == "assumed"
    assert not any("GPU" in line for line in make_rig("RTX3090", cpu=0).assumptions)
    assert any("GPU" in line and "500 GB/s" in line for line in make_rig("24GB", cpu=0).assumptions)


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
    ],
    ids=repr,
)
def test_a_rig_that_makes_no_sense_is_a_wrong_call_that_names_the_flag(text: str) -> None:
    with pytest.raises(CallError, match="--gpus"):
        parse_gpus(text)


def test_an_unknown_card_is_answered_with_the_known_ones() -> None:
    with pytest.raises(CallError, match=r"RTX9999.*RTX3090.*RTX4090"):
        parse_gpus("4xRTX9999")


def test_options_make_a_rig_of_gpus_then_cpu_then_disk() -> None:
    rig = make_rig("2x24GB", cpu="64GB", disk="500GB")
    assert budgets(rig) == {"cuda:0": 24 * GB, "cuda:1": 24 * GB, "cpu": 64 * GB, "disk": 500 * GB}
    assert list(budgets(rig)) == ["cuda:0", "cuda:1", "cpu", "disk"]
    assert [device.kind for device in rig.devices] == ["gpu", "gpu", "cpu", "disk"]
    assert [device.name for device in rig.gpus] == ["cuda:0", "cuda:1"]


def test_without_a_disk_option_the_disk_holds_nothing() -> None:
    assert "disk" not in budgets(make_rig("24GB", cpu="1GB"))


def test_a_cpu_budget_that_was_not_given_is_probed_and_said_to_be_assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rig_module, "available_memory", lambda: (30 * GB, 2 * GB))
    rig = make_rig("none")
    assert budgets(rig) == {"cpu": 30 * GB}
    assert any("30.0 GB" in line and "2.00 GB" in line and "--cpu" in line for line in rig.assumptions)
    assert not any("cpu" in line for line in make_rig("none", cpu="1GB").assumptions)


def test_max_memory_is_accelerates_and_an_unnamed_device_holds_nothing() -> None:
    assert budgets(make_rig(max_memory={0: "24GB", 1: "24GB"})) == {"cuda:0": 24 * GB, "cuda:1": 24 * GB, "cpu": 0}
    assert budgets(make_rig(max_memory={"cpu": "64GiB"})) == {"cpu": 64 * 2**30}
    assert budgets(make_rig(max_memory={})) == {"cpu": 0}
    named = make_rig(max_memory={"disk": 500, "cpu": 1000, "2": "1GB", "cuda:0": 2 * GB})
    assert budgets(named) == {"cuda:0": 2 * GB, "cuda:2": GB, "cpu": 1000, "disk": 500}
    assert list(budgets(named)) == ["cuda:0", "cuda:2", "cpu", "disk"]


def test_a_gpu_of_no_memory_is_as_one_that_is_not_named() -> None:
    assert budgets(make_rig(max_memory={0: 0, 1: 5, "cpu": 7})) == {"cuda:1": 5, "cpu": 7}


@pytest.mark.parametrize(
    "given",
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
def test_a_max_memory_that_makes_no_sense_is_a_wrong_call(given: Any) -> None:
    with pytest.raises(CallError, match="--max-memory"):
        make_rig(max_memory=given)


@pytest.mark.parametrize("beside", [{"gpus": "24GB"}, {"cpu": "1GB"}, {"disk": "1GB"}], ids=str)
def test_max_memory_and_another_rig_option_contradict_each_other(beside: dict[str, str]) -> None:
    with pytest.raises(CallError, match="--max-memory"):
        make_rig(max_memory={0: "24GB"}, **beside)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "given", [{"gpus": 8, "cpu": 1}, {"cpu": 1.5}, {"max_memory": {"9" * 5000: 1}}], ids=["gpus", "cpu", "huge key"]
)
def test_options_of_another_type_are_a_wrong_call(given: Any) -> None:
    with pytest.raises(CallError):
        make_rig(**given)


@pytest.mark.parametrize("given", [{"cuda:cpu": 5}, {0: 5, "0": 6}], ids=["cuda:cpu", "named twice"])
def test_keys_of_max_memory_name_each_device_once(given: Any) -> None:
    with pytest.raises(CallError, match="--max-memory"):
        make_rig(max_memory=given)


@pytest.mark.parametrize(("budget", "reserve"), [(24 * GB, 240 * 10**6), (1000, 10), (99, 0), (80 * GB, 256 * 10**6)])
def test_the_reserve_of_a_named_budget_is_one_percent_and_at_most_256_megabytes(budget: int, reserve: int) -> None:
    for key, kind in (("0", "gpu"), ("cpu", "cpu")):
        device = next(d for d in make_rig(max_memory={key: budget}).devices if d.kind == kind)
        assert device.reserve_bytes == reserve
    assert make_rig(max_memory={"disk": budget}).device("disk").reserve_bytes == 0


def test_virtual_marks_the_gpus_and_nothing_else() -> None:
    for rig in (make_rig("2x60MB", cpu=1, virtual=True), make_rig(max_memory={0: 5, 1: 5}, virtual=True)):
        assert [(device.name, device.virtual) for device in rig.devices] == [
            ("cuda:0", True),
            ("cuda:1", True),
            ("cpu", False),
        ]
    assert not any(device.virtual for device in make_rig("2x60MB", cpu=1).devices)


def test_virtual_gpus_must_be_named() -> None:
    with pytest.raises(CallError, match="--virtual needs --gpus"):
        make_rig(virtual=True)


def test_without_a_driver_no_gpu_is_found_and_torch_stays_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rig_module.os.path, "exists", lambda path: False)
    monkeypatch.setitem(sys.modules, "torch", None)  # an import of it would raise
    assert probe_gpus() == ()


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A control group of this process under a root of our own: /job/step of version 2."""
    real = Path.read_text

    def read_text(path: Path, *args: Any, **kwargs: Any) -> str:
        if str(path) == "/proc/self/cgroup":
            return "4:memory:/elsewhere\n0::/job/step\n"
        return real(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", read_text)
    folder = tmp_path / "job" / "step"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize(
    ("limit", "used", "left"), [("1000\n", "300\n", 700), ("1000", "1200", 0), ("max\n", "3", None)]
)
def test_headroom_of_a_control_group(tmp_path: Path, group: Path, limit: str, used: str, left: int | None) -> None:
    (group / "memory.max").write_text(limit)
    (group / "memory.current").write_text(used)
    assert cgroup_headroom(str(tmp_path)) == left


def test_no_control_group_means_no_limit(tmp_path: Path, group: Path) -> None:
    assert cgroup_headroom(str(tmp_path)) is None
    (group / "memory.max").write_text("not a number")
    assert cgroup_headroom(str(tmp_path)) is None


def test_a_limit_on_a_parent_group_counts(tmp_path: Path, group: Path) -> None:
    for folder, limit in ((group, "max"), (group.parent, "1000")):
        (folder / "memory.max").write_text(limit)
        (folder / "memory.current").write_text("300")
    assert cgroup_headroom(str(tmp_path)) == 700


@pytest.mark.parametrize(
    ("free", "headroom", "expected"),
    [(100 * GB, None, (98 * GB, 2 * GB)), (10 * GB, None, (9 * GB, GB)), (100 * GB, 10 * GB, (9 * GB, GB))],
    ids=["2 GB at most", "a tenth", "control group"],
)
def test_the_probed_host_keeps_a_tenth_back_and_two_gigabytes_at_most(
    monkeypatch: pytest.MonkeyPatch, free: int, headroom: int | None, expected: tuple[int, int]
) -> None:
    import psutil

    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    monkeypatch.setattr(rig_module, "cgroup_headroom", lambda: headroom)
    assert available_memory() == expected

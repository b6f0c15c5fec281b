"""A rig file says what the devices are, to the byte and the byte per second; a mistake in it is named with its mend."""

import json
import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st

from bigrun.devices import rig_file
from bigrun.devices.cards import card
from bigrun.devices.links import LINKS
from bigrun.devices.make_rig import RigOptions, make_rig
from bigrun.devices.rates import ASSUMED_CPU, ASSUMED_GPU, ASSUMED_ROOFS, cpu_rates, gpu_rates
from bigrun.devices.rig import MOST_GPUS, Device, Rig
from bigrun.devices.rig_file import read_rig
from bigrun.errors import CallError
from support.commands import run_command

GB = 10**9
TERA = 10**12
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(content: Any, name: str = "rig.yaml") -> Path:
        path = tmp_path / name
        if not isinstance(content, str | bytes):
            content = json.dumps(content) if name.endswith(".json") else yaml.safe_dump(content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def budgets(rig: Rig) -> dict[str, int]:
    return {device.name: device.budget_bytes for device in rig.devices}


def test_the_file_that_the_documentation_shows_is_a_rig(write: Write) -> None:
    assert rig_file.__doc__
    shown = rig_file.__doc__[rig_file.__doc__.index("gpus:") :]
    rig = read_rig(write(shown))
    assert budgets(rig) == {"cuda:0": 22 * GB, "cuda:1": 22 * GB, "cpu": 64 * GB, "disk": 500 * GB}
    assert all(gpu.rates.read == gpu_rates(card("RTX3090")).read for gpu in rig.gpus)
    assert all(gpu.rates.link == LINKS["pcie4x8"].usable for gpu in rig.gpus)
    assert rig.device("cpu").rates.read == pytest.approx(0.85 * 80e9)
    assert rig.device("disk").rates.read == 3e9


def only_gpu(rig: Rig) -> Device:
    (gpu,) = rig.gpus
    return gpu


def test_a_card_alone_is_that_card_with_all_of_its_memory_that_a_run_can_take(write: Write) -> None:
    gpu = only_gpu(read_rig(write({"gpus": [{"card": "RTX3090"}]})))
    assert (gpu.name, gpu.kind, gpu.budget_bytes, gpu.virtual) == ("cuda:0", "gpu", card("RTX3090").usable_bytes, False)
    assert gpu.rates == gpu_rates(card("RTX3090"))


def test_memory_alone_is_a_gpu_that_nothing_else_is_known_of(write: Write) -> None:
    gpu = only_gpu(read_rig(write({"gpus": [{"memory": "24GB"}]})))
    assert (gpu.budget_bytes, gpu.rates) == (24 * GB, ASSUMED_GPU)


@pytest.mark.parametrize(
    ("key", "value", "changed"),
    [
        ("memory", "22GB", {}),
        ("bandwidth", "1000GB/s", {"read": 800e9, "cache": 700e9, "elements": 125e9}),
        ("bandwidth", 10**12, {"read": 800e9, "cache": 700e9, "elements": 125e9}),
        ("int8", "100TOPS", {"int8": 30e12}),
        ("fp16", "50TFLOPS", {"wide": 15e12, "attention": 5e12}),
        ("link", "pcie3x4", {"link": LINKS["pcie3x4"].usable}),
        ("link", "12GB/s", {"link": 12e9}),
        ("link", 12 * GB, {"link": 12e9}),
    ],
    ids=lambda value: str(value)[:12],
)
@pytest.mark.parametrize("base", [{"card": "RTX3090"}, {"memory": "22GB"}], ids=["card", "memory"])
def test_each_key_of_a_gpu_changes_what_it_names_and_nothing_else(
    write: Write, base: dict[str, str], key: str, value: Any, changed: dict[str, float]
) -> None:
    before = only_gpu(read_rig(write({"gpus": [base]}))).rates
    gpu = only_gpu(read_rig(write({"gpus": [{**base, key: value}]})))
    assert gpu.budget_bytes == (22 * GB if "memory" in (key, *base) else card("RTX3090").usable_bytes)
    assert gpu.card == base.get("card", "")
    for name in ("read", "cache", "int8", "wide", "attention", "elements", "block", "link", "overlap"):
        assert getattr(gpu.rates, name) == pytest.approx(changed.get(name, getattr(before, name))), name
    assert ("given" in gpu.rates.source) == bool(changed)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("3090", "RTX3090"),
        (3090, "RTX3090"),
        ("GeForce RTX 3090", "RTX3090"),
        ("NVIDIA RTX A4000", "RTXA4000"),
        ("a100 80gb pcie", "A100-PCIE-80GB"),
        ("4060ti 16GB", "RTX4060Ti-16GB"),
    ],
    ids=str,
)
def test_a_card_may_be_spelt_as_people_spell_it(write: Write, name: Any, known: str) -> None:
    for file in ("rig.yaml", "rig.json"):
        gpu = only_gpu(read_rig(write({"gpus": [{"card": name}]}, file)))
        assert (gpu.budget_bytes, gpu.rates) == (card(known).usable_bytes, gpu_rates(card(known)))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("pcie4x8", "pcie4x8"),
        ("PCIe 4.0 x8", "pcie4x8"),
        ("gen3x1", "pcie3x1"),
        ("OCuLink", "oculink"),
        ("Thunderbolt 4", "thunderbolt4"),
        ("tb5", "thunderbolt5"),
        ("USB4", "usb4"),
        ("nvlink-bridge-2080ti", "nvlink-bridge-2080ti"),
    ],
    ids=lambda text: text.replace(" ", "-"),
)
def test_a_link_may_be_named_and_has_what_copies_reach_of_it(write: Write, text: str, name: str) -> None:
    gpu = only_gpu(read_rig(write({"gpus": [{"memory": "8GB", "link": text}]})))
    assert gpu.rates.link == LINKS[name].usable


@pytest.mark.parametrize(
    ("text", "rate"),
    [("80GB/s", 80e9), ("80 GB/s", 80e9), (" 0.5TB/s ", 500e9), ("80GB", 80e9), ("1GiB/s", 2**30), (80 * GB, 80e9)],
    ids=str,
)
def test_a_rate_is_a_size_a_second(write: Write, text: Any, rate: float) -> None:
    rig = read_rig(write({"gpus": [{"memory": "8GB", "link": text}], "disk": {"memory": "1GB", "bandwidth": text}}))
    assert (only_gpu(rig).rates.link, rig.device("disk").rates.read) == (rate, rate)


@pytest.mark.parametrize("text", ["284TOPS", "284 TOPS", "284T", "284tflops", "284TOPS/s", "284.0T"])
def test_operations_are_written_in_any_of_their_ways(write: Write, text: str) -> None:
    rates = only_gpu(read_rig(write({"gpus": [{"memory": "8GB", "int8": text, "fp16": text}]}))).rates
    assert rates.int8 == pytest.approx(284 * TERA / 2 * 0.6)
    assert rates.wide == pytest.approx(284 * TERA / 2 * 0.6)
    assert rates.attention == pytest.approx(284 * TERA / 2 * 0.2)


def test_entries_are_numbered_in_their_order_as_often_as_they_count(write: Write) -> None:
    entries = [{"card": "T4", "count": 2}, {"memory": "8GB"}, {"card": "RTX3090", "count": 1, "memory": "20GB"}]
    rig, t4 = read_rig(write({"gpus": entries})), card("T4").usable_bytes
    assert budgets(rig) == {"cuda:0": t4, "cuda:1": t4, "cuda:2": 8 * GB, "cuda:3": 20 * GB, "cpu": 0}
    assert [gpu.rates for gpu in rig.gpus] == [
        *[gpu_rates(card("T4"))] * 2,
        ASSUMED_GPU,
        gpu_rates(card("RTX3090")),
    ]


def test_as_many_gpus_as_can_be_planned_for_may_be_described(write: Write) -> None:
    assert len(read_rig(write({"gpus": [{"memory": "8GB", "count": MOST_GPUS}]})).gpus) == MOST_GPUS
    entries = [{"card": "RTX3090", "memory": "22GB", "link": "pcie4x8"}] * MOST_GPUS
    for name in ("rig.yaml", "rig.json"):
        content = json.dumps({"gpus": entries})
        assert len(read_rig(write(content, name)).gpus) == MOST_GPUS


def test_a_device_that_is_not_described_holds_nothing(write: Write) -> None:
    assert budgets(read_rig(write({"gpus": [{"memory": "8GB"}]}))) == {"cuda:0": 8 * GB, "cpu": 0}
    assert budgets(read_rig(write({"cpu": {"memory": "8GB"}}))) == {"cpu": 8 * GB}
    assert budgets(read_rig(write({"disk": {"memory": "8GB"}}))) == {"cpu": 0, "disk": 8 * GB}
    assert budgets(read_rig(write("gpus:\ncpu:\n  memory: 8GB\ndisk:\n"))) == {"cpu": 8 * GB}
    assert budgets(read_rig(write({"gpus": [], "cpu": {"memory": 0}}))) == {"cpu": 0}


def test_a_cpus_bandwidth_brings_cores_in_proportion(write: Write) -> None:
    plain = read_rig(write({"cpu": {"memory": "64GB"}})).device("cpu")
    assert plain.rates == ASSUMED_CPU
    double = read_rig(write({"cpu": {"memory": "64GB", "bandwidth": 2 * ASSUMED_ROOFS[0]}})).device("cpu")
    read, int8, wide = (2 * roof for roof in ASSUMED_ROOFS)
    assert double.rates == cpu_rates(read, int8, wide, "given")


def test_a_disks_bandwidth_is_what_it_reads_and_what_the_model_loads_at(write: Write) -> None:
    def rig(disk: dict[str, Any]) -> Rig:
        return make_rig(RigOptions(rig=write({"gpus": [{"memory": "8GB"}], "disk": disk})))

    slow, plain = rig({"memory": "1TB", "bandwidth": "250MB/s"}), rig({"memory": "1TB"})
    assert slow.device("disk").rates == replace(plain.device("disk").rates, read=0.25e9, source="given")
    assert plain.device("disk").rates.read == 2e9
    assert slow.loading.disk == 0.25e9 < plain.loading.disk == 2e9


def test_what_the_file_gives_is_not_assumed_and_what_it_leaves_out_is(write: Write) -> None:
    path = write({"cpu": {"memory": "8GB", "bandwidth": "80GB/s"}, "disk": {"memory": "1TB", "bandwidth": "3GB/s"}})
    rig = make_rig(RigOptions(rig=path))
    assert rig.assumptions == ()
    assert rig.said("given") == (f"speeds as {path} gives them", "disk: 3 GB/s")
    assert rig.measured == ()
    rig = make_rig(
        RigOptions(rig=write({"cpu": {"memory": "8GB"}, "disk": {"memory": "1TB"}, "gpus": [{"memory": "8GB"}]}))
    )
    assert rig.measured == ()
    for words in ("cpu: weights 34 GB/s, not measured", "GPU known by its size alone", "disk: 2 GB/s"):
        assert any(words in line for line in rig.assumptions), words


def test_a_gpu_that_the_file_describes_in_part_is_guessed_for_the_rest_and_the_plan_says_so(write: Write) -> None:
    parts = {"memory": "8GB", "bandwidth": "500GB/s", "int8": "100TOPS"}
    partly, wholly = (
        make_rig(RigOptions(rig=write({"gpus": [entry]}))) for entry in (parts, {**parts, "fp16": "50TOPS"})
    )
    assert any("guessed" in line for line in partly.assumptions)
    assert not any("guessed" in line for line in wholly.assumptions)
    by_card = make_rig(RigOptions(rig=write({"gpus": [{"card": "3090", "link": "pcie4x4"}]})))
    assert not any("guessed" in line for line in by_card.assumptions)


def test_virtual_makes_the_files_gpus_virtual_and_leaves_them_their_speeds(write: Write) -> None:
    path = write({"gpus": [{"card": "RTX3090", "memory": "60MB", "link": "pcie4x4"}], "cpu": {"memory": "1GB"}})
    rig = make_rig(RigOptions(rig=path, virtual=True))
    assert [device.virtual for device in rig.devices] == [True, False]
    assert rig.gpus == (replace(only_gpu(make_rig(RigOptions(rig=path))), virtual=True),)
    assert any("virtual GPUs are predicted as if they were there" in line for line in rig.assumptions)
    assert any("published" in line for line in rig.assumptions)


# One rig in both languages, and the other's file name for a language that is a subset of it.
BOTH = {
    "gpus": [
        {"card": "RTX3090", "count": 2, "memory": "22GB", "link": "PCIe 4.0 x8"},
        {"memory": 12 * GB, "bandwidth": "360GB/s", "int8": "102TOPS", "fp16": "25.5TOPS", "link": "12GB/s"},
    ],
    "cpu": {"memory": "64GiB", "bandwidth": "80GB/s"},
    "disk": {"memory": "500GB", "bandwidth": 3 * GB},
}


def plain(rig: Rig) -> list[tuple[Any, ...]]:
    return [(d.name, d.budget_bytes, replace(d.rates, source=""), d.virtual, d.label) for d in rig.devices]


def test_yaml_and_json_say_the_same(write: Write) -> None:
    expected = plain(read_rig(write(BOTH)))
    assert [budget for _, budget, *_ in expected] == [22 * GB, 22 * GB, 12 * GB, 64 * 2**30, 500 * GB]
    assert plain(read_rig(write(BOTH, "rig.json"))) == expected
    assert plain(read_rig(write(json.dumps(BOTH), "rig.yml"))) == expected  # JSON is YAML
    assert plain(read_rig(write(json.dumps(BOTH, indent=4), "RIG"))) == expected
    assert plain(read_rig(write(yaml.safe_dump(BOTH, default_flow_style=True)))) == expected


def test_a_byte_order_mark_and_the_lines_of_windows_change_nothing(write: Write) -> None:
    for name in ("rig.yaml", "rig.json"):
        content = write(BOTH, name).read_bytes().replace(b"\n", b"\r\n")
        expected = plain(read_rig(write(BOTH, name)))
        assert plain(read_rig(write(b"\xef\xbb\xbf" + content, name))) == expected


def test_a_rig_may_come_through_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("cpu: {memory: 1GB}",))
    writer.start()
    assert budgets(read_rig(pipe)) == {"cpu": GB}
    writer.join()


GPU = "gpus:\n- {card: RTX3090, %s}\n"
MEMORY = '{"cpu": {"memory": %s}}'
SIZED = "gpus:\n- {memory: 8GB, %s}\n"
# (file, what is wrong, how to mend it): both in the message, after the name of the file
MISTAKES: dict[str, tuple[str | bytes, str, str]] = {
    # not a rig at all
    "an empty file": ("", "is empty", "describe gpus"),
    "nothing but a comment": ("# my rig\n", "is empty", "describe gpus"),
    "not YAML": ("cpu:\n  memory: 1GB\n gpus: [\n", "line 3", "not YAML"),
    "a bracket left open": ("cpu: {memory: 1GB", "line 1", "expected ',' or '}'"),
    "a tab": ("gpus:\n\t- memory: 1GB\n", "line 2", "found character '\\t'"),
    "a null character": ("cpu: 1\x00", "not YAML", "#x0000"),
    "two documents": ("cpu: {memory: 1GB}\n---\ncpu: {memory: 2GB}\n", "line 2", "another document"),
    "Latin-1": ("gpus: [{card: é}]".encode("latin-1"), "not UTF-8", "YAML or JSON"),
    "UTF-16": ("cpu: {memory: 1GB}".encode("utf-16"), "not UTF-8", "YAML or JSON"),
    "a binary file": (bytes(range(256)) * 8, "not UTF-8", "YAML or JSON"),
    "two megabytes": (b"# " + b"x" * 2 * 2**20, "larger than 256 KiB", "name the YAML or JSON file"),
    "a list at the top": ("- card: RTX3090\n", "the rig: write keys", "gpus, cpu, disk"),
    "a text at the top": ("4xRTX3090", "the rig: write keys", "gpus, cpu, disk"),
    "a number at the top": ("24", "the rig: write keys", "gpus, cpu, disk"),
    # keys
    "an unknown device": ("gpu: []\n", "no key 'gpu'", "did you mean 'gpus'"),
    "a device in capitals": ("CPU: {memory: 1GB}\n", "no key 'CPU'", "did you mean 'cpu'"),
    "a device like no other": ("ramdisk_of_mine: 1\n", "no key 'ramdisk_of_mine'", "gpus, cpu, disk"),
    "an unknown key of a gpu": (GPU % "memroy: 22GB", "no key 'memroy'", "did you mean 'memory'"),
    "an unknown key of the cpu": ("cpu: {memory: 1GB, cores: 8}", "cpu: no key 'cores'", "memory, bandwidth"),
    "a link of the disk": ("disk: {memory: 1GB, link: pcie4x4}", "disk: no key 'link'", "memory, bandwidth"),
    "a key that is a number": ("gpus: [{1: 2}]", "no key '1'", "card, count"),
    "a key that is nothing": ("gpus: [{~: 2}]", "no key 'None'", "card, count"),
    "a key that is true": ("on: {memory: 1GB}", "no key 'True'", "gpus, cpu, disk"),
    "a key that is a list": ("? [gpus]\n: 1\n", "line 1", "unhashable key"),
    "a device twice": ("cpu: {memory: 1GB}\ncpu: {memory: 2GB}\n", "line 2: 'cpu' is given twice", "keep one"),
    "a key twice": (GPU % "link: pcie4x8,\n   link: pcie4x4", "line 3: 'link' is given twice", "keep one"),
    "a key twice, once in quotes": (SIZED % '"memory": 1GB', "'memory' is given twice", "keep one"),
    # kinds
    "gpus that are one entry": ("gpus: {card: RTX3090}", "gpus: write a list", "one entry for each kind"),
    "gpus that are a text": ("gpus: 4xRTX3090", "gpus: write a list", "one entry for each kind"),
    "gpus that are false": ("gpus: false", "gpus: write a list", "one entry for each kind"),
    "gpus that are zero": ("gpus: 0", "gpus: write a list", "one entry for each kind"),
    "gpus that are an empty text": ("gpus: ''", "gpus: write a list", "one entry for each kind"),
    "a gpu that is a name": ("gpus: [RTX3090]", r"gpus\[0\]: write keys", "card, count"),
    "a gpu that is a list": ("gpus: [{memory: 1GB}, [{card: T4}]]", r"gpus\[1\]: write keys", "card, count"),
    "a gpu that is nothing": ("gpus: [~]", r"gpus\[0\]: write keys", "card, count"),
    "a cpu that is a size": ("cpu: 64GB", "cpu: write keys", "memory, bandwidth"),
    "a disk that is a list": ("disk: [{memory: 1GB}]", "disk: write keys", "memory, bandwidth"),
    "a disk that is false": ("disk: false", "disk: write keys", "memory, bandwidth"),
    # counts
    "a count of none": (GPU % "count: 0", r"gpus\[0\]: count is 0", "from 1 to 1024"),
    "a count below none": (GPU % "count: -1", "count is -1", "from 1 to 1024"),
    "a count of half": (GPU % "count: 1.5", "count is 1.5", "from 1 to 1024"),
    "a count that is true": (GPU % "count: true", "count is True", "from 1 to 1024"),
    "a count that is a text": (GPU % "count: two", "count is 'two'", "from 1 to 1024"),
    "a count that is nothing": (GPU % "count:", "count is None", "from 1 to 1024"),
    "a count that is no number": (GPU % "count: .nan", "count is nan", "from 1 to 1024"),
    "a count without end": (GPU % "count: .inf", "count is inf", "from 1 to 1024"),
    "a count of a billion": (GPU % "count: 1000000000", "count is 1000000000", "from 1 to 1024"),
    "too many together": (
        GPU % "count: 1000" + "- {memory: 8GB, count: 25}\n",
        r"gpus\[1\].*1024 GPUs",
        "lower a count",
    ),
    # cards
    "an unknown card": ("gpus: [{card: RTX3095}]", r"gpus\[0\]: no card 'RTX3095'", "RTX3090"),
    "a card that is a list": ("gpus: [{card: [RTX3090]}]", r"card is \['RTX3090'\]", "such as RTX3090"),
    "a card that is nothing": ("gpus: [{card: }]", "card is None", "such as RTX3090"),
    "a card that is true": ("gpus: [{card: yes}]", "card is True", "such as RTX3090"),
    "a card that is a fraction": ("gpus: [{card: 30.90}]", "card is 30.9", "such as RTX3090"),
    "a card of no name": ("gpus: [{card: ''}]", "no card ''", "memory"),
    # sizes
    "no card and no memory": ("gpus: [{count: 2}]", r"gpus\[0\]: memory is missing", "memory: 64GB"),
    "an empty gpu": ("gpus: [{}]", r"gpus\[0\]: memory is missing", "memory: 64GB"),
    "a cpu of no size": ("cpu: {bandwidth: 80GB/s}", "cpu: memory is missing", "memory: 64GB"),
    "a disk of no size": ("disk: {}", "disk: memory is missing", "memory: 64GB"),
    "memory without a unit": ("gpus: [{memory: 24}]", "memory: 24 lacks a unit", "24GB"),
    "a cpu's memory without a unit": ("cpu: {memory: 64}", "cpu: memory: 64 lacks a unit", "64GB"),
    "memory in words": ("cpu: {memory: plenty}", "memory: 'plenty' is not a size", "24GB"),
    "half a unit": ("cpu: {memory: 64G}", "'64G' is not a size", "24GB"),
    "memory that is true": ("cpu: {memory: true}", "True is not a size", "24GB"),
    "memory that is a float": ("cpu: {memory: 64.5}", "64.5 is not a size", "24GB"),
    "memory that is nothing": ("cpu: {memory: }", "None is not a size", "24GB"),
    "memory that is a list": ("cpu: {memory: [64GB]}", r"\['64GB'\] is not a size", "24GB"),
    "memory that is an object": ("cpu: {memory: {size: 64GB}}", "is not a size", "24GB"),
    "memory that is a date": ("cpu: {memory: 2026-01-01}", "is not a size", "24GB"),
    "memory on a day that never was": ("cpu: {memory: 2026-99-99}", "not YAML that bigrun reads", "month"),
    "memory that is bytes": ("cpu: {memory: !!binary aGk=}", "is not a size", "24GB"),
    "memory that is no number": ("cpu: {memory: .nan}", "nan is not a size", "24GB"),
    "memory without end": ("cpu: {memory: .inf}", "inf is not a size", "24GB"),
    "memory below none": ("cpu: {memory: -1}", "cpu: memory: .*out of range", "64GB"),
    "memory below none, with its unit": ("cpu: {memory: -64GB}", "'-64GB' is not a size", "24GB"),
    "memory of ten exabytes": ("cpu: {memory: 10000000TB}", "out of range", "64GB"),
    "memory of seventy digits": ("cpu: {memory: %s}" % ("9" * 70), "out of range", "64GB"),
    "memory of ninety digits, base 16": ("cpu: {memory: 0x%s}" % ("f" * 90), "out of range", "64GB"),
    "a gpu of no memory": ("gpus: [{memory: 0GB}]", r"gpus\[0\]: a GPU of no memory", "leave it out"),
    "more than the card has": (GPU % "memory: 48GB", "more than the 25.8 GB of a RTX3090", "write less"),
    # rates
    "a bandwidth of nothing": (SIZED % "bandwidth: 0", r"gpus\[0\]: bandwidth: 0 bytes/s", "80GB/s"),
    "a bandwidth below nothing": (SIZED % "bandwidth: -80GB/s", "bandwidth: '-80GB/s' is not a rate", "80GB/s"),
    "a bandwidth without a unit": (SIZED % "bandwidth: 936", "936 bytes/s is out of range", "80GB/s"),
    "a bandwidth beyond belief": (SIZED % "bandwidth: 100000TB/s", "1e.17 bytes/s is out of range", "80GB/s"),
    "a bandwidth a minute": (SIZED % "bandwidth: 80GB/min", "'80GB/min' is not a rate", "80GB/s"),
    "a bandwidth in bits": (SIZED % "bandwidth: 80Gbit/s", "'80Gbit/s' is not a rate", "80GB/s"),
    "a bandwidth that is nothing": (SIZED % "bandwidth:", "None is not a rate", "80GB/s"),
    "a bandwidth that is a float": (SIZED % "bandwidth: 9.36e+11", "936000000000.0 is not a rate", "80GB/s"),
    "a bandwidth that is a list": (SIZED % "bandwidth: [80GB/s]", "is not a rate", "80GB/s"),
    "a cpu's bandwidth of nothing": ("cpu: {memory: 1GB, bandwidth: 0GB/s}", "cpu: bandwidth", "80GB/s"),
    "a disk's bandwidth of nothing": ("disk: {memory: 1GB, bandwidth: 0}", "disk: bandwidth", "80GB/s"),
    "a disk's bandwidth that is true": (
        "disk: {memory: 1GB, bandwidth: on}",
        "disk: bandwidth: True is not a rate",
        "80GB/s",
    ),
    "operations without a unit": (SIZED % "int8: 284", "int8: 284 is not a rate", "284TOPS"),
    "operations as a text without a unit": (SIZED % "fp16: '71'", "fp16: '71' is not a rate", "284TOPS"),
    "no operations": (SIZED % "int8: 0TOPS", "'0TOPS' is not a rate", "284TOPS"),
    "operations below none": (SIZED % "int8: -1TOPS", "'-1TOPS' is not a rate", "284TOPS"),
    "a millionth of an operation": (SIZED % "int8: 0.000000000000001T", "is not a rate", "284TOPS"),
    "operations beyond belief": (SIZED % "int8: 9999999TOPS", "'9999999TOPS' is not a rate", "284TOPS"),
    "operations without end": (SIZED % "int8: .inf", "inf is not a rate", "284TOPS"),
    "operations that are a list": (SIZED % "int8: [284TOPS]", "is not a rate", "284TOPS"),
    "an unknown link": (GPU % "link: pcie6x16", r"gpus\[0\]: link: no link 'pcie6x16'", "pcie3, pcie4 or pcie5"),
    "a link of three lanes": (GPU % "link: pcie4x3", "no link 'pcie4x3'", "x1, x2, x4, x8 or x16"),
    "a link of no rate": (GPU % "link: 0GB/s", "link: 0 bytes/s", "80GB/s"),
    "a link that is a count of lanes": (GPU % "link: 16", "link: 16 bytes/s is out of range", "80GB/s"),
    "a link that is nothing": (GPU % "link:", "link: None is not a rate", "80GB/s"),
    "a link that is an object": (GPU % "link: {name: pcie4x8}", "link: .* is not a rate", "80GB/s"),
    # attacks
    "a tag that runs a program": ("cpu: !!python/object/apply:os.system ['touch ran']", "line 1", "python/object"),
    "a tag that names an object": ("cpu: !!python/name:os.system", "line 1", "python/name"),
    "a tag of one's own": ("cpu: !rig {memory: 1GB}", "line 1", "'!rig'"),
    "a set of gpus": ("gpus: !!set {RTX3090}", "gpus: write a list", "one entry for each kind"),
    "an alias": ("cpu: &a {memory: 1GB}\ndisk: *a\n", "line 2: aliases", "write each entry out"),
    "a merged alias": ("cpu: &a {memory: 1GB}\ndisk:\n  <<: *a\n", "line 3: aliases", "write each entry out"),
    "a merge of nothing": ("cpu:\n  <<: nothing\n", "line 2", "expected a mapping"),
    "a rig within itself": ("gpus: &a [*a]\n", "line 1: aliases", "write each entry out"),
    "a billion laughs": (
        "a: &a [x,x,x,x]\n" + "".join(f"{y}: &{y} [*{x},*{x},*{x},*{x}]\n" for x, y in zip("abcdefgh", "bcdefghi")),  # noqa: B905
        "line 2: aliases",
        "write each entry out",
    ),
    "a number of base 60 and 50,000 digits": ("gpus: [{count: %s1}]" % ("1:" * 50_000), "longer than any", "quote"),
    "a number of 50,000 digits of base 16": ("gpus: [{count: 0x%s}]" % ("f" * 50_000), "longer than any", "quote"),
    "a key of 100,000 letters": ("? %s\n: 1\n" % ("k" * 100_000), "longer than any", "quote"),
    "a quote that is left open": ("cpu: {memory: '1GB}\n" + "# notes\n" * 1000, "line", "not YAML"),
    "brackets 100,000 deep": ("[" * 100_000, "line 1: nested too deeply", "three levels"),
    "brackets that a comment seems to close": (
        "#" + "]" * 50_000 + "\n" + "[" * 50_000,
        "line 2: nested",
        "three levels",
    ),
    "braces 40,000 deep": ("{a: " * 40_000, "nested too deeply", "three levels"),
    "dashes 100,000 deep": ("- " * 100_000, "nested too deeply", "three levels"),
    "questions 100,000 deep": ("? " * 100_000, "nested too deeply", "three levels"),
    "lines indented 600 deep": ("".join(" " * i + "a:\n" for i in range(600)), "line 40: nested", "three levels"),
}
JSON_MISTAKES: dict[str, tuple[str | bytes, str, str]] = {
    "an empty file": ("", "is empty", "describe gpus"),
    "null": ("null", "is empty", "describe gpus"),
    "YAML": ("cpu:\n  memory: 1GB\n", "not JSON", "line 1 column 1"),
    "a comma too many": ('{"cpu": {"memory": "1GB",\n}}', "not JSON", "line 2"),
    "a comment": ('{} // my rig', "not JSON", "line 1"),
    "a list at the top": ("[]", "the rig: write keys", "gpus, cpu, disk"),
    "a key twice": ('{"cpu": {"memory": "1GB", "memory": "2GB"}}', "'memory' is given twice", "keep one"),
    "a device twice": ('{"gpus": [], "cpu": null, "gpus": []}', "'gpus' is given twice", "keep one"),
    "NaN": ('{"gpus": [{"memory": NaN}]}', "nan is not a size", "24GB"),
    "Infinity": ('{"disk": {"memory": "1GB", "bandwidth": Infinity}}', "inf is not a rate", "80GB/s"),
    "a number too large for a float": ('{"gpus": [{"count": 1e999}]}', "count is inf", "from 1 to 1024"),
    "4,000 digits": ('{"gpus": [{"count": %s}]}' % ("9" * 4000), "count is 9999", "from 1 to 1024"),
    "5,000 digits": ('{"gpus": [{"count": %s}]}' % ("9" * 5000), "not JSON", ""),
    "a card of 100,000 letters": ('{"gpus": [{"card": "%s"}]}' % ("R" * 100_000), "card is 'RRRR", "such as RTX3090"),
    "memory of 100,000 letters": ('{"cpu": {"memory": "%s"}}' % ("G" * 100_000), "out of range", "64GB"),
    "a link of 100,000 letters": ('{"gpus": [{"memory": "8GB", "link": "%s"}]}' % ("p" * 100_000), "no link", "pcie3"),
    "a key of 100,000 letters": ('{"%s": 1}' % ("k" * 100_000), "no key 'kkkk", "gpus, cpu, disk"),
    "20,000 keys": (json.dumps({f"k{i}": 1 for i in range(20_000)}), "no key 'k0'", "gpus, cpu, disk"),
    "20,000 keys, the last of them twice": (
        json.dumps({f"k{i}": 1 for i in range(20_000)})[:-1] + ', "k19999": 1}', "'k19999' is given twice", "keep one",
    ),
    "half a character": ('{"cpu": {"memory": "\\ud800"}}', "is not a size", "24GB"),
    "brackets 100,000 deep": ("[" * 100_000, "nested too deeply", "three levels"),
    "brackets 100,000 deep and closed": ("[" * 100_000 + "]" * 100_000, "nested too deeply", "three levels"),
    "brackets that a text seems to close": (
        MEMORY % ('["]", ' * 300 + "1" + "]" * 300), "nested too deeply", "three levels",
    ),
    "memory 45 deep": (MEMORY % ("[" * 45 + "]" * 45), "nested too deeply", "three levels"),
    "memory 10 deep": (MEMORY % ("[" * 10 + "]" * 10), "is not a size", "24GB"),
    "a binary file": (bytes(range(256)) * 8, "not UTF-8", "YAML or JSON"),
}  # fmt: skip
CASES = [
    *(pytest.param("rig.yaml", *mistake, id=f"yaml: {name}") for name, mistake in MISTAKES.items()),
    *(pytest.param("rig.json", *mistake, id=f"json: {name}") for name, mistake in JSON_MISTAKES.items()),
]


@pytest.mark.parametrize(("name", "content", "wrong", "mend"), CASES)
def test_a_mistake_is_named_with_its_file_and_entry_and_its_mend(
    write: Write, monkeypatch: pytest.MonkeyPatch, name: str, content: str | bytes, wrong: str, mend: str
) -> None:
    path = write(content, name)
    monkeypatch.chdir(path.parent)
    began = time.perf_counter()
    with pytest.raises(CallError, match=wrong) as caught:
        make_rig(RigOptions(rig=path))
    assert time.perf_counter() - began < 5
    message = str(caught.value)
    assert message.startswith(f"rig {path}: ")
    assert mend in message
    assert "\n" not in message
    assert len(message) < len(str(path)) + 320
    assert os.listdir() == [name]  # nothing ran


@pytest.mark.parametrize("depth", [35, 60, 300, 900, 960, 980, 990, 1000, 1100])
@pytest.mark.parametrize("name", ["rig.yaml", "rig.json"])
def test_no_depth_of_nesting_is_a_traceback(write: Write, name: str, depth: int) -> None:
    with pytest.raises(CallError):
        make_rig(RigOptions(rig=write(MEMORY % ("[" * depth + "1" + "]" * depth), name)))


def test_ten_thousand_levels_of_indentation_are_refused(write: Write) -> None:
    with pytest.raises(CallError, match="larger than"):  # 50 MB of spaces
        make_rig(RigOptions(rig=write(b"".join(b" " * i + b"a:\n" for i in range(10_000)))))


@pytest.mark.parametrize(
    ("rig", "wrong"),
    [
        ("missing.yaml", "cannot be read: No such file"),
        (".", "cannot be read: Is a directory"),
        ("", "cannot be read: Is a directory"),
        ("x" * 5000, "cannot be read: File name too long"),
        ("a\0b", "cannot be read: embedded null"),
        ("/dev/zero", "larger than"),
        ("/dev/null", "is empty"),
    ],
    ids=["missing", "a directory", "no name", "a name too long", "a null character", "without end", "nothing"],
)
def test_a_file_that_cannot_be_read_is_a_wrong_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rig: str, wrong: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CallError, match=f"^rig .*{wrong}"):
        make_rig(RigOptions(rig=rig))


@pytest.mark.parametrize(
    "beside",
    [{"gpus": "24GB"}, {"gpus": "none"}, {"cpu": "1GB"}, {"cpu": 0}, {"disk": "1GB"}, {"max_memory": {}}],
    ids=str,
)
def test_a_rig_file_and_another_rig_option_contradict_each_other(write: Write, beside: dict[str, Any]) -> None:
    with pytest.raises(CallError, match="rig already describes every device; leave out gpus"):
        make_rig(RigOptions(rig=write(BOTH), **beside))


def test_virtual_needs_gpus_in_the_file(write: Write) -> None:
    with pytest.raises(CallError, match=r"rig\.yaml: virtual needs gpus in the file"):
        make_rig(RigOptions(rig=write({"cpu": {"memory": "1GB"}}), virtual=True))


@pytest.mark.parametrize(
    "content",
    ["cpu: {memroy: 1GB}", "cpu: !!python/object/apply:os.abort []", "[" * 10_000, "\x00", "gpus: [{card: 9}]"],
)
def test_on_the_command_line_a_mistake_is_one_line_and_exit_status_2(write: Write, content: str) -> None:
    result = run_command("plan", "--rig", str(write(content)))
    assert result.exit_code == 2
    assert result.stderr.startswith("bigrun: --rig ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def rig_or_message(path: Path) -> Rig | str:
    try:
        return make_rig(RigOptions(rig=path))
    except CallError as error:
        return str(error)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
    | st.sampled_from(["24GB", "RTX3090", "pcie4x8", "80GB/s", "284TOPS", 2, 24 * GB]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["gpus", "cpu", "disk", *rig_file.GPU_KEYS]) | st.text(max_size=6), inner, max_size=4
    ),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(VALUES | st.fixed_dictionaries({"gpus": st.lists(VALUES, max_size=3), "cpu": VALUES}))
def test_any_values_are_a_rig_or_a_wrong_call(tmp_path_factory: pytest.TempPathFactory, values: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(values))
    made = rig_or_message(path)
    if isinstance(made, str):
        assert made.startswith(f"rig {path}: ")
    else:
        for device in made.devices:
            assert 0 <= device.budget_bytes <= 10**18
            assert all(rate > 0 for rate in (device.rates.read, device.rates.int8, device.rates.link))
            assert math.isfinite(device.rates.read)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60) | st.text("{}[]:,-?&*!|>'\"#% \n\tagpucdisk0129.~", max_size=60))
def test_any_text_is_a_rig_or_a_wrong_call(tmp_path_factory: pytest.TempPathFactory, content: bytes | str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    made = rig_or_message(path)
    assert isinstance(made, Rig) or made.startswith(f"rig {path}: ")

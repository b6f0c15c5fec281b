"""What bigrun measured of a host serves that host's plans: whole, or not at all, and the plan says which."""

import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest

from bigrun.devices import host_file as hostfile
from bigrun.devices import make_rig as rig_module
from bigrun.devices.cards import card
from bigrun.devices.host_file import Host, default_path, find_host, learning_path, machine, read, write
from bigrun.devices.links import LINKS
from bigrun.devices.make_rig import RigOptions, make_rig
from bigrun.devices.noise import Noise
from bigrun.devices.rates import (
    ASSUMED_CPU,
    ASSUMED_DISK,
    ASSUMED_GPU,
    ASSUMED_LOADS,
    ASSUMED_START,
    Rates,
    cpu_rates,
    gpu_rates,
)  # fmt: skip
from bigrun.devices.rig import Loading, Rig
from bigrun.errors import CallError
from support.commands import run_command

GB = 10**9
LEARNED = Rates(
    read=21e9, cache=11e9, int8=0.4e12, wide=0.03e12, attention=0.1e12, elements=9e9, block=5e-5, link=math.inf,
    overlap=2.0, source="learned from 2 runs",
)  # fmt: skip
HOST = Host(
    cpu="Imagined CPU @ 3.00GHz",
    cores=6,
    kernels="avx2",
    measured_on="2026-01-31",
    read_bytes_per_s=31.5e9,
    int8_products_per_s=0.5e12,
    wide_products_per_s=0.04e12,
    disk_bytes_per_s=1.25e9,
    copies=(("cuda:0", 11e9), ("cuda:1", 5.5e9)),
    noise=(
        ("read_bytes_per_s", Noise(9, 0.02, 0.01, "2026-01-31")),
        ("disk_bytes_per_s", Noise(3, 0.4, 0.0, "2026-01-30", "its repeats lay 40% apart")),
    ),
    start_seconds=1.25,
    loads=(("16bit", 0.75e9), ("int8", 3e9)),
    learned=LEARNED,
    runs=({"name": "a prompt", "seconds": 1.5, "parts": [[3, {"bytes": 5}]]}, {"name": "a step"}),
)
BARE = Host("Imagined CPU @ 3.00GHz", 6, "avx2", "2026-01-31", 31.5e9, 0.5e12, 0.04e12)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "host.json"


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine is the imagined one."""
    monkeypatch.setattr(hostfile, "machine", lambda: (HOST.cpu, HOST.cores))


@pytest.fixture
def default(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The default host file, not written yet."""
    monkeypatch.setenv("BIGRUN_HOST", str(path))
    return path


@pytest.mark.parametrize(
    "host",
    [
        HOST,
        BARE,
        replace(HOST, learned=replace(LEARNED, overlap=math.inf, link=12e9)),
        replace(BARE, cpu='Intel® "Xeon"\\ 中', kernels="", cores=1),
        replace(BARE, read_bytes_per_s=0.1 + 0.2 + 1e9, copies=(("cuda:0", 1 / 3 * 1e10),)),
        replace(BARE, read_bytes_per_s=31 * GB),
    ],
    ids=["everything", "the least", "infinite", "odd names", "odd figures", "whole numbers"],
)
def test_what_is_written_is_read_to_the_last_digit(path: Path, host: Host) -> None:
    write(host, path)
    assert read(path) == replace(host, where=str(path))
    write(read(path), path)
    assert read(path) == replace(host, where=str(path))


def test_a_file_knows_its_place_only_when_it_is_read(path: Path) -> None:
    write(replace(HOST, where="/elsewhere"), path)
    assert "elsewhere" not in path.read_text()
    assert read(path).where == str(path)


def test_writing_makes_the_folders_that_are_missing_and_leaves_nothing_else_behind(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "bigrun" / "host.json"
    write(HOST, path)
    write(BARE, path)
    assert os.listdir(path.parent) == ["host.json"]
    assert read(path).runs == ()


@pytest.mark.parametrize("broken", ["dump", "fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    write(BARE, path)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(json if broken == "dump" else os, broken, fail)
    with pytest.raises(OSError, match="No space left"):
        write(HOST, path)
    monkeypatch.undo()
    assert os.listdir(path.parent) == [path.name]
    assert read(path) == replace(BARE, where=str(path))


def test_what_json_cannot_hold_halfway_through_leaves_the_old_file(path: Path) -> None:
    write(BARE, path)
    with pytest.raises(TypeError):
        write(replace(HOST, runs=({"name": "fine"}, object())), path)
    assert os.listdir(path.parent) == [path.name]
    assert read(path) == replace(BARE, where=str(path))


def test_the_default_file_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    monkeypatch.setenv("BIGRUN_HOST", "/measured/mine.json")
    assert default_path() == Path("/measured/mine.json")
    monkeypatch.setenv("BIGRUN_HOST", "")
    assert default_path() == Path("/caches/bigrun/host.json")
    monkeypatch.delenv("BIGRUN_HOST")
    assert default_path() == Path("/caches/bigrun/host.json")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert default_path() == Path("/home/someone/.cache/bigrun/host.json")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_path() == Path("/home/someone/.cache/bigrun/host.json")


def test_tests_read_no_host_file_of_the_developers_own() -> None:
    assert not default_path().exists()
    assert find_host() == (None, "")


@pytest.mark.parametrize("none", ["none", "None", "NONE"])
def test_the_environment_can_say_that_there_is_no_host_file(none: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIGRUN_HOST", none)
    assert find_host() == (None, "")
    with pytest.raises(OSError, match=r"Not a directory|File exists|Permission"):
        write(HOST, default_path())
    with pytest.raises(CallError, match="BIGRUN_HOST=none"):
        learning_path(None)


def test_what_is_learned_goes_to_the_named_file_or_the_default_and_never_to_none(default: Path) -> None:
    assert learning_path(None) == default
    assert learning_path("mine.json") == Path("mine.json")
    with pytest.raises(CallError, match="host none"):
        learning_path("None")


def test_this_machine_is_its_cpu_and_the_cores_that_it_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bigrun_kernels.cpu.cgroups.cpu_quota", lambda root: None)
    name, cores = machine()
    assert name.strip()
    assert cores == len(os.sched_getaffinity(0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 7})
    assert machine() == (name, 3)


@pytest.mark.usefixtures("here")
def test_this_machines_default_file_is_used_without_a_word(default: Path) -> None:
    assert find_host() == (None, "")
    write(HOST, default)
    assert find_host() == (replace(HOST, where=str(default)), "")


@pytest.mark.parametrize("none", ["none", "None", "NONE", Path("none")], ids=repr)
@pytest.mark.usefixtures("here")
def test_none_is_no_host_though_there_is_a_default(default: Path, none: str | Path) -> None:
    write(HOST, default)
    assert find_host(none) == (None, "")
    rig = make_rig(RigOptions("24GB", cpu="1GB", host=none))
    assert rig.measured == ()
    assert rig.device("cpu").rates == ASSUMED_CPU


@pytest.mark.parametrize("other", [{"cpu": "Another CPU"}, {"cores": 5}], ids=["another CPU", "fewer cores"])
@pytest.mark.usefixtures("here")
def test_another_machines_file_is_not_used_by_default_and_the_plan_says_so(
    default: Path, other: dict[str, Any]
) -> None:
    write(replace(HOST, **other), default)
    host, note = find_host()
    assert host is None
    assert str(default) in note
    assert "another machine" in note
    assert "bigrun info" in note
    rig = make_rig(RigOptions("24GB", cpu="1GB", disk="1GB"))
    assert note in rig.assumptions
    assert rig.measured == ()
    assert rig == replace(
        make_rig(RigOptions("24GB", cpu="1GB", disk="1GB", host="none")), notes=rig.notes
    )  # and nothing of it was used


@pytest.mark.usefixtures("here")
def test_another_machines_file_is_used_where_it_is_named(default: Path) -> None:
    write(replace(HOST, cpu="Another CPU", cores=128), default)
    host, note = find_host(default)
    assert host is not None
    assert (host.cpu, host.cores, note) == ("Another CPU", 128, "")
    assert make_rig(RigOptions("24GB", cpu="1GB", host=str(default))).device("cpu").rates == LEARNED


def written(change: Callable[[dict[str, Any]], Any] | None = None, /, **values: Any) -> str:
    """A host file with some values changed, or a change made to all of it."""
    content = {"version": 2} | {f.name: getattr(HOST, f.name) for f in fields(Host) if f.name != "where"}
    content["noise"] = {name: asdict(noise) for name, noise in HOST.noise}
    content["loads"] = dict(HOST.loads)
    content["learned"] = {f.name: getattr(LEARNED, f.name) for f in fields(Rates)}
    content |= values
    return json.dumps((change(content) or content) if change else content)


def learned(**values: Any) -> str:
    return written(lambda content: content["learned"].update(values))


def noisy(**values: Any) -> str:
    return written(lambda content: content["noise"]["read_bytes_per_s"].update(values))


BROKEN: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "not JSON"),
    "truncated": (written()[:-20], "not JSON"),
    "YAML": ("cpu: mine\n", "not JSON"),
    "a binary file": (bytes(range(256)), "not JSON"),
    "a list": ("[1, 2]", "not a host file of version 1 or 2"),
    "a number": ("1", "not a host file of version 1 or 2"),
    "null": ("null", "not a host file of version 1 or 2"),
    "a text": ('"host"', "not a host file of version 1 or 2"),
    "an empty object": ("{}", "not a host file of version 1 or 2"),
    "a later version": (written(version=3), "not a host file of version 1 or 2"),
    "a version as text": (written(version="1"), "not a host file of version 1 or 2"),
    "no version": (written(lambda content: content.pop("version") and None), "not a host file of version 1 or 2"),
    "a field missing": (written(lambda content: content.pop("read_bytes_per_s") and None), "read_bytes_per_s"),
    "a field too many": (written(colour="red"), "colour"),
    "a learned field missing": (written(lambda content: content["learned"].pop("cache") and None), "cache"),
    "a learned field too many": (learned(colour="red"), "colour"),
    "text for a rate": (written(read_bytes_per_s="31GB"), "read_bytes_per_s is '31GB'"),
    "text for a learned rate": (learned(int8="fast"), "int8 is 'fast'"),
    "nothing for a rate": (written(int8_products_per_s=None), "int8_products_per_s is None"),
    "true for a rate": (written(wide_products_per_s=True), "wide_products_per_s is True"),
    "a list for a rate": (written(disk_bytes_per_s=[1e9]), r"disk_bytes_per_s is \[1"),
    "a name that colours the terminal": (written(cpu="\x1b[31mmine"), "cpu is '"),
    "a name in two lines": (written(kernels="avx2\nassumed: nothing"), "kernels is '"),
    "a name of 100,000 letters": (written(cpu="x" * 100_000), "cpu is 'xxx"),
    "a number for a name": (written(cpu=7), "cpu is 7"),
    "nothing for a date": (written(measured_on=None), "measured_on is None"),
    "a number for a learned source": (learned(source=1), "source is 1"),
    "a fraction of a core": (written(cores=5.5), "cores is 5.5"),
    "no cores": (written(cores=0), "cores is 0"),
    "a rate below nothing": (written(read_bytes_per_s=-1.0), "read_bytes_per_s is -1"),
    "a rate of nothing": (written(read_bytes_per_s=0), "read_bytes_per_s is 0"),
    "multiplies of nothing": (written(int8_products_per_s=0.0), "int8_products_per_s is 0"),
    "a rate of next to nothing": (written(wide_products_per_s=1e-300), "wide_products_per_s is 1e-300"),
    "a disk below nothing": (written(disk_bytes_per_s=-5), "disk_bytes_per_s is -5"),
    "a learned rate of nothing": (learned(elements=0), "elements is 0"),
    "a learned block below nothing": (learned(block=-1e-6), "block is -1e-06"),
    "a learned block of an hour": (learned(block=3600), "block is 3600"),
    "a learned exponent of nothing": (learned(overlap=0), "overlap is 0"),
    "a learned exponent that is no power": (learned(overlap=1e300), r"overlap is 1e\+300"),
    "NaN": (written(read_bytes_per_s=math.nan), "read_bytes_per_s is nan"),
    "NaN learned": (learned(link=math.nan), "link is nan"),
    "an infinite rate": (written(read_bytes_per_s=math.inf), "read_bytes_per_s is inf"),
    "an infinite learned rate": (learned(read=math.inf), "read is inf"),
    "400 digits": (written(read_bytes_per_s=10**400), "read_bytes_per_s is 1000"),
    "5,000 digits": (written().replace("31500000000.0", "9" * 5000), "not JSON"),
    "learned as a list": (written(learned=[1, 2]), "learned|Rates"),
    "learned as text": (written(learned="yes"), "learned|Rates"),
    "copies as an object": (written(copies={"cuda:0": 1e9}), "host.json: "),
    "copies as a number": (written(copies=5), "host.json: "),
    "copies of one": (written(copies=[["cuda:0"]]), "host.json: "),
    "a copy in words": (written(copies=[["cuda:0", "12GB/s"]]), "copies is '12GB/s'"),
    "a copy of nothing": (written(copies=[["cuda:0", 0]]), "copies is 0"),
    "a copy below nothing": (written(copies=[["cuda:0", -1e9]]), "copies is -1"),
    "a copy that is no number": (written(copies=[["cuda:0", math.nan]]), "copies is nan"),
    "a copy of 400 digits": (written(copies=[["cuda:0", 10**400]]), "copies is 1000"),
    "noise as a list": (written(noise=[1]), "noise is not an object"),
    "noise of a figure that is none": (written(noise={"colour": {}}), "noise is not an object"),
    "noise that lacks a field": (written(noise={"copies": {"repeats": 1}}), "host.json: "),
    "more than all of the CPU": (noisy(foreign_cpu_share=1.5), "foreign_cpu_share is 1.5"),
    "a spread that is text": (noisy(spread="wide"), "spread is 'wide'"),
    "a reason that colours the terminal": (noisy(busy="\x1b[31m"), "busy is '"),
    "loads as a list": (written(loads=[["16bit", 1e9]]), "loads is not an object"),
    "a load of no known form": (written(loads={"13bit": 1e9}), "loads is not an object"),
    "a load at no rate": (written(loads={"16bit": 0}), "loads is 0"),
    "a start of two hours": (written(start_seconds=7200), "start_seconds is 7200"),
    "runs as text": (written(runs="many"), "runs"),
    "runs as an object": (written(runs={"a": 1}), "runs"),
    "nested 100,000 deep": ("[" * 100_000, "not JSON"),
    "huge": (written(runs=["x" * 2**20]), "larger than a host file can be"),
    "huge, and no JSON": (b"\xff" * 3 * 2**20, "larger than a host file can be"),
}


@pytest.mark.parametrize(("content", "wrong"), list(BROKEN.values()), ids=list(BROKEN))
def test_a_broken_file_is_refused_where_it_is_named_and_left_out_with_a_note_where_it_is_the_default(
    default: Path, content: str | bytes, wrong: str
) -> None:
    default.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CallError, match=wrong) as caught:
        make_rig(RigOptions("24GB", cpu="1GB", host=default))
    message = str(caught.value)
    assert message.startswith(f"host {default}: ")
    assert "`bigrun info` writes a new one" in message
    assert "\n" not in message
    assert len(message) < len(str(default)) + 200
    assert find_host() == (None, f"{message} (not used)")
    rig = make_rig(RigOptions("24GB", cpu="1GB"))
    assert f"{message} (not used)" in rig.assumptions
    assert rig.measured == ()
    assert rig.device("cpu").rates == ASSUMED_CPU


@pytest.mark.parametrize("depth", [35, 300, 900, 940, 960, 970, 980, 990, 1000, 1100])
@pytest.mark.parametrize("field", ["read_bytes_per_s", "learned", "copies", "runs"])
def test_no_depth_of_nesting_is_a_traceback(path: Path, field: str, depth: int) -> None:
    path.write_text(
        written(lambda content: content.update({field: 0})).replace(
            f'"{field}": 0', f'"{field}": {"[" * depth}{"]" * depth}'
        )
    )
    try:
        read(path)
    except CallError:
        return
    assert field == "runs"  # kept as they are, for those who learn from them


@pytest.mark.parametrize(
    ("host", "wrong"),
    [
        ("missing.json", "cannot be read: No such file.*`bigrun info` writes one"),
        (".", "cannot be read: Is a directory"),
        ("", "cannot be read: Is a directory"),
        ("x" * 5000, "cannot be read: File name too long"),
        ("a\0b", "a.x00b: "),
        ("/dev/zero", "larger than a host file can be"),
    ],
    ids=["missing", "a directory", "no name", "a name too long", "a null character", "without end"],
)
def test_a_named_file_that_cannot_be_read_is_a_wrong_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, wrong: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CallError, match=f"^host .*{wrong}"):
        make_rig(RigOptions("24GB", cpu="1GB", host=host))


@pytest.mark.parametrize("name", ["x" * 5000, "/dev/null/host.json", "/proc", "/dev/zero"])
def test_a_default_that_is_no_file_is_no_host(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("BIGRUN_HOST", name)
    assert find_host() == (None, "")


def rig_with(host: Path, **options: Any) -> Rig:
    return make_rig(RigOptions(**{"gpus": "24GB", "cpu": "64GB", "disk": "1TB", "host": host, **options}))


def test_without_a_host_file_the_plan_says_that_nothing_was_measured() -> None:
    rig = make_rig(RigOptions("24GB", cpu="64GB", disk="1TB"))
    assert rig.measured == ()
    assert any("cpu: weights 34 GB/s, not measured" in line and "bigrun info" in line for line in rig.assumptions)
    assert any("disk: 2 GB/s" in line for line in rig.assumptions)
    assert rig.device("cpu").rates == ASSUMED_CPU
    assert rig.device("disk").rates.read == ASSUMED_DISK
    assert rig.loading == Loading(ASSUMED_START, ASSUMED_DISK, ())
    assert rig.doubt == "not measured"


def test_with_one_the_cpu_is_as_fast_as_it_was_measured_and_the_plan_says_so(path: Path) -> None:
    write(BARE, path)
    rig = rig_with(path)
    assert rig.device("cpu").rates == cpu_rates(31.5e9, 0.5e12, 0.04e12, "measured on 2026-01-31")
    (sentence,) = rig.measured
    assert sentence.startswith("cpu: weights 26.8 GB/s, 425 G int8 multiply-adds/s, measured on this host, 2026-01-31")
    assert str(path) in sentence
    assert not any("cpu" in line for line in rig.assumptions)


def test_what_was_learned_from_runs_comes_before_what_was_measured(path: Path) -> None:
    write(HOST, path)
    rig = rig_with(path)
    assert rig.device("cpu").rates == LEARNED
    (sentence,) = rig.said("learned")
    assert "weights 21.0 GB/s" in sentence
    assert "learned from 2 runs" in sentence
    assert not any("cpu" in line for line in rig.assumptions)


def test_the_disk_reads_and_the_model_loads_as_fast_as_was_measured(path: Path) -> None:
    write(HOST, path)
    rig = rig_with(path)
    assert (rig.device("disk").rates.read, rig.device("disk").rates.source) == (1.25e9, "measured on 2026-01-31")
    assert "disk: 1.2 GB/s" in rig.measured
    assert not any("disk" in line for line in rig.assumptions)
    assert rig.loading == rig_with(path, disk=None).loading == Loading(1.25, 1.25e9, HOST.loads)
    assert rig.loading.seconds(3 * GB, "16bit") == 1.25 + 3 / 0.75  # its conversion is the slower
    assert rig.loading.seconds(3 * GB, "int8") == 1.25 + 3 / 1.25  # the disk is
    assert rig.loading.seconds(3 * GB, "gguf") == 1.25 + 3 * GB / ASSUMED_LOADS["gguf"]  # which no run has shown


def test_what_was_not_measured_of_the_host_stays_assumed(path: Path) -> None:
    write(BARE, path)
    rig = rig_with(path)
    assert rig.device("disk").rates.read == ASSUMED_DISK
    assert any("disk: 2 GB/s" in line for line in rig.assumptions)
    assert not any("disk" in line for line in rig.measured)
    assert rig.loading == Loading(ASSUMED_START, ASSUMED_DISK, ())


@pytest.mark.parametrize("form", ["options", "max_memory", "rig file"])
def test_each_way_to_describe_a_rig_takes_the_host_into_account(path: Path, tmp_path: Path, form: str) -> None:
    write(HOST, path)
    file = tmp_path / "rig.yaml"
    file.write_text("gpus: [{memory: 24GB}]\ncpu: {memory: 64GB}\ndisk: {memory: 1TB}\n")
    rig = {
        "options": lambda: rig_with(path),
        "max_memory": lambda: make_rig(RigOptions(max_memory={0: "24GB", "cpu": "64GB", "disk": "1TB"}, host=path)),
        "rig file": lambda: make_rig(RigOptions(rig=file, host=path)),
    }[form]()
    assert rig.device("cpu").rates == LEARNED
    assert rig.device("disk").rates.read == 1.25e9
    assert (len(rig.measured), len(rig.said("learned"))) == (1, 1)


def test_what_a_rig_file_gives_comes_before_what_was_measured(path: Path, tmp_path: Path) -> None:
    write(HOST, path)
    file = tmp_path / "rig.yaml"
    file.write_text("cpu: {memory: 64GB, bandwidth: 80GB/s}\ndisk: {memory: 1TB, bandwidth: 3GB/s}\n")
    rig = make_rig(RigOptions(rig=file, host=path))
    assert rig.device("cpu").rates.read == pytest.approx(0.85 * 80e9)
    assert rig.device("disk").rates.read == 3e9
    assert not any("learned" in line or "this host" in line for line in rig.measured)


def test_gpus_that_are_described_keep_their_speeds_and_links(path: Path) -> None:
    write(HOST, path)
    described = rig_with(path, gpus="24GB,RTX3090").gpus
    assert [gpu.rates for gpu in described] == [ASSUMED_GPU, gpu_rates(card("RTX3090"))]
    virtual = rig_with(path, gpus="24GB,RTX3090", virtual=True).gpus
    assert [gpu.rates for gpu in virtual] == [gpu.rates for gpu in described]


def test_gpus_that_are_here_have_the_links_that_were_measured(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(HOST, path)
    slot = LINKS["pcie4x16"].usable
    gpus = ((20 * GB, card("RTX3090"), slot), (10 * GB, None, slot), (5 * GB, card("T4"), slot))
    monkeypatch.setattr(rig_module, "probe_gpus", lambda: gpus)
    rig = rig_with(path, gpus=None)
    assert [gpu.rates.link for gpu in rig.gpus] == [11e9, 5.5e9, slot]
    assert rig.gpus[0].rates.read == gpu_rates(card("RTX3090")).read


def test_on_the_command_line_a_broken_file_is_one_line_and_exit_status_2(path: Path) -> None:
    path.write_text(written(read_bytes_per_s=0))
    result = run_command("plan", "--gpus", "24GB", "--cpu", "1GB", "--host", str(path))
    assert result.exit_code == 2
    assert result.stderr.startswith(f"bigrun: --host {path}: read_bytes_per_s is 0")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_a_plan_with_a_host_file_says_what_was_measured(path: Path) -> None:
    write(HOST, path)
    arguments = ["plan", "--model", "opt-30b", "--gpus", "24GB", "--cpu", "64GB", "--json"]
    result = run_command(*arguments, "--host", str(path))
    assert result.exit_code == 0, result.stderr
    predicted = json.loads(result.stdout)["predicted"]
    assert any("learned from 2 runs" in line for line in predicted["learned"])
    assert not any("not measured" in line for line in predicted["assumptions"])
    slower = replace(HOST, learned=replace(LEARNED, read=LEARNED.read / 4))
    write(slower, path)
    again = json.loads(run_command(*arguments, "--host", str(path)).stdout)["predicted"]
    assert again["decode_tokens_per_s"] < predicted["decode_tokens_per_s"]

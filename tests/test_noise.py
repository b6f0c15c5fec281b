"""Measurements of a busy minute are known as such and give way to quiet ones; the first use measures, and says so."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bigrun import plan
from bigrun.devices import measure, noise
from bigrun.devices.host_file import Host, find_host, machine, read, write
from bigrun.devices.make_rig import RigOptions, make_rig
from bigrun.devices.noise import Noise, watch_others, why_busy
from bigrun.devices.rates import low_rates, low_roofs
from bigrun.measure import host as measuring
from bigrun.measure.host import AGAIN_SECONDS, better, ensure_host, measure_host
from support.commands import run_command, run_process, run_python

DAY = "2026-01-31"
QUIET, BUSY = Noise(9, 0.02, 0.01, DAY), Noise(9, 0.02, 0.4, DAY, "other processes used 40% of the CPU")
ASSUMED = Noise(0, 0.0, 0.0, DAY)


# What disturbs


@pytest.mark.parametrize(
    ("foreign", "rates", "busy"),
    [
        (0.0, [10.0], ""),
        (0.10, [8.6, 10.0, 8.6], ""),
        (0.11, [10.0, 10.0], "other processes used 11% of the CPU"),
        (0.0, [8.4, 10.0, 8.4], "its repeats lay 16% apart"),
        (0.0, [1.0, 9.9, 10.0, 9.9, 9.8], ""),  # one of many: the best are what a quiet moment gives
        (0.5, [5.0, 10.0], "other processes used 50% of the CPU"),
    ],
)
def test_a_measurement_is_busy_by_what_others_take_or_by_how_its_repeats_lie(
    foreign: float, rates: list[float], busy: str
) -> None:
    made = noise.noise(rates, foreign, DAY)
    assert (made.repeats, made.foreign_cpu_share, made.measured_on, made.busy) == (len(rates), foreign, DAY, busy)
    assert why_busy(made.foreign_cpu_share, made.spread) == busy


class Cores:
    """A machine of four cores of which this process may use the first two, by its /proc/stat and clocks; ticks are 10 ms."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.file, self.now, self.own = folder / "stat", 50.0, 3.0
        self.ticks = {core: [1000, 20, 300, 90_000, 40, 5, 6, 7, 0, 0] for core in range(4)}
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
        monkeypatch.setattr(noise, "usable_cpus", lambda: 2)
        monkeypatch.setattr(os, "sysconf", lambda name: {"SC_CLK_TCK": 100}[name])
        monkeypatch.setattr(noise.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(noise.time, "process_time", lambda: self.own)
        self.write()

    def write(self) -> None:
        lines = [f"cpu{core} {' '.join(map(str, row))}" for core, row in self.ticks.items()]
        self.file.write_text("\n".join(["cpu  1 2 3 4 5 6 7 8 9 10", *lines, "intr 5 6", "ctxt 7", ""]))

    def work(self, core: int, field: int, seconds: float) -> None:
        self.ticks[core][field] += round(100 * seconds)
        self.write()


@pytest.mark.parametrize(
    ("works", "own", "share"),
    [
        ([], 0.0, 0.0),
        ([(0, 0, 2.0)], 2.0, 0.0),  # it was this process
        ([(0, 0, 2.0), (1, 2, 1.0)], 2.0, 0.25),  # a second of four, in the kernel
        ([(0, 1, 0.5), (1, 5, 0.25), (1, 6, 0.25)], 0.0, 0.25),  # nice, interrupts
        ([(1, 7, 2.0)], 0.0, 0.5),  # the neighbours of a virtual machine
        ([(0, 3, 2.0), (0, 4, 2.0), (0, 8, 2.0), (0, 9, 1.0)], 0.0, 0.0),  # idle, waiting, guests (which are in user)
        ([(2, 0, 2.0), (3, 0, 2.0)], 0.0, 0.0),  # on cores that this process may not use
        ([(0, 0, 1.0)], 1.5, 0.0),  # ticks are coarse
        ([(0, 0, 9.0), (1, 0, 9.0)], 0.0, 1.0),
    ],
    ids=["nothing", "ours", "half a core", "other kinds", "steal", "idle", "other cores", "coarse", "more than all"],
)
def test_what_others_used_is_what_our_cores_worked_less_what_we_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, works: list[tuple[int, int, float]], own: float, share: float
) -> None:
    cores = Cores(tmp_path, monkeypatch)
    seen = watch_others(cores.file)
    cores.now, cores.own = cores.now + 2.0, cores.own + own
    for work in works:
        cores.work(*work)
    assert seen() == pytest.approx(share)


@pytest.mark.parametrize(("theirs", "share"), [(0.5, 0.0), (1.0, 0.0), (1.5, 0.5), (2.0, 1.0)])
def test_of_cores_that_a_quota_keeps_from_this_process_others_may_use_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, theirs: float, share: float
) -> None:
    cores = Cores(tmp_path, monkeypatch)
    monkeypatch.setattr(noise, "usable_cpus", lambda: 1)  # of two
    seen = watch_others(cores.file)
    cores.now += 2.0
    for core in (0, 1):
        cores.work(core, 0, theirs)  # in two seconds: so many of the two cores
    assert seen() == pytest.approx(share)


@pytest.mark.parametrize("text", [None, "", "cpu 1 2\n", "cpu0 a b c d e f g h\n", "cpu0 1 2\n"], ids=repr)
def test_where_the_system_does_not_tell_nobody_is_suspected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    cores = Cores(tmp_path, monkeypatch)
    cores.file.unlink() if text is None else cores.file.write_text(text)
    seen = watch_others(cores.file)
    cores.now += 1
    assert seen() == 0.0


def test_this_machine_tells() -> None:
    seen = watch_others()
    time.sleep(0.05)
    assert 0 <= seen() <= 1


@pytest.mark.parametrize(("passing", "calls"), [(0.0, 60), (0.05, 8), (0.1, 5), (5.0, 5)])
def test_what_is_measured_is_repeated_until_a_quiet_moment_was_likely(
    monkeypatch: pytest.MonkeyPatch, passing: float, calls: int
) -> None:
    now = [100.0]
    monkeypatch.setattr(measure.time, "perf_counter", lambda: now[0])

    def once() -> float:
        now[0] += passing * 1.0001
        return now[0]

    assert len(measure.repeated(once)) == calls


# Of two measurements, the better one


def host(figure: float, made: Noise | None, **changes: Any) -> Host:
    noises = () if made is None else (("read_bytes_per_s", made),)
    return replace(Host(*machine(), "avx2", DAY, figure, 1e11, 1e10, noise=noises), **changes)


@pytest.mark.parametrize(
    ("before", "now", "kept"),
    [
        ((30e9, QUIET), (20e9, QUIET), "now"),
        ((30e9, QUIET), (40e9, QUIET), "now"),
        ((30e9, BUSY), (20e9, QUIET), "now"),
        ((20e9, QUIET), (30e9, BUSY), "before"),
        ((30e9, BUSY), (20e9, BUSY), "before"),
        ((20e9, BUSY), (30e9, BUSY), "now"),
        ((30e9, None), (20e9, QUIET), "now"),
        ((30e9, None), (20e9, BUSY), "before"),
        ((20e9, None), (30e9, BUSY), "now"),
        ((30e9, ASSUMED), (20e9, BUSY), "now"),
        ((20e9, BUSY), (30e9, ASSUMED), "before"),
    ],
    ids=str,
)
def test_a_quiet_measurement_replaces_any_and_a_busy_one_no_quiet_one(
    before: tuple[float, Noise | None], now: tuple[float, Noise | None], kept: str
) -> None:
    old, new = host(*before), host(*now)
    result = better(old, new)
    expected = old if kept == "before" else new
    assert (result.read_bytes_per_s, result.noise) == (expected.read_bytes_per_s, expected.noise)


def test_each_figure_is_judged_by_itself_and_what_was_learned_stays() -> None:
    old = host(30e9, QUIET, disk_bytes_per_s=2e9, start_seconds=0.7, loads=(("gguf", 1e8),), runs=({"name": "x"},))
    old = replace(old, noise=(*old.noise, ("int8_products_per_s", BUSY), ("disk_bytes_per_s", BUSY)))
    new = host(20e9, BUSY, int8_products_per_s=2e11)
    new = replace(new, noise=(*new.noise, ("int8_products_per_s", QUIET)))
    made = better(old, new)
    assert (made.read_bytes_per_s, made.int8_products_per_s, made.disk_bytes_per_s) == (30e9, 2e11, 2e9)
    assert dict(made.noise) == {"read_bytes_per_s": QUIET, "int8_products_per_s": QUIET, "disk_bytes_per_s": BUSY}
    assert (made.start_seconds, made.loads, made.runs) == (0.7, (("gguf", 1e8),), ({"name": "x"},))
    assert better(replace(old, kernels="vnni512"), new) == new, "other kernels have other figures"


# What a plan says of it


def test_a_plan_says_beside_its_figures_that_they_are_of_a_busy_minute(tmp_path: Path) -> None:
    made = {}
    for name, each in (("quiet", QUIET), ("busy", BUSY)):
        write(host(30e9, each), tmp_path / name)
        made[name] = plan("llama-3.2-1b", gpus="none", cpu="64GB", host=tmp_path / name)
    assert made["quiet"].predicted is not None
    assert made["busy"].predicted is not None
    assert (made["quiet"].predicted.doubt, made["busy"].predicted.doubt) == ("", "measured in a busy minute")
    line = next(line for line in str(made["busy"]).splitlines() if line.startswith("predicted:"))
    assert line.rstrip().endswith("; measured in a busy minute")
    assert "other processes used 40% of the CPU" in " ".join(str(made["busy"]).split())
    assert "busy" not in str(made["quiet"])


def test_a_busy_minute_makes_no_cpu_slower_than_it_would_be_assumed_to_be() -> None:
    for made, roof in ((QUIET, 2e9), (BUSY, low_rates(4).read / 0.85), (None, 2e9)):
        slow = host(2e9, made, cores=4)
        assert slow.roofs == (pytest.approx(roof), 1e11, 1e10), "each figure by itself"
        assert slow.rates().read == pytest.approx(0.85 * roof)
    assert host(90e9, BUSY, cores=4).roofs[0] == 90e9


def test_a_plan_that_the_cpu_has_no_part_in_does_not_doubt_the_cpu() -> None:
    for cpu, doubt in (("64GB", ""), ("200GB", "not measured")):
        gpus = "1x24GB" if doubt else "8x24GB"
        predicted = plan("llama-3.1-70b", gpus=gpus, cpu=cpu).predicted
        assert predicted is not None
        assert predicted.doubt == doubt


@pytest.mark.parametrize("cores", [1, 2, 4, 16, 256])
def test_a_cpu_that_was_not_measured_is_taken_for_a_slow_one_of_its_cores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cores: int
) -> None:
    monkeypatch.setattr("bigrun.devices.make_rig.usable_cpus", lambda: cores)
    rig = make_rig(RigOptions("none", cpu="8GB"))
    rates = rig.device("cpu").rates
    assert rates == low_rates(cores)
    # two cores of a server read 31 GB/s and multiply 0.18 T/s (docs/performance.md), a desktop's some 40 and 0.3 with eight
    assert rates.read == pytest.approx(0.85 * min(40e9, cores * 10e9))
    assert rates.int8 == pytest.approx(0.85 * min(0.3e12, cores * 0.03e12))
    assert rig.doubt == "not measured"
    assert any(f"on {cores} cores, not measured" in line for line in rig.assumptions)
    assert make_rig(RigOptions(max_memory={"cpu": "8GB"})).device("cpu").rates == rates
    (tmp_path / "rig.yaml").write_text("cpu: {memory: 8GB}\n")
    others = RigOptions("2x24GB", cpu="64GB"), RigOptions(max_memory={0: "24GB", "cpu": "8GB"})
    for other in (*others, RigOptions(rig=tmp_path / "rig.yaml")):
        desktop = make_rig(other).device("cpu").rates
        assert desktop.read == pytest.approx(0.85 * 40e9), "of another host, whose cores are not known"


# The first use


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this host's figures would be kept; its kernels are compiled."""
    monkeypatch.setenv("BIGRUN_HOST", str(tmp_path / "cache" / "host.json"))
    monkeypatch.setattr("bigrun_kernels.cpu.compiled", lambda kernel="linear": True)
    return tmp_path / "cache" / "host.json"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Measuring takes seconds: it is counted, by whether it was quick, and answered."""
    calls: list[bool] = []

    def measured(where: Path, quick: bool = False) -> Host:
        calls.append(quick)
        return host(25e9, QUIET, where=str(where))

    monkeypatch.setattr(measuring, "measure_host", measured)
    return calls


PLAN = ("plan", "--model", "smollm2-135m", "--gpus", "none", "--cpu", "1GB")


def test_the_first_plan_of_this_host_measures_it_says_so_and_keeps_it(path: Path, asked: list[bool]) -> None:
    first = run_command(*PLAN, "--json")
    assert (first.exit_code, asked) == (0, [True])
    said = first.stderr.splitlines()
    assert len(said) == 2
    assert said[0].startswith("bigrun: measuring this host")
    assert "--host none" in said[0]
    assert str(path) in said[1]
    predicted = json.loads(first.stdout)["predicted"]
    assert (predicted["doubt"], len(predicted["measured"])) == ("", 1)
    again = run_command(*PLAN, "--json")
    assert (again.stderr, again.stdout, asked) == ("", first.stdout, [True])


def test_quiet_says_nothing_of_it(path: Path, asked: list[bool]) -> None:
    assert run_command(*PLAN, "--quiet").stderr == ""
    assert (asked, path.exists()) == ([True], True)


def test_pythons_plan_measures_nothing_and_says_so(path: Path, asked: list[bool]) -> None:
    made = plan("smollm2-135m", gpus="none", cpu="1GB")
    assert made.predicted is not None
    assert (asked, path.exists(), made.predicted.doubt) == ([], False, "not measured")
    assert any(
        line.startswith("predicted:") and line.rstrip().endswith("; not measured") for line in str(made).splitlines()
    )


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize(
    ("arguments", "measured"),
    [
        (("--gpus", "none", "--cpu", "1GB"), True),
        (("--gpus", "none"), True),
        (("--gpus", "1x100MB"), True),
        (("--gpus", "8x24GB"), False),  # where the CPU computes nothing
        (("--gpus", "none", "--cpu", "1MB"), False),  # where nothing fits
        (("--gpus", "1x100MB", "--virtual", "--cpu", "1GB"), True),
        (("--gpus", "1x100MB", "--cpu", "64GB"), False),
        (("--gpus", "nonsense"), False),
        (("--max-memory", '{"cpu": "1GB"}'), True),
        (("--max-memory", '{"0": "100MB", "cpu": "1GB"}'), False),
        (("--gpus", "none", "--cpu", "1GB", "--host", "none"), False),
        (("--rig", "RIG"), False),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_what_is_planned_for_another_host_does_not_measure_this_one(
    tmp_path: Path, asked: list[bool], arguments: tuple[str, ...], measured: bool
) -> None:
    (tmp_path / "rig.yaml").write_text("cpu: {memory: 8GB}\n")
    words = [str(tmp_path / "rig.yaml") if word == "RIG" else word for word in arguments]
    assert run_command("plan", "--model", "smollm2-135m", *words).exit_code in (0, 2, 3)
    assert asked == ([True] if measured else [])


def test_a_run_measures_whatever_rig_it_was_given_but_not_for_a_plan_that_was_made(
    path: Path, asked: list[bool], tiny: Path, tmp_path: Path
) -> None:
    (tmp_path / "rig.yaml").write_text("cpu: {memory: 1GB}\n")
    budgets = ("--rig", tmp_path / "rig.yaml")
    (tmp_path / "plan.json").write_text(run_command("plan", "--model", tiny, *budgets, "--json").stdout)
    generate = ("generate", "--prompt", "the", "--max-new-tokens", "1", "--quiet")
    assert run_command(*generate, "--plan", tmp_path / "plan.json").exit_code == 0
    assert (asked, path.exists()) == ([], False)
    assert run_command(*generate, "--model", tiny, *budgets).exit_code == 0
    assert (asked, path.exists()) == ([True], True)


def test_a_run_takes_figures_anew_that_a_version_measured_which_did_not_look(
    path: Path, asked: list[bool], tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "watch_others", lambda: lambda: 0.0)
    write(host(20e9, None), path)
    os.utime(path, (time.time() - AGAIN_SECONDS - 5,) * 2)
    assert run_command("generate", "--model", tiny, "--prompt", "the", "--max-new-tokens", "1").exit_code == 0
    assert (asked, read(path).read_bytes_per_s) == ([True], 25e9)


def test_a_run_of_a_name_that_is_none_measures_nothing(path: Path, asked: list[bool]) -> None:
    assert run_command("generate", "--model", "nope", "--prompt", "the").exit_code == 2
    assert (asked, path.exists()) == ([], False)


def test_without_compiled_kernels_a_plan_assumes(
    path: Path, asked: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bigrun_kernels.cpu.compiled", lambda kernel="linear": False)
    made = json.loads(run_command(*PLAN, "--json").stdout)
    assert (asked, path.exists(), made["predicted"]["doubt"]) == ([], False, "not measured")


def test_without_a_place_to_keep_it_nothing_is_measured(
    tmp_path: Path, asked: list[bool], monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BIGRUN_HOST", str(tmp_path / "file" / "host.json"))
    result = run_command(*PLAN)
    assert (result.exit_code, result.stderr, asked) == (0, "", [])


@pytest.mark.parametrize("content", ["{", "another machine"])
def test_a_file_that_is_not_this_hosts_is_left_alone(path: Path, asked: list[bool], content: str) -> None:
    path.parent.mkdir()
    if content == "{":
        path.write_text(content)
    else:
        write(host(1e9, QUIET, cpu="Another CPU"), path)
    before = path.read_text()
    assert run_command(*PLAN).exit_code == 0
    assert (asked, path.read_text()) == ([], before)


@pytest.mark.parametrize(
    ("made", "age", "foreign", "again"),
    [
        (BUSY, AGAIN_SECONDS + 5, 0.02, True),
        (BUSY, AGAIN_SECONDS - 60, 0.02, False),
        (BUSY, AGAIN_SECONDS + 5, 0.3, False),
        (QUIET, AGAIN_SECONDS + 5, 0.02, False),
    ],
    ids=["busy before and quiet now", "too soon", "busy now", "quiet before"],
)
def test_figures_of_a_busy_minute_are_taken_anew_when_it_is_quiet(
    path: Path, asked: list[bool], monkeypatch: pytest.MonkeyPatch,
    made: Noise | None, age: float, foreign: float, again: bool,
) -> None:  # fmt: skip
    monkeypatch.setattr(measuring, "watch_others", lambda: lambda: foreign)
    monkeypatch.setattr(measuring, "LOOK_SECONDS", 0)
    write(host(20e9, made), path)
    os.utime(path, (time.time() - age,) * 2)
    result = run_command(*PLAN)
    assert asked == ([True] if again else [])
    assert ("again: it was busy before" in result.stderr) is again
    assert read(path).read_bytes_per_s == (25e9 if again else 20e9)


def test_runs_of_busy_minutes_alone_do_not_have_a_quiet_host_measured_again(
    path: Path, asked: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be again, and again: measuring keeps the runs."""
    monkeypatch.setattr(measuring, "watch_others", lambda: lambda: 0.0)
    monkeypatch.setattr(measuring, "LOOK_SECONDS", 0)
    quiet = host(20e9, QUIET)
    write(replace(quiet, learned=quiet.rates(), runs=({"busy": "others were at work"},)), path)
    os.utime(path, (time.time() - AGAIN_SECONDS - 5,) * 2)
    made = json.loads(run_command(*PLAN, "--json").stdout)
    assert (asked, made["predicted"]["doubt"]) == ([], "measured in a busy minute")


# What is measured


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Measurements that take no time, the share that others take, and what was called."""

    def put(foreign: float, **rates: list[float]) -> None:
        values = {"read": [20e9, 30e9, 29e9], "multiply": [1e11], "wide": [2e10], "file": [1e9, 1.1e9, 1e9]} | rates
        for name, each in values.items():
            monkeypatch.setattr(measure, f"{name}_rates", lambda *_, each=each: each)
        monkeypatch.setattr(measure, "copy_rates", lambda: {"cuda:0": [11e9, 12e9]})
        monkeypatch.setattr(measure, "warm", lambda wide: None)
        monkeypatch.setattr(measuring, "watch_others", lambda: lambda: foreign)

    return put


def test_of_each_figure_the_best_repeat_is_kept_with_how_it_was_measured(
    tmp_path: Path, figures: Callable[..., None]
) -> None:
    figures(0.03)
    made = measure_host(tmp_path / "host.json")
    assert (made.read_bytes_per_s, made.int8_products_per_s, made.wide_products_per_s) == (30e9, 1e11, 2e10)
    assert (made.disk_bytes_per_s, made.copies, made.busy) == (1.1e9, (("cuda:0", 12e9),), {})
    known = dict(made.noise)
    assert set(known) == {
        "read_bytes_per_s", "int8_products_per_s", "wide_products_per_s", "disk_bytes_per_s", "copies",
    }  # fmt: skip
    assert known["read_bytes_per_s"].repeats == 3
    assert known["read_bytes_per_s"].spread == pytest.approx(1 / 30)
    write(made, tmp_path / "host.json")
    figures(0.5, read=[50e9])
    busy = measure_host(tmp_path / "host.json")
    assert (busy.read_bytes_per_s, busy.busy) == (30e9, {}), "the quiet one stays"


def test_where_too_little_memory_is_available_its_rate_is_assumed_and_said_so(
    tmp_path: Path, figures: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "host.json"
    monkeypatch.setenv("BIGRUN_HOST", str(file))
    figures(0.0, read=[])
    made = measure_host(file)
    assert (made.read_bytes_per_s, made.assumes_read) == (low_roofs(machine()[1])[0], True)
    assert made.says.endswith("; reading was not measured: too little memory was available")
    assert "GB/s of memory (assumed: too little is available to measure it)" in run_command("info").stdout
    assert json.loads(run_command(*PLAN, "--json").stdout)["predicted"]["doubt"] == "not measured"
    figures(0.0)
    write(measure_host(file), file)
    figures(0.0, read=[])
    later = measure_host(file)
    assert (later.read_bytes_per_s, later.assumes_read) == (30e9, False), "what was measured stays"


@pytest.mark.parametrize(
    ("available", "taken"),
    [(2**40, 512 * 2**20), (2**30, 2**28), (2**28, 2**26), (2**28 - 4, None), (0, None)],
    ids=["plenty", "a quarter", "just enough", "too little", "none"],
)
def test_memory_is_measured_with_a_quarter_of_what_is_available_at_most(
    monkeypatch: pytest.MonkeyPatch, available: int, taken: int | None
) -> None:
    class Taken(Exception):
        """Instead of touching it."""

    def memory(name: str, nbytes: int) -> None:
        raise Taken(nbytes)

    monkeypatch.setattr("bigrun.devices.probe.available_memory", lambda: (available, 0))
    monkeypatch.setattr("bigrun.devices.host_memory.HostMemory", memory)
    if taken is None:
        assert (measure.read_rates(), measure.read_bandwidth()) == ([], 0.0)
    else:
        with pytest.raises(Taken, match=str(taken)):
            measure.read_rates()


def test_in_seconds_only_what_the_cpus_predictions_need_is_measured(
    tmp_path: Path, figures: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    figures(0.0)
    for name in ("file_rates", "copy_rates"):
        monkeypatch.setattr(measure, name, lambda *_: pytest.fail("it was measured"))
    monkeypatch.setattr("bigrun_kernels.cpu.compiled", lambda kernel="linear": kernel == "linear")
    made = measure_host(tmp_path / "host.json", quick=True)
    assert (made.disk_bytes_per_s, made.copies) == (0.0, ())
    assert made.wide_products_per_s == pytest.approx(1e11 / 6), "a share of the int8 rate"
    assert dict(made.noise)["wide_products_per_s"].repeats == 0
    write(made, tmp_path / "host.json")
    assert read(tmp_path / "host.json") == made


def test_info_says_which_figures_are_of_a_busy_minute(
    tmp_path: Path, figures: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    figures(0.0, file=[1e9, 2e9, 1e9])
    monkeypatch.setenv("BIGRUN_HOST", str(tmp_path / "host.json"))
    report = json.loads(run_command("info", "--json").stdout)
    assert report["busy"] == {"disk_bytes_per_s": "its repeats lay 50% apart"}
    assert report["noise"]["read_bytes_per_s"]["busy"] == ""
    assert report["noise"]["disk_bytes_per_s"]["spread"] == 0.5
    text = run_command("info").stdout
    assert "busy     measured in a busy minute (disk: its repeats lay 50% apart)" in text
    monkeypatch.setenv("BIGRUN_HOST", "none")
    assert json.loads(run_command("info", "--json").stdout)["host_file"] == "not kept: BIGRUN_HOST=none"


def test_this_host_is_measured_in_earnest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures of this machine, whatever it is doing: memory that is read faster than a disk, arithmetic faster still."""
    monkeypatch.setenv("BIGRUN_HOST", str(tmp_path / "host.json"))
    monkeypatch.setattr("bigrun_kernels.cpu.compiled", lambda kernel="linear": kernel == "linear")
    ensure_host(RigOptions("none"), shown=False)
    made, note = find_host()
    assert (made is not None, note) == (True, "")
    assert made is not None
    assert made.read_bytes_per_s > 1e8
    assert made.int8_products_per_s > made.wide_products_per_s > 1e8
    known = dict(made.noise)
    assert known["read_bytes_per_s"].repeats >= 5
    assert all(0 <= each.spread < 1 and 0 <= each.foreign_cpu_share <= 1 for each in known.values())


def test_a_plan_with_a_host_file_or_without_one_imports_neither_torch_nor_numba(path: Path) -> None:
    write(host(25e9, QUIET), path)
    code = f"""
import sys
from bigrun.cli.app import main
try:
    main([*{PLAN!r}, *sys.argv[1:]])
finally:
    print([name for name in ("torch", "numba") if name in sys.modules], file=sys.stderr)
"""
    for more in ((), ("--host", "none")):
        done = run_python(code, *more)
        assert (done.returncode, done.stderr.strip()) == (0, "[]"), done.stderr


@pytest.mark.long
def test_measuring_imports_no_torch(tmp_path: Path) -> None:
    env = os.environ | {"BIGRUN_HOST": str(tmp_path / "host.json")}
    code = f"""
import sys
from bigrun.cli.app import main
try:
    main({PLAN!r})
finally:
    print([name for name in ("torch",) if name in sys.modules], file=sys.stderr)
"""
    done = run_python(code, env=env)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (0, "[]"), done.stderr
    assert run_process(*PLAN, env=env).stderr == "", "once"

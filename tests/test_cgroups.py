"""What control groups leave this process, in a container, a batch job or a service: memory, and CPUs' worth of time.

Fake trees of both versions, as containers, systemd and batch systems lay them out; a real group where one may be made.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bigrun.devices.probe import cgroup_headroom
from bigrun_kernels.cpu import cgroups, threads
from bigrun_kernels.cpu.cgroups import cpu_quota, usable_cpus

GB = 10**9
NO_LIMIT = 9223372036854771712  # what version 1 writes: 2^63 less a page
V2 = ("memory.max", "memory.current", "inactive_file")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
Membership = Callable[[str], None]


@pytest.fixture
def member(monkeypatch: pytest.MonkeyPatch) -> Membership:
    """Says which control groups this process is in: the text of /proc/self/cgroup."""
    real, said = Path.read_text, [""]

    def read_text(path: Path, *args: Any, **kwargs: Any) -> str:
        return said[0] if str(path) == "/proc/self/cgroup" else real(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", read_text)

    def say(text: str) -> None:
        said[0] = text

    return say


def make_group(
    folder: Path, files: tuple[str, str, str], limit: object, used: object, cached: int | None = None
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / files[0]).write_text(f"{limit}\n")
    (folder / files[1]).write_text(f"{used}\n")
    if cached is not None:
        (folder / "memory.stat").write_text(f"anon 5\nactive_file 9\n{files[2]} {cached}\nunevictable 0\n")


@pytest.mark.parametrize(
    ("limit", "used", "left"), [("1000\n", "300\n", 700), ("1000", "1200", 0), ("max\n", "3", None), ("0", "0", 0)]
)
def test_headroom_of_a_control_group(
    tmp_path: Path, member: Membership, limit: str, used: str, left: int | None
) -> None:
    member("4:memory:/elsewhere\n0::/job/step\n")
    make_group(tmp_path / "job" / "step", V2, limit, used)
    assert cgroup_headroom(str(tmp_path)) == left


def test_no_control_group_means_no_limit(tmp_path: Path, member: Membership) -> None:
    member("4:memory:/elsewhere\n0::/job/step\n")
    assert cgroup_headroom(str(tmp_path)) is None
    (tmp_path / "job" / "step").mkdir(parents=True)
    assert cgroup_headroom(str(tmp_path)) is None
    (tmp_path / "job" / "step" / "memory.max").write_text("not a number")
    assert cgroup_headroom(str(tmp_path)) is None


def test_a_limit_on_a_parent_group_counts(tmp_path: Path, member: Membership) -> None:
    member("0::/job/step\n")
    make_group(tmp_path / "job" / "step", V2, "max", 300)
    make_group(tmp_path / "job", V2, 1000, 300)
    assert cgroup_headroom(str(tmp_path)) == 700


def test_the_tightest_of_the_groups_above_counts_less_what_its_other_members_took(
    tmp_path: Path, member: Membership
) -> None:
    member("0::/a/b/c\n")
    make_group(tmp_path / "a" / "b" / "c", V2, 900, 100)
    make_group(tmp_path / "a" / "b", V2, 1000, 650)
    make_group(tmp_path / "a", V2, 5000, 1000)
    assert cgroup_headroom(str(tmp_path)) == 350


def test_a_group_outside_the_hierarchy_is_not_asked(tmp_path: Path, member: Membership) -> None:
    member("0::/job\n")
    make_group(tmp_path, V2, 10, 5)
    root = tmp_path / "cgroup"
    make_group(root / "job", V2, 1000, 300)
    assert cgroup_headroom(str(root)) == 700


@pytest.mark.parametrize(("files", "line", "folder"), [(V2, "0::/job", "job"), (V1, "9:memory:/job", "memory/job")])
def test_a_groups_file_cache_is_free_to_take(
    tmp_path: Path, member: Membership, files: tuple[str, str, str], line: str, folder: str
) -> None:
    member(f"{line}\n")
    make_group(tmp_path / folder, files, 1000, 700, cached=400)
    assert cgroup_headroom(str(tmp_path)) == 700
    make_group(tmp_path / folder, files, 1000, 700, cached=4000)  # the counters are read one after the other
    assert cgroup_headroom(str(tmp_path)) == 1000
    (tmp_path / folder / "memory.stat").write_text(f"{files[2]}\n{files[2]} many\n")
    assert cgroup_headroom(str(tmp_path)) == 300


@pytest.mark.parametrize(
    ("limit", "used", "left"),
    [(1000, 300, 700), (1000, 1200, 0), (NO_LIMIT, 300, None), (2**63 - 65536, 300, None), (-1, 300, None)],
    ids=["limited", "exceeded", "unlimited", "unlimited with pages of 64 KiB", "unlimited as it is written"],
)
def test_headroom_of_a_group_of_version_1(
    tmp_path: Path, member: Membership, limit: int, used: int, left: int | None
) -> None:
    member("12:cpu,cpuacct:/other\n5:devices:/job\n4:memory:/job/step\n1:name=systemd:/job\n")
    make_group(tmp_path / "memory" / "job" / "step", V1, limit, used)
    assert cgroup_headroom(str(tmp_path)) == left


def test_an_unlimited_group_of_version_1_is_within_its_limited_parent(tmp_path: Path, member: Membership) -> None:
    member("4:memory:/job/step\n")
    make_group(tmp_path / "memory" / "job" / "step", V1, NO_LIMIT, 100)
    make_group(tmp_path / "memory" / "job", V1, 1000, 100)
    make_group(tmp_path / "memory", V1, NO_LIMIT, 10**9)
    assert cgroup_headroom(str(tmp_path)) == 900


def test_a_container_that_sees_its_own_group_as_the_root_is_limited_by_it(tmp_path: Path, member: Membership) -> None:
    member("4:memory:/docker/0123abcd\n0::/docker/0123abcd\n")
    make_group(tmp_path / "memory", V1, 1000, 100)
    assert cgroup_headroom(str(tmp_path)) == 900


def test_memory_beside_other_controllers_of_version_1_is_found(tmp_path: Path, member: Membership) -> None:
    member("3:hugetlb,memory,pids:/job\n")
    make_group(tmp_path / "memory" / "job", V1, 1000, 100)
    assert cgroup_headroom(str(tmp_path)) == 900


@pytest.mark.parametrize(("old", "new", "left"), [(1000, 2000, 900), (2000, 1000, 900), (NO_LIMIT, "max", None)])
def test_of_a_hybrid_hierarchy_the_tighter_version_counts(
    tmp_path: Path, member: Membership, old: int, new: object, left: int | None
) -> None:
    member("4:memory:/job\n1:name=systemd:/job\n0::/job\n")
    make_group(tmp_path / "memory" / "job", V1, old, 100)
    make_group(tmp_path / "job", V2, new, 100)
    assert cgroup_headroom(str(tmp_path)) == left


def test_a_group_of_another_controller_does_not_limit_memory(tmp_path: Path, member: Membership) -> None:
    member("4:memoryless:/job\n5:pids:/job\n1:name=memory:/job\n")
    make_group(tmp_path / "memory" / "job", V1, 1000, 100)
    make_group(tmp_path / "job", V2, 1000, 100)
    assert cgroup_headroom(str(tmp_path)) is None


@pytest.mark.parametrize(
    "text",
    ["", "\n\n", "nonsense", "0", "0:", "0::", "::", "4:memory", "0::relative", "0::/../..", "0::/a:b/c", ":::::"],
    ids=repr,
)
def test_a_list_of_groups_that_makes_no_sense_is_no_limit(tmp_path: Path, member: Membership, text: str) -> None:
    member(text)
    assert cgroup_headroom(str(tmp_path / "cgroup")) is None


def test_a_group_with_a_colon_in_its_name_is_found(tmp_path: Path, member: Membership) -> None:
    member("0::/machine/qemu:vm 1\n")
    make_group(tmp_path / "machine" / "qemu:vm 1", V2, 1000, 100)
    assert cgroup_headroom(str(tmp_path)) == 900


def test_where_the_kernel_has_no_control_groups_there_is_no_limit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def read_text(path: Path, *args: Any, **kwargs: Any) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", read_text)
    assert cgroup_headroom(str(tmp_path)) is None


# How containers lay it out: what /proc/self/cgroup says, where the limit lies under the mount
LAYOUTS = {
    "version 2, a namespace of its own": ("0::/", 2, "."),
    "version 2, the host's path without its namespace": ("0::/system.slice/docker-0123abcd.scope", 2, "."),
    "version 2, the host's tree": ("0::/system.slice/docker-0123abcd.scope", 2, "system.slice/docker-0123abcd.scope"),
    "version 2, limited by the pod above": ("0::/kubepods.slice/pod7/crio-1", 2, "kubepods.slice/pod7"),
    "version 2, a group made within the container": ("0::/docker/0123abcd/build", 2, "build"),
    "version 2, the group of a process outside the namespace": ("0::/../other", 2, "."),
    "version 1, the host's path, its own group as the root": ("{}:/docker/0123abcd", 1, "."),
    "version 1, the host's tree": ("{}:/docker/0123abcd", 1, "docker/0123abcd"),
    "version 1, a namespace of its own": ("{}:/", 1, "."),
    "version 1, a group made within the container": ("{}:/docker/0123abcd/build", 1, "build"),
}


@pytest.mark.parametrize(("line", "version", "folder"), LAYOUTS.values(), ids=LAYOUTS)
def test_a_limit_is_found_where_containers_put_it(
    tmp_path: Path, member: Membership, line: str, version: int, folder: str
) -> None:
    member("\n".join(line.format(f"{number}:{name}") for number, name in ((4, "memory"), (5, "cpu,cpuacct"))))
    make_group(tmp_path / ("" if version == 2 else "memory") / folder, V2 if version == 2 else V1, 1000, 300)
    make_quota(tmp_path / ("" if version == 2 else "cpu,cpuacct") / folder, version, 250_000)
    assert cgroup_headroom(str(tmp_path)) == 700
    assert cpu_quota(tmp_path) == 2.5


def make_quota(folder: Path, version: int, quota: object, period: object = 100_000) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if version == 2:
        (folder / "cpu.max").write_text(f"{quota} {period}\n")
    else:
        (folder / "cpu.cfs_quota_us").write_text(f"{quota}\n")
        (folder / "cpu.cfs_period_us").write_text(f"{period}\n")


def test_a_group_is_slowed_down_beyond_its_high_mark_so_that_is_its_limit(tmp_path: Path, member: Membership) -> None:
    member("0::/job")
    make_group(tmp_path / "job", V2, 1000, 300)
    for high, left in (("max", 700), (800, 500), (5000, 700)):
        (tmp_path / "job" / "memory.high").write_text(f"{high}\n")
        assert cgroup_headroom(str(tmp_path)) == left


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("quota", "period", "cpus"),
    [
        (200_000, 100_000, 2.0),
        (50_000, 100_000, 0.5),
        (30_000, 20_000, 1.5),
        ("max", 100_000, None),
        (-1, 100_000, None),
        (0, 100_000, None),
        (100_000, 0, None),
        ("", "", None),
        ("²", "²", None),
        ("many", "more", None),
    ],
    ids=str,
)
def test_a_quota_is_cpu_time_in_each_period(
    tmp_path: Path, member: Membership, version: int, quota: object, period: object, cpus: float | None
) -> None:
    member("0::/job" if version == 2 else "3:cpu:/job")
    make_quota(tmp_path / ("job" if version == 2 else "cpu/job"), version, quota, period)
    assert cpu_quota(tmp_path) == cpus


def test_the_tightest_quota_of_the_groups_above_counts(tmp_path: Path, member: Membership) -> None:
    member("0::/a/b/c")
    for folder, quota in (("a", 300_000), ("a/b", 150_000), ("a/b/c", "max")):
        make_quota(tmp_path / folder, 2, quota)
    assert cpu_quota(tmp_path) == 1.5


@pytest.mark.parametrize(
    ("lines", "mount"),
    [
        ("3:cpu,cpuacct:/job\n0::/", "cpu,cpuacct"),
        ("3:cpuacct,cpu:/job\n0::/", "cpu"),
        ("3:cpu:/job\n0::/job", "cpu"),
    ],
)
def test_the_cpus_controller_of_version_1_is_found_by_either_of_its_folders(
    tmp_path: Path, member: Membership, lines: str, mount: str
) -> None:
    member(lines)
    make_quota(tmp_path / mount / "job", 1, 100_000)
    (tmp_path / "cpuset" / "job").mkdir(parents=True)
    assert cpu_quota(tmp_path) == 1.0


@pytest.mark.parametrize(
    ("bound", "quota", "cpus"),
    [(64, 2.0, 2), (64, 2.5, 3), (64, 0.1, 1), (2, 8.0, 2), (64, None, 64), (1, None, 1)],
)
def test_threads_are_one_for_each_cpu_that_affinity_and_quota_leave(
    monkeypatch: pytest.MonkeyPatch, bound: int, quota: float | None, cpus: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(bound)))
    monkeypatch.setattr(cgroups, "cpu_quota", lambda root: quota)
    assert usable_cpus() == cpus


def test_this_process_may_use_a_cpu_at_least_and_no_more_than_it_is_bound_to() -> None:
    assert 1 <= usable_cpus() <= len(os.sched_getaffinity(0))


@pytest.fixture
def quota_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)
    monkeypatch.setattr(cgroups, "cpu_quota", lambda root: 0.7)


@pytest.mark.usefixtures("quota_of_one")
def test_kernels_have_as_many_threads_unless_more_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import numba

    most = numba.config.NUMBA_NUM_THREADS
    try:
        assert threads.use(None) == numba.get_num_threads() == 1
        assert threads.use(most) == most, "whoever names a number gets it"
        monkeypatch.setenv("NUMBA_NUM_THREADS", str(most))
        assert threads.use(None) == most, "and so does whoever names Numba's"
    finally:
        monkeypatch.undo()
        threads.use(None)


@pytest.mark.usefixtures("quota_of_one")
def test_this_host_is_measured_and_recognised_by_the_cpus_that_it_may_use() -> None:
    import numba

    from bigrun.devices.host_file import machine
    from bigrun.devices.measure import warm

    try:
        assert machine()[1] == 1
        warm(wide=False)
        assert numba.get_num_threads() == 1
    finally:
        threads.use(numba.config.NUMBA_NUM_THREADS)


CPU_GROUPS, MEMORY_GROUPS = (Path(cgroups.ROOT, name) for name in ("cpu", "memory"))  # of version 1


@pytest.mark.skipif(
    not (os.access(CPU_GROUPS, os.W_OK) and (CPU_GROUPS / "cpu.cfs_quota_us").exists()),
    reason="control groups of version 1 cannot be made here",
)
def test_a_process_in_a_real_group_with_a_quota_has_so_many_threads() -> None:
    group = CPU_GROUPS / f"bigrun-test-{os.getpid()}"
    group.mkdir()
    code = (
        "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid()))\n"
        "from bigrun_kernels.cpu import cgroups, threads\n"
        "print(cgroups.cpu_quota(), cgroups.usable_cpus(), threads.use(None))"
    )
    try:
        (group / "cpu.cfs_quota_us").write_text("60000")
        ended = subprocess.run(
            [sys.executable, "-c", code, str(group / "cgroup.procs")],
            capture_output=True,
            text=True,
            timeout=120,
            env={name: value for name, value in os.environ.items() if name != "NUMBA_NUM_THREADS"},
        )
    finally:
        group.rmdir()
    assert ended.stdout.split() == ["0.6", "1", "1"], ended.stderr

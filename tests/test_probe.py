"""What is free here, and no more: within the control groups, on the cards, through the slots that the driver tells."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bigrun.devices import probe
from bigrun.devices.cards import Card, card
from bigrun.devices.links import LINKS
from bigrun.devices.probe import available_memory, cgroup_headroom, driver_slots, probe_gpus, read_slots
from bigrun.errors import BigrunError, RunError

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


@pytest.mark.parametrize(
    ("free", "headroom", "expected"),
    [
        (100 * GB, None, (98 * GB, 2 * GB)),
        (10 * GB, None, (9 * GB, GB)),
        (100 * GB, 10 * GB, (9 * GB, GB)),
        (10 * GB, 100 * GB, (9 * GB, GB)),
        (10 * GB, 0, (0, 0)),
    ],
    ids=["2 GB at most", "a tenth", "control group", "a control group wider than the host", "full control group"],
)
def test_the_probed_host_keeps_a_tenth_back_and_two_gigabytes_at_most(
    monkeypatch: pytest.MonkeyPatch, free: int, headroom: int | None, expected: tuple[int, int]
) -> None:
    import psutil

    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    monkeypatch.setattr(probe, "cgroup_headroom", lambda: headroom)
    assert available_memory() == expected


def test_this_host_has_memory_and_no_more_than_it_says() -> None:
    import psutil

    budget, reserve = available_memory()
    assert 0 < budget + reserve <= psutil.virtual_memory().total
    assert 0 <= reserve <= 2 * GB


UUID = "5a1f0fcb-8a4c-6cd1-5c12-3f6d1f0e2b11"
OTHER = "9d7e2a64-1111-2222-3333-444455556666"


@pytest.mark.parametrize(
    ("text", "slots"),
    [
        (f"GPU-{UUID}, NVIDIA GeForce RTX 3090, 4, 16\n", {UUID: "pcie4x16"}),
        (
            f"GPU-{UUID}, NVIDIA RTX A4000, 4, 8\nGPU-{OTHER}, Tesla P40, 3, 4\n",
            {UUID: "pcie4x8", OTHER: "pcie3x4"},
        ),
        (f"GPU-{UUID}, NVIDIA H100 80GB HBM3, 5, 16\r\n", {UUID: "pcie5x16"}),
        (f"GPU-{UUID}, NVIDIA GeForce RTX 3090, 3, 1", {UUID: "pcie3x1"}),
        (f"GPU-{UUID}, Orin, [N/A], [N/A]\n", {}),
        (f"GPU-{UUID}, NVIDIA RTX A4000, [Not Supported], 16\nGPU-{OTHER}, Tesla T4, 3, 16\n", {OTHER: "pcie3x16"}),
        (f"GPU-{UUID}, NVIDIA RTX A4000, 4, [Unknown Error]\n", {}),
        (f"GPU-{UUID}, Tesla K80, 2, 16\n", {}),
        (f"GPU-{UUID}, NVIDIA GeForce RTX 3090, 4, 0\n", {}),
        (f"GPU-{UUID}, NVIDIA GeForce RTX 3090, 4, 3\n", {}),
        (f"GPU-{UUID}, a name, with a comma, 4, 16\n", {}),
        (f"GPU-{UUID}, NVIDIA GeForce RTX 3090, 4.0, 16\n", {}),
        (f"GPU-{UUID}, NVIDIA GeForce RTX 3090\n", {}),
        ("No devices were found\n", {}),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n", {}),
        ("", {}),
        ("\n , , , \n,,,\n", {}),
        ("\x00\ufffd,\ufffd,4,16", {"\x00\ufffd": "pcie4x16"}),
    ],
    ids=[
        "one card",
        "two cards",
        "lines of Windows",
        "riser",
        "[N/A]",
        "[Not Supported] beside a card that tells",
        "[Unknown Error]",
        "generation 2",
        "no lanes",
        "three lanes",
        "comma in a name",
        "decimals",
        "fields missing",
        "no devices",
        "driver failed",
        "nothing",
        "empty fields",
        "bytes that are no text",
    ],
)
def test_slots_are_those_that_the_driver_tells_and_no_others(text: str, slots: dict[str, str]) -> None:
    assert read_slots(text) == {uuid: LINKS[name].usable for uuid, name in slots.items()}


def put_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """An nvidia-smi of our own, first on the path."""
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_the_driver_is_asked_for_each_cards_slot_as_it_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_smi(tmp_path, monkeypatch, f'echo "$@" >{tmp_path}/asked; echo "GPU-{UUID}, NVIDIA RTX A4000, 4, 8"')
    assert driver_slots() == {UUID: LINKS["pcie4x8"].usable}
    asked = (tmp_path / "asked").read_text().split()
    assert asked == [
        "--query-gpu=uuid,name,pcie.link.gen.max,pcie.link.width.current",
        "--format=csv,noheader,nounits",
    ]


@pytest.mark.parametrize(
    "script",
    [
        'echo "Field \\"pcie.link.gen.max\\" is not a valid field to query."; exit 2',
        f'echo "GPU-{UUID}, NVIDIA RTX A4000, 4, 8"; echo "Unable to determine the device handle" >&2; exit 15',
        "kill -SEGV $$",
        "head -c 5000 /dev/urandom",
        "printf '\\377\\376, \\200, 4\\n'",
        "",
    ],
    ids=["an old driver", "a lost card", "a crash", "noise", "no UTF-8", "silence"],
)
def test_a_driver_that_does_not_answer_tells_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    put_smi(tmp_path, monkeypatch, script)
    assert driver_slots() == {}


def test_a_card_whose_name_is_no_utf8_has_its_slot_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_smi(tmp_path, monkeypatch, f"printf 'GPU-{UUID}, \\377\\376, 4, 8\\n'")
    assert driver_slots() == {UUID: LINKS["pcie4x8"].usable}


def test_a_host_without_nvidia_smi_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert driver_slots() == {}
    (tmp_path / "nvidia-smi").write_text("not a program")  # and may not be run
    assert driver_slots() == {}


@pytest.mark.parametrize(
    "failure",
    [
        subprocess.TimeoutExpired("nvidia-smi", 10),
        subprocess.CalledProcessError(9, "nvidia-smi"),
        FileNotFoundError("nvidia-smi"),
        PermissionError("nvidia-smi"),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_a_driver_that_hangs_or_fails_is_given_up_after_a_while(
    monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    limits = []

    def run(*args: Any, **kwargs: Any) -> Any:
        limits.append(kwargs["timeout"])
        raise failure

    monkeypatch.setattr(subprocess, "run", run)
    assert driver_slots() == {}
    assert 0 < limits[0] <= 30


def fake_torch(cards: Sequence[tuple[str, str, float, float]], available: bool = True) -> Any:
    """A torch that has cards of (name, uuid, free GB, total GB)."""
    cuda = SimpleNamespace(
        is_available=lambda: available,
        device_count=lambda: len(cards),
        mem_get_info=lambda number: (int(cards[number][2] * GB), int(cards[number][3] * GB)),
        get_device_properties=lambda number: SimpleNamespace(
            name=cards[number][0], uuid=cards[number][1], total_memory=int(cards[number][3] * GB)
        ),
    )
    return SimpleNamespace(cuda=cuda)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A host with a driver, a torch that has these cards, and an nvidia-smi that says this."""

    def install(torch: Any, smi: str = "") -> None:
        monkeypatch.setattr(probe.os.path, "exists", lambda path: str(path) == "/dev/nvidia0")
        monkeypatch.setitem(sys.modules, "torch", torch)
        monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: SimpleNamespace(stdout=smi))

    return install


def test_without_a_driver_no_gpu_is_found_and_torch_stays_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe.os.path, "exists", lambda path: False)
    monkeypatch.setitem(sys.modules, "torch", None)  # an import of it would raise
    assert probe_gpus() == ()


def test_a_driver_without_a_cuda_that_works_is_no_gpu(driver: Callable[..., None]) -> None:
    driver(fake_torch([("NVIDIA RTX A4000", UUID, 15, 16)], available=False))
    assert probe_gpus() == ()


def test_of_each_card_its_free_memory_is_taken_less_a_twentieth(driver: Callable[..., None]) -> None:
    driver(fake_torch([("NVIDIA RTX A4000", UUID, 10, 16.8), ("NVIDIA RTX A4000", OTHER, 0, 16.8)]))
    assert [budget for budget, _, _ in probe_gpus()] == [int(9.5 * GB), 0]


@pytest.mark.parametrize(
    ("name", "total", "known"),
    [
        ("NVIDIA GeForce RTX 3090", 25.4, "RTX3090"),
        ("NVIDIA RTX A4000", 16.8, "RTXA4000"),
        ("NVIDIA H100 80GB HBM3", 85.0, "H100-80GB"),
        ("NVIDIA GeForce RTX 3080", 12.6, "RTX3080-12GB"),
        ("NVIDIA GeForce RTX 3080", 10.5, "RTX3080-10GB"),
        ("Tesla P40", 25.6, "P40"),
    ],
    ids=str,
)
def test_a_card_is_known_by_the_name_that_torch_gives_and_its_memory(
    driver: Callable[..., None], name: str, total: float, known: str
) -> None:
    driver(fake_torch([(name, UUID, total, total)]))
    ((_, entry, _),) = probe_gpus()
    assert entry == card(known)


@pytest.mark.parametrize("name", ["NVIDIA GeForce RTX 9090", "AMD Instinct MI350X", "NVIDIA Graphics Device", ""])
def test_a_card_that_the_table_lacks_has_its_memory_and_its_slot_all_the_same(
    driver: Callable[..., None], name: str
) -> None:
    driver(fake_torch([(name, UUID, 20, 24)]), f"GPU-{UUID}, {name}, 3, 8\n")
    assert probe_gpus() == ((19 * GB, None, LINKS["pcie3x8"].usable),)


def test_each_card_has_its_own_slot_whatever_order_the_driver_counts_in(driver: Callable[..., None]) -> None:
    cards = [("NVIDIA RTX A4000", UUID, 10, 16), ("Tesla P40", OTHER, 10, 24), ("Tesla T4", "0-0", 10, 16)]
    driver(fake_torch(cards), f"GPU-{OTHER}, Tesla P40, 3, 4\nGPU-{UUID}, NVIDIA RTX A4000, 4, 16\n")
    gpus: tuple[tuple[int, Card | None, float | None], ...] = probe_gpus()
    assert [link for _, _, link in gpus] == [LINKS["pcie4x16"].usable, LINKS["pcie3x4"].usable, None]


def test_a_torch_that_does_not_tell_the_uuid_leaves_the_slot_unknown(driver: Callable[..., None]) -> None:
    torch = fake_torch([("NVIDIA RTX A4000", UUID, 10, 16)])
    torch.cuda.get_device_properties = lambda number: SimpleNamespace(name="NVIDIA RTX A4000", total_memory=16 * GB)
    driver(torch, f"GPU-{UUID}, NVIDIA RTX A4000, 4, 16\n")
    assert probe_gpus() == ((int(9.5 * GB), card("RTXA4000"), None),)


def test_a_card_that_another_process_holds_is_an_explained_failure(driver: Callable[..., None]) -> None:
    torch = fake_torch([("NVIDIA RTX A4000", UUID, 10, 16)])

    def busy(number: int) -> Any:
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable\nCUDA kernel errors might be…")

    torch.cuda.mem_get_info = busy
    driver(torch)
    with pytest.raises(RunError, match=r"cuda:0 .*busy or unavailable; gpus none") as caught:
        probe_gpus()
    assert isinstance(caught.value, BigrunError)
    assert "\n" not in str(caught.value)

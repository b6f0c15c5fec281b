"""What is free here, and no more: on the host, on the cards, through the slots that the driver tells."""

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
from bigrun.devices.make_rig import RigOptions, make_rig
from bigrun.devices.probe import available_memory, driver_slots, probe_gpus, read_slots, why_no_gpu
from bigrun.errors import BigrunError, RunError

GB = 10**9


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


WITHOUT = "is built without CUDA; install one that has it (docs/install.md)"
OLDER = "cannot use it, most often because the driver is older than its CUDA 13.0: update the driver"


@pytest.mark.parametrize(
    ("smi", "cuda", "available", "hidden", "says"),
    [
        ("24576\n", None, False, None, f"1 NVIDIA card is here and not used: torch 2.13.0 {WITHOUT}"),
        ("24576\n12288\n", None, False, "0", f"2 NVIDIA cards are here and not used: torch 2.13.0 {WITHOUT}"),
        ("24576\n", "13.0", False, None, f"1 NVIDIA card is here and not used: torch 2.13.0 {OLDER}"),
        ("24576\n", "13.0", True, None, ""),
        ("24576\n", None, False, "", ""),
        ("24576\n", "13.0", False, "-1", ""),
        ("No devices were found\n", None, False, None, ""),
        ("", "13.0", False, None, ""),
    ],
    ids=["CPU build", "two cards", "old driver", "seen", "hidden", "hidden by -1", "no card", "no nvidia-smi"],
)
def test_a_card_that_torch_does_not_see_is_not_passed_over_in_silence(
    driver: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    smi: str,
    cuda: str | None,
    available: bool,
    hidden: str | None,
    says: str,
) -> None:
    torch = fake_torch([("NVIDIA GeForce RTX 3090", UUID, 24, 24)], available)
    torch.__version__, torch.version = "2.13.0", SimpleNamespace(cuda=cuda)
    driver(torch, smi)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    else:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert why_no_gpu().startswith(says)
    assert bool(why_no_gpu()) == bool(says)
    if not available:
        assert any(line == why_no_gpu() for line in make_rig(RigOptions(cpu="8GB")).assumptions) == bool(says)
        assert not any("not used" in line for line in make_rig(RigOptions("none", cpu="8GB")).assumptions)


def test_without_a_driver_nobody_asks_torch_why_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe.os.path, "exists", lambda path: False)
    monkeypatch.setitem(sys.modules, "torch", None)  # an import of it would raise
    assert why_no_gpu() == ""


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

"""Budgets that this host does not have: a warning in a plan, an error in a run, nothing where another machine is described."""

import json
from pathlib import Path
from typing import Any

import pytest

from bigrun import Runner, plan
from bigrun.devices import here, probe
from bigrun.devices.make_rig import RigOptions, make_rig
from bigrun.devices.probe import gpu_memories, host_memory
from bigrun.errors import CallError
from bigrun.planning.plan import Plan, plan_from_json
from bigrun.session import preflight
from support.commands import ended, plan_command, run_command

GB, GIB = 10**9, 2**30


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A host of so much memory, with GPUs of so many GiB."""

    def of(memory: int, *gpus: int) -> None:
        for module in (here, preflight):
            monkeypatch.setattr(module, "host_memory", lambda: memory)
        monkeypatch.setattr(here, "gpu_memories", lambda: tuple(size * GIB for size in gpus))

    return of


# options, the host's GPUs, words of each warning of a plan
DESCRIBED: dict[str, tuple[dict[str, Any], tuple[int, ...], list[str]]] = {
    "within": ({"gpus": "none", "cpu": "25GB"}, (), []),
    "a byte too many": (
        {"gpus": "none", "cpu": 25 * GB + 1},
        (),
        ["cpu: 25,000,000,001 bytes is more than the 25,000,000,000 bytes"],
    ),
    "a GPU of a byte too many": (
        {"gpus": "25769803777B", "cpu": "8GB"},
        (24,),
        ["cuda:0 gets 25,769,803,777 bytes, and the largest GPU of this host has 25,769,803,776 bytes"],
    ),
    "a terabyte": ({"gpus": "none", "cpu": "1TB"}, (), ["cpu: 1.00 TB is more than the 25.0 GB that this host has"]),
    "accelerate's form": ({"max_memory": {"cpu": "1TB"}}, (), ["max_memory cpu: 1.00 TB is more"]),
    "cards that are not here": ({"gpus": "2xRTX3090", "cpu": "64GB"}, (), []),
    "more cards than are here": ({"gpus": "2xRTX3090", "cpu": "64GB"}, (24,), []),
    "a card that is here": ({"gpus": "24GB", "cpu": "8GB"}, (24,), []),
    "a card that is smaller": (
        {"gpus": "48GB", "cpu": "8GB"},
        (12, 24),
        ["gpus: cuda:0 gets 48.0 GB, and the largest GPU"],
    ),
    "both": ({"gpus": "12GB,48GB", "cpu": "64GB"}, (12, 24), ["cuda:1 gets 48.0 GB", "cpu: 64.0 GB is more"]),
    "accelerate's card": ({"max_memory": {0: "48GB", "cpu": "1GB"}}, (24,), ["max_memory: cuda:0 gets 48.0 GB"]),
    "virtual": ({"gpus": "2x80GB", "cpu": "1TB", "virtual": True}, (24,), []),
}


@pytest.mark.parametrize(("options", "gpus", "words"), DESCRIBED.values(), ids=DESCRIBED)
def test_a_plan_warns_of_what_this_host_does_not_have(
    options: dict[str, Any], gpus: tuple[int, ...], words: list[str], host: Any
) -> None:
    host(25 * GB, *gpus)
    made = plan("llama-3.2-1b", **options)
    assert len(made.warnings) == len(words)
    for warning, part in zip(made.warnings, words, strict=True):
        assert part in warning.replace("--", "").replace("max-memory", "max_memory")
        assert warning.endswith("a run here is refused")
    assert plan_from_json(made.to_json()) == made


@pytest.mark.parametrize(("options", "gpus", "words"), DESCRIBED.values(), ids=DESCRIBED)
def test_a_run_is_refused_for_it(
    options: dict[str, Any], gpus: tuple[int, ...], words: list[str], host: Any, tiny: Path
) -> None:
    if words or options.get("cpu") == "64GB":
        host(25 * GB, *gpus)
        with pytest.raises(CallError, match=words[0] if words else "cpu: 64.0 GB is more than the 25.0 GB"):
            Runner(str(tiny), context=64, progress=False, **options)


def test_a_rig_file_may_describe_another_machine_but_a_run_holds_what_its_plan_takes(
    tmp_path: Path, host: Any, tiny: Path
) -> None:
    host(25 * GB)
    file = tmp_path / "rig.yaml"
    file.write_text("cpu: {memory: 1TB}\n")
    made = plan(str(tiny), rig=file, context=64)
    assert (made.fits, made.warnings) == (True, ())
    with Runner(plan=made, progress=False) as runner:
        assert len(runner.generate([5, 6], max_new_tokens=2).token_ids) == 2
    taken = made.device("cpu").used_bytes
    host(taken)
    Runner(plan=made, progress=False).close()
    host(taken - 1)
    with pytest.raises(CallError, match=r"the plan takes .* of host memory, and this host has"):
        Runner(plan=made, progress=False)


def test_on_the_command_line_a_warning_is_a_line_beside_the_table_and_a_list_in_the_json(host: Any) -> None:
    host(25 * GB)
    call = ("--model", "llama-3.2-1b", "--gpus", "none", "--cpu", "1TB")
    said = "--cpu: 1.00 TB is more than the 25.0 GB that this host has"
    result = plan_command(*call)
    assert (result.exit_code, result.stderr) == (0, f"bigrun: {said}; a run here is refused\n")
    assert "predicted" in result.stdout
    result = plan_command(*call, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    assert json.loads(result.stdout)["warnings"] == [f"{said}; a run here is refused"]
    assert json.loads(plan_command(*call[:-1], "1GB", "--json").stdout)["warnings"] == []


def test_a_run_ends_with_2_before_it_opens_anything(host: Any, tiny: Path) -> None:
    host(25 * GB)
    result = run_command("generate", "--model", tiny, "--gpus", "none", "--cpu", "1TB", "--prompt", "Hi", "--raw")
    ended(result, 2, "--cpu: 1.00 TB is more than the 25.0 GB that this host has; give less")


def test_plans_that_say_nothing_of_warnings_are_read(host: Any) -> None:
    made = plan("llama-3.2-1b", gpus="none", cpu="8GB")
    values = made.to_dict()
    del values["warnings"]
    assert plan_from_json(json.dumps(values)) == made
    assert isinstance(made, Plan)


def test_the_memory_of_a_host_is_all_of_it_or_what_its_control_group_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    monkeypatch.setattr(probe, "_limits", lambda root: [])
    assert host_memory() == psutil.virtual_memory().total
    monkeypatch.setattr(probe, "_limits", lambda root: [(5000, 1), (9000, 2)])
    assert host_memory() == 5000


def test_the_memory_of_gpus_is_asked_of_the_driver_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(probe, "has_driver", lambda: True)

    def smi(query: str) -> str:
        asked.append(query)
        return "24576\n[N/A]\n 12288 \n"

    monkeypatch.setattr(probe, "_smi", smi)
    assert gpu_memories() == (24 * GIB, 12 * GIB)
    assert asked == ["memory.total"]
    monkeypatch.setattr(probe, "has_driver", lambda: False)
    assert gpu_memories() == ()


def test_what_was_not_named_is_not_beyond_anything(host: Any) -> None:
    host(1)
    options = RigOptions(gpus="none")
    assert here.beyond_this_host(options, make_rig(options), to_run=True) == ()

"""accelerate beside the planner: its own answer to the same budgets, what that needs in a run, and our maps in its form."""

import json
import logging
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bigrun import plan
from bigrun.devices.make_rig import RigOptions, make_rig
from bigrun.loading.open import model_config, model_spec
from bigrun.model.resolve import resolve
from bigrun.planning.compare import accelerate_plan
from bigrun.planning.ledger import Ledger
from bigrun.planning.options import PlanOptions
from bigrun.planning.plan import Plan
from bigrun.planning.words import rate
from support.checkpoints import FAMILIES, gguf_twin, llama
from support.commands import plan_command

GB, MB = 10**9, 10**6


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six blocks: embedding and head 20,480 entries each, a block 30,848."""
    folder = tmp_path_factory.mktemp("compare") / "tiny"
    llama(folder, layers=6, tokenizer=True)
    return folder


def compared(*arguments: str, status: int = 0) -> dict[str, Any]:
    result = plan_command(*arguments, "--compare", "accelerate", "--json")
    assert result.exit_code == status, result.stderr
    return json.loads(result.stdout)["accelerate"]


def directly(model: str, budgets: dict[Any, int], dtype: str = "int8") -> dict[str, Any]:
    """accelerate's documented recipe, without bigrun."""
    import torch
    import transformers
    from accelerate import infer_auto_device_map, init_empty_weights

    config = dict(model_config(resolve(model)))
    kind = getattr(transformers, config["architectures"][0])
    with init_empty_weights():
        made = kind(kind.config_class(**config))
    made.tie_weights()
    whole = list(made._no_split_modules)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        device_map = infer_auto_device_map(
            made, max_memory=budgets, no_split_module_classes=whole, dtype=getattr(torch, dtype)
        )
    return dict(device_map)


def row(other: dict[str, Any], name: str) -> dict[str, Any]:
    return next(device for device in other["devices"] if device["name"] == name)


TINY_RIGS: dict[str, tuple[str, dict[Any, int]]] = {
    "two cards": ("--gpus 1x200KB,1x150KB --cpu 1MB", {0: 200_000, 1: 150_000, "cpu": MB, "disk": 0}),
    "a card and the host": ("--gpus 1x120KB --cpu 1MB", {0: 120_000, "cpu": MB, "disk": 0}),
    "a card too small": ("--gpus 1x10KB --cpu 1MB", {0: 10_000, "cpu": MB, "disk": 0}),
    "the host alone": ("--gpus none --cpu 1MB", {"cpu": MB, "disk": 0}),
    "a disk": ("--gpus 1x120KB --cpu 600KB --disk 1MB", {0: 120_000, "cpu": 600_000, "disk": MB}),
    "a disk without a card": ("--gpus none --cpu 700KB --disk 1MB", {"cpu": 700_000, "disk": MB}),
}


@pytest.mark.parametrize(("rig", "budgets"), TINY_RIGS.values(), ids=TINY_RIGS)
def test_the_map_is_what_accelerate_itself_answers_to_the_same_budgets(
    tiny: Path, rig: str, budgets: dict[Any, int]
) -> None:
    other = compared("--model", str(tiny), *rig.split())
    assert other["device_map"] == directly(str(tiny), budgets)
    names = [*(f"cuda:{key}" for key in budgets if isinstance(key, int)), "cpu"]
    assert [device["name"] for device in other["devices"]][: len(names)] == names
    parts = [part for device in other["devices"] for part in device["parts"]]
    assert sorted(parts) == sorted(["embed", *(f"blocks.{i}" for i in range(6)), "norm", "head"])


@pytest.mark.parametrize("form", ["int8", "16bit", "float32"])
def test_weights_count_in_the_form_that_was_asked_for(tiny: Path, form: str) -> None:
    other = compared("--model", str(tiny), "--gpus", "1x300KB", "--cpu", "4MB", "--weights", form)
    dtype = {"int8": "int8", "16bit": "float16", "float32": "float32"}[form]
    assert other["device_map"] == directly(str(tiny), {0: 300_000, "cpu": 4 * MB, "disk": 0}, dtype)
    on_card = len(row(other, "cuda:0")["parts"])
    assert on_card == {"int8": 9, "16bit": 4, "float32": 1}[form]


@pytest.mark.parametrize(
    ("gpus", "budgets"),
    [
        ("1x700MB", {0: 700 * MB, "cpu": GB, "disk": 0}),
        ("2x300MB", {0: 300 * MB, 1: 300 * MB, "cpu": GB, "disk": 0}),
        ("1x400MB", {0: 400 * MB, "cpu": GB, "disk": 0}),
    ],
    ids=["all on one card", "two cards", "some on the host"],
)
def test_bloom_560m_is_mapped_as_accelerate_maps_it(gpus: str, budgets: dict[Any, int]) -> None:
    other = compared("--model", "bloom-560m", "--gpus", gpus, "--cpu", "1GB")
    assert other["device_map"] == directly("bloom-560m", budgets)


def test_what_a_small_map_needs_in_a_run_adds_up_by_hand(tiny: Path) -> None:
    """The first card takes the embedding and two blocks. The others are on the host, and come to the card in their turn:
    it keeps their keys and values too, and needs room for the largest of them and for the buffers of a step."""
    other = compared("--model", str(tiny), "--gpus", "1x120KB", "--cpu", "1MB", "--context", "64")
    here, there = row(other, "cuda:0"), row(other, "cpu")
    assert (here["parts"], there["parts"]) == (
        ["embed", "blocks.0", "blocks.1"],
        ["blocks.2", "blocks.3", "blocks.4", "blocks.5", "norm", "head"],
    )
    table = 320 * 64 + 320 * 2 * 2  # int8, and a float16 scale for 32 entries
    linears = 128 * 64 + 64 * 64 + 2 * 96 * 64 + 64 * 128  # qkv, out, up and gate, down, whose 96 columns become 128
    block = linears + 4 * (128 + 64 + 192 + 64) + 2 * 64 * 4  # a float32 scale a row, and two norms
    keys = 2 * 64 * 2 * 16 * 2  # of one page of 64 tokens: two heads of 16 entries, float16
    rows = plan(str(tiny), gpus="1x120KB", cpu="1MB", context=64).prefill_chunk_tokens
    # of a chunk: x and rotation, four numbers a token, qkv attention up gated normed in 16 bits, int8 and its scales
    step = rows * (4 * (64 + 16) + 4 * 8 + 2 * (128 + 64 + 192 + 96 + 64) + 128 + 4 * 128 // 32)
    step += rows * 2 * 128 + 2 * 4 * 128 + 64 + 128 * 192  # outlier columns: of x, marks, numbers, count, of a linear
    step += 64  # a table of one page
    step += 4 * 1 * 18 * 4 + 32  # attention's partial results, to a multiple of 64
    step += 4 * 2**17  # sums of a token where K is split
    step += 16 * (64 + 320) * 4 + 8 * 3 * 8  # rows of x, logits, and tokens on their way to the host
    assert here["counted_bytes"] == table + 2 * block
    assert there["counted_bytes"] == 4 * block + 64 * 4 + table
    assert here["needed_bytes"] == table + 2 * block + 6 * keys + max(block, table) + step
    assert there["needed_bytes"] == there["counted_bytes"], "the host only keeps weights"
    assert other["fits"] is False
    assert (here["budget_bytes"], there["budget_bytes"]) == (120_000, MB)
    assert other["summary"].startswith("accelerate's map runs out of memory on cuda:0; ")


def test_needed_bytes_are_those_of_the_ledger_on_several_cards(tiny: Path) -> None:
    other = compared("--model", str(tiny), "--gpus", "1x200KB,1x150KB", "--cpu", "1MB", "--context", "64")
    chunk = plan(str(tiny), gpus="1x200KB,1x150KB", cpu="1MB", context=64).prefill_chunk_tokens
    ledger = Ledger(model_spec(resolve(str(tiny))), PlanOptions(context=64))
    for device in other["devices"]:
        computes = any(name.startswith("blocks.") for name in device["parts"])
        need = sum(ledger.weights(name) + ledger.kv(name) for name in device["parts"])
        real = device["name"].startswith("cuda")
        need += ledger.workspace(chunk, computes, "head" in device["parts"], real) if device["parts"] else 0
        assert device["needed_bytes"] == need


def test_a_long_context_makes_a_card_run_out_that_accelerate_thinks_is_enough() -> None:
    rig = ("--model", "bloom-560m", "--gpus", "1x850MB", "--cpu", "1GB")
    short, long = compared(*rig, "--context", "128"), compared(*rig, "--context", "8000")
    assert short["device_map"] == long["device_map"] == {"": 0}
    assert row(short, "cuda:0")["counted_bytes"] == row(long, "cuda:0")["counted_bytes"] < 850 * MB
    assert short["fits"] is True
    assert "holds in a run" in short["summary"]
    assert long["fits"] is False
    needs = row(long, "cuda:0")["needed_bytes"]
    assert needs - row(short, "cuda:0")["needed_bytes"] > 24 * 2 * 7872 * 1024 * 2, "keys and values of 24 blocks"
    assert plan("bloom-560m", gpus="1x850MB", cpu="1GB", context=8000).fits


@pytest.mark.parametrize(
    ("rig", "places"),
    [
        ("--gpus 1x10KB --cpu 1MB", {"cpu"}),
        ("--gpus none --cpu 1MB", {"cpu"}),
        ("--gpus none --cpu 10KB", {"disk"}),
    ],
    ids=["a card too small for anything", "no card", "no memory at all"],
)
def test_where_no_card_holds_anything_the_cpu_computes(tiny: Path, rig: str, places: set[str]) -> None:
    other = compared("--model", str(tiny), *rig.split(), status=3 if "10KB" in rig.split()[-1] else 0)
    assert set(other["device_map"].values()) == places
    assert all(device["needed_bytes"] == 0 for device in other["devices"] if device["name"].startswith("cuda"))
    assert row(other, "cpu")["needed_bytes"] > 200_000, "keys and values, and the buffers of a step"


def test_a_disk_that_is_not_there_is_where_accelerate_runs_out(tiny: Path) -> None:
    other = compared("--model", str(tiny), "--gpus", "1x100KB", "--cpu", "50KB", status=3)
    disk = row(other, "disk")
    assert disk["parts"]
    assert (disk["budget_bytes"], other["fits"]) == (0, False)
    assert "disk" in other["summary"]
    assert other["decode_tokens_per_s"] > 0


def test_a_first_card_that_holds_nothing_computes_nothing(tiny: Path) -> None:
    other = compared("--model", str(tiny), "--max-memory", '{"0": "10B", "1": "120KB", "cpu": 1000000}')
    assert row(other, "cuda:0")["needed_bytes"] == 0
    assert row(other, "cuda:1")["needed_bytes"] > row(other, "cuda:1")["counted_bytes"]


def test_what_lies_on_the_host_is_copied_whole_in_every_step_of_accelerates_map() -> None:
    """Experts that no token chose are copied too, over a link of 12 GB/s."""
    rig: dict[str, Any] = {"gpus": "1x30GB", "cpu": "64GB"}
    spec = model_spec(resolve("mixtral-8x7b"))
    made, options = plan("mixtral-8x7b", **rig), PlanOptions()
    other = accelerate_plan(made, spec, make_rig(RigOptions(**rig)), options, model_config(resolve("mixtral-8x7b")))
    ledger = Ledger(spec, options)
    copied = sum(ledger.weights(name) for name in row(other, "cpu")["parts"])
    assert copied > 15 * GB
    assert 1 / other["decode_tokens_per_s"] > copied / (12 * GB)
    assert 1 / other["decode_tokens_per_s"] < 1.2 * copied / (12 * GB)


def test_the_speeds_of_a_map_on_one_card_are_those_of_the_same_placement() -> None:
    """Nothing is copied: what differs from our own plan are the two hops between the host and the card."""
    made = plan("bloom-560m", gpus="1x24GB", cpu="0")
    other = compared("--model", "bloom-560m", "--gpus", "1x24GB", "--cpu", "0")
    assert made.predicted is not None
    assert other["decode_tokens_per_s"] == pytest.approx(made.predicted.decode_tokens_per_s, rel=0.05)
    assert other["summary"].endswith(
        f"it decodes {rate(other['decode_tokens_per_s'])} tokens/s, this plan {rate(made.predicted.decode_tokens_per_s)}"
    )


def test_json_has_all_of_the_comparison_beside_the_plan(tiny: Path) -> None:
    result = plan_command(
        "--model", str(tiny), "--gpus", "1x120KB", "--cpu", "1MB", "--compare", "accelerate", "--json"
    )
    printed = json.loads(result.stdout)
    other = printed.pop("accelerate")
    assert printed == json.loads(plan(str(tiny), gpus="1x120KB", cpu="1MB").to_json())
    assert set(other) == {"device_map", "devices", "fits", "decode_tokens_per_s", "summary"}
    fields = {"name", "budget_bytes", "counted_bytes", "needed_bytes", "parts"}
    assert all(set(device) == fields for device in other["devices"])


def test_a_person_sees_a_line_a_device_and_the_verdict(tiny: Path) -> None:
    result = plan_command("--model", str(tiny), "--gpus", "1x120KB", "--cpu", "1MB", "--compare", "accelerate")
    assert result.exit_code == 0
    below = result.stdout.partition("accelerate's infer_auto_device_map")[2]
    (card,) = (line for line in below.splitlines() if line.startswith("cuda:0"))
    assert "120 KB" in card
    assert "runs out by" in card
    assert "blocks 0-1" in card
    assert "holds" in next(line for line in below.splitlines() if line.startswith("cpu"))
    assert "by our cost model" in below


def test_nothing_is_logged_or_warned_of_and_loggers_are_left_as_they_were(
    tiny: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    before = [logging.getLogger(name).level for name in ("accelerate.utils.modeling", "transformers")]
    compared("--model", str(tiny), "--gpus", "1x10KB", "--cpu", "1MB")
    result = plan_command("--model", str(tiny), "--gpus", "4x50KB", "--cpu", "10KB", "--compare", "accelerate")
    assert (result.exit_code, result.stderr.count("\n")) == (3, 1)
    assert not caplog.records
    assert not [str(warning.message) for warning in recwarn]
    assert [logging.getLogger(name).level for name in ("accelerate.utils.modeling", "transformers")] == before


def test_the_model_is_never_made_in_memory() -> None:
    """DeepSeek-V3's experts of one block are one tensor of 30 GB: even one of them would be too much."""
    import psutil

    before = psutil.Process().memory_info().rss
    other = compared("--model", "deepseek-v3", "--gpus", "8x80GB", "--cpu", "200GB")
    assert sum(device["counted_bytes"] for device in other["devices"]) > 600 * GB
    assert psutil.Process().memory_info().rss - before < 500 * MB


def test_a_gguf_file_is_compared_as_its_checkpoint_is(tiny: Path, tmp_path: Path) -> None:
    gguf_twin(tiny, tmp_path / "tiny.gguf")
    rig = ("--gpus", "1x120KB", "--cpu", "1MB", "--context", "64")
    ours, theirs = compared("--model", str(tmp_path / "tiny.gguf"), *rig), compared("--model", str(tiny), *rig)
    assert ours["device_map"] == theirs["device_map"]


@pytest.mark.parametrize(
    "question",
    ["--solve|context", "--solve|gpus", "--what-if|+1x24GB", "--target|1"],
    ids=lambda q: q.replace("|", " "),
)
def test_a_question_cannot_be_compared(question: str, tiny: Path) -> None:
    result = plan_command(
        "--model", str(tiny), "--gpus", "24GB", "--cpu", "1GB", "--compare", "accelerate", *question.split("|")
    )
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--compare" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("other", ["vllm", "", "Accelerate"])
def test_what_cannot_be_compared_with_is_named(other: str, tiny: Path) -> None:
    result = plan_command("--model", str(tiny), "--gpus", "24GB", "--cpu", "1GB", "--compare", other)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "accelerate" in result.stderr


@pytest.mark.parametrize("package", ["transformers", "accelerate"])
def test_without_the_package_the_reason_is_said(package: str, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    result = plan_command("--model", str(tiny), "--gpus", "none", "--cpu", "1GB", "--compare", "accelerate")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "needs the packages accelerate and transformers" in result.stderr
    assert package in result.stderr.partition("transformers: ")[2]


def test_a_model_that_transformers_lacks_is_named(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = types.ModuleType("transformers")
    old.__dict__["__version__"] = "4.0"
    monkeypatch.setitem(sys.modules, "transformers", old)
    result = plan_command("--model", str(tiny), "--gpus", "none", "--cpu", "1GB", "--compare", "accelerate")
    assert result.exit_code == 2
    assert "transformers 4.0 has no LlamaForCausalLM" in result.stderr


# Our maps in accelerate's form.


def logits(model: Any) -> np.ndarray:
    import torch

    with torch.no_grad():
        return np.asarray(model(torch.arange(3, 60)[None]).logits)


def dispatched(folder: Path, made: Plan, **more: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, device_map=made.to_device_map(), **more).eval()


def with_disk(folder: Path) -> Plan:
    """The plan of the least memory that fits with some of its parts on the disk."""
    for cpu in range(300, 2000, 50):
        made = plan(str(folder), gpus="none", cpu=f"{cpu}KB", disk="10MB", context=64)
        if made.fits and any(p.stored_on == "disk" for p in made.placements):
            return made
    raise AssertionError("no rig gives such a plan")


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_loads_a_plan_of_the_host_and_the_disk_and_computes_the_same(family: str, tmp_path: Path) -> None:
    model = FAMILIES[family](tmp_path / "model", layers=12)
    made = with_disk(tmp_path / "model")
    places = made.to_device_map()
    assert set(places.values()) == {"cpu", "disk"}
    loaded = dispatched(tmp_path / "model", made, offload_folder=tmp_path / "offload")
    assert loaded.hf_device_map == places
    on_disk = [name for name, place in places.items() if place == "disk"]
    assert any(parameter.is_meta for parameter in loaded.get_submodule(on_disk[0]).parameters())
    assert np.array_equal(logits(loaded), logits(model))


def test_safetensors_need_no_offload_folder_for_what_lies_on_the_disk(tmp_path: Path) -> None:
    model = llama(tmp_path / "model", layers=12)
    made = with_disk(tmp_path / "model")
    assert np.array_equal(logits(dispatched(tmp_path / "model", made)), logits(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_loads_a_plan_of_the_host_alone(family: str, tmp_path: Path) -> None:
    model = FAMILIES[family](tmp_path / "model")
    made = plan(str(tmp_path / "model"), gpus="none", cpu="10MB", context=64)
    assert set(made.to_device_map().values()) == {"cpu"}
    assert np.array_equal(logits(dispatched(tmp_path / "model", made)), logits(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_map_of_several_cards_covers_every_parameter_and_buffer_once(family: str, tmp_path: Path) -> None:
    from accelerate.utils import check_device_map

    model = FAMILIES[family](tmp_path / "model", layers=6)
    sizes = (plan(str(tmp_path / "model"), gpus=f"2x{n}KB", cpu="10MB", context=64) for n in range(600, 1300, 20))
    places = next(p for p in (made.to_device_map() for made in sizes) if set(p.values()) == {0, 1, "cpu"})
    check_device_map(model, places)
    for name, _ in [*model.named_parameters(), *model.named_buffers()]:
        homes = [place for module, place in places.items() if name == module or name.startswith(f"{module}.")]
        assert len(homes) == 1, name

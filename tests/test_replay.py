"""A plan from a file, run: the same tokens as from the options; and refused, before a byte is taken, if it was changed."""

import copy
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from bigrun import Runner, plan
from bigrun.devices.host_memory import HostMemory
from bigrun.devices.rates import ASSUMED_CPU
from bigrun.devices.rig import Device, Rig
from bigrun.errors import CallError, PlanDoesNotFit
from bigrun.loading.open import model_spec
from bigrun.model.resolve import resolve
from bigrun.model.storage import Storage
from bigrun.planning.account import account
from bigrun.planning.ledger import Ledger
from bigrun.planning.options import PlanOptions
from bigrun.planning.plan import Plan, plan_from_json
from bigrun.planning.replay import check_plan, options_of
from bigrun.planning.search import Problem
from bigrun.session.preflight import check_runnable
from support.checkpoints import FAMILIES, llama
from support.commands import run_command
from support.plans import plan_of

PROMPT = [5, 9, 77, 200, 31, 8, 44]
Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("replay") / "tiny"
    llama(folder, layers=6, tokenizer=True)
    return folder


def tokens(runner: Runner) -> tuple[int, ...]:
    with runner:
        token_ids = runner.generate(PROMPT, max_new_tokens=12).token_ids
    assert len(token_ids) == 12
    return token_ids


def printed(file: Path, *arguments: str) -> Plan:
    """What `bigrun plan --json` prints, as a file."""
    result = run_command("plan", *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    file.write_text(result.stdout)
    return Plan.load(file)


RIGS: dict[str, dict[str, Any]] = {
    "the host": {"gpus": "none", "cpu": "100MB"},
    "virtual cards": {"gpus": "2x320KB", "cpu": "100MB", "virtual": True},
    "a long context in int8": {"gpus": "none", "cpu": "100MB", "kv": "int8", "context": 128},
    "another prompt": {"gpus": "none", "cpu": "100MB", "context": 128, "prompt_tokens": 3},
    "some kept in 16 bits": {"gpus": "none", "cpu": "100MB", "skip": ("blocks.1", "down"), "head": "16bit"},
    "several sequences": {"gpus": "none", "cpu": "100MB", "batch": 3},
}


def arguments(rig: dict[str, Any]) -> list[str]:
    words = []
    for name, value in rig.items():
        flag = f"--{name.replace('_', '-')}"
        words += [flag] if value is True else [flag, ",".join(value) if isinstance(value, tuple) else str(value)]
    return words


@pytest.mark.parametrize("rig", RIGS.values(), ids=RIGS)
def test_a_saved_plan_generates_what_its_options_generate(rig: dict[str, Any], tiny: Path, tmp_path: Path) -> None:
    rig = {"context": 64, **rig}
    made = plan(str(tiny), **rig)
    made.save(tmp_path / "plan.json")
    loaded = Plan.load(tmp_path / "plan.json")
    assert loaded == made == printed(tmp_path / "printed.json", "--model", str(tiny), *arguments(rig))
    runner = Runner(plan=loaded, progress=False)
    usual = Runner(str(tiny), progress=False, **rig)
    assert runner.plan == loaded == usual.plan
    assert replace(runner.plan_options, prompt=None) == replace(usual.plan_options, prompt=None)
    assert runner.plan_options.prompt_tokens == usual.plan_options.prompt_tokens
    assert {name: memory.peak_bytes for name, memory in runner.memories.items()} == {
        name: memory.peak_bytes for name, memory in usual.memories.items()
    }
    assert tokens(runner) == tokens(usual)


def test_virtual_cards_of_a_plan_hold_their_parts(tiny: Path, tmp_path: Path) -> None:
    made = plan(str(tiny), context=64, **RIGS["virtual cards"])
    assert {p.stored_on for p in made.placements} == {"cuda:0", "cuda:1", "cpu"}
    made.save(tmp_path / "plan.json")
    with Runner(plan=Plan.load(tmp_path / "plan.json"), progress=False) as runner:
        for device in made.devices:
            assert runner.memories[device.name].peak_bytes == device.used_bytes - device.reserve_bytes


@pytest.mark.parametrize("family", FAMILIES)
def test_plans_of_every_family_that_runs_are_replayed(family: str, tmp_path: Path) -> None:
    FAMILIES[family](tmp_path / "model", tokenizer=True)
    made = printed(tmp_path / "plan.json", "--model", str(tmp_path / "model"), *arguments(RIGS["the host"]))
    usual = Runner(str(tmp_path / "model"), gpus="none", cpu="100MB", progress=False)
    assert tokens(Runner(plan=made, progress=False)) == tokens(usual)


def test_a_plan_that_answers_a_question_runs_like_any_other(tiny: Path, tmp_path: Path) -> None:
    plan(str(tiny), gpus="none", cpu="700KB", solve="context").save(tmp_path / "plan.json")
    loaded = Plan.load(tmp_path / "plan.json")
    assert loaded.answer == {"context_tokens": loaded.context_tokens}
    assert len(tokens(Runner(plan=loaded, progress=False))) == 12


def test_a_plan_runs_another_copy_of_its_model_when_that_is_named(tiny: Path, tmp_path: Path) -> None:
    made = plan(str(tiny), gpus="none", cpu="100MB", context=64)
    (tmp_path / "copy").mkdir()
    for file in tiny.iterdir():
        (tmp_path / "copy" / file.name).write_bytes(file.read_bytes())
    named = Runner(str(tmp_path / "copy"), plan=made, progress=False)
    assert named.files.where != Runner(plan=made, progress=False).files.where
    assert tokens(named) == tokens(Runner(plan=made, progress=False))


def test_the_command_runs_a_plan_file(tiny: Path, tmp_path: Path) -> None:
    plan(str(tiny), context=64, **RIGS["virtual cards"]).save(tmp_path / "plan.json")
    asked = ["--prompt", "the fox", "--max-new-tokens", "8", "--raw", "--quiet", "--json"]

    def generate(*more: str) -> Result:
        return run_command("generate", *more, *asked)

    ours = generate("--plan", str(tmp_path / "plan.json"))
    theirs = generate("--model", str(tiny), "--context", "64", *arguments(RIGS["virtual cards"]))
    assert (ours.exit_code, theirs.exit_code) == (0, 0), ours.output + theirs.output
    assert json.loads(ours.stdout)["token_ids"] == json.loads(theirs.stdout)["token_ids"]
    wrong = generate("--plan", str(tmp_path / "nowhere.json"))
    assert (wrong.exit_code, wrong.stdout) == (2, "")
    assert "nowhere.json" in wrong.stderr


# Plans that were changed.


@pytest.fixture
def nothing_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(*_: Any, **__: Any) -> None:
        raise AssertionError("memory was taken on the word of a bad plan")

    monkeypatch.setattr(HostMemory, "__init__", taken)
    monkeypatch.setattr("bigrun.session.warmup.warm_up", taken)


def refused(values: Any, file: Path, about: str = "") -> None:
    """CallError, in one line that names the plan."""
    file.write_text(json.dumps(values))
    with pytest.raises(CallError) as caught:
        Runner(plan=Plan.load(file), progress=False)
    message = str(caught.value)
    assert message.startswith("plan ")
    assert file.name in message or "'tiny'" in message or "of '" in message
    assert "bigrun plan --json" in message
    assert about in message
    assert message.isprintable()
    assert len(message) < 400


def device(name: str, value: Any, index: int = 0) -> Change:
    return lambda values: values["devices"][index].update({name: value})


def part(index: int, **fields: Any) -> Change:
    return lambda values: values["placements"][index].update(fields)


def field(name: str, value: Any) -> Change:
    return lambda values: values.update({name: value})


def more(kind: str, nbytes: int, index: int = 2) -> Change:
    """So many bytes more of a kind, with everything that hangs together changed along (of the host, which has room)."""

    def change(values: dict[str, Any]) -> None:
        plan_device = values["devices"][index]
        plan_device[f"{kind}_bytes"] += nbytes
        plan_device["used_bytes"] += nbytes
        plan_device["free_bytes"] -= nbytes

    return change


def twice(values: dict[str, Any]) -> None:
    values["placements"].insert(2, copy.deepcopy(values["placements"][1]))


def extra_slice(values: dict[str, Any]) -> None:
    """Of a dense block, with no bytes of its own."""
    placement = copy.deepcopy(values["placements"][1])
    values["placements"].append({**placement, "slice": [0, 1], "weights_bytes": 0, "kv_on": None})


def swapped(values: dict[str, Any]) -> None:
    parts = values["placements"]
    parts[1], parts[2] = parts[2], parts[1]


def moved(values: dict[str, Any]) -> None:
    """A block computed elsewhere than it is stored."""
    placement = next(p for p in values["placements"] if p["stored_on"] == "cuda:0" and p["part"] != "embed")
    placement["decode_on"] = "cuda:1"


CHANGES: dict[str, Change] = {
    "fewer bytes of weights": part(1, weights_bytes=64),
    "negative weights": part(1, weights_bytes=-1),
    "weights in words": part(1, weights_bytes="35072"),
    "weights that are no number": part(1, weights_bytes=math.nan),
    "weights of a yes": part(1, weights_bytes=True),
    "other weights of a device": device("weights_bytes", 64),
    "a smaller budget": device("budget_bytes", 1000),
    "a larger budget": device("budget_bytes", 10**9),
    "an absurd budget": device("budget_bytes", 10**400),
    "a negative budget": device("budget_bytes", -1),
    "a budget in words": device("budget_bytes", "1GB"),
    "a budget that is no number": device("budget_bytes", math.nan),
    "an endless budget": device("budget_bytes", math.inf),
    "less in use": device("used_bytes", 0),
    "more left": device("free_bytes", 10**6),
    "no step": more("workspace", -64),
    "a larger step": more("workspace", 64),
    "staging for nothing": more("staging", 64),
    "pinned for nothing": more("pinned", 64),
    "another reserve": more("reserve", 64),
    "negative staging": more("staging", -64),
    "another device's name": device("name", "cuda:7"),
    "a device without a name": device("name", None),
    "a device of a list": device("name", ["cuda:0"]),
    "a device twice": device("name", "cuda:1"),
    "a card that is a disk": device("kind", "disk"),
    "a host that is a card": device("kind", "gpu", 2),
    "virtual or not": device("virtual", "yes"),
    "other parts of a device": device("parts", ["head"]),
    "no device": field("devices", []),
    "a part missing": lambda values: values["placements"].pop(2),
    "the head missing": lambda values: values["placements"].pop(),
    "a part twice": twice,
    "parts in another order": swapped,
    "no part": field("placements", []),
    "an unknown part": part(1, part="blocks.99"),
    "a part without a name": part(1, part=None),
    "a slice of a dense block": part(1, slice=[0, 1]),
    "a slice beside a dense block": extra_slice,
    "a slice of words": part(1, slice=["0", "1"]),
    "a slice of one": part(1, slice=[0]),
    "a device that is not there": part(1, stored_on="cuda:5"),
    "computed elsewhere": moved,
    "computed nowhere": part(1, decode_on="nowhere"),
    "prompts elsewhere": part(1, prefill_on="disk"),
    "keys nowhere": part(1, kv_on=None),
    "keys of the embedding": part(0, kv_on="cpu"),
    "other keys and values": part(1, kv_cache_bytes=64),
    "another form": part(1, stored_as="float32"),
    "a context beyond the model": field("context_tokens", 129),
    "an absurd context": field("context_tokens", 2**28),
    "an endless context": field("context_tokens", 10**30),
    "another context": field("context_tokens", 128),
    "no context": field("context_tokens", 0),
    "a negative context": field("context_tokens", -64),
    "a context in words": field("context_tokens", "64"),
    "half a token": field("context_tokens", 64.5),
    "a context of a float": field("context_tokens", 64.0),
    "more sequences": field("batch", 2),
    "a negative batch": field("batch", -1),
    "an absurd chunk": field("prefill_chunk_tokens", 10**12),
    "no chunk": field("prefill_chunk_tokens", 0),
    "another chunk": field("prefill_chunk_tokens", 512),
    "a chunk of a list": field("prefill_chunk_tokens", [64]),
    "unknown weights": field("weights", "int2"),
    "other weights": field("weights", "16bit"),
    "weights of a list": field("weights", []),
    "an unknown cache": field("kv", "int2"),
    "another cache": field("kv", "int8"),
    "another head": field("head", "16bit"),
    "skipping nothing": field("skip", ["nothing"]),
    "skipping a word": field("skip", "down"),
    "skipping numbers": field("skip", [1]),
    "skipping more": field("skip", ["down"]),
    "another family": field("family", "bloom"),
    "an unknown family": field("family", "mystery"),
    "other parameters": field("parameters", 7 * 10**9),
    "a model of a number": field("model", 5),
    "a revision of a number": field("revision", 5),
    "fitting in words": field("fits", "yes"),
    "parts without a place": field("unplaced", ["blocks.0"]),
    "no prediction": field("predicted", None),
    "a prediction of words": field("predicted", "fast"),
    "a prompt beyond the context": lambda values: values["predicted"].update(prompt_tokens=65),
    "a negative prompt": lambda values: values["predicted"].update(prompt_tokens=-1),
    "an endless speed": lambda values: values["predicted"].update(decode_tokens_per_s=math.inf),
    "no speed": lambda values: values["predicted"].update(decode_tokens_per_s=math.nan),
    "a hint of numbers": field("hint", 5),
    "an answer of a number": field("answer", 5),
}


@pytest.mark.usefixtures("nothing_is_taken")
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_plan_that_was_changed_is_refused_before_anything_is_allocated(
    change: Change, tiny: Path, tmp_path: Path
) -> None:
    made = plan(str(tiny), context=64, **RIGS["virtual cards"])
    assert made.fits
    values = json.loads(made.to_json())
    change(values)
    assert json.dumps(values) != json.dumps(json.loads(made.to_json())), "the change changed something"
    refused(values, tmp_path / "plan.json")


@pytest.mark.usefixtures("nothing_is_taken")
@pytest.mark.parametrize("name", ["blocks.0", "head"])
@pytest.mark.parametrize("fields", [("decode_on",), ("prefill_on",), ("decode_on", "prefill_on")], ids=" and ".join)
def test_what_is_stored_on_a_card_is_computed_there_however_well_the_accounts_agree(
    fields: tuple[str, ...], name: str, tiny: Path
) -> None:
    made = plan(str(tiny), context=64, **RIGS["virtual cards"])
    elsewhere: dict[str, Any] = dict.fromkeys(fields, "cpu")
    placements = tuple(replace(p, **elsewhere) if p.part == name else p for p in made.placements)
    spec = model_spec(resolve(str(tiny)))
    devices = tuple(Device(d.name, d.kind, d.budget_bytes, ASSUMED_CPU, d.virtual) for d in made.devices)
    problem = Problem(Ledger(spec, options_of(made)), Rig(devices), made.prefill_chunk_tokens)
    changed = replace(made, placements=placements, devices=account(problem, list(placements)))
    assert changed.devices != made.devices
    with pytest.raises(CallError, match=rf"plan of 'tiny': {name} is not computed"):
        Runner(plan=changed, progress=False)


@pytest.mark.usefixtures("nothing_is_taken")
@pytest.mark.parametrize("model", [5, ["x"], {"a": 1}], ids=str)
def test_a_model_that_is_no_text_is_refused(model: Any, tiny: Path, tmp_path: Path) -> None:
    values = json.loads(plan(str(tiny), context=64, **RIGS["the host"]).to_json())
    refused({**values, "model_id": model}, tmp_path / "plan.json")


@pytest.mark.usefixtures("nothing_is_taken")
@pytest.mark.parametrize(
    "other",
    [{"layers": 5}, {"intermediate": 128}, {"kv_heads": 4}, {"tied": True}, {"bias": True}, {"context": 32}],
    ids=lambda other: " ".join(other),
)
def test_a_plan_of_another_model_is_refused(other: dict[str, Any], tiny: Path, tmp_path: Path) -> None:
    llama(tmp_path / "other", **{"layers": 6, **other})
    made = plan(str(tiny), context=64, **RIGS["the host"])
    with pytest.raises(CallError, match=r"plan of 'tiny': .*make it again") as caught:
        Runner(str(tmp_path / "other"), plan=made, progress=False)
    assert str(caught.value).isprintable()


@pytest.mark.usefixtures("nothing_is_taken")
def test_a_plan_of_weights_kept_in_another_form_is_refused_of_a_checkpoint_of_other_bits(
    tiny: Path, tmp_path: Path
) -> None:
    """float16 and bfloat16 take the same bytes; float32 of small tensors does not depend on the checkpoint."""
    llama(tmp_path / "half", layers=6, dtype="bfloat16")
    made = plan(str(tiny), context=64, **RIGS["the host"])
    spec = model_spec(resolve(str(tmp_path / "half")))
    check_plan(made, spec, options_of(made))  # the same bytes: it may run
    wide = plan(str(tiny), gpus="none", cpu="100MB", context=64, weights="float32")
    other = replace(wide, storage=Storage("16bit"))
    with pytest.raises(CallError, match="plan of"):
        check_plan(other, spec, options_of(other))


@pytest.mark.usefixtures("nothing_is_taken")
def test_a_plan_that_does_not_fit_raises_that(tiny: Path, tmp_path: Path) -> None:
    made = plan(str(tiny), gpus="none", cpu="300KB", context=64)
    assert not made.fits
    made.save(tmp_path / "plan.json")
    with pytest.raises(PlanDoesNotFit, match=r"tiny does not fit: .*cpu"):
        Runner(plan=Plan.load(tmp_path / "plan.json"), progress=False)


@pytest.mark.usefixtures("nothing_is_taken")
def test_a_plan_on_real_cards_or_the_disk_is_refused_as_its_options_are(tiny: Path) -> None:
    real = plan(str(tiny), gpus="2x900KB", cpu="100MB", context=64)
    with pytest.raises(CallError, match=r"cuda:0 cannot be run on: .*virtual"):
        Runner(plan=real, progress=False)
    streamed = plan_of(streams=True, model="llama-3.1-70b", gpus="2xRTX3090", cpu="64GB", batch=2)
    assert any(p.prefill_on != p.stored_on for p in streamed.placements)
    with pytest.raises(CallError, match="streaming the host's parts through a GPU can be planned but not run yet"):
        check_runnable(streamed, None)
    disk = plan(str(tiny), gpus="none", cpu="400KB", disk="10MB", context=64)
    assert disk.fits
    with pytest.raises(CallError, match="disk"):
        Runner(plan=disk, progress=False)


PLANNED: dict[str, dict[str, Any]] = {
    "a mixture with experts apart": {"model": "mixtral-8x7b", "gpus": "1x24GB", "cpu": "64GB"},
    "streamed weights": {"streams": True, "model": "llama-3.1-70b", "gpus": "2xRTX3090", "cpu": "64GB", "batch": 2},
    "a disk": {"model": "llama-3.1-8b", "gpus": "3GB", "cpu": "3GB", "disk": "20GB"},
    "tied": {"model": "bloom-560m", "gpus": "3x300MB", "cpu": "0"},
    "windows": {"model": "gemma-2-9b", "gpus": "6GB", "cpu": "12GB", "kv": "int8"},
    "latent attention": {"model": "deepseek-v2-lite", "gpus": "8GB", "cpu": "16GB", "head": "16bit"},
    "wide": {"model": "opt-1.3b", "gpus": "1GB", "cpu": "8GB", "weights": "16bit"},
}


@pytest.mark.parametrize("rig", PLANNED.values(), ids=PLANNED)
def test_every_plan_that_fits_passes_its_own_checks(rig: dict[str, Any]) -> None:
    made = plan_from_json(plan_of(**rig).to_json())
    assert made.fits
    spec = model_spec(resolve(rig["model"]))
    options = options_of(made)
    check_plan(made, spec, options)
    storage = Storage(rig.get("weights", "int8"), rig.get("head", "int8"), kv=rig.get("kv", "16bit"))
    assert options == PlanOptions(2048, rig.get("batch", 1), storage, 1536)


def test_a_plan_of_an_earlier_version_says_nothing_of_runs_or_streaming_and_is_read() -> None:
    made = plan("llama-3.1-70b", gpus="2x24GB", cpu="64GB")
    values = {key: value for key, value in made.to_dict().items() if key not in ("runs", "if_streamed")}
    assert plan_from_json(json.dumps(values)) == replace(made, runs=None, if_streamed=None)


@pytest.mark.parametrize(
    "cuts",
    [
        [[0, 3]],
        [[0, 3], [3, 9]],
        [[0, 5], [3, 8]],
        [[1, 3], [3, 8]],
        [[3, 8], [0, 3]],
        [[0, 3], [4, 8]],
        [None, [0, 8]],
    ],
    ids=str,
)
def test_slices_of_experts_must_make_up_all_of_them(cuts: list[Any]) -> None:
    made = plan("mixtral-8x7b", gpus="1x24GB", cpu="64GB")
    values = json.loads(made.to_json())
    index, placement = next((i, p) for i, p in enumerate(values["placements"]) if p["part"].endswith(".experts"))
    values["placements"][index : index + 1] = [{**placement, "slice": cut} for cut in cuts]
    spec, changed = model_spec(resolve("mixtral-8x7b")), plan_from_json(json.dumps(values))
    with pytest.raises(CallError, match=r"its slices do not make up blocks\.0\.experts"):
        check_plan(changed, spec, options_of(changed))


# Files that are no plans.

BROKEN: dict[str, bytes] = {
    "empty": b"",
    "a list": b"[]",
    "a number": b"5",
    "null": b"null",
    "a word": b'"plan"',
    "no fields": b"{}",
    "deep": b"[" * 100_000,
    "deep in a field": b'{"devices": ' + b"[" * 100_000,
    "binary": b"\x00\xff\xfe\x80" * 100,
    "utf-16": '{"model": "x"}'.encode("utf-16"),
    "devices of numbers": b'{"devices": [5], "placements": [], "predicted": null}',
    "devices of words": b'{"devices": "cpu", "placements": [], "predicted": null}',
    "placements of nothing": b'{"devices": [], "placements": null, "predicted": null}',
    "unknown fields of a device": b'{"devices": [{"name": "cpu", "colour": "red"}], "placements": [], "predicted": null}',
    "a number too long to read": b'{"devices": ' + b"9" * 10_000 + b"}",
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_file_that_is_no_plan_is_refused_by_its_name(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_bytes(content)
    with pytest.raises(CallError, match=r"^plan .*plan\.json: ") as caught:
        Plan.load(tmp_path / "plan.json")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300 + len(str(tmp_path))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_plan_cut_off_is_refused(share: float, tiny: Path, tmp_path: Path) -> None:
    text = plan(str(tiny), **RIGS["the host"]).to_json()
    (tmp_path / "plan.json").write_text(text[: int(len(text) * share)])
    with pytest.raises(CallError, match=r"plan\.json: not a plan"):
        Plan.load(tmp_path / "plan.json")


@pytest.mark.parametrize("lacking", ["model", "devices", "placements", "predicted", "context_tokens", "fits"])
def test_a_plan_that_lacks_a_field_is_refused(lacking: str, tiny: Path, tmp_path: Path) -> None:
    values = json.loads(plan(str(tiny), **RIGS["the host"]).to_json())
    del values[lacking]
    (tmp_path / "plan.json").write_text(json.dumps(values))
    with pytest.raises(CallError, match=lacking):
        Plan.load(tmp_path / "plan.json")


def test_a_missing_file_and_a_folder_are_refused_by_name(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.json", tmp_path):
        with pytest.raises(CallError, match=rf"plan .*{path.name}: cannot be read"):
            Plan.load(path)


# Options beside a plan.


@pytest.mark.parametrize(
    "option",
    [
        {"gpus": "24GB"},
        {"cpu": "1GB"},
        {"disk": "1GB"},
        {"max_memory": {"cpu": "1GB"}},
        {"rig": "rig.yaml"},
        {"host": "none"},
        {"context": 64},
        {"prompt_tokens": 5},
        {"batch": 2},
        {"weights": "16bit"},
        {"head": "16bit"},
        {"kv": "int8"},
        {"skip": ("down",)},
        {"virtual": True},
    ],
    ids=lambda option: " ".join(option),
)
def test_options_beside_a_plan_are_refused(option: dict[str, Any], tiny: Path, nothing_is_taken: None) -> None:
    made = plan(str(tiny), context=64, **RIGS["the host"])
    with pytest.raises(CallError, match="plan already says"):
        Runner(plan=made, progress=False, **option)


def test_options_of_the_arithmetic_are_free(tiny: Path) -> None:
    made = plan(str(tiny), context=64, **RIGS["the host"])
    with Runner(plan=made, progress=False, mode="llm.int8", threshold=3.0, threads=1) as runner:
        assert len(runner.generate(PROMPT, max_new_tokens=4).token_ids) == 4

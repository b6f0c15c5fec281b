"""`bigrun plan`, the command and the function: the headline plans, the promised JSON, and the exit status."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bigrun import plan
from bigrun.errors import CallError
from bigrun.planning.report import plan_text
from support.commands import plan_command, run_command, run_process, run_python

GB = 10**9
TOP = "model family parameters fits context_tokens batch prefill_chunk_tokens devices placements predicted"
DEVICE = "name kind budget_bytes used_bytes free_bytes parts"
KINDS = "weights_bytes kv_cache_bytes workspace_bytes staging_bytes pinned_bytes reserve_bytes"
PLACEMENT = "part slice stored_on stored_as prefill_on decode_on kv_on weights_bytes kv_cache_bytes"
PREDICTED = "prefill_tokens_per_s decode_tokens_per_s load_seconds assumptions"
REQUEST = "request_seconds prompt_tokens new_tokens measured"  # beside what is promised
BLOOM = ("--model", "bloom-176b", "--gpus", "8x24GB", "--cpu", "1GB")
SMALL = ("--model", "bloom-176b", "--gpus", "1x24GB", "--cpu", "1GB")


def headline(h: int) -> tuple[int, int]:
    """(weights, keys and values) of a BLOOM or OPT block at context 2048: 9h rows of scales and biases, two norms."""
    return 12 * h * h + 4 * 9 * h + 4 * 9 * h + 4 * 4 * h, 2 * 2048 * h * 2


def test_bloom_176b_fits_eight_24_gb_cards_nine_blocks_a_card_and_seven_beside_the_head() -> None:
    made = plan("bloom-176b", gpus="8x24GB", cpu=0, context=2048)
    weights, kv = headline(14336)
    table = 250880 * 14336 + 250880 * 14336 // 32 * 2  # 3.60 GB of int8, and its scales
    assert made.fits
    for i, device in enumerate(made.devices[:7]):
        assert device.parts == tuple(f"blocks.{n}" for n in range(9 * i, 9 * i + 9))
        assert (device.weights_bytes, device.kv_cache_bytes) == (9 * weights, 9 * kv)
    last = made.device("cuda:7")
    assert last.parts == ("embed", *(f"blocks.{n}" for n in range(63, 70)), "norm", "head")
    assert last.weights_bytes == 7 * weights + table + (2 + 2) * 14336 * 4
    assert made.device("cpu").parts == ()


def test_opt_175b_fits_eight_24_gb_cards_twelve_blocks_a_card() -> None:
    made = plan("opt-175b", gpus="8x24GB", cpu=0, context=2048)
    weights, kv = headline(12288)
    table = 50272 * 12288 + 50272 * 12288 // 32 * 2 + 2050 * 12288 * 4  # and float32 positions
    assert made.fits
    for i, device in enumerate(made.devices[:8]):
        assert [p for p in device.parts if "blocks" in p] == [f"blocks.{n}" for n in range(12 * i, 12 * i + 12)]
        head = table + 2 * 12288 * 4 if "head" in device.parts else 0
        assert (device.weights_bytes, device.kv_cache_bytes) == (12 * weights + head, 12 * kv)


def test_a_16_bit_bloom_table_breaks_the_plan_of_eight_cards() -> None:
    assert not plan("bloom-176b", gpus="8x24GB", cpu=0, context=2048, head="16bit").fits


def test_bloom_176b_on_four_cards_puts_the_rest_on_the_cpu() -> None:
    made = plan("bloom-176b", gpus="4x24GB", cpu="128GB", context=2048)
    blocks = [placement for placement in made.placements if placement.part.startswith("blocks.")]
    assert made.fits
    # The host comes first: it looks the tokens up anyway, so its blocks cost no hop of their own.
    counts = {name: sum(p.stored_on == name for p in blocks) for name in ("cpu", *(f"cuda:{i}" for i in range(4)))}
    assert counts["cpu"] in (34, 35)
    assert sum(counts.values()) == 70
    assert all(p.stored_on == p.decode_on == p.kv_on for p in blocks)
    assert {p.prefill_on for p in blocks if p.stored_on == "cpu"} <= {f"cuda:{i}" for i in range(4)}, (
        "a prompt is streamed"
    )


@pytest.mark.parametrize(
    "wrong", [{"context": 0}, {"batch": 0}, {"kv": "int4"}, {"skip": ("x",)}, {"context": 2**40}], ids=str
)
def test_options_that_make_no_sense_are_wrong_calls(wrong: dict[str, Any]) -> None:
    with pytest.raises(CallError, match=next(iter(wrong))):
        plan("bloom-560m", gpus="24GB", cpu=0, **wrong)


def test_learned_positions_bound_the_context_and_alibi_does_not() -> None:
    assert plan("bloom-560m", gpus="24GB", cpu=0, context=4096).context_tokens == 4096
    with pytest.raises(CallError, match=r"context 2049.*2048"):
        plan("opt-1.3b", gpus="24GB", cpu=0, context=2049)


@settings(derandomize=True, database=None, deadline=None, max_examples=20)
@given(
    st.sampled_from(["llama-3-70b", "llama-3.2-3b", "bloom-7b1", "opt-30b"]),
    st.lists(st.integers(1, 24), max_size=2),
    st.integers(0, 30),
    st.integers(1, 2048),
)
def test_following_the_hint_makes_it_fit(model: str, gpus: list[int], cpu: int, context: int) -> None:
    rig = {"gpus": ",".join(f"{size}GB" for size in gpus), "context": context}
    made = plan(model, cpu=cpu * GB, **rig)  # type: ignore[arg-type]
    assume(not made.fits)
    advice = re.search(r"--cpu (\w+)", made.hint)
    assert advice is not None
    assert plan(model, cpu=advice[1], **rig).fits, made.hint  # type: ignore[arg-type]


def shown(*arguments: str) -> dict[str, Any]:
    return json.loads(plan_command(*arguments, "--json").stdout)


def test_json_is_one_object_with_the_promised_fields() -> None:
    printed = shown(*BLOOM)
    assert set(printed) >= set(TOP.split())
    assert not {"unplaced", "hint"} & set(printed)
    assert all(set(device) >= {*DEVICE.split(), *KINDS.split()} for device in printed["devices"])
    assert all(set(placement) == set(PLACEMENT.split()) for placement in printed["placements"])
    assert set(printed["predicted"]) == {*PREDICTED.split(), *REQUEST.split()}
    assert [device["name"] for device in printed["devices"]] == [*(f"cuda:{i}" for i in range(8)), "cpu"]
    for device in printed["devices"]:
        assert device["used_bytes"] == sum(device[kind] for kind in KINDS.split())
    assert (printed["model"], printed["family"], printed["fits"]) == ("bloom-176b", "bloom", True)
    assert (printed["parameters"], printed["context_tokens"], printed["batch"]) == (176_247_271_424, 2048, 1)
    assert {p["stored_as"] for p in printed["placements"] if p["part"] != "norm"} == {"int8"}


def test_json_of_a_plan_that_does_not_fit_has_unplaced_and_hint_too() -> None:
    printed = shown(*SMALL)
    assert set(printed) >= {*TOP.split(), "unplaced", "hint"}
    assert (printed["fits"], printed["predicted"]) == (False, None)
    assert "--cpu" in printed["hint"]
    placed = {placement["part"] for placement in printed["placements"]}
    assert len(placed) + len(printed["unplaced"]) == 73
    assert not placed & set(printed["unplaced"])


def test_the_options_reach_the_plan() -> None:
    options = ("--context", "100", "--batch", "3", "--weights", "16bit", "--kv", "int8", "--virtual")
    printed = shown("--model", "opt-1.3b", "--gpus", "2x24GB", "--cpu", "0", "--disk", "5GB", *options)
    assert (printed["context_tokens"], printed["batch"]) == (100, 3)
    assert printed["devices"][-1]["budget_bytes"] == 5 * GB
    block = next(p for p in printed["placements"] if p["part"] == "blocks.0")
    assert block["stored_as"] == "16bit"
    # 3 sequences of 2 pages of 64 tokens, keys and values: 2048 bytes and 32 heads' float16 scales a token
    assert block["kv_cache_bytes"] == 2 * 3 * 128 * (2048 + 32 * 2)
    kept = shown("--model", "opt-1.3b", "--gpus", "24GB", "--cpu", "0", "--skip", "blocks.3, down", "--head", "16bit")
    forms = {p["part"]: p["stored_as"] for p in kept["placements"]}
    assert (forms["blocks.3"], forms["embed"]) == ("16bit", "16bit")


def test_max_memory_is_json_on_the_command_line() -> None:
    printed = shown("--model", "bloom-560m", "--max-memory", '{"0": "24GB", "1": 5, "cpu": "1GiB"}')
    assert [device["budget_bytes"] for device in printed["devices"]] == [24 * GB, 5, 2**30]


def test_a_rig_too_small_ends_with_3_and_says_what_is_missing() -> None:
    result = plan_command(*SMALL)
    assert result.exit_code == 3
    assert "does not fit" in result.output
    assert "no place for" in result.output
    assert re.search(r"give --cpu \d+GB", result.output)
    assert plan_command(*BLOOM).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "about"),
    [
        (["--nope"], "--nope"),
        (["--model", "blom-176b"], "bloom-176b"),
        (["--model", "./nowhere/at/all"], "nowhere"),
        (["--model", ""], "--model"),
        (["--gpus", "4xRTX9999"], "RTX3090"),
        (["--gpus", "8x"], "--gpus"),
        (["--cpu", "much"], "--cpu"),
        (["--disk", "-1GB"], "--disk"),
        (["--max-memory", "{"], "--max-memory"),
        (["--max-memory", "[1]"], "--max-memory"),
        (["--max-memory", '{"0": 1}', "--gpus", "24GB"], "--max-memory"),
        (["--context", "0"], "--context"),
        (["--context", "many"], "--context"),
        (["--batch", "-1"], "--batch"),
        (["--weights", "int4"], "--weights"),
        (["--head", "int4"], "--head"),
        (["--kv", "int4"], "--kv"),
        (["--skip", "nothing"], "--skip"),
        (["--virtual"], "--gpus"),
        (["surplus"], "surplus"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_call_ends_with_2_and_a_line_or_two_on_standard_error(arguments: list[str], about: str) -> None:
    command_line = arguments if {"--model", "--gpus"} & set(arguments) else ["--model", "bloom-560m", *arguments]
    result = plan_command(*command_line, "--json")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert about in result.stderr
    assert len(result.stderr.splitlines()) <= 2
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model", "a" * 300],
        ["--model", "~nosuchuser/x"],
        ["--model", "bloom-560m", "--max-memory", '{"0": 1%s}' % ("0" * 400)],
    ],
    ids=["long name", "unknown home", "huge size"],
)
def test_odd_names_and_sizes_are_wrong_calls_too(arguments: list[str]) -> None:
    assert plan_command(*arguments).exit_code == 2


@pytest.mark.parametrize(
    "config", ["{", "[]", '{"architectures": ["MambaForCausalLM"]}', '{"architectures": ["LlamaForCausalLM"]}']
)
def test_a_bad_configuration_ends_with_4_and_names_the_file(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.json").write_text(config)
    result = plan_command("--model", str(tmp_path), "--gpus", "24GB", "--cpu", "0")
    assert result.exit_code == 4
    assert "config.json" in result.stderr
    assert result.stdout == ""


def test_a_folder_is_planned_from_its_config_alone(tmp_path: Path) -> None:
    config = {"architectures": ["BloomForCausalLM"], "vocab_size": 64, "hidden_size": 64, "n_layer": 2, "n_head": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    printed = shown("--model", str(tmp_path), "--gpus", "none", "--cpu", "1GB")
    # two blocks of 12h² + 13h, the table, the norms after it and at the end
    assert printed["parameters"] == 2 * (12 * 64 * 64 + 13 * 64) + 64 * 64 + 4 * 64
    assert (printed["model"], printed["fits"]) == (tmp_path.name, True)


def test_a_traceback_is_shown_with_debug_alone_and_the_status_is_the_same() -> None:
    result = plan_command("--model", "nope", "--debug")
    assert result.exit_code == plan_command("--model", "nope").exit_code == 2
    assert "Traceback" in result.stderr
    assert "CallError" in result.stderr


def test_a_plan_run_imports_neither_torch_nor_numba_and_prints_json_alone() -> None:
    code = f"""
import sys
from bigrun.cli.app import main
try:
    main(["plan", *{BLOOM!r}, "--json"])
finally:
    print([name for name in ("torch", "numba", "triton") if name in sys.modules], file=sys.stderr)
"""
    done = run_python(code)
    assert (done.returncode, done.stderr.strip()) == (0, "[]")
    assert json.loads(done.stdout)["fits"] is True


def test_import_bigrun_imports_no_torch_numpy_or_numba() -> None:
    done = run_python(
        "import bigrun, sys; print([m for m in ('torch', 'numpy', 'numba', 'accelerate') if m in sys.modules])"
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_the_installed_command_ends_with_3_for_a_rig_too_small() -> None:
    done = run_process("plan", *SMALL)
    assert done.returncode == 3
    assert "does not fit" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 120


def test_programs_are_printed_for_each_kind_of_block_and_target() -> None:
    args = ["plan", "--model", "gemma-2-2b", "--gpus", "1x2GB", "--cpu", "8GB", "--programs"]
    programs = json.loads(run_command(*args, "--json").stdout)["programs"]
    kinds = {(each["target"], any("window" in step for step in each["steps"])) for each in programs}
    assert kinds == {(target, window) for target in ("gpu", "host") for window in (True, False)}
    for each in programs:
        assert each["products"] == 2304 * 4096 + 2048 * 2304 + 3 * 2304 * 9216
        assert each["products_per_context_token"] == 2 * 8 * 256
        assert each["refused"] == "the step add"
    text = run_command(*args).stdout
    assert all(step in text for each in programs for step in each["steps"])
    assert text.count("; runs refuse the step add yet") == len(programs)
    plain = run_command("plan", "--model", "gemma-2-2b", "--gpus", "none", "--cpu", "8GB", "--json")
    assert "programs" not in json.loads(plain.stdout)


def test_programs_say_which_blocks_are_the_compiled_calls() -> None:
    args = [
        "plan",
        "--model",
        "llama-3.2-1b",
        "--gpus",
        "none",
        "--cpu",
        "8GB",
        "--skip",
        "blocks.3,embed",
        "--programs",
        "--json",
    ]
    programs = json.loads(run_command(*args).stdout)["programs"]
    assert {(each["parts"], each["target"], each["refused"]) for each in programs} == {
        ("blocks 0-2, 4-15", "compiled", ""), ("blocks 3", "host", ""),
    }  # fmt: skip


def test_the_largest_batch_is_65536() -> None:
    assert not plan("opt-6.7b", gpus="24GB", cpu="1GB", batch=65_536).fits
    with pytest.raises(CallError, match="batch"):
        plan("opt-6.7b", gpus="24GB", cpu="1GB", batch=65_537)


def test_what_is_missing_is_said_once_and_last() -> None:
    """Where both outputs are one terminal, the plan comes first and the error's line after it says what to do."""
    args = ("plan", "--model", "llama-3-70b", "--gpus", "24GB", "--cpu", "12GB")
    done = run_process(*args)
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    hint = line.partition("does not fit: ")[2]
    assert "--cpu" in hint
    assert "no place for blocks" in done.stdout.splitlines()[-1]
    assert "--cpu" not in done.stdout
    assert json.loads(run_command(*args, "--json").stdout)["hint"] == hint, "JSON has it all the same"


@pytest.mark.parametrize(("columns", "width"), [("60", 60), ("200", 200), ("3", 20), ("0", 120), ("x", 120), ("", 120)])
def test_a_plan_in_a_pipe_is_as_wide_as_columns_says(columns: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    made = plan("bloom-176b", gpus="8x24GB", cpu="16GB", host="none")
    result = run_command("plan", "--model", "bloom-176b", "--gpus", "8x24GB", "--cpu", "16GB", "--host", "none")
    assert [line.rstrip() for line in result.stdout.splitlines()] == [
        line.rstrip() for line in plan_text(made, width).splitlines()
    ]

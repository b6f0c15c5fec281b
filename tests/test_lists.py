"""`bigrun models`, `bigrun cards` and `bigrun plan --model all`: everything that has a name, found by parts of it."""

import json
from typing import Any

import pytest

from bigrun import plan
from bigrun.devices.cards import CARDS, card
from bigrun.model.catalog.lookup import ALIASES, ENTRIES, find
from bigrun.model.families.registry import BY_NAME
from support.commands import ended, plan_command, run_command, run_python

RIG = ("--gpus", "2xRTX3090", "--cpu", "64GB")


def listed(*arguments: str) -> dict[str, Any]:
    result = run_command(*arguments, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    return json.loads(result.stdout)


def names(*arguments: str) -> list[str]:
    return [row.get("name") or row["model"] for rows in listed(*arguments).values() for row in rows]


def test_every_model_of_the_catalog_is_listed_with_what_is_known_of_it() -> None:
    rows = {row["name"]: row for row in listed("models")["models"]}
    assert list(rows) == list(ENTRIES)
    for name, row in rows.items():
        spec = ENTRIES[name].spec()
        assert (row["parameters"], row["family"], row["context_tokens"]) == (
            spec.parameters,
            spec.family,
            spec.context_limit,
        )
        assert (row["runs"] is True) == (BY_NAME[spec.family].sources is not None)
        assert row["runs"] is True or spec.family in row["runs"]
        assert all(ALIASES[alias] == name for alias in row["aliases"])
        assert spec.parameters < row["int8_bytes"] < 1.05 * spec.parameters
    assert {alias for row in rows.values() for alias in row["aliases"]} == set(ALIASES)
    made = plan("llama-3.1-8b", gpus="24GB", cpu="1GB")
    assert rows["llama-3.1-8b"]["int8_bytes"] == sum(device.weights_bytes for device in made.devices)
    assert rows["opt-175b"]["repo"] is None


def test_every_card_of_the_table_is_listed_with_its_figures() -> None:
    rows = {row["name"]: row for row in listed("cards")["cards"]}
    assert list(rows) == [each.name for each in CARDS.values()]
    row, known = rows["RTX3090"], card("RTX3090")
    assert (row["memory_bytes"], row["usable_bytes"], row["bandwidth_bytes_per_s"]) == (
        24 * 2**30,
        known.usable_bytes,
        936e9,
    )
    assert (row["int8_operations_per_s"], row["fp16_operations_per_s"], row["runs"]) == (284e12, 71e12, True)
    assert "can be planned but not run yet" in rows["RX7900XTX"]["runs"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("qwq", ["qwq-32b"]),
        ("QWQ", ["qwq-32b"]),
        ("opt-1*", ["opt-1.3b", "opt-13b", "opt-175b"]),
        ("*-70b", ["llama-2-70b", "llama-3-70b", "llama-3.1-70b", "llama-3.3-70b"]),
        ("llama-3.?-8b", ["llama-3.1-8b"]),
        ("llama-33b", ["llama-30b"]),
        ("bigscience/bloom-3*", ["bloom-3b"]),
        ("gpt-oss-[12]20b", ["gpt-oss-120b"]),
    ],
)
def test_models_are_found_by_a_part_or_a_pattern_of_a_name_an_alias_or_a_repository(
    pattern: str, expected: list[str]
) -> None:
    assert names("models", pattern) == expected
    if any(sign in pattern for sign in "*?["):
        assert sorted(row["model"] for row in listed("plan", "--model", pattern, *RIG)["models"]) == sorted(expected)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [("9070", ["RX9070", "RX9070XT"]), ("rtx309*", ["RTX3090", "RTX3090Ti"]), ("H200", ["H200", "H200-NVL"])],
)
def test_cards_are_found_by_a_part_or_a_pattern_of_a_name(pattern: str, expected: list[str]) -> None:
    assert names("cards", pattern) == expected


@pytest.mark.parametrize(
    "call",
    [("models", "zz"), ("models", ""), ("cards", "RTX9*"), ("plan", "--model", "zz*"), ("cards", "\x1b[31m")],
    ids=str,
)
def test_what_matches_nothing_is_a_wrong_call(call: tuple[str, ...]) -> None:
    if call[-1]:
        ended(run_command(*call), 2, "matches", "lists all")
    else:
        assert run_command(*call).exit_code == 0  # every name has nothing in it


def test_the_tables_have_a_line_each() -> None:
    lines = run_command("models").stdout.splitlines()
    assert len(lines) == 1 + len(ENTRIES)
    (bloom,) = (line for line in lines if line.startswith("bloom-176b"))
    assert bloom.split() == ["bloom-176b", "176.2", "B", "177", "GB", "2,048", "bloom", "runs", "bloom"]
    lines = run_command("cards").stdout.splitlines()
    assert len(lines) == 1 + len(CARDS)
    (line,) = (line for line in lines if line.startswith("RX7900XTX "))
    assert line.endswith("planned only")
    assert "24 GiB" in line


def test_a_survey_has_the_plan_of_every_model_and_says_what_fits_first_and_largest_first() -> None:
    found = listed("plan", "--model", "all", *RIG)
    rows = found["models"]
    assert {row["model"] for row in rows} == set(ENTRIES)
    order = [(not row["fits"], -row["parameters"]) for row in rows]
    assert order == sorted(order)
    for name in ("llama-3.1-70b", "gemma-2-9b", "mixtral-8x7b", "kimi-k2"):
        (row,) = (row for row in rows if row["model"] == name)
        made = plan(name, gpus="2xRTX3090", cpu="64GB")
        assert (row["fits"], row["runs"], row["context_tokens"]) == (made.fits, made.runs, made.context_tokens)
        decode = made.predicted.decode_tokens_per_s if made.predicted else None
        assert row["decode_tokens_per_s"] == decode
    assert any("RTX3090" in line for line in found["assumptions"])


def test_a_survey_as_text_is_a_line_a_model_under_its_rig() -> None:
    result = plan_command("--model", "opt*", "--gpus", "2xRTX3090", "--cpu", "4GB")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0] == "on 2xRTX3090, cpu 4.00 GB, with 2,048 tokens of context"
    assert [line.split()[0] for line in lines[3:9]] == [
        "opt-30b",
        "opt-13b",
        "opt-6.7b",
        "opt-1.3b",
        "opt-175b",
        "opt-66b",
    ]
    assert " fits " in lines[3]
    assert lines[3].endswith("48 of 48")
    assert lines[7].endswith("does not fit")
    assert all(line.startswith("assumed: ") for line in lines[10:])


def test_a_context_that_a_model_cannot_have_is_said_of_that_model_alone() -> None:
    call = ("plan", "--model", "*-7b", "--gpus", "24GB", "--cpu", "8GB", "--context", "32768")
    rows = {row["model"]: row for row in listed(*call)["models"]}
    assert rows["mistral-7b"]["fits"] is True
    assert rows["mistral-7b"]["runs"] is True, "beyond its window too"
    assert rows["llama-7b"]["fits"] is False
    assert "a maximum of 2048 tokens" in rows["llama-7b"]["runs"]
    assert "llama-7b" in run_command(*call).stdout
    assert "not with these options" in run_command(*call).stdout


@pytest.mark.parametrize(
    "more",
    [
        ("--solve", "context"),
        ("--what-if", "+1x24GB"),
        ("--svg", "x.svg"),
        ("--programs",),
        ("--compare", "accelerate"),
    ],
)
def test_several_models_answer_no_question(more: tuple[str, ...]) -> None:
    ended(plan_command("--model", "all", *RIG, *more), 2, "name one")


@pytest.mark.parametrize("command", ["generate", "bench"])
def test_a_run_takes_one_model(command: str) -> None:
    more = ("--prompt", "Hi") if command == "generate" else ()
    ended(run_command(command, "--model", "all", "--gpus", "none", *more), 2, "all")


def test_lists_import_neither_torch_nor_numba() -> None:
    code = """
import sys
from bigrun.cli.app import main
for call in (["models"], ["cards"], ["plan", "--model", "opt-1*", "--gpus", "24GB", "--cpu", "1GB"]):
    main(call, standalone_mode=False)
print([name for name in ("torch", "numba") if name in sys.modules], file=sys.stderr)
"""
    done = run_python(code)
    assert (done.returncode, done.stderr.strip()) == (0, "[]")


@pytest.mark.parametrize("alias", ALIASES)
def test_an_alias_is_no_name_of_an_entry_and_leads_to_one(alias: str) -> None:
    assert alias not in ENTRIES
    entry = find(alias)
    assert entry is not None

"""The scripts of examples/, each as its own process: with a model of a test, and with a name that is none."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.long import long

FOLDER = Path(__file__).resolve().parent.parent / "examples"
EXAMPLES = sorted(path.name for path in FOLDER.glob("*.py"))
UNKNOWN = {"generate.py": ("hi", "nosuch"), "plan_a_rig.py": ("nosuch",), "virtual_gpus.py": ("nosuch",)}


def run(name: str, *args: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FOLDER / name), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_unknown_model_is_one_line_and_no_traceback(name: str) -> None:
    done = run(name, *UNKNOWN[name])
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "nosuch" in line
    assert "--" not in line, "it is a caller in Python who reads it"


def test_generate_tells_what_it_took(tiny: Path) -> None:
    done = run("generate.py", "the dog", tiny, "5")
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"^\[\d tokens in [\d.]+ s; seed \d+; ended by (max_new_tokens|stop_token)\]$", done.stdout, re.MULTILINE
    )


@pytest.mark.parametrize("model", ["mixtral-8x7b", *map(long, ["llama-3.1-70b", "bloom-176b"])])
def test_the_rigs_of_a_plan_have_the_blocks_of_the_model(model: str) -> None:
    """Of a mixture of experts too, whose experts have places of their own, and where some have none."""
    done = run("plan_a_rig.py", model)
    assert done.returncode == 0, done.stderr
    found = re.findall(r"^(\d)xRTX3090 (?:True|False) +(\d+) of (\d+)", done.stdout, re.MULTILINE)
    blocks = {"llama-3.1-70b": 80, "mixtral-8x7b": 32, "bloom-176b": 70}[model]
    assert [(int(cards), int(count)) for cards, _, count in found] == [(cards, blocks) for cards in range(1, 6)]
    on_gpus = [int(each) for _, each, _ in found]
    assert on_gpus == sorted(on_gpus)
    assert 0 < on_gpus[0] < blocks
    assert re.search(r"^5 tokens/s: (\d more RTX|one card does)", done.stdout, re.MULTILINE)


def test_where_one_card_does_the_example_says_so() -> None:
    assert run("plan_a_rig.py", "smollm2-135m").stdout.endswith("5 tokens/s: one card does\n")


def test_virtual_gpus_spread_a_model_and_change_nothing(tiny: Path) -> None:
    done = run("virtual_gpus.py", tiny, "2x2MB")
    assert done.returncode == 0, done.stderr
    assert {line.partition(": ")[0] for line in done.stdout.splitlines() if "allocated" in line} == {
        "cuda:0",
        "cuda:1",
        "cpu",
    }

"""docs/reference.md: made from the code, current, and with everything in it that is promised."""

import ast
import re
from pathlib import Path

import click
import pytest

from bigrun.cli import reference, reference_json, reference_source
from bigrun.cli.app import main

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "reference.md"
PROMISED = [
    "--model", "--gpus", "--cpu", "--disk", "--context", "--batch", "--json", "--weights", "--mode", "--threshold",
    "--skip", "--head", "--kv", "--threads", "--virtual", "--max-memory", "--revision", "--quiet", "--debug",
]  # fmt: skip


@pytest.fixture(scope="module")
def page() -> str:
    return PAGE.read_text(encoding="utf-8")


def test_the_reference_is_current(page: str) -> None:
    assert page == reference.reference(), f"docs/reference.md is out of date; renew it: {reference.COMMAND}"


@pytest.mark.parametrize("option", PROMISED)
def test_every_promised_option_is_in_it(page: str, option: str) -> None:
    assert re.search(rf"^\| `(-\w, )?{option}[ `]", page, re.MULTILINE)


def test_the_exit_codes_are_in_it(page: str) -> None:
    section = page.partition("## Exit codes")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\d+)`", section, re.MULTILINE) == ["0", "1", "2", "3", "4", "130", "141"]
    group = (ROOT / "bigrun" / "cli" / "group.py").read_text(encoding="utf-8")
    numbers = {node.value for node in ast.walk(ast.parse(group)) if isinstance(node, ast.Constant)}
    assert {130, 141} <= numbers, "bigrun/cli/group.py ends with other exit codes than ENDS in bigrun/cli/reference.py"


def test_the_json_of_every_command_is_in_it() -> None:
    def walk(command: click.Command, name: str) -> list[str]:
        if isinstance(command, click.Group):
            return [each for key, inner in command.commands.items() for each in walk(inner, f"{name} {key}".strip())]
        return [name] if any("--json" in param.opts for param in command.params) else []

    assert sorted(reference_json.JSON) == sorted(walk(main, ""))


def test_the_environment_changes_nothing(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BIGRUN_CACHE", "BIGRUN_HOST", "COLUMNS"):
        monkeypatch.setenv(name, "44")
    assert reference.reference() == page


def test_it_names_no_path_of_a_machine(page: str) -> None:
    assert str(ROOT) not in page
    assert not re.search(r"0x[0-9a-f]{6}|/home/|/tmp/", page)


def test_keys_of_nested_displays() -> None:
    code = """
def report():
    rows = []
    rows.append({"name": 1})
    return {"a": 1, "b": {"c": 2}, "d": {k: 1 for k in "x"}, "e": [{"f": i} for i in "x"], "g": rows}
"""
    function = ast.parse(code).body[0]
    assert isinstance(function, ast.FunctionDef)
    display = next(node for node in ast.walk(function) if isinstance(node, ast.Dict) and len(node.keys) > 1)
    keys = reference_json.keys("bigrun.errors", function, display)
    assert keys == ["a", "b.c", "d.<key>", "e[].f", "g[].name"]


def test_a_renamed_function_is_said() -> None:
    with pytest.raises(LookupError, match="no gone any more"):
        reference_source.find("bigrun.errors", "gone")

"""What `--help` shows: sections, whole summaries, lines that fit; and the completion of a shell."""

import os
import re
import subprocess
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from bigrun.cli.app import main
from bigrun.cli.help import FEW, REST, section, summary
from support.commands import PROGRAM


def commands(command: click.Command = main, name: str = "") -> Iterator[tuple[str, click.Command]]:
    yield name, command
    if isinstance(command, click.Group):
        for inner, below in command.commands.items():
            yield from commands(below, f"{name} {inner}".strip())


EVERY = dict(commands())


def shown(name: str, width: int) -> str:
    result = CliRunner().invoke(main, [*name.split(), "--help"], terminal_width=width)
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("name", EVERY)
def test_help_is_whole_and_within_the_terminal(name: str, width: int) -> None:
    text = shown(name, width)
    assert max(map(len, text.splitlines())) <= width
    assert not re.search(r"…|\w\.\.\.$", text, re.MULTILINE), "something is cut"
    words = " ".join(text.split())
    command = EVERY[name]
    for param in command.params:
        if isinstance(param, click.Option):
            assert max(param.opts, key=len) in words
            assert " ".join((param.help or "").split()) in words
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            assert summary(inner) in words


@pytest.mark.parametrize("name", [name for name, command in EVERY.items() if len(command.params) > FEW])
def test_many_options_are_in_sections_of_which_all_have_one(name: str) -> None:
    text = shown(name, 80)
    titles = re.findall(r"^([A-Z][a-z ]+):$", text, re.MULTILINE)
    assert {"Model", "Rig", "Storage", "Output"} <= set(titles)
    assert not {"Options", REST} & set(titles), "an option is in no section of bigrun/cli/help.py"
    for param in EVERY[name].params:
        block = text[text.index(f"\n{section(str(param.name))}:\n") + 1 :].split("\n\n")[0]
        assert re.search(rf"^  (-\w, )?{max(param.opts, key=len)}\b", block, re.MULTILINE), param.name
    starts = {match.end() - match.start() for match in re.finditer(r"^  -.*?  +(?=\S)", text, re.MULTILINE)}
    assert len(starts) == 1, "the sections line up"


def test_the_summary_is_the_first_paragraph() -> None:
    assert summary(click.Command("c", help="\n  One line,\n  and on.\n\n  More.")) == "One line, and on."


def complete(*words: str) -> list[str]:
    """What bash is offered for the last word."""
    script = {
        "_BIGRUN_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(["bigrun", *words]),
        "COMP_CWORD": str(len(words)),
    }
    done = subprocess.run(PROGRAM, env=os.environ | script, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return [line.removeprefix("plain,") for line in done.stdout.splitlines()]


def test_a_shell_completes_commands_flags_and_models() -> None:
    assert complete("ge") == ["generate"]
    assert complete("generate", "--prompt-") == ["--prompt-file"]
    assert complete("cache", "ver") == ["verify"]
    assert {"file,smoll", "smollm2-135m"} <= set(complete("plan", "--model", "smoll"))
    assert complete("plan", "--kv", "i") == ["int8"]
    assert complete("generate", "--mode", "e") == ["exact"]
    for command, flag in (("generate", "--prompt-file"), ("plan", "--rig"), ("bench", "--host"), ("convert", "--out")):
        assert complete(command, flag, "que") == ["file,que"], "the shell looks for files"

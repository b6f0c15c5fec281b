"""`bigrun generate`: where the prompt comes from, and what is said of the answer."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from bigrun.cli import app
from support.commands import run_command

RIG = ("--gpus", "none", "--cpu", "1GB")


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prompts that would be continued; nothing is loaded."""
    seen: list[str] = []

    class Asked:
        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def stream(self, prompt: str, *_: object, **__: object) -> Any:
            seen.append(prompt)
            raise KeyboardInterrupt

    monkeypatch.setattr(app, "_runner", lambda options: Asked())
    return seen


READ = {
    "nothing to drop": ("a\nb", "a\nb"), "a newline": ("a\n", "a"), "that of Windows": ("a\r\n", "a"),
    "one of two": ("a\n\n", "a\n"), "one of two of Windows": ("a\r\n\r\n", "a\r\n"), "a return alone": ("a\r", "a\r"),
    "spaces": ("  a  \n", "  a  "), "a byte-order mark": ("\ufeffa\n", "a"), "a second one": ("\ufeff\ufeffa", "\ufeffa"),
    "letters of all kinds": ("é漢🙂\n", "é漢🙂"),
}  # fmt: skip


@pytest.mark.parametrize("case", READ.values(), ids=READ.keys())
def test_one_line_s_end_is_no_part_of_a_prompt_that_is_read(
    prompts: list[str], tmp_path: Path, case: tuple[str, str]
) -> None:
    text, expected = case
    (tmp_path / "p").write_bytes(text.encode())
    run_command("generate", stdin=text.encode())
    run_command("generate", "--prompt-file", "-", stdin=text.encode())
    run_command("generate", "--prompt-file", tmp_path / "p", stdin="not this")
    assert prompts == [expected] * 3


@pytest.mark.parametrize("option", ["--prompt", "-p"])
def test_a_prompt_of_the_command_line_is_taken_as_it_is(prompts: list[str], option: str) -> None:
    run_command("generate", option, "a\n", stdin="not this")
    assert prompts == ["a\n"]


def test_a_pipe_with_a_name_is_read_to_its_end(prompts: list[str], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=("from a pipe\n",), daemon=True)
    writer.start()
    run_command("generate", "--prompt-file", tmp_path / "pipe")
    writer.join(10)
    assert prompts == ["from a pipe"]

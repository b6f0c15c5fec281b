"""`bigrun chat` on a terminal: what keys do, what is pasted, Ctrl-C and Ctrl-D, the history, and how the terminal is left."""

import ast
import json
import os
import re
import signal
import stat
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bigrun.cli import chat_terminal
from bigrun_kernels.cpu import home
from support.checkpoints import llama, write_tokenizer
from support.commands import PROGRAM
from support.long import LONG
from support.talks import PROMPT, Terminal

# The conversation of a scripted model, which says each turn in capitals, a word in `PAUSE` seconds, and thinks where told to.
TALK = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from bigrun_kernels.cpu import home
from support.checkpoints import llama, write_tokenizer
from support.commands import PROGRAM
from support.talks import Piece, Scripted, make_talk
from bigrun.cli.chat import _reader, converse
from bigrun.cli.chat_display import Screen

class Model(Scripted):
    def say(self, text):
        answer = super().say(text)
        # in short sleeps: a signal that comes just before one begins is seen after it
        pause = lambda: [time.sleep(0.05) for _ in range(round(20 * float(os.environ.get("PAUSE", "0"))))]
        thoughts = [Piece("I see", True), pause] if "think" in text else []
        words = [each for word in text.upper().split(" ") for each in (word + " ", pause)]
        answer._script = [*thoughts, *words]
        return answer

if "NO_EDITOR" in os.environ:
    sys.modules["prompt_toolkit"] = None
screen = Screen.here()
reader = _reader(screen, False)
talk = make_talk(Model(), screen, os.environ.get("THINKING", "dim"), keys=reader.keys, waiting=reader.waiting)
status = converse(talk, reader)
print("turns", ascii(talk.conversation.turns), end="end\\n")
sys.exit(status)
"""
ALT_ENTER, CTRL_J, CTRL_C, CTRL_D, CTRL_U, UP, TAB = "\x1b\r", "\n", "\x03", "\x04", "\x15", "\x1b[A", "\t"


@pytest.fixture
def talking(tmp_path: Path) -> Callable[..., Terminal]:
    """A conversation on a terminal, whose history lies in the test's own folder."""
    tests = Path(__file__).parent

    def start(columns: int = 100, **env: str) -> Terminal:
        full = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), **env}
        if "NO_COLOR" not in env:
            full.pop("NO_COLOR", None)
        return Terminal(sys.executable, "-c", TALK, tests, env=full, columns=columns)

    return start


def turns(terminal: Terminal) -> list[str]:
    """What was sent to the model, of a conversation that ends."""
    rest = terminal.until("]end")
    assert terminal.ended() == 0
    taken: list[str] = ast.literal_eval(rest[rest.index("turns [") + 6 : rest.index("]end") + 1])
    return taken


SENT = {
    "a line": ("the fox\r", ["the fox"]),
    "two lines by Alt+Enter": (f"the{ALT_ENTER}fox\r", ["the\nfox"]),
    "two lines by Ctrl+J": (f"the{CTRL_J}fox\r", ["the\nfox"]),
    "pasted lines": ("\x1b[200~the\nfox\r\ndog\x1b[201~\r", ["the\nfox\ndog"]),
    "ten thousand pasted letters": (f"\x1b[200~{'the fox ' * 1250}\x1b[201~\r", ["the fox " * 1250]),
    "Enter at an empty prompt": (f"\r\r  \r{CTRL_U}the fox\r", ["the fox"]),
    "letters of all kinds": ("é漢👩\u200d🚀\r", ["é漢👩\u200d🚀"]),
    "a slash": ("//the fox\r", ["/the fox"]),
    "a completed command": (f"/cle{TAB}\rthe fox\r", ["the fox"]),
    "a completed way to think": (f"/thinking sh{TAB}\rthe fox\r", ["the fox"]),
    "a turn after what Ctrl-C dropped": (f"the dog{CTRL_C}the fox\r", ["the fox"]),
    "several at once": ("the fox\rthe dog\r", ["the fox", "the dog"]),
    "bytes that are no text": ("\udcff\rthe fox\r", ["\udcff", "the fox"]),
}


@pytest.mark.parametrize("case", SENT.values(), ids=SENT.keys())
def test_what_is_typed_is_what_is_sent(talking: Any, case: tuple[str, list[str]]) -> None:
    keys, expected = case
    with talking() as terminal:
        terminal.until(PROMPT)
        terminal.type(keys + CTRL_D)
        assert turns(terminal) == expected


def test_tab_shows_the_commands_and_an_unknown_one_is_not_sent(talking: Any) -> None:
    with talking() as terminal:
        terminal.until(PROMPT)
        terminal.type(f"/s{TAB}")
        shown = terminal.until("/stats")
        assert "/system" in shown
        assert "/save" in shown
        terminal.until(PROMPT)
        terminal.type("zz\r")
        terminal.until("/szz: no such command")
        terminal.until(PROMPT)
        terminal.type(CTRL_D)
        assert turns(terminal) == []


# Ctrl-C


def test_ctrl_c_at_an_empty_prompt_says_how_to_leave(talking: Any) -> None:
    with talking() as terminal:
        terminal.until(PROMPT)
        terminal.type(CTRL_C)
        terminal.until("Ctrl-D or /quit leaves")
        terminal.until(PROMPT)
        terminal.type("/quit\r")
        assert turns(terminal) == []


@pytest.mark.parametrize("thinking", ["dim", "show", "hide"])
def test_ctrl_c_stops_an_answer_in_its_thoughts_and_after_them(talking: Any, thinking: str) -> None:
    with talking(PAUSE="60", THINKING=thinking) as terminal:
        terminal.until(PROMPT)
        terminal.type("think of it\r")
        terminal.until("thinking…" if thinking == "hide" else "I see")
        terminal.type(CTRL_C * 3)
        terminal.until("[stopped]")
        terminal.until(PROMPT)
        terminal.type("the fox\r")
        terminal.until("THE ")
        terminal.type(CTRL_C)
        assert terminal.until("[stopped]").split() == ["[stopped]"]
        terminal.until(PROMPT)
        terminal.type(CTRL_D)
        assert turns(terminal) == ["think of it", "the fox"]


@LONG
def test_keys_that_are_pressed_while_an_answer_comes_are_of_the_next_turn(talking: Any) -> None:
    with talking(PAUSE="1") as terminal:
        terminal.until(PROMPT)
        terminal.type("the fox\r")
        terminal.until("THE ")
        terminal.type("a dog\r")
        assert terminal.until("FOX") == "FOX", "nothing of it shows in the answer"
        terminal.until("A DOG")
        terminal.until(PROMPT)
        terminal.type(CTRL_D)
        assert turns(terminal) == ["the fox", "a dog"]


def test_ctrl_c_drops_the_keys_that_were_pressed_before_it(talking: Any) -> None:
    with talking(PAUSE="60") as terminal:
        terminal.until(PROMPT)
        terminal.type("the fox\r")
        terminal.until("THE ")
        terminal.type("a dog\r" + CTRL_C)
        terminal.until("[stopped]")
        terminal.until(PROMPT)
        terminal.type("a cat" + CTRL_C + CTRL_D)
        assert turns(terminal) == ["the fox"]


# What an answer looks like


def test_thoughts_are_dim_and_without_colours_between_their_marks(talking: Any) -> None:
    for env, looks in (
        ({}, "\x1b[2mI see\x1b[0m\r\n\r\nTHINK"),
        ({"NO_COLOR": "1"}, "<think>\r\nI see\r\n</think>\r\n\r\nTHINK"),
    ):
        with talking(**env) as terminal:
            terminal.until(PROMPT)
            terminal.type("think\r")
            terminal.until("THINK ")
            assert looks in terminal.text


def test_hidden_thoughts_are_a_sign_that_goes(talking: Any) -> None:
    with talking(THINKING="hide") as terminal:
        terminal.until(PROMPT)
        terminal.type("think\r")
        terminal.until("THINK ")
        assert "thinking…\x1b[0m\r\x1b[KTHINK" in terminal.text


def test_a_terminal_that_becomes_narrow_goes_on(talking: Any) -> None:
    with talking(100) as terminal:
        terminal.until(PROMPT)
        terminal.type("the quick brown fox ")
        terminal.until("fox")
        terminal.resize(12, 8)
        terminal.type("jumps\r" + CTRL_D)
        assert turns(terminal) == ["the quick brown fox jumps"]


# A dumb terminal, and one without the line editor


@pytest.mark.parametrize("env", [{"TERM": "dumb"}, {"NO_EDITOR": "1"}], ids=["dumb", "no line editor"])
def test_lines_are_read_without_an_editor(talking: Any, env: dict[str, str]) -> None:
    with talking(**env, THINKING="dim") as terminal:
        greeting = terminal.until(PROMPT)
        assert ("prompt_toolkit is not installed" in greeting) == ("NO_EDITOR" in env)
        terminal.type("the fox\n")
        terminal.until("THE FOX")
        terminal.until(PROMPT)
        terminal.type("think\n")
        dim = terminal.until(PROMPT)
        assert ("<think>" in dim) == ("TERM" in env)
        terminal.type(CTRL_C)
        terminal.until("Ctrl-D or /quit leaves")
        terminal.until(PROMPT)
        terminal.type('"""\ntwo\nlines\n"""\n')
        terminal.until("LINES")
        terminal.until(PROMPT)
        terminal.type(CTRL_D)
        assert turns(terminal) == ["the fox", "think", "two\nlines"]
        assert "\x1b" not in terminal.text or "TERM" not in env


# The history


def test_what_was_typed_before_is_found_by_arrows(talking: Any) -> None:
    with talking() as terminal:
        terminal.until(PROMPT)
        for line, printed in (("the fox", "THE FOX"), ("/clear", "is empty"), ("the dog", "THE DOG")):
            terminal.type(line + "\r")
            terminal.until(printed)
            terminal.until(PROMPT)
        terminal.type(f"{UP}{UP}{UP}!\r{CTRL_D}")
        assert turns(terminal)[-1] == "the fox!"


def test_what_was_typed_is_there_the_next_time_and_for_its_user_alone(talking: Any, tmp_path: Path) -> None:
    with talking() as terminal:
        terminal.until(PROMPT)
        terminal.type(f"the\nfox\r{CTRL_D}")
        turns(terminal)
    file = tmp_path / "cache" / "bigrun" / "chat-history"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with talking() as terminal:
        terminal.until(PROMPT)
        terminal.type(f"{UP}\r{CTRL_D}")
        assert turns(terminal) == ["the\nfox"]


def unwritable(cache: Path) -> None:
    cache.write_text("a file where a folder should be")


def a_folder(cache: Path) -> None:
    (cache / "bigrun" / "chat-history").mkdir(parents=True)


@pytest.mark.parametrize("hinder", [unwritable, a_folder], ids=["no folder", "no file"])
def test_what_cannot_be_kept_is_kept_in_memory(talking: Any, tmp_path: Path, hinder: Callable[[Path], None]) -> None:
    hinder(tmp_path / "cache")
    with talking() as terminal:
        terminal.until(PROMPT)
        terminal.type("the fox\r")
        terminal.until("THE FOX")
        terminal.until(PROMPT)
        terminal.type(f"{UP}\r{CTRL_D}")
        assert turns(terminal) == ["the fox"] * 2


def test_without_a_home_it_is_kept_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_terminal, "cache_folder", lambda: None)
    assert type(chat_terminal._history()).__name__ == "InMemoryHistory"


def test_a_long_history_loses_its_oldest_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_terminal, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(chat_terminal, "MOST_HISTORY", 1000)
    for number in range(40):
        chat_terminal._history().store_string(f"turn {number}\n# no entry of its own")
    kept = list(chat_terminal._history().load_history_strings())
    assert kept == [f"turn {number}\n# no entry of its own" for number in range(39, 39 - len(kept), -1)]
    assert 5 < len(kept) < 40


# How the terminal is left


def modes(terminal: Terminal) -> Any:
    return termios.tcgetattr(terminal.slave)


@pytest.mark.parametrize("where", ["at the prompt", "in an answer"])
def test_a_terminal_is_given_back_as_it_was_also_to_sigterm(talking: Any, where: str) -> None:
    with talking(PAUSE="60") as terminal:
        before = modes(terminal)
        terminal.until(PROMPT)
        if where == "in an answer":
            terminal.type("the fox\r")
            terminal.until("THE ")
        assert modes(terminal) != before
        terminal.process.terminate()
        assert terminal.ended() == -signal.SIGTERM
        assert modes(terminal) == before


def test_a_terminal_is_given_back_by_ctrl_d(talking: Any) -> None:
    with talking() as terminal:
        before = modes(terminal)
        terminal.until(PROMPT)
        terminal.type(CTRL_D)
        turns(terminal)
        assert modes(terminal) == before


@pytest.fixture
def own_cache(tmp_path: Path) -> Path:
    """A cache folder of the test's own, but for the compiled kernels."""
    cache = tmp_path / "cache"
    (cache / "bigrun").mkdir(parents=True)
    kernels = home()
    if kernels is not None:
        kernels.mkdir(parents=True, exist_ok=True)
        (cache / "bigrun" / "kernels").symlink_to(kernels)
    return cache


def test_the_program_talks_on_a_terminal(tmp_path: Path, own_cache: Path) -> None:
    """With a model of its own: it greets, an answer that would not end is stopped, what has come of it is saved."""
    model = tmp_path / "llama"
    llama(model, context=4096, eos_token_id=None)
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    write_tokenizer(model, eos_token=None, chat_template=template)
    rig = ("--gpus", "none", "--cpu", "1GB", "--context", "4096", "--temperature", "1")
    env = {**os.environ, "XDG_CACHE_HOME": str(own_cache)}
    with Terminal(*PROGRAM, "chat", "--model", model, *rig, env=env) as terminal:
        terminal.until("[llama, 4,096 tokens of context, temperature 1; /help lists the commands]")
        terminal.until(PROMPT)
        terminal.type("the fox\r")
        terminal.until("\x1b[?2004l")  # the editor is done
        terminal.until(re.compile("[a-z]{2}"))  # of the answer
        terminal.type(CTRL_C)
        terminal.until("[stopped]")
        terminal.until(PROMPT)
        terminal.type(f"/save {tmp_path}/talk.json\r/quit\r")
        terminal.until("[2 messages")
        assert terminal.ended() == 0
    user, answer = json.loads((tmp_path / "talk.json").read_text())
    assert user == {"role": "user", "content": "the fox"}
    assert answer["role"] == "assistant"
    assert answer["content"]
    assert (own_cache / "bigrun" / "chat-history").exists()

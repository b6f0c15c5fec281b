"""A conversation at the command line, with a model of a script: lines of a pipe, slash commands, what is shown of an answer,
Ctrl-C."""

import io
import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bigrun import plan
from bigrun.cli.chat import converse
from bigrun.cli.chat_plain import PlainLines
from bigrun.cli.chat_talk import Talk
from bigrun.errors import CallError, RunError, command_line
from bigrun.text.thinking import Piece
from support.commands import run_command
from support.talks import COLOURS, PIPE, TERMINAL, Script, Scripted, ScriptedAnswer, interrupt, make_talk


@pytest.fixture(autouse=True)
def messages_for_the_command_line() -> Iterator[None]:
    with command_line():
        yield


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | bytes], PlainLines]:
    """What reads such a standard input."""

    def open_lines(text: str | bytes) -> PlainLines:
        data = text if isinstance(text, bytes) else text.encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        return PlainLines()

    return open_lines


# Lines of standard input

TURNS: dict[str, tuple[str | bytes, list[str]]] = {
    "nothing": ("", []),
    "a line each": ("a b\n c\n", ["a b", " c"]),
    "the last without its end": ("a\nb", ["a", "b"]),
    "those of Windows": ("a\r\nb\r\n", ["a", "b"]),
    "empty lines": ("\na\n \t\n\nb\n", ["a", "b"]),
    "a byte-order mark": (b"\xef\xbb\xbfa\n", ["a"]),
    "letters of all kinds": ("é漢🙂\n", ["é漢🙂"]),
    "a block": ('"""\na\n\n b\n"""\nc\n', ["a\n\n b", "c"]),
    "a block with spaces around its marks": (' """ \r\na\r\n"""\t\n', ["a"]),
    "an empty block": ('"""\n\n"""\nc\n', ["c"]),
    "marks within a line": ('say """\nb\n', ['say """', "b"]),
    "a block like a command": ('"""\n/quit\nb\n"""\n', ["//quit\nb"]),
    "a command": ("/quit\n", ["/quit"]),
}
WRONG_LINES: dict[str, tuple[bytes, list[str], list[str]]] = {
    "a line that is not UTF-8": (b"a\nb\xff\nc\n", ["a", "c"], ["line 2", "byte 1 is 0xff"]),
    "one within a block": (b'"""\na\n\xe9\n"""\nc\n', ["c"], ["line 3", "0xe9"]),
    "a block without an end": (b'a\n"""\nb\nc\n', ["a"], ["line 2", "no end"]),
    "a line beyond the limit": (b"a\n" + b"b" * 100 + b"\nc\n", ["a", "c"], ["line 2", "MiB"]),
    "a block beyond it": (b'"""\n' + b"bbbbbbbbbb\n" * 9 + b'"""\nc\n', ["c"], ["line 1", "MiB"]),
}


@pytest.mark.parametrize("case", TURNS.values(), ids=TURNS.keys())
def test_a_line_is_a_turn_and_so_is_a_block(lines: Any, case: tuple[str | bytes, list[str]]) -> None:
    text, expected = case
    reader = lines(text)
    assert [reader.read() for _ in range(len(expected) + 2)] == [*expected, None, None]


@pytest.mark.parametrize("case", WRONG_LINES.values(), ids=WRONG_LINES.keys())
def test_what_is_no_text_is_refused_and_what_follows_is_read(
    lines: Any, case: tuple[bytes, list[str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bigrun.cli.chat_plain.MOST_BYTES", 64)
    data, expected, words = case
    reader, turns, errors = lines(data), [], []
    for _ in range(10):
        try:
            turns.append(reader.read())
        except CallError as error:
            errors.append(str(error))
    assert [turn for turn in turns if turn is not None] == expected
    assert len(errors) == 1
    assert all(word in errors[0] for word in words), errors


def test_without_standard_input_there_is_no_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(CallError, match="standard input is closed"):
        PlainLines()


# Turn after turn


def test_each_answer_is_a_line_and_the_end_of_input_ends_it(lines: Any, capsys: pytest.CaptureFixture[str]) -> None:
    model = Scripted(["Hel", "lo"], [], ["a\n", "b\n"])
    assert converse(make_talk(model), lines("one\ntwo\n//three\nfour\n")) == 0
    assert capsys.readouterr() == ("Hello\n\na\nb\nFOUR\n", "[0 tokens: the model ended at once]\n")
    assert model.turns == ["one", "two", "/three", "four"]


def test_an_error_of_a_turn_is_said_and_the_others_are_answered(lines: Any, capsys: pytest.CaptureFixture[str]) -> None:
    model = Scripted(["a ", RunError("logits are no numbers")])
    assert converse(make_talk(model), lines("one\ntoo long\ntwo\n/nosuch\n")) == 1, "the first error's"
    printed = capsys.readouterr()
    assert printed.out == "a \nTWO\n"
    assert [line.split(":")[0] for line in printed.err.splitlines()] == ["bigrun"] * 3
    assert "numbers" in printed.err.splitlines()[0]
    assert "context" in printed.err.splitlines()[1]


def test_a_person_sees_the_errors_and_gets_no_status(lines: Any, capsys: pytest.CaptureFixture[str]) -> None:
    reader = lines("/nosuch\n")
    reader.interactive = True
    assert converse(make_talk(Scripted()), reader) == 0
    assert "no such command" in capsys.readouterr().err


def test_a_failure_that_is_a_bug_ends_the_conversation(lines: Any) -> None:
    with pytest.raises(ZeroDivisionError):
        converse(make_talk(Scripted([ZeroDivisionError()])), lines("one\n"))


# What is shown of an answer

THOUGHTS: Script = [Piece("I see", True), Piece(".", True), "Yes", "."]
SHOWN: dict[str, tuple[Any, str, list[Any], str]] = {
    "hidden over a pipe": (PIPE, "hide", THOUGHTS, "Yes.\n"),
    "shown over a pipe": (PIPE, "show", THOUGHTS, "<think>\nI see.\n</think>\n\nYes.\n"),
    "dimmed where nothing can be": (PIPE, "dim", THOUGHTS, "<think>\nI see.\n</think>\n\nYes.\n"),
    "dimmed": (COLOURS, "dim", THOUGHTS, "\x1b[2mI see.\x1b[0m\n\nYes.\n"),
    "dimmed without colours": (TERMINAL, "dim", THOUGHTS, "<think>\nI see.\n</think>\n\nYes.\n"),
    "shown with colours": (COLOURS, "show", THOUGHTS, "<think>\nI see.\n</think>\n\nYes.\n"),
    "hidden behind a sign": (COLOURS, "hide", THOUGHTS, "\x1b[2mthinking…\x1b[0m\r\x1b[KYes.\n"),
    "behind a sign without colour": (TERMINAL, "hide", THOUGHTS, "thinking…\r\x1b[KYes.\n"),
    "thoughts alone, hidden": (PIPE, "hide", THOUGHTS[:2], "\n"),
    "thoughts alone, hidden on a terminal": (TERMINAL, "hide", THOUGHTS[:2], "thinking…\r\x1b[K"),
    "thoughts alone, dimmed": (COLOURS, "dim", THOUGHTS[:2], "\x1b[2mI see.\x1b[0m\n"),
    "thoughts alone, shown": (PIPE, "show", THOUGHTS[:2], "<think>\nI see.\n"),
    "nothing over a pipe": (PIPE, "hide", [], "\n"),
    "nothing on a terminal": (COLOURS, "hide", [], ""),
    "what a terminal obeys": (COLOURS, "dim", ["\x1b[2J\r\x07", "\u202ea\x9b"], "\\x1b[2J\\r\\x07\\u202ea\\x9b\n"),
    "what one obeys over a pipe": (PIPE, "dim", ["\x1b]0;x\x07 é\t漢\n"], "\\x1b]0;x\\x07 é\t漢\n"),
    "what one obeys in thoughts": (COLOURS, "dim", [Piece("\x1b[0m", True), "a"], "\x1b[2m\\x1b[0m\x1b[0m\n\na\n"),
    "an end of a line in two pieces": (PIPE, "hide", ["a\r", "\nb"], "a\nb\n"),
    "one that never comes": (PIPE, "hide", ["a\r"], "a\\r\n"),
}  # fmt: skip


@pytest.mark.parametrize("case", SHOWN.values(), ids=SHOWN.keys())
def test_what_an_answer_looks_like(case: tuple[Any, str, list[Any], str], capsys: pytest.CaptureFixture[str]) -> None:
    screen, thinking, script, expected = case
    make_talk(Scripted(script), screen, thinking, quiet=True).say("x")
    assert capsys.readouterr() == (expected, "")


NOTES: dict[str, tuple[list[Any], str, dict[str, Any], list[str]]] = {
    "nothing": (["a"], "stop_token", {}, []),
    "cut": (["a"], "max_new_tokens", {}, ["[cut at 1 token; --max-new-tokens]"]),
    "a full context": (
        ["a"], "context", {}, ["[cut at 1 token: the context is full; /clear begins anew, --context makes room]"],
    ),
    "no token": ([], "stop_token", {}, ["[0 tokens: the model ended at once]"]),
    "hidden thoughts alone": ([Piece("a", True)], "stop_token", {}, ["[the answer is thoughts alone: --thinking show]"]),
    "quiet": (["a"], "context", {"quiet": True}, []),
    "in full": (
        ["a", "b"], "stop_token", {"verbose": True},
        ["[prompt: 7 tokens, 3 of them not computed again, 0.50 s, 8.0 tokens/s; answer: 2 tokens, 2.00 s, 1.0 tokens/s, "
         "ended by stop_token; context: 9 of 2,048 tokens; seed: 5]"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", NOTES.values(), ids=NOTES.keys())
def test_what_is_said_beside_an_answer(
    case: tuple[list[Any], str, dict[str, Any], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    script, end, more, expected = case
    make_talk(Scripted(script, ended=end, seed=5), **more).say("x")
    assert capsys.readouterr().err.splitlines() == expected


# Ctrl-C


def interrupt_unheard() -> None:
    """Where code lets no exception through, as in a callback."""
    try:
        interrupt()
        for _ in range(1000):
            pass
    except KeyboardInterrupt:
        pass


@pytest.mark.parametrize(
    "stop", [interrupt, interrupt_unheard, KeyboardInterrupt()], ids=["a signal", "one that is lost", "raised below"]
)
def test_ctrl_c_ends_the_answer_and_what_has_come_stays(
    lines: Any, capsys: pytest.CaptureFixture[str], stop: Any
) -> None:
    model = Scripted(["It is ", stop, "never ", "said"])
    before = signal.getsignal(signal.SIGINT)
    assert converse(make_talk(model), lines("one\ntwo\n")) == 0
    printed = capsys.readouterr()
    lost = "never " if stop is interrupt_unheard else ""
    assert printed == (f"It is {lost}\nTWO\n", "[stopped]\n")
    assert [each["content"] for each in model.messages] == ["one", f"It is {lost}", "two", "TWO"]
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_before_the_first_word_and_pressed_again(lines: Any, capsys: pytest.CaptureFixture[str]) -> None:
    class Twice(ScriptedAnswer):
        def close(self) -> None:
            interrupt()
            super().close()
            interrupt()

    model = Scripted()
    model.say = lambda text: Twice(model, [interrupt, "never"], "stop_token")  # type: ignore[method-assign]
    assert converse(make_talk(model), lines("one\n")) == 0
    assert capsys.readouterr() == ("\n", "[stopped]\n")


def test_ctrl_c_while_a_turn_is_tokenised_stops_before_anything_is_computed(capsys: pytest.CaptureFixture[str]) -> None:
    model = Scripted(["never"])
    say = model.say

    def slow(text: str) -> Any:
        interrupt()
        return say(text)

    model.say = slow  # type: ignore[method-assign]
    make_talk(model, TERMINAL).say("x")
    assert capsys.readouterr() == ("", "[stopped]\n")
    assert model.messages[-1] == {"role": "assistant", "content": ""}


def test_an_ignored_ctrl_c_stays_ignored(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        make_talk(Scripted(["a", interrupt, "b"])).say("x")
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr() == ("ab\n", "")


class Interrupted:
    """A front end at which somebody presses Ctrl-C."""

    keys = ""

    def __init__(self, interactive: bool):
        self.interactive, self._left = interactive, 2

    def read(self) -> str | None:
        self._left -= 1
        if self._left:
            raise KeyboardInterrupt
        return None


def test_ctrl_c_at_a_prompt_says_how_to_leave_and_over_a_pipe_ends(capsys: pytest.CaptureFixture[str]) -> None:
    assert converse(make_talk(Scripted()), Interrupted(True)) == 0  # type: ignore[arg-type]
    assert capsys.readouterr().err == "Ctrl-D or /quit leaves\n"
    with pytest.raises(KeyboardInterrupt):
        converse(make_talk(Scripted()), Interrupted(False))  # type: ignore[arg-type]


# Slash commands


@pytest.fixture
def chat(lines: Any, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """(status, standard output, standard error) of a conversation of these lines."""

    def run(text: str, model: Scripted | None = None, talk: Talk | None = None) -> tuple[int, str, str]:
        capsys.readouterr()
        status = converse(talk or make_talk(model or Scripted()), lines(text))
        return (status, *capsys.readouterr())

    return run


def test_help_names_every_command(chat: Any) -> None:
    status, out, _ = chat("/help\n")
    assert status == 0
    for word in (
        "/system", "/save FILE", "/load FILE", "/stats", "/plan", "/clear", "/retry", "/thinking", "/quit", "/exit", "//",
    ):  # fmt: skip
        assert word in out


def test_the_system_message_is_shown_set_and_removed(chat: Any) -> None:
    model = Scripted()
    assert chat("/system\n", model)[1] == "none is set; the chat template may have one of its own\n"
    assert chat("/system Be \x1b[1mbrief.\n/system\n", model)[1] == "Be \\x1b[1mbrief.\n"
    assert model.messages == [{"role": "system", "content": "Be \x1b[1mbrief."}]
    assert chat('/system ""\n', model)[0] == 0
    assert model.messages == []


def test_clear_retry_and_quit(chat: Any) -> None:
    model = Scripted(["one"], ["two"])
    assert chat("/system S\na\n/retry\nb\n/clear\n/quit\nnever\n", model)[:2] == (0, "one\ntwo\nB\n")
    assert model.messages == [{"role": "system", "content": "S"}]
    status, out, err = chat("/retry\n/exit\nnever\n", model)
    assert (status, out) == (2, "")
    assert "answer" in err


@pytest.mark.parametrize(
    ("temperature", "again", "said"),
    [(0.0, "one", "--temperature"), (0.5, "one", "--seed"), (0.0, "two", ""), (0.5, "two", "")],
)
def test_the_same_answer_again_is_said(chat: Any, temperature: float, again: str, said: str) -> None:
    model = Scripted(["one"], [again])
    model.sampling = {"temperature": temperature}
    err = chat("a\n/retry\n", model)[2]
    assert (err.count("\n"), said in err) == (bool(said), True)


def test_thoughts_are_shown_from_then_on(chat: Any) -> None:
    model = Scripted(THOUGHTS, list(THOUGHTS))
    out = chat("a\n/thinking show\n/thinking\nb\n", model)[1]
    assert out == "Yes.\nshow\n<think>\nI see.\n</think>\n\nYes.\n"


def test_stats_of_the_last_answer(chat: Any) -> None:
    status, out, err = chat("/stats\n")
    assert (status, out) == (2, "")
    assert "no answer yet" in err
    out = chat("a\n/stats\n", Scripted(["a", "b"], seed=5))[1]
    assert out.splitlines() == [
        "ab", "prompt: 7 tokens, 3 of them not computed again, 0.50 s, 8.0 tokens/s",
        "answer: 2 tokens, 2.00 s, 1.0 tokens/s, ended by stop_token", "context: 9 of 2,048 tokens", "seed: 5",
    ]  # fmt: skip


BAD_COMMANDS = {
    "unknown": ("/nosuch x", ["/nosuch", "/help", "//nosuch"]), "nearly one": ("/sytem x", ["/sytem", "mean /system"]),
    "a slash alone": ("/", ["/:", "//"]), "no file": ("/save", ["/save FILE"]), "nor here": ("/load  ", ["/load FILE"]),
    "an argument": ("/quit now", ["takes nothing", "//quit now"]), "no way to think": ("/thinking loud", ["show, dim, hide"]),
    "a path": ("/usr/bin/env is", ["//usr/bin/env"]), "control characters": ("/\x1b[2J\x07", ["\\x1b[2J\\x07"]),
    "a file that is not there": ("/load {dir}/no.json", ["no.json", "No such file"]),
    "a folder": ("/load {dir}", ["directory"]), "a folder to write to": ("/save {dir}", ["something else than a file"]),
    "a place that is none": ("/save {dir}/no/talk.json", ["No such file"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_COMMANDS.values(), ids=BAD_COMMANDS.keys())
def test_a_command_that_makes_no_sense_is_one_line_and_nothing_is_sent(
    chat: Any, tmp_path: Path, case: tuple[str, list[str]]
) -> None:
    line, words = case
    model = Scripted()
    status, out, err = chat(line.format(dir=tmp_path) + "\n", model)
    assert (status, out, model.messages) == (2, "", [])
    assert err.count("\n") == 1
    assert all(word in err for word in words), err
    assert "\x1b" not in err


def test_a_conversation_is_saved_and_gone_on_with(chat: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    first, second = Scripted(), Scripted()
    chat("/system é\na\n/save ~/talk.json\n", first)
    assert json.loads((tmp_path / "talk.json").read_text()) == first.messages
    err = chat("x\n/load ~/talk.json\nb\n", second)[2]
    assert err == "[3 messages]\n"
    assert second.messages[:3] == first.messages
    assert second.turns == ["a", "b"]


def test_a_turn_that_awaits_its_answer_is_said(chat: Any, tmp_path: Path) -> None:
    (tmp_path / "f").write_text('{"messages": [{"role": "user", "content": "a"}]}')
    assert "/retry" in chat(f"/load {tmp_path}/f\n")[2]


def test_the_plan_is_what_bigrun_plan_prints(chat: Any, tmp_path: Path) -> None:
    talk = make_talk(Scripted())
    talk.runner.plan = plan("opt-6.7b", gpus="24GB", cpu="1GB")
    printed = run_command("plan", "--model", "opt-6.7b", "--gpus", "24GB", "--cpu", "1GB").stdout
    assert chat("/plan\n", talk=talk)[1] == printed
    assert "opt-6.7b" in printed

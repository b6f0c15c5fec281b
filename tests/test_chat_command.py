"""`bigrun chat`, all but its line editor: lines over a pipe, slash commands, what is shown of an answer, Ctrl-C, files of
messages, and the command as a process."""

import io
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bigrun import Runner, plan
from bigrun.cli import messages_file
from bigrun.cli.chat import converse
from bigrun.cli.chat_options import read_arguments
from bigrun.cli.chat_plain import PlainLines
from bigrun.cli.chat_talk import Talk
from bigrun.cli.messages_file import read_messages, write_messages
from bigrun.errors import CallError, RunError, command_line
from bigrun.session import steps
from bigrun.session.conversation import Conversation
from bigrun.text.shown import shown
from bigrun.text.thinking import Piece
from support.checkpoints import llama, write_tokenizer
from support.commands import PROGRAM, ended, run_command, run_process
from support.talks import COLOURS, PIPE, TERMINAL, Scripted, ScriptedAnswer, make_talk

RIG = ("--gpus", "none", "--cpu", "1GB", "--quiet")
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "<s>{{ m.role }}: {{ m.content }}\n{% endfor %}{% if shout %}!{% endif %}<s>assistant:"
)


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

THOUGHTS = [Piece("I see", True), Piece(".", True), "Yes", "."]
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
    "a full context": (["a"], "context", {}, ["[cut at 1 token: the context is full; --context]"]),
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


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


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
    talk.runner.plan = plan("opt-6.7b", gpus="24GB", cpu="1GB")  # type: ignore[misc]
    printed = run_command("plan", "--model", "opt-6.7b", "--gpus", "24GB", "--cpu", "1GB").stdout
    assert chat("/plan\n", talk=talk)[1] == printed
    assert "opt-6.7b" in printed


# Files of messages

MESSAGES = [{"role": "user", "content": "é\n🙂"}, {"role": "assistant", "content": "b", "reasoning_content": "c"}]
WRONG_FILES = {
    "no JSON": (b"[{", "not JSON"), "no UTF-8": (b"\xff", "UTF-8"), "a text": (b'"a"', "list"), "no list": (b"{}", "list"),
    "a list of texts": (b'["a"]', "message 1"), "no role": (b'[{"content": "a"}]', "message 1 has no role"),
    "a role that is none": (b'[{"role": 1, "content": "a"}]', "message 1 has no role"),
    "no content": (b'[{"role": "user", "content": "a"}, {"role": "user"}]', "message 2 has no content"),
    "parts": (b'[{"role": "user", "content": [{"type": "text"}]}]', "message 1 has no content"),
    "depth": (b"[" * 100_000, "not JSON"), "digits": (b"[" + b"9" * 5000 + b"]", "JSON"), "nothing": (b"", "JSON"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_FILES.values(), ids=WRONG_FILES.keys())
def test_a_file_that_holds_no_conversation_is_refused_and_not_overwritten(
    tmp_path: Path, case: tuple[bytes, str]
) -> None:
    data, words = case
    file = tmp_path / "f"
    file.write_bytes(data)
    with pytest.raises(CallError, match=words) as caught:
        read_messages(str(file), "--messages f")
    assert str(caught.value).startswith("--messages f: ")
    if data:  # of an empty file nothing is lost
        with pytest.raises(CallError, match="stays"):
            write_messages(str(file), MESSAGES, "/save f")
        assert file.read_bytes() == data
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_with_more_than_a_conversation_is_read_and_stays(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_text(text := json.dumps({"model": "x", "messages": MESSAGES}))
    assert read_messages(str(file), "f") == MESSAGES
    with pytest.raises(CallError, match="more than messages"):
        write_messages(str(file), [], "/save f")
    assert file.read_text() == text


def test_another_conversation_is_overwritten_with_its_mode_and_through_its_link(tmp_path: Path) -> None:
    file, link = tmp_path / "f", tmp_path / "link"
    for before in ([], MESSAGES, {"messages": MESSAGES}):
        file.write_text(json.dumps(before))
        file.chmod(0o640)
        link.unlink(missing_ok=True)
        link.symlink_to(file)
        assert write_messages(str(link), MESSAGES[:1], "/save link") == file
        assert link.is_symlink()
        assert read_messages(str(file), "f") == MESSAGES[:1]
        assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert sorted(tmp_path.iterdir()) == [file, link]


def test_half_of_a_surrogate_pair_is_kept(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "\ud83d"}]
    assert read_messages(str(write_messages(str(tmp_path / "f"), messages, "f")), "f") == messages


@pytest.mark.parametrize(
    "failure", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "Ctrl-C"]
)
def test_a_write_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    file = write_messages(str(tmp_path / "f"), MESSAGES, "f")

    def fail(_: int) -> None:
        raise failure

    monkeypatch.setattr(messages_file.os, "fsync", fail)
    with pytest.raises(KeyboardInterrupt if isinstance(failure, KeyboardInterrupt) else CallError):
        write_messages(str(file), [], "/save f")
    assert read_messages(str(file), "f") == MESSAGES
    assert list(tmp_path.iterdir()) == [file]


# The command


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat") / "llama"
    llama(folder, context=512)
    write_tokenizer(folder, chat_template=TEMPLATE)
    return folder


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever loads a model fails."""

    def load(*_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(steps, "load", load)


BAD_CALLS = {
    "an argument that the template does not read": (("--template-arg", "enable_thinking=false"), "enable_thinking"),
    "an argument without a value": (("--template-arg", "shout"), "NAME=VALUE"),
    "one without a name": (("--template-arg", "=1"), "NAME=VALUE"),
    "one given twice": (("--template-arg", "shout=1", "--template-arg", "shout=2"), "twice"),
    "one of the template's own": (("--template-arg", "messages=[]"), "messages"),
    "a temperature": (("--temperature", "-1"), "temperature"), "top-k": (("--top-k", "-1"), "top_k"),
    "top-p": (("--top-p", "0"), "top_p"), "min-p": (("--min-p", "2"), "min_p"), "a seed": (("--seed", "-1"), "seed"),
    "a penalty": (("--repetition-penalty", "0"), "repetition_penalty"),
    "a limit": (("--max-new-tokens", "0"), "--max-new-tokens"),
    "a stop text": (("--stop", ""), "--stop"), "a way to think": (("--thinking", "loud"), "--thinking"),
    "an empty system message": (("--system", " "), "--system"), "a batch": (("--batch", "2"), "--batch"),
    "a file that is not there": (("--messages", "{dir}/no"), "No such file"),
    "a file that is none": (("--messages", "{dir}/text"), "not JSON"),
    "messages that the template refuses": (("--messages", "{dir}/tool"), "no tools here"),
    "messages beyond the context": (("--messages", "{dir}/long"), "--context"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_CALLS.values(), ids=BAD_CALLS.keys())
def test_what_cannot_be_is_refused_before_anything_is_loaded(
    chatty: Path, unloaded: None, tmp_path: Path, case: tuple[tuple[str, ...], str]
) -> None:
    args, words = case
    (tmp_path / "text").write_text("text")
    (tmp_path / "tool").write_text('[{"role": "tool", "content": "a"}]')
    (tmp_path / "long").write_text(json.dumps([{"role": "user", "content": "dog " * 600}]))
    given = (each.format(dir=tmp_path) for each in args)
    result = run_command("chat", "--model", chatty, *RIG, *given, stdin="hello\n")
    ended(result, 2, words, lines=3 if "loud" in args else 1)


def test_a_model_without_a_template_is_refused_before_it_is_loaded(tiny: Path, unloaded: None) -> None:
    ended(run_command("chat", "--model", tiny, *RIG, stdin="hello\n"), 2, "no chat template", "generate --raw")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Conversation]:
    """The conversations that commands hold."""
    seen: list[Conversation] = []
    monkeypatch.setattr("bigrun.cli.chat.converse", lambda talk, *_: seen.append(talk.conversation) or 0)
    return seen


def test_flags_and_files_become_a_conversation(chatty: Path, asked: list[Conversation], tmp_path: Path) -> None:
    (tmp_path / "f").write_text(json.dumps([{"role": "system", "content": "old"}, *MESSAGES]))
    run = ("chat", "--model", chatty, *RIG)
    assert run_command(*run).exit_code == 0
    assert asked[0].messages == []
    assert asked[0].sampling == {
        "temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "seed": None,
    }  # fmt: skip
    assert (asked[0].max_new_tokens, asked[0].template_args) == (None, {})
    more = (
        "--messages", tmp_path / "f", "--system", "new", "--temperature", "0.5", "--top-k", "3", "--top-p", "0.9", "--min-p",
        "0.1", "--repetition-penalty", "1.2", "--seed", "7", "--stop", "x", "--stop", "y", "--max-new-tokens", "5",
        "--template-arg", "shout=False",
    )  # fmt: skip
    result = run_command(*run, *more)
    assert result.exit_code == 0, result.stderr
    assert asked[1].messages == [{"role": "system", "content": "new"}, *MESSAGES]
    assert asked[1].sampling == {
        "temperature": 0.5, "top_k": 3, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.2, "seed": 7,
    }  # fmt: skip
    assert (asked[1].max_new_tokens, asked[1].stop, asked[1].template_args) == (5, ("x", "y"), {"shout": False})


def test_a_flag_takes_the_place_of_one_value_of_generation_config(
    chatty: Path, asked: list[Conversation], tmp_path: Path
) -> None:
    model = shutil.copytree(chatty, tmp_path / "model")
    (model / "generation_config.json").write_text(
        json.dumps({"eos_token_id": 2, "do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20})
    )
    assert run_command("chat", "--model", model, *RIG, "--temperature", "0.3").exit_code == 0
    assert {name: asked[0].sampling[name] for name in ("temperature", "top_p", "top_k")} == {
        "temperature": 0.3, "top_p": 0.95, "top_k": 20,
    }  # fmt: skip


VALUES = {
    "false": False, "False": False, "true": True, "none": None, "null": None, "7": 7, "0.5": 0.5, "high": "high", '"7"': "7",
    "": "", "a=b": "a=b", '["a"]': ["a"], "[": "[",
}  # fmt: skip


@pytest.mark.parametrize("text", VALUES)
def test_a_template_argument_is_json_or_else_a_text(text: str) -> None:
    value = read_arguments([f"name={text}"])["name"]
    assert (value, type(value)) == (VALUES[text], type(VALUES[text]))


def test_the_program_answers_turns_of_a_pipe_as_python_does(chatty: Path) -> None:
    """In plain lines, without a colour, a greeting or a prompt."""
    turns = ["the quick brown fox", "the lazy dog\n/slept"]
    with Runner(str(chatty), gpus="none", cpu="1GB", progress=False) as runner:
        conversation = Conversation(runner, max_new_tokens=12)
        expected = ["".join(piece.text for piece in conversation.say(turn)) for turn in turns]
    text = f'{turns[0]}\n\n"""\n{turns[1]}\n"""\n'
    done = run_process("chat", "--model", chatty, *RIG, "--max-new-tokens", "12", "--temperature", "0", stdin=text)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "".join(
        f"{shown(answer)}\n" if not answer.endswith("\n") else shown(answer) for answer in expected
    )


def test_the_program_ends_with_the_status_of_an_error_and_answers_what_follows(chatty: Path) -> None:
    text = "dog " * 600 + "\nthe fox\n"
    done = run_process("chat", "--model", chatty, *RIG, "--max-new-tokens", "4", stdin=text)
    assert done.returncode == 2
    assert done.stdout.endswith("\n")
    (line,) = done.stderr.splitlines()
    assert "context" in line


@contextmanager
def started(model: Path, *args: str) -> Iterator[subprocess.Popen[str]]:
    """The program, waiting for its input."""
    process = subprocess.Popen(
        [*PROGRAM, "chat", "--model", str(model), *RIG, *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    watch = threading.Timer(60, process.kill)  # what never ends is an empty answer
    watch.start()
    try:
        yield process
    finally:
        watch.cancel()
        process.kill()
        process.communicate()


def test_ctrl_c_ends_a_program_that_waits_for_input(chatty: Path) -> None:
    with started(chatty) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write("/system\n")
        process.stdin.flush()
        assert process.stdout.readline() == "none is set; the chat template may have one of its own\n", "it is loaded"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr.read().split() == ["bigrun:", "interrupted"]


def test_a_reader_that_leaves_ends_the_program_with_141(chatty: Path) -> None:
    with started(chatty, "--max-new-tokens", "4") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("/system\n")
        process.stdin.flush()
        process.stdout.readline()
        process.stdout.close()
        process.stdin.write("the fox\n")
        process.stdin.flush()
        assert process.wait(60) == 141
        assert process.stderr is not None
        assert process.stderr.read() == ""
        process.stdout = None

"""`bigrun chat` as a command and as a program: what is refused before a model is loaded, what becomes of flags, how it ends."""

import json
import random
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from bigrun import Runner
from bigrun.cli.chat_talk import Talk
from bigrun.cli.generation_options import read_arguments
from bigrun.errors import command_line
from bigrun.session import steps
from bigrun.session.conversation import Conversation
from bigrun.text.shown import shown
from support.checkpoints import llama, write_tokenizer
from support.commands import PROGRAM, ended, run_command, run_process
from support.long import long
from support.talks import PIPE, interrupt

RIG = ("--gpus", "none", "--cpu", "1GB", "--quiet")
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "<s>{{ m.role }}: {{ m.content }}\n{% endfor %}{% if shout %}!{% endif %}<s>assistant:"
)
MESSAGES = [{"role": "user", "content": "é\n🙂"}, {"role": "assistant", "content": "b", "reasoning_content": "c"}]


@pytest.fixture(autouse=True)
def messages_for_the_command_line() -> Iterator[None]:
    with command_line():
        yield


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

    def hold(talk: Talk, *_: object) -> int:
        seen.append(talk.conversation)
        return 0

    monkeypatch.setattr("bigrun.cli.chat.converse", hold)
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


@pytest.mark.parametrize("rounds", [range(6), long(range(6, 60))], ids=["few", "many"])
def test_after_an_answer_was_stopped_anywhere_the_next_is_that_of_a_fresh_runner(
    chatty: Path, rounds: range, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {"gpus": "none", "cpu": "1GB", "context": 512, "progress": False}
    with Runner(str(chatty), **options) as runner, Runner(str(chatty), **options) as fresh:
        for number in rounds:
            conversation = Conversation(runner, max_new_tokens=100)
            talk = Talk(conversation, runner, PIPE, "hide", quiet=True)
            press = threading.Timer(random.Random(number).uniform(0, 0.1), interrupt)
            with suppress(KeyboardInterrupt):  # pressed after the answer
                press.start()
                talk.say("the fox " * (1 + number % 40))
                press.join()
            conversation.max_new_tokens = 8
            asked = [*conversation.messages, {"role": "user", "content": "and then?"}]
            expected = "".join(fresh.stream(asked, 8))
            assert "".join(piece.text for piece in conversation.say("and then?")) == expected

"""`bigrun generate`: where the prompt comes from, and what is said of the answer."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bigrun import Runner
from bigrun.cli import running
from bigrun.cli.answer import notes
from bigrun.errors import PlanDoesNotFit
from bigrun.session import generation
from bigrun.session.generation import Stats
from bigrun.session.request_options import RequestOptions
from support.checkpoints import llama
from support.commands import run_command, run_process
from support.long import LONG

RIG = ("--gpus", "none", "--cpu", "1GB")


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prompts that would be continued; nothing is loaded."""
    seen: list[str] = []

    class Loaded:
        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    def request(_: RequestOptions, __: Any, prompt: str) -> Any:
        seen.append(prompt)
        raise KeyboardInterrupt

    monkeypatch.setattr(RequestOptions, "request", request)
    monkeypatch.setattr(running, "open_runner", lambda *_: Loaded())
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


# What is said of an answer


class Answer:
    """A stream that ended, and the Runner that gave it."""

    def __init__(self, pieces: tuple[str, ...], stats: Stats):
        self.pieces, self.stats, self.token_ids = pieces, stats, list(range(stats.new_tokens))

    def __enter__(self) -> "Answer":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __iter__(self) -> Iterator[str]:
        return iter(self.pieces)


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[str, str]]:
    """(standard output, standard error) of a command whose model answers so."""

    def run(pieces: tuple[str, ...], new: int, ended: str, *more: str, seed: int | None = None) -> tuple[str, str]:
        answer = Answer(pieces, Stats(7, new, 1.0, 0.5, 2.0 if new else 0.0, seed, ended))
        monkeypatch.setattr(running, "open_runner", lambda *_: answer)
        monkeypatch.setattr(RequestOptions, "request", lambda *_: None)
        monkeypatch.setattr(generation, "Stream", lambda *_: answer)
        result = run_command("generate", "-p", "x", *more)
        assert result.exit_code == 0, result.stderr
        return result.stdout, result.stderr

    return run


CUT = "; --max-new-tokens]\n"
SAID = {
    "ended by itself": (("a", "b"), 2, "stop_token", "ab\n", "[7 + 2 tokens, 1.0 tokens/s]\n"),
    "no token": ((), 0, "stop_token", "", "[0 tokens: the model ended at once]\n"),
    "no text": ((), 3, "stop_token", "", "[3 tokens, none of them text]\n[7 + 3 tokens, 1.5 tokens/s]\n"),
    "cut by the limit": (("a",), 128, "max_new_tokens", "a\n", f"[cut at 128 tokens{CUT}[7 + 128 tokens, 63.5 tokens/s]\n"),
    "cut at one": (("a",), 1, "max_new_tokens", "a\n", f"[cut at 1 token{CUT}[7 + 1 token]\n"),
    "cut by the context": (
        ("a",), 9, "context", "a\n", "[cut at 9 tokens: the context is full; --context]\n[7 + 9 tokens, 4.0 tokens/s]\n",
    ),
    "stopped": (("a",), 4, "stop_text", "a\n", "[7 + 4 tokens, 1.5 tokens/s]\n"),
    "stopped at once": (
        (), 2, "stop_text", "", "[no text: the answer began with a --stop text]\n[7 + 2 tokens, 0.5 tokens/s]\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SAID.values(), ids=SAID.keys())
def test_what_became_of_an_answer_is_said_on_standard_error(
    answered: Callable[..., tuple[str, str]], case: tuple[tuple[str, ...], int, str, str, str]
) -> None:
    pieces, new, ended, out, err = case
    assert answered(pieces, new, ended) == (out, err)
    assert answered(pieces, new, ended, "--quiet") == (out, "")
    assert answered(pieces, new, ended, "--quiet", "-v") == (out, "")
    made, said = answered(pieces, new, ended, "--json")
    assert (json.loads(made)["ended"], json.loads(made)["new_tokens"], said) == (ended, new, "")


def test_verbose_tells_speeds_and_the_seed_in_full(
    answered: Callable[..., tuple[str, str]],
) -> None:
    """7 tokens of prompt in half a second; after the first of five, four steps and that of the stop token in two seconds."""
    taken = "loaded in 1.00 s; prompt of 7 tokens in 0.50 s, 14.0 tokens/s; 5 tokens after it in 2.00 s, 2.5 tokens/s"
    assert answered(("a",), 5, "stop_token", "--verbose") == ("a\n", f"[{taken}]\n")
    assert answered(("a",), 5, "stop_token", "-v", seed=11) == ("a\n", f"[{taken}; seed 11]\n")


def test_without_it_comes_the_short_form() -> None:
    stats = Stats(7, 5, 1.0, 0.5, 2.0, None, "stop_token")
    assert notes(stats, True, True, False) == ["7 + 5 tokens, 2.5 tokens/s"]
    seeded = Stats(7, 1, 1.0, 0.5, 0.0, 3, "context")
    cut = "cut at 1 token: the context is full; --context"
    assert notes(seeded, True, True, False) == [cut, "7 + 1 token; seed 3"]


# The seed


def test_a_seed_is_drawn_where_none_is_given_and_draws_the_same_again(tiny: Path) -> None:
    with Runner(str(tiny), gpus="none", cpu="1GB", progress=False) as runner:
        drawn = [runner.generate("the dog", 24, temperature=1.0) for _ in range(4)]
        assert len({each.token_ids for each in drawn}) > 1
        assert len({each.stats.seed for each in drawn}) > 1
        for each in drawn:
            again = runner.generate("the dog", 24, temperature=1.0, seed=each.stats.seed)
            assert (again.token_ids, again.stats.seed) == (each.token_ids, each.stats.seed)
        greedy = runner.generate("the dog", 24)
        assert (greedy.stats.seed, runner.generate("the dog", 24, seed=5).stats.seed) == (None, None)
        assert runner.generate("the dog", 4, temperature=1.0, seed=0).stats.seed == 0, "which is no lack of one"


@LONG
def test_the_seed_of_json_draws_the_same_text_in_another_process(tiny: Path) -> None:
    args = (
        "generate",
        "--model",
        tiny,
        *RIG,
        "-p",
        "the dog",
        "--temperature",
        "1",
        "--max-new-tokens",
        "24",
        "--json",
    )
    first = json.loads(run_process(*args).stdout)
    again = json.loads(run_process(*args, "--seed", str(first["seed"])).stdout)
    assert again["token_ids"] == first["token_ids"]
    assert 0 <= first["seed"] < 2**32


# Several prompts, conversations, stops

CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if quick %}!{% endif %}"


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a chat template."""
    path = tmp_path_factory.mktemp("chat")
    llama(path, tokenizer=True)
    (path / "chat_template.jinja").write_text(CHAT)
    return path


def run(model: Path, *more: str) -> Any:
    return run_command("generate", "--model", str(model), *RIG, "--context", "64", "--max-new-tokens", "6", *more)


def test_several_prompts_are_several_answers(chat: Path) -> None:
    asked = ("the fox", "a dog; then\nthe other", "jumps")
    alone = [json.loads(run(chat, "-p", prompt, "--json").stdout) for prompt in asked]
    flags = [flag for prompt in asked for flag in ("-p", prompt)]
    together = json.loads(run(chat, *flags, "--json").stdout)
    assert list(together) == ["answers"]
    for one, other in zip(together["answers"], alone, strict=True):
        assert one.keys() == other.keys()
        for name in ("text", "token_ids", "prompt_tokens", "new_tokens", "ended"):
            assert one[name] == other[name]
    shown = run(chat, *flags)
    texts = [each["text"] + ("\n" if each["text"] else "") for each in alone]
    titles = ("the fox", "a dog; then the other", "jumps")
    expected = "\n".join(
        f"--- {i} of 3: {title}\n{text}" for i, title, text in zip((1, 2, 3), titles, texts, strict=True)
    )
    assert shown.stdout == expected
    new = sum(each["new_tokens"] for each in alone)
    assert f"[3 answers: {sum(each['prompt_tokens'] for each in alone)} + {new} tokens in " in shown.stderr
    assert shown.stderr.endswith(" tokens/s]\n")
    assert "[2: cut at 6 tokens; --max-new-tokens]" in shown.stderr
    assert run(chat, *flags, "--quiet").stderr == ""


@pytest.mark.parametrize(("count", "more", "batch"), [(1, (), 1), (3, (), 3), (9, (), 8), (3, ("--batch", "2"), 2)])
def test_as_many_sequences_as_prompts_unless_told_otherwise(
    chat: Path, count: int, more: tuple[str, ...], batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[int] = []

    def opened(options: Any, *_: object) -> Any:
        plans.append(options.batch)
        raise PlanDoesNotFit("1 GB is missing")

    monkeypatch.setattr(running, "open_runner", opened)
    result = run(chat, *(["-p", "a"] * count), *more)
    assert (plans, result.exit_code) == ([batch], 3)
    assert ("or --batch 1, one prompt after another" in result.stderr) == (count > 1 and not more)


def test_a_batch_of_one_prompt_is_said_to_be_of_no_use(chat: Path) -> None:
    result = run(chat, "-p", "a", "--batch", "2")
    assert result.exit_code == 0
    assert result.stderr.startswith("[--batch 2: there is one prompt, and one answer; give --prompt several times]\n")
    assert "--batch" not in run(chat, "-p", "a", "--batch", "2", "--quiet").stderr


def test_a_system_message_and_a_file_of_messages_go_before_the_prompt(chat: Path, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    said = [{"role": "user", "content": "the fox"}, {"role": "assistant", "content": "jumps"}]
    file.write_text(json.dumps(said))
    with Runner(str(chat), gpus="none", cpu="1GB", context=64, progress=False) as runner:
        system, user = {"role": "system", "content": "a dog"}, {"role": "user", "content": "then"}
        cases: list[tuple[tuple[str, ...], list[Any]]] = [
            (("--system", "a dog", "-p", "then"), [[system, user]]),
            (("--messages", str(file), "-p", "then"), [[*said, user]]),
            (("--messages", str(file), "--system", "a dog", "-p", "then"), [[system, *said, user]]),
            (("--system", "a dog", "-p", "then", "-p", "then"), [[system, user]] * 2),
        ]
        for flags, prompts in cases:
            told = json.loads(run(chat, *flags, "--json").stdout)
            answers = told["answers"] if len(prompts) > 1 else [told]
            assert [each["token_ids"] for each in answers] == [
                list(runner.generate(each, 6).token_ids) for each in prompts
            ]
    file.write_text(json.dumps({"messages": said[:1]}))
    assert json.loads(run(chat, "--messages", str(file), "--json").stdout)["prompt_tokens"] > 3


def test_a_stop_text_ends_the_answer_before_it(chat: Path) -> None:
    whole = json.loads(run(chat, "-p", "the fox", "--json").stdout)["text"]
    stop = whole[2:4]
    told = json.loads(run(chat, "-p", "the fox", "--stop", "\x00 never", "--stop", stop, "--json").stdout)
    assert (told["text"], told["ended"]) == (whole[: whole.index(stop)], "stop_text")
    assert run(chat, "-p", "the fox", "--stop", stop, "--quiet").stdout == whole[: whole.index(stop)] + "\n"


def test_template_arguments_reach_the_template(chat: Path) -> None:
    plain, quick = (
        json.loads(run(chat, "-p", "a", "--json", *more).stdout)["prompt_tokens"]
        for more in ((), ("--template-arg", "quick=true"))
    )
    assert quick == plain + 1
    assert json.loads(run(chat, "-p", "a", "--json", "--template-arg", "quick=false").stdout)["prompt_tokens"] == plain


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("-p", "a", "--template-arg", "quik=1"), "does not read quik; it reads quick"),
        (("-p", "a", "--template-arg", "quick"), "write NAME=VALUE"),
        (("-p", "a", "--raw", "--template-arg", "quick=1"), "--raw does without"),
        (("-p", "a", "--raw", "--system", "b"), "--system: it is for the chat template"),
        (("-p", "a", "--system", " "), "--system: it is empty"),
        (("-p", "a", "-p", " "), "--prompt 2 of 2 is empty"),
        (("-p", "a", "--stop", ""), "--stop ''"),
        (("-p", "a", "--min-p", "2"), "min_p is 2.0"),
        (("-p", "a", "--repetition-penalty", "0"), "repetition_penalty is 0.0"),
        (("-p", "a", "-p", "b", "--prompt-file", "x"), "--prompt and --prompt-file: give one of them"),
        (("-p", "a", "--messages", "TALK", "--system", "b"), "has a system message: leave one of them out"),
        (("--messages", "TALK"), "there is no turn to answer at its end: add one with --prompt"),
        (("--messages", "NOWHERE"), "cannot be read"),
        (("-p", "a", "-p", "the dog " * 30), "the prompt has"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused_before_anything_is_loaded(
    chat: Path, tmp_path: Path, flags: tuple[str, ...], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bigrun.session import steps

    monkeypatch.setattr(steps, "load", lambda *_: pytest.fail("loaded"))
    talk = tmp_path / "talk.json"
    talk.write_text(json.dumps([{"role": "system", "content": "a"}, {"role": "assistant", "content": "b"}]))
    result = run(chat, *(flag.replace("TALK", str(talk)) for flag in flags))
    assert result.exit_code == 2
    assert says in result.stderr


def test_a_terminal_gets_no_control_characters_of_an_answer(
    answered: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = ("a\x1b[2J", "b\r", "\nc\r", "d\u202e")
    piped = "a\x1b[2Jb\nc\rd\u202e\n"  # the runner of click makes one character of the end of a line of Windows
    assert answered(pieces, 4, "stop_token")[0] == piped, "a pipe gets the text as it is"
    monkeypatch.setattr("bigrun.cli.generate._is_terminal", lambda: True)
    assert answered(pieces, 4, "stop_token")[0] == "a\\x1b[2Jb\nc\\rd\\u202e\n"

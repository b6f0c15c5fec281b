"""A conversation: each turn is answered from all that was said, and what was said before is not computed again."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bigrun import CallError, Runner
from bigrun.errors import RunError
from bigrun.session.conversation import Conversation
from bigrun.text.thinking import Piece
from support.checkpoints import llama

OPTIONS: dict[str, Any] = {"gpus": "none", "cpu": "100MB", "context": 128, "progress": False}
PLAIN = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
# as Qwen3's: thoughts of the last answer stay, those of earlier ones go; a switch that closes them at once
THINKS = (
    "{% for m in messages %}<{{ m.role }}>{% if m.reasoning_content and loop.last %}<think>{{ m.reasoning_content }}</think>"
    "{% endif %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
OPENS = "{% for m in messages %}<{{ m.role }}>{{ m.content.split('</think>')[-1] }}{% endfor %}<assistant><think>\n"


def made(folder: Path, template: str) -> Runner:
    llama(folder, tokenizer=True)
    (folder / "chat_template.jinja").write_text(template)
    return Runner(str(folder), **OPTIONS)


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    with made(tmp_path_factory.mktemp("model"), PLAIN) as runner:
        yield runner


def said(answer: Any) -> str:
    return "".join(piece.text for piece in answer)


def test_each_turn_is_answered_from_all_that_was_said(runner: Runner) -> None:
    talk = Conversation(runner, max_new_tokens=8)
    messages: list[dict[str, Any]] = []
    for turn in ("the fox", "a dog", "then"):
        answer = talk.say(turn)
        text = said(answer)
        messages.append({"role": "user", "content": turn})
        assert text == runner.generate(messages, 8).text
        messages.append({"role": "assistant", "content": text})
        assert talk.messages == messages
        assert talk.last is answer.stats


def test_a_turn_takes_up_what_the_one_before_it_left(runner: Runner) -> None:
    talk = Conversation(runner, max_new_tokens=8)
    runner.executor.clear(0)
    first = talk.say("the quick brown fox")
    said(first)
    second = talk.say("jumps")
    said(second)
    assert first.stats.reused_tokens == 0
    assert second.stats.reused_tokens >= first.stats.prompt_tokens
    assert second.stats.prompt_tokens > first.stats.prompt_tokens + 8 - 1


def test_sampling_and_stops_are_those_of_the_conversation(runner: Runner) -> None:
    talk = Conversation(runner, max_new_tokens=12, sampling={"temperature": 2.0, "seed": 5})
    first = said(talk.say("the fox"))
    assert first == runner.generate([{"role": "user", "content": "the fox"}], 12, temperature=2.0, seed=5).text
    stopped = Conversation(runner, max_new_tokens=12, sampling={"temperature": 2.0, "seed": 5}, stop=first[3])
    assert said(stopped.say("the fox")) == first[: first.index(first[3])]
    assert stopped.last is not None
    assert stopped.last.ended == "stop_text"


def test_the_system_message_is_the_first_one(runner: Runner) -> None:
    talk = Conversation(runner, [{"role": "user", "content": "the fox"}])
    assert talk.system is None
    talk.system = "a dog"
    assert talk.messages == [{"role": "system", "content": "a dog"}, {"role": "user", "content": "the fox"}]
    talk.system = "two dogs"
    assert talk.system == "two dogs"
    assert len(talk.messages) == 2
    talk.clear()
    assert talk.messages == [{"role": "system", "content": "two dogs"}]
    talk.system = None
    assert talk.messages == []
    talk.clear()


def test_an_answer_can_be_asked_for_again(runner: Runner) -> None:
    talk = Conversation(runner, max_new_tokens=12, sampling={"temperature": 2.0})
    with pytest.raises(CallError, match="no turn to answer again"):
        talk.again()
    first = said(talk.say("the fox"))
    assert said(talk.again()) != first
    assert [message["role"] for message in talk.messages] == ["user", "assistant"]
    assert talk.last is not None
    assert talk.last.reused_tokens == talk.last.prompt_tokens - 1, "the prompt is the same"


@pytest.mark.parametrize("pieces", [1, 3])
def test_an_answer_that_is_ended_is_kept_as_far_as_it_came(runner: Runner, pieces: int) -> None:
    talk = Conversation(runner, max_new_tokens=40)
    answer = talk.say("the fox")
    text = "".join(next(iter(answer)).text for _ in range(pieces))
    answer.close()
    answer.close()
    assert talk.messages[-1] == {"role": "assistant", "content": text}
    said(talk.say("a dog"))
    assert len(talk.messages) == 4


@pytest.mark.parametrize("begun", [False, True])
def test_an_answer_of_which_nothing_came_was_not_asked_for(
    runner: Runner, begun: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = Conversation(runner, max_new_tokens=8)
    text = said(talk.say("the fox"))
    before = list(talk.messages)
    monkeypatch.setattr(runner.executor, "step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    for ask in (lambda: talk.say("a dog"), talk.again):
        answer = ask()
        if begun:
            with pytest.raises(KeyboardInterrupt):
                said(answer)
        answer.close()
        assert talk.messages == before, "also the answer that was to be replaced"
    assert talk.messages[-1]["content"] == text


def test_what_is_done_next_ends_an_answer_that_is_not_at_its_end(runner: Runner) -> None:
    talk = Conversation(runner, max_new_tokens=8)
    first = talk.say("the fox")
    came = next(iter(first)).text
    second = said(talk.say("a dog"))
    assert [message["content"] for message in talk.messages] == ["the fox", came, "a dog", second]
    first.close()
    assert said(first) == ""
    assert len(talk.messages) == 4, "it is over for the conversation"
    third = talk.say("then")
    next(iter(third))
    talk.clear()
    third.close()
    assert talk.messages == []


def test_stop_texts_are_looked_for_in_the_answer_and_not_in_thoughts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with made(tmp_path, THINKS) as runner:
        model = Says(runner, monkeypatch)
        talk = Conversation(runner, stop=["END", "hm"])
        model.text = "<think>hm, END?</think>It jumps. EN EN"
        assert said(talk.say("the fox")) == "hm, END?It jumps. EN EN"
        model.text = "<think>hm</think>It jumps. END of it"
        answer = talk.say("the fox")
        assert said(answer) == "hmIt jumps. "
        assert answer.stats.ended == "stop_text"
        assert talk.messages[-1]["content"] == "It jumps. "
        model.text = "ENDE"
        assert said(talk.say("the fox")) == ""
        assert talk.messages[-1] == {"role": "assistant", "content": ""}, "which the model meant"


def test_a_conversation_s_own_arguments_are_checked(runner: Runner) -> None:
    with pytest.raises(CallError, match="sampling has no temp; it has temperature"):
        Conversation(runner, sampling={"temp": 1})
    talk = Conversation(runner)
    for wrong in (5, b"a"):
        with pytest.raises(CallError, match="content that is a text"):
            talk.system = wrong  # type: ignore[assignment]
        with pytest.raises(CallError, match="content that is a text"):
            talk.say(wrong)  # type: ignore[arg-type]


def test_ctrl_c_within_an_answer_keeps_what_came(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    talk = Conversation(runner, max_new_tokens=40)
    answer = talk.say("the fox")
    first = next(iter(answer))
    with monkeypatch.context() as patch:
        patch.setattr(runner.executor, "step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            said(answer)
    assert talk.messages[-1] == {"role": "assistant", "content": first.text}
    assert said(talk.say("a dog"))


def test_a_turn_that_cannot_be_answered_is_taken_back(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    talk = Conversation(runner, max_new_tokens=4)
    said(talk.say("the fox"))
    before = list(talk.messages)
    with pytest.raises(CallError, match=r"the prompt has \d+ tokens and the context 128"):
        talk.say("the dog " * 90)
    assert talk.messages == before
    with monkeypatch.context() as patch:
        patch.setattr(runner.executor, "step", lambda *_: (_ for _ in ()).throw(RunError("logits are no numbers")))
        with pytest.raises(RunError):
            said(talk.say("a dog"))
    assert talk.messages == before
    said(talk.say("a dog"))
    assert len(talk.messages) == 4


def test_a_conversation_is_loaded_whole_or_not_at_all(runner: Runner) -> None:
    talk = Conversation(runner, max_new_tokens=4)
    said(talk.say("the fox"))
    before = list(talk.messages)
    for wrong, says in (
        ([{"role": "tool", "content": "a"}], "no tools"),
        ([{"role": "user"}], "message 1 has no content"),
        ([{"role": "user", "content": None}], "message 1 has no content"),
        ("the fox", "that is no conversation"),
        ({"role": "user", "content": "a"}, "that is no conversation"),
        ([["user", "a"]], "message 1 is no object"),
        (None, "that is no conversation"),
    ):
        with pytest.raises(CallError, match=says):
            talk.load(wrong)  # type: ignore[arg-type]
        assert talk.messages == before
    talk.load([{"role": "user", "content": "a dog"}])
    assert said(talk.again())
    talk.load([])
    assert talk.messages == []


# Thoughts


class Says:
    """A Runner whose model says a text, letter by letter; the last prompt is kept."""

    def __init__(self, runner: Runner, monkeypatch: pytest.MonkeyPatch):
        self.text, self.prompts = "", list[str]()
        real = runner.tokenizer.encode

        def encode(text: str, add_bos: bool = True) -> list[int]:
            self.prompts.append(text)
            return real(text, add_bos)

        def stream(*_: Any) -> Any:
            yield from self.text

        monkeypatch.setattr(runner.tokenizer, "encode", encode)
        monkeypatch.setattr("bigrun.session.generation._generate", stream)


def test_thoughts_are_told_apart_and_left_to_the_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with made(tmp_path, THINKS) as runner:
        model = Says(runner, monkeypatch)
        talk = Conversation(runner)
        model.text = "<think>\nhm, a fox\n</think>\n\nIt jumps."
        pieces = list(talk.say("the fox"))
        assert {piece.thinking for piece in pieces} == {True, False}
        assert "".join(p.text for p in pieces if p.thinking) == "hm, a fox"
        assert "".join(p.text for p in pieces if not p.thinking) == "It jumps."
        assert talk.messages[-1] == {"role": "assistant", "content": "It jumps.", "reasoning_content": "hm, a fox"}
        model.text = "Again."
        assert said(talk.say("then")) == "Again."
        assert model.prompts[-1] == "<user>the fox<assistant>It jumps.<user>then<assistant>"
        quick = Conversation(runner, template_args={"enable_thinking": False})
        model.text = "At once."
        assert said(quick.say("the fox")) == "At once."
        assert model.prompts[-1].endswith("<assistant><think>\n\n</think>\n\n")


def test_a_template_that_opens_thoughts_begins_inside_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with made(tmp_path, OPENS) as runner:
        model = Says(runner, monkeypatch)
        talk = Conversation(runner)
        model.text = "hm</think>Yes."
        assert "".join(p.text for p in talk.say("the fox") if p.thinking) == "hm"
        assert talk.messages[-1]["content"] == "Yes."
        model.text = "only thoughts"
        first, *_ = talk.say("a dog")
        assert first == Piece("o", True)
        assert talk.messages[-1] == {"role": "assistant", "content": "", "reasoning_content": "only thoughts"}
        assert "hm" not in model.prompts[-1]


def test_special_tokens_that_mark_thoughts_are_seen(tmp_path: Path) -> None:
    """`[THINK]` is a special token of Magistral's vocabulary, which text leaves out elsewhere."""
    template = "{% for m in messages %}{{ m.content }}{% endfor %}[THINK][/THINK]"
    with made(tmp_path, template) as runner:
        asked: list[Any] = []
        real = runner.tokenizer.stream
        runner.tokenizer.stream = lambda shown=(): asked.append(tuple(shown)) or real(shown)  # type: ignore
        said(Conversation(runner, max_new_tokens=2).say("the fox"))
        assert asked == [("[THINK]", "[/THINK]")]

"""Calls of the Python API that cannot be meant: bigrun's own error, which says what to write."""

import gc
import inspect
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bigrun
from bigrun import BigrunError, CallError, Runner, plan
from bigrun.session.calls import ADVICE, ELSEWHERE
from support.checkpoints import llama

OPTIONS: dict[str, Any] = {"gpus": "none", "cpu": "100MB", "context": 64, "progress": False}
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if quick %}!{% endif %}"
USER = {"role": "user", "content": "the fox"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    llama(path, tokenizer=True)
    (path / "chat_template.jinja").write_text(CHAT)
    return path


@pytest.fixture(scope="module")
def runner(model: Path) -> Iterator[Runner]:
    with Runner(str(model), **OPTIONS) as made:
        yield made


# Prompts


def test_a_prompt_is_text_ids_or_messages(runner: Any) -> None:
    messages = [USER]
    ids = runner.encode("the fox")
    assert runner.encode(messages) == ids
    answer = runner.generate("the fox", 5)
    for same in (messages, tuple(messages), ids, tuple(ids), np.array(ids), np.array(ids, np.uint16)):
        assert runner.generate(same, 5).token_ids == answer.token_ids, type(same)
        stream = runner.stream(same, 5)
        assert "".join(stream) == answer.text
    torch = pytest.importorskip("torch")
    assert runner.generate(torch.tensor(ids), 5).token_ids == answer.token_ids


def test_a_prompt_and_stops_may_be_read_once(runner: Any) -> None:
    """What is gone through to see what it is is what is used."""
    ids = runner.encode("the fox")
    answer = runner.generate(ids, 5)
    for once in (iter(ids), dict.fromkeys(ids).keys() if len(set(ids)) == len(ids) else iter(ids), iter([USER])):
        assert runner.generate(once, 5).token_ids == answer.token_ids
    assert runner.encode(message for message in [USER]) == ids
    lists = iter([iter([USER]), [USER]])
    assert [each.token_ids for each in runner.generate(lists, 5)] == [answer.token_ids] * 2
    stop = runner.generate("the fox", 12).text[4:6]
    ended = runner.generate(["the fox", "the fox"], 12, stop=(each for each in ["never", stop]))
    assert [each.stats.ended for each in ended] == ["stop_text"] * 2


def test_numbers_of_numpy_are_numbers(runner: Any) -> None:
    plain = runner.generate("the fox", 5, temperature=0.5, top_k=3, seed=4)
    numpy = runner.generate("the fox", np.int64(5), temperature=np.float32(0.5), top_k=np.int32(3), seed=np.uint64(4))
    assert numpy.token_ids == plain.token_ids


def test_numbers_that_python_does_not_write_are_refused_all_the_same(runner: Runner) -> None:
    with pytest.raises(CallError, match="token id int too large to write is outside"):
        runner.generate([10**5000])
    with pytest.raises(CallError, match="max_new_tokens int too large to write"):
        runner.generate("the fox", -(10**5000))


def test_a_template_gets_no_objects(runner: Runner) -> None:
    class Thing:
        def __str__(self) -> str:
            return "thing"

    with pytest.raises(CallError, match="message 1: what it has as 'tool' is not JSON"):
        runner.generate([{**USER, "tool": Thing()}])


def test_a_content_in_parts_of_text_is_their_text(runner: Runner) -> None:
    parts = [{"type": "text", "text": "the "}, {"type": "text", "text": "fox"}]
    assert runner.encode([{"role": "user", "content": parts}]) == runner.encode("the fox")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"context": "big"}, "context 'big': give a whole number"),
        ({"batch": "2"}, "batch '2': give a whole number"),
        ({"threads": 1.5}, "threads 1.5: give a whole number"),
        ({"threshold": "6"}, "threshold '6': give a number"),
        ({"skip": 5}, "skip 5: give names"),
        ({"plan": "nowhere.json"}, "nowhere.json"),
        ({"plan": 5}, "plan 5: give a Plan, or the file of one"),
        ({"weights": 8}, "weights 8: give a text"),
        ({"gpus": ["24GB"]}, "gpus .*: give a text"),
        ({"virtual": "yes"}, "virtual 'yes': give True or False"),
        ({"model_id": 5}, "model 5: give a text"),
    ],
    ids=str,
)
def test_an_option_of_another_type_is_refused_by_name(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(BigrunError, match=says):
        Runner(**{"gpus": "none", **wrong})


def test_one_name_to_skip_is_a_text_too(model: Path) -> None:
    with Runner(str(model), **OPTIONS, skip="down") as one, Runner(model, **OPTIONS, skip=["down"]) as other:  # type: ignore[arg-type]
        assert one.plan.storage.skip == other.plan.storage.skip == ("down",)


def test_messages_are_all_given_to_the_template(runner: Runner) -> None:
    talk: list[dict[str, Any]] = [
        {"role": "system", "content": "a dog"},
        USER,
        {"role": "assistant", "content": "jumps", "extra": None},
        USER,
    ]
    text = "<system>a dog<user>the fox<assistant>jumps<user>the fox"
    assert runner.encode(talk) == runner.tokenizer.encode(text, add_bos=False)
    assert runner.encode(talk, template_args={"quick": True}) == runner.tokenizer.encode(text + "!", add_bos=False)


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ([[5, 6, 7]], r"give ids\[0\]"),
        ([[5, 6], [7]], r"give ids\[0\]"),
        (np.array([[5, 6]]), r"give ids\[0\]"),
        ([], "list is empty"),
        ("", "prompt is empty"),
        (b"the fox", r"bytes is no prompt; decode it: prompt\.decode\(\)"),
        ([b"the fox"], r"list of bytes is no prompt; decode it"),
        (None, "NoneType is no prompt"),
        (5, "int is no prompt"),
        (5.5, "float is no prompt"),
        ([5.5, 6.5], "list of float is no prompt"),
        ([True], "list of bool is no prompt"),
        ([None], "list of NoneType is no prompt"),
        (np.array(5), "ndarray is no prompt"),
        (len, "builtin_function_or_method is no prompt"),
        (["the fox", 5], "one kind, and this one has text and token"),
        ([USER, "the fox"], "one kind, and this one has message and text"),
        ([USER, [USER]], "one kind, and this one has message and messages"),
        (USER, r"put it into a list, \[message\]"),
        ({"input_ids": [5]}, '"input_ids"'),
        ({"text": "the fox"}, "dict is no prompt"),
        ([{"content": "the fox"}], "message 1 has no role"),
        ([USER, {"role": "user"}], "message 2 has no content"),
        ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], "images and sound are not supported"),
        ([{"role": "user", "content": []}], "message 1 has no content that is a text"),
        ([400], "token id 400 is outside the vocabulary"),
        ([-1], "token id -1 is outside the vocabulary"),
        ([[]], "list of list is no prompt"),
        (Path("prompt.txt"), "PosixPath is no prompt"),
    ],
    ids=str,
)
def test_what_is_no_prompt_is_refused_with_what_to_give(runner: Runner, prompt: Any, says: str) -> None:
    for call in (runner.generate, runner.stream):
        with pytest.raises(CallError, match=says):
            call(prompt)


def test_a_stream_and_encode_are_of_one_prompt(runner: Any) -> None:
    with pytest.raises(CallError, match=r"one prompt is taken here: .* generate takes several"):
        runner.stream(["the fox", "a dog"])
    with pytest.raises(CallError, match="one prompt is taken here"):
        runner.encode(["the fox", "a dog"])


def test_a_model_without_a_chat_template_takes_no_messages(tmp_path: Path) -> None:
    llama(tmp_path, tokenizer=True)
    with Runner(str(tmp_path), **OPTIONS) as runner:
        with pytest.raises(CallError, match="no chat template"):
            runner.generate([USER])
        with pytest.raises(CallError, match=r"template argument 'quick': .* the model has none"):
            runner.generate("the fox", template_args={"quick": True})


def test_template_arguments_are_for_a_template_that_reads_them(runner: Runner) -> None:
    for wrong, says in (
        ({"quik": True}, "does not read quik; it reads quick"),
        ({"messages": []}, "cannot be set"),
        ({"quick": {1, 2}}, "not JSON"),
        (["quick"], "list is no dictionary"),
    ):
        with pytest.raises(CallError, match=says):
            runner.generate("the fox", template_args=wrong)  # type: ignore[arg-type]
    with pytest.raises(CallError, match="raw does without"):
        runner.generate("the fox", raw=True, template_args={"quick": True})
    with pytest.raises(CallError, match="token ids are taken as they are"):
        runner.generate([5], template_args={"quick": True})
    with pytest.raises(CallError, match="by the model's chat template alone"):
        runner.generate([USER], raw=True)


# Values


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens 0: give a whole number, at least 1"),
        ({"max_new_tokens": "12"}, "max_new_tokens '12': give a whole number"),
        ({"max_new_tokens": 2.0}, "max_new_tokens 2.0"),
        ({"max_new_tokens": True}, "max_new_tokens True"),
        ({"template_args": 5}, "int is no dictionary"),
        ({"temperature": -1}, "temperature is -1"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"top_p": 0}, "top_p is 0"),
        ({"min_p": 2}, "min_p is 2"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"seed": 0.5}, "seed is 0.5"),
        ({"stop": ["a", ""]}, "stop ''"),
        ({"stop": 3}, "stop 3"),
    ],
    ids=str,
)
def test_a_value_that_makes_no_sense_is_named_as_in_python(runner: Runner, wrong: dict[str, Any], says: str) -> None:
    for call in (runner.generate, runner.stream):
        for prompt in ("the fox", [5, 6]):
            with pytest.raises(CallError, match=says) as caught:
                call(prompt, **wrong)
            assert "--" not in str(caught.value)
    with pytest.raises(CallError, match=says):
        runner.generate(["the fox", "a dog"], **wrong)


# Keywords

SAID = [
    ("generate", {"max_tokens": 4}, r"^Runner\.generate has no max_tokens: it is max_new_tokens here$"),
    ("generate", {"max_new_token": 4}, r"no max_new_token; max_new_tokens\?$"),
    ("generate", {"do_sample": True}, r"no do_sample: temperature above 0 samples"),
    ("generate", {"stop_strings": ["a"]}, r"it is stop here$"),
    ("generate", {"streamer": None}, r"stream\(\) gives the pieces"),
    ("stream", {"num_predict": 4}, r"^Runner\.stream has no num_predict: it is max_new_tokens here$"),
    ("encode", {"add_special_tokens": False}, r"^Runner\.encode has no add_special_tokens; it takes prompt, raw"),
    ("logits", {"attention_mask": None}, r"^Runner\.logits has no attention_mask; it takes ids$"),
    (None, {"device_map": "auto"}, r"^Runner has no device_map: the plan says what goes where"),
    (None, {"model": "x"}, r"^Runner has no model: it is model_id here$"),
    ("generate", {"temp": 1}, r"no temp: it is temperature here$"),
    (None, {"n_ctx": 4096}, r"^Runner has no n_ctx: it is context here$"),
    (None, {"load_in_8bit": True}, r'weights="int8" is the default$'),
    (None, {"trust_remote_code": True}, r"code of a model is never run$"),
    (None, {"gpu": "24GB"}, r"no gpu; gpus\?$"),
    (None, {"zzz": 1}, r"no zzz; it takes model_id, max_memory"),
]


@pytest.mark.parametrize(("method", "keywords", "says"), SAID, ids=str)
def test_a_keyword_of_another_library_is_told_what_it_is_here(
    runner: Runner, method: str | None, keywords: dict[str, Any], says: str
) -> None:
    call: Callable[..., Any] = Runner if method is None else getattr(runner, method)
    with pytest.raises(CallError, match=says):
        call("the fox", **keywords)


def test_plan_is_checked_alike() -> None:
    with pytest.raises(CallError, match=r"^plan has no n_ctx: it is context here$"):
        plan("llama-2-7b", n_ctx=10)  # type: ignore[call-overload, call-arg, unused-ignore]
    with pytest.raises(CallError, match=r"^plan: too many positional arguments; it takes model, gpus"):
        plan(*(["llama-2-7b"] + [None] * 20))  # type: ignore[arg-type]
    assert plan("llama-2-7b", gpus="24GB", host="none").fits


def test_arguments_that_are_missing_or_too_many_are_refused_too(runner: Runner) -> None:
    with pytest.raises(CallError, match=r"^Runner\.generate: missing a required argument: 'prompt'; it takes prompt, "):
        runner.generate()  # type: ignore[call-overload]
    with pytest.raises(CallError, match=r"^Runner\.generate: too many positional arguments"):
        runner.generate("the fox", 4, False, 0.5)  # type: ignore[call-overload]
    with pytest.raises(CallError, match=r"^Runner: multiple values for argument 'model_id'"):
        Runner("a", model_id="b")  # type: ignore[misc]


def test_what_a_keyword_is_told_to_be_is_a_parameter() -> None:
    functions: list[Any] = [Runner.__init__, Runner.generate, Runner.stream, plan]
    taken = {name for function in functions for name in inspect.signature(function).parameters}
    assert set(ELSEWHERE.values()) <= taken
    assert not (ELSEWHERE.keys() | ADVICE.keys()) & (taken - {"model"})
    assert not ELSEWHERE.keys() & ADVICE.keys()


# Closed, and short


def test_a_stream_that_is_dropped_lets_the_runner_go(runner: Runner) -> None:
    gc.disable()
    try:
        for _ in runner.stream("the fox", 20):
            break
        assert runner.generate("a dog", 2).text is not None
    finally:
        gc.enable()


def test_streams_end_with_their_runner(model: Path) -> None:
    with Runner(str(model), **OPTIONS) as runner:
        stream = runner.stream("the fox", 20)
        first = next(stream)
        memory = runner.memories["cpu"]
    assert (first, memory.used_bytes) == (first, 0)
    with pytest.raises(CallError, match="is closed"):
        next(stream)
    with pytest.raises(CallError, match="is closed"):
        _ = runner.kernels


def test_decode_seconds_are_the_model_s_and_not_the_reader_s(runner: Runner) -> None:
    stream = runner.stream("the fox", 12)
    for _ in stream:
        time.sleep(0.05)
    assert stream.stats.decode_seconds < 12 * 0.05 / 2


def test_rows_of_logits_are_of_one_length(runner: Runner) -> None:
    with pytest.raises(CallError, match="rows of one length"):
        runner.logits([[5], [5, 6]])


def test_a_closed_runner_says_so(model: Path) -> None:
    runner = Runner(str(model), **OPTIONS)
    waiting = runner.stream("the fox")
    runner.close()
    runner.close()
    calls: list[Callable[[], Any]] = [
        lambda: runner.generate("the fox"), lambda: runner.generate(["the fox", "a"]), lambda: runner.stream([5]),
        lambda: runner.logits([[5]]), lambda: next(waiting),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(CallError, match="this Runner is closed and its memory given back: make another one"):
            call()
    with pytest.raises(CallError, match="is closed"), runner:
        pass


def test_a_stream_is_one_short_line(runner: Runner) -> None:
    stream = runner.stream("the fox", 2)
    prompt = stream.stats.prompt_tokens
    assert repr(stream) == f"Stream({prompt} + 0 tokens, not at its end)"
    list(stream)
    assert repr(stream) == f"Stream({prompt} + {len(stream.token_ids)} tokens, ended by {stream.stats.ended})"


def test_the_package_lists_what_is_meant_for_its_users() -> None:
    assert dir(bigrun) == sorted(bigrun.__all__)
    assert repr(plan("llama-2-7b", gpus="24GB", host="none")).count("\n") == 0

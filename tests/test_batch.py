"""Several prompts at a time: each answer is the one that its prompt has alone, in the order of the prompts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bigrun import CallError, Runner
from bigrun.session import inference
from support.checkpoints import llama

OPTIONS: dict[str, Any] = {"gpus": "none", "cpu": "100MB", "context": 128, "progress": False}
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    llama(path, tokenizer=True)
    (path / "chat_template.jinja").write_text(CHAT)
    return path


@pytest.fixture(scope="module")
def runner(model: Path) -> Iterator[Runner]:
    with Runner(str(model), batch=3, **OPTIONS) as made:
        yield made


@pytest.fixture(scope="module")
def single(model: Path) -> Iterator[Runner]:
    with Runner(str(model), **OPTIONS) as made:
        yield made


words = st.lists(
    st.sampled_from(["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog;", "then"]), min_size=1, max_size=25
).map(" ".join)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompts=st.lists(words, min_size=1, max_size=7), new=st.integers(1, 20), penalty=st.sampled_from([1.0, 1.3]))
def test_a_batch_answers_as_each_prompt_alone(
    runner: Runner, single: Runner, prompts: list[str], new: int, penalty: float
) -> None:
    together = runner.generate(prompts, new, raw=True, repetition_penalty=penalty)
    alone = [single.generate(prompt, new, raw=True, repetition_penalty=penalty) for prompt in prompts]
    for one, other in zip(together, alone, strict=True):
        assert (one.text, one.token_ids) == (other.text, other.token_ids)
        assert (one.stats.ended, one.stats.prompt_tokens) == (other.stats.ended, other.stats.prompt_tokens)
        assert one.stats.new_tokens == len(one.token_ids)
        assert one.stats.prefill_seconds > 0


def test_a_runner_of_one_sequence_takes_one_prompt_after_another(runner: Runner, single: Runner) -> None:
    prompts = ["the fox", "a dog", "over the lazy", "then"]
    noise: dict[str, Any] = {"temperature": 2.0, "seed": 5}
    one, three = single.generate(prompts, 12, **noise), runner.generate(prompts, 12, **noise)
    assert [each.token_ids for each in one] == [each.token_ids for each in three]
    assert {each.stats.seed for each in three} == {5}


def test_the_same_prompt_several_times_draws_different_answers(runner: Runner) -> None:
    answers = runner.generate(["the fox"] * 4, 12, raw=True, temperature=2.0)
    assert len({each.token_ids for each in answers}) == 4
    seeds = {each.stats.seed for each in answers}
    assert len(seeds) == 1
    again = runner.generate(["the fox"] * 4, 12, raw=True, temperature=2.0, seed=seeds.pop())
    assert [each.token_ids for each in again] == [each.token_ids for each in answers]
    assert (
        runner.generate("the fox", 12, raw=True, temperature=2.0, seed=again[0].stats.seed).token_ids
        == again[0].token_ids
    )


def test_conversations_are_a_batch_too(runner: Runner, single: Runner) -> None:
    turns = [
        [{"role": "user", "content": "the quick brown"}],
        [{"role": "system", "content": "a dog"}, {"role": "user", "content": "jumps"}],
    ]
    assert [each.token_ids for each in runner.generate(turns, 9)] == [
        single.generate(turn, 9).token_ids for turn in turns
    ]
    assert runner.generate([turns[0]], 9)[0].token_ids == runner.generate("the quick brown", 9).token_ids


def test_prompts_that_share_a_beginning_with_what_was_before_take_it_up(runner: Runner) -> None:
    """Whatever sequence has it."""
    prompts = ["the quick brown fox", "a lazy dog; then the", "jumps over"]
    runner.generate(prompts, 4, raw=True)
    again = runner.generate([prompts[2], prompts[0], prompts[1]], 4, raw=True)
    assert all(each.stats.reused_tokens == each.stats.prompt_tokens - 1 for each in again)


def test_full_contexts_and_stops_end_one_answer_and_not_the_others(runner: Runner, single: Runner) -> None:
    long = "dog " * 60
    prompts = [long, "the fox", long[:200], "a dog"]
    whole = single.generate("the fox", 30, raw=True).text
    stop = whole[5:8]
    together = runner.generate(prompts, None, raw=True, stop=stop)
    for prompt, answer in zip(prompts, together, strict=True):
        alone = single.generate(prompt, None, raw=True, stop=[stop])
        assert (answer.text, answer.token_ids, answer.stats.ended) == (alone.text, alone.token_ids, alone.stats.ended)
        assert stop not in answer.text
    assert together[1].stats.ended == "stop_text"
    assert together[1].text == whole[: whole.index(stop)]


def test_one_bad_prompt_is_named_and_nothing_is_computed(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "run_requests", lambda *_: pytest.fail("computed"))
    with pytest.raises(CallError, match=r"^prompt 2 of 3: the prompt has \d+ tokens and the context 128"):
        runner.generate(["a", "dog " * 200, "b"], raw=True)
    with pytest.raises(CallError, match=r"^prompt 3 of 3: the prompt is empty"):
        runner.generate(["a", "b", ""])


def test_a_batch_and_a_stream_do_not_share_the_runner(runner: Runner) -> None:
    stream = runner.stream("the fox", 9, raw=True)
    next(stream)
    with pytest.raises(CallError, match="another stream"):
        runner.generate(["a", "b"], raw=True)
    stream.close()
    assert len(runner.generate(["a", "b"], 2, raw=True)) == 2

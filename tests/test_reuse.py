"""What a request takes up from the one before: never another token than a fresh Runner's, and as much as can be."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bigrun import Runner
from bigrun.execute.kv_cache import PageTables, ring_slots, ring_tables
from bigrun.execute.prefix import CachedSequence
from bigrun.execute.sampling import Sampling
from bigrun.model.buffers import LONGEST_CHUNK, PAGE_TOKENS, pages_per_sequence, ring_pages
from bigrun.session.batch import run_requests
from bigrun.session.request import Request
from support.blocks import BLOCK
from support.checkpoints import llama, relative, write_tokenizer
from support.long import long, only

CONTEXT = 1200  # two whole chunks of a prompt, and some
KINDS: dict[str, dict[str, Any]] = {
    "cpu": {"gpus": "none"},
    "int8 pages, three sequences": {"gpus": "none", "kv": "int8", "batch": 3},
    "virtual": {"gpus": "2x8MB", "virtual": True},
    "llm.int8": {"gpus": "none", "mode": "llm.int8"},
    "gpu": {"gpus": "1x100MB", "kernels": "reference"},
    "windows": {"gpus": "none"},
    "windows, gpu": {"gpus": "1x100MB", "kernels": "reference"},
}
WINDOW, RING = 100, 640  # tokens that the second layer looks back, and that its pages hold


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    llama(path, context=CONTEXT, tokenizer=True)
    return path


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("windowed")
    windows = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}
    relative(path, "qwen2", max_position_embeddings=CONTEXT, **windows)
    write_tokenizer(path)
    return path


@pytest.fixture(scope="module", params=only(KINDS, quick=KINDS.keys() - {"windows, gpu"}))
def pair(request: pytest.FixtureRequest, model: Path, windowed: Path) -> Iterator[tuple[Runner, Callable[..., Any]]]:
    """(a Runner that lives on, what asks one whose sequences were forgotten)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BIGRUN_GPU", "emulate")
        options = {"cpu": "100MB", "context": CONTEXT, "progress": False, **KINDS[request.param]}
        folder = str(windowed if request.param.startswith("windows") else model)
        with Runner(folder, **options) as runner, Runner(folder, **options) as other:

            def fresh(*args: Any, **kwargs: Any) -> Any:
                for sequence in range(other.plan.batch):
                    other.executor.clear(sequence)
                return other.generate(*args, **kwargs)

            yield runner, fresh


token = st.integers(3, 319)
turn = st.tuples(
    st.floats(0, 1.2),  # where it parts from what was said before; from 1 on it does not
    st.one_of(st.lists(token, min_size=1, max_size=40), st.integers(1, 620)),  # what is said then, or how much of it
    st.integers(1, 12),
    st.sampled_from([{}, {"temperature": 1.5, "seed": 3}, {"repetition_penalty": 1.3}]),
)


def prompt_after(said: list[int], at: float, more: Any) -> list[int]:
    added = more if isinstance(more, list) else np.random.default_rng(more).integers(3, 320, more).tolist()
    return [*said[: int(at * len(said)) if at < 1 else len(said)], *added][: CONTEXT - 20]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns=st.lists(turn, min_size=2, max_size=5))
def test_every_turn_is_a_fresh_runner_s(pair: tuple[Runner, Callable[..., Any]], turns: list[Any]) -> None:
    runner, fresh = pair
    said: list[int] = []
    for at, more, new, sampling in turns:
        prompt = prompt_after(said, at, more)
        answer = runner.generate(prompt, new, **sampling)
        assert answer.token_ids == fresh(prompt, new, **sampling).token_ids
        assert 0 <= answer.stats.reused_tokens < len(prompt) == answer.stats.prompt_tokens
        said = [*prompt, *answer.token_ids]


def long_prompt(length: int) -> list[int]:
    return np.random.default_rng(length).integers(3, 320, length).tolist()


def test_as_much_is_taken_up_as_a_fresh_runner_would_have_computed_so(
    pair: tuple[Runner, Callable[..., Any]], request: pytest.FixtureRequest
) -> None:
    """Everything but the last token where a token's arithmetic is its own; else whole chunks of what was a prompt."""
    runner, _ = pair
    chunk = runner.plan.prefill_chunk_tokens
    assert chunk == 512
    whole = runner.executor.repeatable
    assert whole == (request.node.callspec.params["pair"] not in ("llm.int8", "gpu", "windows, gpu"))
    runner.executor.clear(0)
    prompt = long_prompt(1040)
    first = runner.generate(prompt, 8)
    assert first.stats.reused_tokens == 0
    assert runner.generate(prompt, 8).stats.reused_tokens == (1039 if whole else 1024)
    said = [*prompt, *first.token_ids]
    assert runner.generate([*said, 5, 6], 3).stats.reused_tokens == (len(said) - 1 if whole else 1024)
    assert runner.generate([*prompt[:700], 5, 6], 3).stats.reused_tokens == (700 if whole else 512)
    assert runner.generate([4, *prompt[1:]], 1).stats.reused_tokens == (0 if prompt[0] != 4 else 1039)


def test_what_was_an_answer_is_computed_as_a_prompt_where_the_phases_differ(model: Path) -> None:
    """A short prompt's answer crosses the end of a chunk: nothing of that chunk may stay."""
    with Runner(str(model), gpus="none", cpu="100MB", context=CONTEXT, mode="llm.int8", progress=False) as runner:
        prompt = long_prompt(500)
        answer = runner.generate(prompt, 40)
        said = [*prompt, *answer.token_ids]
        follow = runner.generate([*said, 7], 10)
        assert follow.stats.reused_tokens == 0
        runner.executor.clear(0)
        assert runner.generate([*said, 7], 10).token_ids == follow.token_ids


def test_an_answer_that_was_broken_off_leaves_what_was_computed(pair: tuple[Runner, Callable[..., Any]]) -> None:
    runner, fresh = pair
    runner.executor.clear(0)
    prompt = long_prompt(60)
    stream = runner.stream(prompt, 30)
    for _ in range(4):
        next(stream)
    stream.close()
    longer = [*prompt, *stream.token_ids, 9]
    answer = runner.generate(longer, 6)
    assert answer.token_ids == fresh(longer, 6).token_ids


@pytest.mark.parametrize("where", ["before", "after"])
def test_a_step_that_fails_leaves_nothing_behind(
    pair: tuple[Runner, Callable[..., Any]], where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Ctrl-C does in the middle of a prompt: its second chunk is not computed, or computed and not noted."""
    runner, fresh = pair
    runner.executor.clear(0)
    step, calls = runner.executor.step, []

    def failing(batch: Any) -> Any:
        calls.append(len(batch.ids))
        if len(calls) == 2 and where == "before":
            raise KeyboardInterrupt
        logits = step(batch)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return logits

    prompt = long_prompt(700)
    with monkeypatch.context() as patch:
        patch.setattr(runner.executor, "step", failing)
        with pytest.raises(KeyboardInterrupt):
            runner.generate(prompt, 5)
    answer = runner.generate(prompt, 5)
    assert answer.stats.reused_tokens == 512
    assert answer.token_ids == fresh(prompt, 5).token_ids


def test_logits_and_prompts_between_turns_change_nothing(pair: tuple[Runner, Callable[..., Any]]) -> None:
    runner, fresh = pair
    prompt = long_prompt(50)
    first = runner.generate(prompt, 5)
    runner.logits([prompt[:20]])
    assert runner.generate(prompt, 5).token_ids == first.token_ids == fresh(prompt, 5).token_ids


def test_what_a_ring_went_round_over_is_computed_again(windowed: Path) -> None:
    with Runner(str(windowed), gpus="none", cpu="100MB", context=CONTEXT, progress=False) as runner:
        prompt = long_prompt(1100)
        least = 1100 - RING + WINDOW - 1  # from here on, all that the next token looks back at is there
        for shared, kept in ((least, least), (least - 1, 0)):
            runner.executor.clear(0)
            runner.generate(prompt, 1)
            said = [*prompt[:shared], (prompt[shared] + 1) % 300, 5]
            follow = runner.generate(said, 8)
            assert follow.stats.reused_tokens == kept
            runner.executor.clear(0)
            assert runner.generate(said, 8).token_ids == follow.token_ids


# The books


@settings(max_examples=200)
@given(
    st.integers(1, 200),
    st.lists(st.tuples(st.integers(0, 1), st.booleans(), st.integers(1, LONGEST_CHUNK)), max_size=20),
)
def test_a_ring_holds_what_a_step_reads_and_keeps_says_what_is_left(window: int, moves: list[Any]) -> None:
    """Who wrote last in each place of two sequences' rings, beside what the books say."""
    context, block = 1500, replace(BLOCK, window=window)
    ring = ring_pages(block, context)
    tables, pages = ring_tables(ring, 2, pages_per_sequence(context)), PageTables(context, 2, [BLOCK, block])
    written = np.full((2 * ring * PAGE_TOKENS, 2), -1)

    def there(sequence: int, first: int, stop: int) -> bool:
        positions = np.arange(max(first, 0), stop)
        places = ring_slots(ring, positions, np.full(len(positions), sequence))
        return np.array_equal(written[places], np.stack([np.full(len(positions), sequence), positions], axis=1))

    for sequence, grows, count in moves:
        length = int(pages.lengths[sequence])
        if grows:
            positions, _ = pages.extend(sequence, min(count, context - length))
            slots = ring_slots(ring, positions, np.full(len(positions), sequence))
            pages_of = tables[sequence, positions // PAGE_TOKENS].astype(np.int64)
            assert np.array_equal(slots, pages_of * PAGE_TOKENS + positions % PAGE_TOKENS)
            written[slots] = np.stack([np.full(len(positions), sequence), positions], axis=1)
            assert there(sequence, length - window + 1, length + len(positions)), "all that the step's tokens look at"
        else:
            shorter = max(length - count, 0)
            pages.truncate(sequence, shorter if pages.keeps(sequence, shorter) else 0)
        for kept in range(0, int(pages.lengths[sequence]) + 1, 7):
            assert not pages.keeps(sequence, kept) or there(sequence, kept - window + 1, kept)


def test_an_interrupt_loses_no_page_and_gives_none_twice() -> None:
    pages = PageTables(PAGE_TOKENS * 4, 2)
    pages.extend(0, PAGE_TOKENS * 3)
    pages._free.pop()  # taken, and not yet in a table, when Ctrl-C came
    pages.truncate(0, PAGE_TOKENS)
    assert sorted(pages._free) == sorted(set(range(8)) - {int(pages.tables[0, 0])})
    pages._free += [int(pages.tables[0, 0])]  # as if given back while it is owned
    pages.truncate(0, PAGE_TOKENS)
    assert len(pages._free) == len(set(pages._free)) == 7


def test_a_sequence_that_is_truncated_gives_back_whole_pages() -> None:
    pages = PageTables(PAGE_TOKENS * 4, 2)
    _, slots = pages.extend(0, PAGE_TOKENS * 3 + 1)
    pages.truncate(0, PAGE_TOKENS * 2 + 1)
    assert pages.lengths[0] == PAGE_TOKENS * 2 + 1
    positions, again = pages.extend(0, PAGE_TOKENS)
    assert positions[0] == PAGE_TOKENS * 2 + 1
    assert np.array_equal(again[: PAGE_TOKENS - 1], slots[PAGE_TOKENS * 2 + 1 : PAGE_TOKENS * 3]), (
        "the page that was kept"
    )
    pages.truncate(0, PAGE_TOKENS * 10)
    assert pages.lengths[0] == PAGE_TOKENS * 3 + 1, "it cannot grow so"
    pages.truncate(0, 0)
    for sequence in (0, 1):
        pages.extend(sequence, PAGE_TOKENS * 4)
    assert sorted(pages.tables.ravel()) == list(range(8)), "every page is there once"


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 1), st.booleans(), st.integers(0, PAGE_TOKENS * 3)), max_size=30))
def test_no_page_is_lost_or_shared(moves: list[tuple[int, bool, int]]) -> None:
    pages = PageTables(PAGE_TOKENS * 3, 2)
    lengths = [0, 0]
    for sequence, grows, count in moves:
        if grows:
            count = min(count, PAGE_TOKENS * 3 - lengths[sequence])
            pages.extend(sequence, count)
            lengths[sequence] += count
        else:
            lengths[sequence] = min(lengths[sequence], count)
            pages.truncate(sequence, lengths[sequence])
        owned = [pages.tables[s, : -(-lengths[s] // PAGE_TOKENS)].tolist() for s in (0, 1)]
        assert pages.lengths.tolist() == lengths
        assert sorted([*owned[0], *owned[1], *pages._free]) == list(range(6))


def test_cached_tokens_are_reused_up_to_where_they_part() -> None:
    cached = CachedSequence()
    cached.append([1, 2, 3, 4], as_prompt=True)
    cached.append([5], as_prompt=False)
    cached.append([6, 7], as_prompt=True)  # after an answer it is no prompt's beginning
    assert (cached.ids, cached.prompt) == ([1, 2, 3, 4, 5, 6, 7], 4)
    cases = [([1, 2, 3], 2), ([1, 2, 9, 4], 2), ([9], 0), ([1], 0), ([1, 2, 3, 4, 5, 6, 7], 6), (list(range(1, 12)), 7)]
    assert [cached.reusable(ids, 3, True) for ids, _ in cases] == [shared for _, shared in cases]
    assert [cached.reusable(ids, 3, False) for ids, _ in cases] == [0, 0, 0, 0, 3, 3]
    cached.truncate(2)
    assert (cached.ids, cached.prompt) == ([1, 2], 2)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rounds=st.lists(
        st.lists(st.tuples(st.integers(0, 2), st.integers(1, 700)), min_size=1, max_size=4), min_size=1, max_size=3
    )
)
@pytest.mark.parametrize("kind", ["cpu", "llm.int8", long("gpu")])
def test_lists_of_prompts_reuse_what_any_sequence_has(
    model: Path, kind: str, rounds: list[list[tuple[int, int]]]
) -> None:
    """The first token of each, which depends on its prompt alone, also where decode's depend on the batch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BIGRUN_GPU", "emulate")
        options = {"cpu": "100MB", "context": CONTEXT, "progress": False, **KINDS[kind], "batch": 3}
        beginnings = [long_prompt(600 + seed) for seed in range(3)]
        with Runner(str(model), **options) as runner:
            for prompts in rounds:
                asked = [[*beginnings[which], *long_prompt(more)][: 300 + more] for which, more in prompts]
                requests = [Request(ids, 1, Sampling(), number) for number, ids in enumerate(asked)]
                together = dict(run_requests(runner, requests))
                for number, ids in enumerate(asked):
                    for sequence in range(3):
                        runner.executor.clear(sequence)
                    assert together[number].token_ids == runner.generate(ids, 1).token_ids


def test_a_list_gives_each_prompt_the_sequence_that_has_most_of_it(model: Path) -> None:
    a, b = long_prompt(40), long_prompt(50)
    with Runner(str(model), gpus="none", cpu="100MB", context=CONTEXT, batch=2, progress=False) as runner:

        def reused(*prompts: list[int]) -> list[int]:
            requests = [Request(ids, 1, Sampling(), number) for number, ids in enumerate(prompts)]
            ended = dict(run_requests(runner, requests))
            return [ended[number].stats.reused_tokens for number in range(len(prompts))]

        assert reused(a, b) == [0, 0]
        assert reused(b, a) == [49, 39]
        assert reused([3, 4, 5], a) == [0, 39]
        assert reused(a[:10], [*a, 7])[1] == 40, "the one with most to reuse first"

"""The Runner: text in, text out; batches, chunks and modes that do not change the answer."""

from collections.abc import Iterator

import numpy as np
import pytest

from bigrun import CallError, PlanDoesNotFit, Runner
from support.commands import run_python

PROMPT = "What is the capital of France?"


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    with Runner(context=256, batch=3, progress=False) as made:
        yield made


def test_a_real_model_answers(runner: Runner) -> None:
    generation = runner.generate(PROMPT, max_new_tokens=40)
    assert "Paris" in generation.text
    assert generation.stats.new_tokens == len(generation.token_ids) < 40, "it stops at its end token"
    assert runner.generate(PROMPT, max_new_tokens=40).token_ids == generation.token_ids


def test_streamed_pieces_are_the_generation(runner: Runner) -> None:
    stream = runner.stream("Write the numbers from one to ten, and some emoji.", max_new_tokens=48)
    pieces = list(stream)
    assert len(pieces) > 5
    whole = runner.generate("Write the numbers from one to ten, and some emoji.", max_new_tokens=48)
    assert "".join(pieces) == whole.text
    assert tuple(stream.token_ids) == whole.token_ids


def test_raw_leaves_the_chat_template_away(runner: Runner) -> None:
    assert len(runner.encode(PROMPT, raw=True)) < len(runner.encode(PROMPT))
    assert runner.generate("The capital of France is", max_new_tokens=3, raw=True).text.strip().startswith("Paris")


def test_sampling_depends_on_the_seed_alone(runner: Runner) -> None:
    texts = [runner.generate(PROMPT, 16, temperature=1.5, seed=seed).token_ids for seed in (1, 2, 1)]
    assert texts[0] == texts[2] != texts[1]


def test_logits_of_a_row_do_not_depend_on_its_neighbours_or_on_how_it_was_fed(runner: Runner) -> None:
    ids = np.arange(500, 620)
    whole = runner.logits(ids[None])[0]
    executor = runner.executor
    for sequence in range(3):
        executor.clear(sequence)
    # three sequences in one step: another text, the same text, the first half of it
    together = executor.forward({0: ids[::-1], 1: ids, 2: ids[:60]}, every=True)
    assert np.array_equal(together[1], whole)
    assert np.array_equal(together[2], whole[:60])
    # the rest of the half, token by token beside others: decode is prefill's arithmetic in exact mode
    for i in range(60, 70):
        step = executor.forward({2: ids[i : i + 1], 0: [5]})
        assert np.array_equal(step[2], whole[i])
    for sequence in range(3):
        executor.clear(sequence)


def test_generation_stops_where_the_context_ends() -> None:
    with Runner(context=40, progress=False) as small:
        generation = small.generate(list(range(100, 135)), max_new_tokens=100, raw=True)
        assert 35 + len(generation.token_ids) <= 41
        with pytest.raises(CallError, match=r"context"):
            small.generate("word " * 60)
        with pytest.raises(CallError, match="vocabulary"):
            small.generate([49152])


def test_a_closed_runner_gives_its_memory_back() -> None:
    made = Runner(context=64, progress=False)
    memory = made.memories["cpu"]
    assert memory.used_bytes > 100_000_000
    made.close()
    assert memory.used_bytes == 0


def test_what_does_not_fit_is_refused_before_anything_is_read() -> None:
    with pytest.raises(PlanDoesNotFit, match=r"missing .*cpu"):
        Runner(cpu="50MB", progress=False)


def test_a_torch_tensor_of_ids_gives_a_torch_tensor_of_logits(runner: Runner) -> None:
    torch = pytest.importorskip("torch")
    logits = runner.logits(torch.tensor([[1, 2, 3]]))
    assert isinstance(logits, torch.Tensor)
    assert logits.shape == (1, 3, 49152)


def test_running_needs_no_torch() -> None:
    code = (
        "import sys; from bigrun import Runner; r = Runner(progress=False, context=64); r.generate('Hi', 2);"
        "assert 'torch' not in sys.modules, 'torch'"
    )
    assert run_python(code).returncode == 0


def test_a_runner_s_kernels_share_the_pool_that_was_chosen() -> None:
    code = (
        "from bigrun import Runner; r = Runner(progress=False, context=64); r.generate('Hi', 2); import numba;"
        "from bigrun_kernels.cpu import threads; assert numba.threading_layer() == 'tbb' or not threads._open_tbb(),"
        "numba.threading_layer()"
    )
    assert run_python(code).returncode == 0


def test_two_runners_in_two_threads_answer_as_each_alone(runner: Runner) -> None:
    from concurrent.futures import ThreadPoolExecutor

    questions = (PROMPT, "Name a colour.")
    expected = [runner.generate(question, 12).token_ids for question in questions]
    with Runner(context=256, progress=False) as other, ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(r.generate, q, 12) for r, q in zip((runner, other), questions, strict=True)]
        assert [call.result(timeout=120).token_ids for call in calls] == expected


def test_an_int8_cache_answers_and_takes_half_the_memory(runner: Runner) -> None:
    with Runner(context=256, batch=3, kv="int8", progress=False) as small:
        assert "Paris" in small.generate(PROMPT, 40).text
        kept, whole = (r.memories["cpu"].by_kind["kv_cache"] for r in (small, runner))
    assert 0.5 < kept / whole < 0.54

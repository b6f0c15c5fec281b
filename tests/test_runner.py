"""The Runner: text in, text out; batches, chunks and modes that do not change the answer."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bigrun
from bigrun import CallError, Generation, PlanDoesNotFit, Runner
from bigrun.errors import RunError
from bigrun.execute.sampling import Sampling
from support.checkpoints import llama
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


DEVICES = {"cpu": {"gpus": "none"}, "gpu": {"gpus": "1x100MB", "kernels": "reference", "mode": "exact"}}


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with nothing that ends its answers."""
    path = tmp_path_factory.mktemp("endless")
    llama(path, tokenizer=True)
    (path / "generation_config.json").write_text("{}")
    config = json.loads((path / "tokenizer_config.json").read_text())
    (path / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "eos_token"}))
    return path


@pytest.fixture(params=DEVICES)
def small(request: pytest.FixtureRequest, endless: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Runner]:
    """A Runner of it on the CPU, or wholly on an emulated GPU, which chooses its tokens itself."""
    monkeypatch.setenv("BIGRUN_GPU", "emulate")

    def make(**options: Any) -> Runner:
        return Runner(str(endless), cpu="100MB", progress=False, **{**DEVICES[request.param], **options})

    return make


PIECE = list(range(100, 140))


@pytest.mark.parametrize("context", [1, 15, 16, 17, 40])
def test_a_context_holds_as_many_tokens_as_it_says_and_the_last_one_is_answered(
    small: Callable[..., Runner], context: int
) -> None:
    """The last token that is chosen is not fed, so it needs no place: a full context is answered with one token. Around 16
    tokens a page of keys and values ends."""
    with small(context=context) as runner, small(context=64) as roomy:
        for given in sorted({1, context // 2 + 1, context - 1, context} - {0}):
            room = context - given + 1
            said = runner.generate(PIECE[:given], max_new_tokens=1000)
            assert (len(said.token_ids), said.stats.new_tokens, said.stats.prompt_tokens) == (room, room, given)
            assert said.token_ids == roomy.generate(PIECE[:given], max_new_tokens=room).token_ids
            assert (
                runner.generate(PIECE[:given], max_new_tokens=room - 1 or 1).token_ids
                == said.token_ids[: room - 1 or 1]
            )
            assert runner.generate(PIECE[:given], max_new_tokens=room).token_ids == said.token_ids
        whole = runner.logits([PIECE[:context]])
        assert whole.shape == (1, context, 320)
        for refused in (runner.generate, lambda ids: runner.logits([ids])):
            with pytest.raises(CallError) as caught:
                refused((PIECE + PIECE)[: context + 1])
            assert (
                str(caught.value) == f"{context + 1} tokens do not fit the context of {context}: give a larger context"
            )
        assert np.array_equal(runner.logits([PIECE[:context]]), whole), "what is refused leaves nothing behind"


def test_a_prompt_of_text_leaves_room_for_an_answer(small: Callable[..., Runner]) -> None:
    with small(context=64) as runner:
        ids = runner.encode("the quick brown fox", raw=True)
    with small(context=len(ids) + 1) as runner:
        assert len(runner.generate("the quick brown fox", 100, raw=True).token_ids) == 2
    with small(context=len(ids)) as runner, pytest.raises(CallError) as caught:
        runner.generate("the quick brown fox", raw=True)
    words = f"the prompt has {len(ids)} tokens and the context {len(ids)}: "
    assert str(caught.value).startswith(words)


def test_beyond_the_context_the_executor_says_so(small: Callable[..., Runner]) -> None:
    with small(context=20) as runner:
        executor = runner.executor
        tokens = executor.generate(PIECE[:18], Sampling(), 1000)
        assert all(0 <= next(tokens) < 320 for _ in range(3))
        with pytest.raises(RunError, match=r"the context of 20\b.* a larger context"):
            next(tokens)
        executor.clear(0)
        executor.forward({0: PIECE[:20]})
        with pytest.raises(RunError, match=r"^21 tokens do not fit the context of 20\b"):
            executor.forward({0: PIECE[:1]})


HOT: dict[str, Any] = {"temperature": 2.0, "seed": 7}


@pytest.mark.parametrize("limits", [{}, {"top_k": 40}, {"top_p": 0.95}], ids=["all", "top_k", "top_p"])
def test_an_answer_goes_on_as_it_would_have_from_any_place_of_it(
    small: Callable[..., Runner], limits: dict[str, Any]
) -> None:
    """The noise of a token is its position's: tokens may be fed as a prompt, or chosen before, for all it knows."""
    with small(context=64) as runner:
        given = PIECE[:6]
        whole = list(runner.generate(given, 12, **HOT, **limits).token_ids)
        assert len(set(whole)) > 6, "noise"
        for place in (1, 2, 7, 11):
            rest = runner.generate(given + whole[:place], 12 - place, **HOT, **limits).token_ids
            assert list(rest) == whole[place:], place
        other = runner.generate(given, 12, **{**HOT, "seed": 8}, **limits).token_ids
        assert list(other) != whole


@pytest.mark.parametrize("given", [1, 6, 17])
def test_the_noise_of_each_token_is_its_position_s(
    small: Callable[..., Runner], given: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first token that is chosen stands behind the prompt: of 6 tokens, at 0 to 5, it is number 6."""
    drawn: list[tuple[int, int, int]] = []

    def uniform(seed: int, sequence: int, position: int) -> float:
        drawn.append((seed, sequence, position))
        return real(seed, sequence, position)

    from bigrun.execute import gpu_sampling, sampling

    real = sampling.uniform
    for module in (sampling, gpu_sampling):
        monkeypatch.setattr(module, "uniform", uniform)
    with small(context=64) as runner:
        runner.generate(PIECE[:given], 9, **HOT)
        assert drawn[:9] == [(7, 0, given + i) for i in range(9)]
        assert len(drawn) <= 10  # a GPU is one token ahead


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


# In a notebook


def test_a_runner_and_a_generation_are_one_short_line(tiny: Path) -> None:
    with Runner(str(tiny), gpus="none", cpu="1GB", context=64, progress=False) as made:
        assert repr(made) == "Runner(tiny: int8 on cpu, 64 tokens of context)"
        said = made.generate([1, 2, 3], 5)
        assert repr(said) == f"Generation({said.text!r}, {len(said.token_ids)} tokens, ended by {said.stats.ended})"
    assert repr(made) == "Runner(tiny: int8 on cpu, 64 tokens of context, closed)"
    assert repr(Runner.__new__(Runner)) == "Runner(not loaded)", "as in a traceback of a construction that fails"
    long = Generation("a" * 1000, (1,) * 400, said.stats)
    assert len(repr(long)) < 120
    assert "…" in repr(long)


def test_the_package_shows_what_it_has_without_importing_it() -> None:
    done = run_python("import sys, bigrun; print(*dir(bigrun)); print('numba' in sys.modules, 'torch' in sys.modules)")
    names, imported = done.stdout.splitlines()
    assert {*bigrun.__all__, "Runner", "plan"} <= set(names.split())
    assert imported == "False False"
    assert all(hasattr(bigrun, name) for name in dir(bigrun))

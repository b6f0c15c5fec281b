"""Sampling follows the softmax, keeps to its support, and draws by seed, sequence and position alone."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest

import bigrun.execute.sampling as sampling_module
from bigrun.errors import CallError, RunError
from bigrun.execute.sampling import Sampling, candidates, choose, seen_tokens


@pytest.fixture(scope="module", autouse=True)
def each_draw_once() -> Iterator[None]:
    """The same draws are wanted again and again, for other settings: each is made by the real generator, once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling_module, "uniform", cache(sampling_module.uniform))
        yield


LOGITS = np.array([0.5, 2.0, -1.0, 2.0, -math.inf, 1.0, 0.0, -30.0], np.float32)
DRAWS = 20_000


def softmax(logits: np.ndarray, temperature: float) -> np.ndarray:
    weights = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    return weights / weights.sum()


def frequencies(sampling: Sampling, logits: np.ndarray = LOGITS, draws: int = DRAWS) -> np.ndarray:
    counts = np.bincount([choose(logits, sampling, 3, place) for place in range(draws)], minlength=logits.size)
    return counts / draws


def support(sampling: Sampling, logits: np.ndarray = LOGITS) -> set[int]:
    return set(np.flatnonzero(frequencies(sampling, logits, 1000)).tolist())  # none that is wanted is below 1 in 10


def test_greedy_takes_the_largest_and_the_lowest_index_of_equals() -> None:
    assert choose(LOGITS, Sampling(), 0, 0) == 1
    assert choose(LOGITS[::-1].copy(), Sampling(seed=9), 5, 7) == 4


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_draws_follow_the_softmax(temperature: float) -> None:
    expected = softmax(LOGITS, temperature)
    shares = frequencies(Sampling(temperature=temperature, seed=1))
    # Five standard deviations of a count; the draws are fixed by the seed, so this cannot flicker.
    assert np.all(np.abs(shares - expected) <= 5 * np.sqrt(expected * (1 - expected) / DRAWS) + 1e-12)
    assert shares[4] == 0  # barred


def test_top_k_draws_from_the_k_largest_and_keeps_their_ratios() -> None:
    shares = frequencies(Sampling(temperature=1.0, top_k=3, seed=1))
    expected = np.where(np.isin(np.arange(8), [1, 3, 5]), softmax(LOGITS, 1.0), 0)
    assert np.allclose(shares, expected / expected.sum(), atol=0.02)
    assert set(np.flatnonzero(shares).tolist()) == {1, 3, 5}


def test_top_k_breaks_ties_at_its_edge_for_the_lowest_index() -> None:
    level = np.zeros(100, np.float32)
    assert support(Sampling(temperature=1.0, top_k=2), level) == {0, 1}
    assert support(Sampling(temperature=1.0, top_k=1)) == {1}


@pytest.mark.parametrize("top_k", [8, 9, 10**6])
def test_top_k_of_the_whole_vocabulary_limits_nothing(top_k: int) -> None:
    limited, free = Sampling(temperature=1.5, top_k=top_k), Sampling(temperature=1.5)
    assert [choose(LOGITS, limited, 0, n) for n in range(200)] == [choose(LOGITS, free, 0, n) for n in range(200)]


@pytest.mark.parametrize(
    ("top_p", "kept"), [(1e-9, {0}), (0.4, {0}), (0.5, {0}), (0.51, {0, 2}), (0.76, {0, 2, 1}), (0.9, {0, 1, 2, 3})]
)
def test_top_p_keeps_the_fewest_likeliest_that_reach_it(top_p: float, kept: set[int]) -> None:
    logits = np.log(np.array([0.5, 0.125, 0.25, 0.125], np.float64)).astype(np.float32)
    assert support(Sampling(temperature=1.0, top_p=top_p), logits) == kept


def test_top_p_of_a_large_vocabulary_is_that_of_a_full_sort() -> None:
    logits = np.random.default_rng(0).normal(0, 3, 5000).astype(np.float32)
    chances = softmax(logits, 0.8)
    order = np.argsort(-chances, kind="stable")
    for top_p in (0.1, 0.5, 0.9, 0.99):
        nucleus = set(order[: 1 + int(np.searchsorted(np.cumsum(chances[order]), top_p))].tolist())
        drawn = {choose(logits, Sampling(temperature=0.8, top_p=top_p), 0, n) for n in range(2000)}
        assert drawn <= nucleus
        assert len(nucleus) > 40 or drawn == nucleus


def test_top_p_counts_within_what_top_k_left() -> None:
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.1])).astype(np.float32)
    # Of the top two the first holds 4/7 = 0.571; of all four, 0.4.
    assert support(Sampling(temperature=1.0, top_k=2, top_p=0.55), logits) == {0}
    assert support(Sampling(temperature=1.0, top_p=0.55), logits) == {0, 1}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.7}, {"temperature": 1.3, "top_k": 12}, {"temperature": 0.9, "top_p": 0.8},
        {"temperature": 1.5, "min_p": 0.2}, {"temperature": 1.0, "min_p": 1.0}, {"temperature": 1.0, "repetition_penalty": 1.4},
        {"temperature": 0.8, "repetition_penalty": 0.7}, {"temperature": 1.1, "top_k": 40, "top_p": 0.9, "min_p": 0.05},
        {"temperature": 0.6, "top_k": 30, "top_p": 0.95, "min_p": 0.02, "repetition_penalty": 1.2},
    ],
    ids=str,
)  # fmt: skip
def test_the_candidates_and_their_probabilities_are_transformers(settings: dict[str, Any], seed: int) -> None:
    """The same settings, as its `generate` applies them: every candidate, and what it is drawn with."""
    torch = pytest.importorskip("torch")
    from transformers import generation

    random = np.random.default_rng(seed)
    logits, ids = random.normal(0, 4, 200).astype(np.float32), random.integers(0, 200, 30)
    wanted = Sampling(**settings)
    scores, said = torch.tensor(logits)[None], torch.tensor(ids)[None]
    if wanted.repetition_penalty != 1:
        scores = generation.RepetitionPenaltyLogitsProcessor(wanted.repetition_penalty)(said, scores)
    scores = generation.TemperatureLogitsWarper(wanted.temperature)(said, scores)
    if wanted.top_k:
        scores = generation.TopKLogitsWarper(wanted.top_k)(said, scores)
    if wanted.top_p < 1:
        scores = generation.TopPLogitsWarper(wanted.top_p)(said, scores)
    if wanted.min_p:
        scores = generation.MinPLogitsWarper(wanted.min_p)(said, scores)
    theirs = torch.softmax(scores.double(), -1)[0].numpy()

    ours = np.zeros(200)
    penalised = sampling_module._penalised(logits, seen_tokens(ids.tolist(), 200), wanted.repetition_penalty)
    kept, weights = candidates(penalised, wanted)
    ours[kept] = weights / weights.sum()
    assert np.array_equal(ours > 0, theirs > 0)
    assert np.allclose(ours, theirs, rtol=1e-4, atol=1e-7)


def test_a_penalty_is_for_greedy_choices_too_and_leaves_the_logits_as_they_are() -> None:
    logits = np.array([2.0, 1.5, -0.1, -3.0], np.float32)
    seen = seen_tokens([0, 2], 4)
    for penalty, best in ((1.0, 0), (1.2, 0), (1.4, 1), (0.01, 0)):
        assert choose(logits, Sampling(repetition_penalty=penalty), 0, 0, seen) == best
    assert choose(-logits, Sampling(repetition_penalty=0.001), 0, 0, seen_tokens([0, 1], 4)) == 3
    assert logits.tolist() == pytest.approx([2.0, 1.5, -0.1, -3.0])
    with pytest.raises(RunError, match="inf"):
        choose(np.array([1e37, 0], np.float32), Sampling(repetition_penalty=1e-6), 0, 0, seen_tokens([0], 2))


def test_the_draw_depends_on_seed_sequence_and_position_alone() -> None:
    logits = np.zeros(1 << 16, np.float32)
    draw = {
        (seed, sequence, position): choose(logits, Sampling(temperature=1.0, seed=seed), sequence, position)
        for seed in (0, 1, (1 << 64) - 1)
        for sequence in range(4)
        for position in range(16)
    }
    assert len(set(draw.values())) > 0.99 * len(draw)  # all differ, but for chance
    sampling_module.uniform.cache_clear()  # type: ignore[attr-defined]  # and are drawn anew
    for (seed, sequence, position), token in reversed(draw.items()):
        assert choose(logits, Sampling(temperature=1.0, seed=seed), sequence, position) == token


def test_the_draw_is_the_same_in_every_version() -> None:
    # Written down once: a change here changes what every seed means to users.
    logits = np.zeros(1000, np.float32)
    assert [choose(logits, Sampling(temperature=1.0, seed=42), 1, n) for n in range(5)] == [443, 800, 153, 749, 34]


@pytest.mark.parametrize(("noise", "token"), [(0.0, 1), (1 - 2.0**-53, 2)], ids=["least", "most"])
def test_the_ends_of_the_noise_draw_no_barred_token(noise: float, token: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bigrun.execute.sampling.uniform", lambda *_: noise)
    logits = np.array([-math.inf, 0.3, 0.1, -math.inf], np.float32)
    assert choose(logits, Sampling(temperature=1.0), 0, 0) == token


def test_extreme_temperatures_and_logits_stay_in_range() -> None:
    wild = np.array([-3e38, 3e38, -math.inf, 2.9e38], np.float32)
    for temperature in (1e-300, 1e-9, 1e30):
        for position in range(50):
            assert choose(wild, Sampling(temperature=temperature, top_p=0.999), 0, position) != 2
    assert choose(wild, Sampling(temperature=1e-300), 0, 0) == 1
    one = np.array([5.0], np.float32)
    assert choose(one, Sampling(temperature=1.0, top_k=1, top_p=0.1), 0, 0) == 0


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0, top_k=2)], ids=["greedy", "sampled"])
@pytest.mark.parametrize(
    ("bad", "says"), [(math.nan, "nan .first at token 6"), (math.inf, "inf .first at token 6")], ids=["nan", "inf"]
)
def test_logits_that_are_not_numbers_are_an_error(sampling: Sampling, bad: float, says: str) -> None:
    logits = LOGITS.copy()
    logits[6] = bad
    with pytest.raises(RunError, match=f"position 11 of sequence 2 are {says}"):
        choose(logits, sampling, 2, 11)


def test_logits_of_no_use_are_an_error() -> None:
    with pytest.raises(RunError, match="all -inf"):
        choose(np.full(4, -math.inf, np.float32), Sampling(temperature=1.0), 0, 0)
    with pytest.raises(RunError, match="shape"):
        choose(np.zeros((2, 4), np.float32), Sampling(), 0, 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1), ("temperature", math.nan), ("temperature", math.inf), ("temperature", "1"),
        ("temperature", True), ("top_k", -1), ("top_k", 1.5), ("top_p", 0.0), ("top_p", 1.1), ("top_p", math.nan),
        ("min_p", -0.1), ("min_p", 1.1), ("min_p", math.nan), ("min_p", "0"), ("repetition_penalty", 0.0),
        ("repetition_penalty", -1.0), ("repetition_penalty", math.inf), ("repetition_penalty", 1e-7),
        ("repetition_penalty", 10**400), ("temperature", 10**400), ("repetition_penalty", True),
        ("seed", -1), ("seed", 1 << 64), ("seed", 0.5),
    ],
)  # fmt: skip
def test_wrong_settings_are_the_callers_error(name: str, value: Any) -> None:
    with pytest.raises(CallError, match=name):
        Sampling(**{name: value})


def test_a_number_that_python_does_not_write_is_refused_all_the_same() -> None:
    with pytest.raises(CallError, match="seed is int too large to write"):
        Sampling(seed=10**5000)


def test_a_small_top_k_does_not_sort_the_vocabulary() -> None:
    logits = np.random.default_rng(1).normal(size=1 << 20).astype(np.float32)

    def seconds(work: Any) -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    picks = min(seconds(lambda: choose(logits, Sampling(temperature=1.0, top_k=40), 0, 0)) for _ in range(3))
    sorts = min(seconds(lambda: np.argsort(logits)) for _ in range(3))
    assert picks < sorts

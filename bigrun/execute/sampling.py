"""The next token from the logits.

The noise is a pure function of seed, sequence and position: a sequence's tokens do not depend on what else is in the
batch, on the device, or on what was drawn before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from bigrun.errors import CallError, RunError, shortly

MOST = 1e6  # of a penalty: beyond any use, and what float32 can compute with


@dataclass(frozen=True)
class Sampling:
    """How to choose: `temperature` 0 is greedy; `top_k` 0, `top_p` 1, `min_p` 0 and `repetition_penalty` 1 change nothing.

    In the order of transformers: the penalty, which is for greedy choices too, the temperature, top_k, top_p of what top_k
    left, renormalised, and min_p. The penalty divides the positive logits of tokens that the sequence has, and multiplies the
    negative ones (Keskar et al. 2019, section 4.1); min_p bars tokens of less than that share of the likeliest one's
    probability (Nguyen et al. 2024).
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        temperature, penalty = self._number("temperature"), self._number("repetition_penalty")
        self._check("temperature", "0 (greedy) or a positive number", 0 <= temperature < math.inf)
        self._check("top_k", "a whole number, 0 for no limit", self._whole("top_k") >= 0)
        self._check("top_p", "above 0 and at most 1", 0 < self._number("top_p") <= 1)
        self._check("min_p", "from 0 (no limit) to 1", 0 <= self._number("min_p") <= 1)
        form = "from a millionth to a million, 1 for no penalty"
        self._check("repetition_penalty", form, 1 / MOST <= penalty <= MOST)
        self._check("seed", "a whole number from 0 to 2**64 - 1", 0 <= self._whole("seed") < 1 << 64)

    def _number(self, name: str) -> float:
        """A field as Python's own number, which it becomes; NaN for what is none."""
        value = getattr(self, name)
        try:
            number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
        except OverflowError:
            number = math.nan
        if type(value) not in (int, float) and number == number:  # NumPy's
            object.__setattr__(self, name, number)
        return number

    def _whole(self, name: str) -> int:
        """A field as Python's own whole number, which it becomes; -1 for what is none."""
        value = getattr(self, name)
        if not isinstance(value, Integral) or isinstance(value, bool):
            return -1
        object.__setattr__(self, name, int(value))
        return int(value)

    def _check(self, name: str, form: str, is_so: bool) -> None:
        if not is_so:
            raise CallError(f"{name} is {shortly(getattr(self, name))}; it must be {form}")


def choose(
    logits: NDArray[np.float32], sampling: Sampling, sequence: int, position: int, seen: NDArray[np.bool_] | None = None
) -> int:
    """The token for `position` of `sequence`, from `logits` [vocabulary] float32.

    `seen` bool [vocabulary]: the tokens that the sequence has, for the penalty. Of equal logits the lowest index counts as the
    higher. -inf bars a token. Raises RunError if a logit is NaN or +inf, or if all are barred.
    """
    if logits.ndim != 1 or logits.size == 0:
        raise RunError(f"logits have the shape {logits.shape}; one token is chosen from [vocabulary]")
    best = int(np.argmax(logits))  # a NaN wins, wherever it is
    if not math.isfinite(logits[best]):
        fail(float(logits[best]), best, sequence, position)
    if sampling.repetition_penalty != 1 and seen is not None:
        logits = _penalised(logits, seen, sampling.repetition_penalty)
        best = int(np.argmax(logits))
        if logits[best] == math.inf:  # a penalty near 0
            fail(math.inf, best, sequence, position)
    if sampling.temperature == 0:
        return best
    kept, weights = candidates(logits, sampling)
    sums = np.cumsum(weights)
    # Strictly below the total, whatever the rounding, so that a token of weight 0 is never drawn.
    drawn = min(uniform(sampling.seed, sequence, position) * sums[-1], np.nextafter(sums[-1], 0))
    return int(kept[np.searchsorted(sums, drawn, side="right")])


def candidates(logits: NDArray[np.float32], sampling: Sampling) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The tokens that are drawn from, and the weight of each: its probability over that of the likeliest."""
    kept = _top_k(logits, sampling.top_k)
    with np.errstate(over="ignore"):  # a tiny temperature sends the losers to -inf, which is right
        scaled = (logits[kept].astype(np.float64) - float(logits.max())) / sampling.temperature
    weights = np.exp(scaled)
    if sampling.top_p < 1:
        kept, weights = _top_p(kept, weights, sampling.top_p)
    if sampling.min_p > 0:
        likely = weights >= sampling.min_p  # the likeliest one's is 1
        kept, weights = kept[likely], weights[likely]
    return kept, weights


def seen_tokens(ids: Sequence[int], vocabulary: int) -> NDArray[np.bool_]:
    """bool [vocabulary]: which tokens are among the `ids`."""
    seen = np.zeros(vocabulary, np.bool_)
    seen[np.asarray(ids, np.int64)] = True
    return seen


def _penalised(logits: NDArray[np.float32], seen: NDArray[np.bool_], penalty: float) -> NDArray[np.float32]:
    """The logits with those of the `seen` tokens made less likely, or for a penalty below 1 more; float32, as transformers."""
    result, factor = logits.copy(), np.float32(penalty)
    some = logits[seen]
    with np.errstate(over="ignore"):
        result[seen] = np.where(some < 0, some * factor, some / factor)
    return result


def fail(best: float, token: int, sequence: int, position: int) -> NoReturn:
    """RunError for logits of which the largest, at `token`, is no finite number."""
    what = "all -inf" if best == -math.inf else str(best)
    raise RunError(
        f"the logits at position {position} of sequence {sequence} are {what} (first at token {token}): the checkpoint is "
        "damaged or a layer overflowed; --weights float32 tells"
    )


def _top_k(logits: NDArray[np.float32], k: int) -> NDArray[np.intp]:
    """Indices of the k largest logits, ascending; linear in the vocabulary. 0, or k beyond it, keeps all."""
    if not 0 < k < logits.size:
        return np.arange(logits.size)
    least = np.partition(logits, logits.size - k)[logits.size - k]
    above = np.flatnonzero(logits > least)
    level = np.flatnonzero(logits == least)[: k - above.size]
    return np.sort(np.concatenate([above, level]))


def _top_p(
    kept: NDArray[np.intp], weights: NDArray[np.float64], top_p: float
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The fewest likeliest tokens whose probabilities reach `top_p`, likeliest first (Holtzman et al. 2020)."""
    total = weights.sum()
    # Tokens each below (1 - p) / n hold less than 1 - p together, so the rest reach p: only those are sorted.
    likely = np.flatnonzero(weights >= (1 - top_p) / weights.size * total)
    order = likely[np.argsort(-weights[likely], kind="stable")]
    count = 1 + int(np.searchsorted(np.cumsum(weights[order]), top_p * total))
    return kept[order[:count]], weights[order[:count]]


def uniform(seed: int, sequence: int, position: int) -> float:
    """A number in [0, 1) from Philox4x64-10 (Salmon et al. 2011) with the key (seed, sequence) and the counter `position`.

    From the raw bits, since numpy promises the same ones in every version for those only.
    """
    # The lowest word of the counter is numpy's own, to go on from. Lists would pass through float64 and lose bits.
    counter, key = np.array([0, position, 0, 0], np.uint64), np.array([seed, sequence], np.uint64)
    bits = np.random.Philox(counter=counter, key=key).random_raw()
    return (int(bits) >> 11) * 2.0**-53

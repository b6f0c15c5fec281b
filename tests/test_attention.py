"""Attention over a paged cache: softmax attention, whatever the pages, the chunks and the company of a token.

What a token may not look at is NaN here: pages that nobody owns, and the positions after its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional

from bigrun_kernels import reference
from bigrun_kernels.cpu.ops import CpuOps
from bigrun_kernels.ops import Pages

OPS = CpuOps()
PAGE, DIM = 64, 16
SCALE = DIM**-0.5
KV = {"float32": np.float32, "float16": np.uint16, "int8": np.int8}

kv_of = pytest.mark.parametrize("kv", KV)
heads_of = pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (6, 2), (5, 1)], ids=["equal", "grouped", "one"])


@dataclass
class Cache:
    """Pages for `count` sequences of at most `length` tokens, dealt to them in a shuffled order."""

    k: Pages
    v: Pages
    tables: np.ndarray
    heads: int
    slopes: np.ndarray
    window: int = 0

    def width(self) -> int:
        return (self.heads + 2 * self.k.values.shape[1]) * DIM

    def store(self, rows: np.ndarray, sequences: np.ndarray, positions: np.ndarray) -> None:
        slots = self.tables[sequences, positions // PAGE].astype(np.int64) * PAGE + positions % PAGE
        OPS.store(rows, self.heads * DIM, DIM, slots, self.k)
        OPS.store(rows, (self.heads + self.k.values.shape[1]) * DIM, DIM, slots, self.v)

    def attend(self, rows: np.ndarray, sequences: np.ndarray, positions: np.ndarray) -> np.ndarray:
        out = np.full((len(rows), self.heads * DIM), np.nan, np.float32)
        where = self.tables, sequences, positions
        OPS.attention(rows, self.heads, self.k, self.v, *where, self.slopes, SCALE, out, self.window)
        return out

    def step(
        self, rows: np.ndarray, sequences: Sequence[int] | np.ndarray, positions: Sequence[int] | np.ndarray
    ) -> np.ndarray:
        where = np.asarray(sequences, np.int64), np.asarray(positions, np.int64)
        self.store(rows, *where)
        return self.attend(rows, *where)


def make_cache(
    kv: str, heads: int, kv_heads: int, *, length: int, count: int = 1, alibi: bool = False, window: int = 0
) -> Cache:
    per_sequence = -(-length // PAGE)
    numbers = np.random.default_rng([length, count]).permutation(count * per_sequence + 3).astype(np.int32)
    nan = np.nan if kv == "float32" else 0x7E00
    shape = len(numbers), kv_heads, PAGE, DIM
    k, v = (pages(np.full(shape, nan if kv != "int8" else 77, KV[kv]), kv) for _ in range(2))
    slopes = 2.0 ** -np.arange(1, heads + 1, dtype=np.float32) if alibi else np.zeros(heads, np.float32)
    return Cache(k, v, numbers[3:].reshape(count, per_sequence), heads, slopes, window)


def normal(rows: int, cache: Cache, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, rows]).standard_normal((rows, cache.width()), np.float32)


def pages(values: np.ndarray, kv: str) -> Pages:
    """Poisoned scales where there are any."""
    return Pages(values, np.full(values.shape[:3] if kv == "int8" else 0, 0x7E00, np.uint16))


def as_torch(pages: Pages) -> torch.Tensor:
    values = torch.from_numpy(pages.values.view(np.float16) if pages.values.dtype == np.uint16 else pages.values)
    if not pages.scale.size:
        return values
    return values.float() * torch.from_numpy(pages.scale.view(np.float16)).float()[..., None]


def defined(cache: Cache, rows: np.ndarray, sequences: Sequence[int], positions: Sequence[int]) -> np.ndarray:
    """The reference, token by token."""
    pages, slopes = (as_torch(cache.k), as_torch(cache.v)), torch.from_numpy(cache.slopes)
    outputs = []
    for row, s, p in zip(rows, sequences, positions, strict=True):
        query, table = torch.from_numpy(row[: cache.heads * DIM]), torch.from_numpy(cache.tables[s])
        outputs.append(reference.attention(query, *pages, table, int(p), slopes, SCALE, cache.window))
    return torch.stack(outputs).numpy()


@kv_of
@heads_of
@pytest.mark.parametrize("alibi", [False, True], ids=["plain", "ALiBi"])
@pytest.mark.parametrize("length", [1, 63, 64, 65, 200])
def test_it_is_the_reference(kv: str, heads: int, kv_heads: int, alibi: bool, length: int) -> None:
    cache = make_cache(kv, heads, kv_heads, length=length, alibi=alibi)
    rows = normal(length, cache)
    got = cache.step(rows, [0] * length, range(length))
    some = [p for p in (0, 1, 62, 63, 64, 65, 127, 128, length - 1) if p < length]
    assert np.allclose(got[some], defined(cache, rows[some], [0] * len(some), some), rtol=0, atol=3e-6)


@kv_of
@heads_of
@pytest.mark.parametrize("alibi", [False, True], ids=["plain", "ALiBi"])
def test_it_is_torch_attention(kv: str, heads: int, kv_heads: int, alibi: bool) -> None:
    length = 130
    cache = make_cache(kv, heads, kv_heads, length=length, alibi=alibi)
    rows = normal(length, cache)
    parts = torch.from_numpy(rows).double().view(length, -1, DIM).transpose(0, 1)
    q, k, v = parts.split([heads, kv_heads, kv_heads])
    if kv == "float16":
        k, v = (part.half().double() for part in (k, v))
    elif kv == "int8":
        k, v = (q.double() * s.double()[..., None] for q, s in map(reference.quantise_vectors, (k.float(), v.float())))
    distance = torch.arange(length)[None, :] - torch.arange(length)[:, None]
    mask = torch.from_numpy(cache.slopes).double()[:, None, None] * distance
    mask = mask.masked_fill(distance > 0, -torch.inf)
    k, v = (part.repeat_interleave(heads // kv_heads, 0) for part in (k, v))
    expected = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=SCALE)
    got = cache.step(rows, [0] * length, range(length))
    assert np.allclose(got, expected.transpose(0, 1).flatten(1), rtol=0, atol=3e-6)


@kv_of
@heads_of
@pytest.mark.parametrize("window", [1, 5, 63, 64, 65, 100, 128, 129, 300])
def test_a_window_is_the_reference_s_and_chunks_change_no_bit(kv: str, heads: int, kv_heads: int, window: int) -> None:
    length = 280
    whole, parts = (make_cache(kv, heads, kv_heads, length=length, alibi=True, window=window) for _ in range(2))
    rows = normal(length, whole)
    got = whole.step(rows, [0] * length, range(length))
    some = [0, 1, 63, 64, 65, 127, 128, 129, 191, 192, 200, 255, 256, 279]
    assert np.allclose(got[some], defined(whole, rows[some], [0] * len(some), some), rtol=0, atol=3e-6)
    for start, stop in pairwise((0, 1, 66, 67, 190, 197, 280)):
        again = parts.step(rows[start:stop], [0] * (stop - start), range(start, stop))
        assert np.array_equal(again, got[start:stop])


@kv_of
@pytest.mark.parametrize("window", [1, 40, 64, 130])
def test_what_lies_before_a_window_is_not_looked_at(kv: str, window: int) -> None:
    """NaN there changes nothing, also in the page where the window begins: a ring has other tokens in such places."""
    length = 280
    cache = make_cache(kv, 6, 2, length=length, window=window)
    rows = normal(length, cache)
    expected = cache.step(rows, [0] * length, range(length))
    for position in (150, 191, 192, 279):
        bad = make_cache(kv, 6, 2, length=length, window=window)
        poisoned = rows.copy()
        poisoned[: position - window + 1, 6 * DIM :] = np.nan
        bad.store(poisoned, np.zeros(length, np.int64), np.arange(length))
        where = np.zeros(length - position, np.int64), np.arange(position, length)
        assert np.array_equal(bad.attend(rows[position:], *where), expected[position:])
        worse = make_cache(kv, 6, 2, length=length, window=window)
        poisoned[position - window + 1, 6 * DIM :] = np.nan
        worse.store(poisoned, np.zeros(length, np.int64), np.arange(length))
        assert np.isnan(worse.attend(rows[position:], *where)[0]).all(), "and the first of the window is"


@kv_of
def test_large_scores_do_not_overflow(kv: str) -> None:
    cache = make_cache(kv, 2, 1, length=70)
    rows = 300 * normal(70, cache)
    got = cache.step(rows, [0] * 70, range(70))[60:]
    assert np.allclose(got, defined(cache, rows[60:], [0] * 10, range(60, 70)), rtol=1e-4, atol=1e-3)


@kv_of
def test_weights_far_below_the_largest_are_nothing(kv: str) -> None:
    """A score 10,000 above the others, in the first page or the last, takes all the weight."""
    for place in (3, 99):
        cache = make_cache(kv, 1, 1, length=100)
        rows = normal(100, cache)
        rows[99, :DIM], rows[:, DIM : 2 * DIM] = 100.0, -12.5
        rows[place, DIM : 2 * DIM] = 12.5
        got = cache.step(rows, [0] * 100, range(100))[99]
        assert np.array_equal(got, as_torch(cache.v)[cache.tables[0, place // PAGE], 0, place % PAGE].float())


@kv_of
def test_several_sequences_in_one_call_are_each_alone(kv: str) -> None:
    lengths = [65, 1, 130, 64]
    shared = make_cache(kv, 6, 2, length=130, count=4, alibi=True)
    rows = [normal(length, shared, seed) for seed, length in enumerate(lengths)]
    where = [(s, p) for s, length in enumerate(lengths) for p in range(length)]
    order = np.random.default_rng(0).permutation(len(where))
    sequences, positions = np.array(where)[order].T.copy()
    got = np.empty((len(where), 6 * DIM), np.float32)
    got[order] = shared.step(np.concatenate(rows)[order], sequences, positions)
    for s, length in enumerate(lengths):
        alone = make_cache(kv, 6, 2, length=length, alibi=True).step(rows[s], [0] * length, range(length))
        assert np.array_equal(got[sum(lengths[:s]) :][:length], alone)


@kv_of
@pytest.mark.parametrize("chunk", [1, 7, 63, 64, 65])
def test_chunks_of_a_prompt_change_no_bit(kv: str, chunk: int) -> None:
    length = 140
    whole, parts = (make_cache(kv, 6, 2, length=length, alibi=True) for _ in range(2))
    rows = normal(length, whole)
    expected = whole.step(rows, [0] * length, range(length))
    for start in range(0, length, chunk):
        some = range(start, min(start + chunk, length))
        got = parts.step(rows[some.start : some.stop], [0] * len(some), some)
        assert np.array_equal(got, expected[some.start : some.stop])


@kv_of
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("part", ["q", "k", "v"])
def test_a_bad_token_spoils_only_what_looks_at_it(kv: str, bad: float, part: str) -> None:
    length, when = 100, 66
    clean, cache = (make_cache(kv, 2, 1, length=length, count=2) for _ in range(2))
    rows, where = normal(2 * length, cache), ([0, 1] * length, np.arange(length).repeat(2))
    expected = clean.step(rows, *where).reshape(length, 2, 2, DIM)
    rows[2 * when + 1, {"q": 0, "k": 2 * DIM, "v": 3 * DIM}[part]] = bad
    got = cache.step(rows, *where).reshape(length, 2, 2, DIM)
    assert np.array_equal(got[:, 0], expected[:, 0])
    assert np.array_equal(got[:when, 1], expected[:when, 1])
    if part == "q":
        assert np.isnan(got[when, 1, 0]).all()
        assert np.array_equal(got[when, 1, 1], expected[when, 1, 1])
        assert np.array_equal(got[when + 1 :, 1], expected[when + 1 :, 1])
    elif np.isnan(bad):  # an inf is kept as the largest float16, or may be outweighed
        assert np.isnan(got[when:, 1, :, 0]).all()


@pytest.mark.parametrize("kv", ["float32", "float16"])
def test_stored_entries_are_rounded_and_saturate_at_float16(kv: str) -> None:
    cache = make_cache(kv, 1, 1, length=64)
    large = [65504, 65519, 65520, 1e6, np.inf]
    small = [0.1, 1 / 3, 0.0, 6e-8, 2**-25]
    values = np.array([*large, *np.negative(large), *small[:2], *np.negative(small[2:]), np.nan], np.float32)
    rows = normal(1, cache)
    rows[0, DIM : 2 * DIM] = values
    cache.store(rows, np.array([0]), np.array([5]))
    got = as_torch(cache.k)[cache.tables[0, 0], 0, 5].numpy()
    expected = np.clip(values, -65504, 65504).astype(np.float16) if kv == "float16" else values
    assert np.array_equal(got, expected, equal_nan=True)
    assert np.array_equal(np.signbit(got[~np.isnan(got)]), np.signbit(expected[~np.isnan(got)]))
    assert as_torch(cache.k).isnan().sum() == cache.k.values.size - DIM + 1  # nothing else was written


def test_no_tokens_are_no_work() -> None:
    cache = make_cache("float32", 2, 1, length=64)
    assert cache.step(np.empty((0, cache.width()), np.float32), [], []).shape == (0, 2 * DIM)


def test_int8_vectors_are_stored_as_the_reference_stores_them() -> None:
    cache = make_cache("int8", 2, 2, length=70)
    rows = normal(70, cache) * np.geomspace(1e-9, 1e5, 70, dtype=np.float32)[:, None]
    rows[3, 2 * DIM : 3 * DIM] = 0.0
    rows[5, 2 * DIM], rows[6, 3 * DIM], rows[7, 4 * DIM - 1] = np.nan, np.inf, 1e7
    cache.store(rows, np.zeros(70, np.int64), np.arange(70))
    keys = torch.from_numpy(rows[:, 2 * DIM : 4 * DIM]).view(70, 2, DIM)
    q, scale = reference.quantise_vectors(keys)
    for t in range(70):
        where = cache.tables[0, t // PAGE], slice(None), t % PAGE
        assert np.array_equal(cache.k.scale[where].view(np.float16), scale[t], equal_nan=True)
        assert np.array_equal(cache.k.values[where], q[t])

"""Blocks in one compiled call: the walker's answers, whatever the step, the cache, the threads and the company."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest

from bigrun.execute.compiled import compilable
from bigrun.model.buffers import PAGE_TOKENS
from bigrun.model.spec import Block, Rope
from bigrun_kernels.cpu import threads
from support.blocks import BLOCK, BLOCKS, Model, numpy_weights, rows

TYPES = {"float16": np.uint16, "float32": np.float32, "int8": np.int8, "float64": np.float64, "int32": np.int32}
NOTHING = np.empty(0, np.float32)
MORE = {
    **BLOCKS,
    "odd-heads": replace(BLOCK, head_dim=12, rope=Rope(12)),
    "a rope that is not used": replace(BLOCK, positions="none"),
    **{f"a window of {window}": replace(BLOCK, window=window) for window in (1, 60, 150)},
    "odd-everything": replace(BLOCK, hidden=90, intermediate=70, heads=3, kv_heads=1),
}


def test_what_the_call_does_not_know_goes_op_by_op() -> None:
    assert compilable(BLOCK, numpy_weights(BLOCK, 0))
    unknown = replace(BLOCK, activation="quick")  # type: ignore[arg-type]
    assert not compilable(unknown, numpy_weights(unknown, 0))
    wide = dict(numpy_weights(BLOCK, 0))
    assert not compilable(BLOCK, {**wide, "up": replace(wide["up"], form="float16")})


@pytest.mark.parametrize("kv", ["float16", "int8", "float32"])
@pytest.mark.parametrize("block", MORE.values(), ids=MORE)
def test_one_call_is_the_walker(block: Block, kv: str) -> None:
    """A prompt in chunks of all kinds, then single tokens, of two sequences, through two pages and two spans."""
    one, other = Model(block, True, kv=kv), Model(block, False, kv=kv)
    steps = [
        ([0] * 70, range(70)),
        ([1] * 5, range(5)),
        ([0] * 58 + [1], [*range(70, 128), 5]),
        ([0, 1], [128, 6]),
        ([0], [129]),
    ]
    for seed, (sequences, positions) in enumerate(steps):
        x = rows(len(sequences), block, seed)
        ours, theirs = (model.step(x, sequences, list(positions)) for model in (one, other))
        assert np.abs(ours - theirs).max() <= 2e-4 * np.abs(theirs).max()
    for mine, his in zip(one.caches, other.caches, strict=True):
        assert (mine.k.values != his.k.values).mean() < 0.02


@pytest.mark.parametrize("kv", ["float16", "int8"])
@pytest.mark.parametrize("count", [2, 3, 9, 17, 40])
@pytest.mark.parametrize("window", [0, 70])
def test_decoding_together_changes_no_bit(count: int, kv: str, window: int) -> None:
    """Sequences of different lengths, each also alone: over spans where a few decode, token by token where many do."""
    block = replace(BLOCK, window=window)
    lengths = [3 + 37 * s % 260 for s in range(count)]
    together = Model(block, True, batch=count, kv=kv)
    x = rows(count, seed=9)
    expected = []
    for s, length in enumerate(lengths):
        prompt = rows(length, seed=s)
        alone = Model(block, True, batch=1, kv=kv)
        for start in range(0, length, 80):
            part = range(start, min(start + 80, length))
            alone.step(prompt[part.start : part.stop], [0] * len(part), part)
            together.step(prompt[part.start : part.stop], [s] * len(part), part)
        expected.append(alone.step(x[s : s + 1], [0], [length])[0])
    assert np.array_equal(together.step(x, range(count), lengths), np.stack(expected))


def test_chunks_change_no_bit() -> None:
    whole, parts = Model(BLOCK, True), Model(BLOCK, True)
    x = rows(80)
    expected = whole.step(x, [0] * 80, range(80))
    start = 0
    for size in (1, 1, 2, 5, 16, 17, 38):
        got = parts.step(x[start : start + size], [0] * size, range(start, start + size))
        assert np.array_equal(got, expected[start : start + size])
        start += size


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_row_is_nan_and_disturbs_no_other(bad: float) -> None:
    model = Model(BLOCK, True, batch=6)
    x = rows(6)
    expected = model.step(x, range(6), [0] * 6)
    x[2, 7] = bad
    got = Model(BLOCK, True, batch=6).step(x, range(6), [0] * 6)
    others = [0, 1, 3, 4, 5]
    assert np.isnan(got[2]).all()
    assert np.array_equal(got[others], expected[others])


def test_the_ledger_and_the_kernel_mean_the_same_span() -> None:
    from bigrun.model.buffers import SPAN_TOKENS
    from bigrun_kernels.cpu.attention import SPAN_PAGES

    assert SPAN_TOKENS == SPAN_PAGES * PAGE_TOKENS


def test_no_rows_are_no_work() -> None:
    assert Model(BLOCK, True).step(rows(0), [], []).shape == (0, 64)


@pytest.mark.parametrize("count", [1, 2, 64])
def test_threads_change_no_bit(count: int) -> None:
    """One alone, and more than there are cores (which is all of them)."""
    expected = Model(BLOCK, True).step(rows(70), [0] * 70, range(70))
    try:
        threads.use(count)
        assert np.array_equal(Model(BLOCK, True).step(rows(70), [0] * 70, range(70)), expected)
    finally:
        threads.use(None)


def test_two_callers_at_once_each_get_their_own() -> None:
    models = [Model(BLOCK, True, seed=s) for s in (5, 50)]
    x = rows(30)
    expected = [model.step(x, [0] * 30, range(30)) for model in models]
    wrong: list[int] = []

    def call(i: int) -> None:
        for _ in range(20):
            if not np.array_equal(models[i].step(x, [0] * 30, range(30)), expected[i]):
                wrong.append(i)

    callers = [threading.Thread(target=call, args=(i,)) for i in range(2)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=120)
    assert not any(caller.is_alive() for caller in callers)
    assert not wrong


def test_a_thread_that_never_comes_is_not_waited_for() -> None:
    """One participant does the work of a team of two."""
    from bigrun_kernels.cpu import blocks

    model = Model(BLOCK, True)
    expected = Model(BLOCK, True).step(rows(9), [0] * 9, range(9))
    model.run_compiled._launch = lambda participant, table, *likes: participant(table, *likes)
    assert blocks.participate is model.run_compiled._kernel.participate
    assert np.array_equal(model.step(rows(9), [0] * 9, range(9)), expected)

"""Int8 linears on the CPU: exact integers in every form, the reference's answers, and rows that do not meet.

A CPU without VNNI runs the vnni forms by other instructions; the claims are the same.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bigrun_kernels import lanes, reference
from bigrun_kernels.cpu import threads
from bigrun_kernels.cpu.ops import CpuOps
from bigrun_kernels.ops import Scratch, Weight

FORMS = {"portable": 0, "vnni512": 1, "vnni256": 2}
MODES = ["exact", "llm.int8"]
NOTHING = np.empty(0, np.float32)
# M, K, N: each has something that a tile of 4 by 2, a row of 64 bytes or a block of 16 does not divide.
SHAPES = [(1, 1, 1), (1, 63, 5), (2, 64, 16), (4, 65, 17), (5, 200, 1), (17, 130, 37), (4, 4096, 18), (3, 4160, 19)]
LONG = 66_445  # beyond the columns whose u8·s8 products an int32 holds, and no multiple of anything
LONGER = 1_100_003  # the same for each of sixteen int32 lanes

form_of = pytest.mark.parametrize("form", FORMS)
mode_of = pytest.mark.parametrize("mode", MODES)
shape_of = pytest.mark.parametrize(("m", "k", "n"), SHAPES, ids=str)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32)


def layer(n: int, k: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Some quantised layer: q int8 [n, k], scale float32 [n]."""
    random = np.random.default_rng([seed, n, k])
    return random.integers(-127, 128, (n, k), np.int8), random.uniform(1e-4, 1e-2, n).astype(np.float32)


def run(
    x: np.ndarray, q: np.ndarray, scale: np.ndarray, form: str, mode: str, *,
    bias: np.ndarray = NOTHING, threshold: float = 6.0, out: np.ndarray | None = None, add: bool = False,
) -> np.ndarray:  # fmt: skip
    """CpuOps.linear with scratch that is too large and full of rubbish, and an output of NaN."""
    n, k = q.shape
    padded = -(-k // 64) * 64
    values = lanes.pack(q)
    rows = -(-len(x) // 4) * 4 + 4
    scratch = Scratch(
        np.full((rows, 2 * padded + 128), 77, np.int8), np.full(rows, np.nan), np.full((rows, 2), 99, np.int32),
        np.ones(k + 5, np.int8),
    )  # fmt: skip
    out = np.full((len(x), n), np.nan, np.float32) if out is None else out
    ops = CpuOps()
    ops.form = FORMS[form]
    ops.linear(x, Weight("int8", values, scale, bias, k), mode, threshold, scratch, out, add)
    return out


def defined(x: np.ndarray, q: np.ndarray, scale: np.ndarray, mode: str, threshold: float = 6.0) -> np.ndarray:
    tensors = torch.from_numpy(x), torch.from_numpy(q), torch.from_numpy(scale)
    if mode == "exact":
        return reference.linear_exact(*tensors).numpy()
    return reference.linear_llm_int8(*tensors, threshold=threshold).numpy()


def error(got: np.ndarray, truth: np.ndarray) -> float:
    """Relative, in the Frobenius norm."""
    return float(np.linalg.norm(got - truth) / np.linalg.norm(truth))


def planes(m: int, k: int, mode: str) -> tuple[np.ndarray, np.ndarray]:
    """h and l of x = h + l/254 whose largest entry is 127, so that s_x = 1; l is zero for a mode that has none."""
    random = np.random.default_rng([m, k])
    high, low = random.integers(-126, 127, (m, k)), random.integers(-126, 127, (m, k))
    high[:, 0], low[:, 0] = 127, 0
    return high, low if mode == "exact" else np.zeros_like(low)


def assert_exact_sums(high: np.ndarray, low: np.ndarray, q: np.ndarray, form: str, mode: str) -> None:
    """The kernel's sums S = Σ (254·h + l)·q (Σ h·q in llm.int8) are int64 arithmetic's.

    They are read out of a float32 result: s_x is 1, s_w takes off what a unit of S is worth, and a bias of about −S
    brings one row at a time to where float32 has all whole numbers.
    """
    x, fine = (high + low / 254).astype(np.float32), 254 if mode == "exact" else 1
    scale = np.full(len(q), fine, np.float32)
    for i, expected in enumerate((fine * high + low) @ q.T.astype(np.int64)):  # l is zero where fine is 1
        bias = -expected.astype(np.float32)
        actual = run(x, q, scale, form, mode, bias=bias, threshold=0.0)[i].astype(np.float64) - bias
        assert np.array_equal(np.rint(actual).astype(np.int64), expected)


@form_of
@mode_of
@shape_of
def test_the_integer_core_is_exact(form: str, mode: str, m: int, k: int, n: int) -> None:
    assert_exact_sums(*planes(m, k, mode), layer(n, k)[0], form, mode)


@form_of
@mode_of
@pytest.mark.parametrize(("m", "k"), [(1, LONG), (5, LONG), (1, LONGER)], ids=str)
def test_long_rows_of_extremes_do_not_overflow(form: str, mode: str, m: int, k: int) -> None:
    high, low = np.full((m, k), 127), np.zeros((m, k), np.int64)
    high[1:] *= -1
    q = np.full((5, k), 127, np.int8)
    q[1:3] = -127
    assert_exact_sums(high, low, q, form, mode)


@form_of
def test_long_rows_of_extremes_in_the_fine_plane_do_not_overflow(form: str) -> None:
    high, low = np.full((2, LONG), 126), np.full((2, LONG), 126)
    high[:, 0], low[:, 0] = 127, 0
    high[1], low[1] = -high[1], -low[1]
    assert_exact_sums(high, low, np.full((4, LONG), 127, np.int8), form, "exact")


@form_of
@shape_of
def test_exact_is_the_reference_to_the_bit(form: str, m: int, k: int, n: int) -> None:
    x, (q, scale) = normal(m, k), layer(n, k)
    assert np.array_equal(run(x, q, scale, form, "exact"), defined(x, q, scale, "exact"))


@form_of
@shape_of
def test_llm_int8_is_the_reference(form: str, m: int, k: int, n: int) -> None:
    x, (q, scale) = normal(m, k), layer(n, k)
    for threshold in (0.0, 6.0):  # nothing here reaches 6: integers alone, and equal
        got = run(x, q, scale, form, "llm.int8", threshold=threshold)
        assert np.array_equal(got, defined(x, q, scale, "llm.int8", threshold))
    got, expected = run(x, q, scale, form, "llm.int8", threshold=1.5), defined(x, q, scale, "llm.int8", 1.5)
    assert np.abs(got - expected).max() <= 1e-6 * np.abs(expected).max()


@mode_of
@shape_of
def test_forms_agree_to_the_bit(mode: str, m: int, k: int, n: int) -> None:
    x, (q, scale) = 3 * normal(m, k), layer(n, k)
    portable, *others = (run(x, q, scale, form, mode, bias=normal(n)) for form in FORMS)
    assert all(np.array_equal(portable, other) for other in others)


@form_of
@mode_of
def test_the_epilogue_keeps_five_digits(form: str, mode: str) -> None:
    """Against float64 on the same integers, with scales and activations of all sizes."""
    high, low = planes(5, 300, mode)
    q, _ = layer(33, 300)
    scale, bias = np.geomspace(1e-12, 1e12, 33).astype(np.float32), 1e3 * normal(33)
    units = np.array([2.0**-30, 2.0**-3, 1.0, 2.0**5, 2.0**20])[:, None]
    x = ((high + low / 254) * units).astype(np.float32)
    truth = (high + low / 254) @ q.T.astype(np.float64) * units * scale.astype(np.float64) + bias
    got = run(x, q, scale, form, mode, bias=bias, threshold=0.0)
    assert np.all(np.abs(got - truth) <= 1e-5 * np.abs(truth))


@form_of
def test_a_gaussian_layer_loses_what_was_promised(form: str) -> None:
    w, x = 0.02 * normal(64, 4096), normal(17, 4096)
    q, scale = (part.numpy() for part in reference.quantise_rows(torch.from_numpy(w)))
    truth = x.astype(np.float64) @ w.T.astype(np.float64)
    assert 0.005 < error(run(x, q, scale, form, "exact"), truth) < 0.0095
    assert 0.009 < error(run(x, q, scale, form, "llm.int8"), truth) < 0.0135


@form_of
def test_decomposition_survives_outliers_and_plain_int8_does_not(form: str) -> None:
    w, x = 0.02 * normal(64, 4096), normal(17, 4096)
    x[:, [5, 1000, 4095]] = np.sign(x[:, :3]) * np.random.default_rng(3).uniform(20, 60, (17, 3))
    q, scale = (part.numpy() for part in reference.quantise_rows(torch.from_numpy(w)))
    truth = x.astype(np.float64) @ w.T.astype(np.float64)
    assert error(run(x, q, scale, form, "exact"), truth) < 0.0095
    assert error(run(x, q, scale, form, "llm.int8"), truth) < 0.0135
    assert error(run(x, q, scale, form, "llm.int8", threshold=0.0), truth) > 0.05


@mode_of
def test_a_row_of_zeros_gives_the_bias(mode: str) -> None:
    x, (q, scale), bias = normal(5, 100), layer(7, 100), normal(7)
    x[[0, 3]] = 0
    got = run(x, q, scale, "portable", mode, bias=bias)
    assert np.array_equal(got[[0, 3]], [bias, bias])
    assert not run(x, q, scale, "vnni256", mode)[[0, 3]].any()


@form_of
def test_a_row_of_outliers_is_multiplied_in_float(form: str) -> None:
    x, (q, scale) = normal(3, 100), layer(7, 100)
    x[1] = np.where(x[1] < 0, -6.0, 6.0) + x[1]
    truth = x.astype(np.float64) @ q.T * scale
    assert error(run(x, q, scale, form, "llm.int8"), truth) < 1e-7


@pytest.mark.parametrize("six", [6.0, -6.0])
def test_exactly_six_is_an_outlier_and_the_number_below_is_not(six: float) -> None:
    x, (q, scale) = np.full((1, 100), 0.01, np.float32), layer(7, 100)
    x[0, 40] = six
    truth = x.astype(np.float64) @ q.T * scale
    assert error(run(x, q, scale, "portable", "llm.int8"), truth) < 1e-6
    x[0, 40] = np.nextafter(np.float32(six), np.float32(0))  # in the integers, where it takes 0.01 down to nothing
    assert error(run(x, q, scale, "portable", "llm.int8"), x[:, 40:41] @ (q[:, 40:41].T * scale)) < 1e-6


@form_of
@mode_of
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_row_is_nan_and_disturbs_no_other(form: str, mode: str, bad: float) -> None:
    x, (q, scale) = 2 * normal(6, 130), layer(19, 130)
    x[0, 7] = 9.0  # an outlier column that all share
    clean = x.copy()
    clean[2] = 0
    x[2, 11], x[2, 3] = bad, 50.0  # the 50 is in a row that counts for nothing
    got, expected = (run(rows, q, scale, form, mode, bias=normal(19)) for rows in (x, clean))
    assert np.isnan(got[2]).all()
    others = [0, 1, 3, 4, 5]
    assert np.array_equal(got[others], expected[others])
    assert np.array_equal(np.isnan(defined(x, q, scale, mode)), np.isnan(got))


@form_of
@mode_of
def test_add_adds_to_what_is_there(form: str, mode: str) -> None:
    x, (q, scale), bias, before = 3 * normal(5, 70), layer(18, 70), normal(18), normal(5, 18)
    alone = run(x, q, scale, form, mode, bias=bias)
    assert np.array_equal(run(x, q, scale, form, mode, bias=bias, out=before.copy(), add=True), alone + before)


@form_of
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 17])
def test_a_row_has_one_answer_whatever_its_neighbours(form: str, count: int) -> None:
    x, (q, scale) = 4 * normal(40, 200), layer(21, 200)
    alone = np.concatenate([run(row[None], q, scale, form, "exact") for row in x])
    for first in (0, 3, 40 - count):
        some = slice(first, first + count)
        assert np.array_equal(run(x[some], q, scale, form, "exact"), alone[some])


@mode_of
def test_no_rows_are_no_work(mode: str) -> None:
    q, scale = layer(7, 100)
    assert run(np.empty((0, 100), np.float32), q, scale, "portable", mode).shape == (0, 7)


@mode_of
def test_the_number_of_threads_changes_no_bit(mode: str) -> None:
    x, (q, scale) = 4 * normal(9, 300), layer(100, 300)
    try:
        outputs = []
        for count in (1, 2, None):
            threads.use(count)
            outputs.append(run(x, q, scale, "portable", mode))
    finally:
        threads.use(None)
    assert all(np.array_equal(outputs[0], other) for other in outputs[1:])


@form_of
def test_no_rows_give_no_rows(form: str) -> None:
    q, scale = layer(17, 65)
    assert run(normal(0, 65), q, scale, form, "exact").shape == (0, 17)


def test_weights_that_are_not_in_lanes_are_refused() -> None:
    q, scale = layer(17, 64)
    scratch = Scratch(np.empty((4, 128), np.int8), np.empty(4), np.empty((4, 2), np.int32), np.empty(64, np.int8))
    with pytest.raises(ValueError, match="in lanes"):
        CpuOps().linear(
            normal(2, 64), Weight("int8", q, scale, NOTHING, 64), "exact", 0.0, scratch, normal(2, 17), False
        )

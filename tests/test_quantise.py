"""Weights into their stored forms: the reference's integers and scales, into the right rows, bad rows counted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bigrun_kernels import lanes, reference
from bigrun_kernels.cpu import quantise

TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SHAPES = [(1, 1), (3, 64), (17, 70), (40, 320)]

kind_of = pytest.mark.parametrize("kind", TYPES)
shape_of = pytest.mark.parametrize(("n", "k"), SHAPES, ids=str)


def weights(n: int, k: int, kind: str = "float32", seed: int = 0) -> torch.Tensor:
    """Rows of very different sizes, the last one zero."""
    random = np.random.default_rng([seed, n, k])
    values = random.standard_normal((n, k)) * np.exp(random.uniform(-6, 6, (n, 1)))
    if n > 1:
        values[-1] = 0
    return torch.from_numpy(values.astype(np.float32)).to(TYPES[kind])


def stored(values: torch.Tensor) -> np.ndarray:
    """As bigrun keeps it: float32, or the bits of 16-bit floats."""
    if values.dtype == torch.float32:
        return values.numpy()
    return values.view(torch.int16).numpy().view(np.uint16)


def per_row(w: torch.Tensor, rows: np.ndarray | None = None, size: int = 0) -> tuple[np.ndarray, np.ndarray, int]:
    """q, scale and the count of bad rows; what the kernel leaves alone stays 99 and NaN."""
    size = size or len(w)
    q = np.full(lanes.shape(size, w.shape[1]), 99, np.int8)
    scale = np.full(size, np.nan, np.float32)
    rows = np.arange(len(w)) if rows is None else rows
    bad = quantise.per_row(stored(w), w.dtype == torch.bfloat16, rows, q, scale)
    return lanes.unpack(q, size, -(-w.shape[1] // 64) * 64), scale, bad


def per_group(w: torch.Tensor, rows: np.ndarray | None = None, size: int = 0) -> tuple[np.ndarray, np.ndarray, int]:
    size = size or len(w)
    padded = -(-w.shape[1] // 64) * 64
    q = np.full(lanes.shape(size, padded), 99, np.int8)
    scale = np.full(lanes.scale_shape(size, padded), 0x7E00, np.uint16)
    rows = np.arange(len(w)) if rows is None else rows
    bad = quantise.per_group(stored(w), w.dtype == torch.bfloat16, rows, q, scale)
    return lanes.unpack(q, size, padded), lanes.unpack_scale(scale, size).view(np.float16), bad


def copy(w: torch.Tensor, kind: str, rows: np.ndarray | None = None, size: int = 0) -> tuple[torch.Tensor, int]:
    target = np.full((size or len(w), w.shape[1]), 7, np.float32 if kind == "float32" else np.uint16)
    rows = np.arange(len(w)) if rows is None else rows
    bad = quantise.copy(stored(w), w.dtype == torch.bfloat16, rows, kind == "bfloat16", target)
    return torch.from_numpy(target.view(np.int16) if kind != "float32" else target).view(TYPES[kind]), bad


@kind_of
@shape_of
def test_rows_are_the_reference(kind: str, n: int, k: int) -> None:
    w = weights(n, k, kind)
    q, scale, bad = per_row(w)
    expected_q, expected_scale = reference.quantise_rows(w)
    assert bad == 0
    assert np.array_equal(q[:, :k], expected_q)
    assert np.array_equal(scale, expected_scale)
    assert not q[:, k:].any()


@kind_of
@shape_of
def test_groups_are_the_reference(kind: str, n: int, k: int) -> None:
    w = weights(n, k, kind)
    q, scale, bad = per_group(w)
    padded = torch.nn.functional.pad(w.float(), (0, q.shape[1] - k))
    expected_q, expected_scale = reference.quantise_groups(padded)
    assert bad == 0
    assert np.array_equal(q, expected_q)
    assert np.array_equal(scale, expected_scale)


@kind_of
@pytest.mark.parametrize("target", TYPES)
def test_copies_round_as_torch_does(kind: str, target: str) -> None:
    w = weights(40, 77, kind)
    got, bad = copy(w, target)
    assert bad == 0
    assert torch.equal(got, w.to(TYPES[target]))


@pytest.mark.parametrize("target", ["float16", "bfloat16"])
def test_copies_break_ties_to_even(target: str) -> None:
    """Half way between each pair of neighbouring numbers, a bit above and a bit below."""
    codes = torch.arange(0, 0x7B00 if target == "float16" else 0x7F00).to(torch.int16)
    low, high = (code.view(TYPES[target]).double() for code in (codes, codes + 1))
    ties = ((low + high) / 2).float()
    w = torch.stack([ties, torch.nextafter(ties, torch.tensor(torch.inf)), torch.nextafter(ties, torch.tensor(0.0))])
    w = torch.cat([w, -w])
    assert torch.equal(copy(w, target)[0], w.to(TYPES[target]))


def test_halves_go_to_the_even_integer() -> None:
    values = torch.tensor([[127.0, 0.5, 1.5, 2.5, 3.5, -0.5, -1.5, -2.5, 125.5, 126.5, -126.5]])
    expected = [127, 0, 2, 2, 4, 0, -2, -2, 126, 126, -126]
    assert per_row(values)[0][0, :11].tolist() == expected
    assert per_group(values)[0][0, :11].tolist() == expected


@kind_of
def test_rows_go_where_they_are_sent_and_touch_no_other(kind: str) -> None:
    w, rows = weights(5, 40, kind), np.array([6, 0, 3, 7, 2])
    others = [1, 4, 5]
    q, scale, _ = per_row(w, rows, 8)
    plain_q, plain_scale, _ = per_row(w)
    assert np.array_equal(q[rows], plain_q)
    assert np.array_equal(scale[rows], plain_scale)
    assert np.all(q[others] == 99)
    assert np.isnan(scale[others]).all()
    q, scale, _ = per_group(w, rows, 8)
    plain_q, plain_scale, _ = per_group(w)
    assert np.array_equal(q[rows], plain_q)
    assert np.array_equal(scale[rows], plain_scale)
    assert np.all(q[others] == 99)
    assert np.isnan(scale[others]).all()
    got, _ = copy(w, kind, rows, 8)
    assert torch.equal(got[rows], w)
    assert np.all(stored(got[others]) == 7)


@kind_of
@pytest.mark.parametrize(("n", "k"), [(1, 64), (5, 70), (40, 1100), (33, 64)])
def test_rows_for_a_gpu_are_the_same_without_lanes(kind: str, n: int, k: int) -> None:
    w, padded = weights(n, k, kind), -(-k // 64) * 64
    order = np.random.default_rng(n).permutation(n)
    q, scale = np.full((n, padded), 99, np.int8), np.full(n, np.nan, np.float32)
    assert quantise.per_row(stored(w), w.dtype == torch.bfloat16, order, q, scale) == 0
    expected_q, expected_scale, _ = per_row(w, order)
    assert np.array_equal(q, expected_q)
    assert np.array_equal(scale, expected_scale)
    groups = np.full((n, padded // 32), 0x7E00, np.uint16)
    assert quantise.per_group(stored(w), w.dtype == torch.bfloat16, order, q, groups) == 0
    expected_q, expected_scale, _ = per_group(w, order)
    assert np.array_equal(q, expected_q)
    assert np.array_equal(groups.view(np.float16), expected_scale)


def test_a_row_of_zeros_has_the_scale_one() -> None:
    q, scale, bad = per_row(torch.zeros(2, 70))
    assert (q.any(), scale.tolist(), bad) == (False, [1.0, 1.0], 0)
    q, scale, bad = per_group(torch.zeros(2, 70))  # a group's scale may be 0: nothing is divided by it later
    assert (q.any(), scale.any(), bad) == (False, False, 0)


@kind_of
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_with_nan_or_inf_are_counted(kind: str, bad: float) -> None:
    w = weights(9, 70, kind)
    w[[1, 4], [0, 69]] = bad
    w[4, 3] = bad
    q, scale, count = per_row(w)
    assert count == 2
    assert np.isfinite(scale).all()
    good = [0, 2, 3, 5, 6, 7, 8]
    assert np.array_equal(q[good], per_row(w[good])[0])
    assert per_group(w)[2] == 2
    assert copy(w, kind)[1] == 2
    assert copy(w, "bfloat16")[1] == 2


def test_a_bad_row_of_groups_is_counted_once() -> None:
    w = weights(9, 70)
    w[4, [3, 40]] = torch.nan
    assert per_group(w)[2] == 1


def test_rows_too_small_to_divide_are_zero() -> None:
    """Where max/127 is no normal float32, a quotient has no meaning any more."""
    w = torch.full((4, 3), 1e-44)
    w[1], w[2], w[3] = 1e-39, 1.4e-36, 1.6e-36  # 127 · 2⁻¹²⁶ is 1.49e-36
    q, scale, bad = per_row(w)
    assert bad == 0
    assert not q[:3].any()
    assert scale[:3].tolist() == [1.0, 1.0, 1.0]
    assert q[3, :3].tolist() == [127, 127, 127]


def test_extreme_rows_stay_within_127() -> None:
    w = weights(4000, 5, seed=3) * torch.logspace(-28, 30, 4000)[:, None]
    q, scale, bad = per_row(w)
    assert bad == 0
    assert np.abs(q.astype(int)).max() == 127
    error = np.abs(q[:, :5] * scale[:, None].astype(np.float64) - w.double().numpy())
    assert np.all(error <= 0.5001 * scale[:, None])


def test_a_float16_scale_lets_no_entry_exceed_127() -> None:
    """Over all sizes of group down to the float16s that are not normal: each entry within half a step and a bit."""
    w = weights(4000, 32, seed=4)[:-1].double()
    w = (w / w.abs().amax(dim=1, keepdim=True) * torch.logspace(-9, 6, 3999)[:, None].double()).float()
    q, scale, bad = per_group(w)
    assert bad == 0
    assert np.abs(q.astype(int)).max() == 127
    steps = scale[:, :1].astype(np.float64)
    assert np.all(np.abs(q[:, :32] * steps - w.double().numpy()) <= 0.5001 * steps)
    expected_q, expected_scale = reference.quantise_groups(w)
    assert np.array_equal(scale[:, :1], expected_scale)
    assert np.array_equal(q[:, :32], expected_q)


def test_groups_beyond_float16_are_refused() -> None:
    w = torch.full((2, 64), 1e7)  # two such groups are one bad row
    w[0] = 65504 * 127
    q, scale, bad = per_group(w)
    assert bad == 1
    assert scale[0, 0] == 65504
    assert np.all(q[0, :64] == 127)


def test_a_q8_0_table_survives_without_loss() -> None:
    """Int8 times a float16 scale for each 32 (GGUF's Q8_0, whose groups reach 127) comes back as it was."""
    random = np.random.default_rng(5)
    q = random.integers(-127, 128, (64, 10, 32), np.int8)
    q[..., 7] = random.choice([-127, 127], (64, 10))
    scale = random.integers(1, 0x7BFF, (64, 10), np.uint16).view(np.float16)
    values = torch.from_numpy((q * scale[..., None].astype(np.float32)).reshape(64, 320))
    got_q, got_scale, bad = per_group(values)
    assert bad == 0
    assert np.array_equal(got_q, q.reshape(64, 320))
    assert np.array_equal(got_scale, scale)

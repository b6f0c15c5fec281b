"""Linears whose weights stay floats, and int8 tables: the reference's products, and rows that do not meet."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bigrun_kernels import lanes, reference
from bigrun_kernels.cpu.ops import CpuOps
from bigrun_kernels.ops import Scratch, Weight

TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
NOTHING = np.empty(0, np.float32)
# M, K, N: sums of eight lanes with and without a tail, tiles of 4 by 2, blocks of 16.
SHAPES = [(1, 1, 1), (1, 7, 2), (2, 8, 3), (4, 9, 16), (5, 70, 17), (17, 135, 37), (3, 4101, 5)]

kind_of = pytest.mark.parametrize("kind", TYPES)
shape_of = pytest.mark.parametrize(("m", "k", "n"), SHAPES, ids=str)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32)


def stored(values: torch.Tensor) -> np.ndarray:
    """As bigrun keeps it: float32, or the bits of 16-bit floats."""
    if values.dtype == torch.float32:
        return values.numpy()
    return values.view(torch.int16).numpy().view(np.uint16)


def run(
    x: np.ndarray, w: torch.Tensor, *, bias: np.ndarray = NOTHING, out: np.ndarray | None = None, add: bool = False
) -> np.ndarray:
    out = np.full((len(x), len(w)), np.nan, np.float32) if out is None else out
    scratch = Scratch(np.empty((0, 0), np.int8), np.empty(0), np.empty((0, 2), np.int32), np.empty(0, np.int8))
    kind = str(w.dtype).removeprefix("torch.")
    CpuOps().linear(x, Weight(kind, stored(w), None, bias, w.shape[1]), "exact", 0.0, scratch, out, add)
    return out


def table(n: int, k: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """A quantised table: q int8 [n, Kp], float16 scales [n, Kp/32], with some groups of zeros and tiny scales."""
    padded = -(-k // 64) * 64
    random = np.random.default_rng([seed, n, k])
    q = random.integers(-127, 128, (n, padded), np.int8)
    q[:, k:] = 0
    scale = random.uniform(1e-4, 1e-2, (n, padded // 32)).astype(np.float16)
    scale[::3, 0] = 3e-7  # below the normal float16s
    scale[1::4, -1] = 0
    return q, scale


def run_table(x: np.ndarray, q: np.ndarray, scale: np.ndarray) -> np.ndarray:
    rows, k = -(-len(x) // 4) * 4 + 4, x.shape[1]
    scratch = Scratch(
        np.full((rows, 2 * q.shape[1] + 128), 77, np.int8), np.full(rows, np.nan), np.full((rows, 2), 99, np.int32),
        np.ones(k + 5, np.int8),
    )  # fmt: skip
    out = np.full((len(x), len(q)), np.nan, np.float32)
    weight = Weight("table", lanes.pack(q), lanes.pack_scale(scale.view(np.uint16)), NOTHING, k)
    CpuOps().linear(x, weight, "exact", 0.0, scratch, out, False)
    return out


@kind_of
@shape_of
def test_the_product_is_the_reference(kind: str, m: int, k: int, n: int) -> None:
    x, w, bias = normal(m, k), torch.from_numpy(normal(n, k, seed=1)).to(TYPES[kind]), normal(n)
    got = run(x, w, bias=bias)
    most = np.abs(x).astype(np.float64) @ w.double().abs().numpy().T + np.abs(bias)
    assert np.all(np.abs(got - (x @ w.double().numpy().T + bias)) <= 1e-6 * most)
    expected = reference.linear(torch.from_numpy(x), w, torch.from_numpy(bias)).numpy()
    assert np.all(np.abs(got - expected) <= 2e-6 * most)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_every_finite_code_of_a_16_bit_weight_is_itself(kind: str) -> None:
    codes = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(TYPES[kind])
    codes = torch.where(codes.isfinite(), codes, torch.zeros_like(codes))
    values = codes.float().numpy()
    in_lanes = run(np.eye(130, 128, dtype=np.float32), codes.reshape(-1, 128))
    assert np.array_equal(in_lanes[:128].T.reshape(-1), values)
    in_tail = run(np.ones((5, 1), np.float32), codes.reshape(-1, 1))
    assert np.array_equal(in_tail, np.broadcast_to(values, (5, len(values))))


@kind_of
def test_a_row_has_one_answer_whatever_its_neighbours(kind: str) -> None:
    x, w = normal(17, 77), torch.from_numpy(normal(19, 77, seed=1)).to(TYPES[kind])
    alone = np.concatenate([run(row[None], w) for row in x])
    for first, count in ((0, 17), (0, 5), (3, 4), (13, 4), (15, 2)):
        assert np.array_equal(run(x[first : first + count], w), alone[first : first + count])


@kind_of
def test_add_adds_to_what_is_there(kind: str) -> None:
    x, w, before, bias = normal(5, 30), torch.from_numpy(normal(7, 30)).to(TYPES[kind]), normal(5, 7), normal(7)
    assert np.array_equal(run(x, w, bias=bias, out=before.copy(), add=True), run(x, w, bias=bias) + before)


@kind_of
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("column", [0, 20], ids=["in the lanes", "in the tail"])
def test_a_bad_row_disturbs_no_other(kind: str, bad: float, column: int) -> None:
    x, w = normal(6, 21), torch.from_numpy(normal(9, 21, seed=1)).to(TYPES[kind])
    expected = run(x, w)
    x[2, column] = bad
    got = run(x, w)
    assert not np.isfinite(got[2]).any()
    assert np.array_equal(np.delete(got, 2, 0), np.delete(expected, 2, 0))


@kind_of
def test_no_rows_are_no_work(kind: str) -> None:
    assert run(np.empty((0, 30), np.float32), torch.ones(7, 30, dtype=TYPES[kind])).shape == (0, 7)


@shape_of
def test_a_table_is_the_reference(m: int, k: int, n: int) -> None:
    x, (q, scale) = normal(m, k), table(n, k)
    values = reference.dequantise_table(*map(torch.from_numpy, (q, scale)))[:, :k].double()
    high, low, unit = reference.quantise_planes(torch.from_numpy(x))
    taken = (high.double() + low.double() / 254) * unit.double()[:, None]
    got, most = run_table(x, q, scale), (taken.abs() @ values.abs().T).numpy()
    assert np.all(np.abs(got - (taken @ values.T).numpy()) <= 1e-6 * most)
    truth = reference.linear(torch.from_numpy(x), values.float()).numpy()
    assert np.linalg.norm(got - truth) <= 1e-4 * np.linalg.norm(most)


def test_extremes_of_a_table_are_exact() -> None:
    """127 · 32,258 · 32 products of one sign: sums that float32 can still hold, in every group."""
    x, q, scale = np.full((2, 128), 127.0, np.float32), np.full((5, 128), -127, np.int8), np.ones((5, 4), np.float16)
    x[1] = -x[1]
    assert np.array_equal(run_table(x, q, scale), np.broadcast_to([[-(127.0**2) * 128], [127.0**2 * 128]], (2, 5)))


def test_a_row_has_one_answer_from_a_table_whatever_its_neighbours() -> None:
    x, (q, scale) = normal(17, 100), table(37, 100)
    x[5] = np.nan
    x[6] = 0
    alone = np.concatenate([run_table(row[None], q, scale) for row in x])
    assert np.isnan(alone[5]).all()
    assert not alone[6].any()
    for count in (0, 2, 5, 17):
        assert np.array_equal(run_table(x[:count], q, scale), alone[:count], equal_nan=True)


def test_a_table_takes_a_bias_and_adds_as_other_linears_do() -> None:
    x, (q, scale), bias, before = normal(2, 64), table(5, 64), normal(5), normal(2, 5)
    scratch = Scratch(
        np.empty((4, 128), np.int8), np.empty(2), np.empty((2, 2), np.int32), np.empty(64, np.int8)
    )  # fmt: skip
    out = before.copy()
    weight = Weight("table", lanes.pack(q), lanes.pack_scale(scale.view(np.uint16)), bias, 64)
    CpuOps().linear(x, weight, "exact", 0.0, scratch, out, True)
    assert np.allclose(out, run_table(x, q, scale) + bias + before, rtol=0, atol=1e-5)

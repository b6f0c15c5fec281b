"""What stands between the linears: the reference's numbers, in place too, with NaN kept to its row."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bigrun_kernels import lanes, reference
from bigrun_kernels.cpu.ops import CpuOps
from bigrun_kernels.ops import ACTIVATIONS, Weight

OPS = CpuOps()
NOTHING = np.empty(0, np.float32)
TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

shape_of = pytest.mark.parametrize(("t", "h"), [(1, 1), (3, 7), (5, 576), (2, 4097)], ids=str)
kind_of = pytest.mark.parametrize("kind", ["RMSNorm", "LayerNorm"])
function_of = pytest.mark.parametrize("name", ACTIVATIONS)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32)


def norm(x: np.ndarray, kind: str, eps: float = 1e-5, out: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The kernel's answer, and the reference's on float64."""
    h = x.shape[1]
    weight, bias = normal(h, seed=1), normal(h, seed=2) if kind == "LayerNorm" else NOTHING
    x64, weight64, bias64 = (torch.from_numpy(array).double() for array in (x, weight, bias))
    expected = reference.norm(x64, weight64, bias64, eps)
    out = np.full_like(x, np.nan) if out is None else out
    OPS.norm(x, weight, bias, eps, out)
    return out, expected.numpy()


@kind_of
@shape_of
@pytest.mark.parametrize("eps", [1e-5, 1e-2])
def test_norms_are_the_reference(kind: str, t: int, h: int, eps: float) -> None:
    x = normal(t, h) * np.float32(10) ** np.arange(-3, t - 3, dtype=np.float32)[:, None]
    got, expected = norm(x, kind, eps)
    assert np.allclose(got, expected, rtol=2e-6, atol=2e-6)


def test_layer_norm_of_a_large_mean_keeps_its_digits() -> None:
    got, expected = norm(1000 + normal(3, 576), "LayerNorm")
    assert np.allclose(got, expected, rtol=2e-6, atol=2e-6)


@kind_of
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_row_of_a_norm_disturbs_no_other(kind: str, bad: float) -> None:
    x = normal(4, 70)
    clean, _ = norm(x, kind)
    x[1, 69] = bad
    got, expected = norm(x, kind)
    assert np.array_equal(np.isnan(got), np.isnan(expected))
    assert np.isnan(got[1, 69])
    assert np.array_equal(np.delete(got, 1, 0), np.delete(clean, 1, 0))


@kind_of
def test_a_norm_in_place_is_the_same(kind: str) -> None:
    x = normal(3, 100)
    expected, _ = norm(x, kind)
    assert np.array_equal(norm(x, kind, out=x)[0], expected)


@kind_of
def test_a_row_of_zeros_is_normed_to_the_bias(kind: str) -> None:
    got, _ = norm(np.zeros((2, 9), np.float32), kind)
    assert np.array_equal(got, np.broadcast_to(normal(9, seed=2) if kind == "LayerNorm" else 0, (2, 9)))


@pytest.mark.parametrize("dims", [2, 16, 64])
def test_rotation_is_the_reference_and_leaves_the_rest(dims: int) -> None:
    heads, dim, t = 3, 64, 5
    qkv = normal(t, heads * dim + 100)
    angles = np.random.default_rng(0).uniform(-9, 9, (t, dims // 2))
    cos_sin = np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    first = torch.from_numpy(qkv[:, : heads * dim].reshape(t, heads, dim).copy()).double()
    expected = reference.rope(first, torch.from_numpy(cos_sin).double()).flatten(1)
    got = qkv.copy()
    OPS.rope(got, heads, dim, cos_sin)
    assert np.allclose(got[:, : heads * dim], expected, rtol=0, atol=1e-6)
    assert np.array_equal(got[:, heads * dim :], qkv[:, heads * dim :])
    assert np.array_equal(got[:, dims:dim], qkv[:, dims:dim])


@function_of
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_activations_are_the_reference(name: str, gated: bool) -> None:
    values = np.concatenate([np.linspace(-100, 100, 4001), np.linspace(-6, 6, 4001), [0.0, -0.0, 1e-30, 1e4, -1e4]])
    x = values.astype(np.float32).reshape(1, -1)
    x = np.concatenate([x, x[:, ::-1]])
    x = np.concatenate([x, normal(*x.shape)], axis=1) if gated else x
    out = np.full((2, values.size), np.nan, np.float32)
    OPS.activate(name, x, gated, out)
    expected = reference.activate(name, torch.from_numpy(x).double(), gated)
    assert np.allclose(out, expected, rtol=3e-6, atol=1e-6)


@function_of
def test_an_activation_in_place_is_the_same(name: str) -> None:
    x = normal(3, 100)
    expected = np.full_like(x, np.nan)
    OPS.activate(name, x, False, expected)
    OPS.activate(name, x, False, x)
    assert np.array_equal(x, expected)


@function_of
def test_nan_passes_through_an_activation(name: str) -> None:
    x, out = normal(2, 40), np.zeros((2, 20), np.float32)
    x[0, [3, 25]] = np.nan
    OPS.activate(name, x, True, out)
    assert np.argwhere(np.isnan(out)).tolist() == [[0, 3], [0, 5]]


def test_a_table_is_looked_up_as_the_reference_says() -> None:
    random = np.random.default_rng(0)
    q = random.integers(-127, 128, (50, 128), np.int8)
    scale = random.integers(0, 0x7C00, (50, 4), np.uint16)  # every size of float16, also those that are not normal
    ids, out = np.array([49, 0, 7, 7]), np.full((4, 100), np.nan, np.float32)
    OPS.lookup(ids, Weight("table", lanes.pack(q), lanes.pack_scale(scale), NOTHING, 100), out)
    expected = reference.dequantise_table(torch.from_numpy(q), torch.from_numpy(scale.view(np.float16)))
    assert np.array_equal(out, expected[ids, :100])


@pytest.mark.parametrize("form", TYPES)
def test_a_table_of_floats_is_looked_up_exactly(form: str) -> None:
    table = torch.from_numpy(normal(50, 37)).to(TYPES[form])
    table[7, 5] = torch.nan
    bits = table.numpy() if form == "float32" else table.view(torch.int16).numpy().view(np.uint16)
    ids, out = np.array([49, 0, 7, 7]), np.full((4, 37), -1, np.float32)
    OPS.lookup(ids, Weight(form, bits, None, NOTHING, 37), out)
    assert np.array_equal(out, table[ids].float(), equal_nan=True)

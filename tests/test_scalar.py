"""The scalars that kernels are made of: 16-bit floats against NumPy over every code, and exp against float64.

Each is tried as it is on this machine and in the version for machines without the instructions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numba import njit

from bigrun_kernels.cpu import scalar

CODES = np.arange(1 << 16).astype(np.uint16)
TO_FLOAT = {"chosen": scalar.half_to_float, "portable": scalar.half_to_float_portable}
TO_HALF = {"chosen": scalar.float_to_half, "portable": scalar.float_to_half_portable}


def over(function: Any, source: np.ndarray, kind: type) -> np.ndarray:
    """The function of each entry, in a loop that LLVM may vectorise."""

    @njit(error_model="numpy")
    def loop(source: np.ndarray, target: np.ndarray) -> None:
        for i in range(source.size):
            target[i] = function(source[i])

    target: np.ndarray = np.zeros(source.shape, kind)
    loop(source, target)
    return target


def floats(bits: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(bits, np.uint32).view(np.float32)


def same(got: np.ndarray, expected: np.ndarray) -> bool:
    """Equal to the bit, but for what is in a NaN."""
    bits = {2: np.uint16, 4: np.uint32}[expected.itemsize]
    nan = np.isnan(expected)
    return np.array_equal(np.isnan(got), nan) and np.array_equal(got[~nan].view(bits), expected[~nan].view(bits))


@pytest.mark.parametrize("version", TO_FLOAT)
def test_every_float16_becomes_itself(version: str) -> None:
    assert same(over(TO_FLOAT[version], CODES, np.float32), CODES.view(np.float16).astype(np.float32))


def test_every_bfloat16_becomes_itself() -> None:
    got = over(scalar.bfloat_to_float, CODES, np.float32)
    assert np.array_equal(got.view(np.uint32), CODES.astype(np.uint32) << 16)


@pytest.fixture(scope="module")
def difficult() -> np.ndarray:
    """Random bits; every float16, half way to the next, and a bit either side of both; the ends of the range."""
    random = np.random.default_rng(0).integers(0, 1 << 32, 1 << 20, np.uint32)
    exact = CODES[:0x7C00].view(np.float16).astype(np.float64)
    half_way = np.concatenate([(exact[1:] + exact[:-1]) / 2, [65520.0]])
    near = np.concatenate([exact, half_way]).astype(np.float32).view(np.uint32)
    ends = np.array([0, 1, 0x7FFFFF, 0x800000, 0x33000000, 0x33000001, 0x477FEFFF, 0x477FF000, 0x7F7FFFFF, 0x7F800000])
    nans = np.array([0x7F800001, 0x7FC00000, 0x7FFFFFFF])
    positive = np.concatenate([near, near + 1, np.maximum(near, 1) - 1, ends, nans]).astype(np.uint32)
    return np.concatenate([random, positive, positive | np.uint32(1 << 31)])


@pytest.mark.parametrize("version", TO_HALF)
def test_float32_rounds_to_float16_as_in_numpy(version: str, difficult: np.ndarray) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        expected = floats(difficult).astype(np.float16)
    got = over(TO_HALF[version], floats(difficult), np.uint16)
    assert same(got.view(np.float16), expected)


def test_exp_is_within_two_ulps() -> None:
    random = np.random.default_rng(1)
    edges = np.arange(-125, 127) * np.log(2) / 2  # where the power of two changes
    x = np.concatenate([random.uniform(-87.3, 88, 400_000), random.normal(0, 1e-3, 10_000), edges, edges + 1e-6])
    x = x.astype(np.float32)
    truth = np.exp(x.astype(np.float64))
    assert np.all(np.abs(over(scalar.exp, x, np.float32) - truth) <= 2 * np.spacing(truth.astype(np.float32)))


def test_exp_at_its_ends() -> None:
    x = np.array([0.0, -0.0, np.nan, -90.0, -1e30, -np.inf], np.float32)
    got = over(scalar.exp, x, np.float32)
    assert got[:2].tolist() == [1.0, 1.0]
    assert np.isnan(got[2])
    assert np.all((got[3:] >= 0) & (got[3:] < 1.3e-38))

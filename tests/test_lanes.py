"""The layout of int8 weights: where each element lies, and back again."""

import numpy as np
import pytest
import torch

from bigrun_kernels import lanes


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (16, 64), (17, 65), (40, 130)])
def test_an_element_lies_where_the_format_says(rows: int, columns: int) -> None:
    q = np.random.default_rng(0).integers(-127, 128, (rows, columns), np.int8)
    stored = lanes.pack(q)
    assert stored.shape == lanes.shape(rows, columns)
    assert stored.shape[1] % 16 == 0, "columns are padded to 64"
    for n, k in {(0, 0), (rows - 1, columns - 1), (rows // 2, columns // 2)}:
        assert stored[n // 16, k // 4, n % 16, k % 4] == q[n, k]
    assert np.abs(stored.astype(int)).sum() == np.abs(q.astype(int)).sum(), "padding is zero"
    assert np.array_equal(lanes.unpack(stored, rows, columns), q)
    assert torch.equal(lanes.unpack(torch.from_numpy(stored), rows, columns), torch.from_numpy(q))


def test_a_tables_constants_lie_beside_each_other_for_a_panel() -> None:
    scale = np.random.default_rng(0).random((19, 4), np.float32)
    stored = lanes.pack_scale(scale)
    assert stored.shape == lanes.scale_shape(19, 128)
    assert stored[1, 3, 2] == scale[18, 3]
    assert np.array_equal(lanes.unpack_scale(stored, 19), scale)


def test_a_panel_is_one_sweep_of_memory() -> None:
    stored = lanes.pack(np.arange(32, dtype=np.int8)[:, None].repeat(64, 1))
    assert stored.flags.c_contiguous
    assert set(stored.reshape(2, -1)[1]) == set(range(16, 32))

"""The embedding and the head in Triton, under Triton's interpreter."""

from functools import cache

import pytest
import torch
from torch import Tensor

from bigrun_kernels import reference
from bigrun_kernels.gpu import table as kernels

NAN, INF = float("nan"), float("inf")


@cache
def stored(v: int, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """A table as it is kept: q [Vp, Kp] and scale [Vp, Kp/32]; and what it stands for, float32 [V, K]."""
    torch.manual_seed(v + k)
    w = torch.zeros(-(-v // 16) * 16, -(-k // 64) * 64)
    w[:v, :k] = torch.randn(v, k) * torch.logspace(-3, 1, k)  # scales of many sizes along a row
    q, scale = reference.quantise_groups(w)
    return q, scale, reference.dequantise_table(q, scale)[:v, :k]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("v", "k"), [(33, 100), (20, 1090), (1, 1)])
def test_lookup_is_exact(v: int, k: int, dtype: torch.dtype) -> None:
    q, scale, meant = stored(v, k)
    ids = torch.tensor([v - 1, 0, v // 2, v - 1])
    wide = torch.full((4, k + 3), NAN, dtype=dtype)
    kernels.lookup(ids, q, scale, wide[:, :k])
    assert torch.equal(wide[:, :k], meant[ids].to(dtype))
    assert wide[:, k:].isnan().all()


def test_an_id_outside_the_table_is_nan() -> None:
    q, scale, _ = stored(33, 100)
    out = torch.zeros(4, 100)
    kernels.lookup(torch.tensor([-1, 0, 48, 2**40]), q, scale, out)
    assert out.isnan().all(dim=1).tolist() == [True, False, True, True]
    assert out[1].isfinite().all()


@pytest.mark.parametrize(("m", "v", "k", "dtype", "biased"), [
    (1, 33, 100, torch.float16, True), (17, 9, 570, torch.float32, False), (3, 1, 700, torch.float16, True),
])  # fmt: skip
def test_the_head_agrees_with_float64(m: int, v: int, k: int, dtype: torch.dtype, biased: bool) -> None:
    q, scale, meant = stored(v, k)
    x = torch.full((m, k + 70), NAN, dtype=dtype)[:, :k]  # nothing beyond K may be read, not even against zeros
    x.copy_(torch.randn(m, k))
    x[m // 2] = 0 if m > 1 else x[0]
    bias = torch.randn(v) if biased else None
    wide = torch.full((m, v + 3), NAN)
    kernels.table_linear(x, q, scale, bias, wide[:, :v])
    added = bias.double() if bias is not None else torch.zeros(v).double()
    expected = x.double() @ meant.double().T + added
    size = x.double().abs() @ meant.double().abs().T + added.abs()
    assert ((wide[:, :v] - expected).abs() - 1e-6 * size).max().item() <= 0
    assert wide[:, v:].isnan().all()
    if m > 1:
        assert torch.equal(wide[m // 2, :v].double(), added)


def test_a_row_gets_the_same_bits_in_any_company() -> None:
    """The last m rows, m = 1 … 9: the same row at other places, alone and among others, even beside an ill one."""
    q, scale, _ = stored(9, 300)
    x = torch.randn(9, 300)
    every = torch.full((9, 9), NAN)
    kernels.table_linear(x, q, scale, None, every)
    for m in (1, 2, 3, 5):
        some = torch.full((m, 9), NAN)
        kernels.table_linear(x[-m:], q, scale, None, some)
        assert torch.equal(some, every[-m:])
    x[1, 7], x[6, 8] = NAN, INF
    ill = torch.zeros(9, 9)
    kernels.table_linear(x, q, scale, None, ill)
    assert ill[1].isnan().all()
    assert not ill[6].isfinite().any()
    well = [0, 2, 3, 4, 5, 7, 8]
    assert torch.equal(ill[well], every[well])


Q, S, _ = stored(33, 100)
X, OUT, IDS = torch.ones(2, 100), torch.ones(2, 33), torch.tensor([1, 2])
WRONG = {
    "x is .*int64": lambda: kernels.table_linear(X.long(), Q, S, None, OUT),
    "out is .*float16": lambda: kernels.table_linear(X, Q, S, None, OUT.half()),
    r"out is \[3, 33\].*must be \[2, 33\]": lambda: kernels.table_linear(X, Q, S, None, torch.ones(3, 33)),
    r"bias is \[32\]": lambda: kernels.table_linear(X, Q, S, OUT[0, :32], OUT),
    r"q is \[48, 128\].*must be \[64, 128\]": lambda: kernels.table_linear(X, Q, S, None, torch.ones(2, 49)),
    r"q is \[48, 128\].*must be \[48, 192\]": lambda: kernels.lookup(IDS, Q, S, torch.ones(2, 129)),
    "scale is .*float32": lambda: kernels.lookup(IDS, Q, S.float(), X),
    "ids is .*int32": lambda: kernels.lookup(IDS.int(), Q, S, X),
    r"ids is \[2\].*must be \[1\]": lambda: kernels.lookup(IDS, Q, S, X[:1]),
    "must be contiguous": lambda: kernels.lookup(IDS, torch.cat([Q, Q], dim=1)[:, :128], S, X),
}


@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_call_says_what_is_wrong(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WRONG[message]()

"""The Triton norms and activations, and the outlier columns that they mark, under Triton's interpreter."""

from typing import Any

import pytest
import torch
from torch import Tensor

from bigrun_kernels import reference
from bigrun_kernels.gpu import norm as kernels

NAN, INF = float("nan"), float("inf")
HALF, BRAIN, FLOAT = torch.float16, torch.bfloat16, torch.float32
ROUNDING = {HALF: 2**-11, FLOAT: 1e-6}
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of overflows that a GPU has in silence


def outliers(y: Tensor, threshold: float) -> list[int]:
    """The paper's set, as reference.linear_llm_int8 has it: |y| ≥ threshold in some row of finite numbers."""
    return (y[y.isfinite().all(dim=1)].abs() >= threshold).any(dim=0).nonzero().flatten().tolist()


def found(marks: Tensor) -> list[int]:
    assert set(marks.tolist()) <= {0, 1}
    return marks.nonzero().flatten().tolist()


def poisoned(rows: int, columns: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """An output of NaN whose rows lie in wider ones, and what is beside it."""
    wide = torch.full((rows, columns + 3), NAN, dtype=dtype)
    return wide[:, :columns], wide[:, columns:]


def normed(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype = FLOAT, **options: Any) -> Tensor:
    rows, columns = x.shape
    out, beside = poisoned(rows, columns, dtype)
    kernels.norm(x, weight, bias, options.pop("eps", 1e-5), out, **options)
    assert beside.isnan().all()
    return out


@pytest.mark.parametrize(
    ("heads", "kv_heads", "size", "kind"), [(3, 1, 24, HALF), (4, 4, 128, FLOAT), (2, 1, 600, HALF)]
)
def test_norms_of_heads_agree_with_float64(heads: int, kv_heads: int, size: int, kind: torch.dtype) -> None:
    """In place, in rows that are wider than what is normed; values stay as they are."""
    torch.manual_seed(0)
    qkv = (torch.randn(5, (heads + 2 * kv_heads) * size + 3) * 3).to(kind)
    q, k = torch.randn(size), torch.randn(size)
    vectors, rest = qkv[:, : (heads + kv_heads) * size], qkv[:, (heads + kv_heads) * size :].clone()
    parts = vectors.double().view(5, heads + kv_heads, size)
    expected = reference.norm_heads(parts, q.double(), k.double(), heads, 1e-6).view(5, -1)
    kernels.norm_heads(qkv, heads, kv_heads, size, q, k, 1e-6)
    assert torch.equal(qkv[:, (heads + kv_heads) * size :], rest)
    worst = (vectors.double() - expected).abs() - ROUNDING[kind] * expected.abs()
    assert worst.max().item() <= 2e-6 * (1 + expected.abs().max().item())


@pytest.mark.parametrize("layer", [False, True], ids=["rms", "layer"])
@pytest.mark.parametrize(
    ("t", "h", "kind", "out"),
    [(17, 100, HALF, HALF), (1, 576, FLOAT, HALF), (2, 1, HALF, FLOAT), (2, 16_400, FLOAT, FLOAT)],
)
def test_norm_agrees_with_float64(t: int, h: int, kind: torch.dtype, out: torch.dtype, layer: bool) -> None:
    torch.manual_seed(0)
    x = (torch.randn(t, h + 5) * 3 + 40)[:, :h].to(kind)  # far from zero: the variance needs the mean taken off first
    x[0, 0] = 5
    x[-1] = 0 if t > 2 else x[-1]
    weight, bias = torch.randn(h), torch.randn(h)
    got = normed(x, weight, bias if layer else None, out)
    empty = torch.empty(0)
    expected = reference.norm(x.double(), weight.double(), (bias if layer else empty).double(), 1e-5)
    assert got.dtype == out
    worst = (got.double() - expected).abs() - ROUNDING[out] * expected.abs()
    assert worst.max().item() <= 2e-6 * (1 + expected.abs().max().item())


def test_long_rows_are_read_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """With small blocks the loops give what one block gives, up to the order of the sums, marks included."""
    torch.manual_seed(1)
    x, weight, bias = torch.randn(3, 700) * 2, torch.rand(700), torch.randn(700)
    x[2, 3] = INF
    for shift in (None, bias):
        whole, parts = torch.zeros(700, dtype=torch.int32), torch.zeros(700, dtype=torch.int32)
        expected = normed(x, weight, shift, marks=whole, threshold=2.0)
        with monkeypatch.context() as patch:
            patch.setattr(kernels, "ROW_BLOCK", 512)
            patch.setattr(kernels, "LOOP_BLOCK", 256)
            got = normed(x, weight, shift, marks=parts, threshold=2.0)
        assert torch.allclose(got, expected, rtol=1e-6, atol=1e-6, equal_nan=True)
        assert got[2].isnan().all()
        assert found(parts) == found(whole) == outliers(expected, 2.0) != []


@pytest.mark.parametrize("ill", [INF, -INF, NAN])
@pytest.mark.parametrize("layer", [False, True], ids=["rms", "layer"])
def test_a_row_with_inf_or_nan_is_a_row_of_nan_and_marks_nothing(ill: float, layer: bool) -> None:
    x = torch.ones(3, 40).half()
    x[:, ::2] = -1
    x[1, 7], x[1, 8] = ill, 100
    marks = torch.zeros(40, dtype=torch.int32)
    got = normed(x, torch.full((40,), 7.0), torch.zeros(40) if layer else None, HALF, marks=marks, threshold=7.5)
    assert got[1].isnan().all()
    assert got[[0, 2]].isfinite().all()
    assert found(marks) == []


def test_a_row_that_a_weight_makes_ill_marks_nothing() -> None:
    weight = torch.full((40,), 9.0)
    weight[3] = INF
    marks = torch.zeros(40, dtype=torch.int32)
    got = normed(torch.ones(2, 40), weight, None, marks=marks, threshold=6.0)
    assert got[0, 3] == INF
    assert found(marks) == []


def test_float16_saturates_and_other_types_do_not() -> None:
    weight = torch.tensor([1e5, -1e5, 65_519.0, 1.0])
    x = torch.ones(1, 4)
    assert normed(x, weight, None, HALF, eps=0).tolist() == [[65_504, -65_504, 65_504, 1]]
    assert normed(x, weight, None, FLOAT, eps=0).tolist() == [weight.tolist()]
    assert normed(x, torch.full((4,), 2.0**20), None, BRAIN, eps=0).tolist() == [[2.0**20] * 4]


def test_the_threshold_itself_is_an_outlier_as_rounded() -> None:
    """A row of ones comes out as the weight: 6.0 is an outlier, 5.999 becomes 6.0 as float16, 5.996 does not."""
    weight = torch.tensor([6.0, 5.999, 5.996, -6.0, 0.0, 7.0])
    for dtype, expected in {HALF: [0, 1, 3, 5], FLOAT: [0, 3, 5]}.items():
        marks = torch.zeros(9, dtype=torch.int32)
        marks[4], marks[8] = 1, 1  # never reset
        normed(torch.ones(2, 6), weight, None, dtype, eps=0, marks=marks, threshold=6.0)
        assert found(marks) == sorted([*expected, 4, 8])


def test_threshold_zero_marks_nothing() -> None:
    marks = torch.zeros(8, dtype=torch.int32)
    normed(torch.randn(2, 8), torch.ones(8), None, marks=marks)
    kernels.activate("relu", torch.randn(2, 8), False, torch.empty(2, 8), marks, 0.0)
    kernels.mark(torch.randn(2, 8), marks, 0.0)
    assert found(marks) == []


def test_a_row_does_not_depend_on_its_company() -> None:
    torch.manual_seed(2)
    x, weight, bias = torch.randn(6, 300), torch.randn(300), torch.randn(300)
    every = normed(x, weight, bias)
    out = torch.full((6, 150), NAN).half()
    kernels.activate("gelu", x, True, out)
    for i in (0, 5):
        assert torch.equal(normed(x[i : i + 1], weight, bias)[0], every[i])
        alone = torch.full((1, 150), NAN).half()
        kernels.activate("gelu", x[i : i + 1], True, alone)
        assert torch.equal(alone[0], out[i])


@pytest.mark.parametrize("kind", kernels.ACTIVATIONS)
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_activations_agree_with_float64(kind: str, gated: bool) -> None:
    values = torch.cat(
        [torch.linspace(-12, 12, 1290), torch.tensor([0.0, -0.0, 1e-6, -40, 40, -300, 300, -6e4, 6e4, 3e38])]
    )
    x = torch.stack([values, values.flip(0)])  # 1,300 columns: two programs a row
    x = torch.cat([x, x.flip(0).clamp(-9, 9) / 9], dim=1) if gated else x
    x = torch.cat([x, torch.full((2, 7), NAN)], dim=1)[:, :-7]
    out, beside = poisoned(2, 1300, FLOAT)
    kernels.activate(kind, x, gated, out)
    expected = reference.activate(kind, x.double(), gated)
    assert ((out.double() - expected).abs() - 3e-7 * expected.abs()).max().item() <= 1e-6
    assert beside.isnan().all()


@pytest.mark.parametrize("kind", kernels.ACTIVATIONS)
def test_activations_follow_torch_at_inf_and_nan(kind: str) -> None:
    x = torch.tensor([[INF, -INF, NAN, 1.0]])
    out = torch.full((1, 4), 9.0)
    kernels.activate(kind, x, False, out)
    assert torch.allclose(out, reference.activate(kind, x, False), equal_nan=True)
    half = torch.full((1, 4), 9.0).half()
    kernels.activate(kind, x, False, half)
    assert half[0].isnan().tolist() == [True, kind != "relu", True, False], "as float16, what is not finite is NaN"


def test_activation_saturates_and_marks() -> None:
    x = torch.zeros(4, 2600)  # up to 1,300: the gate; beyond: what it multiplies
    x[:, 1300:] = 1
    x[0, 5], x[0, 1305] = 300, 400  # 120,000
    x[1, 6], x[1, 1250] = 6.0, 5.999
    x[2, 9], x[2, 1299] = 50.0, NAN
    x[3, 7], x[3, 1307] = 3.0, -2.0
    out, marks = torch.full((4, 1300), NAN).half(), torch.zeros(1400, dtype=torch.int32)
    kernels.activate("relu", x, True, out, marks, 6.0)
    assert out[0, 5].item() == 65_504
    assert torch.equal(
        out[[0, 1, 3]].float(), reference.activate("relu", x, True)[[0, 1, 3]].half().float().clamp(max=65_504)
    )
    assert found(marks) == outliers(out, 6.0) == [5, 6, 7, 1250]


@pytest.mark.parametrize("dtype", [HALF, BRAIN, FLOAT])
def test_mark_finds_the_papers_outliers(dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    x = (torch.randn(17, 1100) * 1.5).to(dtype)[:, :1050]
    x[4, 900], x[5, 1], x[6, 2] = -6.0, INF, NAN
    x[5, 3], x[6, 4], x[0, :5] = 60, 60, 0
    x[:, 3:5] = x[:, 3:5].where(x[:, 3:5] == 60, torch.zeros_like(x[:, 3:5]))  # only in ill rows
    marks = torch.zeros(1050, dtype=torch.int32)
    kernels.mark(x, marks, 6.0)
    assert found(marks) == outliers(x, 6.0)
    assert 900 in found(marks)
    assert not {3, 4} & set(found(marks))


X, W = torch.ones(2, 8), torch.ones(8)
MARKS = torch.zeros(8, dtype=torch.int32)
WRONG = {
    "x is .*float64": lambda: kernels.norm(X.double(), W, None, 1e-5, X),
    r"x is \[8\]": lambda: kernels.norm(W, W, None, 1e-5, X),
    r"out is \[2, 7\].*must be \[2, 8\]": lambda: kernels.norm(X, W, None, 1e-5, X[:, :7]),
    r"weight is \[7\]": lambda: kernels.norm(X, W[:7], None, 1e-5, X.clone()),
    "bias is .*float16": lambda: kernels.norm(X, W, W.half(), 1e-5, X.clone()),
    "x has strides": lambda: kernels.norm(torch.ones(8, 2).t(), W, None, 1e-5, X.clone()),
    "marks is .*int64": lambda: kernels.norm(X, W, None, 1e-5, X.clone(), MARKS.long(), 6.0),
    r"marks is \[7\].*must be \[8\]": lambda: kernels.mark(X, MARKS[:7], 6.0),
    "kind is 'tanh'": lambda: kernels.activate("tanh", X, False, X.clone()),
    "two halves": lambda: kernels.activate("silu", X[:, :7], True, X[:, :3].clone()),
    r"out is \[2, 8\].*must be \[2, 4\]": lambda: kernels.activate("silu", X, True, X.clone()),
}


@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_call_says_what_is_wrong(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WRONG[message]()

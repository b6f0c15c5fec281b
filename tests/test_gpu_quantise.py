"""LLM.int8()'s quantiser in Triton and its outliers' bookkeeping, under Triton's interpreter."""

import pytest
import torch
from torch import Tensor

from bigrun_kernels import reference
from bigrun_kernels.gpu import norm
from bigrun_kernels.gpu import quantise as kernels

NAN, INF = float("nan"), float("inf")
HALF, BRAIN, FLOAT = torch.float16, torch.bfloat16, torch.float32


def marked(columns: list[int], length: int) -> Tensor:
    marks = torch.zeros(length, dtype=torch.int32)
    marks[columns] = 1
    return marks


def quantised(x: Tensor, marks: Tensor | None, group: int = 0) -> tuple[Tensor, Tensor]:
    """The kernel's integers and scales, out of poisoned memory; the rows of xq lie in wider ones."""
    t, kp = len(x), -(-x.shape[1] // 64) * 64
    wide = torch.full((t, kp + 64), 99, dtype=torch.int8)
    scale = torch.full((t, -(-kp // group)) if group else (t,), NAN)
    kernels.quantise(x, marks, wide[:, :kp], scale, group)
    assert (wide[:, kp:] == 99).all()
    return wide[:, :kp], scale


def expected(x: Tensor, marks: Tensor | None, group: int = 0) -> tuple[Tensor, Tensor]:
    """The same by reference.quantise_rows, each group being a row."""
    t, k = x.shape
    kp = -(-k // 64) * 64
    width = group or kp
    rest = torch.zeros(t, -(-kp // width) * width)
    rest[:, :k] = x if marks is None else x.masked_fill(marks[:k] != 0, 0)
    ill = ~x.isfinite().all(dim=1)
    q, scale = reference.quantise_rows(rest.masked_fill(ill[:, None], 0).reshape(-1, width))
    scale = scale.reshape(t, -1).masked_fill(ill[:, None], NAN)
    return q.reshape(t, -1)[:, :kp], scale if group else scale[:, 0]


def assert_same(got: tuple[Tensor, Tensor], expected_pair: tuple[Tensor, Tensor]) -> None:
    assert torch.equal(got[0], expected_pair[0])
    assert torch.equal(got[1].nan_to_num(-1), expected_pair[1].nan_to_num(-1))


def awkward(t: int, k: int, dtype: torch.dtype) -> Tensor:
    """Rows of many sizes in wider rows: one all zero, one with inf, one with NaN, if there are enough."""
    torch.manual_seed(t + k)
    x = (torch.randn(t, k + 3) * torch.logspace(-4, 3, t)[:, None]).to(dtype)[:, :k]
    if t > 4:
        x[1] = 0
        x[2, k // 2], x[3, 0] = -INF, NAN
    return x


CASES = [(17, 100, HALF, 0), (7, 130, BRAIN, 0), (1, 576, FLOAT, 0), (2, 1, HALF, 32)]
CASES += [(5, 640, FLOAT, group) for group in kernels.GROUPS if group]


@pytest.mark.parametrize(("t", "k", "dtype", "group"), CASES)
def test_integers_and_constants_are_the_references(t: int, k: int, dtype: torch.dtype, group: int) -> None:
    x = awkward(t, k, dtype)
    marks = marked(list(range(0, k, 7))[1:], k + 5)
    assert_same(quantised(x, marks, group), expected(x, marks, group))
    assert_same(quantised(x[-3:], None, group), expected(x[-3:], None, group))


@pytest.mark.parametrize("group", [0, 64])
def test_long_rows_are_read_in_blocks(monkeypatch: pytest.MonkeyPatch, group: int) -> None:
    monkeypatch.setattr(norm, "ROW_BLOCK", 512)
    monkeypatch.setattr(norm, "LOOP_BLOCK", 256)
    x, marks = awkward(6, 700, FLOAT), marked([3, 600, 699], 700)
    assert_same(quantised(x, marks, group), expected(x, marks, group))


def test_ties_go_to_the_even_integer() -> None:
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, 0.49999997, 125.5]])
    q, scale = quantised(x, None)
    assert scale.tolist() == [1.0]
    assert q[0, :8].tolist() == [127, 0, 2, 2, 0, -2, 0, 126]


def test_the_division_is_ieees() -> None:
    """Entries at (n + ½)·s within a rounding error: a product with 1/s would turn many of them the other way."""
    torch.manual_seed(5)
    scale = torch.rand(8, 1) / 10 + 1e-3
    x = (torch.randint(-126, 126, (8, 2000)) + 0.5) * scale
    x[:, 0] = 127 * scale[:, 0]
    assert_same(quantised(x, None), expected(x, None))


@pytest.mark.parametrize("group", [0, 32])
def test_an_all_outlier_row_is_zero_and_a_marked_inf_still_counts(group: int) -> None:
    x = torch.full((3, 40), 8.0).half()
    x[1, 2], x[2, 39] = INF, NAN
    q, scale = quantised(x, marked(list(range(40)), 40), group)
    assert not q.any()
    assert (scale[0] == 1).all()
    assert scale[1:].isnan().all()


def test_a_row_does_not_depend_on_its_company() -> None:
    x, marks = awkward(6, 200, HALF), marked([4, 150], 200)
    q, scale = quantised(x, marks)
    for i in (0, 1, 5):
        assert_same(quantised(x[i : i + 1], marks), (q[i : i + 1], scale[i : i + 1]))


@pytest.mark.parametrize("columns", [[], [0], [4095, 4096, 4999], list(range(5000)), list(range(1, 5000, 3))], ids=len)
def test_compact_lists_the_marks_in_order_and_clears_them(columns: list[int]) -> None:
    marks = marked(columns, 5000)
    listed, count = torch.full((5000,), -7, dtype=torch.int32), torch.full((1,), -7, dtype=torch.int32)
    kernels.compact(marks, listed, count)
    assert count.item() == len(columns)
    assert listed.tolist() == columns + [-7] * (5000 - len(columns))
    assert not marks.any()


def test_marks_may_be_longer_than_the_columns() -> None:
    marks, listed, count = marked([5, 90, 150], 200), torch.full((100,), -7, dtype=torch.int32), marked([], 1)
    kernels.compact(marks, listed, count)
    assert count.item() == 2
    assert listed[:3].tolist() == [5, 90, -7]
    assert not marks.any()


@pytest.mark.parametrize("number", [0, 1, 32, 33, 64, 65])
def test_gather_copies_the_listed_columns(number: int) -> None:
    torch.manual_seed(number)
    q = torch.randint(-127, 128, (70, 192)).to(torch.int8)
    columns = torch.full((192,), 10**6, dtype=torch.int32)  # beyond the count: must not be followed
    columns[:number] = torch.randperm(192)[:number].sort().values
    side = torch.full((70, 64), 99, dtype=torch.int8)
    kernels.gather(q, columns, torch.tensor([number], dtype=torch.int32), side)
    if number > 64:
        assert (side == 99).all()
        return
    end = -(-number // 32) * 32
    assert torch.equal(side[:, :number], q[:, columns[:number].long()])
    assert not side[:, number:end].any()
    assert (side[:, end:] == 99).all()


def test_the_parts_make_up_llm_int8() -> None:
    """Marks, integers, the list and the gathered columns, put together: reference.linear_llm_int8 (section 3.2)."""
    torch.manual_seed(6)
    x, k = torch.randn(17, 100).half(), 100
    x[3, 40], x[5, 41], x[7, 99], x[8, 3] = 6.0, 5.996, -30, NAN
    x[9] = 0
    q, scale = reference.quantise_rows(torch.randn(9, k))
    padded = torch.zeros(9, 128, dtype=torch.int8)
    padded[:, :k] = q
    marks, columns, count = marked([], k), torch.zeros(k, dtype=torch.int32), marked([], 1)
    side = torch.zeros(9, 32, dtype=torch.int8)
    norm.mark(x, marks, 6.0)
    xq, sx = quantised(x, marks)
    kernels.compact(marks, columns, count)
    kernels.gather(padded, columns, count, side)
    assert columns[: count.item()].tolist() == [40, 99]
    total = (xq.double() @ padded.double().T) * sx.double()[:, None]
    total += x[:, [40, 99]].double() @ side[:, :2].double().T
    y = (total * scale.double()).float()
    assert torch.allclose(y, reference.linear_llm_int8(x.float(), q, scale), rtol=1e-6, atol=1e-6, equal_nan=True)


X, XQ, SX = torch.ones(2, 60), torch.zeros(2, 64, dtype=torch.int8), torch.ones(2)
I32, Q = torch.zeros(60, dtype=torch.int32), torch.zeros(5, 64, dtype=torch.int8)
WRONG = {
    "group is 48": lambda: kernels.quantise(X, None, XQ, SX, 48),
    "x is .*int8": lambda: kernels.quantise(XQ, None, XQ, SX),
    r"xq is \[2, 60\].*must be \[2, 64\]": lambda: kernels.quantise(X, None, XQ[:, :60], SX),
    r"scale is \[2\].*must be \[2, 2\]": lambda: kernels.quantise(X, None, XQ, SX, 32),
    r"marks is \[59\].*must be \[60\]": lambda: kernels.quantise(X, I32[:59], XQ, SX),
    "columns is .*int64": lambda: kernels.compact(I32, I32.long(), I32[:1]),
    "columns may be as long as marks": lambda: kernels.compact(I32[:30], I32, I32[:1]),
    "count is one number": lambda: kernels.compact(I32, I32, I32[:2]),
    "a multiple of 32": lambda: kernels.gather(Q, I32, I32[:1], torch.zeros(5, 40, dtype=torch.int8)),
    r"side is \[4, 32\]": lambda: kernels.gather(Q, I32, I32[:1], Q[:4, :32]),
    "q has strides .* must be contiguous": lambda: kernels.gather(Q[:, :32], I32, I32[:1], Q[:, 32:]),
}


@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_call_says_what_is_wrong(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WRONG[message]()

"""The Triton linear layers, run by Triton's interpreter (conftest.py): against float64, and against the reference ops.

The interpreter's bfloat16 products are wrong, so that type's tensor-core paths are compiled (test_gpu_compile.py) but not run.
"""

import re
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from bigrun_kernels import reference as definition
from bigrun_kernels.gpu import linear, quantise, tables

Case = tuple[str, dict[str, Any]]  # a function of bigrun_kernels.gpu.linear and its arguments
NAN = float("nan")


def interpret(cases: dict[str, Case]) -> dict[str, Any]:
    """Each case's output, or the message of its ValueError. Memory that a case does not write is NaN."""
    answers: dict[str, Any] = {}
    torch.use_deterministic_algorithms(True)  # this is what fills torch.empty with NaN
    try:
        for name, (function, arguments) in cases.items():
            try:
                answers[name] = getattr(linear, function)(**arguments)
            except ValueError as error:
                answers[name] = str(error)
    finally:
        torch.use_deterministic_algorithms(False)
    return answers


SHAPES = [(1, 1, 1), (1, 9, 63), (2, 33, 100), (17, 1, 130), (17, 9, 64), (3, 12, 2500), (70, 130, 200)]
RUNNABLE = [
    ("decode", torch.float16), ("decode", torch.bfloat16), ("decode", torch.float32),
    ("small", torch.float16), ("small", torch.float32), ("tile", torch.float16), ("tile", torch.float32),
]  # fmt: skip
EXACT = [(*shape, path, dtype) for shape in SHAPES for path, dtype in RUNNABLE if shape[0] < 70 or path == "tile"]
INTEGER = [(1, 1, 64), (2, 33, 128), (17, 1, 192), (17, 70, 64), (65, 130, 256), (130, 20, 320), (2, 3, 8192)]
ERRORS: list[tuple[str, dict[str, Any], str]] = [
    ("linear_exact", {"x": torch.zeros(2, 60, dtype=torch.int8)}, "linear_exact takes float16"),
    ("linear_exact", {"x": torch.zeros(60)}, r"x is \[60\]; it must be \[M, K\]"),
    ("linear_exact", {"x": torch.zeros(0, 60)}, "not empty"),
    ("linear_exact", {"x": torch.zeros(2, 65)}, "x has 65 columns and q 64"),
    ("linear_exact", {"x": torch.zeros(2, 60).bfloat16(), "path": "tile"}, "interpreter multiplies bfloat16"),
    ("linear_exact", {"path": "fast"}, "path is 'fast'"),
    ("linear_exact", {"q": torch.zeros(5, 60, dtype=torch.int8)}, "multiple of 64"),
    ("linear_exact", {"q": torch.zeros(5, 64)}, "it must be .* torch.int8"),
    ("linear_exact", {"q": torch.zeros(64, 5, dtype=torch.int8).t()}, "q has strides .* contiguous"),
    ("linear_exact", {"scale": torch.ones(4)}, r"scale is \[4\] .* must be \[5\]"),
    ("linear_exact", {"scale": torch.ones(5).half()}, "scale is .* torch.float16 .* must be .* torch.float32"),
    ("linear_exact", {"bias": torch.ones(5, dtype=torch.int32)}, "bias is"),
    ("linear_exact", {"out": torch.ones(5, 2)}, r"out is \[5, 2\] .* must be \[2, 5\]"),
    ("linear_exact", {"scale": torch.ones(5, device="meta")}, "on meta; it must be .* on cpu"),
    ("linear_int8", {"xq": torch.zeros(2, 64)}, "linear_int8 takes int8"),
    ("linear_int8", {"xq": torch.zeros(2, 60, dtype=torch.int8)}, "xq has 60 columns and q 64"),
    ("linear_int8", {"sx": torch.ones(3)}, r"sx is \[3\] .* must be \[2\]"),
]


def weights(n: int, k: int) -> dict[str, Any]:
    """A layer of n rows: q's padding is zero, and every int8 that a quantiser makes can occur."""
    q = torch.zeros(n, -(-k // 64) * 64, dtype=torch.int8)
    q[:, :k] = torch.randint(-127, 128, (n, k))
    return {"q": q, "scale": torch.rand(n) / 100 + 1e-3, "bias": torch.randn(n)}


@cache
def all_cases() -> dict[str, Case]:
    torch.manual_seed(0)
    cases: dict[str, Case] = {}
    for m, n, k, path, dtype in EXACT:
        x = torch.randn(m, k).to(dtype)
        x[m // 2] = 0 if m > 1 else x[0]
        out = torch.full((m, n), NAN)
        cases[f"exact {m} {n} {k} {path} {dtype}"] = "linear_exact", {"x": x, "out": out, "path": path, **weights(n, k)}
    for m, n, kp in INTEGER:
        xq = torch.randint(-128, 128, (m, kp)).to(torch.int8)
        layer = {"q": torch.randint(-128, 128, (n, kp)).to(torch.int8), "scale": torch.ones(n)}
        cases[f"integer {m} {n} {kp}"] = "linear_int8", {"xq": xq, "sx": torch.ones(m), **layer}

    layer, x = weights(9, 2112), torch.randn(9, 2112).half()  # K is split in two
    for path, sizes in {"decode": (1, 2, 3, 4, 5, 9), "small": (1, 3, 9), "tile": (5, 9)}.items():
        for m in sizes:  # the last m rows: the same row at other places, in other company
            cases[f"last {m} {path}"] = "linear_exact", {"x": x[-m:], "path": path, **layer}
    cases["auto 4"] = "linear_exact", {"x": x[-4:], **layer}
    cases["auto 5"] = "linear_exact", {"x": x[-5:], **layer}
    cases["auto 17"] = "linear_exact", {"x": torch.cat([x, x])[-17:], **layer}
    cases["tile 17"] = "linear_exact", {"x": torch.cat([x, x])[-17:], "path": "tile", **layer}
    for path in ("decode", "small", "tile"):
        ill = x[:5].clone()
        ill[1, 7] = NAN
        cases[f"nan {path}"] = "linear_exact", {"x": ill, "path": path, **layer}
        wide = torch.full((5, 18), NAN).half()
        strided = {"x": x[:5].t().contiguous().t(), "out": wide[:, ::2]}
        cases[f"strided {path}"] = "linear_exact", {**strided, "path": path, **layer}
    for dtype in (torch.float16, torch.bfloat16):
        few = {name: tensor.to(dtype) if name == "bias" else tensor for name, tensor in weights(9, 100).items()}
        cases[f"own type {dtype}"] = "linear_exact", {"x": torch.randn(3, 100).to(dtype), **few}

    xq, layer = torch.randint(-127, 128, (18, 128)).to(torch.int8), weights(70, 128)
    sx = torch.rand(18) / 10
    cases["scaled"] = "linear_int8", {"xq": xq, "sx": sx, **layer}
    cases["scaled 16bit"] = "linear_int8", {"xq": xq, "sx": sx, "out": torch.full((18, 70), NAN).half(), **layer}
    ill = sx.clone()
    ill[3] = NAN
    cases["scaled nan"] = "linear_int8", {"xq": xq, "sx": ill, **layer}
    full = torch.full((1, 131_136), -128, dtype=torch.int8)  # sums to 2³¹ + 2²⁰: in three parts
    cases["long"] = "linear_int8", {"xq": full, "sx": torch.ones(1), "q": full, "scale": torch.ones(1)}

    x, xq, sx, layer = torch.zeros(2, 60), torch.zeros(2, 64, dtype=torch.int8), torch.ones(2), weights(5, 60)
    for i, (function, wrong, _) in enumerate(ERRORS):
        cases[f"error {i}"] = (
            function,
            {**({"x": x} if "exact" in function else {"xq": xq, "sx": sx}), **layer, **wrong},
        )
    return cases


def reference(name: str) -> tuple[Tensor, Tensor]:
    """A case in float64, and the sizes of what was added up for each entry, which bound the rounding errors."""
    _, a = all_cases()[name]
    x = a["x"].double() if "x" in a else a["xq"].double() * a["sx"].double()[:, None]
    w = a["q"][:, : x.shape[1]].double() * a["scale"].double()[:, None]
    bias = a["bias"].double()
    return x @ w.T + bias, x.abs() @ w.T.abs() + bias.abs()


def assert_near(name: str, y: Tensor, relative: float = 0.0) -> None:
    """y is within 1e-6 of the added-up sizes (float32 sums), and `relative` of the value (the output's type)."""
    expected, size = reference(name)
    worst = ((y.double() - expected).abs() - relative * expected.abs()).sub(1e-6 * size).max().item()
    assert worst <= 0, f"{name}: beyond the bound by {worst:.3g}"  # a NaN fails too


@pytest.fixture(scope="module")
def answers() -> dict[str, Any]:
    return interpret(all_cases())


# ------------------------------------------------------------------------------------------------------- what it says


@pytest.mark.parametrize(("m", "n", "k", "path", "dtype"), EXACT)
def test_exact_agrees_with_float64(
    answers: dict[str, Any], m: int, n: int, k: int, path: str, dtype: torch.dtype
) -> None:
    name = f"exact {m} {n} {k} {path} {dtype}"
    assert_near(name, answers[name])
    if m > 1:
        zero_row = m // 2
        assert torch.equal(answers[name][zero_row], all_cases()[name][1]["bias"])


@pytest.mark.parametrize(("m", "n", "kp"), INTEGER)
def test_the_integer_core_is_exact(answers: dict[str, Any], m: int, n: int, kp: int) -> None:
    _, a = all_cases()[f"integer {m} {n} {kp}"]
    expected = a["xq"].long() @ a["q"].long().T
    assert torch.equal(answers[f"integer {m} {n} {kp}"], expected.float())


def test_a_sum_that_no_int32_holds_is_split(answers: dict[str, Any]) -> None:
    assert answers["long"].item() == pytest.approx(128 * 128 * 131_136, rel=1e-6)


@pytest.mark.parametrize(("name", "relative"), [("scaled", 0), ("scaled 16bit", 2**-10)])
def test_int8_applies_scales_and_bias(answers: dict[str, Any], name: str, relative: float) -> None:
    assert_near(name, answers[name], relative)


@pytest.mark.parametrize("path", ["decode", "small", "tile"])
def test_a_row_gets_the_same_bits_in_any_company(answers: dict[str, Any], path: str) -> None:
    everyone = answers[f"last 9 {path}"]
    for m in {"decode": (1, 2, 3, 4, 5), "small": (1, 3), "tile": (5,)}[path]:
        assert torch.equal(answers[f"last {m} {path}"], everyone[-m:])


def test_auto_goes_by_the_rows(answers: dict[str, Any]) -> None:
    assert torch.equal(answers["auto 4"], answers["last 4 decode"])
    assert torch.equal(answers["auto 5"], answers["last 9 small"][-5:])
    assert torch.equal(answers["auto 17"], answers["tile 17"])


@pytest.mark.parametrize(("name", "row"), [("nan decode", 1), ("nan small", 1), ("nan tile", 1), ("scaled nan", 3)])
def test_nan_stays_in_its_row(answers: dict[str, Any], name: str, row: int) -> None:
    ill = answers[name].isnan()
    assert ill[row].all()
    assert ill.sum() == ill[row].numel()


@pytest.mark.parametrize("path", ["decode", "small", "tile"])
def test_strides_are_followed(answers: dict[str, Any], path: str) -> None:
    assert_near(f"strided {path}", answers[f"strided {path}"], 2**-10)


@pytest.mark.parametrize(("dtype", "relative"), [(torch.float16, 2**-10), (torch.bfloat16, 2**-7)])
def test_the_output_is_of_the_input_type(answers: dict[str, Any], dtype: torch.dtype, relative: float) -> None:
    assert answers[f"own type {dtype}"].dtype == dtype
    assert_near(f"own type {dtype}", answers[f"own type {dtype}"], relative)


@pytest.mark.parametrize("case", range(len(ERRORS)), ids=[pattern for *_, pattern in ERRORS])
def test_a_wrong_call_says_what_is_wrong(answers: dict[str, Any], case: int) -> None:
    assert isinstance(answers[f"error {case}"], str), "no error was raised"
    assert re.search(ERRORS[case][2], answers[f"error {case}"])


@pytest.mark.parametrize("path", ["decode", "small", "tile"])
@pytest.mark.parametrize("k", [100, 2500])  # the second splits K
def test_the_residual_is_added_to(path: Any, k: int) -> None:
    torch.manual_seed(1)
    layer, x, out = weights(12, k), torch.randn(3, k).half(), torch.randn(3, 12)
    alone = linear.linear_exact(x, **layer, out=torch.full((3, 12), NAN), path=path)
    before = out.clone()
    assert linear.linear_exact(x, **layer, out=out, path=path, add=True) is out
    assert torch.equal(out, before + alone)


def test_finite_sums_beyond_float16_end_at_its_last_number() -> None:
    x, q = torch.full((1, 64), 1000.0).half(), torch.full((3, 64), 127, dtype=torch.int8)
    q[1], q[2] = -127, 0
    out = linear.linear_exact(x, q, torch.ones(3), out=torch.full((1, 3), NAN).half(), path="decode")
    assert out.tolist() == [[65504.0, -65504.0, 0.0]]
    x[0, 5] = torch.inf
    assert linear.linear_exact(x, q, torch.ones(3), out=out, path="decode")[0, :2].tolist() == [torch.inf, -torch.inf]


def quantised(x: Tensor, group: int, threshold: float) -> tuple[Tensor, Tensor, linear.Outliers | None]:
    """x as the kernels before a GEMM leave it, made here in plain torch but for the gathering."""
    m, k = x.shape
    kp = -(-k // 64) * 64
    finite = x.isfinite().all(dim=1, keepdim=True)
    marked = ((x.abs() >= threshold) & finite).any(dim=0) & (threshold > 0)
    xq, sx = torch.zeros(m, kp, dtype=torch.int8), torch.empty((m, -(-kp // group)) if group else (m,))
    marks = marked.int()
    quantise.quantise(x, marks, xq, sx, group)
    columns, number = torch.zeros(k, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    quantise.compact(marks, columns, number)
    x_side, w_side = torch.full((m, tables.SIDE), NAN).to(x.dtype), torch.full((1, 1), 99, dtype=torch.int8)
    quantise.gather(x, columns, number, x_side)
    return xq, sx, linear.Outliers(columns, number, x, x_side, w_side)


@pytest.mark.parametrize("outliers", [0, 3, 33, 140])  # of 150: none, some, two pieces, more than are copied
@pytest.mark.parametrize("group", [0, 64])
def test_int8_with_outliers_is_the_paper(group: int, outliers: int) -> None:
    torch.manual_seed(outliers)
    m, n, k = 7, 20, 150
    layer, x = weights(n, k), torch.randn(m, k).clamp(-4, 4)
    columns = torch.randperm(k)[:outliers]
    rows = torch.tensor([0, 1, 3, 4, 6])  # 2 will be zeros, and 5 no numbers
    x[rows[torch.arange(outliers) % 5], columns] = (
        6.0 + torch.arange(outliers) / 9
    )  # the first exactly at the threshold
    x[2] = 0.0
    x[5, 1] = torch.inf
    x = x.half().float()
    xq, sx, outlier_columns = quantised(x.half(), group, 6.0)
    assert outlier_columns is not None
    side = torch.full((n, tables.SIDE), 99, dtype=torch.int8)
    quantise.gather(layer["q"], outlier_columns.columns, outlier_columns.number, side)
    out = torch.full((m, n), NAN)
    linear.linear_int8(xq, sx, **layer, out=out, group=group, outliers=outlier_columns._replace(w_side=side))
    reference_of = definition.linear_grouped if group else definition.linear_llm_int8
    more = {"group": group} if group else {}
    expected = reference_of(x, layer["q"][:, :k], layer["scale"], layer["bias"], 6.0, **more)
    assert expected[5].isnan().all()
    assert torch.allclose(out, expected, rtol=1e-5, atol=1e-4, equal_nan=True)
    assert int(outlier_columns.number) == outliers


def test_groups_of_256_hold_the_largest_sums() -> None:
    table = tables.for_capability(80)
    assert all(tile.depth <= 256 for tile in table.tiles["grouped"]), "a sum of 127·127·256 fits a float's fraction"
    k = table.tiles["grouped"][0].depth
    for sign in (1, -1):
        xq, q = torch.full((1, k), 127, dtype=torch.int8), torch.full((1, k), 127 * sign, dtype=torch.int8)
        out = linear.linear_int8(xq, torch.ones(1, 1), q, torch.ones(1), group=k)
        assert out.item() == sign * 127 * 127 * k


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"partial": torch.zeros(3)}, "partial has 3 entries"),
        ({"add": True}, "no out to add to"),
    ],
)
def test_wrong_buffers_are_told(wrong: dict[str, Any], message: str) -> None:
    layer = weights(12, 2500)
    with pytest.raises(ValueError, match=message):
        linear.linear_exact(torch.zeros(1, 2500), **layer, path="decode", **wrong)


def test_a_group_must_be_the_tables() -> None:
    layer = weights(3, 64)
    with pytest.raises(ValueError, match="scales are for 64 columns"):
        linear.linear_int8(torch.zeros(2, 64, dtype=torch.int8), torch.ones(2, 2), **layer, group=32)

"""The Triton linear layers, without a GPU: run by Triton's interpreter, and compiled for each architecture.

Both happen in processes of their own (this file, called with a task), because TRITON_INTERPRET is read when Triton is
imported and another test may have imported it. The interpreter's bfloat16 products are wrong, so that type's tile path
is compiled but not run.
"""

import importlib
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
Case = tuple[str, dict[str, Any]]  # a function of bigrun_kernels.gpu.linear and its arguments
NAN = float("nan")
ARCHITECTURES = [80, 86, 89, 90, 100, 120]
AS_80 = (86, 89, 120)  # same instructions, so that fewer of their kernels are compiled: this takes most of the time

# ------------------------------------------------------------------------------------------------ tasks, in a process


def interpret(cases: dict[str, Case]) -> dict[str, Any]:
    """Each case's output, or the message of its ValueError. Memory that a case does not write is NaN."""
    importlib.import_module("bigrun_kernels.gpu")
    answers: dict[str, Any] = {"triton imported": "triton" in sys.modules}
    from bigrun_kernels.gpu import linear

    torch.use_deterministic_algorithms(True)  # this is what fills torch.empty with NaN
    for name, (function, arguments) in cases.items():
        try:
            answers[name] = getattr(linear, function)(**arguments)
        except ValueError as error:
            answers[name] = str(error)
    return answers


def compile_for(architectures: list[int]) -> dict[Any, dict[str, Any]]:
    """What each kernel becomes for each compute capability: (capability, kernel, rows) → its facts."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from bigrun_kernels.gpu import linear

    pointers = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int8: "*i8"}

    def facts(kernel: Any, dtype: torch.dtype, tile: Any, capability: int, **constants: Any) -> dict[str, Any]:
        constants |= {"ROWS": tile.rows, "COLUMNS": tile.columns, "DEPTH": tile.depth, "CHUNKS": 1, "CHUNK": 65536}
        types = {"x": pointers[dtype], "q": "*i8", **dict.fromkeys(["sx", "scale", "bias", "out", "partial"], "*fp32")}
        names = kernel.arg_names
        constants = {name: value for name, value in {"x_col": 1, "out_col": 1, **constants}.items() if name in names}
        signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
        aligned = {
            (i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name not in constants and name != "M"
        }
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
        target = GPUTarget("cuda", capability, 32)
        built = triton.compile(source, target=target, options=linear._options(tile))  # to machine code: ptxas too
        ptx, ttgir = built.asm["ptx"], built.asm["ttgir"]
        layouts = dict(re.findall(r"^(#\w+) = (.*)$", ttgir, re.M))
        reductions = re.findall(r'"tt\.reduce"\(.*?\}\) : \(tensor<([^>]*), (#\w+)>\)', ttgir, re.S)
        return {
            "mma": set(re.findall(r"^\s*(?:@\S+ )?((?:mma|wgmma\.mma|tcgen05\.mma)\S+)", ptx, re.M)),
            "shared": built.metadata.shared,
            "narrow products": re.findall(r"arith\.muli .*xi32>", built.asm["ttir"]),
            "wide loads": len(re.findall(r"ld\.global\S*\.v4\.b32", ptx)),
            "shuffles in loop": re.findall(
                r"ttg\.convert_layout", ttgir.partition("scf.for")[2].partition("scf.yield")[0]
            ),
            "reductions": [(shape, layouts[layout]) for shape, layout in reductions],
        }

    found = {}
    for cc in architectures:
        for rows in (4,) if cc in AS_80 else (1, 2, 4):
            tile = linear.DECODE_TILE._replace(rows=rows)
            whole = {} if rows == 2 else {"partial": None}  # with 2, the form that splits K
            found[cc, "decode", rows] = facts(linear.decode_kernel, torch.float16, tile, cc, **whole)
        products = [(torch.float16, 512), (torch.bfloat16, 5), (torch.int8, 512)]
        if cc not in AS_80:
            products += [(torch.float16, 5)]
            found[cc, "combine", 1] = facts(linear.combine_kernel, torch.float16, linear.DECODE_TILE, cc)
            tile = linear.tile_for(5, torch.float32)
            found[cc, "torch.float32", 5] = facts(linear.tile_kernel, torch.float32, tile, cc, sx=None)
        for dtype, m in products:
            sx = {} if dtype == torch.int8 else {"sx": None}
            found[cc, str(dtype), m] = facts(linear.tile_kernel, dtype, linear.tile_for(m, dtype), cc, **sx)
    return found


def start(task: str, question: Any, folder: Path) -> subprocess.Popen[str]:
    """This file as a process: `question` goes in as <task>.in, its answer comes out as <task>.out."""
    torch.save(question, folder / f"{task}.in")
    paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    environment |= {"PYTHONPATH": os.pathsep.join(paths), "TRITON_CACHE_DIR": str(folder / "cache")}
    if task == "interpret":
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, __file__, task, str(folder)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def answer(process: subprocess.Popen[str], task: str, folder: Path) -> Any:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-4000:]
    return torch.load(folder / f"{task}.out", weights_only=False)


# ------------------------------------------------------------------------------------- what is run, and what it must be

SHAPES = [(1, 1, 1), (1, 9, 63), (2, 33, 100), (17, 1, 130), (17, 9, 64), (3, 12, 2500), (70, 130, 200)]
RUNNABLE = [
    ("decode", torch.float16), ("decode", torch.bfloat16), ("decode", torch.float32),
    ("tile", torch.float16), ("tile", torch.float32),
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


def weights(n: int, k: int) -> dict[str, Tensor]:
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
    for path, sizes in {"decode": (1, 2, 3, 4, 5, 9), "tile": (5, 9)}.items():
        for m in sizes:  # the last m rows: the same row at other places, in other company
            cases[f"last {m} {path}"] = "linear_exact", {"x": x[-m:], "path": path, **layer}
    cases["auto 4"] = "linear_exact", {"x": x[-4:], **layer}
    cases["auto 5"] = "linear_exact", {"x": x[-5:], **layer}
    for path in ("decode", "tile"):
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
    full = torch.full((1, 131_136), -128, dtype=torch.int8)  # sums to 2³¹ + 2²⁰
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
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("interpret")
    return answer(start("interpret", all_cases(), folder), "interpret", folder)


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


@pytest.mark.parametrize("path", ["decode", "tile"])
def test_a_row_gets_the_same_bits_in_any_company(answers: dict[str, Any], path: str) -> None:
    everyone = answers[f"last 9 {path}"]
    for m in (1, 2, 3, 4, 5) if path == "decode" else (5,):
        assert torch.equal(answers[f"last {m} {path}"], everyone[-m:])


def test_auto_is_decode_up_to_four_rows(answers: dict[str, Any]) -> None:
    assert torch.equal(answers["auto 4"], answers["last 4 decode"])
    assert torch.equal(answers["auto 5"], answers["last 5 tile"])


@pytest.mark.parametrize(("name", "row"), [("nan decode", 1), ("nan tile", 1), ("scaled nan", 3)])
def test_nan_stays_in_its_row(answers: dict[str, Any], name: str, row: int) -> None:
    ill = answers[name].isnan()
    assert ill[row].all()
    assert ill.sum() == ill[row].numel()


@pytest.mark.parametrize("path", ["decode", "tile"])
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


def test_the_package_imports_without_triton(answers: dict[str, Any]) -> None:
    assert answers["triton imported"] is False


# ------------------------------------------------------------------------------------------------- compiled for a GPU

MMA = {  # what a product becomes; n is the rows of x that one instruction takes
    "mma.sync": {
        "torch.float16": "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
        "torch.bfloat16": "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
        "torch.int8": "mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32",
    },
    "wgmma": {
        "torch.float16": "wgmma.mma_async.sync.aligned.m64n#k16.f32.f16.f16",
        "torch.bfloat16": "wgmma.mma_async.sync.aligned.m64n#k16.f32.bf16.bf16",
        "torch.int8": "wgmma.mma_async.sync.aligned.m64n#k32.s32.s8.s8",
    },
    "tcgen05": {
        "torch.float16": "tcgen05.mma.cta_group::1.kind::f16",
        "torch.bfloat16": "tcgen05.mma.cta_group::1.kind::f16",
        "torch.int8": "tcgen05.mma.cta_group::1.kind::i8",
    },
}
CONSUMER_SHARED_BYTES = 99 * 1024


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, dict[str, Any]]:
    folders = [tmp_path_factory.mktemp("compile") for _ in range(2)]
    shares = [80, 86, 90], [89, 100, 120]
    assert sorted(shares[0] + shares[1]) == ARCHITECTURES
    halves = [start("compile", share, folder) for share, folder in zip(shares, folders, strict=True)]
    first, second = (answer(half, "compile", folder) for half, folder in zip(halves, folders, strict=True))
    return first | second


@pytest.mark.parametrize("cc", ARCHITECTURES)
def test_products_run_on_tensor_cores_alike_in_every_tile(compiled: dict[Any, dict[str, Any]], cc: int) -> None:
    family = {90: "wgmma", 100: "tcgen05"}.get(cc, "mma.sync")
    tiles = [(dtype, m) for at, dtype, m in compiled if at == cc and dtype in MMA[family]]
    assert len(tiles) == (3 if cc in AS_80 else 4)
    for dtype, m in tiles:
        instructions = {re.sub(r"m64n\d+", "m64n#", name) for name in compiled[cc, dtype, m]["mma"]}
        assert instructions == {MMA[family][dtype]}
    if cc not in AS_80:
        assert not compiled[cc, "torch.float32", 5]["mma"], "float32 must not be rounded to tf32"


@pytest.mark.parametrize("cc", ARCHITECTURES)
def test_decode_streams_the_weight_and_sums_alike_for_any_rows(compiled: dict[Any, dict[str, Any]], cc: int) -> None:
    layouts = set()
    for rows in (4,) if cc in AS_80 else (1, 2, 4):
        facts = compiled[cc, "decode", rows]
        assert facts["wide loads"] >= 1 + 2 * rows  # 16 weights in one load; 16 entries of each row of x in two
        assert facts["shuffles in loop"] == []  # each would cost a barrier for every block of K
        assert len(facts["reductions"]) == rows
        layouts |= set(facts["reductions"])
    assert len(layouts) == 1


@pytest.mark.parametrize("cc", ARCHITECTURES)
def test_kernels_fit_consumer_cards_and_address_in_64_bits(compiled: dict[Any, dict[str, Any]], cc: int) -> None:
    mine = {key: facts for key, facts in compiled.items() if key[0] == cc}
    assert len(mine) == (4 if cc in AS_80 else 9)
    for facts in mine.values():
        assert facts["shared"] <= CONSUMER_SHARED_BYTES
        assert facts["narrow products"] == []


if __name__ == "__main__":
    task, folder = sys.argv[1], Path(sys.argv[2])
    question = torch.load(folder / f"{task}.in", weights_only=False)
    torch.save(interpret(question) if task == "interpret" else compile_for(question), folder / f"{task}.out")

"""The kernels of norm.py, quantise.py and table.py as a model launches them: hidden 4,096, inner 11,008, 32,000 words, and
a BLOOM's hidden of 14,336 and more."""

from ahead import Specimen

NORM = {"x": "*fp32", "weight": "*fp32", "bias": "*fp32", "out": "*fp16", "marks": "*i32"}
NORM |= {"eps": "fp32", "threshold": "fp32"}
ACTIVATE = {"x": "*fp32", "out": "*fp16", "marks": "*i32", "threshold": "fp32"}
MARK = {"x": "*fp16", "marks": "*i32", "threshold": "fp32"}
QUANTISE = {"x": "*fp16", "marks": "*i32", "xq": "*i8", "scale": "*fp32"}
TABLE = {"ids": "*i64", "x": "*fp16", "q": "*i8", "scale": "*fp16", "bias": "*fp32", "out": "*fp32"}


def _of(kernel: str, types: dict[str, str], given: dict[str, str], constants: dict[str, object]) -> dict[str, object]:
    """A specimen's kernel, types and constants: a type for what is given or not constant."""
    return {
        "kernel": kernel,
        "types": {name: text for name, text in {**types, **given}.items() if name not in constants},
        "constants": constants,
    }


def _norm(name: str, warps: int, given: dict[str, str], **constants: object) -> Specimen:
    return Specimen(name, warps=warps, **_of("norm:norm_kernel", NORM, given, constants))  # type: ignore[arg-type]


def _activate(name: str, given: dict[str, str], **constants: object) -> Specimen:
    constants["BLOCK"] = 1024
    return Specimen(name, **_of("norm:activate_kernel", ACTIVATE, given, constants))  # type: ignore[arg-type]


def _quantise(name: str, warps: int, given: dict[str, str], **constants: object) -> Specimen:
    constants = {"GROUP": 0, "WHOLE": True, **constants}
    if not constants["GROUP"]:
        constants["scale_row"] = 1  # Triton compiles a stride of one in
    return Specimen(name, warps=warps, **_of("quantise:quantise_kernel", QUANTISE, given, constants))  # type: ignore[arg-type]


def _head(name: str, rows: int, given: dict[str, str], **constants: object) -> Specimen:
    constants |= {"ROWS": rows, "COLUMNS": 8, "DEPTH": 256, "GROUP": 32}
    types = {key: text for key, text in TABLE.items() if key != "ids"}
    parts = _of("table:head_kernel", types, given, constants)
    return Specimen(name, stages=1, odd=("M",), **parts)  # type: ignore[arg-type]


def _lookup(name: str, out: str) -> Specimen:
    constants = {"BLOCK": 1024, "GROUP": 32}
    types = {key: text for key, text in TABLE.items() if key not in ("x", "bias")}
    return Specimen(name, warps=2, **_of("table:lookup_kernel", types, {"out": out}, constants))  # type: ignore[arg-type]


SPECIMENS: list[Specimen] = [
    _norm("norm rms 4096", 8, {}, bias=None, marks=None, BLOCK=4096, WHOLE=True),
    _norm("norm rms 4096 marks", 8, {}, bias=None, BLOCK=4096, WHOLE=True),
    _norm("norm layer 14336 marks", 16, {"x": "*fp16"}, BLOCK=16_384, WHOLE=True),
    _norm("norm layer 20480 marks", 16, {"out": "*fp32"}, BLOCK=8192, WHOLE=False),
    _activate("activate silu gated", {}, marks=None, KIND="silu", GATED=True),
    _activate("activate silu gated marks", {"x": "*fp16"}, KIND="silu", GATED=True),
    _activate("activate gelu marks", {}, KIND="gelu", GATED=False),
    _activate("activate gelu_tanh", {"x": "*fp16"}, marks=None, KIND="gelu_tanh", GATED=False),
    _activate("activate relu", {}, marks=None, KIND="relu", GATED=False),
    Specimen("mark", "norm:mark_kernel", MARK, {"BLOCK": 1024}),
    _quantise("quantise 4096", 8, {}, BLOCK=4096),
    _quantise("quantise 11008 no marks", 16, {}, marks=None, BLOCK=16_384),
    _quantise("quantise 11008 groups of 64", 16, {}, BLOCK=16_384, GROUP=64),
    _quantise("quantise 4096 fp32 groups of 32", 8, {"x": "*fp32"}, BLOCK=4096, GROUP=32),
    _quantise("quantise 57344 groups of 256", 16, {}, BLOCK=8192, GROUP=256, WHOLE=False),
    Specimen(
        "compact",
        "quantise:compact_kernel",
        {"marks": "*i32", "columns": "*i32", "count": "*i32"},
        {"BLOCK": 4096},
        warps=8,
    ),
    Specimen(
        "gather",
        "quantise:gather_kernel",
        {"q": "*i8", "columns": "*i32", "count": "*i32", "side": "*i8"},
        {"ROWS": 64, "STEP": 32},
    ),
    _lookup("lookup fp32", "*fp32"),
    _lookup("lookup fp16", "*fp16"),
    *(_head(f"head {rows}", rows, {}, bias=None) for rows in (1, 2, 4)),
    *(_head(f"head {rows} fp32", rows, {"x": "*fp32"}) for rows in (1, 4)),
]

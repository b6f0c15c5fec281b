"""The kernels of norm.py, quantise.py and table.py as a model launches them: hidden 4,096, inner 11,008, 32,000 words, and
the widest models' 14,336, 20,480 and 57,344."""

from typing import Any

from support.ahead import Specimen

TYPES = {
    "norm:norm_kernel": {"x": "*fp32", "out": "*fp16", "marks": "*i32", "eps": "fp32", "threshold": "fp32"}
    | dict.fromkeys(("weight", "bias"), "*fp32"),
    "norm:norm_heads_kernel": {"qkv": "*fp16", "eps": "fp32"} | dict.fromkeys(("q_weight", "k_weight"), "*fp32"),
    "norm:activate_kernel": {"x": "*fp32", "out": "*fp16", "marks": "*i32", "threshold": "fp32"},
    "norm:mark_kernel": {"x": "*fp16", "marks": "*i32", "threshold": "fp32"},
    "quantise:quantise_kernel": {"x": "*fp16", "marks": "*i32", "xq": "*i8", "scale": "*fp32"},
    "quantise:compact_kernel": dict.fromkeys(("marks", "columns", "count"), "*i32"),
    "quantise:gather_kernel": {"q": "*i8", "columns": "*i32", "count": "*i32", "side": "*i8"},
    "table:lookup_kernel": {"ids": "*i64", "q": "*i8", "scale": "*fp16", "out": "*fp32"},
    "table:head_kernel": {"x": "*fp16", "q": "*i8", "scale": "*fp16", "bias": "*fp32", "out": "*fp32"},
}
SIZES: dict[str, dict[str, Any]] = {
    "norm:activate_kernel": {"BLOCK": 1024},
    "norm:mark_kernel": {"BLOCK": 1024},
    "quantise:compact_kernel": {"BLOCK": 4096},
    "quantise:gather_kernel": {"ROWS": 64, "STEP": 32},
    "table:lookup_kernel": {"BLOCK": 1024, "GROUP": 32},
    "table:head_kernel": {"COLUMNS": 8, "DEPTH": 256, "GROUP": 32},
}


def specimen(name: str, kernel: str, warps: int, options: dict[str, Any]) -> Specimen:
    """`options`: constants, and types other than the usual ones (as text that begins with a star)."""
    types = {key: value for key, value in options.items() if str(value).startswith("*")}
    constants = SIZES.get(kernel, {}) | {key: value for key, value in options.items() if key not in types}
    types = {key: value for key, value in (TYPES[kernel] | types).items() if key not in constants}
    head = kernel == "table:head_kernel"
    return Specimen(name, kernel, types, constants, warps, stages=1 if head else 3, odd=("M",) if head else ())


def norm(name: str, warps: int, block: int, whole: bool, **options: Any) -> Specimen:
    return specimen(f"norm {name}", "norm:norm_kernel", warps, {"BLOCK": block, "WHOLE": whole, **options})


def activate(name: str, kind: str, gated: bool, **options: Any) -> Specimen:
    return specimen(f"activate {name}", "norm:activate_kernel", 4, {"KIND": kind, "GATED": gated, **options})


def quantise(name: str, warps: int, block: int, group: int, whole: bool = True, **options: Any) -> Specimen:
    row = {} if group else {"scale_row": 1}  # Triton compiles a stride of one in
    options = {"BLOCK": block, "GROUP": group, "WHOLE": whole, **row, **options}
    return specimen(f"quantise {name}", "quantise:quantise_kernel", warps, options)


SPECIMENS: list[Specimen] = [
    norm("rms 4096", 8, 4096, True, bias=None, marks=None),
    norm("rms 4096 marks", 8, 4096, True, bias=None),
    norm("layer 14336 marks", 16, 16_384, True, x="*fp16"),
    norm("layer 20480 marks", 16, 8192, False, out="*fp32"),
    *(
        specimen(
            f"norm heads {kind[1:]}",
            "norm:norm_heads_kernel",
            1,
            {
                "qkv": kind,
                "HEADS": 32,
                "VECTORS": 40,
                "D": 128,
                "BLOCK": 128,
            },
        )
        for kind in ("*fp16", "*fp32")
    ),
    activate("silu gated", "silu", True, marks=None),
    activate("silu gated marks", "silu", True, x="*fp16"),
    activate("gelu marks", "gelu", False),
    activate("gelu_tanh", "gelu_tanh", False, x="*fp16", marks=None),
    activate("relu", "relu", False, marks=None),
    specimen("mark", "norm:mark_kernel", 4, {}),
    quantise("4096", 8, 4096, 0),
    quantise("11008 no marks", 16, 16_384, 0, marks=None),
    quantise("11008 groups of 64", 16, 16_384, 64),
    quantise("4096 fp32 groups of 32", 8, 4096, 32, x="*fp32"),
    quantise("57344 groups of 256", 16, 8192, 256, whole=False),
    specimen("compact", "quantise:compact_kernel", 8, {}),
    specimen("gather", "quantise:gather_kernel", 4, {}),
    specimen("lookup fp32", "table:lookup_kernel", 2, {}),
    specimen("lookup fp16", "table:lookup_kernel", 2, {"out": "*fp16"}),
    *(specimen(f"head {rows}", "table:head_kernel", 4, {"ROWS": rows, "bias": None}) for rows in (1, 2, 4)),
    *(specimen(f"head {rows} fp32", "table:head_kernel", 4, {"ROWS": rows, "x": "*fp32"}) for rows in (1, 4)),
]

"""Attention and the cache's write as they are launched for heads of 128, 32 over 8: what ahead.py compiles of them."""

from dataclasses import replace
from typing import Any

from support.ahead import Specimen

PAGES = {"fp16": {"k": "*fp16", "v": "*fp16"}, "int8": dict.fromkeys(("k", "v"), "*i8")}
SCALES = dict.fromkeys(("k_scale", "v_scale"), "*fp16")
SHAPE: dict[str, Any] = {"KV_HEADS": 8, "D": 128, "DP": 128, "WIDTH": 128, "PAGE": 64}
PLAIN: dict[str, Any] = {"WINDOW": 0, "SOFTCAP": 0.0, "FULL": False, **SHAPE}
NONE = dict.fromkeys(("k_scale", "v_scale"))


def _pair(pages: str) -> list[Specimen]:
    """The kernels that read or write pages of this type."""
    types = {**PAGES[pages], **({} if pages == "fp16" else SCALES)}
    none = NONE if pages == "fp16" else {}
    numbers = dict.fromkeys(("sequences", "positions"), "*i64")
    span = {"qkv": "*fp16", "tables": "*i32", "partial": "*fp32", "scale": "fp32", **numbers, **types}
    prompt = {"qkv": "*fp16", "table": "*i32", "out": "*fp16", "scale": "fp32", **types}
    store = {"qkv": "*fp16", "cos_sin": "*fp32", "slots": "*i64"}
    store |= {f"{name[0]}_pages" if name in "kv" else name: kind for name, kind in types.items()}
    vectors = {"HEADS": 32, "DIMS": 128, "FIRST": 0, **SHAPE}
    return [
        Specimen(
            f"attention span {pages}", "attention:span_kernel", span,
            {"slopes": None, "GROUP": 4, "ROWS": 16, "KEYS": 32 if none == {} else 64, **PLAIN, **none},
            stages=1, products="fp16", odd=("tables_row", "spans"),
        ),
        Specimen(
            f"attention prompt {pages}", "attention_prompt:prompt_kernel", prompt,
            {"slopes": None, "sinks": None, "HEADS": 32, "ROWS": 64 if none == {} else 128, **PLAIN, **none},
            warps=8, products="fp16", odd=("first", "tokens"),
        ),
        Specimen(f"turn and store {pages}", "cache:turn_and_store_kernel", store, {**vectors, **none}, warps=1, stages=1),
    ]  # fmt: skip


def _windowed(specimen: Specimen) -> Specimen:
    """The same kernel for blocks that look back a window."""
    return replace(specimen, name=f"{specimen.name}, a window", constants={**specimen.constants, "WINDOW": 4096})


SPECIMENS: list[Specimen] = [
    *_pair("fp16"),
    *map(_windowed, _pair("fp16")[:2]),
    *_pair("int8"),
    Specimen(
        "attention combine", "attention:combine_kernel", {"partial": "*fp32", "positions": "*i64", "out": "*fp16"},
        {"sinks": None, "HEADS": 32, "D": 128, "DP": 128, "WINDOW": 0, "WIDTH": 128, "SPAN": 128, "SPANS": 16},
        stages=1, odd=("spans",),
    ),
]  # fmt: skip

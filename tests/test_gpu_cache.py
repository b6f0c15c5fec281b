"""What turn_and_store leaves in qkv and in the pages, against torch in float64 and the reference's quantiser.

Run by Triton's interpreter. Pages are NaN (int8: 77) first, so that what is written beside a slot, or not written, shows.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bigrun_kernels import reference
from bigrun_kernels.gpu.cache import rope_and_store_kv

NAN = float("nan")
KINDS = {"float32": torch.float32, "float16": torch.float16, "int8": torch.int8}
SLOTS = [3 * 64 + 5, -1, 63, 64]


def empty_pages(kind: torch.dtype, kv_heads: int, padded: int) -> tuple[Tensor, Tensor | None]:
    shape = (4, kv_heads, 64, padded)
    if kind == torch.int8:
        return torch.full(shape, 77, dtype=kind), torch.full(shape[:3], NAN).half()
    return torch.full(shape, NAN, dtype=kind), None


def angles(rows: int, dims: int) -> Tensor:
    angle = torch.rand(rows, dims // 2) * 6
    return torch.cat([angle.cos(), angle.sin()], dim=1)


def turned(part: Tensor, cos_sin: Tensor | None) -> Tensor:
    """Float32, each product and each sum rounded as the definition's are."""
    return part.float() if cos_sin is None else reference.rope(part.float(), cos_sin)


def stored(vectors: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """What pages of this type hold of float32 vectors."""
    if kind == torch.int8:
        return reference.quantise_vectors(vectors)
    return (vectors.clamp(-65504, 65504) if kind == torch.float16 else vectors).to(kind), None


def same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b or (a is not None and b is not None and bool(((a == b) | (a.isnan() & b.isnan())).all()))


def check(
    qkv: Tensor, heads: int, kv_heads: int, dim: int, dims: int, kind: torch.dtype, slots: list[int] = SLOTS
) -> tuple[Tensor, ...]:
    padded, rows = -(-dim // 8) * 8, len(qkv)
    cos_sin = angles(rows, dims) if dims else None
    (k, k_scale), (v, v_scale) = empty_pages(kind, kv_heads, padded), empty_pages(kind, kv_heads, padded)
    after = qkv.clone()
    rope_and_store_kv(
        after, heads, kv_heads, dim, cos_sin, torch.tensor(slots, dtype=torch.int64), k, v, k_scale, v_scale
    )

    vectors = qkv.view(rows, heads + 2 * kv_heads, dim)
    q, keys, values = vectors.split([heads, kv_heads, kv_heads], dim=1)
    assert same(after[:, : heads * dim], turned(q, cos_sin).to(qkv.dtype).flatten(1))
    assert same(after[:, heads * dim :], qkv[:, heads * dim :])
    for pages, scale, part in ((k, k_scale, turned(keys, cos_sin)), (v, v_scale, values.float())):
        want, want_scale = empty_pages(kind, kv_heads, padded)
        numbers, units = stored(part, kind)
        for t, slot in enumerate(slots):
            if slot >= 0:
                want[slot // 64, :, slot % 64] = 0
                want[slot // 64, :, slot % 64, :dim] = numbers[t]
                if want_scale is not None and units is not None:
                    want_scale[slot // 64, :, slot % 64] = units[t]
        assert same(pages, want)
        assert same(scale, want_scale)
    return after, k, v


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=["from fp16", "from fp32"])
@pytest.mark.parametrize(("dim", "dims"), [(16, 16), (20, 12), (80, 0)], ids=["whole", "partial", "unturned"])
def test_pages_hold_what_the_definition_says(kind: str, dtype: torch.dtype, dim: int, dims: int) -> None:
    torch.manual_seed(dim)
    qkv = torch.randn(len(SLOTS), (2 + 2 * 2) * dim).to(dtype)
    check(qkv, 2, 2, dim, dims, KINDS[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_of_every_size_and_of_none(kind: str) -> None:
    """Zeros, entries below and above a float16's range, scales that are subnormal or round down, inf and NaN."""
    torch.manual_seed(1)
    sizes = [0.0, 1e-9, 1e-6, 3e-5, 0.1, 1.0, 6e4, 65510.0, 7.9e6, 8.1e6, 1e30]
    vectors = torch.randn(len(sizes) + 3, 16)
    vectors = vectors / vectors.abs().amax(dim=1, keepdim=True)
    vectors[: len(sizes)] *= torch.tensor(sizes)[:, None]
    vectors[-3, 2], vectors[-2, 3], vectors[-1, 15] = NAN, float("inf"), -float("inf")
    values = vectors.flip(0)
    qkv = torch.cat([torch.randn_like(vectors), vectors, values], dim=1)
    _, k, _ = check(qkv, 1, 1, 16, 0, KINDS[kind], list(range(60, 60 + len(qkv))))
    if kind == "float16":
        assert k[1, 0, 70 - 64].abs().amax() == 65504
        assert k[1, 0, len(sizes) + 60 - 64].isnan().sum() == 1


def test_quantised_halves_round_to_even_and_constants_go_up() -> None:
    """Vectors of which some have the next float16 for a scale, and entries that lie at exactly one half."""
    torch.manual_seed(2)
    k = torch.randn(24, 16) * torch.logspace(-6, -2, 24)[:, None]
    k[:8] = torch.arange(16) - 7.5
    k[:8, 0] = 127.0
    qkv = torch.cat([torch.zeros(24, 16), k, -k], dim=1)
    _, unit = reference.quantise_vectors(k)
    assert (unit > (k.abs().amax(dim=1) / 127).half()).any()
    check(qkv, 1, 1, 16, 0, torch.int8, list(range(24)))


def test_nothing_is_done_for_no_tokens() -> None:
    check(torch.zeros(0, 3 * 16), 1, 1, 16, 16, torch.float16, [])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"qkv": torch.zeros(2, 47)}, r"qkv is \[2, 47\] .* must be \[T, 48\]"),
        ({"slots": torch.zeros(2, dtype=torch.int32)}, "slots is .* torch.int64"),
        ({"cos_sin": torch.zeros(2, 18)}, "cos_sin is"),
        ({"k_pages": torch.zeros(4, 1, 64, 24)}, "k_pages is .* must be"),
        ({"v_pages": torch.zeros(4, 1, 64, 16).half()}, "v_pages is torch.float16; both"),
        ({"k_scale": torch.zeros(4, 1, 64).half()}, "int8 pages, and no others"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(wrong: dict[str, Tensor], message: str) -> None:
    pages = torch.zeros(4, 1, 64, 16)
    right: dict[str, Any] = {
        "qkv": torch.zeros(2, 48),
        "cos_sin": None,
        "slots": torch.zeros(2, dtype=torch.int64),
    }
    right |= {"k_pages": pages, "v_pages": pages.clone(), "k_scale": None, "v_scale": None}
    with pytest.raises(ValueError, match=message):
        rope_and_store_kv(heads=1, kv_heads=1, head_dim=16, **{**right, **wrong})

"""Norms and activations in Triton: what lies between the linear layers, and what it tells them of LLM.int8()'s outliers.

Each writes the 16-bit rows that the next linear reads; with `marks` it also says which columns of them hold outliers
(|value| ≥ threshold in some row of finite numbers: Dettmers et al. 2022, section 3.2), so that nothing has to look again.
`mark` looks at rows that something else wrote. Marks are only ever set here: `quantise.compact` clears them. Nothing is
allocated and nothing waits for the device: all of it may be captured in a CUDA graph.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu")

# Not yet tuned on hardware.
ROW_BLOCK = 16_384  # entries of a row that a program holds in registers; a longer row is read for each sum
LOOP_BLOCK = 8192  # of a longer row, at a time
ENTRIES = 16  # of a row, for each of a program's threads, as long as there are threads to have
BLOCK, WARPS = 1024, 4  # of `activate` and `mark`


def row_tile(length: int, least: int = 32) -> tuple[int, bool, int]:
    """(entries of a block, whether it holds the whole row, warps) of a program that sums up a row of this length."""
    whole = length <= ROW_BLOCK
    block = max(least, triton.next_power_of_2(length)) if whole else LOOP_BLOCK
    return block, whole, max(1, min(16, block // (32 * ENTRIES)))


@triton.jit
def _rounded(y, out):
    """Float32 y in the type of what `out` points at. As float16, finite numbers saturate and the rest is NaN."""
    if out.dtype.element_ty == tl.float16:
        y = tl.where(tl.abs(y) < float("inf"), tl.minimum(tl.maximum(y, -65504.0), 65504.0), float("nan"))
    return y.to(out.dtype.element_ty)


@triton.jit
def _largest(y):
    """max |y| as a float32 number: inf if there is an inf or a NaN in y."""
    size = tl.abs(y.to(tl.float32))
    return tl.max(tl.where(size < float("inf"), size, float("inf")), axis=0)


@triton.jit
def _mark_row(row, marks, largest, threshold, LENGTH, BLOCK: tl.constexpr):
    """Marks the outliers among a row's LENGTH entries, whose largest is known."""
    if (largest >= threshold) & (largest < float("inf")):
        for first in range(0, LENGTH, BLOCK):
            j = first + tl.arange(0, BLOCK)
            size = tl.abs(tl.load(row + j, mask=j < LENGTH, other=0.0).to(tl.float32))
            tl.store(marks + j, 1, mask=(j < LENGTH) & (size >= threshold))


@triton.jit
def _normal(v, mean, reciprocal, weight, bias, j, H):
    """(v − mean) · reciprocal · weight + bias; zeros beyond H."""
    y = (v - mean) * reciprocal * tl.load(weight + j, mask=j < H, other=0.0)
    if bias is not None:
        y += tl.load(bias + j, mask=j < H, other=0.0)
    return y


@triton.jit
def _reciprocal(squares, length, eps):
    """1/√(squares/length + eps); NaN, and so a row of NaN, where the sum of squares is inf or NaN."""
    root = tl.sqrt_rn(tl.div_rn(squares, length) + eps)
    return tl.where(squares < float("inf"), tl.div_rn(tl.full([], 1.0, tl.float32), root), float("nan"))


@triton.jit
def norm_kernel(
    x, weight, bias, out, marks, H, x_row, out_row, eps, threshold, BLOCK: tl.constexpr, WHOLE: tl.constexpr
):
    """One row. WHOLE: it fits the block, and is read once; else there is a pass for each sum, and one that writes."""
    x += tl.program_id(0).to(tl.int64) * x_row
    out += tl.program_id(0).to(tl.int64) * out_row
    length = tl.full([], H, tl.float32)
    mean = tl.full([], 0.0, tl.float32)
    if WHOLE:
        j = tl.arange(0, BLOCK)
        v = tl.load(x + j, mask=j < H, other=0.0).to(tl.float32)
        if bias is not None:
            mean = tl.div_rn(tl.sum(v, axis=0), length)
        centred = tl.where(j < H, v - mean, 0.0)
        reciprocal = _reciprocal(tl.sum(centred * centred, axis=0), length, eps)
        y = _rounded(_normal(v, mean, reciprocal, weight, bias, j, H), out)
        tl.store(out + j, y, mask=j < H)
        if marks is not None:
            y = tl.where(j < H, y.to(tl.float32), 0.0)
            largest = _largest(y)
            if (largest >= threshold) & (largest < float("inf")):
                tl.store(marks + j, 1, mask=tl.abs(y) >= threshold)
    else:
        if bias is not None:
            sums = tl.zeros([BLOCK], tl.float32)
            for first in range(0, H, BLOCK):
                j = first + tl.arange(0, BLOCK)
                sums += tl.load(x + j, mask=j < H, other=0.0).to(tl.float32)
            mean = tl.div_rn(tl.sum(sums, axis=0), length)
        squares = tl.zeros([BLOCK], tl.float32)
        for first in range(0, H, BLOCK):
            j = first + tl.arange(0, BLOCK)
            v = tl.load(x + j, mask=j < H, other=0.0).to(tl.float32)
            centred = tl.where(j < H, v - mean, 0.0)
            squares += centred * centred
        reciprocal = _reciprocal(tl.sum(squares, axis=0), length, eps)
        largest = tl.full([], 0.0, tl.float32)
        for first in range(0, H, BLOCK):
            j = first + tl.arange(0, BLOCK)
            v = tl.load(x + j, mask=j < H, other=0.0).to(tl.float32)
            y = _rounded(_normal(v, mean, reciprocal, weight, bias, j, H), out)
            tl.store(out + j, y, mask=j < H)
            if marks is not None:
                largest = tl.maximum(largest, _largest(tl.where(j < H, y.to(tl.float32), 0.0)))
        if marks is not None:
            tl.debug_barrier()  # the row is read back, by whichever thread
            _mark_row(out, marks, largest, threshold, H, BLOCK)


@triton.jit
def _activated(v, KIND: tl.constexpr):
    """The activation of float32 v. Both sigmoids are v / (1 + e^…), which overflows to the right limit on either side."""
    if KIND == "relu":
        y = tl.where(v <= 0.0, 0.0, v)  # a NaN stays
    elif KIND == "gelu":
        y = 0.5 * v * (1.0 + tl.erf(v * 0.7071067811865476))
    elif KIND == "gelu_tanh":  # (1 + tanh u)/2 = 1 / (1 + e^−2u) with u = √(2/π)·(v + 0.044715 v³)
        y = tl.div_rn(v, 1.0 + tl.exp(-1.5957691216057308 * (v + 0.044715 * v * v * v)))
    else:
        y = tl.div_rn(v, 1.0 + tl.exp(-v))
    return y


@triton.jit
def activate_kernel(
    x, out, marks, LENGTH, span, x_row, out_row, threshold, KIND: tl.constexpr, GATED: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """`span` entries of one row of LENGTH; with marks the whole row, since a row counts only if all of it is finite."""
    x += tl.program_id(0).to(tl.int64) * x_row
    out += tl.program_id(0).to(tl.int64) * out_row
    begin = tl.program_id(1) * span
    largest = tl.full([], 0.0, tl.float32)
    for first in range(begin, tl.minimum(begin + span, LENGTH), BLOCK):
        j = first + tl.arange(0, BLOCK)
        y = _activated(tl.load(x + j, mask=j < LENGTH, other=0.0).to(tl.float32), KIND)
        if GATED:
            y *= tl.load(x + LENGTH + j, mask=j < LENGTH, other=0.0).to(tl.float32)
        y = _rounded(y, out)
        tl.store(out + j, y, mask=j < LENGTH)
        if marks is not None:
            largest = tl.maximum(largest, _largest(y))
    if marks is not None:
        tl.debug_barrier()  # the row is read back, by whichever thread
        _mark_row(out, marks, largest, threshold, LENGTH, BLOCK)


@triton.jit
def mark_kernel(x, marks, LENGTH, x_row, threshold, BLOCK: tl.constexpr):
    """One row: its largest entry first, and a second look only where that is an outlier."""
    x += tl.program_id(0).to(tl.int64) * x_row
    largest = tl.full([], 0.0, tl.float32)
    for first in range(0, LENGTH, BLOCK):
        j = first + tl.arange(0, BLOCK)
        largest = tl.maximum(largest, _largest(tl.load(x + j, mask=j < LENGTH, other=0.0)))
    _mark_row(x, marks, largest, threshold, LENGTH, BLOCK)


@triton.jit
def norm_heads_kernel(
    qkv, q_weight, k_weight, row, eps, HEADS: tl.constexpr, VECTORS: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr
):
    """The vector of one head, query or key, of one token, in place."""
    t, head = (tl.program_id(0) // VECTORS).to(tl.int64), tl.program_id(0) % VECTORS
    j = tl.arange(0, BLOCK)
    at = qkv + t * row + head * D + j
    v = tl.load(at, mask=j < D, other=0.0).to(tl.float32)
    reciprocal = _reciprocal(tl.sum(v * v, axis=0), tl.full([], D, tl.float32), eps)
    weight = tl.load((q_weight if head < HEADS else k_weight) + j, mask=j < D, other=0.0)
    tl.store(at, _rounded(v * reciprocal * weight, qkv), mask=j < D)


def norm_heads(
    qkv: Tensor, heads: int, kv_heads: int, head_dim: int, q_weight: Tensor, k_weight: Tensor, eps: float
) -> None:
    """RMSNorm of each query and key of qkv [T, W], in place; weights float32 [head_dim]."""
    block, warps = max(32, triton.next_power_of_2(head_dim)), 1 if head_dim <= 512 else 4
    vectors = heads + kv_heads
    norm_heads_kernel[(len(qkv) * vectors,)](
        qkv,
        q_weight,
        k_weight,
        qkv.stride(0),
        eps,
        HEADS=heads,
        VECTORS=vectors,
        D=head_dim,
        BLOCK=block,
        num_warps=warps,
    )


def norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, out: Tensor, marks: Tensor | None = None,
    threshold: float = 0.0,
) -> None:  # fmt: skip
    """out [T, H] = RMSNorm (Zhang & Sennrich 2019) of each row of x, or with a bias LayerNorm (Ba et al. 2016).

    x: fp16 or fp32 [T, H]; weight, bias: fp32 [H]; out: fp16, bf16 or fp32. Sums are float32; a row with inf or NaN (or
    whose squares overflow) is a row of NaN; float16 saturates at ±65504. marks: int32, at least H: the columns where |out|
    ≥ threshold in a row that is finite become 1; none with threshold 0.
    """
    require("x", x, None, (torch.float16, torch.float32), x.device)
    t, h = x.shape
    require("out", out, (t, h), FLOATS, x.device)
    require("weight", weight, (h,), (torch.float32,), x.device)
    if bias is not None:
        require("bias", bias, (h,), (torch.float32,), x.device)
    marks = _marks(marks, threshold, h, x.device)
    block, whole, warps = row_tile(h)
    with torch.cuda.device_of(x):
        norm_kernel[(t,)](
            x, weight, bias, out, marks, h, x.stride(0), out.stride(0), float(eps), float(threshold),
            BLOCK=block, WHOLE=whole, num_warps=warps, enable_fp_fusion=False,
        )  # fmt: skip


def activate(
    kind: str, x: Tensor, gated: bool, out: Tensor, marks: Tensor | None = None, threshold: float = 0.0
) -> None:
    """out [T, I] = f(x), or gated f(first half) · second half of x [T, 2I], in float32.

    kind: silu, gelu (with erf), gelu_tanh or relu; x, out: fp16, bf16 or fp32, out not in x's memory. Float16 saturates at
    ±65504, but what is inf or NaN in float32 is NaN there. marks, threshold: as in `norm`.
    """
    if kind not in ACTIVATIONS:
        raise ValueError(f"kind is {kind!r}; it is one of {', '.join(ACTIVATIONS)}")
    require("x", x, None, FLOATS, x.device)
    t, length = x.shape[0], x.shape[1] // (2 if gated else 1)
    if gated and x.shape[1] % 2:
        raise ValueError(f"x is {list(x.shape)}: two halves cannot be equal")
    require("out", out, (t, length), FLOATS, x.device)
    marks = _marks(marks, threshold, length, x.device)
    span = BLOCK if marks is None else length
    with torch.cuda.device_of(x):
        activate_kernel[(t, triton.cdiv(length, span))](
            x, out, marks, length, span, x.stride(0), out.stride(0), float(threshold),
            KIND=kind, GATED=gated, BLOCK=BLOCK, num_warps=WARPS, enable_fp_fusion=False,
        )  # fmt: skip


def mark(x: Tensor, marks: Tensor, threshold: float) -> None:
    """The marks of `norm` alone, for an x [T, H] of fp16, bf16 or fp32 that something else wrote."""
    require("x", x, None, FLOATS, x.device)
    if _marks(marks, threshold, x.shape[1], x.device) is None:
        return
    with torch.cuda.device_of(x):
        mark_kernel[(len(x),)](x, marks, x.shape[1], x.stride(0), float(threshold), BLOCK=BLOCK, num_warps=WARPS)


def require(
    name: str, t: Tensor, shape: tuple[int, ...] | None, dtypes: Sequence[torch.dtype], device: torch.device
) -> None:
    """Raises ValueError unless t has the shape (None: two dimensions, not empty), one of the types, and whole rows."""
    if device.type != "cuda" and isinstance(norm_kernel, triton.JITFunction):
        raise ValueError(
            f"{name} is on {device}: these kernels need a GPU (or TRITON_INTERPRET=1 before Triton's import)"
        )
    right = t.dim() == 2 and t.numel() > 0 if shape is None else t.shape == shape
    if not right or t.dtype not in dtypes or t.device != device:
        expected = f"{'[rows, columns]' if shape is None else list(shape)} of {' or '.join(str(d) for d in dtypes)}"
        raise ValueError(f"{name} is {list(t.shape)} of {t.dtype} on {t.device}; it must be {expected} on {device}")
    if t.stride(-1) != 1 and t.shape[-1] > 1:
        raise ValueError(f"{name} has strides {t.stride()}; its rows must be contiguous")


def _marks(marks: Tensor | None, threshold: float, columns: int, device: torch.device) -> Tensor | None:
    """What the kernel is given: None where nothing can be marked."""
    if marks is not None:
        require("marks", marks, (max(columns, marks.numel()),), (torch.int32,), device)
    return marks if threshold > 0 else None

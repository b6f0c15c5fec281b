"""LLM.int8()'s quantiser in Triton, and the bookkeeping of its outliers (Dettmers et al. 2022, section 3.2).

In order, for a linear: something marks the outlier columns (norm.py); `quantise` rounds the others to int8; `compact` lists
the marked columns on the device, and clears the marks for the next linear; `gather` copies those columns of the weight side
by side. Nothing is allocated and nothing waits for the device: all of it may be captured in a CUDA graph.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bigrun_kernels.gpu.norm import FLOATS, require, row_tile

ALIGN = 64  # int8 rows are padded to a multiple of this
GROUPS = (0, 32, 64, 128, 256)  # 0: one scale for a row
GATHER_COLUMNS = 32  # `side` is written in steps of so many columns

# Not yet tuned on hardware.
COMPACT_BLOCK, COMPACT_WARPS = 4096, 8
GATHER_ROWS, GATHER_WARPS = 64, 4


@triton.jit
def _entries(x, marks, k, K):
    """The entries k of a row in float32, and their sizes. Marked: 0. Inf or NaN: of size inf, marked or not."""
    v = tl.load(x + k, mask=k < K, other=0.0).to(tl.float32)
    size = tl.where(tl.abs(v) < float("inf"), tl.abs(v), float("inf"))
    if marks is not None:
        marked = tl.load(marks + k, mask=k < K, other=0) != 0
        v = tl.where(marked, 0.0, v)
        size = tl.where(marked & (size < float("inf")), 0.0, size)
    return v, size


@triton.jit
def _unit(largest):
    """The scale of entries up to `largest`: largest/127, or 1 where that is zero."""
    unit = tl.div_rn(largest, tl.full(largest.shape, 127.0, tl.float32))
    return tl.where(unit > 0.0, unit, 1.0)


@triton.jit
def _integers(v, unit, good):
    """v/unit rounded half to even (adding and taking 1.5·2²³ does that), as int8; zeros where not good."""
    ratio = tl.div_rn(v, tl.broadcast_to(unit, v.shape))
    ratio = tl.minimum(tl.maximum(ratio, -127.0), 127.0)  # beyond by rounding only where the unit is subnormal
    return tl.where(good, (ratio + 12582912.0) - 12582912.0, 0.0).to(tl.int8)


@triton.jit
def _put(v, size, largest, xq, scale, first, Kp, BLOCK: tl.constexpr, GROUP: tl.constexpr):
    """Writes a block's integers and, with groups, its scales; `largest` is the whole row's, inf for a bad row."""
    k = first + tl.arange(0, BLOCK)
    good = largest < float("inf")
    if GROUP == 0:
        q = _integers(v, _unit(tl.where(good, largest, 0.0)), good)
    else:
        shape: tl.constexpr = [BLOCK // GROUP, GROUP]
        unit = _unit(tl.where(good, tl.max(tl.reshape(size, shape), axis=1), 0.0))
        group = first // GROUP + tl.arange(0, BLOCK // GROUP)
        tl.store(scale + group, tl.where(good, unit, float("nan")), mask=group < tl.cdiv(Kp, GROUP))
        q = tl.reshape(_integers(tl.reshape(v, shape), unit[:, None], good), [BLOCK])
    tl.store(xq + k, q, mask=k < Kp)


@triton.jit
def quantise_kernel(
    x, marks, xq, scale, K, Kp, x_row, xq_row, scale_row, BLOCK: tl.constexpr, GROUP: tl.constexpr, WHOLE: tl.constexpr
):  # fmt: skip
    """One row. WHOLE: it fits the block, and is read once; else once for its largest entry and once to be rounded."""
    row = tl.program_id(0).to(tl.int64)
    x += row * x_row
    xq += row * xq_row
    scale += row * scale_row
    if WHOLE:
        v, size = _entries(x, marks, tl.arange(0, BLOCK), K)
        largest = tl.max(size, axis=0)
        _put(v, size, largest, xq, scale, 0, Kp, BLOCK, GROUP)
    else:
        largest = tl.full([], 0.0, tl.float32)
        for first in range(0, K, BLOCK):
            _, size = _entries(x, marks, first + tl.arange(0, BLOCK), K)
            largest = tl.maximum(largest, tl.max(size, axis=0))
        for first in range(0, Kp, BLOCK):
            v, size = _entries(x, marks, first + tl.arange(0, BLOCK), K)
            _put(v, size, largest, xq, scale, first, Kp, BLOCK, GROUP)
    if GROUP == 0:
        tl.store(scale, tl.where(largest < float("inf"), _unit(largest), float("nan")))


@triton.jit
def compact_kernel(marks, columns, count, LENGTH, K, BLOCK: tl.constexpr):
    """One program: each marked column's place is the number of marks before it."""
    total = tl.full([], 0, tl.int32)
    for first in range(0, LENGTH, BLOCK):
        j = first + tl.arange(0, BLOCK)
        marked = ((tl.load(marks + j, mask=j < LENGTH, other=0) != 0) & (j < K)).to(tl.int32)
        place = total + tl.cumsum(marked, axis=0) - marked
        tl.store(columns + place, j, mask=marked != 0)
        total += tl.sum(marked, axis=0)
        tl.debug_barrier()  # every thread has read its marks
        tl.store(marks + j, 0, mask=j < LENGTH)
    tl.store(count, total)


@triton.jit
def gather_kernel(q, columns, count, side, N, Kp, C, ROWS: tl.constexpr, STEP: tl.constexpr):
    """ROWS rows of the weight: STEP of the listed columns at a time. With none or more than C, nothing is touched."""
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    q += n.to(tl.int64)[:, None] * Kp
    side += n.to(tl.int64)[:, None] * C
    listed = tl.load(count)
    for first in range(0, tl.where(listed > C, 0, listed), STEP):
        j = first + tl.arange(0, STEP)
        column = tl.load(columns + j, mask=j < listed, other=0)
        w = tl.load(q + column[None, :], mask=(n < N)[:, None] & (j < listed)[None, :], other=0)
        tl.store(side + j[None, :], w, mask=(n < N)[:, None])


def quantise(x: Tensor, marks: Tensor | None, xq: Tensor, scale: Tensor, group: int = 0) -> None:
    """Absmax int8 of each row of x over the columns that are not marked; marked ones become 0.

    x: fp16, bf16 or fp32 [T, K]; marks: int32, at least K; xq: int8 [T, Kp], Kp being K rounded up to 64, zeros beyond K;
    scale: fp32 [T], or [T, ⌈Kp/group⌉] with a scale for each 32, 64, 128 or 256 entries. scale = max|x|/127, 1 for
    zeros; xq = round_half_even(x/scale), the division IEEE's: reference.linear_llm_int8's integers to the bit. A row with
    inf or NaN anywhere has NaN for its scales and zeros for its integers.
    """
    if group not in GROUPS:
        raise ValueError(f"group is {group}; it is one of {GROUPS}")
    require("x", x, None, FLOATS, x.device)
    t, k = x.shape
    kp = -(-k // ALIGN) * ALIGN
    require("xq", xq, (t, kp), (torch.int8,), x.device)
    require("scale", scale, (t, triton.cdiv(kp, group)) if group else (t,), (torch.float32,), x.device)
    if marks is not None:
        require("marks", marks, (max(k, marks.numel()),), (torch.int32,), x.device)
    block, whole, warps = row_tile(kp, least=max(GROUPS))
    with torch.cuda.device_of(x):
        quantise_kernel[(t,)](
            x, marks, xq, scale, k, kp, x.stride(0), xq.stride(0), scale.stride(0), BLOCK=block, GROUP=group,
            WHOLE=whole, num_warps=warps, enable_fp_fusion=False,
        )  # fmt: skip


def compact(marks: Tensor, columns: Tensor, count: Tensor) -> None:
    """The marked ones of K columns, ascending, into columns int32 [K]; how many into count int32 [1]; marks all zero.

    marks: int32, at least K. What lies in `columns` beyond the count is left as it was.
    """
    for name, t in (("marks", marks), ("columns", columns), ("count", count)):
        require(name, t, (t.numel(),), (torch.int32,), marks.device)
    if not 0 < columns.numel() <= marks.numel() or count.numel() != 1:
        raise ValueError(
            f"marks has {marks.numel()} entries, columns {columns.numel()}, count {count.numel()}: "
            "columns may be as long as marks, and count is one number"
        )
    with torch.cuda.device_of(marks):
        compact_kernel[(1,)](
            marks, columns, count, marks.numel(), columns.numel(), BLOCK=COMPACT_BLOCK, num_warps=COMPACT_WARPS
        )


def gather(q: Tensor, columns: Tensor, count: Tensor, side: Tensor) -> None:
    """side[n, j] = q[n, columns[j]] for j < count, and zeros for the other j up to the next multiple of 32.

    q: the weight, int8 [N, Kp], or activations of 16 or 32 bits; columns, count: `compact`'s; side: of q's type [N, C], C a
    multiple of 32. If count is 0 or more than C, side is
    left as it was: whoever multiplies reads the weight itself then.
    """
    require("q", q, None, (torch.int8, *FLOATS), q.device)
    n, kp = q.shape
    require("side", side, (n, side.shape[-1]), (q.dtype,), q.device)
    if not side.shape[1] or side.shape[1] % GATHER_COLUMNS:
        raise ValueError(f"side is {list(side.shape)}; its columns must be a multiple of {GATHER_COLUMNS}")
    require("columns", columns, (columns.numel(),), (torch.int32,), q.device)
    require("count", count, (1,), (torch.int32,), q.device)
    if not (q.is_contiguous() and side.is_contiguous()):
        raise ValueError(f"q has strides {q.stride()} and side {side.stride()}; both must be contiguous")
    with torch.cuda.device_of(q):
        gather_kernel[(triton.cdiv(n, GATHER_ROWS),)](
            q, columns, count, side, n, kp, side.shape[1], ROWS=GATHER_ROWS, STEP=GATHER_COLUMNS,
            num_warps=GATHER_WARPS,
        )  # fmt: skip

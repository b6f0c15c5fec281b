"""The embedding and the head in Triton: int8 with a float16 scale for each 32 entries of a row.

The form is reference.quantise_groups', row-major and padded with zeros: q int8 [Vp, Kp], scale float16 [Vp, Kp/32], Vp being
V rounded up to 16 and Kp K rounded up to 64. Addresses are 64-bit (BLOOM-176B's table has 3.6e9 entries). Nothing is
allocated and nothing waits for the device: all of it may be captured in a CUDA graph.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bigrun_kernels.gpu.norm import require

GROUP = 32  # entries of a row that share a scale
ALIGN_ROWS, ALIGN = 16, 64

# Not yet tuned on hardware.
LOOKUP_BLOCK, LOOKUP_WARPS = 1024, 2
HEAD_ROWS = 4  # rows of x that share one load of the table
HEAD_COLUMNS, HEAD_DEPTH, HEAD_WARPS = 8, 256, 4  # rows of the table in a program, and entries of them at a time
# A block has fewer scales than threads: only then does Triton load them in the layout of the weights they scale.
assert HEAD_COLUMNS * HEAD_DEPTH // GROUP < 32 * HEAD_WARPS


@triton.jit
def lookup_kernel(ids, q, scale, out, V, K, Kp, out_row, BLOCK: tl.constexpr, GROUP: tl.constexpr):
    """BLOCK entries of one token's row; NaN for an id that the table has not."""
    token = tl.program_id(0).to(tl.int64)
    number = tl.load(ids + token)
    known = (number >= 0) & (number < V)
    number = tl.where(known, number, 0)
    group = tl.program_id(1).to(tl.int64) * (BLOCK // GROUP) + tl.arange(0, BLOCK // GROUP)
    k = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    s = tl.load(scale + number * (Kp // GROUP) + group, mask=group * GROUP < Kp, other=0.0).to(tl.float32)
    w = tl.load(q + number * Kp + k, mask=k < K, other=0).to(tl.float32) * s[:, None]
    y = tl.where(known, w, float("nan"))
    tl.store(out + token * out_row + k, y.to(out.dtype.element_ty), mask=k < K)


@triton.jit(do_not_specialize=["M"])
def head_kernel(
    x, q, scale, bias, out, M, V, K, Kp, x_row, out_row,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """ROWS rows of x by COLUMNS rows of the table: multiply-adds, and one sum after the loop.

    Weight times scale is exact in float32 (8 bits by 11). Each row of x has an accumulator of its own, laid out as the
    weight's load is: hence the order in which it is summed is the same for every ROWS. Groups of ROWS follow each other
    in the grid, so that the second finds its weights in the L2 cache.
    """
    sharing = tl.cdiv(M, ROWS)
    row = tl.program_id(0) % sharing * ROWS
    n = tl.program_id(0) // sharing * COLUMNS + tl.arange(0, COLUMNS)
    inside = (n < V)[:, None]
    weights = q + n.to(tl.int64)[:, None] * Kp
    scales = scale + n.to(tl.int64)[:, None] * (Kp // GROUP)
    x0 = x + row.to(tl.int64) * x_row  # rows beyond the last are the last again, and not stored
    x1 = x + tl.minimum(row + 1, M - 1).to(tl.int64) * x_row
    x2 = x + tl.minimum(row + 2, M - 1).to(tl.int64) * x_row
    x3 = x + tl.minimum(row + 3, M - 1).to(tl.int64) * x_row
    across = tl.zeros([COLUMNS, 1], tl.int64)  # x is loaded as wide as w, in w's layout: not through shared memory
    a0 = tl.zeros([COLUMNS, DEPTH], tl.float32)
    a1 = a0
    a2 = a0
    a3 = a0
    for first in range(0, Kp, DEPTH):
        k = first + tl.arange(0, DEPTH)[None, :]
        group = first // GROUP + tl.arange(0, DEPTH // GROUP)[None, :]
        s = tl.load(scales + group, mask=inside & (group < Kp // GROUP), other=0.0).to(tl.float32)
        w = tl.load(weights + k, mask=inside & (k < Kp), other=0).to(tl.float32)
        w = tl.reshape(tl.reshape(w, [COLUMNS, DEPTH // GROUP, GROUP]) * s[:, :, None], [COLUMNS, DEPTH])
        at = k.to(tl.int64) + across
        a0 = tl.fma(w, tl.load(x0 + at, mask=k < K, other=0.0).to(tl.float32), a0)
        if ROWS > 1:
            a1 = tl.fma(w, tl.load(x1 + at, mask=k < K, other=0.0).to(tl.float32), a1)
        if ROWS > 2:
            a2 = tl.fma(w, tl.load(x2 + at, mask=k < K, other=0.0).to(tl.float32), a2)
            a3 = tl.fma(w, tl.load(x3 + at, mask=k < K, other=0.0).to(tl.float32), a3)
    for i in tl.static_range(ROWS):
        y = tl.sum(a0 if i == 0 else a1 if i == 1 else a2 if i == 2 else a3, axis=1)
        if bias is not None:
            y += tl.load(bias + n, mask=n < V, other=0.0)
        m = (row + i).to(tl.int64)
        tl.store(out + m * out_row + n, y, mask=(n < V) & (m + tl.zeros_like(n) < M))


def lookup(ids: Tensor, q: Tensor, scale: Tensor, out: Tensor) -> None:
    """out [T, K] = rows `ids` of the table, int64 [T]; fp32, or fp16 rounded from it. NaN for an id outside the table."""
    require("out", out, None, (torch.float16, torch.float32), out.device)
    t, k = out.shape
    require("ids", ids, (t,), (torch.int64,), out.device)
    _check_table(q, scale, q.shape[0], k, out.device)
    with torch.cuda.device_of(out):
        lookup_kernel[(t, triton.cdiv(k, LOOKUP_BLOCK))](
            ids, q, scale, out, q.shape[0], k, q.shape[1], out.stride(0), BLOCK=LOOKUP_BLOCK, GROUP=GROUP,
            num_warps=LOOKUP_WARPS, enable_fp_fusion=False,
        )  # fmt: skip


def table_linear(x: Tensor, q: Tensor, scale: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """out = x Wᵀ + b with W the table's first V rows: the head. Products and sums in float32.

    x: fp16 or fp32 [M, K]; bias: fp32 [V] or None; out: fp32 [M, V]. Each weight is read once for up to four rows of x. A
    row's bits do not depend on M. IEEE rules hold: a NaN stays in its row, and inf makes NaN where a weight is zero.
    """
    require("x", x, None, (torch.float16, torch.float32), x.device)
    m, k = x.shape
    v = out.shape[-1]
    require("out", out, (m, v), (torch.float32,), x.device)
    if bias is not None:
        require("bias", bias, (v,), (torch.float32,), x.device)
    _check_table(q, scale, v, k, x.device)
    rows = min(triton.next_power_of_2(m), HEAD_ROWS)
    with torch.cuda.device_of(x):
        head_kernel[(triton.cdiv(m, rows) * triton.cdiv(v, HEAD_COLUMNS),)](
            x, q, scale, bias, out, m, v, k, q.shape[1], x.stride(0), out.stride(0),
            ROWS=rows, COLUMNS=HEAD_COLUMNS, DEPTH=HEAD_DEPTH, GROUP=GROUP, num_warps=HEAD_WARPS, num_stages=1,
            enable_fp_fusion=False,
        )  # fmt: skip


def _check_table(q: Tensor, scale: Tensor, rows: int, columns: int, device: torch.device) -> None:
    """Raises ValueError unless q and scale are the table of `rows` by `columns` in its padded form."""
    shape = (-(-rows // ALIGN_ROWS) * ALIGN_ROWS, -(-columns // ALIGN) * ALIGN)
    require("q", q, shape, (torch.int8,), device)
    require("scale", scale, (shape[0], shape[1] // GROUP), (torch.float16,), device)
    if not (q.is_contiguous() and scale.is_contiguous()):
        raise ValueError(f"q has strides {q.stride()} and scale {scale.stride()}; both must be contiguous")

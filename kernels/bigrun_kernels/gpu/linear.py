"""Int8 linear layers in Triton: y = x Wᵀ + b with W[n, k] ≈ q[n, k] · scale[n].

`linear_exact` multiplies 16/32-bit activations, the weight being widened in registers. `linear_int8` multiplies int8 by
int8: the integer core of LLM.int8() (Dettmers et al. 2022, section 3). Both take q as int8 [N, Kp], row-major, where Kp
is K padded with zeros to a multiple of 64; both compute addresses in 64 bits (BLOOM-176B's head has 3.6e9 weights).

The same row of x gives the same bits whatever M is, within a path: rows never meet, the split of K is a function of the
weight's shape alone, and every launch adds a row's products in the same order. Between the paths of `linear_exact` the
order of the float32 sum differs, so a caller whose answers must not depend on the batch names the path of its phase.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

Path = Literal["auto", "decode", "tile"]

ALIGN = 64  # the weight's rows are padded to a multiple of this
DECODE_ROWS = 4  # rows of x that share one load of the weight; with more than these "auto" takes the tile path
INT32_COLUMNS = 65_536  # columns an int32 may sum: 128 · 128 · 65,536 = 2³⁰ (and u8·s8 kernels stop at 66,311)
FLOATS = (torch.float16, torch.bfloat16, torch.float32)


class Tile(NamedTuple):
    """What one program computes, and with what: `rows` of x by `columns` of y, `depth` entries of K at a time."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


# Every tile fits the 99 KiB of shared memory that a consumer card gives a block. Not yet run, nor tuned, on hardware.
DECODE_TILE = Tile(DECODE_ROWS, 8, 256, 4, 1)


def tile_for(m: int, dtype: torch.dtype) -> Tile:
    """The tile for m rows of this type. Tiles of a type share one tensor-core instruction, which takes K in order; its
    width in rows differs. float32 takes no tensor cores (its products are IEEE's), so its tile is small."""
    if dtype == torch.float32:
        return Tile(32, 32, 32, 4, 2)
    if m <= 16:
        return Tile(16, 64, 128, 4, 4)
    depth = 128 if dtype == torch.int8 else 64
    return Tile(64, 64, depth, 4, 4) if m <= 64 else Tile(128, 128, depth, 8, 3)


def decode_span(n: int, kp: int) -> int:
    """Columns of the weight that one program of the decode path reads: for about 1,024 programs, but never below 1,024.

    A function of the weight's shape alone, not of M or the card, so that it never changes an answer.
    """
    splits = 1
    while splits < 16 and triton.cdiv(n, DECODE_TILE.columns) * splits < 1024 and kp >= 2048 * splits:
        splits *= 2
    return int(triton.cdiv(triton.cdiv(kp, splits), DECODE_TILE.depth) * DECODE_TILE.depth)


def _options(tile: Tile) -> dict[str, int | bool]:
    """Launch options. Multiply-adds are fused where a kernel says so: the default differs between Triton versions."""
    return {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": False}


@triton.jit
def _constants(scale, bias, n, N):
    """Scale and bias of the columns n as float32 vectors; a bias that is None is zeros."""
    s = tl.load(scale + n, mask=n < N, other=0.0)
    b = tl.zeros_like(s)
    if bias is not None:
        b = tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)
    return s, b


@triton.jit(do_not_specialize=["M"])
def decode_kernel(
    x, q, scale, bias, out, partial, M, N, K, Kp, span, x_row, x_col, out_row, out_col,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """ROWS rows of x by COLUMNS rows of q over `span` entries of K: multiply-adds, and one sum after the loop.

    Each row of x has an accumulator of its own, [COLUMNS, DEPTH], laid out as the weight's load is: hence the order in
    which it is summed is the same for every ROWS. Groups of ROWS follow each other in the grid, so that the second
    finds its weights in the L2 cache. With `partial` (float32 [splits, M, N]) the sums go there, unscaled.
    """
    groups = tl.cdiv(M, ROWS)
    row = tl.program_id(0) % groups * ROWS
    n = tl.program_id(0) // groups * COLUMNS + tl.arange(0, COLUMNS)
    split = tl.program_id(1)
    weights = q + n.to(tl.int64)[:, None] * Kp
    x0 = x + row.to(tl.int64) * x_row  # rows beyond the last are the last again, and not stored
    x1 = x + tl.minimum(row + 1, M - 1).to(tl.int64) * x_row
    x2 = x + tl.minimum(row + 2, M - 1).to(tl.int64) * x_row
    x3 = x + tl.minimum(row + 3, M - 1).to(tl.int64) * x_row
    across = tl.zeros([COLUMNS, 1], tl.int64)  # x is loaded as wide as w, in w's layout: no trip through shared memory
    a0 = tl.zeros([COLUMNS, DEPTH], tl.float32)
    a1 = a0
    a2 = a0
    a3 = a0
    for first in range(split * span, tl.minimum(split * span + span, Kp), DEPTH):
        k = first + tl.arange(0, DEPTH)[None, :]
        w = tl.load(weights + k, mask=(n < N)[:, None] & (k < Kp), other=0).to(tl.float32)
        at = k.to(tl.int64) * x_col + across
        a0 = tl.fma(w, tl.load(x0 + at, mask=k < K, other=0.0).to(tl.float32), a0)
        if ROWS > 1:
            a1 = tl.fma(w, tl.load(x1 + at, mask=k < K, other=0.0).to(tl.float32), a1)
        if ROWS > 2:
            a2 = tl.fma(w, tl.load(x2 + at, mask=k < K, other=0.0).to(tl.float32), a2)
            a3 = tl.fma(w, tl.load(x3 + at, mask=k < K, other=0.0).to(tl.float32), a3)
    s, b = _constants(scale, bias, n, N)
    for i in tl.static_range(ROWS):
        y = tl.sum(a0 if i == 0 else a1 if i == 1 else a2 if i == 2 else a3, axis=1)
        m = (row + i).to(tl.int64)
        inside = (n < N) & (m + tl.zeros_like(n) < M)
        if partial is None:
            at = out + m * out_row + n.to(tl.int64) * out_col
            tl.store(at, (y * s + b).to(out.dtype.element_ty), mask=inside)
        else:
            tl.store(partial + (split.to(tl.int64) * M + m) * N + n, y, mask=inside)


@triton.jit(do_not_specialize=["M"])
def combine_kernel(partial, scale, bias, out, M, N, splits, out_row, out_col, COLUMNS: tl.constexpr):
    """Partials float32 [splits, M, N] added first to last, then scale and bias: the second half of `decode_kernel`."""
    m = (tl.program_id(0) % M).to(tl.int64)
    n = tl.program_id(0) // M * COLUMNS + tl.arange(0, COLUMNS)
    y = tl.zeros([COLUMNS], tl.float32)
    for split in range(splits):
        y += tl.load(partial + (split * M + m) * N + n, mask=n < N, other=0.0)
    s, b = _constants(scale, bias, n, N)
    tl.store(out + m * out_row + n.to(tl.int64) * out_col, (y * s + b).to(out.dtype.element_ty), mask=n < N)


@triton.jit(do_not_specialize=["M"])
def tile_kernel(
    x, sx, q, scale, bias, out, M, N, K, Kp, x_row, x_col, out_row, out_col,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, CHUNKS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """One tile of yᵀ = q xᵀ, ROWS of x by COLUMNS of q, on the tensor cores; `sx` tells int8 x from 16/32-bit x.

    Transposed so that the converted weight is the left operand, which Hopper takes from registers, and so that few
    rows of x pad the cheaper side. K is summed in CHUNKS of CHUNK entries (the last takes what is left), and each sum
    turned into float32.
    """
    tiles = tl.cdiv(M, ROWS)  # tiles of x follow each other in the grid: a weight tile leaves DRAM once
    m = tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)
    n = tl.program_id(0) // tiles * COLUMNS + tl.arange(0, COLUMNS)
    weights = q + n.to(tl.int64)[:, None] * Kp
    inputs = x + m.to(tl.int64)[None, :] * x_row
    total = tl.zeros([COLUMNS, ROWS], tl.float32)
    for chunk in tl.static_range(CHUNKS):
        acc = tl.zeros([COLUMNS, ROWS], tl.float32 if sx is None else tl.int32)
        for first in range(chunk * CHUNK, Kp if chunk == CHUNKS - 1 else chunk * CHUNK + CHUNK, DEPTH):
            k = first + tl.arange(0, DEPTH)
            w = tl.load(weights + k[None, :], mask=(n < N)[:, None] & (k < Kp)[None, :], other=0)
            v = tl.load(inputs + k.to(tl.int64)[:, None] * x_col, mask=(k < K)[:, None] & (m < M)[None, :], other=0)
            if sx is None:
                acc = tl.dot(w.to(x.dtype.element_ty), v, acc, input_precision="ieee")
            else:
                acc = tl.dot(w, v, acc, out_dtype=tl.int32)
        total += acc.to(tl.float32)
    if sx is not None:
        total *= tl.load(sx + m, mask=m < M, other=0.0)[None, :]
    s, b = _constants(scale, bias, n, N)
    y = (total * s[:, None] + b[:, None]).to(out.dtype.element_ty)
    at = out + m.to(tl.int64)[None, :] * out_row + n.to(tl.int64)[:, None] * out_col
    tl.store(at, y, mask=(m < M)[None, :] & (n < N)[:, None])


def linear_exact(
    x: Tensor, q: Tensor, scale: Tensor, bias: Tensor | None = None, out: Tensor | None = None, path: Path = "auto"
) -> Tensor:
    """y = (x @ q[:, :K].T) · scale + bias, with products and sums in float32 (the products are exact for 16-bit x).

    x: fp16, bf16 or fp32 [M, K], any strides; q: int8 [N, Kp]; scale: float32 [N]; bias: any of the float types, [N];
    out: any of the float types, [M, N], by default new and of x's type. IEEE rules hold: a NaN stays in its row, and an
    inf makes NaN where a weight is zero. path: "decode" reads each weight once for up to four rows and is bound by
    memory; "tile" is for many rows, on tensor cores (except for fp32, which is slow there); "auto" is "decode" up to
    four rows. The two differ by float32 rounding.
    """
    if path not in ("auto", "decode", "tile"):
        raise ValueError(f"path is {path!r}; it is one of 'auto', 'decode', 'tile'")
    if x.dtype not in FLOATS:
        raise ValueError(f"x is {x.dtype}; linear_exact takes float16, bfloat16 or float32 (int8 is linear_int8's)")
    out = _checked(x, q, scale, bias, out, x.dtype)
    (m, k), (n, kp) = x.shape, q.shape
    if not k <= kp < k + ALIGN:
        raise ValueError(f"x has {k} columns and q {kp}: q's must be x's, padded to the next multiple of {ALIGN}")
    if path == "tile" or (path == "auto" and m > DECODE_ROWS):
        if x.dtype == torch.bfloat16 and not isinstance(tile_kernel, triton.JITFunction):
            raise ValueError("Triton's interpreter multiplies bfloat16 by bit pattern: no tile path for it there")
        return _launch_tiles(x, None, q, scale, bias, out)

    tile, span = DECODE_TILE, decode_span(n, kp)
    splits, rows = triton.cdiv(kp, span), min(triton.next_power_of_2(m), DECODE_ROWS)
    partial = torch.empty((splits, m, n), dtype=torch.float32, device=x.device) if splits > 1 else None
    with torch.cuda.device_of(x):
        decode_kernel[(triton.cdiv(m, rows) * triton.cdiv(n, tile.columns), splits)](
            x, q, scale, bias, out, partial, m, n, k, kp, span, *x.stride(), *out.stride(),
            ROWS=rows, COLUMNS=tile.columns, DEPTH=tile.depth, **_options(tile),
        )  # fmt: skip
        if partial is not None:
            combine_kernel[(m * triton.cdiv(n, 256),)](
                partial, scale, bias, out, m, n, splits, *out.stride(), COLUMNS=256, **_options(tile)
            )
    return out


def linear_int8(
    xq: Tensor, sx: Tensor, q: Tensor, scale: Tensor, bias: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """y = (xq @ q.T) · sx[:, None] · scale + bias: the product of integers is exact, and then float32 from the left.

    xq: int8 [M, Kp], any strides; sx: float32 [M]; the rest as in `linear_exact`, out by default float32. Up to Kp =
    65,536 a product is one int32 sum; beyond, the sum is split there and the parts are added in float32. A NaN in sx
    makes its row NaN. Needs compute capability 8.0: Triton has no int8 product below.
    """
    if xq.dtype != torch.int8:
        raise ValueError(f"xq is {xq.dtype}; linear_int8 takes int8 (floats are linear_exact's)")
    out = _checked(xq, q, scale, bias, out, torch.float32)
    if xq.shape[1] != q.shape[1]:
        raise ValueError(f"xq has {xq.shape[1]} columns and q {q.shape[1]}: pad both alike, with zeros")
    _check("sx", sx, xq.shape[:1], (torch.float32,), xq.device)
    return _launch_tiles(xq, sx, q, scale, bias, out)


def _launch_tiles(x: Tensor, sx: Tensor | None, q: Tensor, scale: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    (m, k), (n, kp) = x.shape, q.shape
    tile = tile_for(m, x.dtype)
    if x.is_cuda and torch.cuda.get_device_capability(x.device) < (8, 0):
        raise ValueError(f"{torch.cuda.get_device_name(x.device)} is below compute capability 8.0: use torch there")
    chunks = 1 if sx is None else triton.cdiv(kp, INT32_COLUMNS)
    with torch.cuda.device_of(x):
        tile_kernel[(triton.cdiv(m, tile.rows) * triton.cdiv(n, tile.columns),)](
            x, sx, q, scale, bias, out, m, n, k, kp, *x.stride(), *out.stride(), CHUNKS=chunks, CHUNK=INT32_COLUMNS,
            ROWS=tile.rows, COLUMNS=tile.columns, DEPTH=tile.depth, **_options(tile),
        )  # fmt: skip
    return out


def _checked(
    x: Tensor, q: Tensor, scale: Tensor, bias: Tensor | None, out: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Raises ValueError for what the kernels would misread; returns `out`, or makes it."""
    if x.device.type != "cuda" and isinstance(tile_kernel, triton.JITFunction):
        raise ValueError(f"x is on {x.device}: these kernels need a GPU (or TRITON_INTERPRET=1 before Triton's import)")
    if x.dim() != 2 or 0 in x.shape:
        raise ValueError(f"x is {list(x.shape)}; it must be [M, K] and not empty")
    if q.dim() != 2 or 0 in q.shape or q.shape[1] % ALIGN:
        raise ValueError(f"q is {list(q.shape)}; it must be [N, Kp], with rows padded to a multiple of {ALIGN}")
    _check("q", q, q.shape, (torch.int8,), x.device)
    _check("scale", scale, q.shape[:1], (torch.float32,), x.device)
    if bias is not None:
        _check("bias", bias, q.shape[:1], FLOATS, x.device)
    shape = torch.Size((x.shape[0], q.shape[0]))
    if out is None:
        return torch.empty(shape, dtype=dtype, device=x.device)
    _check("out", out, shape, FLOATS, x.device, strided=True)
    return out


def _check(
    name: str, t: Tensor, shape: torch.Size, dtypes: Sequence[torch.dtype], device: torch.device, strided: bool = False
) -> None:
    if t.shape != shape or t.dtype not in dtypes or t.device != device:
        wanted = f"{list(shape)} of {' or '.join(str(d) for d in dtypes)} on {device}"
        raise ValueError(f"{name} is {list(t.shape)} of {t.dtype} on {t.device}; it must be {wanted}")
    if not strided and not t.is_contiguous():
        raise ValueError(f"{name} has strides {t.stride()}; it must be contiguous")

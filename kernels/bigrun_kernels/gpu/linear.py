"""Int8 linear layers in Triton: y = x Wᵀ + b with W[n, k] ≈ q[n, k] · scale[n].

`linear_exact` multiplies 16/32-bit activations, the weight being widened in registers. `linear_int8` multiplies int8 by
int8: LLM.int8() (Dettmers et al. 2022, section 3), also with activation scales for each group of columns. Both take q as
int8 [N, Kp], row-major, where Kp is K padded with zeros to a multiple of 64; both compute addresses in 64 bits (BLOOM-176B's
head has 3.6e9 weights).

The same row of x gives the same bits whatever M is, within a path: rows never meet, the split of K is a function of the
weight's shape alone, and every launch adds a row's products in the same order. Between the paths of `linear_exact` the
order of the float32 sum differs, so a caller whose answers must not depend on the batch names the path of its phase. (The
exception are outlier columns, which all rows share.)
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import triton
from torch import Tensor

from bigrun_kernels.gpu import tables
from bigrun_kernels.gpu.gemv import combine_kernel, decode_kernel, small_kernel
from bigrun_kernels.gpu.tables import DECODE_ROWS, SIDE, SMALL_ROWS, Table, Tile
from bigrun_kernels.gpu.tiles import tile_kernel

Path = Literal["auto", "decode", "small", "tile"]

ALIGN = 64  # the weight's rows are padded to a multiple of this
PIECE = 32  # outlier columns multiplied at a time
COMBINE_COLUMNS = 256
INT32_COLUMNS = 65_536  # columns an int32 may sum: 128 · 128 · 65,536 = 2³⁰ (and u8·s8 kernels stop at 66,311)
FLOATS = (torch.float16, torch.bfloat16, torch.float32)
# float32 takes no tensor cores (its products are IEEE's), so its tiles are small
FLOAT32_TILE, FLOAT32_SMALL = Tile(32, 32, 32, 4, 2), Tile(16, 32, 64, 4, 2)


class Outliers(NamedTuple):
    """Outlier columns of a step, found on the device: `columns` int32 [K] of which the first number[0] count, x [M, K] as it
    was before it was quantised, and dense copies of those columns: x_side [M, SIDE], w_side int8 [N, SIDE]."""

    columns: Tensor
    number: Tensor
    x: Tensor
    x_side: Tensor
    w_side: Tensor


def linear_exact(
    x: Tensor, q: Tensor, scale: Tensor, bias: Tensor | None = None, out: Tensor | None = None, path: Path = "auto",
    partial: Tensor | None = None, add: bool = False, table: Table | None = None,
) -> Tensor:  # fmt: skip
    """y = (x @ q[:, :K].T) · scale + bias, with products and sums in float32 (the products are exact for 16-bit x).

    x: fp16, bf16 or fp32 [M, K], any strides; q: int8 [N, Kp]; scale: float32 [N]; bias: any of the float types, [N];
    out: any of the float types, [M, N], by default new and of x's type; add: onto what it holds. A NaN stays in its row, and
    an inf makes NaN where a weight is zero; a finite value beyond fp16's range is stored as its end. path: "decode" reads each
    weight once for up to four rows and is bound by memory; "small" does so for up to sixteen, on tensor cores; "tile" is for
    many rows; "auto" goes by the rows. They differ by float32 rounding. partial: float32 memory for split sums (else new).
    table: the tiles to take (else those of the device).
    """
    if path not in ("auto", "decode", "small", "tile"):
        raise ValueError(f"path is {path!r}; it is one of 'auto', 'decode', 'small', 'tile'")
    if x.dtype not in FLOATS:
        raise ValueError(f"x is {x.dtype}; linear_exact takes float16, bfloat16 or float32 (int8 is linear_int8's)")
    out = _checked(x, q, scale, bias, out, x.dtype, add)
    (m, k), (n, kp) = x.shape, q.shape
    if not k <= kp < k + ALIGN:
        raise ValueError(f"x has {k} columns and q {kp}: q's must be x's, padded to the next multiple of {ALIGN}")
    if path == "auto":
        path = "decode" if m <= DECODE_ROWS else "small" if m <= SMALL_ROWS else "tile"
    if path != "decode" and x.dtype == torch.bfloat16 and not isinstance(tile_kernel, triton.JITFunction):
        raise ValueError("Triton's interpreter multiplies bfloat16 by bit pattern: no tensor-core path for it there")
    table = table or tables.current(x.device)
    if path == "tile":
        tile = FLOAT32_TILE if x.dtype == torch.float32 else table.tile("16bit", m)
        return _launch_tiles(x, None, q, scale, bias, out, tile, 0, None, add)

    tile = table.decode if path == "decode" else FLOAT32_SMALL if x.dtype == torch.float32 else table.small
    rows = min(triton.next_power_of_2(m), DECODE_ROWS) if path == "decode" else tile.rows
    kernel = decode_kernel if path == "decode" else small_kernel
    span = table.span(tile, n, kp)
    splits = triton.cdiv(kp, span)
    if splits == 1:
        partial = None
    elif partial is None:
        partial = torch.empty(splits * m * n, dtype=torch.float32, device=x.device)
    elif partial.dtype != torch.float32 or partial.numel() < splits * m * n:
        raise ValueError(
            f"partial has {partial.numel()} entries of {partial.dtype}; float32 {splits * m * n} are needed"
        )
    _check_tensor_cores(x, path)
    with torch.cuda.device_of(x):
        kernel[(triton.cdiv(m, rows) * triton.cdiv(n, tile.columns), splits)](
            x, q, scale, bias, out, partial, m, n, k, kp, span, *x.stride(), *out.stride(),
            ROWS=rows, COLUMNS=tile.columns, DEPTH=tile.depth, ADD=add and splits == 1, **tile.options,
        )  # fmt: skip
        if partial is not None:
            combine_kernel[(m * triton.cdiv(n, COMBINE_COLUMNS),)](
                partial, scale, bias, out, m, n, splits, *out.stride(), COLUMNS=COMBINE_COLUMNS, ADD=add, num_warps=4,
                enable_fp_fusion=False,
            )  # fmt: skip
    return out


def linear_int8(
    xq: Tensor, sx: Tensor, q: Tensor, scale: Tensor, bias: Tensor | None = None, out: Tensor | None = None,
    group: int = 0, outliers: Outliers | None = None, add: bool = False, table: Table | None = None,
) -> Tensor:  # fmt: skip
    """y = (xq @ q.T) · sx[:, None] · scale + bias: the product of integers is exact, and then float32 from the left.

    xq: int8 [M, Kp], any strides; sx: float32 [M], or with `group` (the depth of this card's grouped tiles) [M, Kp/group
    rounded up]: a scale for each so many columns of a row, xq then within ±127; the rest as in `linear_exact`, out by
    default float32. `outliers`: columns that are zero in xq and multiplied in x's own 16 bits instead. Up to Kp = 65,536 a
    product is one int32 sum; beyond, the sum is split there and the parts are added in float32. A NaN in sx makes its
    row NaN. Needs compute capability 8.0: Triton has no int8 product below.
    """
    if xq.dtype != torch.int8:
        raise ValueError(f"xq is {xq.dtype}; linear_int8 takes int8 (floats are linear_exact's)")
    out = _checked(xq, q, scale, bias, out, torch.float32, add)
    (m, kp), n = xq.shape, q.shape[0]
    if kp != q.shape[1]:
        raise ValueError(f"xq has {kp} columns and q {q.shape[1]}: pad both alike, with zeros")
    tile = (table or tables.current(xq.device)).tile("grouped" if group else "int8", m)
    if group and group != tile.depth:
        raise ValueError(f"group is {group}; on this device scales are for {tile.depth} columns each")
    _check("sx", sx, torch.Size((m, triton.cdiv(kp, group)) if group else (m,)), (torch.float32,), xq.device)
    if outliers is not None:
        _check("outliers.columns", outliers.columns, outliers.columns.shape, (torch.int32,), xq.device)
        _check("outliers.x_side", outliers.x_side, torch.Size((m, SIDE)), (outliers.x.dtype,), xq.device)
        _check("outliers.w_side", outliers.w_side, torch.Size((n, SIDE)), (torch.int8,), xq.device)
        if outliers.x.shape[0] != m or outliers.x.stride(1) != 1 or outliers.x.dtype not in FLOATS:
            raise ValueError(
                f"outliers.x is {list(outliers.x.shape)} of {outliers.x.dtype}; [{m}, K] of floats, row by row"
            )
    return _launch_tiles(xq, sx, q, scale, bias, out, tile, group, outliers, add)


def _launch_tiles(
    x: Tensor, sx: Tensor | None, q: Tensor, scale: Tensor, bias: Tensor | None, out: Tensor, tile: Tile, group: int,
    outliers: Outliers | None, add: bool,
) -> Tensor:  # fmt: skip
    (m, k), (n, kp) = x.shape, q.shape
    _check_tensor_cores(x, "tile")
    chunks = 1 if sx is None else triton.cdiv(kp, INT32_COLUMNS)
    o = outliers
    wide = (None, None, None, None, None) if o is None else (o.x, o.x_side, o.w_side, o.columns, o.number)
    with torch.cuda.device_of(x):
        tile_kernel[(triton.cdiv(m, tile.rows) * triton.cdiv(n, tile.columns),)](
            x, sx, q, scale, bias, out, *wide, m, n, k, kp, *x.stride(), *out.stride(), 0 if o is None else o.x.stride(0),
            CHUNKS=chunks, CHUNK=INT32_COLUMNS, ROWS=tile.rows, COLUMNS=tile.columns, DEPTH=tile.depth, GROUP=group,
            SIDE=SIDE, PIECE=PIECE, ADD=add, **tile.options,
        )  # fmt: skip
    return out


def _check_tensor_cores(x: Tensor, path: str) -> None:
    if path != "decode" and x.is_cuda and torch.cuda.get_device_capability(x.device) < (8, 0):
        raise ValueError(f"{torch.cuda.get_device_name(x.device)} is below compute capability 8.0: use torch there")


def _checked(
    x: Tensor, q: Tensor, scale: Tensor, bias: Tensor | None, out: Tensor | None, dtype: torch.dtype, add: bool
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
        if add:
            raise ValueError("add: there is no out to add to")
        return torch.empty(shape, dtype=dtype, device=x.device)
    _check("out", out, shape, FLOATS, x.device, strided=True)
    return out


def _check(
    name: str, t: Tensor, shape: torch.Size, dtypes: Sequence[torch.dtype], device: torch.device, strided: bool = False
) -> None:
    if t.shape != shape or t.dtype not in dtypes or t.device != device:
        expected = f"{list(shape)} of {' or '.join(str(d) for d in dtypes)} on {device}"
        raise ValueError(f"{name} is {list(t.shape)} of {t.dtype} on {t.device}; it must be {expected}")
    if not strided and not t.is_contiguous():
        raise ValueError(f"{name} has strides {t.stride()}; it must be contiguous")

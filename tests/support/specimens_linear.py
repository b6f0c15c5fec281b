"""The kernels of linear layers as each architecture's table launches them, to be compiled ahead of time (ahead.py)."""

from bigrun_kernels.gpu import linear, tables
from support.ahead import Specimen

HALF = {"x": "*fp16", "q": "*i8", "scale": "*fp32", "bias": "*fp32", "out": "*fp16", "partial": "*fp32"}
WIDE = {
    **{name: kind for name, kind in HALF.items() if name != "partial"},
    "x": "*i8", "sx": "*fp32", "wide": "*fp16", "wide_side": "*fp16", "side": "*i8", "columns": "*i32", "count": "*i32",
}  # fmt: skip
STRIDES = {"x_col": 1, "out_col": 1}
NO_OUTLIERS = dict.fromkeys(("wide", "wide_side", "side", "columns", "count"))
PIECES = {"SIDE": tables.SIDE, "PIECE": linear.PIECE, "CHUNKS": 1, "CHUNK": linear.INT32_COLUMNS}


def _size(tile: tables.Tile, **more: object) -> dict[str, object]:
    return {"ROWS": tile.rows, "COLUMNS": tile.columns, "DEPTH": tile.depth, **STRIDES, **more}


def few(capability: int, everything: bool) -> list[Specimen]:
    """Decode: multiply-adds for one to four rows, tensor cores for up to sixteen, the sums of both put together."""
    table, row_specimens = tables.for_capability(capability), []
    decode, small = table.decode, table.small
    for rows in (1, 2, 4) if everything else (4,):
        split = rows == 2  # the form that splits K
        types = {name: kind for name, kind in HALF.items() if split or name != "partial"}
        constants = _size(decode, ROWS=rows, ADD=not split, **({} if split else {"partial": None}))
        row_specimens.append(
            Specimen(f"decode {rows}", "gemv:decode_kernel", types, constants, decode.warps, decode.stages, odd=("M",))
        )
    if capability >= 80:
        constants = _size(small, ADD=False)
        row_specimens.append(
            Specimen("small", "gemv:small_kernel", HALF, constants, small.warps, small.stages, "fp16", odd=("M",))
        )
    types = {name: kind for name, kind in HALF.items() if name not in ("x", "q")} | {"out": "*fp32"}
    constants = {"COLUMNS": linear.COMBINE_COLUMNS, "ADD": True, "out_col": 1}
    row_specimens.append(Specimen("combine", "gemv:combine_kernel", types, constants, 4, odd=("M", "splits")))
    return row_specimens


def many(capability: int, everything: bool) -> list[Specimen]:
    """Prefill: the largest tiles of each kind, and with `everything` the others as well."""
    table, tile_specimens = tables.for_capability(capability), []
    if capability < 80:
        return []
    for kind in tables.KINDS:
        for tile in table.tiles[kind] if everything else table.tiles[kind][-1:]:
            name = f"{kind} {tile.up_to or 'any'}"
            if kind == "16bit":
                types = {name: kind for name, kind in HALF.items() if name != "partial"}
                constants = _size(tile, **NO_OUTLIERS, **PIECES, sx=None, GROUP=0, ADD=False)
                products = "fp16"
            else:
                types, products = WIDE, "int8"
                constants = _size(tile, **PIECES, GROUP=tile.depth if kind == "grouped" else 0, ADD=kind == "int8")
            tile_specimens.append(
                Specimen(name, "tiles:tile_kernel", types, constants, tile.warps, tile.stages, products, odd=("M",))
            )
    if everything:
        types = {**{name: kind for name, kind in HALF.items() if name != "partial"}, "x": "*fp32", "out": "*fp32"}
        constants = _size(linear.FLOAT32_TILE, **NO_OUTLIERS, **PIECES, sx=None, GROUP=0, ADD=False)
        tile_specimens.append(Specimen("float32", "tiles:tile_kernel", types, constants, 4, 2, odd=("M",)))
    return tile_specimens


def specimens(capability: int, everything: bool) -> list[Specimen]:
    return few(capability, everything) + many(capability, everything)

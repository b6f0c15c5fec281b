"""Which tiles the Triton kernels of linear layers use: a table for each architecture, which is data (tables.json).

`bigrun autotune` measures a card and writes a table of the same form; `use` puts one in the place of the shipped ones. The
shipped tables are reasoned, not measured: docs/gpu-results.md says what has been run on which card.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

DECODE_ROWS = 4  # rows of x that share one load of the weight in decode's kernel of multiply-adds
SMALL_ROWS = 16  # rows that one matrix instruction takes anyway
SPLIT_ENTRIES = 2**17  # sums of a row that a kernel which splits K may leave to be added
SIDE = 128  # outlier columns of which dense copies are made; with more, they are read where they lie
KINDS = ("16bit", "int8", "grouped")  # what a tile multiplies: 16-bit x, int8 x with a scale a row, or a group
PREFILLS = ("exact", "grouped")


@dataclass(frozen=True)
class Tile:
    """What one program computes, and with what: `rows` of x by `columns` of y, `depth` entries of K at a time. `up_to` is
    the most rows of x that it is for, 0 for any number."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    up_to: int = 0

    @property
    def options(self) -> dict[str, int | bool]:
        """Launch options. Multiply-adds are fused where a kernel says so: the default differs between Triton versions."""
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": False}


@dataclass(frozen=True)
class Table:
    """The tiles of one architecture, or of one card that was tuned. `programs`: how many a decode launch aims at (it splits K
    to get there); `prefill`: what the mode auto takes for prompts. `source` says where it comes from."""

    decode: Tile
    small: Tile
    tiles: Mapping[str, tuple[Tile, ...]]
    programs: int
    prefill: str
    source: str

    def tile(self, kind: str, rows: int) -> Tile:
        """The tile for this many rows of x."""
        return next(tile for tile in self.tiles[kind] if tile.up_to == 0 or rows <= tile.up_to)

    def span(self, tile: Tile, n: int, kp: int) -> int:
        """Entries of K that one program of a decode kernel reads: for about `programs` of them, but never below 1,024.

        A function of the weight's shape and the table alone, not of the rows, so that it never changes an answer.
        """
        splits = 1
        while splits < 16 and -(-n // tile.columns) * splits < self.programs and kp >= 2048 * splits:
            if 2 * splits * n > SPLIT_ENTRIES:
                break
            splits *= 2
        steps = -(-kp // (splits * tile.depth))  # of each split, rounded up
        return steps * tile.depth

    def splits(self, tile: Tile, n: int, kp: int) -> int:
        return -(-kp // self.span(tile, n, kp))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def table_from(values: Mapping[str, Any]) -> Table:
    """The inverse of Table.to_dict; ValueError says what is wrong with it."""
    try:
        decode, small = Tile(**values["decode"]), Tile(**values["small"])
        tiles = {kind: tuple(Tile(**tile) for tile in values["tiles"][kind]) for kind in KINDS}
        table = Table(decode, small, tiles, int(values["programs"]), str(values["prefill"]), str(values["source"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a table of tiles: {error}") from error
    for tile in (decode, small, *(t for group in tiles.values() for t in group)):
        check_tile(tile)
    if any(not group or group[-1].up_to for group in tiles.values()):
        raise ValueError("each kind needs a last tile for any number of rows (up_to 0)")
    if any(tile.depth not in (32, 64, 128, 256) for tile in tiles["grouped"]) or len(_depths(tiles["grouped"])) > 1:
        raise ValueError("grouped tiles need one depth for all, at most 256: it is the group of a scale")
    if table.prefill not in PREFILLS or not 1 <= table.programs <= 2**20:
        raise ValueError(f"prefill is one of {', '.join(PREFILLS)} and programs between 1 and {2**20}")
    return table


def check_tile(tile: Tile) -> None:
    """ValueError for a tile that no kernel takes."""
    numbers = (tile.rows, tile.columns, tile.depth, tile.warps)
    if any(type(v) is not int or not 1 <= v <= 1024 or v & (v - 1) for v in numbers):
        raise ValueError(f"{tile}: rows, columns, depth and warps must be powers of two up to 1,024")
    if type(tile.stages) is not int or not 1 <= tile.stages <= 8 or type(tile.up_to) is not int or tile.up_to < 0:
        raise ValueError(f"{tile}: stages must be between 1 and 8, up_to at least 0")


def _depths(tiles: Sequence[Tile]) -> set[int]:
    return {tile.depth for tile in tiles}


@cache
def shipped() -> Mapping[int, Table]:
    """Compute capability (90 is 9.0) → its table."""
    text = (Path(__file__).parent / "tables.json").read_text(encoding="utf-8")
    return {int(capability): table_from(values) for capability, values in json.loads(text).items()}


def for_capability(capability: int) -> Table:
    """The shipped table of the nearest architecture at or below this one; of the oldest, for any older."""
    known = sorted(shipped())
    below = [c for c in known if c <= capability]
    return shipped()[below[-1] if below else known[0]]


_TUNED: dict[int, Table] = {}


def use(device: int, table: Table | None) -> None:
    """Take this table for a CUDA device of this process from now on; None goes back to the shipped one."""
    if table is None:
        _TUNED.pop(device, None)
    else:
        _TUNED[device] = table


def current(device: Any) -> Table:
    """The table in use for a torch device; on the CPU (the interpreter), the oldest architecture's that has int8 products."""
    if device.type != "cuda":
        return for_capability(80)
    import torch

    number = torch.cuda.current_device() if device.index is None else device.index
    if number in _TUNED:
        return _TUNED[number]
    major, minor = torch.cuda.get_device_capability(number)
    return for_capability(10 * major + minor)

"""The tables of tiles that GPU kernels take: what ships, what tuning makes of it, and files that are no such table."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bigrun.devices import tuned_tiles
from bigrun.measure import autotune
from bigrun_kernels.gpu import tables
from bigrun_kernels.gpu.tables import KINDS, Table, Tile, table_from
from support.commands import run_command


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BIGRUN_HOST", str(tmp_path / "host.json"))
    return tmp_path


def test_every_architecture_has_a_table_and_newer_ones_take_the_last() -> None:
    assert set(tables.shipped()) == {75, 80, 86, 89, 90, 100, 120}
    assert tables.for_capability(87) is tables.shipped()[86]
    assert tables.for_capability(121) is tables.shipped()[120]
    assert tables.for_capability(70) is tables.shipped()[75]
    assert tables.shipped()[75].prefill == "exact", "Triton has no int8 products there"


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 120])
@pytest.mark.parametrize("shape", [(1, 64), (4096, 4096), (12288, 4096), (4096, 11008), (151936, 896), (250880, 14336)])
def test_splits_cover_k_and_leave_no_more_sums_than_there_is_room_for(capability: int, shape: tuple[int, int]) -> None:
    table, (n, kp) = tables.for_capability(capability), shape
    for tile in (table.decode, table.small):
        span, splits = table.span(tile, n, kp), table.splits(tile, n, kp)
        assert span % tile.depth == 0
        assert (splits - 1) * span < kp <= splits * span
        assert splits == 1 or splits * n <= tables.SPLIT_ENTRIES
        assert splits == 1 or span >= 1024


def test_a_table_survives_json() -> None:
    table = tables.for_capability(90)
    assert table_from(json.loads(json.dumps(table.to_dict()))) == table


def damaged(name: str) -> Any:
    values: Any = json.loads(json.dumps(tables.for_capability(80).to_dict()))
    if name == "no tiles":
        del values["tiles"]["int8"]
    elif name == "unknown field":
        values["decode"]["cluster"] = 2
    elif name == "odd rows":
        values["small"]["rows"] = 17
    elif name == "text for a number":
        values["small"]["warps"] = "4"
    elif name == "no last tile":
        values["tiles"]["int8"] = values["tiles"]["int8"][:1]
    elif name == "two groups":
        values["tiles"]["grouped"][0] = {**values["tiles"]["grouped"][0], "depth": 128}
    elif name == "prefill":
        values["prefill"] = "fast"
    elif name == "a list":
        return [1]
    return values


BAD = ["no tiles", "unknown field", "odd rows", "text for a number", "no last tile", "two groups", "prefill", "a list"]


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_table_is_left_aside_with_a_note(name: str, home: Path) -> None:
    path = tuned_tiles.tiles_path("NVIDIA GeForce RTX 4090")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(damaged(name)))
    table, wrong = tuned_tiles.read_tiles("NVIDIA GeForce RTX 4090")
    assert table is None
    assert str(path) in wrong
    assert "bigrun autotune" in wrong


def test_a_kept_table_is_found_again_by_its_card(home: Path) -> None:
    assert tuned_tiles.read_tiles("NVIDIA H100 80GB HBM3") == (None, "")
    table = replace(tables.for_capability(90), source="autotune on NVIDIA H100 80GB HBM3")
    path = tuned_tiles.write_tiles(table, "NVIDIA H100 80GB HBM3")
    assert path == home / "tiles" / "nvidia-h100-80gb-hbm3.json"
    assert tuned_tiles.read_tiles("NVIDIA H100 80GB HBM3") == (table, "")
    path.write_bytes(b"{" * 3_000_000)
    assert "larger than any table" in tuned_tiles.read_tiles("NVIDIA H100 80GB HBM3")[1]


def test_tuning_takes_the_quickest_tile_of_each_place() -> None:
    best_tiles: dict[str, Any] = {
        "decode": Tile(4, 16, 128, 2, 1), "small": Tile(16, 32, 256, 4, 5), "16bit": (256, 128), "int8": (64, 256),
        "grouped": (128, 256),
    }  # fmt: skip

    def timer(what: str, tile: Tile, table: Table) -> float:
        """As slow as it is far from the best tile; 2,048 programs are best, and int8 is twice as fast as 16 bits."""
        slow = {"16bit": 2.0, "grouped": 1.0}.get(what, 1.0)
        if what in ("decode", "small"):
            return 1.0 + (tile != best_tiles[what]) + 0.1 * (table.programs != 2048)
        if tile.up_to:
            return slow * (1.0 + tile.columns + tile.stages)
        if tile.stages == 4 and tile.warps == 4:
            return float("inf")  # no room for it
        return slow * (1.0 + ((tile.rows, tile.columns) != best_tiles[what]) + 0.01 * tile.stages)

    heard: list[str] = []
    start = tables.for_capability(90)
    tuned = autotune.tune(start, timer, "a test", heard.append)
    assert tuned.decode == best_tiles["decode"]
    assert replace(tuned.small, up_to=0) == best_tiles["small"]
    assert tuned.programs == 2048
    for kind in KINDS:
        last = tuned.tiles[kind][-1]
        assert (last.rows, last.columns, last.stages) == (*best_tiles[kind], 2)
        assert [tile.up_to for tile in tuned.tiles[kind]] == [tile.up_to for tile in start.tiles[kind]]
        assert tuned.tiles[kind][0].columns == 32
    assert tuned.prefill == "grouped"
    assert tuned.source == "a test"
    assert len(heard) == 2 + sum(len(tiles) for tiles in start.tiles.values())
    assert table_from(tuned.to_dict()) == tuned, "what tuning makes can be read again"
    assert start == tables.for_capability(90)


def test_prompts_are_exact_where_groups_gain_nothing() -> None:
    def timer(what: str, tile: Tile, table: Table) -> float:
        return 1.0

    assert autotune.tune(tables.for_capability(86), timer, "a test").prefill == "exact"


@pytest.mark.parametrize("what", ["decode", "small", *KINDS])
def test_candidates_are_tiles_that_kernels_take(what: str) -> None:
    for up_to in (16, 64, 512, 0) if what in KINDS else (0,):
        tiles = list(autotune.candidates(what, up_to))
        assert len(tiles) == len(set(tiles)) >= 4
        for tile in tiles:
            tables.check_tile(tile)
            assert tile.up_to == up_to
            assert what != "grouped" or tile.depth == 64


def test_a_tuned_table_is_used_for_its_device_alone() -> None:
    table = replace(tables.for_capability(90), source="tuned")
    tables.use(3, table)
    try:
        assert tables.current(torch.device("cuda", 3)) is table
        assert tables.current(torch.device("cpu")) is tables.for_capability(80)
    finally:
        tables.use(3, None)
    assert 3 not in tables._TUNED


def test_without_a_card_the_command_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run_command("autotune", "--gpu", "2")
    assert result.exit_code == 2
    assert "cuda:2 cannot be run on" in result.stderr
    monkeypatch.setenv("BIGRUN_GPU", "emulate")
    result = run_command("autotune")
    assert result.exit_code == 2
    assert "emulated GPU cannot be tuned" in result.stderr

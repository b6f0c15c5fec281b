"""`bigrun autotune`: measure this card's kernels of linear layers and keep the best tiles, for later runs on such a card.

What is kept is a table of the form that ships for each architecture (bigrun_kernels/gpu/tables.py), a file a kind of card
in bigrun's cache folder. It is read when a run begins on such a card; a file that is no such table is left aside with a note.
"""

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from bigrun.devices.tuned_tiles import write_tiles
from bigrun.errors import CallError, RunError
from bigrun_kernels.gpu.tables import KINDS, Table, Tile

# (N, K) of the linears that are timed: those of a 7B and of a 70B model
SHAPES = ((12288, 4096), (4096, 4096), (22016, 4096), (4096, 11008), (57344, 8192))
ROWS = {
    "decode": (1, 4),
    "small": (8, 16),
    16: (16,),
    64: (64,),
    512: (512,),
    0: (512, 2048),
}  # of x, by what a tile is for
LARGEST = 2**20
CALLS, ROUNDS = 16, 7  # launches in a graph, and replays of it
MOST_ACCUMULATORS = 128  # of a thread: a tile with more would be spilled
FASTER = 1.05  # what the grouped prefill must gain to be taken

Timer = Callable[[str, Tile, Table], float]  # (what, tile, the table it is in) → seconds, or inf where it cannot run


def candidates(what: str, up_to: int = 0) -> Iterator[Tile]:
    """Tiles worth trying: for "decode", "small" or one of KINDS and a number of rows (0: many)."""
    if what == "decode":
        for columns in (4, 8, 16):
            for depth in (128, 256, 512):
                for warps in (2, 4, 8):
                    yield Tile(4, columns, depth, warps, 1)
        return
    if what == "small" or up_to == 16:
        for columns in (32, 64, 128):
            for depth in (64,) if what == "grouped" else (64, 128, 256):
                for stages in (2, 3, 4, 5):
                    yield Tile(16, columns, depth, 4, stages, up_to)
        return
    sizes = ((64, 64), (64, 128)) if up_to == 64 else ((128, 128), (128, 256), (256, 128), (64, 256), (128, 64))
    depths = {"grouped": (64,), "int8": (64, 128), "16bit": (32, 64)}[what]
    for rows, columns in sizes:
        for depth in depths:
            for warps in (4, 8):
                for stages in (2, 3, 4):
                    if rows * columns <= 32 * warps * MOST_ACCUMULATORS:
                        yield Tile(rows, columns, depth, warps, stages, up_to)


def tune(table: Table, timer: Timer, source: str, log: Callable[[str], None] = lambda text: None) -> Table:
    """The table with the quickest of all candidates in each place; its own tile stays where nothing is quicker."""

    def best(what: str, mine: Tile, others: Iterable[Tile], put: Callable[[Tile], Table]) -> Tile:
        winner = min((timer(what, tile, put(tile)), i, tile) for i, tile in enumerate([mine, *others]))
        log(f"{what}{f' up to {mine.up_to} rows' if mine.up_to else ''}: {winner[2]}")
        return winner[2]

    for programs in (256, 512, 1024, 2048):
        table = min(table, replace(table, programs=programs), key=lambda t: timer("decode", t.decode, t))
    decode = best("decode", table.decode, candidates("decode"), lambda tile: replace(table, decode=tile))
    table = replace(table, decode=decode)
    small = best("small", table.small, candidates("small"), lambda tile: replace(table, small=tile))
    table = replace(table, small=small)
    for kind in KINDS:
        for i, mine in enumerate(table.tiles[kind]):
            put = partial(_with_tile, table, kind, i)
            table = put(best(kind, mine, candidates(kind, mine.up_to), put))
    exact, grouped = (timer(kind, table.tiles[kind][-1], table) for kind in ("16bit", "grouped"))
    return replace(table, prefill="grouped" if exact > FASTER * grouped else "exact", source=source)


def _with_tile(table: Table, kind: str, place: int, tile: Tile) -> Table:
    tiles = (*table.tiles[kind][:place], tile, *table.tiles[kind][place + 1 :])
    return replace(table, tiles={**table.tiles, kind: tiles})


def device_timer(number: int) -> Timer:
    """Times kernels on a CUDA device: the sum over SHAPES of medians, each shape's weights rotated past the L2 cache."""
    import torch

    from bigrun_kernels.gpu import linear, tables

    device = torch.device("cuda", number)
    cache = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 64 * 2**20)
    free = torch.cuda.mem_get_info(device)[0]
    shapes = [shape for shape in SHAPES if shape[0] * shape[1] * 4 < free]
    seen: dict[tuple[str, Tile, int], float] = {}

    def time(what: str, tile: Tile, table: Table) -> float:
        key = (what, tile, table.programs)
        if key not in seen:
            tables.use(number, table)
            try:
                rows = ROWS[what if what in ROWS else tile.up_to]
                seen[key] = sum(_median(_call(what, tile, m, shape), device) for m in rows for shape in shapes)
            except Exception as error:  # a tile that this card has no room for, or that its compiler refuses
                if "CUDA error" in str(error):
                    raise RunError(f"cuda:{number} failed while it was tuned: {str(error)[:100]}") from error
                seen[key] = float("inf")
            finally:
                tables.use(number, None)
        return seen[key]

    def _call(what: str, tile: Tile, m: int, shape: tuple[int, int]) -> Callable[[int], Any]:
        n, k = shape
        copies = max(1, min(8, -(-4 * cache // (n * k)))) if what in ("decode", "small") else 1
        q = torch.randint(-127, 128, (copies, n, k), dtype=torch.int8, device=device)
        scale, x = torch.ones(n, device=device), torch.randn(m, k, device=device, dtype=torch.float16)
        out = torch.empty(m, n, device=device, dtype=torch.float16)
        sums = torch.empty(16 * tables.SPLIT_ENTRIES, device=device)
        if what in ("decode", "small", "16bit"):
            path: Any = "tile" if what == "16bit" else what
            return lambda i: linear.linear_exact(x, q[i % copies], scale, None, out, path, sums)
        group = tile.depth if what == "grouped" else 0
        xq = torch.randint(-127, 128, (m, k), dtype=torch.int8, device=device)
        sx = torch.ones((m, -(-k // group)) if group else (m,), device=device)
        return lambda i: linear.linear_int8(xq, sx, q[0], scale, None, out, group)

    return time


def _median(call: Callable[[int], Any], device: Any) -> float:
    """Seconds of a launch. CALLS of them are one CUDA graph, so that the host's own time for each is not in it."""
    import torch

    stream = torch.cuda.Stream(device)
    for i in range(3):
        call(i)  # compiled here: a capture may not
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device), torch.cuda.graph(graph, stream=stream):
        for i in range(CALLS):
            call(i)
    times = []
    for _ in range(ROUNDS):
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        graph.replay()
        last.record()
        torch.cuda.synchronize(device)
        times.append(first.elapsed_time(last) / 1000 / CALLS)
    return statistics.median(times)


def autotune(number: int, log: Callable[[str], None]) -> Mapping[str, Any]:
    """Tune cuda:`number` and keep its table; CallError where there is no such card or Triton has no matrix products for it."""
    import torch

    from bigrun.devices.gpu_memory import emulated, torch_device
    from bigrun_kernels.gpu import tables

    device = torch_device(f"cuda:{number}")
    if emulated():
        raise CallError("an emulated GPU cannot be tuned: its times mean nothing")
    card = torch.cuda.get_device_name(device)
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        raise CallError(f"cuda:{number} ({card}): below compute capability 8.0 there is nothing to tune")
    table = tune(tables.for_capability(10 * major + minor), device_timer(number), f"autotune on {card}", log)
    return {"card": card, "file": str(write_tiles(table, card)), "table": table.to_dict()}

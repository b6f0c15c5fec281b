"""The planner on toys whose bytes are counted by hand, and on models and rigs nobody thought of."""

import itertools
import math
import warnings
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from bigrun.devices.make_rig import RigOptions, make_rig
from bigrun.devices.rates import ASSUMED_CPU, ASSUMED_GPU, Rates
from bigrun.devices.rig import Device, Rig, disk_rates
from bigrun.model.catalog.lookup import ENTRIES
from bigrun.model.families.registry import spec_from_config
from bigrun.model.spec import Experts, Latent, ModelSpec
from bigrun.model.storage import Storage
from bigrun.planning import best, search
from bigrun.planning.best import best_plan
from bigrun.planning.ledger import Ledger
from bigrun.planning.options import PlanOptions
from bigrun.planning.plan import Plan, plan_from_json
from bigrun.planning.planner import make_plan
from bigrun.planning.search import STAGING_SLOTS
from support.long import long
from support.toys import mixture, toy

GB = 10**9
# The toy: hidden, vocabulary, intermediate size and the one head are all 64. In bytes, all of them multiples of 64:
BLOCK = 28672 + 1792 + 512  # int8: qkv 192·64, out 64·64, up 128·64, down 64·64; a float32 scale a row; two norms
KV = 2 * 64 * 64 * 2  # one page of 64 tokens, float16
TABLE, NORM = 64 * 64 + 64 * 2 * 2, 64 * 4
ROW = (
    4 * (64 + 192 + 64 + 128 + 64 + 64 + 64) + 2 * 64 + 8 + 8
)  # x qkv attention up gated rotation normed; int8; scales
PARTIAL = 320  # what one span of one head and sequence gives: 66 float32
LOGITS = 16 * 64 * 4
# On a real GPU: x ids positions sequences slots; in 16 bits qkv attention up gated normed and the outlier columns' side; the
# rotation; int8 and the scales of two groups of 32.
GPU_ROW = 4 * 64 + 4 * 8 + 2 * (192 + 64 + 128 + 64 + 64 + 128) + 4 * 64 + 64 + 2 * 4
GPU_SIDE = (
    2 * 64 * 4 + 64 + 192 * 128
)  # outlier columns: marks, numbers, their count, and a copy of the widest linear's
GPU_SPLIT = 2**17 * 4  # sums of a row that splits of K leave
GPU_CHOSEN = 8 * 3 * 8  # tokens that are on their way to the host
GPU_LOGITS = 16 * 64 * 4 + LOGITS + GPU_CHOSEN  # rows of x and their logits
EMBED_ONLY = 32 * 64 * 4
RING = STAGING_SLOTS * (BLOCK + KV)  # a slot is a piece of a block, or all of a small one
# Launches that take so long that a hop is nothing beside them, as in models whose blocks take long.
GPU, CPU = replace(ASSUMED_GPU, block=1e-3), replace(ASSUMED_CPU, block=1e-2)


def steps(rows: int, head: bool = False) -> int:
    """Workspace of the CPU or a virtual GPU that computes blocks."""
    return rows * ROW + 64 + PARTIAL + head * LOGITS


def gpu_steps(rows: int, head: bool = False) -> int:
    """Workspace of a real GPU that computes blocks: a page table too, which takes 64 bytes."""
    return rows * GPU_ROW + 64 + PARTIAL + GPU_SIDE + GPU_SPLIT + head * GPU_LOGITS


def budget(need: int) -> int:
    """The smallest budget that holds `need` bytes and its reserve of one percent."""
    return need + (need - 1) // 99


def rig_of(budgets: dict[Any, int], *cards: Rates, cpu: Rates = CPU, virtual: bool = False) -> Rig:
    """A rig of these budgets; `cards` are the rates of its GPUs, from the first on."""
    rig = make_rig(RigOptions(max_memory=budgets, virtual=virtual))
    rates = iter(cards or [GPU] * len(rig.gpus))
    devices = (
        replace(d, rates=next(rates) if d.kind == "gpu" else cpu if d.kind == "cpu" else d.rates) for d in rig.devices
    )
    return replace(rig, devices=tuple(devices))


def planned(spec: ModelSpec, budgets: dict[Any, int], context: int = 16) -> Plan:
    return make_plan(spec, rig_of(budgets), PlanOptions(context=context))


def homes(made: Plan) -> dict[str, tuple[str, ...]]:
    return {device.name: device.parts for device in made.devices if device.parts}


def counts(made: Plan) -> dict[str, int]:
    """Device → blocks that are stored there."""
    block_counts = {device.name: sum(part.startswith("blocks.") for part in device.parts) for device in made.devices}
    return {name: number for name, number in block_counts.items() if number}


TWO = 2 * (BLOCK + KV) + gpu_steps(32)
ONE_AND_HEAD = BLOCK + KV + TABLE + NORM + gpu_steps(32, head=True)


def test_three_blocks_and_a_tied_head_fill_two_gpus_to_the_byte() -> None:
    made = planned(toy(3), {0: budget(TWO), 1: budget(ONE_AND_HEAD)})
    assert homes(made) == {"cuda:0": ("blocks.0", "blocks.1"), "cuda:1": ("embed", "blocks.2", "norm", "head")}
    assert made.fits
    first, second, cpu = made.devices
    assert (first.used_bytes, first.free_bytes) == (budget(TWO), 0)
    assert (first.weights_bytes, first.kv_cache_bytes, first.workspace_bytes) == (2 * BLOCK, 2 * KV, gpu_steps(32))
    assert (first.staging_bytes, first.pinned_bytes, first.reserve_bytes) == (0, 0, budget(TWO) - TWO)
    assert (second.weights_bytes, second.kv_cache_bytes) == (BLOCK + TABLE + NORM, KV)
    assert (second.workspace_bytes, second.used_bytes) == (gpu_steps(32, head=True), budget(ONE_AND_HEAD))
    assert (cpu.name, cpu.used_bytes) == ("cpu", 0)
    block, head = made.placement("blocks.2"), made.placement("head")
    assert (block.stored_on, block.prefill_on, block.decode_on, block.kv_on) == ("cuda:1",) * 4
    assert (block.stored_as, block.weights_bytes, block.kv_cache_bytes, block.slice) == ("int8", BLOCK, KV, None)
    assert (head.stored_on, head.stored_as, head.weights_bytes, head.kv_on) == ("cuda:1", "int8", 0, None)
    assert made.placement("embed").weights_bytes == TABLE


@pytest.mark.parametrize("short", [0, 1])
def test_one_byte_less_leaves_the_last_block_without_a_place(short: int) -> None:
    budgets = {0: budget(TWO), 1: budget(ONE_AND_HEAD)}
    made = planned(toy(3), {**budgets, short: budgets[short] - 1})
    assert (made.fits, made.unplaced, made.predicted) == (False, ("blocks.2",), None)
    assert "missing for 1 block:" in made.hint
    assert "--cpu" in made.hint


@pytest.mark.parametrize(
    ("budgets", "expected"),
    [
        ({0: GB}, {"cuda:0": "embed blocks norm head"}),
        ({"cpu": GB}, {"cpu": "embed blocks norm head"}),
        ({0: GB, "cpu": GB}, {"cuda:0": "embed blocks norm head"}),
        ({0: GB, 1: GB, "cpu": GB}, {"cuda:0": "embed blocks norm head"}),  # the first of equal GPUs: a hop less
        ({0: budget(TWO), "cpu": GB}, {"cuda:0": "blocks", "cpu": "embed norm head"}),  # blocks come before the head
        ({0: budget(TWO), "cpu": GB, "disk": GB}, {"cuda:0": "blocks", "cpu": "embed norm head"}),
    ],
    ids=["gpu", "cpu", "gpu before cpu", "all on one of two", "blocks before head", "disk last"],
)
def test_where_two_blocks_and_a_tied_head_go(budgets: dict[Any, int], expected: dict[str, str]) -> None:
    places = {name: tuple(parts.replace("blocks", "blocks.0 blocks.1").split()) for name, parts in expected.items()}
    assert homes(planned(toy(2), budgets)) == places


def test_an_untied_table_is_looked_up_on_the_cpu_and_the_head_computed_on_the_gpu() -> None:
    made = planned(toy(1, tied=False), {0: budget(ONE_AND_HEAD), "cpu": budget(TABLE + EMBED_ONLY)})
    assert homes(made) == {"cuda:0": ("blocks.0", "norm", "head"), "cpu": ("embed",)}
    assert made.placement("head").weights_bytes == made.placement("embed").weights_bytes == TABLE
    assert (made.device("cpu").weights_bytes, made.device("cpu").workspace_bytes) == (TABLE, EMBED_ONLY)
    assert not planned(toy(1, tied=False), {0: budget(ONE_AND_HEAD), "cpu": budget(TABLE + EMBED_ONLY) - 1}).fits
    # a real card with room for it has the table too: then it feeds itself the tokens that it chose
    assert set(homes(planned(toy(1, tied=False), {0: GB, "cpu": GB}))) == {"cuda:0"}
    virtual = make_plan(toy(1, tied=False), rig_of({0: GB, "cpu": GB}, virtual=True), PlanOptions(context=16))
    assert homes(virtual)["cpu"] == ("embed",)


@pytest.mark.parametrize(
    ("host", "free"),
    [({"cpu": GB}, "cpu"), ({}, "cuda:0"), ({"disk": GB}, "cuda:0"), ({"cpu": budget(EMBED_ONLY), "disk": GB}, "disk")],
    ids=["host memory", "GPU alone", "no host memory but a disk", "room on the host for its rows, and a disk"],
)
def test_an_untied_table_is_stored_where_it_takes_no_room_from_a_block(host: dict[Any, int], free: str) -> None:
    need = budget(ONE_AND_HEAD + (TABLE if free == "cuda:0" else 0))
    made = planned(toy(1, tied=False), {0: need, **host})
    assert made.unplaced == ()
    assert made.placement("embed").stored_on == free
    assert made.placement("blocks.0").stored_on == made.placement("head").stored_on == "cuda:0"


@pytest.mark.parametrize(
    ("vocabulary", "on_gpu"),
    [(640, ("embed", "norm", "head")), (32, ("blocks.0",))],
    ids=["a head that takes longer than a block", "a block that takes longer than the head"],
)
def test_where_a_card_holds_either_it_takes_what_takes_longer(vocabulary: int, on_gpu: tuple[str, ...]) -> None:
    reads: dict[str, Any] = {"read": 1e7, "block": 0.0}
    rig = rig_of(
        {0: budget(BLOCK + KV + gpu_steps(32)), "cpu": GB}, replace(GPU, **reads), cpu=replace(CPU, read=1e6, block=0.0)
    )
    made = make_plan(toy(1, vocab_size=vocabulary), rig, PlanOptions(context=16))
    assert made.device("cuda:0").parts == on_gpu


def test_the_head_is_on_a_gpu_beside_the_last_blocks_that_it_leaves_room_for() -> None:
    made = planned(
        toy(5),
        {
            0: budget(3 * (BLOCK + KV) + gpu_steps(32)),
            1: budget(2 * (BLOCK + KV) + TABLE + NORM + gpu_steps(32, True)),
            "cpu": GB,
        },
    )
    assert homes(made) == {
        "cuda:0": ("blocks.0", "blocks.1", "blocks.2"),
        "cuda:1": ("embed", "blocks.3", "blocks.4", "norm", "head"),
    }


FAST = replace(GPU, read=2 * GPU.read, int8=2 * GPU.int8, block=GPU.block / 2)


@pytest.mark.parametrize("fast", [0, 1], ids=["fast card first", "fast card second"])
@pytest.mark.parametrize(("blocks", "on_fast"), [(6, 4), (5, 4), (4, 4), (8, 4)], ids="{} blocks".format)
def test_of_cards_with_the_same_memory_the_faster_one_takes_as_many_blocks_as_it_holds(
    fast: int, blocks: int, on_fast: int
) -> None:
    size = budget(4 * (BLOCK + KV) + TABLE + NORM + gpu_steps(32, head=True))
    cards = (FAST, GPU) if fast == 0 else (GPU, FAST)
    made = make_plan(toy(blocks), rig_of({0: size, 1: size}, *cards), PlanOptions(context=16))
    rest = {f"cuda:{1 - fast}": blocks - on_fast} if blocks > on_fast else {}
    assert counts(made) == {f"cuda:{fast}": on_fast, **rest}
    assert made.placement("head").stored_on == f"cuda:{fast}"


def test_a_faster_card_of_less_memory_is_filled_before_a_slower_one_of_more() -> None:
    small, large = budget(2 * (BLOCK + KV) + gpu_steps(32)), GB
    made = make_plan(toy(6), rig_of({0: large, 1: small}, GPU, FAST), PlanOptions(context=16))
    assert counts(made) == {"cuda:0": 4, "cuda:1": 2}


@pytest.mark.parametrize(("rows", "spare"), [(32, 0), (64, 32 * GPU_ROW), (32, 32 * GPU_ROW - 64)])
def test_the_prompt_is_read_in_larger_chunks_only_where_no_block_pays_for_it(rows: int, spare: int) -> None:
    need = 2 * (BLOCK + KV) + TABLE + NORM + gpu_steps(32, head=True) + spare
    made = planned(toy(2), {0: budget(need), "cpu": GB}, context=64)
    assert made.prefill_chunk_tokens == rows
    assert set(homes(made)) == {"cuda:0"}
    assert made.device("cuda:0").workspace_bytes == gpu_steps(rows, head=True)


def test_a_step_of_more_sequences_than_the_chunk_has_rows_takes_a_row_for_each() -> None:
    partial, logits = 40 * 66 * 4, 40 * 64 * 4
    tables, split = 192, 16 * GPU_SPLIT  # 40 int32, to a multiple of 64; of more rows than 16 none is split
    gpu = 40 * GPU_ROW + tables + partial + GPU_SIDE + split + 2 * logits + GPU_CHOSEN
    for virtual, need in ((True, 40 * ROW + 64 + partial + logits), (False, gpu)):
        made = make_plan(toy(1), rig_of({0: GB}, virtual=virtual), PlanOptions(context=16, batch=40))
        assert made.prefill_chunk_tokens == 32
        assert made.devices[0].workspace_bytes == need
        assert made.devices[0].kv_cache_bytes == 40 * KV


@pytest.mark.parametrize("real", [0, 1])
def test_a_real_card_takes_a_gpus_buffers_and_a_virtual_one_the_cpus(real: int) -> None:
    """Cards of one size and speed: the real one holds a block as well, and the virtual one as many as its smaller buffers
    leave room for."""
    size = budget(BLOCK + KV + gpu_steps(32))
    most = (size - size // 100 - steps(32)) // (BLOCK + KV)
    rig = rig_of({0: size, 1: size})
    devices = [replace(d, virtual=d.kind == "gpu" and d.name != f"cuda:{real}") for d in rig.devices]
    made = make_plan(
        toy(most + 1), replace(rig, devices=tuple(devices)).with_budget("cpu", GB), PlanOptions(context=16)
    )
    assert counts(made) == {f"cuda:{real}": 1, f"cuda:{1 - real}": most}
    assert [made.device(f"cuda:{i}").workspace_bytes for i in (real, 1 - real)] == [gpu_steps(32), steps(32)]
    assert made.device(f"cuda:{real}").free_bytes == 0


def disk_rig(blocks: int, more: int = 0) -> dict[Any, int]:
    """Host memory for the ends, all keys and values and the slots; and a disk for all blocks."""
    return {"cpu": budget(TABLE + NORM + steps(32, head=True) + blocks * KV + RING + more), "disk": blocks * BLOCK}


def test_blocks_go_to_the_disk_where_the_cpu_can_only_stage_them() -> None:
    names = tuple(f"blocks.{i}" for i in range(8))
    made = planned(toy(8), disk_rig(8))
    assert homes(made) == {"cpu": ("embed", "norm", "head"), "disk": names}
    for name in names:
        place = made.placement(name)
        assert (place.prefill_on, place.decode_on, place.kv_on) == ("cpu", "cpu", "cpu")
    cpu, disk = made.device("cpu"), made.device("disk")
    assert (cpu.staging_bytes, cpu.pinned_bytes, cpu.kv_cache_bytes) == (RING, 0, 8 * KV)
    assert (cpu.weights_bytes, cpu.workspace_bytes, cpu.free_bytes) == (TABLE + NORM, steps(32, head=True), 0)
    assert (disk.weights_bytes, disk.used_bytes, disk.kv_cache_bytes) == (8 * BLOCK, 8 * BLOCK, 0)
    assert made.fits


def test_a_byte_less_of_host_memory_or_of_disk_leaves_a_block_without_a_place() -> None:
    for name in ("cpu", "disk"):
        budgets = disk_rig(8)
        made = planned(toy(8), {**budgets, name: budgets[name] - 1})
        assert (made.fits, len(made.unplaced)) == (False, 1), name


def test_host_memory_keeps_as_many_blocks_as_it_can_beside_the_slots_and_the_disk_the_others() -> None:
    made = planned(toy(10), disk_rig(10, more=2 * BLOCK))
    assert counts(made) == {"cpu": 2, "disk": 8}
    assert made.device("cpu").staging_bytes == RING
    assert made.device("cpu").free_bytes == 0


# A link over which a block is copied faster than the CPU computes it for a prompt, but not for a token.
SLOW_CPU = replace(CPU, read=1e9, int8=2e9, block=1e-5)


def streaming(link: float, virtual: bool = False, blocks: int = 20, gpu: int | None = None, cpu: int = GB) -> Plan:
    """A plan of a card that holds a few blocks, behind a link."""
    work = steps(32, head=True) if virtual else gpu_steps(32, head=True)
    size = budget(8 * (BLOCK + KV) + RING + TABLE + NORM + work) if gpu is None else gpu
    card = replace(GPU, link=link, block=1e-5)
    rig = rig_of({0: size, "cpu": cpu}, card, cpu=SLOW_CPU, virtual=virtual)
    return make_plan(toy(blocks), rig, PlanOptions(context=64))


def phases(made: Plan) -> set[tuple[str, str, str, str | None]]:
    return {(p.stored_on, p.prefill_on, p.decode_on, p.kv_on) for p in made.placements if p.part.startswith("blocks.")}


ON_GPU = ("cuda:0", "cuda:0", "cuda:0", "cuda:0")


@pytest.mark.parametrize(
    ("link", "virtual", "expected"),
    [
        (5e8, False, ("cpu", "cuda:0", "cpu", "cpu")),
        (1e12, False, ("cpu", "cuda:0", "cuda:0", "cpu")),
        (3e7, False, ("cpu", "cpu", "cpu", "cpu")),
        (5e8, True, ("cpu", "cpu", "cpu", "cpu")),
        (1e12, True, ("cpu", "cpu", "cpu", "cpu")),
    ],
    ids=["fast link", "faster than memory", "slow link", "virtual, fast link", "virtual, faster than memory"],
)
def test_what_the_host_stores_is_computed_where_that_is_quickest_in_each_phase(
    link: float, virtual: bool, expected: tuple[str, ...]
) -> None:
    assert phases(streaming(link, virtual)) == {ON_GPU, expected}


def test_streaming_takes_slots_on_the_gpu_and_pinned_slots_on_the_host() -> None:
    made = streaming(5e8)
    gpu, cpu = made.device("cuda:0"), made.device("cpu")
    assert (gpu.staging_bytes, gpu.pinned_bytes) == (RING, 0)
    assert (cpu.staging_bytes, cpu.pinned_bytes) == (0, RING)
    still = streaming(3e7)
    assert [(d.staging_bytes, d.pinned_bytes) for d in still.devices] == [(0, 0), (0, 0)]


def test_a_host_without_room_for_pinned_slots_does_not_stream() -> None:
    streams = ("cpu", "cuda:0", "cpu", "cpu")
    need = budget(12 * (BLOCK + KV) + steps(32) + RING)  # the blocks that the card does not hold
    made = streaming(5e8, cpu=need)
    assert counts(made) == {"cuda:0": 8, "cpu": 12}
    assert streams in phases(made)
    assert made.device("cpu").free_bytes == 0
    assert streams not in phases(streaming(5e8, cpu=need - 1))


def test_a_gpu_that_nothing_is_stored_on_is_streamed_through_only_with_room_for_a_steps_buffers() -> None:
    need = budget(RING + gpu_steps(32))
    made = streaming(5e8, blocks=30, gpu=need)
    assert phases(made) == {("cpu", "cuda:0", "cpu", "cpu")}
    assert (made.device("cuda:0").staging_bytes, made.device("cuda:0").workspace_bytes) == (RING, gpu_steps(32))
    assert made.device("cuda:0").free_bytes == 0
    less = streaming(5e8, blocks=30, gpu=need - 1)
    assert phases(less) == {ON_GPU, ("cpu", "cpu", "cpu", "cpu")}


def test_what_the_disk_is_too_slow_to_stream_is_computed_on_the_cpu_in_its_own_buffers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Host memory is streamed in both phases, the disk in none: the CPU needs a step's buffers for the disk's blocks."""
    monkeypatch.setattr(search, "SLOT_BYTES", 4096)
    ring = STAGING_SLOTS * 4096
    gpu = budget(8 * (BLOCK + KV) + TABLE + NORM + ring + gpu_steps(32, head=True))
    memory = budget(4 * BLOCK + 22 * KV + ring + steps(32))
    card, cpu = replace(GPU, link=1e12, block=1e-5), replace(SLOW_CPU, block=1e-2)
    rig = rig_of({0: gpu, "cpu": memory, "disk": GB}, card, cpu=cpu)
    slow = tuple(replace(d, rates=disk_rates(1e6)) if d.kind == "disk" else d for d in rig.devices)
    made = make_plan(toy(30), replace(rig, devices=slow), PlanOptions(context=64))
    assert made.fits
    assert phases(made) == {ON_GPU, ("cpu", "cuda:0", "cuda:0", "cpu"), ("disk", "cpu", "cpu", "cpu")}
    assert counts(made) == {"cuda:0": 8, "cpu": 4, "disk": 18}
    assert (made.device("cpu").workspace_bytes, made.device("cpu").free_bytes) == (steps(32), 0)


def test_slots_of_a_model_of_some_size_are_pieces_of_32_mib() -> None:
    made = make_plan(
        ENTRIES["llama-3-70b"].spec(), make_rig(RigOptions(gpus="RTX4090", cpu="96GB")), PlanOptions(context=8192)
    )
    assert ("cpu", "cuda:0", "cpu", "cpu") in phases(made)
    assert made.device("cuda:0").staging_bytes == STAGING_SLOTS * 32 * 2**20
    assert made.device("cpu").pinned_bytes == STAGING_SLOTS * 32 * 2**20


# The toy's blocks as a mixture: attention and a router beside four experts as wide as the MLP was, one of them active.
ATTENTION = 16384 + 1024 + 512 + 4 * 64 * 2  # qkv, out; a float32 scale a row; two norms; the router in 16 bits
EXPERT = 8192 + 512 + 4096 + 256  # up and gate, down, their scales


def mixture_steps(rows: int, head: bool = False) -> int:
    """Workspace of a device that computes blocks of the mixture: what is gathered, its sum and the router's choice too."""
    return steps(rows, head) + rows * 4 * (64 + 64 + 4)


def gpu_mixture_steps(rows: int, head: bool = False) -> int:
    """The same of a real GPU, in 16 bits."""
    return gpu_steps(rows, head) + rows * 2 * (64 + 64 + 4)


def of_experts(spec: ModelSpec, more: int) -> Plan:
    """On a GPU with room for all attention, the head and `more` bytes, beside a CPU that reads a tenth as fast."""
    need = len(spec.blocks) * (ATTENTION + KV) + TABLE + NORM + mixture_steps(32, head=True) + more
    gpu, cpu = replace(GPU, read=1e7, block=0.0), replace(CPU, read=1e6, block=0.0)
    rig = rig_of({0: budget(need), "cpu": GB}, gpu, cpu=cpu, virtual=True)  # without streaming
    return make_plan(spec, rig, PlanOptions(context=16))


def expert_slices(made: Plan) -> dict[str, list[tuple[str, tuple[int, int] | None]]]:
    slices: dict[str, list[tuple[str, tuple[int, int] | None]]] = {}
    for placement in made.placements:
        if placement.part.endswith(".experts"):
            slices.setdefault(placement.part, []).append((placement.stored_on, placement.slice))
    return slices


@pytest.mark.parametrize(
    ("more", "on_gpu", "at_home"),
    [(0, 0, []), (3 * EXPERT, 3, [3]), (4 * EXPERT, 4, [4]), (9 * EXPERT, 9, [1, 4, 4]), (12 * EXPERT, 12, [4, 4, 4])],
    ids=["no expert", "three experts", "a block's", "two blocks' and one", "all"],
)
def test_attention_comes_to_the_gpu_first_and_then_as_many_experts_as_there_is_room_for(
    more: int, on_gpu: int, at_home: list[int]
) -> None:
    made = of_experts(mixture(3), more)
    assert all(made.placement(f"blocks.{i}").stored_on == "cuda:0" for i in range(3))
    assert made.device("cuda:0").free_bytes == 0
    taken = [
        (last - first) if cut else 4
        for cuts in expert_slices(made).values()
        for home, cut in cuts
        for first, last in [cut or (0, 4)]
        if home == "cuda:0"
    ]
    assert sum(taken) == on_gpu
    assert sorted(taken) == at_home
    assert {home for cuts in expert_slices(made).values() for home, _ in cuts} <= {"cuda:0", "cpu"}


def test_slices_of_experts_partition_their_part_and_take_each_experts_bytes() -> None:
    made = of_experts(mixture(2), 5 * EXPERT)
    whole, cut = sorted(expert_slices(made).values(), key=len)
    assert whole == [("cuda:0", None)]
    assert cut == [("cuda:0", (0, 1)), ("cpu", (1, 4))]
    sizes = {(p.stored_on, p.slice): p.weights_bytes for p in made.placements if p.part.endswith(".experts")}
    assert sizes == {("cuda:0", None): 4 * EXPERT, ("cuda:0", (0, 1)): EXPERT, ("cpu", (1, 4)): 3 * EXPERT}
    assert made.device("cpu").weights_bytes == 3 * EXPERT
    assert made.device("cpu").workspace_bytes == mixture_steps(32)


def test_experts_on_the_disk_need_slots_and_buffers_on_the_host() -> None:
    ring = STAGING_SLOTS * 4 * EXPERT
    gpu = {0: budget(12 * (ATTENTION + KV) + TABLE + NORM + mixture_steps(32, head=True)), "disk": GB}
    need = budget(ring + mixture_steps(32))
    made = make_plan(mixture(12), rig_of({**gpu, "cpu": need}, virtual=True), PlanOptions(context=16))
    assert made.fits
    assert expert_slices(made) == {f"blocks.{i}.experts": [("disk", None)] for i in range(12)}
    assert (made.device("cpu").staging_bytes, made.device("cpu").free_bytes) == (ring, 0)
    for host in (need - 1, 0):
        less = make_plan(mixture(12), rig_of({**gpu, "cpu": host}, virtual=True), PlanOptions(context=16))
        assert not less.fits
        assert all(device.used_bytes <= device.budget_bytes for device in less.devices)


def test_a_disk_holds_experts_to_its_last_byte_and_none_with_a_byte_less() -> None:
    ring, experts = STAGING_SLOTS * 4 * EXPERT, 12 * 4 * EXPERT
    rig = {
        0: budget(12 * (ATTENTION + KV) + TABLE + NORM + mixture_steps(32, head=True)),
        "cpu": budget(ring + mixture_steps(32)),
    }
    for short in (0, 1):
        made = make_plan(mixture(12), rig_of({**rig, "disk": experts - short}, virtual=True), PlanOptions(context=16))
        assert made.fits == (not short)
        assert made.device("disk").used_bytes == experts - short * EXPERT


def test_a_mixture_on_the_disk_that_fits_still_fits_with_more_host_memory() -> None:
    fits = []
    for memory in range(300_000, 1_200_000, 15_000):
        made = best_plan(Ledger(mixture(8), PlanOptions(context=16)), rig_of({"cpu": memory, "disk": GB}))
        fits.append(made.fits)
    assert fits == sorted(fits)
    assert set(fits) == {False, True}


def check_parts(made: Plan, spec: ModelSpec) -> None:
    """Every part has one place or none; the slices of a part of experts are all of them, once."""
    for part in spec.parts:
        places = [p for p in made.placements if p.part == part.name]
        cuts = sorted(p.slice for p in places if p.slice)
        if not part.name.endswith(".experts"):
            assert [p.slice for p in places] == [None] * (part.name not in made.unplaced), part.name
        elif part.name not in made.unplaced and places[0].slice is not None:
            ends = [0, *(last for _, last in cuts)]
            assert cuts == list(itertools.pairwise(ends)), part.name
            assert ends[-1] == spec.expert_count(part.name)
            assert len(places) == len(cuts)
        elif part.name not in made.unplaced:
            assert [p.slice for p in places] == [None], part.name


def check_accounts(made: Plan, ledger: Ledger) -> None:
    for device in made.devices:
        kinds = ("weights", "kv_cache", "workspace", "staging", "pinned", "reserve")
        assert device.used_bytes == sum(getattr(device, f"{kind}_bytes") for kind in kinds) <= device.budget_bytes
        assert device.free_bytes == device.budget_bytes - device.used_bytes
        stored = [p for p in made.placements if p.stored_on == device.name]
        computed = [p for p in made.placements if device.name in (p.decode_on, p.prefill_on)]
        assert sorted(device.parts) == sorted({p.part for p in stored})
        assert device.weights_bytes == sum(p.weights_bytes for p in stored)
        assert device.kv_cache_bytes == sum(p.kv_cache_bytes for p in made.placements if p.kv_on == device.name)
        assert device.kind != "disk" or not computed
        names = {p.part for p in computed}
        blocks, real = any(name.startswith("blocks.") for name in names), device.kind == "gpu" and not device.virtual
        work = ledger.workspace(made.prefill_chunk_tokens, blocks, "head" in names, real) if names else 0
        assert device.workspace_bytes == work
        streamed = [p for p in made.placements if {p.prefill_on, p.decode_on} - {p.stored_on, "cpu"}]
        from_disk = [p for p in made.placements if p.stored_on == "disk" and p.part != "embed"]
        rings = {
            "gpu": (any(p.stored_on != device.name for p in computed), False),
            "cpu": (bool(from_disk) and not streamed, bool(streamed)),
            "disk": (False, False),
        }
        assert (device.staging_bytes > 0, device.pinned_bytes > 0) == rings[device.kind], device.name


def check_keys(made: Plan) -> None:
    for placement in made.placements:
        if placement.part.startswith("blocks.") and not placement.part.endswith(".experts"):
            assert placement.kv_on == ("cpu" if placement.stored_on == "disk" else placement.stored_on)
            assert placement.kv_cache_bytes > 0
        else:
            assert (placement.kv_on, placement.kv_cache_bytes) == (None, 0)


UNEQUAL = "RTX3090,RTX4090,RTX3060,A100-40GB,T4,3090Ti,48GB,RTX5090"


@pytest.mark.parametrize("host", ["64GB", "256GB"])
@pytest.mark.parametrize("model", ["llama-3.1-405b", "deepseek-v3", "gpt-oss-120b", "bloom-176b", "glm-4.5"])
def test_big_models_on_eight_unequal_cards_a_host_and_a_disk_keep_to_every_budget(model: str, host: str) -> None:
    spec, rig = ENTRIES[model].spec(), make_rig(RigOptions(gpus=UNEQUAL, cpu=host, disk="2TB"))
    made = make_plan(spec, rig, PlanOptions(context=2048))
    assert made.fits
    check_parts(made, spec)
    check_accounts(made, Ledger(spec, PlanOptions(context=2048)))
    check_keys(made)


def test_keys_and_values_are_beside_attention_and_experts_have_none() -> None:
    need = 2 * (ATTENTION + KV) + TABLE + NORM + gpu_mixture_steps(32, head=True)
    made = planned(mixture(2), {0: budget(need), "cpu": GB})
    for placement in made.placements:
        attends = placement.part in ("blocks.0", "blocks.1")
        assert (placement.kv_on, placement.kv_cache_bytes) == (("cuda:0", KV) if attends else (None, 0)), placement.part


@pytest.mark.parametrize("kv", ["16bit", "int8"])
@pytest.mark.parametrize(
    ("changes", "context", "tokens", "entries", "vectors"),
    [
        ({}, 16, 64, 128, 2),
        ({}, 65, 128, 128, 2),
        ({"window": 40}, 4000, 576, 128, 2),
        ({"window": 40}, 100, 128, 128, 2),
        ({"latent": Latent(q_rank=0, kv_rank=20, nope=8, rope=12, value=16)}, 100, 128, 24 + 16, 2),
        ({"latent": Latent(q_rank=24, kv_rank=512, nope=128, rope=64, value=128)}, 2048, 2048, 512 + 64, 2),
    ],
    ids=[
        "a page",
        "two pages",
        "window and a chunk beside it",
        "window not reached",
        "latent, padded to 8",
        "DeepSeek-V3",
    ],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_keys_and_values_by_hand(
    changes: dict[str, Any], context: int, tokens: int, entries: int, vectors: int, batch: int, kv: str
) -> None:
    spec = toy(1)
    spec = replace(spec, context_limit=4096, blocks=(replace(spec.blocks[0], **changes),))
    made = make_plan(spec, rig_of({"cpu": 100 * GB}), PlanOptions(context, batch, Storage(kv=kv)))
    token = 2 * entries if kv == "16bit" else entries + 2 * vectors  # a float16 scale for each vector
    assert made.placement("blocks.0").kv_cache_bytes == made.device("cpu").kv_cache_bytes == batch * tokens * token


def headline(model: str, blocks: int, most: int, room: int) -> Plan:
    """A model on eight cards of 24 GB, and that neither block nor head has to leave them: `most` blocks are what a card
    holds, of `room` bytes each with keys and values."""
    made = make_plan(
        ENTRIES[model].spec(), make_rig(RigOptions(gpus="8x24GB", cpu="0")), PlanOptions(context=2048, batch=1)
    )
    assert made.fits
    assert sum(counts(made).values()) == blocks
    assert set(counts(made)) == {f"cuda:{i}" for i in range(8)}
    for device in made.devices[:8]:
        assert device.used_bytes <= device.budget_bytes == 24 * GB
    assert (24 * GB) // room == most
    assert max(counts(made).values()) == most
    return made


def test_bloom_176b_needs_eight_24_gb_cards_nine_blocks_on_seven_and_seven_beside_its_head() -> None:
    block, keys = 12 * 14336**2, 2 * 2048 * 14336 * 2  # 2.466 GB of int8, 0.117 GB of 16 bits
    made = headline("bloom-176b", 70, 9, block + keys)
    assert sorted(counts(made).values()) == [7, *[9] * 7]
    head = made.device(made.placement("head").stored_on)
    assert counts(made)[head.name] == 7
    table = 250880 * 14336 * 17 // 16  # 3.60 GB, and a float16 scale for each 32
    assert made.placement("embed").weights_bytes == pytest.approx(table, rel=1e-4)
    assert head.weights_bytes == pytest.approx(7 * block + table, rel=1e-3)
    assert head.kv_cache_bytes == 7 * keys
    assert head.budget_bytes - head.used_bytes < block


def test_opt_175b_fills_eight_24_gb_cards_with_twelve_blocks_each() -> None:
    block, keys = 12 * 12288**2, 2 * 2048 * 12288 * 2  # 1.812 GB, 0.101 GB
    made = headline("opt-175b", 96, 12, block + keys)
    assert set(counts(made).values()) == {12}
    for device in made.devices[:8]:
        assert device.kv_cache_bytes == 12 * keys
        assert device.weights_bytes >= 12 * block


@st.composite
def specs(draw: st.DrawFn) -> ModelSpec:
    heads, blocks, inner = draw(st.integers(1, 4)), draw(st.integers(1, 7)), draw(st.integers(1, 300))
    config = {"vocab_size": draw(st.integers(1, 500)), "tie_word_embeddings": draw(st.booleans())}
    config |= {"hidden_size": heads * 2 * draw(st.integers(1, 40)), "num_attention_heads": heads, "ffn_dim": inner}
    config |= {"num_hidden_layers": blocks, "intermediate_size": inner}
    architecture = draw(st.sampled_from(["LlamaForCausalLM", "BloomForCausalLM", "OPTForCausalLM"]))
    return spec_from_config({**config, "architectures": [architecture]}, "random")


@st.composite
def mixtures(draw: st.DrawFn) -> ModelSpec:
    """Experts in all blocks or in all but the first, a window in every other one or in none."""
    spec = draw(specs())
    count = draw(st.integers(1, 8))
    experts = Experts(
        count,
        draw(st.integers(1, count)),
        draw(st.integers(1, 100)),
        draw(st.sampled_from([0, 50])),
        bias=draw(st.booleans()),
    )
    dense, window = draw(st.integers(0, 1)) if len(spec.blocks) > 1 else 0, draw(st.sampled_from([0, 64]))
    blocks = [
        replace(b, window=window * (i % 2), experts=experts if i >= dense else None) for i, b in enumerate(spec.blocks)
    ]
    return replace(spec, blocks=tuple(blocks))


@st.composite
def some_rates(draw: st.DrawFn, usual: Rates) -> Rates:
    """A device's, each up to ten times slower or faster than usual, and slow enough for toys to take some time."""
    times = st.sampled_from([0.001, 0.003, 0.01])
    names = ("read", "cache", "int8", "wide", "attention", "elements", "link")
    changed = {name: getattr(usual, name) * draw(times) for name in names}
    return replace(
        usual, **changed, overlap=draw(st.sampled_from([1.0, 2.0, math.inf])), block=draw(st.sampled_from([1e-6, 1e-4]))
    )


def with_steps(ledger: Ledger, size: int) -> int:
    """Memory of a real GPU that holds so many bytes beside the buffers of its smallest step, which take more than a toy."""
    return budget(size + ledger.workspace(32, True, True, gpu=True))


@st.composite
def cases(draw: st.DrawFn, models: Any = None) -> tuple[Ledger, Rig]:
    """A model, options, and a rig whose memories are in the range of what the model takes."""
    spec, forms = draw(specs() if models is None else models), st.sampled_from(["int8", "16bit"])
    weights, head, context, batch = draw(forms), draw(forms), draw(st.integers(1, 600)), draw(st.integers(1, 3))
    options = PlanOptions(context, batch, Storage(weights, head, kv=draw(forms)))
    whole = 2 * spec.parameters + 2000 * spec.hidden
    percents = st.integers(0, 100)
    sizes = percents.map(lambda percent: whole * percent // 60)
    virtual, ledger = draw(st.booleans()), Ledger(spec, options)
    real = percents.map(lambda n: with_steps(ledger, whole * n // 60) if n % 4 else whole * n // 60)  # in three of four
    cards = sizes if virtual else real
    gpus = [
        Device(f"cuda:{i}", "gpu", size, draw(some_rates(ASSUMED_GPU)), virtual)
        for i, size in enumerate(draw(st.lists(cards, max_size=3)))
    ]
    devices = [*gpus, Device("cpu", "cpu", draw(sizes), replace(draw(some_rates(ASSUMED_CPU)), link=math.inf))]
    if draw(st.booleans()):
        devices.append(Device("disk", "disk", draw(sizes), disk_rates(draw(st.sampled_from([1e6, 1e8])))))
    return ledger, Rig(tuple(devices))


often = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=25,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],  # a plan is not the smaller for being made smaller
)


@pytest.fixture(params=[True, False], ids=["search alone", "toys exhausted"])
def toys(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small toys are planned by trying everything (exhaustive.py); models of some size by the search alone."""
    if request.param:
        monkeypatch.setattr(best, "is_small", lambda problem: False, raising=False)


@pytest.mark.usefixtures("toys")
@pytest.mark.parametrize("examples", [8, long(30)])
@pytest.mark.parametrize("models", [specs(), mixtures()], ids=["dense", "mixtures"])
def test_every_part_is_placed_once_or_unplaced_and_every_account_adds_up(models: Any, examples: int) -> None:
    @settings(often, max_examples=examples)
    @given(cases(models))
    def check(case: tuple[Ledger, Rig]) -> None:
        ledger, rig = case
        made = best_plan(ledger, rig)
        check_parts(made, ledger.spec)
        check_accounts(made, ledger)
        check_keys(made)
        assert made.fits == (not made.unplaced) == (made.predicted is not None)
        assert best_plan(ledger, rig) == made == best_plan(Ledger(ledger.spec, ledger.options), rig)
        assert plan_from_json(made.to_json()) == made

    check()


@settings(often, max_examples=15)
@given(cases())
def test_a_plan_has_a_hint_where_it_does_not_fit_and_only_there(case: tuple[Ledger, Rig]) -> None:
    ledger, rig = case
    made = make_plan(ledger.spec, rig, ledger.options)
    assert made.fits == (not made.unplaced) == (not made.hint)
    assert replace(made, hint="") == best_plan(ledger, rig)
    assert plan_from_json(made.to_json()) == made


def faster(rates: Rates, name: str, times: float) -> Rates:
    value = getattr(rates, name)
    better = {"block": value / times, "overlap": value + times}.get(name, value * times)
    return replace(rates, **{name: better})


RATES = [field.name for field in fields(Rates) if field.name != "source"]


def more_memory(draw: st.DrawFn, ledger: Ledger, rig: Rig) -> Rig:
    device = draw(st.sampled_from(rig.devices))
    return rig.with_budget(device.name, device.budget_bytes + draw(st.integers(1, 200_000)))


def faster_rate(draw: st.DrawFn, ledger: Ledger, rig: Rig) -> Rig:
    i = draw(st.integers(0, len(rig.devices) - 1))
    device = rig.devices[i]
    name, times = (
        draw(st.sampled_from(["read"] if device.kind == "disk" else RATES)),
        draw(st.sampled_from([1.01, 2, 100])),
    )
    changed = replace(device, rates=faster(device.rates, name, times))
    return replace(rig, devices=(*rig.devices[:i], changed, *rig.devices[i + 1 :]))


def another_gpu(draw: st.DrawFn, ledger: Ledger, rig: Rig, link: float = ASSUMED_GPU.link) -> Rig:
    """One that is behind as fast a link as the others."""
    link = min(link, *(gpu.rates.link for gpu in rig.gpus)) if rig.gpus else link
    size = draw(st.integers(1, 400_000))
    size = with_steps(ledger, size) if size % 4 else size
    new = Device("cuda:9", "gpu", size, replace(draw(some_rates(ASSUMED_GPU)), link=link))
    return rig.with_gpus(draw(st.sampled_from([[new, *rig.gpus], [*rig.gpus, new]])))


def a_gpu_behind_a_slow_link(draw: st.DrawFn, ledger: Ledger, rig: Rig) -> Rig:
    return another_gpu(draw, ledger, rig, 1e6)


def a_disk(draw: st.DrawFn, ledger: Ledger, rig: Rig) -> Rig:
    """The first, or one of more room."""
    before = next((d.budget_bytes for d in rig.devices if d.kind == "disk"), 0)
    new = Device("disk", "disk", before + draw(st.integers(1, 400_000)), disk_rates(1e9))
    return replace(rig, devices=(*(d for d in rig.devices if d.kind != "disk"), new))


def seconds_of(made: Plan) -> float:
    return made.predicted.request_seconds if made.predicted else math.inf


CHANGES = (more_memory, faster_rate, another_gpu, a_gpu_behind_a_slow_link, a_disk)


@pytest.mark.usefixtures("toys")
@pytest.mark.parametrize("toys", [True], ids=["search alone"], indirect=True)
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__.replace("_", " "))
@pytest.mark.parametrize("examples", [6, long(25)])
@pytest.mark.parametrize("models", [specs(), mixtures()], ids=["dense", "mixtures"])
def test_nothing_that_is_better_makes_a_request_slower(models: Any, examples: int, change: Any) -> None:
    @settings(often, max_examples=examples)
    @given(cases(models), st.data())
    def check(case: tuple[Ledger, Rig], data: st.DataObject) -> None:
        ledger, rig = case
        before, after = best_plan(ledger, rig), best_plan(ledger, change(data.draw, ledger, rig))
        if not any(part.name.endswith(".experts") for part in ledger.spec.parts):
            assert len(after.unplaced) <= len(before.unplaced)  # of experts, some of a part may be
        assert seconds_of(after) <= seconds_of(before) * (1 + 1e-9) + 1e-9

    check()


def test_a_plan_read_back_has_its_device_map() -> None:
    made = planned(toy(1), {0: GB})
    assert plan_from_json(made.to_json()).to_device_map() == made.to_device_map()


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", ["llama", "bloom", "opt"])
def test_accelerate_takes_the_device_map(family: str, tied: bool) -> None:
    from accelerate import init_empty_weights
    from accelerate.utils.modeling import check_device_map
    from transformers import AutoConfig, AutoModelForCausalLM

    config = {"vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "ffn_dim": 64}
    config |= {"intermediate_size": 64, "word_embed_proj_dim": 64, "tie_word_embeddings": tied}
    made_config = AutoConfig.for_model(family, **config)
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(made_config)
    spec = spec_from_config({**made_config.to_dict(), "architectures": [type(model).__name__]}, "tiny")
    ledger = Ledger(spec, PlanOptions(context=16))
    need = ledger.weights("blocks.0") + ledger.kv("blocks.0") + ledger.workspace(32, True, False, gpu=True)
    made = planned(spec, {1: budget(need), "cpu": GB})
    layers = {"llama": "model.layers", "bloom": "transformer.h", "opt": "model.decoder.layers"}[family]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # accelerate warns of names that the model has not
        check_device_map(model, made.to_device_map())
    for name, _ in model.named_buffers():  # which check_device_map does not look at unless they are saved
        assert any(name.startswith(f"{module}.") for module in made.to_device_map()), name
    assert [made.to_device_map()[f"{layers}.{n}"] for n in range(3)] == [1, "cpu", "cpu"]
    assert made.to_device_map()["lm_head"] == "cpu"

"""The planner on toys whose bytes are counted by hand, and on models and rigs nobody thought of."""

import warnings
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bigrun.model.families import spec_from_config
from bigrun.model.layout import Storage
from bigrun.model.spec import ModelSpec
from bigrun.planning.ledger import Ledger
from bigrun.planning.plan import Options, Plan, plan_from_json
from bigrun.planning.planner import Shelf, make_plan
from bigrun.rig import make_rig

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
EMBED_ONLY = 32 * 64 * 4


def steps(rows: int, head: bool = False) -> int:
    """Workspace of a device that computes blocks."""
    return rows * ROW + 64 + PARTIAL + head * LOGITS


def budget(need: int) -> int:
    """The smallest budget that holds `need` bytes and its reserve of one percent."""
    return need + (need - 1) // 99


def toy(blocks: int, tied: bool = True) -> ModelSpec:
    config = {"architectures": ["LlamaForCausalLM"], "vocab_size": 64, "hidden_size": 64, "intermediate_size": 64}
    config |= {"num_hidden_layers": blocks, "num_attention_heads": 1, "tie_word_embeddings": tied}
    return spec_from_config(config, "toy")


def planned(spec: ModelSpec, budgets: dict[Any, int], context: int = 16) -> Plan:
    return make_plan(spec, make_rig(max_memory=budgets), Options(context=context))


def homes(made: Plan) -> dict[str, tuple[str, ...]]:
    return {device.name: device.parts for device in made.devices if device.parts}


TWO = 2 * (BLOCK + KV) + steps(32)
ONE_AND_HEAD = BLOCK + KV + TABLE + NORM + steps(32, head=True)


def test_three_blocks_and_a_tied_head_fill_two_gpus_to_the_byte() -> None:
    made = planned(toy(3), {0: budget(TWO), 1: budget(ONE_AND_HEAD)})
    assert homes(made) == {"cuda:0": ("blocks.0", "blocks.1"), "cuda:1": ("embed", "blocks.2", "norm", "head")}
    assert made.fits
    first, second, cpu = made.devices
    assert (first.used_bytes, first.free_bytes) == (budget(TWO), 0)
    assert (first.weights_bytes, first.kv_cache_bytes, first.workspace_bytes) == (2 * BLOCK, 2 * KV, steps(32))
    assert (first.staging_bytes, first.pinned_bytes, first.reserve_bytes) == (0, 0, budget(TWO) - TWO)
    assert (second.weights_bytes, second.kv_cache_bytes) == (BLOCK + TABLE + NORM, KV)
    assert (second.workspace_bytes, second.used_bytes) == (steps(32, head=True), budget(ONE_AND_HEAD))
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
    assert "1 blocks" in made.hint
    assert "--cpu" in made.hint


@pytest.mark.parametrize(
    ("budgets", "expected"),
    [
        ({0: GB}, {"cuda:0": "embed blocks norm head"}),
        ({"cpu": GB}, {"cpu": "embed blocks norm head"}),
        ({0: GB, "cpu": GB}, {"cuda:0": "embed blocks norm head"}),
        ({0: GB, 1: GB, "cpu": GB}, {"cuda:0": "blocks", "cuda:1": "embed norm head"}),  # the last of equal GPUs
        ({0: budget(TWO), "cpu": GB}, {"cuda:0": "blocks", "cpu": "embed norm head"}),  # blocks come before the head
        ({0: budget(TWO), "cpu": GB, "disk": GB}, {"cuda:0": "blocks", "cpu": "embed norm head"}),
    ],
    ids=["gpu", "cpu", "gpu before cpu", "tie", "blocks before head", "disk last"],
)
def test_where_two_blocks_and_a_tied_head_go(budgets: dict[Any, int], expected: dict[str, str]) -> None:
    wanted = {name: tuple(parts.replace("blocks", "blocks.0 blocks.1").split()) for name, parts in expected.items()}
    assert homes(planned(toy(2), budgets)) == wanted


def test_an_untied_table_is_looked_up_on_the_cpu_and_the_head_computed_on_the_gpu() -> None:
    made = planned(toy(1, tied=False), {0: budget(ONE_AND_HEAD), "cpu": budget(TABLE + EMBED_ONLY)})
    assert homes(made) == {"cuda:0": ("blocks.0", "norm", "head"), "cpu": ("embed",)}
    assert made.placement("head").weights_bytes == made.placement("embed").weights_bytes == TABLE
    assert (made.device("cpu").weights_bytes, made.device("cpu").workspace_bytes) == (TABLE, EMBED_ONLY)
    assert not planned(toy(1, tied=False), {0: budget(ONE_AND_HEAD), "cpu": budget(TABLE + EMBED_ONLY) - 1}).fits
    assert homes(planned(toy(1, tied=False), {0: GB, "cpu": GB}))["cpu"] == ("embed",)  # even if a GPU has room


@pytest.mark.parametrize(("rows", "spare"), [(32, 0), (64, 32 * ROW), (32, 32 * ROW - 64)])
def test_the_prompt_is_read_in_larger_chunks_only_where_no_block_pays_for_it(rows: int, spare: int) -> None:
    need = 2 * (BLOCK + KV) + TABLE + NORM + steps(32, head=True) + spare
    made = planned(toy(2), {0: budget(need), "cpu": GB}, context=64)
    assert made.prefill_chunk_tokens == rows
    assert set(homes(made)) == {"cuda:0"}
    assert made.device("cuda:0").workspace_bytes == steps(rows, head=True)


def test_a_step_of_more_sequences_than_the_chunk_has_rows_takes_a_row_for_each() -> None:
    made = make_plan(toy(1), make_rig(max_memory={0: GB}), Options(context=16, batch=40))
    assert made.prefill_chunk_tokens == 32
    assert made.devices[0].workspace_bytes == 40 * ROW + 64 + 40 * 66 * 4 + 40 * 64 * 4
    assert made.devices[0].kv_cache_bytes == 40 * KV


def test_what_the_disk_stores_is_staged_and_cached_and_computed_on_the_cpu() -> None:
    ledger = Ledger(toy(2), Options(context=16))
    rig = make_rig(max_memory={"cpu": GB, "disk": GB})
    cpu, disk = Shelf(rig.device("cpu"), ledger, 32), Shelf(rig.device("disk"), ledger, 32)
    disk.computer = cpu
    assert disk.takes("blocks.0")
    assert disk.takes("blocks.1")
    assert (disk.weights, disk.kv, disk.staging, disk.used()) == (2 * BLOCK, 0, 0, 2 * BLOCK)
    assert (cpu.weights, cpu.kv, cpu.staging, cpu.workspace()) == (0, 2 * KV, 2 * BLOCK, steps(32))


def test_blocks_go_to_the_disk_where_the_cpu_can_only_stage_them() -> None:
    need = TABLE + NORM + steps(32, head=True) + 3 * KV + 2 * BLOCK  # two slots and all keys and values
    made = planned(toy(3), {"cpu": budget(need), "disk": 3 * BLOCK})
    assert homes(made) == {"cpu": ("embed", "norm", "head"), "disk": ("blocks.0", "blocks.1", "blocks.2")}
    for name in made.device("disk").parts:
        place = made.placement(name)
        assert (place.prefill_on, place.decode_on, place.kv_on) == ("cpu", "cpu", "cpu")
    assert (made.device("cpu").staging_bytes, made.device("cpu").kv_cache_bytes) == (2 * BLOCK, 3 * KV)
    assert made.fits


@st.composite
def specs(draw: st.DrawFn) -> ModelSpec:
    heads, blocks, inner = draw(st.integers(1, 4)), draw(st.integers(1, 7)), draw(st.integers(1, 300))
    config = {"vocab_size": draw(st.integers(1, 500)), "tie_word_embeddings": draw(st.booleans())}
    config |= {"hidden_size": heads * 2 * draw(st.integers(1, 40)), "num_attention_heads": heads, "ffn_dim": inner}
    config |= {"num_hidden_layers": blocks, "intermediate_size": inner}
    architecture = draw(st.sampled_from(["LlamaForCausalLM", "BloomForCausalLM", "OPTForCausalLM"]))
    return spec_from_config({**config, "architectures": [architecture]}, "random")


@st.composite
def cases(draw: st.DrawFn) -> tuple[ModelSpec, Options, dict[Any, int]]:
    spec, forms = draw(specs()), st.sampled_from(["int8", "16bit"])
    options = Options(
        draw(st.integers(1, 600)), draw(st.integers(1, 3)), Storage(draw(forms), draw(forms)), draw(forms)
    )
    whole = 2 * spec.parameters + 2000 * spec.hidden  # in the range of what the model takes
    sizes = st.integers(0, 100).map(lambda percent: whole * percent // 60)
    budgets: dict[Any, int] = dict(enumerate(draw(st.lists(sizes, max_size=3)))) | {"cpu": draw(sizes)}
    return spec, options, budgets | ({"disk": draw(sizes)} if draw(st.booleans()) else {})


often = settings(
    derandomize=True, database=None, deadline=None, max_examples=60, suppress_health_check=list(HealthCheck)
)


@often
@given(cases())
def test_every_part_is_placed_once_or_unplaced_and_every_account_adds_up(case: Any) -> None:
    spec, options, budgets = case
    made = make_plan(spec, make_rig(max_memory=budgets), options)
    assert sorted([*(p.part for p in made.placements), *made.unplaced]) == sorted(part.name for part in spec.parts)
    assert made.fits == (not made.unplaced) == (not made.hint) == (made.predicted is not None)
    for device in made.devices:
        kinds = ("weights", "kv_cache", "workspace", "staging", "pinned", "reserve")
        assert device.used_bytes == sum(getattr(device, f"{kind}_bytes") for kind in kinds) <= device.budget_bytes
        assert device.free_bytes == device.budget_bytes - device.used_bytes
        stored = [p for p in made.placements if p.stored_on == device.name]
        assert sorted(device.parts) == sorted(p.part for p in stored)
        assert device.weights_bytes == sum(p.weights_bytes for p in stored)
        assert device.kv_cache_bytes == sum(p.kv_cache_bytes for p in made.placements if p.kv_on == device.name)
        assert device.kind != "disk" or all(p.decode_on == p.prefill_on == "cpu" for p in stored)
    assert make_plan(spec, make_rig(max_memory=budgets), options) == made
    assert plan_from_json(made.to_json()) == made


def blocks_on_gpus(made: Plan) -> int:
    return sum(p.part.startswith("blocks.") and p.stored_on.startswith("cuda:") for p in made.placements)


@often
@given(cases(), st.data())
def test_more_memory_never_hurts(case: Any, data: st.DataObject) -> None:
    spec, options, budgets = case
    device = data.draw(st.sampled_from(sorted(budgets, key=str)))
    more = {**budgets, device: budgets[device] + data.draw(st.integers(1, 200_000))}
    before, after = (make_plan(spec, make_rig(max_memory=given), options) for given in (budgets, more))
    assert len(after.unplaced) <= len(before.unplaced)
    # Of plans that fit from memory alone: to place everything, a block may have to leave a GPU for the head.
    if before.fits and not any(p.stored_on == "disk" for p in before.placements):
        assert blocks_on_gpus(after) >= blocks_on_gpus(before)


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
    ledger = Ledger(spec, Options(context=16))
    need = ledger.weights("blocks.0") + ledger.kv("blocks.0") + ledger.workspace(32, blocks=True, head=False)
    made = planned(spec, {1: budget(need), "cpu": GB})
    layers = {"llama": "model.layers", "bloom": "transformer.h", "opt": "model.decoder.layers"}[family]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # accelerate warns of names that the model has not
        check_device_map(model, made.to_device_map())
    for name, _ in model.named_buffers():  # which check_device_map does not look at unless they are saved
        assert any(name.startswith(f"{module}.") for module in made.to_device_map()), name
    assert [made.to_device_map()[f"{layers}.{n}"] for n in range(3)] == [1, "cpu", "cpu"]
    assert made.to_device_map()["lm_head"] == "cpu"

"""A part is one run of bytes: what the layout says is what the ledger counts and the loader allocates."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigrun.errors import CallError
from bigrun.model.buffers import kv_buffers, step_buffers, total
from bigrun.model.families.registry import spec_from_config
from bigrun.model.layout import Layout
from bigrun.model.layout import layout as layout_of
from bigrun.model.spec import ModelSpec, Part, Tensor
from bigrun.model.storage import FORMATS, Storage
from bigrun.planning.ledger import Ledger
from bigrun.planning.options import PlanOptions

ITEM = {"int8": 1, "float16": 2, "bfloat16": 2, "float32": 4}


def layout(part: Part, storage: Storage, checkpoint_dtype: str = "float16") -> Layout:
    return layout_of(part, storage, checkpoint_dtype)


def llama(hidden: int = 64, inner: int = 64, vocab: int = 64, blocks: int = 12, **more: Any) -> ModelSpec:
    config = {"architectures": ["LlamaForCausalLM"], "vocab_size": vocab, "hidden_size": hidden, **more}
    config |= {"intermediate_size": inner, "num_hidden_layers": blocks, "num_attention_heads": 1}
    return spec_from_config(config, "toy")


def arrays(made: Layout) -> dict[str, tuple[str, tuple[int, ...], int]]:
    return {array.name: (array.dtype, array.shape, array.offset) for array in made.arrays}


def test_an_int8_block_to_the_byte() -> None:
    # As columns hidden 70 pads to 128 and inner 10 to 64, as rows both to 16. Sizes, each rounded up to 64:
    # norms 280 → 320; qkv 224·128 = 28672, scales 840 → 896; out 80·128 = 10240, 280 → 320;
    # up 32·128 = 4096, 80 → 128; down 80·64 = 5120, 280 → 320
    made = layout(llama(70, 10).part("blocks.0"), Storage())
    assert arrays(made) == {
        "attention_norm.weight": ("float32", (70,), 0),
        "mlp_norm.weight": ("float32", (70,), 320),
        "qkv.weight": ("int8", (14, 32, 16, 4), 640),
        "qkv.weight.scale": ("float32", (210,), 29312),
        "out.weight": ("int8", (5, 32, 16, 4), 30208),
        "out.weight.scale": ("float32", (70,), 40448),
        "up.weight": ("int8", (2, 32, 16, 4), 40768),
        "up.weight.scale": ("float32", (20,), 44864),
        "down.weight": ("int8", (5, 16, 16, 4), 44992),
        "down.weight.scale": ("float32", (70,), 50112),
    }
    assert made.nbytes == 50432
    assert made.stored_as == "int8"
    assert made.by_name["up.weight"].nbytes == 4096


def test_an_int8_table_has_a_float16_scale_for_each_32_entries_of_a_row() -> None:
    made = layout(llama(70, vocab=11).part("embed"), Storage())
    # one panel of 16·128 = 2048; scales 16·4 float16 = 128
    assert arrays(made) == {"table": ("int8", (1, 32, 16, 4), 0), "table.scale": ("float16", (1, 4, 16), 2048)}
    assert made.nbytes == 2176


@pytest.mark.parametrize(("dtype", "form"), [("float16", "float16"), ("bfloat16", "bfloat16"), ("float32", "bfloat16")])
def test_16bit_keeps_the_checkpoints_dtype_unpadded_and_bfloat16_for_float32(dtype: str, form: str) -> None:
    spec = llama(70, 10, vocab=11)
    block = layout(spec.part("blocks.0"), Storage("16bit"), dtype)
    assert block.by_name["down.weight"].dtype == form
    assert block.by_name["down.weight"].shape == (70, 10)
    assert block.by_name["mlp_norm.weight"].dtype == "float32"
    assert "down.weight.scale" not in block.by_name
    # 2·320 of norms, then 2-byte [210, 70], [70, 70], [20, 70], [70, 10]: 29400, 9800, 2800, 1400 rounded up to 64
    assert block.nbytes == 640 + 29440 + 9856 + 2816 + 1408
    assert block.stored_as == "16bit"
    assert arrays(layout(spec.part("embed"), Storage("16bit"), dtype)) == {"table": (form, (11, 70), 0)}


def test_float32_is_float32_everywhere() -> None:
    for part in llama(70, 10).parts[:2]:
        made = layout(part, Storage("float32", head="16bit", skip=("down",)))
        assert {array.dtype for array in made.arrays} == {"float32"}
        assert made.stored_as == "float32"


def test_head_16bit_keeps_the_tables_and_nothing_else() -> None:
    spec, storage = llama(tie_word_embeddings=False), Storage(head="16bit")
    for part in ("embed", "head"):
        assert arrays(layout(spec.part(part), storage, "bfloat16")) == {"table": ("bfloat16", (64, 64), 0)}
        assert layout(spec.part(part), storage).stored_as == "16bit"
    assert layout(spec.part("blocks.0"), storage) == layout(spec.part("blocks.0"), Storage())


@pytest.mark.parametrize(
    ("skip", "kept"),
    [
        ("down", [(1, "down"), (10, "down")]),
        ("blocks.1.up", [(1, "up")]),
        ("blocks.1", [(1, "qkv"), (1, "out"), (1, "up"), (1, "down")]),
        ("qkv,blocks.10.out", [(1, "qkv"), (10, "qkv"), (10, "out")]),
    ],
)
def test_skip_keeps_what_it_names_in_16_bits_and_no_more(skip: str, kept: list[tuple[int, str]]) -> None:
    spec, storage = llama(), Storage(skip=tuple(skip.split(",")))
    half_arrays = []
    for number in (1, 10):  # blocks.1 must not answer for blocks.10
        made = layout(spec.part(f"blocks.{number}"), storage)
        half_arrays += [
            (number, a.name.split(".")[0]) for a in made.arrays if a.dtype == "float16" and ".scale" not in a.name
        ]
        assert made.stored_as == ("16bit" if any(n == number for n, _ in kept) else "int8")
    assert half_arrays == kept
    assert layout(spec.part("embed"), storage) == layout(spec.part("embed"), Storage())


def test_skip_takes_a_table_by_its_part() -> None:
    made = layout(llama().part("embed"), Storage(skip=("embed",)), "bfloat16")
    assert arrays(made) == {"table": ("bfloat16", (64, 64), 0)}


@pytest.mark.parametrize("name", ["blocks.12", "lm_head", "down.weight", "norm", "mlp_norm", "", "blocks"])
def test_a_skip_that_matches_nothing_is_a_wrong_call(name: str) -> None:
    with pytest.raises(CallError, match=f"skip '{name}' matches nothing"):
        Storage(skip=("qkv", name)).check_names(llama())


@pytest.mark.parametrize("wrong", [{"weights": "int4"}, {"head": "float32"}, {"weights": "INT8"}], ids=str)
def test_an_unknown_form_is_a_wrong_call_that_lists_the_known(wrong: dict[str, Any]) -> None:
    with pytest.raises(CallError, match=r"(weights|head) '\w+': choose .*int8.*16bit"):
        Storage(**wrong)


def test_a_part_without_tensors_takes_no_bytes() -> None:
    assert layout(Part("head", ()), Storage()).nbytes == 0


def tensors() -> st.SearchStrategy[list[Tensor]]:
    side = st.integers(1, 200)
    matrix = st.builds(lambda n, k, role: (role, (n, k)), side, side, st.sampled_from(["linear", "table"]))
    small = st.builds(lambda n: ("small", (n,)), side)
    shapes: st.SearchStrategy[list[tuple[Any, tuple[int, ...]]]] = st.lists(st.one_of(matrix, small), max_size=8)
    return shapes.map(lambda them: [Tensor(f"t{i}.weight", shape, role) for i, (role, shape) in enumerate(them)])


@settings(derandomize=True, database=None, deadline=None, max_examples=80)
@given(tensors(), st.sampled_from(FORMATS), st.sampled_from(["int8", "16bit"]))
def test_arrays_are_aligned_and_do_not_overlap_and_fill_the_part(them: list[Tensor], weights: str, head: str) -> None:
    made = layout(Part("p", tuple(them)), Storage(weights, head))
    end = 0
    for array in made.arrays:
        assert array.offset % 64 == 0
        assert end <= array.offset < end + 64
        size = ITEM[array.dtype]
        for extent in array.shape:
            size *= extent
        assert array.nbytes == size
        end = array.offset + size
        assert array.dtype != "int8" or (array.shape[1] % 16 == 0 and array.shape[2:] == (16, 4))
    assert made.nbytes % 64 == 0
    assert end <= made.nbytes < end + 64
    assert {name.removesuffix(".scale") for name in made.by_name} == {tensor.name for tensor in them}


def test_the_ledger_counts_equal_blocks_alike_and_names_each_by_itself() -> None:
    ledger = Ledger(llama(), PlanOptions(context=64))
    # norms 2·256; qkv 192·64 + 768; out 64·64 + 256; up 128·64 + 512; down 64·64 + 256
    assert {ledger.weights(f"blocks.{i}") for i in range(12)} == {512 + 13056 + 4352 + 8704 + 4352}
    skipping = Ledger(llama(), PlanOptions(context=64, storage=Storage(skip=("blocks.3.down",))))
    assert skipping.weights("blocks.3") == 30976 - 4352 + 64 * 64 * 2
    assert skipping.weights("blocks.4") == 30976


def test_a_layout_bears_the_name_of_its_part() -> None:
    for name, made in Ledger(llama(), PlanOptions()).layouts.items():
        assert made.part == name


@pytest.mark.parametrize(
    ("context", "batch", "kv", "weights", "expected"),
    [
        (64, 1, "16bit", "int8", 2 * 64 * 64 * 2),
        (1, 1, "16bit", "int8", 2 * 64 * 64 * 2),  # whole pages of 64 tokens
        (65, 1, "16bit", "int8", 2 * 128 * 64 * 2),
        (64, 3, "16bit", "16bit", 2 * 3 * 64 * 64 * 2),
        (64, 1, "16bit", "float32", 2 * 64 * 64 * 4),
        (64, 1, "int8", "int8", 2 * (64 * 64 + 64 * 2)),  # a float16 scale a vector
    ],
)
def test_keys_and_values_of_a_block_in_whole_pages(
    context: int, batch: int, kv: str, weights: str, expected: int
) -> None:
    assert total(kv_buffers(llama().blocks[0], context, batch, Storage(weights, kv=kv).kv_dtype)) == expected
    ledger = Ledger(llama(), PlanOptions(context, batch, Storage(weights, kv=kv)))
    assert ledger.kv("blocks.11") == expected
    assert [ledger.kv(part) for part in ("embed", "norm", "head")] == [0, 0, 0]


def test_a_device_that_only_looks_up_tokens_holds_the_residual_stream_alone() -> None:
    (only,) = step_buffers(llama(), 32, 1, 64, blocks=False, head=False)
    assert (only.name, only.shape, only.nbytes) == ("x", (32, 64), 8192)

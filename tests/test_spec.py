"""A spec says what a model is from its configuration alone, and a bad configuration is answered with its field."""

from math import prod
from typing import Any

import numpy as np
import pytest

from bigrun.errors import CheckpointError
from bigrun.model.catalog.lookup import ENTRIES
from bigrun.model.families.registry import BY_NAME, spec_from_config
from bigrun.model.spec import Rope

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
BLOOM = {"architectures": ["BloomForCausalLM"], "vocab_size": 100, "hidden_size": 32, "n_layer": 2, "n_head": 4}
OPT = {
    "architectures": ["OPTForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 50,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8,
    "low_freq_factor": 1,
    "high_freq_factor": 4,
    "original_max_position_embeddings": 64,
}


def shapes(config: dict[str, Any], part: str) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tensor.shape for tensor in spec_from_config(config, "toy").part(part).tensors}


def test_opt_175b_is_counted_from_its_published_shapes() -> None:
    h = 12288  # 96 blocks of 12h² and 13h, two tables, a final norm
    assert ENTRIES["opt-175b"].spec().parameters == 96 * (12 * h * h + 13 * h) + (50272 + 2048 + 2) * h + 2 * h


def test_a_bloom_176b_block_is_2466_megabytes_of_int8() -> None:
    spec = ENTRIES["bloom-176b"].spec()
    linears = [t for t in spec.part("blocks.69").tensors if t.role == "linear"]
    assert sum(t.count for t in linears) == 12 * 14336**2 == 2_466_250_752
    assert len(spec.blocks) == 70


def test_the_parts_of_a_model_in_order() -> None:
    for config in (LLAMA, BLOOM, OPT):
        spec = spec_from_config(config, "toy")
        assert [part.name for part in spec.parts] == ["embed", "blocks.0", "blocks.1", "norm", "head"]


def test_a_llama_block_fuses_qkv_and_gate_with_up() -> None:
    # 4 heads of 8, 2 key heads: 32 + 16 + 16 rows; gate and up of 48 rows each
    expected: dict[str, tuple[int, ...]]
    expected = {"qkv.weight": (64, 32), "out.weight": (32, 32), "up.weight": (96, 32), "down.weight": (32, 48)}
    expected |= {"attention_norm.weight": (32,), "mlp_norm.weight": (32,)}
    assert shapes(LLAMA, "blocks.1") == expected
    assert shapes(LLAMA, "embed") == shapes(LLAMA, "head") == {"table": (100, 32)}
    assert shapes({**LLAMA, "tie_word_embeddings": True}, "head") == {}
    assert shapes(LLAMA, "norm") == {"norm.weight": (32,)}
    biases = shapes({**LLAMA, "attention_bias": True, "mlp_bias": True}, "blocks.0").items() - expected.items()
    assert dict(biases) == {"qkv.bias": (64,), "out.bias": (32,), "up.bias": (96,), "down.bias": (32,)}
    wide = shapes({**LLAMA, "head_dim": 10}, "blocks.0")
    assert (wide["qkv.weight"], wide["out.weight"]) == ((80, 32), (32, 40))


@pytest.mark.parametrize(("config", "inner"), [(BLOOM, 128), (OPT, 48)], ids=["bloom", "opt"])
def test_bloom_and_opt_blocks_have_biases_and_layer_norms(config: dict[str, Any], inner: int) -> None:
    expected: dict[str, tuple[int, ...]] = {}
    for name, rows, columns in (("qkv", 96, 32), ("out", 32, 32), ("up", inner, 32), ("down", 32, inner)):
        expected |= {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
    for norm in ("attention_norm", "mlp_norm"):
        expected |= {f"{norm}.weight": (32,), f"{norm}.bias": (32,)}
    assert shapes(config, "blocks.0") == expected
    assert shapes(config, "norm") == {"norm.weight": (32,), "norm.bias": (32,)}
    assert shapes(config, "head") == {}  # both families tie the head unless told otherwise
    assert shapes({**config, "tie_word_embeddings": False}, "head") == {"table": (100, 32)}


def test_what_bloom_and_opt_add_to_their_embedding() -> None:
    assert shapes(BLOOM, "embed") == {"table": (100, 32), "norm.weight": (32,), "norm.bias": (32,)}
    assert shapes(OPT, "embed") == {"table": (100, 32), "positions": (52, 32)}  # two rows more than positions


BAD: list[tuple[dict[str, Any], str, list[Any]]] = [
    (LLAMA, "hidden_size", [None, "32", 32.0, True, 0, -32, 2**40, 10**400, [32]]),
    (LLAMA, "vocab_size", [None, True, 0, 10**30]),
    (LLAMA, "intermediate_size", [None, "wide", 0]),
    (LLAMA, "num_hidden_layers", [None, True, 0, 100_000]),
    (LLAMA, "num_attention_heads", [None, {}, 5000]),
    (LLAMA, "num_key_value_heads", [3, 0, True, 8]),
    (LLAMA, "head_dim", [7, True, 10**6]),
    (LLAMA, "max_position_embeddings", [0, 2**40, "long"]),
    (LLAMA, "rms_norm_eps", [0, -1.0, float("nan"), float("inf"), True, "1e-5"]),
    (LLAMA, "rope_theta", [0, True, "big", float("nan")]),
    (LLAMA, "tie_word_embeddings", [1, "yes"]),
    (LLAMA, "hidden_act", ["gelu", 5]),
    (LLAMA, "torch_dtype", ["int8", 16, ["float16"], {}]),
    (LLAMA, "rope_scaling", [5, "linear", [1]]),
    (LLAMA, "rope_interleaved", [True]),
    (BLOOM, "n_layer", [True, 0, 10**9]),
    (BLOOM, "n_head", ["4", 3, 0]),
    (BLOOM, "layer_norm_epsilon", [0, "x"]),
    (BLOOM, "apply_residual_connection_post_layernorm", [True]),
    (OPT, "ffn_dim", [None, True, 2**30]),
    (OPT, "num_attention_heads", [3]),
    (OPT, "do_layer_norm_before", [False]),
    (OPT, "word_embed_proj_dim", [16]),
    (OPT, "activation_function", ["silu"]),
    (OPT, "max_position_embeddings", [2**30]),
    (OPT, "_remove_final_layer_norm", [True]),
]


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        pytest.param(config, field, value, id=f"{config['architectures'][0][:-11].lower()}-{field}-{value!r:.12}")
        for config, field, values in BAD
        for value in values
    ],
)
def test_a_bad_field_is_named_with_its_file(config: dict[str, Any], field: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=rf"^some/config\.json: .*'{field}'"):
        spec_from_config({**config, field: value}, "toy", "some/config.json")


@pytest.mark.parametrize("field", ["n_layer", "n_head"])
def test_a_missing_field_of_two_spellings_is_named_by_one_of_them(field: str) -> None:
    config = {key: value for key, value in BLOOM.items() if key != field}
    with pytest.raises(CheckpointError, match=rf"'({field}|num_hidden_layers|num_attention_heads)' is missing"):
        spec_from_config(config, "toy")


@pytest.mark.parametrize(
    "fields",
    [
        {"hidden_size": 4, "num_attention_heads": 8, "num_key_value_heads": 8},
        {"rope_scaling": {**LLAMA3, "low_freq_factor": 4}},
    ],
    ids=["head_dim 0", "frequency factors equal"],
)
def test_an_absurd_combination_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError):
        spec_from_config({**LLAMA, **fields}, "toy")


@pytest.mark.parametrize(
    "architectures", [["MambaForCausalLM"], ["X" * 5000], [], None, "MambaForCausalLM", [5], 5], ids=repr
)
def test_an_unknown_architecture_is_answered_with_the_known_ones(architectures: Any) -> None:
    with pytest.raises(
        CheckpointError, match=r"bigrun runs Bloom, Falcon, GPTJ, GPTNeoX, Gemma, Llama, Mistral"
    ) as caught:
        spec_from_config({**LLAMA, "architectures": architectures}, "toy")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("config", [[], None, "text", 5], ids=repr)
def test_a_configuration_that_is_no_object_is_a_checkpoint_error(config: Any) -> None:
    with pytest.raises(CheckpointError, match="not a JSON object"):
        spec_from_config(config, "toy")


@pytest.mark.parametrize(
    ("fields", "rope"),
    [
        ({}, Rope(8, 10_000.0)),
        ({"rope_theta": 5e5}, Rope(8, 5e5)),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, Rope(8, 5e5)),
        ({"rope_theta": 5e5, "rope_scaling": None}, Rope(8, 5e5)),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, Rope(8, 10_000.0, "linear", 2.0)),
        ({"rope_theta": 5e5, "rope_scaling": LLAMA3}, Rope(8, 5e5, "llama3", 8.0, 1.0, 4.0, 64)),
        ({"rope_parameters": {**LLAMA3, "rope_theta": 5e5}}, Rope(8, 5e5, "llama3", 8.0, 1.0, 4.0, 64)),
    ],
    ids=["absent", "theta", "v5 theta", "null", "v4 linear", "v4 llama3", "v5 llama3"],
)
def test_both_spellings_of_the_rotary_embedding(fields: dict[str, Any], rope: Rope) -> None:
    assert spec_from_config({**LLAMA, **fields}, "toy").blocks[0].rope == rope


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("left_out", ["factor", "low_freq_factor", "high_freq_factor"])
def test_a_rotary_field_is_named_with_the_object_that_lacks_it(key: str, left_out: str) -> None:
    inner = {name: value for name, value in LLAMA3.items() if name != left_out}
    with pytest.raises(CheckpointError, match=f"{key}.*'{left_out}' is missing"):
        spec_from_config({**LLAMA, key: inner}, "toy")
    with pytest.raises(CheckpointError, match=f"{key}.*'rope_type' is 'yarn'; bigrun knows"):
        spec_from_config({**LLAMA, key: {"rope_type": "yarn", "factor": 2}}, "toy")


def test_blooms_qkv_rows_go_from_head_after_head_to_all_q_first() -> None:
    heads, dim = 4, 8
    sources = BY_NAME["bloom"].tensors(spec_from_config(BLOOM, "toy"), "blocks.1", "hf")
    for leaf in ("weight", "bias"):
        (source,) = sources[f"qkv.{leaf}"]
        assert source.name == f"transformer.h.1.self_attention.query_key_value.{leaf}"
        # transformers splits view(heads, 3, dim): row (head, which, i) of the checkpoint
        expected = [
            which * heads * dim + head * dim + i for head in range(heads) for which in range(3) for i in range(dim)
        ]
        assert source.destinations().tolist() == expected
        assert source.destinations().dtype == np.int64


def test_ggufs_rotary_pairs_go_back_to_halves() -> None:
    sources = BY_NAME["llama"].tensors(spec_from_config(LLAMA, "toy"), "blocks.1", "gguf")
    q, k, v = sources["qkv.weight"]
    assert [source.name for source in (q, k, v)] == [f"blk.1.attn_{leaf}.weight" for leaf in "qkv"]
    for source, heads in ((q, 4), (k, 2)):
        hf = np.arange(heads * 8)  # what llama.cpp's converter does to Hugging Face's rows
        gguf = hf.reshape(heads, 2, 4).swapaxes(1, 2).reshape(-1)
        canonical = np.empty_like(gguf)
        canonical[source.destinations()] = gguf
        assert canonical.tolist() == hf.tolist()
        assert gguf.tolist() != hf.tolist()
    assert v.destinations().tolist() == list(range(16))


@pytest.mark.parametrize("config", [LLAMA, BLOOM, OPT], ids=["llama", "bloom", "opt"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_the_sources_of_all_parts_are_the_tensors_of_transformers_model(config: dict[str, Any], tied: bool) -> None:
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    spec = spec_from_config({**config, "tie_word_embeddings": tied}, "toy")
    fields = {key: value for key, value in config.items() if key != "architectures"}
    if spec.family == "opt":
        fields["word_embed_proj_dim"] = spec.hidden
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(spec.family, **fields, tie_word_embeddings=tied))
    theirs = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if tied:
        del theirs["lm_head.weight"]
    sources = [BY_NAME[spec.family].tensors(spec, part.name, "hf") for part in spec.parts]
    ours = {source.name: source.shape for part in sources for group in part.values() for source in group}
    assert ours == theirs
    assert spec.parameters == sum(map(prod, theirs.values()))

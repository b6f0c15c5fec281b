"""The configuration of a GGUF file: every key is read, without effect or refused; what a file asks for is what transformers
computes of the same model; what is silent has llama.cpp's default."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from bigrun import Plan, Runner
from bigrun.checkpoint.formats import gguf_keys
from bigrun.checkpoint.formats.gguf import GgufCheckpoint
from bigrun.checkpoint.formats.gguf_config import make_config
from bigrun.checkpoint.formats.gguf_header import GgufTensor
from bigrun.errors import CheckpointError, TokenizerError
from bigrun.model.families.registry import spec_from_config
from bigrun.model.spec import ModelSpec
from bigrun.text import gguf_vocabulary
from bigrun.text.tokenizer import Tokenizer
from support.checkpoints import gguf_name, gguf_twin, llama, permute, rewrite, state
from support.commands import ended, run_command

FLOATS: dict[str, Any] = {"gpus": "none", "cpu": "1GB", "weights": "float32", "progress": False, "context": 64}
IDS = np.arange(3, 43)[None]
DIMS = 16  # of a head, of which half are rotated pairs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    llama(folder, tokenizer=True)
    return folder


def logits(path: Path, **options: Any) -> np.ndarray:
    with Runner(str(path), **{**FLOATS, **options}) as runner:
        return runner.logits(IDS)


def theirs(model: Any) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(model(torch.from_numpy(IDS)).logits)


def described(path: Path) -> ModelSpec:
    return spec_from_config(GgufCheckpoint(path).config, "toy", str(path))


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_1"])
@pytest.mark.parametrize("options", [{}, {"tied": True, "kv_heads": 4}], ids=["plain", "tied"])
def test_logits_are_those_of_transformers_on_the_same_file(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    llama(tmp_path, tokenizer=True, **options)
    gguf_twin(tmp_path, tmp_path / "x.gguf", kind)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="x.gguf", dtype=torch.float32)
    np.testing.assert_allclose(logits(tmp_path / "x.gguf"), theirs(model), atol=2e-5)


# Keys

SOUND: dict[str, Any] = {
    "general.architecture": "llama", "llama.context_length": 128, "llama.embedding_length": 64, "llama.block_count": 2,
    "llama.feed_forward_length": 96, "llama.attention.head_count": 4, "llama.attention.layer_norm_rms_epsilon": 1e-5,
}  # fmt: skip


def config(tensors: Mapping[str, GgufTensor] | None = None, **metadata: Any) -> dict[str, Any]:
    named = {f"llama.{name.replace('__', '.')}": value for name, value in metadata.items()}
    return make_config({**SOUND, **named}, tensors or {}, lambda name: np.ones(8, np.float32), "x.gguf")


def constants(group: type) -> list[str]:
    """The keys that the gguf library lists in a group and in those within it."""
    values = [value for name, value in vars(group).items() if not name.startswith("_")]
    own = [value for value in values if isinstance(value, str)]
    return own + [key for inner in values if isinstance(inner, type) for key in constants(inner)]


MODEL_KEYS = [
    key.removeprefix("{arch}.")
    for group in (gguf.Keys.LLM, gguf.Keys.Attention, gguf.Keys.Rope)
    for key in constants(group)
]


def read_with(metadata: dict[str, Any]) -> dict[str, Any]:
    """The configuration, or the complaint, which names the key."""
    try:
        return config(**metadata)
    except CheckpointError as error:
        keys = [f"llama.{name.replace('__', '.')}" for name in metadata]
        return {"refused": all(key in str(error) for key in keys) or pytest.fail(str(error))}


@pytest.mark.parametrize("name", MODEL_KEYS)
def test_every_key_of_the_gguf_library_is_read_harmless_or_refused_by_name(name: str) -> None:
    groups = (gguf_keys.READ, gguf_keys.HARMLESS, gguf_keys.NEUTRAL, gguf_keys.OFF)
    assert sum(name in group for group in groups) <= 1
    odd: dict[str, Any] = {name.replace(".", "__"): 5}
    if name in gguf_keys.READ:
        assert read_with(odd) != config()
    elif name in gguf_keys.HARMLESS:
        assert config(**odd) == config()
    else:
        with pytest.raises(CheckpointError, match=rf"^x\.gguf: llama\.{name} "):
            config(**odd)


@pytest.mark.parametrize("value", [0, 0.0, False, "", [], [0, 0]], ids=repr)
@pytest.mark.parametrize("name", sorted(gguf_keys.OFF))
def test_a_key_of_another_architecture_that_is_off_changes_nothing(name: str, value: Any) -> None:
    off: dict[str, Any] = {name.replace(".", "__"): value}
    assert config(**off) == config()


@pytest.mark.parametrize("name", sorted(gguf_keys.NEUTRAL))
def test_a_multiplier_of_one_changes_nothing_and_another_is_refused(name: str) -> None:
    for value in gguf_keys.NEUTRAL[name]:
        neutral: dict[str, Any] = {name.replace(".", "__"): value}
        assert config(**neutral) == config()
    for value in (0.5, float("nan"), -1, [1, 0.5], "x"):
        odd: dict[str, Any] = {name.replace(".", "__"): value}
        with pytest.raises(CheckpointError, match=rf"llama\.{name} is "):
            config(**odd)


ODD: dict[str, tuple[dict[str, Any], str]] = {
    "a key that nobody knows": ({"hidden_magic": 1}, "hidden_magic .* does not know"),
    "one that is off": ({"hidden_magic": 0}, "hidden_magic"),
    "values of another size than keys": ({"attention__value_length": 8}, "attention.value_length is 8 where a head has 16"),
    "keys of another size than values": ({"attention__key_length": 8}, "attention.value_length is 16 where a head has 8"),
    "half of a head rotated": ({"rope__dimension_count": 8}, "rope.dimension_count is 8 where a head has 16"),
    "a scale of attention": ({"attention__scale": 0.5}, "attention.scale is 0.5"),
    "yarn": ({"rope__scaling__type": "yarn"}, "rope.scaling.type 'yarn'"),
    "longrope": ({"rope__scaling__type": "longrope"}, "rope.scaling.type 'longrope'"),
    "a scaling of the future": ({"rope__scaling__type": "spiral"}, "rope.scaling.type 'spiral'"),
    "a factor below 0": ({"rope__scaling__factor": -2.0}, "rope.scaling.factor is -2.0"),
    "a factor in words": ({"rope__scaling__factor": "2"}, "rope.scaling.factor is '2'"),
    "an endless factor": ({"rope__scaling__factor": float("inf")}, "rope.scaling.factor is inf"),
    "experts": ({"expert_count": 8}, "expert_count"),
    "a window": ({"attention__sliding_window": 64}, "attention.sliding_window is 64"),
    "no context": ({"context_length": None}, "context_length is missing"),
}  # fmt: skip


@pytest.mark.parametrize(("metadata", "says"), ODD.values(), ids=ODD.keys())
def test_what_is_not_computed_is_refused_by_name(metadata: dict[str, Any], says: str) -> None:
    with pytest.raises(CheckpointError, match=rf"^x\.gguf: llama\.{says}"):
        config(**metadata)


@pytest.mark.parametrize("name", ["rope_factors_long.weight", "rope_factors_short.weight"])
def test_factors_that_depend_on_the_context_are_refused_by_name(name: str) -> None:
    with pytest.raises(CheckpointError, match=rf"{name}: this rotary scaling"):
        config({name: GgufTensor(name, (8,), 0, 0)})


def test_an_adapter_is_no_model() -> None:
    with pytest.raises(CheckpointError, match=r"general\.type is 'adapter'"):
        make_config({**SOUND, "general.type": "adapter"}, {}, lambda name: np.ones(8), "x.gguf")


def test_the_scale_of_attention_that_is_the_usual_one_may_be_written() -> None:
    assert config(attention__scale=float(np.float32(0.25))) == config(attention__scale=0.0) == config()


@pytest.mark.parametrize(
    ("metadata", "scaling"),
    [
        ({"rope__scale_linear": 4.0}, {"type": "linear", "factor": 4.0}),
        ({"rope__scale_linear": 4.0, "rope__scaling__factor": 2.0}, {"type": "linear", "factor": 2.0}),
        ({"rope__scale_linear": 4.0, "rope__scaling__type": "none"}, None),
        ({"rope__scaling__factor": 1.0}, None),
        ({"rope__scaling__original_context_length": 64, "rope__scaling__finetuned": True}, None),
    ],
)
def test_the_old_key_of_linear_scaling_holds_where_the_new_one_is_absent(metadata: dict, scaling: dict | None) -> None:
    assert config(**metadata).get("rope_scaling") == scaling


TOKENIZER_KEYS = constants(gguf.Keys.Tokenizer)


@pytest.mark.parametrize("key", TOKENIZER_KEYS)
def test_every_key_of_a_tokenizer_is_read_harmless_or_refused_by_name(key: str) -> None:
    groups = (gguf_vocabulary.READ, gguf_vocabulary.HARMLESS, gguf_vocabulary.OFF)
    assert sum(key in group for group in groups) == 1
    sound = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>"]}
    if key in gguf_vocabulary.OFF:
        assert Tokenizer.from_gguf({**sound, key: False}).vocab_size == 3
        with pytest.raises(TokenizerError, match=f"^{key} is "):
            Tokenizer.from_gguf({**sound, key: [5]})
    elif key in gguf_vocabulary.HARMLESS:
        assert Tokenizer.from_gguf({**sound, key: [5]}).encode("a") == Tokenizer.from_gguf(sound).encode("a")


# Rotary divisors

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip


def llama3_divisors() -> np.ndarray:
    """What llama.cpp's converter writes of LLAMA3: 1 for high frequencies, the factor for low ones, between them a blend."""
    frequencies = 500.0 ** -(np.arange(0, DIMS, 2) / DIMS)
    turns = 32 * frequencies / (2 * np.pi)
    smooth = np.clip((turns - 1.0) / 3.0, 0, 1)
    return (1 / ((1 - smooth) / 8.0 + smooth)).astype(np.float32)


def test_the_divisors_of_a_llama_3_conversion_are_its_rotary_scaling(tmp_path: Path) -> None:
    model = llama(tmp_path, rope_parameters=LLAMA3, tokenizer=True)
    gguf_twin(tmp_path, tmp_path / "twin.gguf", tensors={"rope_freqs.weight": llama3_divisors()})
    gguf_twin(tmp_path, tmp_path / "without.gguf")
    np.testing.assert_allclose(logits(tmp_path / "twin.gguf"), theirs(model), atol=2e-4)
    assert np.abs(logits(tmp_path / "without.gguf") - theirs(model)).max() > 0.05


@pytest.mark.parametrize("scaling", [{}, {"rope__scaling__factor": 4.0}, {"rope__scaling__type": "none"}], ids=str)
def test_any_divisors_are_applied_on_top_of_a_linear_factor(tmp_path: Path, scaling: dict[str, Any]) -> None:
    divisors = np.geomspace(0.5, 6, DIMS // 2).astype(np.float32)
    factors = [float(divisor) * scaling.get("rope__scaling__factor", 1.0) for divisor in divisors]
    rope = {
        "rope_type": "longrope", "rope_theta": 10_000.0, "short_factor": factors, "long_factor": factors, "factor": 1.0,
        "attention_factor": 1.0, "original_max_position_embeddings": 128,
    }  # fmt: skip
    model = llama(tmp_path, rope_parameters=rope, tokenizer=True)
    gguf_twin(tmp_path, tmp_path / "twin.gguf", tensors={"rope_freqs.weight": divisors}, **scaling)
    one, other = logits(tmp_path), logits(tmp_path / "twin.gguf")
    np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(one, theirs(model), atol=2e-4)
    with_gpu = logits(tmp_path / "twin.gguf", gpus="100MB", virtual=True)
    np.testing.assert_allclose(with_gpu, one, atol=1e-5)


def test_a_conversion_and_a_plan_keep_the_divisors(tmp_path: Path) -> None:
    llama(tmp_path, tokenizer=True)
    paths = {}
    for name, divisors in {"four": np.full(DIMS // 2, 4, np.float32), "one": np.ones(DIMS // 2, np.float32)}.items():
        gguf_twin(tmp_path, tmp_path / f"{name}.gguf", tensors={"rope_freqs.weight": divisors})
        result = run_command("convert", "--model", tmp_path / f"{name}.gguf", "--out", tmp_path / name)
        assert result.exit_code == 0, result.stderr
        paths[name] = logits(tmp_path / f"{name}.gguf", weights="int8")
        np.testing.assert_array_equal(logits(tmp_path / name, weights="int8"), paths[name])
    assert np.abs(paths["four"] - paths["one"]).max() > 0.05
    model = ("--model", tmp_path / "four.gguf", "--gpus", "none", "--cpu", "1GB", "--context", "64")
    (tmp_path / "plan.json").write_text(run_command("plan", *model, "--json").stdout)
    with Runner(plan=Plan.load(tmp_path / "plan.json"), progress=False) as runner:
        np.testing.assert_array_equal(runner.logits(IDS), paths["four"])
    assert "scaling longrope" in run_command("plan", *model, "--programs").stdout


BAD_DIVISORS = {
    "one too many": np.ones(9), "one too few": np.ones(7), "a matrix": np.ones((2, 4)), "a zero": np.arange(8.0),
    "NaN": np.full(8, np.nan), "infinity": np.full(8, np.inf), "below 0": -np.ones(8),
}  # fmt: skip


@pytest.mark.parametrize("values", BAD_DIVISORS.values(), ids=BAD_DIVISORS.keys())
def test_divisors_that_are_not_sound_are_refused_by_name(folder: Path, tmp_path: Path, values: np.ndarray) -> None:
    gguf_twin(folder, tmp_path / "x.gguf", tensors={"rope_freqs.weight": values.astype(np.float32)})
    with pytest.raises(CheckpointError, match=r"x\.gguf: tensor rope_freqs\.weight has "):
        GgufCheckpoint(tmp_path / "x.gguf")


@pytest.mark.parametrize("head_dim", [2**30, -2, "x", 2.0, True])
def test_divisors_of_a_head_that_cannot_be_are_not_read(head_dim: Any) -> None:
    def never(name: str) -> np.ndarray:
        raise AssertionError("read")

    shape = (head_dim // 2,) if type(head_dim) is int else (8,)
    tensors = {"rope_freqs.weight": GgufTensor("rope_freqs.weight", shape, 0, 0)}
    lengths = {f"llama.attention.{kind}_length": head_dim for kind in ("key", "value")}
    with pytest.raises(CheckpointError, match="rope_freqs"):
        make_config({**SOUND, **lengths}, tensors, never, "x.gguf")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"long_factor": [2.0] * 8}, "'long_factor' differs"),
        ({"attention_factor": 1.5}, "'attention_factor' is not 1"),
        ({"attention_factor": None}, "'attention_factor' is missing"),
        ({"short_factor": [1.0] * 7}, "'short_factor' is no list of 8"),
        ({"short_factor": None}, "'short_factor' is no list of 8"),
        ({"short_factor": [-1.0] * 8, "long_factor": [-1.0] * 8}, "'short_factor' is -1.0"),
        ({"short_factor": ["x"] * 8, "long_factor": ["x"] * 8}, "'short_factor' is 'x'"),
    ],
)
def test_a_longrope_that_depends_on_the_text_or_scales_attention_is_refused(changed: dict, says: str) -> None:
    sound = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [1.0] * 8, "attention_factor": 1.0}
    with pytest.raises(CheckpointError, match=says):
        spec_from_config({**config(vocab_size=320), "rope_scaling": {**sound, **changed}}, "toy")


# Biases

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SOME_BIASES = {
    "q alone": {"q_proj"}, "q, k and v": {"q_proj", "k_proj", "v_proj"}, "out alone": {"o_proj"}, "down alone": {"down_proj"},
    "gate and v": {"gate_proj", "v_proj"}, "all": set(LINEARS),
}  # fmt: skip


@pytest.mark.parametrize("layers", [{"0", "1"}, {"1"}], ids=["both blocks", "the second block"])
@pytest.mark.parametrize("there", SOME_BIASES.values(), ids=SOME_BIASES.keys())
def test_biases_of_some_linears_are_added_and_the_others_are_none(
    there: set[str], layers: set[str], tmp_path: Path
) -> None:
    attention = bool(there & set(LINEARS[:4]))
    model = llama(tmp_path, attention_bias=attention, mlp_bias=bool(there & set(LINEARS[4:])), tokenizer=True)
    tensors, left_out = state(tmp_path), {}
    for name, value in tensors.items():
        *_, layer, _, linear, leaf = ["", "", *name.split(".")]
        if leaf == "bias" and not (linear in there and layer in layers):
            value.zero_()
            left_out[gguf_name(name)] = None
    rewrite(tmp_path, tensors)
    model.load_state_dict(tensors)
    gguf_twin(tmp_path, tmp_path / "some.gguf", tensors=left_out)
    np.testing.assert_allclose(logits(tmp_path / "some.gguf"), theirs(model), atol=2e-4)
    np.testing.assert_array_equal(logits(tmp_path / "some.gguf"), logits(tmp_path))
    checkpoint = GgufCheckpoint(tmp_path / "some.gguf")
    assert {name for name, info in checkpoint.tensors.items() if info.dtype == "zeros"} <= left_out.keys()
    assert json.loads(run_command("inspect", tmp_path / "some.gguf", "--json").stdout)["problems"] == []


def test_a_bias_of_nothing_that_the_architecture_has_is_refused(folder: Path, tmp_path: Path) -> None:
    bias = {"output.bias": np.ones(320, np.float32)}
    gguf_twin(folder, tmp_path / "x.gguf", tensors=bias)
    ended(run_command("generate", "--model", tmp_path / "x.gguf", "--prompt", "the"), 4, "output.bias")


# Numbers a block


@pytest.mark.parametrize("key", ["attention__head_count", "attention__head_count_kv", "feed_forward_length"])
def test_an_array_of_equal_numbers_is_that_number(key: str, folder: Path, tmp_path: Path) -> None:
    one: dict[str, Any] = {"attention__head_count": 4, "attention__head_count_kv": 2, "feed_forward_length": 96}
    equal: dict[str, Any] = {key: [one[key]] * 2}
    gguf_twin(folder, tmp_path / "x.gguf", **equal)
    gguf_twin(folder, tmp_path / "one.gguf")
    assert GgufCheckpoint(tmp_path / "x.gguf").config == GgufCheckpoint(tmp_path / "one.gguf").config


def uneven(folder: Path, path: Path) -> None:
    """A file whose second block has one key head and 32 intermediate entries."""
    tensors = {}
    for name, value in state(folder).items():
        data = value.numpy()
        if name.startswith("model.layers.1."):
            if "self_attn.k_proj" in name or "self_attn.v_proj" in name:
                data = permute(data[:DIMS], 1) if "k_proj" in name else data[:DIMS]
            elif "gate_proj" in name or "up_proj" in name:
                data = data[:32]
            elif "down_proj" in name:
                data = data[:, :32]
            else:
                continue
            tensors[gguf_name(name)] = np.ascontiguousarray(data)
    gguf_twin(folder, path, tensors=tensors, attention__head_count_kv=[2, 1], feed_forward_length=[96, 32])


def test_blocks_that_differ_are_planned_and_refused_by_what_differs(folder: Path, tmp_path: Path) -> None:
    uneven(folder, tmp_path / "x.gguf")
    spec = described(tmp_path / "x.gguf")
    assert [(block.kv_heads, block.intermediate) for block in spec.blocks] == [(2, 96), (1, 32)]
    rig = ("--model", tmp_path / "x.gguf", "--gpus", "none", "--cpu", "1GB", "--context", "64")
    plan = json.loads(run_command("plan", *rig, "--json").stdout)
    assert plan["fits"]
    assert plan["parameters"] == sum(value.size for value in rows(tmp_path / "x.gguf").values())
    cached = {block: 2 * 64 * block.kv_rows * 2 for block in spec.blocks}
    assert plan["devices"][0]["kv_cache_bytes"] == sum(cached[block] for block in spec.blocks)
    why = "block 1 differs from block 0 in kv_heads (1 and 2)"
    ended(run_command("generate", *rig, "--prompt", "the"), 2, why)
    (problem,) = json.loads(run_command("inspect", tmp_path / "x.gguf", "--json").stdout)["problems"]
    assert why in problem


def rows(path: Path) -> dict[str, np.ndarray]:
    checkpoint = GgufCheckpoint(path)
    return {name: checkpoint.rows(name, 0, info.shape[0]).values for name, info in checkpoint.tensors.items()}


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ({"attention__head_count_kv": [2, 2, 2]}, "'num_key_value_heads' has 3 numbers for 2 blocks"),
        ({"attention__head_count_kv": [2]}, "'num_key_value_heads' has 1 numbers for 2 blocks"),
        ({"attention__head_count_kv": [2, 3]}, "'num_key_value_heads' is 3, which does not divide 4"),
        ({"feed_forward_length": [96, 0]}, "'intermediate_size' is 0"),
        ({"embedding_length": [64, 64]}, "'hidden_size' is .*, not a whole number"),
    ],
)
def test_arrays_that_cannot_be_are_refused_by_name(metadata: dict, says: str, folder: Path, tmp_path: Path) -> None:
    gguf_twin(folder, tmp_path / "x.gguf", **metadata)
    with pytest.raises(CheckpointError, match=says):
        described(tmp_path / "x.gguf")

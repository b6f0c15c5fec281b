"""Every family counts what transformers builds, part by part, and those of Llama's kin answer as transformers does."""

import copy
import functools
import json
import warnings
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch

from bigrun import Runner
from bigrun.errors import CheckpointError
from bigrun.model.catalog.lookup import ENTRIES
from bigrun.model.families.registry import BY_NAME, FAMILIES, device_map, spec_from_config
from bigrun.model.spec import ModelSpec
from support import checkpoints
from support.long import only

SHAPE = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
MIXTURE = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
SHARED = {"shared_expert_intermediate_size": 56}
ROUTED = {
    "n_routed_experts": 6, "num_experts_per_tok": 2, "n_shared_experts": 2, "moe_intermediate_size": 40, "n_group": 1,
    "topk_group": 1,
}  # fmt: skip
LATENT = {"q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 20}
HEADS = {"num_key_value_heads": 4}
NO_PADDING: dict[str, Any] = {"pad_token_id": None}  # which the class has beyond a small vocabulary
# name of a case → the family, and what is added to SHAPE; every flag that a family reads is on in one case, off in another
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral": ("mistral", {"sliding_window": 50}),
    "mistral-nemo": ("mistral", {"sliding_window": None, "head_dim": 24}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2-windows": ("qwen2", {"use_sliding_window": True, "sliding_window": 50, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"head_dim": 24}),
    "qwen3-bias": ("qwen3", {"attention_bias": True, "tie_word_embeddings": True}),
    "phi3": ("phi3", {"sliding_window": 50, "pad_token_id": None}),
    "phi4-mini": ("phi3", {"tie_word_embeddings": True, "partial_rotary_factor": 0.75, "pad_token_id": None}),
    "gemma": ("gemma", {"num_key_value_heads": 1, "head_dim": 32}),
    "gemma2": ("gemma2", {"head_dim": 32, "sliding_window": 50}),
    "gemma3": ("gemma3_text", {"head_dim": 32, "sliding_window": 50, "sliding_window_pattern": 3}),
    "gpt_neox": ("gpt_neox", {}),
    "gpt_neox-serial": ("gpt_neox", {"use_parallel_residual": False, "attention_bias": False, "rotary_pct": 0.5}),
    "stablelm": ("stablelm", {"use_qkv_bias": True}),
    "stablelm-parallel": ("stablelm", {"use_parallel_residual": True}),
    "starcoder2": ("starcoder2", {"sliding_window": 50}),
    "smollm3": ("smollm3", NO_PADDING),
    "gptj": ("gptj", {"n_inner": 100, "rotary_dim": 8}),
    "starcoder2-bare": ("starcoder2", {"use_bias": False, "tie_word_embeddings": False}),
    "falcon-7b": ("falcon", {}),
    "falcon-40b": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-11b": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1}),
    "falcon-rw": ("falcon", {"parallel_attn": False, "multi_query": False, "alibi": True, "bias": True}),
    "falcon-narrow": ("falcon", {"ffn_hidden_size": 100, "tie_word_embeddings": False}),
    "phi": ("phi", HEADS),
    "cohere": ("cohere", {"attention_bias": True}),
    "cohere2": ("cohere2", {"sliding_window": 50, "sliding_window_pattern": 2}),
    "mixtral": ("mixtral", {"num_local_experts": 6, "num_experts_per_tok": 2}),
    "qwen2_moe": ("qwen2_moe", {**MIXTURE, **SHARED}),
    "qwen2_moe-dense": ("qwen2_moe", {**MIXTURE, **SHARED, "decoder_sparse_step": 2, "mlp_only_layers": [3]}),
    "qwen2_moe-bare": ("qwen2_moe", {**MIXTURE, **SHARED, "qkv_bias": False}),
    "qwen3_moe": ("qwen3_moe", {**MIXTURE, "head_dim": 24, "mlp_only_layers": [0]}),
    "gpt_oss": ("gpt_oss", {"head_dim": 24, "num_local_experts": 6, "num_experts_per_tok": 2, "sliding_window": 50}),
    "glm4_moe": ("glm4_moe", {**ROUTED, "use_qk_norm": True, "attention_bias": True, "first_k_dense_replace": 2}),
    "glm4_moe-air": ("glm4_moe", {**ROUTED, "n_shared_experts": 1, "head_dim": 24}),
    "deepseek_v2": ("deepseek_v2", {**HEADS, **ROUTED, **LATENT, "first_k_dense_replace": 1}),
    "deepseek_v2-lite": ("deepseek_v2", {**HEADS, **ROUTED, **LATENT, "q_lora_rank": None}),
    "deepseek_v3": ("deepseek_v3", {**HEADS, **ROUTED, **LATENT, "first_k_dense_replace": 3}),
}


def theirs(family: str, fields: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """(config.json as transformers writes it, the model without memory)."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(family, **fields)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return {**config.to_dict(), "architectures": [type(model).__name__]}, model


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[ModelSpec, Any, dict[str, Any]]:
    family, fields = CASES[request.param]
    config, model = theirs(family, {**SHAPE, **fields})
    return spec_from_config(config, request.param), model, {**SHAPE, **fields}


# What is walked: SHAPE with heads that the key heads of every class divide.
WIDE = {**SHAPE, "hidden_size": 512, "num_attention_heads": 64}
BY_HAND: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-bias": ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 24, "tie_word_embeddings": True}),
    "llama-scaled": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}}),
    "bloom": ("bloom", {"layer_norm_epsilon": 1e-4}),
    "opt": ("opt", {"ffn_dim": 96}),
    "opt-bare": ("opt", {"ffn_dim": 96, "enable_bias": False, "activation_function": "gelu", "tie_word_embeddings": False}),
}  # fmt: skip
WALKED = {**CASES, **BY_HAND}
# Sizes that bigrun never guesses: where one is absent, the configuration is refused.
SIZES = {
    "vocab_size", "hidden_size", "intermediate_size", "ffn_dim", "num_hidden_layers", "n_layer", "num_attention_heads",
    "n_embd", "rotary_dim",
    "n_head", "num_experts", "num_local_experts", "n_routed_experts", "num_experts_per_tok", "moe_intermediate_size",
    "shared_expert_intermediate_size", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim",
    "max_window_layers",
}  # fmt: skip


class Asked(dict[str, Any]):
    """A configuration that keeps the names of the fields that were asked for."""

    def __init__(self, values: dict[str, Any]):
        super().__init__(values)
        self.names: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        self.names.add(name)
        return super().get(name, default)


def described(config: dict[str, Any]) -> ModelSpec | str:
    try:
        return spec_from_config(config, "toy")
    except CheckpointError as error:
        return str(error)


def filled(family: str, config: dict[str, Any]) -> dict[str, Any]:
    """All fields, as transformers' class fills in what `config` leaves out."""
    from transformers import AutoConfig

    own = {name: value for name, value in copy.deepcopy(config).items() if name not in ("architectures", "model_type")}
    result = {**AutoConfig.for_model(family, **own).to_dict(), "architectures": [BY_NAME[family].architectures[0]]}
    return less(result, "_sliding_window_pattern")  # written, and never read back


def less(config: dict[str, Any], *names: str) -> dict[str, Any]:
    """Without these fields; "rope_parameters.rope_theta" is within another."""
    result = copy.deepcopy(config)
    for name in names:
        outer, _, inner = name.rpartition(".")
        (result[outer] if outer else result).pop(inner, None)
    return result


def read_of(config: dict[str, Any]) -> list[str]:
    """The fields of this configuration that bigrun reads, those within rope_parameters among them."""
    asked = Asked(config)
    assert isinstance(described(asked), ModelSpec)
    inner = {"rope_theta", "rope_type", "partial_rotary_factor"} & (config.get("rope_parameters") or {}).keys()
    return sorted((asked.names & config.keys()) - {"architectures"}) + [f"rope_parameters.{name}" for name in inner]


@pytest.mark.parametrize("name", WALKED)
def test_what_a_configuration_leaves_out_is_the_default_of_transformers_class(name: str) -> None:
    """Published files leave out what is at its default: field by field, with the list of layers and without it."""
    family, fields = WALKED[name]
    config = filled(family, {**WIDE, **fields})
    names = read_of(config)
    assert len(names) >= 8
    # A list of layers with windows, and no word that there are windows, contradict each other.
    alone = [(name,) for name in names if name != "use_sliding_window"]
    for out in alone + [(name, "layer_types") for name in names if "layer_types" in config]:
        some = less(config, *out)
        ours = described(some)
        if isinstance(ours, str):
            assert out[0] in SIZES, f"without {out}: {ours}"
            assert " is missing" in ours, ours
        else:
            assert ours == described(filled(family, some)), f"without {out}"


@pytest.mark.parametrize("name", WALKED)
def test_all_that_a_class_has_a_default_for_may_be_left_out_at_once(name: str) -> None:
    family, fields = WALKED[name]
    config = filled(family, {**WIDE, **fields})
    sizes = {name: value for name, value in config.items() if name in SIZES or name == "architectures"}
    assert described(sizes) == described(filled(family, sizes))


@pytest.mark.parametrize("name", WALKED)
def test_null_is_what_transformers_takes_it_for(name: str) -> None:
    """Where its class takes null at all: key heads are then as many as heads, a window reaches back for ever, and so on."""
    family, fields = WALKED[name]
    config = filled(family, {**WIDE, **fields})
    taken = []
    for field in read_of(config):
        some = {**config, field: None}
        if "." in field:
            continue
        try:
            again = filled(family, some)
        except Exception:  # each of several classes: the field may not be null
            continue
        taken.append(field)
        ours, theirs = described(some), described(again)
        assert ours == theirs or (field in SIZES and isinstance(ours, str)), field
    assert taken


@pytest.mark.parametrize("scaling", [{}, {"rope_type": "linear", "factor": 4.0}], ids=["empty", "linear"])
def test_of_two_spellings_of_the_rotary_embedding_transformers_choice_is_taken(scaling: dict[str, Any]) -> None:
    """A file that one version wrote and another completed has both."""
    config = filled("llama", {**WIDE, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}})
    both = {**config, "rope_scaling": scaling}
    assert described(both) == described(filled("llama", both))


def counts(model: Any, tied: bool) -> dict[str, int]:
    """Entries of each tensor that a checkpoint of this model holds: parameters, and buffers that are saved (the bias of
    DeepSeek's router). A tied head is left out."""
    saved = {name: value.numel() for name, value in model.state_dict().items()}
    return {name: count for name, count in saved.items() if not (tied and name == "lm_head.weight")}


def test_every_family_has_a_case() -> None:
    assert {family for family, _ in CASES.values()} | {"llama", "bloom", "opt"} == {family.name for family in FAMILIES}
    assert {entry.spec().family for entry in ENTRIES.values()} <= set(BY_NAME)


def test_every_part_counts_what_transformers_builds(case: tuple[ModelSpec, Any, Any]) -> None:
    spec, model, _ = case
    saved, modules = counts(model, spec.tied), BY_NAME[spec.family].modules
    assert spec.tied == (model.lm_head.weight is model.get_input_embeddings().weight)

    def under(*names: str) -> int:
        return sum(count for tensor, count in saved.items() if tensor.startswith(tuple(f"{name}." for name in names)))

    for part in spec.parts:
        kind, _, number = part.name.partition(".")
        if kind != "blocks":
            assert part.parameters == under(*modules[kind]), part.name  # type: ignore[index]
            continue
        number, _, experts = number.partition(".")
        (block,) = modules["block"]
        held = under(f"{block}.{number}.mlp.experts")
        assert part.parameters == (held if experts else under(f"{block}.{number}") - held), part.name
        assert (held > 0) == (f"blocks.{number}.experts" in names(spec))
    assert spec.parameters == sum(saved.values())


def names(spec: ModelSpec) -> list[str]:
    return [part.name for part in spec.parts]


def test_the_published_spelling_gives_the_same_spec(case: tuple[ModelSpec, Any, Any]) -> None:
    """What transformers writes now and the fields that files were published with are one model."""
    spec, model, fields = case
    again = spec_from_config({**fields, "architectures": [type(model).__name__]}, spec.name)
    for ours, other in zip(spec.blocks, again.blocks, strict=True):
        assert (ours.window, ours.experts, ours.latent) == (other.window, other.experts, other.latent)
    assert again.parameters == spec.parameters
    assert again.tied == spec.tied


def test_accelerate_takes_the_device_map(case: tuple[ModelSpec, Any, Any]) -> None:
    from accelerate.utils.modeling import check_device_map

    spec, model, _ = case
    apart = {name: "cpu" if name.endswith("experts") else "cuda:0" for name in names(spec)}
    for devices in (dict.fromkeys(names(spec), "cuda:0"), apart):
        placed = device_map(spec.family, devices)
        assert set(placed.values()) == ({0, "cpu"} if "cpu" in devices.values() else {0})
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # accelerate warns of names that the model has not
            check_device_map(model, placed)
        for name, _ in model.named_buffers():  # which check_device_map does not look at unless they are saved
            assert any(name.startswith(f"{module}.") for module in placed), name
    for name, place in placed.items():
        assert (place == "cpu") == name.endswith(".mlp.experts")


def test_windows_are_transformers_own(case: tuple[ModelSpec, Any, Any]) -> None:
    spec, model, _ = case
    kinds = getattr(model.config, "layer_types", None)
    size = getattr(model.config, "sliding_window", None) or 0
    if kinds is None:  # a window is in every layer or in none
        kinds = ["sliding_attention" if size else "full_attention"] * len(spec.blocks)
    assert [block.window for block in spec.blocks] == [size if kind.startswith("sliding") else 0 for kind in kinds]


def test_flags_of_single_families() -> None:
    def block(case: str, number: int = 0) -> Any:
        family, fields = CASES[case]
        config, _ = theirs(family, {**SHAPE, **fields})
        return spec_from_config(config, case).blocks[number]

    assert [block("gpt_neox").rope.dims, block("phi").rope.dims, block("phi4-mini").rope.dims] == [4, 8, 12]
    assert block("falcon-rw").positions == "alibi"
    assert block("falcon-rw").rope is None
    assert [block(name).parallel for name in ("gpt_neox", "gpt_neox-serial", "falcon-7b", "falcon-rw", "phi")] == [
        True, False, True, False, True,
    ]  # fmt: skip
    assert [block("falcon-7b").kv_heads, block("falcon-40b").kv_heads, block("falcon-rw").kv_heads] == [1, 2, 4]
    latent = block("deepseek_v2-lite").latent
    assert (latent.q_rank, latent.kv_rank, latent.nope, latent.rope, latent.value) == (0, 16, 12, 8, 20)
    assert block("deepseek_v3", 2).experts is None
    experts = block("deepseek_v3", 3).experts
    assert (experts.count, experts.active, experts.intermediate, experts.shared) == (6, 2, 40, 80)


FIRST = {entry.spec().family: name for name, entry in reversed(ENTRIES.items())}  # the first model of each family


@pytest.mark.parametrize("name", only(ENTRIES, FIRST.values()))
def test_a_catalog_model_counts_what_transformers_builds(name: str) -> None:
    spec = ENTRIES[name].spec()
    left_out = ("architectures", "quantization_config")
    fields = {key: value for key, value in ENTRIES[name].config.items() if key not in left_out}
    config, model = theirs(spec.family, fields)
    assert spec.parameters == sum(counts(model, spec.tied).values())
    assert spec_from_config(config, name).parameters == spec.parameters


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("mistral", {"hidden_act": "gelu"}, "hidden_act"),
    ("mistral", {"sliding_window": "all"}, "sliding_window"),
    ("mistral", {"sliding_window": -1}, "sliding_window"),
    ("mistral", {"rope_scaling": {"rope_type": "yarn", "factor": 2}}, "rope_type"),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 50, "max_window_layers": None}, "max_window_layers"),
    ("qwen2", {"use_sliding_window": "yes"}, "use_sliding_window"),
    ("qwen2", {"layer_types": ["full_attention"] * 3}, "layer_types"),
    ("qwen2", {"layer_types": "full_attention"}, "layer_types"),
    ("qwen2", {"layer_types": ["full_attention"] * 3 + [7]}, "layer_types"),
    ("gemma2", {"layer_types": ["chunked_attention"] * 4}, "layer_types"),
    ("gemma2", {"layer_types": ["sliding_attention"] * 4, "sliding_window": None}, "sliding_window"),
    ("gemma3_text", {"sliding_window_pattern": 0}, "sliding_window_pattern"),
    ("phi3", {"partial_rotary_factor": 1.5}, "partial_rotary_factor"),
    ("gpt_neox", {"use_parallel_residual": 1}, "use_parallel_residual"),
    ("gpt_neox", {"hidden_act": "silu"}, "hidden_act"),
    ("falcon", {"num_ln_in_parallel_attn": 3}, "num_ln_in_parallel_attn"),
    ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 3}, "num_key_value_heads"),
    ("phi", {"qk_layernorm": True}, "qk_layernorm"),
    ("cohere", {"use_qk_norm": True}, "use_qk_norm"),
    ("mixtral", {"num_local_experts": None}, "num_local_experts"),
    ("mixtral", {"num_experts_per_tok": 9}, "num_experts_per_tok"),
    ("qwen2_moe", {"shared_expert_intermediate_size": None}, "shared_expert_intermediate_size"),
    ("qwen2_moe", {"use_sliding_window": True}, "use_sliding_window"),
    ("qwen3_moe", {"mlp_only_layers": "none"}, "mlp_only_layers"),
    ("qwen3_moe", {"mlp_only_layers": ["0"]}, "mlp_only_layers"),
    ("qwen3_moe", {"decoder_sparse_step": 0}, "decoder_sparse_step"),
    ("gpt_oss", {"num_local_experts": 2**20}, "num_local_experts"),
    ("glm4_moe", {"n_shared_experts": -1}, "n_shared_experts"),
    ("deepseek_v2", {"kv_lora_rank": None}, "kv_lora_rank"),
    ("deepseek_v2", {"attention_bias": True}, "attention_bias"),
    ("deepseek_v3", {"topk_method": "greedy"}, "topk_method"),
    ("deepseek_v3", {"moe_layer_freq": 0}, "moe_layer_freq"),
    ("deepseek_v3", {"qk_rope_head_dim": "64"}, "qk_rope_head_dim"),
]


@pytest.mark.parametrize(("family", "fields", "named"), BAD, ids=[f"{name}-{field}" for name, _, field in BAD])
def test_a_bad_field_is_named(family: str, fields: dict[str, Any], named: str) -> None:
    good = next(more for name, more in CASES.values() if name == family)
    (architecture,) = BY_NAME[family].architectures
    config = {"architectures": [architecture], "use_sliding_window": False, **SHAPE, **good}
    spec_from_config(config, "toy")
    with pytest.raises(CheckpointError, match=rf"^some/config\.json: .*'{named}'"):
        spec_from_config({**config, **fields}, "toy", "some/config.json")


def test_planning_asks_nothing_of_how_positions_are_scaled() -> None:
    scaling = {"rope_type": "unheard", "factor": "much"}
    config = {"architectures": ["Gemma2ForCausalLM"], **SHAPE, "rope_scaling": scaling}
    assert spec_from_config(config, "toy").blocks[0].rope.dims == 256  # type: ignore[union-attr]


def test_quantised_weights_are_planned_as_the_values_they_stand_for() -> None:
    config: dict[str, Any] = {"architectures": ["Qwen3ForCausalLM"], **SHAPE}
    assert spec_from_config(config, "toy").checkpoint_dtype == "float16"
    config["quantization_config"] = {"quant_method": "fp8"}
    assert spec_from_config(config, "toy").checkpoint_dtype == "bfloat16"


RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral": ("mistral", {"sliding_window": None, "head_dim": 24}),
    "mistral-window-not-reached": ("mistral", {"sliding_window": 128}),
    "qwen2": ("qwen2", {}),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True}),
}


@pytest.mark.parametrize("name", RUNS)
def test_logits_agree_with_transformers(name: str, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    family, fields = RUNS[name]
    built = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SHAPE, **fields))
    model = checkpoints._save(built, tmp_path, "float32", "1GB", False, 0)
    ids = torch.randint(0, SHAPE["vocab_size"], (2, 100), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = model(ids).logits
    choices: list[tuple[dict[str, Any], float]] = [({"weights": "float32"}, 1e-4), ({"mode": "exact"}, 0.06)]
    for options, bar in choices:
        with Runner(str(tmp_path), context=128, progress=False, **options) as runner:
            error = ((runner.logits(ids) - expected).norm() / expected.norm()).item()
        assert error <= bar, options


MORE = {**dict.fromkeys(("phi3", "smollm3", "gemma"), NO_PADDING), "gptj": {"rotary_dim": 8}}


@pytest.mark.parametrize("family", [name for name, family in BY_NAME.items() if family.sources])
def test_a_norm_s_epsilon_that_is_not_written_is_transformers_own(family: str, tmp_path: Path) -> None:
    """Seen in the logits: with embeddings as small as the root of epsilon, a norm's output depends on it."""
    from transformers import AutoConfig

    keys = {
        "bloom": "layer_norm_epsilon", "opt": None, "stablelm": "layer_norm_eps", "starcoder2": "norm_epsilon",
        "gpt_neox": "layer_norm_eps", "falcon": "layer_norm_epsilon", "phi": "layer_norm_eps",
        "gptj": "layer_norm_epsilon",
    }  # fmt: skip
    key = keys.get(family, "rms_norm_eps")
    default = {key: getattr(AutoConfig.for_model(family), key)} if key else {}
    write = getattr(checkpoints, family, functools.partial(checkpoints.relative, model_type=family))
    model = write(tmp_path, **default, **MORE.get(family, {}))
    tensors = checkpoints.state(tmp_path)
    for name, parameter in model.named_parameters():
        if (
            "embed" in name or ".wte" in name
        ):  # BLOOM's norm of the embedding is among them, so that what follows it is small as well
            parameter.data *= 0.003
            tensors[name] = parameter.data.clone()
    checkpoints.rewrite(tmp_path, tensors)
    if key:
        assert key in json.loads((tmp_path / "config.json").read_text())
        checkpoints.edit_config(tmp_path, **{key: None})
    ids = torch.randint(0, SHAPE["vocab_size"], (1, 12), generator=torch.Generator().manual_seed(1))

    def logits() -> torch.Tensor:
        with torch.inference_mode():
            return model(ids).logits

    expected, norms = logits(), []
    with Runner(str(tmp_path), context=32, gpus="none", cpu="100MB", weights="float32", progress=False) as runner:
        assert (runner.logits(ids) - expected).norm() <= 1e-4 * expected.norm()
    for norm in model.modules():
        for name in {"eps", "variance_epsilon"} & vars(norm).keys():
            setattr(norm, name, getattr(norm, name) / 10)
            norms.append(norm)
    assert len(norms) >= (3 if family in ("falcon", "phi", "gptj") else 5), "one a block, or two, and the last"
    assert (logits() - expected).norm() > 1e-2 * expected.norm(), "or else this sees nothing"


@pytest.mark.parametrize(
    "case",
    [
        "mistral",
        "mistral-nemo",
        "qwen2",
        "qwen2-windows",
        "qwen3",
        "qwen3-bias",
        "phi3",
        "phi4-mini",
        "stablelm",
        "stablelm-parallel",
        "starcoder2",
        "starcoder2-bare",
        "gpt_neox",
        "gpt_neox-serial",
        "falcon-7b",
        "falcon-40b",
        "falcon-11b",
        "falcon-narrow",
        "phi",
        "gptj",
        "smollm3",
        "gemma",
    ],
)
def test_the_sources_of_all_parts_are_the_tensors_of_transformers_model(case: str) -> None:
    family, fields = CASES[case]
    config, model = theirs(family, {**SHAPE, **fields})
    spec, sources = spec_from_config(config, "toy"), BY_NAME[family].sources
    assert sources is not None
    part_sources = [sources(spec, part.name, "hf") for part in spec.parts]
    ours = {source.name: prod(source.shape) for part in part_sources for group in part.values() for source in group}
    theirs_too = {name.replace("embed_out", "lm_head"): size for name, size in ours.items()}  # its name in the files
    assert theirs_too == counts(model, spec.tied)


def test_the_families_that_run() -> None:
    assert [name for name, family in BY_NAME.items() if family.sources] == [
        "llama", "bloom", "opt", "mistral", "qwen2", "qwen3", "phi3", "stablelm", "starcoder2", "smollm3", "gemma",
        "gpt_neox", "falcon", "gptj", "phi",
    ]  # fmt: skip

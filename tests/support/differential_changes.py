"""What differential tests change in a sound checkpoint: fields, tensors, files. A change is a tuple that JSON can hold.

("set", field, value)        the field has this value, and the tensors are those that transformers then expects
("remove", field)            the same, without the field
("contradict", field, value) the field alone changes: the tensors stay
others                       of tensors: differential_tensors.py; of files: differential_files.py
"""

from __future__ import annotations

import math
from random import Random
from typing import Any

Change = tuple[Any, ...]
LAYERS = 2
FAMILIES = ("llama", "mistral", "qwen2", "opt", "bloom")
CLASSES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "opt": "OPT", "bloom": "Bloom"}

_ROPED: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "hidden_act": "silu",
    "tie_word_embeddings": False, "rope_theta": 10000.0, "torch_dtype": "float32",
}  # fmt: skip
_OPT: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 48, "num_hidden_layers": LAYERS,
    "num_attention_heads": 4, "max_position_embeddings": 64, "activation_function": "relu", "do_layer_norm_before": True,
    "enable_bias": True, "torch_dtype": "float16",
}  # fmt: skip
_BLOOM: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 32, "n_layer": LAYERS, "n_head": 4, "layer_norm_epsilon": 1e-5, "torch_dtype": "float16",
}  # fmt: skip
_OWN: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": None},
    "qwen2": {"use_sliding_window": False, "max_window_layers": 1},
}


def base_config(family: str) -> dict[str, Any]:
    """The fields that published files of the family have, in small."""
    fields = {"opt": _OPT, "bloom": _BLOOM}.get(family, _ROPED) | _OWN.get(family, {})
    return {"architectures": [f"{CLASSES[family]}ForCausalLM"], "model_type": family, **fields}


# In each tuple of values, those after the ellipsis are unsound: null, of another type, or of no sense.
_FLAGS = (True, False, ..., None, "false", 0, 1)
_ACTIVATIONS = (
    "silu", "swish", "gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_10", "quick_gelu", "relu", "relu2", "SiLU",
    "tanh", ..., None, 7, ["silu"],
)  # fmt: skip
_EPSILONS = (1e-6, 1e-5, 1e-3, 0.1, 1e-12, ..., 0, 0.0, 1, "1e-5", None, -1e-5, math.inf, math.nan)
_QUANTISED: tuple[Any, ...] = (
    None, ..., {}, {"quant_method": "gptq", "bits": 4, "group_size": 128}, {"quant_method": "awq", "bits": 4},
    {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, {"load_in_8bit": True},
    {"quant_method": "fp8", "weight_block_size": [128, 128]}, {"quant_method": "none"}, "gptq",
)  # fmt: skip
_DTYPES = (
    "float32", "float16", "bfloat16", "torch.float16", None, ..., "float64", "fp16", "half", "FLOAT16", "auto",
    "float8_e4m3fn", "int8", 16,
)  # fmt: skip
_WINDOWS = (None, 4, 16, 24, 4096, ..., 1, 8, 0, -1, "8", 8.0, True)
_KINDS: tuple[Any, ...] = (
    None, ["full_attention"] * 2, ["sliding_attention"] * 2, ["full_attention", "sliding_attention"],
    ["sliding_attention", "full_attention"], ..., ["full_attention"], ["chunked_attention"] * 2, "full_attention", [],
)  # fmt: skip
_SHARED: dict[str, tuple[Any, ...]] = {
    "architectures": (
        ["{}ForCausalLM", "Other"],
        ...,
        None,
        [],
        "{}ForCausalLM",
        ["{}Model"],
        ["{}ForSequenceClassification"],
        ["{}LMHeadModel"],
        ["Other", "{}ForCausalLM"],
        ["Unknown"],
        ["LLaMAForCausalLM"],
        ["GemmaForCausalLM"],
        [None],
        [3],
        {},
    ),
    "model_type": (..., None, "", "llama", "bloom", "opt", "mistral", "qwen2", "gemma", "unknown", "LLAMA", 3),
    "vocab_size": (96, 99, 128, ..., 1, "97", 97.0, None, 0, -1, 2**40),
    "hidden_size": (48, 80, 64, ..., 36, 30, 33, "32", 32.0, None, 0, -32, 2**40),
    "tie_word_embeddings": _FLAGS,
    "torch_dtype": _DTYPES,
    "dtype": _DTYPES,
    "quantization_config": _QUANTISED,
    "pad_token_id": (None, 0, 96, ..., -1, 97, 5000, "0", [1]),
    "bos_token_id": (None, 0, ..., -1, 97, 5000, [1]),
    "eos_token_id": (None, [2], [2, 3], ..., [], -1, 5000, "2"),
    "use_cache": (False, True, ..., None),
    "output_hidden_states": (True,),
    "output_attentions": (True,),
    "return_dict": (..., False),
    "attn_implementation": ("eager", ..., "sdpa", "flash_attention_2"),
    "is_decoder": (False, True),
    "is_encoder_decoder": (..., True),
    "initializer_range": (0.1, ..., None, "x"),
    "temperature": (0.7,),
    "transformers_version": ("4.28.0", "5.0.0", ..., None, 4),
    "_name_or_path": ("somewhere/else", None),
    "auto_map": ({}, {"AutoModelForCausalLM": "modeling_other.Other"}),
    "final_logit_softcapping": (30.0,),
    "logit_scale": (0.5,),
    "residual_multiplier": (0.2,),
    "qk_norm": (True,),
    "partial_rotary_factor": (None, 1.0, 0.5),
    "something_new": ({"a": [1]}, True),
    "per_layer_config": ({}, None),
    "pruned_heads": ({}, {"0": [1]}),
    "tie_encoder_decoder": (True,),
    "chunk_size_feed_forward": (4,),
    "text_config": (..., {}, {"hidden_size": 16}),
    "torchscript": (True,),
    "gradient_checkpointing": (True,),
}
_ROPED_FIELDS: dict[str, tuple[Any, ...]] = {
    "intermediate_size": (64, 37, 1, ..., "48", None, 0, -1, 2**40),
    "num_hidden_layers": (1, 3, ..., 0, "2", None, -1, 2.0),
    "num_attention_heads": (2, 8, 4, ..., 1, 3, 5, None, 0, -4, "4"),
    "num_key_value_heads": (1, 4, None, ..., 3, 8, 0, -1, "2"),
    "head_dim": (8, 16, 6, 24, 4, 2, None, ..., 7, 1, 0, -8, "8", 8.0),
    "hidden_act": _ACTIVATIONS,
    "rms_norm_eps": _EPSILONS,
    "layer_norm_eps": (1e-2,),
    "layer_norm_epsilon": (1e-2,),
    "max_position_embeddings": (16, 24, 128, 2**20, ..., 8, 1, None, "64", 0, -1, 64.0),
    "original_max_position_embeddings": (8, 16, 32, ..., None),
    "rope_theta": (500000.0, 1e6, 10, 100.0, 10000, ..., 1, 0, -1.0, None, "10000", 1e13, math.inf, [10000.0]),
    "rotary_pct": (0.5,),
    "rope_interleaved": (False, True),
    "rope_percent": (0.5,),
    "attention_bias": _FLAGS,
    "mlp_bias": _FLAGS,
    "qkv_bias": _FLAGS,
    "use_qkv_bias": (True,),
    "sliding_window": _WINDOWS,
    "use_sliding_window": _FLAGS,
    "max_window_layers": (0, 1, 2, 28, ..., None, -1, "1"),
    "layer_types": _KINDS,
    "attention_dropout": (0.1, ..., None, "x"),
    "pretraining_tp": (2, None, ..., 0, "x"),
    "attention_multiplier": (0.5,),
    "attn_logit_softcapping": (20.0,),
    "use_mrope": (True,),
}
FIELDS: dict[str, dict[str, tuple[Any, ...]]] = {
    **{family: {**_SHARED, **_ROPED_FIELDS} for family in ("llama", "mistral", "qwen2")},
    "opt": {
        **_SHARED,
        "word_embed_proj_dim": (16, 48, None, ..., 0, "32"),
        "ffn_dim": (64, 37, 1, ..., "48", None, 0, -1),
        "num_hidden_layers": (1, 3, ..., 0, "2", None, -1),
        "num_attention_heads": (1, 2, 8, ..., 3, None, 0, -4, "4"),
        "max_position_embeddings": (16, 24, 128, ..., 8, 1, None, "64", 0, -1),
        "activation_function": _ACTIVATIONS,
        "do_layer_norm_before": _FLAGS,
        "enable_bias": _FLAGS,
        "layer_norm_elementwise_affine": _FLAGS,
        "_remove_final_layer_norm": _FLAGS,
        "layer_norm_eps": (1e-2,),
        "hidden_act": ("gelu",),
        "dropout": (0.0, 0.5, ..., None),
        "attention_dropout": (0.1,),
        "activation_dropout": (0.1,),
        "layerdrop": (0.5, 1.0),
        "init_std": (0.1, ..., None),
        "prefix": ("</s>",),
        "output_projection": (True,),
        "num_key_value_heads": (2,),
        "head_dim": (16,),
        "rope_scaling": ({"type": "linear", "factor": 2.0},),
        "sliding_window": (4,),
        "scale_embedding": (True,),
    },
    "bloom": {
        **_SHARED,
        "n_embed": (32, 48, None, ..., "32", 0),
        "n_layer": (1, 3, ..., 0, "2", None, -1),
        "num_hidden_layers": (1, 2, 3, None),
        "n_head": (1, 2, 8, ..., 3, None, 0, -4, "4"),
        "num_attention_heads": (1, 4, 8, None),
        "n_inner": (64, 128, None, ..., 0),
        "ffn_hidden_size": (64,),
        "layer_norm_epsilon": _EPSILONS,
        "layer_norm_eps": (1e-2,),
        "apply_residual_connection_post_layernorm": _FLAGS,
        "slow_but_exact": _FLAGS,
        "pretraining_tp": (2, 4, ..., None, "2"),
        "hidden_dropout": (0.5, ..., None),
        "attention_dropout": (0.5, ..., None),
        "attention_softmax_in_fp32": (False, True),
        "masked_softmax_fusion": (False, True),
        "bias_dropout_fusion": (True,),
        "skip_bias_add": (True,),
        "skip_bias_add_qkv": (True,),
        "offset_alibi": (100,),
        "unk_token_id": (0,),
        "seq_length": (16, 64, None, ..., 8, "64", 0, 2**20),
        "max_position_embeddings": (8, 64),
        "hidden_act": ("relu",),
        "num_key_value_heads": (2,),
        "head_dim": (16,),
        "rope_scaling": ({"type": "linear", "factor": 2.0},),
        "sliding_window": (4,),
    },
}
_GROUPS: tuple[tuple[str, ...], ...] = (
    ("sliding_window", "use_sliding_window", "max_window_layers", "layer_types", "num_hidden_layers"),
    ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings", "max_position_embeddings", "head_dim"),
    ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "n_head", "n_embed"),
    ("architectures", "model_type", "tie_word_embeddings", "dtype", "torch_dtype", "quantization_config"),
    ("word_embed_proj_dim", "hidden_size", "do_layer_norm_before", "enable_bias", "_remove_final_layer_norm"),
    ("n_layer", "num_hidden_layers", "n_head", "num_attention_heads", "seq_length", "n_inner"),
)
_KIND_NAMES: tuple[Any, ...] = (
    "default", "linear", "llama3", "yarn", "dynamic", "longrope", "proportional", "su", "mrope", "Linear", "", None, 1,
)  # fmt: skip
_ROPE_KEYS: dict[str, tuple[Any, ...]] = {
    "factor": (2.0, 4, 1, 1.0, 0.5, 0, -2.0, "2", None),
    "rope_theta": (10000.0, 500000, 100.0, None, "10000", 0),
    "original_max_position_embeddings": (16, 8, 64, 16.0, None, 0, "16"),
    "low_freq_factor": (1.0, 1, 2, None, 0, "1"),
    "high_freq_factor": (4.0, 4, 2, 1, None, "4"),
    "attention_factor": (1.0, 0.7, 1.5, None, "1"),
    "beta_fast": (32, 4.0, None),
    "beta_slow": (1, 2.0, None),
    "mscale": (1.0, 0.7),
    "mscale_all_dim": (1.0, 0.7),
    "truncate": (False, True),
    "short_factor": ([1.0] * 4, [2.0] * 4, None),
    "long_factor": ([1.0] * 4, [4.0] * 4),
    "partial_rotary_factor": (1.0, 0.5),
    "finetuned": (True,),
}
_ROPE_NEEDS: dict[str, dict[str, Any]] = {
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "llama3": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
    "longrope": {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "original_max_position_embeddings": 16},
}  # fmt: skip


def rope(random: Random) -> Any:
    """A value of `rope_scaling` or `rope_parameters`: most are whole, some lack a key, have one too many or are nonsense."""
    if random.random() < 0.06:
        return random.choice([None, {}, [], "linear", 4.0, {"full_attention": {"rope_type": "default"}}])
    name = random.choice(_KIND_NAMES[:4] if random.random() < 0.7 else _KIND_NAMES)
    made: dict[str, Any] = dict(_ROPE_NEEDS.get(str(name), {}))
    spelling = random.random()
    if spelling < 0.9:
        made["type" if spelling < 0.4 else "rope_type"] = name
    if 0.75 < spelling < 0.9:  # both spellings, which may differ
        made["type"] = random.choice([name, *_KIND_NAMES])
    if random.random() < 0.5:
        made["rope_theta"] = random.choice(_ROPE_KEYS["rope_theta"][:3])
    for _ in range(random.choice([0, 0, 1, 2])):
        key = random.choice(sorted(_ROPE_KEYS))
        made[key] = random.choice(_ROPE_KEYS[key])
    if random.random() < 0.15 and made:
        made.pop(random.choice(sorted(made)))
    if random.random() < 0.06:
        kinds = random.choice([["full_attention"], ["full_attention", "sliding_attention"]])
        return {kind: dict(made) for kind in kinds}
    return made


def values_of(family: str, name: str, sound: bool = False) -> list[Any]:
    """The values of a field in the tables; `sound`: those that make sense alone."""
    values = FIELDS[family][name]
    end = values.index(...) if ... in values else len(values)
    return [_named(family, value) for value in (values[:end] if sound else values) if value is not ...]


def _named(family: str, value: Any) -> Any:
    """With the family's class name in the place of {}."""
    if isinstance(value, str):
        return value.replace("{}", CLASSES[family])
    return [_named(family, item) for item in value] if isinstance(value, list) else value


def single_changes(family: str) -> list[Change]:
    """Every change of a field that the tables know, alone: removed, set, and against the tensors."""
    changes: list[Change] = [("remove", name) for name in base_config(family)]
    for name in FIELDS[family]:
        values = values_of(family, name)
        changes += [("set", name, value) for value in values]
        if name in base_config(family):
            changes += [("contradict", name, value) for value in values[:3]]
    return changes


def field_changes(random: Random, family: str, sound: bool) -> list[Change]:
    """No change of a field or some: of any fields, or of those that speak of one thing. `sound`: of values that make sense."""
    count = random.choice([0, 1, 1, 2, 3])
    group = [name for name in random.choice(_GROUPS) if name in FIELDS[family]] if random.random() < 0.4 else []
    return [_field_change(random, family, group or list(FIELDS[family]), sound) for _ in range(count)]


def _field_change(random: Random, family: str, names: list[str], sound: bool) -> Change:
    if "rope_theta" in names and random.random() < 0.25:
        return ("set", random.choice(["rope_scaling", "rope_parameters"]), rope(random))
    if random.random() < 0.1:
        return ("remove", random.choice(list(base_config(family))))
    name = random.choice(names)
    kind = "contradict" if not sound and random.random() < 0.15 else "set"
    return (kind, name, random.choice(values_of(family, name, sound) or values_of(family, name)))

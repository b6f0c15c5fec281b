"""The configuration of a GGUF file of the Llama architecture, in Hugging Face's words: llama.cpp's defaults where it is silent,
a refusal by name where it asks for what is not computed."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bigrun.checkpoint.formats import gguf_keys
from bigrun.checkpoint.formats.gguf_header import GgufTensor
from bigrun.errors import CheckpointError

# GGUF's key, less its architecture → Hugging Face's field
FIELDS = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
    "context_length": "max_position_embeddings",
    "vocab_size": "vocab_size",
}
PER_LAYER = ("feed_forward_length", "attention.head_count", "attention.head_count_kv")  # may be arrays
# for which Hugging Face's class has a default, and llama.cpp none
NO_DEFAULT = ("context_length", "attention.layer_norm_rms_epsilon")

ROPE_FREQS = "rope_freqs.weight"
UNREAD_ROPE = ("rope_factors_long.weight", "rope_factors_short.weight")
ATTENTION_LINEARS = ("attn_q", "attn_k", "attn_v", "attn_output")
MLP_LINEARS = ("ffn_gate", "ffn_up", "ffn_down")
MOST_LAYERS = 512  # for which tensors are looked for; the deepest published models have 126
MOST_HEAD_DIM = 4096

Vector = Callable[[str], np.ndarray]  # a small tensor's numbers, by its name


def make_config(
    metadata: Mapping[str, Any], tensors: Mapping[str, GgufTensor], vector: Vector, where: str
) -> dict[str, Any]:
    """The fields of config.json that the Llama family reads; CheckpointError where the file asks for more than that."""
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise CheckpointError(f"{where}: GGUF architecture {architecture!r:.40}; bigrun reads llama")
    if metadata.get("llama.expert_count"):
        raise CheckpointError(f"{where}: llama.expert_count: a mixture of experts in GGUF is not read")
    gguf_keys.check(metadata, where)
    config: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], "torch_dtype": "float16"}
    for key in NO_DEFAULT:
        if "llama.block_count" in metadata and metadata.get(f"llama.{key}") is None:
            raise CheckpointError(f"{where}: llama.{key} is missing; convert the file anew")
    for key, field in FIELDS.items():
        value = metadata.get(f"llama.{key}")
        if key in PER_LAYER:
            value = gguf_keys.per_layer(value, metadata.get("llama.block_count"))
        if value is not None:
            config[field] = value
    _check_heads(metadata, config, where)
    config |= _scaling(metadata, tensors, vector, config, where)
    table = tensors.get("token_embd.weight")
    if table is not None and len(table.shape) == 2:
        config["vocab_size"] = table.shape[1]
    config["tie_word_embeddings"] = "output.weight" not in tensors
    config["attention_bias"] = _any_bias(tensors, ATTENTION_LINEARS, config)
    config["mlp_bias"] = _any_bias(tensors, MLP_LINEARS, config)
    return config


def absent_biases(tensors: Mapping[str, GgufTensor], config: Mapping[str, Any]) -> dict[str, int]:
    """Biases that a file leaves out while other linears of its kind have one, and their entries: those of the weights' rows.

    llama.cpp adds each where it is there, so one that is left out is zeros.
    """
    absent = {}
    for field, linears in (("attention_bias", ATTENTION_LINEARS), ("mlp_bias", MLP_LINEARS)):
        for name in _names(linears, config) if config[field] else ():
            weight = tensors.get(f"{name}.weight")
            if weight is not None and len(weight.shape) == 2 and f"{name}.bias" not in tensors:
                absent[f"{name}.bias"] = weight.shape[1]
    return absent


def _names(linears: tuple[str, ...], config: Mapping[str, Any]) -> list[str]:
    layers = config.get("num_hidden_layers")
    count = min(layers, MOST_LAYERS) if type(layers) is int else 0
    return [f"blk.{i}.{linear}" for i in range(count) for linear in linears]


def _any_bias(tensors: Mapping[str, GgufTensor], linears: tuple[str, ...], config: Mapping[str, Any]) -> bool:
    return any(f"{name}.bias" in tensors for name in _names(linears, config))


def _check_heads(metadata: Mapping[str, Any], config: dict[str, Any], where: str) -> None:
    """Completes `head_dim`; CheckpointError where queries, values and what is rotated are not of that one size."""
    heads, width = config.get("num_attention_heads"), config.get("hidden_size")
    if isinstance(heads, list):  # of the first block, as llama.cpp takes it
        heads = heads[0] if heads else 0
    if type(heads) is not int or type(width) is not int or heads < 1:
        return  # the family says what is wrong with them
    usual = width // heads
    head_dim = config.get("head_dim", usual)
    for key, default in (("attention.value_length", usual), ("rope.dimension_count", head_dim)):
        size = metadata.get(f"llama.{key}", default)
        if size != head_dim:
            raise CheckpointError(
                f"{where}: llama.{key} is {size!r:.20} where a head has {head_dim!r:.20} entries (llama.attention.key_length, "
                f"or else llama.embedding_length over the heads): that is not computed here"
            )
    scale = metadata.get("llama.attention.scale")
    if not gguf_keys.is_default_scale(scale, head_dim):
        raise CheckpointError(f"{where}: llama.attention.scale is {scale!r:.40}, which is not computed here")
    config["head_dim"] = head_dim


def _scaling(
    metadata: Mapping[str, Any], tensors: Mapping[str, GgufTensor], vector: Vector, config: Mapping[str, Any], where: str
) -> dict[str, Any]:  # fmt: skip
    """`rope_scaling`: a type that is not named is linear, a factor of 0 is none, and the divisors of ROPE_FREQS apply whatever
    the type, on top of the factor (llama.cpp: load_hparams, and ggml's rope)."""
    kind = metadata.get("llama.rope.scaling.type", "linear")
    if kind not in ("none", "linear") or (unread := next((name for name in UNREAD_ROPE if name in tensors), None)):
        what = unread if kind in ("none", "linear") else f"llama.rope.scaling.type {kind!r:.40}"
        raise CheckpointError(
            f"{where}: {what}: this rotary scaling is not read from GGUF; bigrun reads none and linear"
        )
    factor = metadata.get("llama.rope.scaling.factor", metadata.get("llama.rope.scale_linear"))  # the old name
    if not factor or kind == "none":
        factor = 1.0
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < math.inf:
        raise CheckpointError(f"{where}: llama.rope.scaling.factor is {factor!r:.40}, not a number above 0")
    if ROPE_FREQS not in tensors:
        return {} if factor == 1.0 else {"rope_scaling": {"type": "linear", "factor": factor}}
    divisors = [divisor * factor for divisor in _divisors(tensors[ROPE_FREQS], vector, config.get("head_dim"), where)]
    context = config.get("max_position_embeddings")
    return {
        "rope_scaling": {
            "rope_type": "longrope", "short_factor": divisors, "long_factor": divisors, "attention_factor": 1.0, "factor": 1.0,
            "original_max_position_embeddings": context,
        }
    }  # fmt: skip


def _divisors(tensor: GgufTensor, vector: Vector, head_dim: Any, where: str) -> list[float]:
    """The numbers that the frequencies are divided by, one for each rotated pair of a head."""
    if type(head_dim) is not int or not 2 <= head_dim <= MOST_HEAD_DIM or tensor.shape != (head_dim // 2,):
        raise CheckpointError(
            f"{where}: tensor {ROPE_FREQS} has shape {list(tensor.shape)}; "
            f"it needs half as many entries as a head, which has {head_dim!r:.20}"
        )
    values = vector(ROPE_FREQS)
    if not np.isfinite(values).all() or not (values > 0).all():
        raise CheckpointError(
            f"{where}: tensor {ROPE_FREQS} has entries that are not finite and above 0; fetch it again"
        )
    return [float(value) for value in values]

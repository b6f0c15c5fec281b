"""Decoders that differ from Llama in a few flags: Mistral, Qwen2 and 3, Phi-3, StableLM, StarCoder2, SmolLM3 and Gemma, and
Gemma 2 and 3, which are planned alone.

What changes no byte is not modelled: Gemma's scaled embedding and capped logits, how positions are scaled.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from bigrun.model.families import llama, shapes
from bigrun.model.families.family import Family, planned
from bigrun.model.families.fields import Fields
from bigrun.model.families.names import LLAMA, LLAMA_BLOCK
from bigrun.model.families.rotary import rotary
from bigrun.model.source import Dialect, Source
from bigrun.model.spec import Block, ModelSpec


def _model(
    fields: Fields, name: str, family: str, block: Block, slides: Callable[[int], bool], window: int = 4096, **settings: Any
) -> ModelSpec:  # fmt: skip
    windows = shapes.windows(fields, shapes.layers(fields), slides, window)
    return shapes.model(fields, name, family, [replace(block, window=window) for window in windows], **settings)


def describe_mistral(fields: Fields, name: str) -> ModelSpec:
    """Llama with a window in every layer (Jiang et al. 2023), which later releases set to null."""
    block = llama.block(fields, usual_kv_heads=8)
    return _model(fields, name, "mistral", block, lambda i: True, context=2**17)


def _qwen_slides(fields: Fields) -> Callable[[int], bool]:
    """Qwen2's rule: with `use_sliding_window`, the layers from `max_window_layers` on (transformers' Qwen2Config)."""
    if not fields.flag("use_sliding_window", False):
        return lambda i: False
    first = fields.integer("max_window_layers", low=0)
    return lambda i: i >= first


def describe_qwen2(fields: Fields, name: str) -> ModelSpec:
    """Llama with biases on q, k and v alone (Yang et al. 2024, section 2.2)."""
    block = llama.block(fields, usual_kv_heads=32, qkv_bias=True)
    return _model(fields, name, "qwen2", block, _qwen_slides(fields), context=2**15)


def qwen2_sources(spec: ModelSpec, part: str, dialect: Dialect) -> dict[str, tuple[Source, ...]]:
    if dialect != "hf":  # where Llama's rows of q and k are reordered, Qwen2's are not
        raise KeyError(f"qwen2 in {dialect}")
    return llama.sources(spec, part, dialect)


def describe_qwen3(fields: Fields, name: str) -> ModelSpec:
    """Norms of q and k in place of their biases (Yang et al. 2025, section 2)."""
    bias = fields.flag("attention_bias", False)
    settings = {"qk_norm": True, "qkv_bias": bias, "out_bias": bias}
    block = llama.block(fields, usual_head_dim=128, usual_kv_heads=32, **settings)
    return _model(fields, name, "qwen3", block, _qwen_slides(fields), context=2**15)


def describe_phi3(fields: Fields, name: str) -> ModelSpec:
    """Phi-3 and Phi-4 (Abdin et al. 2024): Llama's shapes, with q, k, v fused in the file and a window in every layer."""
    fields.choice("hidden_act", options=shapes.SILU, default="silu")
    block = shapes.block(fields, eps=1e-5)
    block = replace(block, rope=rotary(fields, block.head_dim, 1.0))
    return _model(fields, name, "phi3", block, lambda i: True, window=0, context=4096)


def describe_stablelm(fields: Fields, name: str) -> ModelSpec:
    """StableLM (Bellagente et al. 2024, section 3.2): LayerNorm, a quarter of each head turned, a gated MLP."""
    fields.choice("hidden_act", options=shapes.SILU, default="silu")
    fields.refuse("qk_layernorm", (False,), "norms of q and k with a weight for each head are not supported")
    parallel = fields.flag("use_parallel_residual", False)
    block = shapes.block(
        fields, usual_kv_heads=32, eps=1e-5, eps_field="layer_norm_eps", norm="layer", parallel=parallel,
        mlp_norm=not parallel, qkv_bias=fields.flag("use_qkv_bias", False),
    )  # fmt: skip
    block = replace(block, rope=rotary(fields, block.head_dim, 0.25))
    return _model(fields, name, "stablelm", block, lambda i: False, context=4096)


def describe_starcoder2(fields: Fields, name: str) -> ModelSpec:
    """StarCoder2 (Lozhkov et al. 2024, table 5): LayerNorm, biases on all linears, a plain MLP, a window in every layer."""
    bias = fields.flag("use_bias", True)
    activation = fields.choice("hidden_act", options=shapes.ACTIVATIONS, default="gelu_pytorch_tanh")
    block = shapes.block(
        fields, usual_kv_heads=2, eps=1e-5, eps_field="norm_epsilon", norm="layer", gated=False, activation=activation,
        qkv_bias=bias, out_bias=bias, mlp_bias=bias,
    )  # fmt: skip
    block = replace(block, rope=rotary(fields, block.head_dim))
    return _model(fields, name, "starcoder2", block, lambda i: True, window=0, context=4096, tied=True)


def _gemma(fields: Fields, **settings: Any) -> Block:
    bias = fields.flag("attention_bias", False)
    flags = {"usual_kv_heads": 16, "activation": "gelu_tanh", "qkv_bias": bias, "out_bias": bias, **settings}
    return shapes.block(fields, usual_head_dim=256, **flags)


def describe_gemma(fields: Fields, name: str) -> ModelSpec:
    """Wide heads, GeGLU, norms that multiply by 1 + weight, a scaled embedding, a tied head over a large vocabulary (Gemma Team
    2024)."""
    for field in ("hidden_act", "hidden_activation"):  # "gelu" stands for the approximation in Gemma's own files
        fields.choice(field, options={**shapes.ACTIVATIONS, "gelu": "gelu_tanh"}, default="gelu")
        fields.refuse(field, ("gelu", "gelu_pytorch_tanh"), "Gemma's activation is gelu_pytorch_tanh")
    fields.refuse("use_bidirectional_attention", (False,), "attention to what follows is not supported")
    block = _gemma(fields)
    block = replace(block, rope=rotary(fields, block.head_dim))
    scale = math.sqrt(block.hidden)
    return _model(fields, name, "gemma", block, lambda i: False, tied=True, context=8192, embed_scale=scale)


def describe_smollm3(fields: Fields, name: str) -> ModelSpec:
    """Llama without rotary embedding in every fourth layer (Yang et al. 2025, RoPE to NoPE and back again)."""
    bias, count = fields.flag("attention_bias", False), shapes.layers(fields)
    settings = {"qkv_bias": bias, "out_bias": bias, "mlp_bias": fields.flag("mlp_bias", False)}
    block = llama.block(fields, usual_kv_heads=4, usual_theta=2e6, **settings)
    every = fields.integer("no_rope_layer_interval", default=4)
    turned = fields.values.get("no_rope_layers")
    if turned is None:
        turned = [int((i + 1) % every != 0) for i in range(count)]
    if not isinstance(turned, list) or len(turned) != count or any(one not in (0, 1) for one in turned):
        raise fields.bad("no_rope_layers", f"is no list of {count} numbers 0 or 1")
    slides = fields.flag("use_sliding_window", False)
    windows = shapes.windows(fields, count, lambda i: slides and not turned[i], 0)
    bare = replace(block, positions="none", rope=None)
    blocks = [replace(block if one else bare, window=window) for one, window in zip(turned, windows, strict=True)]
    return shapes.model(fields, name, "smollm3", blocks, tied=True, context=2**15)


def describe_gemma2(fields: Fields, name: str) -> ModelSpec:
    """Norms on both sides of each half, and a window in every other layer, the first included (Gemma Team 2024)."""
    block = _gemma(fields, usual_kv_heads=4, after_norms=True)
    return _model(fields, name, "gemma2", block, lambda i: i % 2 == 0, tied=True, context=8192)


def describe_gemma3(fields: Fields, name: str) -> ModelSpec:
    """Gemma 2 with norms of q and k, and five layers with a window to one without (Gemma Team 2025). Text alone."""
    block = _gemma(fields, usual_kv_heads=4, after_norms=True, qk_norm=True)
    pattern = fields.integer("sliding_window_pattern", "_sliding_window_pattern", default=6)
    return _model(fields, name, "gemma3_text", block, lambda i: (i + 1) % pattern > 0, tied=True, context=2**17)


GEMMA = replace(LLAMA, norm_plus=1.0)
PHI3 = replace(LLAMA, block={**LLAMA_BLOCK, "qkv": ("self_attn.qkv_proj",), "up": ("mlp.gate_up_proj",)})
STARCODER2 = replace(LLAMA, block={**LLAMA_BLOCK, "up": ("mlp.c_fc",), "down": ("mlp.c_proj",)})


def _runs(name: str, architecture: str, describe: Any, sources: Any) -> Family:
    return Family(name, (architecture,), describe, sources, llama.PREFIXES, llama.MODULES)


FAMILIES = (
    _runs("mistral", "MistralForCausalLM", describe_mistral, llama.sources),
    _runs("qwen2", "Qwen2ForCausalLM", describe_qwen2, qwen2_sources),
    _runs("qwen3", "Qwen3ForCausalLM", describe_qwen3, LLAMA.sources),
    _runs("phi3", "Phi3ForCausalLM", describe_phi3, PHI3.sources),
    _runs("stablelm", "StableLmForCausalLM", describe_stablelm, LLAMA.sources),
    _runs("starcoder2", "Starcoder2ForCausalLM", describe_starcoder2, STARCODER2.sources),
    _runs("smollm3", "SmolLM3ForCausalLM", describe_smollm3, LLAMA.sources),
    _runs("gemma", "GemmaForCausalLM", describe_gemma, GEMMA.sources),
    planned("gemma2", "Gemma2ForCausalLM", describe_gemma2, llama.MODULES),
    planned("gemma3_text", "Gemma3ForCausalLM", describe_gemma3, llama.MODULES),
)

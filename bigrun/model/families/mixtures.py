"""Mixtures of experts, planned alone: Mixtral, Qwen's, gpt-oss, GLM-4.5, DeepSeek's and what is built as they are.

Layers that predict further tokens for drafting (`num_nextn_predict_layers` of DeepSeek-V3 and GLM-4.5) are left out: the
model's own answers need none of them, and transformers loads none. Weights published in 8 or 4 bits (`quantization_config`)
are counted once each, without their scales, and planned as the 16-bit values that they stand for.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from bigrun.model.families import llama, shapes
from bigrun.model.families.family import Modules, planned
from bigrun.model.families.fields import Fields
from bigrun.model.spec import Block, Experts, Latent, ModelSpec


def _modules(*inside: str) -> Modules:
    """Names within a block as transformers 5 has them; `inside` is what the MLP holds beside its experts."""
    rest = ("self_attn", "input_layernorm", "post_attention_layernorm", *(f"mlp.{name}" for name in inside))
    return {**llama.MODULES, "experts": ("mlp.experts",), "inside": rest}


def _experts(fields: Fields, *count: str, size: str = "moe_intermediate_size", **settings: Any) -> Experts:
    number = fields.integer(*count, high=2**16)
    return Experts(number, fields.integer("num_experts_per_tok", high=number), fields.integer(size), **settings)


def _blocks(fields: Fields, dense: Block, experts: Experts, sparse: Callable[[int], bool]) -> list[Block]:
    """`experts` in the layers that `sparse` picks; there the block's MLP is the shared one, if any."""
    mixed = replace(dense, experts=experts, intermediate=experts.shared or experts.intermediate)
    return [mixed if sparse(i) else dense for i in range(shapes.layers(fields))]


def describe_mixtral(fields: Fields, name: str) -> ModelSpec:
    """Mistral with experts in every layer (Jiang et al. 2024)."""
    experts = _experts(fields, "num_local_experts", size="intermediate_size")
    blocks = _blocks(fields, shapes.block(fields, usual_kv_heads=8, eps=1e-5), experts, lambda i: True)
    windows = shapes.windows(fields, len(blocks), lambda i: True)
    blocks = [replace(block, window=window) for block, window in zip(blocks, windows, strict=True)]
    return shapes.model(fields, name, "mixtral", blocks, context=2**17)


def _qwen_sparse(fields: Fields) -> Callable[[int], bool]:
    """Every `decoder_sparse_step`th layer but those of `mlp_only_layers` (transformers)."""
    fields.refuse("use_sliding_window", (False,), "windows in this family are not supported")
    step, dense = fields.integer("decoder_sparse_step", default=1), fields.values.get("mlp_only_layers") or []
    if not isinstance(dense, list) or not all(isinstance(i, int) for i in dense):
        raise fields.bad("mlp_only_layers", f"is {dense!r:.40}, not a list of whole numbers")
    return lambda i: i not in dense and (i + 1) % step == 0


def describe_qwen2_moe(fields: Fields, name: str) -> ModelSpec:
    """Qwen2 with experts and a shared one that a gate weighs."""
    shared = fields.integer("shared_expert_intermediate_size")
    experts = _experts(fields, "num_experts", "num_local_experts", shared=shared, shared_gate=True)
    block = shapes.block(fields, usual_kv_heads=16, qkv_bias=fields.flag("qkv_bias", True))
    blocks = _blocks(fields, block, experts, _qwen_sparse(fields))
    return shapes.model(fields, name, "qwen2_moe", blocks, context=2**15)


def describe_qwen3_moe(fields: Fields, name: str) -> ModelSpec:
    """Qwen3 with experts, none of them shared (Yang et al. 2025, section 2)."""
    bias = fields.flag("attention_bias", False)
    block = shapes.block(fields, usual_kv_heads=4, qk_norm=True, qkv_bias=bias, out_bias=bias)
    experts = _experts(fields, "num_experts", "num_local_experts")
    blocks = _blocks(fields, block, experts, _qwen_sparse(fields))
    return shapes.model(fields, name, "qwen3_moe", blocks, context=2**15)


def describe_gpt_oss(fields: Fields, name: str) -> ModelSpec:
    """A window in every other layer, the first included, a sink for each head, biases on all but the head (OpenAI 2025)."""
    bias = fields.flag("attention_bias", True)
    usual: dict[str, Any] = {"usual_head_dim": 64, "usual_kv_heads": 8, "eps": 1e-5}
    block = shapes.block(fields, **usual, sinks=True, qkv_bias=bias, out_bias=bias)
    experts = _experts(
        fields, "num_local_experts", "num_experts", size="intermediate_size", router_bias=True, bias=True
    )
    blocks = _blocks(fields, block, experts, lambda i: True)
    windows = shapes.windows(fields, len(blocks), lambda i: i % 2 == 0, 128)
    blocks = [replace(block, window=window) for block, window in zip(blocks, windows, strict=True)]
    return shapes.model(fields, name, "gpt_oss", blocks, context=2**17)


def _shared(fields: Fields, usual: int) -> int:
    """The width of the shared experts together; `usual` is their number where the configuration is silent."""
    default = fields.unsaid("n_shared_experts", usual, 0)
    number = fields.integer("n_shared_experts", default=default, low=0, high=1024)
    return number * fields.integer("moe_intermediate_size")


def _after_dense(fields: Fields, first: int) -> Callable[[int], bool]:
    """DeepSeek's rule: `first_k_dense_replace` dense layers, then experts in every `moe_layer_freq`th (its published code)."""
    first = fields.integer("first_k_dense_replace", default=first, low=0)
    step = fields.integer("moe_layer_freq", default=1)
    return lambda i: i >= first and i % step == 0


def describe_glm4_moe(fields: Fields, name: str) -> ModelSpec:
    """GLM-4.5 and 4.6 (Zeng et al. 2025): DeepSeek-V3's mixture around grouped-query attention with biases on q, k, v."""
    block = shapes.block(
        fields,
        rotated=0.5,
        usual_kv_heads=8,
        eps=1e-5,
        qkv_bias=fields.flag("attention_bias", False),
        qk_norm=fields.flag("use_qk_norm", False),
    )
    experts = _experts(fields, "n_routed_experts", shared=_shared(fields, 1), router_bias=True)
    blocks = _blocks(fields, block, experts, _after_dense(fields, 1))
    return shapes.model(fields, name, "glm4_moe", blocks, context=2**17)


def _deepseek(
    fields: Fields, name: str, family: str, first: int, shared: int, context: int, router_bias: bool
) -> ModelSpec:
    """Latent attention, dense layers first, then experts beside shared ones (DeepSeek-AI 2024)."""
    fields.refuse("attention_bias", (False,), "biases in latent attention are not supported")
    latent = Latent(
        q_rank=fields.integer("q_lora_rank", default=fields.unsaid("q_lora_rank", 1536, 0)),
        kv_rank=fields.integer("kv_lora_rank"),
        nope=fields.integer("qk_nope_head_dim"),
        rope=fields.integer("qk_rope_head_dim"),
        value=fields.integer("v_head_dim"),
    )
    width = latent.nope + latent.rope
    rope = shapes.planned_rope(fields, latent.rope)
    heads = fields.integer("num_attention_heads", high=4096)
    block = shapes.block(fields, kv_heads=heads, head_dim=width, rope=rope, latent=latent)
    experts = _experts(fields, "n_routed_experts", shared=_shared(fields, shared), router_bias=router_bias)
    blocks = _blocks(fields, block, experts, _after_dense(fields, first))
    return shapes.model(fields, name, family, blocks, context=context)


def describe_deepseek_v2(fields: Fields, name: str) -> ModelSpec:
    """DeepSeek-V2 and V2-Lite, whose queries are projected directly (arXiv 2405.04434, appendix B)."""
    return _deepseek(fields, name, "deepseek_v2", 0, shared=2, context=2048, router_bias=False)


def describe_deepseek_v3(fields: Fields, name: str) -> ModelSpec:
    """DeepSeek-V3, R1 and Kimi K2: the router's choice takes a bias an expert (`noaux_tc`; arXiv 2412.19437, 2.1.2)."""
    fields.refuse("topk_method", ("noaux_tc",), "bigrun knows noaux_tc")
    return _deepseek(fields, name, "deepseek_v3", 3, shared=1, context=4096, router_bias=True)


FAMILIES = (
    planned("mixtral", "MixtralForCausalLM", describe_mixtral, _modules("gate")),
    planned(
        "qwen2_moe", "Qwen2MoeForCausalLM", describe_qwen2_moe, _modules("gate", "shared_expert", "shared_expert_gate")
    ),
    planned("qwen3_moe", "Qwen3MoeForCausalLM", describe_qwen3_moe, _modules("gate")),
    planned("gpt_oss", "GptOssForCausalLM", describe_gpt_oss, _modules("router")),
    planned("glm4_moe", "Glm4MoeForCausalLM", describe_glm4_moe, _modules("gate", "shared_experts")),
    planned("deepseek_v2", "DeepseekV2ForCausalLM", describe_deepseek_v2, _modules("gate", "shared_experts")),
    planned("deepseek_v3", "DeepseekV3ForCausalLM", describe_deepseek_v3, _modules("gate", "shared_experts")),
)

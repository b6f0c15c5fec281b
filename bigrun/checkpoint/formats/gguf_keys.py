"""What becomes of each `llama.*` key of a GGUF file: read, without effect here, or refused by name unless it is switched off.

The names are llama.cpp's (src/llama-arch.cpp: LLM_KV_NAMES); what they mean for the architecture llama is what its
`load_hparams` and graph do with them. A key that is in no table is refused: it may well change what is computed.
"""

import math
from collections.abc import Mapping
from typing import Any

from bigrun.errors import CheckpointError

PREFIX = "llama."

READ = frozenset((
    "vocab_size", "context_length", "embedding_length", "block_count", "feed_forward_length", "expert_count",
    "attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length",
    "attention.layer_norm_rms_epsilon", "attention.scale", "rope.dimension_count", "rope.freq_base", "rope.scale_linear",
    "rope.scaling.type", "rope.scaling.factor",
))  # fmt: skip

# Keys whose every value is without effect on what a decoder of this architecture computes.
HARMLESS: Mapping[str, str] = {
    "tensor_data_layout": "says in words that rotary pairs lie side by side, as they do in every file",
    "pooling_type": "is of embeddings of whole texts",
    "attention.layer_norm_epsilon": "is of LayerNorm, which Llama does not have",
    "rope.scaling.original_context_length": "is of yarn, which is refused by its type",
    "rope.scaling.finetuned": "is of training",
    "rope.scaling.yarn_beta_fast": "is of yarn",
    "rope.scaling.yarn_beta_slow": "is of yarn",
}

# Keys that change what is computed unless they have one of these values. Of all others in OFF it is "off": 0, false or empty.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.output_scale": (0, 1),
    "attention.temperature_scale": (0, 1),
    "attention.value_scale": (0, 1),
    "embedding_scale": (0, 1),
    "expert_group_scale": (0, 1),
    "expert_weights_scale": (0, 1),
    "logit_scale": (0, 1),
    "residual_scale": (0, 1),
    "rope.scaling.alpha": (0, 1),
    "rope.scaling.attn_factor": (1,),
    "rope.scaling.yarn_attn_factor": (1,),
}

# Keys of other architectures' maths, which conversions write as 0 where they do not apply.
OFF = frozenset((
    "embedding_length_out", "embedding_length_per_layer_input", "features_length", "leading_dense_block_count",
    "expert_feed_forward_length", "expert_shared_feed_forward_length", "expert_chunk_feed_forward_length",
    "use_parallel_residual", "expert_used_count", "expert_shared_count", "expert_group_count", "expert_group_used_count",
    "expert_weights_norm", "expert_gating_func", "experts_per_group", "moe_every_n_layers", "moe_latent_size",
    "nextn_predict_layers", "n_deepstack_layers", "decoder_start_token_id", "decoder_block_count", "attn_logit_softcapping",
    "router_logit_softcapping", "final_logit_softcapping", "swin_norm", "rescale_every_n_layers", "time_mix_extra_dim",
    "time_decay_extra_dim", "token_shift_count", "interleave_moe_layer_step", "full_attention_interval",
    "activation_sparsity_scale", "altup.active_idx", "altup.num_inputs", "swiglu_clamp_exp", "swiglu_clamp_shexp",
    "attention.max_alibi_bias", "attention.clamp_kqv", "attention.group_norm_epsilon", "attention.group_norm_groups",
    "attention.q_lora_rank", "attention.kv_lora_rank", "attention.decay_lora_rank", "attention.iclr_lora_rank",
    "attention.value_residual_mix_lora_rank", "attention.gate_lora_rank", "attention.relative_buckets_count",
    "attention.sliding_window", "attention.sliding_window_pattern", "attention.temperature_length",
    "attention.key_length_mla", "attention.value_length_mla", "attention.key_length_swa", "attention.value_length_swa",
    "attention.shared_kv_layers", "attention.indexer.head_count", "attention.indexer.key_length", "attention.indexer.top_k",
    "rope.dimension_count_swa", "rope.dimension_sections", "rope.freq_base_swa", "rope.scaling.yarn_log_multiplier",
    "rope.scaling.yarn_ext_factor",
))  # fmt: skip


def check(metadata: Mapping[str, Any], where: str) -> None:
    """CheckpointError for the first key that asks for what is not computed here."""
    kind = metadata.get("general.type")
    if kind not in (None, "model"):
        raise CheckpointError(f"{where}: general.type is {kind!r:.40}: the file holds no whole model")
    for key, value in metadata.items():
        name = key.removeprefix(PREFIX)
        if name == key or name in READ or name in HARMLESS:
            continue
        if name in NEUTRAL or name in OFF:
            if not _without_effect(value, NEUTRAL.get(name, (0,))):
                raise CheckpointError(f"{where}: {key[:100]} is {value!r:.40}, which is not computed here")
        else:
            raise CheckpointError(
                f"{where}: {key[:100]} (it is {value!r:.40}) is a key that bigrun does not know: it may change what is computed"
            )


def per_layer(value: Any, layers: Any) -> Any:
    """A number, or an array of one for each block, which is a number too where all are the same."""
    if isinstance(value, list) and value and len(value) == layers and all(entry == value[0] for entry in value):
        return value[0]
    return value


def is_default_scale(scale: Any, head_dim: Any) -> bool:
    """Whether an attention scale is none, or that of softmax(q·k / √head_dim) in the file's float32."""
    if scale in (None, 0):
        return True
    if not isinstance(scale, float | int) or not isinstance(head_dim, int) or head_dim < 1:
        return False
    return math.isclose(scale, head_dim**-0.5, rel_tol=1e-6)


def _without_effect(value: Any, neutral: tuple[Any, ...]) -> bool:
    if isinstance(value, list):
        return all(_without_effect(entry, neutral) for entry in value)
    return value in ("", None) or (isinstance(value, int | float) and value in neutral)

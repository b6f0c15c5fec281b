"""The catalog's mixtures of experts, one row each: name, repo, shape, parameters as published, and where that is."""

from typing import Any

from bigrun.model.catalog.entry import CARD, CONFIG, HUB, INDEX, Entry, config, row

EIGHT = {"num_local_experts": 8, "num_experts_per_tok": 2}
DRAFT = CONFIG + ", whose page also counts the layer that drafts a second token, with its own table and head"
SCALES = DRAFT + ", and the scales of 8-bit blocks"
OPENAI = "OpenAI 2025 (arXiv 2508.10925), table 1; bytes as the index of {repo} on the Hugging Face hub states them"


def _qwen3(
    hidden: int, inner: int, each: int, layers: int, heads: int, kv: int, count: int, context: int
) -> dict[str, object]:
    experts = {"num_experts": count, "num_experts_per_tok": 8, "moe_intermediate_size": each}
    return config("Qwen3Moe", 151936, hidden, inner, layers, heads, kv, context, head_dim=128, **experts)


def _deepseek(
    version: int, vocab: int, hidden: int, inner: int, layers: int, heads: int, context: int, queries: int | None,
    experts: tuple[int, int, int, int, int], **more: Any,
) -> dict[str, Any]:  # fmt: skip
    """`experts`: how many, active, shared, the size of one, and the dense layers before them."""
    count, active, shared, each, dense = experts
    fields = {"q_lora_rank": queries, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64}
    fields |= {"v_head_dim": 128, "n_routed_experts": count, "num_experts_per_tok": active, "n_shared_experts": shared}
    fields |= {"moe_intermediate_size": each, "first_k_dense_replace": dense, "moe_layer_freq": 1, **more}
    return config(f"DeepseekV{version}", vocab, hidden, inner, layers, heads, heads, context, **fields)


def _gpt_oss(layers: int, experts: int) -> dict[str, Any]:
    settings = config("GptOss", 201088, 2880, 2880, layers, 64, 8, 131072, head_dim=64, num_local_experts=experts)
    settings |= {"num_experts_per_tok": 4, "sliding_window": 128, "quantization_config": {"quant_method": "mxfp4"}}
    del settings["torch_dtype"]  # which the published file leaves out
    return settings | {"layer_types": ["sliding_attention", "full_attention"] * (layers // 2)}


def _glm(hidden: int, inner: int, each: int, layers: int, count: int, dense: int, norm: bool) -> dict[str, Any]:
    experts = {"n_routed_experts": count, "num_experts_per_tok": 8, "n_shared_experts": 1}
    experts |= {"moe_intermediate_size": each, "first_k_dense_replace": dense}
    more = {"use_qk_norm": norm, "attention_bias": True, "head_dim": 128, "partial_rotary_factor": 0.5}
    return config("Glm4Moe", 151552, hidden, inner, layers, 96, 8, 131072, **experts, **more)


FP8 = {"topk_method": "noaux_tc", "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
V3 = _deepseek(3, 129280, 7168, 18432, 61, 128, 163840, 1536, (256, 8, 1, 2048, 3), **FP8)
# 3,918,786,560 parameters of 16 bits, 680,571,043,840 of 8 and 41,555,600 of 32, as the hub counts them.
V3_BYTES = 688_574_839_360

# fmt: off
ENTRIES: tuple[Entry, ...] = (
    row("mixtral-8x7b", "mistralai/Mixtral-8x7B-v0.1", config("Mixtral", 32000, 4096, 14336, 32, 32, 8, 32768, **EIGHT),
        46_702_792_704, INDEX, tuned="mistralai/Mixtral-8x7B-Instruct-v0.1"),
    row("mixtral-8x22b", "mistralai/Mixtral-8x22B-v0.1",
        config("Mixtral", 32000, 6144, 16384, 56, 48, 8, 65536, **EIGHT), 140_620_634_112, INDEX),

    row("qwen1.5-moe-a2.7b", "Qwen/Qwen1.5-MoE-A2.7B",
        config("Qwen2Moe", 151936, 2048, 5632, 24, 16, 16, 8192, num_experts=60, num_experts_per_tok=4,
               moe_intermediate_size=1408, shared_expert_intermediate_size=5632), 14_315_784_192, INDEX),
    row("qwen3-30b-a3b", "Qwen/Qwen3-30B-A3B", _qwen3(2048, 6144, 768, 48, 32, 4, 128, 40960), 30_532_122_624, INDEX),
    row("qwen3-235b-a22b", "Qwen/Qwen3-235B-A22B", _qwen3(4096, 12288, 1536, 94, 64, 4, 128, 40960),
        235_093_634_560, INDEX),
    row("qwen3-coder-480b-a35b", "Qwen/Qwen3-Coder-480B-A35B-Instruct",
        _qwen3(6144, 8192, 2560, 62, 96, 8, 160, 262144), 480_154_875_392, HUB),

    row("deepseek-v2-lite", "deepseek-ai/DeepSeek-V2-Lite",
        _deepseek(2, 102400, 2048, 10944, 27, 16, 163840, None, (64, 6, 2, 1408, 1)), 15_706_484_224, HUB),
    row("deepseek-v2", "deepseek-ai/DeepSeek-V2",
        _deepseek(2, 102400, 5120, 12288, 60, 128, 163840, 1536, (160, 6, 2, 1536, 1)), 235_741_434_880, HUB),
    row("deepseek-v3", "deepseek-ai/DeepSeek-V3", V3, 684_531_386_000, SCALES, beside=13_504_966_800,
        checkpoint_bytes=V3_BYTES),
    row("deepseek-r1", "deepseek-ai/DeepSeek-R1", V3, "671B", CARD, checkpoint_bytes=V3_BYTES),
    # The bytes are those that the headers of its safetensors files sum to. The card's count has one figure.
    row("kimi-k2", "moonshotai/Kimi-K2-Instruct",
        _deepseek(3, 163840, 7168, 18432, 61, 64, 131072, 1536, (384, 8, 1, 2048, 1), **FP8), "1T", CARD,
        checkpoint_bytes=1_029_173_256_720),

    row("gpt-oss-20b", "openai/gpt-oss-20b", _gpt_oss(24, 32), "20.91B", OPENAI, checkpoint_bytes=13_761_264_768),
    row("gpt-oss-120b", "openai/gpt-oss-120b", _gpt_oss(36, 128), "116.83B", OPENAI, checkpoint_bytes=65_248_815_744),

    row("glm-4.5", "zai-org/GLM-4.5", _glm(5120, 12288, 1536, 92, 160, 3, True), 358_337_791_296, DRAFT,
        beside=5_539_962_272),
    row("glm-4.5-air", "zai-org/GLM-4.5-Air", _glm(4096, 10944, 1408, 46, 128, 1, False), 110_468_824_832, DRAFT,
        beside=3_616_573_568),
)
# fmt: on

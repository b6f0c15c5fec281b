"""Decoders whose attention and MLP read the block's input side by side: GPT-NeoX, GPT-J, Falcon and Phi, and Cohere, which is
planned alone."""

from dataclasses import replace
from typing import Any

from bigrun.model.families import llama, shapes
from bigrun.model.families.family import Family, Modules, planned
from bigrun.model.families.fields import MOST_LAYERS, Fields
from bigrun.model.families.names import AS_THEY_ARE, LLAMA_ENDS, SEPARATE, Names, RowOrder, by_groups, by_heads
from bigrun.model.families.rotary import rotary
from bigrun.model.source import Dialect, Source
from bigrun.model.spec import Block, ModelSpec, Rope

NEOX_MODULES: Modules = {
    "embed": ("gpt_neox.embed_in",),
    "block": ("gpt_neox.layers",),
    "norm": ("gpt_neox.final_layer_norm", "gpt_neox.rotary_emb"),
    "head": ("lm_head",),  # `embed_out` before transformers 5, and in the files
}
FALCON_MODULES: Modules = {
    "embed": ("transformer.word_embeddings",),
    "block": ("transformer.h",),
    "norm": ("transformer.ln_f", "transformer.rotary_emb"),
    "head": ("lm_head",),
}
PHI_MODULES: Modules = {**llama.MODULES, "norm": ("model.final_layernorm", "model.rotary_emb")}


def describe_neox(fields: Fields, name: str) -> ModelSpec:
    """GPT-NeoX and Pythia: two norms, a quarter of each head rotated, biases everywhere (Black et al. 2022, section 2)."""
    bias = fields.flag("attention_bias", True)
    block = shapes.block(
        fields,
        rotated=0.25,
        eps=1e-5,
        eps_field="layer_norm_eps",
        kv_heads=fields.integer("num_attention_heads", high=4096),
        norm="layer",
        gated=False,
        activation=fields.choice("hidden_act", options=shapes.ACTIVATIONS, default="gelu"),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=True,
        parallel=fields.flag("use_parallel_residual", True),
    )
    block = replace(block, rope=rotary(fields, block.head_dim, 0.25, "rotary_emb_base", "rotary_pct"))
    return shapes.model(fields, name, "gpt_neox", (block,) * shapes.layers(fields))


def describe_falcon(fields: Fields, name: str) -> ModelSpec:
    """Falcon (Almazrouei et al. 2023): of the new architecture a norm for each half and some key heads, of the old one norm
    for both and a single key head. Its table is tied (transformers), though the 7B's and 180B's files hold it twice."""
    new, parallel = fields.flag("new_decoder_architecture", False), fields.flag("parallel_attn", True)
    heads = fields.integer("num_attention_heads", high=4096)
    if new:
        kv_heads = fields.integer("num_kv_heads", default=heads, high=4096)
    else:
        kv_heads = 1 if fields.flag("multi_query", True) else heads
    norms = fields.integer("num_ln_in_parallel_attn", default=2 if new else 1, high=2)
    bias, alibi = fields.flag("bias", False), fields.flag("alibi", False)
    block = shapes.block(
        fields,
        eps=1e-5,
        eps_field="layer_norm_epsilon",
        kv_heads=kv_heads,
        intermediate=fields.integer("ffn_hidden_size", default=4 * fields.integer("hidden_size"), high=2**26),
        norm="layer",
        gated=False,
        activation=fields.choice("activation", options=shapes.ACTIVATIONS, default="gelu"),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=bias,
        parallel=parallel,
        mlp_norm=norms == 2 or not parallel,
    )
    if alibi:
        block = replace(block, positions="alibi", alibi_bfloat16=True, rope=None)
    else:
        block = replace(block, rope=rotary(fields, block.head_dim))
    return shapes.model(fields, name, "falcon", (block,) * shapes.layers(fields), tied=True)


def describe_phi(fields: Fields, name: str) -> ModelSpec:
    """Phi-1 to Phi-2: one norm for both halves, biases on all linears and the head, half of each head rotated."""
    fields.refuse("qk_layernorm", (False,), "norms of q and k with biases are not supported")
    block = shapes.block(
        fields,
        rotated=0.5,
        eps=1e-5,
        eps_field="layer_norm_eps",
        norm="layer",
        gated=False,
        activation=fields.choice("hidden_act", options=shapes.ACTIVATIONS, default="gelu_new"),
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        parallel=True,
        mlp_norm=False,
    )
    block = replace(block, rope=rotary(fields, block.head_dim, 0.5))
    return shapes.model(fields, name, "phi", (block,) * shapes.layers(fields), head_bias=True)


def describe_gptj(fields: Fields, name: str) -> ModelSpec:
    """GPT-J (Wang and Komatsuzaki 2021): one norm for both halves, the first entries of each head turned in pairs side by side,
    biases on the MLP and the head alone."""
    hidden, heads = fields.integer("n_embd", "hidden_size"), fields.integer("n_head", "num_attention_heads", high=4096)
    if hidden % heads:
        raise fields.bad("n_head", f"is {heads}, which does not divide the hidden size {hidden}")
    size = hidden // heads
    dims = fields.integer("rotary_dim", high=size)
    if dims % 2:
        raise fields.bad("rotary_dim", f"is {dims}; rotary embedding needs an even number")
    block = Block(
        hidden=hidden,
        heads=heads,
        kv_heads=heads,
        head_dim=size,
        intermediate=fields.integer("n_inner", default=4 * hidden, high=2**26),
        norm="layer",
        norm_eps=fields.number("layer_norm_epsilon", default=1e-5, high=1.0),
        positions="rope",
        rope=Rope(dims),
        gated=False,
        activation=fields.choice("activation_function", options=shapes.ACTIVATIONS, default="gelu_new"),
        mlp_bias=True,
        mlp_norm=False,
        parallel=True,
    )
    return ModelSpec(
        name=name,
        family="gptj",
        vocab=fields.integer("vocab_size"),
        hidden=hidden,
        blocks=(block,) * fields.integer("n_layer", "num_hidden_layers", high=MOST_LAYERS),
        context_limit=fields.integer("n_positions", "max_position_embeddings", default=2048, high=2**28),
        tied=fields.flag("tie_word_embeddings", False),
        checkpoint_dtype=fields.dtype(),
        head_bias=True,
    )


def _cohere(fields: Fields, name: str, family: str, pattern: int) -> ModelSpec:
    """One norm for both halves: a LayerNorm that has a weight and no bias, so that it counts as an RMSNorm here."""
    bias = fields.flag("attention_bias", False)
    eps = {"eps": 1e-5, "eps_field": "layer_norm_eps"}
    block = shapes.block(fields, **eps, parallel=True, mlp_norm=False, qkv_bias=bias, out_bias=bias)  # type: ignore[arg-type]
    windows = shapes.windows(fields, shapes.layers(fields), lambda i: (i + 1) % pattern > 0, 4096)
    blocks = [replace(block, window=window) for window in windows]
    return shapes.model(fields, name, family, blocks, tied=True, context=8192)


def describe_cohere(fields: Fields, name: str) -> ModelSpec:
    """Command R."""
    fields.refuse("use_qk_norm", (False,), "norms of q and k with a weight for each head are not supported")
    return _cohere(fields, name, "cohere", 1)


def describe_cohere2(fields: Fields, name: str) -> ModelSpec:
    """Command R7B and Command A: three layers with a window to one without."""
    return _cohere(fields, name, "cohere2", fields.integer("sliding_window_pattern", default=4))


def _falcon_order(block: Block) -> RowOrder:
    """Of a single key head its rows are as they are here; the models with positions in the attention fuse head by head."""
    return (
        AS_THEY_ARE if block.kv_heads == 1 else by_heads(block) if block.kv_heads == block.heads else by_groups(block)
    )


NEOX = Names(
    "gpt_neox.layers.{}.",
    {
        "attention_norm": ("input_layernorm",), "mlp_norm": ("post_attention_layernorm",),
        "qkv": ("attention.query_key_value",), "out": ("attention.dense",), "up": ("mlp.dense_h_to_4h",),
        "down": ("mlp.dense_4h_to_h",),
    },
    {("embed", ""): "gpt_neox.embed_in", ("norm", "norm"): "gpt_neox.final_layer_norm", ("head", ""): "embed_out"},
    by_heads,
)  # fmt: skip
FALCON_ENDS = {
    ("embed", ""): "transformer.word_embeddings",
    ("norm", "norm"): "transformer.ln_f",
    ("head", ""): "lm_head",
}
FALCON_BLOCK = {
    "attention_norm": ("input_layernorm",), "mlp_norm": ("post_attention_layernorm",),
    "qkv": ("self_attention.query_key_value",), "out": ("self_attention.dense",), "up": ("mlp.dense_h_to_4h",),
    "down": ("mlp.dense_4h_to_h",),
}  # fmt: skip
TWO_NORMS = {"attention_norm": ("ln_attn",), "mlp_norm": ("ln_mlp",)}
PHI = Names(
    "model.layers.{}.",
    {
        "attention_norm": ("input_layernorm",), "qkv": SEPARATE, "out": ("self_attn.dense",), "up": ("mlp.fc1",),
        "down": ("mlp.fc2",),
    },
    {**LLAMA_ENDS, ("norm", "norm"): "model.final_layernorm"},
)  # fmt: skip


GPTJ_MODULES: Modules = {
    "embed": ("transformer.wte",), "block": ("transformer.h",), "norm": ("transformer.ln_f",), "head": ("lm_head",),
}  # fmt: skip
GPTJ = Names(
    "transformer.h.{}.",
    {
        "attention_norm": ("ln_1",), "qkv": ("attn.q_proj", "attn.k_proj", "attn.v_proj"), "out": ("attn.out_proj",),
        "up": ("mlp.fc_in",), "down": ("mlp.fc_out",),
    },
    {("embed", ""): "transformer.wte", ("norm", "norm"): "transformer.ln_f", ("head", ""): "lm_head"},
    pairs=True,
)  # fmt: skip


def falcon_sources(spec: ModelSpec, part: str, dialect: Dialect) -> dict[str, tuple[Source, ...]]:
    """Norms side by side have names of their own."""
    first = spec.blocks[0]
    block = {**FALCON_BLOCK, **(TWO_NORMS if first.parallel and first.mlp_norm else {})}
    return Names("transformer.h.{}.", block, FALCON_ENDS, _falcon_order).sources(spec, part, dialect)


def _runs(name: str, architecture: str, describe: Any, sources: Any, prefix: str, modules: Modules) -> Family:
    return Family(name, (architecture,), describe, sources, (prefix, ""), modules)


FAMILIES = (
    _runs("gpt_neox", "GPTNeoXForCausalLM", describe_neox, NEOX.sources, "gpt_neox.", NEOX_MODULES),
    _runs("falcon", "FalconForCausalLM", describe_falcon, falcon_sources, "transformer.", FALCON_MODULES),
    _runs("gptj", "GPTJForCausalLM", describe_gptj, GPTJ.sources, "transformer.", GPTJ_MODULES),
    _runs("phi", "PhiForCausalLM", describe_phi, PHI.sources, "model.", PHI_MODULES),
    planned("cohere", "CohereForCausalLM", describe_cohere, llama.MODULES),
    planned("cohere2", "Cohere2ForCausalLM", describe_cohere2, llama.MODULES),
)

"""BLOOM: ALiBi, LayerNorm, fused and interleaved QKV, a norm after the embedding, tied head (Le Scao et al. 2022)."""

from bigrun.model.families.fields import MOST_LAYERS, Fields
from bigrun.model.source import Dialect, Source
from bigrun.model.spec import Block, ModelSpec

NAME = "bloom"
ARCHITECTURES = ("BloomForCausalLM",)
PREFIXES = ("transformer.", "")
MODULES = {
    "embed": ("transformer.word_embeddings", "transformer.word_embeddings_layernorm"),
    "block": ("transformer.h",),
    "norm": ("transformer.ln_f",),
    "head": ("lm_head",),
}


def describe(fields: Fields, name: str) -> ModelSpec:
    hidden = fields.integer("n_embed", "hidden_size")
    heads = fields.integer("n_head", "num_attention_heads", high=4096)
    if hidden % heads:
        raise fields.bad("n_head", f"is {heads}, which does not divide the hidden size {hidden}")
    fields.refuse("apply_residual_connection_post_layernorm", (False,), "residuals after the norm are not supported")
    if fields.flag(
        "slow_but_exact", False
    ):  # transformers then leaves out a bias where training was split over several GPUs
        fields.refuse("pretraining_tp", (1,), "with 'slow_but_exact' the sums of a split training are not supported")
    block = Block(
        hidden=hidden,
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        intermediate=fields.integer("n_inner", "ffn_hidden_size", default=4 * hidden),
        norm="layer",
        norm_eps=fields.number("layer_norm_epsilon", default=1e-5, high=1.0),
        positions="alibi",
        rope=None,
        gated=False,
        activation="gelu_tanh",
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
    )
    return ModelSpec(
        name=name,
        family=NAME,
        vocab=fields.integer("vocab_size"),
        hidden=hidden,
        blocks=(block,) * fields.integer("n_layer", "num_hidden_layers", high=MOST_LAYERS),
        # ALiBi has no table of positions to run out of; 2,048 is what the models were trained with.
        context_limit=fields.integer("seq_length", default=2048, high=2**28),
        tied=fields.flag("tie_word_embeddings", True),
        checkpoint_dtype=fields.dtype(),
        embed_norm=True,
    )


NAMES = {
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "qkv": "self_attention.query_key_value",
    "out": "self_attention.dense",
    "up": "mlp.dense_h_to_4h",
    "down": "mlp.dense_4h_to_h",
}
ENDS = {
    ("embed", "table"): "transformer.word_embeddings.weight",
    ("embed", "norm.weight"): "transformer.word_embeddings_layernorm.weight",
    ("embed", "norm.bias"): "transformer.word_embeddings_layernorm.bias",
    ("norm", "norm.weight"): "transformer.ln_f.weight",
    ("norm", "norm.bias"): "transformer.ln_f.bias",
    ("head", "table"): "lm_head.weight",
}


def sources(spec: ModelSpec, part: str, dialect: Dialect) -> dict[str, tuple[Source, ...]]:
    """Canonical name → the checkpoint tensors that fill it."""
    if dialect != "hf":
        raise KeyError(f"{NAME} in {dialect}")
    kind, _, number = part.partition(".")
    result: dict[str, tuple[Source, ...]] = {}
    for tensor in spec.part(part).tensors:
        grid: tuple[int, ...] = ()
        axes: tuple[int, ...] = ()
        if kind == "blocks":
            block = spec.blocks[int(number)]
            stem, leaf = tensor.name.split(".")
            name = f"transformer.h.{number}.{NAMES[stem]}.{leaf}"
            if stem == "qkv":  # published as head 0's q, k, v, then head 1's; bigrun keeps all of q first
                grid, axes = (block.heads, 3, block.head_dim), (1, 0, 2)
        else:
            name = ENDS[kind, tensor.name]
        result[tensor.name] = (Source(name, tensor.shape, grid, axes),)
    return result

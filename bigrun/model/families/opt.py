"""OPT: learned positions, LayerNorm before each half, ReLU, biases, tied head (Zhang et al. 2022)."""

from bigrun.model.families.fields import MOST_LAYERS, Fields
from bigrun.model.families.shapes import ACTIVATIONS
from bigrun.model.source import Dialect, Source
from bigrun.model.spec import Block, ModelSpec

NAME = "opt"
ARCHITECTURES = ("OPTForCausalLM",)
PREFIXES = ("model.", "")
MODULES = {
    "embed": ("model.decoder.embed_tokens", "model.decoder.embed_positions"),
    "block": ("model.decoder.layers",),
    "norm": ("model.decoder.final_layer_norm",),
    "head": ("lm_head",),
}
POSITION_OFFSET = 2  # rows of the table before position 0, kept from fairseq's padding index


def describe(fields: Fields, name: str) -> ModelSpec:
    hidden = fields.integer("hidden_size")
    heads = fields.integer("num_attention_heads", high=4096)
    if hidden % heads:
        raise fields.bad("num_attention_heads", f"is {heads}, which does not divide the hidden size {hidden}")
    fields.refuse("do_layer_norm_before", (True,), "a norm after each half (OPT-350m) is not supported")
    fields.refuse("word_embed_proj_dim", (hidden,), "an embedding narrower than the model is not supported")
    fields.refuse("_remove_final_layer_norm", (False,), "a model without a final norm is not supported")
    fields.refuse("layer_norm_elementwise_affine", (True,), "norms without weights are not supported")
    bias = fields.flag("enable_bias", True)
    context = fields.integer("max_position_embeddings", default=2048, high=2**20)
    block = Block(
        hidden=hidden,
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        intermediate=fields.integer("ffn_dim"),
        norm="layer",
        norm_eps=1e-5,
        positions="none",
        rope=None,
        gated=False,
        activation=fields.choice("activation_function", options=ACTIVATIONS, default="relu"),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=bias,
    )
    return ModelSpec(
        name=name,
        family=NAME,
        vocab=fields.integer("vocab_size"),
        hidden=hidden,
        blocks=(block,) * fields.integer("num_hidden_layers", high=MOST_LAYERS),
        context_limit=context,
        tied=fields.flag("tie_word_embeddings", True),
        checkpoint_dtype=fields.dtype(),
        position_rows=context + POSITION_OFFSET,
    )


NAMES = {
    "attention_norm": ("self_attn_layer_norm",),
    "mlp_norm": ("final_layer_norm",),
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "out": ("self_attn.out_proj",),
    "up": ("fc1",),
    "down": ("fc2",),
}
ENDS = {
    ("embed", "table"): "model.decoder.embed_tokens.weight",
    ("embed", "positions"): "model.decoder.embed_positions.weight",
    ("norm", "norm.weight"): "model.decoder.final_layer_norm.weight",
    ("norm", "norm.bias"): "model.decoder.final_layer_norm.bias",
    ("head", "table"): "lm_head.weight",
}


def sources(spec: ModelSpec, part: str, dialect: Dialect) -> dict[str, tuple[Source, ...]]:
    """Canonical name → the checkpoint tensors that fill it."""
    if dialect != "hf":
        raise KeyError(f"{NAME} in {dialect}")
    kind, _, number = part.partition(".")
    result: dict[str, tuple[Source, ...]] = {}
    for tensor in spec.part(part).tensors:
        if kind != "blocks":
            result[tensor.name] = (Source(ENDS[kind, tensor.name], tensor.shape),)
            continue
        stem, leaf = tensor.name.split(".")
        names = NAMES[stem]
        shape = (tensor.shape[0] // len(names), *tensor.shape[1:])
        prefix = f"model.decoder.layers.{number}."
        result[tensor.name] = tuple(Source(f"{prefix}{name}.{leaf}", shape) for name in names)
    return result

"""Llama: rotary, RMSNorm, gated MLP, grouped-query attention (Touvron et al. 2023; `LlamaForCausalLM`)."""

from dataclasses import replace
from typing import Any

from bigrun.model.families import shapes
from bigrun.model.families.family import Modules
from bigrun.model.families.fields import Fields
from bigrun.model.families.rotary import rotary
from bigrun.model.source import Dialect, Source
from bigrun.model.spec import Block, ModelSpec

NAME = "llama"
ARCHITECTURES = ("LlamaForCausalLM",)
PREFIXES = ("model.", "")
MODULES: Modules = {
    "embed": ("model.embed_tokens",),
    "block": ("model.layers",),
    "norm": ("model.norm", "model.rotary_emb"),
    "head": ("lm_head",),
}

PER_LAYER = ("num_attention_heads", "num_key_value_heads", "intermediate_size")  # a GGUF file may have a number a block


def describe(fields: Fields, name: str) -> ModelSpec:
    bias = fields.flag("attention_bias", False)
    settings = {"qkv_bias": bias, "out_bias": bias, "mlp_bias": fields.flag("mlp_bias", False)}
    lists = {key: fields.values[key] for key in PER_LAYER if isinstance(fields.values.get(key), list)}
    if not lists:
        one = block(fields, **settings)
        return shapes.model(fields, name, NAME, (one,) * shapes.layers(fields))
    count = shapes.layers(fields)
    for key, numbers in lists.items():
        if len(numbers) != count:
            raise fields.bad(key, f"has {len(numbers)} numbers for {count} blocks")
    own = [{key: numbers[i] for key, numbers in lists.items()} for i in range(count)]
    blocks = [block(Fields({**fields.values, **numbers}, fields.where), **settings) for numbers in own]
    return shapes.model(fields, name, NAME, blocks)


def block(fields: Fields, usual_theta: float = 10_000.0, **settings: Any) -> Block:
    """A block that the decoder executes, so all of its rotary embedding is understood; `settings` are the family's."""
    fields.choice("hidden_act", options=shapes.SILU, default="silu")
    fields.refuse("rope_interleaved", (False,), "interleaved rotary embedding is not supported")
    base = shapes.block(fields, **settings)
    return replace(base, rope=rotary(fields, base.head_dim, usual_theta=usual_theta))


HF_BLOCK: dict[str, str] = {
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "out": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
GGUF_BLOCK = {
    "attention_norm": "attn_norm",
    "mlp_norm": "ffn_norm",
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "out": "attn_output",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}
ENDS = {
    "hf": {"embed": "model.embed_tokens.weight", "norm": "model.norm.weight", "head": "lm_head.weight"},
    "gguf": {"embed": "token_embd.weight", "norm": "output_norm.weight", "head": "output.weight"},
}


def sources(spec: ModelSpec, part: str, dialect: Dialect) -> dict[str, tuple[Source, ...]]:
    """Canonical name → the checkpoint tensors that fill it."""
    kind, _, number = part.partition(".")
    if kind != "blocks":
        name = ENDS[dialect][kind]
        if kind == "norm":
            return {"norm.weight": (Source(name, (spec.hidden,)),)}
        return {"table": (Source(name, (spec.vocab, spec.hidden)),)} if spec.part(part).tensors else {}
    block = spec.blocks[int(number)]
    names = HF_BLOCK if dialect == "hf" else GGUF_BLOCK
    prefix = f"model.layers.{number}." if dialect == "hf" else f"blk.{number}."

    def linear(leaf: str, rows: int, columns: int, rotary_heads: int = 0) -> Source:
        name, shape = f"{prefix}{names[leaf]}.weight", (rows, columns)
        return Source(name, shape, *_row_order(rotary_heads, rows, dialect))

    def bias(leaf: str, rows: int, rotary_heads: int = 0) -> Source:
        return Source(f"{prefix}{names[leaf]}.bias", (rows,), *_row_order(rotary_heads, rows, dialect))

    groups: dict[str, tuple[tuple[Any, ...], ...]] = {
        "qkv": (("q", block.q_rows, block.heads), ("k", block.kv_rows, block.kv_heads), ("v", block.kv_rows, 0)),
        "out": (("out", block.hidden, 0),),
        "up": (("gate", block.intermediate, 0), ("up", block.intermediate, 0)),
        "down": (("down", block.hidden, 0),),
    }
    result: dict[str, tuple[Source, ...]] = {}
    for tensor in spec.part(part).tensors:
        stem, leaf = tensor.name.split(".")
        if stem.endswith("norm"):
            result[tensor.name] = (Source(f"{prefix}{names[stem]}.weight", tensor.shape),)
        elif leaf == "weight":
            result[tensor.name] = tuple(linear(n, rows, tensor.shape[1], heads) for n, rows, heads in groups[stem])
        else:
            result[tensor.name] = tuple(bias(n, rows, heads) for n, rows, heads in groups[stem])
    return result


def _row_order(heads: int, rows: int, dialect: Dialect) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """GGUF keeps the rows of q and k as rotary pairs side by side; Hugging Face, and bigrun, as two halves."""
    if dialect == "hf" or not heads:
        return (), ()
    return (heads, rows // heads // 2, 2), (0, 2, 1)

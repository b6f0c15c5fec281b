"""What the configurations of most decoders say in the same words: families read this and add what is theirs."""

from collections.abc import Callable, Iterable
from typing import Any

from bigrun.model.families.fields import MOST_LAYERS, Fields
from bigrun.model.spec import Activation, Block, ModelSpec, Rope

KINDS = {"full_attention": False, "sliding_attention": True}  # of `layer_types`: does this layer look back a window?
# Names of activations in transformers (activations.py: ACT2CLS); approximations that agree to float32's last digits are one.
ACTIVATIONS: dict[str, Activation] = {
    **dict.fromkeys(("gelu", "gelu_python"), "gelu"),
    **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python_tanh"), "gelu_tanh"),
    "relu": "relu",
}
SILU: dict[str, Activation] = {"silu": "silu", "swish": "silu"}


def layers(fields: Fields) -> int:
    return fields.integer("num_hidden_layers", high=MOST_LAYERS)


def block(
    fields: Fields, usual_head_dim: int = 0, rotated: float = 1.0, usual_kv_heads: int = 0, eps: float = 1e-6,
    eps_field: str = "rms_norm_eps", **settings: Any,
) -> Block:  # fmt: skip
    """A block as Llama has it: RMSNorm, rotary and grouped-query attention, a gated SiLU MLP. `settings` override that.

    `eps_field` is the name of the norms' epsilon. `usual_head_dim`, `rotated`, the share of a head that is turned,
    `usual_kv_heads` and `eps` are the family's where the configuration is silent: the defaults of transformers' class, as
    published files leave out what is at its default.
    """
    hidden = fields.integer("hidden_size")
    heads = fields.integer("num_attention_heads", high=4096)
    usual = fields.unsaid("num_key_value_heads", usual_kv_heads or heads, heads)
    kv_heads = settings.get("kv_heads") or fields.integer("num_key_value_heads", default=usual, high=4096)
    if heads % kv_heads:
        raise fields.bad("num_key_value_heads", f"is {kv_heads}, which does not divide {heads} heads")
    head_dim = fields.integer("head_dim", default=usual_head_dim or max(hidden // heads, 1), high=4096)
    if head_dim % 2:
        raise fields.bad("head_dim", f"is {head_dim}; rotary embedding needs an even number")
    common: dict[str, Any] = {
        "hidden": hidden,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate": settings.get("intermediate") or fields.integer("intermediate_size"),
        "norm": "rms",
        "norm_eps": fields.number(eps_field, default=eps, high=1.0),
        "positions": "rope",
        "rope": planned_rope(fields, head_dim, rotated),
        "gated": True,
        "activation": "silu",
    }
    return Block(**common | settings)


def planned_rope(fields: Fields, head_dim: int, rotated: float = 1.0) -> Rope:
    """How much of a head is turned, which is all that planning needs: how positions are scaled changes no byte."""
    scaling = fields.values.get("rope_parameters") or fields.values.get("rope_scaling")
    inner = Fields(scaling if isinstance(scaling, dict) else {}, fields.where)
    rotated = fields.number("partial_rotary_factor", "rotary_pct", default=rotated, high=1.0)
    return Rope(int(head_dim * inner.number("partial_rotary_factor", default=rotated, high=1.0)))


def windows(fields: Fields, count: int, slides: Callable[[int], bool], usual: int = 0) -> list[int]:
    """Tokens that each of `count` layers looks back, 0 for all: `sliding_window` (null: all; absent: `usual`) in the layers
    that `layer_types` names, or, where there is no such list, in those that `slides`, the family's rule, picks."""
    default = fields.unsaid("sliding_window", usual, 0)
    size = fields.integer("sliding_window", default=default, low=0, high=2**28)
    kinds = fields.values.get("layer_types")
    if kinds is None:
        return [size if slides(i) else 0 for i in range(count)]
    if not isinstance(kinds, list) or len(kinds) != count:
        raise fields.bad("layer_types", f"is {kinds!r:.40}, not a list of {count} kinds")
    for kind in kinds:
        if not isinstance(kind, str) or kind not in KINDS:
            raise fields.bad("layer_types", f"has {kind!r:.40}; bigrun knows {', '.join(KINDS)}")
    if not size and any(KINDS[kind] for kind in kinds):
        raise fields.bad("sliding_window", "is missing, but 'layer_types' has layers that slide")
    return [size if KINDS[kind] else 0 for kind in kinds]


def model(
    fields: Fields, name: str, family: str, blocks: Iterable[Block], tied: bool = False, context: int = 2048, **settings: Any
) -> ModelSpec:  # fmt: skip
    """The spec around these blocks; `tied` and `context` are the family's defaults, which configurations leave out."""
    blocks = tuple(blocks)
    common: dict[str, Any] = {
        "vocab": fields.integer("vocab_size"),
        "context_limit": fields.integer("max_position_embeddings", default=context, high=2**28),
        "tied": fields.flag("tie_word_embeddings", tied),
        "checkpoint_dtype": fields.dtype(),
    }
    return ModelSpec(name=name, family=family, hidden=blocks[0].hidden, blocks=blocks, **common | settings)

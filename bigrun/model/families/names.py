"""Names of a family's tensors in a checkpoint, as a table that most families fill in."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bigrun.model.source import Dialect, Source
from bigrun.model.spec import Block, ModelSpec

# A fused projection's rows, in the order of the file: (grid, axes, order), as of `Source`.
RowOrder = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
AS_THEY_ARE: RowOrder = ((), (), ())


@dataclass(frozen=True)
class Names:
    """`blocks` is what block N's names begin with, "model.layers.{}."; `block` has the modules of each canonical stem, one, or
    several that are one below another: q, k and v, or gate and up. `ends` has the modules of the model's ends. `fused` says how
    the rows of a qkv that is one in the file lie; with `pairs` those of q and k are rotary pairs side by side (GPT-J), two
    halves here. `norm_plus` is added to the weights of norms."""

    blocks: str
    block: Mapping[str, tuple[str, ...]]
    ends: Mapping[tuple[str, str], str]
    fused: Callable[[Block], RowOrder] = lambda _: AS_THEY_ARE
    pairs: bool = False
    norm_plus: float = 0.0

    def sources(self, spec: ModelSpec, part: str, dialect: Dialect) -> dict[str, tuple[Source, ...]]:
        """Canonical name → the checkpoint tensors that fill it. KeyError for another dialect than Hugging Face's."""
        if dialect != "hf":
            raise KeyError(f"{spec.family} in {dialect}")
        kind, _, number = part.partition(".")
        result: dict[str, tuple[Source, ...]] = {}
        for tensor in spec.part(part).tensors:
            stem, _, leaf = tensor.name.rpartition(".")
            plus = self.norm_plus if stem.endswith("norm") and leaf == "weight" else 0.0
            if kind != "blocks":  # a table is a weight, whatever it is called
                name = f"{self.ends[kind, stem]}.{leaf}" if stem else f"{self.ends[kind, '']}.{ENDINGS[leaf]}"
                result[tensor.name] = (Source(name, tensor.shape, plus=plus),)
                continue
            block, modules = spec.blocks[int(number)], self.block[stem]
            rows = (block.q_rows, block.kv_rows, block.kv_rows) if len(modules) == 3 else ()
            orders = [self.fused(block) if stem == "qkv" and not rows else AS_THEY_ARE] * len(modules)
            if rows and self.pairs:
                orders[:2] = _halves(block, block.heads), _halves(block, block.kv_heads)
            result[tensor.name] = tuple(
                Source(
                    f"{self.blocks.format(number)}{module}.{leaf}",
                    (rows[i] if rows else tensor.shape[0] // len(modules), *tensor.shape[1:]),
                    *orders[i],
                    plus,
                )
                for i, module in enumerate(modules)
            )
        return result


def _halves(block: Block, heads: int) -> RowOrder:
    """The first entries of each rotary pair of each head, then the second ones, then what is not turned."""
    assert block.rope is not None, "pairs are of a rotary embedding"
    size, dims = block.head_dim, block.rope.dims
    head = (*range(0, dims, 2), *range(1, dims, 2), *range(dims, size))
    return (heads * size,), (0,), tuple(h * size + i for h in range(heads) for i in head)


ENDINGS = {"table": "weight", "bias": "bias"}


def by_heads(block: Block) -> RowOrder:
    """Head 0's query, key and value, then head 1's, as BLOOM and GPT-NeoX fuse them."""
    return (block.heads, 3, block.head_dim), (1, 0, 2), ()


def by_groups(block: Block) -> RowOrder:
    """The queries of a group of heads, then its key and its value, as Falcon's later models fuse them."""
    group, groups = block.heads // block.kv_heads, range(block.kv_heads)
    width = group + 2
    queries = [g * width + i for g in groups for i in range(group)]
    keys, values = ([g * width + group + i for g in groups] for i in (0, 1))
    return (block.kv_heads * width, block.head_dim), (0, 1), (*queries, *keys, *values)


LLAMA_ENDS = {("embed", ""): "model.embed_tokens", ("norm", "norm"): "model.norm", ("head", ""): "lm_head"}
SEPARATE = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
LLAMA_BLOCK: Mapping[str, tuple[str, ...]] = {
    "attention_norm": ("input_layernorm",),
    "mlp_norm": ("post_attention_layernorm",),
    "qkv": SEPARATE,
    "q_norm": ("self_attn.q_norm",),
    "k_norm": ("self_attn.k_norm",),
    "out": ("self_attn.o_proj",),
    "up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
LLAMA = Names("model.layers.{}.", LLAMA_BLOCK, LLAMA_ENDS)

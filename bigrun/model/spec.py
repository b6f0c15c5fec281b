"""ModelSpec: a decoder-only language model as frozen data, read from a configuration alone (no weights, no torch).

A model is a list of parts (`embed`, `blocks.N`, `norm`, `head`, and `blocks.N.experts` in a mixture of experts), the
units of placement, and each part is a list of tensors with canonical names. Everything else follows from this: parameters,
bytes, what the decoder executes.
"""

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Literal

Norm = Literal["rms", "layer"]
Positions = Literal["rope", "alibi", "none"]
Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]
Role = Literal["linear", "table", "small", "kept"]


@dataclass(frozen=True)
class Rope:
    """Rotary embedding of the first `dims` entries of a head, in halves (Su et al. 2021; the GPT-NeoX pairing)."""

    dims: int
    theta: float = 10_000.0
    kind: Literal["default", "linear", "llama3", "longrope"] = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 0
    factors: tuple[float, ...] = ()  # of longrope: what each frequency is divided by


@dataclass(frozen=True)
class Latent:
    """Multi-head latent attention (DeepSeek-V2, section 2.1): what is cached of a token is one vector of `kv_rank` entries
    that all heads share and one rotated key of `rope` entries. `q_rank` 0: queries are projected directly."""

    q_rank: int
    kv_rank: int
    nope: int  # entries of a head's query and key that are not rotated
    rope: int
    value: int  # entries of a head's value


@dataclass(frozen=True)
class Experts:
    """A mixture of experts in place of the MLP: `active` of `count` for each token (Shazeer et al. 2017), and one MLP of
    `shared` intermediate entries that every token passes (DeepSeekMoE), 0 for none."""

    count: int
    active: int
    intermediate: int
    shared: int = 0
    shared_gate: bool = False  # Qwen2-MoE weighs the shared MLP by a sigmoid of one more row
    router_bias: bool = False  # a number an expert: added to the router's choice or to its logits
    bias: bool = False  # on the experts' own linears


@dataclass(frozen=True)
class Block:
    """One description of a transformer block: its sizes and flags. The decoder executes it; families only fill it in."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    norm: Norm
    norm_eps: float
    positions: Positions
    rope: Rope | None
    gated: bool
    activation: Activation
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    window: int = 0  # tokens that attention looks back; 0: all
    mlp_norm: bool = True  # False where attention and MLP read one norm, side by side
    after_norms: bool = False  # a norm after attention and one after the MLP as well (Gemma 2)
    qk_norm: bool = False  # RMSNorm of each head's query and key, one weight for all heads
    alibi_bfloat16: bool = False  # slope times position is rounded to bfloat16, and divided as scores are (Falcon)
    sinks: bool = False  # a learned logit a head that takes attention from all tokens (gpt-oss)
    parallel: bool = False  # attention and MLP both read the block's input
    latent: Latent | None = None
    experts: Experts | None = None

    @property
    def q_rows(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_rows(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def qkv_rows(self) -> int:
        """Rows of the fused projection: all of q, then all of k, then all of v."""
        return self.q_rows + 2 * self.kv_rows


@dataclass(frozen=True)
class Tensor:
    """A tensor by its canonical name. `linear` [out, in] (or [experts, out, in]) and `table` [vocab, hidden] are quantised;
    `kept` matrices stay in 16 bits, `small` ones in 32."""

    name: str
    shape: tuple[int, ...]
    role: Role

    @property
    def count(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Part:
    """A unit of placement and the tensors that belong to it."""

    name: str
    tensors: tuple[Tensor, ...]

    @property
    def parameters(self) -> int:
        return sum(tensor.count for tensor in self.tensors)


@dataclass(frozen=True)
class ModelSpec:
    """A whole model. `checkpoint_dtype` is that of its weights as published: float32, float16 or bfloat16."""

    name: str
    family: str
    vocab: int
    hidden: int
    blocks: tuple[Block, ...]
    context_limit: int
    tied: bool
    checkpoint_dtype: str
    embed_norm: bool = False
    embed_scale: float = 1.0  # what an embedding is multiplied by
    position_rows: int = 0  # learned positions: rows of their table (OPT keeps two more than its context)
    final_norm: bool = True
    head_bias: bool = False
    checkpoint_bytes: int = 0  # of all weights as published, where that is known; 0: count the parameters
    checkpoint_form: str = (
        ""  # of most of them: 16bit, float32, float8, gguf, or int8 of a conversion; "": by the dtype
    )

    @property
    def position_offset(self) -> int:
        """Rows of the table of learned positions that lie before position 0."""
        return max(0, self.position_rows - self.context_limit)

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """All parts in the order of execution. A tied head owns no tensor: it reads the table of `embed`."""
        embed = [Tensor("table", (self.vocab, self.hidden), "table")]
        if self.position_rows:
            embed.append(Tensor("positions", (self.position_rows, self.hidden), "small"))
        norm_kind = self.blocks[0].norm
        if self.embed_norm:
            embed += _norm("norm", self.hidden, norm_kind)
        kinds = {block: (block_tensors(block), expert_tensors(block)) for block in set(self.blocks)}
        blocks = []
        for i, block in enumerate(self.blocks):
            rest, experts = kinds[block]
            blocks.append(Part(f"blocks.{i}", rest))
            if experts:
                blocks.append(Part(f"blocks.{i}.experts", experts))
        norm = Part("norm", tuple(_norm("norm", self.hidden, norm_kind)) if self.final_norm else ())
        head = [] if self.tied else [Tensor("table", (self.vocab, self.hidden), "table")]
        if self.head_bias:
            head.append(Tensor("bias", (self.vocab,), "small"))
        return (Part("embed", tuple(embed)), *blocks, norm, Part("head", tuple(head)))

    @cached_property
    def parameters(self) -> int:
        """Parameters as published counts have them: a tied table once."""
        return sum(part.parameters for part in self.parts)

    def part(self, name: str) -> Part:
        return self._by_name[name]

    def block_of(self, part: str) -> Block | None:
        """The block that a part belongs to; None for the ends of the model."""
        kind, _, number = part.partition(".")
        return self.blocks[int(number.partition(".")[0])] if kind == "blocks" else None

    def expert_count(self, part: str) -> int:
        """Experts in a part; 0 where there are none."""
        block = self.block_of(part) if part.endswith(".experts") else None
        return block.experts.count if block and block.experts else 0

    @cached_property
    def _by_name(self) -> dict[str, Part]:
        return {part.name: part for part in self.parts}


def block_tensors(block: Block) -> tuple[Tensor, ...]:
    """The canonical tensors of one block: q, k, v as one linear, gate and up as one. Of a mixture, all but its experts."""
    names = ["attention_norm"] + ["mlp_norm"] * block.mlp_norm
    names += ["after_attention_norm", "after_mlp_norm"] * block.after_norms
    tensors = [tensor for name in names for tensor in _norm(name, block.hidden, block.norm)]
    tensors += _latent(block, block.latent) if block.latent else _attention(block)
    experts = block.experts
    inner = block.intermediate if experts is None else experts.shared
    if inner:
        tensors += _linear("up", inner * (2 if block.gated else 1), block.hidden, block.mlp_bias)
        tensors += _linear("down", block.hidden, inner, block.mlp_bias)
    if experts is not None:
        tensors.append(Tensor("router.weight", (experts.count, block.hidden), "kept"))
        if experts.router_bias:
            tensors.append(Tensor("router.bias", (experts.count,), "small"))
        if experts.shared_gate:
            tensors.append(Tensor("shared_gate.weight", (1, block.hidden), "kept"))
    return tuple(tensors)


def expert_tensors(block: Block) -> tuple[Tensor, ...]:
    """The experts of one block, side by side: the first axis counts them."""
    experts = block.experts
    if experts is None:
        return ()
    rows = experts.intermediate * (2 if block.gated else 1)
    tensors = []
    for name, shape in (("up", (rows, block.hidden)), ("down", (block.hidden, experts.intermediate))):
        tensors.append(Tensor(f"experts.{name}.weight", (experts.count, *shape), "linear"))
        if experts.bias:
            tensors.append(Tensor(f"experts.{name}.bias", (experts.count, shape[0]), "small"))
    return tuple(tensors)


def _attention(block: Block) -> list[Tensor]:
    tensors = _linear("qkv", block.qkv_rows, block.hidden, block.qkv_bias)
    tensors += _linear("out", block.hidden, block.q_rows, block.out_bias)
    if block.qk_norm:
        tensors += [Tensor(f"{name}_norm.weight", (block.head_dim,), "small") for name in ("q", "k")]
    if block.sinks:
        tensors.append(Tensor("sinks", (block.heads,), "small"))
    return tensors


def _latent(block: Block, latent: Latent) -> list[Tensor]:
    """Low-rank projections down are kept in 16 bits: all heads read what they give."""
    queries = block.heads * (latent.nope + latent.rope)
    if latent.q_rank:
        tensors = [Tensor("q_down.weight", (latent.q_rank, block.hidden), "kept")]
        tensors += [Tensor("q_norm.weight", (latent.q_rank,), "small"), *_linear("q", queries, latent.q_rank, False)]
    else:
        tensors = _linear("q", queries, block.hidden, False)
    tensors.append(Tensor("kv_down.weight", (latent.kv_rank + latent.rope, block.hidden), "kept"))
    tensors.append(Tensor("kv_norm.weight", (latent.kv_rank,), "small"))
    tensors += _linear("kv", block.heads * (latent.nope + latent.value), latent.kv_rank, False)
    return [*tensors, *_linear("out", block.hidden, block.heads * latent.value, False)]


def _linear(name: str, rows: int, columns: int, bias: bool) -> list[Tensor]:
    weight = Tensor(f"{name}.weight", (rows, columns), "linear")
    return [weight, Tensor(f"{name}.bias", (rows,), "small")] if bias else [weight]


def _norm(name: str, size: int, kind: Norm) -> list[Tensor]:
    weight = Tensor(f"{name}.weight", (size,), "small")
    return [weight, Tensor(f"{name}.bias", (size,), "small")] if kind == "layer" else [weight]

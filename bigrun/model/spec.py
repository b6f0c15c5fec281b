"""ModelSpec: a decoder-only language model as frozen data, read from a configuration alone (no weights, no torch).

A model is a list of parts (`embed`, `blocks.N`, `norm`, `head`), the units of placement, and each part is a list of
tensors with canonical names. Everything else follows from this: parameters, bytes, what the decoder executes.
"""

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Literal

Norm = Literal["rms", "layer"]
Positions = Literal["rope", "alibi", "none"]
Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]
Role = Literal["linear", "table", "small"]


@dataclass(frozen=True)
class Rope:
    """Rotary embedding of the first `dims` entries of a head, in halves (Su et al. 2021; the GPT-NeoX pairing)."""

    dims: int
    theta: float = 10_000.0
    kind: Literal["default", "linear", "llama3"] = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 0


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
    """A tensor by its canonical name. `linear` [out, in] and `table` [vocab, hidden] are quantised, `small` is not."""

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
    position_rows: int = 0  # learned positions: rows of their table (OPT keeps two more than its context)
    final_norm: bool = True

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """All parts in the order of execution. A tied head owns no tensor: it reads the table of `embed`."""
        embed = [Tensor("table", (self.vocab, self.hidden), "table")]
        if self.position_rows:
            embed.append(Tensor("positions", (self.position_rows, self.hidden), "small"))
        norm_kind = self.blocks[0].norm
        if self.embed_norm:
            embed += _norm("norm", self.hidden, norm_kind)
        blocks = [Part(f"blocks.{i}", block_tensors(block)) for i, block in enumerate(self.blocks)]
        norm = Part("norm", tuple(_norm("norm", self.hidden, norm_kind)) if self.final_norm else ())
        head = Part("head", () if self.tied else (Tensor("table", (self.vocab, self.hidden), "table"),))
        return (Part("embed", tuple(embed)), *blocks, norm, head)

    @cached_property
    def parameters(self) -> int:
        """Parameters as published counts have them: a tied table once."""
        return sum(part.parameters for part in self.parts)

    def part(self, name: str) -> Part:
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> dict[str, Part]:
        return {part.name: part for part in self.parts}


def block_tensors(block: Block) -> tuple[Tensor, ...]:
    """The canonical tensors of one block: q, k, v as one linear, gate and up as one."""
    linears = [
        ("qkv", block.qkv_rows, block.hidden, block.qkv_bias),
        ("out", block.hidden, block.q_rows, block.out_bias),
        ("up", block.intermediate * (2 if block.gated else 1), block.hidden, block.mlp_bias),
        ("down", block.hidden, block.intermediate, block.mlp_bias),
    ]
    tensors = [*_norm("attention_norm", block.hidden, block.norm), *_norm("mlp_norm", block.hidden, block.norm)]
    for name, rows, columns, bias in linears:
        tensors.append(Tensor(f"{name}.weight", (rows, columns), "linear"))
        if bias:
            tensors.append(Tensor(f"{name}.bias", (rows,), "small"))
    return tuple(tensors)


def _norm(name: str, size: int, kind: Norm) -> list[Tensor]:
    weight = Tensor(f"{name}.weight", (size,), "small")
    return [weight, Tensor(f"{name}.bias", (size,), "small")] if kind == "layer" else [weight]

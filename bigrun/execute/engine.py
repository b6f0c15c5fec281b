"""The input of a step, and the interface of each device's engine."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from bigrun.devices.host_memory import Memory
from bigrun.execute.block_weights import BlockWeights, NormWeights, block_weights, linear, norm_weights
from bigrun.execute.forward import BlockCache
from bigrun.loading.loader import LoadedPart
from bigrun.model.buffers import kv_buffers, ring_pages
from bigrun.model.program import lower
from bigrun.model.spec import Block, ModelSpec
from bigrun.planning.plan import Plan
from bigrun_kernels.ops import Pages, Weight


@dataclass(frozen=True)
class Batch:
    """One step's tokens, in any mixture of sequences: token ids, positions, sequence numbers and cache slots, each
    int64 [T]; `logit_rows` are the tokens whose logits are wanted; `phase` is prefill or decode."""

    ids: np.ndarray
    positions: np.ndarray
    sequences: np.ndarray
    slots: np.ndarray
    logit_rows: np.ndarray
    phase: str


@dataclass(frozen=True)
class Arithmetic:
    """The mode of each phase and the outlier threshold (NUMERICS)."""

    prefill: str = "exact"
    decode: str = "exact"
    threshold: float = 6.0

    def mode(self, phase: str) -> str:
        return self.decode if phase == "decode" else self.prefill

    @property
    def repeatable(self) -> bool:
        """One arithmetic for both phases, in which no token has a part in what another gets: outliers are found for all the
        tokens of a step together."""
        return self.prefill == self.decode and (self.prefill == "exact" or self.threshold == 0)


@dataclass(frozen=True)
class EmbeddingAndHead:
    """The embedding, the final norm and the head, as far as a device has them."""

    table: Weight | None  # of the embedding
    positions: Any
    embed_norm: NormWeights | None
    norm: NormWeights | None
    head: Weight | None


class Engine(Protocol):
    """One device's share of the run. `x` of a step is the residual stream, float32 [T, hidden], in the device's own buffer."""

    blocks: Mapping[int, BlockWeights]
    ops: Any

    @property
    def repeatable(self) -> bool:
        """Whether a token's results depend neither on its phase nor on what is computed beside it: what a decode step left in
        the KV cache is then what a prompt's step would have."""

    def begin(self, batch: Batch, page_tables: np.ndarray) -> None:
        """The step's tokens, before anything else is asked; tables int32 [sequences, pages]."""

    def embed(self) -> None:
        """x ← the tokens' embeddings."""

    def run(self, first: int, stop: int) -> None:
        """x ← the output of blocks first … stop − 1."""

    def logits(self) -> np.ndarray:
        """float32 [rows, vocab] of the wanted tokens."""

    def give(self) -> np.ndarray:
        """The residual stream in host memory."""

    def take(self, x: np.ndarray) -> None:
        """Takes the residual stream from another device's `give`."""

    def close(self) -> None:
        """Let go of the device."""


def embedding_and_head(spec: ModelSpec, parts: Mapping[str, LoadedPart], device: str, nothing: Any) -> EmbeddingAndHead:
    """The ends of the model that are stored on this device."""
    embed, norm, head = (parts[name] for name in ("embed", "norm", "head"))
    owner = embed if spec.tied else head
    here = embed.device == device
    table = linear(embed.part, embed.layout, embed.arrays, "table", nothing) if here else None
    positions = embed.arrays["positions"] if here and spec.position_rows else None
    embed_norm = norm_weights(embed.arrays, "norm", nothing) if here and spec.embed_norm else None
    last = head.device == device
    final = norm_weights(norm.arrays, "norm", nothing) if last else None
    bias = head.arrays.get("bias", nothing) if last else nothing
    weight = linear(owner.part, owner.layout, owner.arrays, "table", bias) if last else None
    return EmbeddingAndHead(table, positions, embed_norm, final, weight)


def place_blocks(
    spec: ModelSpec, plan: Plan, device: str, memory: Memory, parts: Mapping[str, LoadedPart], nothing: tuple[Any, Any],
    slopes: Callable[[Block], Any],
) -> tuple[dict[int, BlockWeights], dict[int, BlockCache]]:  # fmt: skip
    """Weights and caches of the blocks that a device computes; their pages are taken now. `nothing`: what stands for a bias,
    and for scales of pages, where there are none; `slopes`: ALiBi's."""
    dtype = plan.storage.kv_dtype
    blocks: dict[int, BlockWeights] = {}
    caches: dict[int, BlockCache] = {}
    for i, block in enumerate(spec.blocks):
        name = f"blocks.{i}"
        if plan.placement(name).decode_on != device:
            continue
        part = parts[name]
        blocks[i] = block_weights(part.part, part.layout, part.arrays, lower(block), nothing[0])
        buffers = kv_buffers(block, plan.context_tokens, plan.batch, dtype)
        pages = memory.buffers(buffers, "kv_cache", f"the KV cache of {name}")
        k, v = (Pages(pages[name], pages.get(f"{name}.scale", nothing[1])) for name in ("k", "v"))
        caches[i] = BlockCache(k, v, slopes(block), ring_pages(block, plan.context_tokens))
    return blocks, caches


def runs_of(devices: Sequence[str]) -> list[tuple[int, int, str]]:
    """Blocks' devices → (first, stop, device) of consecutive blocks on one."""
    runs: list[tuple[int, int, str]] = []
    for i, device in enumerate(devices):
        if runs and runs[-1][2] == device:
            runs[-1] = (runs[-1][0], i + 1, device)
        else:
            runs.append((i, i + 1, device))
    return runs

"""Blocks of random weights, executed outside a Runner: by the walker of each backend, or by the CPU's compiled call."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from bigrun.execute.block_weights import BlockWeights, NormWeights
from bigrun.execute.compiled import CompiledBlocks
from bigrun.execute.forward import BlockCache, StepArrays, alibi_slopes, rope_cos_sin, rope_frequencies, run_program
from bigrun.model.buffers import PAGE_TOKENS, kv_buffers, pages_per_sequence, step_buffers
from bigrun.model.program import lower, rewrite
from bigrun.model.spec import Block, ModelSpec, Rope, block_tensors
from bigrun_kernels import lanes
from bigrun_kernels.cpu.ops import CpuOps
from bigrun_kernels.ops import Pages, Weight
from bigrun_kernels.reference import quantise_rows
from bigrun_kernels.reference_ops import ReferenceOps

TYPES = {"float16": np.uint16, "float32": np.float32, "int8": np.int8, "float64": np.float64, "int32": np.int32}
BLOCK = Block(
    hidden=64, heads=4, kv_heads=2, head_dim=16, intermediate=96, norm="rms", norm_eps=1e-5, positions="rope",
    rope=Rope(16), gated=True, activation="silu",
)  # fmt: skip
BLOCKS = {
    "llama": BLOCK,
    "partial-rotary-biases": replace(BLOCK, rope=Rope(8), qkv_bias=True, out_bias=True, mlp_bias=True),
    "bloom": replace(
        BLOCK, kv_heads=4, norm="layer", positions="alibi", rope=None, gated=False, activation="gelu_tanh",
        qkv_bias=True, out_bias=True, mlp_bias=True,
    ),
    "one-norm": replace(BLOCK, mlp_norm=False),
    "side by side": replace(BLOCK, parallel=True, norm="layer", rope=Rope(8), mlp_bias=True),
    "side by side, one norm": replace(BLOCK, parallel=True, mlp_norm=False, gated=False, activation="gelu"),
    "norms of heads": replace(BLOCK, qk_norm=True, heads=6, kv_heads=3),
    "opt": replace(BLOCK, kv_heads=4, norm="layer", positions="none", rope=None, gated=False, activation="relu"),
}  # fmt: skip


def random_weights(block: Block, generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {t.name: torch.randn(t.shape, generator=generator) / math.sqrt(t.shape[-1]) for t in block_tensors(block)}


def weights_of(block: Block, tensors: dict[str, torch.Tensor], convert: Callable[[torch.Tensor], Any]) -> BlockWeights:
    nothing = torch.empty(0)

    def linear(name: str) -> Weight:
        q, scale = quantise_rows(tensors[f"{name}.weight"])
        packed = torch.from_numpy(lanes.pack(q.numpy()))
        bias = tensors.get(f"{name}.bias", nothing)
        return Weight("int8", convert(packed), convert(scale), convert(bias), q.shape[1])

    def norm(name: str) -> NormWeights:
        return NormWeights(convert(tensors[f"{name}.weight"]), convert(tensors.get(f"{name}.bias", nothing)))

    return {name: norm(name) if name.endswith("_norm") else linear(name) for name in lower(block).weights}


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Relative Frobenius norm of the difference."""
    return ((ours - theirs).norm() / theirs.norm()).item()


def numpy_weights(block: Block, seed: int) -> BlockWeights:
    """The weights of a block as the CPU's kernels take them."""
    return weights_of(block, random_weights(block, torch.Generator().manual_seed(seed)), lambda t: t.numpy())


def walked(block: Block, mode: str) -> list[torch.Tensor]:
    """A prompt through one block by the CPU's backend and by the reference's."""
    generator = torch.Generator().manual_seed(3)
    tensors = random_weights(block, generator)
    tokens, spec = 70, ModelSpec("t", "llama", 64, 64, (block,), 128, True, "float32")
    x = torch.randn(tokens, block.hidden, generator=generator)
    positions, dtypes = np.arange(tokens), {"int8": torch.int8, "int32": torch.int32, "float64": torch.float64}
    slots = np.where(positions < PAGE_TOKENS, positions + PAGE_TOKENS, positions - PAGE_TOKENS)  # pages 1, then 0
    cos_sin = None if block.rope is None else rope_cos_sin(rope_frequencies(block.rope), positions)
    slopes = alibi_slopes(block.heads) if block.positions == "alibi" else np.zeros(block.heads, np.float32)
    results = []
    for ops, to_numpy in ((CpuOps(), True), (ReferenceOps(), False)):
        convert: Callable[[torch.Tensor], Any] = (lambda t: t.numpy()) if to_numpy else (lambda t: t)
        make: Callable[[np.ndarray], Any] = (lambda a: a) if to_numpy else torch.from_numpy
        work = {
            b.name: convert(torch.full(b.shape, 77).to(dtypes.get(b.dtype, torch.float32)))
            for b in step_buffers(spec, tokens, 1, 128, blocks=True, head=False)
        }
        pages = [
            torch.full((2, block.kv_heads, PAGE_TOKENS, block.head_dim), torch.nan, dtype=torch.float16) for _ in "kv"
        ]
        kept = [p.view(torch.uint16).numpy() if to_numpy else p for p in pages]
        rotated = None if cos_sin is None else make(cos_sin)
        step = StepArrays(
            make(positions),
            make(np.zeros(tokens, np.int64)),
            make(slots),
            make(np.array([[1, 0]], np.int32)),
            rotated,
            mode,
            3.0,
        )
        k, v = (Pages(p, convert(torch.empty(0))) for p in kept)
        mine = convert(x.clone())
        run_program(
            ops,
            rewrite(lower(block), "host"),
            weights_of(block, tensors, convert),
            step,
            BlockCache(k, v, make(slopes)),
            work,
            mine,
        )
        results.append(torch.as_tensor(mine))
    return results


@dataclass
class Model:
    """Two blocks with caches for `batch` sequences, run by one call or by the walker."""

    block: Block
    compiled: bool
    batch: int = 2
    context: int = 320
    kv: str = "float16"
    seed: int = 5

    def __post_init__(self) -> None:
        self.ops = CpuOps()
        self.blocks = [numpy_weights(self.block, self.seed + i) for i in range(2)]
        spec = ModelSpec("t", "llama", 64, self.block.hidden, (self.block,), self.context, True, "float32")
        buffers = step_buffers(spec, 80, self.batch, self.context, blocks=True, head=False)
        self.work = {b.name: np.full(b.shape, 77, TYPES[b.dtype]) for b in buffers}
        slopes = (
            alibi_slopes(self.block.heads)
            if self.block.positions == "alibi"
            else np.zeros(self.block.heads, np.float32)
        )
        self.caches = [BlockCache(self.pages(), self.pages(), slopes) for _ in self.blocks]
        self.run_compiled = CompiledBlocks(
            self.ops, rewrite(lower(self.block), "compiled"), self.blocks, self.caches, self.work
        )
        each = pages_per_sequence(self.context)
        self.tables = np.random.default_rng(0).permutation(self.batch * each).astype(np.int32).reshape(self.batch, each)

    def pages(self) -> Pages:
        shape = kv_buffers(self.block, self.context, self.batch, self.kv)[0].shape
        values = np.zeros(shape, TYPES[self.kv])
        return Pages(values, np.zeros(shape[:3] if self.kv == "int8" else 0, np.uint16))

    def step(self, x: np.ndarray, sequences: Sequence[int], positions: Sequence[int]) -> np.ndarray:
        where, place = np.asarray(sequences, np.int64), np.asarray(positions, np.int64)
        slots = self.tables[where, place // PAGE_TOKENS].astype(np.int64) * PAGE_TOKENS + place % PAGE_TOKENS
        cos_sin = rope_cos_sin(rope_frequencies(self.block.rope), place) if self.block.rope else None
        step = StepArrays(place, where, slots, self.tables, cos_sin, "exact", 0.0)
        x = x.copy()
        if self.compiled:
            self.run_compiled.run(x, step)
        else:
            for w, cache in zip(self.blocks, self.caches, strict=True):
                run_program(self.ops, rewrite(lower(self.block), "host"), w, step, cache, self.work, x)
        return x


def rows(count: int, block: Block = BLOCK, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, count]).standard_normal((count, block.hidden), np.float32)

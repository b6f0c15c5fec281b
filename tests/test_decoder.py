"""The decoder: three families answer as transformers does, and both backends execute one description alike."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import torch

from bigrun import Runner
from bigrun.execute.block_weights import BlockWeights, NormWeights
from bigrun.execute.forward import BlockCache, StepArrays, alibi_slopes, rope_cos_sin, rope_frequencies, run_program
from bigrun.model.buffers import PAGE_TOKENS, step_buffers
from bigrun.model.program import lower, rewrite
from bigrun.model.spec import Block, ModelSpec, Rope, block_tensors
from bigrun_kernels import lanes
from bigrun_kernels.cpu.ops import CpuOps
from bigrun_kernels.ops import Pages, Weight
from bigrun_kernels.reference import quantise_rows
from bigrun_kernels.reference_ops import ReferenceOps

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
MODELS: dict[str, Callable[[Path], Any]] = {
    "llama-untied-grouped": lambda folder: checkpoints.llama(folder, max_shard_size="60KB"),
    "llama-tied-biases": lambda folder: checkpoints.llama(folder, tied=True, bias=True, kv_heads=4),
    "llama-3-rope-wide-heads": lambda folder: checkpoints.llama(folder, head_dim=32, rope_parameters=LLAMA3),
    "llama-linear-rope": lambda folder: checkpoints.llama(
        folder, rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    ),
    "bloom": checkpoints.bloom,
    "opt": checkpoints.opt,
}


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Relative Frobenius norm of the difference."""
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.fixture(scope="module", params=MODELS)
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, torch.Tensor, torch.Tensor]:
    """(checkpoint folder, ids [2, 100], transformers' float32 logits)."""
    folder = tmp_path_factory.mktemp(request.param)
    peer = MODELS[request.param](folder)
    ids = torch.randint(0, checkpoints.VOCAB, (2, 100), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return folder, ids, peer(ids).logits


@pytest.mark.parametrize(
    ("options", "bar"),
    [
        ({"weights": "float32"}, 1e-4),
        ({"weights": "16bit"}, 0.02),
        ({"mode": "exact"}, 0.06),
        ({"mode": "llm.int8"}, 0.08),
        ({"head": "16bit", "skip": ("down",)}, 0.06),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_logits_agree_with_transformers(
    model: tuple[Path, torch.Tensor, torch.Tensor], options: dict, bar: float
) -> None:
    folder, ids, expected = model
    with Runner(str(folder), context=128, progress=False, **options) as runner:
        assert error(runner.logits(ids), expected) <= bar


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
        mine = convert(x.clone())
        run_program(
            ops,
            rewrite(lower(block), "host"),
            weights_of(block, tensors, convert),
            step,
            BlockCache(*(Pages(p, convert(torch.empty(0))) for p in kept), make(slopes)),
            work,
            mine,
        )
        results.append(torch.as_tensor(mine))
    return results


@pytest.mark.parametrize("mode", ["exact", "llm.int8"])
@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_both_backends_execute_one_description_alike(block: Block, mode: str) -> None:
    results = walked(block, mode)
    # an entry that falls on the other side of a rounding edge changes its neighbours by one part in some thousands
    assert error(results[0], results[1]) <= (1e-4 if mode == "exact" else 5e-3)

"""The decoder: three families answer as transformers does, and both backends execute one description alike."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bigrun import Runner
from bigrun.model.spec import Block
from support import checkpoints
from support.blocks import BLOCKS, error, walked

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


@pytest.mark.parametrize("mode", ["exact", "llm.int8"])
@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_both_backends_execute_one_description_alike(block: Block, mode: str) -> None:
    results = walked(block, mode)
    # an entry that falls on the other side of a rounding edge changes its neighbours by one part in some thousands
    assert error(results[0], results[1]) <= (1e-4 if mode == "exact" else 5e-3)

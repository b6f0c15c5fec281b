"""Blocks that look back a window shorter than the context: transformers' logits beyond it, from a ring of pages."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bigrun import Runner
from bigrun.model.buffers import LONGEST_CHUNK, PAGE_TOKENS, kv_buffers, rings, total
from support import checkpoints
from support.long import long, only

CONTEXT = 900  # the rings of windows up to 320 tokens go round in it
LENGTHS = 860, 633
FOLDERS: dict[str, Callable[[Path], Any]] = {
    "mistral": lambda folder: make(folder, "mistral", sliding_window=40, head_dim=16),
    "mistral, a token": lambda folder: make(folder, "mistral", sliding_window=1),
    "qwen2, from the second layer on": lambda folder: make(
        folder, "qwen2", layers=3, use_sliding_window=True, sliding_window=100, max_window_layers=1
    ),
    "phi3": lambda folder: make(folder, "phi3", sliding_window=129, pad_token_id=None),
    "starcoder2": lambda folder: make(folder, "starcoder2", sliding_window=257),
}
IDS = np.random.default_rng(0).integers(3, 300, (2, LENGTHS[0]))


def make(folder: Path, model_type: str, **config: Any) -> Any:
    return checkpoints.relative(folder, model_type, max_position_embeddings=CONTEXT, **config)


@pytest.fixture(scope="module", params=only(FOLDERS, quick=["mistral", "qwen2, from the second layer on"]))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """(a folder, transformers' logits of IDS)."""
    path = tmp_path_factory.mktemp("windows")
    theirs = FOLDERS[request.param](path)
    with torch.inference_mode():
        return path, theirs(torch.from_numpy(IDS)).logits.numpy()


def run(path: Path, gpus: str = "none", **more: Any) -> Runner:
    return Runner(str(path), gpus=gpus, cpu="200MB", context=CONTEXT, progress=False, **more)


def far(ours: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(ours - expected) / np.linalg.norm(expected))


@pytest.fixture(scope="module")
def exact(model: tuple[Path, np.ndarray]) -> Iterator[Runner]:
    with run(model[0], weights="float32", kv="16bit", batch=2) as runner:
        assert rings(runner.spec.blocks, CONTEXT), "pages that hold the window alone"
        yield runner


def fed(runner: Runner, pieces: list[dict[int, int]]) -> dict[int, np.ndarray]:
    """The logits of every token of IDS, taken so many of each sequence at a time."""
    taken: dict[int, list[np.ndarray]] = {0: [], 1: []}
    for sequence in taken:
        runner.executor.clear(sequence)
    for piece in pieces:
        start = {s: sum(map(len, taken[s])) for s in piece}
        step = {s: IDS[s, start[s] : start[s] + count] for s, count in piece.items()}
        for s, logits in runner.executor.forward(step, every=True).items():
            taken[s].append(logits)
    return {s: np.concatenate(logits) for s, logits in taken.items() if logits}


PIECES: dict[str, list[dict[int, int]]] = {
    "whole": [{0: 860}],
    "in chunks": [{0: 7}, {0: 64}, {0: 300}, {0: 1}, {0: 200}, {0: 288}],
    "token by token": [{0: 570}, *[{0: 1}] * 90],
    "unequal lengths": [{0: 580, 1: 3}, {1: 600}, *[{0: 1, 1: 1}] * 30, {0: 250}],
}


@pytest.mark.parametrize("pieces", PIECES.values(), ids=PIECES)
def test_logits_beyond_the_window_are_transformers(
    model: tuple[Path, np.ndarray], exact: Runner, pieces: list[dict[int, int]]
) -> None:
    ours = fed(exact, pieces)
    for s, logits in ours.items():
        assert far(logits, model[1][s, : len(logits)]) < 1e-4
        assert far(logits[-20:], model[1][s, len(logits) - 20 : len(logits)]) < 1e-4, "the last ones"
    whole = fed(exact, [{s: len(logits)} for s, logits in ours.items()])
    assert all(np.array_equal(ours[s], whole[s]) for s in ours), "to the bit, whatever the chunks and the company"


@pytest.mark.parametrize("kv", ["16bit", "int8"])
def test_the_compiled_call_is_the_walker(model: tuple[Path, np.ndarray], kv: str) -> None:
    with run(model[0], batch=2, kv=kv) as runner:
        engine: Any = runner.executor.engines["cpu"]
        assert engine.compiled
        ours = [fed(runner, pieces) for pieces in PIECES.values()]
        engine.compiled = {}
        for mine, pieces in zip(ours, PIECES.values(), strict=True):
            for s, theirs in fed(runner, pieces).items():
                assert np.array_equal(mine[s], theirs)
                assert far(theirs, model[1][s, : len(theirs)]) < 0.06


def test_a_gpu_says_what_transformers_says(model: tuple[Path, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIGRUN_GPU", "emulate")
    with run(model[0], "1x100MB", kernels="reference", mode="exact", batch=2) as runner:
        for pieces in (PIECES["whole"], [{0: 600, 1: 610}, *[{0: 1, 1: 1}] * 5]):
            for s, logits in fed(runner, pieces).items():
                assert far(logits, model[1][s, : len(logits)]) < 0.06
                assert far(logits[-5:], model[1][s, len(logits) - 5 : len(logits)]) < 0.06


@pytest.mark.parametrize("kernels", ["reference", long("triton")])
def test_its_kernels_give_what_the_cpu_gives(tmp_path: Path, kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In rings for steps of at most 64 tokens, since Triton's interpreter takes long for a prompt of 600."""
    monkeypatch.setenv("BIGRUN_GPU", "emulate")
    for module in ("bigrun.model.buffers", "bigrun.execute.executor"):
        monkeypatch.setattr(f"{module}.LONGEST_CHUNK", 64)
    make(tmp_path, "qwen2", use_sliding_window=True, sliding_window=40, max_window_layers=1, num_attention_heads=2)
    options: dict[str, Any] = {"cpu": "200MB", "context": 256, "batch": 2, "mode": "exact", "progress": False}
    with (
        Runner(str(tmp_path), gpus="none", **options) as host,
        Runner(str(tmp_path), gpus="1x100MB", kernels=kernels, **options) as card,
    ):
        assert rings(card.spec.blocks, 256) == (2,)
        pieces = [{0: 61, 1: 3}, {0: 64}, {0: 9}, {0: 1, 1: 1}]
        ours, theirs = fed(card, pieces), fed(host, pieces)
        assert max(far(ours[s], theirs[s]) for s in ours) < 4e-3
        assert far(ours[0][-2:], theirs[0][-2:]) < 4e-3


@pytest.mark.parametrize("rig", ["none", "virtual 1x2MB", "1x100MB"])
def test_what_is_planned_is_what_is_taken(
    model: tuple[Path, np.ndarray], rig: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BIGRUN_GPU", "emulate")
    more = {"kernels": "reference"} if rig == "1x100MB" else {}
    with run(model[0], rig.split()[-1], virtual=rig.startswith("virtual"), batch=3, **more) as runner:
        for device in runner.plan.devices:
            memory = runner.memories[device.name]
            assert memory.by_kind.get("kv_cache", 0) == device.kv_cache_bytes
            assert memory.peak_bytes == device.used_bytes - device.reserve_bytes
        held = [
            3 * -(-min(CONTEXT, b.window + LONGEST_CHUNK if b.window else CONTEXT) // PAGE_TOKENS)
            for b in runner.spec.blocks
        ]
        assert min(held) < 3 * -(-CONTEXT // PAGE_TOKENS)
        assert [kv_buffers(b, CONTEXT, 3, "float16")[0].shape[0] for b in runner.spec.blocks] == held
        planned = sum(total(kv_buffers(b, CONTEXT, 3, "float16")) for b in runner.spec.blocks)
        assert sum(device.kv_cache_bytes for device in runner.plan.devices) == planned
        assert rig == "none" or runner.plan.device("cuda:0").kv_cache_bytes


def test_a_step_has_no_more_of_a_sequence_than_its_ring_has_room_for(tmp_path: Path) -> None:
    """A batch of more than the longest chunk makes steps of as many tokens."""
    theirs = make(tmp_path, "mistral", sliding_window=40)
    with torch.inference_mode():
        expected = theirs(torch.from_numpy(IDS[:1])).logits.numpy()[0]
    with run(tmp_path, weights="float32", batch=LONGEST_CHUNK + 100) as runner:
        assert far(fed(runner, [{0: 860}])[0], expected) < 1e-4

"""Every step of a block on every backend: what each step leaves in its buffer, of each combination that a family uses.

The CPU's compiled call and its walker are equal to the bit; torch and Triton (its interpreter), which keep 16 bits between
linears, are near. (tests/test_decoder.py holds the walker to the reference's backend, block by block.)
"""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bigrun import Runner
from bigrun.model.families.registry import FAMILIES
from bigrun.model.program import X, lower, rewrite
from support import checkpoints
from support.long import long, only

FOLDERS: dict[str, Callable[[Path], Any]] = {
    "llama": lambda folder: checkpoints.llama(folder, kv_heads=1),
    "llama with biases, equal heads": lambda folder: checkpoints.llama(folder, bias=True, kv_heads=4, dtype="bfloat16"),
    "llama, scaled rope": lambda folder: checkpoints.llama(
        folder, rope_scaling={
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    ),
    "mistral": lambda folder: checkpoints.relative(folder, "mistral", sliding_window=128, head_dim=16),
    "qwen2": lambda folder: checkpoints.relative(folder, "qwen2"),
    "qwen3": lambda folder: checkpoints.relative(folder, "qwen3", head_dim=24, num_attention_heads=3, num_key_value_heads=1),
    "qwen3 with biases": lambda folder: checkpoints.relative(folder, "qwen3", head_dim=16, attention_bias=True),
    "phi3": lambda folder: checkpoints.relative(folder, "phi3", pad_token_id=None),
    "phi3, partly turned": lambda folder: checkpoints.relative(
        folder, "phi3", pad_token_id=None, hidden_size=96, num_attention_heads=6, num_key_value_heads=3,
        partial_rotary_factor=0.75, tie_word_embeddings=True,
    ),
    "stablelm": lambda folder: checkpoints.relative(folder, "stablelm", use_qkv_bias=True),
    "stablelm, side by side": lambda folder: checkpoints.relative(
        folder, "stablelm", use_parallel_residual=True, partial_rotary_factor=0.5
    ),
    "starcoder2": lambda folder: checkpoints.relative(folder, "starcoder2", tie_word_embeddings=True),
    "starcoder2 without biases": lambda folder: checkpoints.relative(
        folder, "starcoder2", use_bias=False, hidden_size=48, num_attention_heads=3, num_key_value_heads=1
    ),
    "gpt_neox": lambda folder: checkpoints.relative(folder, "gpt_neox", hidden_size=96, num_attention_heads=3),
    "gpt_neox, one after the other": lambda folder: checkpoints.relative(
        folder, "gpt_neox", use_parallel_residual=False, attention_bias=False, hidden_act="gelu_new",
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.5},
    ),
    "falcon": lambda folder: checkpoints.relative(folder, "falcon", bias=True, tie_word_embeddings=True),
    "falcon, two norms": lambda folder: checkpoints.relative(
        folder, "falcon", new_decoder_architecture=True, num_attention_heads=6, num_kv_heads=2, hidden_size=96,
    ),
    "falcon, one norm and groups": lambda folder: checkpoints.relative(
        folder, "falcon", new_decoder_architecture=True, num_kv_heads=2, num_ln_in_parallel_attn=1, ffn_hidden_size=100,
    ),
    "falcon, one after the other": lambda folder: checkpoints.relative(
        folder, "falcon", parallel_attn=False, multi_query=False
    ),
    "phi": lambda folder: checkpoints.relative(folder, "phi", num_attention_heads=2),
    "gptj": lambda folder: checkpoints.relative(
        folder, "gptj", n_embd=96, n_head=3, n_layer=2, n_inner=100, rotary_dim=8, n_positions=128
    ),
    "smollm3": lambda folder: checkpoints.relative(
        folder, "smollm3", no_rope_layers=[1, 0], tie_word_embeddings=True, pad_token_id=None
    ),
    "gemma": lambda folder: checkpoints.relative(
        folder, "gemma", head_dim=24, num_key_value_heads=1, tie_word_embeddings=True, pad_token_id=None
    ),
    "bloom": lambda folder: checkpoints.bloom(folder),
    "opt": lambda folder: checkpoints.opt(folder),
}  # fmt: skip
IDS = np.random.default_rng(0).integers(3, 200, 13)
BAR = 4e-3  # of float16 between linears, as of test_gpu_engine.py


@pytest.fixture(scope="module", params=FOLDERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("parity")
    FOLDERS[request.param](path)
    return path


def test_every_family_that_runs_is_here() -> None:
    assert {family.name for family in FAMILIES if family.sources} == {name.split(",")[0].split()[0] for name in FOLDERS}


def left(runner: Runner, device: str, count: int) -> Iterator[dict[str, np.ndarray]]:
    """The buffers that the last block's steps have written, of a prompt and of a token after it."""
    engine: Any = runner.executor.engines[device]
    runner.executor.clear(0)
    for ids in (IDS[:count], IDS[-1:]):
        runner.executor.forward({0: ids})
        names = {step.writes for step in rewrite(lower(runner.spec.blocks[-1]), "host").steps} - {"kv"}
        work = {name: engine.work["inner" if name == "up" and "inner" in engine.work else name] for name in names}
        yield {name: torch.as_tensor(value[: len(ids)]).float().numpy().copy() for name, value in work.items()}


def test_the_compiled_call_leaves_what_the_walker_leaves(folder: Path) -> None:
    with Runner(str(folder), gpus="none", cpu="100MB", context=64, progress=False) as runner:
        compiled = list(left(runner, "cpu", 13))
        engine: Any = runner.executor.engines["cpu"]
        assert engine.compiled, "these blocks are the compiled call's"
        engine.compiled = {}
        for ours, theirs in zip(compiled, left(runner, "cpu", 13), strict=True):
            assert ours.keys() == theirs.keys() >= {X, "qkv", "attention", "up"}
            for name in ours:
                assert np.array_equal(ours[name], theirs[name]), name


@pytest.mark.parametrize("kernels", ["reference", long("triton")])
def test_gpus_leave_what_the_cpu_leaves(folder: Path, kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIGRUN_GPU", "emulate")
    options: dict[str, Any] = {"cpu": "100MB", "context": 64, "progress": False, "mode": "exact"}
    with (
        Runner(str(folder), gpus="none", **options) as host,
        Runner(str(folder), gpus="1x100MB", kernels=kernels, **options) as card,
    ):
        for ours, theirs in zip(left(card, "cuda:0", 9), left(host, "cpu", 9), strict=True):
            for name in ours.keys() - {"up"}:  # which the host's activation may have been computed in
                columns = slice(
                    host.spec.blocks[0].q_rows if name == "qkv" else None
                )  # Triton rotates keys into the cache
                a, b = ours[name][:, columns], theirs[name][:, columns]
                assert np.linalg.norm(a - b) / np.linalg.norm(b) < BAR, name


def test_nothing_is_compiled_that_is_not_called(folder: Path) -> None:
    with Runner(str(folder), gpus="none", cpu="100MB", context=64, progress=False, mode="llm.int8") as runner:
        engine: Any = runner.executor.engines["cpu"]
        assert not engine.compiled
        assert np.isfinite(runner.logits(IDS[None])).all()


# Engines × caches × forms of weights, of each family

FORMS: dict[str, tuple[dict[str, Any], float]] = {
    "exact": ({"mode": "exact"}, 0.06), "llm.int8": ({"mode": "llm.int8"}, 0.09), "16bit": ({"weights": "16bit"}, 0.02),
    "float32": ({"weights": "float32"}, 1e-4), "16bit head": ({"mode": "exact", "head": "16bit", "skip": ("down",)}, 0.06),
}  # fmt: skip
EMULATED, VIRTUAL = "1x100MB", "virtual 1x100MB"


def near_transformers(folder: Path, engine: str, kv: str, form: str) -> None:
    """Logits beside transformers' in float32, of a model on one device (hybrids: test_gpu_engine.py)."""
    options, bar = FORMS[form]
    rig: dict[str, Any] = {
        "gpus": engine.split()[-1],
        "virtual": engine == VIRTUAL,
        "cpu": "100MB",
        "context": 64,
        "kv": kv,
    }
    if engine == EMULATED:
        rig["kernels"] = "reference"
    with Runner(str(folder), progress=False, **rig, **options) as runner:
        ours, expected = torch.from_numpy(runner.logits(IDS[None]))[0], transformers_logits(folder)
    bar = max(bar, 0.02 if kv == "int8" else 0.0, 0.005 if engine == EMULATED else 0.0)  # 16 bits between linears
    assert ((ours - expected).norm() / expected.norm()).item() <= bar


@cache
def transformers_logits(folder: Path) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return torch.as_tensor(model(torch.from_numpy(IDS[None])).logits[0])


@pytest.mark.parametrize("form", only(FORMS, quick=["exact", "float32"]))
@pytest.mark.parametrize("kv", only(["16bit", "int8"], quick=["16bit"]))
@pytest.mark.parametrize("engine", only(["none", VIRTUAL, EMULATED], quick=["none"]))
def test_every_engine_cache_and_form_says_what_transformers_says(
    folder: Path, engine: str, kv: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine == EMULATED:
        monkeypatch.setenv("BIGRUN_GPU", "emulate")
    near_transformers(folder, engine, kv, form)

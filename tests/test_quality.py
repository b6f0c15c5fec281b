"""How close the int8 model stays to the 16-bit one: SmolLM2 against transformers in float32, on English text."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from peers import smollm2_float32

from bigrun import Runner
from bigrun.cli import main

TEXT = Path(__file__).parent / "data" / "english.txt"
WINDOW, SHARED = 512, 1024


@pytest.fixture(scope="module")
def theirs() -> Callable[[np.ndarray], torch.Tensor]:
    """transformers' log-probabilities of a window; kept of the first windows, which more than one mode is compared on."""
    kept: dict[bytes, torch.Tensor] = {}

    def of(window: np.ndarray) -> torch.Tensor:
        if (key := window.tobytes()) in kept:
            return kept[key]
        with torch.inference_mode():
            found = torch.log_softmax(smollm2_float32()(torch.from_numpy(window[None])).logits[0], dim=-1)
        if len(kept) < SHARED // WINDOW:
            kept[key] = found
        return found

    return of


def closeness(mode: str, count: int, theirs: Callable[[np.ndarray], torch.Tensor]) -> tuple[float, float]:
    """(mean KL from float32 in nats, agreement of the likeliest token) over `count` tokens in windows of 512.

    Logarithms are float32, as the logits are: that is 1e-5 of a divergence, and twice as quick as float64.
    """
    divergence, agreement = [], []
    with Runner("smollm2-135m", mode=mode, context=WINDOW, progress=False) as runner:
        ids = np.array(runner.tokenizer.encode(TEXT.read_text()))[:count]
        assert len(ids) == count
        for window in np.split(ids, range(WINDOW, count, WINDOW)):
            ours, right = torch.log_softmax(torch.from_numpy(runner.logits(window[None]))[0], dim=-1), theirs(window)
            agreement.append((right.argmax(dim=-1) == ours.argmax(dim=-1)).double())
            divergence.append(ours.sub_(right).neg_().mul_(right.exp()).sum(dim=-1, dtype=torch.float64))
    assert sum(map(len, divergence)) == count
    return torch.cat(divergence).mean().item(), torch.cat(agreement).mean().item()


def test_exact_mode_holds_the_bars_of_issue_2_over_4096_tokens(theirs: Callable[[np.ndarray], torch.Tensor]) -> None:
    divergence, agreement = closeness("exact", 4096, theirs)
    assert divergence <= 0.004
    assert agreement >= 0.955


def test_llm_int8_is_no_worse_than_bitsandbytes_on_the_same_model(
    theirs: Callable[[np.ndarray], torch.Tensor],
) -> None:
    # bitsandbytes' LLM.int8() measured 0.0165 on a dictionary; a bug in the outlier path gives several times that
    divergence, agreement = closeness("llm.int8", SHARED, theirs)
    assert divergence <= 0.02
    assert agreement >= 0.9


def test_eval_perplexity_says_what_transformers_says() -> None:
    call = [
        "eval",
        "perplexity",
        "--text",
        str(TEXT),
        "--tokens",
        "512",
        "--window",
        "256",
        "--against",
        "16bit",
        "--json",
    ]
    result = CliRunner().invoke(main, call)
    report = json.loads(result.stdout)
    assert set(report) == {"model", "tokens", "perplexity", "perplexity_16bit", "mean_kl", "top1_agreement"}
    assert report["tokens"] == 2 * 255, "every token but the first of each window"
    with Runner(context=64, progress=False) as runner:
        ids = torch.tensor(runner.tokenizer.encode(TEXT.read_text()))[:512].view(2, 256)
    with torch.inference_mode():
        loss = smollm2_float32()(ids, labels=ids).loss
    assert report["perplexity_16bit"] == pytest.approx(loss.exp().item(), rel=1e-4)
    assert report["perplexity"] == pytest.approx(report["perplexity_16bit"], rel=0.02)
    assert 0 < report["mean_kl"] < 0.006


def test_the_checking_path_is_the_float32_model() -> None:
    ids = np.arange(1000, 1200)[None]
    with Runner("smollm2-135m", weights="float32", context=256, progress=False) as runner:
        ours = torch.from_numpy(runner.logits(ids))
    with torch.inference_mode():
        theirs = smollm2_float32()(torch.from_numpy(ids)).logits
    assert ((ours - theirs).norm() / theirs.norm()).item() <= 1e-4

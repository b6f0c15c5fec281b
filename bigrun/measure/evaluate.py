"""How good a model still is: perplexity on a text, and how far it is from its own 16-bit values."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bigrun.errors import CallError, RunError

ROWS = 64  # of logits turned into probabilities at a time
LARGEST_TEXT = 2**30


def perplexity(
    open_runner: Callable[..., Any],
    text: Path,
    window: int,
    tokens: int | None,
    open_peer: Callable[..., Any] | None = None,
) -> dict[str, Any]:
    """The JSON object of `eval perplexity`. `open_runner(context)` loads the model.

    The text is cut into windows of `window` tokens, a BOS before each where the tokenizer adds one; every token but the
    first one fed is predicted. `open_peer(context)` loads the checkpoint's own values in float32: they answer the same, and
    `mean_kl` (in nats, from those to the model) and `top1_agreement` are means over the predicted tokens.
    """
    if window < 2:
        raise CallError(f"--window {window}: give at least 2 tokens")
    _read(text)  # before a long load, not after it
    with open_runner(window + 1) as runner:
        ids = text_ids(runner.tokenizer, text, tokens)
        first = [runner.tokenizer.bos_id] if runner.tokenizer.adds_bos else []
        windows = [np.array(first + ids[i : i + window]) for i in range(0, len(ids), window)]
        windows = [w for w in windows if len(w) > 1]
        if open_peer is None:
            loss, count = 0.0, 0
            for fed in windows:
                losses = _losses(runner.logits(fed[None])[0], fed)
                loss, count = loss + losses.sum(), count + len(losses)
            return {"model": runner.plan.model, "tokens": count, "perplexity": math.exp(loss / count)}
        with open_peer(window + 1) as peer:
            return {"model": runner.plan.model, **_compare(runner, peer, windows)}


def text_ids(tokenizer: Any, text: Path, tokens: int | None) -> list[int]:
    """The first tokens of a text, without a BOS. CallError where there are fewer than two."""
    ids: list[int] = tokenizer.encode(_read(text), add_bos=False)[:tokens]
    if len(ids) < 2:
        raise CallError(f"--text {text}: {len(ids)} tokens; at least 2 are needed")
    return ids


def _compare(runner: Any, peer: Any, windows: list[np.ndarray]) -> dict[str, Any]:
    loss = peer_loss = divergence = agreement = 0.0
    count = 0
    for fed in windows:
        ours, theirs = runner.logits(fed[None])[0], peer.logits(fed[None])[0]
        loss += _losses(ours, fed).sum()
        peer_loss += _losses(theirs, fed).sum()
        for start in range(0, len(fed) - 1, ROWS):
            rows = slice(start, min(start + ROWS, len(fed) - 1))
            a, b = log_softmax(ours[rows]), log_softmax(theirs[rows])
            divergence += float((np.exp(b) * (b - a)).sum())
            agreement += float((a.argmax(axis=1) == b.argmax(axis=1)).sum())
        count += len(fed) - 1
    return {
        "tokens": count,
        "perplexity": math.exp(loss / count),
        "perplexity_16bit": math.exp(peer_loss / count),
        "mean_kl": divergence / count,
        "top1_agreement": agreement / count,
    }


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """float64 [rows, vocab]."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _losses(logits: np.ndarray, fed: np.ndarray) -> np.ndarray:
    """−log p of each token but the first, in nats."""
    if not np.isfinite(logits).all():
        raise RunError("the model gives logits that are not numbers; its activations overflow")
    result = np.empty(len(fed) - 1)
    for start in range(0, len(result), ROWS):
        stop = min(start + ROWS, len(result))
        predicted = log_softmax(logits[start:stop])
        result[start:stop] = -predicted[np.arange(stop - start), fed[start + 1 : stop + 1]]
    return result


def _read(text: Path) -> str:
    try:
        if text.stat().st_size > LARGEST_TEXT:
            raise CallError(f"--text {text}: larger than 1 GiB; cut it, or give --tokens")
        return text.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise CallError(f"--text {text}: cannot be read: {error.strerror}") from error


def describe(report: dict[str, Any]) -> str:
    """The report for a person."""
    line = f"{report['model']}: perplexity {report['perplexity']:.3f} over {report['tokens']:,} tokens"
    if "mean_kl" in report:
        line += (
            f"; in 16 bits {report['perplexity_16bit']:.3f}, mean KL {report['mean_kl']:.4f}, "
            f"the same likeliest token {report['top1_agreement']:.1%}"
        )
    return line

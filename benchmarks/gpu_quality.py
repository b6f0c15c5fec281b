"""How close a GPU's arithmetic stays to float32: mean KL and agreement for each way to compute prompts.

    python benchmarks/gpu_quality.py [--model smollm2-135m] [--text FILE] [--tokens 4096] [--gpus 1x1GB]

Without a GPU, say BIGRUN_GPU=emulate: the same engine computes the same arithmetic on the CPU through torch, slowly (its sums
are more exact than a tensor core's). The float32 side is bigrun's own checking path on the CPU (`--weights float32`).
"""

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bigrun import Runner

WINDOW = 512


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    log_probabilities: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return log_probabilities


def closeness(runner: Any, windows: list[np.ndarray], expected: list[np.ndarray]) -> tuple[float, float]:
    divergence, agreement = [], []
    for window, theirs in zip(windows, expected, strict=True):
        ours = log_softmax(runner.logits(window[None])[0])
        divergence.append((np.exp(theirs) * (theirs - ours)).sum(axis=-1))
        agreement.append(theirs.argmax(axis=-1) == ours.argmax(axis=-1))
    return float(np.concatenate(divergence).mean()), float(np.concatenate(agreement).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--text", type=Path, default=Path("tests/data/english.txt"))
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--gpus", default="1x1GB")
    options = parser.parse_args()
    common: dict[str, Any] = {"context": WINDOW, "progress": False}
    with Runner(options.model, weights="float32", gpus="none", **common) as peer:
        ids = np.array(peer.tokenizer.encode(options.text.read_text(encoding="utf-8")))[: options.tokens]
        windows = np.split(ids, range(WINDOW, len(ids), WINDOW))
        expected = [log_softmax(peer.logits(window[None])[0]) for window in windows]
    kernels = "reference" if os.environ.get("BIGRUN_GPU") == "emulate" else "auto"
    with Runner(options.model, gpus=options.gpus, kernels=kernels, **common) as runner:
        engine: Any = next(e for name, e in runner.executor.engines.items() if runner.memories[name].is_gpu)
        print(f"{runner.plan.model}, {len(ids)} tokens in windows of {WINDOW}, {runner.kernels}")
        for mode, threshold in (
            ("exact", 0.0),
            ("grouped", 6.0),
            ("grouped", 0.0),
            ("llm.int8", 6.0),
            ("llm.int8", 0.0),
        ):
            engine.arithmetic = replace(engine.arithmetic, prefill=mode, threshold=threshold)
            divergence, agreement = closeness(runner, windows, expected)
            outliers = f"threshold {threshold:g}" if threshold else "no outliers" if mode != "exact" else ""
            print(f"{mode:10s} {outliers:14s} mean KL {divergence:.4f}   top-1 {agreement:.1%}", flush=True)


if __name__ == "__main__":
    main()

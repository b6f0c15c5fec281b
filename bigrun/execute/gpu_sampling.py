"""Chooses the next token on the GPU, as execute/sampling.py does on the host, without waiting for the host."""

import torch
from torch import Tensor

from bigrun.execute.sampling import Sampling, uniform


def stays_on_device(sampling: Sampling) -> bool:
    """Whether a device makes this choice itself: greedy, by temperature and by top_k. The rest is the host's: top_p and min_p
    where something is drawn, and a penalty."""
    drawn = sampling.temperature > 0 and (sampling.top_p < 1 or sampling.min_p > 0)
    return sampling.repetition_penalty == 1 and not drawn


def chosen_on_device(logits: Tensor, sampling: Sampling, sequence: int, position: int, choice: Tensor) -> None:
    """choice int64 [3] ← the token for `position` from `logits` float32 [vocabulary], whether the largest is finite, and its
    bits.

    Of equal logits the lowest index counts as the higher, as on the host; sums are float64. The noise is a function of seed,
    sequence and position, known beforehand.
    """
    best = logits.max()  # a NaN wins, wherever it is
    choice[1], choice[2] = best.isfinite(), best.view(torch.int32)
    # the lowest of equals: which one argmax takes is not promised
    index = torch.arange(logits.numel(), device=logits.device)
    first = torch.where((logits == best) | logits.isnan(), index, logits.numel() - 1).min()
    if sampling.temperature == 0:
        choice[0] = first
        return
    weights = torch.exp((logits.double() - best.double()) / sampling.temperature)
    if 0 < sampling.top_k < logits.numel():
        least = torch.topk(logits, sampling.top_k).values[-1]
        above, level = logits > least, logits == least
        quota = sampling.top_k - above.sum()
        weights = torch.where(above | (level & (level.cumsum(0) <= quota)), weights, 0.0)
    sums = weights.cumsum(0)
    total = sums[-1]
    drawn = torch.minimum(total * uniform(sampling.seed, sequence, position), torch.nextafter(total, total * 0))
    token = torch.searchsorted(sums, drawn, right=True).clamp(max=logits.numel() - 1)
    choice[0] = torch.where(best.isfinite(), token, first)

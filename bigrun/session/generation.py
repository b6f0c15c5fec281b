"""A generation: pieces of text as they come, and what it took."""

import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bigrun.execute.sampling import Sampling


@dataclass(frozen=True)
class Stats:
    prompt_tokens: int
    new_tokens: int
    load_seconds: float
    prefill_seconds: float
    decode_seconds: float


@dataclass(frozen=True)
class Generation:
    """What `generate` returns: the new text, its tokens (the stop token not among them), and what it took."""

    text: str
    token_ids: tuple[int, ...]
    stats: Stats


class Stream:
    """Pieces of text as they come; `token_ids` grows with them and `stats` tells what it has taken so far."""

    def __init__(self, runner: Any, ids: list[int], max_new_tokens: int, sampling: "Sampling"):
        self.token_ids: list[int] = []
        self.stats = Stats(len(ids), 0, runner.load_seconds, 0.0, 0.0)
        self._pieces: Generator[str, None, None] = self._run(runner, ids, max_new_tokens, sampling)

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """End the stream where it is: the Runner is free for another."""
        self._pieces.close()

    def _run(self, runner: Any, ids: list[int], limit: int, sampling: "Sampling") -> Generator[str, None, None]:
        with runner.sole_use():
            yield from self._generate(runner, ids, limit, sampling)

    def _generate(self, runner: Any, ids: list[int], limit: int, sampling: "Sampling") -> Iterator[str]:
        from bigrun.execute.sampling import choose

        executor, text = runner.executor, runner.tokenizer.stream()
        limit = min(limit, runner.plan.context_tokens - len(ids) + 1)
        runner._use_threads()
        executor.clear(0)
        started = time.perf_counter()
        logits = executor.forward({0: ids})[0]
        self.stats = replace(self.stats, prefill_seconds=time.perf_counter() - started)
        started = time.perf_counter()
        token = choose(logits, sampling, 0, len(ids))
        following = executor.continuation(token, sampling, len(ids), limit - 1)
        for i in range(limit):
            if token in runner.tokenizer.stop_ids:
                break
            self.token_ids.append(token)
            self.stats = replace(self.stats, new_tokens=i + 1, decode_seconds=time.perf_counter() - started)
            if piece := text.push(token):
                yield piece
            if i + 1 < limit:
                token = next(following)
        self.stats = replace(self.stats, decode_seconds=time.perf_counter() - started)
        if piece := text.finish():
            yield piece

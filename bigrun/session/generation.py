"""A generation: pieces of text as they come, and what it took."""

import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from typing import Any

from bigrun.session.request import Growing, Request

SHOWN = 60  # characters of an answer in its repr


@dataclass(frozen=True)
class Stats:
    """What a request took."""

    prompt_tokens: int  # of the prompt, with the chat template's
    new_tokens: int  # generated, the stop token not among them
    load_seconds: float  # from the Runner's construction until it could run: the same for all its requests
    prefill_seconds: float  # from the prompt to the first token
    decode_seconds: float  # from the first token to the last
    seed: int | None = None  # of the noise that tokens were drawn with; None: greedy, nothing was drawn
    ended: str | None = None  # by "stop_token", "stop_text", "max_new_tokens" or "context" (full); None: not at its end
    reused_tokens: int = 0  # of the prompt's, taken up from the request before, which shares them

    @property
    def decode_tokens_per_s(self) -> float | None:
        """Steps of decode a second: one for each token after the first, the stop token too; None without such a step."""
        steps = self.new_tokens - (self.ended != "stop_token")
        return steps / self.decode_seconds if steps > 0 and self.decode_seconds > 0 else None

    @property
    def prefill_tokens_per_s(self) -> float | None:
        """Tokens of the prompt a second, of those that were computed."""
        computed = self.prompt_tokens - self.reused_tokens
        return computed / self.prefill_seconds if self.prefill_seconds > 0 else None


@dataclass(frozen=True, repr=False)
class Generation:
    """What `generate` returns."""

    text: str  # the continuation, without the prompt
    token_ids: tuple[int, ...]  # its tokens, without the stop token
    stats: Stats  # what it took

    def __repr__(self) -> str:
        """One line for a notebook: the beginning of the text, how much it is, how it ended."""
        text = self.text if len(self.text) <= SHOWN else self.text[:SHOWN] + "…"
        return f"Generation({text!r}, {len(self.token_ids)} tokens, ended by {self.stats.ended})"


class Stream:
    """Pieces of text as they come; `token_ids` grows with them and `stats` tells what it has taken so far."""

    def __init__(self, runner: Any, request: Request):
        self.stats = stats_at_start(runner, request)
        self._request = request
        self._pieces: Generator[str, None, None] = self._run(runner, request)

    @property
    def token_ids(self) -> list[int]:
        """The tokens so far, the stop token not among them."""
        return self._request.token_ids

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def __next__(self) -> str:
        return next(self._pieces)

    def __repr__(self) -> str:
        """One line for a notebook: how far it is."""
        state = "not at its end" if self.stats.ended is None else f"ended by {self.stats.ended}"
        return f"Stream({self.stats.prompt_tokens} + {len(self.token_ids)} tokens, {state})"

    def close(self) -> None:
        """End the stream where it is: the Runner is free for another."""
        self._pieces.close()

    def _run(self, runner: Any, request: Request) -> Generator[str, None, None]:
        with runner.sole_use():
            yield from self._generate(runner, request)

    def _generate(self, runner: Any, request: Request) -> Iterator[str]:
        answer = Growing(request, runner.tokenizer, runner.plan.context_tokens)
        runner.use_threads()
        started = time.perf_counter()
        reused = runner.executor.take_up(request.prompt_ids)
        tokens = runner.executor.generate(request.prompt_ids, request.sampling, answer.limit, request.sequence)
        token = next(tokens)
        self.stats = replace(self.stats, reused_tokens=reused, prefill_seconds=time.perf_counter() - started)
        started = time.perf_counter()
        while True:
            piece = answer.take(token)
            spent = time.perf_counter() - started
            self.stats = replace(
                self.stats, new_tokens=len(request.token_ids), decode_seconds=spent, ended=answer.ended
            )
            if piece:
                yield piece
            if answer.ended is not None:
                return
            token = next(tokens)


def stats_at_start(runner: Any, request: Request) -> Stats:
    """Of a request that has not begun."""
    seed = request.sampling.seed if request.sampling.temperature > 0 else None
    return Stats(len(request.prompt_ids), 0, runner.load_seconds, 0.0, 0.0, seed)

"""A generation: pieces of text as they come, and what it took."""

import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from typing import Any

from bigrun.session.request import Continuation, Request

SHOWN = 60  # characters of an answer in its repr


@dataclass(frozen=True)
class Stats:
    """What a request took."""

    prompt_tokens: int  # of the prompt, with the chat template's
    new_tokens: int  # generated, the stop token not among them
    load_seconds: float  # from the Runner's construction until it could run: the same for all its requests
    prefill_seconds: float  # from the prompt to the first token; of a list, with the prompts that share its steps
    decode_seconds: float  # from the first token to the last, without what the reader of a stream takes
    seed: int | None = None  # of the noise that tokens were drawn with; None: greedy, nothing was drawn
    ended: str | None = None  # by "stop_token", "stop_text", "max_new_tokens" or "context" (full); None: not at its end
    reused_tokens: int = 0  # of the prompt's, kept from the request before, which begins with them too

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


@dataclass
class _Progress:
    """What a stream and the generator behind it share: neither holds the other, so that a dropped stream ends at once."""

    stats: Stats


class Stream:
    """Pieces of text as they come; `token_ids` grows with them and `stats` tells what it has taken so far."""

    def __init__(self, runner: Any, request: Request):
        self._runner, self._request, self._progress = runner, request, _Progress(stats_at_start(runner, request))
        self._pieces, self._closed = _run(runner, request, self._progress), False
        runner.live_streams.add(self._pieces)

    @property
    def stats(self) -> Stats:
        """What it has taken so far."""
        return self._progress.stats

    @property
    def token_ids(self) -> list[int]:
        """The tokens so far, the stop token not among them."""
        return self._request.token_ids

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        """The next piece. CallError where the Runner was closed meanwhile, or another stream has it."""
        if self.stats.ended is None and not self._closed:
            self._runner.check_open()
        return next(self._pieces)

    def __repr__(self) -> str:
        """One line for a notebook: how far it is."""
        state = "not at its end" if self.stats.ended is None else f"ended by {self.stats.ended}"
        return f"Stream({self.stats.prompt_tokens} + {len(self.token_ids)} tokens, {state})"

    def close(self) -> None:
        """End the stream where it is: the Runner is free for another."""
        self._closed = True
        self._pieces.close()


def _run(runner: Any, request: Request, progress: _Progress) -> Generator[str, None, None]:
    with runner.sole_use():
        yield from _generate(runner, request, progress)


def _generate(runner: Any, request: Request, progress: _Progress) -> Iterator[str]:
    answer = Continuation(request, runner.tokenizer, runner.plan.context_tokens)
    runner.use_threads()
    started = time.perf_counter()
    reused = runner.executor.reusable_prefix(request.prompt_ids, 0)
    tokens = runner.executor.generate(request.prompt_ids, request.sampling, answer.limit, request.noise_stream)
    token = next(tokens)
    now = time.perf_counter()
    progress.stats = replace(progress.stats, reused_tokens=reused, prefill_seconds=now - started)
    started, spent = now, 0.0
    while True:
        piece = answer.append(token)
        spent += time.perf_counter() - started
        new = len(request.token_ids)
        progress.stats = replace(progress.stats, new_tokens=new, decode_seconds=spent, ended=answer.ended)
        if piece:
            yield piece
        if answer.ended is not None:
            return
        started = time.perf_counter()
        token = next(tokens)


def stats_at_start(runner: Any, request: Request) -> Stats:
    """Of a request that has not begun."""
    seed = request.sampling.seed if request.sampling.temperature > 0 else None
    return Stats(len(request.prompt_ids), 0, runner.load_seconds, 0.0, 0.0, seed)


def run_request(runner: Any, request: Request) -> Generation:
    """What one request gives, whole."""
    stream = Stream(runner, request)
    text = "".join(stream)
    return Generation(text, tuple(stream.token_ids), stream.stats)

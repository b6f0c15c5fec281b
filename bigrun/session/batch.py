"""Several requests at a time: their prompts in shared steps, then a token of each in every step, until all have ended."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bigrun.session.generation import Generation, Stats, Stream, stats_at_start
from bigrun.session.request import Growing, Request

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass
class _Answer:
    """A request under way, in a sequence of the KV cache that is its own until it ends."""

    request: Request
    growing: Growing
    stats: Stats
    seen: Any  # bool [vocabulary]: for a penalty; else None
    started: float
    text: str = ""
    token: int = 0  # the last one, to be fed


def whole(runner: Any, request: Request) -> Generation:
    """What one request gives."""
    stream = Stream(runner, request)
    text = "".join(stream)
    return Generation(text, tuple(stream.token_ids), stream.stats)


def answers(runner: Any, requests: Sequence[Request]) -> Iterator[tuple[int, Generation]]:
    """(number, what the request gives) as they end: as many at a time as the plan has sequences, the next when one ends.

    The tokens are those of each request alone, except in llm.int8 with a threshold, whose outliers are found for all the tokens
    of a step together, and on a real GPU, whose sums depend on the size of a step.
    """
    if runner.plan.batch == 1:  # a GPU that has everything chooses the tokens of one sequence itself
        yield from ((number, whole(runner, request)) for number, request in enumerate(requests))
        return
    with runner.sole_use():
        runner.use_threads()
        waiting = deque(enumerate(requests))
        free = deque(range(runner.plan.batch))
        active: dict[int, tuple[int, _Answer]] = {}
        while waiting or active:
            fresh: dict[int, tuple[int, _Answer]] = {}
            while waiting and free:
                number, request = waiting.popleft()
                fresh[_closest(runner.executor, request.prompt_ids, free)] = number, _begin(runner, request)
            # prompts first, so that all go on together
            logits = _prompts(runner, fresh) if fresh else _next_tokens(runner, active)
            active.update(fresh)
            for sequence, row in logits.items():
                number, answer = active[sequence]
                _take(runner, sequence, answer, row)
                if answer.growing.ended is not None:
                    free.append(sequence)
                    del active[sequence]
                    yield number, Generation(answer.text, tuple(answer.request.token_ids), answer.stats)


def _closest(executor: Any, ids: list[int], free: deque[int]) -> int:
    """The free sequence that has most of a prompt, taken out of `free`."""
    chosen = max(free, key=lambda sequence: executor.shared(ids, sequence))
    free.remove(chosen)
    return chosen


def _begin(runner: Any, request: Request) -> _Answer:
    from bigrun.execute.sampling import seen_tokens

    penalised = request.sampling.repetition_penalty != 1
    seen = seen_tokens(request.prompt_ids, runner.spec.vocab) if penalised else None
    growing = Growing(request, runner.tokenizer, runner.plan.context_tokens)
    return _Answer(request, growing, stats_at_start(runner, request), seen, time.perf_counter())


def _prompts(runner: Any, fresh: dict[int, tuple[int, _Answer]]) -> dict[int, NDArray[Any]]:
    """Logits after each new request's prompt: in shared steps where that changes nothing, else one prompt after another."""
    left = {}
    for sequence, (_, answer) in fresh.items():
        ids = answer.request.prompt_ids
        reused = runner.executor.take_up(ids, sequence)
        answer.stats = replace(answer.stats, reused_tokens=reused)
        left[sequence] = ids[reused:]
    groups = [left] if runner.executor.repeatable else [{sequence: ids} for sequence, ids in left.items()]
    logits: dict[int, NDArray[Any]] = {}
    for group in groups:
        logits |= runner.executor.forward(group, phase="prefill")
    return logits


def _next_tokens(runner: Any, active: dict[int, tuple[int, _Answer]]) -> dict[int, NDArray[Any]]:
    logits: dict[int, NDArray[Any]] = runner.executor.forward(
        {sequence: [answer.token] for sequence, (_, answer) in active.items()}, phase="decode"
    )
    return logits


def _take(runner: Any, sequence: int, answer: _Answer, logits: NDArray[Any]) -> None:
    """Choose an answer's next token."""
    from bigrun.execute.sampling import choose

    request, position = answer.request, int(runner.executor.pages.lengths[sequence])
    answer.token = choose(logits, request.sampling, request.sequence, position, answer.seen)
    if answer.seen is not None:
        answer.seen[answer.token] = True
    first = not answer.request.token_ids
    answer.text += answer.growing.take(answer.token)
    now = time.perf_counter()
    if first:
        answer.stats = replace(answer.stats, prefill_seconds=now - answer.started)
        answer.started = now
    answer.stats = replace(
        answer.stats,
        new_tokens=len(request.token_ids),
        decode_seconds=now - answer.started,
        ended=answer.growing.ended,
    )

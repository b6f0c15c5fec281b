"""Several requests at a time: their prompts in shared steps, then a token of each in every step, until all have ended."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bigrun.session.generation import Generation, Stats, run_request, stats_at_start
from bigrun.session.request import Continuation, Request

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass
class _Running:
    """A request under way, in a sequence of the KV cache that is its own until it ends."""

    number: int
    request: Request
    continuation: Continuation
    stats: Stats
    seen: Any  # bool [vocabulary]: for a penalty; else None
    started: float
    text: str = ""
    token: int = 0  # the last one, to be fed


def run_requests(runner: Any, requests: Sequence[Request]) -> Iterator[tuple[int, Generation]]:
    """(number, what the request gives) as they end: as many at a time as the plan has sequences, the next when one ends.

    The tokens are those of each request alone, except in llm.int8 with a threshold, whose outliers are found for all the tokens
    of a step together, and on a real GPU, whose sums depend on the size of a step.
    """
    if runner.plan.batch == 1:  # a GPU that has everything chooses the tokens of one sequence itself
        yield from ((number, run_request(runner, request)) for number, request in enumerate(requests))
        return
    with runner.sole_use():
        waiting, free = list(enumerate(requests)), list(range(runner.plan.batch))
        running: dict[int, _Running] = {}
        while waiting or running:
            runner.check_open()
            runner.use_threads()
            fresh = _assigned(runner, waiting, free)
            running |= fresh
            # prompts first, so that all go on together
            logits = _prompts(runner, fresh) if fresh else _next_tokens(runner, running)
            ended: list[_Running] = []
            for sequence, row in logits.items():
                each = running[sequence]
                _append(runner, sequence, each, row)
                if each.continuation.ended is not None:
                    free.append(sequence)
                    ended.append(running.pop(sequence))
            for each in ended:
                yield each.number, Generation(each.text, tuple(each.request.token_ids), each.stats)


def _assigned(runner: Any, waiting: list[tuple[int, Request]], free: list[int]) -> dict[int, _Running]:
    """The requests that begin now, by their sequences, taken out of both lists: each prompt in the sequence that has most of
    it, the one with most to reuse first."""
    begin = waiting[: len(free)]
    del waiting[: len(begin)]
    fresh: dict[int, _Running] = {}
    while begin:
        pairs = [(request, number, sequence) for number, request in begin for sequence in free]
        request, number, sequence = max(
            pairs, key=lambda pair: runner.executor.reusable_prefix(pair[0].prompt_ids, pair[2])
        )
        begin.remove((number, request))
        free.remove(sequence)
        fresh[sequence] = _begin(runner, number, request)
    return fresh


def _begin(runner: Any, number: int, request: Request) -> _Running:
    from bigrun.execute.sampling import seen_tokens

    penalised = request.sampling.repetition_penalty != 1
    seen = seen_tokens(request.prompt_ids, runner.spec.vocab) if penalised else None
    continuation = Continuation(request, runner.tokenizer, runner.plan.context_tokens)
    return _Running(number, request, continuation, stats_at_start(runner, request), seen, time.perf_counter())


def _prompts(runner: Any, fresh: dict[int, _Running]) -> dict[int, NDArray[Any]]:
    """Logits after each new request's prompt: in shared steps where that changes nothing, else one prompt after another."""
    left = {}
    for sequence, each in fresh.items():
        ids = each.request.prompt_ids
        reused = runner.executor.reuse_prefix(ids, sequence)
        each.stats = replace(each.stats, reused_tokens=reused)
        left[sequence] = ids[reused:]
    groups = [left] if runner.executor.repeatable else [{sequence: ids} for sequence, ids in left.items()]
    logits: dict[int, NDArray[Any]] = {}
    for group in groups:
        logits |= runner.executor.forward(group, phase="prefill")
    return logits


def _next_tokens(runner: Any, running: dict[int, _Running]) -> dict[int, NDArray[Any]]:
    logits: dict[int, NDArray[Any]] = runner.executor.forward(
        {sequence: [each.token] for sequence, each in running.items()}, phase="decode"
    )
    return logits


def _append(runner: Any, sequence: int, each: _Running, logits: NDArray[Any]) -> None:
    """Choose a request's next token."""
    from bigrun.execute.sampling import choose

    request, position = each.request, int(runner.executor.pages.lengths[sequence])
    first = not request.token_ids
    each.token = choose(logits, request.sampling, request.noise_stream, position, each.seen)
    if each.seen is not None:
        each.seen[each.token] = True
    each.text += each.continuation.append(each.token)
    now = time.perf_counter()
    if first:
        each.stats = replace(each.stats, prefill_seconds=now - each.started)
        each.started = now
    new, ended = len(request.token_ids), each.continuation.ended
    each.stats = replace(each.stats, new_tokens=new, decode_seconds=now - each.started, ended=ended)

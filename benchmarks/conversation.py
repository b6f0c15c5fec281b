"""What a conversation saves, and what a batch gains: on this machine's CPU, in one process, alternating.

    python benchmarks/conversation.py --model FOLDER [--prompt-tokens 1500] [--follow-tokens 30] [--prompts 8]
                                      [--new-tokens 128] [--rounds 5]

The first turn is a prompt of so many tokens; the second one is that, its answer and a few tokens more. Printed are the seconds
of both prompts and their ratio, with the follow-up computed anew beside it, and the tokens a second of one prompt and of
several together, with their ratio: medians over the rounds, and the range. The ids are drawn, so no tokenizer is needed; what
ends an answer is the number of tokens.
"""

import argparse
import statistics
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from bigrun import Runner
from bigrun.execute.sampling import Sampling
from bigrun.session.batch import run_requests
from bigrun.session.request import Request

ANSWER = 32  # tokens of the first turn's answer
PROMPT = 32  # tokens of each prompt of a batch


class NoText:
    """In place of a tokenizer: no token is text, and none ends an answer."""

    stop_ids: frozenset[int] = frozenset()

    def stream(self, shown: Any = ()) -> "NoText":
        return self

    def push(self, _: int) -> str:
        return ""

    def finish(self) -> str:
        return ""


@dataclass
class Taken:
    first: float
    follow: float
    anew: float
    one: float
    together: float


def ids(seed: int, count: int, vocab: int) -> list[int]:
    drawn: list[int] = np.random.default_rng(seed).integers(10, vocab, count).tolist()
    return drawn


def prompt_seconds(runner: Runner, prompt: list[int], forget: bool) -> tuple[float, list[int]]:
    """Seconds from a prompt to its first token, and the answer's tokens."""
    if forget:
        runner.executor.clear(0)
    started = time.perf_counter()
    tokens = runner.executor.generate(prompt, Sampling(), ANSWER)
    said = [next(tokens)]
    taken = time.perf_counter() - started
    return taken, [*said, *tokens]


def tokens_per_s(runner: Runner, count: int, new: int, seed: int) -> float:
    """Of `count` prompts answered together, from the first prompt to the last token."""
    for sequence in range(runner.plan.batch):
        runner.executor.clear(sequence)
    requests = [Request(ids(seed + i, PROMPT, runner.spec.vocab), new, Sampling(), i) for i in range(count)]
    started = time.perf_counter()
    given = [answer for _, answer in run_requests(runner, requests)]
    return sum(len(answer.token_ids) for answer in given) / (time.perf_counter() - started)


def one_round(runner: Runner, args: argparse.Namespace, seed: int) -> Taken:
    prompt = ids(seed, args.prompt_tokens, runner.spec.vocab)
    first, said = prompt_seconds(runner, prompt, forget=True)
    longer = [*prompt, *said, *ids(seed + 1, args.follow_tokens, runner.spec.vocab)]
    follow, answer = prompt_seconds(runner, longer, forget=False)
    anew, same = prompt_seconds(runner, longer, forget=True)
    assert answer == same, "what is taken up changes nothing"
    one, together = (tokens_per_s(runner, count, args.new_tokens, seed) for count in (1, args.prompts))
    return Taken(first, follow, anew, one, together)


def middle(values: list[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompt-tokens", type=int, default=1500)
    parser.add_argument("--follow-tokens", type=int, default=30)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    context = max(args.prompt_tokens + 2 * ANSWER + args.follow_tokens, PROMPT + args.new_tokens)
    with Runner(args.model, gpus="none", context=context, batch=args.prompts, progress=False) as runner:
        runner.tokenizer = NoText()  # type: ignore[assignment]
        one_round(runner, args, 0)  # warm
        rounds = [one_round(runner, args, 100 * i) for i in range(1, args.rounds + 1)]
        print(f"{runner!r}, {runner.kernels}")
    print(f"a first prompt of {args.prompt_tokens} tokens   {middle([r.first for r in rounds], '.2f')} s")
    print(f"a follow-up, {ANSWER} + {args.follow_tokens} tokens on  {middle([r.follow for r in rounds], '.3f')} s")
    print(f"the same computed anew            {middle([r.anew for r in rounds], '.2f')} s")
    print(f"follow-up / first                 {middle([r.follow / r.first for r in rounds], '.3f')}")
    print(f"one prompt of {PROMPT}, {args.new_tokens} tokens more  {middle([r.one for r in rounds], '.1f')} tokens/s")
    print(f"{args.prompts} together                        {middle([r.together for r in rounds], '.1f')} tokens/s")
    print(f"together / one                    {middle([r.together / r.one for r in rounds], '.2f')}")


if __name__ == "__main__":
    main()

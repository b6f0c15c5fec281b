"""What is asked of a Runner beside the prompt, and the requests that come of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bigrun.errors import CallError
from bigrun.session.preflight import check_generation
from bigrun.session.prompts import checked_ids, prompt_ids
from bigrun.session.request import Request
from bigrun.text.stop import stop_texts


@dataclass(frozen=True)
class Asked:
    """The parameters of `Runner.generate` and `stream`: `sampling` has temperature, top_k, top_p, min_p, repetition_penalty and
    seed; `shown` are special tokens that are text of the answer."""

    max_new_tokens: int | None
    raw: bool
    stop: str | Sequence[str]
    template_args: Mapping[str, Any] | None
    sampling: Mapping[str, Any]
    shown: tuple[str, ...] = ()

    def request(self, runner: Any, prompt: Any, number: int = 0) -> Request:
        """One prompt, text, token ids or messages, checked. `number`: among prompts that are given together; its noise is its
        own. CallError for what makes no sense, and where the Runner is closed."""
        runner.check_open()
        sampling, stops = check_generation(self.max_new_tokens, self.sampling), stop_texts(self.stop)
        table, context = runner.spec.vocab, runner.plan.context_tokens
        if isinstance(prompt, str) or (len(prompt) > 0 and isinstance(prompt[0], Mapping)):
            ids = prompt_ids(runner.tokenizer, prompt, self.raw, table, context, self.template_args)
        elif self.template_args:
            raise CallError("template_args: they are for a chat template, and token ids are taken as they are")
        else:
            ids = checked_ids(prompt, table, context)
        return Request(ids, self.max_new_tokens, sampling, number, stops, self.shown)

    def requests(self, runner: Any, prompts: Sequence[Any]) -> list[Request]:
        """Several prompts, with one seed for all. CallError says which one makes no sense."""
        seed = check_generation(self.max_new_tokens, self.sampling).seed
        asked, requests = replace(self, sampling={**self.sampling, "seed": seed}), []
        for number, prompt in enumerate(prompts):
            try:
                requests.append(asked.request(runner, prompt, number))
            except CallError as error:
                raise CallError(f"prompt {number + 1} of {len(prompts)}: {error}") from error
        return requests

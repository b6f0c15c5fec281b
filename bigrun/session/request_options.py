"""What is asked of a Runner beside the prompt, and the requests that come of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bigrun.errors import CallError
from bigrun.session.preflight import check_generation
from bigrun.session.prompts import checked_ids, one_prompt, prompt_ids
from bigrun.session.request import Request
from bigrun.text.stop import stop_texts


@dataclass(frozen=True)
class RequestOptions:
    """The parameters of `Runner.generate` and `stream`, checked as far as that needs no model.

    `sampling` has temperature, top_k, top_p, min_p, repetition_penalty and seed; `shown` are special tokens that are text of
    the answer. CallError for what makes no sense.
    """

    max_new_tokens: int | None
    raw: bool
    stop: str | Sequence[str]
    template_args: Mapping[str, Any] | None
    sampling: Mapping[str, Any]
    shown: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", stop_texts(self.stop))  # once: it may be an iterator
        check_generation(self.max_new_tokens, self.sampling)
        if self.template_args is not None and not isinstance(self.template_args, Mapping):
            kind = type(self.template_args).__name__
            raise CallError(f"template_args: {kind} is no dictionary, such as {{'enable_thinking': False}}")

    def request(self, runner: Any, prompt: Any) -> Request:
        """One prompt, a text, token ids or messages. CallError for anything else, and where the Runner is closed."""
        return self._request(runner, one_prompt(prompt), 0)

    def requests(self, runner: Any, prompts: Sequence[Any]) -> list[Request]:
        """Several prompts, with one seed for all. CallError says which one makes no sense."""
        seed = check_generation(self.max_new_tokens, self.sampling).seed
        options, requests = replace(self, sampling={**self.sampling, "seed": seed}), []
        for number, prompt in enumerate(prompts):
            try:
                requests.append(options._request(runner, prompt, number))
            except CallError as error:
                raise CallError(f"prompt {number + 1} of {len(prompts)}: {error}") from error
        return requests

    def _request(self, runner: Any, prompt: Any, number: int) -> Request:
        runner.check_open()
        sampling, stops = check_generation(self.max_new_tokens, self.sampling), stop_texts(self.stop)
        table, context = runner.spec.vocab, runner.plan.context_tokens
        if isinstance(prompt, str) or isinstance(prompt[0], Mapping):
            ids = prompt_ids(runner.tokenizer, prompt, self.raw, table, context, self.template_args)
        elif self.template_args:
            raise CallError("template_args: they are for a chat template, and token ids are taken as they are")
        else:
            ids = checked_ids(prompt, table, context)
        return Request(ids, self.max_new_tokens, sampling, number, stops, self.shown)

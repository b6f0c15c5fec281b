"""A request: a prompt's tokens, how its continuation is chosen and ended, and the tokens that it has so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bigrun.text.stop import StopTexts

if TYPE_CHECKING:
    from bigrun.execute.sampling import Sampling
    from bigrun.text.tokenizer import Tokenizer


@dataclass
class Request:
    """One prompt and its continuation. `noise_stream` is its number among prompts that are given together: equal prompts
    draw different tokens."""

    prompt_ids: list[int]
    max_new_tokens: int | None  # None: as many as the context holds
    sampling: Sampling
    noise_stream: int = 0
    stop: tuple[str, ...] = ()  # texts that end it
    shown: tuple[str, ...] = ()  # special tokens that are text of the answer
    token_ids: list[int] = field(default_factory=list)  # of the continuation, without the stop token


class Continuation:
    """The continuation of a request as it grows: each token becomes text, until something ends it.

    `limit` tokens are chosen at most; `ended` says by what it ended: "stop_token", "stop_text", "max_new_tokens" or "context"
    (which is full); None before that.
    """

    def __init__(self, request: Request, tokenizer: Tokenizer, context: int):
        room = context - len(request.prompt_ids) + 1  # the last token that is chosen is not fed
        wanted = room if request.max_new_tokens is None else request.max_new_tokens
        self.request, self.limit = request, min(wanted, room)
        self.ended: str | None = None
        self._at_limit = "max_new_tokens" if request.max_new_tokens is not None and wanted <= room else "context"
        self._text, self._stops = tokenizer.stream(request.shown), StopTexts(request.stop)
        self._stop_ids = tokenizer.stop_ids

    def append(self, token: int) -> str:
        """The text that a token completes, "" for none; with the last one comes what was held back."""
        if token in self._stop_ids:
            self.ended = "stop_token"
            return self._rest()
        self.request.token_ids.append(token)
        piece = self._stops.push(self._text.push(token))
        if self._stops.found is not None:
            self.ended = "stop_text"
        elif len(self.request.token_ids) == self.limit:
            self.ended = self._at_limit
            piece += self._rest()
        return piece

    def _rest(self) -> str:
        rest = self._stops.push(self._text.finish())
        if self._stops.found is not None:
            self.ended = "stop_text"
        return rest + self._stops.finish()

"""A request: a prompt's tokens, how its continuation is chosen, and the tokens that it has so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bigrun.execute.sampling import Sampling


@dataclass
class Request:
    """One prompt and its continuation, in a sequence of the KV cache that is its own until it ends."""

    prompt_ids: list[int]
    max_new_tokens: int
    sampling: Sampling
    sequence: int = 0
    token_ids: list[int] = field(default_factory=list)  # of the continuation, without the stop token

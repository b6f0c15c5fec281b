"""What a sequence's pages hold after a request, and how much of it the next one may take up."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Kept:
    """The tokens whose keys and values are in a sequence's pages, of which the first `prompt` were computed as a prompt alone
    is: in the arithmetic of prefill, in whole chunks from the first token on but for the last."""

    ids: list[int] = field(default_factory=list)
    prompt: int = 0

    def took(self, ids: Sequence[int], as_prompt: bool) -> None:
        """Notes tokens that were computed, after those that are here. `as_prompt`: as a chunk of this one's prompt alone is."""
        if as_prompt and self.prompt == len(self.ids):
            self.prompt += len(ids)
        self.ids.extend(ids)

    def cut(self, length: int) -> None:
        """Forgets the tokens from `length` on."""
        del self.ids[length:]
        self.prompt = min(self.prompt, length)

    def shared(self, ids: Sequence[int], chunk: int, repeatable: bool) -> int:
        """How many of a prompt's first tokens need not be computed again: all up to where it parts from what is here, but for
        its last one, whose logits are wanted.

        `repeatable`: a token's keys and values depend neither on the phase nor on what is computed beside it. Where they do,
        only whole chunks of a prompt are what this prompt's would be.
        """
        most = min(len(ids) - 1, len(self.ids))
        here = self.ids
        if here[:most] == list(ids[:most]):
            same = most
        else:
            same = next(i for i in range(most) if here[i] != ids[i])
        return same if repeatable else min(same, self.prompt) // chunk * chunk

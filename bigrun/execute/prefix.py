"""Which tokens a sequence's pages hold after a request, and how many of them the next prompt can reuse."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class CachedSequence:
    """The tokens whose keys and values are in a sequence's pages.

    `prompt` counts the first ones that were computed as a prompt alone would be: in the arithmetic of prefill, cut into chunks
    from the first token on.
    """

    ids: list[int] = field(default_factory=list)
    prompt: int = 0

    def append(self, ids: Sequence[int], as_prompt: bool) -> None:
        """Add tokens that a step has computed. `as_prompt`: as a chunk of a prompt that is alone in its step."""
        if as_prompt and self.prompt == len(self.ids):
            self.prompt += len(ids)
        self.ids.extend(ids)

    def truncate(self, length: int) -> None:
        """Forget the tokens from `length` on."""
        del self.ids[length:]
        self.prompt = min(self.prompt, length)

    def reusable(self, ids: Sequence[int], chunk: int, repeatable: bool) -> int:
        """How many of a prompt's first tokens need not be computed again: those before the first that differs, without the
        prompt's last one, whose logits are wanted.

        `repeatable`: a token's keys and values depend neither on the phase nor on what is computed beside it. Where they do,
        only whole chunks of a prompt are what this prompt's would be.
        """
        most = min(len(ids) - 1, len(self.ids))
        if self.ids[:most] == list(ids[:most]):
            same = most
        else:
            same = next(i for i in range(most) if self.ids[i] != ids[i])
        return same if repeatable else min(same, self.prompt) // chunk * chunk

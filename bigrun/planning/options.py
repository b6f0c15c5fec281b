"""What a plan is made for: a context, a batch, a prompt, and how weights and keys and values are stored."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from bigrun.model.layout import Storage
from bigrun.model.spec import ModelSpec

DEFAULT_CONTEXT = 2048


@dataclass(frozen=True)
class Options:
    """What the user asked for, beside the model and the rig."""

    context: int = 2048
    batch: int = 1
    storage: Storage = field(default_factory=Storage)
    kv: str = "16bit"
    prompt: int | None = None  # tokens of the prompt of a request; None: three quarters of the context
    streams: bool = field(default=True, compare=False)  # whether prompts may pass the host's parts on a GPU

    @property
    def prompt_tokens(self) -> int:
        return max(1, self.context * 3 // 4) if self.prompt is None else self.prompt

    @property
    def new_tokens(self) -> int:
        """What a request generates: the rest of its context."""
        return max(1, self.context - self.prompt_tokens)


def make_options(
    spec: ModelSpec, context: int | None, batch: int, weights: str, head: str, skip: Sequence[str], kv: str,
    prompt_tokens: int | None = None,
) -> Options:  # fmt: skip
    """The planner's options; the context defaults to what the model has, 2,048 tokens at most."""
    storage = Storage(weights, head, tuple(skip), spec.checkpoint_dtype)
    tokens = min(DEFAULT_CONTEXT, spec.context_limit) if context is None else context
    return Options(tokens, batch, storage, kv, prompt_tokens)

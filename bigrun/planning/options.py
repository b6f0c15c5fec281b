"""What a plan is made for: a context, a batch, a prompt, and how weights and keys and values are stored."""

from dataclasses import dataclass, field, replace

from bigrun.model.storage import Storage

DEFAULT_CONTEXT = 2048


@dataclass(frozen=True)
class PlanOptions:
    """What the planner takes beside the model and the rig, every default filled in."""

    context: int = DEFAULT_CONTEXT
    batch: int = 1
    storage: Storage = field(default_factory=Storage)
    prompt: int | None = None  # tokens of the prompt of a request; None: three quarters of the context
    streams: bool = field(default=True, compare=False)  # whether the host's parts may pass through a GPU

    @property
    def prompt_tokens(self) -> int:
        return max(1, self.context * 3 // 4) if self.prompt is None else self.prompt

    @property
    def new_tokens(self) -> int:
        """What a request generates: the rest of its context."""
        return max(1, self.context - self.prompt_tokens)

    def with_kv(self, form: str) -> "PlanOptions":
        """The same with keys and values in another form."""
        return replace(self, storage=replace(self.storage, kv=form))

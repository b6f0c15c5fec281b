"""Errors, by who can fix them. Each class carries the exit status of the command line.

A message says what is wrong, where (the file, field, device or flag), and what to do about it, in one or two lines. It is
written with the flags of the command line; a caller in Python reads the names of the parameters in their place.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

# Parameters of the Python API that are flags of the command line as well.
PARAMETERS = frozenset([
    "model", "revision", "gpus", "cpu", "disk", "max_memory", "virtual", "rig", "host", "weights", "head", "skip", "kv", "mode",
    "threshold", "threads", "kernels", "context", "batch", "prompt_tokens", "plan", "cache", "progress", "solve", "what_if",
    "target", "max_new_tokens", "raw", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "stop",
])  # fmt: skip
_FLAG = re.compile(r"(?<![\w-])--([a-z][a-z-]*)")
_on_command_line = False


@contextmanager
def command_line() -> Iterator[None]:
    """Meanwhile messages name flags: they go to a user of the command line."""
    global _on_command_line
    before, _on_command_line = _on_command_line, True
    try:
        yield
    finally:
        _on_command_line = before


def _named(flag: "re.Match[str]") -> str:
    name = flag[1].replace("-", "_")
    return name if name in PARAMETERS else flag[0]


def shortly(value: object) -> str:
    """The repr of a wrong value, cut, for a message; its type where that cannot be made."""
    try:
        return f"{value!r:.40}"
    except ValueError:  # a whole number of thousands of digits
        return f"{type(value).__name__} too large to write"


def escaped(text: str) -> str:
    """A text on one line, for a message: whatever is not printable is spelled out, like \\x1b."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class BigrunError(Exception):
    """Any failure that bigrun explains; anything else that escapes is a bug."""

    exit_status = 1

    def __init__(self, message: str):
        """Escapes control characters: names quoted in a message may hold anything."""
        message = escaped(message)
        super().__init__(message if _on_command_line else _FLAG.sub(_named, message))


class CallError(BigrunError):
    """The call is wrong: an unknown model, card or option value, a size that makes no sense."""

    exit_status = 2


class ContextFull(CallError):
    """A prompt that the context has no room for."""

    def __init__(self, tokens: int, context: int):
        """`tokens` of the prompt, and of the context."""
        super().__init__(f"the prompt has {tokens:,} tokens and the context {context:,}: shorten it, or give --context")
        self.tokens, self.context = tokens, context


class PlanDoesNotFit(BigrunError):
    """The model does not fit the rig; the message says what is missing."""

    exit_status = 3


class CheckpointError(BigrunError):
    """The model's files are missing, damaged, or not of a kind that bigrun runs."""

    exit_status = 4


class TokenizerError(CheckpointError):
    """The model's tokenizer or chat template is missing, damaged or of an unknown kind."""


class RunError(BigrunError):
    """The run itself failed: a budget exceeded, a context overrun, logits that are not numbers."""


class BudgetExceeded(RunError):
    """An allocation went beyond a device's budget: the plan was wrong, which is a bug worth reporting."""

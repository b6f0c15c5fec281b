"""Everything that can go wrong, by whose it is to mend. Each kind carries the exit status that the command line ends with.

A message says what is wrong, where (the file, field, device or flag), and what to do about it, in one or two lines.
"""


class BigrunError(Exception):
    """Any failure that bigrun explains; anything else that escapes is a bug."""

    exit_status = 1

    def __init__(self, message: str):
        """Names that a message quotes may hold anything: what would break its line, or the terminal, is escaped."""
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in message))


class CallError(BigrunError):
    """The call is wrong: an unknown model, card or option value, a size that makes no sense."""

    exit_status = 2


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

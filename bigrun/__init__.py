"""bigrun: run language models that are too big for the GPUs at hand, in int8, straight from their checkpoint.

from bigrun import Runner, plan

print(plan("bloom-176b", gpus="8x24GB"))
with Runner("smollm2-135m") as runner:
    print(runner.generate("Why is the sky blue?").text)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bigrun.errors import (
    BigrunError,
    BudgetExceeded,
    CallError,
    CheckpointError,
    PlanDoesNotFit,
    RunError,
    TokenizerError,
)

if TYPE_CHECKING:
    from bigrun.runner import Generation, Runner, plan

__version__ = "0.1.0"
__all__ = [
    "BigrunError",
    "BudgetExceeded",
    "CallError",
    "CheckpointError",
    "Generation",
    "PlanDoesNotFit",
    "RunError",
    "Runner",
    "TokenizerError",
    "plan",
]


def __getattr__(name: str) -> Any:
    """Runner, plan and Generation, imported when first asked for: `import bigrun` stays quick."""
    if name in ("Runner", "plan", "Generation"):
        return getattr(import_module("bigrun.runner"), name)
    raise AttributeError(f"module 'bigrun' has no attribute {name!r}")

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
    from bigrun.dry_run import plan
    from bigrun.generation import Generation
    from bigrun.planning.plan import Plan
    from bigrun.runner import Runner

__version__ = "0.1.0"
__all__ = [
    "BigrunError",
    "BudgetExceeded",
    "CallError",
    "CheckpointError",
    "Generation",
    "Plan",
    "PlanDoesNotFit",
    "RunError",
    "Runner",
    "TokenizerError",
    "plan",
]
HOMES = {
    "Generation": "bigrun.generation",
    "Plan": "bigrun.planning.plan",
    "Runner": "bigrun.runner",
    "plan": "bigrun.dry_run",
}


def __getattr__(name: str) -> Any:
    """Runner, plan, Plan and Generation, imported when first asked for: `import bigrun` stays quick."""
    if name in HOMES:
        return getattr(import_module(HOMES[name]), name)
    raise AttributeError(f"module 'bigrun' has no attribute {name!r}")

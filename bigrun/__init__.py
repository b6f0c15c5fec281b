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
from bigrun.version import __version__

if TYPE_CHECKING:
    from bigrun.planning.plan import Plan
    from bigrun.session.dry_run import plan
    from bigrun.session.generation import Generation, Stats, Stream
    from bigrun.session.runner import Runner

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
    "Stats",
    "Stream",
    "TokenizerError",
    "__version__",
    "plan",
]
HOMES = {
    "Generation": "bigrun.session.generation",
    "Plan": "bigrun.planning.plan",
    "Runner": "bigrun.session.runner",
    "Stats": "bigrun.session.generation",
    "Stream": "bigrun.session.generation",
    "plan": "bigrun.session.dry_run",
}


def __getattr__(name: str) -> Any:
    """Runner, plan and the like, imported when first asked for: `import bigrun` stays quick."""
    if name in HOMES:
        return getattr(import_module(HOMES[name]), name)
    raise AttributeError(f"module 'bigrun' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, also of what is imported when asked for."""
    return sorted(__all__)

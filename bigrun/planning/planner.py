"""The planner: (spec, rig, options) → Plan. Pure: no files, no GPU, no clock; the same inputs give the same plan.

The plan is the one whose requests are predicted to be the quickest under every budget: a prompt of three quarters of the
context (or `--prompt-tokens`), and an answer that fills the rest. Chunks of prefill, a GPU to stream the host's weights
through, and (in a mixture) the place where the last expert will be are tried one after the other; for each of these the
search (search.py) finds the best cuts.
"""

from bigrun.devices.rig import Rig
from bigrun.model.spec import ModelSpec
from bigrun.planning.best import best_plan, check
from bigrun.planning.hints import why_not
from bigrun.planning.ledger import Ledger
from bigrun.planning.options import PlanOptions
from bigrun.planning.plan import Plan


def make_plan(spec: ModelSpec, rig: Rig, options: PlanOptions) -> Plan:
    """The best plan; `fits` is False, with `unplaced` and `hint`, where none takes everything."""
    check(spec, options)
    ledger = Ledger(spec, options)
    plan = best_plan(ledger, rig)
    if plan.fits:
        return plan
    return why_not(plan, ledger, rig)

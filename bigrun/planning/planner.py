"""The planner: (spec, rig, options) → Plan. Pure: no files, no GPU, no clock; the same inputs give the same plan.

The plan is the one whose requests are predicted to be the quickest under every budget: a prompt of three quarters of the
context (or `--prompt-tokens`), and an answer that fills the rest. Chunks of prefill, a GPU to stream the host's weights
through, and (in a mixture) the place where the last expert will be are tried one after the other; for each of these the
search (search.py) finds the best cuts. Runs do not stream yet, so a plan that is to be run is made without
(`PlanOptions.streams`), and says what streaming would give.
"""

from dataclasses import replace

from bigrun.devices.rig import Rig
from bigrun.model.spec import ModelSpec
from bigrun.planning.best import best_plan, check
from bigrun.planning.hints import why_not
from bigrun.planning.ledger import Ledger
from bigrun.planning.options import PlanOptions
from bigrun.planning.plan import Plan
from bigrun.planning.plan_data import Streamed

WORTH_SAYING = 0.99  # of a request's time: what streaming must reach to be mentioned


def make_plan(spec: ModelSpec, rig: Rig, options: PlanOptions) -> Plan:
    """The best plan; `fits` is False, with `unplaced` and `hint`, where none takes everything."""
    check(spec, options)
    ledger = Ledger(spec, options)
    plan = best_plan(ledger, rig)
    if plan.fits:
        return with_streaming(plan, ledger, rig)
    return why_not(plan, ledger, rig)


def with_streaming(plan: Plan, ledger: Ledger, rig: Rig) -> Plan:
    """A plan that was made without streaming, with what streaming would give, if that is quicker."""
    if ledger.options.streams or plan.predicted is None:
        return plan
    if not rig.gpus or all(p.decode_on != "cpu" for p in plan.placements if p.part not in ("embed", "norm")):
        return plan
    other = best_plan(Ledger(ledger.spec, replace(ledger.options, streams=True)), rig)
    through = dict.fromkeys(p.prefill_on for p in other.placements if p.prefill_on not in (p.stored_on, "cpu"))
    if other.predicted is None or not through:
        return plan
    if other.predicted.request_seconds > plan.predicted.request_seconds * WORTH_SAYING:
        return plan
    figures = other.predicted.prefill_tokens_per_s, other.predicted.decode_tokens_per_s, other.predicted.request_seconds
    return replace(plan, if_streamed=Streamed(tuple(through), *figures))

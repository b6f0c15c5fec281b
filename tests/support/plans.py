"""Plans that no command makes: with the host's parts streamed through a GPU, as earlier versions planned them."""

from dataclasses import replace
from typing import Any

from bigrun import plan
from bigrun.planning.plan import Plan
from bigrun.planning.planner import make_plan
from bigrun.session.dry_run import planning_inputs
from bigrun.session.options import Options


def plan_of(streams: bool = False, **options: Any) -> Plan:
    """`bigrun.plan`, or with `streams` a plan that runs refuse."""
    if not streams:
        return plan(**options)
    spec, rig, chosen = planning_inputs(Options.of(**options))
    return replace(make_plan(spec, rig, replace(chosen, streams=True)), model_id=options["model"])

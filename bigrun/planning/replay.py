"""A plan that was made before, run now: its options, and whether it still fits the model and itself.

A plan is a file that anyone may have written: nothing is allocated on its word alone.
"""

import math
from dataclasses import fields, is_dataclass
from itertools import groupby, pairwise
from types import UnionType
from typing import Any, get_args, get_origin

from bigrun.devices.rates import ASSUMED_CPU
from bigrun.devices.rig import Device, Rig
from bigrun.errors import CallError
from bigrun.model.spec import ModelSpec
from bigrun.planning.ledger import Ledger
from bigrun.planning.options import PlanOptions
from bigrun.planning.plan import Plan
from bigrun.planning.plan_data import Placement
from bigrun.sizes import LARGEST


def options_of(plan: Plan) -> PlanOptions:
    """The options that a plan was made with."""
    check_types(plan)
    prompt = plan.predicted.prompt_tokens if plan.predicted else None
    return PlanOptions(plan.context_tokens, plan.batch, plan.storage, prompt)


def check_types(plan: Plan) -> None:
    """CallError where a field is not of its type, or a count or a rate is negative or no number."""
    for field in fields(plan):
        if not _is(getattr(plan, field.name), field.type):
            raise _bad(plan, f"{field.name} is not what a plan has there")


def _is(value: Any, kind: Any) -> bool:
    """Whether a value is of an annotated type; what is counted is not negative, and what is measured a number."""
    if get_origin(kind) is UnionType:
        return any(_is(value, each) for each in get_args(kind))
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        if not isinstance(value, tuple):
            return False
        kinds = kinds[:1] * len(value) if Ellipsis in kinds else kinds
        return len(value) == len(kinds) and all(map(_is, value, kinds))
    if is_dataclass(kind):
        return type(value) is kind and all(_is(getattr(value, f.name), f.type) for f in fields(kind))
    if kind is float:
        return type(value) in (int, float) and 0 <= value < math.inf
    if kind is int:
        return type(value) is int and 0 <= value <= LARGEST
    return type(value) is (get_origin(kind) or kind)


def check_plan(plan: Plan, spec: ModelSpec, options: PlanOptions) -> None:
    """CallError where a plan is not one of this model, or was changed so that its accounts no longer hold. One that does
    not fit is left to the Runner, which says so."""
    from bigrun.planning.account import account
    from bigrun.planning.best import CHUNKS, check
    from bigrun.planning.search import Problem

    if not plan.fits:
        return
    if (plan.family, plan.parameters) != (spec.family, spec.parameters):
        raise _bad(plan, f"{spec.name} is another model: {spec.family}, {spec.parameters} parameters")
    try:
        check(spec, options)
    except CallError as error:
        raise _bad(plan, str(error)) from error
    if plan.prefill_chunk_tokens not in CHUNKS:
        raise _bad(plan, f"prefill_chunk_tokens is none of {CHUNKS}")
    if plan.unplaced or plan.predicted is None:
        raise _bad(plan, "it says that it fits, without a place for everything or without a prediction")
    names = [device.name for device in plan.devices]
    if len(set(names)) != len(names):
        raise _bad(plan, "a device is named twice")
    for device in plan.devices:
        if device.name.partition(":")[0] != ("cuda" if device.kind == "gpu" else device.kind):
            raise _bad(plan, f"{device.name} is no {device.kind}")
    ledger = Ledger(spec, options)
    parts = [(name, list(pieces)) for name, pieces in groupby(plan.placements, key=lambda placement: placement.part)]
    if [name for name, _ in parts] != [part.name for part in spec.parts]:
        raise _bad(plan, f"its parts are not those of {spec.name}")
    for name, pieces in parts:
        _check_slices(plan, ledger, name, pieces)
        for placement in pieces:
            _check_placement(plan, ledger, placement, names)
    rig = Rig(
        tuple(Device(d.name, d.kind, d.budget_bytes, ASSUMED_CPU, d.virtual, card=d.card or "") for d in plan.devices)
    )
    accounts = account(Problem(ledger, rig, plan.prefill_chunk_tokens), list(plan.placements))
    for device, expected in zip(plan.devices, accounts, strict=True):
        if device != expected:
            raise _bad(plan, f"the account of {device.name} is not that of its parts")
        if device.used_bytes > device.budget_bytes:
            raise _bad(plan, f"{device.name} is filled beyond its budget")


def _check_slices(plan: Plan, ledger: Ledger, name: str, pieces: list[Placement]) -> None:
    """CallError unless a part is in one piece, or its experts in slices one after the other."""
    slices = [piece.slice for piece in pieces]
    if slices == [None]:
        return
    cuts = [(0, 0), *(each or (-1, -1) for each in slices)]
    meet = all(before[1] == after[0] < after[1] for before, after in pairwise(cuts))
    if not name.endswith(".experts") or not meet or cuts[-1][1] != ledger.spec.expert_count(name):
        raise _bad(plan, f"its slices do not make up {name}")


def _check_placement(plan: Plan, ledger: Ledger, placement: Placement, names: list[str]) -> None:
    """CallError unless a part takes its bytes, and is where it can be."""
    name, home = placement.part, placement.stored_on
    cut, layouts = placement.slice, ledger.layouts
    weights = ledger.slice_bytes(name, cut[1] - cut[0]) if cut else ledger.weights(name)
    if placement.weights_bytes != weights:
        raise _bad(plan, f"{name} takes {weights} bytes, not {placement.weights_bytes}")
    if placement.kv_cache_bytes != ledger.kv(name):
        raise _bad(plan, f"the keys and values of {name} take {ledger.kv(name)} bytes")
    stored = layouts["embed" if name == "head" and ledger.spec.tied else name].stored_as
    if placement.stored_as != stored:
        raise _bad(plan, f"{name} is stored as {stored}, not {placement.stored_as[:20]}")
    host = "cpu" if home == "disk" else home
    keys = host if name.startswith("blocks.") and not name.endswith(".experts") else None
    computed = {placement.prefill_on, placement.decode_on}
    streamed = host == "cpu" and all(place == host or place.startswith("cuda") for place in computed)
    if not {home, host, *computed} <= set(names):
        raise _bad(plan, f"{name} is on a device that the plan does not have")
    if placement.kv_on != keys or not (streamed or computed == {home}):
        raise _bad(plan, f"{name} is not computed, or its keys and values not kept, where it can be")


def _bad(plan: Plan, why: str) -> CallError:
    return CallError(f"plan of {str(plan.model)[:60]!r}: {why}; make it again with `bigrun plan --json`")

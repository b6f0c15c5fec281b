"""A plan that was made before, run now: its options, and whether it still fits the model and itself."""

from bigrun.errors import CallError
from bigrun.model.layout import Storage
from bigrun.model.spec import ModelSpec
from bigrun.planning.ledger import Ledger
from bigrun.planning.plan import Options, Plan

KINDS = ("weights", "kv_cache", "workspace", "staging", "pinned", "reserve")


def options_of(plan: Plan, spec: ModelSpec) -> Options:
    """The options that a plan was made with."""
    storage = Storage(plan.weights, plan.head, plan.skip, spec.checkpoint_dtype)
    prompt = plan.predicted.prompt_tokens if plan.predicted else None
    return Options(plan.context_tokens, plan.batch, storage, plan.kv, prompt)


def check_plan(plan: Plan, spec: ModelSpec, options: Options) -> None:
    """CallError where a plan is not one of this model, or was changed so that its accounts no longer hold.

    A plan is a file that anyone may have written: nothing is allocated on its word alone.
    """
    from bigrun.planning.planner import CHUNKS, check

    def bad(why: str) -> CallError:
        return CallError(f"plan of {plan.model[:60]!r}: {why}; make it again with `bigrun plan --json`")

    check(spec, options)
    if plan.prefill_chunk_tokens not in CHUNKS:
        raise bad(f"prefill_chunk_tokens is none of {CHUNKS}")
    ledger = Ledger(spec, options)
    devices = {device.name: device for device in plan.devices}
    if len(devices) != len(plan.devices):
        raise bad("a device is named twice")
    if [p.part for p in plan.placements if p.slice is None] != [part.name for part in spec.parts] and plan.fits:
        raise bad(f"its parts are not those of {spec.name}")
    for placement in plan.placements:
        places = {
            placement.stored_on,
            placement.prefill_on,
            placement.decode_on,
            placement.kv_on or placement.stored_on,
        }
        if not places <= set(devices):
            raise bad(f"{placement.part} is on a device that the plan does not have")
        if placement.slice is None and placement.weights_bytes != ledger.weights(placement.part):
            raise bad(f"{placement.part} takes {ledger.weights(placement.part)} bytes, not {placement.weights_bytes}")
        if placement.kv_cache_bytes != ledger.kv(placement.part):
            raise bad(f"the keys and values of {placement.part} take {ledger.kv(placement.part)} bytes")
    for device in plan.devices:
        if device.used_bytes != sum(getattr(device, f"{kind}_bytes") for kind in KINDS):
            raise bad(f"the account of {device.name} does not add up")
        if device.used_bytes > device.budget_bytes or min(device.used_bytes, device.budget_bytes) < 0:
            raise bad(f"{device.name} is filled beyond its budget")
        weights = sum(p.weights_bytes for p in plan.placements if p.stored_on == device.name)
        keys = sum(p.kv_cache_bytes for p in plan.placements if p.kv_on == device.name)
        if (weights, keys) != (device.weights_bytes, device.kv_cache_bytes):
            raise bad(f"the account of {device.name} is not that of its parts")

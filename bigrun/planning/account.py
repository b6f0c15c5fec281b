"""What a placement takes: every device's bytes, and the seconds of a prompt, a step and a request."""

from bigrun.model.spec import ModelSpec
from bigrun.planning.plan import Plan
from bigrun.planning.plan_data import DevicePlan, Placement, Predicted
from bigrun.planning.search import STAGING_SLOTS, Problem


def predict(problem: Problem, placements: list[Placement]) -> Predicted:
    """Seconds of a complete placement, part after part, and of every hop: from the host to the embedding, from device to
    device, out to experts and back, and from the head to the host."""
    spec, options, rig = problem.ledger.spec, problem.ledger.options, problem.rig
    phases = (problem.decode, 1), (problem.prefill, problem.prefill.phase.steps)
    ways = [
        {d.name: steps * costs.hop(d.rates.link) if d.kind == "gpu" else 0.0 for d in rig.devices}
        for costs, steps in phases
    ]
    totals, where = [0.0, 0.0], ["cpu", "cpu"]
    for placement in placements:
        decode, prefill, _, _ = problem.part_seconds(placement.part, rig.device(placement.stored_on))
        share = 1.0
        if placement.slice:
            share = (placement.slice[1] - placement.slice[0]) / spec.expert_count(placement.part)
        spent = (decode * share, prefill * share)
        for i, device in enumerate((placement.decode_on, placement.prefill_on)):
            totals[i] += spent[i]
            if device != where[i]:
                experts = placement.part.endswith(".experts")
                totals[i] += (ways[i][device] + ways[i][where[i]]) * (2 if experts else 1)
                where[i] = where[i] if experts else device
    totals = [total + way[device] for total, way, device in zip(totals, ways, where, strict=True)]
    used = {name for p in placements if p.part != "embed" for name in (p.stored_on, p.prefill_on, p.decode_on)}
    return Predicted(
        prefill_tokens_per_s=options.prompt_tokens / totals[1],
        decode_tokens_per_s=options.batch / totals[0],
        request_seconds=problem.prompts * totals[1] + problem.new * totals[0],
        load_seconds=rig.loading.seconds(*checkpoint(spec)),
        assumptions=rig.said("assumed", used),
        measured=rig.said("measured", used),
        prompt_tokens=options.prompt_tokens,
        new_tokens=problem.new,
        given=rig.said("given", used),
        learned=rig.said("learned", used),
        doubt=rig.doubt if any(_computes(p, "cpu") for p in placements) else "",
    )


def checkpoint(spec: ModelSpec) -> tuple[int, str]:
    """(bytes, form) of a model's files: as its headers say, else by its parameters and the dtype of its configuration."""
    if not spec.checkpoint_bytes:
        is_long = spec.checkpoint_dtype == "float32"
        return spec.parameters * (4 if is_long else 2), "float32" if is_long else "16bit"
    by_size = "float8" if spec.checkpoint_bytes < 1.5 * spec.parameters else "16bit"  # of a catalog's published size
    return spec.checkpoint_bytes, spec.checkpoint_form or by_size


def _computes(placement: Placement, device: str) -> bool:
    """Whether a device computes a part; a lookup takes next to nothing wherever it is."""
    return device in (placement.prefill_on, placement.decode_on) and placement.part not in ("embed", "norm")


def account(problem: Problem, placements: list[Placement]) -> tuple[DevicePlan, ...]:
    """Every device's bytes, from the placements alone."""
    ledger = problem.ledger
    streamed = any(_on_gpu(p) for p in placements if not p.stored_on.startswith("cuda"))
    from_disk = any(p.stored_on == "disk" and p.part != "embed" for p in placements)
    result = []
    for device in problem.rig.devices:
        here = [p for p in placements if p.stored_on == device.name]
        computed = [p.part for p in placements if device.name in (p.decode_on, p.prefill_on)]
        blocks = any(name.startswith("blocks.") for name in computed)
        workspace = ledger.workspace(problem.chunk, blocks, "head" in computed, device.is_gpu) if computed else 0
        ring = STAGING_SLOTS * problem.slot
        to_here = any(device.name in (p.prefill_on, p.decode_on) and p.stored_on != device.name for p in placements)
        pinned = ring if device.kind == "cpu" and streamed else 0
        read_here = device.kind == "cpu" and from_disk and not pinned  # a pinned ring serves both
        staging = ring if (device.kind == "gpu" and to_here) or read_here else 0
        weights = sum(p.weights_bytes for p in here)
        kv = sum(p.kv_cache_bytes for p in placements if p.kv_on == device.name)
        used = weights + kv + workspace + staging + pinned + device.reserve_bytes
        result.append(
            DevicePlan(
                name=device.name,
                kind=device.kind,
                virtual=device.virtual,
                budget_bytes=device.budget_bytes,
                used_bytes=used,
                free_bytes=device.budget_bytes - used,
                weights_bytes=weights,
                kv_cache_bytes=kv,
                workspace_bytes=workspace,
                staging_bytes=staging,
                pinned_bytes=pinned,
                reserve_bytes=device.reserve_bytes,
                parts=tuple(dict.fromkeys(p.part for p in here)),
                card=device.card or None,
            )
        )
    return tuple(result)


def _on_gpu(placement: Placement) -> bool:
    return any(name.startswith("cuda") for name in (placement.prefill_on, placement.decode_on))


def rated(plan: Plan) -> tuple[int, float]:
    """The sort key of plans: fewer parts without a place, then a quicker request."""
    return len(plan.unplaced), plan.predicted.request_seconds if plan.predicted else 0.0

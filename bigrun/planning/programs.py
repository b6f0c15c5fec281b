"""The programs that a plan's devices would execute: what `bigrun plan --programs` prints."""

from typing import Any

from bigrun.model.program import Program, lower, lower_experts, rewrite, unsupported
from bigrun.model.spec import ModelSpec
from bigrun.planning.plan import Plan
from bigrun.planning.words import describe_parts


def planned_programs(spec: ModelSpec, plan: Plan) -> list[dict[str, Any]]:
    """Each kind of program once, in the order of execution: the parts that it is of, the target that it is rewritten for
    (host, gpu, or the CPU's compiled call), the steps in words, the first that no run executes yet, and what they take for
    a token."""
    gpus = {device.name for device in plan.devices if device.kind == "gpu" and not device.virtual}
    places = {placement.part: placement for placement in plan.placements}
    parts: dict[tuple[str, Program], list[str]] = {}
    for part in spec.parts:
        block, place = spec.block_of(part.name), places.get(part.name)
        if block is None:
            continue
        lowered = lower_experts(block) if part.name.endswith(".experts") else lower(block)
        compiled = rewrite(lowered, "compiled")
        if place is not None and place.decode_on in gpus:
            target = "gpu"
        else:  # int8 blocks of known steps are the compiled call's in the exact mode; others go op by op
            plain = place is not None and place.stored_as == "int8" and not unsupported(compiled, "compiled")
            target = "compiled" if plain else "host"
        parts.setdefault((target, rewrite(lowered, target)), []).append(part.name)
    result = []
    for (target, program), names in parts.items():
        steps = [str(step) for step in program.steps]
        result.append({
            "parts": describe_parts(tuple(names)), "target": target, "steps": steps, "refused": unsupported(program, target),
            "products": sum(step.products for step in program.steps),
            "products_per_context_token": sum(step.scores for step in program.steps),
            "entries": sum(step.entries for step in program.steps),
        })  # fmt: skip
    return result


def programs_text(programs: list[dict[str, Any]]) -> str:
    """The same for a person."""
    lines = []
    for each in programs:
        refused = f"; runs refuse {each['refused']} yet" if each["refused"] else ""
        lines.append(f"{each['parts']} ({each['target']}): {each['products']:,} products a token{refused}")
        lines += [f"  {step}" for step in each["steps"]]
    return "\n".join(lines)

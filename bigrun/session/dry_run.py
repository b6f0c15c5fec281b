"""A dry run: from what the user gave to a Plan, with no weights opened and no torch imported."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bigrun.devices.make_rig import make_rig
from bigrun.devices.rig import Rig
from bigrun.errors import CallError
from bigrun.model.resolve import DEFAULT, resolve
from bigrun.model.spec import ModelSpec
from bigrun.planning.options import Options, make_options
from bigrun.planning.plan import Plan


def plan(
    model: str = DEFAULT,
    gpus: str | None = None,
    cpu: str | int | None = None,
    disk: str | int | None = None,
    max_memory: Mapping[int | str, str | int] | None = None,
    context: int | None = None,
    batch: int = 1,
    weights: str = "int8",
    head: str = "int8",
    skip: Sequence[str] = (),
    kv: str = "16bit",
    virtual: bool = False,
    revision: str | None = None,
    *,
    rig: str | Path | None = None,
    host: str | Path | None = None,
    prompt_tokens: int | None = None,
    solve: str | None = None,
    what_if: str | None = None,
    target: str | None = None,
) -> Plan:
    """A dry run: the Plan of a model on a rig, from its configuration alone (no weights, no torch).

    Sizes are "24GB" (10⁹), "24GiB" (2³⁰) or bytes. A plan that does not fit is returned too, with `fits` False. `rig` is a
    file that describes the devices, `host` one with what was measured (docs/planning.md). A question (`solve`: context,
    batch or gpus; `what_if`: "+1xRTX4090"; `target`: "5tok/s") gives the plan that answers it, with `answer`.
    """
    from bigrun.planning import questions
    from bigrun.planning.planner import make_plan

    if sum(question is not None for question in (solve, what_if, target)) > 1:
        raise CallError("--solve, --what-if and --target are questions of their own: ask one at a time")
    if solve == "context" and context is not None:
        raise CallError("--solve context finds the context: leave out --context")
    if solve == "batch" and batch != 1:
        raise CallError("--solve batch finds the batch: leave out --batch")
    spec, devices, options = planning_inputs(
        model, gpus, cpu, disk, max_memory, context, batch, weights, head, skip, kv, virtual, revision, rig, host,
        prompt_tokens,
    )  # fmt: skip
    if solve is not None:
        made = questions.solve(solve, spec, devices, options)
    elif what_if is not None:
        made = questions.what_if(what_if, spec, devices, options)
    elif target is not None:
        made = questions.target(target, spec, devices, options)
    else:
        made = make_plan(spec, devices, options)
    return replace(made, model_id=model, revision=revision)


def planning_inputs(
    model: str, gpus: str | None = None, cpu: str | int | None = None, disk: str | int | None = None,
    max_memory: Mapping[int | str, str | int] | None = None, context: int | None = None, batch: int = 1,
    weights: str = "int8", head: str = "int8", skip: Sequence[str] = (), kv: str = "16bit", virtual: bool = False,
    revision: str | None = None, rig: str | Path | None = None, host: str | Path | None = None,
    prompt_tokens: int | None = None, **_: Any,
) -> tuple[ModelSpec, Rig, Options]:  # fmt: skip
    """What the planner takes, from what the user gave."""
    from bigrun.loading.open import model_spec

    spec = model_spec(resolve(model), revision)
    devices = make_rig(gpus, cpu, disk, max_memory, virtual, rig, host)
    return spec, devices, make_options(spec, context, batch, weights, head, skip, kv, prompt_tokens)

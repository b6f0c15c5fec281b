"""A dry run: from what the user gave to a Plan, with no weights opened and no torch imported."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from bigrun.devices.here import beyond_this_host
from bigrun.devices.make_rig import make_rig
from bigrun.devices.rig import Rig
from bigrun.errors import CallError
from bigrun.model.resolve import DEFAULT, resolve
from bigrun.model.spec import ModelSpec
from bigrun.planning.options import PlanOptions
from bigrun.planning.plan import Plan
from bigrun.session.calls import checked_call
from bigrun.session.options import Options
from bigrun.session.preflight import why_not_runnable


@checked_call("plan")
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
    """A dry run: the Plan of a model on a rig, from its configuration and the headers of its files.

    No weights are read, and torch is not imported; but for the head of a tied model whose files hold one as well, which is
    compared with the embedding, and biases that have no place in it, which may be of zeros (of a torch .bin, by torch).

    A plan that does not fit is returned too, with `fits` False and a `hint`. CallError where options contradict each other or
    the model; CheckpointError for a configuration that cannot be read; PlanDoesNotFit where a question has no answer.

    model: a folder, a GGUF file, a hub id or a catalog name.
    gpus: GPUs as "8x24GB", "2x24GB,1x12GB", "4xRTX3090" or "none"; None: those that are there.
    cpu: host memory to use, as "64GB" (10⁹), "64GiB" (2³⁰) or bytes; None: what is available, less a reserve.
    disk: disk space for what fits nowhere else; None: none.
    max_memory: budgets as accelerate has them, {0: "24GB", "cpu": "64GB"}, in place of `gpus`, `cpu` and `disk`.
    context: tokens of context; None: the model's, 2,048 at most.
    batch: sequences at a time.
    weights: the form of the weights: "int8", "16bit" or "float32".
    head: the form of the embedding and the head: "int8" or "16bit".
    skip: parts or linears that stay in 16 bits: "blocks.3", "down", "blocks.3.down".
    kv: the form of keys and values: "16bit" or "int8".
    virtual: the GPUs named are imagined: budgets enforced, computed by the CPU.
    revision: branch, tag or commit of a hub model.
    rig: a YAML or JSON file that describes the devices (docs/planning.md).
    host: a file of what `bigrun info` measured; None: this host's own, if any.
    prompt_tokens: of the request that is planned for; None: three quarters of the context.
    solve: "context" (the longest), "batch" (the largest) or "gpus" (how many of the card); the plan has the `answer`.
    what_if: the plan after a change, such as "+1xRTX4090", "-1x24GB" or "cpu=128GB", with both in its `answer`.
    target: the plan after the least change that decodes as fast as "5tok/s", with the change in its `answer`.
    """
    options = Options.of(
        model=model, gpus=gpus, cpu=cpu, disk=disk, max_memory=max_memory, context=context, batch=batch, weights=weights,
        head=head, skip=skip, kv=kv, virtual=virtual, revision=revision, rig=rig, host=host, prompt_tokens=prompt_tokens,
    )  # fmt: skip
    return plan_for(options, solve, what_if, target)


def plan_for(options: Options, solve: str | None = None, what_if: str | None = None, target: str | None = None) -> Plan:
    """The Plan of these options, or the one that answers a question of theirs."""
    from bigrun.planning import questions
    from bigrun.planning.planner import make_plan
    from bigrun.session.findings import described

    if sum(question is not None for question in (solve, what_if, target)) > 1:
        raise CallError("--solve, --what-if and --target are questions of their own: ask one at a time")
    if solve == "context" and options.context is not None:
        raise CallError("--solve context finds the context: leave out --context")
    if solve == "batch" and options.batch != 1:
        raise CallError("--solve batch finds the batch: leave out --batch")
    spec, findings = described(resolve(options.model_id), options.revision)
    rig, chosen = make_rig(options.rig), options.for_planning(spec)
    if solve is not None:
        made = questions.solve(solve, spec, rig, chosen)
    elif what_if is not None:
        made = questions.what_if(what_if, spec, rig, chosen)
    elif target is not None:
        made = questions.target(target, spec, rig, chosen)
    else:
        made = make_plan(spec, rig, chosen)
    runs = next(iter(findings.problems), "") or why_not_runnable(made, spec) or True
    beyond = (f"{each}; a run here is refused" for each in beyond_this_host(options.rig, rig, to_run=False))
    warnings = (*findings.warnings, *beyond)
    return replace(made, model_id=options.model_id, revision=options.revision, runs=runs, warnings=warnings)


def planning_inputs(options: Options) -> tuple[ModelSpec, Rig, PlanOptions]:
    """What the planner takes, by the model's configuration alone."""
    from bigrun.loading.open import model_spec

    spec = model_spec(resolve(options.model_id), options.revision)
    return spec, make_rig(options.rig), options.for_planning(spec)

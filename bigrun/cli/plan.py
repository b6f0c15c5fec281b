"""`bigrun plan`: parse, ask, print: the table, JSON, a picture, and what else may be asked of a plan."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from bigrun.cli.complete import FILE
from bigrun.cli.help import Command
from bigrun.cli.lists import print_survey
from bigrun.cli.options import as_json, parse, rig_options
from bigrun.errors import BigrunError, CallError, PlanDoesNotFit

NARROWEST, UNKNOWN_WIDTH = 20, 120


@click.command("plan", cls=Command)
@rig_options
@as_json
@click.option("--prompt-tokens", type=int, metavar="P", help="Of a request's prompt. Default: 3/4 of the context.")
@click.option(
    "--solve", metavar="WHAT", help="context (the longest), batch (the largest), gpus (how many of the card)."
)
@click.option("--what-if", metavar="CHANGE", help="The plan after it, beside today's: +1xRTX4090, -1x24GB, cpu=128GB.")
@click.option("--target", metavar="SPEED", help="The least change that decodes as fast as 5tok/s.")
@click.option("--compare", metavar="WITH", help="accelerate: what its device_map would do under the same budgets.")
@click.option("--svg", type=FILE, metavar="FILE", help="A picture of the plan.")
@click.option("--programs", is_flag=True, help="Also the steps that each device would execute.")
def plan_command(
    as_json: bool, svg: str | None, compare: str | None, programs: bool, solve: str | None, what_if: str | None,
    target: str | None,
    **flags: Any,
) -> None:  # fmt: skip
    """Show what would go where, to the byte, and how fast it would be. Loads nothing.

    --model all, or a pattern such as 'qwen*', gives a line for each model of the catalog. Exit status 3 if the model (of one)
    does not fit.
    """
    from bigrun.session.dry_run import plan_for
    from bigrun.session.survey import is_pattern

    if compare not in (None, "accelerate"):
        raise CallError(f"--compare {compare!r}: only accelerate can be compared with")
    if compare and (solve, what_if, target) != (None, None, None):
        raise CallError("--compare shows accelerate's answer to a plan: leave out --solve, --what-if and --target")
    options = parse(flags)
    if is_pattern(options.model_id):
        if programs or svg or compare or (solve, what_if, target) != (None, None, None):
            raise CallError(
                f"--model {options.model_id}: several models answer no question and have no picture: name one"
            )
        print_survey(options, as_json)
        return
    made = plan_for(options, solve, what_if, target)
    if made.predicted is not None and made.predicted.doubt and measured_once(options):
        made = plan_for(options, solve, what_if, target)
    if svg:
        _write_svg(made, svg)
    for warning in made.warnings if options.progress and not as_json else ():
        print(f"bigrun: {BigrunError(warning)}", file=sys.stderr)
    other = _compared(made, options) if compare else None
    steps = _programs(made, options) if programs else None
    if as_json:
        more = {**({"accelerate": other} if compare else {}), **({"programs": steps} if programs else {})}
        print(json.dumps({**made.to_dict(), **more}, indent=1))
    else:
        print_plan(made, other)
        if steps is not None:
            from bigrun.planning.programs import programs_text

            print(programs_text(steps))
    if not made.fits:
        raise PlanDoesNotFit(f"{made.model} does not fit: {made.hint}")


def _write_svg(made: Any, path: str) -> None:
    from bigrun.planning.picture import plan_svg

    try:
        Path(path).write_text(plan_svg(made), encoding="utf-8", errors="replace")
    except OSError as error:
        raise CallError(f"--svg {path}: cannot be written: {error.strerror}") from error


def _programs(made: Any, options: Any) -> Any:
    from bigrun.loading.open import model_spec
    from bigrun.model.resolve import resolve
    from bigrun.planning.programs import planned_programs

    return planned_programs(model_spec(resolve(options.model_id), options.revision), made)


def _compared(made: Any, options: Any) -> Any:
    from bigrun.loading.open import model_config
    from bigrun.model.resolve import resolve
    from bigrun.planning.compare import accelerate_plan
    from bigrun.session.dry_run import planning_inputs

    config = model_config(resolve(options.model_id), options.revision)
    return accelerate_plan(made, *planning_inputs(options), config)


def measured_once(options: Any, run: bool = False) -> bool:
    """Whether figures of this host for what is predicted of it were measured now: on the first use, in some seconds."""
    from bigrun.measure.host import ensure_host

    return ensure_host(options.rig, options.progress, run)


def print_plan(made: Any, other: Any = None) -> None:
    """The plan as a person reads it. What is missing of one that does not fit is left to the error, which is said next."""
    from rich.console import Console

    from bigrun.planning.report import compared_view, plan_view

    console = Console()
    known = console.is_terminal or os.environ.get("COLUMNS", "").lstrip("0").isdigit()
    console.width = max(console.width, NARROWEST) if known else UNKNOWN_WIDTH
    with console.capture() as capture:  # and printed here: rich itself ends with 1 where a pipe is closed
        console.print(plan_view(replace(made, hint=""), console.width))
        if other is not None:
            console.print(compared_view(other))
    print(capture.get(), end="")

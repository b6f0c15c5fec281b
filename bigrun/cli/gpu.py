"""The command that is for GPUs alone."""

import json
import sys

import click

from bigrun.cli.help import Command
from bigrun.cli.options import as_json, debug, quiet


@click.command(cls=Command)
@as_json
@click.option(
    "--gpu", "number", type=click.IntRange(0, 1023), default=0, show_default=True, metavar="N", help="cuda:N."
)
@quiet
@debug
def autotune(as_json: bool, number: int, quiet: bool, debug: bool) -> None:
    """Measure this card's kernels and keep the best tiles for later runs on such a card. Takes minutes."""
    from bigrun.measure.autotune import autotune as run

    def log(text: str) -> None:
        if not quiet:
            print(text, file=sys.stderr)

    tuning = run(number, log)
    if as_json:
        print(json.dumps(tuning))
    else:
        print(f"{tuning['card']}: prompts {tuning['table']['prefill']}; tiles kept in {tuning['file']}")

"""The command line: parse, call one function, print. torch is not imported here, nor by `plan`."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from bigrun.cli.chat import chat
from bigrun.cli.demo import demo
from bigrun.cli.files import cache, convert, inspect_command
from bigrun.cli.generate import generate
from bigrun.cli.gpu import autotune
from bigrun.cli.group import Group
from bigrun.cli.help import Commands
from bigrun.cli.lists import cards, models
from bigrun.cli.options import as_json, parse, rig_options, run_options
from bigrun.cli.plan import plan_command
from bigrun.cli.running import check_instruction_set
from bigrun.cli.running import open_runner as _runner
from bigrun.errors import CallError
from bigrun.version import __version__


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="bigrun")
def main() -> None:
    """Run language models that are too big for your GPUs, in int8, straight from their checkpoint."""


@main.command()
@rig_options
@run_options
@as_json
@click.option("--prompt-tokens", type=int, default=128, show_default=True, metavar="P", help="Of the prompt.")
@click.option("--new-tokens", type=int, default=32, show_default=True, metavar="N", help="Decoded after it.")
@click.option("--learn", is_flag=True, help="Keep what this run took, for the predictions of later plans on this host.")
def bench(as_json: bool, prompt_tokens: int, new_tokens: int, learn: bool, **flags: Any) -> None:
    """Measure a run: prefill and decode speed, load time, memory, and the bandwidth reached beside this host's."""
    from bigrun.devices.host_file import learning_path
    from bigrun.measure.bench import measure

    options = parse(flags)
    if options.context is not None:
        raise CallError("--context: bench's context is --prompt-tokens plus --new-tokens")

    def open_runner(context: int, prompt: int) -> Any:
        return _runner(replace(options, context=context, prompt_tokens=prompt), text=False)

    path = None
    if learn:
        from bigrun.measure.learning import host_to_calibrate

        path = learning_path(options.rig.host)
        host_to_calibrate(path)  # before a long load, not after it
    report = measure(open_runner, prompt_tokens, new_tokens, options.batch, path)
    if as_json:
        print(json.dumps(report))
    else:
        from bigrun.measure.bench import describe

        print(describe(report))


@main.group("eval", cls=Commands)
def evaluate() -> None:
    """How good the model still is."""


@evaluate.command("perplexity")
@rig_options
@run_options
@as_json
@click.option("--text", required=True, type=click.Path(path_type=Path), metavar="FILE", help="UTF-8 text.")
@click.option("--window", type=int, default=512, show_default=True, metavar="W", help="Tokens at a time.")
@click.option("--tokens", type=click.IntRange(min=2), metavar="N", help="The first N tokens of the text. Default: all.")
@click.option("--against", type=click.Choice(["16bit"]), help="Compare with the checkpoint's own values in float32.")
def perplexity_command(
    as_json: bool, text: Path, window: int, tokens: int | None, against: str | None, **flags: Any
) -> None:
    """Perplexity on a text, and the distance from 16 bits."""
    from bigrun.measure.evaluate import describe, perplexity, text_ids
    from bigrun.session.prompts import checked_ids

    options = parse(flags)
    if options.context is not None:
        raise CallError("--context: the context of eval is --window")

    def text_check(tokenizer: Any, table: int, context: int) -> None:
        ids = text_ids(tokenizer, text, tokens)
        checked_ids(ids, table, len(ids), tokenizer)

    def open_runner(context: int) -> Any:
        return _runner(replace(options, context=context), text_check)

    def open_peer(context: int) -> Any:
        exact = replace(options.storage, weights="float32", kv="16bit")
        arithmetic = replace(options.arithmetic, mode="auto")
        # without a cache, which keeps int8
        return _runner(replace(options, context=context, storage=exact, arithmetic=arithmetic, cache=None))

    report = perplexity(open_runner, text, window, tokens, None if against is None else open_peer)
    print(json.dumps(report) if as_json else describe(report))


@main.command()
@as_json
@click.option(
    "--host", type=click.Path(path_type=Path), metavar="FILE", help="Where to keep it. Default: a cache folder."
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def info(as_json: bool, host: Path | None, debug: bool) -> None:
    """What this rig is, and what it measures of itself now: memory, arithmetic, disk, copies. Kept for later plans."""
    from bigrun.measure.info import describe, gather

    check_instruction_set()
    report = gather(host)
    print(json.dumps(report) if as_json else describe(report))


for command in (generate, chat, plan_command, convert, cache, inspect_command, autotune, models, cards, demo):
    main.add_command(command)


if __name__ == "__main__":
    main()

"""The options of `bigrun generate` and `bigrun chat` that say what is answered and how tokens are chosen."""

import json
from collections.abc import Callable, Iterable
from typing import Any

import click

from bigrun.cli.complete import FILE
from bigrun.cli.options import options
from bigrun.errors import CallError

THINKING = ("show", "dim", "hide")
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
WORDS = {"true": True, "false": False, "none": None}  # as Python spells them

_plan = click.option("--plan", type=FILE, metavar="FILE", help="Run this plan, as `bigrun plan --json` printed it.")
_system = click.option("--system", metavar="TEXT", help="The system message: what the model is to be and to heed.")
_template_args = click.option(
    "--template-arg",
    "template_args",
    multiple=True,
    metavar="NAME=VALUE",
    help="For the chat template: enable_thinking=false. Can be repeated.",
)
_stop = click.option("--stop", multiple=True, metavar="TEXT", help="End an answer before this text. Can be repeated.")


def _sampling(defaults: bool) -> list[Callable[..., Any]]:
    """The options that choose tokens: with greedy's `defaults`, or without, where the model says what holds."""
    rows: tuple[tuple[str, type, Any, str, str], ...] = (
        ("--temperature", float, 0.0, "T", "0: the likeliest token."),
        ("--top-k", int, 0, "K", "Sample from the K likeliest tokens; 0: all."),
        ("--top-p", float, 1.0, "P", "Sample from the likeliest tokens that make up P."),
        ("--min-p", float, 0.0, "P", "Sample from tokens of at least P of the likeliest one's probability."),
        ("--repetition-penalty", float, 1.0, "R", "Above 1: tokens that came before are less likely."),
    )
    own = "" if defaults else " Default: the model's own."
    made = [
        click.option(
            flag,
            type=kind,
            default=default if defaults else None,
            show_default=defaults,
            metavar=value,
            help=help + own,
        )
        for flag, kind, default, value, help in rows
    ]
    seed = "The same seed draws the same text. Default: a random one, shown with the speeds."
    return [*made, click.option("--seed", type=int, metavar="S", help=seed)]


generate_options = options(
    _plan,
    click.option(
        "-p",
        "--prompt",
        "prompts",
        multiple=True,
        metavar="TEXT",
        help="What to continue. Default: standard input. Repeated: several prompts, computed together.",
    ),
    click.option(
        "--prompt-file", type=FILE, metavar="FILE", help="Read the prompt from a file of UTF-8 text; -: standard input."
    ),
    _system,
    click.option(
        "--messages",
        type=FILE,
        metavar="FILE",
        help="Answer the last turn of the conversation in this JSON file, as `chat` saves one, or --prompt after it.",
    ),
    _template_args,
    click.option("--raw", is_flag=True, help="The prompt as it is, without the model's chat template."),
    click.option("--max-new-tokens", type=int, default=128, show_default=True, metavar="N", help="Tokens at most."),
    _stop,
    *_sampling(defaults=True),
    click.option("-v", "--verbose", is_flag=True, help="Say in full what each answer took, on standard error."),
)
chat_options = options(
    _plan,
    _system,
    click.option("--messages", type=FILE, metavar="FILE", help="Go on with the conversation of this JSON file."),
    click.option(
        "--thinking",
        type=click.Choice(THINKING),
        help="A reasoning model's thoughts. Default: dim on a terminal, else hide.",
    ),
    _template_args,
    click.option(
        "--max-new-tokens", type=int, metavar="N", help="Tokens of an answer at most. Default: what the context holds."
    ),
    _stop,
    *_sampling(defaults=False),
    click.option("-v", "--verbose", is_flag=True, help="Tokens, seconds and speeds after each answer."),
)


def read_arguments(given: Iterable[str]) -> dict[str, Any]:
    """The template's arguments from NAME=VALUE: a value is JSON where it can be read as such, else a text."""
    arguments: dict[str, Any] = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals or not name:
            raise CallError(f"--template-arg {each}: write NAME=VALUE, such as enable_thinking=false")
        if name in arguments:
            raise CallError(f"--template-arg {name}: it is given twice")
        arguments[name] = _value(value)
    return arguments


def _value(text: str) -> Any:
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text

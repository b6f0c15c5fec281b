"""The options of `bigrun chat` that are of the conversation, and what their values mean."""

import json
from collections.abc import Iterable
from typing import Any

import click

from bigrun.cli.complete import FILE
from bigrun.cli.options import options
from bigrun.errors import CallError

THINKING = ("show", "dim", "hide")
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
WORDS = {"true": True, "false": False, "none": None}  # as Python spells them

chat_options = options(
    click.option("--plan", type=FILE, metavar="FILE", help="Run this plan, as `bigrun plan --json` printed it."),
    click.option("--system", metavar="TEXT", help="The system message: what the model is to be and to heed."),
    click.option("--messages", type=FILE, metavar="FILE", help="Go on with the conversation of this JSON file."),
    click.option(
        "--thinking",
        type=click.Choice(THINKING),
        help="A reasoning model's thoughts. Default: dim on a terminal, else hide.",
    ),
    click.option(
        "--template-arg",
        "template_args",
        multiple=True,
        metavar="NAME=VALUE",
        help="For the chat template: enable_thinking=false. Can be repeated.",
    ),
    click.option(
        "--max-new-tokens", type=int, metavar="N", help="Tokens of an answer at most. Default: what the context holds."
    ),
    click.option("--temperature", type=float, metavar="T", help="0: the likeliest token. Default: the model's own."),
    click.option(
        "--top-k", type=int, metavar="K", help="Sample from the K likeliest tokens; 0: all. Default: the model's own."
    ),
    click.option(
        "--top-p",
        type=float,
        metavar="P",
        help="Sample from the likeliest tokens that make up P. Default: the model's own.",
    ),
    click.option(
        "--min-p",
        type=float,
        metavar="P",
        help="Sample from tokens of at least P of the likeliest one's probability. Default: the model's own.",
    ),
    click.option(
        "--repetition-penalty",
        type=float,
        metavar="R",
        help="Above 1: tokens that came before are less likely. Default: the model's own.",
    ),
    click.option(
        "--seed",
        type=int,
        metavar="S",
        help="The same seed draws the same text. Default: a random one, which -v tells.",
    ),
    click.option("--stop", multiple=True, metavar="TEXT", help="End an answer before this text. Can be repeated."),
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

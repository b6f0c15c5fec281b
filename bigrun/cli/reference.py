"""docs/reference.md, made from the code: `python -m bigrun.cli.reference > docs/reference.md` writes it.

Commands come from click; everything else is read from the source, so that types stand as they are written there.
"""

import inspect
from collections.abc import Iterator

import click

from bigrun import errors
from bigrun.cli.app import main
from bigrun.cli.reference_json import json_section
from bigrun.cli.reference_python import python_section
from bigrun.cli.reference_source import flat, table
from bigrun.errors import BigrunError

COMMAND = "python -m bigrun.cli.reference > docs/reference.md"
OTHERS = {
    1: "Standard output that cannot be written; any other error, which is a bug in bigrun.",
    2: "A command line that cannot be parsed.",
}
ENDS = {0: "Done.", 130: "Interrupted, as by Ctrl-C.", 141: "The reader of standard output closed the pipe."}


def reference() -> str:
    """The whole page."""
    head = [
        "# Reference",
        f"Made from the code by `{COMMAND}`; a change here is lost.",
        "[Commands](#commands) · [Exit codes](#exit-codes) · [JSON](#json) · [Python](#python)",
    ]
    text = "\n\n".join([*head, *_commands(), *_exit_codes(), *json_section(), *python_section()])
    return text + "\n"


# Commands


def _commands() -> Iterator[str]:
    yield "## Commands"
    yield "Every command answers `--help`. Sizes are `24GB` (10⁹ bytes), `24GiB` (2³⁰) or bytes."
    with click.Context(main, info_name="bigrun") as context:
        yield from _command(main, context)


def _command(command: click.Command, context: click.Context) -> Iterator[str]:
    arguments = [param for param in command.params if isinstance(param, click.Argument)]
    options = [param for param in command.params if isinstance(param, click.Option)]
    group = isinstance(command, click.Group)
    words = [context.command_path, *(str(a.metavar or (a.name or "").upper()) for a in arguments)]
    usage = " ".join([*words, *(["[OPTIONS]"] if options else []), *(["COMMAND"] if group else [])])
    yield f"### {context.command_path}"
    yield f"    {usage}"
    yield inspect.cleandoc(command.help or "")
    for argument in arguments:
        if isinstance(argument.envvar, str):
            yield f"`{argument.metavar or argument.name}` may also come from the environment variable `{argument.envvar}`."
    if options:
        rows = [(_flags(option), _default(option), option.help or "") for option in options]
        yield table(("Option", "Default", "Help"), rows)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            if inner is not None and not inner.hidden:
                with click.Context(inner, info_name=name, parent=context) as below:
                    yield from _command(inner, below)


def _flags(option: click.Option) -> str:
    names = ", ".join(sorted([*option.opts, *option.secondary_opts], key=len))
    if option.is_flag or option.name == "version":
        return f"`{names}`"
    kind = option.type
    value = option.metavar or (
        "|".join(map(str, kind.choices)) if isinstance(kind, click.Choice) else kind.name.upper()
    )
    return f"`{names} {value}`"


def _default(option: click.Option) -> str:
    """What the source says: neither the environment nor click's own marks for nothing."""
    if option.required:
        return "required"
    value = option.default
    if option.is_flag or isinstance(value, bool) or not isinstance(value, str | int | float) or value == "":
        return ""
    return f"`{value}`"


# Exit codes


def _exit_codes() -> Iterator[str]:
    means: dict[int, list[str]] = {code: [text] for code, text in ENDS.items()}
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, BigrunError):
            means.setdefault(value.exit_status, []).append(f"`{name}`: {flat(value.__doc__)}")
    for code, text in OTHERS.items():
        means[code].append(text)
    yield "## Exit codes"
    yield "An error is one line on standard error; `--debug` adds the traceback."
    yield table(("Code", "Meaning"), [(f"`{code}`", "<br>".join(means[code])) for code in sorted(means)])


if __name__ == "__main__":
    print(reference(), end="")

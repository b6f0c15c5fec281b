"""`bigrun chat`: a conversation with a model, on a terminal or over a pipe."""

import sys
import traceback
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import click

from bigrun.cli.generation_options import SAMPLING, chat_options, read_arguments
from bigrun.cli.help import Command
from bigrun.cli.options import parse, rig_options, run_options
from bigrun.errors import BigrunError, CallError, ContextFull

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from bigrun.cli.chat_display import Screen
    from bigrun.cli.chat_talk import Talk
    from bigrun.session.prompts import TextCheck
    from bigrun.text.tokenizer import Tokenizer

LEAVES = "Ctrl-D or /quit leaves"
SAID = {"temperature": "temperature", "top_k": "top-k", "top_p": "top-p", "min_p": "min-p"}


class Reader(Protocol):
    """A front end: where turns come from."""

    keys: str  # what /help says of its keys
    interactive: bool  # whether a person sits there, who sees errors and wants no status

    def read(self) -> str | None:
        """The next turn or command, None at the end."""

    def waiting(self) -> "AbstractContextManager[Callable[[], None]]":
        """What holds while an answer comes; it yields what drops the keys that were pressed meanwhile."""


@click.command("chat", cls=Command)
@rig_options
@run_options
@chat_options
def chat(
    system: str | None, messages: str | None, thinking: str | None, template_args: tuple[str, ...],
    max_new_tokens: int | None, stop: tuple[str, ...], verbose: bool, quiet: bool, debug: bool, **flags: Any,
) -> None:  # fmt: skip
    """Talk with a model, in several turns.

    On a terminal Enter sends, Ctrl-C stops an answer, Ctrl-D leaves, and /help lists the commands. Over a pipe each line of
    standard input is a turn, or what stands between two lines of three quotation marks; the answers go to standard output.

    Tokens are drawn as the model's generation_config.json says, and where it says nothing the likeliest is taken; each flag
    takes the place of one value. (`bigrun generate` takes the likeliest unless told otherwise.)
    """
    given = {name: value for name in SAMPLING if (value := flags.pop(name)) is not None}
    options = parse({**flags, "quiet": quiet})
    if options.batch != 1:
        raise CallError(f"--batch {options.batch}: a chat is one sequence: leave it out")
    arguments, said = read_arguments(template_args), _messages(messages, system)
    from bigrun.cli.chat_display import Screen
    from bigrun.cli.chat_talk import Talk
    from bigrun.cli.running import open_runner
    from bigrun.session.conversation import Conversation
    from bigrun.session.preflight import check_generation
    from bigrun.text.stop import stop_texts

    check_generation(max_new_tokens, {"seed": None, **given})  # before a long load, not after it
    stop = stop_texts(stop)
    screen = Screen.here()
    reader = _reader(screen, quiet)
    with open_runner(options, _text_check(said, arguments)) as runner:
        sampling = {**runner.tokenizer.sampling_defaults.values, **given}
        conversation = Conversation(
            runner, said, max_new_tokens=max_new_tokens, sampling=sampling, stop=stop, template_args=arguments
        )
        talk = Talk(
            conversation, runner, screen, thinking or ("dim" if screen.terminal else "hide"), verbose=verbose, quiet=quiet,
            keys=reader.keys, waiting=reader.waiting,
        )  # fmt: skip
        if reader.interactive:
            _greet(talk, sampling)
        for note in runner.tokenizer.sampling_defaults.notes:
            talk.note(note)
        talk.note_unanswered()
        status = converse(talk, reader, debug)
    if status:
        sys.exit(status)


def converse(talk: "Talk", reader: Reader, debug: bool = False) -> int:
    """Turn after turn, until the input ends or the user leaves. An error of a turn is said, and the conversation goes on;
    returns the exit status of the first one, or 0 where a person has seen it."""
    from bigrun.cli.chat_commands import Leave, obey

    status = 0
    while True:
        try:
            text = reader.read()
            if text is None:
                break
            if text.startswith("/") and not text.startswith("//"):
                obey(talk, text)
            else:
                talk.say(text[1:] if text.startswith("//") else text)
        except Leave:
            break
        except KeyboardInterrupt:
            if not reader.interactive:
                raise
            print(LEAVES, file=sys.stderr, flush=True)
        except BigrunError as error:
            if debug:
                traceback.print_exc()
            print(f"bigrun: {_said(error)}", file=sys.stderr, flush=True)
            status = status or error.exit_status
    return 0 if reader.interactive else status


def _said(error: BigrunError) -> str:
    """An error as a turn meets it."""
    if not isinstance(error, ContextFull):
        return str(error)
    return (
        f"the conversation has {error.tokens:,} tokens with this turn, and the context {error.context:,}: /clear begins anew, "
        "--context makes room"
    )


def _messages(file: str | None, system: str | None) -> list[dict[str, Any]]:
    """The conversation to begin with: a file's, with another system message if one is given."""
    from bigrun.cli.messages_file import read_messages

    said = [] if file is None else read_messages(file, f"--messages {file}")
    if system is None:
        return said
    if not system.strip():
        raise CallError("--system: it is empty: leave it out")
    return [{"role": "system", "content": system}, *(each for each in said if each["role"] != "system")]


def _text_check(said: list[dict[str, Any]], arguments: Mapping[str, Any]) -> "TextCheck":
    """Whether the model can go on with this conversation, tried before its weights are read: by a turn of one word."""

    def check(tokenizer: "Tokenizer", table: int, context: int) -> None:
        from bigrun.session.prompts import prompt_ids
        from bigrun.text.template_args import check_arguments

        if tokenizer.chat_template is None:
            raise CallError(
                "this model has no chat template: it was not trained to chat; `bigrun generate --raw` continues a text"
            )
        check_arguments(tokenizer.chat_template, arguments)
        _ = tokenizer.sampling_defaults  # which may be wrong
        turn = [] if said and said[-1]["role"] == "user" else [{"role": "user", "content": "Hi"}]
        prompt_ids(tokenizer, [*said, *turn], False, table, context, arguments)

    return check


def _reader(screen: "Screen", quiet: bool) -> Reader:
    """The line editor on a terminal, where it is installed; else plain lines."""
    from bigrun.cli.chat_plain import PlainLines

    if not screen.terminal:
        return PlainLines()
    try:
        from bigrun.cli.chat_terminal import TerminalLines
    except ModuleNotFoundError as error:
        if not quiet:
            print(f"bigrun: {error.name} is not installed: lines are read without an editor", file=sys.stderr)
        return PlainLines()
    return TerminalLines()


def _greet(talk: "Talk", sampling: Mapping[str, Any]) -> None:
    """Which model this is, and how to find the commands."""
    plan = talk.runner.plan
    values = ", ".join(f"{word} {sampling[name]:g}" for name, word in SAID.items() if sampling.get(name))
    how = values if sampling.get("temperature") else "greedy"
    talk.note(f"{plan.model}, {plan.context_tokens:,} tokens of context, {how}; /help lists the commands")

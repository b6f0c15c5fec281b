"""The commands of a conversation: input that begins with a slash."""

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches

import click

from bigrun.cli.chat_talk import Talk
from bigrun.cli.generation_options import THINKING
from bigrun.cli.messages_file import read_messages, write_messages
from bigrun.errors import CallError
from bigrun.text.shown import shown

NOTHING = ('""', "''")  # what `/system` takes for no text at all


class Leave(Exception):
    """The user wants to leave."""


@dataclass(frozen=True)
class Command:
    """What a command takes, says of itself and does; without `takes` an argument is an error."""

    takes: str
    help: str
    run: Callable[[Talk, str], None]


def obey(talk: Talk, line: str) -> None:
    """Does what a line such as "/save talk.json" says. CallError for an unknown command, Leave where the user leaves."""
    name, argument = (*line.split(maxsplit=1), "")[:2]
    argument = argument.strip()
    if name in ("/save", "/load") and len(argument) > 2 and argument[0] == argument[-1] and argument[0] in "'\"":
        argument = argument[1:-1]  # as a shell takes it
    command = COMMANDS.get(name)
    if command is None:
        raise CallError(_unknown(name))
    if argument and not command.takes:
        raise CallError(f"{name} takes nothing; a message that begins with a slash is written with two: /{line:.40}")
    if not argument and command.takes and not command.takes.startswith("["):
        raise CallError(f"{name}: write {name} {command.takes}")
    command.run(talk, argument)


def _unknown(name: str) -> str:
    near = get_close_matches(name, COMMANDS, 1)
    hint = f"did you mean {near[0]}" if near else "/help lists them"
    return (
        f"{name[:40]}: no such command ({hint}); a message that begins with a slash is written with two: /{name[:40]}"
    )


def _help(talk: Talk, _: str) -> None:
    rows = [(f"{name} {command.takes}".rstrip(), command.help) for name, command in COMMANDS.items() if command.help]
    rows.append(("//...", "A message that begins with one slash."))
    formatter = click.HelpFormatter(width=min(shutil.get_terminal_size().columns, 100))
    formatter.write_dl(rows)
    if talk.keys:
        formatter.write_text(talk.keys)
    print(formatter.getvalue().rstrip(), flush=True)


def _system(talk: Talk, text: str) -> None:
    if not text:
        there = talk.conversation.system
        print("none is set; the chat template may have one of its own" if there is None else shown(there), flush=True)
        return
    talk.conversation.system = None if text in NOTHING else text
    talk.note("none is set from the next answer on" if text in NOTHING else "it holds from the next answer on")


def _save(talk: Talk, file: str) -> None:
    messages = talk.conversation.messages
    path = write_messages(file, messages, f"/save {file}")
    talk.note(f"{_messages(len(messages))} in {shown(str(path))}")


def _load(talk: Talk, file: str) -> None:
    messages = read_messages(file, f"/load {file}")
    try:
        talk.conversation.load(messages)
    except CallError as error:
        raise CallError(f"/load {file}: {error}") from error
    talk.note(_messages(len(messages)))
    talk.note_unanswered()


def _messages(number: int) -> str:
    return f"{number} message{'s' * (number != 1)}"


def _stats(talk: Talk, _: str) -> None:
    if talk.conversation.last is None:
        raise CallError("/stats: there is no answer yet")
    print("\n".join(talk.took(talk.conversation.last)), flush=True)


def _plan(talk: Talk, _: str) -> None:
    from bigrun.cli.plan import print_plan

    print_plan(talk.runner.plan)
    sys.stdout.flush()


def _clear(talk: Talk, _: str) -> None:
    talk.conversation.clear()
    talk.note("the conversation is empty" + (", but for the system message" if talk.conversation.system else ""))


def _retry(talk: Talk, _: str) -> None:
    before = talk.conversation.messages[-1:]
    talk.again()
    if talk.conversation.messages[-1:] == before:
        greedy = not talk.conversation.sampling["temperature"]
        talk.note("the same answer: " + ("--temperature draws others" if greedy else "leave --seed out"))


def _thinking(talk: Talk, how: str) -> None:
    if how and how not in THINKING:
        raise CallError(f"/thinking {how[:40]}: write one of {', '.join(THINKING)}")
    if how:
        talk.thinking = how
        talk.note(f"thoughts: {how}")
    else:
        print(talk.thinking, flush=True)


def _quit(talk: Talk, _: str) -> None:
    raise Leave


COMMANDS = {
    "/help": Command("", "What can be written here.", _help),
    "/system": Command("[TEXT]", 'Show the system message, or set it; "" removes it.', _system),
    "/save": Command("FILE", "Write the conversation to a JSON file.", _save),
    "/load": Command("FILE", "Go on with the conversation of a file.", _load),
    "/retry": Command("", "Another answer in place of the last.", _retry),
    "/clear": Command("", "Forget all but the system message.", _clear),
    "/thinking": Command("[show|dim|hide]", "How a model's thoughts are shown.", _thinking),
    "/stats": Command("", "What the last answer took.", _stats),
    "/plan": Command("", "What of the model is where.", _plan),
    "/quit": Command("", "Leave; so does /exit.", _quit),
    "/exit": Command("", "", _quit),
}

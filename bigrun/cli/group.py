"""How commands end: one or two lines on standard error and the documented status, whatever became of the output."""

import errno
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import click

from bigrun.cli.encoding import encodable_streams
from bigrun.cli.help import Commands
from bigrun.errors import BigrunError, command_line

# click 8.2 raises this for a group without a command; 8.1 prints the help by itself
NO_ARGUMENTS: Any = getattr(click.exceptions, "NoArgsIsHelpError", ())
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class _PipeClosed(Exception):
    """Nobody reads what is printed. A BrokenPipeError itself would not come past click, which ends with 1 at one."""


@contextmanager
def _past_click() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise _PipeClosed from error


class Group(Commands):
    """A click group that reports errors in one or two lines on standard error and exits with the documented status."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with _past_click():  # --help and --version print here
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with _past_click():
            return super().invoke(ctx)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        with command_line():
            return self._main(*args, **kwargs)

    def _main(self, *args: Any, **kwargs: Any) -> Any:
        debug = "--debug" in (kwargs.get("args") or sys.argv[1:])
        if sys.stderr is None:  # closed by the caller: what is said there goes nowhere, least of all to standard output
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        encodable_streams()
        try:
            result = super().main(*args, **{**kwargs, "standalone_mode": False})
            self._flush()
            return result
        except click.exceptions.Exit as error:
            sys.exit(error.exit_code)
        except NO_ARGUMENTS as error:
            print(error.format_message(), file=sys.stderr)
            sys.exit(2)
        except (Exception, KeyboardInterrupt) as error:
            ending: BaseException = error
            try:
                self._flush()
            except (OSError, _PipeClosed) as output:
                ending = output
                _discard(sys.stdout)
            if debug:
                traceback.print_exc()
            self._end(ending)

    @staticmethod
    def _flush() -> None:
        """What was printed leaves this process now: after it, Python's own end would be the one to fail, with 120."""
        if sys.stdout is not None and not sys.stdout.closed:
            with _past_click():
                sys.stdout.flush()

    @staticmethod
    def _end(error: BaseException) -> None:
        """One line on standard error, whatever names it quotes, and the exit status."""
        if isinstance(error, _PipeClosed):
            _discard(sys.stdout)
            _discard(sys.stderr)
            sys.exit(141)
        if isinstance(error, BigrunError):
            message, status = str(error), error.exit_status
        elif isinstance(error, OSError) and error.errno in NO_ROOM and error.filename is None:
            message, status = f"standard output (or a file) cannot be written: {error.strerror}", 1
        elif isinstance(error, click.ClickException):
            message, status = _meant(error), 2
        elif isinstance(error, click.Abort | KeyboardInterrupt):
            message, status = str(error.__cause__ or error) or "interrupted", 130  # click's Abort has ours as its cause
        else:
            message, status = f"{type(error).__name__}: {error} (a bug; --debug shows where)", 1
        try:
            print(f"bigrun: {BigrunError(message)}", file=sys.stderr)
        except OSError:
            _discard(sys.stderr)
        sys.exit(status)


# What users of other tools type → what it is here.
FLAGS = {
    "--temp": "--temperature", "--n-predict": "--max-new-tokens", "--num-predict": "--max-new-tokens",
    "--max-tokens": "--max-new-tokens", "--ctx-size": "--context", "--num-ctx": "--context", "-c": "--context",
    "--repeat-penalty": "--repetition-penalty", "--n-gpu-layers": "--gpus", "-m": "--model",
    "--file": "--prompt-file", "-f": "--prompt-file", "--system-prompt": "--system", "-t": "--threads",
}  # fmt: skip
COMMANDS = {
    "run": "chat, or generate",
    "help": "--help",
    "list": "models",
    "ls": "models",
    "show": "inspect",
    "pull": "plan",
}


def _meant(error: click.ClickException) -> str:
    """click's message, with what is meant where that is known."""
    message = error.format_message()
    if isinstance(error, click.NoSuchOption) and error.option_name in FLAGS:
        return f"No such option: {error.option_name}; it is {FLAGS[error.option_name]} here"
    if isinstance(error, click.UsageError) and error.ctx is not None:
        if "unexpected extra argument" in message and any(
            param.name == "prompts" for param in error.ctx.command.params
        ):
            return f"{message}; a prompt is given as -p TEXT"
        if message.startswith("No such command") and (name := message.split("'")[1]) in COMMANDS:
            return f"No such command '{name}'; it is {COMMANDS[name]} here"
    return message


def _discard(stream: Any) -> None:
    """What a stream still holds, and all that follows, goes nowhere."""
    with suppress(OSError, ValueError, AttributeError):  # not a file, closed, or None
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)

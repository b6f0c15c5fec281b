"""A conversation on a terminal, with prompt_toolkit's line editor, which is imported here alone."""

import os
import signal
import sys
import termios
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import create_output
from prompt_toolkit.shortcuts import CompleteStyle

from bigrun.cli.chat_commands import COMMANDS
from bigrun.cli.generation_options import THINKING
from bigrun.devices.host_file import cache_folder

INPUT, LOCAL = 0, 3  # where termios has these flags
PASTE_AS_TYPED = b"\x1b[0m\x1b[?2004l"  # plain letters, and no brackets around what is pasted
HISTORY = "chat-history"
MOST_HISTORY = 1 << 20  # bytes: of a longer file the last half of that is kept


class TerminalLines:
    """Turns as they are typed: Enter sends, Alt+Enter and Ctrl+J begin a new line, what is pasted stays together."""

    keys = "Enter sends; Alt+Enter or Ctrl+J begins a new line; Ctrl-C stops an answer; Ctrl-D leaves."
    interactive = True

    def __init__(self) -> None:
        output = create_output(sys.stdout)
        output.enable_cpr = False  # type: ignore[attr-defined]  # a terminal that answers no questions works as well
        self._session: PromptSession[str] = PromptSession(
            "> ", multiline=True, prompt_continuation="  ", key_bindings=_keys(), history=_history(), output=output,
            completer=_Commands(), complete_while_typing=False, complete_style=CompleteStyle.READLINE_LIKE,
            reserve_space_for_menu=0, enable_suspend=True,
        )  # fmt: skip

    def read(self) -> str | None:
        """The next turn, None when the user leaves. KeyboardInterrupt for Ctrl-C at an empty prompt; elsewhere it drops what
        was typed."""
        while True:
            print(flush=True)
            try:
                with _given_back():
                    return self._session.prompt()
            except EOFError:
                return None
            except KeyboardInterrupt:
                if not self._session.default_buffer.text:
                    raise

    @contextmanager
    def waiting(self) -> Iterator[Callable[[], None]]:
        """Keys that are pressed while an answer comes do not show in it; the next prompt has them, unless they are dropped by
        calling what this yields."""
        with _given_back() as modes:
            if modes is not None:
                now = list(modes)
                now[INPUT] &= ~termios.ICRNL  # Enter stays Enter
                now[LOCAL] &= ~(termios.ECHO | termios.ICANON)
                now[LOCAL] |= termios.NOFLSH  # else Ctrl-C drops output as well: the end of a colour
                with suppress(termios.error):
                    termios.tcsetattr(sys.stdin, termios.TCSANOW, now)
            yield _drop_input


def _drop_input() -> None:
    with suppress(termios.error, OSError, ValueError):
        termios.tcflush(sys.stdin, termios.TCIFLUSH)


@contextmanager
def _given_back() -> Iterator[list[Any] | None]:
    """Whatever is done to the terminal meanwhile, it is afterwards as it was, also where SIGTERM ends the process. Yields its
    modes, None where it has none that can be read."""
    try:
        modes = termios.tcgetattr(sys.stdin)
    except (termios.error, OSError, ValueError):
        yield None
        return

    def give_back() -> None:
        with suppress(termios.error):
            termios.tcsetattr(sys.stdin, termios.TCSANOW, modes)

    def terminate(number: int, _: object) -> None:
        give_back()
        with suppress(OSError):
            os.write(sys.stdout.fileno(), PASTE_AS_TYPED)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    usual = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if usual:
        signal.signal(signal.SIGTERM, terminate)
    try:
        yield modes
    finally:
        give_back()
        if usual:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        if event.current_buffer.text.strip():
            event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    @keys.add("c-j")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    return keys


class _Commands(Completer):
    """Names of commands, and what some take."""

    def __init__(self) -> None:
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        name, space, argument = document.text_before_cursor.partition(" ")
        if not space:
            yield from _beginning(name, COMMANDS) if name.startswith("/") else ()
        elif name in ("/save", "/load"):
            yield from self._paths.get_completions(Document(argument), complete_event)
        elif name == "/thinking":
            yield from _beginning(argument, THINKING)


def _beginning(start: str, words: Iterable[str]) -> Iterator[Completion]:
    return (Completion(word, -len(start)) for word in words if word.startswith(start))


class _Kept(FileHistory):
    """A history in a file; what cannot be written is kept for this session alone."""

    def store_string(self, string: str) -> None:
        with suppress(OSError):
            super().store_string(string)


def _history() -> History:
    """What was typed before: a file in the cache folder that its user alone can read; in memory where there can be none."""
    folder = cache_folder()
    if folder is None:
        return InMemoryHistory()
    file = folder / HISTORY
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(os.open(file, os.O_RDWR | os.O_CREAT, 0o600), "r+b"):
            pass
        _shorten(file)
    except OSError:
        return InMemoryHistory()
    return _Kept(str(file))


def _shorten(file: Path) -> None:
    """Drops the oldest entries of a history that has grown long."""
    if not file.is_file() or file.stat().st_size <= MOST_HISTORY:
        return
    with open(file, "r+b") as stream:
        stream.seek(-MOST_HISTORY // 2, os.SEEK_END)
        rest = stream.read()
        start = rest.find(b"\n# ")  # which begins an entry; lines of one begin with +
        stream.seek(0)
        stream.truncate()
        stream.write(b"" if start < 0 else rest[start:])

"""A conversation in plain lines: over a pipe, in a dumb terminal, and where there is no line editor."""

import sys
from codecs import BOM_UTF8

from bigrun.cli.chat_display import is_terminal
from bigrun.cli.chat_talk import not_waiting
from bigrun.cli.prompt import MOST_BYTES
from bigrun.errors import CallError

FENCE = '"""'
TOO_LONG = f"more than {MOST_BYTES // 1024**2} MiB: no context holds that"


class PlainLines:
    """Turns from standard input: each line, or the lines between two lines of three quotation marks, as one."""

    waiting = staticmethod(not_waiting)
    keys = f"Lines between two lines {FENCE} are one message."

    def __init__(self) -> None:
        """CallError where standard input is closed."""
        if sys.stdin is None or sys.stdin.closed:
            raise CallError("standard input is closed: chat reads there what is said to the model")
        self._input, self._number, self._ended = sys.stdin.buffer, 0, False
        self.interactive = is_terminal(sys.stdin)
        outputs = (stream for stream in (sys.stdout, sys.stderr) if is_terminal(stream))
        self._prompts = next(outputs, None) if self.interactive else None

    def read(self) -> str | None:
        """The next turn, None at the end of the input. CallError for what is no text; what follows it can still be read."""
        while not self._ended:
            self._prompt("> ")
            line = self._line()
            if line is None:
                break
            if line.strip() == FENCE:
                return self._block()
            if line.strip():
                return line
        self._prompt("\n")
        return None

    def _block(self) -> str | None:
        """The lines up to the next fence: a message, also where it begins like a command."""
        began, size = self._number, 0
        lines: list[str] = []
        wrong: CallError | None = None
        while True:
            try:
                line = self._line()
            except CallError as error:
                wrong = wrong or error
                continue
            if line is None:
                raise wrong or CallError(f"standard input: the {FENCE} of line {began} has no end: it was not sent")
            if line.strip() == FENCE:
                break
            size += len(line)
            if size > MOST_BYTES:
                wrong, lines = wrong or CallError(f"standard input, line {began}: {TOO_LONG}"), []
            lines.append(line)
        if wrong:
            raise wrong
        text = "\n".join(lines)
        if not text.strip():
            return self.read()
        return f"/{text}" if text.startswith("/") else text

    def _line(self) -> str | None:
        """The next line without its end, None at the end of the input."""
        data = self._bytes()
        if not data:
            self._ended = True
            return None
        self._number += 1
        where = f"standard input, line {self._number}"
        if len(data) > MOST_BYTES:
            while data and not data.endswith(b"\n"):
                data = self._bytes()
            raise CallError(f"{where}: {TOO_LONG}")
        if self._number == 1:
            data = data.removeprefix(BOM_UTF8)
        try:
            return data.decode("utf-8").removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            what = f"byte {error.start} is 0x{data[error.start]:02x}"
            raise CallError(f"{where}: not UTF-8 text: {what}; convert it, as with iconv -t UTF-8") from error

    def _bytes(self) -> bytes:
        try:
            return self._input.readline(MOST_BYTES + 1)
        except OSError as error:  # its terminal or device is gone
            self._ended = True
            raise CallError(f"standard input: cannot be read: {error.strerror}") from error

    def _prompt(self, text: str) -> None:
        if self._prompts is not None:
            self._prompts.write(text)
            self._prompts.flush()

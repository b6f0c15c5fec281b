"""An answer on standard output, as it comes: what may not reach a terminal is escaped, thoughts are shown, dimmed or hidden."""

import os
import sys
from dataclasses import dataclass
from typing import TextIO

from bigrun.text.shown import Shown
from bigrun.text.thinking import Marks

DIM, PLAIN = "\x1b[2m", "\x1b[0m"
ERASED = "\r\x1b[K"
SIGN = "thinking…"  # stands for hidden thoughts while they come


@dataclass(frozen=True)
class Screen:
    """What standard output takes: cursor movements on a terminal, and colours unless NO_COLOR is set."""

    terminal: bool
    colours: bool

    @staticmethod
    def here() -> "Screen":
        """That of this process. It is no terminal where input is none: a conversation is held on both."""
        terminal = is_terminal(sys.stdin) and is_terminal(sys.stdout) and os.environ.get("TERM", "") not in ("", "dumb")
        return Screen(terminal, terminal and not os.environ.get("NO_COLOR"))


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a stream is open and a terminal, be it a dumb one."""
    return stream is not None and not stream.closed and stream.isatty()


class Display:
    """Writes the pieces of one answer; `end` completes its last line."""

    def __init__(self, screen: Screen, thinking: str, marks: Marks | None):
        """`thinking`: show, dim or hide; thoughts that cannot be dimmed stand between their marks, as shown ones do."""
        self._screen = screen
        self._hidden = thinking == "hide"
        self._dimmed = thinking == "dim" and screen.colours
        self._marks = marks or Marks("<think>", "</think>")
        self._shown = Shown()
        self._in_thoughts = self._sign = False
        self._line_is_open = False  # whether something stands on the last line
        self.said, self.thought = False, False  # whether there was text, and thoughts

    def piece(self, text: str, thinking: bool) -> None:
        """The next piece of the answer."""
        if thinking != self._in_thoughts:
            self._leave_thoughts(answered=True) if self._in_thoughts else self._enter_thoughts()
        if thinking:
            self.thought = True
        else:
            self.said = True
        if not (thinking and self._hidden):
            self._write(self._shown.push(text))
        sys.stdout.flush()

    def end(self, empty_line: bool = False) -> None:
        """The answer has ended, wherever it did; `empty_line`: one without text is a line as well."""
        if self._in_thoughts:
            self._leave_thoughts(answered=False)
        self._write(self._shown.finish())
        if self._line_is_open or (empty_line and not self.said):
            self._write("\n")
        sys.stdout.flush()

    def _enter_thoughts(self) -> None:
        self._in_thoughts = True
        if self._hidden:
            if self._screen.terminal:
                self._sign = True
                sys.stdout.write(f"{DIM}{SIGN}{PLAIN}" if self._screen.colours else SIGN)
        elif self._dimmed:
            sys.stdout.write(DIM)
        else:
            self._write(self._marks.open + "\n")

    def _leave_thoughts(self, answered: bool) -> None:
        """Thoughts end: where the answer begins, or with the answer itself, which then has none."""
        self._in_thoughts = False
        self._write(self._shown.finish())
        self._shown = Shown()
        if self._sign:
            self._sign = False
            sys.stdout.write(ERASED)
        elif self._dimmed:
            sys.stdout.write(PLAIN)
            self._write("\n\n" if answered else "")
        elif not self._hidden:
            self._write(f"\n{self._marks.close}\n\n" if answered else "")

    def _write(self, text: str) -> None:
        if text:
            sys.stdout.write(text)
            self._line_is_open = not text.endswith("\n")

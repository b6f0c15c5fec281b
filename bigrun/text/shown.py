"""A model's text as a terminal may have it: what a terminal would obey, and what would turn or hide text, is spelled out."""

from __future__ import annotations

import re

# Unlike in names and messages, where all that Python does not call printable is escaped, most of the invisible stays:
# joiners, variation selectors and spaces are parts of scripts and emoji, and models know characters newer than this Python.
_UNSAFE = re.compile(
    "["
    "\x00-\x08\x0b-\x1f\x7f"  # C0 without tab and the line's end, and DEL
    "\x80-\x9f"  # C1: U+009B begins an escape sequence as ESC [ does
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u206f"  # direction of text, and its deprecated relatives
    "\u2028\u2029"  # ends of lines and paragraphs, to some
    "\ud800-\udfff"  # halves of surrogate pairs, which no encoding has
    "\U000e0000-\U000e007f"  # tags: letters that nobody sees
    "]"
)


def shown(text: str) -> str:
    """The text with control characters spelled out, like `\\x1b` and `\\u202e`; only tabs and ends of lines are kept.

    The two characters that end a line on Windows become one; a carriage return alone is spelled out: it would overwrite.
    """
    return _UNSAFE.sub(lambda unsafe: repr(unsafe[0])[1:-1], text.replace("\r\n", "\n"))


class Shown:
    """`shown` of a text that comes in pieces: `push` each, then `finish`; each returns what can be printed by then."""

    def __init__(self) -> None:
        self._held = ""  # a carriage return, until it is known what follows it

    def push(self, piece: str) -> str:
        """What `piece` completes."""
        text = self._held + piece
        self._held = "\r" if text.endswith("\r") else ""
        return shown(text.removesuffix("\r"))

    def finish(self) -> str:
        """What was held back."""
        held, self._held = self._held, ""
        return shown(held)

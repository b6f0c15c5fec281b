"""Texts that end an answer where they come, across the pieces in which it streams."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bigrun.errors import CallError, shortly

MOST_TEXTS, MOST_CHARACTERS = 64, 4096  # what is looked for at every piece


class StopTexts:
    """`push` each piece of an answer, then `finish`; each returns what is to be printed. After `found` there is no more.

    The first text that is complete ends the answer, before its first character; of several that end at once the longest. What
    may still become one is held back, so the answer does not depend on where its pieces end.
    """

    def __init__(self, texts: Sequence[str]):
        self.texts = tuple(texts)
        self.found: str | None = None
        self._held = ""

    def push(self, piece: str) -> str:
        """What of the answer is certain now; "" once a stop text was found."""
        if self.found is not None or not self.texts:
            return "" if self.texts else piece
        text = self._held + piece
        if (match := self._first(text)) is not None:
            self.found = match[1]
            self._held = ""
            return text[: match[0]]
        keep = max(overlap(text, stop) for stop in self.texts)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back and did not become a stop text."""
        held, self._held = self._held, ""
        return held

    def _first(self, text: str) -> tuple[int, str] | None:
        """(start, stop text) of the one that is complete first, the longest of several."""
        matches = [(start + len(stop), -len(stop), stop) for stop in self.texts if (start := text.find(stop)) >= 0]
        if not matches:
            return None
        end, _, stop = min(matches)
        return end - len(stop), stop


def stop_texts(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """The texts of a request's `stop`, checked: one text, several, or none; CallError for what is no text, or an empty one."""
    if stop is None:
        return ()
    texts = tuple(stop) if isinstance(stop, Iterable) and not isinstance(stop, str) else (stop,)
    for text in texts:
        if not isinstance(text, str) or not text:
            raise CallError(f"--stop {shortly(text)}: it must be a text of at least one character")
        if len(text) > MOST_CHARACTERS:
            raise CallError(f"--stop {shortly(text)}: {len(text)} characters; at most {MOST_CHARACTERS}")
    if len(texts) > MOST_TEXTS:
        raise CallError(f"--stop: {len(texts)} texts; at most {MOST_TEXTS}")
    return texts


def overlap(text: str, mark: str) -> int:
    """How many characters at the end of `text` are the beginning of `mark`, less than all of it."""
    most = min(len(text), len(mark) - 1)
    return next((length for length in range(most, 0, -1) if text.endswith(mark[:length])), 0)

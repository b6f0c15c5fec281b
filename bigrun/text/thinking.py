"""What a reasoning model thinks and what it says, told apart while the text comes.

Such a model writes its thoughts between two marks before its answer. Only the beginning of an answer is looked at: an
opening mark further on is the answer's own text, as of a model that explains `<think>`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from bigrun.text.stop import overlap


class Marks(NamedTuple):
    """What a model writes before its thoughts and after them; `direct` is what it writes in place of thoughts, if anything."""

    open: str
    close: str
    direct: str = ""


class Piece(NamedTuple):
    """A piece of a model's text, never empty; `thinking` if it is of its thoughts."""

    text: str
    thinking: bool


# The usual pair first: it is taken of a template that knows several.
KNOWN = (
    Marks("<think>", "</think>"),  # DeepSeek-R1, Qwen3, QwQ, SmolLM3, Phi-4, GLM, OLMo 3, Nemotron, MiniMax M2
    Marks("[THINK]", "[/THINK]"),  # Magistral, Ministral 3
    Marks("<seed:think>", "</seed:think>"),  # Seed-OSS
    Marks("<thought>", "</thought>"),  # EXAONE Deep
    Marks("<thinking>", "</thinking>"),  # Apriel
    Marks("<mm:think>", "</mm:think>"),  # MiniMax M3
    Marks("◁think▷", "◁/think▷"),  # Kimi-VL
    Marks("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A Reasoning, Command R7B
    Marks("<|channel>thought", "<channel|>"),  # Gemma 4
    Marks(  # gpt-oss: the thoughts are a message of their own
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
        "<|channel|>final<|message|>",
    ),
)


def marks_of(template: str | None) -> Marks | None:
    """The marks that a chat template's source names, None where it names none that is known.

    A template that names only the closing mark, because it drops the thoughts of earlier answers by it, counts; one that
    names only the opening mark does if no other is named.
    """
    if template is None:
        return None
    closing = (marks for marks in KNOWN if marks.close in template)
    opening = (marks for marks in KNOWN if marks.open in template)
    return next(closing, None) or next(opening, None)


def begins_inside(prompt: str, marks: Marks | None) -> bool:
    """Whether a rendered chat ends with the opening mark, so that the model's first words are thoughts."""
    return marks is not None and prompt.rstrip().endswith(marks.open)


class Thinking:
    """`push` each text as it comes, then `finish`: each returns the pieces that are decided by then.

    The marks are in no piece, nor is the white space at either end of the thoughts and before the answer. What may still
    become a mark is held back, so that the pieces joined do not depend on where the text was cut. Without marks all is said.
    """

    def __init__(self, marks: Marks | None, inside: bool = False) -> None:
        """`inside`: the prompt has opened the thoughts; a mark that opens them once more is dropped as well."""
        self._marks = marks or Marks("", "")
        self._thinking = inside and marks is not None
        self._step: Callable[[str, list[Piece]], str] = self._beginning if marks else self._said
        self._spaces: list[str] = []  # white space that goes with what follows it, unless that is a mark
        self._tail = ""  # what may become a mark

    def push(self, text: str) -> list[Piece]:
        """The pieces that `text` completes."""
        pieces: list[Piece] = []
        rest, self._tail = self._tail + text, ""
        while rest:
            rest = self._step(rest, pieces)
        return pieces

    def finish(self) -> list[Piece]:
        """What was held back: the text has ended, and no mark came of it."""
        held, self._tail = self._with_spaces(self._tail), ""
        return [Piece(held, self._thinking)] if held else []

    # Each step takes what it can of a text that is not empty, and returns what is left to the next one.

    def _beginning(self, text: str, pieces: list[Piece]) -> str:
        """Before the first word: a mark may come."""
        word = text.lstrip()
        if not self._thinking:
            self._spaces.append(text[: len(text) - len(word)])
        for mark in (self._marks.open, self._marks.direct):
            if mark and word.startswith(mark):
                self._spaces.clear()
                self._thinking = mark == self._marks.open
                self._step = self._before_thoughts if self._thinking else self._before_answer
                return word[len(mark) :]
            if mark.startswith(word):
                self._tail = word
                return ""
        self._step = self._thoughts if self._thinking else self._said
        return self._with_spaces(word)

    def _before_thoughts(self, text: str, pieces: list[Piece]) -> str:
        return self._dropping_spaces(text, self._thoughts)

    def _thoughts(self, text: str, pieces: list[Piece]) -> str:
        body, mark, rest = text.partition(self._marks.close)
        if not mark:
            held = overlap(body, self._marks.close)
            body, self._tail = body[: len(body) - held], body[len(body) - held :]
        thought = body.rstrip()
        if thought:
            pieces.append(Piece(self._with_spaces(thought), True))
        self._spaces.append(body[len(thought) :])
        if mark:
            self._spaces.clear()
            self._thinking, self._step = False, self._before_answer
        return rest

    def _before_answer(self, text: str, pieces: list[Piece]) -> str:
        return self._dropping_spaces(text, self._said)

    def _said(self, text: str, pieces: list[Piece]) -> str:
        pieces.append(Piece(text, False))
        return ""

    def _dropping_spaces(self, text: str, then: Callable[[str, list[Piece]], str]) -> str:
        text = text.lstrip()
        if text:
            self._step = then
        return text

    def _with_spaces(self, text: str) -> str:
        text = "".join(self._spaces) + text
        self._spaces.clear()
        return text

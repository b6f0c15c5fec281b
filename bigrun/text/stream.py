"""Token ids to text as they come: linear time overall, and the pieces joined are the text of the whole.

Decoding a growing list again and again is quadratic, and decoding a window of it loses spaces and characters at the
window's edge. So the tokenizer's decoder is read once and its steps are carried out here, a token at a time, with only
what cannot be decided yet held back: the first bytes of a UTF-8 character.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from tokenizers import Tokenizer

from bigrun.errors import TokenizerError


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte: itself where it prints in Latin-1, else the next from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


_ALPHABET = _byte_alphabet()
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class _Pieces(Protocol):
    """One way of turning tokens into text. A stream owns one; it is used up by `finish`."""

    def push(self, token: str) -> str: ...

    def literal(self, text: str) -> str:
        """A text that is spelled as it prints, after what was held back."""
        ...

    def finish(self) -> str: ...


class _ByteLevel:
    """Tokens spelled in the byte alphabet; one that is not (an added token) stands for its own UTF-8."""

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: str) -> str:
        try:
            data = bytes(_ALPHABET[character] for character in token)
        except KeyError:
            data = token.encode("utf-8")
        return self._utf8.decode(data)

    def literal(self, text: str) -> str:
        return self._utf8.decode(text.encode("utf-8"))

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


@dataclass
class _Words:
    """SentencePiece's spelling: a mark for a space, `<0xE2>` for a byte without a token, a leading space to drop."""

    replace: tuple[tuple[str, str], ...]
    mark: str | None  # Metaspace's: a space, but nothing in the first token
    fallback: bool
    strip: int
    strip_character: str
    _run: bytearray
    _first: bool = True

    def push(self, token: str) -> str:
        if self.mark is not None:
            token = token.replace(self.mark, "" if self._first else " ")
        self._first = False
        for old, new in self.replace:
            token = token.replace(old, new)
        byte = _BYTE_TOKEN.fullmatch(token) if self.fallback else None
        if byte is None:
            return self._stripped(self._flushed() + token)
        self._run.append(int(byte[1], 16))
        return ""

    def literal(self, text: str) -> str:
        before = self._stripped(self._flushed())
        self._first, self.strip = False, 0
        return before + text

    def finish(self) -> str:
        return self._stripped(self._flushed())

    def _flushed(self) -> str:
        # A run of byte tokens is one unit to the decoder: if any of it is not UTF-8, each byte becomes U+FFFD. So the
        # whole run waits for the token that ends it.
        run, self._run = self._run, bytearray()
        try:
            return run.decode("utf-8")
        except UnicodeDecodeError:
            return "\ufffd" * len(run)

    def _stripped(self, text: str) -> str:
        if not self.strip or not text:
            return text
        kept = text.lstrip(self.strip_character)
        dropped = min(len(text) - len(kept), self.strip)
        # The allowance is for the text's very start: it ends with the first other character.
        self.strip = 0 if kept else self.strip - dropped
        return text[dropped:]


class TextStream:
    """`push` each id, then `finish`; each returns text to print. Special tokens print nothing but those `shown`, and unknown
    ids nothing."""

    def __init__(
        self, backend: Tokenizer, special_ids: frozenset[int], pieces: _Pieces, shown: Mapping[int, str] | None = None
    ) -> None:
        """`shown`: special tokens that print, and what."""
        self._backend, self._special_ids, self._pieces = backend, special_ids, pieces
        self._shown = shown or {}

    def push(self, token_id: int) -> str:
        """The text that this token completes; often one word, empty in the middle of a character."""
        if token_id in self._shown:
            return self._pieces.literal(self._shown[token_id])
        token = None if token_id in self._special_ids else self._backend.id_to_token(token_id)
        return "" if token is None else self._pieces.push(token)

    def finish(self) -> str:
        """What was held back: U+FFFD for a character whose end never came, else nothing."""
        return self._pieces.finish()


def pieces_of(backend: Tokenizer) -> Callable[[], _Pieces]:
    """What makes the decoder of a new stream; TokenizerError for a decoder that cannot run a token at a time."""
    decoder = getattr(backend, "decoder", None)
    state = json.loads(decoder.__getstate__()) if decoder is not None else None
    steps = [] if state is None else state["decoders"] if state["type"] == "Sequence" else [state]
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return _ByteLevel
    words = _word_settings(steps)
    if not steps or words is None:
        raise TokenizerError(
            f"tokenizer.json has the decoder {' + '.join(kinds) or 'none'};"
            " supported: ByteLevel, or Metaspace or Replace with ByteFallback, Fuse and a leading Strip"
        )
    return lambda: _Words(**words, _run=bytearray())


def _word_settings(steps: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The settings of `_Words` for these decoder steps, or None where their kinds or order are others."""
    replace: list[tuple[str, str]] = []
    settings: dict[str, Any] = {"mark": None, "fallback": False, "strip": 0, "strip_character": " "}
    fused = False
    for place, step in enumerate(steps):
        match step:
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if not settings["fallback"]:
                replace.append((old, new))
            case {"type": "Metaspace", "replacement": str(mark)} if place == 0:
                # Without a prepended mark there is no leading space to drop: the mark is then a plain replacement.
                if step.get("prepend_scheme", "always") == "never":
                    replace.append((mark, " "))
                else:
                    settings["mark"] = mark
            case {"type": "ByteFallback"} if not fused:
                settings["fallback"] = True
            case {"type": "Fuse"}:
                fused = True
            case {"type": "Strip", "content": str(character), "start": int(start), "stop": 0} if fused:
                if settings["strip"]:
                    return None
                settings["strip"], settings["strip_character"] = start, character
            case _:
                return None
    # A Replace after Fuse would match across tokens.
    kinds = [step["type"] for step in steps]
    if fused and "Replace" in kinds[kinds.index("Fuse") :]:
        return None
    return {**settings, "replace": tuple(replace)}

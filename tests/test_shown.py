"""What a model writes moves no cursor, names no window and hides no text, and the scripts of the world stay as they are."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigrun.text.shown import Shown, shown

TEXTS = {
    "plain": ("Hello,\n\tworld. ", "Hello,\n\tworld. "),
    "a colour": ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
    "a window's name": ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
    "an escape sequence of one byte": ("\x9b31m", r"\x9b31m"),
    "a bell, a backspace, a form feed": ("\a\b\f\v\x00\x7f\x85", r"\x07\x08\x0c\x0b\x00\x7f\x85"),
    "an override of direction": ("a\u202egnp\u202c", r"a\u202egnp\u202c"),
    "isolates": ("\u2066\u2067\u2068\u2069", r"\u2066\u2067\u2068\u2069"),
    "marks of direction": ("\u200e\u200f\u061c\u206a", r"\u200e\u200f\u061c\u206a"),
    "separators": ("a\u2028b\u2029c", r"a\u2028b\u2029c"),
    "half a surrogate pair": ("\ud83d!\udc4d", r"\ud83d!\udc4d"),
    "tags": ("a\U000e0041\U000e007f", r"a\U000e0041\U000e007f"),
    "a line's end of Windows": ("a\r\nb\r\n", "a\nb\n"),
    "a carriage return": ("a\rb", r"a\rb"),
    "at the end": ("a\r", r"a\r"),
    "two of them": ("a\r\r\nb\n\r", "a\\r\nb\n\\r"),
    "an escaped one": (r"\x1b", r"\x1b"),
    "nothing": ("", ""),
}  # fmt: skip

KEPT = {
    "a family": "👨‍👩‍👧",
    "a skin and a heart": "👍🏽 ❤️",
    "flags": "🇫🇷 🏳️‍🌈",
    "joiners": "می\u200cخواهم क्\u200dष",
    "breaks without a space": "ภาษา\u200bไทย",
    "Hebrew and Arabic": "שלום السلام",
    "accents": "e\u0301 é",
    "a soft hyphen and spaces": "Donau\xaddampf\xa01\u202f000\u3000。",
    "variations of ideographs": "葛\U000e0100",
    "private": "\ue0b0\U000f0001",
    "not assigned yet": "\U0001fbfb\U0001f8ff\u0378",
    "the replacement": "\ufffd",
}


@pytest.mark.parametrize("name", TEXTS)
def test_what_a_terminal_would_obey_is_spelled_out(name: str) -> None:
    text, expected = TEXTS[name]
    assert shown(text) == expected


@pytest.mark.parametrize("name", KEPT)
def test_letters_of_all_scripts_stay(name: str) -> None:
    assert shown(KEPT[name]) == KEPT[name]


def test_no_control_character_of_unicode_is_left() -> None:
    """By Unicode's own table: controls, surrogates, separators of lines, and all that changes a text's direction."""
    for number in range(0x110000):
        character = chr(number)
        kind, direction = unicodedata.category(character), unicodedata.bidirectional(character)
        turning = direction in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
        if (kind in ("Cc", "Cs", "Zl", "Zp") or turning) and character not in "\n\t":
            assert shown(character).isascii(), hex(number)
            assert shown(character).isprintable(), hex(number)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.one_of(st.text(max_size=3), st.sampled_from(["\r", "\n", "\r\n", "\x1b", "a"])), max_size=10))
def test_a_text_in_pieces_is_shown_as_the_whole(pieces: list[str]) -> None:
    stream = Shown()
    printed = [stream.push(piece) for piece in pieces]
    assert "".join(printed) + stream.finish() == shown("".join(pieces))
    assert stream.finish() == ""


def test_only_a_carriage_return_waits() -> None:
    stream = Shown()
    assert [stream.push(piece) for piece in ("a\r", "", "\nb", "\r", "c", "\r")] == ["a", "", "\nb", "", "\\rc", ""]
    assert stream.finish() == "\\r"

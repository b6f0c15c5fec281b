"""Stop texts: where an answer ends does not depend on the pieces in which it came."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigrun.errors import CallError
from bigrun.text.stop import MOST_CHARACTERS, MOST_TEXTS, StopTexts, stop_texts

letters = st.text("abc", max_size=30)
texts = st.lists(st.text("abc", min_size=1, max_size=4), max_size=4)


def streamed(pieces: list[str], stops: list[str]) -> tuple[list[str], str | None]:
    watch = StopTexts(stops)
    said = [watch.push(piece) for piece in pieces]
    return [*said, watch.finish()], watch.found


def cut(text: str, places: list[int]) -> list[str]:
    edges = sorted({0, len(text), *(place for place in places if place < len(text))})
    return [text[a:b] for a, b in pairwise(edges)]


@given(letters, texts, st.lists(st.integers(0, 29), max_size=10))
def test_the_answer_ends_before_the_first_text_that_is_complete(text: str, stops: list[str], places: list[int]) -> None:
    """Held against a search of every beginning of the text, from the shortest on."""
    whole, which = text, None
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            which = max(ending, key=len)
            whole = text[: end - len(which)]
            break
    said, found = streamed(cut(text, places), stops)
    assert ("".join(said), found) == (whole, which)


@given(letters, texts)
def test_no_more_is_held_back_than_may_become_a_stop(text: str, stops: list[str]) -> None:
    watch, said = StopTexts(stops), ""
    for i, letter in enumerate(text):
        said += watch.push(letter)
        if watch.found is not None:
            return
        held = text[len(said) : i + 1]
        assert held == "" or any(stop.startswith(held) and stop != held for stop in stops)


def test_after_the_stop_there_is_nothing() -> None:
    watch = StopTexts(["END"])
    assert [watch.push(piece) for piece in ("go E", "N", "D and more", " still")] == ["go ", "", "", ""]
    assert (watch.finish(), watch.found) == ("", "END")


def test_one_text_or_several_or_none() -> None:
    assert stop_texts("a") == ("a",)
    assert stop_texts(["a", "b"]) == stop_texts(("a", "b")) == ("a", "b")
    assert stop_texts(()) == stop_texts(None) == ()


@pytest.mark.parametrize(
    "wrong", ["", [""], [3], [None], [b"a"], ["a" * (MOST_CHARACTERS + 1)], ["a"] * (MOST_TEXTS + 1), 3]
)
def test_what_is_no_text_is_refused(wrong: Any) -> None:
    with pytest.raises(CallError, match="stop"):
        stop_texts(wrong)

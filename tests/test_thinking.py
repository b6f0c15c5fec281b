"""A reasoning model's thoughts and its answer are told apart, wherever its text is cut."""

from __future__ import annotations

from itertools import groupby, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigrun.text.chat import render
from bigrun.text.thinking import KNOWN, Marks, Piece, Thinking, begins_inside, marks_of
from support.differential_templates import STYLES

THINK = KNOWN[0]
HARMONY = next(marks for marks in KNOWN if marks.direct)


def split(marks: Marks | None, inside: bool, *texts: str) -> list[Piece]:
    """Pieces of texts that come one after the other, neighbours of one kind joined."""
    thinking = Thinking(marks, inside)
    pieces = [piece for text in texts for piece in thinking.push(text)] + thinking.finish()
    assert all(piece.text for piece in pieces)
    return [Piece("".join(piece.text for piece in some), kind) for kind, some in groupby(pieces, lambda p: p.thinking)]


# (inside, text, thoughts, answer), with <> and </> for the marks; None for no piece of that kind.
ANSWERS: dict[str, tuple[bool, str, str | None, str | None]] = {
    "thoughts, then the answer": (False, "<>\n one\n two \n</>\n\n Yes. \n", "one\n two", "Yes. \n"),
    "opened by the prompt": (True, "\none\n</>\nYes.", "one", "Yes."),
    "opened by the prompt and again": (True, "\n<>\none</>Yes.", "one", "Yes."),
    "opened twice": (False, "<><>one</>Yes.", "<>one", "Yes."),
    "white space first": (False, " \n<>one</>Yes.", "one", "Yes."),
    "no thoughts": (False, " \nYes.\n\n", None, " \nYes.\n\n"),
    "empty thoughts": (False, "<>\n\n</>\n\nYes.", None, "Yes."),
    "thoughts alone": (False, "<>one</>\n\n", "one", None),
    "thoughts that were cut off": (False, "<>\none ", "one ", None),
    "cut off in the closing mark": (True, "one\n</", "one\n</", None),
    "cut off in the opening mark": (False, "\n<", None, "\n<"),
    "cut off in the mark that opens again": (True, "\n<", "<", None),
    "an answer that explains the marks": (False, "It writes <> and </> around.", None, "It writes <> and </> around."),
    "an answer after thoughts that does": (False, "<>one</>Write <>, then </>.", "one", "Write <>, then </>."),
    "second thoughts": (False, "<>one</>\n<>two</>Yes.", "one", "<>two</>Yes."),
    "no opening mark": (False, "one</>Yes.", None, "one</>Yes."),
    "nothing": (False, "", None, None),
    "nothing inside": (True, "", None, None),
    "white space inside": (True, "\n\n", None, None),
    "white space": (False, "\n\n", None, "\n\n"),
}


@pytest.mark.parametrize("marks", KNOWN, ids=lambda marks: marks.open)
@pytest.mark.parametrize("name", ANSWERS)
def test_thoughts_and_the_answer(name: str, marks: Marks) -> None:
    def marked(text: str) -> str:
        """With the pair in place of its stand-ins; those that were cut off are cut off a character before the end."""
        whole = text.replace("</>", marks.close).replace("<>", marks.open)
        for stump, mark in (("</", marks.close), ("<", marks.open)):
            if text.endswith(stump):
                return whole.removesuffix(stump) + mark[:-1]
        return whole

    inside, text, thoughts, answer = ANSWERS[name]
    expected = [Piece(marked(some), kind) for some, kind in ((thoughts, True), (answer, False)) if some is not None]
    assert split(marks, inside, marked(text)) == expected
    assert split(marks, inside, *marked(text)) == expected  # a character at a time


def test_an_answer_without_thoughts_may_have_a_mark_of_its_own() -> None:
    for cut in range(len(HARMONY.direct) + 3):
        text = HARMONY.direct + " Yes."
        assert split(HARMONY, False, text[:cut], text[cut:]) == [Piece("Yes.", False)]


def test_without_marks_all_is_said() -> None:
    text = " <think>one</think>\nYes."
    assert split(None, False, *text) == split(None, True, *text) == [Piece(text, False)]


@pytest.mark.parametrize("marks", [THINK, HARMONY], ids=lambda marks: marks.open)
def test_the_pieces_do_not_depend_on_the_cuts(marks: Marks) -> None:
    parts = [*marks, marks.open[:3], marks.close[:2], marks.close[:-1], marks.close[1:], "<", " ", "\n", "a", "é."]

    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(st.lists(st.sampled_from(parts), max_size=12), st.lists(st.integers(0, 99), max_size=8), st.booleans())
    def holds(words: list[str], cuts: list[int], inside: bool) -> None:
        text = "".join(words)
        places = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
        texts = [text[start:end] for start, end in pairwise(places)]
        assert split(marks, inside, *texts) == split(marks, inside, text)

    holds()


def test_what_cannot_be_a_mark_is_not_held_back() -> None:
    thinking = Thinking(THINK)
    steps = [thinking.push(text) for text in ("<thi", "nk>", "one <", "b> ", "</think", ">", "\n", "Yes <", "think")]
    said, thought = (lambda text: Piece(text, False)), (lambda text: Piece(text, True))
    expected = [[], [], [thought("one")], [thought(" <b>")], [], [], [], [said("Yes <")], [said("think")]]
    assert steps == expected


TEMPLATES: dict[str, tuple[str | None, Marks | None]] = {
    "none": (None, None),
    "no marks": ("{{ messages[0].content }}", None),
    "both": ("{{ '<think>' ~ m.reasoning_content ~ '</think>' }}", THINK),
    "split at the closing one": ("{% set text = text.split('</think>')[-1] %}", THINK),
    "opened for the model": ("{{ '<think>\\n' }}", THINK),
    "the usual one and another": ("{{ text.split('</thinking>')[-1].split('</think>')[-1] }}", THINK),
    "an opening one, and another closed": ("{{ 'no <think>' }}{{ text.split('[/THINK]')[-1] }}", KNOWN[1]),
    "harmony": ("{{ '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}", HARMONY),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_marks_of_a_template(name: str) -> None:
    template, marks = TEMPLATES[name]
    assert marks_of(template) == marks


@pytest.mark.parametrize("marks", KNOWN, ids=lambda marks: marks.open)
def test_every_pair_is_found_by_its_marks_and_by_no_other_s(marks: Marks) -> None:
    assert marks_of(f"a {marks.open} b {marks.close} c") == marks
    assert marks_of(f"a {marks.open} b") == marks
    assert marks_of(f"a {marks.close} b") == marks


@pytest.mark.parametrize("style", STYLES)
def test_the_marks_of_styles_of_published_templates(style: str) -> None:
    assert marks_of(STYLES[style][0]) == (THINK if style in ("thinking", "deepseek") else None)


PROMPTS = {
    "opened": ("<|im_start|>assistant\n<think>\n", True),
    "opened without a line's end": ("<|Assistant|><think>", True),
    "closed at once": ("<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
    "begun": ("<|im_start|>assistant\n<think>\nWell", False),
    "not opened": ("<|im_start|>assistant\n", False),
    "of a user": ("<|im_start|>user\nWhat is <think>\n<|im_end|>\n<|im_start|>assistant\n", False),
    "empty": ("", False),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_whether_a_prompt_ends_inside_thoughts(name: str) -> None:
    prompt, inside = PROMPTS[name]
    assert begins_inside(prompt, THINK) is inside
    assert not begins_inside(prompt, None)


@pytest.mark.parametrize(("style", "inside"), [("thinking", False), ("deepseek", True), ("chatml", False)])
def test_whether_a_rendered_chat_does(style: str, inside: bool) -> None:
    template, _, bos, eos = STYLES[style]
    for content in ("Hello", "What is <think>?", "<think>\n"):
        prompt = render(template, [{"role": "user", "content": content}], True, bos_token=bos, eos_token=eos)
        assert begins_inside(prompt, marks_of(template)) is inside

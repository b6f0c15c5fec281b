"""Draws a tokenizer, a chat template, texts and conversations, and compares bigrun's ids and text with transformers'.

    case = draw_text_case(random)
    verdict = judge(case, folder)          # agreed, refused, alone or wrong

What bigrun does in its own way, as its docstrings and docs/loading.md say, and is held to here:
- it adds no end of sequence to a prompt, and no second BOS to a text that begins with one;
- a special token prints nothing, where transformers prints one that is normalized by more than itself;
- `add_bos_token` in tokenizer_config.json is obeyed, as transformers 4 does; version 5 leaves it to tokenizer.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from bigrun.errors import BigrunError
from bigrun.session.prompts import prompt_ids
from bigrun.text.tokenizer import Tokenizer
from support.differential import Verdict
from support.differential_templates import STYLES
from support.differential_tokenizers import CHANGES, KINDS, SOUND, WORDS, TextCase, write_text_case

FRAGMENTS = (
    *WORDS, "a", "b", "Straße", "naïve", "e\u0301", "Москва", "日本語", "👍🏽", "👨‍👩‍👧", "\u200b", "\xa0", "\t", "\r\n",
    "\n", "\n\n\n", "   ", "x=1;", "3.14159", "''", '"q"', "{{ 7 * 7 }}", "{% if %}", "▁", "<0x0A>", "Ġ", "\x00", "\x7f",
    "\ufffd", "½", "ﬁ", "İ",
)  # fmt: skip
PARTIAL = ("<|im_", "|>", "<s", "</", "[INST", "<|", "</think")


def draw_text_case(random: Random) -> TextCase:
    """A case of some changes; more than half of them have only such as published tokenizers have."""
    table = SOUND if random.random() < 0.6 else CHANGES
    names = [random.choice(sorted(table)) for _ in range(random.choice([0, 1, 2, 2, 3, 4]))]
    changes = [(name, random.choice(table[name])) for name in names]
    return TextCase(random.choice(KINDS), random.choice(sorted(STYLES)), random.randint(0, 9999), tuple(changes))


def every_single_text_change() -> list[TextCase]:
    """Each change alone, for each kind, and each style without one."""
    cases = [TextCase(kind, style, 7, ()) for kind in KINDS for style in STYLES]
    styles = sorted(STYLES)
    changes = [(name, value) for name, values in CHANGES.items() for value in values]
    for number, change in enumerate(changes):
        cases += [TextCase(kind, styles[number % len(styles)], number, (change,)) for kind in KINDS]
    return cases


def draw_text(random: Random, markers: tuple[str, ...]) -> str:
    """Words, spaces, scripts, control characters, and the names of special tokens, whole and cut."""
    pieces = []
    for _ in range(random.choice([0, 1, 3, 6, 12])):
        pieces.append(random.choice(markers + PARTIAL if random.random() < 0.15 else FRAGMENTS))
        pieces.append(random.choice(["", " ", " ", "  "]))
    return "".join(pieces)


def draw_conversation(random: Random, markers: tuple[str, ...]) -> list[dict[str, Any]]:
    """Turns that mostly alternate; some have no words, parts, tools, or a role that templates do not know."""
    messages: list[dict[str, Any]] = []
    if random.random() < 0.4:
        messages.append({"role": "system", "content": draw_text(random, markers)})
    for turn in range(random.choice([1, 1, 2, 3, 5])):
        role = "assistant" if turn % 2 else "user"
        if random.random() < 0.06:
            role = random.choice(["system", "tool", "user", "assistant", "model", ""])
        message: dict[str, Any] = {"role": role, "content": draw_text(random, markers)}
        odd = random.random()
        if odd < 0.04:
            message["content"] = random.choice([None, [{"type": "text", "text": "a part"}], 7, {"a": 1}])
        elif odd < 0.08 and role == "assistant":
            message["tool_calls"] = random.choice(
                [
                    None,
                    [],
                    [{"function": {"name": "add", "arguments": {"x": 1, "é": "<&>"}}}],
                    [{"name": "f", "arguments": {}}],
                ]
            )
        elif odd < 0.12:
            message[random.choice(["name", "reasoning_content", "thinking", "reasoning"])] = draw_text(random, markers)
        elif odd < 0.13:
            del message["content"]
        elif odd < 0.18 and role == "assistant":
            message["content"] = f"<think>\n{draw_text(random, markers)}\n</think>\n{message['content']}"
        messages.append(message)
    return messages


def judge(case: TextCase, folder: Path) -> Verdict:
    """Write the case's files to `folder` and hold bigrun's ids, texts and prompts beside transformers'."""
    from transformers import PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.set_verbosity_error()
    write_text_case(case, folder)
    theirs = _tried(PreTrainedTokenizerFast.from_pretrained, str(folder), local_files_only=True)
    ours = _tried(Tokenizer.from_folder, folder)
    if isinstance(ours, Failed):
        return Verdict("refused" if ours.explained else "wrong", str(theirs)[:100], ours.words)
    if isinstance(theirs, Failed):
        return Verdict("alone", theirs.words, "loads")
    refused = ""
    for question, expected, answer in _questions(case, folder, theirs, ours):
        if isinstance(answer, Failed) and not answer.explained:
            return Verdict("wrong", f"{question} → {_short(expected)}", answer.words)
        if isinstance(expected, Failed) != isinstance(answer, Failed) and isinstance(expected, Failed):
            return Verdict("wrong", f"{question} → {expected.words}", _short(answer))
        if isinstance(answer, Failed) and not isinstance(expected, Failed):
            refused = refused or f"{question}: {answer.words}"
        elif not isinstance(answer, Failed) and expected != answer:
            place = _first_difference(expected, answer)
            return Verdict(
                "wrong", f"{question} → {_short(expected[place:])}", f"{_short(answer[place:])} from {place} on"
            )
    return Verdict("refused" if refused else "agreed", "", refused)


@dataclass(frozen=True)
class Failed:
    """An exception; `explained` if it is bigrun's own."""

    words: str
    explained: bool


def _tried(made: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """What a call gives, or `Failed`."""
    try:
        return made(*arguments, **named)
    except BigrunError as error:
        return Failed(f"refused: {error}", True)
    except BaseException as error:  # the Rust library's panics among them
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        return Failed(f"crashed: {type(error).__name__}: {' '.join(str(error).split())[:200]}", False)


def _questions(case: TextCase, folder: Path, theirs: Any, ours: Tokenizer) -> Iterator[tuple[str, Any, Any]]:
    """(question, transformers' answer, bigrun's)."""

    def chat(messages: list[dict[str, Any]]) -> Any:
        return _tried(theirs.apply_chat_template, messages, add_generation_prompt=True, return_dict=False)

    random = Random(case.seed)
    _, markers, bos, eos = STYLES[case.style]
    markers = (*markers, bos, eos, "<tag>", "<extra>")
    for text in [draw_text(random, markers) for _ in range(4)]:
        plain = _tried(lambda text: theirs(text, add_special_tokens=False).input_ids, text)
        yield f"encode {text!r} without BOS", plain, _tried(ours.encode, text, add_bos=False)
        if isinstance(plain, Failed):
            continue
        first = _first_ids(folder, theirs)
        yield f"encode {text!r}", plain if plain[: len(first)] == first else first + plain, _tried(ours.encode, text)
        yield from _decodings(random, plain, theirs, ours)
    prompt = draw_text(random, markers) or "Hi"
    alone = [{"role": "user", "content": prompt}]
    for messages in [alone, *(draw_conversation(random, markers) for _ in range(4))]:
        answer = _tried(lambda messages: ours.encode(ours.render_chat(messages), add_bos=False), messages)
        yield f"chat {json.dumps(messages, ensure_ascii=False)}", chat(messages), answer
    if ours.chat_template is not None:
        yield f"the prompt of a run, {prompt!r}", chat(alone), _tried(prompt_of_a_run, ours, prompt)


def prompt_of_a_run(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The ids that a Runner makes of a prompt, without a model to run."""
    return prompt_ids(tokenizer, prompt, raw=False, table=1 << 30, context=1 << 30)


def _first_ids(folder: Path, theirs: Any) -> list[int]:
    """What goes before a text: `add_bos_token` decides where it is true or false, else transformers' post-processor."""
    said = json.loads((folder / "tokenizer_config.json").read_text()).get("add_bos_token")
    encoding = theirs("a", return_special_tokens_mask=True)
    mask = [*encoding.special_tokens_mask, 0]
    first: list[int] = encoding.input_ids[: mask.index(0)]
    if said is True and not first:
        return [theirs.bos_token_id]
    return [] if said is False else first


def _decodings(random: Random, ids: list[int], theirs: Any, ours: Tokenizer) -> Iterator[tuple[str, Any, Any]]:
    """What ids say, whole and streamed: those of a text, and any."""
    special = {index: token for index, token in theirs.added_tokens_decoder.items() if token.special}
    by_text = not any(token.normalized for token in special.values())
    for some in (ids, [random.randrange(len(theirs)) for _ in range(12)]):
        said = some if by_text else [index for index in some if index not in special]
        expected = _tried(theirs.decode, said, skip_special_tokens=True)
        yield f"decode {some}", expected, _tried(ours.decode, some)
        yield f"stream {some}", expected, _tried(_streamed, ours, some)


def _streamed(tokenizer: Tokenizer, ids: list[int]) -> str:
    stream = tokenizer.stream()
    return "".join([stream.push(index) for index in ids]) + stream.finish()


def _first_difference(one: Any, other: Any) -> int:
    """Where two texts, or lists of ids, begin to differ."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _short(answer: Any) -> str:
    return answer.words if isinstance(answer, Failed) else repr(answer)[:300]


def smallest(case: TextCase, scratch: Path) -> tuple[TextCase, Verdict]:
    """The wrong case with the fewest changes that is still wrong."""
    best, verdict = case, judge(case, scratch / "smaller")
    shrinking = True
    while shrinking:
        shrinking = False
        for i in range(len(best.changes)):
            smaller = TextCase(best.kind, best.style, best.seed, best.changes[:i] + best.changes[i + 1 :])
            found = judge(smaller, scratch / "smaller")
            if found.outcome == "wrong":
                best, verdict, shrinking = smaller, found, True
                break
    return best, verdict

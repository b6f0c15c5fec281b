"""Damaged and hostile tokenizer.model, vocab.json and merges.txt: a line of what is wrong, or a tokenizer that works."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigrun.errors import TokenizerError
from bigrun.text.tokenizer import Tokenizer
from support.checkpoints import SPECIAL, tiny_tokenizer
from support.vocabulary_files import (
    BPE,
    NORMAL,
    UNIGRAM,
    charsmap_of,
    chunk,
    model_file,
    number,
    pieces,
    write,
    write_gpt2,
)

RULES = charsmap_of({"ﬁ": "fi", "A": "a", "\u3000": " ", "\t": " ", "\u200b": "", "½": "1/2", "e\u0301": "é"})
LLAMA = {"tokenizer_class": "LlamaTokenizer"}
GPT2 = {"tokenizer_class": "GPT2Tokenizer", "bos_token": SPECIAL[1], "eos_token": SPECIAL[2], "unk_token": SPECIAL[0]}
TEXTS = [
    "",
    " ",
    "the other  tree",
    "\ufb01n A\u3000the\t\u00bd \u65e5\u200b.",
    "e\u0301 <s>the<tag> x",
    "".join(map(chr, range(1, 700))),
    "the " * 50,
]


def bad(*some: Any, **options: Any) -> bytes:
    return model_file([*pieces(), *some], **options)


SOUND = model_file(pieces(), charsmap=RULES)
RANGE = charsmap_of({"A": "a"})
BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "no pieces"),
    "a tiktoken vocabulary": (b"IQ== 0\nIg== 1\n", "tiktoken"),
    "tekken": (b'{"config": {}}', "JSON"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\n", "LFS"),
    "garbage": (bytes(range(256)) * 9, "not a SentencePiece model"),
    "a pickle": (b"\x80\x04\x95" + bytes(99), "not a SentencePiece model"),
    "cut short": (SOUND[:-1], "cut short"),
    "a huge length": (SOUND + b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "beyond its end"),
    "a number without an end": (SOUND + b"\x20" + b"\xff" * 40, "no end"),
    "a group": (SOUND + b"\x0b", "wire type"),
    "a piece that is a number": (SOUND + number(1, 5), "in the place of a message"),
    "a trainer that is a number": (SOUND + number(2, 5), "in the place of a message"),
    "a type that is a text": (SOUND + chunk(2, chunk(3, b"BPE")), "no number"),
    "a normalisation that is a number": (SOUND + chunk(3, number(2, 5)), "precompiled_charsmap"),
    "words": (bad(kind=3), "WORD"),
    "a kind of the future": (bad(kind=9), "the type 9"),
    "spaces behind": (bad(trainer={24: 1}), "treat_whitespace_as_suffix"),
    "spaces as such": (bad(rules={5: 0}), "escape_whitespaces"),
    "text changed back": (bad(more=chunk(5, chunk(2, b"x"))), "denormalizer_spec"),
    "a piece twice": (bad(("the", 0.0, NORMAL)), "twice"),
    "an empty piece": (bad(("", 0.0, NORMAL)), "empty"),
    "a piece of half a character": (bad((b"\xe2\x96", 0.0, NORMAL)), "UTF-8"),
    "a piece of no type": (bad(("x", 0.0, 77)), "type 77"),
    "a score that is none": (bad(("x", float("nan"), NORMAL)), "finite"),
    "an endless score": (bad(("x", float("inf"), NORMAL), kind=UNIGRAM), "finite"),
    "a piece of a megabyte": (bad(("x" * 2**20, 0.0, NORMAL)), "too long"),
    "an unknown beyond the pieces": (bad(kind=UNIGRAM, trainer={40: 10**9}), "unk_id"),
    "a normalisation cut short": (bad(charsmap=RANGE[:9]), "cut short"),
    "a normalisation beyond its texts": (bad(charsmap=RANGE[:2052] + b"\x09\0\0\x80" + RANGE[2056:]), "beyond its texts"),
    "a trie of a unit": (bad(charsmap=b"\4\0\0\0" + bytes(5)), "beyond its trie"),
    "a trie that leads out": (bad(charsmap=RANGE[:4] + b"\0\xfc\xff\xff" + RANGE[8:]), "beyond its trie"),
    "a text of half a character": (bad(charsmap=RANGE[:-2] + b"a\xff\0"), "not UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_model_is_refused_in_one_line(case: tuple[bytes, str], tmp_path: Path) -> None:
    data, says = case
    refused(write(tmp_path, model=data), "tokenizer.model", says)


def refused(folder: Path, *says: str) -> None:
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.from_folder(folder)
    assert all(word in str(caught.value) for word in says), caught.value
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def vocabulary(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    def apply(folder: Path) -> None:
        path = folder / "vocab.json"
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return apply


DAMAGED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no merges": (lambda f: (f / "merges.txt").unlink(), "no merges.txt"),
    "no vocabulary": (lambda f: (f / "vocab.json").unlink(), "no vocab.json"),
    "a list": (lambda f: (f / "vocab.json").write_text("[]"), "not an object"),
    "an empty vocabulary": (vocabulary(lambda v: {}), "0 tokens"),
    "an id twice": (vocabulary(lambda v: v | {"new": 5}), "vocab.json"),
    "an id beyond": (vocabulary(lambda v: v | {"new": 10**12}), "vocab.json"),
    "a negative id": (vocabulary(lambda v: v | {"new": -1}), "vocab.json"),
    "an id that is none": (vocabulary(lambda v: v | {"new": True}), "no whole number"),
    "an id that is a text": (vocabulary(lambda v: v | {"new": "7"}), "no whole number"),
    "an empty token": (vocabulary(lambda v: v | {"": len(v)}), "without a name"),
    "merges of nothing": (lambda f: (f / "merges.txt").write_text("#version\nxx yy\n"), "merges.txt"),
    "merges of a word": (lambda f: (f / "merges.txt").write_text("#version\nthe\n"), "merges.txt"),
    "merges that are no text": (lambda f: (f / "merges.txt").write_bytes(b"\xff\xfe"), "UTF-8"),
    "a class of another kind": (lambda f: write(f, tokenizer_config={"tokenizer_class": "BartTokenizer"}), "BartTokenizer"),
    "a class that is a number": (lambda f: write(f, tokenizer_config={"tokenizer_class": 5}), "tokenizer_class"),
    "no class": (lambda f: write(f, tokenizer_config={}, config={"model_type": "llama"}), "no tokenizer_class"),
    "a class of the other file": (lambda f: write(f, tokenizer_config=LLAMA), "LlamaTokenizer"),
    "added tokens with a gap": (lambda f: write(f, added_tokens={"<x>": 400}), "'400'"),
    "added tokens of no number": (lambda f: write(f, added_tokens={"<x>": "400"}), "added_tokens.json"),
    "an added token of another id": (lambda f: write(f, added_tokens={SPECIAL[0]: 300}), "'300'"),
    "a space before each piece": (
        lambda f: write(f, tokenizer_config={"tokenizer_class": "Qwen2Tokenizer", "add_prefix_space": True}),
        "add_prefix_space",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_vocabulary_is_refused_in_one_line(case: tuple[Callable[[Path], Any], str], tmp_path: Path) -> None:
    damage, says = case
    write(tmp_path, tokenizer_config=GPT2)
    write_gpt2(tmp_path, tiny_tokenizer("gpt-2"))
    damage(tmp_path)
    refused(tmp_path, says)


def test_a_class_that_numbers_its_pieces_anew_is_refused(tmp_path: Path) -> None:
    for name in ("XLMRobertaTokenizer", "ChatGLMTokenizer", "T5TokenizerFast"):
        write(tmp_path, model=model_file(pieces()), tokenizer_config={"tokenizer_class": name})
        refused(tmp_path, name, "LlamaTokenizer")


def test_a_folder_without_any_names_all_that_would_do(tmp_path: Path) -> None:
    refused(tmp_path, "tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt")
    (tmp_path / "tekken.json").write_text("{}")
    refused(tmp_path, "tekken.json is not read")


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6),
    kind=st.sampled_from([BPE, UNIGRAM]),
)
def test_a_byte_changed_anywhere_makes_another_model_or_none(
    changes: list[tuple[int, int]], kind: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = bytearray(model_file(pieces()[:3] + pieces()[-45:], kind, rules={4: 1}, charsmap=RULES))
    for place, byte in changes:
        data[place % len(data)] = byte
    folder = write(tmp_path_factory.mktemp("model"), model=bytes(data))
    with suppress(TokenizerError):
        ours = Tokenizer.from_folder(folder)
        for text in TEXTS:
            assert all(0 <= index < ours.vocab_size for index in ours.encode(text))

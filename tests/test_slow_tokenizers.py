"""Folders without tokenizer.json: the tokens of transformers' class, of the definition and of sentencepiece; bad files."""

from __future__ import annotations

import importlib
import json
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigrun import Runner
from bigrun.errors import TokenizerError
from bigrun.text.sentencepiece_model import parse
from bigrun.text.tokenizer import Tokenizer
from support.checkpoints import SPECIAL, llama, tiny_tokenizer
from support.commands import run_command
from support.differential_text import draw_text
from support.tokenizers import streamed
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
)  # fmt: skip

RANDOM = random.Random(18)
TEXTS = [
    "", " ", "the", " the", "the other tree there, in the inner inn.", "the  tea   then    the", "Q🙂 Ж", "the\n\nthe\n",
    "a▁b", "there" * 200, "the<s>the</s> the<tag>x <tag>", "<0x41>", "caf\u0065\u0301 42",
    *(draw_text(RANDOM, ("<s>", "</s>", "<tag>")) for _ in range(150)),
]  # fmt: skip
LLAMA = {"tokenizer_class": "LlamaTokenizer"}
RULES = charsmap_of({"ﬁ": "fi", "A": "a", "\u3000": " ", "\t": " ", "\u200b": "", "½": "1/2", "e\u0301": "é"})


@pytest.fixture
def spm_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers without the package sentencepiece: what it takes of a model is read here, what it makes of it is its own."""
    convert_slow_tokenizer = importlib.import_module("transformers.convert_slow_tokenizer")

    def read(self: Any, path: str) -> None:
        spm = parse(Path(path).read_bytes())
        entries = zip(spm.pieces, spm.scores, spm.types, strict=True)
        self.proto = SimpleNamespace(
            pieces=[SimpleNamespace(piece=text, score=score, type=kind) for text, score, kind in entries],
            trainer_spec=SimpleNamespace(unk_id=spm.unknown, model_type=spm.kind),
            normalizer_spec=SimpleNamespace(precompiled_charsmap=spm.charsmap),
        )

    monkeypatch.setattr(convert_slow_tokenizer.SentencePieceExtractor, "__init__", read)


def same(folder: Path, peer: Any, add_bos: bool = True) -> None:
    ours = Tokenizer.from_folder(folder)
    for text in TEXTS:
        ids, theirs = ours.encode(text, add_bos=False), peer(text, add_special_tokens=False).input_ids
        assert ids == theirs, text
        assert ours.decode(ids) == streamed(ours, ids) == peer.decode(ids, skip_special_tokens=True), text
    assert ours.encode("the") == (peer("the").input_ids if add_bos else ours.encode("the", add_bos=False))


@pytest.mark.parametrize(
    "config",
    [
        {**LLAMA, "add_bos_token": True},
        {**LLAMA, "add_bos_token": True, "legacy": True, "add_eos_token": False},
        {**LLAMA, "add_bos_token": False, "add_prefix_space": False},
        {**LLAMA, "add_bos_token": True, "bos_token": "</s>", "eos_token": {"content": "<s>", "__type": "AddedToken"}},
        {**LLAMA, "add_bos_token": True, "added_tokens_decoder": {"308": {"content": "<|im_", "special": True}}},
        {**LLAMA, "add_bos_token": True, "pad_token": "<pad>", "additional_special_tokens": ["</s", "<tag>"]},
    ],
    ids=["plain", "legacy", "no prefix", "other names", "added", "more specials"],
)
def test_a_model_of_bpe_is_what_transformers_makes_of_it(
    config: dict[str, Any], spm_of_transformers: None, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    write(tmp_path, model=model_file(pieces()), tokenizer_config=config)
    same(tmp_path, AutoTokenizer.from_pretrained(tmp_path))


def best(text: str, score: dict[str, float]) -> list[str]:
    """The pieces that add up to the most, by the definition; a character without one is an unknown, ten below the least."""
    unknown = min(score.values()) - 10
    ways: list[tuple[float, list[str]]] = [(0.0, [])]
    for end in range(1, len(text) + 1):
        some = [(ways[start], text[start:end]) for start in range(max(0, end - 12), end)]
        scored = [(way[0] + score[part], [*way[1], part]) for way, part in some if part in score]
        if text[end - 1] not in score:
            scored.append((ways[end - 1][0] + unknown, [*ways[end - 1][1], text[end - 1]]))
        ways.append(max(scored, key=lambda way: way[0]))  # of equals, that with the longest last piece
    return ways[-1][1]


@pytest.mark.parametrize("with_bytes", [True, False], ids=["bytes", "unknown"])
def test_a_unigram_model_has_the_best_pieces(with_bytes: bool, tmp_path: Path) -> None:
    draw = random.Random(3)
    some = [
        (text, -draw.randint(2000, 9000) / 1024 if kind == NORMAL else 0.0, kind)
        for text, _, kind in pieces(user=(), with_bytes=with_bytes)
    ]
    write(tmp_path, model=model_file(some, UNIGRAM))
    ours = Tokenizer.from_folder(tmp_path)
    ids = {text: index for index, (text, _, _) in enumerate(some)}
    score = {str(text): score for text, score, kind in some if kind == NORMAL}
    for text in (text for text in TEXTS if "<" not in text and text):
        marked = text.replace(" ", "▁")
        parts = best(marked if marked.startswith("▁") else "▁" + marked, score)
        expected: list[int] = []
        for part in parts:
            spelled = [ids[f"<0x{byte:02X}>"] for byte in part.encode()] if with_bytes else [0]
            expected += [ids[part]] if part in ids else spelled
        if not with_bytes:  # unknown characters side by side are one
            expected = [index for place, index in enumerate(expected) if index or not place or expected[place - 1]]
        assert ours.encode(text, add_bos=False) == expected, text
        assert streamed(ours, expected) == ours.decode(expected)
        if with_bytes and "▁" not in text:
            assert ours.decode(expected) == text.removeprefix(" ")


@pytest.mark.parametrize("kind", [BPE, UNIGRAM])
@pytest.mark.parametrize(
    ("rules", "charsmap", "text", "means"),
    [
        ({4: 1}, b"", "  the   tea ", "the tea"),
        ({3: 0, 4: 1}, b"", "  the   tea ", "the tea"),
        ({4: 0}, b"", "the   tea ", "the   tea "),
        ({4: 0}, RULES, "ﬁn A\u3000the\t½ 日\u200b.", "fin a the 1/2 日."),
        ({4: 1}, RULES, "\u3000A\t\t ﬁ\u3000", "a fi"),
        ({4: 0}, RULES, "cafe\u0301", "café"),
    ],
)
def test_text_is_normalised_as_the_model_says(
    kind: int, rules: dict[int, int], charsmap: bytes, text: str, means: str, tmp_path: Path
) -> None:
    write(tmp_path / "a", model=model_file(pieces(), kind, rules=rules, charsmap=charsmap))
    write(tmp_path / "b", model=model_file(pieces(), kind, rules={3: rules.get(3, 1)}))
    ours, plain = Tokenizer.from_folder(tmp_path / "a"), Tokenizer.from_folder(tmp_path / "b")
    assert ours.encode(text) == plain.encode(means)
    assert ours.decode(ours.encode(text)) == means


def test_a_model_without_the_prefix_has_none(tmp_path: Path) -> None:
    """Gemma's; the settings overrule it."""
    ours = Tokenizer.from_folder(write(tmp_path, model=model_file(pieces(), rules={3: 0})))
    assert [ours.token(i) for i in ours.encode("the the")] == ["<s>", "the", "▁the"]
    assert ours.decode(ours.encode(" the")) == " the"
    ours = Tokenizer.from_folder(write(tmp_path, tokenizer_config={"add_prefix_space": True}))
    assert [ours.token(i) for i in ours.encode("the<s>the")] == ["<s>", "▁the", "<s>", "the"]


def test_merges_go_by_the_scores_whatever_the_ids(tmp_path: Path) -> None:
    some = [*pieces()[:260], *[(text, -float(i), NORMAL) for i, text in enumerate(["b", "c", "a", "▁"])]]
    some += [("bc", -9.0, NORMAL), ("ab", -8.0, NORMAL)]
    ours = Tokenizer.from_folder(write(tmp_path, model=model_file(some)))
    assert [ours.token(i) for i in ours.encode("abc", add_bos=False)] == ["▁", "ab", "c"]


@pytest.mark.parametrize(
    ("config", "trainer", "first", "ends"),
    [
        (None, {}, [1], {2}),
        (LLAMA, {}, [1], {2}),
        ({"tokenizer_class": "GemmaTokenizer"}, {41: 2, 42: 1}, [2], {1}),
        ({"tokenizer_class": "YiTokenizer", "add_bos_token": False}, {}, [], {2}),
        ({**LLAMA, "add_bos_token": False}, {}, [], {2}),
        ({**LLAMA, "bos_token": "</s>"}, {}, [2], {2}),
        (LLAMA, {41: -1, 42: 5}, [], {5}),
        ({**LLAMA, "bos_token": None, "add_bos_token": None}, {}, [], {2}),
    ],
)
def test_what_goes_first_and_what_ends(
    config: Any, trainer: dict[int, int], first: list[int], ends: set[int], tmp_path: Path
) -> None:
    write(tmp_path, model=model_file(pieces(), trainer=trainer), tokenizer_config=config)
    ours = Tokenizer.from_folder(tmp_path)
    assert (ours.encode(""), ours.stop_ids) == (first, ends)


def test_tokens_and_text_are_those_of_sentencepiece(tmp_path: Path) -> None:
    """Of models that it has learnt; special tokens spelled out in text aside, which it does not know there."""
    spm = pytest.importorskip("sentencepiece")
    whole = Path(__file__).read_text("utf-8")
    (tmp_path / "text").write_text(whole, "utf-8")
    for kind in ("bpe", "unigram"):
        options = {"input": str(tmp_path / "text"), "model_type": kind, "vocab_size": 600, "byte_fallback": True}
        spm.SentencePieceTrainer.train(**options, model_prefix=str(tmp_path / "tokenizer"), minloglevel=2)
        theirs = spm.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
        ours = Tokenizer.from_folder(tmp_path)
        texts = [*TEXTS, *(whole[i : i + 61] for i in range(0, len(whole), 61))]
        for text in (text for text in texts if "<" not in text):
            ids = theirs.encode(text)
            assert ours.encode(text, add_bos=False) == ids, text
            assert ours.decode(ids) == streamed(ours, ids) == theirs.decode(ids), text


# vocab.json and merges.txt

GPT2 = {"tokenizer_class": "GPT2Tokenizer", "bos_token": SPECIAL[1], "eos_token": SPECIAL[2], "unk_token": SPECIAL[0]}
FOLDERS: dict[str, dict[str, Any]] = {
    "GPT-2": {"tokenizer_config": GPT2},
    "OPT": {"tokenizer_config": {**GPT2, "add_bos_token": True, "pad_token": SPECIAL[0], "add_prefix_space": False}},
    "a space first": {"tokenizer_config": {**GPT2, "add_prefix_space": True}},
    "a map": {
        "tokenizer_config": {"tokenizer_class": "GPT2Tokenizer"},
        "special_tokens_map": {"bos_token": {"content": SPECIAL[1]}, "eos_token": SPECIAL[2], "unk_token": SPECIAL[0]},
    },
    "added": {"tokenizer_config": GPT2, "added_tokens": {"<tag>": 321, "<|im_": 320}},
    "CodeGen": {
        "tokenizer_config": {**GPT2, "tokenizer_class": "CodeGenTokenizer"},
        "added_tokens": {"  ": 320, "   ": 321},
    },
    "decoder": {
        "tokenizer_config": {**GPT2, "added_tokens_decoder": {"320": {"content": "<tag>", "special": True, "lstrip": True}}}
    },
    "GPT-NeoX": {"tokenizer_config": {**GPT2, "tokenizer_class": "GPTNeoXTokenizerFast", "pad_token": SPECIAL[0]}},
    "Qwen2": {"tokenizer_config": {**GPT2, "tokenizer_class": "Qwen2Tokenizer", "pad_token": SPECIAL[0]}},
    "Cohere": {
        "tokenizer_config": {
            **GPT2, "tokenizer_class": "CohereTokenizer", "add_bos_token": True,
            **dict.fromkeys(("pad_token", "cls_token", "sep_token", "mask_token"), SPECIAL[0]),
        }
    },
}  # fmt: skip


@pytest.mark.parametrize("files", FOLDERS.values(), ids=FOLDERS.keys())
def test_a_vocabulary_and_merges_are_what_transformers_makes_of_them(files: dict[str, Any], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    write(tmp_path, **files)
    write_gpt2(tmp_path, tiny_tokenizer("gpt-2"))
    same(tmp_path, AutoTokenizer.from_pretrained(tmp_path))


@pytest.mark.parametrize(
    ("model_type", "digits", "composed"),
    [("gpt2", False, False), ("starcoder2", True, False), ("gpt_neox", False, True), ("qwen2", True, True)],
)
def test_a_folder_that_names_no_class_has_that_of_its_model(
    model_type: str, digits: bool, composed: bool, tmp_path: Path
) -> None:
    write(tmp_path, config={"model_type": model_type}, tokenizer_config={"tokenizer_class": "PreTrainedTokenizerFast"})
    backend = tiny_tokenizer("gpt-2")
    write_gpt2(tmp_path, backend)
    words = json.loads((tmp_path / "vocab.json").read_text())
    merges = tmp_path / "merges.txt"
    merges.write_text(merges.read_text() + "4 2\n")
    (tmp_path / "vocab.json").write_text(json.dumps(words | {"42": len(words)}))
    ours = Tokenizer.from_folder(tmp_path)
    assert (len(ours.encode("42")) == 2) is digits
    assert (ours.decode(ours.encode("e\u0301")) == "é") is composed


def test_tokenizer_json_is_taken_before_the_model_before_the_vocabulary(tmp_path: Path) -> None:
    write(tmp_path, tokenizer_config=LLAMA, model=model_file(pieces()))
    backend = tiny_tokenizer("gpt-2")
    write_gpt2(tmp_path, backend)
    assert Tokenizer.from_folder(tmp_path).vocab_size == len(pieces())
    backend.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.from_folder(tmp_path).vocab_size == backend.get_vocab_size() != len(pieces())


def test_settings_name_tokens_that_the_model_calls_otherwise(tmp_path: Path) -> None:
    decoder = {"259": {"content": "<|user|>", "special": True}, str(len(pieces())): {"content": "<|more|>"}}
    ours = Tokenizer.from_folder(
        write(tmp_path, model=model_file(pieces()), tokenizer_config={"added_tokens_decoder": decoder})
    )
    assert ours.encode("<|user|><|more|>", add_bos=False) == [259, len(pieces())]
    assert ours.vocab_size == len(pieces()) + 1


# Files that cannot be read


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
        for text in TEXTS[:40]:
            assert all(0 <= index < ours.vocab_size for index in ours.encode(text))


# A run of such a folder


@pytest.mark.parametrize("kind", ["model", "vocabulary"])
def test_a_folder_without_tokenizer_json_generates_and_is_converted(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    llama(path)
    if kind == "model":
        write(path, model=model_file(pieces()), tokenizer_config=LLAMA)
    else:
        write(path, tokenizer_config=GPT2)
        write_gpt2(path, tiny_tokenizer("gpt-2"))
    run_command("convert", "--model", path, "--out", tmp_path / "int8")
    shutil.copytree(path, tmp_path / "again")
    options: dict[str, Any] = {"gpus": "none", "cpu": "1GB", "progress": False, "context": 64}
    texts = []
    for folder in (path, tmp_path / "int8"):
        with Runner(str(folder), **options) as runner:
            texts.append(runner.generate("the other", max_new_tokens=8, seed=1, temperature=1.0).text)
    assert texts[0] == texts[1]
    said = json.loads(run_command("inspect", path, "--json").stdout)
    size = len(pieces()) if kind == "model" else 320
    assert (said["tokenizer"], said["problems"]) == (f"{size} tokens, no chat template", [])

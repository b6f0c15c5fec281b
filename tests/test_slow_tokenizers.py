"""Folders without tokenizer.json: the tokens of transformers' class, of the definition and of sentencepiece; bad files."""

from __future__ import annotations

import importlib
import json
import random
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bigrun import Runner
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
    model_file,
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


def same(folder: Path, peer: Any) -> None:
    ours = Tokenizer.from_folder(folder)
    for text in TEXTS:
        ids, theirs = ours.encode(text, add_bos=False), peer(text, add_special_tokens=False).input_ids
        assert ids == theirs, text
        assert ours.decode(ids) == streamed(ours, ids) == peer.decode(ids, skip_special_tokens=True), text
    assert ours.encode("the") == peer("the").input_ids


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

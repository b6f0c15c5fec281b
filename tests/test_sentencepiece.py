"""SentencePiece vocabularies of GGUF files: the tokens of the definition, of transformers and of the spelling, both ways."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigrun import Runner
from bigrun.errors import TokenizerError
from bigrun.text.tokenizer import Tokenizer
from support.checkpoints import gguf_twin, llama
from support.tokenizers import scored_vocabulary, streamed

TEXTS = {
    "prose": "the other tree there, in the inner inn.",
    "two spaces": "the  tea   then    the",
    "leading space": " the",
    "spaces alone": "     ",
    "new lines": "the\n\nthe\n",
    "a letter of its own": "café 日",
    "bytes": "Q🙂 Ж",
    "the mark itself": "a▁b",
    "special": "the<s>the</s> the<unk>x",
    "user-defined": "the<extra_0>the <extra_1><extra_0>",
    "spelt bytes": "<0x41> <0x0A>",
    "empty": "",
    "a long word": "there" * 500,
}


def fields(**changes: Any) -> dict[str, Any]:
    """GGUF fields of a SentencePiece vocabulary; None takes one out."""
    tokens, scores, types = scored_vocabulary(320)
    some = {"model": "llama", "tokens": tokens, "scores": scores, "token_type": types, **changes}
    return {f"tokenizer.ggml.{name}": value for name, value in some.items() if value is not None}


def defined(text: str, tokens: list[str], scores: list[float]) -> list[str]:
    """By the definition: while any neighbours make a token, those of the highest score, the leftmost of equals, are joined."""
    score = dict(zip(tokens, scores, strict=True))
    pieces = list(text)
    while True:
        pairs = [(-score[a + b], i) for i, (a, b) in enumerate(pairwise(pieces)) if a + b in score]
        if not pairs:
            break
        _, i = min(pairs)
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
    return [t for p in pieces for t in ([p] if p in score else [f"<0x{byte:02X}>" for byte in p.encode()])]


def spelled(tokenizer: Tokenizer, text: str) -> list[str]:
    return [str(tokenizer._backend.id_to_token(index)) for index in tokenizer.encode(text, add_bos=False)]


LETTERS = "aab ▁"


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.lists(st.text(LETTERS.replace(" ", "") + "c", min_size=2, max_size=5), max_size=14, unique=True),
    st.lists(st.integers(0, 6), min_size=14, max_size=14),
    st.text(LETTERS + "c", max_size=24),
)
def test_tokens_are_those_of_the_definition(joined: list[str], ranks: list[int], text: str) -> None:
    """Whatever the vocabulary: scores that are equal, tokens over the start of a word, and of a letter (c) that is no token."""
    tokens = [*fields()["tokenizer.ggml.tokens"][:259], "▁", "a", "b", *joined]
    scores = [0.0] * 262 + [-float(rank) for rank in ranks[: len(joined)]]
    tokenizer = Tokenizer.from_gguf(
        fields(tokens=tokens, scores=scores, token_type=[2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 259))
    )
    marked = ("▁" + text.replace(" ", "▁")) if text else ""
    assert spelled(tokenizer, text) == defined(marked, tokens, scores)
    assert spelled(tokenizer, text) == defined(marked, tokens, scores), "from what is remembered of words"


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """transformers' tokenizer of a GGUF file: it makes merges of the scores, of which here no two are equal."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("gguf")
    llama(folder)
    gguf_twin(folder, folder / "x.gguf", scored=True)
    return AutoTokenizer.from_pretrained(folder, gguf_file="x.gguf")


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_tokens_and_text_are_those_of_transformers(text: str, theirs: Any) -> None:
    ours = Tokenizer.from_gguf(fields())
    ids = ours.encode(text, add_bos=False)
    # Before a space that is there, and behind a special token, transformers 5 puts none, where llama.cpp does (and the first,
    # SentencePiece).
    if "<" not in text and not text.startswith(" "):
        assert ids == theirs(text, add_special_tokens=False).input_ids
    assert ours.decode(ids) == streamed(ours, ids) == theirs.decode(ids, skip_special_tokens=True)


def test_tokens_and_text_are_those_of_sentencepiece(tmp_path: Path) -> None:
    """Of a vocabulary that it has learnt; special tokens spelled out in text aside, which it does not know there."""
    spm = pytest.importorskip("sentencepiece")
    (tmp_path / "text").write_text("\n".join([*TEXTS.values(), Path(__file__).read_text("utf-8")]), "utf-8")
    spm.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(tmp_path / "m"), vocab_size=700, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
        character_coverage=0.99, minloglevel=2,
    )  # fmt: skip
    theirs = spm.SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
    count = range(theirs.get_piece_size())
    types = [2 if theirs.is_unknown(i) else 3 if theirs.is_control(i) else 6 if theirs.is_byte(i) else 1 for i in count]
    tokens, scores = [theirs.id_to_piece(i) for i in count], [theirs.get_score(i) for i in count]
    ours = Tokenizer.from_gguf(fields(tokens=tokens, scores=scores, token_type=types))
    whole = Path(__file__).read_text("utf-8")
    texts = [*TEXTS.values(), *(whole[i : i + 61] for i in range(0, len(whole), 61))]
    for text in (text for text in texts if not any(name in text for name in ("<s>", "</s>", "<unk>"))):
        ids = theirs.encode(text)
        assert ours.encode(text, add_bos=False) == ids, text
        assert ours.decode(ids) == streamed(ours, ids) == theirs.decode(ids), text


def test_a_space_is_put_before_a_text_and_behind_special_tokens_unless_the_file_says_no() -> None:
    plain, without = Tokenizer.from_gguf(fields()), Tokenizer.from_gguf(fields(add_space_prefix=False))
    assert spelled(plain, "the<s>the<extra_0>the") == ["▁the", "<s>", "▁the", "<extra_0>", "▁the"]
    assert spelled(without, "the<s>the<extra_0>the") == ["the", "<s>", "the", "<extra_0>", "the"]
    assert spelled(plain, " the") == ["▁", "▁the"]
    for tokenizer, text in ((plain, "the"), (without, " the")):
        ids = [tokenizer._backend.token_to_id("▁the")]
        assert tokenizer.decode(ids) == streamed(tokenizer, ids) == text


def test_characters_of_several_byte_tokens_are_streamed_whole() -> None:
    tokenizer = Tokenizer.from_gguf(fields())
    ids = tokenizer.encode("🙂 the")
    stream = tokenizer.stream()
    pieces = [stream.push(index) for index in ids]
    assert pieces[:6] == [""] * 6, "BOS, the space and four bytes of one character"
    assert "".join(pieces) + stream.finish() == "🙂 the" == tokenizer.decode(ids)
    half = tokenizer.stream()
    assert [half.push(index) for index in ids[:4]] + [half.finish()] == ["", "", "", "", "\ufffd\ufffd"]


def test_what_the_file_leaves_out_is_llama_cpp_s_default() -> None:
    """BOS 1, EOS 2, unknown 0, and a BOS before each text; scores of 0, so that the leftmost neighbours are joined."""
    tokenizer = Tokenizer.from_gguf(fields(scores=None))
    assert (tokenizer.bos_id, tokenizer.stop_ids, tokenizer.encode("")) == (1, {2}, [1])
    assert spelled(tokenizer, "there") == ["▁the", "re"]
    assert spelled(Tokenizer.from_gguf(fields()), "there") == ["▁th", "ere"]
    assert Tokenizer.from_gguf(fields(add_bos_token=False)).encode("") == []
    assert Tokenizer.from_gguf(fields(bos_token_id=2, eos_token_id=1)).encode("") == [2]
    few = fields(tokens=["<unk>"], scores=[0.0], token_type=[2], add_bos_token=False)
    assert (Tokenizer.from_gguf(few).bos_id, Tokenizer.from_gguf(few).encode("é", add_bos=False)) == (None, [0, 0])


def test_whole_numbers_are_scores_too() -> None:
    scores = [int(score) for score in fields()["tokenizer.ggml.scores"]]
    assert Tokenizer.from_gguf(fields(scores=scores)).encode("there") == Tokenizer.from_gguf(fields()).encode("there")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"scores": [0.0]}, "scores has 1 entries for 320 tokens"),
        ({"scores": [float("nan")] * 320}, "not finite"),
        ({"scores": ["0"] * 320}, "not a list of numbers"),
        ({"scores": 5}, "scores"),
        ({"tokens": ["a", "b"], "scores": [0.0, 0.0], "token_type": None, "unknown_token_id": 5}, "unknown_token_id"),
        ({"tokens": ["a", ""], "scores": [0.0, 0.0], "token_type": None}, "empty one"),
        ({"token_type": [1]}, "1 entries"),
        ({"add_space_prefix": 1}, "add_space_prefix"),
        ({"remove_extra_whitespaces": True}, "remove_extra_whitespaces is True"),
        ({"precompiled_charsmap": [1, 2]}, "precompiled_charsmap"),
    ],
)
def test_bad_fields_are_refused_in_one_line(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.from_gguf(fields(**changes))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_with_such_a_vocabulary_generates_and_is_converted_with_it(tmp_path: Path) -> None:
    from support.commands import run_command

    llama(tmp_path)
    gguf_twin(tmp_path, tmp_path / "x.gguf", scored=True)
    run_command("convert", "--model", tmp_path / "x.gguf", "--out", tmp_path / "int8")
    options: dict[str, Any] = {"gpus": "none", "cpu": "1GB", "progress": False, "context": 64}
    texts = []
    for path in (tmp_path / "x.gguf", tmp_path / "int8"):
        with Runner(str(path), **options) as runner:
            assert runner.encode("the") == [1, 261]
            texts.append(runner.generate("the other", max_new_tokens=8, seed=1, temperature=1.0).text)
    assert texts[0] == texts[1]
    said = json.loads(run_command("inspect", tmp_path / "x.gguf", "--json").stdout)
    assert (said["tokenizer"], said["problems"]) == ("320 tokens, no chat template", [])

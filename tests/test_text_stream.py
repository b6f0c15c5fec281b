"""Streamed text is the decoded text, in linear time, for each kind of decoder."""

from __future__ import annotations

import time

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, pre_tokenizers

from bigrun.text import byte_level, sentencepiece
from support.tokenizers import streamed, tokenizer_of, word_backend


def metaspace_backend(scheme: str) -> tokenizers.Tokenizer:
    backend = word_backend()
    backend.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return backend


def byte_backend() -> tokenizers.Tokenizer:
    tokens = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = byte_level.build(vocabulary, ["a b"], byte_level.split_named("gpt-2"))
    backend.add_special_tokens(["<s>", "</s>"])
    backend.add_tokens([AddedToken("é", normalized=False), AddedToken("  ", normalized=False), "日本"])
    return backend


def scored_backend() -> tokenizers.Tokenizer:
    """SentencePiece's, as a GGUF file has it: joined by scores, bytes for characters that are no token."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "ab", "é", "▁▁"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = sentencepiece.build(tokens, vocabulary, [-float(i) for i in range(len(tokens))], "<unk>", True)
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return backend


BACKENDS = {
    "scores": scored_backend,
    "byte-level": byte_backend,
    "byte fallback": word_backend,
    "metaspace": lambda: metaspace_backend("always"),
    "metaspace never": lambda: metaspace_backend("never"),
}


@pytest.mark.parametrize("name", BACKENDS)
def test_streamed_pieces_are_the_decoded_text(name: str) -> None:
    tokenizer = tokenizer_of(BACKENDS[name]())
    size = tokenizer.vocab_size

    @settings(max_examples=150, deadline=None, derandomize=True)
    @given(st.lists(st.one_of(st.integers(0, size + 3), st.integers(size - 8, size - 1)), max_size=24))
    def holds(ids: list[int]) -> None:
        assert streamed(tokenizer, ids) == tokenizer.decode(ids)

    @settings(max_examples=50, deadline=None, derandomize=True)
    @given(st.text(max_size=24))
    def holds_for_text(text: str) -> None:
        ids = tokenizer.encode(text)
        assert streamed(tokenizer, ids) == tokenizer.decode(ids)

    holds()
    holds_for_text()


def test_a_character_comes_out_with_its_last_byte_and_no_sooner() -> None:
    tokenizer = tokenizer_of(byte_backend())
    stream = tokenizer.stream()
    pieces = [stream.push(index) for index in tokenizer.encode("è👍a")]
    assert pieces == ["", "è", "", "", "", "👍", "a"]
    cut = tokenizer.stream()
    assert (cut.push(tokenizer.encode("è")[0]), cut.finish()) == ("", "\ufffd")


@pytest.mark.parametrize("name", BACKENDS)
def test_streaming_takes_linear_time_even_over_bytes_that_never_become_a_character(name: str) -> None:
    tokenizer = tokenizer_of(BACKENDS[name]())
    backend = tokenizer._backend
    index = next(token_id for token in ("<0xE2>", "â") if (token_id := backend.token_to_id(token)) is not None)

    def seconds(count: int) -> float:
        start = time.perf_counter()
        streamed(tokenizer, [index] * count)
        return time.perf_counter() - start

    once = min(seconds(10_000) for _ in range(3))
    assert min(seconds(80_000) for _ in range(3)) < 8 * once * 4  # quadratic would be 64 times


SHOWN = ("[THINK]", "[/THINK]", "◁think▷")


def with_marks(name: str) -> tokenizers.Tokenizer:
    backend = BACKENDS[name]()
    backend.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in (*SHOWN, "<|end|>", "é>")])
    return backend


@pytest.mark.parametrize("name", BACKENDS)
def test_special_tokens_print_as_themselves_where_they_are_to_be_shown(name: str) -> None:
    tokenizer = tokenizer_of(with_marks(name))
    backend = tokenizer._backend
    ids = tokenizer.encode("a[THINK]ab é[/THINK] b◁think▷ a<|end|>")
    assert streamed(tokenizer, ids) == tokenizer.decode(ids)
    text = streamed(tokenizer, ids, SHOWN)
    for mark in SHOWN:
        assert text.count(mark) == 1
        assert mark not in streamed(tokenizer, ids)
        text = text.replace(mark, "")
    assert text.split() == tokenizer.decode(ids).split()
    everything = {token.content for token in backend.get_added_tokens_decoder().values() if token.special} - {"é>"}
    hidden = backend.token_to_id("é>")
    size = tokenizer.vocab_size

    @settings(max_examples=150, deadline=None, derandomize=True)
    @given(st.lists(st.one_of(st.integers(0, size + 3), st.integers(size - 8, size - 1)), max_size=24))
    def holds(ids: list[int]) -> None:
        printed = [index for index in ids if index != hidden]
        assert streamed(tokenizer, ids, everything) == backend.decode(printed, skip_special_tokens=False)

    holds()


def test_a_token_that_is_part_of_a_shown_text_is_shown_and_as_it_is_spelled() -> None:
    tokenizer = tokenizer_of(with_marks("byte-level"))
    ids = tokenizer.encode("<|end|>é><s>")
    assert len(ids) == 3
    assert streamed(tokenizer, ids, ("é><|end|><|start|>",)) == "<|end|>é>"

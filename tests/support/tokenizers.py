"""Tokenizers of a few tokens in the shapes of published ones, and what a stream of their tokens says."""

from __future__ import annotations

from collections.abc import Collection

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from bigrun.text.tokenizer import Tokenizer


def word_backend(*, bos: bool = True) -> tokenizers.Tokenizer:
    """The shape of Llama 2's tokenizer.json: a mark for spaces, byte tokens, a leading space dropped, BOS and EOS."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "ab", "é"]
    merges = [("▁", "a"), ("a", "b")]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    return backend


def scored_vocabulary(count: int) -> tuple[list[str], list[float], list[int]]:
    """Tokens, scores and types of a SentencePiece vocabulary of `count` tokens as llama.cpp's converter writes it.

    The joined ones overlap, so that another order of joining gives other tokens, and scores are not in the order of ids.
    """
    single = [*"▁etaoinshrdlucmfwygpbvk.,\n", "é", "日"]
    joined = ["▁t", "he", "▁the", "in", "er", "▁a", "re", "on", "er.", "▁s", "en", "ing", "▁▁", "▁▁▁▁"]
    joined += ["th", "the", "ere", "▁th", "n▁t"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *joined, *single]
    tokens = (tokens + [f"<extra_{i}>" for i in range(count)])[:count]
    order = {token: i for i, token in enumerate(joined[::2] + joined[1::2] + single)}
    scores = [-float(order.get(token, 0)) for token in tokens]
    kinds = {"<unk>": 2, "<s>": 3, "</s>": 3}
    types = [4 if t.startswith("<e") else 6 if t.startswith("<0") else kinds.get(t, 1) for t in tokens]
    return tokens, scores, types


def tokenizer_of(backend: tokenizers.Tokenizer) -> Tokenizer:
    return Tokenizer(backend, named={}, add_bos=False, stop_ids=[], chat_template=None)


def streamed(tokenizer: Tokenizer, ids: list[int], shown: Collection[str] = ()) -> str:
    stream = tokenizer.stream(shown)
    return "".join([stream.push(index) for index in ids]) + stream.finish()

"""The tokenizer of a folder without tokenizer.json: from tokenizer.model, or else from vocab.json and merges.txt.

The two say what the tokens are; how text is cut before, and what is put in front of it, is for tokenizer_config.json and the
class that it names. What transformers' class of that name does is done here; a class that is not known is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, normalizers

from bigrun.errors import TokenizerError
from bigrun.text import byte_level, sentencepiece
from bigrun.text.added_tokens import MOST, SPECIAL
from bigrun.text.sentencepiece_model import CONTROL, MOST_BYTES, USER_DEFINED, SentencePieceModel, parse
from bigrun.text.untrusted import building, field, read_bytes, read_object, read_text, token_text
from bigrun.text.vocabulary_files import ADDED, MERGES, SENTENCEPIECE, VOCABULARY

MOST_VOCABULARY = 32 << 20  # bytes of vocab.json and of merges.txt; the largest have 7 million
MAX_TOKENS = 1 << 20

_ANY = (None, "PreTrainedTokenizer", "TokenizersBackend")  # they say nothing: transformers takes what else there is
# Classes whose ids are the places of a SentencePiece model's pieces; a BOS is put first unless the settings say no.
SENTENCEPIECE_CLASSES = (
    "LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "YiTokenizer", "BaichuanTokenizer", "InternLMTokenizer",
    "InternLM2Tokenizer",
)  # fmt: skip
# Classes of vocab.json and merges.txt: how text is cut (a name of byte_level.SPLITS), and whether it is composed (NFC) first.
BYTE_LEVEL_CLASSES = {
    "GPT2Tokenizer": ("gpt-2", False),
    "CodeGenTokenizer": ("gpt-2", False),
    "GPTNeoXTokenizer": ("gpt-2", True),
    "Qwen2Tokenizer": ("qwen2", True),
    "CohereTokenizer": ("command-r", True),
}
CLASS_OF_TYPE = {
    **dict.fromkeys(("gpt2", "gptj", "gpt_neo", "opt", "phi", "gpt_bigcode", "starcoder2"), "GPT2Tokenizer"),
    **dict.fromkeys(("gpt_neox", "mpt", "olmo"), "GPTNeoXTokenizer"),
    **dict.fromkeys(("qwen2", "qwen3", "qwen2_moe", "qwen3_moe"), "Qwen2Tokenizer"),
    **dict.fromkeys(("cohere", "cohere2"), "CohereTokenizer"),
}
DIGITS_APART = ("gpt_bigcode", "starcoder2")  # their own tokenizer.json says so, their class does not


def from_vocabulary(
    path: Path, config: Mapping[str, Any], special: Mapping[str, Any]
) -> tuple[Tokenizer, dict[str, Any]]:
    """(the tokenizer without the tokens that settings add, `config` with what the files and the class say beyond it).

    `config` is tokenizer_config.json, `special` special_tokens_map.json. Raises TokenizerError.
    """
    model = read_object(path / "config.json") or {}
    given = field(config, "tokenizer_class", str) or field(model, "tokenizer_class", str)
    kind = given and given.removesuffix("Fast")
    settings = dict(config)
    if not settings.get("added_tokens_decoder"):
        settings["added_tokens_decoder"] = _added(path / ADDED, settings, special)
    if (data := read_bytes(path / SENTENCEPIECE, MOST_BYTES)) is not None:
        where = path / SENTENCEPIECE
        if kind not in (*_ANY, *SENTENCEPIECE_CLASSES):
            raise TokenizerError(_unknown(given, where, SENTENCEPIECE_CLASSES))
        try:
            spm = parse(data)
        except TokenizerError as error:
            raise TokenizerError(f"{where} is {error}") from error
        names = {"bos_token": spm.bos, "eos_token": spm.eos, "unk_token": spm.unknown, "pad_token": spm.padding}
        texts = _renamed(spm.pieces, settings)
        defaults = {name: texts[index] for name, index in names.items() if index is not None}
        says_bos = True
        with building(str(where)):
            backend = _sentencepiece(spm, texts, settings)
    else:
        model_type = field(model, "model_type", str)
        if kind in _ANY:
            kind = CLASS_OF_TYPE.get(model_type or "")
        if kind not in BYTE_LEVEL_CLASSES:
            raise TokenizerError(_unknown(given, path / VOCABULARY, BYTE_LEVEL_CLASSES))
        split, composed = BYTE_LEVEL_CLASSES[kind]
        with building(str(path / VOCABULARY)):
            split = "starcoder" if kind == "GPT2Tokenizer" and model_type in DIGITS_APART else split
            backend = _byte_level(path, settings, split)
        if composed:
            backend.normalizer = normalizers.NFC()
        end = backend.token_to_id("<|endoftext|>") is not None and kind != "CohereTokenizer"
        ends = ("eos_token", "unk_token") if kind == "Qwen2Tokenizer" else ("bos_token", "eos_token", "unk_token")
        defaults = dict.fromkeys(ends, "<|endoftext|>") if end else {}
        says_bos = False
    for name, value in defaults.items():
        if name not in settings and special.get(name) is None:
            settings[name] = value
    if says_bos and settings.get("add_bos_token") is None:
        settings["add_bos_token"] = bool(settings.get("bos_token") or special.get("bos_token"))
    return backend, settings


def _unknown(kind: str | None, where: Path, known: Iterable[str]) -> str:
    named = f"tokenizer_class is {kind!r:.60}" if kind else "no tokenizer_class is named"
    return (
        f"{named}, and {where} can be read for {', '.join(sorted(known))} alone;"
        " put the model's tokenizer.json there, or save one with transformers"
    )


def _sentencepiece(spm: SentencePieceModel, pieces: list[str], settings: Mapping[str, Any]) -> Tokenizer:
    wanted = field(settings, "add_prefix_space", bool)
    prefix = spm.prefix if wanted is None else wanted
    always = bool(field(settings, "legacy", bool))
    backend = sentencepiece.from_model(spm, pieces, "always" if prefix and always else "first" if prefix else "never")
    kinds = list(zip(pieces, spm.types, strict=True))
    backend.add_special_tokens(
        [AddedToken(piece, normalized=False, special=True) for piece, kind in kinds if kind == CONTROL]
    )
    backend.add_tokens([AddedToken(piece, normalized=False) for piece, kind in kinds if kind == USER_DEFINED])
    return backend


def _byte_level(path: Path, settings: Mapping[str, Any], split: str) -> Tokenizer:
    vocabulary = read_object(path / VOCABULARY, MOST_VOCABULARY)
    merges = read_text(path / MERGES, MOST_VOCABULARY)
    if vocabulary is None or merges is None:
        there, absent = (MERGES, VOCABULARY) if vocabulary is None else (VOCABULARY, MERGES)
        raise TokenizerError(f"{path} has {there} but no {absent}; fetch it too")
    if not 0 < len(vocabulary) <= MAX_TOKENS:
        raise TokenizerError(f"{path / VOCABULARY} has {len(vocabulary)} tokens; the most is {MAX_TOKENS}")
    if not all(type(index) is int for index in vocabulary.values()) or "" in vocabulary:
        raise TokenizerError(f"{path / VOCABULARY} has a token without a name, or one whose id is no whole number")
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    if [vocabulary[token] for token in tokens] != list(range(len(tokens))):
        raise TokenizerError(
            f"{path / VOCABULARY} has {len(tokens)} tokens, whose ids are not those from 0 to {len(tokens) - 1}"
        )
    lines = merges.split("\n")
    lines = [line.rstrip("\r") for line in lines[lines[0].startswith("#version") :]]
    index = {token: i for i, token in enumerate(_renamed(tokens, settings))}
    prefix = bool(field(settings, "add_prefix_space", bool))
    return byte_level.build(
        index, [line for line in lines if line], byte_level.SPLITS[split], prefix, str(path / MERGES)
    )


def _renamed(tokens: tuple[str, ...] | list[str], settings: Mapping[str, Any]) -> list[str]:
    """The tokens, those of the settings in place of others: a model's makers used up a token that stood for none."""
    names, there = list(tokens), set(tokens)
    for key, entry in (field(settings, "added_tokens_decoder", dict) or {}).items():
        text = entry.get("content") if isinstance(entry, dict) else None
        if not isinstance(text, str) or not key.isdecimal() or len(key) > 9 or int(key) >= len(names) or not text:
            continue  # whoever adds the tokens says so
        if text not in there:
            names[int(key)] = text
            there.add(text)
    return names


def _added(path: Path, settings: Mapping[str, Any], special: Mapping[str, Any]) -> dict[str, Any]:
    """The tokens of added_tokens.json as tokenizer_config.json's `added_tokens_decoder` has them."""
    tokens = read_object(path) or {}
    if len(tokens) > MOST or not all(type(index) is int and index >= 0 for index in tokens.values()):
        raise TokenizerError(f"{path} has more than {MOST} tokens, or one whose id is no whole number")
    named = {token_text(fields, name) for fields in (settings, special) for name in SPECIAL}
    return {str(i): {"content": token, "special": token in named} for token, i in tokens.items()}

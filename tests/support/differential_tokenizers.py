"""Tokenizers of a differential case, in the kinds and with the neighbours that published ones have.

A change is (name, value): CHANGES lists both. `write_text_case` makes the folder that bigrun and transformers read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from support.differential import remove
from support.differential_changes import Change
from support.differential_templates import STYLES

KINDS = ("byte-level", "metaspace", "llama", "unigram")
WORDS = (
    "the", "The", "and", "hello", "world", "answer", "user", "assistant", "system", "is", "not", "it's", "in", "tokens", "12",
    "199", "é", "日本", "##", "INST", "you", "think",
)  # fmt: skip


@dataclass(frozen=True)
class TextCase:
    """A kind of tokenizer, the style of its template, changes of both, and a seed for texts and conversations."""

    kind: str
    style: str
    seed: int
    changes: tuple[Change, ...]

    @property
    def change(self) -> dict[str, Any]:
        """The value of each change; of two of one name the last."""
        return {name: value for name, value in self.changes}  # noqa: C416 (a change is a tuple of any length)

    def json(self) -> str:
        return json.dumps({"kind": self.kind, "style": self.style, "seed": self.seed, "changes": self.changes})

    @classmethod
    def of(cls, text: str) -> TextCase:
        read = json.loads(text)
        return cls(read["kind"], read["style"], read["seed"], tuple(tuple(change) for change in read["changes"]))


_ADDED = (("<tag>", False), ("<tag>", True), ("wor", False), (" x", False), ("日", True), ("\n\n", False))
POST = ("none", "bos", "bos-eos", "eos", "byte-level", "sequence")
CHANGES: dict[str, tuple[Any, ...]] = {
    "post": POST,
    "add_bos_token": (True, False, None, "yes"),
    "add_eos_token": (True, False),
    "bos": ("dict", "absent", "null", "unknown", "in-map", "empty"),
    "eos": ("dict", "absent", "null", "unknown", "in-map", "list"),
    "map": ("same", "dicts", "swapped"),
    "where": ("list", "list-others", "jinja", "both", "none", "null", "dict", "additional"),
    "added": tuple(
        {"content": content, "special": special, **flags}
        for content, special in _ADDED
        for flags in ({}, {"lstrip": True}, {"rstrip": True}, {"single_word": True}, {"normalized": True})
    ),
    "markers": ("plain", "none", "normalized"),
    "config_added": ("<extra>", "<|im_start|>"),
    "extra_special": (["<tag>"], ["the"], ["<|im_start|>"]),
    "prefix_space": (True,),
    "scheme": ("first", "always", "never"),
    "normalizer": ("nfc", "nfkc", "lowercase", "strip", "none"),
    "pre": ("digits", "split", "whole"),
    "decoder": ("strip-less", "byte-level", "metaspace", "none", "sequence-of-one", "wordpiece"),
    "truncation": (4,),
    "padding": (32,),
    "clean_up": (True, False),
    "ignore_merges": (True,),
    "fuse_unk": (True,),
    "byte_fallback": (False,),
    "class": ("LlamaTokenizerFast", "GPT2TokenizerFast", "PreTrainedTokenizerFast", "SomeTokenizer", None),
    "generation_eos": (2, [2, 3], None, -1, "2"),
    "template": ("undefined", "syntax", "raises", "trailing-newline", "bos-twice", "no-bos"),
    "model_max_length": (4, 1e30),
    "split_special_tokens": (True,),
}
SOUND: dict[str, tuple[Any, ...]] = {
    "post": POST, "add_bos_token": (True, False), "bos": ("dict", "in-map"), "eos": ("dict", "in-map"),
    "map": ("same", "dicts"), "padding": (32,),
    "where": ("list", "list-others", "jinja", "both"), "added": CHANGES["added"], "markers": ("plain", "normalized"),
    "prefix_space": (True,), "scheme": CHANGES["scheme"], "normalizer": ("nfc", "nfkc", "lowercase"),
    "pre": ("digits", "split"), "truncation": (4,), "template": ("trailing-newline", "bos-twice", "no-bos"),
}  # fmt: skip


@cache
def _byte_alphabet() -> dict[int, str]:
    """GPT-2's characters for bytes."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [byte for byte in range(256) if byte not in kept]
    return {byte: chr(byte) for byte in kept} | {byte: chr(256 + place) for place, byte in enumerate(moved)}


def _grown(words: list[str], tokens: list[str]) -> list[tuple[str, str]]:
    """Merges that build each of these words from its first letter on; `tokens` gets what they make."""
    merges = []
    for word in words:
        for end in range(2, len(word) + 1):
            if word[:end] not in tokens:
                merges.append((word[: end - 1], word[end - 1]))
                tokens.append(word[:end])
    return merges


def _model(kind: str, change: dict[str, Any]) -> Any:
    if kind == "byte-level":
        tokens = list(_byte_alphabet().values())
        spelled = ["".join(_byte_alphabet()[byte] for byte in (f" {word}").encode()) for word in WORDS]
        merges = _grown([*[word[1:] for word in spelled], *spelled], tokens)
        vocabulary = {token: index for index, token in enumerate(tokens)}
        return models.BPE(vocabulary, merges, ignore_merges="ignore_merges" in change)
    fallback = change.get("byte_fallback", True)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256) if fallback)]
    letters = sorted({letter for word in WORDS for letter in word if ord(letter) < 0x3000})
    tokens += ["▁", *letters]
    if kind == "unigram":
        pieces = [*tokens, *dict.fromkeys([*WORDS, *(f"▁{word}" for word in WORDS)])]
        scored = [(piece, -2.0 - 0.5 * (index % 7)) for index, piece in enumerate(dict.fromkeys(pieces))]
        return models.Unigram(scored, 0, byte_fallback=fallback)
    merges = _grown([f"▁{word}" for word in WORDS] + list(WORDS), tokens)
    merges = [merge for merge in merges if all(part in tokens for part in merge)]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return models.BPE(
        vocabulary, merges, unk_token="<unk>", byte_fallback=fallback, fuse_unk="fuse_unk" in change,
        ignore_merges="ignore_merges" in change,
    )  # fmt: skip


def build(case: TextCase) -> tokenizers.Tokenizer:
    """The `tokenizers.Tokenizer` of a case."""
    change = case.change
    backend = tokenizers.Tokenizer(_model(case.kind, change))
    scheme = change.get("scheme", "first")
    kinds = {
        "nfc": normalizers.NFC, "nfkc": normalizers.NFKC, "lowercase": normalizers.Lowercase, "strip": normalizers.Strip,
    }  # fmt: skip
    steps: list[Any] = [kinds[name]() for name in kinds if name == change.get("normalizer")]
    if case.kind == "llama":  # as Llama 1 and 2 have it: no pre-tokenizer, marks put in by the normalizer
        steps += [*([normalizers.Prepend("▁")] if scheme != "never" else []), normalizers.Replace(" ", "▁")]
    if steps:
        backend.normalizer = normalizers.Sequence(steps)
    backend.pre_tokenizer = _pre_tokenizer(case.kind, change, scheme)
    backend.decoder = _decoder(case.kind, change, scheme)
    _add_tokens(case, backend, change)
    backend.post_processor = _post_processor(case, backend, change)
    if "truncation" in change:
        backend.enable_truncation(change["truncation"])
    if "padding" in change:
        backend.enable_padding(length=change["padding"])
    return backend


def _pre_tokenizer(kind: str, change: dict[str, Any], scheme: str) -> Any:
    pre = change.get("pre")
    first: list[Any] = []
    if pre == "digits":
        first = [pre_tokenizers.Digits(individual_digits=True)]
    elif pre == "split":
        first = [pre_tokenizers.Split(tokenizers.Regex(r"\p{N}{1,3}|[^\s\p{L}\p{N}]+"), "isolated")]
    if kind == "byte-level":
        level = pre_tokenizers.ByteLevel(add_prefix_space="prefix_space" in change, use_regex=pre in (None, "digits"))
        return pre_tokenizers.Sequence([*first, level])
    if kind == "llama":
        return pre_tokenizers.Sequence(first) if first else None
    return pre_tokenizers.Sequence([*first, pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=pre != "whole")])


def _decoder(kind: str, change: dict[str, Any], scheme: str) -> Any:
    asked = change.get("decoder")
    byte_level, metaspace = decoders.ByteLevel(), decoders.Metaspace("▁", prepend_scheme=scheme)
    marks = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    strip = [] if scheme == "never" or asked == "strip-less" else [decoders.Strip(" ", 1, 0)]
    usual = {
        "byte-level": byte_level,
        "metaspace": decoders.Sequence([*marks, *strip]),
        "llama": decoders.Sequence([*marks, *strip]),
        "unigram": decoders.Sequence([metaspace, decoders.ByteFallback(), decoders.Fuse()])
        if change.get("byte_fallback", True)
        else metaspace,
    }[kind]
    chosen = {
        "byte-level": byte_level, "metaspace": metaspace, "none": None, "sequence-of-one": decoders.Sequence([usual]),
        "wordpiece": decoders.WordPiece(),
    }  # fmt: skip
    return chosen.get(str(asked), usual)


def _named(case: TextCase) -> dict[str, str]:
    _, _, bos, eos = STYLES[case.style]
    return {"bos_token": bos, "eos_token": eos, "unk_token": "<unk>"}


def _add_tokens(case: TextCase, backend: tokenizers.Tokenizer, change: dict[str, Any]) -> None:
    _, markers, bos, eos = STYLES[case.style]
    how = change.get("markers")
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("<unk>", bos, eos)])
    for marker in markers if how != "none" else ():
        token = AddedToken(marker, special=how != "plain", normalized=how == "normalized")
        (backend.add_tokens if how == "plain" else backend.add_special_tokens)([token])
    for name, value in case.changes:
        if name == "added":
            flags = {key: flag for key, flag in value.items() if key not in ("content", "special")}
            token = AddedToken(value["content"], special=value["special"], **{"normalized": False, **flags})
            (backend.add_special_tokens if value["special"] else backend.add_tokens)([token])


def _post_processor(case: TextCase, backend: tokenizers.Tokenizer, change: dict[str, Any]) -> Any:
    named = _named(case)
    pairs = [(named[name], backend.token_to_id(named[name])) for name in ("bos_token", "eos_token")]
    (bos, _), (eos, _) = pairs
    single = {"bos": f"{bos} $A", "bos-eos": f"{bos} $A {eos}", "eos": f"$A {eos}", "sequence": f"{bos} $A"}
    asked = change.get("post", "none")
    level = processors.ByteLevel(trim_offsets=False)
    if asked in single:
        template = processors.TemplateProcessing(single=single[asked], special_tokens=list(dict(pairs).items()))
        return processors.Sequence([level, template]) if asked == "sequence" else template
    return level if asked == "byte-level" else None


def write_text_case(case: TextCase, folder: Path) -> None:
    """tokenizer.json and its neighbours in `folder`, which is made anew."""
    remove(folder)
    folder.mkdir(parents=True)
    change = case.change
    backend = build(case)
    backend.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {"tokenizer_class": change.get("class", "PreTrainedTokenizerFast"), **_named(case)}
    special: dict[str, Any] = {}
    for short in ("bos", "eos"):
        _spell(f"{short}_token", change.get(short), config, special)
    if "map" in change:
        named = _named(case)
        swapped = {**named, "bos_token": named["eos_token"], "eos_token": named["bos_token"]}
        for name, text in (swapped if change["map"] == "swapped" else named).items():
            special[name] = {"content": text, "lstrip": False} if change["map"] == "dicts" else text
    for name in ("add_bos_token", "add_eos_token", "model_max_length", "split_special_tokens"):
        if name in change:
            config[name] = change[name]
    if "clean_up" in change:
        config["clean_up_tokenization_spaces"] = change["clean_up"]
    if "extra_special" in change:
        config["additional_special_tokens"] = change["extra_special"]
    if "config_added" in change:
        token = change["config_added"]
        index = backend.token_to_id(token)
        number = backend.get_vocab_size() if index is None else index
        config["added_tokens_decoder"] = {str(number): {"content": token, "special": True}}
    _write_template(case, change, folder, config)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if special:
        (folder / "special_tokens_map.json").write_text(json.dumps(special))
    eos = change.get("generation_eos", 2)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))


def _spell(name: str, how: Any, config: dict[str, Any], special: dict[str, Any]) -> None:
    text = config[name]
    spelled = {
        "dict": {"__type": "AddedToken", "content": text, "lstrip": False, "normalized": False, "rstrip": False},
        "null": None, "unknown": "<nowhere>", "empty": "", "list": [text],
    }  # fmt: skip
    if how in spelled:
        config[name] = spelled[how]
    elif how in ("absent", "in-map"):
        del config[name]
    if how == "in-map":
        special[name] = text


def _write_template(case: TextCase, change: dict[str, Any], folder: Path, config: dict[str, Any]) -> None:
    template, _, _, _ = STYLES[case.style]
    template = {
        "undefined": template + "{{ nothing.of_this }}",
        "syntax": template + "{% if %}",
        "raises": "{{ raise_exception('never') }}" + template,
        "trailing-newline": template + "\n",
        "bos-twice": "{{ bos_token }}" + template,
        "no-bos": template.replace("bos_token", "''"),
    }.get(str(change.get("template")), template)
    other = "{{ 'another template' }}"
    where = change.get("where", "string")
    if where == "string":
        config["chat_template"] = template
    elif where in ("list", "list-others"):
        others = [{"name": "tool_use", "template": other}, {"name": "rag", "template": other}]
        default = {"name": "default", "template": template}
        config["chat_template"] = [default] if where == "list" else [others[0], default, others[1]]
    elif where == "null":
        config["chat_template"] = None
    elif where == "dict":
        config["chat_template"] = {"default": template}
    if where in ("jinja", "both", "additional"):
        (folder / "chat_template.jinja").write_text(template, newline="")
    if where == "both":
        config["chat_template"] = other
    if where == "additional":
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates" / "tool_use.jinja").write_text(other)

"""Draws a tokenizer, a chat template, texts and conversations, and compares bigrun's ids and text with transformers'.

    case = draw_text_case(random)
    verdict = judge_text(case, folder)          # agreed, refused, alone or wrong

What bigrun does in its own way, as its docstrings and docs/loading.md say, and is held to here:
- it adds no end of sequence to a prompt, and no second BOS to a text that begins with one;
- `add_bos_token` in tokenizer_config.json is obeyed, as transformers 4 does; version 5 leaves it to tokenizer.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from bigrun.errors import BigrunError
from bigrun.session.prompts import prompt_ids
from bigrun.text.tokenizer import Tokenizer
from support.differential import Verdict, remove
from support.differential_changes import Change
from support.differential_templates import STYLES

KINDS = ("byte-level", "metaspace", "llama", "unigram")
WORDS = (
    "the", "The", "and", "hello", "world", "answer", "user", "assistant", "system", "is", "not", "it's", "in", "tokens", "12",
    "199", "é", "日本", "##", "INST", "you", "think",
)  # fmt: skip
FRAGMENTS = (
    *WORDS, "a", "b", "Straße", "naïve", "e\u0301", "Москва", "日本語", "👍🏽", "👨‍👩‍👧", "\u200b", "\xa0", "\t", "\r\n", "\n", "\n\n\n",
    "   ", "x=1;", "3.14159", "''", '"q"', "{{ 7 * 7 }}", "{% if %}", "▁", "<0x0A>", "Ġ", "\x00", "\x7f", "\ufffd", "½", "ﬁ", "İ",
)  # fmt: skip
PARTIAL = ("<|im_", "|>", "<s", "</", "[INST", "<|", "</think")


@dataclass(frozen=True)
class TextCase:
    """A kind of tokenizer, the style of its template, changes of both, and a seed for texts and conversations."""

    kind: str
    style: str
    seed: int
    changes: tuple[Change, ...]

    def json(self) -> str:
        return json.dumps({"kind": self.kind, "style": self.style, "seed": self.seed, "changes": self.changes})

    @classmethod
    def of(cls, text: str) -> TextCase:
        read = json.loads(text)
        return cls(read["kind"], read["style"], read["seed"], tuple(tuple(change) for change in read["changes"]))


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
        for content, special in (
            ("<tag>", False),
            ("<tag>", True),
            ("wor", False),
            (" x", False),
            ("日", True),
            ("\n\n", False),
        )
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
_SOUND = {
    "post": POST, "add_bos_token": (True, False), "bos": ("dict", "in-map"), "eos": ("dict", "in-map"), "map": ("same", "dicts"),
    "where": ("list", "list-others", "jinja", "both"), "added": CHANGES["added"], "markers": ("plain", "normalized"),
    "prefix_space": (True,), "scheme": CHANGES["scheme"], "normalizer": ("nfc", "nfkc", "lowercase"), "pre": ("digits", "split"),
    "truncation": (4,), "padding": (32,), "template": ("trailing-newline", "bos-twice", "no-bos"),
}  # fmt: skip


def draw_text_case(random: Random) -> TextCase:
    """A case of some changes; more than half of them have only such as published tokenizers have."""
    table: dict[str, tuple[Any, ...]] = _SOUND if random.random() < 0.6 else CHANGES
    names = [random.choice(sorted(table)) for _ in range(random.choice([0, 1, 2, 2, 3, 4]))]
    changes = [(name, random.choice(table[name])) for name in names]
    return TextCase(random.choice(KINDS), random.choice(sorted(STYLES)), random.randint(0, 9999), tuple(changes))


def every_single_text_change() -> list[TextCase]:
    """Each change alone, for each kind, and each style without one."""
    cases = [TextCase(kind, style, 7, ()) for kind in KINDS for style in STYLES]
    styles = sorted(STYLES)
    for number, (name, value) in enumerate((name, value) for name in CHANGES for value in CHANGES[name]):
        cases += [TextCase(kind, styles[number % len(styles)], number, ((name, value),)) for kind in KINDS]
    return cases


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
    change = dict(case.changes)
    backend = tokenizers.Tokenizer(_model(case.kind, change))
    scheme = change.get("scheme", "first")
    steps: list[Any] = {
        "nfc": [normalizers.NFC()],
        "nfkc": [normalizers.NFKC()],
        "lowercase": [normalizers.Lowercase()],
        "strip": [normalizers.Strip()],
    }.get(change.get("normalizer", "none"), [])
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
    first = {
        "digits": [pre_tokenizers.Digits(individual_digits=True)],
        "split": [pre_tokenizers.Split(tokenizers.Regex(r"\p{N}{1,3}|[^\s\p{L}\p{N}]+"), "isolated")],
    }.get(str(pre), [])
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
    change = dict(case.changes)
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


def judge_text(case: TextCase, folder: Path) -> Verdict:
    """Write the case's files to `folder` and hold bigrun's ids, texts and prompts beside transformers'."""
    from transformers import PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.set_verbosity_error()
    write_text_case(case, folder)
    theirs = _tried(lambda: PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True))
    ours = _tried(lambda: Tokenizer.from_folder(folder))
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
            return Verdict("wrong", f"{question} → {_short(expected)}", _short(answer))
    return Verdict("refused" if refused else "agreed", "", refused)


@dataclass(frozen=True)
class Failed:
    """An exception; `explained` if it is bigrun's own."""

    words: str
    explained: bool


def _tried(made: Callable[[], Any]) -> Any:
    try:
        return made()
    except BigrunError as error:
        return Failed(f"refused: {error}", True)
    except BaseException as error:  # the Rust library's panics among them
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        return Failed(f"crashed: {type(error).__name__}: {' '.join(str(error).split())[:200]}", False)


def _questions(case: TextCase, folder: Path, theirs: Any, ours: Tokenizer) -> Iterator[tuple[str, Any, Any]]:
    """(question, transformers' answer, bigrun's)."""
    random = Random(case.seed)
    _, markers, bos, eos = STYLES[case.style]
    markers = (*markers, bos, eos, "<tag>", "<extra>")
    for text in [draw_text(random, markers) for _ in range(4)]:
        plain = _tried(lambda text=text: theirs(text, add_special_tokens=False).input_ids)
        yield f"encode {text!r} without BOS", plain, _tried(lambda text=text: ours.encode(text, add_bos=False))
        if isinstance(plain, Failed):
            continue
        first = _first_ids(case, folder, theirs)
        expected = plain if plain[: len(first)] == first else first + plain
        yield f"encode {text!r}", expected, _tried(lambda text=text: ours.encode(text))
        yield from _decodings(random, plain, theirs, ours)
    prompt = draw_text(random, markers) or "Hi"
    conversations = [draw_conversation(random, markers) for _ in range(4)]
    for messages in [[{"role": "user", "content": prompt}], *conversations]:
        expected = _tried(
            lambda messages=messages: theirs.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=False
            )
        )
        yield (
            f"chat {json.dumps(messages, ensure_ascii=False)}",
            expected,
            _tried(lambda messages=messages: ours.encode(ours.render_chat(messages), add_bos=False)),
        )
    if ours.chat_template is not None:  # as a run does it
        expected = _tried(
            lambda: theirs.apply_chat_template(
                [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False
            )
        )
        yield f"the prompt of a run, {prompt!r}", expected, _tried(lambda: prompt_of_a_run(ours, prompt))


def prompt_of_a_run(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The ids that a Runner makes of a prompt, without a model to run."""
    return prompt_ids(tokenizer, prompt, raw=False, table=1 << 30, context=1 << 30)


def _first_ids(case: TextCase, folder: Path, theirs: Any) -> list[int]:
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
    for some in (ids, [random.randrange(len(theirs)) for _ in range(12)]):
        expected = _tried(lambda some=some: theirs.decode(some, skip_special_tokens=True))
        yield f"decode {some}", expected, _tried(lambda some=some: ours.decode(some))
        yield f"stream {some}", expected, _tried(lambda some=some: _streamed(ours, some))


def _streamed(tokenizer: Tokenizer, ids: list[int]) -> str:
    stream = tokenizer.stream()
    return "".join([stream.push(index) for index in ids]) + stream.finish()


def _short(answer: Any) -> str:
    return answer.words if isinstance(answer, Failed) else repr(answer)[:300]


def smallest_text(case: TextCase, scratch: Path) -> tuple[TextCase, Verdict]:
    """The wrong case with the fewest changes that is still wrong."""
    best, verdict = case, judge_text(case, scratch / "smaller")
    shrinking = True
    while shrinking:
        shrinking = False
        for i in range(len(best.changes)):
            smaller = TextCase(best.kind, best.style, best.seed, best.changes[:i] + best.changes[i + 1 :])
            found = judge_text(smaller, scratch / "smaller")
            if found.outcome == "wrong":
                best, verdict, shrinking = smaller, found, True
                break
    return best, verdict

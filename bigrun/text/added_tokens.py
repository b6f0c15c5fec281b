"""Tokens that a checkpoint's settings add to its tokenizer.json, or mark as special, as transformers' fast tokenizers do."""

from collections.abc import Iterator, Mapping
from typing import Any

from tokenizers import AddedToken, Tokenizer

from bigrun.errors import TokenizerError
from bigrun.text.untrusted import field

SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
ENDS = ("bos_token", "eos_token")
LISTS = ("additional_special_tokens", "extra_special_tokens")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized")
MOST = 1 << 16


def add_tokens(
    backend: Tokenizer, config: Mapping[str, Any], special_map: Mapping[str, Any], exact: bool = False
) -> None:
    """Adds what `added_tokens_decoder`, the lists of special tokens and the named tokens of tokenizer_config.json (and of
    special_tokens_map.json) have beyond tokenizer.json; named ones become special.

    A token of the vocabulary keeps its id there, whatever the settings say; others get the ids after the last. A BOS or EOS
    that the vocabulary lacks is left alone: whoever asks for its id is told so. TokenizerError for what is no token, and, if
    `exact`, for an id of `added_tokens_decoder` that is not the one its token gets.
    """
    decoder = field(config, "added_tokens_decoder", dict) or {}
    if len(decoder) > MOST:
        raise TokenizerError(f"added_tokens_decoder has {len(decoder)} tokens; the most is {MOST}")
    there = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    for entry in (entry for _, entry in sorted(decoder.items(), key=lambda item: (len(item[0]), item[0]))):
        token = _token(entry, "added_tokens_decoder", bool(isinstance(entry, dict) and entry.get("special")))
        if token.content not in there:
            _add(backend, token)
            there[token.content] = token
    for key, entry in decoder.items() if exact else ():
        index = backend.token_to_id(text := _token(entry, "added_tokens_decoder", False).content)
        if str(index) != key:
            raise TokenizerError(
                f"added_tokens_decoder gives {text!r:.60} the id {key!r:.20}, where the vocabulary has {index}"
            )
    for entry, name in _special(config, special_map):
        token = _token(entry, name, name in SPECIAL or not isinstance(entry, dict) or bool(entry.get("special")))
        if name in ENDS and backend.token_to_id(token.content) is None:
            continue
        before = there.get(token.content)
        if before is not None and (before.special or not token.special):
            continue
        flags = {flag: getattr(before or token, flag) for flag in FLAGS}
        token = AddedToken(token.content, special=token.special, **flags)
        _add(backend, token)
        there[token.content] = token


def _special(config: Mapping[str, Any], special_map: Mapping[str, Any]) -> Iterator[tuple[Any, str]]:
    """(a special token's entry, where it stands)."""
    for fields in (config, special_map):
        for name in SPECIAL:
            if fields.get(name) is not None:
                yield fields[name], name
        for name in LISTS:
            entries = fields.get(name)
            entries = list(entries.values()) if isinstance(entries, dict) else entries
            if entries is not None and (not isinstance(entries, list) or len(entries) > MOST):
                raise TokenizerError(f"{name} is {entries!r:.80}; it must be a list of tokens")
            yield from ((entry, name) for entry in entries or ())


def _token(entry: Any, name: str, special: bool) -> AddedToken:
    content = entry.get("content") if isinstance(entry, dict) else entry
    if not isinstance(content, str):
        raise TokenizerError(f"{name} is {entry!r:.80}; a token is its text, or an object with its content")
    given = entry if isinstance(entry, dict) else {}
    flags = {flag: bool(given.get(flag, flag == "normalized" and not special)) for flag in FLAGS}
    return AddedToken(content, special=special, **flags)


def _add(backend: Tokenizer, token: AddedToken) -> None:
    (backend.add_special_tokens if token.special else backend.add_tokens)([token])

"""The tokenizer of a GGUF file, from its metadata: which keys are read, which are without effect, which are refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken

from bigrun.errors import TokenizerError
from bigrun.text import byte_level, sentencepiece
from bigrun.text.untrusted import array, field, token_ids

PREFIX = "tokenizer.ggml."
KINDS = ("gpt2", "llama")  # of `tokenizer.ggml.model`: byte-level BPE and SentencePiece's
MAX_TOKENS = 1 << 22  # sixteen times the largest vocabulary in use: beyond it, a damaged or hostile file

READ = frozenset((
    "tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.ggml.tokens", "tokenizer.ggml.token_type",
    "tokenizer.ggml.scores", "tokenizer.ggml.merges", "tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id",
    "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id", "tokenizer.ggml.unknown_token_id",
    "tokenizer.ggml.padding_token_id", "tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_space_prefix",
    "tokenizer.chat_template",
))  # fmt: skip

HARMLESS: Mapping[str, str] = {
    "tokenizer.ggml.token_type_count": "is of BERT's segments",
    "tokenizer.ggml.seperator_token_id": "is of pairs of texts",
    "tokenizer.ggml.mask_token_id": "is of training",
    "tokenizer.ggml.add_eos_token": "ends a text, where a prompt goes on",
    "tokenizer.ggml.add_sep_token": "is of pairs of texts",
    "tokenizer.huggingface.json": "says again what the other keys say",
    "tokenizer.rwkv.world": "is of RWKV's tokenizer, which is refused by its kind",
    "tokenizer.chat_template.{name}": "is a template beside the default one",
    "tokenizer.chat_templates": "names the templates beside the default one",
    **{f"tokenizer.ggml.{name}_token_id": "is of text to fill in, which a prompt spells out" for name in (
        "fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep", "prefix", "suffix", "middle",
    )},
}  # fmt: skip

# Keys that change a text before it is tokenized, which is not done here: refused unless they are off.
OFF = (
    "tokenizer.ggml.remove_extra_whitespaces", "tokenizer.ggml.precompiled_charsmap", "tokenizer.ggml.suppress_tokens",
    "tokenizer.ggml.normalizer.lowercase", "tokenizer.ggml.normalizer.strip_accents",
)  # fmt: skip

UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4  # token types of `tokenizer.ggml.token_type`

# Where the file is silent; of the kind gpt2, nothing is assumed.
USUAL_IDS = {"gpt2": {}, "llama": {"bos": 1, "eos": 2, "unknown": 0}}
NAMES = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}


def vocabulary(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a Tokenizer. TokenizerError for a kind that is not read, and for what is unsound."""
    kind = fields.get("tokenizer.ggml.model")
    if kind not in KINDS:
        raise TokenizerError(
            f"tokenizer.ggml.model is {kind!r:.80}; supported: 'gpt2' (byte-level BPE) and 'llama' (SentencePiece)."
            " Run the model from its folder with tokenizer.json instead"
        )
    for key in OFF:
        if fields.get(key) not in (None, False, [], ""):
            raise TokenizerError(
                f"{key} is {fields[key]!r:.40}, which is not done here."
                " Run the model from its folder with tokenizer.json instead"
            )
    tokens = array(fields, "tokenizer.ggml.tokens", str)
    if not 0 < len(tokens) <= MAX_TOKENS:
        raise TokenizerError(f"the GGUF file has {len(tokens)} tokens; the most is {MAX_TOKENS}")
    index = {token: i for i, token in enumerate(tokens)}
    if len(index) != len(tokens) or "" in index:
        raise TokenizerError("tokenizer.ggml.tokens holds a token twice, or an empty one")
    types = array(fields, "tokenizer.ggml.token_type", int) if "tokenizer.ggml.token_type" in fields else None
    if types is not None and len(types) != len(tokens):
        raise TokenizerError(f"tokenizer.ggml.token_type has {len(types)} entries for {len(tokens)} tokens")

    def ids(name: str) -> list[int]:
        usual = USUAL_IDS[kind].get(name)
        value = fields.get(f"{PREFIX}{name}_token_id")
        if value is None and usual is not None:
            return [usual] if usual < len(tokens) else []
        return token_ids(value, f"{PREFIX}{name}_token_id", len(tokens))

    if kind == "gpt2":
        split = byte_level.split_named(fields.get("tokenizer.ggml.pre"))
        adds_bos = split.adds_bos
        backend = byte_level.build(index, array(fields, "tokenizer.ggml.merges", str), split)
    else:
        unknown = next((tokens[i] for i in ids("unknown")), None)
        prefix = field(fields, "tokenizer.ggml.add_space_prefix", bool)
        adds_bos = True
        backend = sentencepiece.build(tokens, index, _scores(fields, len(tokens)), unknown, prefix is not False)
    _add_whole(backend, tokens, types or ())
    says_bos = field(fields, "tokenizer.ggml.add_bos_token", bool)
    return {
        "backend": backend,
        "named": {name: tokens[i] for key, name in NAMES.items() for i in ids(key)},
        "add_bos": adds_bos if says_bos is None else says_bos,
        "stop_ids": [*ids("eos"), *ids("eot"), *ids("eom")],
        "chat_template": field(fields, "tokenizer.chat_template", str),
    }


def _scores(fields: Mapping[str, Any], count: int) -> list[float]:
    """A number for each token; 0 for all where there are none, as llama.cpp has it."""
    if "tokenizer.ggml.scores" not in fields:
        return [0.0] * count
    numbers: list[Any] = array(fields, "tokenizer.ggml.scores", object)
    if not all(isinstance(number, float | int) and not isinstance(number, bool) for number in numbers):
        raise TokenizerError("tokenizer.ggml.scores is not a list of numbers")
    return numbers


def _add_whole(backend: Any, tokens: Sequence[str], types: Sequence[int]) -> None:
    """Has control tokens (special: they print nothing) and user-defined ones found whole in text. Each is in the vocabulary
    already and keeps the id that it has there."""
    kinds = list(zip(tokens, types, strict=False))
    special = [_whole(token, True) for token, kind in kinds if kind in (CONTROL, UNKNOWN)]
    backend.add_special_tokens(special)
    backend.add_tokens([_whole(token, False) for token, kind in kinds if kind == USER_DEFINED])


def _whole(token: str, special: bool) -> AddedToken:
    return AddedToken(token, normalized=False, special=special)

"""Byte-level BPE from a vocabulary and its merges, as a GGUF file or a folder without tokenizer.json carries them.

GGUF stores no tokenizer.json: it names a pre-tokenizer (`tokenizer.ggml.pre`) and leaves its regular expressions to the
reader. The names and what they mean are llama.cpp's (src/llama-vocab.cpp, `llm_tokenizer_bpe`); the expressions are the
ones of the models' own tokenizer.json files where the two are spelled differently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from bigrun.errors import TokenizerError

MAX_MERGES = 1 << 22  # sixteen times the most in use: beyond it, a damaged or hostile file

# Building blocks of the split expressions. `\s+(?!\S)` leaves a run's last space to the word that follows it.
_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_MARKS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"
_PATH_MARKS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_SUFFIX}|{_WORD}|\p{{N}}{{1,3}}|{_MARKS}|{_SPACES}"
_QWEN2 = rf"{_SUFFIX}|{_WORD}|\p{{N}}|{_MARKS}|{_SPACES}"
_QWEN35 = rf"{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
_TEKKEN = rf"{_CASED % ('', '')}|\p{{N}}|{_PATH_MARKS}|{_SPACES}"
_GPT4O = rf"{_CASED % (_SUFFIX + '?', _SUFFIX + '?')}|\p{{N}}{{1,3}}|{_PATH_MARKS}|{_SPACES}"
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
_DEEPSEEK3 = (
    rf"[!-/:-@\[-`{{-~][A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
)


@dataclass(frozen=True)
class Split:
    """How text is cut before BPE: each expression isolates its matches within the pieces that the last one left."""

    expressions: tuple[str, ...]
    ignore_merges: bool = False  # a piece that is a token is that token, whatever the merges say
    adds_bos: bool = False  # what holds where the file has no `tokenizer.ggml.add_bos_token`


_DIGITS_THEN_GPT2 = Split((r"\p{N}", _GPT2))
_SPLITS: dict[tuple[str, ...], Split] = {
    ("default",): Split((r"[\p{P}$+<=>^~|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    ("gpt-2", "phi-2", "mpt", "olmo", "jais", "gigachat", "exaone4", "trillion", "granite-docling"): Split((_GPT2,)),
    ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"): _DIGITS_THEN_GPT2,
    ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"): Split(
        (_LLAMA3,), ignore_merges=True, adds_bos=True
    ),
    ("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"): Split((_LLAMA3,)),
    ("qwen2", "deepseek-r1-qwen", "kormo", "megrez", "stablelm2", "hunyuan", "solar-open"): Split((_QWEN2,)),
    ("qwen35",): Split((_QWEN35,)),
    ("tekken",): Split((_TEKKEN,), ignore_merges=True, adds_bos=True),
    ("gpt-4o", "llama4", "minimax-m2"): Split((_GPT4O,)),
    ("bloom", "poro-chat", "gpt3-finnish"): Split((_BLOOM,)),
    ("viking",): Split((_BLOOM, r"\p{N}")),
    ("falcon",): Split((r"[\p{P}$+<=>^~|`]+", _GPT2, r"[0-9][0-9][0-9]")),
    ("deepseek-v3", "hunyuan-dense"): Split((r"\p{N}{1,3}", r"[一-龥぀-ゟ゠-ヿ]+", _DEEPSEEK3)),
}
SPLITS: dict[str, Split] = {name: split for names, split in _SPLITS.items() for name in names}


def split_named(name: object) -> Split:
    """The split that `tokenizer.ggml.pre` names; TokenizerError where it names none that is known.

    A file without the name is refused rather than guessed at: the wrong split yields text that looks right and a model
    that answers worse.
    """
    if name is None:
        raise TokenizerError(
            "the GGUF file has no tokenizer.ggml.pre, which says how text is split before BPE;"
            " take a file that was converted after April 2024"
        )
    if not isinstance(name, str) or name not in SPLITS:
        raise TokenizerError(f"tokenizer.ggml.pre is {name!r:.80}; supported: {', '.join(sorted(SPLITS))}")
    return SPLITS[name]


def pre_tokenizer(split: Split, prefix: bool = False) -> pre_tokenizers.PreTokenizer:
    """Text → pieces in the byte alphabet, in which every byte is one printable character (GPT-2).

    `prefix` puts a space before a text, and before what follows a special token, that does not begin with one.
    """
    if prefix:
        if split.expressions[-1] != _GPT2:
            raise TokenizerError("add_prefix_space is true, which only GPT-2's way of splitting text has")
        # The library's own step for that expression puts the space before it cuts.
        ahead = [pre_tokenizers.Split(Regex(expression), behavior="isolated") for expression in split.expressions[:-1]]
        return pre_tokenizers.Sequence([*ahead, pre_tokenizers.ByteLevel(add_prefix_space=True)])
    cuts = [pre_tokenizers.Split(Regex(expression), behavior="isolated") for expression in split.expressions]
    return pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def build(
    vocabulary: Mapping[str, int],
    merges: Sequence[str],
    split: Split,
    prefix: bool = False,
    where: str = "tokenizer.ggml.merges",
) -> Tokenizer:
    """A byte-level BPE tokenizer of these tokens and their ids; its added tokens are the caller's to add.

    `merges` are "left right", best first; `prefix` is that of `pre_tokenizer`. Raises TokenizerError, which says `where` the
    merges are.
    """
    if len(merges) > MAX_MERGES:
        raise TokenizerError(f"{where} has {len(merges)} merges; the most is {MAX_MERGES}")
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    unknown = next((pair for pair in pairs if not {*pair, "".join(pair)} <= vocabulary.keys()), None)
    if unknown is not None:
        raise TokenizerError(f"{where} joins {unknown!r:.80}, which are not all in the vocabulary")
    backend = Tokenizer(models.BPE(dict(vocabulary), pairs, ignore_merges=split.ignore_merges))
    backend.pre_tokenizer = pre_tokenizer(split, prefix)
    backend.decoder = decoders.ByteLevel()
    return backend

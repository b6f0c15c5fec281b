"""SentencePiece's tokenizers (Kudo and Richardson 2018): of a GGUF file's vocabulary and scores, and of a `tokenizer.model`.

`build`, for GGUF: there are no merges to read. Of all neighbours that make a token together, those whose token has the
highest score are joined first, the leftmost of equals. A list of merges cannot say that exactly (it knows no equals, and no
character that is no token by itself), so the joining is done here, and the `tokenizers` library does what is around it. Rules
and defaults are llama.cpp's (src/llama-vocab.cpp, `llm_tokenizer_spm_session`).

`from_model`, for a `tokenizer.model`: what transformers makes of one, a list of merges or a Unigram model, both the library's.
"""

from __future__ import annotations

import heapq
import math
import re
from collections.abc import Mapping, Sequence

from tokenizers import Regex, Token, Tokenizer, decoders, models, normalizers, pre_tokenizers

from bigrun.errors import TokenizerError
from bigrun.text.byte_level import MAX_MERGES
from bigrun.text.sentencepiece_model import BPE, BYTE, CONTROL, UNKNOWN, SentencePieceModel

MARK = "▁"  # stands for a space
CACHED_WORDS = 1 << 16
LONGEST_CACHED = 64  # characters


def build(
    tokens: Sequence[str], vocabulary: Mapping[str, int], scores: Sequence[float], unknown: str | None, prefix: bool
) -> Tokenizer:
    """A tokenizer whose ids are the tokens' places in the list; its added tokens are the caller's to add.

    `prefix` puts a space before a text, and before what follows a special token. Raises TokenizerError.
    """
    if len(scores) < len(tokens):
        raise TokenizerError(f"tokenizer.ggml.scores has {len(scores)} entries for {len(tokens)} tokens")
    if not all(math.isfinite(score) for score in scores):
        raise TokenizerError("tokenizer.ggml.scores has entries that are not finite")
    if unknown is None and not all(_byte(value) in vocabulary for value in range(256)):
        raise TokenizerError("the GGUF file's vocabulary has neither a token for each byte nor an unknown token")
    backend = Tokenizer(models.BPE(dict(vocabulary), [], byte_fallback=True, unk_token=unknown))
    spaces = normalizers.Replace(" ", MARK)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(MARK), spaces]) if prefix else spaces
    backend.pre_tokenizer = pre_tokenizers.PreTokenizer.custom(_Joiner(vocabulary, scores, unknown))
    steps = [decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return backend


def _byte(value: int) -> str:
    return f"<0x{value:02X}>"


def from_model(spm: SentencePieceModel, pieces: Sequence[str], scheme: str) -> Tokenizer:
    """A tokenizer whose ids are the places of the pieces; its added tokens are the caller's to add.

    `pieces` are the model's, or what its checkpoint calls them. `scheme` says where a space is put before a text that does not
    begin with one: "first", before the text; "always", before what follows a special token too; "never". Raises
    TokenizerError, and what the library has against a vocabulary.
    """
    unknown = None if spm.unknown is None else pieces[spm.unknown]
    if spm.kind == BPE:
        vocabulary = {piece: index for index, piece in enumerate(pieces)}
        backend = Tokenizer(
            models.BPE(
                vocabulary,
                merges_of(pieces, spm.scores, spm.types),
                unk_token=unknown,
                fuse_unk=True,
                byte_fallback=spm.byte_fallback,
            )
        )
    else:
        scored = list(zip(pieces, spm.scores, strict=True))
        backend = Tokenizer(models.Unigram(scored, unk_id=spm.unknown, byte_fallback=spm.byte_fallback))
    rules: list[normalizers.Normalizer] = [normalizers.Precompiled(spm.charsmap)] if spm.charsmap else []
    if spm.squeeze_spaces:
        rules += [normalizers.Strip(left=scheme == "never", right=True), normalizers.Replace(Regex(" {2,}"), " ")]
    if rules:
        backend.normalizer = normalizers.Sequence(rules)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(MARK, prepend_scheme=scheme, split=False)
    steps = [decoders.Replace(MARK, " "), *([decoders.ByteFallback()] if spm.byte_fallback else []), decoders.Fuse()]
    backend.decoder = decoders.Sequence(steps if scheme == "never" else [*steps, decoders.Strip(" ", 1, 0)])
    return backend


def merges_of(pieces: Sequence[str], scores: Sequence[float], types: Sequence[int]) -> list[tuple[str, str]]:
    """Each way to make a piece of two others, those of the highest score first, and of equal ones those of the lowest id.

    Pieces that text is never joined to (controls, bytes, the unknown) take no part. Raises TokenizerError.
    """
    joined = {piece: index for index, piece in enumerate(pieces) if types[index] not in (CONTROL, BYTE, UNKNOWN)}
    merges: list[tuple[str, str]] = []
    for piece in sorted(joined, key=lambda piece: (-scores[joined[piece]], joined[piece])):
        splits = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
        merges += [split for split in splits if split[0] in joined and split[1] in joined]
        if len(merges) > MAX_MERGES:
            raise TokenizerError(f"a vocabulary of more than {MAX_MERGES} merges")
    return merges


class _Joiner:
    """Turns text, in which spaces are marks, into tokens."""

    def __init__(self, vocabulary: Mapping[str, int], scores: Sequence[float], unknown: str | None) -> None:
        self._ids, self._unknown = vocabulary, unknown
        self._costs = {token: -scores[index] for token, index in vocabulary.items()}
        # No token reaches over the start of a word, so words are tokenized by themselves, and remembered. One starts at a mark
        # behind any character but those that some token has in front of one.
        ahead = re.compile(rf".(?={MARK})", re.DOTALL)
        inside = {character for token in vocabulary if MARK in token for character in ahead.findall(token)}
        self._start = re.compile(rf"(?<=[^{re.escape(MARK + ''.join(sorted(inside)))}])(?={MARK})")
        self._known: dict[str, list[Token]] = {}

    def pre_tokenize(self, text: object) -> None:
        """What the library calls with a text that it has cut at its added tokens, and normalised."""
        text.tokenize(self.tokens)  # type: ignore[attr-defined]

    def tokens(self, text: str) -> list[Token]:
        return [token for word in self._start.split(text) for token in self._word(word)]

    def _word(self, word: str) -> list[Token]:
        known = self._known.get(word)
        if known is None:
            known = [token for piece in self.join(word) for token in self._tokens_of(piece)]
            if len(word) <= LONGEST_CACHED and len(self._known) < CACHED_WORDS:
                self._known[word] = known
        return known

    def _tokens_of(self, piece: str) -> list[Token]:
        """A piece's token; for a character without one, those of its bytes, or else the unknown token."""
        if piece in self._ids:
            return [Token(self._ids[piece], piece, (0, 0))]
        names = [_byte(value) for value in piece.encode("utf-8")]
        if self._unknown is not None and not all(name in self._ids for name in names):
            names = [self._unknown]
        return [Token(self._ids[name], name, (0, 0)) for name in names]

    def join(self, text: str) -> list[str]:
        """The pieces of a text: its characters, joined while two neighbours make a token."""
        count = len(text)
        ends = list(range(1, count + 1))  # of the piece that begins here; 0: none does
        before, after = list(range(-1, count - 1)), list(range(1, count + 1))
        queue: list[tuple[float, int, int, int]] = []

        def offer(left: int, right: int) -> None:
            if left >= 0 and right < count:
                cost = self._costs.get(text[left : ends[right]])
                if cost is not None:
                    heapq.heappush(queue, (cost, left, right, ends[right]))

        for i in range(count - 1):
            offer(i, i + 1)
        while queue:
            _, left, right, end = heapq.heappop(queue)
            if ends[left] != right or ends[right] != end:  # one of the two was joined to another meanwhile
                continue
            ends[left], ends[right], after[left] = end, 0, after[right]
            if after[right] < count:
                before[after[right]] = left
            offer(before[left], left)
            offer(left, after[left])
        return [text[i : ends[i]] for i in range(count) if ends[i]]

"""Reads a SentencePiece model (`tokenizer.model`): the fields of its protobuf that a tokenizer needs, each checked.

The layout is that of SentencePiece's sentencepiece_model.proto. A field that is absent has its default there.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bigrun.errors import TokenizerError

MOST_BYTES = 16 << 20  # the largest in use has 5 MB
MOST_PIECES = 1 << 20  # four times the most in use
MOST_SPLITS = 1 << 26  # of all pieces, squares of their characters: several times the most in use
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
UNIGRAM, BPE = 1, 2
KINDS = {3: "WORD", 4: "CHAR"}
TIKTOKEN = re.compile(rb"[A-Za-z0-9+/]+=* \d+\r?\n")


@dataclass(frozen=True)
class SentencePieceModel:
    """`charsmap` is the compiled normalisation, empty for none; the ids are None where the model has no such token."""

    pieces: tuple[str, ...]
    scores: tuple[float, ...]
    types: tuple[int, ...]
    kind: int  # UNIGRAM or BPE
    byte_fallback: bool
    unknown: int | None
    bos: int | None
    eos: int | None
    padding: int | None
    charsmap: bytes
    prefix: bool
    squeeze_spaces: bool


def parse(data: bytes) -> SentencePieceModel:
    """The model of a file's bytes. Raises TokenizerError, one line without the file's name."""
    if TIKTOKEN.match(data):
        raise TokenizerError("a tiktoken vocabulary (as Llama 3's original files have it), not a SentencePiece model")
    if data.lstrip()[:1] in (b"{", b"["):
        raise TokenizerError("JSON, not a SentencePiece model")
    pieces, scores, types = [], [], []
    trainer: dict[int, int | bytes] = {}
    rules: dict[int, int | bytes] = {}
    back: dict[int, int | bytes] = {}
    for number, value in _fields(data):
        if number == 1:
            piece, score, kind = _piece(_message(value))
            pieces.append(piece)
            scores.append(score)
            types.append(kind)
            if len(pieces) > MOST_PIECES:
                raise TokenizerError(f"a SentencePiece model of more than {MOST_PIECES} pieces")
        elif number in (2, 3, 5):
            (trainer, rules, back)[(2, 3, 5).index(number)].update(_fields(_message(value)))
    if not pieces:
        raise TokenizerError("not a SentencePiece model: it has no pieces")
    if len(set(pieces)) != len(pieces) or "" in pieces:
        raise TokenizerError("a SentencePiece model with a piece twice, or an empty one")
    if not all(map(math.isfinite, scores)):
        raise TokenizerError("a SentencePiece model with scores that are not finite")
    if sum(len(piece) ** 2 for piece in pieces) > MOST_SPLITS:
        raise TokenizerError("a SentencePiece model with pieces too long to be those of words")

    kind = _number(trainer, 3, UNIGRAM)
    if kind not in (UNIGRAM, BPE):
        raise TokenizerError(f"a SentencePiece model of the type {KINDS.get(kind, kind)}; supported: BPE and UNIGRAM")
    if _number(trainer, 24, 0):
        raise TokenizerError("a SentencePiece model with treat_whitespace_as_suffix, which is not done here")
    if not _number(rules, 5, 1):
        raise TokenizerError("a SentencePiece model without escape_whitespaces, which is not done here")
    if back.get(2):
        raise TokenizerError(
            "a SentencePiece model that denormalises its text (denormalizer_spec), which is not done here"
        )

    def token(field: int, default: int) -> int | None:
        index = _number(trainer, field, default)
        return index if 0 <= index < len(pieces) else None

    unknown = token(40, 0)
    if kind == UNIGRAM and unknown is None:
        raise TokenizerError(f"a SentencePiece model whose unk_id is none of its {len(pieces)} pieces")
    charsmap = rules.get(2, b"")
    if not isinstance(charsmap, bytes):
        raise TokenizerError("not a SentencePiece model: its precompiled_charsmap is no bytes")
    if charsmap:
        check_charsmap(charsmap)
    return SentencePieceModel(
        tuple(pieces),
        tuple(scores),
        tuple(types),
        kind,
        bool(_number(trainer, 35, 0)),
        unknown,
        token(41, 1),
        token(42, 2),
        token(43, -1),
        charsmap,
        bool(_number(rules, 3, 1)),
        bool(_number(rules, 4, 1)),
    )


def _piece(data: bytes) -> tuple[str, float, int]:
    text, score, kind = b"", 0.0, NORMAL
    for number, value in _fields(data):
        if number == 1:
            text = _message(value)
        elif number == 2 and isinstance(value, bytes) and len(value) == 4:
            (score,) = struct.unpack("<f", value)
        elif number == 3 and isinstance(value, int):
            kind = value
    if not NORMAL <= kind <= BYTE:
        raise TokenizerError(f"a SentencePiece model with a piece of the type {kind}")
    try:
        return text.decode("utf-8"), score, kind
    except UnicodeDecodeError as error:
        raise TokenizerError("a SentencePiece model with a piece that is not UTF-8") from error


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of each field of a message: whole numbers as such, all else as its bytes."""
    place, end = 0, len(data)
    while place < end:
        key, place = _varint(data, place)
        number, wire = key >> 3, key & 7
        value: int | bytes
        if wire == 0:
            value, place = _varint(data, place)
        else:
            if wire == 2:
                size, place = _varint(data, place)
            elif wire in (1, 5):
                size = 8 if wire == 1 else 4
            else:
                raise TokenizerError(f"not a SentencePiece model: a field of the wire type {wire}")
            if size > end - place:
                raise TokenizerError(
                    "not a SentencePiece model, or one that is cut short: a field reaches beyond its end"
                )
            value = data[place : place + size]
            place += size
        if not number:
            raise TokenizerError("not a SentencePiece model: a field with the number 0")
        yield number, value


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """(the number that is written from a place on, the place behind it)."""
    value = shift = 0
    while place < len(data) and shift < 70:
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
    raise TokenizerError("not a SentencePiece model, or one that is cut short: a number has no end")


def _message(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise TokenizerError("not a SentencePiece model: a number in the place of a message")
    return value


def _number(fields: dict[int, int | bytes], number: int, default: int) -> int:
    value = fields.get(number, default)
    if not isinstance(value, int):
        raise TokenizerError(f"not a SentencePiece model: its field {number} is no number")
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def check_charsmap(data: bytes) -> None:
    """TokenizerError for a compiled normalisation through which a text could lead beyond its ends.

    It is the size of a trie (a double array of 32-bit units, as Darts-clone lays it out), the trie, and the texts that it
    leads to, each with a NUL behind it. The library that follows it does not look where it steps.
    """
    size = int.from_bytes(data[:4], "little")
    if size % 4 or not 4 <= size <= len(data) - 4:
        raise TokenizerError("a SentencePiece model whose precompiled_charsmap is cut short")
    units = np.frombuffer(data, "<u4", size // 4, 4).astype(np.int64)
    texts = np.frombuffer(data, np.uint8, offset=4 + size)
    offsets = (units >> 10) << ((units & (1 << 9)) >> 6)
    leaves, labels, values = (units >> 8) & 1, units & (1 << 31 | 0xFF), units & (2**31 - 1)
    seen = np.zeros(len(units), bool)
    keys = np.arange(1, 256)
    nodes = np.array([offsets[0]])
    while len(nodes):
        if nodes.max() | 0xFF >= len(units):
            raise TokenizerError("a SentencePiece model whose precompiled_charsmap leads beyond its trie")
        found = []
        for some in np.array_split(nodes, len(nodes) // 4096 + 1):
            places = some[:, None] ^ keys
            found.append(places[labels[places] == keys])
        next_ones = np.unique(np.concatenate(found))
        next_ones = next_ones[~seen[next_ones]]
        seen[next_ones] = True
        nodes = next_ones ^ offsets[next_ones]
        ends = nodes[leaves[next_ones] == 1]
        if len(ends) and ends.max() >= len(units):
            raise TokenizerError("a SentencePiece model whose precompiled_charsmap leads beyond its trie")
        starts = values[ends]
        inside = starts[starts < len(texts)]
        if (starts > len(texts)).any() or (texts[inside] & 0xC0 == 0x80).any():
            raise TokenizerError("a SentencePiece model whose precompiled_charsmap leads beyond its texts")
    try:
        texts.tobytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError("a SentencePiece model whose precompiled_charsmap is not UTF-8") from error

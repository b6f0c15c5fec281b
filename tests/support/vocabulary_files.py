"""Writes the files that a tokenizer was made of before tokenizer.json: SentencePiece's model, and GPT-2's two."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

UNIGRAM, BPE = 1, 2
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
Piece = tuple[str | bytes, float, int]
BYTES: list[Piece] = [(f"<0x{value:02X}>", 0.0, BYTE) for value in range(256)]
SPECIAL: list[Piece] = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
JOINED = (
    "▁t", "he", "▁the", "in", "er", "▁a", "re", "on", "er.", "▁s", "en", "ing", "▁▁", "▁▁▁▁", "th", "the", "ere", "▁th", "n▁t",
    *"▁etaoinshrdlucmfwygpbvk.,\n", "é", "日", "fi",
)  # fmt: skip


def pieces(user: Sequence[str] = ("<tag>",), *, with_bytes: bool = True) -> list[Piece]:
    """A vocabulary like Llama's: specials, bytes, then words, the best first."""
    some = [*SPECIAL, *(BYTES if with_bytes else ()), *((text, 0.0, USER_DEFINED) for text in user)]
    return some + [(text, -float(i), NORMAL) for i, text in enumerate(JOINED)]


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    parts = []
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def chunk(field: int, data: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(data)) + data


def piece(text: str | bytes, score: float, kind: int) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return chunk(1, chunk(1, data) + varint(2 << 3 | 5) + struct.pack("<f", score) + number(3, kind))


def model_file(
    some: Sequence[Piece],
    kind: int = BPE,
    *,
    trainer: Mapping[int, int] | None = None,
    rules: Mapping[int, int] | None = None,
    charsmap: bytes = b"",
    more: bytes = b"",
) -> bytes:
    """The bytes of a tokenizer.model. `trainer` and `rules` are fields by number; identity, nothing squeezed, unless said."""
    train = {3: kind, 35: int(any(kind == BYTE for _, _, kind in some)), **(trainer or {})}
    normal = {4: 0, **(rules or {})}
    parts = [piece(*one) for one in some]
    parts.append(chunk(2, b"".join(number(*field) for field in train.items())))
    parts.append(chunk(3, chunk(2, charsmap) + b"".join(number(*field) for field in normal.items())))
    return b"".join(parts) + more


def charsmap_of(rules: Mapping[str, str]) -> bytes:
    """A compiled normalisation: a double array in which every node has a block of 256 units to itself, then the texts."""
    blocks: dict[bytes, int] = {b"": 0}
    for key in rules:
        data = key.encode()
        for end in range(1, len(data) + 1):
            blocks.setdefault(data[:end], len(blocks))
    units, texts = [0] * (256 * (len(blocks) + 1)), bytearray()
    places = {b"": 0} | {path: (blocks[path[:-1]] + 1) * 256 + path[-1] for path in blocks if path}
    for path, block in blocks.items():
        label, base = path[-1] if path else 0, (block + 1) * 256
        units[places[path]] |= label | (places[path] ^ base) << 10
    for key, text in rules.items():
        path = key.encode()
        units[places[path]] |= 1 << 8
        units[(blocks[path] + 1) * 256] = 1 << 31 | len(texts)
        texts += text.encode() + b"\0"
    trie = struct.pack(f"<{len(units)}I", *units)
    return struct.pack("<I", len(trie)) + trie + bytes(texts)


def write(folder: Path, **files: Any) -> Path:
    """JSON files by their names without `.json`; and `model`, the bytes of tokenizer.model."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if name == "model":
            (folder / "tokenizer.model").write_bytes(content)
        elif content is not None:
            (folder / f"{name}.json").write_text(json.dumps(content), "utf-8")
    return folder


def write_gpt2(folder: Path, backend: tokenizers.Tokenizer) -> None:
    """vocab.json and merges.txt of a byte-level tokenizer, whose added tokens are in its vocabulary."""
    model = json.loads(backend.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), "utf-8")
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs, ""]), "utf-8")

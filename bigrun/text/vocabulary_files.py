"""Which files of a folder its tokenizer is read from, in this order; where there are none, what to say."""

from pathlib import Path

WHOLE, SENTENCEPIECE, VOCABULARY, MERGES = "tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt"
ADDED = "added_tokens.json"  # beside the last three
OTHERS = ("tekken.json", "tiktoken.model", "spiece.model", "sentencepiece.bpe.model", "qwen.tiktoken", "vocab.txt")
MISSING = (
    f"has no tokenizer: neither {WHOLE}, nor {SENTENCEPIECE}, nor {VOCABULARY} with {MERGES};"
    " put the model's own there, or save one with transformers"
)


def has_tokenizer(folder: Path) -> bool:
    return any((folder / name).exists() for name in (WHOLE, SENTENCEPIECE, VOCABULARY, MERGES))


def no_tokenizer(folder: Path) -> str:
    """MISSING, and which tokenizer there is that is not read."""
    other = next((name for name in OTHERS if (folder / name).exists()), None)
    return MISSING if other is None else f"{MISSING} ({other} is not read)"

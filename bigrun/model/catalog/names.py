"""Names of models as people type them: llama3.1:70b, qwen3-235b, gemma_2_9b, "Llama 2 7B chat".

A name is read as words. Signs between words do not matter, nor does one between letters and a version (llama3.1 is
llama-3.1); what is left out at the end (-a22b of qwen3-235b-a22b) may be, where only one model is meant.
"""

import re
from collections.abc import Iterable

MAKERS = ("meta", "hf", "latest")  # the makers, the form of the files, and the tag of other tools for "any"
VERSIONED = re.compile(r"([a-z]+)([0-9].*)", re.ASCII)  # letters and what follows them without a sign
SIZE = re.compile(r"([0-9]{1,4}(?:\.[0-9]{1,2})?)([mbt])", re.ASCII)
UNITS = {"m": 10**6, "b": 10**9, "t": 10**12}
ROUNDED = 0.03  # of the parameters: how far from them a size may be that people say
# What other tools append for a form of the weights, at the end of a name: Q4_K_M, iq2_xs, awq, 4bit, fp16 ...
FORMS = re.compile(
    r"[-_:.\s](i?q[2-8](?:_[0-9a-z]+){0,3}|gguf|ggml|gptq|awq|exl[23]|mlx|bnb|nf4|mxfp4|fp4|fp8|int[348]|w[48]a(?:8|16)|[23468]-?bits?"
    r"|f16|f32|fp16|fp32|bf16)(?=$|[-_:\s])",
    re.IGNORECASE | re.ASCII,
)


def words(name: str) -> tuple[str, ...]:
    """The words of a name: ("llama", "3.1", "70b") of llama3.1:70b."""
    parts: list[str] = []
    for word in re.split(r"[-_:\s]+", name.strip().lower()):
        versioned = VERSIONED.fullmatch(word)
        parts += versioned.groups() if versioned else [word]
    return tuple(part for part in parts if part and part not in MAKERS)


def form(name: str) -> str:
    """The form of the weights that a name asks for, such as q4_K_M; "" if none."""
    match = FORMS.search(name)
    return match[1] if match else ""


def completed(asked: tuple[str, ...], known: Iterable[tuple[tuple[str, ...], int]]) -> list[tuple[str, ...]]:
    """Of (words, parameters) those that begin as what was asked for; a size at its end is that of the model as people round
    it, whether its name has it or not."""
    if not asked or not asked[0][0].isalpha():
        return []
    known = list(known)
    found = [name for name, _ in known if name[: len(asked)] == asked]
    size = SIZE.fullmatch(asked[-1])
    if size and len(asked) > 1:
        count = float(size[1]) * UNITS[size[2]]
        begin = asked[:-1]
        sized = [n for n, parameters in known if n[: len(begin)] == begin and asked[-1] in n[len(begin) :]]
        near = [n for n, parameters in known if n[: len(begin)] == begin and abs(parameters / count - 1) <= ROUNDED]
        found = found or sized or near
    return found

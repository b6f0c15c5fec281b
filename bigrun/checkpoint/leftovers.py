"""What published checkpoints hold beside the weights of a model, and how quantised ones are told, by their names."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

# What the code computes anew, or measures as it comes; last names of tensors, and why they are of no use.
LEFTOVERS = tuple(
    (re.compile(rf"(?:^|\.)(?:{pattern})$"), why)
    for pattern, why in (
        (r"(?:rotary_emb\.)?(?:\w*inv_freq|cos_cached|sin_cached)|rope_freqs\.weight", "rotary tables, computed anew"),
        (r"(?:attn|attention)\.masked_bias|position_ids", "masks and positions, computed anew"),
        (r"(?:input|output|q|k|v|prob)_scale", "scales of activations, which are measured as they come"),
        (r"v_head\.[\w.]+", "a value head, of training"),
        (r"version", "the version of a file"),
    )
)
MASK = re.compile(r"(?:^|\.)(?:attn|attention)\.bias$")  # a causal mask, unless it is a vector


def useless(name: str, shape: tuple[int, ...]) -> str:
    """Why a tensor of this name is of no use to a model; "" for what may be a weight."""
    if MASK.search(name) and len(shape) != 1:
        return "masks and positions, computed anew"
    return next((why for pattern, why in LEFTOVERS if pattern.search(name)), "")


# Last names of the tensors of quantised formats, and what writes them.
QUANTISED = (
    (re.compile(r"\.(?:qweight|qzeros|g_idx)$"), "GPTQ or AWQ"),
    (re.compile(r"\.SCB$"), "bitsandbytes, 8 bits"),
    (re.compile(r"\.(?:quant_state\.bitsandbytes__\w+|weight\.absmax)$"), "bitsandbytes, 4 bits"),
    (re.compile(r"\.weight_packed$"), "compressed-tensors"),
    (re.compile(r"_(?:blocks|scales)$"), "MXFP4"),
)
READ = "bigrun reads 16 and 32 bits, float8 with its scales, and GGUF: take the model that this one was made from"


def quantised(config: Mapping[str, Any], names: Iterable[str]) -> str:
    """How a checkpoint is quantised, by its configuration or by its tensors' names; "" where neither says that it is, and for
    float8, which is read."""
    declared = config.get("quantization_config", config.get("compression_config"))
    if isinstance(declared, Mapping) and declared.get("quant_method") != "fp8":
        return _declared(declared)
    marks = (how for name in names for pattern, how in QUANTISED if pattern.search(name))
    return next(marks, "")


def _declared(declared: Mapping[str, Any]) -> str:
    """quantization_config in words: method, bits, size of groups, as far as it says them."""
    method = declared.get("quant_method", declared.get("quant_algo", "an unnamed method"))
    words = [f"{method!s:.40}"]
    bits = declared.get("bits", 4 if declared.get("load_in_4bit") else 8 if declared.get("load_in_8bit") else None)
    if isinstance(bits, int):
        words.append(f"{bits} bits")
    if isinstance(group := declared.get("group_size"), int) and group > 0:
        words.append(f"groups of {group}")
    return ", ".join(words)

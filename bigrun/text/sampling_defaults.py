"""How a model asks to be sampled: its generation_config.json, or the `general.sampling.*` of a GGUF file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bigrun.errors import TokenizerError
from bigrun.text.untrusted import field as read_field
from bigrun.text.untrusted import read_object

MOST_TOP_K = 1 << 31  # beyond any vocabulary
MOST_TEMPERATURE = 1_000_000  # beyond any use, and what can be computed with


@dataclass(frozen=True)
class Defaults:
    """values  of `temperature` (0: greedy), `top_k`, `top_p`, `min_p` and `repetition_penalty`: the temperature, and what
               limits or changes anything
    notes   a line for each setting of the model that would change its text and is not done here"""

    values: dict[str, float] = field(default_factory=lambda: {"temperature": 0.0})
    notes: tuple[str, ...] = ()


# What transformers' generate takes where do_sample is true and the file is silent, and what limits nothing.
USUAL = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
NEUTRAL = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}

# Fields that are not done, by when they are of effect, with a value that has none; null and empty lists have none either.
ALWAYS = {
    "num_beams": 1, "num_beam_groups": 1, "no_repeat_ngram_size": 0, "bad_words_ids": None, "sequence_bias": None,
    "suppress_tokens": None, "begin_suppress_tokens": None, "forced_bos_token_id": None, "forced_eos_token_id": None,
    "force_words_ids": None, "constraints": None, "min_length": 0, "min_new_tokens": 0, "guidance_scale": 1.0,
    "exponential_decay_length_penalty": None, "diversity_penalty": 0.0, "dola_layers": None, "token_healing": False,
    "watermarking_config": None, "stop_strings": None, "max_time": None,
}  # fmt: skip
SAMPLED = {"typical_p": 1.0, "top_h": None, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0}
GREEDY = {"penalty_alpha": 0.0}

GGUF = "general.sampling."
GGUF_NAMES = {
    "temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "penalty_repeat": "repetition_penalty",
}  # fmt: skip
# The others that llama.cpp or Ollama read, with what switches them off; None: they have no effect alone.
GGUF_OFF: dict[str, Any] = {
    "xtc_probability": 0.0, "xtc_threshold": None, "mirostat": 0, "mirostat_tau": None, "mirostat_eta": None,
    "sequence": "", "typ_p": 1.0, "penalty_freq": 0.0, "penalty_present": 0.0,
}  # fmt: skip


def from_folder(folder: Path) -> Defaults:
    """What transformers' `generate` would do with the folder's generation_config.json; greedy where there is none.

    Raises TokenizerError for a value that no sampling can have.
    """
    path = folder / "generation_config.json"
    fields = read_object(path) or {}
    try:
        sampled = read_field(fields, "do_sample", bool) or False
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from error
    said = {name: _checked(f"{path}: {name}", name, fields[name]) for name in USUAL if fields.get(name) is not None}
    others = ALWAYS | (SAMPLED if sampled else GREEDY)
    notes = [
        f"{path.name}: {name} is {fields[name]!r:.80}, which is not done"
        for name, off in others.items()
        if fields.get(name) not in (None, [], {}, off)
    ]
    return Defaults(_values(USUAL | said if sampled else said | {"temperature": 0.0}), tuple(notes))


def from_gguf(metadata: Mapping[str, Any]) -> Defaults:
    """What a GGUF file's `general.sampling.*` say; greedy where they name no temperature and no limit.

    Limits without a temperature are of a temperature of 1: what the file does not say is left as the model has it.
    Raises TokenizerError for a value that no sampling can have.
    """
    fields = {key.removeprefix(GGUF): _written(value) for key, value in metadata.items() if key.startswith(GGUF)}
    said = {ours: _checked(GGUF + name, ours, fields[name]) for name, ours in GGUF_NAMES.items() if name in fields}
    limited = said.keys() - {"repetition_penalty"}
    said.setdefault("temperature", 1.0 if limited else 0.0)
    span = fields.get("penalty_last_n", -1)
    if span == 0:  # tokens that it looks at
        said.pop("repetition_penalty", None)
    notes = []
    if said.get("repetition_penalty", 1.0) != 1.0 and span != -1:
        notes.append(f"{GGUF}penalty_last_n is {span!r:.80}, which is not done: the penalty is for all tokens")
    for name in sorted(fields.keys() - GGUF_NAMES.keys() - {"penalty_last_n"}):
        if name not in GGUF_OFF:
            notes.append(f"{GGUF + name!r:.80} is {fields[name]!r:.80}, which is not known here")
        elif GGUF_OFF[name] not in (None, fields[name]):
            notes.append(f"{GGUF}{name} is {fields[name]!r:.80}, which is not done")
    return Defaults(_values(said), tuple(notes))


def _values(said: Mapping[str, float]) -> dict[str, float]:
    """The temperature, and what is of effect."""
    greedy = said["temperature"] == 0 or said.get("top_p") == 0  # which keeps the likeliest token alone
    names = ["repetition_penalty"] if greedy else NEUTRAL
    effects = {name: said[name] for name in names if said.get(name, NEUTRAL[name]) != NEUTRAL[name]}
    return {"temperature": 0.0 if greedy else said["temperature"], **effects}


def _checked(where: str, name: str, value: Any) -> float:
    """The number that a file of a stranger has for a parameter."""
    if name == "top_k":
        if not isinstance(value, int) or isinstance(value, bool) or not -1 <= value < MOST_TOP_K:
            raise TokenizerError(f"{where} is {value!r:.80}; it must be a whole number, 0 or -1 for no limit")
        return max(value, 0)
    number = math.nan if isinstance(value, bool) or not isinstance(value, int | float) else value
    sound, words = {
        "temperature": (0 <= number <= MOST_TEMPERATURE, f"from 0 (greedy) to {MOST_TEMPERATURE}"),
        "top_p": (0 <= number <= 1, "from 0 to 1"),
        "min_p": (0 <= number <= 1, "from 0 to 1"),
        "repetition_penalty": (0 < number <= MOST_TEMPERATURE, f"above 0 and at most {MOST_TEMPERATURE}"),
    }[name]
    if not sound:
        raise TokenizerError(f"{where} is {value!r:.80}; it must be {words}")
    return float(number)


def _written(value: Any) -> Any:
    """A float32 as whoever wrote it saw it: 0.95, not 0.949999988079071."""
    if isinstance(value, float) and abs(value) < 1e30:
        single = np.float32(value)
        return float(str(single)) if float(single) == value else value
    return value

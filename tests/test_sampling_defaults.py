"""What a model's files ask of sampling is what transformers would do with them, and what is not done is noted."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bigrun.errors import TokenizerError
from bigrun.text.sampling_defaults import ALWAYS, GREEDY, NEUTRAL, SAMPLED, USUAL, Defaults, from_folder, from_gguf

# Fields of transformers' GenerationConfig without effect on what is generated here, by why.
HARMLESS = {
    "how much is generated": ("max_length", "max_new_tokens", "num_return_sequences"),
    "of beams, which are noted": ("early_stopping", "length_penalty"),
    "of encoders": ("encoder_no_repeat_ngram_size", "encoder_repetition_penalty", "decoder_start_token_id"),
    "which token is which": ("pad_token_id", "bos_token_id", "eos_token_id"),
    "normalises or mends logits": ("renormalize_logits", "remove_invalid_values"),
    "caches and compiling": (
        "use_cache", "cache_implementation", "cache_config", "max_cache_len", "compile_config", "disable_compile",
        "prefill_chunk_size", "low_memory", "continuous_batching_config",
    ),
    "what is returned": (
        "output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate",
    ),
    "guesses ahead, of a helper that is given": (
        "use_mtp", "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold",
        "prompt_lookup_num_tokens", "max_matching_ngram_size", "assistant_early_exit", "assistant_lookbehind",
        "target_lookbehind", "assistant_ensemble_weight", "speculation_type",
    ),
    "of the file": ("_from_model_config", "transformers_version"),
}  # fmt: skip


def folder_with(folder: Path, fields: dict[str, Any] | str) -> Path:
    text = fields if isinstance(fields, str) else json.dumps(fields)
    (folder / "generation_config.json").write_text(text)
    return folder


@cache
def tiny_model() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=100, eos_token_id=2, bos_token_id=1, pad_token_id=0, **sizes))


def processors(fields: dict[str, Any]) -> dict[str, Any]:
    """What transformers' generate does to logits with these fields, by the class that does it; "greedy" or "sampled" too."""
    import torch
    from transformers import GenerationConfig

    model = tiny_model()
    model.generation_config = GenerationConfig(eos_token_id=2, **fields)
    config, _ = model._prepare_generation_config(None)
    model._prepare_special_tokens(config, device=torch.device("cpu"))
    done = model._get_logits_processor(config, input_ids_seq_length=3, device="cpu")
    mode = "sampled" if config.do_sample else "greedy"
    return {type(one).__name__: one for one in done} | {mode: None}


FIELDS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "greedy": {"do_sample": False, "temperature": 0.6, "top_p": 0.9},
    "greedy with a penalty": {"repetition_penalty": 1.1},
    "sampling": {"do_sample": True},
    "Qwen3's": {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95},
    "Qwen2.5's": {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05},
    "Llama 3's": {"do_sample": True, "temperature": 0.6, "top_p": 0.9},
    "no limits": {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0, "repetition_penalty": 1.0},
    "min_p": {"do_sample": True, "top_k": 0, "min_p": 0.05},
    "nulls": {"do_sample": True, "temperature": None, "top_k": None, "top_p": None, "min_p": None},
    "null": {"do_sample": None, "repetition_penalty": None},
}


@pytest.mark.parametrize("name", FIELDS)
def test_the_values_are_those_that_transformers_computes_with(name: str, tmp_path: Path) -> None:
    theirs = processors(FIELDS[name])
    defaults = from_folder(folder_with(tmp_path, FIELDS[name]))
    ours = defaults.values
    assert defaults.notes == ()
    assert ("greedy" in theirs) == (ours["temperature"] == 0)
    expected: dict[str, float] = {"temperature": 0.0 if "greedy" in theirs else 1.0}
    for kind, attribute, parameter in (
        ("TemperatureLogitsWarper", "temperature", "temperature"),
        ("TopKLogitsWarper", "top_k", "top_k"),
        ("TopPLogitsWarper", "top_p", "top_p"),
        ("MinPLogitsWarper", "min_p", "min_p"),
        ("RepetitionPenaltyLogitsProcessor", "penalty", "repetition_penalty"),
    ):
        if kind in theirs:
            expected[parameter] = getattr(theirs[kind], attribute)
    assert ours == expected


# Settings that transformers obeys and bigrun does not, each with a value of effect.
NOT_DONE: dict[str, dict[str, Any]] = {
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 3},
    "bad_words_ids": {"bad_words_ids": [[5]]},
    "sequence_bias": {"sequence_bias": [[[5], 1.0]]},
    "suppress_tokens": {"suppress_tokens": [5]},
    "begin_suppress_tokens": {"begin_suppress_tokens": [5]},
    "forced_bos_token_id": {"forced_bos_token_id": 5},
    "forced_eos_token_id": {"forced_eos_token_id": 5, "max_length": 9},
    "min_length": {"min_length": 4},
    "min_new_tokens": {"min_new_tokens": 4},
    "guidance_scale": {"guidance_scale": 1.5},
    "exponential_decay_length_penalty": {"exponential_decay_length_penalty": [5, 1.1]},
    "watermarking_config": {"watermarking_config": {"greenlist_ratio": 0.25}},
    "typical_p": {"do_sample": True, "typical_p": 0.9},
    "top_h": {"do_sample": True, "top_h": 0.5},
    "epsilon_cutoff": {"do_sample": True, "epsilon_cutoff": 0.001},
    "eta_cutoff": {"do_sample": True, "eta_cutoff": 0.001},
}


@pytest.mark.parametrize("name", NOT_DONE)
def test_what_transformers_does_beyond_that_is_noted(name: str, tmp_path: Path) -> None:
    fields = NOT_DONE[name]
    usual = processors({"do_sample": fields.get("do_sample")})
    assert processors(fields).keys() - usual.keys()
    assert processors({**fields, name: None}).keys() == usual.keys()
    (note,) = from_folder(folder_with(tmp_path, fields)).notes
    assert note == f"generation_config.json: {name} is {fields[name]!r}, which is not done"
    assert from_folder(folder_with(tmp_path, {**fields, name: None})).notes == ()
    assert from_folder(folder_with(tmp_path, {**fields, name: (ALWAYS | SAMPLED)[name]})).notes == ()


def test_what_is_of_sampling_is_not_noted_where_the_choice_is_greedy(tmp_path: Path) -> None:
    fields = {"typical_p": 0.9, "top_h": 0.5, "epsilon_cutoff": 0.1, "eta_cutoff": 0.1}
    assert processors(fields).keys() == processors({}).keys()
    assert from_folder(folder_with(tmp_path, fields)) == Defaults()
    fields = {"penalty_alpha": 0.6, "top_k": 4}
    assert len(from_folder(folder_with(tmp_path, fields)).notes) == 1
    assert from_folder(folder_with(tmp_path, {"do_sample": True, **fields})).notes == ()


def test_beams_and_the_like_are_noted(tmp_path: Path) -> None:
    fields = {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5, "stop_strings": "x\x1b", "max_time": 1.0}
    fields |= {"token_healing": True, "dola_layers": "low", "force_words_ids": [[1]], "constraints": ["x"]}
    notes = from_folder(folder_with(tmp_path, fields)).notes
    assert {note.split()[1] for note in notes} == fields.keys()
    assert all(note.isprintable() and len(note) < 200 for note in notes)


def test_every_field_of_transformers_configuration_is_accounted_for() -> None:
    from transformers import GenerationConfig

    harmless = [name for names in HARMLESS.values() for name in names]
    noted = ALWAYS | SAMPLED | GREEDY
    every = [*harmless, *noted, *USUAL, "do_sample"]
    assert len(every) == len(set(every))
    theirs = set(GenerationConfig().to_dict())
    assert theirs <= set(every), theirs - set(every)


def test_fields_without_effect_are_transformers_own_defaults() -> None:
    from transformers import GenerationConfig

    theirs = GenerationConfig._get_default_generation_params()
    for name, value in (ALWAYS | SAMPLED | GREEDY | USUAL).items():
        if theirs.get(name) is not None:
            assert value == theirs[name], name


def test_a_folder_without_the_file_is_greedy(tmp_path: Path) -> None:
    assert from_folder(tmp_path) == Defaults({"temperature": 0.0}, ())


# (fields, the values): what transformers refuses or that is written for other tools.
READ: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    "a temperature of 0": ({"do_sample": True, "temperature": 0.0, "top_p": 0.9}, {"temperature": 0.0}),
    "a whole temperature": ({"do_sample": True, "temperature": 2, "top_k": 0}, {"temperature": 2.0}),
    "no limit as vLLM has it": ({"do_sample": True, "top_k": -1}, {"temperature": 1.0}),
    "the likeliest alone": ({"do_sample": True, "top_p": 0, "min_p": 0.1}, {"temperature": 0.0}),
    "the likeliest alone, with a penalty": (
        {"do_sample": True, "top_p": 0.0, "repetition_penalty": 2}, {"temperature": 0.0, "repetition_penalty": 2.0},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_what_other_tools_write(name: str, tmp_path: Path) -> None:
    fields, values = READ[name]
    assert from_folder(folder_with(tmp_path, fields)).values == values


BAD: dict[str, list[Any]] = {
    "temperature": [-0.1, "0.6", True, [1], {}, 1e9, 10**400, float("nan"), float("inf")],
    "top_k": [-2, 1.5, 50.0, "50", True, 1 << 31, 10**400, float("nan")],
    "top_p": [-0.1, 1.01, "0.9", False, float("nan"), float("inf")],
    "min_p": [-0.1, 1.01, "0.05", True, float("nan")],
    "repetition_penalty": [0, 0.0, -1.0, "1.1", True, float("nan"), float("inf"), 10**400],
}
BAD_CASES = [(name, value) for name, values in BAD.items() for value in values]


@pytest.mark.parametrize(("name", "value"), BAD_CASES, ids=[f"{name} {value!r:.12}" for name, value in BAD_CASES])
def test_a_value_that_no_sampling_can_have_names_its_file_and_field(name: str, value: Any, tmp_path: Path) -> None:
    for sampled in (True, False):
        with pytest.raises(TokenizerError, match=rf"generation_config.json: {name} is .*; it must be") as caught:
            from_folder(folder_with(tmp_path, {"do_sample": sampled, name: value}))
        assert len(str(caught.value)) < 400
    key = {"temperature": "temp", "repetition_penalty": "penalty_repeat"}.get(name, name)
    with pytest.raises(TokenizerError, match=rf"general.sampling.{key} is .*; it must be"):
        from_gguf({f"general.sampling.{key}": value})


@pytest.mark.parametrize("text", ["[]", "{", '{"do_sample": "yes"}', '{"do_sample": 1}'])
def test_a_file_of_another_form_is_refused_by_name(text: str, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"generation_config.json"):
        from_folder(folder_with(tmp_path, text))


# Keys after `general.sampling.`, the values, and the settings that are noted.
GGUF: dict[str, tuple[dict[str, Any], dict[str, float], list[str]]] = {
    "nothing": ({}, {"temperature": 0.0}, []),
    "Qwen3's": (
        {"temp": float(np.float32(0.6)), "top_k": 20, "top_p": float(np.float32(0.95))},
        {"temperature": 0.6, "top_k": 20, "top_p": 0.95}, [],
    ),
    "all": (
        {"temp": 0.5, "top_k": 20, "top_p": 0.75, "min_p": 0.125, "penalty_repeat": 1.25},
        {"temperature": 0.5, "top_k": 20, "top_p": 0.75, "min_p": 0.125, "repetition_penalty": 1.25}, [],
    ),
    "limits alone": ({"top_p": 0.75}, {"temperature": 1.0, "top_p": 0.75}, []),
    "a penalty alone": ({"penalty_repeat": 1.25}, {"temperature": 0.0, "repetition_penalty": 1.25}, []),
    "a temperature of 0": ({"temp": 0.0, "top_k": 20}, {"temperature": 0.0}, []),
    "no limits": ({"temp": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "penalty_repeat": 1.0}, {"temperature": 1.0}, []),
    "a penalty for some tokens": (
        {"penalty_repeat": 1.25, "penalty_last_n": 64}, {"temperature": 0.0, "repetition_penalty": 1.25}, ["penalty_last_n"],
    ),
    "a penalty for all tokens": (
        {"penalty_repeat": 1.25, "penalty_last_n": -1}, {"temperature": 0.0, "repetition_penalty": 1.25}, [],
    ),
    "a penalty for none": ({"penalty_repeat": 1.25, "penalty_last_n": 0}, {"temperature": 0.0}, []),
    "no penalty": ({"penalty_repeat": 1.0, "penalty_last_n": 64}, {"temperature": 0.0}, []),
    "others": (
        {"temp": 1.0, "mirostat": 2, "mirostat_tau": 5.0, "xtc_probability": 0.5, "xtc_threshold": 0.1, "sequence": "kt"},
        {"temperature": 1.0}, ["mirostat", "sequence", "xtc_probability"],
    ),
    "others, off": (
        {"mirostat": 0, "mirostat_eta": 0.1, "xtc_probability": 0.0, "xtc_threshold": 0.1, "typ_p": 1.0, "penalty_freq": 0.0},
        {"temperature": 0.0}, [],
    ),
    "unknown": ({"new\x1b": 1}, {"temperature": 0.0}, ["'general.sampling.new\\x1b'"]),
}  # fmt: skip


@pytest.mark.parametrize("name", GGUF)
def test_what_a_gguf_file_asks(name: str) -> None:
    keys, values, noted = GGUF[name]
    metadata = {f"general.sampling.{key}": value for key, value in keys.items()}
    defaults = from_gguf({"general.architecture": "llama", "tokenizer.ggml.model": "gpt2", **metadata})
    assert defaults.values == values
    assert [note.split(" is ")[0].removeprefix("general.sampling.") for note in defaults.notes] == noted
    assert all(note.isprintable() for note in defaults.notes)


def test_what_limits_nothing_is_left_out() -> None:
    keys = {"temp": 0.5, **{name: value for name, value in NEUTRAL.items() if name != "repetition_penalty"}}
    assert from_gguf({f"general.sampling.{key}": value for key, value in keys.items()}).values == {"temperature": 0.5}

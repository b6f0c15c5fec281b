"""Calls of the Python API that name what there is not: bigrun's own error, with the name that is meant."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from difflib import get_close_matches
from functools import wraps
from typing import ParamSpec, TypeVar

from bigrun.errors import CallError

P = ParamSpec("P")
R = TypeVar("R")

# Keywords of other libraries (transformers, accelerate, llama.cpp's bindings, vLLM, exllama, OpenAI's) → what to do here.
ELSEWHERE = {
    **dict.fromkeys(("max_tokens", "max_length", "n_predict", "num_predict", "max_completion_tokens"), "max_new_tokens"),
    **dict.fromkeys(("repeat_penalty", "rep_pen"), "repetition_penalty"),
    **dict.fromkeys(("stop_strings", "stop_sequences", "stop_words", "stops"), "stop"),
    **dict.fromkeys(("temp",), "temperature"),
    **dict.fromkeys(("random_seed", "manual_seed", "generator"), "seed"),
    **dict.fromkeys(("input_ids", "inputs", "prompts", "text", "texts", "messages", "prompt_token_ids"), "prompt"),
    **dict.fromkeys(("chat_template_kwargs", "template_kwargs"), "template_args"),
    **dict.fromkeys(("n_ctx", "ctx_size", "max_seq_len", "max_seq_length", "max_model_len", "max_context"), "context"),
    **dict.fromkeys(("n_threads", "num_threads"), "threads"),
    **dict.fromkeys(("model", "model_path", "model_name", "pretrained_model_name_or_path", "repo_id", "path"), "model_id"),
    **dict.fromkeys(("max_num_seqs", "batch_size", "max_batch_size"), "batch"),
    **dict.fromkeys(("torch_dtype", "dtype", "quantization", "precision"), "weights"),
    **dict.fromkeys(("kv_cache_dtype", "cache_implementation", "type_k", "type_v"), "kv"),
    **dict.fromkeys(("llm_int8_threshold",), "threshold"),
    **dict.fromkeys(("llm_int8_skip_modules", "modules_to_not_convert"), "skip"),
}  # fmt: skip
ADVICE = {
    "do_sample": "temperature above 0 samples, 0 takes the likeliest token",
    "streamer": "stream() gives the pieces as they come",
    "stream": "stream() gives the pieces as they come",
    "num_return_sequences": "give the same prompt several times in a list, with a temperature",
    "n": "give the same prompt several times in a list, with a temperature",
    "num_beams": "beam search is not done",
    "system": 'give messages, the first one {"role": "system", "content": ...}',
    "system_prompt": 'give messages, the first one {"role": "system", "content": ...}',
    "device_map": "the plan says what goes where: max_memory gives budgets, plan= takes a plan",
    "device": "the plan says what goes where: gpus and cpu give budgets",
    "n_gpu_layers": "the plan says what goes where: gpus and cpu give budgets",
    "ngl": "the plan says what goes where: gpus and cpu give budgets",
    "tensor_split": "the plan says what goes where: max_memory gives budgets",
    "tensor_parallel_size": "the plan says what goes where: gpus gives budgets",
    "gpu_memory_utilization": "max_memory gives budgets, in bytes",
    "offload_folder": "what fits nowhere else would be on the disk: disk gives its budget",
    "load_in_8bit": 'weights="int8" is the default',
    "load_in_4bit": "4-bit weights are not supported; weights are int8, 16bit or float32",
    "quantization_config": "weights, mode, threshold and skip say how a model is quantised",
    "trust_remote_code": "code of a model is never run",
    "cache_dir": "cache keeps int8 conversions; the hub's own cache goes where HF_HOME says",
    "token": "the hub's token is read from HF_TOKEN",
    "use_auth_token": "the hub's token is read from HF_TOKEN",
    "verbose": "progress=False silences it",
}


def checked_call(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Have a public function refuse arguments that it does not take with CallError, under its `name`."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        taken = [parameter for parameter in signature.parameters if parameter != "self"]

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            for keyword in kwargs:
                if keyword not in taken:
                    raise CallError(f"{name} has no {keyword}{_meant(keyword, taken)}")
            try:
                signature.bind(*args, **kwargs)
            except TypeError as error:
                raise CallError(f"{name}: {error}; it takes {', '.join(taken)}") from error
            return function(*args, **kwargs)

        return call

    return decorate


def _meant(keyword: str, taken: list[str]) -> str:
    """What is meant by a keyword, where that can be told."""
    if (here := ELSEWHERE.get(keyword)) in taken:
        return f": it is {here} here"
    if keyword in ADVICE:
        return f": {ADVICE[keyword]}"
    close = get_close_matches(keyword, taken, 1)
    return f"; {close[0]}?" if close else f"; it takes {', '.join(taken)}"

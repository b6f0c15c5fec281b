"""Well-known models by short name: what to plan without a file or a network, and where to fetch what can be run.

A configuration here holds the fields of the published `config.json` that decide shapes; `published` is the parameter
count that its makers, or its safetensors index, state, and a test counts it again.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from bigrun.errors import CallError
from bigrun.model.families import spec_from_config
from bigrun.model.spec import ModelSpec


@dataclass(frozen=True)
class Entry:
    """`repo` is the Hugging Face id, empty where the weights are published nowhere to fetch."""

    name: str
    repo: str
    config: Mapping[str, Any]
    published: int | None
    source: str

    def spec(self) -> ModelSpec:
        return spec_from_config(self.config, self.name, f"catalog: {self.name}")


def _llama(vocab: int, hidden: int, inter: int, layers: int, heads: int, kv: int, **more: Any) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": inter,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "max_position_embeddings": 4096,
        "torch_dtype": "bfloat16",
        **more,
    }


def _bloom(hidden: int, layers: int, heads: int, dtype: str) -> dict[str, Any]:
    return {
        "architectures": ["BloomForCausalLM"],
        "vocab_size": 250880,
        "hidden_size": hidden,
        "n_layer": layers,
        "n_head": heads,
        "seq_length": 2048,
        "torch_dtype": dtype,
    }


def _opt(hidden: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "architectures": ["OPTForCausalLM"],
        "vocab_size": 50272,
        "hidden_size": hidden,
        "ffn_dim": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 2048,
        "torch_dtype": "float16",
    }


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LONG = {"max_position_embeddings": 131072, "rope_theta": 500000.0, "rope_scaling": LLAMA3, "rms_norm_eps": 1e-5}
SMALL = {**LONG, "rope_scaling": {**LLAMA3, "factor": 32.0}, "tie_word_embeddings": True}
SMOL = {"tie_word_embeddings": True, "rope_theta": 100000.0, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5}
TWO = {"torch_dtype": "float16", "rms_norm_eps": 1e-5}
THREE = {"rope_theta": 500000.0, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5}
HUB = "config.json and the parameter count on the model's Hugging Face page"

ENTRIES = {
    entry.name: entry
    for entry in (
        Entry(
            "smollm2-135m",
            "HuggingFaceTB/SmolLM2-135M-Instruct",
            _llama(49152, 576, 1536, 30, 9, 3, **SMOL),
            134_515_008,
            HUB,
        ),
        Entry(
            "smollm2-360m",
            "HuggingFaceTB/SmolLM2-360M-Instruct",
            _llama(49152, 960, 2560, 32, 15, 5, **SMOL),
            361_821_120,
            HUB,
        ),
        Entry(
            "smollm2-1.7b",
            "HuggingFaceTB/SmolLM2-1.7B-Instruct",
            _llama(49152, 2048, 8192, 24, 32, 32, **{**SMOL, "rope_theta": 130000.0}),
            1_711_376_384,
            HUB,
        ),
        Entry(
            "tinyllama-1.1b",
            "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
            _llama(32000, 2048, 5632, 22, 32, 4, max_position_embeddings=2048),
            1_100_048_384,
            HUB,
        ),
        Entry(
            "llama-2-7b", "meta-llama/Llama-2-7b-hf", _llama(32000, 4096, 11008, 32, 32, 32, **TWO), 6_738_415_616, HUB
        ),
        Entry(
            "llama-2-13b",
            "meta-llama/Llama-2-13b-hf",
            _llama(32000, 5120, 13824, 40, 40, 40, **TWO),
            13_015_864_320,
            HUB,
        ),
        Entry(
            "llama-2-70b",
            "meta-llama/Llama-2-70b-hf",
            _llama(32000, 8192, 28672, 80, 64, 8, **TWO),
            68_976_648_192,
            HUB,
        ),
        Entry(
            "llama-3-8b",
            "meta-llama/Meta-Llama-3-8B",
            _llama(128256, 4096, 14336, 32, 32, 8, **THREE),
            8_030_261_248,
            HUB,
        ),
        Entry(
            "llama-3-70b",
            "meta-llama/Meta-Llama-3-70B",
            _llama(128256, 8192, 28672, 80, 64, 8, **THREE),
            70_553_706_496,
            HUB,
        ),
        Entry(
            "llama-3.1-8b",
            "meta-llama/Llama-3.1-8B",
            _llama(128256, 4096, 14336, 32, 32, 8, **LONG),
            8_030_261_248,
            HUB,
        ),
        Entry(
            "llama-3.1-70b",
            "meta-llama/Llama-3.1-70B",
            _llama(128256, 8192, 28672, 80, 64, 8, **LONG),
            70_553_706_496,
            HUB,
        ),
        Entry(
            "llama-3.1-405b",
            "meta-llama/Llama-3.1-405B",
            _llama(128256, 16384, 53248, 126, 128, 8, **LONG),
            405_853_388_800,
            HUB,
        ),
        Entry(
            "llama-3.2-1b",
            "meta-llama/Llama-3.2-1B",
            _llama(128256, 2048, 8192, 16, 32, 8, head_dim=64, **SMALL),
            1_235_814_400,
            HUB,
        ),
        Entry(
            "llama-3.2-3b",
            "meta-llama/Llama-3.2-3B",
            _llama(128256, 3072, 8192, 28, 24, 8, head_dim=128, **SMALL),
            3_212_749_824,
            HUB,
        ),
        Entry(
            "llama-3.3-70b",
            "meta-llama/Llama-3.3-70B-Instruct",
            _llama(128256, 8192, 28672, 80, 64, 8, **LONG),
            70_553_706_496,
            HUB,
        ),
        Entry("bloom-560m", "bigscience/bloom-560m", _bloom(1024, 24, 16, "float16"), 559_214_592, HUB),
        Entry("bloom-3b", "bigscience/bloom-3b", _bloom(2560, 30, 32, "float16"), 3_002_557_440, HUB),
        Entry("bloom-7b1", "bigscience/bloom-7b1", _bloom(4096, 30, 32, "float16"), 7_069_016_064, HUB),
        Entry("bloom-176b", "bigscience/bloom", _bloom(14336, 70, 112, "bfloat16"), 176_247_271_424, HUB),
        Entry("opt-1.3b", "facebook/opt-1.3b", _opt(2048, 24, 32), 1_315_758_080, HUB),
        Entry("opt-6.7b", "facebook/opt-6.7b", _opt(4096, 32, 32), 6_658_473_984, HUB),
        Entry("opt-30b", "facebook/opt-30b", _opt(7168, 48, 56), 29_974_540_288, HUB),
        # The weights of the largest OPT were given out on request only: a name for planning.
        # Its shape is published to the unit, its parameter count only as "175B".
        Entry("opt-175b", "", _opt(12288, 96, 96), None, "Zhang et al. 2022, table 1"),
    )
}


@cache
def by_repo() -> dict[str, Entry]:
    return {entry.repo.lower(): entry for entry in ENTRIES.values() if entry.repo}


def find(name: str) -> Entry | None:
    return ENTRIES.get(name.lower())


def unknown(name: str) -> CallError:
    near = difflib.get_close_matches(name.lower(), ENTRIES, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else f"the catalog has {', '.join(ENTRIES)}"
    return CallError(
        f"--model {name[:100]!r} is no folder, .gguf file or catalog name; {hint} (a hub id is written owner/name)"
    )

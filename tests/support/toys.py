"""Models so small that their bytes and operations are counted by hand: hidden, vocabulary, intermediate and one head are 64."""

from dataclasses import replace
from typing import Any

from bigrun.model.families.registry import spec_from_config
from bigrun.model.spec import Experts, ModelSpec


def toy(blocks: int = 1, tied: bool = True, vocab_size: int = 64, **changes: Any) -> ModelSpec:
    """A Llama; `changes` are made to the description of each block."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": vocab_size,
        "hidden_size": 64,
        "intermediate_size": 64,
    }
    config |= {"num_hidden_layers": blocks, "num_attention_heads": 1, "tie_word_embeddings": tied}
    spec = spec_from_config({**config, "max_position_embeddings": 4096}, "toy")
    return replace(spec, blocks=tuple(replace(block, **changes) for block in spec.blocks))


def mixture(blocks: int = 1, tied: bool = True, count: int = 4, active: int = 1, shared: int = 0) -> ModelSpec:
    """The toy with `count` experts, each as wide as its MLP was, of which a token has `active`, and a shared MLP."""
    experts = Experts(count=count, active=active, intermediate=64, shared=shared)
    return toy(blocks, tied, experts=experts, intermediate=shared or 64)

"""The peer that answers are compared with: transformers, in float32, on the same weights."""

from functools import cache

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bigrun.loading.open import open_checkpoint
from bigrun.model.families import llama
from bigrun.model.resolve import resolve


@cache
def smollm2_float32() -> LlamaForCausalLM:
    """SmolLM2-135M-Instruct in transformers, its weights taken from the embedded GGUF through bigrun's reader."""
    checkpoint, spec = open_checkpoint(resolve("smollm2-135m"))
    fields = {k: v for k, v in checkpoint.config.items() if k not in ("architectures", "torch_dtype")}
    with torch.device("meta"):  # weights of its own, which would be drawn to be overwritten, are never there
        model = LlamaForCausalLM(LlamaConfig(**fields)).eval()
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    weights = {}
    for part in spec.parts:
        theirs = llama.sources(spec, part.name, "hf")
        for name, sources in llama.sources(spec, part.name, "gguf").items():
            for source, target in zip(sources, theirs[name], strict=True):
                rows = checkpoint.rows(source.name, 0, source.shape[0]).values
                ordered = np.empty_like(rows)
                ordered[source.destinations()] = rows
                weights[target.name] = torch.from_numpy(ordered)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights, assign=True)
    made = [*model.parameters(), *model.buffers()]
    assert all(tensor.dtype == torch.float32 and not tensor.is_meta for tensor in made)
    return model

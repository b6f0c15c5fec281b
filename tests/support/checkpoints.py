"""Tiny random checkpoints, written by the libraries that write real ones, for tests to import.

    model = llama(folder, dtype="bfloat16", kv_heads=2, max_shard_size="60KB", tokenizer=True)
    gguf_twin(folder, path, kind="Q8_0")
    parts = load_parts(folder)

`llama`, `bloom` and `opt` return transformers' own model: in evaluation mode, in float32, its weights exactly the
numbers that the files hold. No weight is left at a value that hides a mistake: norms are not 1 and biases not 0.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bigrun.loading.loader import LoadedPart

VOCAB = 320
SPECIAL = ("<unk>", "<s>", "</s>")  # ids 0, 1 and 2; transformers' Llama has BOS 1 and EOS 2 unless told otherwise
TEXT = ["the quick brown fox jumps over the lazy dog; then the other dogs slept there, thinking of nothing much at all"]
PRE = ("smollm", "gpt-2")


def llama(
    folder: Path, *, dtype: str = "float32", tied: bool = False, bias: bool = False, layers: int = 2, hidden: int = 64,
    heads: int = 4, kv_heads: int = 2, intermediate: int = 96, context: int = 128, max_shard_size: str = "1GB",
    tokenizer: bool = False, seed: int = 0, **config: Any,
) -> Any:  # fmt: skip
    """A LlamaForCausalLM in `folder`. `bias` is attention_bias and mlp_bias at once; `config` goes to LlamaConfig.

    The epsilon of its norms is a power of two, which a GGUF file keeps exactly.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers}
    full_config = LlamaConfig(
        **{
            "vocab_size": VOCAB, "num_attention_heads": heads, "num_key_value_heads": kv_heads, "rms_norm_eps": 2.0**-17,
            "max_position_embeddings": context, "tie_word_embeddings": tied, "attention_bias": bias, "mlp_bias": bias,
        } | shape | config
    )  # fmt: skip
    return _save(LlamaForCausalLM(full_config), folder, dtype, max_shard_size, tokenizer, seed)


def relative(folder: Path, model_type: str, *, layers: int = 2, seed: int = 0, **config: Any) -> Any:
    """A causal model of a family that is shaped like Llama, such as mistral or qwen2, in `folder`."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes: dict[str, Any] = {
        "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": layers, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 128, "tie_word_embeddings": False, "rms_norm_eps": 2.0**-17,
    }  # fmt: skip
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **{**sizes, **config}))
    return _save(model, folder, "float32", "1GB", False, seed)


def bloom(
    folder: Path, *, dtype: str = "float32", layers: int = 2, hidden: int = 64, heads: int = 4,
    max_shard_size: str = "1GB", tokenizer: bool = False, seed: int = 0, **config: Any,
) -> Any:  # fmt: skip
    """A BloomForCausalLM in `folder`: tied, as all published ones are."""
    from transformers import BloomConfig, BloomForCausalLM

    full_config = BloomConfig(
        **{"vocab_size": VOCAB, "hidden_size": hidden, "n_layer": layers, "n_head": heads} | config
    )
    return _save(BloomForCausalLM(full_config), folder, dtype, max_shard_size, tokenizer, seed)


def opt(
    folder: Path, *, dtype: str = "float32", layers: int = 2, hidden: int = 64, heads: int = 4, ffn: int = 96,
    context: int = 128, max_shard_size: str = "1GB", tokenizer: bool = False, seed: int = 0, **config: Any,
) -> Any:  # fmt: skip
    """An OPTForCausalLM in `folder`: tied, norms before each half, learned positions for `context` tokens."""
    from transformers import OPTConfig, OPTForCausalLM

    shape = {"hidden_size": hidden, "word_embed_proj_dim": hidden, "ffn_dim": ffn, "num_hidden_layers": layers}
    more = {"vocab_size": VOCAB, "num_attention_heads": heads, "max_position_embeddings": context}
    return _save(OPTForCausalLM(OPTConfig(**shape | more | config)), folder, dtype, max_shard_size, tokenizer, seed)


FAMILIES = {"llama": llama, "bloom": bloom, "opt": opt}


def _save(model: Any, folder: Path, dtype: str, max_shard_size: str, tokenizer: bool, seed: int) -> Any:
    import torch

    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 2:
            noise *= 0.3 if "embed" in name else parameter.shape[1] ** -0.5
        else:
            noise = 0.1 * noise + (0.0 if name.endswith("bias") else 1.0)
        # Parameters alone: `model.to(dtype)` would leave the rotary frequencies, a buffer, rounded.
        parameter.data = noise.to(getattr(torch, dtype))
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    if tokenizer:
        write_tokenizer(folder)
    for parameter in model.parameters():
        parameter.data = parameter.data.float()
    return model.eval()


def tiny_tokenizer(pre: str = "smollm") -> Any:
    """A `tokenizers.Tokenizer` of VOCAB tokens: byte-level BPE, split as `tokenizer.ggml.pre` = `pre` says."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    assert pre in PRE
    backend = Tokenizer(models.BPE())
    levels = [pre_tokenizers.Digits(individual_digits=True)] if pre == "smollm" else []
    backend.pre_tokenizer = pre_tokenizers.Sequence([*levels, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXT, trainer)
    assert backend.get_vocab_size() == VOCAB
    return backend


def write_tokenizer(folder: Path, pre: str = "smollm", **config: Any) -> None:
    """tokenizer.json and tokenizer_config.json; `config` is added to the latter (a chat_template, say)."""
    tiny_tokenizer(pre).save(str(folder / "tokenizer.json"))
    named = {"unk_token": SPECIAL[0], "bos_token": SPECIAL[1], "eos_token": SPECIAL[2], "add_bos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(named | config))


def state(folder: Path) -> dict[str, Any]:
    """Every tensor of a safetensors folder by its name in the files, as torch tensors."""
    from safetensors.torch import load_file

    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


def rewrite(folder: Path, tensors: Mapping[str, Any]) -> None:
    """Put these tensors, alone, into the folder's one model.safetensors."""
    from safetensors.torch import save_file

    for file in folder.glob("model*.safetensors*"):
        file.unlink()
    save_file({name: value.contiguous().clone() for name, value in tensors.items()}, folder / "model.safetensors")


def edit_config(folder: Path, **fields: Any) -> None:
    """Set fields of config.json; None takes one out."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


GGUF_NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def gguf_name(name: str) -> str:
    """llama.cpp's name of one of Hugging Face's Llama tensors."""
    ends = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    stem, _, leaf = name.rpartition(".")
    if stem in ends:
        return f"{ends[stem]}.{leaf}"
    _, _, number, inner = stem.split(".", 3)
    return f"blk.{number}.{GGUF_NAMES[inner]}.{leaf}"


def permute(rows: np.ndarray, heads: int) -> np.ndarray:
    """q's and k's rows as llama.cpp's convert_hf_to_gguf.py orders them: rotary pairs side by side."""
    halves = rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows.shape))


def gguf_tensors(folder: Path) -> dict[str, np.ndarray]:
    """The float32 tensors that a GGUF file of this Llama folder holds, by llama.cpp's names and in its row order."""
    config = json.loads((folder / "config.json").read_text())
    heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
    result = {}
    for name, value in state(folder).items():
        data = value.float().numpy()
        for letter, count in heads.items():
            if f"self_attn.{letter}_proj" in name:
                data = permute(data, count)
        result[gguf_name(name)] = data
    return result


def gguf_twin(
    folder: Path, path: Path, kind: str = "F32", pre: str = "smollm", ids: Mapping[str, int] | None = None,
    tensors: Mapping[str, np.ndarray | None] | None = None, scored: bool = False, **metadata: Any,
) -> None:  # fmt: skip
    """The Llama checkpoint of `folder` as a GGUF file at `path`; matrices as `kind`: F32, F16, Q8_0 or Q4_1.

    Vectors stay float32, as llama.cpp keeps them. `metadata` overrides the scalar keys that are written under
    "llama.": `rope__scaling__type="yarn"` is llama.rope.scaling.type; None leaves one out, a list is an array. `ids` are
    special tokens beside SPECIAL, or in their place: "eot" is tokenizer.ggml.eot_token_id. `tensors` are others, or in the
    place of the folder's; None leaves one out. `scored`: the vocabulary is SentencePiece's.
    """
    import gguf

    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    adders = {
        str: writer.add_string, int: writer.add_uint32, float: writer.add_float32, bool: writer.add_bool, list: writer.add_array
    }  # fmt: skip
    for name, value in metadata.items():
        key = "llama." + name.replace("__", ".")
        writer.kv_data[0].pop(key, None)
        if value is not None:
            adders[type(value)](key, value)
    _add_tokenizer(writer, pre, ids or {}, scored)
    target = gguf.GGMLQuantizationType[kind]
    for name, data in {**gguf_tensors(folder), **(tensors or {})}.items():
        if data is None:
            continue
        form = target if data.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(data, form), raw_dtype=form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: Any, pre: str, ids: Mapping[str, int], scored: bool) -> None:
    if scored:
        from support.tokenizers import scored_vocabulary

        words, scores, types = scored_vocabulary(VOCAB)
        writer.add_tokenizer_model("llama")
        writer.add_token_list(words)
        writer.add_token_scores(scores)
        writer.add_token_types(types)
        for name, index in ids.items():
            writer.add_uint32(f"tokenizer.ggml.{name}_token_id", index)
        return
    model = json.loads(tiny_tokenizer(pre).to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in tokens])  # 3: control, 1: normal
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    for name, index in ({"unknown": 0, "bos": 1, "eos": 2} | dict(ids)).items():
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", index)
    writer.add_add_bos_token(False)


def load_parts(path: Path, *, gpus: str | None = "none", cpu: str = "1GB", **options: Any) -> list[LoadedPart]:
    """Every part of a checkpoint as the loader leaves it; no kernel but the converting ones is compiled.

    `options` are those of the planner: context, batch, weights, head, skip, kv.
    """
    return list(iterate_parts(path, gpus=gpus, cpu=cpu, **options))


def iterate_parts(path: Path, *, gpus: str | None = "none", cpu: str = "1GB", **options: Any) -> Iterable[LoadedPart]:
    """The loader's own generator over a checkpoint. Its memories are GPUs that are virtual, and the CPU."""
    from bigrun.checkpoint.tensor_map import map_tensors, validate
    from bigrun.devices.host_memory import HostMemory
    from bigrun.devices.make_rig import RigOptions, make_rig
    from bigrun.loading.loader import load
    from bigrun.loading.open import open_checkpoint
    from bigrun.model.resolve import resolve
    from bigrun.planning.ledger import Ledger
    from bigrun.planning.planner import make_plan
    from bigrun.session.options import Options

    checkpoint, spec = open_checkpoint(resolve(str(path)))
    rig = make_rig(RigOptions(gpus, cpu, virtual=gpus is not None))
    chosen = Options.of(**{"context": 64, **options}).for_planning(spec)
    plan = make_plan(spec, rig, chosen)
    assert plan.fits, plan.hint
    memories = {device.name: HostMemory(device.name, device.budget_bytes) for device in rig.devices}
    return load(spec, validate(map_tensors(checkpoint, spec)), plan, Ledger(spec, chosen).layouts, memories)

"""The tensors of a differential case: random weights that show mistakes, and changes of them.

("surplus", name, shape, fill, dtype)   a tensor that the model does not ask for
("drop", name)                          a tensor is missing
("reshape", name, how)                  transposed, flat, longer, shorter, unsqueezed
("cast", which, dtype)                  all, norms, matrices, biases or one by its name
("head", how)                           lm_head: equal to the embedding, different, none, or there alone
("prefix", how)                         names without the model class's prefix, with another, or some without
("quiet", factor)                       embeddings so small that the norms' epsilon shows
("value", name, text)                   one number of a tensor: nan, inf, -inf
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping

import torch

from support.differential_changes import Change

PREFIX = {"bloom": "transformer."}  # of the others: "model."
CASTS = ("float16", "bfloat16", "float32", "float64", "int32", "int8", "bool", "float8_e4m3fn")
EMBEDDING = {"opt": "model.decoder.embed_tokens.weight", "bloom": "transformer.word_embeddings.weight"}
_BLOCK = {"opt": "model.decoder.layers.0.", "bloom": "transformer.h.0."}
_ROPED = "model.embed_tokens.weight"


def embedding_of(family: str) -> str:
    return EMBEDDING.get(family, _ROPED)


def weights(shapes: Mapping[str, tuple[int, ...]], family: str, tied: bool, seed: int) -> dict[str, torch.Tensor]:
    """Random numbers for these shapes: attention is not uniform, norms are not 1, biases are not 0, and logits are of a
    magnitude of 1 to 20. A tensor's numbers depend on its name, not on what else is there."""
    made = {}
    for name, shape in shapes.items():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) ^ seed)
        noise = torch.randn(shape, generator=generator)
        if len(shape) < 2:
            made[name] = 0.2 * noise + (0.0 if name.endswith("bias") else 1.0)
        elif name == "lm_head.weight" or (tied and name == embedding_of(family)):
            made[name] = noise * 3.0 * max(1, shape[1]) ** -0.5
        elif "embed" in name:
            made[name] = noise
        else:
            made[name] = noise * 1.5 * max(1, shape[1]) ** -0.5
    return made


def surplus_tensors(family: str) -> list[Change]:
    """What published and trained files hold beside a model's weights, and what no file should hold."""
    block = _BLOCK.get(family, "model.layers.0.")
    prefix = PREFIX.get(family, "model.")
    attention = {"bloom": "self_attention.", "opt": "self_attn."}.get(family, "self_attn.")
    out = {"bloom": "dense", "opt": "out_proj"}.get(family, "o_proj")
    mlp = {"bloom": "mlp.dense_h_to_4h", "opt": "fc1"}.get(family, "mlp.gate_proj")
    names: dict[str, list[int]] = {
        f"{block}{attention}rotary_emb.inv_freq": [4],
        f"{block.removeprefix(prefix)}{attention}rotary_emb.inv_freq": [4],
        f"{prefix}rotary_emb.inv_freq": [4],
        "rotary_emb.inv_freq": [4],
        f"{block}{attention}rotary_emb.cos_cached": [1, 1, 64, 8],
        f"{block}{attention}masked_bias": [],
        f"{block}attn.masked_bias": [],
        f"{block}attn.bias": [1, 1, 8, 8],
        f"{block}{attention}bias": [1, 1, 8, 8],
        f"{block.removeprefix(prefix)}attn.masked_bias": [],
        f"{prefix}position_ids": [1, 64],
        f"{prefix}embeddings.position_ids": [1, 64],
        "position_ids": [1, 64],
        f"{prefix}decoder.version": [1],
        "decoder.version": [1],
        f"{prefix}decoder.embed_positions._float_tensor": [1],
        "v_head.weight": [1, 32],
        "v_head.summary.weight": [1, 32],
        "v_head.summary.bias": [1],
        "score.weight": [2, 32],
        "lm_head.bias": [97],
        f"{block}{attention}q_proj.bias": [32],
        f"{block}{attention}{out}.bias": [32],
        f"{block}{mlp}.bias": [48],
        f"{block}input_layernorm.bias": [32],
        f"{prefix}norm.bias": [32],
        f"{block}{attention}q_norm.weight": [8],
        f"{block}{attention}sinks": [4],
        f"{block}{attention}k_scale": [1],
        f"{block}{attention}v_scale": [],
        f"{block}{attention}q_proj.input_scale": [1],
        f"{block}{attention}q_proj.output_scale": [1],
        f"{block}{attention}q_proj.weight_scale": [1],
        f"{block}{attention}q_proj.lora_A.weight": [4, 32],
        f"{block.replace('.0.', '.7.')}{mlp}.weight": [48, 32],
        f"{block.replace('.0.', '.2.')}{mlp}.weight": [48, 32],
        f"{prefix}embed_tokens.bias": [32],
        f"{prefix}project_in.weight": [32, 32],
        f"{prefix}decoder.project_out.weight": [32, 32],
        f"{prefix}alibi": [4, 1, 64],
        "vision_tower.weight": [4, 4],
        "optimizer": [],
        "weird \u2028 name\n": [1],
    }
    made: list[Change] = [("surplus", name, shape, "noise", "float32") for name, shape in names.items()]
    made += [("surplus", name, shape, "zeros", "float32") for name, shape in names.items() if name.endswith("bias")]
    return made


def sound_tensor_changes(family: str) -> list[Change]:
    """Changes of tensors that published files have."""
    casts = [("cast", which, dtype) for which in ("all", "norms", "matrices", "biases") for dtype in CASTS[:3]]
    heads = [("head", how) for how in ("equal", "different", "only")]
    quiet = [("quiet", factor) for factor in (1e-2, 1e-3, 1e-4)]
    return [*surplus_tensors(family), *casts, *heads, *quiet, *heads, *quiet, *casts, ("prefix", "strip")]


def tensor_changes(names: Mapping[str, tuple[int, ...]], family: str) -> list[Change]:
    """Every change of tensors that there is for a model with these tensors, one by one."""
    layer = [name for name in names if ".0." in name or "." not in name.replace(".weight", "").replace(".bias", "")]
    some = list(dict.fromkeys([*layer, *[name for name in names if ".1." not in name]]))
    made = surplus_tensors(family)
    made += [("drop", name) for name in names]
    for name in some:
        for how in ("transposed", "flat", "longer", "shorter", "unsqueezed", "empty"):
            made.append(("reshape", name, how))
        made += [("value", name, text) for text in ("nan", "inf", "-inf")]
        made += [("cast", name, dtype) for dtype in CASTS]
    made += [("cast", which, dtype) for which in ("all", "norms", "matrices", "biases") for dtype in CASTS]
    made += [("head", how) for how in ("equal", "different", "none", "only", "only-different", "narrow")]
    made += [("prefix", how) for how in ("strip", "half", "module.", "base_model.model.", "double", "other")]
    made += [("quiet", factor) for factor in (1e-2, 1e-3, 1e-4)]
    made += [("quantised", how) for how in _QUANTISED]
    return made


def change_tensors(tensors: dict[str, torch.Tensor], changes: list[Change], family: str, seed: int) -> None:
    """Apply the changes of tensors, in their order; one of a tensor that is not there is passed over."""
    embedding = embedding_of(family)
    for kind, *arguments in changes:
        if kind == "surplus":
            name, shape, fill, dtype = arguments
            if name not in tensors:
                noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
                tensors[name] = (torch.zeros(shape) if fill == "zeros" else noise).to(getattr(torch, dtype))
        elif kind == "drop":
            tensors.pop(arguments[0], None)
        elif kind == "reshape" and arguments[0] in tensors:
            tensors[arguments[0]] = _reshaped(tensors[arguments[0]], arguments[1])
        elif kind == "cast":
            for name in tensors:
                if _is_of(arguments[0], name, tensors[name]):
                    tensors[name] = _cast(tensors[name], arguments[1])
        elif kind == "head":
            _change_head(tensors, arguments[0], embedding, seed)
        elif kind == "prefix":
            _rename(tensors, arguments[0], PREFIX.get(family, "model."))
        elif kind == "quiet":
            _quieten(tensors, arguments[0], embedding)
        elif kind == "quantised":
            _quantise(tensors, arguments[0])
        elif kind == "value" and arguments[0] in tensors and tensors[arguments[0]].is_floating_point():
            flat = tensors[arguments[0]].clone().reshape(-1)
            flat[len(flat) // 2 :][:1] = float(arguments[1])
            tensors[arguments[0]] = flat.reshape(tensors[arguments[0]].shape)


def _is_of(which: str, name: str, value: torch.Tensor) -> bool:
    by_kind = {"all": True, "norms": value.ndim == 1 and "bias" not in name, "matrices": value.ndim == 2}
    return by_kind.get(which, name == which or (which == "biases" and name.endswith("bias")))


def _cast(value: torch.Tensor, dtype: str) -> torch.Tensor:
    target = getattr(torch, dtype)
    return (value if target.is_floating_point else (4 * value.float()).round().clamp(-100, 100)).to(target)


def _reshaped(value: torch.Tensor, how: str) -> torch.Tensor:
    if how == "transposed":
        return value.T if value.ndim == 2 else value.reshape(1, -1)
    if how == "longer":
        return torch.cat([value, value[:1]])
    if how == "shorter":
        return value[:-1]
    return {"flat": value.reshape(-1), "unsqueezed": value[None], "empty": value[:0]}[how]


def _change_head(tensors: dict[str, torch.Tensor], how: str, embedding: str, seed: int) -> None:
    if embedding not in tensors:
        return
    table = tensors[embedding]
    other = (
        torch.randn(table.shape, generator=torch.Generator().manual_seed(seed + 1))
        * 3.0
        * max(1, table.shape[-1]) ** -0.5
    )
    if how in ("equal", "only"):
        tensors["lm_head.weight"] = table.clone()
    elif how in ("different", "only-different"):
        tensors["lm_head.weight"] = other
    elif how == "narrow":
        tensors["lm_head.weight"] = other[:-1]
    else:
        tensors.pop("lm_head.weight", None)
    if how.startswith("only"):
        del tensors[embedding]


def _rename(tensors: dict[str, torch.Tensor], how: str, prefix: str) -> None:
    for i, name in enumerate(list(tensors)):
        new = name
        if how == "strip" or (how == "half" and i % 2):
            new = name.removeprefix(prefix)
        elif how == "double":
            new = prefix + name
        elif how == "other":
            new = name.replace(prefix, "transformer." if prefix == "model." else "model.", 1)
        elif how != "half":
            new = how + name
        tensors[new] = tensors.pop(name)


# What stands in the place of a linear's weight [rows, columns]: name after the linear's, shape by rows and columns, dtype.
_QUANTISED: dict[str, tuple[tuple[str, Callable[[int, int], tuple[int, ...]], torch.dtype], ...]] = {
    "gptq": (
        ("qweight", lambda rows, columns: (columns // 8, rows), torch.int32),
        ("qzeros", lambda rows, columns: (1, rows // 8), torch.int32),
        ("scales", lambda rows, columns: (1, rows), torch.float16),
        ("g_idx", lambda rows, columns: (columns,), torch.int32),
    ),
    "bitsandbytes-4": (
        ("weight", lambda rows, columns: (rows * columns // 2, 1), torch.uint8),
        ("weight.absmax", lambda rows, columns: (rows * columns // 64,), torch.float32),
        ("weight.quant_map", lambda rows, columns: (16,), torch.float32),
        ("weight.quant_state.bitsandbytes__nf4", lambda rows, columns: (80,), torch.uint8),
    ),
    "bitsandbytes-8": (
        ("weight", lambda rows, columns: (rows, columns), torch.int8),
        ("SCB", lambda rows, columns: (rows,), torch.float32),
        ("weight_format", lambda rows, columns: (), torch.uint8),
    ),
}  # fmt: skip


def _quantise(tensors: dict[str, torch.Tensor], how: str) -> None:
    for name, value in list(tensors.items()):
        if ".0." in name and name.endswith(".weight") and value.ndim == 2:
            del tensors[name]
            for end, shape, dtype in _QUANTISED[how]:
                tensors[f"{name.removesuffix('weight')}{end}"] = torch.ones(shape(*value.shape), dtype=dtype)


def _quieten(tensors: dict[str, torch.Tensor], factor: float, embedding: str) -> None:
    """A tied head is as quiet as the embedding: it is given a louder norm before it."""
    tied = "lm_head.weight" not in tensors
    for name in list(tensors):
        if name == embedding or "embed_positions" in name:
            tensors[name] = tensors[name] * factor
        elif tied and any(
            name.endswith(end) for end in ("model.norm.weight", "ln_f.weight", "decoder.final_layer_norm.weight")
        ):
            tensors[name] = tensors[name] / factor

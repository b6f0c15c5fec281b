"""The tensors and files of a differential case: random weights that show mistakes, changes of them, ways to lay them out.

("surplus", name, shape, fill, dtype)   a tensor that the model does not ask for
("drop", name)                          a tensor is missing
("reshape", name, how)                  transposed, flat, longer, shorter, unsqueezed
("cast", which, dtype)                  all, norms, matrices, biases or one by its name
("head", how)                           lm_head: equal to the embedding, different, none, or there alone
("prefix", how)                         names without the model class's prefix, with another, or some without
("quiet", factor)                       embeddings so small that the norms' epsilon shows
("value", name, text)                   one number of a tensor: nan, inf, -inf
("file", {...})                         see `write_files`
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

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
            made[name] = noise * 3.0 * shape[1] ** -0.5
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
    return made


FILE_OPTIONS: dict[str, tuple[Any, ...]] = {
    "format": ("bin",),
    "shards": (2, 3, 5),
    "linked": ("absolute", "relative", "folder", "broken", "directory"),
    "twice": ("equal", "other-first", "other-last"),
    "stale": ("single", "bin", "safetensors"),
    "index": (
        "no-metadata",
        "extra-tensor",
        "lacks-tensor",
        "subfolder",
        "odd-names",
        "no-file",
        "outside",
        "not-json",
    ),
    "metadata": ("none", "tf"),
    "pickle": ("shared", "views", "parameters", "nested", "legacy", "ordered", "extra"),
    "truncated": (True,),
}


_UNSOUND = (
    "broken",
    "directory",
    "extra-tensor",
    "lacks-tensor",
    "no-file",
    "outside",
    "not-json",
    "legacy",
    "extra",
    "tf",
)


def file_changes() -> list[Change]:
    """Every option of how files are laid out, alone, and those that need shards with two of them."""
    made: list[Change] = [("file", {"shards": count}) for count in FILE_OPTIONS["shards"]]
    made.append(("file", {"format": "bin"}))
    for name in ("linked", "twice", "stale", "index", "metadata", "pickle", "truncated"):
        for value in FILE_OPTIONS[name]:
            more = {"format": "bin"} if name == "pickle" else {}
            if name not in ("twice", "index"):
                made.append(("file", {name: value, **more}))
            made.append(("file", {name: value, "shards": 3, **more}))
            if name not in ("metadata", "pickle"):
                made.append(("file", {name: value, "shards": 3, "format": "bin"}))
    return made


def file_change(random: Random, sound: bool) -> Change:
    """A layout of files, drawn; `sound`: with all that the index names."""
    options: dict[str, Any] = {}
    if random.random() < 0.4:
        options["format"] = "bin"
    if random.random() < 0.6:
        options["shards"] = random.choice(FILE_OPTIONS["shards"])
    for name in random.sample(["linked", "twice", "stale", "index", "metadata", "pickle"], random.choice([0, 1, 1, 2])):
        values = FILE_OPTIONS[name]
        options[name] = random.choice([value for value in values if value not in _UNSOUND] if sound else values)
    return ("file", options)


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
    other = torch.randn(table.shape, generator=torch.Generator().manual_seed(seed + 1)) * 3.0 * table.shape[-1] ** -0.5
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


def write_files(folder: Path, tensors: Mapping[str, torch.Tensor], options: Mapping[str, Any]) -> None:
    """The weights in `folder`, as `options` have it (FILE_OPTIONS). A stale file is `write_stale`'s."""
    suffix, write = (".bin", _save_bin) if options.get("format") == "bin" else (".safetensors", _save_safetensors)
    stem = "pytorch_model" if suffix == ".bin" else "model"
    count = options.get("shards", 1)
    if count == 1:
        files = {f"{stem}{suffix}": dict(tensors)}
    else:
        files = _sharded(tensors, stem, suffix, options)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        write(path, content, options)
        if options.get("truncated"):
            path.write_bytes(path.read_bytes()[:-7])
        if linked := options.get("linked"):
            _link(path, linked)


def write_stale(folder: Path, tensors: Mapping[str, torch.Tensor], options: Mapping[str, Any]) -> None:
    """Files of an older save beside the others, with the same names and other numbers, where `options` have them."""
    stale, is_bin = options.get("stale"), options.get("format") == "bin"
    if not stale:
        return
    old = {name: value.float() * 0.5 for name, value in tensors.items()}
    if stale == "bin" or (stale == "single" and is_bin):
        if not (folder / "pytorch_model.bin").exists():
            _save_bin(folder / "pytorch_model.bin", old, {})
    elif not (folder / "model.safetensors").exists():
        _save_safetensors(folder / "model.safetensors", old, {})


def as_transformers_is_asked(options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` without what bigrun reads in its own way, as docs/loading.md says: an index goes before a single file of the
    same kind, and says which of two copies of a tensor counts; a torch file may hold its tensors under "state_dict"."""
    result = dict(options)
    whole = options.get("index") != "no-file" and options.get("linked") not in ("broken", "directory")
    is_bin = options.get("format") == "bin"
    if options.get("shards", 1) > 1 and whole and not options.get("truncated"):
        if options.get("stale") in ("single", "bin" if is_bin else "safetensors"):
            del result["stale"]
        if options.get("twice") != "equal":
            result.pop("twice", None)
    if options.get("pickle") == "nested":
        del result["pickle"]
    return result


def _sharded(tensors: Mapping[str, torch.Tensor], stem: str, suffix: str, options: Mapping[str, Any]) -> Any:
    count, odd = options["shards"], options.get("index")
    names = [f"{stem}-{i + 1:05}-of-{count:05}{suffix}" for i in range(count)]
    if odd == "odd-names":
        names = [f"part {i}{suffix}" for i in range(count)]
    elif odd == "subfolder":
        names = [f"weights/{name}" for name in names]
    files: dict[str, dict[str, torch.Tensor]] = {name: {} for name in names}
    home: dict[str, str] = {}
    for i, (name, value) in enumerate(tensors.items()):
        home[name] = names[(i * i) % count]
        files[home[name]][name] = value
    if (twice := options.get("twice")) and tensors:
        name = list(tensors)[len(tensors) // 2]
        other = names[0 if twice == "other-first" else -1]
        if other == home[name]:
            other = names[1 if other == names[0] else 0]
        value = tensors[name]
        files[other][name] = value.clone() if twice == "equal" else value.float() * 0.5
    index: dict[str, Any] = {"metadata": {"total_size": 1}, "weight_map": dict(home)}
    first = next(iter(home), "none")
    if odd == "no-metadata":
        del index["metadata"]
    elif odd == "extra-tensor":
        index["weight_map"]["model.extra.weight"] = names[0]
    elif odd == "lacks-tensor":
        index["weight_map"].pop(first, None)
    elif odd == "no-file":
        index["weight_map"][first] = f"{stem}-00009-of-{count:05}{suffix}"
    elif odd == "outside":
        index["weight_map"][first] = f"../{names[0]}"
    text = json.dumps(index)
    files_and_index: dict[str, Any] = {name: content for name, content in files.items() if content}
    return {**files_and_index, f"{stem}{suffix}.index.json": "{" if odd == "not-json" else text}


def _link(path: Path, how: str) -> None:
    """Put a link in the file's place: to a folder outside, to one inside, to nothing, to a directory."""
    if path.name.endswith(".json"):
        return
    store = path.parent / "blobs" if how == "folder" else path.parent.parent / f"{path.parent.name}-store"
    store.mkdir(exist_ok=True)
    target = store / path.name
    if how == "directory":
        path.unlink()
        target = store
    else:
        path.rename(target)
    if how == "broken":
        target.unlink()
    relative = f"../{store.name}/{path.name}" if how == "relative" else None
    path.symlink_to(relative or target.absolute())


def _save_safetensors(path: Path, tensors: Any, options: Mapping[str, Any]) -> None:
    from safetensors.torch import save_file

    if isinstance(tensors, str):
        path.write_text(tensors)
        return
    metadata = {"none": None, "tf": {"format": "tf"}}.get(options.get("metadata", ""), {"format": "pt"})
    save_file({name: value.contiguous().clone() for name, value in tensors.items()}, path, metadata)


def _save_bin(path: Path, tensors: Any, options: Mapping[str, Any]) -> None:
    from collections import OrderedDict

    if isinstance(tensors, str):
        path.write_text(tensors)
        return
    how, made = options.get("pickle"), dict(tensors)
    if how == "shared":  # one storage for all that is of one dtype, as a flat buffer of a trainer has it
        flat = torch.cat([value.reshape(-1).float() for value in made.values()])
        start = 0
        for name, value in made.items():
            made[name] = flat[start : start + value.numel()].reshape(value.shape)
            start += value.numel()
    elif how == "views":
        made = {name: value.T.contiguous().T if value.ndim == 2 else value for name, value in made.items()}
    elif how == "parameters":
        made = {
            name: torch.nn.Parameter(value, requires_grad=False) if value.is_floating_point() else value
            for name, value in made.items()
        }
    content: Any = OrderedDict(made) if how == "ordered" else made
    if how == "nested":
        content = {"state_dict": content}
    elif how == "extra":
        content = {**made, "epoch": 3, "note": "text"}
    torch.save(content, path, _use_new_zipfile_serialization=how != "legacy")

"""What the loader leaves in memory is the reference's quantisation of the checkpoint, part by part in the order of
execution, and on the way there it never holds much more than that."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import bigrun.loading.conversion
from bigrun.devices.host_memory import HostMemory
from bigrun.errors import CheckpointError
from bigrun.loading.loader import LoadedPart
from bigrun_kernels import lanes, reference
from support.checkpoints import FAMILIES, bloom, iterate_parts, llama, load_parts, opt, rewrite, state

# Sizes that no padding fits: rows of 96 and 160 are stored in 128 and 192.
WRITE = {
    "llama": lambda folder, **more: llama(folder, hidden=96, intermediate=160, bias=True, **more),
    "bloom": lambda folder, **more: bloom(folder, hidden=96, **more),
    "opt": lambda folder, **more: opt(folder, hidden=96, ffn=160, **more),
}
HEADS = 4


def canonical(family: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The model's tensors by part and canonical name, put together from the files' as each family publishes them."""
    result = {}

    def take(part: str, name: str, *stems: str) -> None:
        for leaf in ("weight", "bias"):
            if f"{stems[0]}.{leaf}" in tensors:
                key = f"{part}/table" if name == "table" else f"{part}/{name}.{leaf}"
                result[key] = torch.cat([tensors[f"{stem}.{leaf}"] for stem in stems])

    for i in range(2):
        b = f"blocks.{i}"
        if family == "llama":
            p = f"model.layers.{i}."
            take(b, "qkv", *(f"{p}self_attn.{letter}_proj" for letter in "qkv"))
            take(b, "out", f"{p}self_attn.o_proj")
            take(b, "up", f"{p}mlp.gate_proj", f"{p}mlp.up_proj")
            take(b, "down", f"{p}mlp.down_proj")
            take(b, "attention_norm", f"{p}input_layernorm")
            take(b, "mlp_norm", f"{p}post_attention_layernorm")
        elif family == "bloom":
            p = f"transformer.h.{i}."
            take(b, "qkv", f"{p}self_attention.query_key_value")
            for leaf in ("weight", "bias"):  # published head by head: its q, its k, its v
                fused = result[f"{b}/qkv.{leaf}"]
                heads = fused.view(HEADS, 3, 96 // HEADS, *fused.shape[1:])
                result[f"{b}/qkv.{leaf}"] = torch.cat([heads[:, j].reshape(96, *fused.shape[1:]) for j in range(3)])
            take(b, "out", f"{p}self_attention.dense")
            take(b, "up", f"{p}mlp.dense_h_to_4h")
            take(b, "down", f"{p}mlp.dense_4h_to_h")
            take(b, "attention_norm", f"{p}input_layernorm")
            take(b, "mlp_norm", f"{p}post_attention_layernorm")
        else:
            p = f"model.decoder.layers.{i}."
            take(b, "qkv", *(f"{p}self_attn.{letter}_proj" for letter in "qkv"))
            take(b, "out", f"{p}self_attn.out_proj")
            take(b, "up", f"{p}fc1")
            take(b, "down", f"{p}fc2")
            take(b, "attention_norm", f"{p}self_attn_layer_norm")
            take(b, "mlp_norm", f"{p}final_layer_norm")
    if family == "bloom":
        take("embed", "table", "transformer.word_embeddings")
        take("embed", "norm", "transformer.word_embeddings_layernorm")
        take("norm", "norm", "transformer.ln_f")
    else:
        p = "model." if family == "llama" else "model.decoder."
        take("embed", "table", f"{p}embed_tokens")
        take("norm", "norm", f"{p}norm" if family == "llama" else f"{p}final_layer_norm")
    if family == "opt":
        result["embed/positions"] = tensors["model.decoder.embed_positions.weight"]
    take("head", "table", "lm_head")
    return result


def stored(parts: list[LoadedPart]) -> dict[str, np.ndarray]:
    return {f"{part.part.name}/{name}": array for part in parts for name, array in part.arrays.items()}


def padded(tensor: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(tensor.float(), (0, -tensor.shape[1] % 64))


def equal(array: np.ndarray, tensor: torch.Tensor, what: str) -> None:
    """Equal to the bit; 16-bit floats are kept as their bits in uint16."""
    bits = tensor.view(torch.int16).numpy().view(np.uint16) if tensor.itemsize == 2 else tensor.numpy()
    np.testing.assert_array_equal(array, bits, err_msg=what, strict=True)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_int8_is_the_reference_s_to_the_bit(tmp_path: Path, family: str, dtype: str) -> None:
    WRITE[family](tmp_path, dtype=dtype, max_shard_size="100KB")
    loaded, expected = stored(load_parts(tmp_path)), canonical(family, state(tmp_path))
    assert {name for name in loaded if not name.endswith(".scale")} == expected.keys()
    for name, tensor in expected.items():
        if tensor.ndim == 1 or name == "embed/positions":
            equal(loaded[name], tensor.float(), name)
        else:
            quantise = reference.quantise_groups if name.endswith("/table") else reference.quantise_rows
            values, scale = quantise(padded(tensor))
            equal(lanes.unpack(loaded[name], *values.shape), values, name)
            scales = loaded[f"{name}.scale"]
            equal(scales if scale.ndim == 1 else lanes.unpack_scale(scales, len(scale)), scale, name)


@pytest.mark.parametrize("family", FAMILIES)
def test_float32_is_the_checkpoint_to_the_bit(tmp_path: Path, family: str) -> None:
    WRITE[family](tmp_path, dtype="bfloat16")
    loaded, expected = stored(load_parts(tmp_path, weights="float32")), canonical(family, state(tmp_path))
    assert loaded.keys() == expected.keys()
    for name, tensor in expected.items():
        equal(loaded[name], tensor.float(), name)


@pytest.mark.parametrize(("dtype", "kept"), [("float32", "bfloat16"), ("float16",) * 2, ("bfloat16",) * 2])
def test_16bit_is_the_checkpoint_s_values_and_of_float32_their_nearest_bfloat16(
    tmp_path: Path, dtype: str, kept: str
) -> None:
    WRITE["llama"](tmp_path, dtype=dtype)
    loaded, expected = stored(load_parts(tmp_path, weights="16bit")), canonical("llama", state(tmp_path))
    assert loaded.keys() == expected.keys()
    for name, tensor in expected.items():
        equal(loaded[name], tensor.float() if tensor.ndim == 1 else tensor.to(getattr(torch, kept)), name)


def test_skipped_linears_alone_keep_16_bits(tmp_path: Path) -> None:
    WRITE["llama"](tmp_path, dtype="float16")
    loaded = stored(load_parts(tmp_path, skip=("blocks.1", "down")))
    wide = {name for name, array in loaded.items() if array.dtype == np.uint16 and not name.endswith(".scale")}
    stems = ("qkv", "out", "up", "down")
    assert wide == {"blocks.0/down.weight", *(f"blocks.1/{stem}.weight" for stem in stems)}
    expected = canonical("llama", state(tmp_path))
    for name in wide:
        equal(loaded[name], expected[name], name)


def test_a_row_of_zeros_stays_zero(tmp_path: Path) -> None:
    llama(tmp_path)
    tensors = state(tmp_path)
    for name in ("model.layers.0.mlp.down_proj.weight", "lm_head.weight"):
        tensors[name][5] = 0
    rewrite(tmp_path, tensors)
    loaded = stored(load_parts(tmp_path))
    assert not loaded["blocks.0/down.weight"][0, :, 5].any()
    assert loaded["blocks.0/down.weight.scale"][5] == 1
    assert not loaded["head/table"][0, :, 5].any()


@pytest.mark.parametrize("chunk", [1, 1000, 5000])
def test_the_chunk_changes_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    bloom(tmp_path)
    whole = stored(load_parts(tmp_path))
    monkeypatch.setattr(bigrun.loading.conversion, "CHUNK_BYTES", chunk)
    chunked = stored(load_parts(tmp_path))
    for name, array in whole.items():
        np.testing.assert_array_equal(chunked[name], array, err_msg=name)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_parts_come_in_the_order_of_execution_and_every_byte_is_read_once(tmp_path: Path, tied: bool) -> None:
    llama(tmp_path, tied=tied, layers=3)
    parts = load_parts(tmp_path)
    assert [p.part.name for p in parts] == ["embed", "blocks.0", "blocks.1", "blocks.2", "norm", "head"]
    assert sum(p.read_bytes for p in parts) == sum(tensor.nbytes for tensor in state(tmp_path).values())
    assert bool(parts[-1].arrays) != tied


def test_parts_go_where_the_plan_puts_them_and_take_what_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llama(tmp_path, layers=4)
    made: dict[str, HostMemory] = {}
    take = HostMemory.take
    monkeypatch.setattr(HostMemory, "take", lambda self, *a: made.update({self.name: self}) or take(self, *a))
    parts = load_parts(tmp_path, gpus="2x190KB", cpu="250KB")  # two blocks a GPU, and the ends on the host
    devices = {part.part.name: part.device for part in parts}
    assert {"cuda:0", "cuda:1", "cpu"} == set(devices.values())
    for name, memory in made.items():
        assert memory.by_kind == {"weights": sum(p.layout.nbytes for p in parts if p.device == name and p.arrays)}


def test_headers_are_checked_before_any_weight_is_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llama(tmp_path)
    tensors = state(tmp_path)
    tensors.pop("model.norm.weight")  # of the last part but one
    rewrite(tmp_path, tensors)
    monkeypatch.setattr(HostMemory, "take", lambda *_: pytest.fail("memory was taken"))
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight is missing"):
        next(iter(iterate_parts(tmp_path)))


LARGE = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 10, "vocab_size": 4096}
LAYER = {
    "self_attn.q_proj": (1024, 1024), "self_attn.k_proj": (1024, 1024), "self_attn.v_proj": (1024, 1024),
    "self_attn.o_proj": (1024, 1024), "mlp.gate_proj": (2816, 1024), "mlp.up_proj": (2816, 1024),
    "mlp.down_proj": (1024, 2816), "input_layernorm": (1024,), "post_attention_layernorm": (1024,),
}  # fmt: skip
MEASURE = """
import sys
from pathlib import Path
from bigrun.devices.measure import host_bytes, watch_memory
from support.checkpoints import load_parts
load_parts(Path(sys.argv[1]))  # libraries and kernels are in memory from here on
before, stop = host_bytes(), watch_memory(0.001)
parts = load_parts(Path(sys.argv[2]), cpu="4GB")
print(stop() - before, sum(part.layout.nbytes for part in parts))
"""


@pytest.fixture
def large(tmp_path: Path) -> Iterator[Path]:
    """A Llama of 137 M float32 parameters, a shard a layer; every layer is the same random numbers."""
    from safetensors.numpy import save_file

    random, folder = np.random.default_rng(0), tmp_path / "large"
    index: dict[str, str] = {}
    folder.mkdir()
    layer = {f"{name}.weight": random.standard_normal(shape, np.float32) for name, shape in LAYER.items()}
    table = random.standard_normal((4096, 1024), np.float32)
    shards = [{f"model.layers.{i}.{name}": value for name, value in layer.items()} for i in range(10)]
    shards.append({"model.embed_tokens.weight": table, "model.norm.weight": table[0]})
    shards.append({"lm_head.weight": table})
    for i, shard in enumerate(shards):
        save_file(shard, folder / f"{i}.safetensors")
        index |= dict.fromkeys(shard, f"{i}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    config = {"architectures": ["LlamaForCausalLM"], "num_attention_heads": 16, "dtype": "float32", **LARGE}
    (folder / "config.json").write_text(json.dumps(config))
    yield folder
    shutil.rmtree(folder)


def test_loading_takes_the_int8_weights_and_two_float32_layers_at_most(large: Path, tmp_path: Path) -> None:
    """The peak of RssAnon + RssShmem, sampled each millisecond, above what the process had before."""
    llama(tmp_path / "tiny")
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "tiny"), str(large)]
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths}, check=True)
    peak, int8_bytes = map(int, ended.stdout.split())
    source_bytes = sum(file.stat().st_size for file in large.glob("*.safetensors"))
    layer_bytes = sum(4 * int(np.prod(shape)) for shape in LAYER.values())
    print(f"source {source_bytes / 1e6:.0f} MB, int8 {int8_bytes / 1e6:.0f} MB, peak {peak / 1e6:.0f} MB")
    assert source_bytes > 3.9 * int8_bytes
    assert peak <= int8_bytes + 2 * layer_bytes < source_bytes / 2

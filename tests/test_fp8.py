"""float8 e4m3 with scales in blocks, a row or the whole tensor: what torch's own values times them quantise to."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bigrun.checkpoint.base import Rows
from bigrun.checkpoint.formats.safetensors import SafetensorsCheckpoint
from bigrun.errors import CheckpointError
from bigrun_kernels import lanes, reference
from bigrun_kernels.cpu import quantise
from support.checkpoints import edit_config, llama, load_parts, state

Block = tuple[int, int]  # rows and columns that share a scale
SQUARE: Block = (128, 128)
# Higher than wide and wider than high, dividing neither, one or both sides of the tensors below; one larger than them
OBLONG: tuple[Block, ...] = ((64, 32), (32, 64), (40, 80), (80, 40), (1, 32), (96, 7), (300, 20), (16, 1000))
SHAPES = [f"{tall}x{across}" for tall, across in OBLONG]


def shapes(rows: int, columns: int, block: Block = SQUARE) -> dict[str, tuple[int, ...]]:
    """Of the scales, by who publishes them so."""
    return {
        "blocks": (-(-rows // block[0]), -(-columns // block[1])),
        "rows": (rows, 1),
        "rows, flat": (rows,),
        "one": (1,),
        "one, bare": (),
    }


def spread(scale: torch.Tensor, rows: int, columns: int, block: Block = SQUARE) -> torch.Tensor:
    """Constants for every entry."""
    if scale.numel() == 1:
        return scale.reshape(1, 1).expand(rows, columns)
    if scale.numel() == rows:
        return scale.reshape(rows, 1).expand(rows, columns)
    return scale.repeat_interleave(block[0], 0)[:rows].repeat_interleave(block[1], 1)[:, :columns]


def shrink(
    folder: Path, kind: str, scale_dtype: torch.dtype = torch.float32, block: Block = SQUARE
) -> dict[str, torch.Tensor]:
    """A folder's linears into float8 with scales; returns the values that they have now."""
    tensors, values = state(folder), {}
    for name, tensor in list(tensors.items()):
        if "proj" not in name:
            continue
        rows, columns = tensor.shape
        shape = shapes(rows, columns, block)[kind]
        scale = (torch.rand(shape, generator=torch.Generator().manual_seed(rows)) + 0.5).to(scale_dtype) / 64
        each = spread(scale.float(), rows, columns, block)
        tensors[name] = (tensor.float() / each).clamp(-448, 448).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv" if kind == "blocks" else f"{name}_scale"] = scale
        values[name] = tensors[name].float() * each
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"} | (
        {"weight_block_size": list(block)} if kind == "blocks" else {}
    )
    (folder / "config.json").write_text(json.dumps(config))
    return values


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    llama(tmp_path, hidden=192, heads=4, kv_heads=4, intermediate=288, layers=1, dtype="bfloat16")
    return tmp_path


def test_all_256_codes_are_torch_s() -> None:
    codes = np.arange(256, dtype=np.uint8)
    expected = torch.from_numpy(codes.copy()).view(torch.float8_e4m3fn).float().numpy()
    actual = Rows(codes[None], False, np.ones((1, 1), np.float32), (0, 1, 256)).floats()[0]
    assert np.array_equal(actual, expected, equal_nan=True)


@pytest.mark.parametrize("kind", ["blocks", "rows", "rows, flat", "one", "one, bare"])
@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_load_is_the_reference_of_the_values(folder: Path, kind: str, scale_dtype: torch.dtype) -> None:
    values = shrink(folder, kind, scale_dtype)
    block = load_parts(folder)[1]
    p = "model.layers.0."
    for name, stems in {"out.weight": ["self_attn.o_proj"], "up.weight": ["mlp.gate_proj", "mlp.up_proj"]}.items():
        w = torch.cat([values[f"{p}{stem}.weight"] for stem in stems])
        q, scale = reference.quantise_rows(w)
        assert np.array_equal(lanes.unpack(block.arrays[name], *w.shape), q)
        assert np.array_equal(block.arrays[f"{name}.scale"], scale)


@pytest.mark.parametrize("block", OBLONG, ids=SHAPES)
def test_a_load_of_oblong_blocks_is_the_reference_of_the_values(folder: Path, block: Block) -> None:
    """Rows first, as `weight_block_size` and the scales' own shape have it. The down projection is wider than high, the up
    projection the other way round."""
    values = shrink(folder, "blocks", block=block)
    arrays = load_parts(folder)[1].arrays
    p = "model.layers.0."
    parts = {"out": ["self_attn.o_proj"], "up": ["mlp.gate_proj", "mlp.up_proj"], "down": ["mlp.down_proj"]}
    for name, stems in parts.items():
        w = torch.cat([values[f"{p}{stem}.weight"] for stem in stems])
        q, scale = reference.quantise_rows(w)
        assert np.array_equal(lanes.unpack(arrays[f"{name}.weight"], *w.shape), q), name
        assert np.array_equal(arrays[f"{name}.weight.scale"], scale), name
    stored = load_parts(folder, weights="float32")[1].arrays["down.weight"]
    assert torch.equal(torch.from_numpy(stored), values[f"{p}mlp.down_proj.weight"])


def test_scales_of_the_other_orientation_do_not_fit(folder: Path) -> None:
    shrink(folder, "blocks", block=(64, 32))
    edit_config(folder, quantization_config={"quant_method": "fp8", "weight_block_size": [32, 64]})
    with pytest.raises(CheckpointError, match="F8_E4M3, without scales that fit it"):
        load_parts(folder)


def test_blocks_without_a_size_are_of_128_by_128(folder: Path) -> None:
    values = shrink(folder, "blocks")
    edit_config(folder, quantization_config={"quant_method": "fp8"})
    stored = load_parts(folder, weights="float32")[1].arrays["down.weight"]
    assert torch.equal(torch.from_numpy(stored), values["model.layers.0.mlp.down_proj.weight"])


@pytest.mark.parametrize("form", ["16bit", "float32"])
def test_other_forms_hold_the_values_too(folder: Path, form: str) -> None:
    values = shrink(folder, "blocks")
    stored = load_parts(folder, weights=form)[1].arrays["out.weight"]
    w = values["model.layers.0.self_attn.o_proj.weight"]
    actual = (
        torch.from_numpy(stored.view(np.int16)).view(torch.bfloat16) if form == "16bit" else torch.from_numpy(stored)
    )
    assert torch.equal(actual, w.to(actual.dtype))


@pytest.mark.parametrize("block", [SQUARE, *OBLONG], ids=["128x128", *SHAPES])
@pytest.mark.parametrize("start", [0, 16, 100])
def test_rows_from_the_middle_have_their_own_blocks(start: int, block: Block) -> None:
    random = np.random.default_rng(start)
    source = random.integers(0, 0x7F, (300, 200), dtype=np.uint8)
    blocks = random.random(shapes(300, 200, block)["blocks"]).astype(np.float32)
    some = Rows(source[start:], False, blocks, (start, *block))
    count = len(some.values)
    q, scale = np.empty(lanes.shape(count, 200), np.int8), np.empty(count, np.float32)
    assert quantise.per_row(some.values, False, np.arange(count), q, scale, some.blocks, some.block) == 0
    w = torch.from_numpy(source).view(torch.float8_e4m3fn).float() * spread(torch.from_numpy(blocks), 300, 200, block)
    assert np.array_equal(some.floats(), w[start:].numpy())
    expected_q, expected_scale = reference.quantise_rows(w[start:])
    assert np.array_equal(lanes.unpack(q, count, 200), expected_q)
    assert np.array_equal(scale, expected_scale)


def test_nan_among_the_codes_and_among_the_scales_is_refused(folder: Path) -> None:
    shrink(folder, "blocks")
    tensors = state(folder)
    name = "model.layers.0.mlp.down_proj.weight"
    broken = tensors[name].view(torch.uint8).clone()
    broken[5, 7] = 0xFF
    save_file(tensors | {name: broken.view(torch.float8_e4m3fn)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"down_proj\.weight holds NaN or inf in 1 of its 192 rows"):
        load_parts(folder)
    scale = tensors[f"{name}_scale_inv"].clone()
    scale[0, 0] = float("nan")
    save_file(tensors | {f"{name}_scale_inv": scale}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="in 128 of its 192 rows"):
        load_parts(folder)


def test_without_constants_that_fit_it_is_refused(folder: Path) -> None:
    shrink(folder, "blocks")
    tensors = state(folder)
    name = "model.layers.0.mlp.down_proj.weight_scale_inv"
    wrong = tensors | {name: torch.ones(7, 3)}
    save_file(wrong, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="F8_E4M3, without scales that fit it"):
        load_parts(folder)
    assert SafetensorsCheckpoint(folder).tensors["model.norm.weight"].readable


def test_whoever_needs_no_constants_keeps_a_tensor_of_that_name(folder: Path) -> None:
    """Only what belongs to a float8 tensor is hidden from the list of tensors."""
    tensors = state(folder)
    save_file(tensors | {"model.norm.weight_scale": torch.ones(1)}, folder / "model.safetensors")
    assert "model.norm.weight_scale" in SafetensorsCheckpoint(folder).tensors
    with pytest.raises(CheckpointError, match="weight_scale has no place"):
        load_parts(folder)

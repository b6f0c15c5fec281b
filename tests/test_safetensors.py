"""Safetensors folders: what is read is what was saved, and no damaged or hostile file ends in anything but a
CheckpointError that names it."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bigrun.checkpoint.formats.safetensors import INDEX, SINGLE, SafetensorsCheckpoint
from bigrun.errors import CheckpointError
from support.checkpoints import FAMILIES, bloom, edit_config, llama, load_parts, opt, rewrite, state

DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    llama(folder / "single")
    llama(folder / "sharded", max_shard_size="60KB")
    assert len(list((folder / "sharded").glob("*.safetensors"))) > 3
    return {"single": folder / "single", "sharded": folder / "sharded"}


@pytest.fixture
def single(sources: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(sources["single"], tmp_path / "model"))


@pytest.fixture
def sharded(sources: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(sources["sharded"], tmp_path / "model"))


def refused(folder: Path, *words: str) -> str:
    """The message with which the folder is refused: one or two lines with these words in them."""
    with pytest.raises(CheckpointError) as caught:
        load_parts(folder)
    message = str(caught.value)
    assert 1 <= len(message.splitlines()) <= 2, message
    assert all(word in message for word in words), message
    return message


def arrays(folder: Path) -> dict[str, np.ndarray]:
    return {f"{p.part.name}/{name}": array for p in load_parts(folder) for name, array in p.arrays.items()}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shard", ["1GB", "60KB"], ids=["single", "sharded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_names_shapes_and_rows_are_what_was_saved(tmp_path: Path, family: str, shard: str, dtype: str) -> None:
    FAMILIES[family](tmp_path, dtype=dtype, max_shard_size=shard)
    assert (tmp_path / INDEX).exists() == (shard == "60KB")
    checkpoint, saved = SafetensorsCheckpoint(tmp_path), state(tmp_path)
    assert checkpoint.tensors.keys() == saved.keys()
    for name, tensor in saved.items():
        info = checkpoint.tensors[name]
        assert (info.shape, info.nbytes, info.readable) == (tuple(tensor.shape), tensor.nbytes, True)
        assert Path(info.where).is_file()
        bits = tensor.numpy() if dtype == "float32" else tensor.view(torch.int16).numpy().view(np.uint16)
        for start, stop in ((0, len(tensor)), (1, 4), (len(tensor) - 1, len(tensor)), (2, 2)):
            rows = checkpoint.rows(name, start, stop)
            assert rows.is_bfloat == (dtype == "bfloat16")
            np.testing.assert_array_equal(rows.values, bits[start:stop], strict=True)


def test_each_tensor_is_in_the_file_that_the_index_names(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())["weight_map"]
    assert len(set(index.values())) > 3
    tensors = SafetensorsCheckpoint(sharded).tensors
    assert {name: info.where for name, info in tensors.items()} == {n: str(sharded / f) for n, f in index.items()}


def test_a_bad_tensor_is_told_with_its_own_shard(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())["weight_map"]
    first, last = min(index.values()), max(index.values())
    name = next(name for name, file in index.items() if file == last)
    tensors = load_file(sharded / last)
    save_file(tensors | {name: tensors[name].flatten()[1:]}, sharded / last)
    assert first not in refused(sharded, str(sharded / last), name, "has shape")


def test_of_a_tensor_in_two_shards_the_index_decides(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())["weight_map"]
    held = list(index.values())
    first, last = [file for file in sorted(set(held)) if held.count(file) > 1][:2]
    name = next(name for name, file in index.items() if file == first)
    right = load_file(sharded / first)[name]
    save_file(load_file(sharded / last) | {name: right + 1}, sharded / last)
    for named, expected in ((first, right), (last, right + 1)):  # the index decides
        write_index(sharded, {**index, name: named})
        checkpoint = SafetensorsCheckpoint(sharded)
        assert checkpoint.tensors[name].where == str(sharded / named)
        assert torch.equal(torch.from_numpy(checkpoint.rows(name, 0, 2).floats()), expected[:2].float())
        (note,) = checkpoint.notes  # one for a shard, however many tensors
        assert all(word in note for word in (name, f"read from {named}"))
    write_index(sharded, {other: file for other, file in index.items() if other != name})
    refused(sharded, f"tensor {name} is in", first, last, "does not say")
    elsewhere = next(file for file in index.values() if file not in (first, last))
    write_index(sharded, {**index, name: elsewhere})
    refused(sharded, name, "does not say")


def write_index(folder: Path, weight_map: dict[str, str]) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def test_a_single_file_beside_an_index_is_stale_unless_shards_are_missing(
    sharded: Path, sources: dict[str, Path]
) -> None:
    stale = {name: value * 2 for name, value in load_file(sources["single"] / SINGLE).items()}
    save_file(stale, sharded / SINGLE)
    checkpoint = SafetensorsCheckpoint(sharded)
    assert SINGLE not in checkpoint.files
    assert "stale" in checkpoint.notes[0]
    last = max(sharded.glob("model-*.safetensors"))
    last.unlink()
    checkpoint = SafetensorsCheckpoint(sharded)
    assert checkpoint.files == (SINGLE,)
    assert last.name in checkpoint.notes[0]
    assert (
        checkpoint.rows("model.norm.weight", 0, 3).floats().tolist() == stale["model.norm.weight"][:3].float().tolist()
    )


def lay_out(path: Path, change: Callable[[dict[str, list[int]], int], int]) -> None:
    """The file with other places of its tensors: `change` gets name → [first byte, last byte] and the bytes that they take;
    what it returns is how much data the file has then."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    places = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
    nbytes = change(places, len(data) - end)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[end:].ljust(nbytes, b"\0")[:nbytes])


def shift(places: dict[str, list[int]], total: int, start: int, by: int) -> int:
    """Tensors from `start` on lie `by` bytes further back."""
    for place in places.values():
        if place[0] >= start:
            place[:] = [place[0] + by, place[1] + by]
    return total + by


GAPS: dict[str, Callable[[dict[str, list[int]], int], int]] = {
    "before the first": lambda places, total: shift(places, total, 0, 64),
    "in the middle": lambda places, total: shift(places, total, places[DOWN][0], 64),
    "before the last": lambda places, total: shift(places, total, max(first for first, _ in places.values()), 4),
    "in the middle, over the last": lambda places, total: shift(places, total, places[DOWN][0], -64),
    # as many bytes as the tensors have, so that the file's size tells nothing
    "a gap and an overlap": lambda places, total: shift(places, total, 0, 64) - 64,
}


@pytest.mark.parametrize("change", GAPS.values(), ids=GAPS.keys())
def test_a_gap_among_the_tensors_of_a_header_is_refused(
    single: Path, change: Callable[[dict[str, list[int]], int], int]
) -> None:
    lay_out(single / SINGLE, lambda places, total: total)
    assert len(load_parts(single)) == 5, "as it was"
    lay_out(single / SINGLE, change)
    refused(single, str(single / SINGLE), "overlap, or leave gaps")


def test_data_behind_the_last_tensor_is_refused(single: Path) -> None:
    (single / SINGLE).write_bytes((single / SINGLE).read_bytes() + bytes(64))
    refused(single, str(single / SINGLE), "its header describes")


def test_a_gap_in_any_shard_is_told_with_its_file(sharded: Path) -> None:
    for shard in sorted(sharded.glob("*.safetensors")):
        whole = shard.read_bytes()
        lay_out(shard, lambda places, total: shift(places, total, 0, 64))
        refused(sharded, str(shard), "leave gaps")
        shard.write_bytes(whole)


@pytest.mark.parametrize(
    ("write", "prefix"),
    [(llama, "model."), (bloom, "transformer."), (opt, "model.")],
    ids=["llama without model.", "bloom without transformer.", "opt without model."],
)
def test_names_may_lack_the_model_class_s_prefix(tmp_path: Path, write: Callable[..., Any], prefix: str) -> None:
    write(tmp_path)
    before = {name: array.copy() for name, array in arrays(tmp_path).items()}
    stripped = {name.removeprefix(prefix): tensor for name, tensor in state(tmp_path).items()}
    assert stripped.keys() != state(tmp_path).keys()
    rewrite(tmp_path, stripped)
    after = arrays(tmp_path)
    assert before.keys() == after.keys()
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array)


def test_a_header_may_hold_some_hundred_kilobytes_beside_its_tensors(single: Path) -> None:
    """What trainers write of themselves; and no more than a megabyte of it."""
    before, tensors = arrays(single), state(single)
    save_file(tensors, single / SINGLE, metadata={"history": "x" * 600_000})
    assert {name: array.tobytes() for name, array in arrays(single).items()} == {
        n: a.tobytes() for n, a in before.items()
    }
    save_file(tensors, single / SINGLE, metadata={"history": "x" * 3_000_000})
    refused(single, SINGLE)


def test_a_half_renamed_checkpoint_is_refused(single: Path) -> None:
    rewrite(single, {n.removeprefix("model.") if "layers.1" in n else n: t for n, t in state(single).items()})
    refused(single, "model.layers.1.", "is missing")


def test_a_tied_head_that_was_saved_all_the_same_is_no_leftover(tmp_path: Path) -> None:
    llama(tmp_path, tied=True)
    rewrite(tmp_path, state(tmp_path) | {"lm_head.weight": state(tmp_path)["model.embed_tokens.weight"].clone()})
    assert len(load_parts(tmp_path)) == 5


CUTS = {"empty": 0, "in the length": 7, "before the header": 8, "in the header": 500, "half": 0.5, "last byte": -1}


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS.keys())
def test_a_file_cut_short_is_named(single: Path, cut: float) -> None:
    data = (single / SINGLE).read_bytes()
    (single / SINGLE).write_bytes(data[: int(len(data) * cut) if isinstance(cut, float) else cut])
    refused(single, str(single / SINGLE), "cut short")


def test_a_shard_cut_short_or_missing_is_named(sharded: Path) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-1])
    refused(sharded, str(shard), "cut short")
    shard.unlink()
    refused(sharded, str(shard), "missing")


@pytest.mark.parametrize("length", [0, 1, 200_000, 2**40, 2**63, 2**64 - 1])
def test_a_header_of_a_false_length_is_refused(single: Path, length: int) -> None:
    data = (single / SINGLE).read_bytes()
    (single / SINGLE).write_bytes(struct.pack("<Q", length) + data[8:])
    refused(single, str(single / SINGLE))


def test_no_damage_to_a_header_ends_in_another_error(single: Path) -> None:
    data = (single / SINGLE).read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    random = np.random.default_rng(0)
    messages = []
    for at in random.integers(0, header, 400):
        (single / SINGLE).write_bytes(data[:at] + random.bytes(1) + data[at + 1 :])
        try:
            load_parts(single)
        except CheckpointError as error:
            messages.append(str(error))
    assert len(messages) > 350
    assert all(str(single) in message for message in messages)


INDEXES = {
    "not JSON": "{", "an array": "[]", "without a map": "{}", "a map of another type": '{"weight_map": ["a"]}',
    "a file that is a number": '{"weight_map": {"a": 1}}', "null": "null", "deep": "[" * 100_000, "binary": "\0\x01",
}  # fmt: skip


@pytest.mark.parametrize("content", INDEXES.values(), ids=INDEXES.keys())
def test_a_bad_index_is_named(sharded: Path, content: str) -> None:
    (sharded / INDEX).write_text(content)
    refused(sharded, str(sharded / INDEX))


def point(folder: Path, target: str) -> None:
    """Let the index name `target` in the place of its first shard."""
    index = json.loads((folder / INDEX).read_text())
    first = min(index["weight_map"].values())
    index["weight_map"] = {n: target if file == first else file for n, file in index["weight_map"].items()}
    (folder / INDEX).write_text(json.dumps(index))


WAYS_OUT = {
    "up": "../out", "absolute": "{outside}", "down and up": "a/../../out",
    "the parent": "..", "nothing": "", "a NUL": "a\0b", "a backslash": "x\\y",
}  # fmt: skip


@pytest.mark.parametrize("target", WAYS_OUT.values(), ids=WAYS_OUT.keys())
def test_an_index_that_leads_out_of_its_folder_is_refused(sharded: Path, target: str) -> None:
    outside = sharded.parent / "out"
    shutil.copy(min(sharded.glob("*.safetensors")), outside)  # sound, and what the index should have named
    point(sharded, target.format(outside=outside))
    refused(sharded, str(sharded / INDEX), "outside")


NO_SHARDS = {
    "too long a name": "a" * 300, "half a surrogate pair": "\ud800", "three lines": "a\nb\nc", "a folder": "folder",
    "a link to itself": "loop", "another file": "config.json", "itself": ".",
}  # fmt: skip


@pytest.mark.parametrize("target", NO_SHARDS.values(), ids=NO_SHARDS.keys())
def test_an_index_that_names_what_is_no_shard_is_refused(sharded: Path, target: str) -> None:
    (sharded / "folder").mkdir()
    (sharded / "loop").symlink_to("loop")
    point(sharded, target)
    refused(sharded, str(sharded))


def test_a_shard_may_lie_in_a_folder_of_the_checkpoint(sharded: Path) -> None:
    (sharded / "weights").mkdir()
    first = min(sharded.glob("*.safetensors"))
    first.rename(sharded / "weights" / first.name)
    point(sharded, f"weights/{first.name}")
    assert len(load_parts(sharded)) == 5


@pytest.mark.parametrize("kind", ["single", "sharded"])
def test_the_hub_cache_s_links_into_its_blobs_are_followed(sources: dict[str, Path], tmp_path: Path, kind: str) -> None:
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "0123abcd"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for i, file in enumerate(sorted(sources[kind].iterdir())):
        shutil.copy(file, blobs / f"{i:040x}")
        (snapshot / file.name).symlink_to(os.path.relpath(blobs / f"{i:040x}", snapshot))
    assert len(load_parts(snapshot)) == 5
    shard = min(snapshot.glob("*.safetensors"))
    shutil.move(shard.resolve(), tmp_path / "elsewhere")
    shard.unlink()
    shard.symlink_to(tmp_path / "elsewhere")
    assert len(load_parts(snapshot)) == 5  # as the hub's own client and shared stores have them
    shard.unlink()
    shard.symlink_to("/proc/self/mounts")
    refused(snapshot, shard.name, "a file of the kernel's")
    shard.unlink()
    shard.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    refused(snapshot, shard.name, "Git LFS pointer", "git lfs pull")


def damage(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = state(folder)
        change(tensors)
        rewrite(folder, tensors)

    return apply


def poke(name: str, value: float) -> Callable[[Path], None]:
    return damage(lambda t: t[name].view(-1)[70 % t[name].numel()].fill_(value))


BAD = {
    "a tensor is missing": (damage(lambda t: t.pop(DOWN)), [DOWN, "missing"]),
    "a wrong shape": (damage(lambda t: t.update({DOWN: t[DOWN][:, 1:]})), [SINGLE, DOWN, "[64, 95]", "[64, 96]"]),
    "a matrix turned": (damage(lambda t: t.update({DOWN: t[DOWN].T})), [SINGLE, DOWN, "[96, 64]"]),
    "a flat matrix": (damage(lambda t: t.update({DOWN: t[DOWN].flatten()})), [SINGLE, DOWN, "[6144]"]),
    "int8": (damage(lambda t: t.update({DOWN: t[DOWN].to(torch.int8)})), [SINGLE, DOWN, "I8"]),
    "int64": (damage(lambda t: t.update({DOWN: t[DOWN].long()})), [SINGLE, DOWN, "I64"]),
    "float8": (damage(lambda t: t.update({DOWN: t[DOWN].to(torch.float8_e4m3fn)})), [SINGLE, DOWN, "F8_E4M3"]),
    "NaN in a linear": (poke(DOWN, float("nan")), [SINGLE, DOWN, "NaN or inf in 1 of its 64 rows"]),
    "-inf in a linear": (poke(DOWN, float("-inf")), [SINGLE, DOWN, "NaN or inf in 1 of its 64 rows"]),
    "NaN in the table": (poke("lm_head.weight", float("nan")), [SINGLE, "lm_head", "NaN or inf in 1 of its 320 rows"]),
    "NaN in a norm": (poke("model.norm.weight", float("nan")), [SINGLE, "model.norm.weight", "NaN or inf"]),
    "a layer too many": (lambda folder: edit_config(folder, num_hidden_layers=1), [SINGLE, "layers.1.", "no place"]),
    "a layer too few": (lambda folder: edit_config(folder, num_hidden_layers=3), ["layers.2.", "missing"]),
    "a stranger": (damage(lambda t: t.update({"model.extra": torch.ones(3)})), [SINGLE, "model.extra", "no place"]),
    "a name of many lines": (damage(lambda t: t.update({"a\nb\nc": torch.ones(3)})), [SINGLE, "no place"]),
    "no weights": (lambda folder: (folder / SINGLE).unlink(), [SINGLE]),
    "config.json cut": (lambda folder: (folder / "config.json").write_text('{"a"'), ["config.json", "JSON"]),
    "config.json an array": (lambda folder: (folder / "config.json").write_text("[]"), ["config.json", "object"]),
}  # fmt: skip


@pytest.mark.parametrize(("change", "words"), BAD.values(), ids=BAD.keys())
def test_a_bad_checkpoint_is_refused(single: Path, change: Callable[[Path], object], words: list[str]) -> None:
    change(single)
    refused(single, str(single), *words)

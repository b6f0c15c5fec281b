"""Folders of torch.save's files: what is read is what was saved, and no damaged or hostile file reaches torch, runs
anything, takes memory, or ends in anything but a CheckpointError of one line that names it."""

import builtins
import json
import os
import pickle
import resource
import shutil
import struct
import tracemalloc
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bigrun.checkpoint.formats.torch_bin import INDEX, SINGLE, TorchCheckpoint, stored_tensors
from bigrun.errors import CheckpointError
from support.checkpoints import llama, state

LITTLE = 8 * 2**20  # bytes that a hostile file may cost
ORDERED = "collections OrderedDict"
V2, V3, PARAMETER = (f"torch._utils _rebuild_{what}" for what in ("tensor_v2", "tensor_v3", "parameter"))


def convert(source: Path, folder: Path) -> None:
    """A safetensors folder as one of torch.save's, in as many shards."""
    folder.mkdir()
    shutil.copy(source / "config.json", folder)
    index = source / "model.safetensors.index.json"
    if not index.exists():
        torch.save(state(source), folder / SINGLE)
        return
    homes = {n: f.replace("model", "pytorch_model") for n, f in json.loads(index.read_text())["weight_map"].items()}
    homes = {name: file.replace(".safetensors", ".bin") for name, file in homes.items()}
    tensors = state(source)
    for file in set(homes.values()):
        torch.save(OrderedDict((n, tensors[n]) for n in tensors if homes[n] == file), folder / file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": homes}))


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    for kind, shard in (("single", "1GB"), ("sharded", "60KB")):
        llama(folder / f"{kind}-safe", max_shard_size=shard)
        convert(folder / f"{kind}-safe", folder / kind)
    assert len(list((folder / "sharded").glob("*.bin"))) > 3
    return {kind: folder / kind for kind in ("single", "sharded")}


@pytest.fixture
def sharded(sources: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(sources["sharded"], tmp_path / "model"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with its configuration and no weights yet."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    return tmp_path / "model"


def bits(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach().contiguous()
    return tensor.numpy() if tensor.dtype == torch.float32 else tensor.view(torch.int16).numpy().view(np.uint16)


def check(checkpoint: TorchCheckpoint, saved: dict[str, torch.Tensor]) -> None:
    assert checkpoint.tensors.keys() == saved.keys()
    for name, tensor in saved.items():
        info = checkpoint.tensors[name]
        assert (info.shape, info.nbytes, info.readable) == (tuple(tensor.shape), tensor.nbytes, True)
        assert Path(info.where) in checkpoint.paths
        for start, stop in ((0, len(tensor)), (1, 4), (len(tensor) - 1, len(tensor)), (2, 2)):
            checkpoint.ahead(name, start, stop)
            rows = checkpoint.rows(name, start, stop)
            assert rows.is_bfloat == (tensor.dtype == torch.bfloat16)
            np.testing.assert_array_equal(rows.values, bits(tensor)[start:stop], strict=True)
            checkpoint.done(name, start, stop)
            np.testing.assert_array_equal(rows.values, bits(tensor)[start:stop], strict=True)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shard", ["1GB", "60KB"], ids=["single", "sharded"])
def test_rows_are_those_of_the_safetensors_that_the_folder_was_made_of(tmp_path: Path, shard: str, dtype: str) -> None:
    llama(tmp_path / "safe", dtype=dtype, max_shard_size=shard, layers=1)
    convert(tmp_path / "safe", tmp_path / "bin")
    checkpoint = TorchCheckpoint(tmp_path / "bin")
    check(checkpoint, state(tmp_path / "safe"))
    assert sorted(checkpoint.paths) == sorted((tmp_path / "bin").glob("*.bin"))
    assert (checkpoint.where, checkpoint.dialect) == (str(tmp_path / "bin"), "hf")
    assert checkpoint.config == json.loads((tmp_path / "safe" / "config.json").read_text())


def test_rows_are_a_view_of_the_file_that_nobody_can_write_to(sources: dict[str, Path]) -> None:
    checkpoint = TorchCheckpoint(sources["single"])
    one, two = (checkpoint.rows("lm_head.weight", start, 10).values for start in (0, 4))
    assert np.shares_memory(one[4:], two)
    assert not one.flags.writeable
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(sources["single"]) in line]
    ranges = [[int(end, 16) for end in line.split()[0].split("-")] for line in mapped]
    assert any(first <= one.ctypes.data < last for first, last in ranges)


def test_rows_that_are_done_with_are_not_kept_in_memory(folder: Path) -> None:
    def mapped() -> int:
        return int(next(x for x in Path("/proc/self/status").read_text().splitlines() if "RssFile" in x).split()[1])

    for turned in (False, True):
        big = torch.ones(2048, 4096)
        torch.save({"big": big.T if turned else big}, folder / SINGLE)
        checkpoint = TorchCheckpoint(folder)
        before = mapped()
        assert checkpoint.rows("big", 0, 2000).values.sum() == 2000 * (2048 if turned else 4096)
        assert mapped() - before > 20_000
        checkpoint.done("big", 0, 2000)
        assert mapped() - before < 2000
        assert checkpoint.rows("big", 0, 2000).values.all()


def test_tensors_may_lie_in_their_data_in_any_order_and_share_it(folder: Path) -> None:
    base = torch.randn(12, 10)
    saved = {
        "turned": base.T, "every other": base[::2, 1::3], "middle": base[3:7], "whole": base, "again": base,
        "reshaped": base.view(6, 20), "half": base.half().T, "bfloat": base.bfloat16()[:, 2:], "flat": base[:, 0],
        "parameter": torch.nn.Parameter(base.clone().T), "deep": torch.randn(4, 3, 2).transpose(0, 2),
        "odd": torch.randn(7).half()[1:],
    }  # fmt: skip
    torch.save(saved, folder / SINGLE)
    check(TorchCheckpoint(folder), saved)


def padded(path: Path, saved: dict[str, torch.Tensor]) -> None:
    """torch.save's file with other padding: a field of another length in each record's own header, none in the directory."""
    torch.save(saved, path)
    with zipfile.ZipFile(path) as archive:
        records = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for i, (name, content) in enumerate(records):
            info = zipfile.ZipInfo(name)
            info.extra = struct.pack("<HH", 0x4246, 7 + i) + b"Z" * (7 + i)
            archive.writestr(info, content)
            info.extra = b""


@pytest.mark.parametrize("write", [lambda path, saved: torch.save(saved, path), padded], ids=["torch's", "padded"])
def test_a_tensor_s_first_byte_is_where_it_lies_in_the_file(
    folder: Path, write: Callable[[Path, dict[str, torch.Tensor]], None]
) -> None:
    """Behind its record's own header, with that one's padding, and behind the tensors that share its record."""
    base = torch.randn(12, 10)
    saved = {"base": base, "middle": base[3:7], "alone": torch.randn(5, 3).half(), "flat": torch.randn(7).bfloat16()}
    write(folder / SINGLE, saved)
    data, stored = (folder / SINGLE).read_bytes(), stored_tensors(folder / SINGLE)
    assert stored.keys() == saved.keys()
    for name, tensor in saved.items():
        first = stored[name].first
        assert data[first : first + tensor.nbytes] == bits(tensor).tobytes(), name
    check(TorchCheckpoint(folder), saved)


@pytest.mark.parametrize(
    "wrap", [dict, OrderedDict, lambda tensors: {"state_dict": tensors}], ids=["dict", "ordered", "one level down"]
)
def test_a_module_s_state_dict_is_read(folder: Path, wrap: Callable[[Any], Any]) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.LayerNorm(4))
    torch.save(wrap(module.state_dict(keep_vars=True)), folder / SINGLE)
    check(TorchCheckpoint(folder), module.state_dict())


def test_a_thousand_tensors_take_no_time(folder: Path) -> None:
    saved = {f"model.layers.{i}.self_attn.q_proj.weight": torch.nn.Parameter(torch.zeros(2, 4)) for i in range(2500)}
    torch.save(saved, folder / SINGLE)
    assert len(TorchCheckpoint(folder).tensors) == 2500


def test_other_numbers_are_listed_and_not_readable(folder: Path) -> None:
    names = {
        "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
        "BOOL": torch.bool, "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "C64": torch.complex64,
        "C128": torch.complex128, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
        "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    }  # fmt: skip
    saved = {name: torch.zeros(3, 5).to(dtype) for name, dtype in names.items()}
    torch.save(saved | {"F32": torch.ones(2, 3), "none": torch.zeros(0, 3)}, folder / SINGLE)
    checkpoint = TorchCheckpoint(folder)
    for name, tensor in saved.items():
        info = checkpoint.tensors[name]
        assert (info.dtype, info.shape, info.nbytes, info.readable) == (name, (3, 5), tensor.nbytes, False)
    assert checkpoint.rows("F32", 0, 2).values.tolist() == [[1.0] * 3] * 2
    torch.save({"F64": torch.tensor([[1 / 3, 1e300], [2.0, -0.5]], dtype=torch.float64)}, folder / SINGLE)
    rows = TorchCheckpoint(folder).rows("F64", 0, 2).values  # as float32, which is all that anything is made from
    assert rows.dtype == np.float32
    assert rows.tolist() == [[float(np.float32(1 / 3)), float("inf")], [2.0, -0.5]]
    assert checkpoint.rows("none", 0, 0).values.shape == (0, 3)


class Call:
    """A global by its name, called with these values."""

    def __init__(self, name: str, *arguments: Any):
        self.name, self.arguments = name, arguments


class Stored(tuple):
    """What torch's persistent ids are."""


def emit(value: Any) -> bytes:
    """A pickle's instructions for a value, as torch.save writes them."""
    match value:
        case bytes():
            return value
        case None | bool():
            return {None: b"N", True: b"\x88", False: b"\x89"}[value]
        case int():
            digits = pickle.encode_long(value)
            return b"\x8a" + bytes([len(digits)]) + digits
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case Stored():
            return emit(tuple(value)) + b"Q"
        case tuple():
            return b"(" + b"".join(map(emit, value)) + b"t"
        case dict():
            return b"}(" + b"".join(emit(key) + emit(entry) for key, entry in value.items()) + b"u"
        case Call():
            return named(value.name) + emit(value.arguments) + b"R"
    raise TypeError(value)


def named(name: str) -> bytes:
    return b"c" + name.replace(" ", "\n").encode() + b"\n"


def storage(kind: str = "torch FloatStorage", key: Any = "0", count: Any = 6) -> Stored:
    return Stored(("storage", named(kind), key, "cpu", count))


def tensor(
    first: Any = 0, shape: Any = (2, 3), strides: Any = (3, 1), held: Any = None, made: str = V2, *more: Any
) -> Call:
    return Call(made, held or storage(), first, shape, strides, False, Call(ORDERED), *more)


def pack(
    path: Path, program: bytes, /, folder: str = "archive/", how: int = zipfile.ZIP_STORED, **records: Any
) -> None:
    """A file as torch.save lays it out: this data.pkl, and 24 bytes of data."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{folder}data.pkl", program, how)
        for name, content in (
            {"data/0": np.arange(6, dtype=np.float32).tobytes(), "version": b"3\n"} | records
        ).items():
            archive.writestr(folder + name, content)


def program(value: Any) -> bytes:
    return b"\x80\2" + emit(value) + b"."


def test_a_file_that_a_test_lays_out_is_read(folder: Path) -> None:
    pack(
        folder / SINGLE, program({"a": tensor(), "b": Call(PARAMETER, tensor(2, (2, 2), (1, 2)), True, Call(ORDERED))})
    )
    checkpoint = TorchCheckpoint(folder)
    assert checkpoint.rows("a", 0, 2).values.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert checkpoint.rows("b", 0, 2).values.tolist() == [[2, 4], [3, 5]]


def refused(folder: Path, *words: str, monkeypatch: pytest.MonkeyPatch, name: str = SINGLE) -> str:
    """The message with which the folder is refused before torch, in one line, in little memory, with nothing run."""

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("was called")

    for module, function in (
        (torch, "load"),
        (os, "system"),
        (builtins, "eval"),
        (pickle, "loads"),
    ):
        monkeypatch.setattr(module, function, never)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError) as caught:
            _ = TorchCheckpoint(folder).tensors
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        monkeypatch.undo()
    assert peak < LITTLE
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2 * LITTLE >> 10  # tracemalloc's own among it
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert len(message) < 600
    assert str(folder / name) in message
    assert all(word in message for word in words), message
    assert caught.value.exit_status == 4
    return message


class Reduced:
    def __init__(self, function: Any, *arguments: Any):
        self.reduced = (function, arguments)

    def __reduce__(self) -> Any:
        return self.reduced


ONE = tensor(0, (1,), (1,))
SHARED = "a\nb\x1b[31m"
PROGRAMS = {
    "os.system": (pickle.dumps(Reduced(os.system, "touch ran"), 2), ["holds code: posix.system"]),
    "os.system in the dict": (program({"a": tensor(), "b": Call("os system", "touch ran")}), ["holds code: os.system"]),
    "eval": (pickle.dumps({"a": Reduced(eval, "1")}, 2), ["holds code: __builtin__.eval"]),
    "a class": (pickle.dumps({"a": Reduced(shutil.rmtree, "/nowhere")}, 2), ["holds code: shutil.rmtree"]),
    "an attribute": (program({"a": Call("torch hub.load", "a", "b")}), ["holds code: torch.hub.load"]),
    "10¹² bytes": (pickle.dumps(Reduced(bytearray, 10**12), 2), ["holds code: __builtin__.bytearray"]),
    "an escape in a name": (b"\x80\2c" + rb"collections" + b"\n" + rb"Ordered\x44ict" + b"\n)R.", ["an escape"]),
    "a name by the stack": (b"\x80\2" + emit("os") + emit("system") + b"\x93.", ["STACK_GLOBAL"]),
    "an instance": (b"\x80\2ios\nsystem\n.", ["INST"]),
    "an object": (b"\x80\2" + named(ORDERED) + b")\x81.", ["NEWOBJ"]),
    "an extension": (b"\x80\2\x82\1.", ["EXT1"]), "a list": (b"\x80\2].", ["EMPTY_LIST"]),
    "a bytearray of 2⁶⁰": (b"\x80\2\x96" + struct.pack("<Q", 2**60) + b".", ["damaged"]),
    "text of 2³² - 1": (b"\x80\2X\xff\xff\xff\xff.", ["damaged"]),
    "a number of 255 bytes": (program({"a": 2**2030}), ["63 bits"]), "a negative": (program({"a": -1}), ["negative"]),
    "a memo of 2³¹": (b"\x80\2}r\0\0\0\x80.", ["asks for 2147483648 places"]),
    "a memo ahead": (b"\x80\2}q\5.", ["asks for 5 places"]), "nothing remembered": (b"\x80\2h\0.", ["damaged"]),
    # a thousand names and tensors are on it at most, as torch.save writes them
    "a stack of 5,000": (b"\x80\2" + b"N" * 5000 + b".", ["more objects"]),
    "a stack of 10⁶": (b"\x80\2" + b")" * 2**19 + b".", ["more objects"]),
    "marks": (b"\x80\2" + b"(" * 2**19 + b".", ["more objects"]),
    "dicts of one": (b"\x80\2Nq\0" + (b"}(" + emit("") + b"Nu\x85" + b"}\x86" * 3) * 9000 + b".", ["more objects"]),
    "a tuple in tuples": (b"\x80\2)" + b"\x85" * 2**19 + b".", ["more objects"]),
    "memos": (b"\x80\2" + b"".join(b"}r" + struct.pack("<I", i) + b"\x85" for i in range(90000)) + b".", ["more obj"]),
    "too long": (program({"a": "a" * 2**20}), ["data.pkl", "more than"]),
    "nothing": (b"", ["damaged"]), "no end": (b"\x80\2}", ["damaged"]), "the end alone": (b".", ["damaged"]),
    "more after the end": (program({"a": tensor()}) + b"}.", ["does not end where"]),
    "protocol 4": (pickle.dumps({"a": 1}, 4), ["protocol 4", "torch.save"]),
    "no dict": (program("text"), ["holds text"]), "a tensor alone": (program(tensor()), ["not a dict of tensors"]),
    "text": (program({"a": tensor(), "b": "c"}), ["'b' is text"]), "a number": (program({"epoch": 3}), ["'epoch' is a num"]),
    "a dict in the dict": (program({"a": {"b": tensor()}}), ["'a' is a dict"]),
    "two levels down": (program({"state_dict": {"state_dict": {"a": tensor()}}}), ["is a dict"]),
    "the dict itself": (b"\x80\2}q\0" + emit("state_dict") + b"h\0s.", ["is a dict"]),
    "a number for a name": (program({3: tensor()}), ["for a name"]), "bytes": (b"\x80\3C\1a.", ["protocol 3"]),
    "a name of lines": (program({SHARED: 1}), ["is a number"]),
    "attributes": (program({"a": ONE})[:-1] + emit({"__class__": 1}) + b"b.", ["attributes"]),
    "attributes of an ordered dict": (program(Call(ORDERED))[:-1] + emit({"keys": 1}) + b"b.", ["attributes"]),
    "a storage called": (program({"a": Call("torch FloatStorage", 10**12)}), ["torch.FloatStorage"]),
    "a dtype called": (program({"a": Call("torch float32")}), ["torch.float32"]),
    "arguments for a dict": (program(Call(ORDERED, ((("a", 1),),))), ["collections.OrderedDict"]),
    "a function of three": (program({"a": Call(V2, storage(), 0, (1,))}), ["_rebuild_tensor_v2"]),
    "a string for a shape": (program({"a": tensor(shape="ab")}), ["in a way"]),
    "true for a size": (program({"a": tensor(shape=(True, 3))}), ["in a way"]),
    "sizes without strides": (program({"a": tensor(strides=(1,))}), ["in a way"]),
    "nine dimensions": (program({"a": tensor(shape=(1,) * 9, strides=(1,) * 9)}), ["in a way"]),
    "2⁴⁰ rows": (program({"a": tensor(shape=(2**40, 3))}), ["larger than the 24 bytes"]),
    "2⁴⁰ rows of one": (program({"a": tensor(shape=(2**40, 3), strides=(0, 1))}), ["larger than the 24 bytes"]),
    "one entry for all": (program({"a": tensor(shape=(3, 4), strides=(0, 0))}), ["larger than the 24 bytes"]),
    "2⁵⁰⁰ entries": (program({"a": tensor(shape=(2**62,) * 8, strides=(0,) * 8)}), ["larger"]),
    "a long stride": (program({"a": tensor(strides=(2**62, 1))}), ["larger"]),
    "a byte too far": (program({"a": tensor(strides=(4, 1))}), ["larger"]),
    "an offset too far": (program({"a": tensor(1)}), ["larger"]),
    "an offset of 2⁶²": (program({"a": tensor(2**62)}), ["larger"]),
    "nothing, far away": (program({"a": tensor(2**62, (0,), (1,))}), ["larger"]),
    "another type's dtype": (program({"a": tensor(0, (2, 3), (3, 1), None, V3, named(ORDERED))}), ["damaged"]),
    "wider than its data": (
        program({"a": tensor(0, (6,), (1,), storage("torch.storage UntypedStorage", "0", 24), V3, named("torch float64"))}),
        ["larger"],
    ),
    "more data than there is": (program({"a": tensor(held=storage(count=2**40))}), ["24 bytes", str(2**40)]),
    "less data than there is": (program({"a": tensor(0, (1,), (1,), storage(count=5))}), ["24 bytes"]),
    "data that is not there": (program({"a": tensor(held=storage(key="1"))}), ["not in the file"]),
    "data by a number": (program({"a": tensor(held=storage(key=0))}), ["not in the file"]),
    "data of no type": (program({"a": tensor(held=storage(ORDERED))}), ["not in the file"]),
    "data of another kind": (program({"a": tensor(held=Stored(("module", "a")))}), ["not in the file"]),
    "data of two types": (
        program({"a": ONE, "b": tensor(0, (1,), (1,), storage("torch IntStorage"))}), ["24 bytes", "I32"]
    ),
    "quantised": (program({"a": tensor(held=storage("torch QInt8Storage"))}), ["holds code: torch.QInt8Storage"]),
}  # fmt: skip


@pytest.mark.parametrize(("content", "words"), PROGRAMS.values(), ids=PROGRAMS.keys())
def test_a_hostile_program_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, words: list[str]
) -> None:
    pack(folder / SINGLE, content)
    monkeypatch.chdir(folder)
    refused(folder, *words, monkeypatch=monkeypatch)
    assert not (folder / "ran").exists()


GOOD = program({"a": tensor()})


def edit(change: Callable[[bytearray], object]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        pack(path, GOOD)
        content = bytearray(path.read_bytes())
        change(content)
        path.write_bytes(content)

    return apply


def central(at: int, code: str, value: int) -> Callable[[Path], None]:
    """Change a field of the directory's entry of data/0."""

    def change(content: bytearray) -> None:
        place = content.rindex(b"archive/data/0") - 46
        assert content[place : place + 4] == b"PK\1\2"
        struct.pack_into("<" + code, content, place + at, value)

    return edit(change)


def twice(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", GOOD)
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("archive/data.pkl", program({"a": 1}))


def prefixed(path: Path) -> None:
    pack(path, GOOD)
    path.write_bytes(b"PK\3\4" + bytes(28) + path.read_bytes())


def old(path: Path) -> None:
    torch.save({"a": torch.ones(3)}, path, _use_new_zipfile_serialization=False)


def beside(name: str, content: Any) -> Callable[[Path], None]:
    """A record of any name, beside the good ones."""
    return lambda path: pack(path, GOOD, **{name: content})


def long_directory(path: Path) -> None:
    many: dict[str, Any] = {f"data/{i}": b"" for i in range(1, 18000)}
    pack(path, GOOD, **many)


FILES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "empty": (lambda path: path.write_bytes(b""), ["empty"]),
    "one byte": (lambda path: path.write_bytes(b"P"), ["not a file of torch.save"]),
    "text": (lambda path: path.write_text("version https://git-lfs"), ["not a file of torch.save"]),
    "a folder": (lambda path: path.mkdir(), ["no plain file"]), "a pipe": (lambda path: os.mkfifo(path), ["no plain file"]),
    "a Git LFS pointer": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), ["Git LFS pointer"]),
    "a dangling link": (lambda path: path.symlink_to("gone"), ["missing"]),
    "a link to text": (lambda path: path.symlink_to("/etc/passwd"), ["not a file of torch.save"]),
    "a link into /proc": (lambda path: path.symlink_to("/proc/self/mounts"), ["a file of the kernel's"]),
    "the old format": (old, ["before 1.6", "torch.save(torch.load("]),
    "a bare pickle": (lambda path: path.write_bytes(pickle.dumps(Reduced(os.system, "touch ran"))), ["bare pickle"]),
    "data.pkl compressed": (lambda path: pack(path, bytes(2**26), how=zipfile.ZIP_DEFLATED), ["compressed"]),
    "data.pkl of 64 MB": (lambda path: pack(path, bytes(2**26)), ["data.pkl", "more than"]),
    "a note of 64 MB": (lambda path: pack(path, GOOD, byteorder=bytes(2**26)), ["byteorder", "more than"]),
    "no data.pkl": (lambda path: pack(path, GOOD, "a/b/"), ["without data.pkl"]),
    "data.pkl twice": (twice, ["a second"]),
    "DATA.PKL too": (beside("DATA.PKL", b"."), ["a second"]),
    "TorchScript": (beside("constants.pkl", b"."), ["holds code", "TorchScript"]),
    "TorchScript's code": (beside("code/a.py", b"1"), ["holds code", "TorchScript"]),
    "big-endian": (lambda path: pack(path, GOOD, byteorder=b"big"), ["little-endian"]),
    "something before it": (prefixed, ["not where it says"]),
    "something after it": (edit(lambda content: content.extend(b"more")), ["cut short"]),
    "a comment": (edit(lambda content: content.__setitem__(slice(-2, None), b"\1\0a")), ["cut short"]),
    "a long directory": (long_directory, ["a zip directory of"]),
    "a record beyond the end": (central(24, "I", 2**30), ["ends beyond"]),
    "a record of a false place": (central(42, "I", 7), ["not a sound zip"]),
    "a record over another": (central(42, "I", 0), ["not a sound zip"]),
    "a compressed record": (central(10, "H", 8), ["compressed"]), "an encrypted record": (central(8, "H", 1), ["not what the"]),
    "a damaged data.pkl": (edit(lambda c: c.__setitem__(c.index(GOOD) + 9, 0)), ["damaged"]),
}  # fmt: skip


@pytest.mark.parametrize(("make", "words"), FILES.values(), ids=FILES.keys())
def test_a_hostile_file_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], object], words: list[str]
) -> None:
    make(folder / SINGLE)
    refused(folder, *words, monkeypatch=monkeypatch)


def test_a_file_cut_short_is_refused(folder: Path, sources: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = (sources["single"] / SINGLE).read_bytes()
    for size in (3, 4, 30, 1000, len(whole) // 2, len(whole) - 100, len(whole) - 22, len(whole) - 1):
        (folder / SINGLE).write_bytes(whole[:size])
        refused(folder, monkeypatch=monkeypatch)


def test_no_damage_to_a_file_ends_in_another_error(folder: Path) -> None:
    torch.save({"a": torch.randn(3, 4), "b": torch.nn.Parameter(torch.randn(5).half())}, folder / SINGLE)
    whole, random, messages = (folder / SINGLE).read_bytes(), np.random.default_rng(0), []
    for at in random.integers(0, len(whole), 600):
        (folder / SINGLE).write_bytes(whole[:at] + random.choice([random.bytes(1), b"\xff", b"\0"]) + whole[at + 1 :])
        try:
            checkpoint = TorchCheckpoint(folder)
            for name, info in checkpoint.tensors.items():
                if info.readable:
                    checkpoint.rows(name, 0, info.shape[0])
        except CheckpointError as error:
            messages.append(str(error))
    assert len(messages) > 100
    assert all(str(folder / SINGLE) in message for message in messages)


def test_what_torch_raises_or_reads_otherwise_is_a_checkpoint_error(
    sources: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("unable to mmap\n\nfor paragraphs")

    checkpoint = TorchCheckpoint(sources["single"])
    name = next(iter(checkpoint.tensors))
    for replacement, words in ((fails, "unable to mmap"), (lambda *_, **__: {}, "cannot map"), (3, "cannot map")):
        monkeypatch.setattr(torch, "load", replacement)
        with pytest.raises(CheckpointError, match=words) as caught:
            checkpoint.rows(name, 0, 1)
        assert len(str(caught.value).splitlines()) == 1
    other = dict.fromkeys(checkpoint.tensors, torch.zeros(3))
    monkeypatch.setattr(torch, "load", lambda *_, **__: other)
    with pytest.raises(CheckpointError, match="other tensors"):
        checkpoint.rows(name, 0, 1)


def point(folder: Path, target: str) -> None:
    index = json.loads((folder / INDEX).read_text())
    first = min(index["weight_map"].values())
    index["weight_map"] = {n: target if file == first else file for n, file in index["weight_map"].items()}
    (folder / INDEX).write_text(json.dumps(index))


WAYS_OUT = {
    "up": "../out", "absolute": "{outside}", "down and up": "a/../../out",
    "the parent": "..", "nothing": "", "a NUL": "a\0b", "a backslash": "x\\y", "lines": "a\nb",
    "too long": "a" * 300, "too long in bytes": "é" * 200, "half a surrogate pair": "\ud800",
}  # fmt: skip


@pytest.mark.parametrize("target", WAYS_OUT.values(), ids=WAYS_OUT.keys())
def test_an_index_that_leads_out_is_refused(sharded: Path, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    outside = sharded.parent / "out"
    shutil.copy(min(sharded.glob("*.bin")), outside)
    point(sharded, target.format(outside=outside))
    refused(sharded, "outside", monkeypatch=monkeypatch, name=INDEX)


def test_a_tensor_or_shard_that_the_index_names_must_be_there(sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = json.loads((sharded / INDEX).read_text())
    shards = sorted(set(index["weight_map"].values()))
    index["weight_map"]["model.more"] = shards[1]
    (sharded / INDEX).write_text(json.dumps(index))
    checkpoint = TorchCheckpoint(sharded)
    assert "model.more" not in checkpoint.tensors  # which its model would miss, if it were of use
    assert "model.more" in checkpoint.notes[0]
    (sharded / shards[2]).unlink()
    refused(sharded, "missing", monkeypatch=monkeypatch, name=shards[2])
    for content in ("{", "[]", "{}", '{"weight_map": ["a"]}', '{"weight_map": {"a": 1}}', "null"):
        (sharded / INDEX).write_text(content)
        refused(sharded, monkeypatch=monkeypatch, name=INDEX)
    (sharded / INDEX).unlink()
    refused(sharded, "neither", monkeypatch=monkeypatch, name="")


@pytest.mark.parametrize("home", ["first", "last"])
def test_of_a_tensor_in_two_shards_the_one_is_read_that_the_index_names(sharded: Path, home: str) -> None:
    """Published shards repeat what is tied or shared, and a repeated tensor need not be the same."""
    index = json.loads((sharded / INDEX).read_text())["weight_map"]
    first, last = min(index.values()), max(index.values())
    name = next(name for name, file in index.items() if file == (first if home == "first" else last))
    other = last if home == "first" else first
    right = torch.load(sharded / index[name])[name]
    torch.save(torch.load(sharded / other) | {name: -right[1:]}, sharded / other)
    checkpoint = TorchCheckpoint(sharded)
    info = checkpoint.tensors[name]
    assert (info.where, info.shape) == (str(sharded / index[name]), tuple(right.shape))
    np.testing.assert_array_equal(checkpoint.rows(name, 0, len(right)).values, bits(right))


def test_each_tensor_is_in_the_file_that_the_index_names(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())["weight_map"]
    where = {name: info.where for name, info in TorchCheckpoint(sharded).tensors.items()}
    assert where == {name: str(sharded / file) for name, file in index.items()}


def test_shards_that_the_index_does_not_name_are_not_opened(sharded: Path) -> None:
    before = set(TorchCheckpoint(sharded).tensors)
    (sharded / "optimizer.bin").write_bytes(pickle.dumps(Reduced(os.system, "touch ran")))
    assert set(TorchCheckpoint(sharded).tensors) == before


@pytest.mark.parametrize("kind", ["single", "sharded"])
def test_the_hub_cache_s_links_into_its_blobs_are_followed(
    sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "0123abcd"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for i, file in enumerate(sorted(sources[kind].iterdir())):
        shutil.copy(file, blobs / f"{i:040x}")
        (snapshot / file.name).symlink_to(os.path.relpath(blobs / f"{i:040x}", snapshot))
    checkpoint = TorchCheckpoint(snapshot)
    assert checkpoint.rows("lm_head.weight", 0, 2).values.shape == (2, 64)
    shard = min(snapshot.glob("*.bin"))
    shutil.move(shard.resolve(), tmp_path / "elsewhere")
    shard.unlink()
    shard.symlink_to(tmp_path / "elsewhere")
    linked = TorchCheckpoint(snapshot)  # as the hub's own client and shared stores have them
    assert (
        linked.rows("lm_head.weight", 0, 2).values.tolist() == checkpoint.rows("lm_head.weight", 0, 2).values.tolist()
    )

# ruff: noqa: E501, UP031, PT017 (tables of cases; JSON is full of braces; every message is looked at)
"""Checkpoints made to do harm: each ends `bigrun inspect` and a load in exit status 4 (or 2) with one line on standard error,
in little memory and in no time, whatever it says of its own size. What single formats refuse is tested with them; here
is what a whole command does, and what nobody thought of (Hypothesis)."""

import importlib.util
import json
import os
import shutil
import signal
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import gguf
import numpy as np
import pytest
import safetensors
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bigrun.checkpoint.formats.safetensors import INDEX, SINGLE, SafetensorsCheckpoint
from bigrun.checkpoint.formats.safetensors_header import parse, weight_map
from bigrun.cli.app import Group, inspect_command
from bigrun.cli.convert import convert_model
from bigrun.errors import BigrunError
from bigrun.loading.identity import digest
from bigrun.loading.manifest import MANIFEST
from bigrun.model.catalog import lookup as catalog
from bigrun.model.families.registry import spec_from_config
from bigrun.session.options import Options
from bigrun.text.tokenizer import Tokenizer
from bigrun.text.vocabulary_files import has_tokenizer
from support.checkpoints import edit_config, gguf_twin, llama, rewrite, state
from support.commands import run_benchmark, run_command, run_python
from support.long import LONG

LITTLE = 12 * 2**20  # bytes that Python may allocate at its peak
SECONDS = 15.0  # a command that takes longer hangs
DOWN = "model.layers.1.mlp.down_proj.weight"
FUZZ = importlib.util.spec_from_file_location("fuzz", Path(__file__).parents[1] / "benchmarks" / "fuzz.py")
assert FUZZ is not None
assert FUZZ.loader is not None
fuzz = importlib.util.module_from_spec(FUZZ)
FUZZ.loader.exec_module(fuzz)

Damage = Callable[[Path], object]


def folder_for_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()


def zeros(name: str) -> Damage:
    """A terabyte of them, and nothing else."""

    def apply(folder: Path) -> None:
        (folder / name).write_bytes(b"")
        os.truncate(folder / name, 2**40)

    return apply


@click.group(cls=Group)
def program() -> None:
    """The command line's own handling of errors, around a load without the executor, whose kernels take long to compile."""


@program.command("load")
@click.argument("path", type=click.Path(path_type=Path))
def load_command(path: Path) -> None:
    fuzz.load(path, cpu="1000TB")  # more than the files could ask for: what stops them must not be the plan
    if has_tokenizer(path):
        Tokenizer.from_folder(path)


program.add_command(inspect_command)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("sources")
    llama(home / "single", tokenizer=True)
    llama(home / "sharded", max_shard_size="60KB")
    shutil.copytree(home / "single", home / "bin")
    torch.save(state(home / "bin"), home / "bin" / "pytorch_model.bin")
    (home / "bin" / SINGLE).unlink()
    (home / "gguf").mkdir()
    gguf_twin(home / "single", home / "gguf" / "model.gguf")
    convert_model(Options.of(model=str(home / "single"), progress=False), home / "conversion")
    float8(torch.ones(64, 1))(Path(shutil.copytree(home / "single", home / "float8")))
    folders = {name: home / name for name in ("single", "sharded", "bin", "gguf", "conversion", "float8")}
    for name in folders:
        for command in ("inspect", "load"):  # everything is imported and compiled, and sound files are let through
            invoke(command, target(folders, name))
            status, _, stderr, peak = invoke(command, target(folders, name))
            assert (status, stderr) == (0, ""), (name, stderr)
            assert peak < LITTLE / 4, (name, command)
    return folders


def target(folders: dict[str, Path], source: str) -> Path:
    return folders[source] / "model.gguf" if source == "gguf" else folders[source]


class Hang(BaseException):
    """Not an Exception: the code under test catches none of this."""


def invoke(command: str, path: Path) -> tuple[int, str, str, int]:
    """(exit status, standard output, standard error, peak bytes of Python's allocations)."""

    def alarm(*_: Any) -> None:
        for fifo in path.parent.rglob("*"):
            if fifo.is_fifo():  # whoever waits in a thread for somebody to write is let go
                os.close(os.open(fifo, os.O_RDWR | os.O_NONBLOCK))
        raise Hang

    before = signal.signal(signal.SIGALRM, alarm)
    signal.setitimer(signal.ITIMER_REAL, 1.0 if path.parent.name == "fifo" else SECONDS)
    tracemalloc.start()
    try:
        result = run_command(command, path, program=program)
        return result.exit_code, result.stdout, result.stderr, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def refused(command: str, path: Path, little: int = LITTLE) -> None:
    """The promise."""
    status, stdout, stderr, peak = invoke(command, path)
    assert status in (2, 4), stderr
    assert stderr.count("\n") == 1, stderr
    assert stderr.startswith("bigrun: "), stderr
    assert stderr[:-1].isprintable(), repr(stderr)
    assert len(stderr) < 2000, stderr
    assert all(line.isprintable() for line in stdout.splitlines()), repr(stdout)
    assert peak < little, f"{peak >> 20} MiB"


# config.json


def config(text: str | bytes) -> Damage:
    return lambda folder: (folder / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())


def field(name: str, value: str) -> Damage:
    """A field of config.json; `value` is JSON, or what Python's reader takes for it."""

    def apply(folder: Path) -> None:
        edit_config(folder, **{name: "HERE"})
        path = folder / "config.json"
        path.write_text(path.read_text().replace('"HERE"', value))

    return apply


ABSURD = (
    "1" + "0" * 15,
    "-64",
    "64.0",
    '"64"',
    "[64]",
    "true",
    "1e308",
    "NaN",
    "null",
    "{}",
    "1" * 4000,
    "1" * 5000,
    "0",
    "-0.0",
)
FIELDS = {
    f"{name} {value[:18]}": ("single", field(name, value))
    for name in ("hidden_size", "vocab_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    for value in (ABSURD if name == "hidden_size" else (str(2**40), str(10**9), "true", "64.0"))
    if (name, value) != ("hidden_size", "64.0")
} | {"hidden_size 64.0": ("single", field("hidden_size", "64.0"))}
CONFIGS: dict[str, tuple[str, Damage]] = {
    "50 MB of config.json": ("single", lambda f: os.truncate(f / "config.json", 50 * 2**20)),
    "50 MB of spaces": ("single", config("{" + " " * (50 * 2**20) + "}")),
    "deep arrays": ("single", config("[" * 10**6)), "deep objects": ("single", config('{"a":' * 10**5)),
    "a deep field": ("single", field("rope_scaling", "[" * 5000 + "]" * 5000)),
    "a byte order mark": ("single", config(b"\xef\xbb\xbf{}")), "UTF-16": ("single", config("{}".encode("utf-16"))),
    "an architecture of control characters": ("single", field("architectures", r'["\u001b[31m\n\u202e"]')),
    "half a surrogate pair": ("single", field("architectures", r'["\ud800"]')),
    "a dtype of half a surrogate pair": ("single", field("dtype", r'"\udfff\n"')),
    "a folder for config.json": ("single", folder_for_config),
    "all at their limits": (
        "single",
        lambda f: edit_config(f, hidden_size=2**24, vocab_size=2**24, num_hidden_layers=4096, intermediate_size=2**24),
    ),
}  # fmt: skip

# The header of a safetensors file


def header(change: Callable[[dict[str, Any]], object], data: bytes | None = None) -> Damage:
    """The header rewritten by `change`, which returns it as text or alters the dict; its length fits."""

    def apply(folder: Path) -> None:
        raw = (folder / SINGLE).read_bytes()
        size = int.from_bytes(raw[:8], "little")
        entries = json.loads(raw[8 : 8 + size])
        made = change(entries)
        text = made if isinstance(made, str) else json.dumps(entries)
        rest = raw[8 + size :] if data is None else data
        (folder / SINGLE).write_bytes(struct.pack("<Q", len(text.encode())) + text.encode() + rest)

    return apply


def entry(**fields: Any) -> Damage:
    return header(lambda entries: entries[DOWN].update(fields))


def many(entries: dict[str, Any], count: int = 100_000) -> None:
    """Tensors of no numbers at the end of the data: sound, as the format has it, and of about 100 bytes each."""
    end = max(e["data_offsets"][1] for n, e in entries.items() if n != "__metadata__")
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [end, end]}
    entries.update({f"model.layers.{i}.self_attn.q_proj.weight": empty for i in range(2, count)})


def hidden(entries: dict[str, Any]) -> str:
    """As many as a header may be long, under a spelling that a search for the word does not find."""
    many(entries, 9_000)
    return json.dumps(entries).replace("data_offsets", "data\\u005foffsets")


def unlike(*damages: Damage) -> Damage:
    return lambda folder: [damage(folder) for damage in damages]


OVERLAP = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
HEADERS: dict[str, tuple[str, Damage]] = {
    "100,000 tensors": ("single", header(many)), "9,000, spelled otherwise": ("single", header(hidden)),
    "a tensor over another": ("single", header(lambda e: e.update(x=OVERLAP))),
    "two names for the same bytes": ("single", header(lambda e: e.update(x=e[DOWN]))),
    "one name 9,000 times": ("single", header(lambda e: json.dumps(e)[:-1] + f', "x": {json.dumps(OVERLAP)}' * 9000 + "}")),
    "no numbers": ("single", entry(shape=[0, 96], data_offsets=[0, 0])), "a scalar": ("single", entry(shape=[])),
    "a shape of 2^53": ("single", entry(shape=[2**53, 2**53])), "a shape of 31 × 2^52": ("single", entry(shape=[2**52] * 31)),
    "a shape of text": ("single", entry(shape="96")), "a shape of truths": ("single", entry(shape=[True, 96])),
    "a negative extent": ("single", entry(shape=[-64, -96])), "offsets turned": ("single", entry(data_offsets=[16, 0])),
    "offsets of 2^64": ("single", entry(data_offsets=[2**64, 2**64 + 24576])),
    "offsets that are floats": ("single", entry(data_offsets=[0.0, 24576.0])), "a dtype of none": ("single", entry(dtype=None)),
    "a dtype of 100,000 letters": ("single", entry(dtype="F" * 100_000)),
    "a dtype of control characters": ("single", entry(dtype="\x1b[31mX\n\r")),
    "a name of control characters": ("single", header(lambda e: e.update({"\x1b[2J\n\r\u202e\0": e.pop(DOWN)}))),
    "a name of half a surrogate pair": ("single", header(lambda e: e.update({"\ud800": e.pop(DOWN)}))),
    "a name of 100,000 letters": ("single", header(lambda e: e.update({"n" * 100_000: e.pop(DOWN)}))),
    "an entry that is an array": ("single", header(lambda e: e.update({DOWN: [1, 2]}))), "an array": ("single", header(lambda e: "[]")),
    "a number of 5,000 digits": ("single", header(lambda e: json.dumps(e)[:-1] + f', "x": {"9" * 5000}' + "}")),
    "a terabyte of nothing": ("single", lambda f: os.truncate(f / SINGLE, 2**40)),
    "a terabyte of zeros alone": ("single", zeros(SINGLE)),
}  # fmt: skip

# The index, links, and files that are none


def index(change: Callable[[dict[str, str], list[str]], object]) -> Damage:
    def apply(folder: Path) -> None:
        content = json.loads((folder / INDEX).read_text())
        change(content["weight_map"], sorted(set(content["weight_map"].values())))
        (folder / INDEX).write_text(json.dumps(content))

    return apply


def instead(name: str, make: Callable[[Path], object]) -> Damage:
    """Something else under the name of a file."""

    def apply(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return apply


def loop(path: Path) -> None:
    path.symlink_to(path.with_name("other"))
    path.with_name("other").symlink_to(path)


SHARD = "model-00001-of-00004.safetensors"
MANY_ENTRIES: Damage = index(lambda names, files: names.update({f"t{i}": files[0] for i in range(250_000)}))
FILES: dict[str, tuple[str, Damage]] = {
    "250,000 entries": ("sharded", MANY_ENTRIES),
    "250,000 in a .bin's": ("sharded", unlike(MANY_ENTRIES, lambda f: (f / INDEX).rename(f / "pytorch_model.bin.index.json"))),
    "a file named in control characters": ("sharded", index(lambda names, files: names.update(x="\x1b[31m\n.safetensors"))),
    "a tensor named in control characters": ("sharded", index(lambda names, files: names.update({"\x1b\n": "no.safetensors"}))),
    "links in a circle": ("single", instead(SINGLE, loop)), "the .bin a circle": ("bin", instead("pytorch_model.bin", loop)),
    "a link to a device": ("single", instead(SINGLE, lambda p: p.symlink_to("/dev/zero"))),
    "a link to a process's memory": ("single", instead(SINGLE, lambda p: p.symlink_to("/proc/self/mem"))),
    "the index a link to a device": ("single", instead(INDEX, lambda p: p.symlink_to("/dev/zero"))),
    "a folder": ("single", instead(SINGLE, Path.mkdir)), "the index a folder": ("sharded", instead(INDEX, Path.mkdir)),
    "a terabyte of .bin": ("bin", lambda f: os.truncate(f / "pytorch_model.bin", 2**40)),
}  # fmt: skip
FIFOS: dict[str, tuple[str, Damage]] = {
    "fifo for the weights": ("single", instead(SINGLE, os.mkfifo)), "fifo for an index": ("single", instead(INDEX, os.mkfifo)),
    "fifo for a .bin": ("bin", instead("pytorch_model.bin", os.mkfifo)),
    "fifo for a .bin's index": ("bin", instead("pytorch_model.bin.index.json", os.mkfifo)),
    "fifo for a part": ("conversion", instead("norm.safetensors", os.mkfifo)),
    "fifo for a copied tokenizer": ("conversion", instead("tokenizer.json", os.mkfifo)),
    "fifo for a configuration": ("single", instead("config.json", os.mkfifo)),
    "fifo for a tokenizer": ("single", instead("tokenizer.json", os.mkfifo)),
}  # fmt: skip

# float8, the int8 conversion, GGUF, tokenizers


def float8(scale: torch.Tensor | None, shape: tuple[int, int] = (64, 96), block: object = None) -> Damage:
    def apply(folder: Path) -> None:
        tensors = state(folder) | {DOWN: torch.ones(shape).to(torch.float8_e4m3fn)}
        rewrite(folder, tensors if scale is None else tensors | {DOWN + "_scale_inv": scale})
        edit_config(folder, quantization_config={"quant_method": "fp8", "weight_block_size": block})

    return apply


FLOAT8_SCALES: dict[str, tuple[Any, ...]] = {
    "with scales of no row": (torch.ones(0),), "of a wrong shape": (torch.ones(3),), "of a turned shape": (torch.ones(96, 1),),
    "of three dimensions": (torch.ones(1, 1, 1),), "that are whole": (torch.ones(64, dtype=torch.int32),),
    "that are float8": (torch.ones(64).to(torch.float8_e4m3fn),), "of no columns": (torch.ones(()), (64, 0)),
    "of no rows": (torch.ones(0), (0, 96)), "of neither": (torch.ones(0, 0), (0, 0)),
}  # fmt: skip
FLOAT8 = {f"float8 {name}": ("single", float8(*arguments)) for name, arguments in FLOAT8_SCALES.items()} | {
    f"float8 in blocks of {block}": ("single", float8(torch.ones(2, 3), block=block))
    for block in ([0, 0], [-32, -32], [2**70, 32], ["32", "32"], [32], "32", [True, True], [[32], 32], {"a": 1}, [32.0, 32.0])
}  # fmt: skip
NAN_SCALES = {
    "float8 with scales that are NaN": ("single", float8(torch.full((64, 1), float("nan")))),
    "float8 with scales that are inf": ("single", float8(torch.full((64, 1), float("inf")))),
}


def manifest(change: Callable[[dict[str, Any]], object]) -> Damage:
    """A manifest with a digest that fits."""

    def apply(folder: Path) -> None:
        content = json.loads((folder / MANIFEST).read_text())
        change(content)
        content["digest"] = digest({name: value for name, value in content.items() if name not in ("format", "digest")})
        (folder / MANIFEST).write_text(json.dumps(content))

    return apply


PARTS: dict[str, tuple[str, Damage]] = {
    "a storage that is an array": ("conversion", manifest(lambda m: m.update(storage=[]))),
    "a storage of nothing": ("conversion", manifest(lambda m: m.update(storage={}))),
    "a storage that skips 5": ("conversion", manifest(lambda m: m["storage"].update(skip=5))),
    "a storage of a long name": ("conversion", manifest(lambda m: m["storage"].update(head="x" * 10**5))),
    "files that are an array": ("conversion", manifest(lambda m: m.update(files=["config.json"]))),
    "a file elsewhere": ("conversion", manifest(lambda m: m["files"].update({"../../x\x1b": "0"}))),
    "infinite bytes": ("conversion", manifest(lambda m: m["parts"].update(x=["x", float("inf")]))),
    "no parts": ("conversion", manifest(lambda m: m.update(parts={}))),
    "another version": ("conversion", manifest(lambda m: m.update(version="\x1b[31m\n"))),
    "a part of another": ("conversion", lambda f: shutil.copy(f / "blocks.0.safetensors", f / "blocks.1.safetensors")),
    "a copied file of 64 MiB": ("conversion", lambda f: os.truncate(f / "tokenizer.json", 2**26)),
    "a part of a terabyte": ("conversion", lambda f: os.truncate(f / "norm.safetensors", 2**40)),
    "a part in a circle": ("conversion", instead("norm.safetensors", loop)),
}  # fmt: skip


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def gguf_file(tensors: list[bytes] = [], entries: list[bytes] = []) -> Damage:  # noqa: B006 (read only)
    data = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries)) + b"".join(entries + tensors) + bytes(4096)
    return lambda folder: (folder / "model.gguf").write_bytes(data)


def tensor(name: bytes, offset: int = 0) -> bytes:
    return string(name) + struct.pack("<IQIQ", 1, 32, 0, offset)


def overlapping(folder: Path) -> None:
    """Every tensor at the first byte: the file holds them all, and could be a hundredth of what it stands for."""
    reader = gguf.GGUFReader(folder / "model.gguf", "r+")
    for stored_tensor in reader.tensors:
        stored_tensor.field.parts[-1][0] = 0
    reader.data.flush()


NUMBERS = np.random.default_rng(0).integers(0, 2**62, 2**18, dtype=np.uint64).tobytes()
GGUFS: dict[str, tuple[str, Damage]] = {
    "40,000 tensors of GGUF": ("gguf", gguf_file([tensor(b"%d" % i) for i in range(40_000)])),
    "a quarter million numbers": ("gguf", gguf_file([], [string(b"a") + struct.pack("<IIQ", 9, 10, 2**18) + NUMBERS])),
    "a quarter million texts": ("gguf", gguf_file([], [string(b"a") + struct.pack("<IIQ", 9, 8, 2**18) + string(b"abcd") * 2**18])),
    "arrays in an array": ("gguf", gguf_file([], [string(b"a") + struct.pack("<IIQ", 9, 9, 1000) + bytes(12) * 1000])),
    "a tensor in control characters": ("gguf", gguf_file([tensor(b"\x1b[31m\n")] * 2)),
    "overlapping tensors": ("gguf", overlapping),
    "a terabyte of GGUF": ("gguf", zeros("model.gguf")),
}  # fmt: skip


def tokenizer(**model: Any) -> Damage:
    return lambda folder: (folder / "tokenizer.json").write_text(
        json.dumps({"version": "1.0", "added_tokens": [], **model})
    )


def older(name: str, change: Damage) -> Damage:
    """Another file in the place of tokenizer.json."""

    def apply(folder: Path) -> None:
        (folder / "tokenizer.json").unlink()
        change(folder / name)

    return apply


def sparse(path: Path) -> None:
    path.write_bytes(b"")
    os.truncate(path, 2**40)


def deep(path: Path) -> None:
    path.write_text("[" * 10**6)
    path.with_name("vocab.json").write_text("{}")


ARRAYS = '{"a": [' + "{}," * 300_000 + "]"
TOKENIZERS: dict[str, tuple[str, Damage]] = {
    "a tokenizer of garbage": ("single", lambda f: (f / "tokenizer.json").write_bytes(bytes(range(256)) * 100)),
    "a tokenizer without its unknown": ("single", tokenizer(model={"type": "WordLevel", "vocab": {"b": 0}, "unk_token": "x"})),
    "a tokenizer of one character": ("single", tokenizer(model={"type": "Unigram", "vocab": [["b", 0.0]], "unk_id": None})),
    "a template's token of none": ("single", tokenizer(model={"type": "BPE", "vocab": {}, "merges": [["a", "b"]]})),
    "a million objects of settings": ("single", lambda f: (f / "tokenizer_config.json").write_text(ARRAYS)),
    "a BOS of control characters": ("single", lambda f: (f / "tokenizer_config.json").write_text('{"bos_token": "\\u001b[31m\\n"}')),
    "a model of garbage": ("single", older("tokenizer.model", lambda p: p.write_bytes(bytes(range(256)) * 100))),
    "a model of a terabyte": ("single", older("tokenizer.model", sparse)),
    "a model of 2^60 bytes to come": ("single", older("tokenizer.model", lambda p: p.write_bytes(b"\x0a" + b"\x80" * 8 + b"\x10"))),
    "a model of empty pieces": ("single", older("tokenizer.model", lambda p: p.write_bytes(b"\x0a\0" * 10_000))),
    "a vocabulary of a terabyte": ("single", older("vocab.json", sparse)),
    "a vocabulary of control characters": ("single", older("vocab.json", lambda p: p.write_text('{"\\u001b[31m\\n": "\\u001b"}'))),
    "deep added tokens": ("single", older("added_tokens.json", deep)),
    "fifo for a model": ("single", older("tokenizer.model", os.mkfifo)),
    "deep settings": ("single", lambda f: (f / "tokenizer_config.json").write_text("[" * 10**6)),
}  # fmt: skip
SOME = header(lambda entries: many(entries, 30_000))
UNKNOWN = unlike(SOME, lambda f: edit_config(f, architectures=["FooForCausalLM"]))
OTHERS: dict[str, tuple[str, Damage]] = {
    "30,000 tensors of nobody knows what": ("single", UNKNOWN),
    "30,000 of a family that is only planned": (
        "single",
        unlike(SOME, lambda f: edit_config(f, architectures=["GemmaForCausalLM"], model_type="gemma")),
    ),
    "a million objects for a configuration": ("single", config("[" + "{}," * 340_000 + "{}]")),
}

CASES = FIELDS | CONFIGS | HEADERS | FILES | FIFOS | FLOAT8 | PARTS | GGUFS | TOKENIZERS | OTHERS
ONE: dict[str, str] = {  # what only one of the commands can see, or would take its time for nothing new
    "a part of another": "load", "a part of a terabyte": "load", "fifo for an index": "load", "fifo for a .bin's index": "load",
    "fifo for a part": "load", "fifo for a copied tokenizer": "load", "fifo for the weights": "load",
    "30,000 tensors of nobody knows what": "inspect", "40,000 tensors of GGUF": "load", "a quarter million texts": "load",
    "a quarter million numbers": "load", "250,000 in a .bin's": "load", "a storage that is an array": "load",
    "a storage of nothing": "load", "a storage that skips 5": "load", "a storage of a long name": "load",
    "a million objects of settings": "inspect", "a million objects for a configuration": "inspect",
    "a copied file of 64 MiB": "inspect", "all at their limits": "inspect",
    "30,000 of a family that is only planned": "inspect", "a part in a circle": "inspect", "no parts": "inspect",
}  # fmt: skip
# More than a few MB, which real vocabularies take as well
BUGS: dict[str, str] = {
    "a quarter million numbers": "as many as a real vocabulary has", "a quarter million texts": "as many as a real vocabulary has",
    "a million objects of settings": "a MB of JSON, which real tokenizer_config.json files have, takes 24 in memory",
}  # fmt: skip
BOTH = [(name, command) for name in CASES for command in ("inspect", "load") if ONE.get(name, command) == command]


def marked(name: str, command: str) -> Any:
    marks = [pytest.mark.xfail(strict=True, reason=BUGS[name])] if name in BUGS else []
    return pytest.param(name, command, marks=marks)


@pytest.mark.parametrize(("name", "command"), [marked(*case) for case in BOTH])
def test_a_hostile_checkpoint(sources: dict[str, Path], tmp_path: Path, name: str, command: str) -> None:
    source, damage = CASES[name]
    home = tmp_path / name.split()[0]
    shutil.copytree(sources[source], home / source)
    damage(home / source)
    refused(command, target({source: home / source}, source))


@pytest.mark.parametrize("name", NAN_SCALES)
def test_constants_that_are_no_numbers_are_found_by_a_load(sources: dict[str, Path], tmp_path: Path, name: str) -> None:
    shutil.copytree(sources["single"], tmp_path / "single")
    NAN_SCALES[name][1](tmp_path / "single")
    refused("load", tmp_path / "single")


def inspecting(folder: Path, expected: int) -> int:
    """Peak bytes of a process that inspects a folder, which ends as expected. VmHWM is of what was executed alone; the
    resource usage of a process begins with the peak of the one that it was forked from."""
    code = (
        "import sys; from pathlib import Path; from bigrun.cli.app import main\ntry: main()\n"
        "finally: print(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])"
    )
    done = run_python(code, "inspect", str(folder))
    assert (done.returncode, done.stderr.count("\n")) == (expected, int(expected > 0)), done.stderr
    return int(done.stdout.split()[-1]) * 1024


@pytest.fixture(scope="module")
def sound_peak(sources: dict[str, Path]) -> int:
    return inspecting(sources["single"], 0)


@pytest.mark.parametrize("name", ["100,000 tensors", "a terabyte of zeros alone", "deep arrays"])
def test_a_process_takes_no_more_memory_than_for_a_sound_model(
    sources: dict[str, Path], sound_peak: int, tmp_path: Path, name: str
) -> None:
    shutil.copytree(sources["single"], tmp_path / "single")
    CASES[name][1](tmp_path / "single")
    assert inspecting(tmp_path / "single", 4) < sound_peak + LITTLE


# What nobody thought of

ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(2**52, 2**66) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
PUBLISHED = {entry.name: dict(entry.config) for entry in catalog.by_repo().values()}


@given(st.data())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_no_configuration_ends_in_another_error(data: st.DataObject) -> None:
    published = dict(PUBLISHED[data.draw(st.sampled_from(sorted(PUBLISHED)))])
    names = data.draw(st.lists(st.sampled_from(sorted(published)), min_size=1, max_size=2))
    few = {name: 2 for name in ("num_hidden_layers", "n_layer", "num_layers", "n_layers") if name in published}
    try:
        spec_from_config(published | few | {name: data.draw(ANY) for name in names}, "x")
    except BigrunError as error:
        assert str(error).isprintable()
        assert len(str(error)) < 1000


@given(st.dictionaries(st.text(max_size=8), ANY, max_size=3), st.binary(max_size=40), ANY)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_no_header_or_index_ends_in_another_error(entries: dict[str, Any], junk: bytes, value: Any) -> None:
    good = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    for content in (
        entries,
        value,
        *({"a": good | {key: value}} for key in good),
        {"weight_map": value},
        {"weight_map": entries},
    ):
        for raw in (json.dumps(content).encode(), json.dumps(content).encode()[:-1] + junk):
            for read in (parse, weight_map):
                try:
                    read(raw, "x")
                except BigrunError as error:
                    assert str(error).isprintable()


COUNTS = st.sampled_from([0, 1, 2, 4, 8, -1, 2**53, 2**63, 1.0, True])
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "I64", "F8_E4M3", "F8_E5M2", "U8", "BOOL", "F64", "f32", "X"]),
        "shape": st.lists(COUNTS, max_size=3), "data_offsets": st.lists(COUNTS, min_size=2, max_size=2),
    },
    optional={"more": st.text(max_size=3)},
)  # fmt: skip


def accepted(folder: Path, text: str, nbytes: int = 8) -> None:
    """What bigrun reads of a header, safetensors' own library reads as well: the same names, dtypes and shapes."""
    raw = text.encode()
    (folder / SINGLE).write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(nbytes))
    try:
        tensors = {
            name: (t.dtype, list(t.shape)) for name, t in SafetensorsCheckpoint(folder).tensors.items() if t.readable
        }
    except BigrunError:
        return
    with safetensors.safe_open(folder / SINGLE, "np") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
        read = {name: (one.get_dtype(), one.get_shape()) for name, one in slices.items()}
    assert {name: read[name] for name in tensors} == tensors


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bare")
    (folder / "config.json").write_text("{}")
    return folder


@given(
    st.dictionaries(st.sampled_from(["a", "b", "ü", ""]), ENTRY, min_size=1, max_size=2),
    st.sampled_from([0, 1, 2, 4, 8]),
)
@settings(max_examples=400, deadline=None, derandomize=True)
def test_what_bigrun_accepts_safetensors_accepts(bare: Path, entries: dict[str, Any], nbytes: int) -> None:
    if not any(entry["dtype"] in ("f32", "X") for entry in entries.values()):  # below
        accepted(bare, json.dumps(entries), nbytes)


A = '"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}'
LENIENT = {
    "a dtype of none that is": '{"x": {"dtype": "X", "shape": [0], "data_offsets": [0, 0]}, %s}' % A,
    "metadata that is a number": '{"__metadata__": 5, %s}' % A, "metadata of numbers": '{"__metadata__": {"a": 5}, %s}' % A,
    "NaN beside the fields": "{%s}" % (A[:-1] + ', "more": NaN}'), "an offset of -0": "{%s}" % A.replace("[0,", "[-0,"),
    "half a surrogate pair": '{"\\ud800": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}, %s}' % A,
    "a name twice": "{%s, %s}" % (A, A), "a field twice": "{%s}" % (A[:-1] + ', "dtype": "F32"}'),
    "a space before it": " {%s}" % A, "a space behind it": "{%s} " % A,
}  # fmt: skip


@pytest.mark.parametrize("text", LENIENT.values(), ids=LENIENT.keys())
def test_what_json_leaves_open_is_read_as_safetensors_reads_it(bare: Path, text: str) -> None:
    accepted(bare, text)


@LONG
def test_thousands_of_damaged_files_load_or_are_refused() -> None:
    done = run_benchmark("fuzz.py", "--cases", "20000", "--seed", "15", timeout=1500)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]

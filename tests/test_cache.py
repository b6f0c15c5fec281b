"""The int8 cache: the same bits with it as without it, whatever happens to its files, its disk or its processes.

Faults are put in from outside, at the system's calls: one process that has everything imported forks a child for each, so
that every single call of a conversion can be its last. Parts, not clocks, say what was kept: a file's inode.
"""

import contextlib
import fcntl
import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from bigrun import CallError, CheckpointError, Runner
from bigrun.checkpoint.tensor_map import map_tensors
from bigrun.cli.convert import convert_model
from bigrun.loading import part_file
from bigrun.loading.identity import fingerprint, fingerprints, part_identity
from bigrun.loading.manifest import MANIFEST
from bigrun.loading.open import open_checkpoint
from bigrun.model.layout import layout
from bigrun.model.resolve import resolve
from bigrun.model.storage import Storage
from bigrun.session.options import Options
from support.checkpoints import bloom, edit_config, gguf_twin, llama, opt, rewrite, state
from support.commands import ended, run_benchmark, run_command
from support.long import LONG, long

# Each line is a list of commands, {"args", "kind", "at"}: they are forked at once, and run when all are there. `kind` of fault
# happens at the `at`-th of the calls that change a disk; the answer is the count of these, and how each command ended.
WORKER = """
import errno, json, os, resource, signal, sys, tempfile, time
from pathlib import Path
from bigrun.cli.app import main
import bigrun.cli.convert, bigrun.cli.upkeep, bigrun.session.runner, bigrun_kernels.cpu.quantise
from bigrun.session.options import Options
CALLS = ("open", "mkdir", "fchmod", "write", "fsync", "replace", "unlink", "utime")
def child(call, ready, out, err, count):
    os.dup2(out, 1), os.dup2(err, 2)
    sys.stdin = open(os.devnull)
    kind, at, seen = call.get("kind"), call.get("at", 0), 0
    def wrapped(name, real):
        def function(*args, **more):
            nonlocal seen
            if name == "open" and not args[1] & os.O_CREAT:
                return real(*args, **more)
            seen += 1
            if kind == "slow":
                time.sleep(call["seconds"])
            if kind == "kill" and seen == at:
                if name == "write":
                    real(args[0], args[1][: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            if kind == "interrupt" and seen == at:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.05)
            if kind == "full" and seen >= at and name in ("open", "mkdir", "write"):
                if name == "write" and seen == at:
                    return real(args[0], args[1][: len(args[1]) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if kind == "readonly":
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))
            return real(*args, **more)
        return function
    if kind == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (at, at))
    for name in CALLS:
        setattr(os, name, wrapped(name, getattr(os, name)))
    os.read(ready, 1)
    status = 0
    try:
        main.main(args=call["args"])
    except SystemExit as end:
        status = end.code or 0
    except BaseException as error:
        print(repr(error), file=sys.stderr)
        status = 99
    sys.stdout.flush(), sys.stderr.flush()
    os.pwrite(count, str(seen).encode(), 0)
    os._exit(status)
with tempfile.TemporaryDirectory() as folder:  # whatever a command loads at its first call is loaded before any fork
    bigrun.cli.convert.convert_model(Options.of(model=sys.argv[1], progress=False), Path(folder))
    with bigrun.session.runner.Runner(folder, context=32, gpus="none", cpu="1GB", progress=False) as runner:
        runner.generate("the fox", max_new_tokens=2)
for line in sys.stdin:
    started = []
    wait, go = os.pipe()
    for call in json.loads(line):
        files = [os.memfd_create(name) for name in ("out", "err", "count")]
        pid = os.fork()
        if not pid:
            child(call, wait, *files)
        started.append((pid, files))
    os.write(go, b"." * len(started))
    answers = []
    for pid, files in started:
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        out, err, count = (os.pread(file, 1 << 20, 0).decode() for file in files)
        answers.append({"status": status, "out": out, "err": err, "calls": int(count or 0)})
        for file in files:
            os.close(file)
    os.close(wait), os.close(go)
    print(json.dumps(answers), flush=True)
"""

IDS = np.random.default_rng(0).integers(3, 320, (1, 14))
LIMIT = 60  # seconds for commands of a tenth of one
RIG: dict[str, Any] = {"gpus": "none", "cpu": "1GB", "context": 32, "progress": False}
Forked = Callable[..., Any]


def fp8(folder: Path) -> None:
    """A Llama whose linears are float8 with a scale for each 128 x 128 block, in shards: the scales in the second."""
    import torch

    llama(folder, dtype="bfloat16", hidden=256, intermediate=320, layers=1)
    weights, scales = {}, {}
    for name, value in state(folder).items():
        if "_proj" not in name:
            weights[name] = value
            continue
        rows, columns = (-(-n // 128) for n in value.shape)
        scale = 0.01 + 0.01 * torch.rand(rows, columns, generator=torch.Generator().manual_seed(7))
        spread = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)[: value.shape[0], : value.shape[1]]
        weights[name] = (value.float() / spread).clamp(-440, 440).to(torch.float8_e4m3fn)
        scales[f"{name}_scale_inv"] = scale
    rewrite(folder, {})
    (folder / "model.safetensors").unlink()
    shards = {"model-1.safetensors": weights, "model-2.safetensors": scales}
    for file, tensors in shards.items():
        save_file(tensors, folder / file)
    where = {name: file for file, tensors in shards.items() for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    edit_config(folder, quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]})


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("models")
    llama(home / "llama", dtype="bfloat16", tokenizer=True)
    bloom(home / "bloom", dtype="float16")
    opt(home / "opt")
    gguf_twin(home / "llama", home / "twin.gguf", "Q8_0")
    fp8(home / "fp8")
    return {name: home / name for name in ("llama", "bloom", "opt", "fp8")} | {"gguf": home / "twin.gguf"}


@pytest.fixture(scope="module")
def source(models: dict[str, Path]) -> Path:
    return models["llama"]


@pytest.fixture(scope="module")
def right(source: Path) -> bytes:
    """The logits without a cache."""
    return logits(source)


@pytest.fixture(scope="module")
def pristine(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A conversion that nothing has happened to; tests work on copies."""
    folder = tmp_path_factory.mktemp("pristine") / "conversion"
    convert_model(Options.of(model=str(source), progress=False), folder)
    return folder


@pytest.fixture
def conversion(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "conversion"))


@pytest.fixture(scope="module")
def forked(source: Path) -> Iterator[Forked]:
    """Run commands of the command line, each in a child of its own, with faults."""
    environment = os.environ | {"NUMBA_NUM_THREADS": "1", "BIGRUN_CACHE": ""}  # no threads but a child's own: it forks
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(source)], text=True, env=environment,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    stdin: Any = process.stdin
    stdout: Any = process.stdout

    def run(*args: Any, calls: Any = None, **fault: Any) -> Any:
        requests = [{"args": args, **fault}] if calls is None else calls
        requests = [{**call, "args": [str(a) for a in call["args"]]} for call in requests]
        print(json.dumps(requests), file=stdin, flush=True)
        watch = threading.Timer(LIMIT, process.kill)  # what never ends is an empty answer
        watch.start()
        answers = json.loads(stdout.readline() or "null")
        watch.cancel()
        assert answers is not None, f"a child hung for {LIMIT} s"
        return answers[0] if calls is None else answers

    yield run
    process.kill()  # TBB, which it has loaded, may wait for ever for the threads of what was forked
    process.wait(30)


def logits(model: Path, **more: Any) -> bytes:
    with Runner(str(model), **{**RIG, **more}) as runner:
        return bytes(runner.logits(IDS).tobytes())


def noted(model: Path, **more: Any) -> tuple[bytes, str]:
    """(logits, what was noted)."""
    with Runner(str(model), **{**RIG, **more}) as runner:
        return runner.logits(IDS).tobytes(), "\n".join(runner.notes)


def contents(folder: Path) -> dict[str, bytes]:
    """All of a conversion but its manifest, which tells the date."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "bigrun.json"}


def inodes(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_ino for file in folder.glob("[!.]*.safetensors")}


def one_line(answer: Any, status: int, *parts: Any) -> None:
    """An ending as promised: this status, and one line on standard error that has these parts."""
    assert answer["status"] == status, answer
    (line,) = said(answer)
    assert line.startswith("bigrun: "), answer
    assert "a bug" not in answer["err"]
    assert all(str(part) in answer["err"] for part in parts), answer


def said(answer: Any) -> list[str]:
    """The lines of standard error but for those of an answer: that it was cut, and what it took. (click ends the ^C that a
    terminal shows.)"""
    return [line for line in answer["err"].strip().splitlines() if not re.match(r"\[(cut at|\d+ \+ \d+ token)", line)]


def run(*args: Any) -> list[str]:
    return ["generate", "--gpus=none", "--cpu=1GB", "--max-new-tokens=4", "--prompt=the fox", *map(str, args)]


# The same bits


@pytest.mark.parametrize("name", ["llama", "bloom", "opt", "gguf", "fp8"])
@pytest.mark.parametrize("forms", [{}, {"head": "16bit", "skip": ("down", "out")}], ids=["int8", "some 16-bit"])
def test_the_cache_changes_no_bit(models: dict[str, Path], name: str, forms: dict[str, Any], tmp_path: Path) -> None:
    source, cache = tmp_path / models[name].name, tmp_path / "cache"
    (shutil.copytree if models[name].is_dir() else shutil.copy)(models[name], source)
    expected = logits(source, **forms)
    assert logits(source, cache=cache, **forms) == expected, "what is written is what is run"
    (folder,) = cache.iterdir()
    before = inodes(folder)
    assert logits(source, cache=cache, **forms) == expected
    virtual = {"gpus": "2x200KB" if name != "fp8" else "2x600KB", "virtual": True, "context": 16, "batch": 2}
    logits(source, cache=cache, **{**forms, **virtual})
    assert inodes(folder) == before, "another plan uses all of it"
    made = convert_model(Options.of(model=str(source), progress=False, **forms), tmp_path / "alone")
    assert contents(folder) == contents(tmp_path / "alone")
    assert made["parts"] == made["converted_parts"] == len(before)
    shutil.rmtree(source) if source.is_dir() else source.unlink()
    assert logits(tmp_path / "alone", **forms) == expected, "a conversion is a model by itself"
    assert convert_error(tmp_path / "alone", tmp_path / "again").startswith("model")


def convert_error(model: Path, out: Path, **forms: Any) -> str:
    with pytest.raises(CallError) as caught:
        convert_model(Options.of(model=str(model), progress=False, **forms), out)
    return str(caught.value)


@pytest.mark.parametrize("name", ["llama", "gguf"])
def test_a_conversion_says_the_same_text(models: dict[str, Path], name: str, tmp_path: Path) -> None:
    convert_model(Options.of(model=str(models[name]), progress=False), tmp_path / "c")
    said = []
    for model in (models[name], tmp_path / "c"):
        with Runner(str(model), **RIG) as runner:
            said.append(runner.generate("the quick brown", max_new_tokens=8).token_ids)
    assert said[0] == said[1]


def test_the_cpu_maps_parts_and_virtual_gpus_copy_them(source: Path, conversion: Path) -> None:
    def mapped(part: str = "") -> bool:
        return f"{conversion}/{part}" in Path("/proc/self/maps").read_text()

    with Runner(str(conversion), **RIG) as runner:
        assert mapped("blocks.")
        assert runner.memories["cpu"].by_kind["weights"] > 0
    del runner
    assert not mapped(), "closing lets go of the files"
    with Runner(str(conversion), **{**RIG, "gpus": "1x1GB", "virtual": True}) as runner:
        assert not mapped("blocks.")
        assert mapped("embed"), "whose table is the CPU's here"
        assert runner.memories["cuda:0"].by_kind["weights"] > 0


# Kills


@pytest.fixture(scope="module", params=["some calls", long("every call")])
def kills(
    request: pytest.FixtureRequest,
    source: Path,
    pristine: Path,
    forked: Forked,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[bool, list[Any]]:
    """Had the conversion its manifest? → a record for each call that changes the disk, which was once the last of a
    process (writes are torn in the middle), and of the next one."""
    home = tmp_path_factory.mktemp("kills")
    counted = forked("convert", "--model", source, "--out", home / "counted")
    assert counted["calls"] > 60, counted
    records: dict[bool, list[Any]] = {True: [], False: []}
    for at in range(1, counted["calls"] + 1, 1 if request.param == "every call" else 3):
        out = home / f"at-{at}"
        killed = forked("convert", "--model", source, "--out", out, kind="kill", at=at)
        assert killed["status"] == -9, killed
        begun, before = (out / "bigrun.json").exists(), inodes(out)
        damaged = [name for name in before if (out / name).read_bytes() != (pristine / name).read_bytes()]
        again = forked("convert", "--model", source, "--out", out, "--json")
        kept = before.items() <= inodes(out).items()
        records[begun].append((at, damaged, len(before), kept, again, contents(out)))
        shutil.rmtree(out)
    return records


def check_kills(records: list[Any], pristine: Path) -> None:
    expected = contents(pristine)
    stuck = [f"call {at}: {again['err']}" for at, *_, again, _ in records if again["status"] != 0]
    assert not stuck, f"{len(stuck)} of {len(records)}: {stuck[0]}"
    for at, damaged, count, kept, again, files in records:
        assert not damaged, f"call {at}: a part under its own name is whole, always"
        anew = json.loads(again["out"])["converted_parts"]
        assert (kept, anew) == (True, 5 - count), f"call {at}: what was finished is not made again"
        assert files == expected, f"call {at}: other bytes, or temporary files"


def test_killed_at_any_call_the_next_convert_finishes(kills: dict[bool, list[Any]], pristine: Path) -> None:
    assert len(kills[True]) >= 15
    check_kills(kills[True], pristine)


def test_killed_at_any_call_before_the_manifest_the_next_convert_finishes(
    kills: dict[bool, list[Any]], pristine: Path
) -> None:
    assert kills[False]
    check_kills(kills[False], pristine)


def test_killed_again_and_again_generation_goes_on(source: Path, forked: Forked, tmp_path: Path) -> None:
    """One cache, kill after kill; each time another part is missing."""
    expected = forked(*run("--model", source, "--cache", tmp_path))
    assert expected["status"] == 0
    os.truncate(next(tmp_path.glob("*/head*")), 5000)
    draw = random.Random(1)
    for _ in range(8):
        forked(*run("--model", source, "--cache", tmp_path), kind="kill", at=draw.randrange(2, 9))
        assert forked(*run("--model", source, "--cache", tmp_path))["out"] == expected["out"]
        (folder,) = tmp_path.iterdir()
        assert not list(folder.glob(".*"))
        draw.choice(sorted(folder.glob("*.safetensors"))).unlink()


# A full disk


def test_a_full_disk_ends_convert_and_the_same_command_finishes(
    source: Path, pristine: Path, forked: Forked, tmp_path: Path
) -> None:
    for at in range(36, 70, 5):
        out = tmp_path / f"at-{at}"
        full = forked("convert", "--model", source, "--out", out, kind="full", at=at)
        before = inodes(out)
        assert all((out / name).read_bytes() == (pristine / name).read_bytes() for name in before)
        assert not list(out.glob(".*")), "nothing half-written keeps room on a full disk"
        assert full["status"] == 1
        assert f"{out}: the int8 cache could not be written whole: No space" in full["err"]
        again = forked("convert", "--model", source, "--out", out, "--json")
        assert json.loads(again["out"])["converted_parts"] == 5 - len(before)
        assert contents(out) == contents(pristine)


def test_a_disk_without_room_is_told_before_anything_is_written(
    source: Path, pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr("bigrun.loading.conversion_folder.shutil.disk_usage", lambda path: usage)
    out = tmp_path / "out"
    ended(run_command("convert", "--model", source, "--out", out, "--quiet"), 1, str(out), "more", "10 B are free")
    assert not out.exists()
    _, notes = noted(source, cache=tmp_path / "cache")
    assert "going on without it" in notes
    shutil.copytree(pristine, out)  # what is there needs no room
    assert run_command("convert", "--model", source, "--out", out, "--quiet").exit_code == 0


def test_a_disk_full_from_the_start_is_gone_on_from(source: Path, forked: Forked, tmp_path: Path) -> None:
    for at in (1, 2, 4, 9, 14, 30):
        out = tmp_path / f"at-{at}"
        one_line(forked("convert", "--model", source, "--out", out, kind="full", at=at), 1, out, "No space")
        again = forked("convert", "--model", source, "--out", out)
        assert again["status"] == 0, again


def test_a_file_size_limit_of_the_system_is_a_full_disk(source: Path, forked: Forked, tmp_path: Path) -> None:
    """Refused by the kernel: the files of the blocks are larger than 30,000 bytes, that of the embedding is not."""
    limited = forked("convert", "--model", source, "--out", tmp_path, kind="limit", at=30_000)
    assert limited["status"] == 1
    assert "File too large" in limited["err"]
    assert "embed.safetensors" in inodes(tmp_path)
    assert forked("convert", "--model", source, "--out", tmp_path)["status"] == 0


def test_a_disk_that_fills_up_does_not_keep_generate_from_answering(
    source: Path, forked: Forked, tmp_path: Path
) -> None:
    expected = forked(*run("--model", source))["out"]
    for at in (35, 40, 52, 60):
        result = forked(*run("--model", source, "--cache", tmp_path / str(at)), kind="full", at=at)
        one_line(result, 0, tmp_path / str(at), "No space")
        assert result["out"] == expected
    assert forked(*run("--model", source, "--cache", tmp_path / "40"))["out"] == expected


@pytest.mark.parametrize("kind", ["full", "readonly"])
def test_a_disk_that_takes_nothing_does_not_keep_generate_from_answering(
    source: Path, forked: Forked, tmp_path: Path, kind: str
) -> None:
    one_line(forked(*run("--model", source, "--cache", tmp_path), kind=kind, at=1), 0, tmp_path)


def test_a_read_only_cache(source: Path, conversion: Path, forked: Forked) -> None:
    expected = forked(*run("--model", source))["out"]
    result = forked(*run("--model", source, "--cache", conversion), kind="readonly")
    assert (result["status"], result["out"], said(result)) == (0, expected, [])
    assert forked(*run("--model", conversion), kind="readonly")["out"] == expected
    (conversion / "norm.safetensors").unlink()
    result = forked(*run("--model", source, "--cache", conversion), kind="readonly")
    one_line(result, 0, conversion, "Read-only")
    assert result["out"] == expected


# Damage

HEADER = part_file.PAGE  # of these small parts


def flip(at: int) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[at] ^= 0x10
        path.write_bytes(data)

    return damage


def cut(to: int) -> Callable[[Path], None]:
    return lambda path: os.truncate(path, to if to >= 0 else path.stat().st_size + to)


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def other_part(path: Path) -> None:
    shutil.copy(path.with_name("blocks.1.safetensors"), path)


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


# what is done to blocks.0.safetensors
DAMAGES: dict[str, Callable[[Path], None]] = {
    **{f"byte {at}": flip(at) for at in (0, 5, 9, 40, HEADER - 1, HEADER, HEADER + 15_000, -1)},
    **{f"cut {to}": cut(to) for to in (0, 1, 7, 8, 500, HEADER, HEADER + 1, 20_000, -1)},
    "longer": longer,
}


def identity_digit(path: Path) -> None:
    """The header's identity, another hexadecimal number."""
    data = path.read_bytes()
    at = data.index(b'"identity":"') + 12
    path.write_bytes(data[:at] + (b"0" if data[at : at + 1] != b"0" else b"1") + data[at + 1 :])


@pytest.mark.parametrize("damage", [*DAMAGES])
def test_a_damaged_part_is_named_and_made_anew(
    source: Path, pristine: Path, conversion: Path, right: bytes, damage: str
) -> None:
    path = conversion / "blocks.0.safetensors"
    DAMAGES[damage](path)
    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        logits(conversion)
    answer, notes = noted(source, cache=conversion)
    assert answer == right
    assert re.search(f"{re.escape(str(path))}.* anew", notes)
    assert contents(conversion) == contents(pristine)


@pytest.mark.parametrize(
    "damage",
    [
        identity_digit,
        other_part,
        "foreign",
        folder_instead,
        dangling,
    ],
)
def test_what_is_no_part_of_this_conversion_is_named_and_made_anew(
    source: Path, pristine: Path, conversion: Path, right: bytes, tmp_path: Path, damage: Any
) -> None:
    path = conversion / "blocks.0.safetensors"
    if damage == "foreign":
        llama(tmp_path / "other", dtype="bfloat16", seed=1)
        convert_model(Options.of(model=str(tmp_path / "other"), progress=False), tmp_path / "foreign")
        shutil.copy(tmp_path / "foreign" / path.name, path)
    else:
        damage(path)
    with pytest.raises(CheckpointError, match=re.escape(str(path))) as caught:
        logits(conversion)
    answer, notes = noted(source, cache=conversion)
    assert answer == right, "whatever else: the right answer"
    assert "not finished" not in str(caught.value), "it was"
    assert str(path) in notes
    assert contents(conversion) == contents(pristine)


@pytest.mark.parametrize("damage", ["byte", "cut", "empty", "gone"])
@pytest.mark.parametrize("file", ["bigrun.json", "config.json", "tokenizer.json", "tokenizer_config.json"])
def test_damage_beside_the_parts(
    source: Path, conversion: Path, right: bytes, forked: Forked, file: str, damage: str
) -> None:
    path = conversion / file
    before = inodes(conversion)
    {"byte": flip(path.stat().st_size // 2), "cut": cut(-9), "empty": cut(0), "gone": Path.unlink}[damage](path)
    if (file, damage) == ("bigrun.json", "gone"):  # nothing says any more whose folder it is
        one_line(forked("convert", "--model", source, "--out", conversion), 2, conversion)
        one_line(forked(*run("--model", conversion)), 4, conversion)
        return
    one_line(forked(*run("--model", conversion)), 2 if (file, damage) == ("config.json", "gone") else 4, conversion)
    assert logits(source, cache=conversion) == right
    assert logits(conversion) == right
    assert inodes(conversion) == before


def test_convert_and_verify_name_a_damaged_part(source: Path, conversion: Path, forked: Forked) -> None:
    path = conversion / "norm.safetensors"
    assert "0 of them bad" in forked("cache", "verify", conversion)["out"]
    flip(-1)(path)
    verified = forked("cache", "verify", conversion, "--json")
    one_line(verified, 4, "1 bad")
    assert [str(path) in line for line in json.loads(verified["out"])["bad"]] == [True]
    one_line(forked(*run("--model", conversion)), 4, path)
    one_line(forked("convert", "--model", source, "--out", conversion), 0, path)
    assert forked("cache", "verify", conversion)["status"] == 0


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_changes_an_answer(pristine: Path, source: Path, right: bytes, data: st.DataObject) -> None:
    """Any bit, or any truncation, of any file: the conversion alone answers rightly or not at all, with its source rightly."""
    path = data.draw(st.sampled_from(sorted(pristine.iterdir(), key=lambda file: file.name)), "file")
    whole = path.read_bytes()
    at = data.draw(st.one_of(st.integers(0, min(len(whole), 600) - 1), st.integers(0, len(whole) - 1)), "byte")
    bit = data.draw(st.integers(0, 8), "bit, or truncation")
    path.write_bytes(whole[:at] if bit == 8 else whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
    try:
        with contextlib.suppress(CheckpointError):
            assert logits(pristine) == right
        may_be_anothers = (path.name, bit) == (MANIFEST, 8)  # where so little of a manifest is left, it is named
        with contextlib.suppress(CallError) if may_be_anothers else contextlib.nullcontext():
            assert logits(source, cache=pristine) == right
    finally:
        path.write_bytes(whole)
    assert logits(pristine) == right


# Other sources


@pytest.mark.parametrize("how", ["weights", "time"])
def test_a_changed_source_is_converted_anew(source: Path, tmp_path: Path, how: str) -> None:
    model = Path(shutil.copytree(source, tmp_path / "model"))
    convert_model(Options.of(model=str(model), progress=False), tmp_path / "out")
    logits(model, cache=tmp_path / "cache")
    if how == "weights":
        times = (model / "model.safetensors").stat()
        rewrite(model, {name: -value for name, value in state(model).items()})
        os.utime(model / "model.safetensors", ns=(times.st_atime_ns, times.st_mtime_ns))
    else:
        os.utime(model / "model.safetensors", (1, 1))
    assert logits(model, cache=tmp_path / "cache") == logits(model)
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert "name another folder" in convert_error(model, tmp_path / "out")
    with pytest.raises(CallError, match="another version"):
        logits(model, cache=tmp_path / "out")


def in_shards(folder: Path, kind: str) -> list[Path]:
    """A Llama in shards; those that hold some of the model's tensors each."""
    import torch

    llama(folder, max_shard_size="60KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    if kind == "torch":
        index = folder / "model.safetensors.index.json"
        (folder / "pytorch_model.bin.index.json").write_text(index.read_text().replace(".safetensors", ".bin"))
        index.unlink()
        for shard in shards:
            torch.save(dict(load_file(shard)), shard.with_suffix(".bin"))
            shard.unlink()
        shards = [shard.with_suffix(".bin") for shard in shards]
    assert len(shards) >= 4
    return shards


def turn_around(shard: Path) -> None:
    """The same names, shapes and sizes, with other numbers, and the file's time as it was: its bytes tell."""
    import torch

    times = shard.stat()
    if shard.suffix == ".bin":
        torch.save({name: value.flip(0) for name, value in torch.load(shard).items()}, shard)
    else:
        save_file({name: value.flip(0) for name, value in load_file(shard).items()}, shard)
    os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("kind", ["safetensors", "torch"])
def test_a_change_of_any_one_shard_is_another_source(tmp_path: Path, kind: str) -> None:
    """Each in its turn, the last first: an answer from before the change would be another one."""
    model = tmp_path / "model"
    shards = in_shards(model, kind)
    answers = [logits(model, cache=tmp_path / "cache")]
    for shard in reversed(shards):
        turn_around(shard)
        answers.append(logits(model, cache=tmp_path / "cache"))
        assert answers[-1] == logits(model), shard.name
    assert len(set(answers)) == len(answers)


def identities(folder: Path) -> dict[str, str]:
    """Of each part that has tensors: what its conversion is known by."""
    checkpoint, spec = open_checkpoint(resolve(str(folder)))
    prints = fingerprints(checkpoint)
    return {
        part.name: part_identity(checkpoint, part, sources, layout(part, Storage(), spec.checkpoint_dtype), prints)
        for part, sources in map_tensors(checkpoint, spec).parts
        if part.tensors
    }


@pytest.mark.parametrize("kind", ["safetensors", "torch"])
def test_a_change_of_one_shard_is_one_of_the_parts_that_it_fills_and_of_no_others(tmp_path: Path, kind: str) -> None:
    model = tmp_path / "model"
    shards = in_shards(model, kind)
    index = json.loads(next(model.glob("*.index.json")).read_text())["weight_map"]

    def part(name: str) -> str:
        stem = name.removeprefix("model.").split(".")
        return {"embed_tokens": "embed", "layers": f"blocks.{stem[1]}", "norm": "norm", "lm_head": "head"}[stem[0]]

    seen = identities(model)
    for shard in shards:
        turn_around(shard)
        now = identities(model)
        changed = {name for name in now if now[name] != seen[name]}
        assert changed == {part(name) for name, file in index.items() if file == shard.name}, shard.name
        seen = now


@pytest.mark.parametrize("how", ["scales", "blocks"])
def test_changed_float8_constants_are_another_source(models: dict[str, Path], tmp_path: Path, how: str) -> None:
    model = Path(shutil.copytree(models["fp8"], tmp_path / "model"))
    before = logits(model, cache=tmp_path / "cache")
    if how == "scales":
        shard = model / "model-2.safetensors"
        save_file({name: value.flip(0) for name, value in load_file(shard).items()}, shard)
    else:  # as many blocks, of another size: 2 or 3 of 107 for 128, but for the 320 columns
        edit_config(model, quantization_config={"quant_method": "fp8", "weight_block_size": [150, 150]})
    expected = logits(model)
    assert expected != before
    assert logits(model, cache=tmp_path / "cache") == expected


# Two at once, and Ctrl-C


def test_two_at_once(source: Path, forked: Forked, pristine: Path, tmp_path: Path) -> None:
    """On a conversion that is begun and has no parts: both convert, both write."""
    for number in range(3):
        out = tmp_path / f"{number}"
        out.mkdir()
        for name in contents(pristine).keys() | {"bigrun.json"}:
            if not name.endswith(".safetensors"):
                shutil.copy(pristine / name, out)
        calls: list[Any] = [{"args": run("--model", source, "--cache", out)}] * 2
        calls += [{"args": ["convert", "--model", source, "--out", out], "kind": "slow", "seconds": 0.002}]
        first, second, third = forked(calls=calls)
        assert [first["status"], second["status"], third["status"]] == [0] * 3, (first, second, third)
        assert (first["out"], said(first)) == (second["out"], said(second))
        assert contents(out) == contents(pristine)


def test_two_at_once_on_an_empty_cache(source: Path, forked: Forked, tmp_path: Path) -> None:
    for number in range(6):
        cache = tmp_path / f"{number}"
        calls = [
            {"args": run("--model", source, "--cache", cache), "kind": "slow", "seconds": s} for s in (0.003, 0.002)
        ]
        first, second = forked(calls=calls)
        assert first["status"] == second["status"] == 0, (first, second)
        assert first["out"] == second["out"]
        assert forked("cache", "verify", cache)["status"] == 0


def test_ctrl_c_says_how_far_it_is(source: Path, pristine: Path, forked: Forked, tmp_path: Path) -> None:
    for at in (45, 52, 62):
        out = tmp_path / f"{at}"
        stopped = forked("convert", "--model", source, "--out", out, kind="interrupt", at=at)
        one_line(stopped, 130, f"{len(inodes(out))} of 5 parts", out)
        assert forked("convert", "--model", source, "--out", out)["status"] == 0
        assert contents(out) == contents(pristine)


# Calls that are refused


def test_bad_calls_have_one_line(
    source: Path, models: dict[str, Path], conversion: Path, forked: Forked, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("mine")
    (tmp_path / "other").mkdir()
    forked("convert", "--model", models["opt"], "--out", tmp_path / "other" / "opt")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    one_line(forked(*run("--model", source, "--cache", tmp_path / "file")), 2, "file", "no folder")
    one_line(forked(*run("--model", source, "--cache", tmp_path / "c", "--weights", "16bit")), 2, "--weights 16bit")
    one_line(forked("convert", "--model", source, "--out", tmp_path / "mine"), 2, "not empty")
    one_line(forked("convert", "--model", source, "--out", tmp_path / "file"), 2, "no folder")
    one_line(forked("convert", "--model", source, "--out", source), 2, "not empty")
    one_line(forked("convert", "--model", source, "--out", tmp_path / "other" / "opt"), 2, "conversion of opt")
    one_line(forked("convert", "--model", conversion, "--out", tmp_path / "x"), 2, "already")
    one_line(forked(*run("--model", source, "--cache", tmp_path / "other" / "opt")), 2, "conversion of opt")
    for options in (["--head", "16bit"], ["--weights", "16bit"], ["--skip", "down"]):
        one_line(forked(*run("--model", conversion, *options)), 2, options[0])
    one_line(forked("cache", "list", tmp_path / "nowhere"), 2, "no such folder")
    one_line(forked("cache", "list"), 2, "BIGRUN_CACHE")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_file_of_the_users_with_the_manifests_name_stays(source: Path, forked: Forked, tmp_path: Path) -> None:
    (tmp_path / "bigrun.json").write_text('{"mine": 1}')
    assert forked("convert", "--model", source, "--out", tmp_path)["status"] == 2
    assert (tmp_path / "bigrun.json").read_text() == '{"mine": 1}'


# list, prune


def listed(forked: Forked, cache: Path, *command: str) -> dict[str, dict[str, Any]]:
    result = forked("cache", *(command or ["list"]), cache, "--json")
    assert result["status"] == 0, result
    return {Path(entry["folder"]).name: entry for entry in json.loads(result["out"])}


def test_list_and_prune(source: Path, pristine: Path, forked: Forked, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    for name in ("current", "changed", "gone", "old"):
        model = Path(shutil.copytree(source, tmp_path / "models" / name))
        assert forked("convert", "--model", model, "--out", cache / name)["status"] == 0
    os.utime(tmp_path / "models" / "changed" / "model.safetensors", (1, 1))
    shutil.rmtree(tmp_path / "models" / "gone")
    (cache / "gone" / "head.safetensors").unlink()
    (cache / "current" / ".head.safetensors.abcd1234.tmp").write_bytes(b"left over")
    os.utime(cache / "old" / "bigrun.json", (time.time() - 40 * 86400,) * 2)
    shutil.copytree(pristine, tmp_path / "elsewhere")
    (cache / "link").symlink_to(tmp_path / "elsewhere")
    (cache / "photos").mkdir()
    (cache / "photos" / "a.jpg").write_bytes(b"mine")
    entries = listed(forked, cache)
    states = {name: entry["source_state"] for name, entry in entries.items()}
    assert states == {"current": "current", "changed": "changed", "gone": "gone", "old": "current"}
    assert (entries["gone"]["parts_there"], entries["gone"]["parts"]) == (4, 5)
    assert 39 < entries["old"]["idle_days"] < 41
    text = forked("cache", "list", cache)["out"]
    assert all(words in text for words in ("4 of 5 parts", "(changed)", "40 days ago"))
    everything = sorted(cache.rglob("*"))
    assert listed(forked, cache, "prune", "--dry-run").keys() == {"changed"}
    assert sorted(cache.rglob("*")) == everything
    assert listed(forked, cache, "prune", "--older-than", "30", "--dry-run").keys() == {"changed", "old"}
    held = os.open(cache / "changed", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_SH)  # as a load of another process does
    assert listed(forked, cache, "prune") == {}
    os.close(held)
    assert not (cache / "current" / ".head.safetensors.abcd1234.tmp").exists()
    assert listed(forked, cache, "prune", "--incomplete").keys() == {"changed", "gone"}
    assert listed(forked, cache, "prune", "--all").keys() == {"current", "old"}
    assert sorted(path.name for path in cache.iterdir()) == ["link", "photos"]
    assert contents(tmp_path / "elsewhere") == contents(pristine)


def test_prune_leaves_what_a_runner_generates_from(conversion: Path, forked: Forked) -> None:
    with Runner(str(conversion), **RIG):
        assert listed(forked, conversion, "prune", "--all") == {}


def test_prune_leaves_what_is_no_conversion(forked: Forked, tmp_path: Path) -> None:
    for name, text in (("json", '{"mine": 1}'), ("text", "mine")):
        (tmp_path / name / "folder").mkdir(parents=True)
        (tmp_path / name / "bigrun.json").write_text(text)
        (tmp_path / name / "folder" / "thesis.txt").write_text("mine")
    forked("cache", "prune", tmp_path)
    assert len(list(tmp_path.glob("*/folder/thesis.txt"))) == 2


def test_prune_leaves_files_of_the_users_in_a_conversion(conversion: Path, forked: Forked) -> None:
    (conversion / "notes").mkdir()
    (conversion / "notes" / "thesis.txt").write_text("mine")
    forked("cache", "prune", conversion, "--all")
    assert (conversion / "notes" / "thesis.txt").exists()


@pytest.mark.parametrize("name", ["blobs", "elsewhere"])
def test_a_folder_that_is_called_as_the_hub_s_is_no_hub_cache(tmp_path: Path, name: str) -> None:
    """A file in a folder of that name, or linked to from anywhere, can change under its name."""
    file, link = tmp_path / name / ("0" * 64), tmp_path / "model.safetensors"
    file.parent.mkdir()
    file.write_bytes(b"one")
    link.symlink_to(file)
    before = fingerprint(file), fingerprint(link)
    file.write_bytes(b"two")
    assert not {fingerprint(file), fingerprint(link)} & set(before)


def test_the_hub_s_own_blobs_are_known_by_their_etags(tmp_path: Path) -> None:
    blob, snapshot = tmp_path / "blobs" / ("a" * 64), tmp_path / "snapshots" / "c0ffee"
    blob.parent.mkdir()
    snapshot.mkdir(parents=True)
    blob.write_bytes(b"one")
    (snapshot / "model.safetensors").symlink_to(f"../../blobs/{blob.name}")
    assert fingerprint(snapshot / "model.safetensors") == f"etag {blob.name}"


@LONG
def test_hundreds_of_faults_of_a_larger_conversion_are_mended_or_named() -> None:
    done = run_benchmark("faults.py", "--seed", "15")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]

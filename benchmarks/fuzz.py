"""Damage tiny checkpoints at random and load what comes of it: it loads, or bigrun refuses it in its own words.

    python benchmarks/fuzz.py --cases 20000 --seed 1
    python benchmarks/fuzz.py --kind gguf --replay 1:4711

Any other exception, a warning, a hang, a crash or a leap in memory is a failure, printed with what replays it. Cases run in
worker processes, so that a crash is seen from outside and is that of the case that was next. A case is made from its
kind, seed and number alone, so that it is the same whatever ran before it.
"""

import argparse
import ctypes
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

KINDS = ("safetensors", "index", "config", "bin", "gguf", "conversion")
ALARM = 2.0  # seconds for a case
PATIENCE = 20.0  # seconds until the worker itself is given up: a hang in C does not hear the alarm
MOST_GROWTH = 50 * 2**20  # bytes that the peak may rise by in one case
ROOM = 2**30  # bytes of addresses beside those of a warm worker
NUMBERS = (
    0,
    1,
    2,
    7,
    8,
    31,
    127,
    128,
    2**15,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**53,
    2**63 - 1,
    2**63,
    2**64 - 1,
)
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 63, 2**31, 2**53, 2**63, 2**64, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf"), "",
    "\0", "\x1b[31m\n", "\ud800", "../x", "F32", "F8_E4M3", "I8", "a" * 5000, [], [0], [1, 64], [[]], {}, {"a": 1},
)  # fmt: skip
SMALL = {"hidden": 32, "layers": 1, "heads": 2, "kv_heads": 1, "intermediate": 64}


class Hang(BaseException):
    """Not an Exception: nothing that the code under test catches."""


def make_sources(home: Path) -> None:
    """A valid checkpoint of each kind in the folder of its name."""
    import torch

    from bigrun.cli.convert import convert_model
    from bigrun.session.options import Options
    from support.checkpoints import gguf_twin, llama, state

    llama(home / "safetensors", **SMALL, tokenizer=True)
    llama(home / "index", **SMALL, max_shard_size="20KB")
    llama(home / "config", **SMALL, dtype="bfloat16")
    shutil.copytree(home / "config", home / "bin")
    torch.save(state(home / "bin"), home / "bin" / "pytorch_model.bin")
    (home / "bin" / "model.safetensors").unlink()
    (home / "gguf").mkdir()
    gguf_twin(home / "safetensors", home / "gguf" / "model.gguf", kind="Q8_0")
    convert_model(Options.of(model=str(home / "safetensors"), progress=False), home / "conversion")


def load(path: Path, cpu: str = "1GB") -> None:
    """Every row read and converted, or every part of a conversion mapped; the tokenizer too."""
    from bigrun.checkpoint.tensor_map import map_tensors, validate
    from bigrun.devices.host_memory import HostMemory
    from bigrun.devices.make_rig import RigOptions, make_rig
    from bigrun.loading.conversion_folder import Conversion
    from bigrun.loading.loader import load as load_all
    from bigrun.loading.open import open_model
    from bigrun.model.resolve import resolve
    from bigrun.planning.ledger import Ledger
    from bigrun.planning.options import PlanOptions
    from bigrun.planning.planner import make_plan
    from bigrun.session.preflight import check_runnable

    opened, spec = open_model(resolve(str(path)))
    rig = make_rig(RigOptions("none", cpu))
    options = PlanOptions(16)
    plan = make_plan(spec, rig, options)
    check_runnable(plan, spec)
    layouts = Ledger(spec, options).layouts
    memories = {device.name: HostMemory(device.name, device.budget_bytes) for device in rig.devices}
    int8_cache = None
    source = None
    if isinstance(opened, Conversion):
        opened.check_storage(options.storage)
        int8_cache = opened.int8_cache(layouts, lambda line: None)
    else:
        source = validate(map_tensors(opened, spec))
    try:
        for _ in load_all(spec, source, plan, layouts, memories, int8_cache):
            pass
    finally:
        if int8_cache is not None:
            int8_cache.close()


# What is done to a file.


def damage(rng: random.Random, data: bytes, head: int) -> bytes:
    """One change of bytes, rather in the first `head` of them."""
    at = rng.randrange(max(1, min(head, len(data)) if rng.random() < 0.8 else len(data)))
    size = min(rng.choice((1, 2, 4, 8, 64, 1024)), len(data) - at)
    match rng.randrange(8):
        case 0:
            return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        case 1:
            return data[:at] + rng.randbytes(size) + data[at + size :]
        case 2:
            return data[:at] + bytes([rng.choice((0, 255, 34, 48))]) * size + data[at + size :]
        case 3:
            return data[: rng.choice((at, len(data) - 1, len(data) // 2, 8))]
        case 4:
            return data[:at] + rng.randbytes(size) + data[at:]
        case 5:
            return data[:at] + data[at + size :]
        case 6:
            other = rng.randrange(len(data))
            return data[:at] + data[other : other + size] + data[at + size * rng.randrange(2) :]
        case _:
            form = rng.choice("BHIQ")
            number = struct.pack("<" + form, rng.choice(NUMBERS) % 2 ** (8 * struct.calcsize(form)))
            at = rng.choice((at, at // 4 * 4, at // 8 * 8, 0, 8, 16))
            return data[:at] + number + data[at + len(number) :]


def damage_json(rng: random.Random, text: bytes) -> bytes:
    """One value of a JSON text changed, taken out, put beside itself, or moved elsewhere."""
    content = json.loads(text)
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            places.append((value, key))
            if isinstance(value[key], dict | list):
                walk(value[key])

    walk(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        inner, key = rng.choice(places)
        other, name = rng.choice(places)
        number = inner[key] if key in inner or (isinstance(inner, list) and len(inner) > key) else None
        match rng.randrange(6):
            case 0 if isinstance(inner, dict):
                inner.pop(key, None)
            case 1 if isinstance(inner, dict):
                inner[rng.choice(("", "\x1b\n", "a" * 300, key + "x", "__metadata__"))] = inner.get(key)
            case 2 if isinstance(other, dict) and name in other:
                inner[key] = json.loads(json.dumps(other[name]))
            case 3 if type(number) is int:
                inner[key] = number + rng.choice((-1, 1, -number, 8, 64, 2**32))
            case _:
                inner[key] = rng.choice(VALUES)
    made = json.dumps(content)
    if rng.random() < 0.1:  # a second entry of a name that is there
        made = made[:-1] + f", {json.dumps(rng.choice(list(content)))}: {json.dumps(rng.choice(VALUES))}" + "}"
    return made.encode()


def damage_safetensors(rng: random.Random, data: bytes) -> bytes:
    size = int.from_bytes(data[:8], "little")
    if rng.random() < 0.5:
        return damage(rng, data, 8 + size)
    made = damage_json(rng, data[8 : 8 + size])
    return struct.pack("<Q", len(made)) + made + data[8 + size :]


def damage_bin(rng: random.Random, data: bytes) -> bytes:
    """Bytes anywhere, rather at the zip's end; or of a record, in a zip that is sound."""
    if rng.random() < 0.4:
        return damage(rng, data[::-1], 2500)[::-1]
    made = BytesIO()
    with zipfile.ZipFile(BytesIO(data)) as old, zipfile.ZipFile(made, "w") as new:
        chosen = rng.choice([*old.namelist(), *[name for name in old.namelist() if name.endswith("data.pkl")] * 60])
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, damage(rng, content, len(content)) if name == chosen and content else content)
    return made.getvalue()


def damage_manifest(rng: random.Random, data: bytes) -> bytes:
    """Of JSON, rather with a digest that fits: it is no secret how it is made."""
    from bigrun.loading.identity import digest

    made = damage_json(rng, data)
    try:
        values = json.loads(made)
        values["digest"] = digest({key: value for key, value in values.items() if key not in ("format", "digest")})
        return json.dumps(values).encode() if rng.random() < 0.8 else made
    except (ValueError, TypeError, KeyError):
        return made


def mutate(rng: random.Random, kind: str, folder: Path) -> tuple[str, bytes]:
    """(file, its new content)."""
    from bigrun.loading.manifest import MANIFEST

    files = sorted(file.name for file in folder.iterdir() if file.suffix in (".safetensors", ".gguf", ".bin"))
    if kind == "conversion":
        files += [MANIFEST] * len(files)
    name = {"index": "model.safetensors.index.json", "config": "config.json"}.get(kind) or rng.choice(files)
    data = (folder / name).read_bytes()
    if name.endswith(".json") and rng.random() < 0.2:
        return name, damage(rng, data, len(data))
    change: Callable[[random.Random, bytes], bytes] = {
        "safetensors": damage_safetensors, "bin": damage_bin, "json": damage_manifest if kind == "conversion" else damage_json,
    }.get(name.rpartition(".")[2], lambda rng, data: damage(rng, data, 12_000))  # fmt: skip
    for _ in range(rng.choice((1, 1, 1, 2)) if name.endswith((".gguf", ".safetensors")) else 1):
        try:
            data = change(rng, data)
        except (ValueError, TypeError, AttributeError, IndexError):  # too damaged for a second change
            break
    return name, data


# Workers.


def memory_peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run_case(home: Path, here: Path, kind: str, seed: int, number: int) -> tuple[str, str]:
    """(outcome, what is to be said of a failure)."""
    from bigrun.errors import BigrunError

    name, data = mutate(random.Random(f"{seed}:{number}:{kind}"), kind, home / kind)
    path = here / kind / name
    path.unlink()  # not written over: a mapping of the last case may be alive still
    path.write_bytes(data)
    before = memory_peak()
    signal.setitimer(signal.ITIMER_REAL, ALARM)
    try:
        load(here / kind / "model.gguf" if kind == "gguf" else here / kind)
        outcome, said = "loaded", ""
    except BigrunError as error:
        outcome, said = "refused", ""
        if len(str(error).splitlines()) > 2 or not str(error).isprintable() or len(str(error)) > 2000:
            outcome, said = "failure", f"not one line of reasonable length: {str(error)[:3000]!r}"
    except Hang:
        outcome, said = "hang", traceback.format_exc()
    except BaseException:
        outcome, said = "failure", traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        path.unlink()
        os.link(home / kind / name, path)
    if (growth := memory_peak() - before) > MOST_GROWTH:
        return "memory", f"{outcome}, and the peak rose by {growth >> 20} MiB\n{said}"
    return outcome, said


def work(home: Path, pipe: Any, seed: int) -> None:
    """A worker: warm itself once, then answer each (kind, number) with its outcome."""
    here = Path(tempfile.mkdtemp(dir=home))
    for kind in KINDS:
        shutil.copytree(home / kind, here / kind)
        load(here / kind / "model.gguf" if kind == "gguf" else here / kind)

    def alarm(*_: Any) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, alarm)
    ctypes.CDLL(None).malloc_trim(0)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, size + ROOM))
    warnings.simplefilter("error", RuntimeWarning)
    warnings.simplefilter("error", UserWarning)
    pipe.send("ready")
    while (case := pipe.recv()) is not None:
        started = time.perf_counter()
        outcome, said = run_case(home, here, case[0], seed, case[1])
        pipe.send((outcome, said, time.perf_counter() - started))


class Worker:
    """A process that answers one case at a time; what ends it is an outcome too."""

    def __init__(self, home: Path, seed: int):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(home, theirs, seed), daemon=True)
        self.process.start()
        theirs.close()
        assert self.pipe.recv() == "ready"

    def ask(self, kind: str, number: int) -> tuple[str, str, float]:
        self.pipe.send((kind, number))
        try:
            if self.pipe.poll(PATIENCE):
                answer: tuple[str, str, float] = self.pipe.recv()
                return answer
            self.process.kill()
            return "hang", f"no answer within {PATIENCE:.0f} seconds", PATIENCE
        except (EOFError, ConnectionError):
            self.process.join()
            return "crash", f"the worker ended with exit code {self.process.exitcode}", 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=("all", *KINDS), default="all")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="Stop after so long.")
    parser.add_argument("--replay", metavar="SEED:N", help="One case again; --kind says of which kind.")
    options = parser.parse_args()
    kinds = KINDS if options.kind == "all" else (options.kind,)
    seed, numbers = options.seed, range(options.cases)
    if options.replay:
        seed, number = map(int, options.replay.split(":"))
        numbers = range(number, number + 1)
        kinds = (options.kind,) if options.kind != "all" else (KINDS[number % len(KINDS)],)
    counts: Counter[tuple[str, str]] = Counter()
    slowest = (0.0, "")
    seen: Counter[str] = Counter()
    room = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=room) as home:
        make_sources(Path(home))
        worker, started = Worker(Path(home), seed), time.perf_counter()
        for number in numbers:
            if time.perf_counter() - started > options.seconds:
                break
            kind = kinds[number % len(kinds)]
            outcome, said, seconds = worker.ask(kind, number)
            counts[kind, outcome] += 1
            slowest = max(slowest, (seconds, f"--kind {kind} --replay {seed}:{number}"))
            if options.replay:
                print(outcome, said)
            elif outcome not in ("loaded", "refused"):
                places = [line for line in said.splitlines() if line.startswith("  File ")]
                key = " ".join((kind, outcome, *places[-1:], said.rpartition("\n  ")[2].partition(":")[0]))
                seen[key] += 1
                if seen[key] <= 2:
                    print(f"{outcome}: --kind {kind} --replay {seed}:{number}\n{said}\n", flush=True)
            if outcome in ("memory", "hang", "crash"):
                worker.process.kill()
                worker = Worker(Path(home), seed)
        worker.process.kill()
    outcomes = ("loaded", "refused", "failure", "memory", "hang", "crash")
    print(f"{'kind':12}" + "".join(f"{outcome:>9}" for outcome in outcomes))
    for kind in KINDS:
        print(f"{kind:12}" + "".join(f"{counts[kind, outcome]:9}" for outcome in outcomes))
    total, elapsed = sum(counts.values()), time.perf_counter() - started
    print(f"{total} cases in {elapsed:.0f} s; the slowest took {slowest[0]:.2f} s: {slowest[1]}")
    return int(any(counts[kind, outcome] for kind in KINDS for outcome in outcomes[2:]))


if __name__ == "__main__":
    sys.exit(main())

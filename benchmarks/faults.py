"""What becomes of the int8 cache under faults: kills, flipped bytes, truncations, a full disk, two processes at once.

    python benchmarks/faults.py [--model MODEL] [--kills 100] [--bytes 200] [--cuts 100] [--full 25] [--pairs 10]

After each fault the next start must finish the job or say which file is bad, and no answer may differ from the right one.
Prints a table: fault, how often, what happened; exit status 1 if anything else did. Every start is a fork of this process,
which has the kernels loaded: a kill at any moment is a kill of a conversion, not of an interpreter that is starting.
"""

import argparse
import errno
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ["NUMBA_NUM_THREADS"] = "1"  # kernel threads do not survive a fork

import numpy as np
from safetensors.numpy import save_file

from bigrun import Runner
from bigrun.cli.convert import convert_model
from bigrun.cli.upkeep import verify_all
from bigrun.errors import BigrunError
from bigrun.session.options import Options

MANIFEST = "bigrun.json"
FINISHED, NAMED, UNHARMED = "finished by the next start", "named the bad file", "right all the same"
LIMIT = 60  # seconds that a call may take; it takes a tenth of one
RIG: dict[str, Any] = {"gpus": "none", "context": 32, "progress": False, "threads": 1}


def write_model(folder: Path, layers: int = 6, hidden: int = 256, vocab: int = 512) -> None:
    """A small random Llama: large enough for a conversion to last some milliseconds a part."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "num_hidden_layers": layers,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 2 * hidden, "vocab_size": vocab,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "torch_dtype": "float16",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))
    shapes = {"model.embed_tokens": (vocab, hidden), "lm_head": (vocab, hidden), "model.norm": (hidden,)}
    for i in range(layers):
        block = f"model.layers.{i}"
        shapes |= {f"{block}.self_attn.{x}_proj": (hidden if x in "qo" else hidden // 2, hidden) for x in "qkvo"}
        shapes |= {f"{block}.mlp.{x}_proj": (2 * hidden, hidden) for x in ("gate", "up")}
        shapes |= {f"{block}.mlp.down_proj": (hidden, 2 * hidden)}
        shapes |= {f"{block}.{x}_layernorm": (hidden,) for x in ("input", "post_attention")}
    tensors = {f"{name}.weight": draw.normal(0, 0.06, shape).astype(np.float16) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")


class Child:
    """A call in a fork of this process: killed, or waited for. Its result comes back through a file without a name."""

    def __init__(self, call: Callable[..., Any], *args: Any, **more: Any):
        self._file = os.memfd_create("result")
        sys.stdout.flush()
        self._pid = os.fork()
        if not self._pid:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            try:
                outcome = {"result": call(*args, **more)}
            except BigrunError as error:
                outcome = {"error": str(error)}
            except BaseException as error:
                outcome = {"bug": repr(error)}
            os.pwrite(self._file, json.dumps(outcome).encode(), 0)
            os._exit(0)

    def kill(self) -> None:
        os.kill(self._pid, signal.SIGKILL)
        self.wait()

    def wait(self) -> dict[str, Any]:
        """What came of the call; one that does not end is killed, and said to hang."""
        until, (done, status) = time.monotonic() + LIMIT, os.waitpid(self._pid, os.WNOHANG)
        while not done:
            if time.monotonic() > until:
                os.kill(self._pid, signal.SIGKILL)
                os.waitpid(self._pid, 0)
                os.close(self._file)
                return {"bug": f"it hung for {LIMIT} s"}
            time.sleep(0.0005)
            done, status = os.waitpid(self._pid, os.WNOHANG)
        status = os.waitstatus_to_exitcode(status)
        data = os.pread(self._file, 1 << 16, 0)
        os.close(self._file)
        return json.loads(data) if status == 0 else {"bug": f"it ended with {status}"}


class Faults:
    """The faults, on one model; `seen` counts what happened for each."""

    def __init__(self, model: str, home: Path, seed: int, cpu: str):
        self.model, self.home, self.draw, self.cpu = model, home, random.Random(seed), cpu
        self.seen: dict[str, Counter[str]] = {}
        self.reference = home / "reference"
        convert_model(Options.of(model=model, progress=False), self.reference)
        self.ids = np.asarray([[5, 7, 11, 13, 17, 19, 23, 29]])
        self.right = self.answer(model)
        self.parts = {file.name: file.read_bytes() for file in self.reference.glob("*.safetensors")}

    def answer(self, model: str | Path, **more: Any) -> str:
        """The logits, in hexadecimal of their bits, summed up."""
        import xxhash

        with Runner(str(model), cpu=self.cpu, **RIG, **more) as runner:
            return str(xxhash.xxh3_128_hexdigest(np.ascontiguousarray(runner.logits(self.ids)).tobytes()))

    def convert(self, out: Path) -> int:
        return int(convert_model(Options.of(model=self.model, progress=False), out)["converted_parts"])

    def count(self, fault: str, what: str) -> None:
        self.seen.setdefault(fault, Counter())[what] += 1

    def damaged(self, out: Path) -> list[str]:
        """Parts under their own names that are not what an undisturbed conversion writes."""
        return [file.name for file in out.glob("[!.]*.safetensors") if file.read_bytes() != self.parts[file.name]]

    def next_start(self, fault: str, out: Path, before: int) -> None:
        """The same command again: it must finish, use what was there, and leave nothing else behind."""
        if broken := self.damaged(out):
            return self.count(fault, f"damaged under its own name: {broken[0]}")
        outcome = Child(self.convert, out).wait()
        if "result" not in outcome:
            return self.count(fault, f"refused: {self._short(outcome, out)}")
        left = [file.name for file in out.glob(".*")]
        if outcome["result"] != len(self.parts) - before:
            what = f"converted {outcome['result']} parts again"
        elif left or self.damaged(out) or len(list(out.glob("*.safetensors"))) != len(self.parts):
            what = f"not whole: {left}"
        else:
            what = FINISHED
        self.count(fault, what)

    def _short(self, outcome: dict[str, Any], folder: Path) -> str:
        return str(outcome.get("error") or outcome.get("bug")).replace(str(folder), "DIR").replace(str(self.home), "…")

    def kills(self, times: int) -> None:
        """At random moments of a conversion from nothing, its beginning more often than its share of the time."""
        start = time.perf_counter()
        Child(self.convert, self.home / "timed").wait()
        lasts = time.perf_counter() - start
        for i in range(times):
            out = self.home / "killed"
            child = Child(self.convert, out)
            if i % 3 == 0:  # as soon as there is a folder, and a moment later
                waited = time.perf_counter()
                while not out.exists() and time.perf_counter() < waited + 10:
                    time.sleep(0.0001)
                time.sleep(self.draw.uniform(0, 0.05 * lasts))
            else:
                time.sleep(self.draw.uniform(0, lasts))
            child.kill()
            begun = (out / MANIFEST).exists()
            self.next_start(f"kill, {'after' if begun else 'before'} the manifest", out, self._there(out))
            shutil.rmtree(out, ignore_errors=True)

    def _there(self, out: Path) -> int:
        return len(list(out.glob("[!.]*.safetensors")))

    def full(self, times: int) -> None:
        """A disk that takes so many bytes and no more."""
        whole = sum(file.stat().st_size for file in self.reference.iterdir())
        beside = whole - sum(map(len, self.parts.values()))
        for i in range(times):
            out, room = self.home / "full", self.draw.randrange(beside if i % 4 == 0 else whole)
            outcome = Child(_with_room, room, self.convert, out).wait()
            begun = (out / MANIFEST).exists()
            fault = f"disk full, {'after' if begun else 'before'} the manifest"
            if str(out) not in outcome.get("error", ""):
                self.count(fault, f"no error that names the folder: {self._short(outcome, out)}")
            else:
                self.next_start(fault, out, self._there(out))
            shutil.rmtree(out, ignore_errors=True)

    def damages(self, fault: str, times: int, damage: Callable[[bytes], bytes]) -> None:
        """Of any file of a conversion: it is run by itself, then with its source at hand."""
        files = sorted(self.reference.iterdir())
        for i in range(times):
            out = Path(shutil.copytree(self.reference, self.home / "damaged"))
            path = out / (files[i % len(files)] if i % 2 else self.draw.choice(files)).name
            path.write_bytes(damage(path.read_bytes()))
            alone = Child(self.answer, out).wait()
            beside = Child(self.answer, self.model, cache=out).wait()
            if "error" in alone:
                what = NAMED if str(path) in alone["error"] else f"did not name it: {self._short(alone, out)}"
            elif "bug" in alone:
                what = self._short(alone, out)
            else:
                what = UNHARMED if alone["result"] == self.right else f"ANOTHER ANSWER from {path.name}"
            self.count(f"{fault}, alone", what)
            what = FINISHED if beside.get("result") == self.right and not self.damaged(out) else "not mended"
            if "result" not in beside:  # so little is left of a manifest that it could be somebody else's file
                what = NAMED if str(path) in beside.get("error", "") else self._short(beside, out)
            elif beside["result"] != self.right:
                what = f"ANOTHER ANSWER from {path.name}"
            self.count(f"{fault}, with its source", what)
            shutil.rmtree(out)

    def pairs(self, times: int) -> None:
        """Two loads, of an empty folder."""
        for _ in range(times):
            out = self.home / "shared"
            both = [Child(self.answer, self.model, cache=out) for _ in range(2)]
            for outcome in [child.wait() for child in both]:
                right = outcome.get("result") == self.right
                self.count("two at once", UNHARMED if right else self._short(outcome, out))
            bad = [line for _, lines in [verify_all(out)] for line in lines] if out.exists() else ["no folder"]
            for folder in out.glob("*/"):
                bad += self.damaged(folder)
            self.count("two at once, the cache", f"damaged: {bad[0]}" if bad else "whole")
            shutil.rmtree(out, ignore_errors=True)


def _with_room(room: int, call: Callable[[Path], Any], out: Path) -> Any:
    """The call, on a disk that has so many bytes left."""
    real, left = os.write, room

    def write(handle: int, data: Any) -> int:
        nonlocal left
        if not left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = real(handle, data[:left])
        left -= done
        return done

    os.write = write  # of this fork alone
    return call(out)


@contextmanager
def scratch(folder: str | None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as home:
        yield Path(home)


def table(seen: dict[str, Counter[str]]) -> tuple[str, bool]:
    """(the table, whether all of it is what was promised)."""
    good = (FINISHED, NAMED, UNHARMED, "whole")
    rows = [(fault, str(n), what) for fault, counts in sorted(seen.items()) for what, n in counts.most_common()]
    width = max(len(fault) for fault, *_ in rows)
    lines = [f"{'fault':<{width}}  {'times':>5}  what happened"]
    lines += [f"{f:<{width}}  {n:>5}  {'' if what in good else '** '}{what}" for f, n, what in rows]
    return "\n".join(lines), all(what in good for _, _, what in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", help="a folder or .gguf file; default: a small random one")
    parser.add_argument("--cpu", default="1GB", help="host memory for it")
    parser.add_argument("--work", help="where to put conversions, which takes a few times the model")
    parser.add_argument("--seed", type=int, default=0)
    for name, times in {"kills": 100, "bytes": 200, "cuts": 100, "full": 25, "pairs": 10}.items():
        parser.add_argument(f"--{name}", type=int, default=times, metavar="N")
    options = parser.parse_args()
    started = time.perf_counter()
    with scratch(options.work) as home:
        model = options.model or str(home / "model")
        if options.model is None:
            write_model(home / "model")
        faults = Faults(model, home, options.seed, options.cpu)
        draw = faults.draw

        def flip(data: bytes) -> bytes:
            at = draw.randrange(min(len(data), draw.choice((600, 4200, len(data)))))
            return data[:at] + bytes([data[at] ^ draw.randrange(1, 256)]) + data[at + 1 :]

        faults.kills(options.kills)
        faults.full(options.full)
        faults.damages("a byte", options.bytes, flip)
        faults.damages("cut short", options.cuts, lambda data: data[: draw.randrange(len(data))])
        faults.pairs(options.pairs)
    text, good = table(faults.seen)
    print(text)
    print(f"{time.perf_counter() - started:.0f} s")
    sys.stdout.flush()
    os._exit(0 if good else 1)  # TBB, if it is loaded, may wait for the threads of forks


if __name__ == "__main__":
    main()

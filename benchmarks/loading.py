#!/usr/bin/env python3
"""How long loading takes and how much memory, beside what users would pick instead; and whether it stays in its plan.

    python benchmarks/loading.py --model 7B [--rounds 3] [--peers] [--decode] [--cold] [--limits] [--work DIR]

    (always)   bigrun from the checkpoint, writing its int8 cache, and from that cache; each in a process of its own, in turn,
               the files in the page cache before each. Seconds count from the start of the process, peak bytes are RssAnon +
               RssShmem, which the parent samples.
    --peers    transformers + bitsandbytes int8, and transformers bfloat16, in the same rounds
    --limits   peaks on CPU, virtual GPUs and both, from one shard of the whole size, and under hard limits: a control group
               (version 1 or 2, where one can be made) and RLIMIT_DATA, of what was planned and 0.8 GB
    --cold     from the disk, beside reading the same files alone
    --decode   decode steps from the mapped cache against anonymous memory, in turn, in one process

Prints the quantiser's speed and what new memory costs here as well. Run nothing else.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SLACK = 800 * 10**6  # beside the plan's own bytes: Python, Numba, compiled kernels
CONTEXT = 256
RIGS = {
    "cpu": {"gpus": "none", "cpu": "64GB"},
    "virtual": {"gpus": "2x5GB", "cpu": "2GB", "virtual": True},
    "mixed": {"gpus": "1x3GB", "cpu": "64GB", "virtual": True},
}


def host_bytes(pid: int | str) -> int:
    """RssAnon + RssShmem of a process."""
    with open(f"/proc/{pid}/status") as status:
        return 1024 * sum(int(line.split()[1]) for line in status if line.startswith(("RssAnon", "RssShmem")))


def since_start() -> float:
    """Seconds since this process began."""
    with open("/proc/self/stat") as stat:
        ticks = int(stat.read().rsplit(")", 1)[1].split()[19])
    with open("/proc/uptime") as uptime:
        return float(uptime.read().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")


def child_bigrun(model: str, rig: str, cache: str) -> dict[str, Any]:
    from bigrun import Runner

    with Runner(model, context=CONTEXT, progress=False, cache=cache or None, **RIGS[rig]) as runner:  # type: ignore[arg-type]
        loaded = since_start()
        runner.executor.forward({0: [5, 6, 7, 8, 9]})
        first = since_start()
        planned = sum(d.used_bytes - d.reserve_bytes for d in runner.plan.devices if d.kind == "cpu" or d.virtual)
        return {"loaded": loaded, "first": first, "planned": planned, "notes": list(runner.notes)}


def child_transformers(model: str, int8: bool) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    how: dict[str, Any] = {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)} if int8 else {}
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16, device_map="cpu", **how)
    seconds = since_start()
    with torch.no_grad():
        loaded(torch.tensor([[5, 6, 7, 8, 9]]))
    return {"loaded": seconds, "first": since_start()}


def warm(folder: Path) -> None:
    """Its files into the page cache."""
    for file in sorted(folder.glob("*.safetensors")):
        with open(file, "rb", buffering=0) as stream:
            buffer = bytearray(8 * 2**20)
            while stream.readinto(buffer):
                pass


def run(arguments: list[str], limit: str = "", nbytes: int = 0) -> dict[str, Any]:
    """A child's answer, with its peak; `limit` is "", "cgroup" or "data"."""
    group = _group(nbytes) if limit == "cgroup" else None

    def begin() -> None:
        if limit == "data":
            resource.setrlimit(resource.RLIMIT_DATA, (nbytes, nbytes))
        if group is not None:
            (group / "cgroup.procs").write_text(str(os.getpid()))

    command = [sys.executable, __file__, "--child", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=begin)
    peak = 0
    while process.poll() is None:
        try:
            peak = max(peak, host_bytes(process.pid))
        except OSError:
            break
        time.sleep(0.02)
    out, err = process.communicate()
    if group is not None:
        group.rmdir()
    if process.returncode:
        return {"failed": (err.strip().splitlines() or [f"status {process.returncode}"])[-1], "peak": peak}
    return {**json.loads(out.splitlines()[-1]), "peak": peak}


def _group(nbytes: int) -> Path | None:
    """A control group with a hard limit of memory; None where none can be made."""
    for root, file in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        group = Path(root) / f"bigrun-{os.getpid()}"
        try:
            group.mkdir()
            (group / file).write_text(str(nbytes))
            return group
        except OSError:
            if group.is_dir():
                group.rmdir()
    return None


def new_memory(nbytes: int = 4 * 10**9) -> float:
    """Bytes/s at which this host gives a process memory that it has not had: two threads write to each page once."""
    import threading

    from bigrun.devices.host_memory import HostMemory

    arena = HostMemory("cpu", nbytes).take(nbytes, "workspace", "the measurement")
    halves = arena[: nbytes // 2], arena[nbytes // 2 :]
    threads = [threading.Thread(target=half.__setitem__, args=(slice(None, None, 4096), 1)) for half in halves]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return nbytes / (time.perf_counter() - started)


def quantiser() -> None:
    """The kernel's speed beside the roof: bytes of float16 read and int8 written in a second, from memory."""
    import numpy as np

    from bigrun.devices.measure import read_bandwidth
    from bigrun_kernels import lanes
    from bigrun_kernels.cpu import quantise, threads

    threads.use(None)
    rows, columns = 8192, 11008
    source = (np.random.default_rng(0).standard_normal((rows, columns)) * 0.02).astype(np.float16).view(np.uint16)
    q, scale = np.zeros(lanes.shape(rows, columns), np.int8), np.empty(rows, np.float32)
    groups = np.empty(lanes.scale_shape(rows, columns), np.uint16)
    where = np.arange(rows)
    roof = read_bandwidth()
    for name, kernel, target in (("a row", quantise.per_row, scale), ("32 columns", quantise.per_group, groups)):
        times = []
        for _ in range(6):
            started = time.perf_counter()
            kernel(source, False, where, q, target)
            times.append(time.perf_counter() - started)
        rate = (source.nbytes + q.nbytes) / statistics.median(times[1:])
        share = rate / roof
        print(
            f"quantiser, a constant for {name}: {rate / 1e9:.1f} GB/s read and written, {share:.0%} of {roof / 1e9:.1f}"
        )
    print(f"new memory: {new_memory() / 1e9:.2f} GB/s on two threads")


def child_decode(model: str, conversion: str, steps: int) -> dict[str, Any]:
    """Steps of the same model from anonymous memory and from its mapped files, in turn."""
    from bigrun import Runner

    runners = {
        name: Runner(path, gpus="none", cpu="64GB", context=CONTEXT, progress=False)
        for name, path in (("anonymous", model), ("mapped", conversion))
    }
    times: dict[str, list[float]] = {name: [] for name in runners}
    for i in range(steps + 2):
        for name, runner in runners.items():
            started = time.perf_counter()
            runner.executor.forward({0: [10 + i]})
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(seconds[2:]) for name, seconds in times.items()}


def in_turn(model: Path, work: Path, rounds: int, peers: bool) -> None:
    """The table: medians of rounds."""
    conversion = work / "conversion"
    kinds = {
        "bigrun, from the checkpoint": (model, ["bigrun", str(model), "cpu", ""]),
        "bigrun, from the checkpoint, writing its cache": (model, ["bigrun", str(model), "cpu", str(work / "cache")]),
        "bigrun, from its cache": (conversion, ["bigrun", str(conversion), "cpu", ""]),
    }
    if peers:
        kinds["transformers + bitsandbytes int8"] = (model, ["transformers", str(model), "int8"])
        kinds["transformers bfloat16"] = (model, ["transformers", str(model), ""])
    measurements: dict[str, list[dict[str, Any]]] = {name: [] for name in kinds}
    for _ in range(rounds):
        for name, (files, arguments) in kinds.items():
            shutil.rmtree(work / "cache", ignore_errors=True)
            warm(files)
            measurements[name].append(run(arguments))
            print(f"  {name}: {json.dumps(measurements[name][-1])}", flush=True)
    shutil.rmtree(work / "cache", ignore_errors=True)
    print(f"\n{'':50} {'loaded':>8} {'first token':>12} {'peak':>9} {'planned':>9}")
    for name, results in measurements.items():
        if any("failed" in result for result in results):
            print(f"{name:50} failed: {next(r['failed'] for r in results if 'failed' in r)}")
            continue
        middle = {
            key: statistics.median(r.get(key, 0) for r in results) for key in ("loaded", "first", "peak", "planned")
        }
        planned = f"{middle['planned'] / 1e9:6.2f} GB" if middle["planned"] else ""
        print(
            f"{name:50} {middle['loaded']:6.1f} s {middle['first']:10.1f} s {middle['peak'] / 1e9:6.2f} GB {planned:>9}"
        )


def chill(folder: Path) -> int:
    """Its files out of the page cache; returns their bytes."""
    for file in folder.glob("*.safetensors"):
        with open(file, "rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def read_all(folder: Path) -> float:
    """Seconds in which one thread reads the files from the disk, and does nothing with them."""
    chill(folder)
    started = time.perf_counter()
    warm(folder)
    return time.perf_counter() - started


def cold(model: Path, work: Path, rounds: int) -> None:
    """From a disk: how long a load takes beside reading the same files and nothing else."""
    print(f"\n{'from the disk':50} {'reading':>9} {'loading':>9} {'GB/s':>6}")
    for name, folder in (("the checkpoint", model), ("the cache", work / "conversion")):
        reads, loads = [], []
        for _ in range(rounds):
            reads.append(read_all(folder))
            nbytes = chill(folder)
            loads.append(run(["bigrun", str(folder), "cpu", ""])["loaded"])
        read, loaded = statistics.median(reads), statistics.median(loads)
        print(f"{name:50} {read:7.1f} s {loaded:7.1f} s {nbytes / loaded / 1e9:6.2f}")


def one_shard(model: Path, folder: Path) -> Path:
    """The checkpoint in a single file of its whole size."""
    headers: dict[str, Any] = {}
    end, pieces = 0, []
    for file in sorted(model.glob("*.safetensors")):
        with open(file, "rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(size))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            headers[name] = {**entry, "data_offsets": [end + offset for offset in entry["data_offsets"]]}
        pieces.append((file, 8 + size))
        end = max(entry["data_offsets"][1] for entry in headers.values())
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(model / "config.json", folder)
    text = json.dumps(headers).encode()
    text += b" " * (-len(text) % 8)
    with open(folder / "model.safetensors", "wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for file, begin in pieces:
            with open(file, "rb") as stream:
                stream.seek(begin)
                shutil.copyfileobj(stream, out, 16 * 2**20)
    return folder


def limits(model: Path, work: Path) -> None:
    """Peaks against plans."""
    whole = one_shard(model, work / "one-shard")
    planned = run(["bigrun", str(model), "cpu", ""])["planned"]
    tries = [
        ("CPU", model, "cpu", "", ""),
        ("CPU, one shard of the whole size", whole, "cpu", "", ""),
        ("two virtual GPUs and CPU", model, "virtual", "", ""),
        ("a virtual GPU and mostly CPU", model, "mixed", "", ""),
        ("CPU, writing the cache", model, "cpu", str(work / "cache"), ""),
        ("CPU, control group of plan + 0.8 GB", model, "cpu", "", "cgroup"),
        ("CPU, RLIMIT_DATA of plan + 0.8 GB", model, "cpu", "", "data"),
    ]
    print(f"\n{'':40} {'peak':>9} {'planned':>9} {'beside it':>10} {'loaded':>9}")
    for name, source, rig, cache, limit in tries:
        result = run(["bigrun", str(source), rig, cache], limit, planned + SLACK)
        if "failed" in result:
            print(f"{name:40} {result['peak'] / 1e9:6.2f} GB failed: {result['failed']}")
            continue
        beside = (result["peak"] - result["planned"]) / 1e9
        print(
            f"{name:40} {result['peak'] / 1e9:6.2f} GB {result['planned'] / 1e9:6.2f} GB {beside:+7.2f} GB "
            f"{result['loaded']:7.1f} s"
        )
    shutil.rmtree(whole)
    shutil.rmtree(work / "cache", ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("/tmp/bigrun-loading"))
    for flag in ("--peers", "--limits", "--decode", "--cold"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("--child", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        kind, model, *rest = options.child
        if kind == "decode":
            print(json.dumps(child_decode(model, rest[0], 15)))
        else:
            print(
                json.dumps(child_bigrun(model, *rest) if kind == "bigrun" else child_transformers(model, bool(rest[0])))
            )
        return
    quantiser()
    command = [sys.executable, "-m", "bigrun.cli.app", "convert"]
    subprocess.run([*command, "--model", options.model, "--out", options.work / "conversion"], check=True)
    in_turn(options.model, options.work, options.rounds, options.peers)
    if options.decode:
        medians = run(["decode", str(options.model), str(options.work / "conversion")])
        print(
            f"\ndecode, medians: {json.dumps(medians)}; mapped is {medians['anonymous'] / medians['mapped']:.3f} of anonymous"
        )
    if options.cold:
        cold(options.model, options.work, options.rounds)
    if options.limits:
        limits(options.model, options.work)
    shutil.rmtree(options.work)


if __name__ == "__main__":
    main()

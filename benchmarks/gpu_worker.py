"""The process of gpu.py that measures: what can be measured, and the worker that does so, one thing after the other.

    gpu_worker.py --worker NAME,... --folder DIR --deadline SECONDS [--emulate]

Each event is a line of JSON on standard output: about (the card), begun, row, trace, done, or absent (there is no GPU). It ends
early, with a status that says so, when a kernel has left its process no use of the GPU.
"""

import argparse
import gc
import json
import os
import platform
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from gpu_report import EMULATED

ROOT = Path(__file__).resolve().parents[1]
GO_ON = 3  # the status of a process that leaves the rest to a new one


@dataclass(frozen=True)
class Measurement:
    """A function of a module that yields rows; `seconds` it may take: with less than that left it is skipped, and after
    four times that it is stopped."""

    module: str
    function: str
    seconds: float


MEASUREMENTS = {
    "check-exact": Measurement("gpu_checks", "exact", 30),
    "check-int8": Measurement("gpu_checks", "int8", 40),
    "check-elementwise": Measurement("gpu_checks", "elementwise", 20),
    "check-table": Measurement("gpu_checks", "table", 15),
    "check-store": Measurement("gpu_checks", "store", 15),
    "check-decode-attention": Measurement("gpu_checks", "attention_decode", 40),
    "check-prompt-attention": Measurement("gpu_checks", "attention_prompt", 40),
    "files-0.1b": Measurement("gpu_models", "small_files", 15),
    "host-kernels": Measurement("gpu_models", "host_kernels", 40),
    "gpu-kernels": Measurement("gpu_models", "gpu_kernels", 40),
    "files-7b": Measurement("gpu_models", "large_files", 45),
    "roofs": Measurement("gpu_kernels", "roofs", 10),
    "decode": Measurement("gpu_kernels", "decode", 20),
    "few-rows": Measurement("gpu_kernels", "few_rows", 15),
    "prefill": Measurement("gpu_kernels", "prefill", 40),
    "attention": Measurement("gpu_kernels", "attention", 20),
    "small-model": Measurement("gpu_models", "small_model", 30),
    "large-model": Measurement("gpu_models", "large_model", 80),
    "hybrid": Measurement("gpu_models", "hybrid", 45),
    "head": Measurement("gpu_kernels", "head", 10),
    "blocks": Measurement("gpu_kernels", "blocks", 40),
}


def work(names: Sequence[str], emulate: bool, folder: Path, deadline: float) -> int:
    """Runs measurements, telling each event as a line of JSON on what was standard output."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.path[1:1] = [str(ROOT), str(ROOT / "kernels")]

    def tell(**event: Any) -> None:
        print(json.dumps(event), file=events, flush=True)

    import torch

    if not emulate and not torch.cuda.is_available():
        tell(absent=f"no CUDA GPU: torch {torch.__version__} finds none")
        return 2
    tell(about=about(emulate))
    from gpu_bench import Bench

    bench = Bench(emulate, folder)
    for name in names:
        measurement = MEASUREMENTS[name]
        if (left := deadline - time.time()) < measurement.seconds:
            tell(name=name, row=empty(name, f"skipped: {max(0, left):.0f} s of the limit were left"), done=True)
            continue
        tell(name=name, begun=True)
        try:
            for row in getattr(import_module(measurement.module), measurement.function)(bench):
                tell(name=name, row=asdict(row))
        except Exception as error:
            tell(name=name, row=failed(name, error), trace="".join(traceback.format_exc().splitlines(True)[-9:]))
            error.__traceback__ = None  # its frames hold tensors
        tell(name=name, done=True)
        if not emulate and not usable(torch):
            return GO_ON
    return 0


def usable(torch: Any) -> bool:
    """Whether this process can go on with its GPU; after an illegal access, say, it cannot."""
    try:
        torch.cuda.synchronize()
        gc.collect()
        torch.cuda.empty_cache()
    except RuntimeError:
        return False
    return True


def about(emulate: bool) -> dict[str, str]:
    import torch
    import triton

    versions = {"torch": torch.__version__, "triton": triton.__version__, "python": platform.python_version()}
    if emulate:
        return {"card": EMULATED, "capability": "none", "driver": "none", **versions}
    major, minor = torch.cuda.get_device_capability()
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        driver = "unknown"
    return {"card": torch.cuda.get_device_name(), "capability": f"{major}.{minor}", "driver": driver, **versions}


def empty(name: str, note: str, met: bool | None = None) -> dict[str, Any]:
    """The row of a measurement that has nothing to say."""
    return {"name": name, "figure": None, "unit": "", "bar": "", "met": met, "note": note}


def failed(name: str, why: object) -> dict[str, Any]:
    text = f"{type(why).__name__}: {why}" if isinstance(why, BaseException) else str(why)
    return empty(name, f"failed: {text.strip().splitlines()[0][:200]}", False)


def end_with(parent: int) -> None:
    """End this process when the one that started it is no more: killed, it could not end us."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--worker", "--folder", "--deadline"):
        parser.add_argument(name, required=True)
    parser.add_argument("--emulate", action="store_true")
    options = parser.parse_args()
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    status = work(options.worker.split(","), options.emulate, Path(options.folder), float(options.deadline))
    if (
        status == GO_ON
    ):  # what ends a process in order would ask the GPU, and abort: that would cost the next one its row
        os._exit(status)
    return status


if __name__ == "__main__":
    sys.exit(main())

"""Triton kernels compiled ahead of time, without a GPU: what they become for each architecture.

Compiling happens in processes of its own, since the tests' own process runs Triton's interpreter (conftest.py).
"""

import importlib
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Specimen:
    """A kernel as it is launched: `kernel` is "module:function" of bigrun_kernels.gpu; `types` are Triton's of its arguments
    ("*fp16", "fp32", "i64"; i32 where left out), `constants` those that are compiled in; numbers and pointers are taken to be
    multiples of 16, but for `odd` ones. `products`: what its matrix instructions multiply ("fp16", "bf16", "int8", or none)."""

    name: str
    kernel: str
    types: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    warps: int = 4
    stages: int = 2
    products: str = ""
    odd: tuple[str, ...] = ()


def build(specimen: Specimen, capability: int) -> dict[str, Any]:
    """Facts of one kernel for one compute capability; raises what Triton raises where it cannot be compiled."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, name = specimen.kernel.split(":")
    kernel = getattr(importlib.import_module(f"bigrun_kernels.gpu.{module}"), name)
    names = kernel.arg_names
    unknown = (set(specimen.types) | set(specimen.constants)) - set(names)
    assert not unknown, f"{specimen.name}: {specimen.kernel} has no {unknown}"
    signature = {n: "constexpr" if n in specimen.constants else specimen.types.get(n, "i32") for n in names}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, n in enumerate(names)
        if n not in specimen.constants and n not in specimen.odd and signature[n] != "fp32"
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=dict(specimen.constants), attrs=aligned)
    options = {"num_warps": specimen.warps, "num_stages": specimen.stages, "enable_fp_fusion": False}
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    ptx, ttgir = built.asm["ptx"], built.asm["ttgir"]
    layouts = dict(re.findall(r"^(#\w+) = (.*)$", ttgir, re.M))
    reductions = re.findall(r'"tt\.reduce"\(.*?\}\) : \(tensor<([^>]*), (#\w+)>\)', ttgir, re.S)
    return {
        "mma": set(re.findall(r"^\s*(?:@\S+ )?((?:mma|wgmma\.mma|tcgen05\.mma)\S+)", ptx, re.M)),
        "shared": built.metadata.shared,
        "narrow products": re.findall(r"arith\.muli .*xi32>", built.asm["ttir"]),
        "wide loads": len(re.findall(r"ld\.global\S*\.v4\.b32", ptx)),
        "shuffles in loop": re.findall(r"ttg\.convert_layout", ttgir.partition("scf.for")[2].partition("scf.yield")[0]),
        "reductions": [(shape, layouts[layout]) for shape, layout in reductions],
        **usage(built.asm["cubin"]),
    }


def usage(cubin: bytes) -> dict[str, int]:
    """Registers of a thread, and bytes that it keeps in local memory (which is where registers are spilled to)."""
    import tempfile

    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    counts = {name: int(number) for name, number in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    return {"registers": counts["REG"], "spilled": counts["STACK"] + counts["LOCAL"]}


Begun = list[tuple[Path, "subprocess.Popen[str]"]]


def begin(work: Sequence[tuple[Specimen, int]], folder: Path, processes: int = 2) -> Begun:
    """Processes that compile all that is asked for, shared out among them; they give way to whatever else is computed."""
    paths = [str(ROOT / "tests"), str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    environment |= {"PYTHONPATH": os.pathsep.join(paths), "TRITON_CACHE_DIR": str(folder / "triton")}
    begun: Begun = []
    for number in range(processes):
        share, answers = folder / f"{number}.in", folder / f"{number}.out"
        share.write_bytes(pickle.dumps(list(work[number::processes])))
        command = [sys.executable, "-m", "support.ahead", str(share), str(answers)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        begun.append((answers, subprocess.Popen(command, env=environment, text=True, **pipes)))  # type: ignore[call-overload]
    return begun


def compiled(begun: Begun) -> dict[tuple[str, int], Any]:
    """(name, capability) → facts, or the error's text."""
    facts: dict[tuple[str, int], Any] = {}
    for answers, process in begun:
        output, _ = process.communicate(timeout=900)
        assert process.returncode == 0, output[-4000:]
        facts |= pickle.loads(answers.read_bytes())
    return facts


if __name__ == "__main__":
    from support import ahead  # pickled specimens are of the module, not of __main__

    os.nice(10)
    answers: dict[tuple[str, int], Any] = {}
    for specimen, capability in pickle.loads(Path(sys.argv[1]).read_bytes()):
        try:
            answers[specimen.name, capability] = ahead.build(specimen, capability)
        except Exception as error:
            answers[specimen.name, capability] = f"{type(error).__name__}: {error}"
    Path(sys.argv[2]).write_bytes(pickle.dumps(answers))

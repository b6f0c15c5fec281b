"""The choice of instructions, and that each CPU gets the ones it has: compiled here for CPUs that this may not be.

Compiling happens in processes of their own (this file, called with the CPU's features and some tiles): Numba reads its
target once. Nothing that they compile is run.
"""

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bigrun_kernels.cpu import isa

# LLVM's name of a CPU, what decides between kernels there, how many dot products eight columns (two quads) of a tile take,
# and which.
CPUS = {
    "AVX-512 VNNI alone": ("cascadelake", "avx2 f16c avx512vnni", {"vnni512_4": 16, "vnni256_1": 8}, "vpdpbusd"),
    "AVX-VNNI alone": ("alderlake", "avx2 f16c avxvnni", {"vnni256_4": 32, "vnni256_1": 8}, "vpdpbusd"),
    "AVX2 alone": ("haswell", "avx2 f16c", {"portable_4": 32, "portable_1": 8}, "vpmaddwd"),
    "neither": ("x86-64", "sse2", {"portable_1": 16}, "pmaddwd"),
}


@pytest.fixture(autouse=True)
def _choice_is_put_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("BIGRUN_ISA", raising=False)
    before = isa._chosen
    isa._chosen = None
    yield
    isa._chosen = before


def pretend(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(isa, "features", lambda: frozenset(names))


@pytest.mark.parametrize(
    ("names", "best"),
    [
        (["avx512vnni", "avxvnni", "avx2"], "vnni512"),
        (["avx512vnni", "avx2"], "vnni512"),
        (["avxvnni", "avx2"], "vnni256"),
        (["avx2"], "portable"),
        ([], "portable"),
    ],
    ids=lambda value: " ".join(value) or "none" if isinstance(value, list) else value,
)
def test_the_best_that_the_cpu_has_is_taken(monkeypatch: pytest.MonkeyPatch, names: list[str], best: str) -> None:
    pretend(monkeypatch, *names)
    assert isa.best() == isa.current() == isa.choose(None) == isa.describe() == best


@pytest.mark.parametrize("name", isa.NAMES)
def test_a_choice_is_kept_until_it_is_given_up(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert isa.choose(name) == isa.current() == name
    monkeypatch.setenv("BIGRUN_ISA", "portable")
    assert isa.current() == name
    assert isa.choose(None) == "portable"


@pytest.mark.parametrize("name", isa.NAMES)
def test_the_environment_chooses(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("BIGRUN_ISA", name)
    assert isa.current() == name


@pytest.mark.parametrize("name", isa.NAMES)
def test_the_choice_decides_the_kernels_form(name: str) -> None:
    from bigrun_kernels.cpu.ops import CpuOps

    isa.choose(name)
    assert CpuOps().form == {"portable": 0, "vnni512": 1, "vnni256": 2}[name]


@pytest.mark.parametrize("name", ["avx2", "VNNI512", " ", "vnni512 "])
def test_an_unknown_name_is_refused_with_the_known_ones(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with pytest.raises(ValueError, match="choose one of vnni512, vnni256, portable"):
        isa.choose(name)
    assert isa.current() == isa.best()
    monkeypatch.setenv("BIGRUN_ISA", name)
    with pytest.raises(ValueError, match=f"BIGRUN_ISA={name!r}: choose one of vnni512, vnni256, portable"):
        isa.current()


def test_an_empty_name_in_the_environment_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIGRUN_ISA", "")
    assert isa.current() == isa.best()


def test_what_is_emulated_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "avx2")
    isa.choose("vnni256")
    assert isa.describe() == "vnni256 (emulated: this CPU has no such instructions)"
    pretend(monkeypatch, "avx2", "avxvnni")
    assert isa.describe() == "vnni256"


def test_avx512_vnni_runs_the_256_bit_form_natively(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "avx2", "avx512vnni")
    isa.choose("vnni256")
    assert isa.describe() == "vnni256"


def compile_tiles(features: str, names: list[str]) -> dict[str, str]:
    """The assembly of each tile, for the CPU that Numba was told of and one with these features."""
    isa.features = lambda: frozenset(features.split())  # type: ignore[assignment]
    from numba import njit, types

    from bigrun_kernels.cpu import dot

    listings = {}
    for name in names:
        tile = getattr(dot, name)
        kind = types.int16 if name.startswith("portable") else types.int8
        x, w, sums = types.Array(kind, 1, "C"), types.Array(types.int8, 1, "C"), types.Array(types.float64, 1, "C")
        compiled = njit(  # compiled before the loop goes on
            lambda x, a, w, b, quads, sums, c, ahead, stride: tile(x, a, w, b, quads, sums, c, ahead, stride)  # noqa: B023
        )
        n = types.int64
        compiled.compile((x, n, w, n, n, sums, n, n, n))
        listings[name] = "".join(compiled.inspect_asm().values())
    return listings


@pytest.fixture(scope="module")
def assembly(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """CPU → tile → assembly; all processes at once."""
    if platform.machine() != "x86_64":
        pytest.skip("Numba compiles for this machine's architecture only")
    running = {}
    for name, (cpu, features, tiles, _) in CPUS.items():
        folder = str(tmp_path_factory.mktemp("numba"))
        target = {"NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": folder}
        command = [sys.executable, str(Path(__file__)), features, *tiles]
        running[name] = subprocess.Popen(command, env=os.environ | target, stdout=subprocess.PIPE, text=True)
    return {name: json.loads(process.communicate(timeout=120)[0]) for name, process in running.items()}


@pytest.mark.parametrize("name", CPUS)
def test_each_cpu_gets_its_instruction(assembly: dict[str, dict[str, str]], name: str) -> None:
    """One for each pair, plane and vector, and no other kind of dot product."""
    _, _, tiles, instruction = CPUS[name]
    for tile, count in tiles.items():
        matches = re.findall(
            r"^\t(?:\{vex\}\s+)?(v?pdp\w+|v?pmadd\w+)\s.*%(\w)mm\d+$", assembly[name][tile], re.MULTILINE
        )
        width = "z" if tile.startswith("vnni512") else "x" if name == "neither" else "y"
        assert set(matches) == {(instruction, width)}
        assert len(matches) >= count  # more if LLVM unrolls the loop
        assert "dot_accumulate" not in assembly[name][tile]  # the emulation


if __name__ == "__main__":
    print(json.dumps(compile_tiles(sys.argv[1], sys.argv[2:])))

"""What this CPU can do, read once. The choice is shown by `describe()` and forced by `BIGRUN_ISA` or `choose()`."""

import os
from functools import cache

NAMES = ("vnni512", "vnni256", "portable")
NUMBERS = {"portable": 0, "vnni512": 1, "vnni256": 2}  # of a form, where kernels take one
_chosen: str | None = None


@cache
def features() -> frozenset[str]:
    """LLVM's names of the features that this CPU has and its system saves."""
    import llvmlite.binding as llvm

    return frozenset(name for name, present in llvm.get_host_cpu_features().items() if present)


def native(isa: str) -> bool:
    """Whether this CPU has the instructions; a kernel forced without them computes the same by other means, slowly."""
    needs = {"vnni512": {"avx512vnni"}, "vnni256": {"avxvnni", "avx512vnni"}}
    return isa not in needs or bool(needs[isa] & features())


def best() -> str:
    return next(name for name in NAMES if native(name))


def choose(isa: str | None) -> str:
    """Force the kernels of one kind for this process (None: the best); returns the choice. ValueError if unknown."""
    global _chosen
    if isa is not None and isa not in NAMES:
        raise ValueError(f"instruction set {isa!r}: choose one of {', '.join(NAMES)}")
    _chosen = isa
    return current()


def current() -> str:
    """The kind of kernels in use: forced by `choose`, else by BIGRUN_ISA, else the best of this CPU."""
    if _chosen is not None:
        return _chosen
    kind = os.environ.get("BIGRUN_ISA")
    if not kind:
        return best()
    if kind not in NAMES:
        raise ValueError(f"BIGRUN_ISA={kind!r}: choose one of {', '.join(NAMES)}")
    return kind


def describe() -> str:
    """For a person: the choice, and whether it is native."""
    isa = current()
    return isa if native(isa) else f"{isa} (emulated: this CPU has no such instructions)"

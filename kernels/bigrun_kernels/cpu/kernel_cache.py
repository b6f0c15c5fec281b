"""Compiled kernels on disk: one folder for each state of the sources, of Python, of Numba and of the CPU.

So a kernel is never used for what it was not compiled for, several versions and CPUs that share a home keep theirs side by
side, and a checkout may move. Numba's own cache lies beside the sources (which uninstalling leaves behind), knows nothing of
the files that helpers are in, and belongs to the whole process: only our dispatchers have this one.
"""

import contextlib
import glob
import hashlib
import inspect
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core.caching import CompileResultCacheImpl, FunctionCache, _CacheLocator

from bigrun_kernels.cpu import VARIABLE, home

try:
    import fcntl
except ImportError:  # a platform without locks on files, where two processes may spoil each other's
    fcntl = None  # type: ignore[assignment]

ABOUT = "about.json"  # what a folder's kernels were compiled for; no folder without it is removed
LOCK = "lock"  # held while a folder's kernels are written
UNUSED_DAYS = 60  # after which the folder of another state goes, when a new one is made
failures: list[str] = []  # why kernels were not kept, or not read


@cache
def state() -> dict[str, str]:
    """What compiled kernels depend on."""
    from numba.core.registry import cpu_target

    triple, cpu, features = cpu_target.target_context.codegen().magic_tuple()
    return {
        "kernels": sources(),
        "python": f"{sys.implementation.cache_tag}{getattr(sys, 'abiflags', '')}",
        "numba": f"{numba.__version__} (llvmlite {llvmlite.__version__})",
        "cpu": f"{cpu} ({hashlib.sha256(f'{triple} {features}'.encode()).hexdigest()[:8]})",
    }


@cache
def sources() -> str:
    """A digest of this package's sources, of which any may be compiled into a kernel (but the two that are about it)."""
    folder, digest = Path(__file__).parent, hashlib.sha256()
    for path in sorted(
        {*folder.glob("*.py"), *folder.parent.glob("*.py")} - {Path(__file__), folder / "compile_times.py"}
    ):
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)} ".encode() + content)
    return digest.hexdigest()[:16]


@cache
def folder() -> Path | None:
    """The folder of this state, which need not be there."""
    above = home()
    if above is None:
        return None
    name = hashlib.sha256(json.dumps(state(), sort_keys=True).encode()).hexdigest()[:16]
    with contextlib.suppress(OSError):
        os.utime(above / name)  # when it was last used
    return above / name


def why_not_kept() -> str:
    """Why what is compiled now cannot be kept, in words that say what helps; "" if it can."""
    here = folder()
    if here is None:
        return f"this user has no home: set {VARIABLE} to a folder that can be written"
    try:
        _make(here)
    except OSError as error:
        return f"{here} cannot be written ({error.strerror}): set {VARIABLE} to a folder that can"
    return ""


def why_compiled() -> str:
    """Why kernels are compiled now, where that can be known: what of the most alike state in the cache is another; "" where
    nothing was kept there, or only this state."""
    here, above = folder(), home()
    if here is None or above is None or (here / ABOUT).is_file():
        return ""
    now, others = state(), [about for about in map(_about, _folders(above)) if about]
    if not others:
        return ""
    nearest = min(others, key=lambda about: sum(about.get(name) != value for name, value in now.items()))
    changed = [name for name, value in now.items() if nearest.get(name) != value]
    words = {
        "kernels": "bigrun's kernels have changed",
        "python": f"Python is {now['python']}, they were compiled for {nearest.get('python')}",
        "numba": f"Numba is {now['numba']}, they were compiled by {nearest.get('numba')}",
        "cpu": f"this CPU is {now['cpu']}, they were compiled for {nearest.get('cpu')}",
    }
    return "; ".join(words[name] for name in changed)


def announcement(seconds: float = 0.0) -> str:
    """A line for the user, as the first kernel is compiled: why, and what helps where that will be so at every start.
    `seconds`: what it may take in all."""
    again, had = why_compiled(), kept()
    once = "about half a minute, once" if seconds > 15 else "once"
    if lost := why_not_kept():
        return f"compiling kernels, as at every start, because they cannot be kept: {lost}"
    if failures:
        return f"compiling kernels again, because some that were kept cannot be read: {failures[0]}"
    if again:
        return f"compiling kernels again, {once}: {again}"
    if had:
        return f"compiling kernels that no run before needed, {once}"
    return f"first run: compiling kernels for this CPU, {once}"


def kept() -> bool:
    """Whether there is a folder of this state."""
    here = folder()
    return here is not None and (here / ABOUT).is_file()


def names() -> set[str]:
    """The kernels of this state that are kept, for some types at least: module.function."""
    here = folder()
    try:
        return set() if here is None else {path.name.rpartition("-")[0] for path in here.glob("*.nbi")}
    except OSError:
        return set()


def _folders(above: Path) -> list[Path]:
    try:
        return [path for path in above.iterdir() if (path / ABOUT).is_file()]
    except OSError:
        return []


def _about(path: Path) -> dict[str, str]:
    """What a folder says of itself; nothing if that is damaged."""
    try:
        about = json.loads((path / ABOUT).read_bytes()[:4096])
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(about, dict):
        return {}
    return {name: "".join(c for c in str(value)[:80] if c.isprintable()) for name, value in about.items()}


def _make(here: Path) -> None:
    """The folder, with what it is for; OSError if it cannot be written."""
    here.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=here).close()
    if not (here / ABOUT).is_file():
        _drop_unused(here.parent)
        with tempfile.NamedTemporaryFile("w", dir=here, delete=False) as file:
            json.dump(state(), file)
        os.replace(file.name, here / ABOUT)


@contextlib.contextmanager
def _locked(here: Path) -> Iterator[None]:
    """Waits until no other process, or thread, writes to this folder, and keeps them from it; OSError if it cannot be locked.

    Numba's save reads the index, chooses a name for the code, and writes both: two at once choose the same name, and one
    signature gets the code of another.
    """
    _make(here)
    with (here / LOCK).open("a") as file:
        if fcntl is None:
            yield
            return
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # by name: a process that was forked meanwhile has the file open too


def _drop_unused(above: Path) -> None:
    """Remove the folders of states that nobody has used for long."""
    for path in _folders(above):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < time.time() - UNUSED_DAYS * 86400:
                shutil.rmtree(path, ignore_errors=True)


class _Locator(_CacheLocator):
    """Tells Numba where a kernel is kept: in the folder of this state, which is what its freshness depends on."""

    def __init__(self, line: int, path: str):
        self._lineno, self._py_file, self._folder = line, path, folder()

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> "_Locator":
        return cls(py_func.__code__.co_firstlineno, py_file)

    def get_cache_path(self) -> str:
        return str(self._folder or "")

    def get_source_stamp(self) -> str:
        return sources()

    def get_disambiguator(self) -> str:
        return str(self._lineno)

    def ensure_cache_path(self) -> None:
        assert self._folder is not None, "without a home nothing is saved"
        _make(self._folder)


class _Implementation(CompileResultCacheImpl):
    """Numba's, with our locator in place of those that it looks through, or that NUMBA_CACHE_LOCATOR_CLASSES names."""

    def __init__(self, py_func: Any):
        file = inspect.getfile(py_func)
        self._locator = _Locator.from_function(py_func, file)
        self._lineno = py_func.__code__.co_firstlineno
        name = f"{os.path.splitext(os.path.basename(file))[0]}.{py_func.__qualname__}"
        self._filename_base = self.get_filename_base(name, getattr(sys, "abiflags", ""))


class KernelCache(FunctionCache):
    """A kernel's files. What cannot be read is compiled again, what cannot be written is not kept; no run fails by it."""

    _impl_class = _Implementation

    @property
    def kernel(self) -> str:
        """module.function."""
        return str(self._impl.filename_base.rpartition("-")[0])

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        if folder() is None:
            return None
        try:
            return super().load_overload(sig, target_context)
        except Exception as error:  # a damaged file may raise anything
            failures.append(f"{self.kernel}: not read: {type(error).__name__}: {error}")
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        here = folder()
        if here is None:
            return
        try:
            with _locked(here):
                try:
                    super().save_overload(sig, data)
                except OSError:
                    raise
                except Exception:  # the index that the kernel is to be added to is damaged
                    self._forget(here)
                    super().save_overload(sig, data)
        except Exception as error:  # as reading the index may, again
            failures.append(f"{self.kernel}: not kept: {type(error).__name__}: {error}")

    def flush(self) -> None:
        here = folder()
        if here is None:
            return
        try:
            with _locked(here):
                self._forget(here)
        except Exception as error:
            failures.append(f"{self.kernel}: not removed: {type(error).__name__}: {error}")

    def _forget(self, here: Path) -> None:
        """Empty the index, and remove what it named: the names are given anew, before the new code is there."""
        for path in here.glob(f"{glob.escape(self._impl.filename_base)}.*.nbc"):
            path.unlink(missing_ok=True)
        super().flush()

"""Where compiled kernels are kept: in bigrun's cache folder, one folder for each state of sources, Python, Numba and CPU.
What cannot be kept or read fails no run, and is said."""

import contextlib
import errno
import json
import os
import pwd
import shutil
import threading
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numba
import pytest
from numba.core.caching import IndexDataCacheFile

import bigrun_kernels
from bigrun_kernels.cpu import compile, compile_times, compiled, kernel_cache
from support.commands import run_python
from support.long import LONG

# Compiles a kernel that calls another, or loads it; prints [answer, compilations, what would be said of them].
CODE = """
import json
from numba.core import event
from bigrun_kernels.cpu import kernel_cache
from bigrun_kernels.cpu.compile import kernel

@kernel
def inner(x):
    return x + 1

@kernel
def outer(x):
    return 2 * inner(x)

said = kernel_cache.announcement()
with event.install_recorder("numba:compile") as recorder:
    answer = outer(20)
print(json.dumps([answer, sum(1 for _, each in recorder.buffer if each.is_end), said]))
"""
Kernels = Callable[..., tuple[int, str]]


@pytest.fixture
def kernels(tmp_path: Path) -> Kernels:
    """(compilations, what is said of them) of a process with a cache folder of its own; its answer is right."""

    def run(**variables: str) -> tuple[int, str]:
        inherited = {k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"}
        done = run_python(CODE, env=inherited | {"XDG_CACHE_HOME": str(tmp_path / "caches")} | variables)
        assert done.returncode == 0, done.stderr
        answer, count, said = json.loads(done.stdout)
        assert answer == 42
        return count, said

    return run


def states(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "caches" / "bigrun" / "kernels").iterdir() if (path / "about.json").is_file()]


def elsewhere(tmp_path: Path) -> dict[str, str]:
    """The environment of a process that imports the kernels from a copy of them."""
    source = Path(bigrun_kernels.__file__).parent
    shutil.copytree(source, tmp_path / "copy" / "bigrun_kernels", ignore=shutil.ignore_patterns("__pycache__"))
    return {
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "copy"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    }


def test_kernels_are_kept_in_bigruns_cache_folder_and_nowhere_else_and_are_found_by_a_checkout_that_moved(
    kernels: Kernels, tmp_path: Path
) -> None:
    sources = Path(bigrun_kernels.__file__).parent
    before = set(sources.rglob("*.nb?"))
    assert kernels() == (2, "first run: compiling kernels for this CPU, once")
    (state,) = states(tmp_path)
    assert len(list(state.glob("*.nbi"))) == 2
    assert set(sources.rglob("*.nb?")) == before
    assert kernels(**elsewhere(tmp_path))[0] == 0, "a second process, of a copy of the sources, loads them"


def test_after_a_change_of_any_source_nothing_old_is_used_and_the_reason_is_said(
    kernels: Kernels, tmp_path: Path
) -> None:
    assert kernels()[0] == 2
    there = elsewhere(tmp_path)
    with (tmp_path / "copy" / "bigrun_kernels" / "lanes.py").open("a") as file:
        file.write("# changed\n")
    again = "compiling kernels again, once: "
    assert kernels(**there) == (2, f"{again}bigrun's kernels have changed")
    assert kernels()[0] == 0, "each keeps its own"


@LONG
def test_two_cpus_that_share_a_home_keep_theirs_side_by_side(kernels: Kernels, tmp_path: Path) -> None:
    assert kernels()[0] == 2
    count, said = kernels(NUMBA_CPU_NAME="nehalem", NUMBA_CPU_FEATURES="")
    assert count == 2
    assert "this CPU is nehalem" in said
    assert "they were compiled for" in said
    assert len(states(tmp_path)) == 2
    assert kernels()[0] == 0


# Within this process: a kernel that is decorated anew knows nothing of what was compiled before


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """Whether a kernel came from the cache; its answer is right."""
    monkeypatch.setattr(kernel_cache, "folder", lambda: tmp_path / "caches" / "state")
    monkeypatch.setattr(kernel_cache, "home", lambda: tmp_path / "caches")
    monkeypatch.setattr(kernel_cache, "failures", [])
    return call


def call() -> bool:
    def double(x: int) -> int:
        return 2 * x

    fresh = compile.kernel(double)
    assert fresh(21) == 42
    return sum(fresh.stats.cache_hits.values()) == 1


@pytest.mark.parametrize("name", ["*.nbi", "*.nbc", "about.json"])
@pytest.mark.parametrize("content", [b"", b"\x80\x04damaged", b"{"], ids=["empty", "damaged", "cut"])
def test_a_damaged_file_is_made_anew(cached: Callable[[], bool], tmp_path: Path, name: str, content: bytes) -> None:
    assert [cached(), cached()] == [False, True]
    (path,) = (tmp_path / "caches" / "state").glob(name)
    path.write_bytes(content)
    assert [cached(), cached()] == [name == "about.json", True]
    if name != "about.json":
        (failure,) = kernel_cache.failures
        assert "double" in failure
        assert failure in kernel_cache.announcement()


@pytest.mark.parametrize("full", [False, True], ids=["not a folder", "full"])
def test_what_cannot_be_kept_fails_nothing_and_the_variable_is_named(
    cached: Callable[[], bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    if full:

        def no_room(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(kernel_cache.tempfile, "TemporaryFile", no_room)
    else:
        (tmp_path / "caches").write_text("")
    assert [cached(), cached()] == [False, False]
    assert len(kernel_cache.failures) >= 2
    said = kernel_cache.announcement()
    assert said.startswith("compiling kernels, as at every start, because they cannot be kept: ")
    for words in (str(tmp_path / "caches"), "NUMBA_CACHE_DIR", "No space" if full else "directory"):
        assert words in said


def test_two_that_save_a_kernel_at_once_keep_each_signature_with_its_own_code(
    cached: Callable[[], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    def double(x: Any) -> Any:
        return 2 * x

    saves: list[Callable[[], None]] = []
    with monkeypatch.context() as patch:
        save = kernel_cache.KernelCache.save_overload
        patch.setattr(kernel_cache.KernelCache, "save_overload", lambda *what: saves.append(partial(save, *what)))
        for x in (21, 1.5):
            compile.kernel(double)(x)  # of two processes, each with a cache of its own
    both, write = threading.Barrier(2), IndexDataCacheFile._save_index

    def slow(*what: Any) -> None:
        """Both have read the index when they write it, if they can."""
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(0.5)
        write(*what)

    monkeypatch.setattr(IndexDataCacheFile, "_save_index", slow)
    threads = [threading.Thread(target=save) for save in saves]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    fresh = compile.kernel(double)
    assert [fresh(21), fresh(1.5)] == [42, 3.0]
    assert sum(fresh.stats.cache_hits.values()) == 2
    assert kernel_cache.failures == []


def test_what_cannot_be_saved_whatever_the_reason_fails_nothing(
    cached: Callable[[], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(*_: object) -> None:
        raise EOFError("Ran out of input")

    monkeypatch.setattr(IndexDataCacheFile, "_load_index", damaged)
    assert not cached()
    assert [failure.partition(": ")[2] for failure in kernel_cache.failures] == [
        "not read: EOFError: Ran out of input",
        "not kept: EOFError: Ran out of input",
    ]


def test_a_new_index_does_not_name_the_code_of_an_old_one(
    cached: Callable[[], bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the index was damaged, and the process ends, or the disk is full, before the new code is written."""
    assert [cached(), cached()] == [False, True]
    (index,) = (tmp_path / "caches" / "state").glob("*.nbi")
    index.write_bytes(b"")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(IndexDataCacheFile, "_save_data", full)
        assert not cached()
    assert not list(index.parent.glob("*.nbc"))
    assert [cached(), cached()] == [False, True]


def test_the_folder_is_numbas_variable_s_or_bigruns_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/one")
    for value in ("", None):
        for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
            if value is not None:
                monkeypatch.setenv(name, value)
        assert kernel_cache.home() == Path("/home/one/.cache/bigrun/kernels")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert kernel_cache.home() == Path("/caches/bigrun/kernels")
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/mine")
    assert kernel_cache.home() == Path("/mine/bigrun-kernels")


def unknown_user(_: int) -> None:
    raise KeyError("no such user")


def test_a_user_without_a_home_goes_on_without_a_cache(
    cached: Callable[[], bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    for name in ("HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown_user)
    assert kernel_cache.home() is None
    (tmp_path / "~" / ".cache" / "bigrun" / "kernels" / "state").mkdir(parents=True)
    (tmp_path / "~" / ".cache" / "bigrun" / "kernels" / "state" / "linear.one-1.py311.nbi").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(kernel_cache, "names", lambda: {"linear.one"})
    assert not compiled(), "a folder named ~ is nobody's home"
    monkeypatch.setattr(kernel_cache, "folder", lambda: None)
    assert [cached(), cached()] == [False, False]
    assert "no home: set NUMBA_CACHE_DIR" in kernel_cache.announcement()


def test_a_host_programs_own_numba_is_left_as_it_is() -> None:
    assert os.environ.get("NUMBA_CACHE_DIR", "") == numba.config.CACHE_DIR
    assert kernel_cache._Locator not in numba.core.caching.CacheImpl._locator_classes
    assert numba.core.caching.FunctionCache._impl_class is numba.core.caching.CompileResultCacheImpl


def test_folders_that_nobody_uses_go_when_a_new_one_is_made_and_nothing_else(
    cached: Callable[[], bool], tmp_path: Path
) -> None:
    home = tmp_path / "caches"
    for name, about, days in (("old", True, 100), ("new", True, 1), ("theirs", False, 100)):
        (home / name).mkdir(parents=True)
        if about:
            (home / name / "about.json").write_text("{}")
        then = (home / name).stat().st_mtime - days * 86400
        os.utime(home / name, (then, then))
    cached()
    assert {path.name for path in home.iterdir()} == {"new", "theirs", "state"}


# What is said of the compiling of a model's kernels


def test_the_table_of_times_is_of_kernels_that_there_are() -> None:
    assert len(compile_times.TIMES) > 20
    for name in compile_times.TIMES:
        module, _, function = name.partition(".")
        dispatcher = getattr(import_module(f"bigrun_kernels.cpu.{module}"), function, None)
        assert compile_times.name_of(dispatcher) == name, "it is gone: python benchmarks/compile_times.py"


def compilation(name: str) -> Any:
    """An event of Numba's, of a kernel of that name."""
    module, _, function = name.partition(".")
    return SimpleNamespace(data={"dispatcher": getattr(import_module(f"bigrun_kernels.cpu.{module}"), function)})


def test_how_far_it_is_grows_with_every_kernel_and_never_says_that_it_is_done(
    cached: Callable[[], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        compile_times, "TIMES", {"attention.attend": 3.0, "linear.panel_linear": 1.0, "team.claim": 1.0}
    )
    told: list[float | None] = []
    watch = compile_times.Watch(told.append)
    for name in ("linear.panel_linear", "linear.panel_linear", "attention.attend", "elementwise.norm", "team.claim"):
        watch.on_start(compilation(name))
        watch.on_end(compilation(name))
    assert told == [0, 0.2, 0.2, 0.2, 0.2, 0.8, 0.8, 0.8, 0.8, 0.99]


def test_where_most_kernels_are_kept_nobody_knows_how_many_are_to_come(
    cached: Callable[[], bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model of another kind needs some that the table does not have."""
    monkeypatch.setattr(compile_times, "TIMES", {"attention.attend": 4.0, "linear.panel_linear": 1.0})
    told: list[float | None] = []
    (tmp_path / "caches" / "state").mkdir(parents=True)
    (tmp_path / "caches" / "state" / "linear.panel_linear-187.py311.nbi").write_bytes(b"")
    assert compile_times.expected() == 4.0, "as after a first run that was interrupted"
    assert compile_times.expected(["linear", "team"]) == 0.0
    (tmp_path / "caches" / "state" / "attention.attend-1.py311.nbi").write_bytes(b"")
    watch = compile_times.Watch(told.append)
    watch.on_start(compilation("linear.panel_linear"))
    watch.on_end(compilation("linear.panel_linear"))
    assert told == [None, None]

"""One pool of threads that survives company: torch before or after, several callers at once, and a fork.

What depends on a fresh process runs in one: this file, called with the name of a function.
"""

import importlib.metadata
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from bigrun_kernels.cpu import threads
from support.blocks import BLOCK, Model, rows

try:
    HAS_TBB = bool(importlib.metadata.version("tbb"))
except importlib.metadata.PackageNotFoundError:
    HAS_TBB = False
CHOSEN = os.environ.get("NUMBA_THREADING_LAYER")  # by whoever runs these tests


def linear(seed: int = 0, rows: int = 5) -> np.ndarray:
    """The integers of an int8 linear of several tasks, by the kernels."""
    from bigrun_kernels import lanes
    from bigrun_kernels.cpu.ops import CpuOps
    from bigrun_kernels.ops import Scratch, Weight

    x, w = operands(seed, rows)
    scratch = Scratch(
        np.empty((rows + 3, 512), np.int8), np.empty(rows), np.empty((rows, 2), np.int32), np.empty(256, np.int8)
    )
    weight = Weight("int8", lanes.pack(w), np.ones(300, np.float32), np.empty(0, np.float32), 256)
    out = np.full((rows, 300), np.nan, np.float32)
    CpuOps().linear(x, weight, "llm.int8", 0.0, scratch, out, False)
    return out


def operands(seed: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """x whole numbers up to 127, so that the answer is x·wᵀ exactly."""
    random = np.random.default_rng(seed)
    x = random.integers(-127, 128, (rows, 256)).astype(np.float32)
    x[:, 0] = 127
    return x, random.integers(-127, 128, (300, 256), np.int8)


def is_right(result: np.ndarray, seed: int = 0) -> bool:
    x, w = operands(seed, len(result))
    return np.array_equal(result, x @ w.T.astype(np.float32))


def torch_first() -> None:
    import torch

    assert torch.ones(300, 300).matmul(torch.ones(300, 300)).eq(300).all()
    assert is_right(linear())
    assert torch.ones(300, 300).matmul(torch.ones(300, 300)).eq(300).all()


def torch_last() -> None:
    assert is_right(linear())
    import torch

    assert torch.ones(300, 300).matmul(torch.ones(300, 300)).eq(300).all()
    assert is_right(linear())


def most_threads() -> int:
    import numba

    return int(numba.config.NUMBA_NUM_THREADS)


def forked() -> None:
    """A child of a process that has run kernels runs them too, as does the parent afterwards."""
    assert is_right(linear())
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if is_right(linear(1), 1) else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert is_right(linear())


def robbed() -> None:
    """A fork is killed while it has whatever lock Numba starts its pool under: for those that wait for it, for ever."""
    from numba.np.ufunc import parallel

    assert threads.use(None) == most_threads()
    child = os.fork()
    if child == 0:
        with parallel._backend_init_process_lock:
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    for count in (1, most_threads()):
        assert threads.use(count) == count
        assert is_right(linear(3), 3)
    block = Model(BLOCK, True)
    assert np.isfinite(block.step(rows(20), [0] * 20, range(20))).all()


def asked() -> None:
    assert is_right(linear())


@pytest.fixture(scope="module")
def alone() -> dict[str, subprocess.CompletedProcess[str]]:
    """What became of each task in a process of its own; all at once, as each waits for imports."""
    linear()  # so that none of them has to compile it
    Model(BLOCK, True).step(rows(1), [0], [0])
    tasks: dict[str, dict[str, str]] = {
        "torch_first": {},
        "torch_last": {},
        "asked": {"NUMBA_THREADING_LAYER": "workqueue"},
    }
    if hasattr(os, "fork"):
        tasks |= {"forked": {}, "robbed": {}}
    inherited = {name: value for name, value in os.environ.items() if name != "NUMBA_THREADING_LAYER"}
    command = [sys.executable, str(Path(__file__))]

    def run(task: str) -> subprocess.CompletedProcess[str]:
        environment = inherited | tasks[task]
        return subprocess.run([*command, task], env=environment, capture_output=True, text=True, timeout=120)

    with ThreadPoolExecutor() as pool:
        return dict(zip(tasks, pool.map(run, tasks), strict=True))


def pool_of(done: subprocess.CompletedProcess[str]) -> str:
    """The pool of a process that did its task."""
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]


@pytest.mark.parametrize("task", ["torch_first", "torch_last"])
def test_kernels_and_torch_work_in_either_order(alone: dict[str, subprocess.CompletedProcess[str]], task: str) -> None:
    assert pool_of(alone[task]) in ({"tbb"} if HAS_TBB else {"omp", "workqueue"})


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.skipif(not HAS_TBB, reason="only tbb survives a fork")
def test_a_forked_child_can_run_kernels(alone: dict[str, subprocess.CompletedProcess[str]]) -> None:
    assert pool_of(alone["forked"]) == "tbb"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_fork_that_is_killed_while_it_starts_the_pool_hangs_no_other(
    alone: dict[str, subprocess.CompletedProcess[str]],
) -> None:
    assert pool_of(alone["robbed"])


def test_the_pool_that_the_user_asked_for_stands(alone: dict[str, subprocess.CompletedProcess[str]]) -> None:
    assert pool_of(alone["asked"]) == "workqueue"


@pytest.mark.skipif(CHOSEN is not None or not HAS_TBB, reason="the tbb package is not installed, or not asked for")
def test_tbb_is_the_pool_where_it_is_installed() -> None:
    assert is_right(linear())
    assert threads.layer() == "tbb"


def test_several_threads_run_kernels_at_once() -> None:
    assert is_right(linear())
    if threads.layer() == "workqueue":
        pytest.skip("workqueue may not be entered by two threads")
    start = threading.Barrier(3)

    def many(seed: int) -> bool:
        start.wait()
        return all(is_right(linear(seed + i, rows=1 + i % 6), seed + i) for i in range(50))

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(many, [0, 100, 200]))


def test_use_takes_between_one_thread_and_all_cores() -> None:
    import numba

    most = numba.config.NUMBA_NUM_THREADS
    try:
        assert [threads.use(count) for count in (1, most, most + 1, 10**6, 0, -3, None)] == [
            1,
            most,
            most,
            most,
            1,
            1,
            most,
        ]
        for count in (1, None):
            assert threads.use(count) == numba.get_num_threads()
            assert is_right(linear())
    finally:
        threads.use(None)


def test_use_is_for_the_thread_that_calls_it() -> None:
    import numba

    threads.use(None)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(threads.use, 1).result() == 1
    assert numba.get_num_threads() == numba.config.NUMBA_NUM_THREADS


if __name__ == "__main__":
    globals()[sys.argv[1]]()
    print(threads.layer())

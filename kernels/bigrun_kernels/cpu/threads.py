"""One pool of threads for all kernels of the process, chosen before Numba starts its own choice.

Threading Building Blocks is preferred: it may be entered from several threads at once, nested, and after a fork. pip
puts its library where the loader does not look, so it is opened by its path first.
"""

import ctypes
import importlib.metadata
import os
from contextlib import nullcontext
from functools import cache

from bigrun_kernels.cpu.cgroups import usable_cpus


@cache
def _open_tbb() -> bool:
    try:
        files = importlib.metadata.files("tbb") or []
    except importlib.metadata.PackageNotFoundError:
        return False
    for file in files:
        if file.name.startswith("libtbb.so."):
            try:
                ctypes.CDLL(str(file.locate()), mode=ctypes.RTLD_GLOBAL)
            except OSError:
                return False
            return True
    return False


@cache
def prepare() -> None:
    """Choose the pool. Called before anything that starts it; a choice that the host program made already stands."""
    import numba

    if os.environ.get("NUMBA_THREADING_LAYER") or numba.config.THREADING_LAYER != "default":
        return
    _open_tbb()  # Numba's own order is tbb, omp, workqueue: it now finds the first


def start() -> None:
    """Start the pool, once a process.

    Numba starts it under a lock that forks share, and takes that lock again, for nothing, whenever a number of threads is set
    or a kernel is loaded. A fork that is killed while it has the lock leaves it taken for all others, which wait for ever: so
    it goes once the pool runs. (A lock of the process's own threads stays.)
    """
    from numba.np.ufunc import parallel

    prepare()
    parallel._launch_threads()
    parallel._backend_init_process_lock = nullcontext()


def use(count: int | None) -> int:
    """Run this thread's kernels on `count` threads; more than there are cores is all of them. None: one for each CPU that this
    process may use, or NUMBA_NUM_THREADS. Returns the number."""
    import numba

    start()
    most = numba.config.NUMBA_NUM_THREADS
    if count is None:
        count = most if os.environ.get("NUMBA_NUM_THREADS") else usable_cpus()
    chosen = max(1, min(count, most))
    numba.set_num_threads(chosen)
    return chosen


def layer() -> str:
    """The pool in use, "tbb", "omp" or "workqueue"; starts it."""
    import numba

    start()
    return numba.threading_layer()

"""One pool of threads for all kernels of the process, chosen before Numba starts its own choice.

Threading Building Blocks is preferred: it may be entered from several threads at once, nested, and after a fork. pip
puts its library where the loader does not look, so it is opened by its path first.
"""

import ctypes
import importlib.metadata
import os
from functools import cache


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


def use(count: int | None) -> int:
    """Run this thread's kernels on `count` threads (None: all cores); more than there are is all. Returns the number."""
    import numba

    prepare()  # setting a number starts the pool
    most = numba.config.NUMBA_NUM_THREADS
    chosen = most if count is None else max(1, min(count, most))
    numba.set_num_threads(chosen)
    return chosen


def layer() -> str:
    """The pool in use, "tbb", "omp" or "workqueue"; starts it."""
    import numba
    from numba.np.ufunc import parallel

    prepare()
    parallel._launch_threads()
    return numba.threading_layer()

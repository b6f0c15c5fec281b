"""How every kernel is compiled: kept on disk, without the interpreter's lock, IEEE division (0/0 is NaN, no exception,
no branch in a loop). `summing` lets a sum be taken in lanes; NaN and inf keep their meaning in all of them."""

from collections.abc import Callable
from typing import Any

from numba import njit

from bigrun_kernels.cpu.kernel_cache import KernelCache


def _kept(**how: Any) -> Callable[[Callable[..., Any]], Any]:
    """Numba's decorator, with our own cache in place of the one beside the sources."""

    def decorate(function: Callable[..., Any]) -> Any:
        dispatcher = njit(nogil=True, error_model="numpy", **how)(function)
        dispatcher._cache = KernelCache(function)
        return dispatcher

    return decorate


kernel = _kept()
summing = _kept(fastmath={"reassoc", "contract"})
parallel_kernel = _kept(parallel=True)
inlined = njit(inline="always", error_model="numpy")

"""How every kernel is compiled: kept on disk, without the interpreter's lock, IEEE division (0/0 is NaN, no exception,
no branch in a loop). `summing` lets a sum be taken in lanes; NaN and inf keep their meaning in all of them."""

from numba import njit

kernel = njit(cache=True, nogil=True, error_model="numpy")
summing = njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract"})
parallel_kernel = njit(cache=True, nogil=True, error_model="numpy", parallel=True)
inlined = njit(inline="always", error_model="numpy")

"""The roof that kernels are held against: reading memory and doing next to nothing with it."""

import numpy as np
from numba import prange

from bigrun_kernels.cpu.compile import parallel_kernel

BLOCK = 1 << 15  # items a task: 256 KiB


@parallel_kernel
def read_all(data):
    """The sum of an int64 array, read once by all threads."""
    blocks = (data.size + BLOCK - 1) // BLOCK
    sums = np.zeros(blocks, np.int64)
    for b in prange(blocks):
        total = np.int64(0)
        for i in range(b * BLOCK, min((b + 1) * BLOCK, data.size)):
            total += data[i]
        sums[b] = total
    return sums.sum()

"""The roofs that kernels are held against: reading memory and doing next to nothing with it, multiplying what is at hand."""

import numpy as np
from numba import prange

from bigrun_kernels.cpu.compile import parallel_kernel
from bigrun_kernels.cpu.dot import CHUNK
from bigrun_kernels.cpu.linear import panel_sums
from bigrun_kernels.cpu.planes import FORMS, TOKENS

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


@parallel_kernel
def _multiply(planes, w, team, turns):
    for _ in prange(team):
        sums = np.empty((TOKENS + TOKENS) * 32, np.float64)
        for _turn in range(turns):
            panel_sums(planes, TOKENS, CHUNK, w, 0, sums)


def multiply(form: int, team: int, turns: int) -> int:
    """Multiply and add from the first-level cache on `team` threads, in the exact mode; returns how many products of an
    activation and a weight that was."""
    planes = np.ones(TOKENS * CHUNK * 4 * 2, np.int8).view(FORMS[form])
    _multiply(planes, np.ones(CHUNK * 64, np.int8), team, turns)
    return team * turns * TOKENS * 16 * CHUNK * 4

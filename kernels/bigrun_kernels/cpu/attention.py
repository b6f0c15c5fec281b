"""Attention over a paged KV cache, and writing to it. One kernel for prefill and decode: each token attends to what
its sequence holds up to its own position, in pages from first to last, so its result depends on nothing else."""

import numpy as np
from numba import prange

from bigrun_kernels.cpu.compile import kernel, parallel_kernel, summing
from bigrun_kernels.cpu.rows import read_row, write_row
from bigrun_kernels.cpu.scalar import exp

LARGEST_HALF = np.float32(65504.0)


@kernel
def store(qkv, offset, slots, pages):
    """pages [P, KVH, page, D] at `slots` [T] = KVH·D entries of each row of qkv from `offset`, float16 saturated."""
    kv_heads, page, dim = pages.shape[1:]
    vector = np.empty(dim, np.float32)
    for t in range(slots.size):
        for h in range(kv_heads):
            row, target = qkv[t, offset + h * dim : offset + (h + 1) * dim], pages[slots[t] // page, h, slots[t] % page]
            for d in range(dim):
                if pages.itemsize == 2 and abs(row[d]) > LARGEST_HALF:
                    vector[d] = LARGEST_HALF if row[d] > 0 else -LARGEST_HALF
                else:
                    vector[d] = row[d]
            write_row(vector, False, target)


@kernel
def _read(source, count, target):
    """target float32 [page, D] = the first `count` vectors of a page."""
    for t in range(count):
        read_row(source[t], False, target[t])


@summing
def _page(q, keys, values, count, distance, slope, scale, scores, state, out):
    """Take one page into the running softmax of one head (Milakov & Gimelshein 2018). state: maximum, sum of weights.

    distance: of the page's first token from the query, zero or negative.
    """
    highest = state[0]
    for t in range(count):
        total = np.float32(0.0)
        for d in range(q.size):
            total += q[d] * keys[t, d]
        scores[t] = total * scale + slope * np.float32(distance + t)
        highest = max(highest, scores[t])
    factor = exp(state[0] - highest)
    if state[0] == -np.inf:
        factor = np.float32(0.0)
    for t in range(count):
        scores[t] = exp(scores[t] - highest)
    total = state[1] * factor
    for t in range(count):
        total += scores[t]
    for d in range(out.size):
        out[d] *= factor
    for t in range(count):
        weight = scores[t]
        for d in range(out.size):
            out[d] += weight * values[t, d]
    state[0], state[1] = highest, total


@parallel_kernel
def attention(qkv, heads, k_pages, v_pages, tables, sequences, positions, slopes, scale, out):
    """out [T, H·D]: softmax(q·k·scale + slope·distance)·v for each token and head.

    qkv float32 [T, (H + 2·KVH)·D] (q first); pages [P, KVH, page, D], float32 or float16 as uint16; tables int32
    [S, pages of a sequence]; sequences, positions [T]; slopes float32 [H] (ALiBi, Press et al. 2022; else zeros).
    """
    kv_heads, page, dim = k_pages.shape[1:]
    group = heads // kv_heads
    for task in prange(positions.size * kv_heads):
        t, g = task // kv_heads, task % kv_heads
        position, table = positions[t], tables[sequences[t]]
        keys, values = np.empty((page, dim), np.float32), np.empty((page, dim), np.float32)
        scores, state = np.empty(page, np.float32), np.empty((group, 2), np.float32)
        state[:, 0] = -np.inf
        state[:, 1] = 0.0
        out[t, g * group * dim : (g + 1) * group * dim] = 0.0
        for first in range(0, position + 1, page):
            count = min(page, position + 1 - first)
            number = table[first // page]
            _read(k_pages[number, g], count, keys)
            _read(v_pages[number, g], count, values)
            for i in range(group):
                head = slice((g * group + i) * dim, (g * group + i + 1) * dim)
                bias = slopes[g * group + i]
                _page(qkv[t, head], keys, values, count, first - position, bias, scale, scores, state[i], out[t, head])
        for i in range(group):
            for d in range((g * group + i) * dim, (g * group + i + 1) * dim):
                out[t, d] /= state[i, 1]

"""Attention over a paged KV cache, and writing to it.

The context is taken in spans of a few pages. Each span has its own running softmax (Milakov & Gimelshein 2018); spans are
merged from first to last. Where a step has few tokens, spans are tasks for the threads (Dao et al. 2023, flash-decoding);
elsewhere one task takes some tokens of a sequence through all of them, so that they find a page in the cache. The arithmetic of
a token is the same in both, and depends on nothing but the token and its sequence.

Pages are [P, KVH, page, D] in float32, float16 (as its bits) or int8 with a float16 scale a vector, [P, KVH, page]; D is a
head's size to a multiple of 8, page a multiple of 8. Kernels take them flat.
"""

import numpy as np
from numba import prange

from bigrun_kernels.cpu.attention_tiles import output_rows, score_rows, soften
from bigrun_kernels.cpu.compile import inlined, kernel, parallel_kernel
from bigrun_kernels.cpu.rows import read_row, write_row
from bigrun_kernels.cpu.scalar import exp, float_to_half, half_to_float

LARGEST_HALF = np.float32(65504.0)
LARGEST_VECTOR = np.float32(8e6)  # 127 times what a float16 scale can be
SPAN_PAGES = 2
TOKENS = 8  # of a task that takes tokens through all spans


@kernel
def _store_vector(source, at, size, pages, first, dim, scale, index):
    """pages[first : first + dim] = source[at : at + size], then zeros: float16 saturated, or int8 with its scale at
    scale[index]."""
    vector = np.zeros(dim, np.float32)
    for d in range(size):
        vector[d] = source[at + d]
    if scale.size:
        largest, finite = np.float32(0.0), True
        for d in range(size):
            largest = max(largest, abs(vector[d]))
            finite = finite and abs(vector[d]) < LARGEST_VECTOR
        code = np.uint16(0x7E00)  # the scale of a vector with NaN or inf is NaN: whoever attends to it shall know
        if finite:
            code = float_to_half(largest / np.float32(127.0))
            if half_to_float(code) * np.float32(127.49) < largest:
                code = np.uint16(code + np.uint16(1))
        scale[index] = code
        unit = half_to_float(code)
        for d in range(dim):
            vector[d] = np.rint(vector[d] / unit) if finite and code else np.float32(0.0)
    elif pages.itemsize == 2:
        for d in range(dim):  # NaN is neither
            value = vector[d]
            value = LARGEST_HALF if value > LARGEST_HALF else value
            vector[d] = -LARGEST_HALF if value < -LARGEST_HALF else value
    write_row(vector, False, pages[first : first + dim])


@kernel
def store_token(qkv, t, offset, size, heads, dim, page, slot, pages, scale, head):
    """One head's vector of token t, at qkv[t, offset + head·size], into its slot of the flat pages."""
    index = (slot // page * heads + head) * page + slot % page
    _store_vector(qkv[t], offset + head * size, size, pages, index * dim, dim, scale, index)


@inlined
def _units(scale, first, count, target):
    """target[:count] = the scales of a page's vectors; ones where the pages have none."""
    if scale.size:
        read_row(scale[first : first + count], False, target[:count])
    else:
        for t in range(count):
            target[t] = np.float32(1.0)


@inlined
def _scale_row(out, first, dim, factor):
    for d in range(first, first + dim):
        out[d] *= factor


@inlined
def _weigh(scores, at, count, distance, slope, scale, units, page, state, row, out, dim):
    """Take the scores of one page into a row's running softmax: scores become weights, outputs so far lose their share.

    distance: of the page's first token from the query, zero or negative. state[2·row]: maximum, then the sum of weights.
    """
    before, total = state[2 * row], state[2 * row + 1]
    soften(scores, at, count, distance, slope, scale, units[:page], units[page:], state, 2 * row)
    factor = np.float32(0.0)
    if before != -np.inf:
        factor = exp(before - state[2 * row])
    state[2 * row + 1] += total * factor
    if factor != np.float32(1.0):
        _scale_row(out, row * dim, dim, factor)


@kernel
def _span(
    q, rows, positions, slopes, scale, window, edge, k, v, k_scale, v_scale, table, heads, g, page, dim, begin, end, work,
    state, out,
):  # fmt: skip
    """out [rows, dim], state [rows, 2] (flat) = the softmax of `rows` queries over positions begin … end of a sequence, each
    up to its own position, and of a window only its last `window`; not yet divided by the sum of weights. `edge`: where the
    last of the windows begins; 0 without one. work: float32 scratch of four pages' tokens."""
    scores, units = work[: 2 * page], work[2 * page : 4 * page]
    for r in range(rows):
        state[2 * r], state[2 * r + 1] = -np.inf, 0.0
    for i in range(rows * dim):
        out[i] = np.float32(0.0)
    for first in range(begin, end, page):
        index = (table[first // page] * heads + g) * page
        most = min(page, end - first)
        following = index  # the page after this one, of the next span perhaps
        if first + page <= positions[rows - 1]:
            following = (table[first // page + 1] * heads + g) * page
        _units(k_scale, index, most, units[:page])
        _units(v_scale, index, most, units[page:])
        if first < edge:  # which rarely is, so that the loop below need not know of windows
            for r in range(rows):
                skip = max(positions[r] - window + 1 - first, 0)
                count = min(most, positions[r] + 1 - first) - skip
                if count > 0:
                    score_rows(q, r, 1, k, index * dim, most, dim, scores, page, v, index * dim)
                    for t in range(count):  # to the front, where whole vectors begin
                        scores[t] = scores[t + skip]
                    distance = first + skip - positions[r]
                    _weigh(scores, 0, count, distance, slopes[r], scale, units[skip:], page, state, r, out, dim)
                    output_rows(scores, 0, page, 1, v, (index + skip) * dim, count, dim, out, r, k, following * dim)
            continue
        for r in range(0, rows, 2):
            pair = min(2, rows - r)
            score_rows(q, r, pair, k, index * dim, most, dim, scores, page, v, index * dim)
            shared = most
            for i in range(pair):
                count = min(most, positions[r + i] + 1 - first)
                shared = min(shared, max(count, 0))
                if count > 0:
                    distance = first - positions[r + i]
                    _weigh(scores, i * page, count, distance, slopes[r + i], scale, units, page, state, r + i, out, dim)
            output_rows(scores, 0, page, pair, v, index * dim, shared, dim, out, r, k, following * dim)
            for i in range(pair):  # what only the later of two tokens may look at
                count = min(most, positions[r + i] + 1 - first)
                if count > shared:
                    at = i * page + shared
                    output_rows(
                        scores,
                        at,
                        page,
                        1,
                        v,
                        (index + shared) * dim,
                        count - shared,
                        dim,
                        out,
                        r + i,
                        k,
                        following * dim,
                    )


@inlined
def _merge(total, total_state, row, part, part_at, maximum, weight, dim):
    """Take a span's outputs (part, from part_at on), maximum and sum of weights into those of the spans before it."""
    highest = max(total_state[2 * row], maximum)
    before, now = np.float32(0.0), exp(maximum - highest)
    if total_state[2 * row] != -np.inf:
        before = exp(total_state[2 * row] - highest)
    for d in range(dim):
        total[row * dim + d] = total[row * dim + d] * before + part[part_at + d] * now
    total_state[2 * row] = highest
    total_state[2 * row + 1] = total_state[2 * row + 1] * before + weight * now


@inlined
def _load_query(qkv, t, head, heads, kv_heads, dim, target, row):
    """A head of token t as row `row` of target; a cache's vectors may be longer than a head (dim of 8), by zeros."""
    size = qkv.shape[1] // (heads + 2 * kv_heads)
    for d in range(size):
        target[row * dim + d] = qkv[t, head * size + d]
    for d in range(size, dim):
        target[row * dim + d] = np.float32(0.0)


@inlined
def _write(total, row, weight, dim, out, t, head, heads):
    size = out.shape[1] // heads
    for d in range(size):
        out[t, head * size + d] = total[row * dim + d] / weight


@inlined
def window_start(position, window):
    """The first position that a token sees; 0 without a window."""
    return max(position - window + 1, 0) if window > 0 else 0


@kernel
def attend(
    qkv, heads, k, v, k_scale, v_scale, kv_heads, page, dim, tables, sequences, positions, slopes, scale, window, first,
    stop, g, only, partial, spans, out,
):  # fmt: skip
    """Tokens first … stop (TOKENS at most), for the query heads of key head g: all spans, into out; or span `only` of one
    token, into partial [T, heads, spans, dim + 2] (flat), where it is not negative. Spans begin at fixed positions, window or
    not; those that lie before a token's window have no part in it."""
    group, span = heads // kv_heads, SPAN_PAGES * page
    most = (stop - first) * group
    work = np.empty(4 * page + (3 * dim + 5) * most, np.float32)
    start = 4 * page
    q, part = work[start : start + most * dim], work[start + most * dim : start + 2 * most * dim]
    total = work[start + 2 * most * dim : start + 3 * most * dim]
    start += 3 * most * dim
    part_state, state, tilt = work[start : start + 2 * most], work[start + 2 * most : start + 4 * most], work[-most:]
    where = np.empty(most, np.int64)
    while first < stop:
        last = first + 1  # tokens of one sequence
        while last < stop and sequences[last] == sequences[first]:
            last += 1
        rows, end = (last - first) * group, np.int64(0)
        lowest, edge = np.int64(0), np.int64(0)  # where the first and the last of the tokens' windows begin
        if window > 0:
            lowest = window_start(positions[first], window)
            for t in range(first, last):
                start_of = window_start(positions[t], window)
                lowest, edge = min(lowest, start_of), max(edge, start_of)
        for row in range(rows):
            t, head = first + row // group, g * group + row % group
            _load_query(qkv, t, head, heads, kv_heads, dim, q, row)
            where[row], tilt[row] = positions[t], slopes[head]
            state[2 * row], state[2 * row + 1] = -np.inf, 0.0
            end = max(end, positions[t] + 1)
        for i in range(rows * dim):
            total[i] = np.float32(0.0)
        begin = max(only, 0) * span
        if only >= 0:
            end = min(end, begin + span)
        begin = max(begin, lowest // span * span)
        while begin < end:
            _span(
                q, rows, where, tilt, scale, window, edge, k, v, k_scale, v_scale, tables[sequences[first]], kv_heads, g,
                page, dim, max(begin, lowest // page * page), min(begin + span, end), work, part_state, part,
            )  # fmt: skip
            for row in range(rows):
                t, head = first + row // group, g * group + row % group
                if only >= 0:
                    at = ((t * heads + head) * spans + only) * (dim + 2)
                    for d in range(dim):
                        partial[at + d] = part[row * dim + d]
                    partial[at + dim], partial[at + dim + 1] = part_state[2 * row], part_state[2 * row + 1]
                elif where[row] >= begin and window_start(where[row], window) < begin + span:
                    _merge(total, state, row, part, row * dim, part_state[2 * row], part_state[2 * row + 1], dim)
            begin += span
        if only < 0:
            for row in range(rows):
                _write(total, row, state[2 * row + 1], dim, out, first + row // group, g * group + row % group, heads)
        first = last


@kernel
def merge_spans(partial, t, heads, spans, page, dim, position, window, out):
    """out[t] from the partial results of the spans that it sees."""
    total, state = np.empty(dim, np.float32), np.empty(2, np.float32)
    for head in range(heads):
        state[0], state[1] = -np.inf, 0.0
        for d in range(dim):
            total[d] = np.float32(0.0)
        for span in range(window_start(position, window) // (SPAN_PAGES * page), position // (SPAN_PAGES * page) + 1):
            at = ((t * heads + head) * spans + span) * (dim + 2)
            _merge(total, state, 0, partial, at, partial[at + dim], partial[at + dim + 1], dim)
        _write(total, 0, state[1], dim, out, t, head, heads)


@parallel_kernel
def _attention(
    qkv, heads, k, v, k_scale, v_scale, kv_heads, page, dim, tables, sequences, positions, slopes, scale, window, out
):
    blocks = (positions.size + TOKENS - 1) // TOKENS
    partial = np.empty(0, np.float32)
    for task in prange(blocks * kv_heads):
        first = task // kv_heads * TOKENS
        attend(
            qkv, heads, k, v, k_scale, v_scale, kv_heads, page, dim, tables, sequences, positions, slopes, scale,
            window, first, min(first + TOKENS, positions.size), task % kv_heads, -1, partial, 0, out,
        )  # fmt: skip


def attention(qkv, heads, k, v, k_scale, v_scale, tables, sequences, positions, slopes, scale, out, window=0):
    """out [T, H·D]: softmax(q·k·scale + slope·distance)·v for each token and head, over its last `window` positions (0: all).

    qkv float32 [T, (H + 2·KVH)·D] (q first); pages k, v with k_scale, v_scale uint16 (empty but for int8); tables int32
    [S, pages of a sequence]; sequences, positions [T]; slopes float32 [H] (ALiBi, Press et al. 2022; else zeros).
    """
    _, kv_heads, page, dim = k.shape
    flat = [array.reshape(-1) for array in (k, v, k_scale, v_scale)]
    where = tables, sequences, positions
    _attention(qkv, heads, *flat, kv_heads, page, dim, *where, slopes, np.float32(scale), window, out)


@kernel
def _store(qkv, offset, size, slots, pages, scale, heads, page, dim):
    for t in range(slots.size):
        for head in range(heads):
            store_token(qkv, t, offset, size, heads, dim, page, slots[t], pages, scale, head)


def store(qkv, offset, size, slots, pages, scale):
    """pages [P, KVH, page, D] at `slots` [T] = KVH vectors of `size` in each row of qkv from `offset` on; scale: of int8 pages,
    or empty."""
    _, heads, page, dim = pages.shape
    _store(qkv, offset, size, slots, pages.reshape(-1), scale.reshape(-1), heads, page, dim)

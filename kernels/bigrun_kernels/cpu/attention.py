"""Attention over a paged KV cache, and writing to it.

The context is taken in spans of a few pages. Each span has its own running softmax (Milakov & Gimelshein 2018); spans are
merged from first to last. Where a step has few tokens, spans are tasks for the threads (Dao et al. 2023, flash-decoding);
elsewhere one task takes some tokens of a sequence through all of them, so that a page is widened once for all. The arithmetic
of a token is the same in both, and depends on nothing but the token and its sequence.

Pages are [P, KVH, page, D] in float32, float16 (as its bits) or int8 with a float16 constant a vector, [P, KVH, page]. Kernels
take them flat.
"""

import numpy as np
from numba import prange

from bigrun_kernels.cpu.attention_tiles import output_rows, score_rows
from bigrun_kernels.cpu.compile import kernel, parallel_kernel, summing
from bigrun_kernels.cpu.rows import read_row, write_row
from bigrun_kernels.cpu.scalar import exp, float_to_half, half_to_float

LARGEST_HALF = np.float32(65504.0)
LARGEST_VECTOR = np.float32(8e6)  # 127 times what a float16 constant can be
SPAN_PAGES = 2
TOKENS = 8  # of a task that takes tokens through all spans
NO_SCALE = np.empty(0, np.uint16)


@kernel
def store_vector(source, at, pages, first, dim, scale, index):
    """pages[first : first + dim] = source[at : at + dim]: float16 saturated, or int8 with its constant at scale[index]."""
    largest, finite = np.float32(0.0), True
    vector = np.empty(dim, np.float32)
    for d in range(dim):
        vector[d] = source[at + d]
        largest = max(largest, abs(vector[d]))
        finite = finite and abs(vector[d]) < LARGEST_VECTOR
    if scale.size:
        code = np.uint16(0x7E00)  # the constant of a vector with NaN or inf is NaN: whoever attends to it shall know
        if finite:
            code = float_to_half(largest / np.float32(127.0))
            if half_to_float(code) * np.float32(127.49) < largest:
                code = np.uint16(code + np.uint16(1))
        scale[index] = code
        unit = half_to_float(code)
        for d in range(dim):
            vector[d] = np.rint(vector[d] / unit) if finite and code else np.float32(0.0)
    elif pages.itemsize == 2:
        for d in range(dim):
            if abs(vector[d]) > LARGEST_HALF:
                vector[d] = LARGEST_HALF if vector[d] > 0 else -LARGEST_HALF
    write_row(vector, False, pages[first : first + dim])


@kernel
def store_token(qkv, t, offset, heads, dim, page, slot, pages, scale, head):
    """One head's vector of token t, at qkv[t, offset + head·dim], into its slot of the flat pages."""
    index = (slot // page * heads + head) * page + slot % page
    store_vector(qkv[t], offset + head * dim, pages, index * dim, dim, scale, index)


@kernel
def _widen_page(pages, first, count, dim, padded, target):
    """target [page, padded] (flat) = `count` vectors of a page as float32, padded with zeros."""
    for t in range(count):
        read_row(pages[first + t * dim : first + (t + 1) * dim], False, target[t * padded : t * padded + dim])
        for d in range(dim, padded):
            target[t * padded + d] = np.float32(0.0)


@kernel
def _units(scale, first, count, target):
    """target[:count] = the constants of a page's vectors; ones where the pages have none."""
    for t in range(count):
        target[t] = half_to_float(scale[first + t]) if scale.size else np.float32(1.0)


@summing
def _softmax(scores, at, count, distance, slope, scale, k_units, v_units, state, row):
    """Take the scores of one page into a row's running softmax: scores become weights; returns what outputs so far are worth.

    distance: of the page's first token from the query, zero or negative. state[row]: maximum, sum of weights.
    """
    highest = state[row, 0]
    for t in range(count):
        score = scores[at + t] * scale * k_units[t] + slope * np.float32(distance + t)
        scores[at + t] = score
        highest = max(highest, score)
    factor = exp(state[row, 0] - highest)
    if state[row, 0] == -np.inf:
        factor = np.float32(0.0)
    for t in range(count):
        scores[at + t] = exp(scores[at + t] - highest)
    total = state[row, 1] * factor
    for t in range(count):
        total += scores[at + t]
    for t in range(count):
        scores[at + t] *= v_units[t]
    state[row, 0], state[row, 1] = highest, total
    return factor


@kernel
def _scale_row(out, first, dim, factor):
    for d in range(first, first + dim):
        out[d] *= factor


@kernel
def _span(q, rows, positions, slopes, scale, k, v, k_scale, v_scale, table, heads, g, page, dim, padded, begin, end, work, state, out):
    """out [rows, padded] (flat), state [rows, 2] = the softmax of `rows` queries over positions begin … end of a sequence, each
    up to its own position; not yet divided by the sum of weights. work: float32 scratch."""
    keys, values = work[: page * padded], work[page * padded : 2 * page * padded]
    scores = work[2 * page * padded : 2 * page * padded + 2 * page]
    units = work[2 * page * padded + 2 * page : 2 * page * padded + 4 * page]
    k_units, v_units = units[:page], units[page:]
    for r in range(rows):
        state[r, 0], state[r, 1] = -np.inf, 0.0
    for i in range(rows * padded):
        out[i] = np.float32(0.0)
    direct = rows == 1 and padded == dim
    for first in range(begin, end, page):
        index = (table[first // page] * heads + g) * page
        most = min(page, end - first)
        if not direct:
            _widen_page(k, index * dim, most, dim, padded, keys)
            _widen_page(v, index * dim, most, dim, padded, values)
        _units(k_scale, index, most, k_units)
        _units(v_scale, index, most, v_units)
        for r in range(0, rows, 2):
            pair = min(2, rows - r)
            if direct:
                score_rows(q, r, pair, k, index * dim, most, padded, scores, page)
            else:
                score_rows(q, r, pair, keys, 0, most, padded, scores, page)
            shared = most
            for i in range(pair):
                count = min(most, positions[r + i] + 1 - first)
                shared = min(shared, max(count, 0))
                if count > 0:
                    distance = first - positions[r + i]
                    factor = _softmax(scores, i * page, count, distance, slopes[r + i], scale, k_units, v_units, state, r + i)
                    _scale_row(out, (r + i) * padded, padded, factor)
            if direct:
                output_rows(scores, page, pair, v, index * dim, shared, padded, out, r)
                continue
            output_rows(scores, page, pair, values, 0, shared, padded, out, r)
            for i in range(pair):  # what only the later of two tokens may look at
                count = min(most, positions[r + i] + 1 - first)
                if count > shared:
                    rest = scores[i * page + shared : i * page + count]
                    output_rows(rest, page, 1, values, shared * padded, count - shared, padded, out, r + i)


@kernel
def _merge(total, total_state, row, part, part_at, maximum, weight, dim):
    """Take a span's outputs (part, from part_at on), maximum and sum of weights into those of the spans before it."""
    highest = max(total_state[row, 0], maximum)
    before, now = exp(total_state[row, 0] - highest), exp(maximum - highest)
    if total_state[row, 0] == -np.inf:
        before = np.float32(0.0)
    for d in range(dim):
        total[row * dim + d] = total[row * dim + d] * before + part[part_at + d] * now
    total_state[row, 0] = highest
    total_state[row, 1] = total_state[row, 1] * before + weight * now


def padded_dim(dim):
    return (dim + 7) // 8 * 8


_padded = kernel(padded_dim)


@kernel
def _load_query(qkv, t, head, dim, padded, target, row):
    for d in range(dim):
        target[row * padded + d] = qkv[t, head * dim + d]
    for d in range(dim, padded):
        target[row * padded + d] = np.float32(0.0)


@kernel
def work_size(rows, page, dim):
    """float32 entries that a task of `rows` queries needs."""
    padded = _padded(dim)
    return (2 * page * padded + 4 * page) + 3 * rows * padded


@kernel
def attend_tokens(qkv, heads, k, v, k_scale, v_scale, kv_heads, page, dim, tables, sequences, positions, slopes, scale, first, g, out):
    """out of tokens first … first + TOKENS, for the query heads of key head g: all spans, one after another."""
    group, padded, span = heads // kv_heads, _padded(dim), SPAN_PAGES * page
    stop = min(first + TOKENS, positions.size)
    most = TOKENS * group
    work = np.empty(2 * page * padded + 4 * page, np.float32)
    vectors = np.empty((3, most * padded), np.float32)
    states = np.empty((2, most, 2), np.float32)
    where, tilt = np.empty(most, np.int64), np.empty(most, np.float32)
    while first < stop:
        last = first + 1  # tokens of one sequence
        while last < stop and sequences[last] == sequences[first]:
            last += 1
        rows, end = (last - first) * group, np.int64(0)
        for t in range(first, last):
            end = max(end, positions[t] + 1)
            for i in range(group):
                row = (t - first) * group + i
                _load_query(qkv, t, g * group + i, dim, padded, vectors[0], row)
                where[row], tilt[row] = positions[t], slopes[g * group + i]
        total, state = vectors[2], states[1]
        for r in range(rows):
            state[r, 0], state[r, 1] = -np.inf, 0.0
        for i in range(rows * padded):
            total[i] = np.float32(0.0)
        for begin in range(0, end, span):
            _span(
                vectors[0], rows, where, tilt, scale, k, v, k_scale, v_scale, tables[sequences[first]], kv_heads, g, page, dim,
                padded, begin, min(begin + span, end), work, states[0], vectors[1],
            )  # fmt: skip
            for r in range(rows):
                if where[r] >= begin:
                    _merge(total, state, r, vectors[1], r * padded, states[0, r, 0], states[0, r, 1], padded)
        for t in range(first, last):
            for i in range(group):
                row = (t - first) * group + i
                for d in range(dim):
                    out[t, (g * group + i) * dim + d] = total[row * padded + d] / state[row, 1]
        first = last


@kernel
def attend_span(qkv, heads, k, v, k_scale, v_scale, kv_heads, page, dim, table, position, slopes, scale, t, g, span, partial, spans):
    """One span of one token, for the query heads of key head g, into partial [T, heads, spans, padded + 2] (flat)."""
    group, padded = heads // kv_heads, _padded(dim)
    begin = span * SPAN_PAGES * page
    end = min(begin + SPAN_PAGES * page, position + 1)
    if begin > position:
        return
    work = np.empty(2 * page * padded + 4 * page + 2 * group * padded, np.float32)
    q, out = work[-2 * group * padded : -group * padded], work[-group * padded :]
    state = np.empty((group, 2), np.float32)
    where, tilt = np.empty(group, np.int64), np.empty(group, np.float32)
    for i in range(group):
        _load_query(qkv, t, g * group + i, dim, padded, q, i)
        where[i], tilt[i] = position, slopes[g * group + i]
    _span(q, group, where, tilt, scale, k, v, k_scale, v_scale, table, kv_heads, g, page, dim, padded, begin, end, work, state, out)
    for i in range(group):
        at = ((t * heads + g * group + i) * spans + span) * (padded + 2)
        for d in range(padded):
            partial[at + d] = out[i * padded + d]
        partial[at + padded], partial[at + padded + 1] = state[i, 0], state[i, 1]


@kernel
def merge_spans(partial, t, heads, spans, page, dim, position, out):
    """out[t] from the partial results of its spans."""
    padded = _padded(dim)
    total, state = np.empty(padded, np.float32), np.empty((1, 2), np.float32)
    for head in range(heads):
        state[0, 0], state[0, 1] = -np.inf, 0.0
        for d in range(padded):
            total[d] = np.float32(0.0)
        for span in range(position // (SPAN_PAGES * page) + 1):
            at = ((t * heads + head) * spans + span) * (padded + 2)
            _merge(total, state, 0, partial, at, partial[at + padded], partial[at + padded + 1], padded)
        for d in range(dim):
            out[t, head * dim + d] = total[d] / state[0, 1]


@parallel_kernel
def _attention(qkv, heads, k, v, k_scale, v_scale, kv_heads, page, dim, tables, sequences, positions, slopes, scale, out):
    blocks = (positions.size + TOKENS - 1) // TOKENS
    for task in prange(blocks * kv_heads):
        attend_tokens(
            qkv, heads, k, v, k_scale, v_scale, kv_heads, page, dim, tables, sequences, positions, slopes, scale,
            task // kv_heads * TOKENS, task % kv_heads, out,
        )  # fmt: skip


def attention(qkv, heads, k, v, k_scale, v_scale, tables, sequences, positions, slopes, scale, out):
    """out [T, H·D]: softmax(q·k·scale + slope·distance)·v for each token and head.

    qkv float32 [T, (H + 2·KVH)·D] (q first); pages k, v with k_scale, v_scale uint16 (empty but for int8); tables int32
    [S, pages of a sequence]; sequences, positions [T]; slopes float32 [H] (ALiBi, Press et al. 2022; else zeros).
    """
    _, kv_heads, page, dim = k.shape
    flat = [array.reshape(-1) for array in (k, v, k_scale, v_scale)]
    _attention(qkv, heads, *flat, kv_heads, page, dim, tables, sequences, positions, slopes, np.float32(scale), out)


@kernel
def _store(qkv, offset, slots, pages, scale, heads, page, dim):
    for t in range(slots.size):
        for head in range(heads):
            store_token(qkv, t, offset, heads, dim, page, slots[t], pages, scale, head)


def store(qkv, offset, slots, pages, scale):
    """pages [P, KVH, page, D] at `slots` [T] = KVH·D entries of each row of qkv from `offset`; scale: of int8 pages, or empty."""
    _, heads, page, dim = pages.shape
    _store(qkv, offset, slots, pages.reshape(-1), scale.reshape(-1), heads, page, dim)

"""Transformer blocks, one after another, in one compiled call: their programs (bigrun/model/program.py) as rows of a table, for
int8 weights in the exact mode. A team of threads goes through the rows together (team.py); each row's op is reached through a
function pointer, so that a table compiles the ops that it has and no others.

A table is int64: HEADER, then the addresses of the buffers, then the rows. A row is the address of its op, where to find the
address of what is read after it (for waiting threads to fetch), and its arguments: numbers, addresses of weights, and places of
buffers in the table. A new op is a kernel here, with an entry in ROWS.
"""

import numpy as np

from bigrun_kernels.cpu.attention import SPAN_PAGES, attend, merge_spans, store_token, window_start
from bigrun_kernels.cpu.attention import TOKENS as ATTENTION_TOKENS
from bigrun_kernels.cpu.compile import kernel
from bigrun_kernels.cpu.elementwise import activate_row, norm_head, norm_row, rotate_head
from bigrun_kernels.cpu.linear import panel_linear
from bigrun_kernels.cpu.planes import TOKENS, quantise
from bigrun_kernels.cpu.team import SLOTS, address_of, array_at, call_op, claim, finish, matrix_at, share

# What a step has in common for all rows: numbers, then addresses.
HEADER = ("rows", "tokens", "team", "spans", "rope_dims", "batch", "per_sequence", "planes_size", "partial_size",
          "first_row", "numbers", "cos_sin", "positions", "sequences", "slots", "tables", "planes", "row_scale", "row_sum",
          "partial", "counters")  # fmt: skip
ROWS_AT, TOKENS_AT, TEAM, SPANS, ROPE_DIMS, BATCH, PER_SEQUENCE, PLANES_SIZE, PARTIAL_SIZE, FIRST_ROW, *_ = range(
    len(HEADER)
)
NUMBERS, COS_SIN, POSITIONS, SEQUENCES, SLOTS_AT, TABLES, PLANES, ROW_SCALE, ROW_SUM, PARTIAL, COUNTERS = range(
    10, len(HEADER)
)
WIDTH = 24  # of a row
FOLLOWING = 1  # in a row: where the table has the address that is read next; 0 for none
VALUES = 6  # in the row of a linear: the address of its values
# What a thread has for itself: the phase it is at, the row, and the scratch of linears.
PHASE, ROW, SUMS = range(3)
TASK_BYTES = 1 << 16  # of weights claimed at once, at least


@kernel
def _quantise_panel(x, panel, mask, planes, scale, row_sum):
    """The tokens of one panel, quantised."""
    padded = (x.shape[1] + 63) // 64 * 64
    for t in range(panel * TOKENS, min((panel + 1) * TOKENS, x.shape[0])):
        quantise(x, t, x.shape[0], True, mask, False, planes, padded, scale, row_sum)


@kernel
def norm(table, state, planes_like, pages_like):
    """What a linear reads only later, so that nothing is quantised. Row: as of norm_quantise."""
    row, tokens, phase = state[ROW], table[TOKENS_AT], state[PHASE]
    floats, width = np.empty(0, np.float32), table[row + 4]
    x = matrix_at(table, table[row + 2], tokens, width, floats)
    out = matrix_at(table, table[row + 3], tokens, width, floats)
    weight, bias = array_at(table, row + 5, width, floats), array_at(table, row + 6, table[row + 7], floats)
    eps = array_at(table, NUMBERS, table[row + 8] + 1, np.empty(0, np.float64))[table[row + 8]]
    counters, done = counters_of(table), 0
    while True:
        t = claim(counters, phase, 1)
        if t >= tokens:
            break
        norm_row(x[t], weight, bias, eps, out[t])
        done += 1
    state[PHASE] = finish(counters, phase, done, tokens, table, table[row + FOLLOWING])


@kernel
def quantise_rows(table, state, planes_like, pages_like):
    """What was there before the last quantised input of a linear. Row: x, its width."""
    row, tokens, phase = state[ROW], table[TOKENS_AT], state[PHASE]
    x = matrix_at(table, table[row + 2], tokens, table[row + 3], np.empty(0, np.float32))
    planes, row_scale, row_sum = _quantised(table, tokens, planes_like)
    counters, mask = counters_of(table), np.empty(0, np.int8)
    panels, done = (tokens + TOKENS - 1) // TOKENS, 0
    while True:
        panel = claim(counters, phase, 1)
        if panel >= panels:
            break
        _quantise_panel(x, panel, mask, planes, row_scale, row_sum)
        done += 1
    state[PHASE] = finish(counters, phase, done, panels, table, table[row + FOLLOWING])


@kernel
def norm_heads(table, state, planes_like, pages_like):
    """Norms of queries and keys, in place. Row: qkv, its width, heads, key heads, entries of a head, weights of queries and of
    keys, number of eps."""
    row, tokens, phase = state[ROW], table[TOKENS_AT], state[PHASE]
    floats = np.empty(0, np.float32)
    qkv = matrix_at(table, table[row + 2], tokens, table[row + 3], floats)
    heads, kv_heads, size = table[row + 4], table[row + 5], table[row + 6]
    q_weight, k_weight = array_at(table, row + 7, size, floats), array_at(table, row + 8, size, floats)
    eps = array_at(table, NUMBERS, table[row + 9] + 1, np.empty(0, np.float64))[table[row + 9]]
    counters, done = counters_of(table), 0
    while True:
        t = claim(counters, phase, 1)
        if t >= tokens:
            break
        for h in range(heads + kv_heads):
            norm_head(qkv[t], h * size, size, q_weight if h < heads else k_weight, eps)
        done += 1
    state[PHASE] = finish(counters, phase, done, tokens, table, table[row + FOLLOWING])


@kernel
def norm_quantise(table, state, planes_like, pages_like):
    """Row: x, out, width, weight, bias, size of the bias, number of eps."""
    row, tokens, phase = state[ROW], table[TOKENS_AT], state[PHASE]
    floats, width = np.empty(0, np.float32), table[row + 4]
    x, out = (
        matrix_at(table, table[row + 2], tokens, width, floats),
        matrix_at(table, table[row + 3], tokens, width, floats),
    )
    weight, bias = array_at(table, row + 5, width, floats), array_at(table, row + 6, table[row + 7], floats)
    eps = array_at(table, NUMBERS, table[row + 8] + 1, np.empty(0, np.float64))[table[row + 8]]
    planes, row_scale, row_sum = _quantised(table, tokens, planes_like)
    counters, mask = counters_of(table), np.empty(0, np.int8)
    panels, done = (tokens + TOKENS - 1) // TOKENS, 0
    while True:
        panel = claim(counters, phase, 1)
        if panel >= panels:
            break
        for t in range(panel * TOKENS, min((panel + 1) * TOKENS, tokens)):
            norm_row(x[t], weight, bias, eps, out[t])
        _quantise_panel(out, panel, mask, planes, row_scale, row_sum)
        done += 1
    state[PHASE] = finish(counters, phase, done, panels, table, table[row + FOLLOWING])


@kernel
def counters_of(table):
    return array_at(table, COUNTERS, table[ROWS_AT] * SLOTS, np.empty(0, np.int64))


@kernel
def _quantised(table, tokens, planes_like):
    """The quantised input of a linear: planes, the scales and the sums of rows."""
    planes = array_at(table, PLANES, table[PLANES_SIZE], planes_like)
    scale = array_at(table, ROW_SCALE, tokens, np.empty(0, np.float64))
    return planes, scale, matrix_at(table, ROW_SUM, tokens, 2, np.empty(0, np.int32))


@kernel
def linear(table, state, planes_like, pages_like):
    """out = (or +=) x Wᵀ + b from quantised planes, shared out by panels. Row: x, columns, out, rows, values, scale, bias,
    size of the bias, whether it adds."""
    row, tokens, phase, team = state[ROW], table[TOKENS_AT], state[PHASE], table[TEAM]
    floats, columns, rows = np.empty(0, np.float32), table[row + 3], table[row + 5]
    x, out = (
        matrix_at(table, table[row + 2], tokens, columns, floats),
        matrix_at(table, table[row + 4], tokens, rows, floats),
    )
    quads, panels = (columns + 63) // 64 * 16, (rows + 15) // 16
    w = array_at(table, row + 6, panels * quads * 64, np.empty(0, np.int8))
    w_scale, bias = array_at(table, row + 7, rows, floats), array_at(table, row + 8, table[row + 9], floats)
    add = table[row + 10] > 0
    planes, row_scale, row_sum = _quantised(table, tokens, planes_like)
    sums = array_at(state, SUMS, (tokens + TOKENS) * 32, np.empty(0, np.float64))
    most = (TASK_BYTES + quads * 64 - 1) // (quads * 64)
    counters, none = counters_of(table), np.empty(0, np.int64)
    done = 0
    while True:
        step = share(counters, phase, panels, most, team)
        first = claim(counters, phase, step)
        if first >= panels:
            break
        stop = min(first + step, panels)
        for panel in range(first, stop):
            panel_linear(
                x, planes, row_scale, row_sum, tokens, True, none, quads, w, w_scale, bias, panel, sums, out, add
            )
        done += stop - first
    state[PHASE] = finish(counters, phase, done, panels, table, table[row + FOLLOWING])


@kernel
def _pages(table, row, pages_like):
    """Keys, values and their scales, of which the addresses are in the row from here on, then their sizes."""
    size, units, halves = table[row + 4], table[row + 5], np.empty(0, np.uint16)
    k, v = array_at(table, row, size, pages_like), array_at(table, row + 1, size, pages_like)
    return k, v, array_at(table, row + 2, units, halves), array_at(table, row + 3, units, halves)


@kernel
def rope_store(table, state, planes_like, pages_like):
    """Rotary embedding of the queries and keys of each key head, and its keys and values into the cache. Row: qkv, its width,
    heads, key heads, entries of a head and of a page's vector, tokens of a page, then the pages, and whether it rotates."""
    row, tokens, phase = state[ROW], table[TOKENS_AT], state[PHASE]
    floats = np.empty(0, np.float32)
    qkv, cos_sin = (
        matrix_at(table, table[row + 2], tokens, table[row + 3], floats),
        matrix_at(table, COS_SIN, tokens, table[ROPE_DIMS], floats),
    )
    heads, kv_heads, size, dim, page = table[row + 4], table[row + 5], table[row + 6], table[row + 7], table[row + 8]
    k, v, k_scale, v_scale = _pages(table, row + 9, pages_like)
    rotates = table[row + 15] > 0
    slots, counters = array_at(table, SLOTS_AT, tokens, np.empty(0, np.int64)), counters_of(table)
    group, total, done = heads // kv_heads, tokens * kv_heads, 0
    while True:
        task = claim(counters, phase, 1)
        if task >= total:
            break
        t, g = task // kv_heads, task % kv_heads
        if rotates:
            for i in range(g * group, (g + 1) * group):
                rotate_head(qkv[t], i * size, cos_sin[t])
            rotate_head(qkv[t], (heads + g) * size, cos_sin[t])
        store_token(qkv, t, heads * size, size, kv_heads, dim, page, slots[t], k, k_scale, g)
        store_token(qkv, t, (heads + kv_heads) * size, size, kv_heads, dim, page, slots[t], v, v_scale, g)
        done += 1
    state[PHASE] = finish(counters, phase, done, total, table, table[row + FOLLOWING])


@kernel
def attend_spans(table, state, planes_like, pages_like):
    """Spans of tokens where `partial` has room for the step's tokens; else some tokens at a time. Row: as of rope_store, then
    slopes, the number of the scale, out, its width, the window."""
    row, tokens, phase, team, spans = state[ROW], table[TOKENS_AT], state[PHASE], table[TEAM], table[SPANS]
    floats, ints = np.empty(0, np.float32), np.empty(0, np.int64)
    qkv = matrix_at(table, table[row + 2], tokens, table[row + 3], floats)
    heads, kv_heads, dim, page = table[row + 4], table[row + 5], table[row + 7], table[row + 8]
    k, v, k_scale, v_scale = _pages(table, row + 9, pages_like)
    slopes, out = (
        array_at(table, row + 15, heads, floats),
        matrix_at(table, table[row + 17], tokens, table[row + 18], floats),
    )
    number = table[row + 16]
    scale = np.float32(array_at(table, NUMBERS, number + 1, np.empty(0, np.float64))[number])
    positions, sequences = array_at(table, POSITIONS, tokens, ints), array_at(table, SEQUENCES, tokens, ints)
    tables = matrix_at(table, TABLES, table[BATCH], table[PER_SEQUENCE], np.empty(0, np.int32))
    partial, counters = array_at(table, PARTIAL, table[PARTIAL_SIZE], floats), counters_of(table)
    split, done, window, reach = spans > 0, 0, table[row + 19], spans
    if window > 0:  # spans that a window has a part in, at most
        reach = min(spans, (window + SPAN_PAGES * page - 2) // (SPAN_PAGES * page) + 1)
    if split:
        total = tokens * kv_heads * reach
    else:
        total = (tokens + ATTENTION_TOKENS - 1) // ATTENTION_TOKENS * kv_heads
    step = max(1, min(reach, total // (4 * team)))  # spans that follow one another: pages are asked for ahead
    while True:
        begin = claim(counters, phase, step)
        if begin >= total:
            break
        for task in range(begin, min(begin + step, total)):
            if split:
                first, g, only = task // (kv_heads * reach), task // reach % kv_heads, task % reach
                only += window_start(positions[first], window) // (SPAN_PAGES * page)
                stop = first + 1
            else:
                first = (total // kv_heads - 1 - task // kv_heads) * ATTENTION_TOKENS  # the longest first
                stop, g, only = min(first + ATTENTION_TOKENS, tokens), task % kv_heads, -1
            attend(
                qkv, heads, k, v, k_scale, v_scale, kv_heads, page, dim, tables, sequences, positions, slopes, scale,
                window, first, stop, g, only, partial, spans, out,
            )  # fmt: skip
            done += 1
    state[PHASE] = finish(counters, phase, done, total, table, table[row + FOLLOWING])


@kernel
def merge_quantise(table, state, planes_like, pages_like):
    """Spans merged, and what attention gives quantised. Row: out, its width, heads, entries of a page's vector, tokens of a
    page, the window."""
    row, tokens, phase, spans = state[ROW], table[TOKENS_AT], state[PHASE], table[SPANS]
    floats = np.empty(0, np.float32)
    out = matrix_at(table, table[row + 2], tokens, table[row + 3], floats)
    heads, dim, page = table[row + 4], table[row + 5], table[row + 6]
    positions = array_at(table, POSITIONS, tokens, np.empty(0, np.int64))
    partial = array_at(table, PARTIAL, table[PARTIAL_SIZE], floats)
    planes, row_scale, row_sum = _quantised(table, tokens, planes_like)
    counters, mask = counters_of(table), np.empty(0, np.int8)
    panels, done = (tokens + TOKENS - 1) // TOKENS, 0
    while True:
        panel = claim(counters, phase, 1)
        if panel >= panels:
            break
        if spans > 0:
            for t in range(panel * TOKENS, min((panel + 1) * TOKENS, tokens)):
                merge_spans(partial, t, heads, spans, page, dim, positions[t], table[row + 7], out)
        _quantise_panel(out, panel, mask, planes, row_scale, row_sum)
        done += 1
    state[PHASE] = finish(counters, phase, done, panels, table, table[row + FOLLOWING])


@kernel
def activate_quantise(table, state, planes_like, pages_like):
    """Row: x, its width, out, its width, the activation, whether it is gated."""
    row, tokens, phase = state[ROW], table[TOKENS_AT], state[PHASE]
    floats = np.empty(0, np.float32)
    x = matrix_at(table, table[row + 2], tokens, table[row + 3], floats)
    out = matrix_at(table, table[row + 4], tokens, table[row + 5], floats)
    planes, row_scale, row_sum = _quantised(table, tokens, planes_like)
    counters, mask = counters_of(table), np.empty(0, np.int8)
    panels, done = (tokens + TOKENS - 1) // TOKENS, 0
    while True:
        panel = claim(counters, phase, 1)
        if panel >= panels:
            break
        for t in range(panel * TOKENS, min((panel + 1) * TOKENS, tokens)):
            activate_row(table[row + 6], x[t], table[row + 7] > 0, out[t])
        _quantise_panel(out, panel, mask, planes, row_scale, row_sum)
        done += 1
    state[PHASE] = finish(counters, phase, done, panels, table, table[row + FOLLOWING])


# Op of a program rewritten for the compiled call → its kernel.
ROWS = {
    "norm": norm, "quantise": quantise_rows, "norm_heads": norm_heads,
    "norm_quantise": norm_quantise, "linear": linear, "rope_store": rope_store, "attend": attend_spans,
    "merge_quantise": merge_quantise, "activate_quantise": activate_quantise,
}  # fmt: skip


def op_address(op: str, planes: np.dtype, pages: np.dtype) -> int:
    """The address of an op's kernel for these dtypes of planes and pages, compiled if it is not."""
    return address_of(ROWS[op], np.dtype(np.int64), np.dtype(np.int64), planes, pages)


@kernel
def participate(table, planes_like, pages_like):
    """One thread's way through all rows: a participant of team.launch."""
    sums = np.empty((table[TOKENS_AT] + TOKENS) * 32, np.float64)
    state = np.zeros(3, np.int64)
    state[SUMS] = sums.ctypes.data
    for i in range(table[ROWS_AT]):
        state[ROW] = table[FIRST_ROW] + i * WIDTH
        call_op(table[state[ROW]], table, state)
    sums[0] = 0.0  # which keeps it alive until here

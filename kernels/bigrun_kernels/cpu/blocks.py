"""Transformer blocks, one after another, in one compiled call: the same description that the walker executes op by op
(bigrun/execute/forward.py), for int8 weights in the exact mode. A team of threads goes through each block's phases (team.py).
"""

import numpy as np

from bigrun_kernels.cpu.attention import TOKENS as ATTENTION_TOKENS
from bigrun_kernels.cpu.attention import attend, merge_spans, store_token
from bigrun_kernels.cpu.compile import kernel
from bigrun_kernels.cpu.elementwise import activate_row, norm_row, rotate_head
from bigrun_kernels.cpu.linear import panel_linear
from bigrun_kernels.cpu.planes import TOKENS, quantise
from bigrun_kernels.cpu.team import SLOTS, array_at, claim, finish, matrix_at, share

PHASES = 10  # of a block
# A block's addresses, in this order; then its linears, each with values, scale and bias.
FIELDS = (
    "attention_norm",
    "attention_norm.bias",
    "mlp_norm",
    "mlp_norm.bias",
    "k",
    "v",
    "k.scale",
    "v.scale",
    "slopes",
)
LINEARS = ("qkv", "out", "up", "down")
QKV, OUT, UP, DOWN = (len(FIELDS) + 3 * i for i in range(4))
WIDTH = len(FIELDS) + 3 * len(LINEARS)
# Sizes common to the blocks of a call. The last six are 1 or 0.
DIMS = ("hidden", "heads", "kv_heads", "head_dim", "kv_dim", "intermediate", "page", "pages", "activation",
        "gated", "layer_norm", "int8_kv", "qkv_bias", "out_bias", "mlp_bias")  # fmt: skip
HIDDEN, HEADS, KV_HEADS, HEAD_DIM, KV_DIM, INTERMEDIATE, PAGE, PAGES, ACTIVATION, *_ = range(len(DIMS))
GATED, LAYER_NORM, INT8_KV, QKV_BIAS, OUT_BIAS, MLP_BIAS = range(len(DIMS) - 6, len(DIMS))
# What comes before them in the table: numbers, then addresses.
HEADER = ("count", "tokens", "team", "spans", "rope_dims", "batch", "per_sequence", "planes_size", "partial_size",
          "numbers", "x", "cos_sin", "positions", "sequences", "slots", "tables", "normed", "qkv", "attention", "up", "gated",
          "planes", "row_scale", "row_sum", "partial", "counters")  # fmt: skip
COUNT, TOKENS_AT, TEAM, SPANS, ROPE_DIMS, BATCH, PER_SEQUENCE, PLANES_SIZE, PARTIAL_SIZE, *_ = range(len(HEADER))
NUMBERS, X, COS_SIN, POSITIONS, SEQUENCES, SLOTS_AT, TABLES, NORMED, QKV_OUT, ATTENDED, UP_OUT, *_ = range(
    9, len(HEADER)
)
GATED_OUT, PLANES, ROW_SCALE, ROW_SUM, PARTIAL, COUNTERS = range(len(HEADER) - 6, len(HEADER))
BLOCKS = len(HEADER) + len(DIMS)
TASK_BYTES = 1 << 16  # of weights claimed at once, at least
NO_OUTLIERS = np.empty(0, np.int64)


@kernel
def _linear_phase(
    counters,
    phase,
    team,
    pointers,
    at,
    following,
    rows,
    columns,
    biased,
    x,
    planes,
    scale,
    row_sum,
    sums,
    like,
    out,
    add,
):
    """out = (or +=) x Wᵀ + b from quantised planes, shared out by panels."""
    quads, panels = (columns + 63) // 64 * 16, (rows + 15) // 16
    w = array_at(pointers, at, panels * quads * 64, like[0])
    w_scale = array_at(pointers, at + 1, rows, like[1])
    bias = array_at(pointers, at + 2, rows if biased else 0, like[1])
    most = (TASK_BYTES + quads * 64 - 1) // (quads * 64)
    none = np.empty(0, np.int64)
    done = 0
    while True:
        step = share(counters, phase, panels, most, team)
        first = claim(counters, phase, step)
        if first >= panels:
            break
        stop = min(first + step, panels)
        for panel in range(first, stop):
            panel_linear(
                x, planes, scale, row_sum, x.shape[0], True, none, quads, w, w_scale, bias, panel, sums, out, add
            )
        done += stop - first
    return finish(counters, phase, done, panels, pointers, following)


@kernel
def _quantise_panel(x, panel, mask, planes, scale, row_sum):
    """The tokens of one panel, quantised."""
    padded = (x.shape[1] + 63) // 64 * 64
    for t in range(panel * TOKENS, min((panel + 1) * TOKENS, x.shape[0])):
        quantise(x, t, x.shape[0], True, mask, False, planes, padded, scale, row_sum)


@kernel
def _norm_phase(counters, phase, table, following, x, weight, bias, eps, normed, mask, planes, scale, row_sum):
    tokens = x.shape[0]
    panels, done = (tokens + TOKENS - 1) // TOKENS, 0
    while True:
        panel = claim(counters, phase, 1)
        if panel >= panels:
            break
        for t in range(panel * TOKENS, min((panel + 1) * TOKENS, tokens)):
            norm_row(x[t], weight, bias, eps, normed[t])
        _quantise_panel(normed, panel, mask, planes, scale, row_sum)
        done += 1
    return finish(counters, phase, done, panels, table, following)


@kernel
def _cache_phase(counters, phase, table, following, qkv, cos_sin, dims, slots, k, v, k_scale, v_scale):
    """Rotary embedding of the queries and keys of each key head, and its keys and values into the cache."""
    heads, kv_heads, size, dim, page = dims[HEADS], dims[KV_HEADS], dims[HEAD_DIM], dims[KV_DIM], dims[PAGE]
    group, total, done = heads // kv_heads, qkv.shape[0] * kv_heads, 0
    while True:
        task = claim(counters, phase, 1)
        if task >= total:
            break
        t, g = task // kv_heads, task % kv_heads
        if cos_sin.shape[1]:
            for i in range(g * group, (g + 1) * group):
                rotate_head(qkv[t], i * size, cos_sin[t])
            rotate_head(qkv[t], (heads + g) * size, cos_sin[t])
        store_token(qkv, t, heads * size, size, kv_heads, dim, page, slots[t], k, k_scale, g)
        store_token(qkv, t, (heads + kv_heads) * size, size, kv_heads, dim, page, slots[t], v, v_scale, g)
        done += 1
    return finish(counters, phase, done, total, table, following)


@kernel
def _attention_phase(
    counters, phase, table, following, team, qkv, dims, k, v, k_scale, v_scale, tables, sequences, positions, slopes, scale,
    partial, spans, out,
):  # fmt: skip
    """Spans of tokens where `partial` has room for the step's tokens; else some tokens at a time."""
    heads, kv_heads, dim, page = dims[HEADS], dims[KV_HEADS], dims[KV_DIM], dims[PAGE]
    tokens = qkv.shape[0]
    split, done = spans > 0, 0
    if split:
        total = tokens * kv_heads * spans
    else:
        total = (tokens + ATTENTION_TOKENS - 1) // ATTENTION_TOKENS * kv_heads
    step = max(1, min(spans, total // (4 * team)))  # spans that follow one another: pages are asked for ahead
    while True:
        begin = claim(counters, phase, step)
        if begin >= total:
            break
        for task in range(begin, min(begin + step, total)):
            if split:
                first, g, only = task // (kv_heads * spans), task // spans % kv_heads, task % spans
                stop = first + 1
            else:
                first = (total // kv_heads - 1 - task // kv_heads) * ATTENTION_TOKENS  # the longest first
                stop, g, only = min(first + ATTENTION_TOKENS, tokens), task % kv_heads, -1
            attend(
                qkv, heads, k, v, k_scale, v_scale, kv_heads, page, dim, tables, sequences, positions, slopes, scale,
                first, stop, g, only, partial, spans, out,
            )  # fmt: skip
            done += 1
    return finish(counters, phase, done, total, table, following)


@kernel
def _gather_phase(
    counters, phase, table, following, dims, positions, partial, spans, attended, mask, planes, scale, row_sum
):
    """Spans merged, and what attention gives quantised."""
    tokens = attended.shape[0]
    panels, done = (tokens + TOKENS - 1) // TOKENS, 0
    while True:
        panel = claim(counters, phase, 1)
        if panel >= panels:
            break
        if spans > 0:
            for t in range(panel * TOKENS, min((panel + 1) * TOKENS, tokens)):
                merge_spans(partial, t, dims[HEADS], spans, dims[PAGE], dims[KV_DIM], positions[t], attended)
        _quantise_panel(attended, panel, mask, planes, scale, row_sum)
        done += 1
    return finish(counters, phase, done, panels, table, following)


@kernel
def _activation_phase(counters, phase, table, following, dims, up, gated, mask, planes, scale, row_sum):
    tokens = up.shape[0]
    panels, done = (tokens + TOKENS - 1) // TOKENS, 0
    while True:
        panel = claim(counters, phase, 1)
        if panel >= panels:
            break
        for t in range(panel * TOKENS, min((panel + 1) * TOKENS, tokens)):
            activate_row(dims[ACTIVATION], up[t], dims[GATED] > 0, gated[t])
        _quantise_panel(gated, panel, mask, planes, scale, row_sum)
        done += 1
    return finish(counters, phase, done, panels, table, following)


@kernel
def participate(table, planes_like, pages_like):
    """One thread's way through all blocks: a participant of team.launch. table: HEADER, DIMS, then each block's addresses."""
    dims = table[len(HEADER) : BLOCKS]
    hidden, heads, kv_heads, dim = dims[HIDDEN], dims[HEADS], dims[KV_HEADS], dims[HEAD_DIM]
    q_rows, inner, page, kv_dim = heads * dim, dims[INTERMEDIATE], dims[PAGE], dims[KV_DIM]
    norm_bias = hidden if dims[LAYER_NORM] else 0
    kv_size = dims[PAGES] * kv_heads * page
    units = kv_size if dims[INT8_KV] else 0
    qkv_rows, up_rows = q_rows + 2 * kv_heads * dim, inner * (2 if dims[GATED] else 1)
    tokens, team, spans, count = table[TOKENS_AT], table[TEAM], table[SPANS], table[COUNT]
    ints, ints_32, floats, doubles = (
        np.empty(0, np.int64),
        np.empty(0, np.int32),
        np.empty(0, np.float32),
        np.empty(0, np.float64),
    )
    bytes_, halves = np.empty(0, np.int8), np.empty(0, np.uint16)
    like = (bytes_, floats)
    numbers = array_at(table, NUMBERS, 2, doubles)
    eps, scale = numbers[0], np.float32(numbers[1])
    x = matrix_at(table, X, tokens, hidden, floats)
    cos_sin = matrix_at(table, COS_SIN, tokens, table[ROPE_DIMS], floats)
    positions, sequences = array_at(table, POSITIONS, tokens, ints), array_at(table, SEQUENCES, tokens, ints)
    slots, tables = (
        array_at(table, SLOTS_AT, tokens, ints),
        matrix_at(table, TABLES, table[BATCH], table[PER_SEQUENCE], ints_32),
    )
    normed, qkv = matrix_at(table, NORMED, tokens, hidden, floats), matrix_at(table, QKV_OUT, tokens, qkv_rows, floats)
    attended, up = matrix_at(table, ATTENDED, tokens, q_rows, floats), matrix_at(table, UP_OUT, tokens, up_rows, floats)
    gated = matrix_at(table, GATED_OUT, tokens, inner, floats)
    planes = array_at(table, PLANES, table[PLANES_SIZE], planes_like)
    row_scale, row_sum = array_at(table, ROW_SCALE, tokens, doubles), matrix_at(table, ROW_SUM, tokens, 2, ints_32)
    partial = array_at(table, PARTIAL, table[PARTIAL_SIZE], floats)
    counters = array_at(table, COUNTERS, count * PHASES * SLOTS, ints)
    sums = np.empty((tokens + TOKENS) * 32, np.float64)
    mask = np.empty(0, np.int8)
    phase = np.int64(0)
    for b in range(count):
        at = BLOCKS + b * WIDTH
        norm_1, bias_1 = array_at(table, at, hidden, floats), array_at(table, at + 1, norm_bias, floats)
        norm_2, bias_2 = array_at(table, at + 2, hidden, floats), array_at(table, at + 3, norm_bias, floats)
        k, v = (
            array_at(table, at + 4, kv_size * kv_dim, pages_like),
            array_at(table, at + 5, kv_size * kv_dim, pages_like),
        )
        k_scale, v_scale = array_at(table, at + 6, units, halves), array_at(table, at + 7, units, halves)
        slopes = array_at(table, at + 8, heads, floats)
        after = at + WIDTH + QKV if b + 1 < count else 0
        phase = _norm_phase(
            counters, phase, table, at + QKV, x, norm_1, bias_1, eps, normed, mask, planes, row_scale, row_sum
        )
        phase = _linear_phase(
            counters, phase, team, table, at + QKV, 0, qkv_rows, hidden, dims[QKV_BIAS] > 0, normed, planes, row_scale, row_sum,
            sums, like, qkv, False,
        )  # fmt: skip
        phase = _cache_phase(counters, phase, table, 0, qkv, cos_sin, dims, slots, k, v, k_scale, v_scale)
        phase = _attention_phase(
            counters, phase, table, at + OUT, team, qkv, dims, k, v, k_scale, v_scale, tables, sequences, positions, slopes,
            scale, partial, spans, attended,
        )  # fmt: skip
        phase = _gather_phase(
            counters,
            phase,
            table,
            at + OUT,
            dims,
            positions,
            partial,
            spans,
            attended,
            mask,
            planes,
            row_scale,
            row_sum,
        )
        phase = _linear_phase(
            counters, phase, team, table, at + OUT, at + UP, hidden, q_rows, dims[OUT_BIAS] > 0, attended, planes, row_scale,
            row_sum, sums, like, x, True,
        )  # fmt: skip
        phase = _norm_phase(
            counters, phase, table, at + UP, x, norm_2, bias_2, eps, normed, mask, planes, row_scale, row_sum
        )
        phase = _linear_phase(
            counters, phase, team, table, at + UP, at + DOWN, up_rows, hidden, dims[MLP_BIAS] > 0, normed, planes, row_scale,
            row_sum, sums, like, up, False,
        )  # fmt: skip
        phase = _activation_phase(counters, phase, table, at + DOWN, dims, up, gated, mask, planes, row_scale, row_sum)
        phase = _linear_phase(
            counters, phase, team, table, at + DOWN, after, hidden, inner, dims[MLP_BIAS] > 0, gated, planes, row_scale,
            row_sum, sums, like, x, True,
        )  # fmt: skip

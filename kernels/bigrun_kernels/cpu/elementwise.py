"""What stands between the linears: norms, rotary embedding, activation functions, table lookups. Float32, row by row.

Each row is computed alone and in one order, so its result depends neither on the batch nor on the threads.
"""

import math

import numpy as np
from numba import prange

from bigrun_kernels.cpu.compile import kernel, parallel_kernel, summing
from bigrun_kernels.cpu.rows import read_row
from bigrun_kernels.cpu.scalar import exp


@summing
def _rms_row(x, weight, eps, out):
    total = 0.0
    for j in range(x.size):
        total += np.float64(x[j]) * np.float64(x[j])
    factor = np.float32(1.0 / math.sqrt(total / x.size + eps))
    for j in range(x.size):
        out[j] = x[j] * factor * weight[j]


@summing
def _layer_row(x, weight, bias, eps, out):
    total = 0.0
    for j in range(x.size):
        total += np.float64(x[j])
    mean = total / x.size
    spread = 0.0
    for j in range(x.size):
        spread += (np.float64(x[j]) - mean) ** 2
    factor = 1.0 / math.sqrt(spread / x.size + eps)
    for j in range(x.size):
        out[j] = np.float32((np.float64(x[j]) - mean) * factor) * weight[j] + bias[j]


@kernel
def norm_row(x, weight, bias, eps, out):
    if bias.size:
        _layer_row(x, weight, bias, eps, out)
    else:
        _rms_row(x, weight, eps, out)


@kernel
def norm(x, weight, bias, eps, out):
    """out [T, H] = RMSNorm (bias of size 0; Zhang & Sennrich 2019) or LayerNorm (Ba et al. 2016) of each row of x."""
    for t in range(x.shape[0]):
        norm_row(x[t], weight, bias, eps, out[t])


@kernel
def norm_head(row, at, size, weight, eps):
    """RMSNorm of the vector of one head, row[at : at + size], in place."""
    _rms_row(row[at : at + size], weight, eps, row[at : at + size])


@kernel
def norm_heads(qkv, heads, kv_heads, head_dim, q_weight, k_weight, eps):
    """RMSNorm of each query and key of qkv [T, W], in place; weights [head_dim]."""
    for t in range(qkv.shape[0]):
        for h in range(heads + kv_heads):
            norm_head(qkv[t], h * head_dim, head_dim, q_weight if h < heads else k_weight, eps)


@kernel
def rotate_head(row, at, cos_sin):
    """Rotary embedding of one head, at row[at], in place; cos_sin [dims]: cosines, then sines.

    Entry i of a head turns with entry i + dims/2 (Su et al. 2021, in GPT-NeoX's pairing).
    """
    half = cos_sin.size // 2
    for i in range(half):
        a, b = row[at + i], row[at + half + i]
        row[at + i] = a * cos_sin[i] - b * cos_sin[half + i]
        row[at + half + i] = b * cos_sin[i] + a * cos_sin[half + i]


@kernel
def rope(qkv, heads, head_dim, cos_sin):
    """Rotary embedding, in place, of the first `heads` heads of each row; cos_sin [T, dims]."""
    for t in range(qkv.shape[0]):
        for h in range(heads):
            rotate_head(qkv[t], h * head_dim, cos_sin[t])


SILU, GELU, GELU_TANH, RELU = 0, 1, 2, 3


@kernel
def _activate(kind, x, out):
    if kind == SILU:
        for j in range(x.size):
            out[j] = x[j] / (np.float32(1.0) + exp(min(-x[j], np.float32(88.0))))
    elif kind == GELU_TANH:  # 0.5·x·(1 + tanh u) = x / (1 + e^(−2u))
        for j in range(x.size):
            u = np.float32(1.5957691216057308) * (x[j] + np.float32(0.044715) * x[j] * x[j] * x[j])
            out[j] = x[j] / (np.float32(1.0) + exp(min(-u, np.float32(88.0))))
    elif kind == GELU:
        for j in range(x.size):
            out[j] = np.float32(0.5 * x[j] * (1.0 + math.erf(np.float64(x[j]) * 0.7071067811865476)))
    else:
        for j in range(x.size):
            out[j] = max(x[j], np.float32(0.0)) if x[j] == x[j] else x[j]


@kernel
def activate_row(kind, x, gated, out):
    """out [I] = f(x), or f(first half) · second half of a gated x [2·I]."""
    size = out.size
    _activate(kind, x[:size], out)
    if gated:
        for j in range(size):
            out[j] *= x[size + j]


@parallel_kernel
def activate(kind, x, gated, out):
    """out [T, I] = f(x [T, I]), or f(x[:, :I]) · x[:, I:] for a gated x [T, 2·I]."""
    for t in prange(x.shape[0]):
        activate_row(kind, x[t], gated, out[t])


@kernel
def lookup_float(ids, table, is_bfloat, out):
    """out [T, H] = rows of a float32 table, or of one kept as the bits of float16 or bfloat16 in uint16."""
    for t in range(ids.size):
        read_row(table[ids[t]], is_bfloat, out[t])

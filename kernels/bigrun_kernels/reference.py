"""The definition of each op: a few lines of plain torch that a reader can check against the paper.

Every kernel answers to these. They are written to be read, not to be fast; they run on any device.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

GROUP = 32


def quantise_rows(w: Tensor) -> tuple[Tensor, Tensor]:
    """Vector-wise absmax int8 (Dettmers et al. 2022, eq. 2, one scale a row): w [N, K] → int8 [N, K], float32 [N]."""
    scale = w.float().abs().amax(dim=1) / 127
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return torch.round(w.float() / scale[:, None]).to(torch.int8), scale


def quantise_groups(w: Tensor) -> tuple[Tensor, Tensor]:
    """Int8 with a float16 scale for each 32 entries: w [V, K], K % 32 == 0 → int8 [V, K], float16 [V, K/32].

    The scale is max/127 in float16, the next one up where an entry would exceed 127.49 of it.
    """
    groups = w.float().unflatten(1, (-1, GROUP))
    largest = groups.abs().amax(dim=2)
    scale = (largest / 127).half()
    scale = torch.where(scale.float() * 127.49 < largest, torch.nextafter(scale, torch.full_like(scale, 1e4)), scale)
    safe = torch.where(scale > 0, scale.float(), torch.ones_like(largest))
    return torch.round(groups / safe[..., None]).to(torch.int8).flatten(1), scale


def quantise_vectors(x: Tensor) -> tuple[Tensor, Tensor]:
    """Int8 keys or values: a float16 scale a vector, x [..., D] → int8 [..., D], float16 [...]; NaN where inf or NaN is."""
    largest = x.abs().amax(dim=-1)
    scale = (largest / 127).half()
    scale = torch.where(scale.float() * 127.49 < largest, torch.nextafter(scale, torch.full_like(scale, 1e4)), scale)
    good = largest < 8e6
    unit = torch.where(good & (scale > 0), scale.float(), torch.ones_like(largest))
    q = torch.where((good & (scale > 0))[..., None], torch.round(x / unit[..., None]), torch.zeros_like(x))
    return q.to(torch.int8), torch.where(good, scale, torch.full_like(scale, torch.nan))


def dequantise_table(q: Tensor, scale: Tensor) -> Tensor:
    """The inverse of quantise_groups: float32 [V, K]."""
    return (q.unflatten(1, (-1, GROUP)).float() * scale.float()[..., None]).flatten(1)


def linear(x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [M, K] · w [N, K] in float32, whatever w is kept in."""
    return functional.linear(x, w.float(), bias)


def quantise_planes(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x ≈ (h + l/254)·s: two int8 planes and a scale for each row, s = max|x|/127. A row with inf or NaN has s = NaN."""
    largest = x.abs().amax(dim=1)
    scale = torch.where(largest.isfinite(), largest / 127, torch.nan)
    value = x / torch.where(scale > 0, scale, torch.ones_like(scale))[:, None]
    value = torch.where(scale.isnan()[:, None], 0.0, value)
    high = torch.round(value)
    return high.to(torch.int8), torch.round((value - high) * 254).to(torch.int8), scale


def linear_exact(x: Tensor, q: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """Int8 weights, activations to about 16 bits: x [M, K], q int8 [N, K], scale [N] → float32 [M, N].

    The integer sums are exact (int64); scales and bias are applied in float64.
    """
    high, low, unit = quantise_planes(x)
    total = 254 * _integer_product(high, q) + _integer_product(low, q)
    return _epilogue(total.double() * (unit.double() / 254)[:, None], scale, bias)


def linear_llm_int8(x: Tensor, q: Tensor, scale: Tensor, bias: Tensor | None = None, threshold: float = 6.0) -> Tensor:
    """LLM.int8() (Dettmers et al. 2022, section 3.2), int8 weights kept: outlier columns, those with |x| ≥ threshold in
    some row of finite numbers, are multiplied in float; the rest as int8·int8, row scales over the rest alone.

    As in bitsandbytes, but an all-zero row is zero. The one op whose rows depend on each other: they share the columns.
    """
    finite = x.isfinite().all(dim=1, keepdim=True)
    clean = torch.where(finite, x, torch.zeros_like(x))
    outlier = (
        (clean.abs() >= threshold).any(dim=0)
        if threshold > 0
        else torch.zeros(x.shape[1], dtype=torch.bool, device=x.device)
    )
    rest = torch.where(outlier[None, :], torch.zeros_like(clean), clean)
    unit = rest.abs().amax(dim=1) / 127
    safe = torch.where(unit > 0, unit, torch.ones_like(unit))
    total = _integer_product(torch.round(rest / safe[:, None]).to(torch.int8), q).double() * safe.double()[:, None]
    total = total + clean[:, outlier].double() @ q[:, outlier].double().T
    return _epilogue(torch.where(finite, total, torch.nan), scale, bias)


def linear_grouped(
    x: Tensor, q: Tensor, scale: Tensor, bias: Tensor | None = None, threshold: float = 6.0, group: int = 64
) -> Tensor:
    """As `linear_llm_int8`, with a scale for each `group` columns of a row of x instead of one for all: three quarters of
    its loss are gone (docs/architecture.md). The products of a group are exact, their sum is float64 here."""
    finite = x.isfinite().all(dim=1, keepdim=True)
    clean = torch.where(finite, x, torch.zeros_like(x)).float()
    outlier = (clean.abs() >= threshold).any(dim=0) & (threshold > 0)
    rest = torch.where(outlier[None, :], torch.zeros_like(clean), clean)
    groups = functional.pad(rest, (0, -x.shape[1] % group)).unflatten(1, (-1, group))
    unit = groups.abs().amax(dim=2, keepdim=True) / 127
    unit = torch.where(unit > 0, unit, torch.ones_like(unit))
    known = (torch.round(groups / unit).double() * unit.double()).flatten(1)[:, : x.shape[1]]
    total = known @ q.double().T + clean[:, outlier].double() @ q[:, outlier].double().T
    return _epilogue(torch.where(finite, total, torch.nan), scale, bias)


def _integer_product(a: Tensor, b: Tensor) -> Tensor:
    """int8 [M, K] · int8 [N, K] → int64 [M, N]. In float64 this is exact up to K = 5·10¹¹, and fast."""
    return (a.double() @ b.double().T).long()


def _epilogue(total: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    result = total * scale.double()[None, :]
    return (result if bias is None else result + bias.double()).float()


def norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """RMSNorm (Zhang & Sennrich 2019) where bias is empty, else LayerNorm (Ba et al. 2016), over the last dimension."""
    if bias.numel():
        return functional.layer_norm(x, x.shape[-1:], weight, bias, eps)
    return functional.rms_norm(x, x.shape[-1:], weight, eps)


def norm_heads(x: Tensor, q_weight: Tensor, k_weight: Tensor, heads: int, eps: float) -> Tensor:
    """RMSNorm of each head's vector: x [T, heads + key heads, D], queries first (Qwen3, section 2; Henry et al. 2020)."""
    queries = functional.rms_norm(x[:, :heads], x.shape[-1:], q_weight, eps)
    return torch.cat([queries, functional.rms_norm(x[:, heads:], x.shape[-1:], k_weight, eps)], dim=1)


def rope(x: Tensor, cos_sin: Tensor) -> Tensor:
    """Rotary embedding (Su et al. 2021), GPT-NeoX pairing: x [T, heads, D], cos_sin [T, dims], cosines then sines."""
    half = cos_sin.shape[1] // 2
    cos, sin = cos_sin[:, None, :half], cos_sin[:, None, half:]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


def activate(kind: str, x: Tensor, gated: bool) -> Tensor:
    """f(x), or f(first half) · second half."""
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "silu": functional.silu,
        "gelu": functional.gelu,
        "gelu_tanh": lambda v: functional.gelu(v, approximate="tanh"),
        "relu": functional.relu,
    }
    function = functions[kind]
    if not gated:
        return function(x)
    gate, up = x.chunk(2, dim=-1)
    return function(gate) * up


def attention(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, position: int, slopes: Tensor, scale: float, window: int = 0
) -> Tensor:
    """One token over positions 0 … position: q [H·D], pages k, v [P, KVH, page, D], table [pages] → [H·D] float32; of a
    window only over the last `window` of them (Child et al. 2019; Jiang et al. 2023).

    score = q·k·scale + slope·(key position − position), the second term ALiBi's (Press et al. 2022).
    """
    _, kv_heads, page, dim = k.shape
    length = position + 1
    used = table[: -(-length // page)].long()
    seen = slice(max(length - window, 0) if window else 0, length)
    keys, values = (pages[used].float().transpose(0, 1).reshape(kv_heads, -1, dim)[:, seen] for pages in (k, v))
    heads = q.view(kv_heads, -1, dim)
    scores = heads @ keys.transpose(1, 2) * scale
    distance = torch.arange(seen.start, length, device=q.device) - position
    scores = scores + slopes.view(kv_heads, -1, 1) * distance
    return (scores.softmax(dim=-1) @ values).reshape(-1)


def attend(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, first: int, slopes: Tensor | None, scale: float, window: int = 0,
    softcap: float = 0.0, sinks: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Tokens of one sequence at positions first, first + 1, …, each over those up to its own: q [T, H, D], pages k, v
    [P, KVH, page, D], table [pages] → [T, H, D] float32.

    score = cap(q·k·scale) + slope·(key position − position), cap(s) = softcap·tanh(s/softcap) (Gemma 2); of a window only the
    last `window` positions are seen; `sinks` [H] are logits that take attention and give nothing (gpt-oss).
    """
    _, kv_heads, page, dim = k.shape
    count, heads, _ = q.shape
    length = first + count
    used = table[: -(-length // page)].long()
    keys, values = (pages[used].float().transpose(0, 1).reshape(kv_heads, -1, dim)[:, :length] for pages in (k, v))
    grouped = q.float().view(count, kv_heads, -1, dim)
    scores = torch.einsum("tkgd,kld->tkgl", grouped, keys).reshape(count, heads, length) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    distance = torch.arange(length, device=q.device) - torch.arange(first, length, device=q.device)[:, None]
    if slopes is not None:
        scores = scores + slopes[None, :, None] * distance[:, None, :]
    seen = distance <= 0 if not window else (distance <= 0) & (distance > -window)
    scores = scores.masked_fill(~seen[:, None, :], -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks[None, :, None].expand(count, heads, 1)], dim=-1)
    weights = scores.softmax(dim=-1)[..., :length].view(count, kv_heads, -1, length)
    return torch.einsum("tkgl,kld->tkgd", weights, values).reshape(count, heads, dim)

"""Both attention kernels against softmax attention in float64, run by Triton's interpreter.

What a token may not look at is NaN: pages of nobody, slots beyond a sequence's end, outputs and partial sums before the
call. Errors are measured against the sizes of what is added up: weights times |values|.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bigrun_kernels import reference
from bigrun_kernels.gpu.attention import SPAN, attention
from bigrun_kernels.gpu.attention_prompt import attention_prompt

NAN = float("nan")
PAGE = 64
CONTEXTS = [1, 63, 64, 65, 130, 300]
KINDS = {"float32": torch.float32, "float16": torch.float16, "int8": torch.int8}

pytestmark = pytest.mark.filterwarnings("ignore:invalid value", "ignore:All-NaN", "ignore:overflow", "ignore:divide")


@dataclass(frozen=True)
class Case:
    kind: str
    heads: int
    kv_heads: int
    dim: int
    alibi: bool = False
    window: int = 0
    softcap: float = 0.0
    sinks: bool = False
    dtype: torch.dtype = torch.float16

    def __str__(self) -> str:
        extras = [name for name in ("alibi", "window", "softcap", "sinks") if getattr(self, name)]
        return " ".join([f"{self.kind} {self.heads}/{self.kv_heads} D{self.dim}", *extras, str(self.dtype)[6:]])

    def extras(self) -> dict[str, Any]:
        heads = torch.arange(1, self.heads + 1)
        return {
            "slopes": 2.0 ** -heads.float() if self.alibi else None,
            "scale": self.dim**-0.5,
            "window": self.window,
            "softcap": self.softcap,
            "sinks": heads.float() / 2 - 1 if self.sinks else None,
        }


CASES = [
    Case("float16", 1, 1, 64),
    Case("int8", 8, 2, 16, alibi=True),
    Case("float32", 5, 1, 80, window=100, softcap=3.0),
    Case("float16", 8, 1, 16, window=70, sinks=True),
    Case("int8", 1, 1, 128, alibi=True, softcap=5.0, sinks=True, dtype=torch.float32),
    Case("float16", 2, 1, 20, window=1),
]
case_of = pytest.mark.parametrize("case", CASES, ids=str)


class Cache:
    """Sequences of given lengths in pages dealt in a shuffled order; one page of NaN is nobody's."""

    def __init__(self, case: Case, lengths: list[int], seed: int = 0, spread: float = 0.0) -> None:
        torch.manual_seed(seed)
        self.case, self.lengths = case, lengths
        per, padded, kind = -(-max(lengths) // PAGE) + 1, -(-case.dim // 8) * 8, KINDS[case.kind]
        count = sum(-(-n // PAGE) for n in lengths)
        numbers = iter((torch.randperm(count) + 1).tolist())
        self.tables = torch.zeros(len(lengths), per, dtype=torch.int32)  # page 0 is nobody's
        shape = (count + 1, case.kv_heads, PAGE, padded)
        fill = 77 if kind == torch.int8 else NAN
        self.pages = torch.full(shape, fill, dtype=kind), torch.full(shape, fill, dtype=kind)
        int8 = kind == torch.int8
        k_scale, v_scale = (torch.full(shape[:3], NAN).half() if int8 else None for _ in range(2))
        self.scales = k_scale, v_scale
        self.vectors: list[tuple[Tensor, Tensor]] = []  # of each sequence: keys and values as stored, float64
        for s, length in enumerate(lengths):
            for page in range(-(-length // PAGE)):
                self.tables[s, page] = next(numbers)
            vectors = torch.randn(2, length, case.kv_heads, case.dim)
            vectors[1] *= torch.exp(spread * torch.randn(length, 1, 1))
            self.vectors.append((self.store(0, s, 0, vectors[0]), self.store(1, s, 0, vectors[1])))

    def store(self, which: int, s: int, first: int, vectors: Tensor) -> Tensor:
        pages, scale, stored = self.pages[which], self.scales[which], torch.empty_like(vectors)
        for i, vector in enumerate(vectors):
            page, at = int(self.tables[s, (first + i) // PAGE]), (first + i) % PAGE
            pages[page, :, at] = 0
            if scale is not None:
                q, scale[page, :, at] = reference.quantise_vectors(vector)
                pages[page, :, at, : self.case.dim] = q
                stored[i] = q.float() * scale[page, :, at, None].float()
            else:
                pages[page, :, at, : self.case.dim] = vector.to(pages.dtype)
                stored[i] = pages[page, :, at, : self.case.dim].float()
        return stored.double()

    def queries(self, count: int) -> Tensor:
        case = self.case
        return torch.randn(count, (case.heads + 2 * case.kv_heads) * case.dim).to(case.dtype) * 2

    def decode(
        self, qkv: Tensor, sequences: list[int], positions: list[int], out: torch.dtype = torch.float32, spans: int = 4
    ) -> tuple[Tensor, Tensor]:
        case, padded = self.case, self.pages[0].shape[3]
        y = torch.full((len(qkv), case.heads * case.dim), NAN, dtype=out)
        partial = torch.full((len(qkv) + 1, case.heads, spans, padded + 2), NAN)
        where = torch.tensor(sequences), torch.tensor(positions)
        attention(
            qkv, case.heads, *self.pages, *self.scales, self.tables, *where, out=y, partial=partial, **case.extras()
        )
        return y, partial

    def prompt(self, qkv: Tensor, s: int, first: int, out: torch.dtype = torch.float32) -> Tensor:
        y = torch.full((len(qkv), self.case.heads * self.case.dim), NAN, dtype=out)
        attention_prompt(
            qkv, self.case.heads, *self.pages, *self.scales, self.tables[s], first, out=y, **self.case.extras()
        )
        return y

    def expected(self, row: Tensor, s: int, position: int) -> tuple[Tensor, Tensor]:
        """One token in float64, and the sizes of what its entries are sums of."""
        case, extras = self.case, self.case.extras()
        heads, group = case.heads, case.heads // case.kv_heads
        q = row[: heads * case.dim].double().view(heads, case.dim)
        first = max(0, position - case.window + 1) if case.window else 0
        keys, values = (
            part[first : position + 1].repeat_interleave(group, dim=1).transpose(0, 1) for part in self.vectors[s]
        )
        scores = (keys @ q[:, :, None])[:, :, 0] * extras["scale"]
        if case.softcap:
            scores = case.softcap * torch.tanh(scores / case.softcap)
        if case.alibi:
            scores = scores + extras["slopes"].double()[:, None] * (torch.arange(first, position + 1) - position)
        if case.sinks:
            scores = torch.cat([scores, extras["sinks"].double()[:, None]], dim=1)
        weights = scores.softmax(dim=1)[:, None, : keys.shape[1]]
        return (weights @ values).reshape(-1), (weights @ values.abs()).reshape(-1)

    def assert_near(self, y: Tensor, row: Tensor, s: int, position: int) -> None:
        exact, size = self.expected(row, s, position)
        # a weight is rounded to float16 once, unless products are float32's: 2⁻¹¹ of it, or 2⁻²⁵ of the largest
        full = torch.float32 in (self.case.dtype, KINDS[self.case.kind])
        bound = (1e-5 if full else 2**-11 + 1e-4) * size + 1e-6 * self.vectors[s][1].abs().max() / (1 + 9 * full)
        if y.dtype == torch.float16:
            bound = bound + 2**-11 * exact.abs()
        worst = ((y.double() - exact).abs() / bound).max().item()
        assert worst <= 1, f"position {position}: {worst:.3g} times the bound"  # a NaN fails too


# ------------------------------------------------------------------------------------------------------------- decode


@case_of
def test_tokens_of_many_sequences_are_decoded_together(case: Case) -> None:
    """Contexts around the edges of pages and spans, and a row of padding, which is zeros."""
    cache = Cache(case, [130, 300, 65])
    sequences, positions = [1, 0, 2, 2, 0, 1, 1], [n - 1 for n in CONTEXTS]
    positions.insert(3, -1)
    qkv = cache.queries(len(positions))
    y, partial = cache.decode(qkv, sequences, positions, torch.float16 if case.window else torch.float32)
    for t, (s, position) in enumerate(zip(sequences, positions, strict=True)):
        if position < 0:
            assert not y[t].any()
        else:
            cache.assert_near(y[t], qkv[t], s, position)
        first = max(0, position - case.window + 1) // SPAN if case.window else 0
        written = [not partial[t, :, span, -2:].isnan().any() for span in range(partial.shape[2])]
        assert written == [position >= 0 and first <= span <= position // SPAN for span in range(partial.shape[2])]


@pytest.mark.parametrize("case", CASES[3:5], ids=str)
def test_a_token_gets_the_same_bits_in_any_company(case: Case) -> None:
    cache = Cache(case, [30, 200])
    qkv = cache.queries(3)
    together, _ = cache.decode(qkv, [0, 1, 0], [29, 140, 3])
    alone, _ = cache.decode(qkv[1:2].contiguous(), [1], [140], spans=2)
    assert torch.equal(together[1:2], alone)


# ------------------------------------------------------------------------------------------------------------- prompts


@case_of
def test_a_prompt_is_answered_alike_in_any_chunks(case: Case) -> None:
    cache = Cache(replace(case, heads=min(case.heads, 2 * case.kv_heads)), [40, 300])
    qkv = cache.queries(300)
    early, late = ((150, 300), (231, 300)) if case.window > 1 else ((231, 300), (260, 300))
    chunks = {early: torch.float32, late: torch.float16}
    chunks |= {} if case.window > 1 else {(0, 66): torch.float16}
    y = {(a, b): cache.prompt(qkv[a:b], 1, a, out) for (a, b), out in chunks.items()}
    for a, b in chunks:
        for t in {a, a + 1, b - 1, *(n - 1 for n in CONTEXTS), 191, 192, 213, 214, 255, 256} & set(range(a, b)):
            cache.assert_near(y[a, b][t - a], qkv[t], 1, t)
    assert torch.allclose(y[late].float(), y[early][late[0] - early[0] :], rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_value_that_is_not_finite_reaches_no_earlier_token(kind: str) -> None:
    """It has weight zero there, but zero times NaN is NaN. In int8 the scale of such a vector is NaN."""
    cache = Cache(Case(kind, 1, 1, 16, window=20), [110])
    qkv = cache.queries(60)
    cache.store(1, 0, 70, torch.full((1, 1, 16), NAN))
    y = cache.prompt(qkv, 0, 50)
    for t in (0, 19, 40, 59):
        cache.assert_near(y[t], qkv[t], 0, 50 + t)
    ill = y.isnan()
    assert ill[20:40].all()
    assert ill.sum() == ill[20:40].numel()


# --------------------------------------------------------------------------------------------------------------- both


@pytest.mark.parametrize("case", [CASES[0], CASES[4]], ids=str)
def test_nan_in_a_query_stays_in_its_row(case: Case) -> None:
    cache = Cache(case, [140])
    qkv = cache.queries(3)
    qkv[1, :: case.dim] = NAN
    for y in (cache.decode(qkv, [0, 0, 0], [5, 139, 70])[0], cache.prompt(qkv, 0, 120)):
        ill = y.isnan()
        assert ill[1].all()
        assert ill.sum() == ill[1].numel()


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_constants_of_int8_values_may_differ_a_thousandfold(size: float) -> None:
    """Weights times scales would be subnormal float16 numbers at 1e-4, and above its range at 1e4 and more."""
    case = Case("int8", 2, 2, 16)
    cache = Cache(case, [70], spread=2.0)
    keys, values = cache.vectors[0]
    cache.vectors[0] = keys, cache.store(1, 0, 0, values.float() * size)
    qkv = cache.queries(1)
    for y in (cache.decode(qkv, [0], [69])[0], cache.prompt(qkv, 0, 69)):
        cache.assert_near(y[0], qkv[0], 0, 69)


def test_scores_beyond_the_softcap_do_not_overflow() -> None:
    cache = Cache(Case("float16", 1, 1, 16, softcap=2.0), [10])
    qkv = cache.queries(1) * 500
    for y in (cache.decode(qkv, [0], [9])[0], cache.prompt(qkv, 0, 9)):
        cache.assert_near(y[0], qkv[0], 0, 9)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"k": torch.zeros(2, 3, 64, 16).half()}, r"k is .* a divisor of 2"),
        ({"v": torch.zeros(2, 1, 64, 16)}, "v is torch.float32; both"),
        ({"k_scale": torch.zeros(2, 1, 64).half()}, "int8 pages, and no others"),
        ({"slopes": torch.zeros(3)}, r"slopes is \[3\]"),
        ({"out": torch.zeros(1, 33)}, "out must be"),
        ({"qkv": torch.zeros(1, 32, dtype=torch.bfloat16)}, "qkv is .*bfloat16"),
        ({"window": -1}, "neither can be below zero"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(wrong: dict[str, Any], message: str) -> None:
    pages = torch.zeros(2, 1, 64, 16).half()
    right: dict[str, Any] = {"qkv": torch.zeros(1, 32), "heads": 2, "k": pages, "v": pages, "k_scale": None}
    right |= {"v_scale": None, "slopes": None, "scale": 1.0, "out": torch.zeros(1, 32)} | wrong
    with pytest.raises(ValueError, match=message):
        attention_prompt(table=torch.zeros(1, dtype=torch.int32), first=0, **right)
    where = torch.zeros(1, dtype=torch.int64)
    table, partial = torch.zeros(1, 1, dtype=torch.int32), torch.zeros(1, 2, 1, 18)
    with pytest.raises(ValueError, match=message):
        attention(tables=table, sequences=where, positions=where, partial=partial, **right)


def test_places_that_do_not_fit_are_told() -> None:
    cache = Cache(CASES[0], [10])
    with pytest.raises(ValueError, match="2 tokens from position 127 on do not fit the 2 pages"):
        cache.prompt(cache.queries(2), 0, 127)
    with pytest.raises(ValueError, match="sequences is"):
        cache.decode(cache.queries(2), [0], [1, 2])

"""The cost model: what each part of a step is made of, and the seconds that a device takes for it.

A step of some tokens through a part reads its weights once, multiplies, attends to keys and values, and passes entries
through norms and quantisers; `Rates` says how fast a device does each of these (rates.py), and `seconds` puts them
together. Everything here is arithmetic on the spec: no clock, no device.

Mixtures of experts: T tokens that choose k of E experts evenly touch E·(1 − (1 − k/E)^T) of them, and read only those.
"""

import math
from dataclasses import dataclass

from bigrun.devices.rates import Rates
from bigrun.model.program import Program, lower, lower_experts
from bigrun.model.spec import Block, ModelSpec
from bigrun.planning.ledger import Ledger

LAUNCH = 10e-6  # seconds of a copy between host memory and a GPU, beside its bytes
LOCAL = 2e-6  # the same between memories of the host


@dataclass(frozen=True)
class Work:
    """What one step of one part is made of: bytes of weights and of keys and values that are read, multiply-adds of
    linears (`wide`: not with int8 weights) and of attention, entries that pass elementwise operations."""

    weights: float = 0.0
    cache: float = 0.0
    products: float = 0.0
    attention: float = 0.0
    elements: float = 0.0
    wide: bool = False


def seconds(work: Work, rates: Rates) -> float:
    """Seconds of a step of a part that is resident where it is computed."""
    linear = rates.together(work.weights / rates.read, work.products / (rates.wide if work.wide else rates.int8))
    attention = rates.together(work.cache / rates.cache, work.attention / rates.attention)
    return linear + attention + work.elements / rates.elements + (rates.block if work.products else 0.0)


def streamed_seconds(work: Work, nbytes: float, rates: Rates, link: float) -> float:
    """The same where `nbytes` of weights, keys and values are copied over a link meanwhile, slot by slot."""
    return max(nbytes / link, seconds(work, rates)) + LAUNCH


@dataclass(frozen=True)
class Phase:
    """Steps of one kind: `steps` of `rows` tokens each, which see `seen` tokens on average (all sequences' in decode, one's
    in prefill); logits of `logits` rows a step."""

    name: str
    steps: int
    rows: float
    seen: float
    logits: int


def decode_phase(batch: int, context: int) -> Phase:
    """A step of every sequence at the end of its context."""
    return Phase("decode", 1, batch, context, batch)


def prefill_phase(prompt: int, chunk: int) -> Phase:
    """A prompt in chunks: a token sees half of it on average."""
    steps = -(-prompt // chunk)
    return Phase("prefill", steps, prompt / steps, (prompt + 1) / 2, 1)


@dataclass(frozen=True)
class Costs:
    """The work of a model's parts in one phase."""

    ledger: Ledger
    phase: Phase

    @property
    def spec(self) -> ModelSpec:
        return self.ledger.spec

    def work(self, part: str) -> Work:
        """One step of a whole part. A block's experts are a part of their own."""
        block = self.spec.block_of(part)
        nbytes = self.ledger.weights("embed" if part == "head" and self.spec.tied else part)
        wide = self.ledger.wide(part)
        if block is None:
            return self._end(part, nbytes, wide)
        program = lower_experts(block) if part.endswith(".experts") else lower(block)
        return self._program(part, block, program, nbytes, wide)

    def _end(self, part: str, nbytes: int, wide: bool) -> Work:
        if part == "head":
            rows = min(self.phase.logits, self.phase.rows)
            return Work(nbytes, 0.0, rows * self.spec.vocab * self.spec.hidden, 0.0, rows * self.spec.hidden, wide)
        if part == "embed":  # a row a token: free wherever it is
            return Work()
        return Work(elements=min(self.phase.logits, self.phase.rows) * self.spec.hidden)

    def _program(self, part: str, block: Block, program: Program, nbytes: float, wide: bool) -> Work:
        """The steps of a part, added up: products and entries a token, attention a token of what it sees."""
        rows, attention, cache = self.phase.rows, 0.0, 0.0
        for step in program.steps:
            if step.op == "attend":
                window = step.attribute.get("window", 0)
                seen = min(self.phase.seen, window) if window else self.phase.seen
                attention += rows * seen * step.scores
                cache += self.ledger.kv(part) / max(1, self.ledger.kept_tokens(block)) * seen
            if step.op == "experts":  # tokens that choose evenly touch so many of all
                nbytes = nbytes * (1.0 - (1.0 - step.attribute["active"] / step.attribute["count"]) ** rows)
        return Work(
            weights=nbytes,
            cache=cache if self.phase.name == "decode" else cache / self.ledger.options.batch,
            products=rows * sum(step.products for step in program.steps),
            attention=attention,
            elements=rows * sum(step.entries for step in program.steps),
            wide=wide,
        )

    def hop(self, link: float) -> float:
        """Seconds that the residual stream of a step takes between host memory and a GPU behind this link. From one GPU
        to another it takes both ways: few consumer cards reach each other directly."""
        launch = LOCAL if math.isinf(link) else LAUNCH
        return launch + self.phase.rows * self.spec.hidden * 4 / link

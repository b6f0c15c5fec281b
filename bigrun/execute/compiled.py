"""Executes runs of equal blocks on one device by one compiled call (bigrun_kernels/cpu/blocks.py).

The steps of the blocks' programs become rows of a table of addresses and numbers; this object keeps the arrays alive.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bigrun.execute.block_weights import BlockWeights
from bigrun.execute.forward import BlockCache, StepArrays
from bigrun.model.buffers import PAGE_TOKENS, SPAN_TOKENS
from bigrun.model.program import Program, Step, X, lower, rewrite, unsupported
from bigrun.model.spec import Block
from bigrun_kernels.cpu.ops import CpuOps
from bigrun_kernels.ops import ACTIVATIONS

FEW = 16  # tokens: a step of more goes block by block, so that Ctrl-C need not wait for all of them
NO_COS_SIN = np.empty((0, 0), np.float32)


def compilable(block: Block, weights: BlockWeights) -> bool:
    """Whether the compiled call takes a block: all its steps, and every linear in int8. Others go op by op."""
    program = rewrite(lower(block), "compiled")
    linears = [weights[step.weights[0]] for step in program.steps if step.op == "linear"]
    return not unsupported(program, "compiled") and all(weight.form == "int8" for weight in linears)


class CompiledBlocks:
    """Consecutive blocks of one program, rewritten for the compiled call, with their caches and the step's buffers."""

    def __init__(
        self, ops: CpuOps, program: Program, weights: Sequence[BlockWeights], caches: Sequence[BlockCache],
        work: Mapping[str, Any],
    ):  # fmt: skip
        from bigrun_kernels.cpu import blocks, team
        from bigrun_kernels.cpu.planes import FORMS

        self._kernel, self._launch, self._work = blocks, team.launch, work
        self._program = program
        self._held = list(weights), list(caches)  # whose arrays the rows point to
        self._likes = np.empty(0, FORMS[ops.form]), np.empty(0, caches[0].k.values.dtype)
        self.counters = np.zeros(len(weights) * len(self._program.steps) * blocks.SLOTS, np.int64)
        self._numbers: list[float] = []
        buffers = {name for name, _ in program.widths} - {"cos_sin"}
        names = [*blocks.HEADER, X, *sorted(buffers)]
        self._where = {name: i for i, name in enumerate(names)}
        rows = [self._row(step, w, cache) for w, cache in zip(weights, caches, strict=True) for step in program.steps]
        self._tables = [self._laid(rows)]
        if len(weights) > 1:
            each = len(program.steps)
            self._tables += [self._laid(rows[first : first + each]) for first in range(0, len(rows), each)]
        self._numbers_held = np.array(self._numbers)
        held = {
            **work, "numbers": self._numbers_held, "counters": self.counters, "partial_size": work["partial"].size,
            "planes_size": work["planes"].size // self._likes[0].itemsize, "first_row": len(names),
        }  # fmt: skip
        for table in self._tables:
            table[: len(names)] = [_number(held[name] if name in buffers else held.get(name, 0)) for name in names]

    def _row(self, step: Step, w: BlockWeights, cache: BlockCache) -> list[Any]:
        """A row: the address of its op, a place for what follows, its arguments (blocks.py says which)."""
        address = self._kernel.op_address(step.op, self._likes[0].dtype, self._likes[1].dtype)
        row = [address, 0, *ARGUMENTS[step.op](self, step, w, cache)]
        assert len(row) <= self._kernel.WIDTH, f"a row of {step.op} is longer than WIDTH in blocks.py"
        return row

    def place(self, buffer: str) -> int:
        """Where the table has the address of a buffer."""
        return self._where[buffer]

    def width(self, buffer: str) -> int:
        """Entries a token of a buffer that the program writes."""
        return dict(self._program.widths)[buffer]

    def number(self, value: float) -> int:
        """The number of a float in the table of numbers."""
        if value not in self._numbers:
            self._numbers.append(value)
        return self._numbers.index(value)

    def _laid(self, rows: Sequence[list[Any]]) -> np.ndarray:
        """A table with room for the header, and these rows; each says what the threads that wait at its end may fetch: the
        weights of the next linear, unless attention, which reads pages, comes before it."""
        kernel, first = self._kernel, len(self._where)
        table = np.zeros(first + len(rows) * kernel.WIDTH, np.int64)
        steps = self._program.steps
        following = 0
        for i in reversed(range(len(rows))):
            start, op = first + i * kernel.WIDTH, steps[i % len(steps)].op
            table[start : start + len(rows[i])] = [_number(value) for value in rows[i]]
            table[start + kernel.FOLLOWING] = following
            following = start + kernel.VALUES if op == "linear" else 0 if op == "attend" else following
        return table

    def run(self, x: np.ndarray, step: StepArrays) -> None:
        """x [T, hidden] ← the blocks' output."""
        import numba

        count, kernel = len(x), self._kernel
        if not count:
            return
        cos_sin, (slots, page_tables) = (
            NO_COS_SIN if step.cos_sin is None else step.cos_sin,
            step.places(self._held[1][0]),
        )
        split = count <= len(self._work["partial"])
        entries = {
            "tokens": count, "team": numba.get_num_threads(), "rope_dims": cos_sin.shape[1],
            "spans": int(step.positions.max()) // SPAN_TOKENS + 1 if split else 0,
            "batch": page_tables.shape[0], "per_sequence": page_tables.shape[1], "x": x, "cos_sin": cos_sin,
            "positions": step.positions, "sequences": step.sequences, "slots": slots, "tables": page_tables,
        }  # fmt: skip
        numbers = {self._where[name]: _number(value) for name, value in entries.items()}
        for table in self._tables[:1] if count <= FEW or len(self._tables) == 1 else self._tables[1:]:
            for place, number in numbers.items():
                table[place] = number
            table[0] = rows = (len(table) - len(self._where)) // kernel.WIDTH
            self.counters[: rows * kernel.SLOTS] = 0
            self._launch(kernel.participate, table, *self._likes)


def _norm_quantise(run: CompiledBlocks, s: Step, w: BlockWeights, cache: BlockCache) -> list[Any]:
    norm = w[s.weights[0]]
    sizes = [run.place(s.reads[0]), run.place(s.writes), s.width]
    return [*sizes, norm.weight, norm.bias, norm.bias.size, run.number(s.attribute["eps"])]


def _norm_heads(run: CompiledBlocks, s: Step, w: BlockWeights, cache: BlockCache) -> list[Any]:
    sizes = [s.attribute[name] for name in ("heads", "kv_heads", "head_dim")]
    weights = [w[name].weight for name in s.weights]
    return [run.place("qkv"), run.width("qkv"), *sizes, *weights, run.number(s.attribute["eps"])]


def _quantise(run: CompiledBlocks, s: Step, w: BlockWeights, cache: BlockCache) -> list[Any]:
    return [run.place(s.reads[0]), s.width]


def _linear(run: CompiledBlocks, s: Step, w: BlockWeights, cache: BlockCache) -> list[Any]:
    weight = w[s.weights[0]]
    sizes = [run.place(s.reads[0]), s.columns, run.place(s.writes), s.width]
    return [*sizes, weight.values, weight.scale, weight.bias, weight.bias.size, s.adds]


def _pages(run: CompiledBlocks, s: Step, cache: BlockCache) -> list[Any]:
    k, v = cache.k, cache.v
    sizes = [s.attribute[name] for name in ("heads", "kv_heads", "head_dim")]
    pages = [k.values, v.values, k.scale, v.scale, k.values.size, k.scale.size]
    return [run.place("qkv"), run.width("qkv"), *sizes, k.values.shape[3], PAGE_TOKENS, *pages]


def _rope_store(run: CompiledBlocks, s: Step, w: BlockWeights, cache: BlockCache) -> list[Any]:
    return [*_pages(run, s, cache), "cos_sin" in s.reads]


def _attend(run: CompiledBlocks, s: Step, w: BlockWeights, cache: BlockCache) -> list[Any]:
    out = [run.place(s.writes), s.width]
    return [*_pages(run, s, cache), cache.slopes, run.number(s.attribute["scale"]), *out, s.attribute.get("window", 0)]


def _merge_quantise(run: CompiledBlocks, s: Step, w: BlockWeights, cache: BlockCache) -> list[Any]:
    window = s.attribute.get("window", 0)
    return [run.place(s.writes), s.width, s.attribute["heads"], cache.k.values.shape[3], PAGE_TOKENS, window]


def _activate_quantise(run: CompiledBlocks, s: Step, w: BlockWeights, cache: BlockCache) -> list[Any]:
    read, kind = s.reads[0], ACTIVATIONS[s.attribute["kind"]]
    return [run.place(read), run.width(read), run.place(s.writes), s.width, kind, s.attribute["gated"]]


# The arguments of a row, by its op: what the kernel of blocks.ROWS reads.
ARGUMENTS: dict[str, Callable[[CompiledBlocks, Step, BlockWeights, BlockCache], list[Any]]] = {
    "norm": _norm_quantise, "quantise": _quantise, "norm_heads": _norm_heads,
    "norm_quantise": _norm_quantise, "linear": _linear, "rope_store": _rope_store, "attend": _attend,
    "merge_quantise": _merge_quantise, "activate_quantise": _activate_quantise,
}  # fmt: skip


def _number(value: Any) -> int:
    """An array's address, or a number."""
    return int(value.__array_interface__["data"][0] if isinstance(value, np.ndarray) else value)

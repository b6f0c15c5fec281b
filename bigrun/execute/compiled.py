"""Executes runs of equal blocks on one device by one compiled call (bigrun_kernels/cpu/blocks.py).

The steps of the blocks' programs become rows of a table of addresses and numbers; this object keeps the arrays alive.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bigrun.execute.block_weights import BlockWeights
from bigrun.execute.forward import BlockCache, StepArrays
from bigrun.execute.supported import unsupported
from bigrun.model.buffers import PAGE_TOKENS, SPAN_TOKENS
from bigrun.model.program import Program, X, lower, rewrite
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
    """Consecutive blocks of one description, with their caches and the step's buffers of their device."""

    def __init__(
        self, ops: CpuOps, block: Block, weights: Sequence[BlockWeights], caches: Sequence[BlockCache],
        work: Mapping[str, Any],
    ):  # fmt: skip
        from bigrun_kernels.cpu import blocks, team
        from bigrun_kernels.cpu.planes import FORMS

        self._kernel, self._launch, self._work = blocks, team.launch, work
        self._program = rewrite(lower(block), "compiled")
        self._held = list(weights), list(caches)  # whose arrays the rows point to
        self._likes = np.empty(0, FORMS[ops.form]), np.empty(0, caches[0].k.values.dtype)
        self.counters = np.zeros(len(weights) * len(self._program.steps) * blocks.SLOTS, np.int64)
        self._numbers: list[float] = []
        names = [*blocks.HEADER, X, *(name for name, _ in self._program.widths if name != "cos_sin")]
        self._where = {name: i for i, name in enumerate(names)}
        parts = zip(weights, caches, strict=True)
        rows = [row for w, cache in parts for row in self._rows(block, self._program, w, cache)]
        self._rows_of_block = len(self._program.steps)
        self._tables = [self._laid(rows)]
        if len(weights) > 1:
            each = range(0, len(rows), self._rows_of_block)
            self._tables += [self._laid(rows[first : first + self._rows_of_block]) for first in each]
        self._numbers_held = np.array(self._numbers)
        held = {
            **work, "numbers": self._numbers_held, "counters": self.counters, "partial_size": work["partial"].size,
            "planes_size": work["planes"].size // self._likes[0].itemsize, "first_row": len(names),
        }  # fmt: skip
        for table in self._tables:
            table[: len(names)] = [_number(held.get(name, 0)) for name in names]

    def _rows(self, block: Block, program: Program, w: BlockWeights, cache: BlockCache) -> Iterator[list[Any]]:
        """A row for each step: its op, a place for what follows, its arguments (blocks.py says which)."""
        widths, where = {**dict(program.widths), X: block.hidden}, self._where
        k, v = cache.k, cache.v
        pages = [k.values, v.values, k.scale, v.scale, k.values.size, k.scale.size]
        for step in program.steps:
            reads = next((name for name in step.reads if name != "cos_sin"), X)
            head: list[Any] = [self._kernel.op_address(step.op, self._likes[0].dtype, self._likes[1].dtype), 0]
            attribute = step.attribute
            if step.op == "norm_quantise":
                norm = w[step.weights[0]]
                head += [where[reads], where[step.writes], step.width, norm.weight, norm.bias, norm.bias.size]
                yield [*head, self._numbered(attribute["eps"])]
            elif step.op == "linear":
                weight = w[step.weights[0]]
                head += [where[reads], step.columns, where[step.writes], step.width, weight.values, weight.scale]
                yield [*head, weight.bias, weight.bias.size, step.adds]
            elif step.op in ("rope_store", "attend"):
                sizes = [attribute[name] for name in ("heads", "kv_heads", "head_dim")]
                head += [where[reads], widths[reads], *sizes, k.values.shape[3], PAGE_TOKENS, *pages]
                if step.op == "attend":
                    head += [cache.slopes, self._numbered(attribute["scale"]), where[step.writes], step.width]
                yield head
            elif step.op == "merge_quantise":
                yield [*head, where[reads], step.width, attribute["heads"], k.values.shape[3], PAGE_TOKENS]
            else:
                kind = ACTIVATIONS[attribute["kind"]]
                yield [*head, where[reads], widths[reads], where[step.writes], step.width, kind, attribute["gated"]]

    def _numbered(self, value: float) -> int:
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
        cos_sin = NO_COS_SIN if step.cos_sin is None else step.cos_sin
        split = count <= len(self._work["partial"])
        entries = {
            "tokens": count, "team": numba.get_num_threads(), "rope_dims": cos_sin.shape[1],
            "spans": int(step.positions.max()) // SPAN_TOKENS + 1 if split else 0,
            "batch": step.page_tables.shape[0], "per_sequence": step.page_tables.shape[1], "x": x, "cos_sin": cos_sin,
            "positions": step.positions, "sequences": step.sequences, "slots": step.slots, "tables": step.page_tables,
        }  # fmt: skip
        numbers = {self._where[name]: _number(value) for name, value in entries.items()}
        for table in self._tables[:1] if count <= FEW or len(self._tables) == 1 else self._tables[1:]:
            for place, number in numbers.items():
                table[place] = number
            table[0] = rows = (len(table) - len(self._where)) // kernel.WIDTH
            self.counters[: rows * kernel.SLOTS] = 0
            self._launch(kernel.participate, table, *self._likes)


def _number(value: Any) -> int:
    """An array's address, or a number."""
    return int(value.__array_interface__["data"][0] if isinstance(value, np.ndarray) else value)

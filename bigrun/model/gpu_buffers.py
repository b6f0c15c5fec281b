"""Buffers of a step on a GPU, as pure arithmetic: what the ledger counts and what the GPU's engine allocates.

Everything is taken once, so that a captured graph finds every address where it was and allocates nothing itself.
"""

from collections.abc import Sequence

from bigrun.model.buffers import LOGIT_ROWS, Buffer, pages_per_sequence, partial, passed, rings, widest_input
from bigrun.model.layout import ALIGNMENT, K_MULTIPLE, round_up
from bigrun.model.program import Program, programs
from bigrun.model.spec import ModelSpec
from bigrun.model.storage import Storage
from bigrun_kernels.gpu.tables import SIDE, SMALL_ROWS, SPLIT_ENTRIES

GROUP_LEAST = 32  # columns that share an activation's scale, at least
LIBRARY_BYTES = (
    64 * 2**20
)  # what torch's matrix library takes for itself on two streams, where weights are not all int8
AHEAD = 8  # tokens that are on their way to the host


def activation_dtype(weights: str) -> str:
    """16 bits between linears of int8 weights; 32 where nothing is to be rounded."""
    return "float16" if weights == "int8" else "float32"


def gpu_step_buffers(
    spec: ModelSpec, storage: Storage, rows: int, batch: int, context: int, blocks: bool, head: bool
) -> tuple[Buffer, ...]:
    """Buffers of one GPU for steps of at most `rows` tokens. `blocks`, `head`: what is computed there.

    The residual stream `x` is float32, what passes between linears float16 (float32 where weights are not int8).
    `library` is not one of ours: the matrix library's own memory.
    """
    active = activation_dtype(storage.weights)
    buffers = [Buffer("x", "float32", (rows, spec.hidden))]
    buffers += [Buffer(name, "int64", (rows,)) for name in ("ids", "positions", "sequences", "slots")]
    buffers += [Buffer("tables", "int32", (batch, pages_per_sequence(context)))]
    for ring in rings(spec.blocks, context) if blocks else ():
        buffers.append(Buffer(f"slots.{ring}", "int64", (rows,)))
        buffers.append(Buffer(f"tables.{ring}", "int32", (batch, pages_per_sequence(context))))
    parts = programs(spec, "gpu") if blocks else []
    kinds = {"cos_sin": "float32"}
    buffers += [Buffer(name, kinds.get(name, active), (rows, width)) for name, width in passed(parts).items()]
    widest, longest = widest_input(spec, parts), longest_output(spec, parts) if blocks else 1
    if blocks:
        buffers.append(partial(parts, batch, context))
        if storage.weights == "int8":
            buffers += _int8_buffers(rows, round_up(widest, K_MULTIPLE), longest, batch, active)
    if blocks or head:
        buffers.append(Buffer("normed", active, (rows if blocks else max(batch, LOGIT_ROWS), spec.hidden)))
    if head:
        held = max(batch, LOGIT_ROWS)
        buffers += [
            Buffer("head_input", "float32", (held, spec.hidden)),
            Buffer("logits", "float32", (held, spec.vocab)),
            Buffer("chosen", "int64", (AHEAD, 3)),
        ]
    if _wide(storage):  # inputs and products of 16- and 32-bit weights, in the weights' own type
        held = rows if blocks else max(batch, LOGIT_ROWS)
        most = max(held * longest, max(batch, LOGIT_ROWS) * spec.vocab if head else 0)
        buffers += [
            Buffer("cast", "float32", (held * widest,)),
            Buffer("product", "float32", (most,)),
            Buffer("library", "int8", (LIBRARY_BYTES,)),
        ]
    return tuple(buffers)


def longest_output(spec: ModelSpec, parts: Sequence[Program]) -> int:
    """Entries of the longest output of a linear in these programs."""
    widths = [spec.hidden]
    for program in parts:
        held = dict(program.widths)
        for step in program.steps:
            if step.columns:  # of a linear, or of the linears of experts
                widths += [held["up"]] if step.op == "experts" else [held.get(step.writes, spec.hidden)]
    return max(widths)


def _int8_buffers(rows: int, widest: int, longest: int, batch: int, active: str) -> list[Buffer]:
    """What int8 linears need beside their input: it quantised, its outliers, and sums that are split."""
    return [
        Buffer("quantised", "int8", (rows, widest)),
        Buffer("scales", "float32", (rows, widest // GROUP_LEAST)),
        Buffer("marks", "int32", (widest,)),
        Buffer("columns", "int32", (widest,)),
        Buffer("count", "int32", (1,)),
        Buffer("x_side", active, (rows, SIDE)),
        Buffer("w_side", "int8", (longest, SIDE)),
        Buffer("split", "float32", (min(batch, SMALL_ROWS), SPLIT_ENTRIES)),
    ]


def library_bytes(storage: Storage) -> int:
    """Workspace bytes that torch allocates itself."""
    return round_up(LIBRARY_BYTES, ALIGNMENT) if _wide(storage) else 0


def _wide(storage: Storage) -> bool:
    return storage.weights != "int8" or storage.head != "int8" or bool(storage.skip)

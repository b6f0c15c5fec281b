"""The memory of a run beside its weights, as pure arithmetic: the KV cache's pages and the buffers of a step.

The planner counts what these functions say, and the executor allocates what they say.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

from bigrun.model.layout import ALIGNMENT, ITEM_BYTES, K_MULTIPLE, round_up
from bigrun.model.program import NORMED, Program, buffer_widths, programs
from bigrun.model.spec import Block, ModelSpec

PAGE_TOKENS = 64  # one page of the KV cache: small enough to waste little, long enough to stream
SPAN_TOKENS = 2 * PAGE_TOKENS  # decode attention shares out a context in spans of these
PANEL_TOKENS = 4  # quantised activations come in panels of four tokens
LOGIT_ROWS = 16  # rows of logits held at once; more are produced in pieces
VECTOR = 8  # keys and values are padded to whole vectors
LONGEST_CHUNK = 512  # tokens of one sequence in a step: a window keeps as many beside its own (kept_pages)


@dataclass(frozen=True)
class Buffer:
    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return round_up(prod(self.shape) * ITEM_BYTES[self.dtype], ALIGNMENT)


def pages_per_sequence(context: int) -> int:
    return -(-context // PAGE_TOKENS)


def kept_pages(block: Block, context: int) -> int:
    """Pages that a sequence has in one block: those of the context; of a window, a ring for the window and one step.

    A ring of R tokens holds position p at p mod R. A step writes its n ≤ LONGEST_CHUNK tokens of a sequence, at positions p …
    p + n − 1, before they read, and they see no key before p − window + 1. That is window + n − 1 positions in a row, fewer
    than R: each has a place of its own, so that nothing is overwritten which is still to be read.
    """
    return pages_per_sequence(min(context, block.window + LONGEST_CHUNK) if block.window else context)


def ring_pages(block: Block, context: int) -> int:
    """Pages of a sequence's ring in a block; 0 where its pages hold the whole context."""
    kept = kept_pages(block, context)
    return kept if kept < pages_per_sequence(context) else 0


def rings(blocks: Iterable[Block], context: int) -> tuple[int, ...]:
    """The sizes of the rings in some blocks, in pages."""
    return tuple(sorted({ring_pages(block, context) for block in blocks} - {0}))


def kv_buffers(block: Block, context: int, batch: int, dtype: str) -> tuple[Buffer, ...]:
    """Keys and values of one block: [pages, kv_heads, PAGE_TOKENS, head_dim to a multiple of 8], a scale a vector if int8.

    A window's block keeps the window and one step's tokens; latent attention one vector a token and its rotated key.
    """
    pages = batch * kept_pages(block, context)
    heads, widths = block.kv_heads, {"k": block.head_dim, "v": block.head_dim}
    if block.latent:
        heads, widths = 1, {"latent": block.latent.kv_rank, "k": block.latent.rope}
    shape = (pages, heads, PAGE_TOKENS)
    buffers = [Buffer(name, dtype, (*shape, round_up(width, VECTOR))) for name, width in widths.items()]
    if dtype == "int8":
        buffers += [Buffer(f"{name}.scale", "float16", shape) for name in widths]
    return tuple(buffers)


def total(buffers: tuple[Buffer, ...]) -> int:
    return sum(buffer.nbytes for buffer in buffers)


def spans(context: int) -> int:
    """Spans of a sequence: what attention splits the context into."""
    return -(-context // SPAN_TOKENS)


def step_buffers(spec: ModelSpec, rows: int, batch: int, context: int, blocks: bool, head: bool) -> tuple[Buffer, ...]:
    """Buffers of one device for steps of at most `rows` tokens. `blocks`, `head`: what is computed there.

    Activations are float32 [rows, ...]; `planes` holds a linear's quantised input (two int8 planes, or one int16 array
    in the same bytes) and `mask` its outlier columns. Every computing device has `x`, the residual stream.
    """
    buffers = [Buffer("x", "float32", (rows, spec.hidden))]
    parts = programs(spec, "host") if blocks else []
    buffers += [Buffer(name, "float32", (rows, width)) for name, width in passed(parts).items()]
    if blocks:
        buffers.append(partial(parts, batch, context))
    if blocks or head:
        held = rows if blocks else max(batch, LOGIT_ROWS)
        widest = round_up(widest_input(spec, parts), K_MULTIPLE)
        buffers += [
            Buffer("normed", "float32", (held, spec.hidden)),
            Buffer("planes", "int8", (held if held == 1 else round_up(held, PANEL_TOKENS), 2 * widest)),
            Buffer("row_scale", "float64", (held,)),
            Buffer("row_sum", "int32", (held, 2)),
            Buffer("mask", "int8", (widest,)),
        ]
    if head:
        buffers.append(Buffer("logits", "float32", (max(batch, LOGIT_ROWS), spec.vocab)))
    return tuple(buffers)


def passed(parts: Sequence[Program]) -> dict[str, int]:
    """Entries a token of the buffers that programs pass through, but for `normed`, which the head needs as well."""
    return {name: width for name, width in buffer_widths(parts).items() if name != NORMED}


def widest_input(spec: ModelSpec, parts: Sequence[Program]) -> int:
    """Entries of the widest input of a linear: of these programs, and of the head."""
    return max([spec.hidden, *(step.columns for program in parts for step in program.steps)])


def partial(parts: Sequence[Program], batch: int, context: int) -> Buffer:
    """One output of each head and span, with its maximum and sum of weights, for as many tokens as decode together."""
    attends = [step.attribute for program in parts for step in program.steps if step.op == "attend"]
    heads = max(each["heads"] for each in attends)
    value = max(round_up(each["value"], VECTOR) for each in attends)
    return Buffer("partial", "float32", (batch, heads, spans(context), value + 2))

"""The memory of a run beside its weights, as pure arithmetic: the KV cache's pages and the buffers of a step.

The planner counts what these functions say, and the executor allocates what they say.
"""

from dataclasses import dataclass
from math import prod

from bigrun.model.layout import ALIGNMENT, ITEM_BYTES, K_MULTIPLE, round_up
from bigrun.model.spec import Block, ModelSpec

PAGE_TOKENS = 64  # one page of the KV cache: small enough to waste little, long enough to stream
SPAN_TOKENS = 2 * PAGE_TOKENS  # decode attention shares out a context in spans of these
PANEL_TOKENS = 4  # quantised activations come in panels of four tokens
LOGIT_ROWS = 16  # rows of logits held at once; more are produced in pieces
VECTOR = 8  # keys and values are padded to whole vectors
KV_FORMATS = ("16bit", "int8")


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


def kv_dtype(kv: str, weights: str) -> str:
    """float16 pages by default; float32 where the weights are, so that the checking path rounds nowhere."""
    return "int8" if kv == "int8" else "float32" if weights == "float32" else "float16"


def kv_buffers(block: Block, context: int, batch: int, dtype: str) -> tuple[Buffer, ...]:
    """Keys and values of one block: [pages, kv_heads, PAGE_TOKENS, head_dim to a multiple of 8], a scale a vector if int8."""
    pages = batch * pages_per_sequence(context)
    shape = (pages, block.kv_heads, PAGE_TOKENS, round_up(block.head_dim, VECTOR))
    buffers = [Buffer("k", dtype, shape), Buffer("v", dtype, shape)]
    if dtype == "int8":
        buffers += [Buffer("k.scale", "float16", shape[:3]), Buffer("v.scale", "float16", shape[:3])]
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
    widths = [spec.hidden]
    if blocks:
        block = max(spec.blocks, key=lambda b: (b.intermediate, b.qkv_rows))
        up = block.intermediate * (2 if block.gated else 1)
        widths += [block.q_rows, block.intermediate]
        buffers += [
            Buffer("qkv", "float32", (rows, block.qkv_rows)),
            Buffer("attention", "float32", (rows, block.q_rows)),
            Buffer("up", "float32", (rows, up)),
            # one output of each head and span, with its maximum and sum of weights, for as many tokens as decode together
            Buffer("partial", "float32", (batch, block.heads, spans(context), round_up(block.head_dim, VECTOR) + 2)),
        ]
        if block.gated:
            buffers.append(Buffer("gated", "float32", (rows, block.intermediate)))
        if block.rope:
            buffers.append(Buffer("rotation", "float32", (rows, block.rope.dims)))
    if blocks or head:
        held = rows if blocks else max(batch, LOGIT_ROWS)
        widest = round_up(max(widths), K_MULTIPLE)
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

"""Says what the engines cannot execute of a model's description, so that it is refused by name, never ignored.

A block is what its program says (model/program.py); `bigrun_kernels.ops.EXECUTES` has the ops of each target and the attributes
that they know. A step with any other op or attribute is refused. Fields of a model outside its blocks that are not listed here
must keep their default.
"""

from dataclasses import MISSING, fields, replace
from typing import Any

from bigrun.model.families.registry import BY_NAME
from bigrun.model.program import lower, lower_experts, rewrite, unsupported
from bigrun.model.spec import Block, ModelSpec

# Fields of a model whose every value the engines execute.
EXECUTED_OF_A_MODEL = frozenset((
    "name", "family", "vocab", "hidden", "blocks", "context_limit", "tied", "checkpoint_dtype", "embed_norm", "embed_scale",
    "position_rows", "checkpoint_bytes", "checkpoint_form", "head_bias",
))  # fmt: skip


def why_not_executable(spec: ModelSpec) -> str:
    """The first thing in a model that the engines do not execute, in words; "" if they execute all of it. Whoever loads a
    model asks this first."""
    if refusal := BY_NAME[spec.family].refusal:
        return refusal
    for name, value in _beyond_defaults(spec, EXECUTED_OF_A_MODEL):
        return f"{name} = {value!r:.60} can be planned but not run yet"
    first = next((block for block in spec.blocks if block.rope is not None), spec.blocks[0])
    for i, block in enumerate(spec.blocks):
        if why := _why_not_block(block):
            return f"blocks with {why} can be planned but not run yet"
        if differs := _difference(
            block if block.rope is not None else replace(block, rope=first.rope, positions=first.positions), first
        ):  # the engines share one rotation, one epsilon, one set of buffers; a block may go without the rotation
            return f"block {i} differs from block 0 in {differs}, and such models can be planned but not run yet"
    return ""


def _why_not_block(block: Block) -> str:
    for target in ("host", "gpu"):
        for program in (lower(block), lower_experts(block)):
            if why := unsupported(rewrite(program, target), target):
                return why
    return ""


def _difference(block: Block, first: Block) -> str:
    """The first field beside the window in which two blocks differ, with both values; "" for equal ones."""
    for field in fields(block):
        value, usual = getattr(block, field.name), getattr(first, field.name)
        if field.name != "window" and value != usual:
            return f"{field.name} ({value!r:.60} and {usual!r:.60})"
    return ""


def _beyond_defaults(described: Any, executed: frozenset[str]) -> list[tuple[str, Any]]:
    """(field, value) of what is not executed and not at its default."""
    return [
        (field.name, getattr(described, field.name))
        for field in fields(described)
        if field.name not in executed and (field.default is MISSING or getattr(described, field.name) != field.default)
    ]

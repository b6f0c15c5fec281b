"""The ledger: what a part, its keys and values, and the steps of a device take, in bytes. Pure arithmetic."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from bigrun.model.buffers import PAGE_TOKENS, kv_buffers, step_buffers, total
from bigrun.model.gpu_buffers import gpu_step_buffers
from bigrun.model.layout import ALIGNMENT, Layout, layout, round_up
from bigrun.model.spec import Block, ModelSpec
from bigrun.planning.options import PlanOptions


@dataclass(frozen=True)
class Ledger:
    """The bytes of one model under given options."""

    spec: ModelSpec
    options: PlanOptions

    @cached_property
    def layouts(self) -> dict[str, Layout]:
        """Equal blocks share one computation: a model has few kinds of block and many blocks."""
        cache: dict[tuple[Any, ...], Layout] = {}
        result = {}
        skip = self.options.storage.skip
        for part in self.spec.parts:
            key = (part.tensors, part.name if skip or not part.name.startswith("blocks.") else "")
            if key not in cache:
                cache[key] = layout(part, self.options.storage, self.spec.checkpoint_dtype)
            result[part.name] = replace(cache[key], part=part.name)
        return result

    @cached_property
    def kinds(self) -> dict[str, int]:
        """Part → a number that parts share where everything about them is equal but their place."""
        numbers: dict[tuple[Any, ...], int] = {}
        result = {}
        for part in self.spec.parts:
            layout = self.layouts[part.name]
            block = self.spec.block_of(part.name)
            ends = part.name if block is None else part.name.endswith(".experts")
            key = (block, ends, layout.nbytes, layout.stored_as)
            result[part.name] = numbers.setdefault(key, len(numbers))
        return result

    def weights(self, part: str) -> int:
        return self.layouts[part].nbytes

    def slice_bytes(self, part: str, experts: int) -> int:
        """Some of the experts of a part: each array's share, at its own boundary."""
        count = self.spec.expert_count(part)
        return sum(round_up(-(-a.nbytes * experts // count), ALIGNMENT) for a in self.layouts[part].arrays)

    def wide(self, part: str) -> bool:
        """Whether a part's linears are kept in 16 or 32 bits."""
        stored = self.layouts["embed" if part == "head" and self.spec.tied else part].stored_as
        return stored != "int8"

    @cached_property
    def _kv(self) -> dict[Block, int]:
        context, batch, dtype = self.options.context, self.options.batch, self.options.storage.kv_dtype
        return {block: total(kv_buffers(block, context, batch, dtype)) for block in set(self.spec.blocks)}

    def kv(self, part: str) -> int:
        """Keys and values of a block for the whole context of every sequence, in whole pages; 0 for other parts."""
        block = self.spec.block_of(part)
        return 0 if block is None or part.endswith(".experts") else self._kv[block]

    def kept_tokens(self, block: Block) -> int:
        """Tokens that a sequence's pages of one block have room for."""
        pages = kv_buffers(block, self.options.context, 1, self.options.storage.kv_dtype)[0].shape[0]
        return pages * PAGE_TOKENS

    def workspace(self, chunk: int, blocks: bool, head: bool, gpu: bool = False) -> int:
        """Buffers of the largest step on a device that computes blocks, the head, both, or only the embedding; of a `gpu`,
        which is computed with GPU kernels, if it is a real one."""
        key = (chunk, blocks, head, gpu)
        if key not in self._workspaces:
            batch, context = self.options.batch, self.options.context
            rows = max(chunk, batch)
            if gpu:
                buffers = gpu_step_buffers(self.spec, self.options.storage, rows, batch, context, blocks, head)
            else:
                buffers = step_buffers(self.spec, rows, batch, context, blocks, head)
            self._workspaces[key] = total(buffers)
        return self._workspaces[key]

    @cached_property
    def _workspaces(self) -> dict[tuple[int, bool, bool, bool], int]:
        return {}

"""The ledger: what a part, its keys and values, and the steps of a device take, in bytes. Pure arithmetic."""

from dataclasses import dataclass, replace
from functools import cached_property

from bigrun.model.layout import Layout, layout
from bigrun.model.memory import kv_buffers, kv_dtype, step_buffers, total
from bigrun.model.spec import ModelSpec
from bigrun.planning.plan import Options


@dataclass(frozen=True)
class Ledger:
    """The bytes of one model under given options."""

    spec: ModelSpec
    options: Options

    @cached_property
    def layouts(self) -> dict[str, Layout]:
        """Equal blocks share one computation: a model has few kinds of block and many blocks."""
        cache: dict[tuple, Layout] = {}
        result = {}
        skip = self.options.storage.skip
        for part in self.spec.parts:
            key = (part.tensors, part.name if skip or not part.name.startswith("blocks.") else "")
            if key not in cache:
                cache[key] = layout(part, self.options.storage)
            result[part.name] = replace(cache[key], part=part.name)
        return result

    def weights(self, part: str) -> int:
        return self.layouts[part].nbytes

    @cached_property
    def _kv(self) -> dict:
        dtype = kv_dtype(self.options.kv, self.options.storage.weights)
        context, batch = self.options.context, self.options.batch
        return {block: total(kv_buffers(block, context, batch, dtype)) for block in set(self.spec.blocks)}

    def kv(self, part: str) -> int:
        """Keys and values of a block for the whole context of every sequence, in whole pages; 0 for other parts."""
        kind, _, number = part.partition(".")
        return self._kv[self.spec.blocks[int(number)]] if kind == "blocks" else 0

    def workspace(self, chunk: int, blocks: bool, head: bool) -> int:
        """Buffers of the largest step on a device that computes blocks, the head, both, or only the embedding."""
        batch, context = self.options.batch, self.options.context
        return total(step_buffers(self.spec, max(chunk, batch), batch, context, blocks, head))

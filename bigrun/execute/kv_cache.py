"""The KV cache's bookkeeping: which pages each sequence has. The pages themselves lie with their blocks."""

import numpy as np

from bigrun.errors import RunError
from bigrun.model.buffers import PAGE_TOKENS, pages_per_sequence


class PageTables:
    """Pages of `batch` sequences of at most `context` tokens. A sequence takes pages as it grows; truncated, it returns them.

    tables int32 [batch, pages of a sequence]: the page that holds each run of PAGE_TOKENS positions.
    """

    def __init__(self, context: int, batch: int):
        self.context = context
        per_sequence = pages_per_sequence(context)
        self.tables = np.zeros((batch, per_sequence), np.int32)
        self.lengths = np.zeros(batch, np.int64)
        self._owned = np.zeros(batch, np.int64)
        self._free = list(range(batch * per_sequence - 1, -1, -1))

    def extend(self, sequence: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(positions, slots) int64 [count] of the next tokens; RunError where they do not fit the context."""
        start, end = int(self.lengths[sequence]), int(self.lengths[sequence]) + count
        if end > self.context:
            raise RunError(
                f"{end} tokens do not fit the context of {self.context}: shorten the prompt or give a larger --context"
            )
        while self._owned[sequence] * PAGE_TOKENS < end:
            self.tables[sequence, self._owned[sequence]] = self._free.pop()
            self._owned[sequence] += 1
        self.lengths[sequence] = end
        positions = np.arange(start, end)
        slots = self.tables[sequence, positions // PAGE_TOKENS].astype(np.int64) * PAGE_TOKENS + positions % PAGE_TOKENS
        return positions, slots

    def truncate(self, sequence: int, length: int) -> None:
        """Forget a sequence's tokens from `length` on; pages that are then without one are free for others."""
        self.lengths[sequence] = min(int(self.lengths[sequence]), length)
        needed = -(-length // PAGE_TOKENS)
        self._owned[sequence] = min(int(self._owned[sequence]), needed)
        if len(self._free) + self._owned.sum() != self.tables.size:
            # made anew, so that an interrupt in the middle of anything here neither loses a page nor gives it twice
            taken = {page for row, count in zip(self.tables, self._owned, strict=True) for page in row[:count].tolist()}
            self._free = [page for page in reversed(range(self.tables.size)) if page not in taken]

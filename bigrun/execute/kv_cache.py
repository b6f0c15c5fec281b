"""The KV cache's bookkeeping: which pages each sequence has. The pages themselves lie with their blocks.

Where a block keeps a window alone, each sequence has a ring of pages there, always the same ones, and position p lies at
p mod (the ring's tokens): model/buffers.py: kept_pages says why nothing is overwritten that is still to be read.
"""

from collections.abc import Iterable

import numpy as np

from bigrun.errors import RunError
from bigrun.model.buffers import PAGE_TOKENS, pages_per_sequence, ring_pages
from bigrun.model.spec import Block


class PageTables:
    """Pages of `batch` sequences of at most `context` tokens. A sequence takes pages as it grows; truncated, it returns them.

    tables int32 [batch, pages of a sequence]: the page that holds each run of PAGE_TOKENS positions, in blocks that keep the
    whole context; `blocks` are asked for rings.
    """

    def __init__(self, context: int, batch: int, blocks: Iterable[Block] = ()):
        self.context = context
        self._windows = {(block.window, ring * PAGE_TOKENS) for block in blocks if (ring := ring_pages(block, context))}
        self._written = np.zeros(batch, np.int64)  # up to where, since the sequence was empty
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
        self._written[sequence] = max(self._written[sequence], end)
        positions = np.arange(start, end)
        slots = self.tables[sequence, positions // PAGE_TOKENS].astype(np.int64) * PAGE_TOKENS + positions % PAGE_TOKENS
        return positions, slots

    def keeps(self, sequence: int, length: int) -> bool:
        """Whether a sequence that is truncated to `length` still has all that its next token looks back at: no ring has gone
        round over it since."""
        written = int(self._written[sequence])
        return all(max(length - window + 1, 0) + ring >= written for window, ring in self._windows)

    def truncate(self, sequence: int, length: int) -> None:
        """Forget a sequence's tokens from `length` on; pages that are then without one are free for others."""
        self.lengths[sequence] = min(int(self.lengths[sequence]), length)
        if length == 0:
            self._written[sequence] = 0
        needed = -(-length // PAGE_TOKENS)
        self._owned[sequence] = min(int(self._owned[sequence]), needed)
        if len(self._free) + self._owned.sum() != self.tables.size:
            # made anew, so that an interrupt in the middle of anything here neither loses a page nor gives it twice
            taken = {page for row, count in zip(self.tables, self._owned, strict=True) for page in row[:count].tolist()}
            self._free = [page for page in reversed(range(self.tables.size)) if page not in taken]


def ring_tables(ring: int, batch: int, pages: int) -> np.ndarray:
    """int32 [batch, pages of a sequence's context]: the page of a ring of so many pages that holds each of them in its turn."""
    return (np.arange(batch)[:, None] * ring + np.arange(pages) % ring).astype(np.int32)


def ring_slots(ring: int, positions: np.ndarray, sequences: np.ndarray) -> np.ndarray:
    """int64 [T]: the places of tokens in rings of so many pages."""
    places: np.ndarray = sequences * (ring * PAGE_TOKENS) + positions % (ring * PAGE_TOKENS)
    return places

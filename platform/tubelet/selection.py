"""Rows of a manifest that a run has chosen, small enough to travel with every decoding task.

Ten million row numbers are 80 MB; that a row is chosen or not is one bit, 1.25 MB for ten million rows. Counts of the
chosen rows before each block lead to the i-th chosen row: a search among the blocks, then one block unpacked.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

_BLOCK = 4096  # rows; unpacking one takes a few microseconds


@dataclass(frozen=True)
class Selection:
    """Chosen rows in ascending order; indexed like an array of them."""

    bits: NDArray[np.uint8]
    """One bit a row, in whole blocks."""
    before: NDArray[np.int64]
    """Chosen rows before each block, and in all."""

    @classmethod
    def of(cls, rows: NDArray[np.int64], *, total: int) -> Self:
        """The rows (ascending) out of ``range(total)``."""
        blocks = -(-total // _BLOCK)
        chosen = np.zeros(blocks * _BLOCK, bool)
        chosen[rows] = True
        counts = chosen.reshape(blocks, _BLOCK).sum(axis=1)
        return cls(np.packbits(chosen), np.concatenate([[0], np.cumsum(counts)]))

    def __len__(self) -> int:
        return int(self.before[-1])

    def __getitem__(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which rows lie at these places of the choice."""
        blocks = np.searchsorted(self.before, index, side="right") - 1
        return np.array(
            [
                block * _BLOCK + self._chosen_in(block)[place]
                for block, place in zip(blocks, index - self.before[blocks], strict=True)
            ],
            np.int64,
        )

    def _chosen_in(self, block: int) -> NDArray[np.intp]:
        bytes_ = _BLOCK // 8
        return np.flatnonzero(np.unpackbits(self.bits[block * bytes_ : (block + 1) * bytes_]))


def compact(rows: NDArray[np.int64], *, total: int) -> Selection | NDArray[np.int64]:
    """The smaller form (about) of ascending rows out of ``range(total)``."""
    assert (np.diff(rows) > 0).all(), "rows are chosen in ascending order"
    return rows if rows.nbytes <= max(total // 8, _BLOCK) else Selection.of(rows, total=total)

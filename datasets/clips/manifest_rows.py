"""Where a manifest's rows are: in memory while one is made, in its file when one is read.

Whoever chooses rows looks at one column at a time and needs it only once. So ten million rows that
were read are never in memory together; each look goes through the file's column again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

PORTION = 1 << 16
"""Rows that are worked on at a time."""


class Rows(Protocol):
    """The rows of a manifest, in its order."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def column(self, name: str) -> Iterator[pa.Array]:
        """Yield the pieces of one column."""
        ...

    def portions(self, names: Sequence[str]) -> Iterator[pa.Table]:
        """Yield all rows, so many at a time that memory does not matter, in some columns."""
        ...

    def table(self) -> pa.Table:
        """Return all rows and columns in memory."""
        ...


@dataclass(frozen=True)
class TableRows:
    """Rows in memory."""

    content: pa.Table

    def __len__(self) -> int:
        return self.content.num_rows

    def column(self, name: str) -> Iterator[pa.Array]:
        """Yield the pieces of one column."""
        yield from self.content[name].chunks

    def portions(self, names: Sequence[str]) -> Iterator[pa.Table]:
        """Yield all rows in some columns, in portions."""
        for batch in self.content.select(names).to_batches(max_chunksize=PORTION):
            yield pa.Table.from_batches([batch])

    def table(self) -> pa.Table:
        """Return all rows and columns."""
        return self.content

"""A manifest's Parquet file, read column by column and row group by row group.

Ten million rows cost a reader a portion's memory, not their own: neither the program that chooses
rows nor a node that makes its copy of the columns for look-up holds them all.
"""

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from clips import storage
from clips.manifest import SCHEMA_VERSION, Manifest, conformed, description
from clips.manifest_hash import rows_hash
from clips.manifest_rows import PORTION


def read_manifest(uri: str) -> Manifest:
    """Read a manifest.

    Raises:
        ValueError: Nothing there, not a manifest, a newer format, or content that its own hash
            denies.
    """
    file = ManifestFile(uri)
    file.check()
    return Manifest(file.root, file, file.classes, file.hash, uri)


class NotAManifest(ValueError):
    """A file that is something else."""


class NewerManifest(ValueError):
    """A manifest that a later version has written."""


class ManifestFile:
    """A manifest's file, opened: what it says of itself, and its rows (`manifest_rows.Rows`).

    A remote file is fetched whole, compressed as it is.
    """

    def __init__(self, uri: str) -> None:
        """Open the file at `uri`; `read_manifest` says what may be wrong with it."""
        self._name = storage.redact(uri)
        if storage.is_local(uri):
            storage.read_range(uri, start=0, length=1)  # says in one line what is wrong with it
            source = pa.OSFile(storage.local_path(uri))
        else:
            source = pa.BufferReader(storage.read_bytes(uri))
        try:
            self._parquet = pq.ParquetFile(source)
        except (pa.ArrowInvalid, OSError) as error:
            raise self._not_a_manifest() from error
        about = description(self._parquet.schema_arrow.metadata)
        if about is None:
            raise self._not_a_manifest()
        if about["schema_version"] > SCHEMA_VERSION:
            raise NewerManifest(
                f"{self._name} is a manifest of format {about['schema_version']}; this version reads up "
                f"to {SCHEMA_VERSION}. Update tubelet, or write it again with jobs/prepare.py"
            )
        self.root: str = about["root"]
        self.hash: str = about["hash"]
        self.classes: tuple[str, ...] = tuple(about["classes"])

    def __len__(self) -> int:
        return self._parquet.metadata.num_rows

    def table(self) -> pa.Table:
        """Return all rows, in as many pieces as the file has row groups."""
        groups = range(self._parquet.num_row_groups)
        return pa.concat_tables([conformed(self._parquet.read_row_group(g)) for g in groups])

    def portions(self, names: Sequence[str]) -> Iterator[pa.Table]:
        """Yield the rows in order, so many at a time that memory does not matter, in some columns."""
        present = [name for name in names if name in self._parquet.schema_arrow.names]
        for batch in self._parquet.iter_batches(PORTION, columns=present or ["video_id"]):
            yield conformed(pa.Table.from_batches([batch])).select(names)

    def column(self, name: str) -> Iterator[pa.Array]:
        """Yield the pieces of one column."""
        for table in self.portions([name]):
            yield from table[name].chunks

    def check(self) -> None:
        """Compare the rows with the hash that was written with them.

        Raises:
            ValueError: They are not the rows that were written.
        """
        try:
            whole = rows_hash(self.column) == self.hash
        except (pa.ArrowInvalid, OSError):
            whole = False
        if not whole:
            raise ValueError(
                f"{self._name} was changed after it was written: its rows no longer have its hash. "
                "Write it again with jobs/prepare.py"
            )

    def _not_a_manifest(self) -> ValueError:
        return NotAManifest(
            f"{self._name} is not a manifest; make one with: "
            f"python jobs/prepare.py SOURCE manifest={self._name}"
        )

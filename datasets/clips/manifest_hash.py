"""The hash of a manifest's rows, from columns that come piece by piece.

It covers what a row *is* (video_id, size), means (label, labels, boxes, split), and spans (start_s,
end_s): for each of these columns its name, the null flags of all rows, the lengths of all rows (of
texts), and the bytes of all rows (little endian; lists as JSON). Rows must come in the manifest's
order; into how many pieces they are cut makes no difference. Since lengths of all rows come before
the bytes of the first, a column is asked for up to three times: ten million rows never lie in memory
at once, and nothing is written aside.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from clips.manifest_rows import PORTION

HASHED = ("video_id", "size", "label", "labels", "split", "start_s", "end_s", "boxes")
"""The columns that the hash covers, in its order."""

Column = Callable[[str], Iterable[pa.Array]]
"""Gives the pieces of a named column, of the type that the manifest's schema says, from the first row
on at every call."""


def rows_hash(column: Column) -> str:
    """Return the hash (SHA-256, hex) of sorted rows.

    Args:
        column: called up to three times for each of `HASHED`.
    """
    digest = hashlib.sha256(b"tubelet manifest v1")
    for name in HASHED:
        digest.update(name.encode() + b"\0")
        valid = 0
        kind = pa.null()
        for piece in portions(column(name)):
            digest.update(piece.is_valid().to_numpy(zero_copy_only=False).astype(np.uint8).data)
            valid += len(piece) - piece.null_count
            kind = piece.type
        if pa.types.is_integer(kind):
            _add(digest, (_numbers(piece, "<i8") for piece in portions(column(name))))
        elif pa.types.is_floating(kind):
            _add(
                digest, (_numbers(piece.fill_null(0.0), "<f8") for piece in portions(column(name)))
            )
        elif valid:
            _add(digest, (np.diff(_bounds(t)).astype("<i8") for t in _texts(column(name))))
            _add(digest, map(_bytes, _texts(column(name))))
    return digest.hexdigest()


def table_hash(table: pa.Table) -> str:
    """Return the hash of a sorted table."""
    return rows_hash(lambda name: table[name].chunks)


def _add(digest: "hashlib._Hash", parts: Iterable[Any]) -> None:
    for part in parts:
        digest.update(memoryview(part))


def _numbers(piece: pa.Array, kind: str) -> np.ndarray:
    return np.ascontiguousarray(piece.to_numpy(zero_copy_only=False).astype(kind, copy=False))


def portions(pieces: Iterable[pa.Array]) -> Iterator[pa.Array]:
    """Cut pieces of a column so that a portion may pass as Python objects."""
    for piece in pieces:
        for start in range(0, len(piece), PORTION):
            yield piece.slice(start, PORTION)


def _texts(pieces: Iterable[pa.Array]) -> Iterator[pa.Array]:
    """Texts without nulls; lists become JSON."""
    for piece in portions(pieces):
        if pa.types.is_string(piece.type):
            yield piece.fill_null("")
        else:
            yield pa.array([_json(value) for value in piece.to_pylist()], pa.string())


def _json(value: object) -> str:
    return "" if value is None else json.dumps(value, sort_keys=True, separators=(",", ":"))


def _bounds(texts: pa.Array) -> np.ndarray:
    """Where each text begins in the buffer, and the last one ends; a slice has its part of them."""
    offsets = np.frombuffer(texts.buffers()[1] or bytes(4), np.int32)
    return offsets[texts.offset : texts.offset + len(texts) + 1]


def _bytes(texts: pa.Array) -> memoryview:
    """The texts one after another."""
    bounds = _bounds(texts)
    return memoryview(texts.buffers()[2] or b"")[bounds[0] : bounds[-1]]

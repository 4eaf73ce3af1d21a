"""The hash of rows that come in pieces is the one that whole tables always had."""

import hashlib
import itertools
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clips.manifest import SCHEMA
from clips.manifest_hash import HASHED, rows_hash, table_hash

TEXT = st.text(st.characters(codec="utf-8"), max_size=9)
BOX = st.fixed_dictionaries(
    {"time_s": st.floats(0, 100)}
    | {side: st.floats(0, 1, width=32) for side in ("x1", "y1", "x2", "y2")}
    | {"labels": st.lists(TEXT, max_size=2)}
)
ROW = st.fixed_dictionaries(
    {"video_id": TEXT, "size": st.integers(0, 2**60)},
    optional={
        "label": st.none() | TEXT,
        "labels": st.none() | st.lists(TEXT, max_size=3),
        "split": st.none() | TEXT,
        "start_s": st.none() | st.floats(0, 1e9),
        "end_s": st.none() | st.floats(0, 1e9),
        "boxes": st.none() | st.lists(BOX, max_size=2),
    },
)


def by_definition(table: pa.Table) -> str:
    """The hash as its description says it, all rows of a column at once."""
    digest = hashlib.sha256(b"tubelet manifest v1")
    for name in HASHED:
        values: list[Any] = table[name].to_pylist()
        digest.update(name.encode() + b"\0" + bytes(v is not None for v in values))
        if pa.types.is_integer(table[name].type):
            digest.update(np.array(values, "<i8").tobytes())
        elif pa.types.is_floating(table[name].type):
            digest.update(np.array([v or 0.0 for v in values], "<f8").tobytes())
        elif any(v is not None for v in values):
            texts = [
                ("" if v is None else v if isinstance(v, str) else compact(v)).encode()
                for v in values
            ]
            digest.update(np.array([len(t) for t in texts], "<i8").tobytes() + b"".join(texts))
    return digest.hexdigest()


def compact(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


@given(st.lists(ROW, min_size=1, max_size=12), st.lists(st.integers(0, 12), max_size=4))
def test_pieces_of_any_size_have_the_hash_of_the_whole(
    rows: list[dict[str, Any]], cuts: list[int]
) -> None:
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    bounds = sorted({0, len(rows), *(min(c, len(rows)) for c in cuts)})
    pieces = [table.slice(a, b - a) for a, b in itertools.pairwise(bounds)]
    assert table_hash(pa.concat_tables(pieces)) == by_definition(table)
    copied = [piece.combine_chunks() for piece in pieces]
    assert rows_hash(lambda name: (p[name].chunk(0) for p in copied if len(p))) == table_hash(table)


def test_lists_that_exceed_a_portion_are_hashed_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"video_id": f"{i}", "size": i, "labels": [f"{i}", "x"]} for i in range(25)]
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    monkeypatch.setattr("clips.manifest_hash.PORTION", 10)
    assert table_hash(table) == by_definition(table)

import gc
import os
import random
import tempfile
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from clips import sorting
from clips.sorting import SortedRows

SCHEMA = pa.schema([("video_id", pa.string()), ("start_s", pa.float64()), ("n", pa.int64())])
NAMES = st.text(st.characters(codec="utf-8"), max_size=3)
ROWS = st.lists(st.tuples(NAMES, st.none() | st.floats(0, 4)), max_size=40)


def in_order(rows: list[tuple[str, float | None]]) -> list[tuple[str, float | None, int]]:
    numbered = [(*row, n) for n, row in enumerate(rows)]
    return sorted(numbered, key=lambda r: (r[0].encode(), -1.0 if r[1] is None else r[1]))


@example([("", None)] * 3 + [("0", None), ("", None)], 2, 1)  # equal rows in several blocks
@given(ROWS, st.integers(1, 9), st.integers(1, 5))
def test_rows_come_back_sorted_by_bytes_and_start_however_they_are_cut(
    rows: list[tuple[str, float | None]], run: int, block: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorting, "BLOCK_ROWS", block)
        patch.setattr(sorting, "_CHUNK_ROWS", 1 + run // 2)
        kept = SortedRows(SCHEMA, run_rows=run)
        for number, row in enumerate(rows):
            kept.append((*row, number))
        assert len(kept) == len(rows)
        for _ in range(2):
            assert list(kept.rows()) == in_order(rows)
        if rows:
            assert kept.ends() == (in_order(rows)[0][0], in_order(rows)[-1][0])


def test_tables_may_be_added_and_a_schema_without_start_sorts_by_name() -> None:
    kept = SortedRows(pa.schema([("video_id", pa.string())]), run_rows=2)
    for names in (["c", "a"], ["b"], [], ["a", "d"]):
        kept.add(pa.table({"video_id": pa.array(names, pa.string())}))
    assert [name for (name,) in kept.rows()] == ["a", "a", "b", "c", "d"]


def test_many_rows_lie_in_files_that_go_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    kept = SortedRows(SCHEMA, run_rows=10_000)
    numbers = list(range(100_000))
    random.Random(1).shuffle(numbers)
    for number in numbers:
        kept.append((f"{number:06d}", None, number))
    assert [row[2] for row in kept.rows()] == list(range(100_000))
    (folder,) = tmp_path.iterdir()
    assert len(os.listdir(folder)) > 5
    del kept
    gc.collect()
    assert list(tmp_path.iterdir()) == []

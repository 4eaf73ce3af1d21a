"""Chosen rows in one bit each: the same rows as an array of them."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tubelet.selection import Selection, compact


@given(
    st.integers(1, 20_000),
    st.floats(0, 1),
    st.integers(0, 9),
    st.lists(st.floats(0, 1), max_size=20),
)
def test_a_selection_is_indexed_like_the_array_it_was_made_of(
    total: int, share: float, seed: int, asked: list[float]
) -> None:
    chosen = np.random.default_rng(seed).random(total) <= share
    rows = np.flatnonzero(chosen).astype(np.int64)
    selection = Selection.of(rows, total=total)
    assert len(selection) == len(rows)
    if len(rows):
        index = np.array([int(a * (len(rows) - 1)) for a in asked], np.int64)
        found = pickle.loads(pickle.dumps(selection))[index]
        assert found.tolist() == rows[index].tolist()
        assert found.dtype == np.int64


def test_the_ends_of_blocks_are_found() -> None:
    rows = np.array([4095, 4096, 8191, 12288, 16383])
    assert Selection.of(rows, total=16384)[np.arange(5)].tolist() == rows.tolist()


def test_most_of_ten_million_rows_travel_in_little_more_than_a_megabyte() -> None:
    rows = np.delete(np.arange(10_000_000), np.arange(0, 10_000_000, 20))
    kept = compact(rows, total=10_000_000)
    assert len(pickle.dumps(kept)) < 1_300_000
    assert kept[np.array([0, 18, 19, len(rows) - 1])].tolist() == [1, 19, 21, 9_999_999]


def test_few_rows_stay_an_array() -> None:
    rows = np.array([3, 500_000])
    assert compact(rows, total=1_000_000) is rows


def test_rows_in_another_order_are_our_mistake() -> None:
    with pytest.raises(AssertionError, match="ascending"):
        compact(np.array([2, 1]), total=9)

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clips.spans import Cutting, Span, cut

SECONDS = st.floats(0.1, 40_000)


@pytest.mark.parametrize(
    ("duration_s", "per_minute", "rows"),
    [
        (10, 6, 1),
        (15, 6, 2),
        (60, 6, 6),
        (3600, 6, 360),
        (3600, 0, 1),
        (3600, 0.01, 1),
        (600, 0.25, 2),
    ],
)
def test_an_hour_counts_for_more_rows_than_ten_seconds(
    duration_s: float, per_minute: float, rows: int
) -> None:
    how = Cutting(clips_per_minute=per_minute)
    assert len(cut((None, None), duration_s=duration_s, fps=25, how=how)) == rows


def test_spans_are_of_equal_length_and_reach_from_end_to_end() -> None:
    how = Cutting(clips_per_minute=6)
    assert cut((None, None), duration_s=40, fps=25, how=how) == [
        *((0.0, 10.0), (10.0, 20.0), (20.0, 30.0), (30.0, None))
    ]


def test_a_span_of_the_list_is_cut_within() -> None:
    how = Cutting(clips_per_minute=6)
    assert cut((10.0, 30.0), duration_s=300, fps=25, how=how) == [(10.0, 20.0), (20.0, 30.0)]
    assert cut((280.0, None), duration_s=300, fps=25, how=how) == [(280.0, 290.0), (290.0, None)]
    assert cut((280.0, 999.0), duration_s=300, fps=25, how=how) == [(280.0, 290.0), (290.0, 999.0)]


def test_no_span_is_shorter_than_a_clip() -> None:
    how = Cutting(clips_per_minute=60, clip_frames=64)
    assert len(cut((None, None), duration_s=10, fps=25, how=how)) == 3  # 250 frames
    assert cut((1.0, 3.0), duration_s=10, fps=25, how=how) == [(1.0, 3.0)]


@given(SECONDS, SECONDS, SECONDS, st.floats(1, 120), st.floats(0, 100), st.integers(2, 256))
def test_spans_follow_one_another_without_gap(
    duration_s: float, start: float, length: float, fps: float, per_minute: float, frames: int
) -> None:
    start = min(start, duration_s / 2)
    given: list[Span] = [(None, None), (start, None), (None, length), (start, start + length)]
    for span in given:
        how = Cutting(per_minute, frames)
        pieces = cut(span, duration_s=duration_s, fps=fps, how=how)
        assert pieces[-1][1] == span[1]
        assert (pieces[0][0] or 0.0) == (span[0] or 0.0)
        if len(pieces) > 1:
            end = duration_s if span[1] is None else min(span[1], duration_s)
            lengths = [(b or end) - (a or 0.0) for a, b in pieces]
            assert all(a[1] == b[0] for a, b in itertools.pairwise(pieces))
            assert min(lengths) >= frames / fps - 0.01
            assert max(lengths) - min(lengths) <= 0.01 + max(0.0, (span[1] or 0.0) - duration_s)
            assert len(pieces) <= max(1, round((end - (span[0] or 0.0)) / 60 * per_minute))

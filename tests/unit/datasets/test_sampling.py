import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clips.draws import below, draw_words
from clips.sampling import (
    centre_indices,
    dense_indices,
    resampled,
    segment_indices,
    strided_indices,
    view_indices,
    window_indices,
)

SEEDS = st.integers(0, 2**64 - 1)


def test_dense_sampling_reproduces_the_anchors_of_the_authors_code() -> None:
    assert strided_indices(300, start=100, frames=16, stride=4).tolist() == list(range(100, 164, 4))
    short = dense_indices(40, frames=16, stride=4, seed=7).tolist()
    assert short == [*range(0, 40, 4), *[36] * 6]


def test_windows_reproduce_the_anchors_of_the_authors_code() -> None:
    """reference/videomae.md 2.3: a window that ends at 200, and a video of 50 frames."""
    window = [136, 140, 144, 148, 153, 157, 161, 165, 170, 174, 178, 182, 187, 191, 195, 199]
    found = [window_indices(300, frames=16, stride=4, seed=seed).tolist() for seed in range(2000)]
    assert window in found
    starts = [clip[0] for clip in found]
    assert (min(starts), max(starts)) == (0, 235), "uniform over all starts but the last"
    short = window_indices(50, frames=16, stride=4, seed=0).tolist()
    assert short == [0, 4, 9, 13, 18, 22, 27, 31, 36, 40, 45, *[49] * 5]


@given(st.integers(1, 500), st.integers(1, 32), st.integers(1, 8), st.none() | SEEDS)
def test_windows_and_segments_rise_within_the_video(
    length: int, frames: int, stride: int, seed: int | None
) -> None:
    window = window_indices(length, frames=frames, stride=stride, seed=seed)
    segments = segment_indices(length, frames=frames, seed=seed)
    for indices in (window, segments):
        assert indices.dtype == np.int64
        assert len(indices) == frames
        assert (np.diff(indices) >= 0).all()
        assert 0 <= indices[0] <= indices[-1] < length
    if length >= frames and seed is not None:
        assert (segments // (length // frames)).tolist() == list(range(frames))


def test_a_window_without_chance_lies_in_the_middle() -> None:
    indices = window_indices(264, frames=16, stride=4, seed=None)
    assert (indices[0], indices[-1]) == (100, 163)


def test_segments_of_a_video_with_too_few_frames_hold_its_first_one() -> None:
    assert segment_indices(4, frames=6, seed=5).tolist() == [0, 0, 0, 1, 2, 3]
    assert segment_indices(50, frames=16, seed=None).tolist()[:3] == [1, 4, 7]


def test_views_start_where_the_authors_test_clips_start() -> None:
    starts = view_indices(300, frames=16, stride=4, views=5)[:, 0]
    assert starts.tolist() == [0, 56, 116, 176, 236]


@given(st.integers(1, 2000), st.integers(1, 64), st.integers(1, 16), SEEDS)
def test_dense_indices_keep_the_stride_until_the_last_reachable_frame(
    length: int, frames: int, stride: int, seed: int
) -> None:
    indices = dense_indices(length, frames=frames, stride=stride, seed=seed)
    assert indices.dtype == np.int64
    assert len(indices) == frames
    assert 0 <= indices[0] <= max(0, length - frames * stride)
    assert indices[-1] < length
    last = indices.tolist().index(indices[-1])
    assert indices[: last + 1].tolist() == list(range(indices[0], indices[-1] + 1, stride))
    assert set(indices[last:].tolist()) == {indices[-1]}
    if last < frames - 1:
        assert indices[-1] + stride >= length


@given(st.integers(1, 2000), st.integers(1, 64), st.integers(1, 16), st.integers(1, 12))
def test_views_stay_inside_and_go_from_start_to_end(
    length: int, frames: int, stride: int, views: int
) -> None:
    indices = view_indices(length, frames=frames, stride=stride, views=views)
    assert indices.shape == (views, frames)
    assert indices.min() >= 0
    assert indices.max() < length
    assert np.all(np.diff(indices[:, 0]) >= 0)
    if views > 1:
        assert indices[0, 0] == 0
        assert indices[-1, -1] + stride >= length or frames * stride > length


@given(st.integers(1, 2000), st.integers(1, 64), st.integers(1, 16))
def test_the_centre_clip_has_as_much_before_it_as_behind(
    length: int, frames: int, stride: int
) -> None:
    indices = centre_indices(length, frames=frames, stride=stride)
    before, behind = indices[0], length - (indices[0] + frames * stride)
    assert before == 0 or behind - before in (0, 1)


def test_every_start_is_drawn_about_equally_often() -> None:
    starts = [dense_indices(70, frames=16, stride=4, seed=s)[0] for s in range(7000)]
    counts = np.bincount(starts, minlength=7)
    assert len(counts) == 7
    assert counts.min() > 850
    assert counts.max() < 1150


def test_draws_never_change() -> None:
    # Runs are reproduced from these numbers: a change breaks every old run.
    assert draw_words(0, stream="time", count=2) == [213000021201967259, 4455796210202625458]
    assert draw_words(2**64 - 1, stream="crop", count=1) == [12079472389394220099]


@given(SEEDS, st.integers(1, 10**6))
def test_bounded_draws_are_in_range(word: int, limit: int) -> None:
    assert 0 <= below(limit, word=word) < limit


def test_streams_of_one_seed_differ() -> None:
    words = {draw_words(5, stream=s, count=1)[0] for s in ("time", "crop", "flip")}
    assert len(words) == 3


@pytest.mark.parametrize("length", [1, 2, 15, 16])
def test_videos_shorter_than_the_clip_are_held_at_their_end(length: int) -> None:
    indices = dense_indices(length, frames=16, stride=1, seed=3)
    assert indices.tolist() == [min(i, length - 1) for i in range(16)]


GAPS = st.lists(st.integers(2, 400), min_size=0, max_size=80)  # milliseconds between frames


@given(GAPS, st.floats(0.5, 60.0))
def test_a_resampled_video_shows_what_is_on_the_screen_at_each_tick(
    gaps: list[int], fps: float
) -> None:
    times_s = 7.0 + np.cumsum([0, *gaps]) / 1000
    shown = resampled(times_s, fps=fps)
    assert shown.dtype == np.int64
    for tick, index in enumerate(shown):
        now = times_s[0] + tick / fps
        assert times_s[index] <= now + 2e-3
        assert index == len(times_s) - 1 or times_s[index + 1] > now
    length_s = (times_s[-1] - times_s[0]) + (np.mean(gaps) / 1000 if gaps else 0.0)
    assert abs(len(shown) - length_s * fps) <= 1 + 1e-3 * fps


@given(st.integers(1, 400), st.sampled_from([10.0, 23.976, 24.0, 25.0, 29.97, 30.0, 50.0, 60.0]))
def test_at_its_own_rate_a_video_stays_as_it_is(length: int, fps: float) -> None:
    exact = np.arange(length) / fps
    for times_s in (exact, np.round(exact, 3), np.floor(exact * 1000) / 1000 + 2.0):
        assert resampled(times_s, fps=fps).tolist() == list(range(length))


@given(st.integers(2, 300), st.integers(2, 6))
def test_half_the_rate_shows_every_other_frame_and_twice_the_rate_each_twice(
    length: int, times: int
) -> None:
    times_s = np.arange(length) / 24
    assert resampled(times_s, fps=24 / times).tolist() == list(range(0, length, times))
    assert resampled(times_s, fps=24 * times).tolist() == np.arange(length).repeat(times).tolist()

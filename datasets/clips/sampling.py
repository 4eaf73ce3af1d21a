"""Which frames make a clip: pure functions from (length, seed) to frame indices.

*Dense* sampling is the authors' for pretraining: a uniform start, an exact stride, and, when the
video is too short, the last frame that the stride can reach is held. *Centre* and *views* are its
deterministic forms for evaluation: one clip in the middle, or several spread evenly over the whole
video.

*Windows* and *segments* are the authors' for fine-tuning. A window of frames * stride frames lies anywhere, and the
clip's frames lie evenly from its first to its last, so a little further apart than the stride. Segments (TSN's, for
Something-Something) part the whole video into equal pieces and take one frame of each, whatever the stride. Both have
a form without chance, which is V2's.

*Resampling* comes before them where a clip's pace is wanted in seconds: it gives the frames of the
video at another rate, and the stride then counts those.

Every function returns int64 indices into the video's frames in display order, never outside 0 ..
length - 1. Source: the VideoMAE and VideoMAE V2 code (facts in the reference pages 1.7 and 2.3);
anchors are in the tests.
"""

import numpy as np

from clips.draws import below, draw_words

_EARLY_S = 1e-3
"""A frame counts as shown this much early: Matroska and FLV round times to milliseconds."""


def dense_indices(length: int, *, frames: int, stride: int, seed: int) -> np.ndarray:
    """Return the indices [frames] of a clip that starts at a random frame.

    The start is uniform over 0 .. length - frames * stride. A shorter video starts at 0.
    """
    _check(length, frames, stride)
    slack = max(0, length - frames * stride)
    (word,) = draw_words(seed, stream="time", count=1)
    return strided_indices(length, start=below(slack + 1, word=word), frames=frames, stride=stride)


def centre_indices(length: int, *, frames: int, stride: int) -> np.ndarray:
    """Return the indices [frames] of the clip in the middle of the video."""
    _check(length, frames, stride)
    start = max(0, length - frames * stride) // 2
    return strided_indices(length, start=start, frames=frames, stride=stride)


def window_indices(length: int, *, frames: int, stride: int, seed: int | None) -> np.ndarray:
    """Return the indices [frames] spread over a window of `frames * stride` frames.

    The window is anywhere, or without a seed in the middle. A shorter video is covered at the stride, and its last
    frame is held.
    """
    _check(length, frames, stride)
    window = frames * stride
    if length <= window:
        reached = length // stride
        spread = np.concatenate(
            [np.linspace(0, length, reached), np.full(frames - reached, length)]
        )
        return np.clip(spread, 0, length - 1).astype(np.int64)
    start = (length - window) // 2
    if seed is not None:
        (word,) = draw_words(seed, stream="time", count=1)
        start = below(length - window, word=word)
    end = start + window
    return np.clip(np.linspace(start, end, frames), start, end - 1).astype(np.int64)


def segment_indices(length: int, *, frames: int, seed: int | None) -> np.ndarray:
    """Return one index of each of `frames` equal segments [frames]: anywhere in it, or without a seed its middle.

    A video of fewer frames is shown whole, after its first frame is held.
    """
    _check(length, frames, 1)
    if length < frames:
        return np.maximum(np.arange(frames, dtype=np.int64) - (frames - length), 0)
    if seed is None:
        return ((np.arange(frames) + 0.5) * (length / frames)).astype(np.int64)
    piece = length // frames
    words = draw_words(seed, stream="time", count=frames)
    return np.array([k * piece + below(piece, word=word) for k, word in enumerate(words)], np.int64)


def view_indices(length: int, *, frames: int, stride: int, views: int) -> np.ndarray:
    """Return the indices [views, frames] of clips spread evenly over the video.

    The video is thinned to every `stride`-th frame; the starts are then spaced evenly over the
    thinned video. One view lies in the middle, where the authors' formula would divide by zero.
    """
    _check(length, frames, stride)
    assert views >= 1, views
    slack = max(0, -(-length // stride) - frames)
    starts = [slack // 2] if views == 1 else [k * slack // (views - 1) for k in range(views)]
    return np.stack(
        [strided_indices(length, start=s * stride, frames=frames, stride=stride) for s in starts]
    )


def segment_view_indices(length: int, *, frames: int, views: int) -> np.ndarray:
    """Return the indices [views, frames] of clips that each take one frame of every segment of the video.

    View k takes the frame k / views of the way into each segment; one view takes its middle.
    """
    assert views >= 1, views
    if views == 1 or length < frames:
        return np.tile(segment_indices(length, frames=frames, seed=None), (views, 1))
    tick = length / frames
    starts = np.arange(views)[:, None] * (tick / views)
    return (starts + np.arange(frames) * tick).astype(np.int64)


def strided_indices(length: int, *, start: int, frames: int, stride: int) -> np.ndarray:
    """Return `frames` indices from `start` by `stride`, held at the last one below `length`."""
    _check(length, frames, stride)
    assert 0 <= start < length, (start, length)
    reachable = (length - 1 - start) // stride
    return start + np.minimum(np.arange(frames, dtype=np.int64), reachable) * stride


def resampled(times_s: np.ndarray, *, fps: float) -> np.ndarray:
    """Return the frames of a video at another rate: what is on the screen at 0, 1 / fps, 2 / fps ...

    A frame stays on the screen until the next one, the last one for as long as the others on average. So frames are
    repeated or left out, never mixed, and a variable rate becomes an even one.

    Args:
        times_s: float64 [length], ascending: when each frame is shown.
        fps: The rate, in frames per second.
    """
    length = len(times_s)
    _check(length, 1, 1)
    assert fps > 0, fps
    since_s = times_s - times_s[0]
    last_s = since_s[-1] / (length - 1) if length > 1 else 0.0
    count = max(1, int(np.ceil((since_s[-1] + last_s - _EARLY_S) * fps)))
    ticks_s = np.arange(count) / fps
    return np.searchsorted(since_s, ticks_s + _EARLY_S, side="right").astype(np.int64) - 1


def _check(length: int, frames: int, stride: int) -> None:
    assert length >= 1, length
    assert frames >= 1, frames
    assert stride >= 1, stride

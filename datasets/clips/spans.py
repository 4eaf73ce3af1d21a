"""Long videos cut into spans, so that an hour of film counts for more rows than ten seconds.

A video of m minutes gets `max(1, round(m * clips_per_minute))` rows: spans of equal length that cover
it, or the span that its list gives it, none shorter than one clip. A single row keeps the video (or
its span) whole.
"""

import itertools
from dataclasses import dataclass

Span = tuple[float | None, float | None]
"""Start and end in seconds; null is the video's own start or end."""


@dataclass(frozen=True)
class Cutting:
    """How videos are cut."""

    clips_per_minute: float = 0.0
    """Rows for a minute of video; 0 leaves every video whole."""
    clip_frames: int = 64
    """Frames from the first to the last of a clip (16 at stride 4): no span is shorter."""


def cut(span: Span, *, duration_s: float, fps: float, how: Cutting) -> list[Span]:
    """Return the spans of one row; `span` itself where it is not to be cut.

    Args:
        span: What the source says of the row.
        duration_s: Of the whole video, seconds.
        fps: Frames per second.
        how: Rate and least length.
    """
    start = span[0] or 0.0
    end = duration_s if span[1] is None else min(span[1], duration_s)
    wanted = max(1, round((end - start) / 60 * how.clips_per_minute))
    count = min(wanted, int((end - start) * fps / how.clip_frames + 1e-6))
    if count < 2:
        return [span]
    bounds = [round(start + (end - start) * i / count, 3) for i in range(count + 1)]
    pieces: list[Span] = list(itertools.pairwise(bounds))
    pieces[0] = (start, pieces[0][1])
    pieces[-1] = (pieces[-1][0], span[1])  # a null keeps the last frame, whatever was rounded
    return pieces

"""Opening a file with FFmpeg: its video stream, decoded in one thread; or what it is instead of a video.

A file may name others (playlists do): only the file protocol is ever followed, and of lists themselves nothing is read.
"""

import av
import av.stream
from av.codec.context import ThreadType
from av.container import InputContainer
from av.video.stream import VideoStream

from clips.decode import DecodeConfig, DecodeError
from clips.decode.source import openable

_STILL = ("image2", "_pipe", "ico", "apng", "webp")
_PLAYLISTS = ("hls", "dash", "concat", "sdp", "rtsp", "webm_dash_manifest", "imf")


def open_stream(
    source: str | bytes, *, size: int | None, offset: int | None = None, config: DecodeConfig
) -> tuple[InputContainer, VideoStream]:
    """Open a path, a URI or encoded bytes; no frame is decoded. `offset` is that of a member of a tar shard.

    Raises:
        DecodeError: It is no video.
        FFmpegError: It cannot be read.
    """
    container = av.open(
        openable(source, size=size, offset=offset),
        metadata_errors="ignore",
        options={"protocol_whitelist": "file"},
        timeout=config.wall_seconds,  # of one read: it may search gigabytes for a packet
    )
    assert isinstance(container, InputContainer)
    try:
        return container, _video_stream(container, config)
    except BaseException:
        container.close()
        raise


def check_pixels(width: int, height: int, config: DecodeConfig) -> None:
    """Refuse frames beyond the limit.

    Raises:
        DecodeError: They are larger than `decode.max_pixels`.
    """
    if width * height > config.max_pixels:
        raise DecodeError(
            "too_large",
            f"frames of {width}x{height}; decode.max_pixels is {config.max_pixels}",
        )


def _video_stream(container: InputContainer, config: DecodeConfig) -> VideoStream:
    formats = container.format.name.split(",")
    if any(name in _PLAYLISTS for name in formats):
        raise DecodeError("unsupported", f"a playlist ({container.format.name}), not a video")
    if any(name.endswith(_STILL) for name in formats):
        raise DecodeError("still_image", f"a still picture ({container.format.name})")
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream):
        kinds = sorted({s.type for s in container.streams}) or ["no streams at all"]
        raise DecodeError("no_video", f"no video stream, only: {', '.join(kinds)}")
    if stream.disposition & av.stream.Disposition.attached_pic:
        raise DecodeError("no_video", "the only picture is a cover image of an audio file")
    for other in container.streams:
        if other.index != stream.index:
            other.discard = av.stream.Discard.all
    context = stream.codec_context
    context.thread_type = ThreadType.NONE
    context.thread_count = 1
    check_pixels(context.width, context.height, config)
    return stream

"""Generated videos of every kind that decoders stumble over, and how every frame of them looks.

Each holds numbered frames (``clips.synthetic``), so that a decoder's frame numbers can be read back.
"""

import functools
import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer, OutputContainer

from clips.augment.geometry import Box
from clips.decode import Reader
from clips.synthetic import Encoding, encode, numbered_frames

COUNT = 70
SIZE = (96, 64)

_VP9 = {"cpu-used": "8", "deadline": "realtime"}
_QUIET = {"x265-params": "log-level=none"}
GENERATED = {
    "h264 with B-frames": Encoding(gop=30, bframes=3),
    "h264 without B-frames": Encoding(gop=12, bframes=0),
    "h264 in groups of 250": Encoding(gop=250, bframes=3),
    "h264 with a B-pyramid": Encoding(
        gop=60, options={"x264-params": "bframes=7:b-pyramid=normal:b-adapt=0"}
    ),
    "h264 open GOP": Encoding(gop=15, options={"x264-params": "open-gop=1:bframes=3:b-adapt=0"}),
    "h264 intra refresh": Encoding(gop=20, options={"x264-params": "intra-refresh=1"}),
    "h264 intra refresh without B-frames": Encoding(
        gop=20, options={"x264-params": "intra-refresh=1:bframes=0"}
    ),
    "h264 all keyframes": Encoding(gop=1),
    "h264 variable rate": Encoding(gop=20, times=[i * 40 + (i % 3) * 7 for i in range(COUNT)]),
    "h264 rotated 90": Encoding(rotation=90),
    "h264 rotated 180": Encoding(rotation=180),
    "h264 rotated 270": Encoding(rotation=270),
    "h264 4:4:4": Encoding(pixel_format="yuv444p"),
    "h264 gray": Encoding(pixel_format="gray"),
    "h264 10 bit": Encoding(pixel_format="yuv420p10le"),
    "h264 in matroska": Encoding(container="matroska", bframes=3),
    "h264 in flv": Encoding(container="flv", bframes=2),
    "h264 in ts": Encoding(container="mpegts", bframes=2),
    "h264 raw": Encoding(container="h264", bframes=2),
    "hevc": Encoding(codec="libx265", gop=20, options=_QUIET),
    "hevc in closed groups": Encoding(
        codec="libx265", gop=20, options={"x265-params": "log-level=none:open-gop=0"}
    ),
    "hevc 10 bit": Encoding(codec="libx265", pixel_format="yuv420p10le", options=_QUIET),
    "mpeg4 in avi": Encoding(codec="mpeg4", container="avi"),
    "mpeg4 in avi with B-frames": Encoding(codec="mpeg4", container="avi", bframes=2),
    "mpeg4 in mp4": Encoding(codec="mpeg4", gop=25),
    "mpeg4 in mp4 with B-frames": Encoding(codec="mpeg4", bframes=2, gop=25),
    "mpeg2 in ts": Encoding(codec="mpeg2video", container="mpegts", bframes=2),
    "vp9": Encoding(codec="libvpx-vp9", container="webm", gop=30, options=_VP9),
    "vp8": Encoding(codec="libvpx", container="webm", gop=30, options=_VP9),
    "av1": Encoding(codec="libsvtav1", gop=30, options={"preset": "12", "svtav1-params": "lp=1"}),
    "mjpeg in avi": Encoding(codec="mjpeg", container="avi", pixel_format="yuvj420p"),
    "prores in mov": Encoding(codec="prores", container="mov", pixel_format="yuv422p10le"),
    "ffv1": Encoding(codec="ffv1", container="matroska"),
}


def _numbered(
    name: str, *, count: int = COUNT, width: int = SIZE[0], height: int = SIZE[1]
) -> bytes:
    return encode(numbered_frames(count, width=width, height=height), GENERATED[name])


def with_edit_list(hidden: int) -> bytes:
    """A file whose edit list hides its first frames."""
    file = io.BytesIO()
    with av.open(io.BytesIO(_numbered("h264 with B-frames"))) as source:
        assert isinstance(source, InputContainer)
        stream = source.streams.video[0]
        with av.open(file, "w", format="mp4") as target:
            assert isinstance(target, OutputContainer)
            copy = target.add_stream_from_template(stream)
            assert stream.time_base is not None
            early = int(hidden / 24 / stream.time_base)
            for packet in source.demux(stream):
                if packet.size:
                    assert packet.pts is not None
                    assert packet.dts is not None
                    packet.pts, packet.dts, packet.stream = (
                        packet.pts - early,
                        packet.dts - early,
                        copy,
                    )
                    target.mux(packet)
    return file.getvalue()


def _changing_size() -> bytes:
    small = numbered_frames(30, width=64, height=48)
    return _numbered("h264 in ts", count=30) + encode(small, GENERATED["h264 in ts"])


_OTHERS: dict[str, Callable[[], bytes]] = {
    "edit list": functools.partial(with_edit_list, 20),
    "size change": _changing_size,
    "one frame": functools.partial(_numbered, "h264 with B-frames", count=1),
    "two frames": functools.partial(_numbered, "h264 with B-frames", count=2),
    "tiny": functools.partial(_numbered, "h264 with B-frames", width=32, height=24),
    "odd size": functools.partial(_numbered, "vp9", width=97, height=65),
    "odd size 4:4:4": functools.partial(_numbered, "h264 4:4:4", width=35, height=27),
    "small and turned": functools.partial(_numbered, "h264 rotated 90", width=64, height=48),
}
CASES = (*GENERATED, *_OTHERS)


@functools.cache
def video(case: str) -> bytes:
    """The file of one of ``CASES``."""
    return _OTHERS[case]() if case in _OTHERS else _numbered(case)


def numbers(case: str) -> list[int]:
    """The numbers in its frames, in the order of the screen."""
    first = 20 if case == "edit list" else 0
    return list(range(first, {"one frame": 1, "two frames": 2}.get(case, COUNT)))


def turned(case: str) -> int:
    """By how many quarters its pictures are turned, counter-clockwise."""
    name = "h264 rotated 90" if case == "small and turned" else case
    return GENERATED[name].rotation // 90 % 4 if name in GENERATED else 0


def full_decode(data: bytes | str | Path) -> list[np.ndarray]:
    """Every frame as displayed, in display order, by plain sequential decoding with PyAV."""
    source = io.BytesIO(data) if isinstance(data, bytes) else str(data)
    with av.open(source, metadata_errors="ignore") as container:
        assert isinstance(container, InputContainer)
        stream: Any = container.streams.best("video")
        stream.thread_type = "NONE"
        return [
            np.rot90(
                frame.reformat(format="rgb24", interpolation="POINT", threads=1).to_ndarray(),
                frame.rotation // 90 % 4,
            )
            for frame in container.decode(stream)
        ]


def plans(frames: int, *, seed: int) -> list[np.ndarray]:
    """1 to 4 clips: strided, held at the end, repeated frames, single ones, the first and the last."""
    rng = random.Random(seed)
    clips: list[list[int]] = []
    for _ in range(1 + seed % 4):
        start, stride = rng.randrange(frames), rng.randint(1, 8)
        clips.append([min(frames - 1, start + stride * i) for i in range(rng.randint(1, 16))])
    if seed % 5 == 0:
        clips.append([frames - 1, 0])
    return [np.array(clip) for clip in clips]


def assert_exact(reader: Reader, expected: list[np.ndarray], *, seeds: range) -> None:
    """Read clips with crops of a video and compare them with its frames, bit for bit."""
    height, width = expected[0].shape[:2]
    for seed in seeds:
        wanted = plans(len(expected), seed=seed)
        rng = random.Random(seed)
        crops = [_crop(rng, width, height) for _ in wanted]
        clips = reader.read(wanted, boxes=_fixed(crops))
        for clip, indices, (x, y, w, h) in zip(clips, wanted, crops, strict=True):
            assert clip.shape == (len(indices), h, w, 3)
            for picture, index in zip(clip, indices, strict=True):
                np.testing.assert_array_equal(picture, expected[index][y : y + h, x : x + w])


def _crop(rng: random.Random, width: int, height: int) -> Box:
    w, h = rng.randint(1, width), rng.randint(1, height)
    return Box(rng.randint(0, width - w), rng.randint(0, height - h), w, h)


def _fixed(crops: list[Box]) -> Callable[[int, int], list[Box]]:
    return lambda width, height: crops

"""The default decoder: FFmpeg through PyAV, decoding only what the wanted frames need.

How it works. All packets of the stream are read first (cheap: no decoding): they give the number of
frames, their order, and the keyframes. Decoding then starts at the right keyframe, frames that no
other refers to are skipped unless wanted (`skip_frame` set per packet), and gaps are jumped over. Of
our own copies only the groups that hold wanted frames are read (`clips.decode.groups`).

Guarantee: frames equal a full sequential decode bit for bit. The skip is used only with decoders
that honour it packet by packet (H.264, HEVC, MPEG-4 part 2), and frames are matched by
presentation time, so it is off where a container has none (AVI, raw streams: there frames are
decoded from the start and counted). If a wanted frame does not come out, everything is decoded
once more from the start without skipping, and only then is it missing.

Cost: docs/benchmarks.md. Threads: none, here or in FFmpeg; workers are processes. Packets of files
below 64 MiB are kept between the two passes; larger files are read again from the keyframe.

Shapes: T frames of a clip, H W of the displayed picture, C = 3 (RGB).
"""

import bisect
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from clips.decode import Boxes, DecodeConfig, DecodeError
from clips.decode.failures import decode_errors
from clips.decode.groups import Groups, closed_groups, read_groups
from clips.decode.opening import open_stream
from clips.decode.pixels import Pixels
from clips.decode.plan import Plan

_SKIPPABLE = ("h264", "hevc", "mpeg4")
_TIMED = ("mp4", "matroska", "webm", "mpegts", "flv")
_KEEP_BYTES = 64 << 20
_UNREAD = Packet()


@dataclass(frozen=True)
class StreamInfo:
    """What a video says about itself, before any frame is decoded."""

    container: str
    codec: str
    pixel_format: str
    keyframe_spacing: int
    """Longest distance between two keyframes, in frames: the price of a random start."""
    comment: str
    """Free text in the header."""


class PyavReader:
    """A video opened with PyAV; see the module's text and `clips.decode.Reader`."""

    def __init__(
        self,
        source: str | bytes,
        *,
        config: DecodeConfig,
        size: int | None = None,
        offset: int | None = None,
        keep_bytes: int = _KEEP_BYTES,
    ) -> None:
        """Open `source` and index its packets.

        `offset` is where a member of a tar shard begins in it, `size` then its length. `keep_bytes`
        bounds the packets that stay in memory.
        """
        self._config = config
        self._source = source
        self._size = size
        self._offset = offset
        self._keep_bytes = keep_bytes
        # The thread's own time: neither a busy machine nor a slow storage is the file's fault.
        self._deadline = time.thread_time() + config.seconds
        self._pixels = Pixels(config)
        self.rotation = 0
        """Degrees by which the decoded frames were turned; known once a frame was read."""
        with decode_errors("opening"):
            self._container, self._stream = self._open()
            try:
                self._groups = self._index_groups()
                if self._groups is None:
                    self._index()
            except BaseException:
                self._container.close()
                raise

    @property
    def frames(self) -> int:
        """Number of frames that a full decode would show."""
        return len(self._shown)

    @property
    def fps(self) -> float:
        """Frames per second, on average."""
        rate = self._stream.average_rate or self._stream.guessed_rate
        return float(rate) if rate else 25.0  # FFmpeg's own guess for streams that say nothing

    @property
    def times_s(self) -> np.ndarray:
        """float64 [frames]: when each frame is shown, in seconds from the first one."""
        if not self._timed:
            return np.arange(self.frames) / self.fps
        self._index_all()
        assert self._stream.time_base is not None
        pts = np.array(self._shown, dtype=np.int64)
        return (pts - pts[0]) * float(self._stream.time_base)

    @property
    def timed(self) -> bool:
        """Whether the container gives every frame a time of its own."""
        return self._timed

    def packets(self) -> Iterator[Packet]:
        """Yield all packets of the video, encoded, in the order of the file."""
        self._index_all()
        for _, packet in self._packets_from(0):
            if packet is not None:
                yield packet

    @property
    def unit_prefix(self) -> int | None:
        """Of H.264: how many bytes say the length of a unit of a packet; None where start codes part them."""
        head = self._stream.codec_context.extradata
        return (head[4] & 3) + 1 if head and head[0] == 1 else None

    @property
    def info(self) -> StreamInfo:
        """Container, codec, and the spacing of keyframes."""
        starts = [i for i, key in enumerate(self._is_key) if key]
        ends = [*starts[1:], len(self._pts)]
        return StreamInfo(
            container=self._container.format.name,
            codec=self._stream.codec_context.codec.canonical_name,
            pixel_format=self._stream.codec_context.pix_fmt or "unknown",
            keyframe_spacing=max(
                (end - start for start, end in zip(starts, ends, strict=True)), default=0
            ),
            comment=self._container.metadata.get("comment", ""),
        )

    def read(
        self, indices: Sequence[np.ndarray], *, boxes: Boxes | None = None
    ) -> list[np.ndarray]:
        """Return one uint8 array [T, height, width, 3] per clip; see `clips.decode.Reader`."""
        plan = Plan(indices, boxes, frames=self.frames)
        with decode_errors("decoding"):
            for index, frame in self.wanted_frames(plan.wanted):
                self.rotation = frame.rotation
                plan.store(index, self._pixels.rgb(frame))
        missing = plan.missing()
        if missing:
            raise DecodeError(
                "missing_frames",
                f"{len(missing)} of {len(plan.wanted)} frames were not decoded, the first is "
                f"{missing[0]} of {self.frames}",
            )
        return plan.clips

    def close(self) -> None:
        """Release the file and the decoder."""
        self._packets = []
        self._container.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # --- opening -----------------------------------------------------------------------------

    def _open(self) -> tuple[InputContainer, VideoStream]:
        return open_stream(self._source, size=self._size, offset=self._offset, config=self._config)

    def _index_groups(self) -> Groups | None:
        """Note what the index of a copy says; its packets are read when frames are wanted."""
        groups = closed_groups(self._container, self._stream, most_bytes=self._keep_bytes)
        if groups is not None:
            count = groups.frames
            self._pts, self._dts, self._shown = [None] * count, [None] * count, [0] * count
            self._packets: list[Packet] = [_UNREAD] * count
            keys = set(groups.starts)
            self._is_key = [position in keys for position in range(count)]
            self._keys: list[tuple[int, int]] = []
            self._timed = True
        return groups

    def _fetch(self, wanted: list[int]) -> None:
        """Read the groups of a copy that hold these frames, unless they have been read."""
        if self._groups is None:
            return
        unread = [frame for frame in wanted if self._packets[frame] is _UNREAD]
        numbers = self._groups.holding(unread)
        found = read_groups(self._container, self._stream, self._groups, numbers)
        if found is None:
            self._index_all()
            return
        for start, packets in found:
            times = [packet.pts or 0 for packet in packets]
            end = start + len(packets)
            self._packets[start:end], self._pts[start:end] = packets, times
            self._shown[start:end] = sorted(times)
            bisect.insort(self._keys, (times[0], start))

    def _index_all(self) -> None:
        """Read all packets of a copy of which groups would not do."""
        if self._groups is not None:
            self._groups = None
            self._container.close()
            self._container, self._stream = self._open()
            self._index()

    def _index(self) -> None:
        """Read all packets once: times, keyframes, and, of small files, the packets themselves."""
        packets: list[Packet] = []
        kept: int | None = 0
        self._pts: list[int | None] = []
        self._dts: list[int | None] = []
        self._is_key: list[bool] = []
        hidden: list[bool] = []
        for packet in _video_packets(self._container, self._stream):
            self._check_time("reading packet", len(self._pts))
            self._pts.append(packet.pts)
            self._dts.append(packet.dts)
            self._is_key.append(packet.is_keyframe)
            hidden.append(packet.is_discard)
            if kept is not None:
                kept += packet.size
                packets.append(packet)
                if kept > self._keep_bytes:
                    kept, packets = None, []
        self._packets = packets
        if all(hidden) or not self._stream.codec_context.width:
            raise DecodeError("empty", "the video stream holds no frames")
        shown = [pts for pts, hide in zip(self._pts, hidden, strict=True) if not hide]
        formats = self._container.format.name.split(",")
        self._timed = (
            any(name in _TIMED for name in formats)
            and all(pts is not None for pts in self._pts)
            and len(set(self._pts)) == len(self._pts)
        )
        # Timed: the presentation times of the frames, in order. Else only their number matters.
        self._shown: list[int] = sorted(p for p in shown if p is not None) if self._timed else []
        if self._timed:
            self._keys = sorted(
                (p, i) for i, p in enumerate(self._pts) if self._is_key[i] and p is not None
            )
        else:
            self._shown = list(range(len(shown)))
            self._keys = []

    # --- decoding ----------------------------------------------------------------------------

    def wanted_frames(self, wanted: list[int]) -> Iterator[tuple[int, VideoFrame]]:
        """Yield every wanted frame that comes out, once, as (index, frame).

        Raises:
            DecodeError: The stream is damaged before the last of them.
        """
        left = set(wanted)
        with decode_errors("decoding"):
            for index, frame in self._walk(wanted, left):
                if frame.is_corrupt:  # FFmpeg concealed damage with what it had
                    raise DecodeError("corrupt", f"frame {index} is damaged")
                left.discard(index)
                yield index, frame

    def _walk(self, wanted: list[int], left: set[int]) -> Iterator[tuple[int, VideoFrame]]:
        """Decode what is needed for the frames in `left`, which the caller empties."""
        self._fetch(wanted)
        if not self._timed:
            yield from self._count(left)
            return
        yield from self._jump(wanted, left)
        if left:
            self._index_all()
            yield from self._sequential(left)

    def _jump(self, wanted: list[int], left: set[int]) -> Iterator[tuple[int, VideoFrame]]:
        """Decode from keyframe to keyframe, skipping frames nobody needs."""
        skippable = self._stream.codec_context.name in _SKIPPABLE
        index_of = {self._shown[i]: i for i in wanted}
        unfed, ahead = set(index_of), iter(sorted(index_of))
        upcoming: int | None = next(ahead)
        start = self._key_before(upcoming)
        while left and start < len(self._pts):
            full, key = None, start  # whether the decoder is told to skip nothing; where to jump
            for position, packet in self._packets_from(start):
                context = self._stream.codec_context  # a large file may have been opened again
                needed = packet is None or packet.pts in index_of
                if skippable and needed is not full:  # setting it costs as much as skipping a frame
                    context.skip_frame, full = ("DEFAULT" if needed else "NONREF"), needed
                frames = context.decode(packet)
                if packet is not None and needed:
                    unfed.discard(packet.pts)
                    while upcoming is not None and upcoming not in unfed:
                        upcoming = next(ahead, None)
                    key = len(self._pts) if upcoming is None else self._key_before(upcoming)
                    if key > position + 1:  # what is in comes out without decoding on
                        frames += context.decode(None)
                for frame in frames:
                    index = index_of.get(frame.pts) if frame.pts is not None else None
                    if index in left:
                        yield index, frame
                self._check_time("decoding packet", position)
                if key > position + 1:
                    break
            else:
                break
            start = key
        self._stream.codec_context.skip_frame = "DEFAULT"

    def _sequential(self, left: set[int]) -> Iterator[tuple[int, VideoFrame]]:
        """Decode everything from the first packet, matching frames by time."""
        index_of = {self._shown[i]: i for i in left}
        for position, packet in self._packets_from(0):
            for frame in self._stream.codec_context.decode(packet):
                index = index_of.get(frame.pts) if frame.pts is not None else None
                if index in left:
                    yield index, frame
            self._check_time("decoding packet", position)
            if not left:
                return

    def _count(self, left: set[int]) -> Iterator[tuple[int, VideoFrame]]:
        """Decode everything from the first packet, counting frames: the container has no times."""
        index = 0
        for position, packet in self._packets_from(0):
            for frame in self._stream.codec_context.decode(packet):
                if index in left:
                    yield index, frame
                index += 1
            self._check_time("decoding packet", position)
            if not left:
                return

    def _key_before(self, pts: int) -> int:
        """Return the position of the last keyframe shown at or before `pts`."""
        found = bisect.bisect_right(self._keys, (pts, len(self._pts))) - 1
        return self._keys[found][1] if found >= 0 else 0

    def _packets_from(self, position: int) -> Iterator[tuple[int, Packet | None]]:
        """Yield (position, packet) from `position` on, then None, which drains the decoder."""
        self._stream.codec_context.flush_buffers()
        if self._packets:
            yield from enumerate(self._packets[position:], position)
        else:
            yield from self._packets_again(position)
        yield len(self._pts), None

    def _packets_again(self, position: int) -> Iterator[tuple[int, Packet]]:
        """Read packets from `position` on from the file again: by a seek if it has times."""
        target = self._dts[position] if self._timed and position else None
        if target is not None:
            self._container.seek(target, stream=self._stream, backward=True)
            packets = _video_packets(self._container, self._stream)
            first = next(packets, None)
            landed = self._pts.index(first.pts) if first is not None else len(self._pts)
            if first is not None and landed <= position:
                found = enumerate(itertools.chain([first], packets), landed)
                yield from itertools.dropwhile(lambda at: at[0] < position, found)
                return
        self._container.close()
        self._container, self._stream = self._open()
        found = enumerate(_video_packets(self._container, self._stream))
        yield from itertools.dropwhile(lambda at: at[0] < position, found)

    # --- limits ------------------------------------------------------------------------------

    def _check_time(self, doing: str, position: int) -> None:
        # Asking for the time costs as much as passing over a frame, so not every packet does.
        if position % 8 == 0 and time.thread_time() > self._deadline:
            over = f"over {self._config.seconds:g} s while {doing} {position}"
            raise DecodeError("timeout", over)


def _video_packets(container: InputContainer, stream: VideoStream) -> Iterator[Packet]:
    """Yield the stream's packets that carry data; a file cut short simply ends earlier."""
    for packet in container.demux(stream):
        if packet.size:
            yield packet

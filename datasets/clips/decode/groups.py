"""Packets of a copy read group by group: what holds no wanted frame stays unread.

Reading and listing all packets of ten seconds of video costs 1.7 ms, a sixth of a clip of a copy (docs/benchmarks.md).
The index of an MP4 file says without them how many frames there are and where the keyframes lie, but not when frames
are shown. In closed groups that is no matter: the frames between two keyframes are stored where they are shown, if in
another order, so a frame's number names its group, and only that group's packets have to be read.

Used for files that say they are our copies (`clips.transcode`). Nothing is taken on trust: a group that was read shows
whether the index was right and the group closed, and if not, the reader lists all packets as it does for other files.
"""

import bisect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

COPY_MARK = '{"tubelet": '
"""How the comment of a copy begins."""


@dataclass(frozen=True)
class Groups:
    """Where the groups of a video lie, by its index."""

    starts: tuple[int, ...]
    """Position of each keyframe among the packets, then the number of all."""
    places: tuple[int, ...]
    """Byte of the file at which each keyframe lies."""
    times: tuple[int, ...]
    """What to ask for to get to each keyframe: a time at which a frame of its group is shown."""

    @property
    def frames(self) -> int:
        """Number of frames of the video."""
        return self.starts[-1]

    def holding(self, wanted: Sequence[int]) -> list[int]:
        """Return the groups that hold these frames, ascending."""
        return sorted({bisect.bisect_right(self.starts, frame) - 1 for frame in wanted})


def closed_groups(
    container: InputContainer, stream: VideoStream, *, most_bytes: int
) -> Groups | None:
    """Return the groups of a copy; None for other files, and those of which not all packets may be kept."""
    is_copy = container.metadata.get("comment", "").startswith(COPY_MARK)
    if not (is_copy and 0 < container.size <= most_bytes):
        return None
    entries = list(stream.index_entries)
    starts = [i for i, entry in enumerate(entries) if entry.is_keyframe]
    hidden = any(entry.is_discard or not entry.size for entry in entries)
    if hidden or not starts or starts[0]:
        return None
    starts.append(len(entries))
    # The index has decoding times, and seeking goes by the times of showing, which are later by as much as the first
    # decoding time is negative.
    middles = [entries[(start + end) // 2].timestamp for start, end in itertools.pairwise(starts)]
    shift = max(0, -entries[0].timestamp)
    times = [
        max(middle, entries[start].timestamp + shift)
        for start, middle in zip(starts, middles, strict=False)
    ]
    return Groups(tuple(starts), tuple(entries[i].pos for i in starts[:-1]), tuple(times))


def read_groups(
    container: InputContainer, stream: VideoStream, groups: Groups, numbers: Sequence[int]
) -> list[tuple[int, list[Packet]]] | None:
    """Return (position of its first packet, packets) of each of these groups.

    None where the file is not as its index says, or a group is not closed.
    """
    found: list[tuple[int, list[Packet]]] = []
    packets: Iterator[Packet] = iter(())
    for before, number in zip((None, *numbers), numbers, strict=False):
        if before is None or number != before + 1:
            container.seek(groups.times[number], stream=stream, backward=True)
            packets = container.demux(stream)
        start, end = groups.starts[number : number + 2]
        group = list(itertools.islice(packets, end - start))
        here = group and group[0].pos == groups.places[number]
        if not here or not _is_closed(group, length=end - start):
            return None
        found.append((start, group))
    return found


def _is_closed(group: Sequence[Packet], *, length: int) -> bool:
    """Whether these are the packets of one group, all shown after its keyframe, each at a time of its own."""
    times = [packet.pts for packet in group if packet.pts is not None]
    return (
        len(set(times)) == length
        and all(packet.is_keyframe == (i == 0) for i, packet in enumerate(group))
        and times[0] == min(times)
    )

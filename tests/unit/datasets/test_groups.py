"""Copies are read group by group, and are exact whatever their header says."""

import io
import json

import av
import numpy as np
import pytest

from clips import DecodeConfig, DecodeError
from clips.decode.groups import COPY_MARK, Groups, closed_groups, read_groups
from clips.decode.opening import open_stream
from clips.decode.pyav import PyavReader
from clips.ingest import probe
from clips.synthetic import Encoding, encode, numbered_frames, read_number
from clips.transcode import Encoder, signature, transcode

DECODE = DecodeConfig(seconds=60.0)
COUNT, GROUP = 100, 24
SOURCE = encode(numbered_frames(COUNT, width=96, height=64), Encoding(gop=250))
MARK = json.dumps(signature(1, None, Encoder()))


def copy_of(data: bytes) -> bytes:
    return transcode(data, encoder=Encoder(gop=GROUP), made_of=json.loads(MARK), decode=DECODE).data


COPY = copy_of(SOURCE)


def marked(data: bytes) -> bytes:
    """The same packets in a file that says it is a copy."""
    file = io.BytesIO()
    with av.open(io.BytesIO(data), "r") as source, av.open(file, "w", format="mp4") as target:
        target.metadata["comment"] = MARK
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    return file.getvalue()


def groups_of(data: bytes, most_bytes: int = 1 << 30) -> Groups | None:
    container, stream = open_stream(data, size=None, config=DECODE)
    with container:
        return closed_groups(container, stream, most_bytes=most_bytes)


def test_the_index_of_a_copy_says_where_its_groups_lie() -> None:
    assert MARK.startswith(COPY_MARK)
    assert json.loads(MARK)["encoder"]["gop"] == 64
    groups = groups_of(COPY)
    assert groups is not None
    assert (groups.frames, groups.starts) == (COUNT, (0, 24, 48, 72, 96, 100))
    assert groups.holding([0, 23, 99, 47]) == [0, 1, 4]
    assert groups_of(SOURCE) is None, "it does not say it is a copy"
    assert groups_of(COPY, most_bytes=1000) is None


@pytest.mark.parametrize("numbers", [[0], [1, 2], [4], [0, 2, 4], [0, 1, 2, 3, 4]], ids=str)
def test_only_the_groups_asked_for_are_read(numbers: list[int]) -> None:
    groups = groups_of(COPY)
    assert groups is not None
    container, stream = open_stream(COPY, size=None, config=DECODE)
    with container:
        found = read_groups(container, stream, groups, numbers)
        assert found is not None
        starts = [groups.starts[number] for number in numbers]
        assert [start for start, _ in found] == starts
        ends = [groups.starts[number + 1] for number in numbers]
        assert [start + len(packets) for start, packets in found] == ends


@pytest.mark.parametrize("seed", range(8))
def test_clips_of_a_copy_are_those_of_a_full_decode(seed: int) -> None:
    with PyavReader(COPY, config=DECODE) as reader:
        (expected,) = reader.read([np.arange(COUNT)])
    assert [read_number(frame) for frame in expected] == list(range(COUNT))
    draw = np.random.default_rng(seed)
    with PyavReader(COPY, config=DECODE) as reader:
        for _ in range(4):
            clips = [
                np.minimum(draw.integers(COUNT) + draw.integers(1, 9) * np.arange(8), COUNT - 1)
                for _ in range(draw.integers(1, 4))
            ]
            for indices, clip in zip(clips, reader.read(clips), strict=True):
                np.testing.assert_array_equal(clip, expected[indices])
        assert len(reader.times_s) == reader.frames == COUNT
        np.testing.assert_array_equal(reader.read([np.array([50])])[0], expected[[50]])


@pytest.mark.parametrize(
    "params",
    ["open-gop=1:keyint=12:bframes=3", "keyint=1", "keyint=250:b-pyramid=normal:bframes=5"],
)
def test_a_mark_on_a_file_of_other_groups_does_no_harm(params: str) -> None:
    encoding = Encoding(gop=12, options={"x264-params": params})
    data = encode(numbered_frames(COUNT, width=96, height=64), encoding)
    for start in range(0, 90, 9):
        with PyavReader(marked(data), config=DECODE) as reader:
            (clip,) = reader.read([start + np.arange(10)])
            assert [read_number(frame) for frame in clip] == list(range(start, start + 10))


def test_a_copy_that_was_cut_is_read_as_far_as_it_goes() -> None:
    cut = COPY[: len(COPY) * 3 // 5]
    with PyavReader(cut, config=DECODE) as reader:
        (clip,) = reader.read([np.arange(20)])
        assert [read_number(frame) for frame in clip] == list(range(20))
    with PyavReader(cut, config=DECODE) as reader, pytest.raises(DecodeError) as caught:
        reader.read([np.arange(80, 90)])
    assert caught.value.kind in ("corrupt", "missing_frames")
    assert 20 <= probe(cut, decode=DECODE).frames < 80, "a manifest has what is there"

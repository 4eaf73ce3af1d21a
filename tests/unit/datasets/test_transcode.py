"""Copies: as many frames at the same times, cheap to decode, and what they say of themselves."""

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Literal

import av
import numpy as np
import pytest
from av.container import InputContainer

from clips import DecodeConfig, DecodeError, Entry, Rejected, open_video, storage
from clips.decode.pyav import PyavReader
from clips.synthetic import (
    Encoding,
    MotionConfig,
    encode,
    motion_frames,
    numbered_frames,
    read_number,
)
from clips.transcode import Encoder, copy_name, copy_of, make_copy, signature, transcode

Codec = Literal["mpeg4", "h264"]
SMALL = Encoder(short_side=64, quantiser=2, crf=12, preset="veryfast")
DECODE = DecodeConfig(seconds=60)


def frames_of(data: bytes) -> np.ndarray:
    with open_video(data) as reader:
        return reader.read([np.arange(reader.frames)])[0]


def packets_of(data: bytes) -> list[av.Packet]:
    with av.open(io.BytesIO(data)) as container:
        assert isinstance(container, InputContainer)
        return [p for p in container.demux(container.streams.video[0]) if p.size]


@pytest.mark.parametrize("codec", ["mpeg4", "h264"])
@pytest.mark.parametrize(
    "encoding",
    [
        Encoding(gop=250),
        Encoding(codec="mpeg4", container="avi"),
        Encoding(codec="libvpx-vp9", container="webm", options={"cpu-used": "8"}),
        Encoding(pixel_format="yuv444p"),
        Encoding(times=[17 * i + i * i for i in range(70)]),
        Encoding(times=[40 * i + (90_000 if i > 30 else 0) for i in range(70)]),
    ],
    ids=["long-gop", "avi", "vp9", "444", "variable-rate", "a-long-pause"],
)
def test_a_copy_shows_every_frame_of_its_source_at_its_time(
    encoding: Encoding, codec: Codec
) -> None:
    source = encode(numbered_frames(70, width=128, height=96), encoding)
    copy = transcode(source, encoder=replace(SMALL, codec=codec), decode=DECODE)
    assert copy.frames == 70
    assert [read_number(frame) for frame in frames_of(copy.data)] == list(range(70))
    with open_video(source) as before, open_video(copy.data) as after:
        np.testing.assert_allclose(after.times_s, before.times_s, atol=1e-3)
    assert 30 < copy.psnr_db < math.inf


@pytest.mark.parametrize("codec", ["mpeg4", "h264"])
def test_a_copy_is_made_to_be_decoded_from_anywhere(codec: Codec) -> None:
    frames = motion_frames(0, seed=1, config=MotionConfig(size=128, frames=200))
    source = encode(frames, Encoding(gop=250, options={"crf": "10"}))
    copy = transcode(source, encoder=replace(SMALL, codec=codec), decode=DECODE)
    with PyavReader(copy.data, config=DECODE) as reader:
        assert reader.info.keyframe_spacing == 64
        assert (reader.info.codec, reader.info.container.split(",")[0]) == (codec, "mov")
    keys = [p.pts or 0 for p in packets_of(copy.data) if p.is_keyframe]
    assert np.diff(keys).tolist() == [64 * 3750] * 3
    with av.open(io.BytesIO(copy.data)) as container:
        assert isinstance(container, InputContainer)
        container.streams.video[0].codec_context.skip_frame = "NONREF"
        needed = sum(1 for _ in container.decode(video=0))
    assert needed < 0.18 * 200, "most frames are B-frames that nobody refers to"
    assert copy.data.index(b"moov") < copy.data.index(b"mdat"), "a clip needs the index first"


@pytest.mark.parametrize(
    ("size", "copied"), [((170, 128), (84, 64)), ((128, 172), (64, 86)), ((48, 38), (48, 38))]
)
def test_the_short_side_is_scaled_down_and_never_up(
    size: tuple[int, int], copied: tuple[int, int]
) -> None:
    source = encode(
        numbered_frames(10, width=size[0], height=size[1]), Encoding(pixel_format="yuv444p")
    )
    frames = frames_of(transcode(source, encoder=SMALL, decode=DECODE).data)
    assert frames.shape[1:3] == (copied[1], copied[0])


def test_a_copy_is_turned_like_its_source() -> None:
    source = encode(numbered_frames(12, width=128, height=96), Encoding(rotation=90))
    before, after = (
        frames_of(source),
        frames_of(transcode(source, encoder=SMALL, decode=DECODE).data),
    )
    assert before.shape[1:3] == (128, 96)
    assert after.shape[1:3] == (86, 64)
    assert [read_number(np.rot90(f, 3)) for f in after] == [
        read_number(np.rot90(f, 3)) for f in before
    ]


@pytest.mark.parametrize("codec", ["mpeg4", "h264"])
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuvj420p"])
def test_a_copy_has_the_colours_of_its_source(codec: Codec, pixel_format: str) -> None:
    frames = motion_frames(0, seed=1, config=MotionConfig(size=64, frames=20))
    source = encode(frames, Encoding(pixel_format=pixel_format, options={"crf": "5"}))
    copy = transcode(source, encoder=replace(SMALL, codec=codec), decode=DECODE)
    lost = frames_of(copy.data).astype(float) - frames_of(source)
    assert np.abs(lost.mean(axis=(0, 1, 2))).max() < 1.0


def test_a_source_that_does_not_decode_to_its_end_has_no_copy() -> None:
    source = bytearray(encode(numbered_frames(60, width=128, height=96), Encoding(gop=60)))
    source[len(source) // 2 : len(source) // 2 + 400] = bytes(400)
    with pytest.raises(DecodeError):
        transcode(bytes(source), encoder=SMALL, decode=DECODE)


def test_a_picture_that_changes_its_size_has_no_copy(videos: Path) -> None:
    with pytest.raises(DecodeError, match="size_change"):
        transcode(str(videos / "odd" / "reschange.ts"), encoder=SMALL, decode=DECODE)


@pytest.mark.parametrize(
    "name", ["rot90.mp4", "vfr.mp4", "editlist210.mp4", "tenbit.mp4", "opengop.mp4"]
)
def test_odd_real_videos_have_copies_like_them(videos: Path, name: str) -> None:
    encoder = Encoder(short_side=128, preset="veryfast")
    assert transcode(str(videos / "odd" / name), encoder=encoder, decode=DECODE).psnr_db > 35


def test_an_existing_copy_is_kept_unless_it_is_of_other_bytes_or_settings(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    source = tmp_path / "in" / "a.avi"
    source.write_bytes(
        encode(numbered_frames(20, width=64, height=64), Encoding(codec="mpeg4", container="avi"))
    )
    target, uri = str(tmp_path / "out"), str(tmp_path / "out" / "a.avi.mp4")

    def make(entry: Entry, encoder: Encoder = SMALL) -> dict[str, object]:
        made = make_copy(
            entry, root=str(tmp_path / "in"), target=target, encoder=encoder, decode=DECODE
        )
        assert isinstance(made, dict)
        return made

    entry = Entry("a.avi", source.stat().st_size, "one")
    first = make(entry)
    assert (first["video_id"], first["source"], first["frames"]) == ("a.avi.mp4", "a.avi", 20)
    assert first["size"] == storage.size(uri)
    with PyavReader(uri, config=DECODE) as reader:
        said = json.loads(reader.info.comment)
    assert float(said.pop("psnr_db")) == first["psnr_db"]
    assert said == signature(entry.size, "one", SMALL)
    assert make(entry) == {**first, "kept": True}
    assert make(Entry("a.avi", entry.size, "two"))["kept"] is False
    assert make(Entry("a.avi", entry.size, "two"), Encoder(short_side=32))["width"] == 32


def test_a_bad_source_is_rejected_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"text" * 99)
    made = make_copy(
        Entry("a.mp4", 396),
        root=str(tmp_path),
        target=str(tmp_path / "out"),
        encoder=SMALL,
        decode=DECODE,
    )
    assert isinstance(made, Rejected)
    assert (made.video_id, made.reason) == ("a.mp4", "corrupt")
    assert not (tmp_path / "out").exists()


def test_names_of_copies_tell_them_apart_and_lie_below_the_target() -> None:
    names = {
        "a/b.mp4": "a/b.mp4",
        "a/b.avi": "a/b.avi.mp4",
        "a/b.MP4": "a/b.MP4.mp4",
        "a/folder_of_frames": "a/folder_of_frames.mp4",
        "a/0.tar/b.webm": "a/0/b.webm.mp4",
        "https://host/a.mp4": "https/host/a.mp4",
    }
    assert {name: copy_name(name) for name in names} == names


def test_folders_of_frames_and_members_of_shards_have_copies(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    pictures = numbered_frames(12, width=128, height=96)
    for number, frame in enumerate(pictures):
        data = encode(
            frame[None], Encoding(codec="mjpeg", container="image2pipe", pixel_format="yuvj420p")
        )
        (folder / f"{number}.jpg").write_bytes(data)
    data = encode(pictures, Encoding(gop=5))
    (tmp_path / "0.tar").write_bytes(bytes(512) + data + bytes(2048))
    for entry in (
        Entry("frames", 1, container="frames"),
        Entry("0.tar/a.mp4", len(data), offset=512),
    ):
        copy = copy_of(entry, root=str(tmp_path), encoder=SMALL, decode=DECODE)
        assert [read_number(frame) for frame in frames_of(copy.data)] == list(range(12))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"short_side": 15}, "short_side is 15; it must be even and at least 16"),
        ({"gop": 0}, "gop is 0; it must be at least 1"),
        ({"codec": "vp9"}, "codec is 'vp9'; allowed: mpeg4, h264"),
        ({"quantiser": 0}, "quantiser is 0; it must be 1 to 12"),
        ({"crf": 52}, "crf is 52; x264 takes 0 to 51"),
        ({"preset": "quick"}, "preset is 'quick'; allowed: ultrafast, superfast, "),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Encoder(**options)  # type: ignore[arg-type]

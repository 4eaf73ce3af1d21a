"""Folders of numbered pictures: found, probed, and read like videos."""

import io
import os
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.stream import VideoStream

from clips import ClipConfig, DecodeConfig, DecodeError, Entry, Rejected, examine, find_videos
from clips.decode.frames import FramesReader
from clips.decode.series import in_order
from clips.disposable import take_clips
from clips.load import Take, load_clips, load_views
from clips.manifest import Manifest
from clips.synthetic import numbered_frames, read_number

CONFIG = DecodeConfig()


def picture(frame: np.ndarray, codec: str) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="image2pipe") as container:
        stream = container.add_stream("png" if codec == "png" else "mjpeg", rate=25)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height = frame.shape[1], frame.shape[0]
        stream.pix_fmt = "rgb24" if codec == "png" else "yuvj420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def write(folder: Path, *, name: str = "img_{:05}.jpg", first: int = 1, count: int = 30) -> Path:
    folder.mkdir(parents=True)
    for number, frame in enumerate(numbered_frames(count, width=64, height=48)):
        suffix = name.rpartition(".")[2]
        (folder / name.format(first + number)).write_bytes(picture(frame, suffix))
    return folder


@pytest.mark.parametrize(
    ("name", "first"),
    [("img_{:05}.jpg", 1), ("frame_{:06}.jpg", 0), ("{}.png", 0), ("x-{:03}.JPEG", 1)],
)
def test_pictures_are_read_in_the_order_of_their_numbers(
    tmp_path: Path, name: str, first: int
) -> None:
    folder = write(tmp_path / "v", name=name, first=first, count=12)
    with FramesReader(str(folder), config=CONFIG) as reader:
        assert (reader.frames, reader.fps) == (12, 25.0)
        (clip, part) = reader.read(
            [np.arange(12), np.array([11, 2])],
        )
    assert [read_number(frame) for frame in clip] == list(range(12))
    np.testing.assert_array_equal(part, clip[[11, 2]])
    if name.endswith("png"):
        np.testing.assert_array_equal(clip, numbered_frames(12, width=64, height=48))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "empty: the folder holds no numbered pictures"),
        (["cover.jpg", "notes.txt"], "empty: the folder holds no numbered pictures"),
        (
            ["img_1.jpg", "img_2.jpg", "img_5.jpg"],
            "missing_frames: number 3 is missing: behind img_2.jpg comes img_5.jpg",
        ),
        (["img_2.jpg", "img_3.jpg"], "missing_frames: the first picture is img_2.jpg; numbers"),
        (
            ["flow_1.jpg", "img_1.jpg"],
            "unsupported: the folder holds 2 series of pictures: flow_1.jpg, img_1.jpg",
        ),
        (["img_1.jpg", "img_01.jpg"], "unsupported: img_1.jpg and img_01.jpg have the same number"),
    ],
)
def test_a_series_that_is_none_says_why(names: list[str], message: str) -> None:
    with pytest.raises(DecodeError) as caught:
        in_order(names)
    assert str(caught.value).startswith(message)


def test_numbers_without_zeros_in_front_are_numbers() -> None:
    assert in_order(["10.png", "9.png", "1.png", *(f"{i}.png" for i in range(2, 9))])[-2:] == [
        "9.png",
        "10.png",
    ]


def test_damaged_and_missing_pictures_have_a_reason(tmp_path: Path) -> None:
    folder = write(tmp_path / "v", count=6)
    with FramesReader(str(folder), config=CONFIG) as reader:
        whole = (folder / "img_00003.jpg").read_bytes()
        for data, kind in ((whole[: len(whole) // 2], "corrupt"), (b"", "empty")):
            (folder / "img_00003.jpg").write_bytes(data)
            with pytest.raises(DecodeError, match=r"img_00003\.jpg") as caught:
                reader.read([np.array([1, 2])])
            assert caught.value.kind == kind
        (folder / "img_00003.jpg").unlink()
        with pytest.raises(DecodeError) as caught:
            reader.read([np.array([2])])
        assert caught.value.kind == "io"
        assert reader.read([np.array([4])])[0].shape == (1, 48, 64, 3)
    large = numbered_frames(1, width=640, height=480)[0]
    (folder / "img_00003.jpg").write_bytes(picture(large, "jpg"))
    with pytest.raises(DecodeError, match="size_change"):
        FramesReader(str(folder), config=CONFIG).read([np.arange(6)])
    with pytest.raises(DecodeError, match=r"too_large|corrupt"):
        FramesReader(str(folder), config=DecodeConfig(max_pixels=5000)).read([np.array([2])])


def test_folders_of_frames_are_found_among_videos(tmp_path: Path) -> None:
    write(tmp_path / "jump" / "a", count=3)
    write(tmp_path / "jump" / "b", name="{:03}.png", count=2)
    write(tmp_path / "run" / "c", count=2)
    (tmp_path / "run" / "c" / "c.mp4").write_bytes(b"a video among its stills")
    (tmp_path / "run" / "one").mkdir()
    (tmp_path / "run" / "one" / "cover_1.jpg").write_bytes(b"x")
    found = find_videos(str(tmp_path), labels="folders").entries
    assert [(e.video_id, e.container, e.label) for e in found] == [
        ("jump/a", "frames", "jump"),
        ("jump/b", "frames", "jump"),
        ("run/c/c.mp4", None, "run"),
    ]
    assert found[0].size == sum(f.stat().st_size for f in (tmp_path / "jump" / "a").iterdir())
    os.utime(tmp_path / "jump" / "a" / "img_00002.jpg", (1, 1))
    again = find_videos(str(tmp_path), labels="folders").entries
    assert again[0].etag != found[0].etag
    assert again[1] == found[1]


def test_the_authors_lists_of_frames_become_clips(tmp_path: Path) -> None:
    write(tmp_path / "data" / "a", count=30)
    write(tmp_path / "data" / "b", count=8)
    (tmp_path / "list.txt").write_text("a 1 30\nb 1 9\nc 1 9\n")
    found = find_videos(str(tmp_path / "list.txt"), root=str(tmp_path / "data"))
    assert [(r.video_id, r.reason) for r in found.missing] == [("c", "missing")]
    a, b = (examine(entry, root=found.root) for entry in found.entries)
    assert b == Rejected("b", "missing_frames", "the list says 9 frames, but the folder holds 8")
    assert isinstance(a, dict)
    shown = {n: a[n] for n in ("container", "codec", "width", "height", "frames", "duration_s")}
    assert shown == dict(
        container="frames", codec="mjpeg", width=64, height=48, frames=30, duration_s=1.2
    )
    video = Manifest.build([a], root=found.root).video(0)
    config = ClipConfig(stride=2, crop="centre")
    (view,) = load_views(video, config, frames=5, size=48)
    assert view.shape == (5, 48, 48, 3)
    clips = load_clips(video, config, seeds=[1, 2], frames=5, size=48)
    assert clips.shape == (2, 5, 48, 48, 3)
    assert not np.array_equal(clips[0], clips[1])
    np.testing.assert_array_equal(take_clips(Take(video, config, 5, 48, seeds=(1, 2))), clips)


def test_a_list_of_labels_may_name_folders_of_frames(tmp_path: Path) -> None:
    write(tmp_path / "a", count=3)
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.csv").write_text("path,label\na,7\nempty,8\n")
    found = find_videos(str(tmp_path / "list.csv"))
    (entry,) = found.entries
    assert (entry.video_id, entry.container, entry.label, entry.frames) == (
        "a",
        "frames",
        "7",
        None,
    )
    assert found.missing == (
        Rejected(
            "empty", "missing", "the list names it, but no folder of numbered pictures is there"
        ),
    )


def test_a_folder_that_vanishes_is_missing(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    gone = examine(Entry("gone", 10, container="frames"), root=str(tmp_path))
    assert isinstance(gone, Rejected)
    assert gone.reason in ("missing", "empty")


def test_frames_in_a_bucket_are_read_one_by_one(s3: object, tmp_path: Path) -> None:
    store = s3.buckets["videos"]  # type: ignore[attr-defined]
    for file in write(tmp_path / "v", count=20).iterdir():
        store[f"set/v/{file.name}"] = file.read_bytes()
    (entry,) = find_videos("s3://videos/set").entries
    assert (entry.video_id, entry.container) == ("v", "frames")
    s3.requests.clear()  # type: ignore[attr-defined]
    with FramesReader("s3://videos/set/v", config=CONFIG) as reader:
        (clip,) = reader.read([np.array([3, 9])])
    assert [read_number(frame) for frame in clip] == [3, 9]
    assert sum(".jpg" in request for request in s3.requests) == 2  # type: ignore[attr-defined]

"""Videos in tar shards: found with their places and labels, probed, and read by range."""

import importlib.util
import io
import random
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clips import ClipConfig, DecodeConfig, Manifest, examine, find_videos
from clips.decode import open_video
from clips.decode.source import local_copy
from clips.disposable import take_clips
from clips.load import Take, finish, load_views, read_crops
from clips.shards import Member, members
from clips.sources import VIDEO_SUFFIXES
from odd_videos import video

BACKENDS = ("pyav", *(["decord"] if importlib.util.find_spec("decord") else []))
H264, VP9 = video("h264 with B-frames"), video("vp9")


def write(path: Path, files: dict[str, bytes], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def listed(path: Path) -> list[Member]:
    return members(str(path), size=path.stat().st_size, suffixes=VIDEO_SUFFIXES)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_have_their_places_and_the_labels_beside_them(tmp_path: Path, form: int) -> None:
    long = "long/" + "n" * 90 + "/" + "name" * 20
    files = {
        "a/0001.cls": b"7",
        "a/0001.mp4": H264,
        "a/0002.json": b'{"label": "jump", "caption": "a cat"}',
        "a/0002.webm": VP9,
        "a/0002.txt": b"caption",
        "a/0003.MP4": H264,
        f"{long}.mp4": H264,
        "b.json": b"[1, 2]",
        "b.left.mp4": H264,
        "c.jpg": b"no video",
        "__index__/d.mp4": b"skipped",
    }
    path = write(tmp_path / "s.tar", files, format=form)
    found = listed(path)
    data = path.read_bytes()
    for member in found:
        assert data[member.offset : member.offset + member.size] == files[member.name]
    assert [(m.name, m.label) for m in found] == [
        ("a/0001.mp4", "7"),
        ("a/0002.webm", "jump"),
        ("a/0003.MP4", None),
        (f"{long}.mp4", None),
        ("b.left.mp4", None),
    ]


def test_samples_are_those_of_the_library(tmp_path: Path) -> None:
    from webdataset.tariterators import group_by_keys, tar_file_iterator

    files = {f"x/{i:03}.{end}": b"%d" % i for i in range(20) for end in ("cls", "mp4", "txt")}
    path = write(tmp_path / "s.tar", files)
    with path.open("rb") as file:
        fields = [{**field, "__url__": ""} for field in tar_file_iterator(file)]  # pyright: ignore
    theirs = [(s["__key__"] + ".mp4", str(int(s["cls"]))) for s in group_by_keys(fields)]
    assert [(member.name, member.label) for member in listed(path)] == theirs


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.cls": b"cat", "a.mp4": b"x"}, "^a.cls is no label: "),
        ({"a.json": b"{", "a.mp4": b"x"}, "^a.json is no label: "),
        ({"a.mp4": b"x", "a.MP4": b"y"}, "duplicate file name"),
        ({"a.cls": b"1" * (1 << 20) + b"1"}, "^a.cls is too large for a label: 1048577 bytes"),
    ],
)
def test_a_shard_with_a_mistake_names_the_member(
    tmp_path: Path, files: dict[str, bytes], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        listed(write(tmp_path / "s.tar", files))


def test_a_shard_that_is_none_or_cut_short_is_reported_and_the_others_are_used(
    tmp_path: Path,
) -> None:
    write(tmp_path / "0.tar", {"a.mp4": H264})
    cut = write(tmp_path / "1.tar", {"a.mp4": H264, "b.mp4": H264})
    cut.write_bytes(cut.read_bytes()[: len(H264) + 4000])
    (tmp_path / "2.tar").write_bytes(random.Random(0).randbytes(5000))
    (tmp_path / "3.tar").write_bytes(b"")
    write(tmp_path / "4.tar", {"a.txt": b"no video"})
    with tarfile.open(tmp_path / "5.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.mp4"))
    found = find_videos(str(tmp_path))
    assert [entry.video_id for entry in found.entries] == ["0.tar/a.mp4"]
    reasons = {r.video_id: (r.reason, r.message.partition(":")[0]) for r in found.missing}
    unreadable = ("corrupt", "not a readable tar file")
    assert reasons == {
        **dict.fromkeys(("1.tar", "2.tar", "3.tar", "5.tar"), unreadable),
        "4.tar": ("empty", "no video is in this shard"),
    }


def test_videos_of_shards_become_rows_and_are_read_like_files(tmp_path: Path) -> None:
    write(tmp_path / "d" / "train" / "x" / "0.tar", {"a.cls": b"3", "a.mp4": H264, "b.webm": VP9})
    (tmp_path / "d" / "val" / "5").mkdir(parents=True)
    (tmp_path / "d" / "val" / "5" / "a.mp4").write_bytes(H264)
    found = find_videos(str(tmp_path / "d"), labels="folders")
    rows = [examine(entry, root=found.root) for entry in found.entries]
    assert [r["video_id"] for r in rows if isinstance(r, dict)] == [
        "train/x/0.tar/a.mp4",
        "train/x/0.tar/b.webm",
        "val/5/a.mp4",
    ]
    manifest = Manifest.build([r for r in rows if isinstance(r, dict)], root=found.root)
    assert manifest.table["label"].to_pylist() == ["3", "x", "5"]
    assert manifest.table["split"].to_pylist() == ["train", "train", "val"]
    assert manifest.table["offset"].null_count == 1
    table = manifest.local_table(str(tmp_path / "cache"))
    in_shard, alone = table.video(0), table.video(2)
    assert (in_shard.size, alone.offset) == (len(H264), None)
    for backend in BACKENDS:
        from_shard, from_file = (
            load_views(v, ClipConfig(), frames=8, size=32, decode=DecodeConfig(backend=backend))
            for v in (in_shard, alone)
        )
        np.testing.assert_array_equal(from_shard, from_file)
    copy = local_copy(in_shard.uri, size=in_shard.size, offset=in_shard.offset)
    assert copy == H264
    take = Take(in_shard, ClipConfig(), 8, 32, seeds=(1,))
    np.testing.assert_array_equal(read_crops(take, copy)[0], read_crops(take)[0])
    np.testing.assert_array_equal(take_clips(take), finish(take, read_crops(take)))


def test_a_single_shard_is_a_source_and_no_line_of_a_list(tmp_path: Path) -> None:
    path = write(tmp_path / "s.tar", {"a.mp4": H264})
    found = find_videos(str(path))
    assert (found.root, found.entries[0].video_id) == (str(tmp_path), "s.tar/a.mp4")
    (tmp_path / "l.csv").write_text("path\ns.tar\nb.mp4\n")
    (tmp_path / "b.mp4").write_bytes(H264)
    (missing,) = find_videos(str(tmp_path / "l.csv")).missing
    assert (missing.reason, missing.message) == (
        "unsupported",
        "a shard in a list: name the shard, or its folder, as the source",
    )


def test_a_shard_in_a_bucket_is_listed_without_reading_its_videos(s3: Any, tmp_path: Path) -> None:
    big = {f"z{i}.mp4": bytes(300_000) for i in range(4)}
    path = write(tmp_path / "s.tar", {"a.cls": b"1", "a.mp4": H264, **big})
    s3.buckets["videos"]["set/s.tar"] = path.read_bytes()
    found = find_videos("s3://videos/set").entries
    assert [(e.video_id, e.size) for e in found] == [
        ("s.tar/a.mp4", len(H264)),
        *((f"s.tar/{name}", 300_000) for name in big),
    ]
    ranged = [request for request in s3.requests if request.startswith("GET /videos/set/s.tar")]
    assert len(ranged) <= 8
    a = found[0]
    s3.requests.clear()
    with open_video("s3://videos/set/s.tar/a.mp4", size=a.size, offset=a.offset) as reader:
        assert reader.frames == 70
    assert all("s.tar" in request for request in s3.requests if "?" not in request)
    row = examine(a, root="s3://videos/set")
    assert isinstance(row, dict)
    assert (row["codec"], row["offset"], row["label"]) == ("h264", a.offset, "1")

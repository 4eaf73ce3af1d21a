"""Videos in tar shards: found with their places and labels, probed, and read by range."""

import importlib.util
import io
import os
import random
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clips import ClipConfig, DecodeConfig, Entry, Manifest, Video, examine, find_videos
from clips.cache import Cache
from clips.decode import open_video
from clips.decode.source import WHOLE_BYTES, local_copy
from clips.disposable import take_clips
from clips.load import Take, finish, load_views, read_crops
from clips.shards import Member, members
from clips.sources import VIDEO_SUFFIXES
from clips.synthetic import encode, numbered_frames
from odd_videos import video

BACKENDS = ("pyav", *(["decord"] if importlib.util.find_spec("decord") else []))
H264, VP9 = video("h264 with B-frames"), video("vp9")
NUMBERED = encode(numbered_frames(40, width=64, height=48))


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


# --- through the decoding process ------------------------------------------------------------


def row_of(entry: Entry, root: str, folder: Path) -> Video:
    row = examine(entry, root=root)
    assert isinstance(row, dict)
    return Manifest.build([row], root=root).local_table(str(folder)).video(0)


@pytest.mark.parametrize("whole_bytes", [WHOLE_BYTES, 0])
def test_a_member_is_taken_like_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole_bytes: int
) -> None:
    monkeypatch.setattr("clips.decode.source.WHOLE_BYTES", whole_bytes)  # 0: read by ranges
    write(tmp_path / "d" / "s.tar", {"a.mp4": NUMBERED, "b.mp4": H264})
    for entry, data in zip(find_videos(f"{tmp_path}/d").entries, (NUMBERED, H264), strict=True):
        member = row_of(entry, f"{tmp_path}/d", tmp_path / entry.video_id.replace("/", "-"))
        take = Take(member, ClipConfig(), 8, 32, seeds=(1, 2))
        np.testing.assert_array_equal(take_clips(take), finish(take, read_crops(take, data)))


def test_a_member_in_a_bucket_is_taken_by_its_range_and_kept_in_the_cache(
    s3: Any, tmp_path: Path
) -> None:
    path = write(tmp_path / "s.tar", {"z.mp4": bytes(3_000_000), "a.mp4": NUMBERED})
    s3.buckets["videos"]["s.tar"] = path.read_bytes()
    entry = find_videos("s3://videos").entries[0]
    member = row_of(entry, "s3://videos", tmp_path / "tables")
    assert member.etag is not None
    take = Take(member, ClipConfig(), 8, 32, seeds=(1, 2))
    expected = finish(take, read_crops(take, NUMBERED))
    s3.requests.clear()
    s3.headers.clear()
    assert np.array_equal(take_clips(take), expected)
    assert s3.requests == ["GET /videos/s.tar"]
    end = (member.offset or 0) + len(NUMBERED) - 1
    assert s3.headers[0]["range"] == f"bytes={member.offset}-{end}"
    cache = Cache(str(tmp_path / "cache"), 1 << 20)
    for _ in range(3):
        assert np.array_equal(take_clips(take, cache=cache), expected)
    assert len(s3.requests) == 2
    rewritten = replace(take, video=replace(member, etag="of another shard"))
    assert np.array_equal(take_clips(rewritten, cache=cache), expected)
    assert len(s3.requests) == 3


def test_a_large_member_in_a_bucket_is_read_by_ranges_in_the_decoding_process(
    s3: Any, tmp_path: Path
) -> None:
    path = write(tmp_path / "s.tar", {"z.mp4": bytes(3_000_000), "a.mp4": NUMBERED})
    s3.buckets["videos"]["s.tar"] = path.read_bytes()
    offset = listed(path)[1].offset
    s3.requests.clear()
    script = (
        "import sys\n"
        "from clips import ClipConfig, Video\n"
        "from clips.decode import source\n"
        "from clips.disposable import take_clips\n"
        "from clips.load import Take\n"
        "source.WHOLE_BYTES = 0\n"
        "size, offset = map(int, sys.argv[1:])\n"
        "uri = 's3://videos/s.tar/a.mp4'\n"
        "video = Video(uri, 'v', 0, size, None, (), *[None] * 7, offset=offset)\n"
        "config = ClipConfig(stride=1, crop='centre')\n"
        "clips = take_clips(Take(video, config, 4, 48, seeds=(1,)))\n"
        "sys.stdout.buffer.write(clips.tobytes())\n"
    )
    taken = subprocess.run(  # a process of its own: the server of this one's decoders knows no `s3`
        [sys.executable, "-c", script, str(len(NUMBERED)), str(offset)],
        stdout=subprocess.PIPE,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    video = Video("", "v", 0, 0, None, (), *[None] * 7)
    take = Take(video, ClipConfig(stride=1, crop="centre"), 4, 48, seeds=(1,))
    (expected,) = read_crops(take, NUMBERED)
    assert taken.stdout == expected.tobytes()
    assert set(s3.requests) == {"GET /videos/s.tar"}

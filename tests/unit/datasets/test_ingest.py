import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clips import Manifest, examine, find_videos
from clips.ingest import Entry, Rejected, assign_splits, probe, read_rejected, write_rejected
from clips.synthetic import Encoding, encode, numbered_frames, write_videos

MP4 = encode(numbered_frames(24, width=64, height=48), Encoding(gop=12))


def make(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(MP4 if name.endswith(".mp4") else b"text")
    return folder


def ids(found: Any) -> list[str]:
    return [entry.video_id for entry in found.entries]


# --- folders -------------------------------------------------------------------------------


def test_a_folder_is_searched_at_any_depth_for_videos_only(tmp_path: Path) -> None:
    make(
        tmp_path,
        "b.mp4",
        "a/deep/c.MP4",
        "notes.txt",
        ".hidden.mp4",
        "__MACOSX/x.mp4",
        "a/.s/y.mp4",
    )
    found = find_videos(str(tmp_path))
    assert found.root == str(tmp_path)
    assert ids(found) == ["a/deep/c.MP4", "b.mp4"]
    assert {e.label for e in found.entries} == {None}
    assert found.entries[1].size == len(MP4)


def test_class_folders_are_labels_and_splits_above_them_splits(tmp_path: Path) -> None:
    make(tmp_path, "train/run/1.mp4", "train/jump/x/2.mp4", "val/run/3.mp4")
    found = find_videos(str(tmp_path), labels="folders")
    assert [(e.video_id, e.label, e.split) for e in found.entries] == [
        ("train/jump/x/2.mp4", "jump", "train"),
        ("train/run/1.mp4", "run", "train"),
        ("val/run/3.mp4", "run", "val"),
    ]


def test_a_video_in_no_class_folder_is_a_mistake(tmp_path: Path) -> None:
    make(tmp_path, "run/1.mp4", "2.mp4")
    with pytest.raises(ValueError, match=r"^labels=folders: 2.mp4 lies in no class folder of /"):
        find_videos(str(tmp_path), labels="folders")


def test_nothing_found_says_what_was_there(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^no videos found in .*: it holds no files; videos end in .mp4,"
    ):
        find_videos(str(tmp_path))
    make(tmp_path, "a.txt", "b.jpg")
    with pytest.raises(ValueError, match=r"it holds 2 other files, but no video; videos end in"):
        find_videos(str(tmp_path))


def test_a_wrong_path_or_setting_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^there is nothing at .*/none; check the spelling$"):
        find_videos(str(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"^there is nothing at .*/none.mp4; check the spelling$"):
        find_videos(str(tmp_path / "none.mp4"))
    with pytest.raises(ValueError, match=r"^there is nothing at .*/none.csv; check the spelling$"):
        find_videos(str(tmp_path / "none.csv"))
    with pytest.raises(ValueError, match=r"^labels is 'csv'; allowed: none, folders$"):
        find_videos(str(tmp_path), labels="csv")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"^root goes with a list file"):
        find_videos(str(tmp_path), root="/x")


def test_a_single_video_is_a_source(tmp_path: Path) -> None:
    make(tmp_path, "one.mp4")
    found = find_videos(str(tmp_path / "one.mp4"))
    assert (found.root, ids(found)) == (str(tmp_path), ["one.mp4"])


def test_a_bucket_prefix_is_a_source(s3: Any) -> None:
    s3.buckets["videos"] = {"set/run/1.mp4": MP4, "set/jump/2.mp4": MP4, "other/3.mp4": MP4}
    found = find_videos("s3://videos/set/", labels="folders")
    assert found.root == "s3://videos/set"
    assert [(e.video_id, e.label, e.etag) for e in found.entries] == [
        ("jump/2.mp4", "jump", str(len(MP4))),
        ("run/1.mp4", "run", str(len(MP4))),
    ]
    row = examine(found.entries[0], root=found.root)
    assert isinstance(row, dict)
    assert row["frames"] == 24
    assert Manifest.build([row], root=found.root).video(0).uri == "s3://videos/set/jump/2.mp4"


def test_a_missing_bucket_is_one_clear_line(s3: Any) -> None:
    with pytest.raises(
        ValueError, match=r"^the bucket does not exist: s3://nowhere/set; check its name"
    ):
        find_videos("s3://nowhere/set")


# --- list files ----------------------------------------------------------------------------


def listed(tmp_path: Path, text: str, **options: Any) -> Any:
    make(tmp_path, "a/1.mp4", "b 2.mp4")
    (tmp_path / "train.csv").write_text(text)
    return find_videos(str(tmp_path / "train.csv"), **options)


def test_the_authors_lists_bring_labels(tmp_path: Path) -> None:
    found = listed(tmp_path, "a/1.mp4 7\na/none.mp4 3\r\n\n")
    assert [(e.video_id, e.label, e.size) for e in found.entries] == [("a/1.mp4", "7", len(MP4))]
    assert found.missing == (
        Rejected("a/none.mp4", "missing", "the list names it, but it is not there"),
    )


def test_the_authors_second_form_names_videos_without_labels(tmp_path: Path) -> None:
    assert [(e.video_id, e.label) for e in listed(tmp_path, "a/1.mp4 0 -1\n").entries] == [
        ("a/1.mp4", None)
    ]
    assert listed(tmp_path, "a/1.mp4 -1\n").entries[0].label is None


def test_a_csv_may_hold_spaces_spans_and_splits(tmp_path: Path) -> None:
    text = 'path,label,start_s,end_s,split\nb 2.mp4,jump high,1.5,3,val\n"a/1.mp4","run, fast",,,train\n'
    assert listed(tmp_path, text).entries == (
        Entry("b 2.mp4", len(MP4), label="jump high", split="val", start_s=1.5, end_s=3.0),
        Entry("a/1.mp4", len(MP4), label="run, fast", split="train"),
    )


def test_listed_paths_may_be_absolute_or_relative_to_a_root(tmp_path: Path) -> None:
    make(tmp_path / "data", "x/1.mp4", "y/2.mp4")
    (tmp_path / "l.txt").write_text(f"{tmp_path}/data/x/1.mp4 0\n{tmp_path}/data/y/2.mp4 1\n")
    found = find_videos(str(tmp_path / "l.txt"))
    assert ids(found) == ["data/x/1.mp4", "data/y/2.mp4"]
    (tmp_path / "l.txt").write_text("x/1.mp4 0\n")
    found = find_videos(str(tmp_path / "l.txt"), root=str(tmp_path / "data"))
    assert (found.root, ids(found)) == (str(tmp_path / "data"), ["x/1.mp4"])
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "l.txt").write_text(
        f"{tmp_path}/data/x/1.mp4 0\n{tmp_path}/data/y/2.mp4 1\n"
    )
    found = find_videos(str(tmp_path / "lists" / "l.txt"))
    assert (found.root, ids(found)) == (str(tmp_path / "data"), ["x/1.mp4", "y/2.mp4"])


def test_a_list_in_a_bucket_is_looked_up_with_one_listing(s3: Any) -> None:
    s3.buckets["videos"] = {f"set/{i}.mp4": MP4 for i in range(50)}
    s3.buckets["videos"]["set/train.csv"] = b"".join(b"%d.mp4 1\n" % i for i in range(51))
    found = find_videos("s3://videos/set/train.csv")
    assert len(found.entries) == 50
    assert [r.video_id for r in found.missing] == ["50.mp4"]
    assert len(s3.requests) < 10


ALLOWED = (
    "allowed: 'path label' (one space, no spaces in the path), 'path 0 -1', or a CSV whose first "
    "line names its columns: path, and any of label, split, start_s, end_s"
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a/1.mp4 1\nb 2.mp4 1\n",
            "{f}:2: more than one space in 'b 2.mp4 1': a path with spaces needs the CSV form\n"
            + ALLOWED,
        ),
        ("a/1.mp4\n", "{f}:1: no label after 'a/1.mp4'\n" + ALLOWED),
        (
            "a/1.mp4 1\n\n\nb\nc  1\n",
            "{f}:4: no label after 'b'\n{f}:5: more than one space in 'c  1': a path with spaces needs the CSV form\n"
            + ALLOWED,
        ),
        (
            "frames/1 1 300\n",
            "{f}:1: start 1 and total 300 describe a folder of frames, which cannot be read; a video has '0 -1'\n"
            + ALLOWED,
        ),
        ("path,label\na/1.mp4,\n", "{f}:2: no label for 'a/1.mp4' (-1 means none)\n" + ALLOWED),
        ("path,label\n,3\n", "{f}:2: no path\n" + ALLOWED),
        ("path,label\na,b,c\n", "{f}:2: 3 values for the 2 columns path,label\n" + ALLOWED),
        ("path,lable\na,b\n", "{f}:1: unknown column lable; " + ALLOWED),
        (
            "path,start_s\na,soon\n",
            "{f}:2: start_s is 'soon'; it must be a number of seconds, 0 or more\n" + ALLOWED,
        ),
        ("path,start_s,end_s\na,3,2\n", "{f}:2: end_s 2 is not after start_s 3\n" + ALLOWED),
        (
            "a 1\nb 1\na 2\n",
            "{f}:3: 'a' stands on line 1 already\n" + ALLOWED,
        ),
        ("", "{f} is empty; " + ALLOWED),
        ("path,label\n", "{f} has a header but no lines below it; " + ALLOWED),
    ],
)
def test_mistakes_in_a_list_name_the_line_and_what_is_allowed(
    tmp_path: Path, text: str, message: str
) -> None:
    expected = message.replace("{f}", str(tmp_path / "train.csv"))
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        listed(tmp_path, text)


def test_many_mistakes_are_shown_as_ten_and_counted(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no label after 'x'") as caught:
        listed(tmp_path, "x\n" * 30)
    lines = str(caught.value).splitlines()
    assert len(lines) == 12
    assert lines[10] == "and 20 more lines"


def test_a_binary_file_is_no_list(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"train.csv is not a text file; allowed: 'path label'"):
        find_videos(str(tmp_path / "train.csv"))


def test_paths_without_a_common_root_are_a_mistake(s3: Any, tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("s3://videos/1.mp4 0\ns3://others/1.mp4 1\n")
    with pytest.raises(
        ValueError, match=r"have no folder or bucket in common \(s3://videos/1.mp4, s3://o"
    ):
        find_videos(str(tmp_path / "l.txt"))


# --- probing -------------------------------------------------------------------------------


def test_a_probe_finds_what_the_file_is(tmp_path: Path) -> None:
    (tmp_path / "v.mp4").write_bytes(
        encode(
            numbered_frames(50, width=64, height=48),
            Encoding(gop=20, fps=25, rotation=90, bframes=0),
        )
    )
    found = probe(str(tmp_path / "v.mp4"))
    assert (found.container, found.codec, found.pixel_format) == (
        "mov,mp4,m4a,3gp,3g2,mj2",
        "h264",
        "yuv420p",
    )
    assert (found.width, found.height, abs(found.rotation)) == (48, 64, 90)
    assert (found.fps, found.frames, found.duration_s, found.keyframe_spacing) == (
        25.0,
        50,
        2.0,
        20,
    )


def test_videos_in_a_folder_become_a_manifest(tmp_path: Path) -> None:
    write_videos(tmp_path, range(16), seed=1, class_folders=True)
    found = find_videos(str(tmp_path), labels="folders")
    manifest = Manifest.build([examine(e, root=found.root) for e in found.entries], root=found.root)  # pyright: ignore
    assert len(manifest.classes) == 8
    assert np.bincount(manifest.label_indices()).tolist() == [2] * 8
    assert manifest.video(0).frames == 24


def test_a_single_frame_and_a_span_behind_the_end_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "one.mp4").write_bytes(encode(numbered_frames(1, width=64, height=48)))
    assert examine(Entry("one.mp4", 1), root=str(tmp_path)) == Rejected(
        "one.mp4", "one_frame", "it holds a single frame: nothing moves"
    )
    make(tmp_path, "v.mp4")
    assert examine(Entry("v.mp4", 1, start_s=5.0), root=str(tmp_path)) == Rejected(
        "v.mp4", "missing_frames", "its span starts at 5 s, but the video lasts 1.0 s"
    )


def test_every_bad_video_is_rejected_with_its_reason(videos: Path) -> None:
    expected = {
        "audio_only.mp4": "no_video",
        "corrupt_bytes.mp4": "corrupt",
        "corrupt_moov.mp4": "empty",
        "corrupt_zero30.mp4": "corrupt",
        "corrupt_zero95.mp4": "corrupt",
        "jpg_as.mp4": "still_image",
        "random.mp4": "corrupt",
        "text.mp4": "corrupt",
        "trunc50_moovend.mp4": "corrupt",
        "trunc_header.mp4": "corrupt",
        "zero.mp4": "empty",
    }
    found = find_videos(str(videos / "bad"))
    results = [examine(entry, root=found.root) for entry in found.entries]
    assert {r.video_id: r.reason for r in results if isinstance(r, Rejected)} == expected
    assert len(results) == 16


def test_splits_are_drawn_by_name_and_those_given_are_kept() -> None:
    rows: list[dict[str, Any]] = [{"video_id": f"{i}", "split": None} for i in range(400)]
    rows[0]["split"] = "test"
    splits = [row["split"] for row in assign_splits(rows, fraction=0.1)]
    assert splits[0] == "test"
    assert 15 < splits.count("val") < 70
    assert splits.count("train") == 399 - splits.count("val")


def test_the_list_of_rejected_files_reads_back(tmp_path: Path) -> None:
    rejected = [Rejected("a b.mp4", "corrupt", "bits"), Rejected("c.mp4", "empty", "0 bytes")]
    write_rejected(rejected, str(tmp_path / "r.parquet"))
    assert read_rejected(str(tmp_path / "r.parquet")) == rejected
    write_rejected([], str(tmp_path / "r.parquet"))
    assert read_rejected(str(tmp_path / "r.parquet")) == []

import hashlib
from pathlib import Path

import numpy as np
import pytest

from clips import Manifest, examine, find_videos, storage
from clips.decode import DEFAULT_DECODE
from clips.ingest import Entry, Recheck, Rejected, content_hash, examine_content, probe
from clips.storage.errors import storage_error
from clips.synthetic import Encoding, encode, numbered_frames, write_videos

MP4 = encode(numbered_frames(24, width=64, height=48), Encoding(gop=12))


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
    (tmp_path / "v.mp4").write_bytes(MP4)
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


def test_a_file_that_is_gone_since_it_was_listed_is_missing_and_a_folder_that_is_gone_ends_the_work(
    tmp_path: Path,
) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "stays.mp4").write_bytes(MP4)
    gone = Entry("gone.mp4", 10)
    assert examine(gone, root=str(tmp_path / "disk")) == Rejected(
        "gone.mp4", "missing", "it was listed, and is gone since"
    )
    (tmp_path / "disk" / "stays.mp4").unlink()  # an empty folder: a disk that is no longer mounted
    with pytest.raises(storage.StorageError, match=r"there is nothing at .*/disk/gone.mp4"):
        examine(gone, root=str(tmp_path / "disk"))
    with pytest.raises(storage.StorageError, match=r"there is nothing at .*/none/gone.mp4"):
        examine(gone, root=str(tmp_path / "none"))


def test_a_content_hash_sees_every_change_and_spares_the_look_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clips.ingest._PART_BYTES", 1000)
    video = tmp_path / "v.mp4"
    video.write_bytes(MP4)
    entry = Entry("v.mp4", len(MP4), "listed")
    looks: list[str] = []

    def look(entry: Entry, **how: object) -> dict[str, object]:
        looks.append(entry.video_id)
        return {"video_id": entry.video_id, "etag": entry.etag, "frames": 24}

    how = {"root": str(tmp_path), "decode": DEFAULT_DECODE, "examine": look}
    first = examine_content(Recheck(entry), **how)
    etag = "blake2b:" + hashlib.blake2b(MP4, digest_size=20).hexdigest()
    assert first == {"video_id": "v.mp4", "etag": etag, "frames": 24}
    assert content_hash(str(video), size=len(MP4)) == etag
    assert examine_content(Recheck(entry, etag, first), **how) == first
    assert looks == ["v.mp4"]
    video.write_bytes(MP4[:-1] + b"x")
    assert examine_content(Recheck(entry, etag, first), **how) != first
    assert looks == ["v.mp4", "v.mp4"]
    video.unlink()
    (tmp_path / "other").touch()
    lost = examine_content(Recheck(entry), **how)
    assert isinstance(lost, Rejected)
    assert lost.reason == "missing"


def test_a_web_server_refuses_a_file_and_a_bucket_whoever_asks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(source: str, **_: object) -> None:
        raise storage_error("denied", source)

    monkeypatch.setattr("clips.ingest.probe", refused)
    rejected = examine(Entry("v.mp4", 9), root="https://host/set")
    assert isinstance(rejected, Rejected)
    assert (rejected.reason, rejected.message) == (
        "denied",
        "access denied to https://host/set/v.mp4; check the permissions (for a bucket, those of your credentials)",
    )
    with pytest.raises(storage.StorageError, match=r"access denied to s3://videos/v\.mp4"):
        examine(Entry("v.mp4", 9), root="s3://videos")

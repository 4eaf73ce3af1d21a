import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clips import ClipConfig, DecodeConfig, find_videos, load_views, read_manifest
from clips.earlier import read_rejected
from clips.ingest import Entry, Rejected, examine
from clips.storage.errors import storage_error
from clips.synthetic import MotionConfig, write_videos
from clips.transcode import Encoder, make_copy

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def pipeline() -> Iterator[Any]:
    """clips.pipeline, connected to a Ray of two CPUs on this machine."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # read when Ray is first imported
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if not ray.is_initialized():
        ray.init(
            num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
        )
    from clips import pipeline

    yield pipeline
    ray.shutdown()


def test_a_source_becomes_a_manifest_and_a_list_of_rejected_files(
    pipeline: Any, tmp_path: Path
) -> None:
    write_videos(tmp_path / "in", range(40), seed=1, class_folders=True)
    (tmp_path / "in" / "up" / "broken.mp4").write_bytes(b"broken" * 100)
    states: list[Any] = []
    prepared = pipeline.prepare(
        pipeline.PrepareConfig(
            source=str(tmp_path / "in"),
            manifest=str(tmp_path / "out" / "m.parquet"),
            labels="folders",
            split=0.2,
        ),
        progress=states.append,
    )
    manifest = read_manifest(str(tmp_path / "out" / "m.parquet"))
    assert manifest == prepared.manifest
    assert len(manifest) == 40
    assert len(manifest.classes) == 8
    assert set(manifest.table["split"].to_pylist()) == {"train", "val"}
    assert prepared.rejected_uri == str(tmp_path / "out" / "m.rejected.parquet")
    assert [(r.video_id, r.reason) for r in read_rejected(prepared.rejected_uri)] == [
        ("up/broken.mp4", "corrupt")
    ]
    assert [states[-1].done, states[-1].kept, states[-1].rejected] == [41, 40, 1]
    assert [s.done for s in states] == sorted(s.done for s in states)
    assert (prepared.rows, prepared.videos, prepared.reasons) == (40, 40, {"corrupt": 1})
    assert not (tmp_path / "out" / "m.parts").exists()


def test_files_that_end_or_hang_their_process_are_rejected_and_no_others(
    pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_videos(tmp_path / "in", range(20), seed=1)

    def deadly(entry: Entry, *, root: str, decode: DecodeConfig) -> Any:
        if entry.video_id == "000007.mp4":
            os._exit(3)
        if entry.video_id == "000013.mp4":
            time.sleep(3600)
        return examine(entry, root=root, decode=decode)

    prepared = pipeline.prepare(
        pipeline.PrepareConfig(
            source=str(tmp_path / "in"),
            manifest=str(tmp_path / "m.parquet"),
            decode=DecodeConfig(seconds=1),
        ),
        examine=deadly,
    )
    assert {r.video_id: r.reason for r in prepared.rejected} == {
        "000007.mp4": "crashed",
        "000013.mp4": "crashed",
    }
    assert "ended the process, or took over 2 s" in prepared.rejected[0].message
    assert len(prepared.manifest) == 18


def test_no_usable_video_at_all_is_a_mistake_that_names_the_list(
    pipeline: Any, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    for name, content in (("a.mp4", b""), ("b.mp4", b"text" * 99)):
        (tmp_path / "in" / name).write_bytes(content)
    with pytest.raises(
        ValueError, match=r"^none of the 2 videos of .*/in can be used \(1 empty, 1 corrupt\); each"
    ):
        pipeline.prepare(
            pipeline.PrepareConfig(
                source=str(tmp_path / "in"), manifest=str(tmp_path / "m.parquet")
            )
        )
    assert [r.reason for r in read_rejected(str(tmp_path / "m.rejected.parquet"))] == [
        "empty",
        "corrupt",
    ]


def test_files_that_a_list_names_but_that_are_missing_are_rejected(
    pipeline: Any, tmp_path: Path
) -> None:
    write_videos(tmp_path, range(2), seed=1)
    (tmp_path / "l.csv").write_text("000000.mp4 4\n000001.mp4 2\nnone.mp4 1\n")
    prepared = pipeline.prepare(
        pipeline.PrepareConfig(source=str(tmp_path / "l.csv"), manifest=str(tmp_path / "m.parquet"))
    )
    assert prepared.rejected == (
        Rejected("none.mp4", "missing", "the list names it, but it is not there"),
    )
    assert prepared.manifest.label_indices().tolist() == [4, 2]


def test_a_storage_that_fails_on_a_worker_ends_the_work_with_its_own_message(
    pipeline: Any, tmp_path: Path
) -> None:
    write_videos(tmp_path / "in", range(12), seed=1)

    def unplugged(entry: Entry, *, root: str, decode: DecodeConfig) -> Any:
        if entry.video_id == "000005.mp4":
            raise storage_error("unreachable", f"s3://videos/{entry.video_id}")
        return examine(entry, root=root, decode=decode)

    config = pipeline.PrepareConfig(
        source=str(tmp_path / "in"), manifest=str(tmp_path / "m.parquet")
    )
    with pytest.raises(pipeline.ScanStopped) as caught:
        pipeline.prepare(config, examine=unplugged)
    assert str(caught.value).startswith(
        "cannot reach the storage of s3://videos/000005.mp4; check the network, and AWS_ENDPOINT_URL; "
    )
    assert str(caught.value).endswith("are kept: the same command goes on from there")
    assert not (tmp_path / "m.parquet").exists()
    plan = pipeline.compare(config, pipeline.find(config))
    assert 0 < len(plan.todo) <= 12
    assert plan.resumed + len(plan.todo) == 12
    made = pipeline.prepare(config)
    assert (made.rows, made.reasons, made.new) == (12, {}, 12)


def test_a_content_hash_is_made_by_the_workers(pipeline: Any, tmp_path: Path) -> None:
    write_videos(tmp_path / "in", range(6), seed=1)
    config = pipeline.PrepareConfig(
        source=str(tmp_path / "in"), manifest=str(tmp_path / "m.parquet"), content_hash=True
    )
    first = pipeline.prepare(config)
    again = pipeline.prepare(config)
    assert (first.new, again.new, again.unchanged) == (6, 0, 6)
    assert again.manifest == first.manifest
    assert all(tag.startswith("blake2b:") for tag in again.manifest.table["etag"].to_pylist())


def test_a_manifest_is_copied_once_a_video_and_goes_on_where_it_stopped(
    pipeline: Any, tmp_path: Path
) -> None:
    write_videos(tmp_path / "in", range(12), seed=1, class_folders=True)
    source = pipeline.prepare(
        pipeline.PrepareConfig(
            source=str(tmp_path / "in"),
            manifest=str(tmp_path / "in.parquet"),
            labels="folders",
            split=0.3,
        )
    ).manifest
    config = pipeline.TranscodeConfig(
        source=str(tmp_path / "in.parquet"),
        target=str(tmp_path / "out"),
        manifest=str(tmp_path / "out.parquet"),
        encoder=Encoder(short_side=32, preset="ultrafast"),
        decode=DecodeConfig(seconds=20),
    )
    ids = source.table["video_id"].to_pylist()

    def deadly(entry: Entry, **how: Any) -> Any:
        if entry.video_id == ids[5]:
            os._exit(3)
        return make_copy(entry, **how)

    first = pipeline.transcode(config, source=source, make_copy=deadly)
    assert [(r.video_id, r.reason) for r in first.rejected] == [(ids[5], "crashed")]
    written = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.mp4")}
    assert len(written) == len(first.manifest) == 11

    done = pipeline.transcode(config, source=source)
    assert not done.rejected
    manifest = read_manifest(config.manifest)
    assert manifest == done.manifest
    for name in ("video_id", "label", "split"):
        assert manifest.table[name].to_pylist() == source.table[name].to_pylist()
    assert set(manifest.table["height"].to_pylist()) == {32}
    assert manifest.hash != source.hash, "other pixels are other data"
    again = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.mp4")}
    assert len(again) == 12
    assert written.items() <= again.items(), "a finished copy was written again"
    assert [q.video_id for q in done.quality if not q.kept] == [ids[5]]
    assert all(q.psnr_db > 20 for q in done.quality), "what a kept copy lost is still known"
    assert "11 copies were there already" in done.summary()


def test_copies_in_shards_are_made_once_and_shards_that_are_done_are_kept(
    pipeline: Any, tmp_path: Path
) -> None:
    fine = MotionConfig(size=256, frames=40, crf=1)
    write_videos(tmp_path / "in", range(6), seed=1, class_folders=True, config=fine)
    source = pipeline.prepare(
        pipeline.PrepareConfig(
            source=str(tmp_path / "in"), manifest=str(tmp_path / "in.parquet"), labels="folders"
        )
    ).manifest
    config = pipeline.TranscodeConfig(
        source=str(tmp_path / "in.parquet"),
        target=str(tmp_path / "out"),
        manifest=str(tmp_path / "out.parquet"),
        shard_mb=1,
        encoder=Encoder(short_side=32, preset="ultrafast"),
        decode=DecodeConfig(seconds=20),
    )
    first = pipeline.transcode(config, source=source)
    shards = sorted((tmp_path / "out").glob("*.tar"))
    assert len(shards) > 1
    manifest = read_manifest(config.manifest)
    assert manifest == first.manifest
    ids = source.table["video_id"].to_pylist()
    assert sorted(q.video_id for q in first.quality) == ids
    assert [i.partition(".tar/")[2] for i in manifest.table["video_id"].to_pylist()] == ids
    assert manifest.table["label"].to_pylist() == source.table["label"].to_pylist()
    for row in range(len(manifest)):
        (view,) = load_views(manifest.video(row), ClipConfig(stride=1), frames=8, size=32)
        assert view.std() > 10
    found = find_videos(str(tmp_path / "out"))
    assert [(e.video_id, e.offset, e.size, e.label) for e in found.entries] == [
        tuple(row.values())
        for row in manifest.table.select(["video_id", "offset", "size", "label"]).to_pylist()
    ]

    written = {path: path.stat().st_mtime_ns for path in shards}
    (tmp_path / "out" / "00001.tar.json").unlink()  # as if it had been interrupted there
    again = pipeline.transcode(config, source=source)
    assert again.manifest.hash == first.manifest.hash
    assert {q.video_id: q.psnr_db for q in again.quality} == {
        q.video_id: q.psnr_db for q in first.quality
    }
    anew = [path.name for path in shards if path.stat().st_mtime_ns != written[path]]
    assert anew == ["00001.tar"]
    assert f"{sum(q.kept for q in again.quality)} copies were there already" in again.summary()


def test_copies_never_land_among_their_sources(pipeline: Any, tmp_path: Path) -> None:
    write_videos(tmp_path / "in", range(2), seed=1)
    source = pipeline.prepare(
        pipeline.PrepareConfig(source=str(tmp_path / "in"), manifest=str(tmp_path / "in.parquet"))
    ).manifest
    config = pipeline.TranscodeConfig(
        source=str(tmp_path / "in.parquet"),
        target=f"{tmp_path}/in/",
        manifest=str(tmp_path / "out.parquet"),
    )
    with pytest.raises(ValueError, match="/in is where the sources are: name another place"):
        pipeline.transcode(config, source=source)
    with pytest.raises(ValueError, match="manifest is the source itself"):
        pipeline.TranscodeConfig(source="a.parquet", target="b", manifest="a.parquet")
    with pytest.raises(ValueError, match="shard_mb is 0; it must be at least 1, or null"):
        pipeline.TranscodeConfig(source="a.parquet", target="b", manifest="c.parquet", shard_mb=0)

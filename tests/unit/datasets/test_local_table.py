import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest

from clips import LocalTable, Manifest, Video, write_manifest


def build(count: int, root: str = "/data") -> Manifest:
    rows = [
        {
            "video_id": f"{'ab'[i % 2]}/{i:04d}.mp4",
            "size": 100 + i,
            "label": "ab"[i % 2],
            "labels": ["b", "a"] if i == 0 else None,
            "start_s": 1.5 if i == 1 else None,
            "end_s": 9.0 if i == 1 else None,
            "frames": 10 + i,
            "fps": 25.0,
            "duration_s": 0.4,
            "width": 64,
            "height": 48,
        }
        for i in range(count)
    ]
    return Manifest.build(rows, root=root)


def test_a_row_becomes_a_record(tmp_path: Path) -> None:
    manifest = build(4)
    table = manifest.local_table(str(tmp_path))
    assert len(table) == 4
    assert table.video(2) == Video(
        uri="/data/b/0001.mp4",
        video_id="b/0001.mp4",
        row=2,
        size=101,
        label=1,
        labels=(),
        start_s=1.5,
        end_s=9.0,
        frames=11,
        fps=25.0,
        duration_s=0.4,
        width=64,
        height=48,
    )
    assert table.video(0).labels == (1, 0)
    assert [manifest.video(r) for r in range(4)] == [table.video(r) for r in range(4)]


def test_the_file_is_named_by_the_hash_and_made_once(tmp_path: Path) -> None:
    manifest = build(4)
    manifest.local_table(str(tmp_path))
    (file,) = tmp_path.iterdir()
    assert file.name == f"{manifest.hash}-v3.arrow"
    before = file.stat().st_mtime_ns
    manifest.local_table(str(tmp_path))
    assert file.stat().st_mtime_ns == before


def test_a_moved_data_set_uses_the_same_file_with_its_own_root(tmp_path: Path) -> None:
    build(4).local_table(str(tmp_path))
    moved = build(4, root="s3://bucket/set").local_table(str(tmp_path))
    assert len(list(tmp_path.iterdir())) == 1
    assert moved.video(0).uri == "s3://bucket/set/a/0000.mp4"


def test_rows_are_found_in_whatever_portions_the_file_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = build(100)
    whole = manifest.local_table(str(tmp_path / "whole"))
    monkeypatch.setattr("clips.manifest_rows.PORTION", 7)
    pieces = manifest.local_table(str(tmp_path / "pieces"))
    files = [next((tmp_path / name).iterdir()) for name in ("whole", "pieces")]
    assert [pa.ipc.open_file(file).num_record_batches for file in files] == [1, 15]
    assert [pieces.video(r) for r in range(100)] == [whole.video(r) for r in range(100)]


def test_a_process_that_gets_it_with_every_task_maps_it_once(tmp_path: Path) -> None:
    manifest = write_manifest(build(4), str(tmp_path / "m.parquet"))
    payload = pickle.dumps(manifest.local_table(str(tmp_path / "cache")))
    assert pickle.loads(payload) is pickle.loads(payload)


def test_many_threads_may_make_the_file_at_once(tmp_path: Path) -> None:
    manifest = build(500)
    with ThreadPoolExecutor(8) as pool:
        tables = list(pool.map(lambda _: manifest.local_table(str(tmp_path)), range(16)))
    assert {t.video(499).video_id for t in tables} == {"b/0499.mp4"}
    assert len(list(tmp_path.iterdir())) == 1


def test_it_travels_as_an_address_and_is_made_anew_where_it_is_missing(tmp_path: Path) -> None:
    manifest = write_manifest(build(3000), str(tmp_path / "m.parquet"))
    payload = pickle.dumps(manifest.local_table(str(tmp_path / "cache")))
    assert len(payload) < 1000
    for file in (tmp_path / "cache").iterdir():
        file.unlink()  # as on another node
    code = "import pickle, sys; t = pickle.load(sys.stdin.buffer); print(t.video(2999).video_id, len(t))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=payload,
        capture_output=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert done.stdout == b"b/2999.mp4 3000\n"


def test_a_table_without_a_file_says_that_the_manifest_was_never_written(tmp_path: Path) -> None:
    manifest = build(2)
    payload = pickle.dumps(manifest.local_table(str(tmp_path)))
    for file in tmp_path.iterdir():
        file.unlink()
    with pytest.raises(ValueError, match=r"write it with write_manifest first"):
        pickle.loads(payload)


def test_a_manifest_replaced_since_is_refused(tmp_path: Path) -> None:
    uri = str(tmp_path / "m.parquet")
    old = write_manifest(build(2), uri)
    payload = pickle.dumps(old.local_table(str(tmp_path / "cache")))
    write_manifest(build(3), uri)
    for file in (tmp_path / "cache").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match=r"is another manifest by now: its hash is"):
        pickle.loads(payload)


def test_a_table_in_memory_does_not_travel() -> None:
    manifest = build(2)
    table = LocalTable.of(manifest.table, root="/d", classes=manifest.classes)
    with pytest.raises(TypeError, match="does not travel"):
        pickle.dumps(table)

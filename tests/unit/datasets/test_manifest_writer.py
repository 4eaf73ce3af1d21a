from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clips import Manifest, manifest_writer, read_manifest, storage, write_manifest
from clips.manifest import SCHEMA
from clips.manifest_writer import ManifestWriter

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=5)
BOX = st.fixed_dictionaries({"time_s": st.floats(0, 9), "labels": st.none() | st.lists(TEXT)})
ROW = st.fixed_dictionaries(
    {"video_id": TEXT, "size": st.integers(0, 2**40)},
    optional={
        "label": st.none() | TEXT | st.sampled_from(["0", "3"]),
        "labels": st.none() | st.lists(TEXT, max_size=3),
        "split": st.none() | st.sampled_from(["train", "val"]),
        "start_s": st.none() | st.floats(0, 1e5),
        "end_s": st.none() | st.floats(0, 1e5),
        "boxes": st.none() | st.lists(BOX, max_size=2),
        "etag": st.none() | TEXT,
        "codec": st.none() | TEXT,
        "fps": st.none() | st.floats(1, 60),
        "frames": st.none() | st.integers(1, 10**6),
    },
)
ROWS = st.lists(
    ROW, min_size=1, max_size=30, unique_by=lambda row: (row["video_id"], row.get("start_s"))
)


def values(row: dict[str, Any]) -> list[Any]:
    return [row.get(name) for name in SCHEMA.names]


@settings(max_examples=60)
@given(rows=ROWS, chunk=st.integers(1, 7), root=st.sampled_from(["/data/set", "s3://b/set", ""]))
def test_the_file_is_byte_for_byte_that_of_a_table_in_memory(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], chunk: int, root: str
) -> None:
    folder = tmp_path_factory.mktemp("m")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest_writer, "_CHUNK_ROWS", chunk)
        for module in ("manifest", "manifest_writer"):
            patch.setattr(f"clips.{module}.ROW_GROUP", 8)
        whole = write_manifest(Manifest.build(rows, root=root), str(folder / "whole.parquet"))
        writer = ManifestWriter()
        for row in whole.table.to_pylist():
            writer.append(values(row))
        written = writer.finish(str(folder / "streamed.parquet"), root=root)
    assert (written.hash, written.classes, written.rows) == (whole.hash, whole.classes, len(rows))
    assert (folder / "streamed.parquet").read_bytes() == (folder / "whole.parquet").read_bytes()
    assert {path.name for path in folder.iterdir()} == {"streamed.parquet", "whole.parquet"}


def test_a_row_group_ends_where_that_of_a_table_ends(tmp_path: Path) -> None:
    rows = [{"video_id": f"{i:06d}", "size": i, "label": f"c{i % 7}"} for i in range(120_000)]
    whole = write_manifest(Manifest.build(rows, root="/d"), str(tmp_path / "whole.parquet"))
    writer = ManifestWriter()
    for row in rows:
        writer.append(values(row))
    assert writer.finish(str(tmp_path / "streamed.parquet"), root="/d").hash == whole.hash
    assert (tmp_path / "streamed.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_a_video_listed_twice_is_refused_with_its_name() -> None:
    writer = ManifestWriter()
    writer.append(values({"video_id": "a", "size": 1, "start_s": 2.5}))
    with pytest.raises(
        ValueError, match=r"^video 'a' is listed twice with start 2.5 s; a manifest holds every"
    ):
        writer.append(values({"video_id": "a", "size": 1, "start_s": 2.5}))


def test_a_manifest_goes_to_a_bucket_and_replaces_the_one_there(s3: Any) -> None:
    for size in (1, 2):
        writer = ManifestWriter()
        writer.append(values({"video_id": "a.mp4", "size": size}))
        written = writer.finish("s3://videos/m.parquet", root="s3://videos")
        assert read_manifest("s3://videos/m.parquet").hash == written.hash


def test_an_interrupted_write_leaves_the_manifest_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = str(tmp_path / "m.parquet")
    before = write_manifest(Manifest.build([{"video_id": "a", "size": 1}], root="/d"), uri)
    writer = ManifestWriter()
    writer.append(values({"video_id": "b", "size": 1}))

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pyarrow.parquet.ParquetWriter.write_table", interrupted)
    with pytest.raises(KeyboardInterrupt):
        writer.finish(uri, root="/d")
    assert read_manifest(uri) == before
    assert [path.name for path in tmp_path.iterdir()] == ["m.parquet"]


def test_a_place_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    writer = ManifestWriter()
    writer.append(values({"video_id": "b", "size": 1}))
    with pytest.raises(storage.StorageError, match=r"/file/m.parquet"):
        writer.finish(str(tmp_path / "file" / "m.parquet"), root="/d")

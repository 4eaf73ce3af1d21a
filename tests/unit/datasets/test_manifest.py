import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clips import Manifest, held_out, read_manifest, write_manifest
from clips.manifest import SCHEMA

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
ROW = st.fixed_dictionaries(
    {"video_id": TEXT, "size": st.integers(0, 2**40)},
    optional={
        "label": st.none() | TEXT,
        "labels": st.none() | st.lists(TEXT, max_size=3),
        "split": st.none() | st.sampled_from(["train", "val"]),
        "start_s": st.none() | st.floats(0, 1e5),
        "end_s": st.none() | st.floats(0, 1e5),
        "etag": st.none() | TEXT,
        "frames": st.none() | st.integers(1, 10**6),
    },
)
ROWS = st.lists(ROW, min_size=1, max_size=12, unique_by=lambda row: str(row["video_id"]))


def rows_of(count: int, **columns: object) -> list[dict[str, object]]:
    return [{"video_id": f"v{i:03d}.mp4", "size": 1000 + i, **columns} for i in range(count)]


@given(ROWS, st.randoms(use_true_random=False))
def test_the_hash_ignores_root_row_order_etags_and_probe_columns(
    rows: list[dict[str, Any]], random: random.Random
) -> None:
    manifest = Manifest.build(rows, root="/data/a")
    shuffled = [{**row, "etag": "moved", "codec": "hevc"} for row in rows]
    random.shuffle(shuffled)
    moved = Manifest.build(shuffled, root="s3://bucket/a")
    assert moved.hash == manifest.hash
    assert moved.table["video_id"].to_pylist() == manifest.table["video_id"].to_pylist()


@given(ROWS, st.sampled_from(["video_id", "size", "label", "labels", "split", "start_s", "end_s"]))
def test_the_hash_sees_every_identity_label_and_span_column(
    rows: list[dict[str, Any]], column: str
) -> None:
    changed = {
        "video_id": "another name",
        "size": 2**50,
        "label": "another label",
        "labels": ["another", "pair"],
        "split": "test",
        "start_s": 123456.0,
        "end_s": 123456.0,
    }
    before = Manifest.build(rows, root="/data").hash
    assert (
        Manifest.build([{**rows[0], column: changed[column]}, *rows[1:]], root="/data").hash
        != before
    )


def test_the_hash_never_changes() -> None:
    # Local tables, runs, and checkpoints are tied to it: a change orphans them all.
    rows = [
        {"video_id": "a/1.mp4", "size": 10, "label": "a", "split": "train"},
        {"video_id": "b/2.mp4", "size": 20, "label": "b", "start_s": 1.5, "end_s": 2.5},
    ]
    assert Manifest.build(rows, root="/x").hash == (
        "0554282078f11c82b0adc75ab7cbb1434fa73d84d7581ec6f14701fb58b8f44c"
    )


@settings(max_examples=30)
@given(rows=ROWS)
def test_a_written_manifest_reads_back_whole(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    uri = str(tmp_path_factory.mktemp("m") / "m.parquet")
    written = write_manifest(Manifest.build(rows, root="s3://bucket/set"), uri)
    read = read_manifest(uri)
    assert read == written
    assert read.root == "s3://bucket/set"
    assert read.uri == uri


def test_rows_are_sorted_by_video_and_start() -> None:
    rows = [
        {"video_id": "b", "size": 1, "start_s": 10.0},
        {"video_id": "b", "size": 1, "start_s": 9.0},
        {"video_id": "a", "size": 1},
        {"video_id": "b", "size": 1},
    ]
    table = Manifest.build(rows, root="/d").table
    assert list(zip(table["video_id"].to_pylist(), table["start_s"].to_pylist(), strict=True)) == [
        ("a", None),
        ("b", None),
        ("b", 9.0),
        ("b", 10.0),
    ]


def test_a_video_listed_twice_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"video 'v000.mp4' is listed twice; a manifest holds every"
    ):
        Manifest.build(rows_of(1) + rows_of(1), root="/d")


def test_unknown_columns_and_no_rows_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"unknown manifest columns lable; allowed: video_id, size"
    ):
        Manifest.build(rows_of(1, lable="x"), root="/d")
    with pytest.raises(ValueError, match="at least one row"):
        Manifest.build([], root="/d")


def test_class_indices_are_the_places_of_the_sorted_names() -> None:
    rows = [{"video_id": n, "size": 1, "label": n} for n in ("run", "jump", "swim")]
    manifest = Manifest.build(rows, root="/d")
    assert manifest.classes == ("jump", "run", "swim")
    assert manifest.label_indices().tolist() == [0, 1, 2]


def test_numbered_labels_are_their_own_indices_even_if_some_are_absent() -> None:
    rows = [{"video_id": n, "size": 1, "label": n} for n in ("10", "2", "0")]
    manifest = Manifest.build(rows, root="/d")
    assert manifest.classes == tuple(str(i) for i in range(11))
    assert manifest.label_indices().tolist() == [0, 10, 2]


def test_a_manifest_of_a_newer_format_names_both_formats(tmp_path: Path) -> None:
    uri = str(tmp_path / "m.parquet")
    write_manifest(Manifest.build(rows_of(2), root="/d"), uri)
    table = pq.read_table(uri)
    meta = json.loads(table.schema.metadata[b"tubelet.manifest"]) | {"schema_version": 2}
    pq.write_table(table.replace_schema_metadata({"tubelet.manifest": json.dumps(meta)}), uri)
    with pytest.raises(
        ValueError, match=r"m\.parquet is a manifest of format 2; this version reads up to 1"
    ):
        read_manifest(uri)


@pytest.mark.parametrize("content", [b"", b"hello", b"PAR1 but not really PAR1"])
def test_a_file_that_is_no_manifest_says_how_to_make_one(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.parquet"
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"is not a manifest; make one with: python jobs/prepare.py"
    ):
        read_manifest(str(path))


def test_another_parquet_file_is_no_manifest(tmp_path: Path) -> None:
    path = str(tmp_path / "t.parquet")
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(ValueError, match="is not a manifest"):
        read_manifest(path)


def test_a_manifest_edited_by_hand_is_refused(tmp_path: Path) -> None:
    uri = str(tmp_path / "m.parquet")
    write_manifest(Manifest.build(rows_of(3), root="/d"), uri)
    table = pq.read_table(uri)
    pq.write_table(table.slice(0, 2), uri)
    with pytest.raises(ValueError, match=r"was changed after it was written"):
        read_manifest(uri)


def test_a_manifest_with_damaged_bytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    write_manifest(Manifest.build(rows_of(500), root="/d"), str(path))
    data = bytearray(path.read_bytes())
    data[100:110] = bytes(10)  # within the rows of the first column
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"m\.parquet was changed after it was written"):
        read_manifest(str(path))


def test_rows_of_a_file_are_chosen_as_those_in_memory(tmp_path: Path) -> None:
    rows = [
        {"video_id": f"{i:04d}", "size": i, "label": "abc"[i % 3] if i % 5 else None}
        | ({"split": ["train", "val", None][i % 4]} if i % 4 < 3 else {})
        for i in range(1000)
    ]
    built = Manifest.build(rows, root="/d")
    uri = write_manifest(built, str(tmp_path / "m.parquet")).uri
    assert uri
    pq.write_table(pq.read_table(uri), uri, row_group_size=70)  # as many pieces as one likes
    read = read_manifest(uri)
    assert len(read) == 1000
    assert read.splits == built.splits == ("train", "val")
    for one, other in (
        (read.in_split("train", None), built.in_split("train", None)),
        (read.select(split="val"), built.select(split="val")),
        (read.label_indices(), built.label_indices()),
        (read.hold_out(0.3)[0], built.hold_out(0.3)[0]),
        (read.hold_out(0.3)[1], built.hold_out(0.3)[1]),
    ):
        assert one.dtype == np.int64
        assert one.tolist() == other.tolist()
    assert read.in_split("val").tolist() == [i for i in range(1000) if i % 4 == 1]
    assert read.in_split("train", None).tolist() == [i for i in range(1000) if i % 4 != 1]
    assert read.in_split("test").dtype == np.int64
    tables = (read.local_table(str(tmp_path / "a")), built.local_table(str(tmp_path / "b")))
    assert [tables[0].video(r) for r in range(1000)] == [tables[1].video(r) for r in range(1000)]


def test_a_missing_manifest_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^there is nothing at .*none\.parquet; check the spelling$"
    ):
        read_manifest(str(tmp_path / "none.parquet"))


# --- choosing rows -------------------------------------------------------------------------


def test_selecting_an_absent_split_lists_those_there_are() -> None:
    manifest = Manifest.build(rows_of(2, split="train"), root="/d")
    assert manifest.select(split="train").tolist() == [0, 1]
    assert manifest.select().dtype == np.int64
    with pytest.raises(ValueError, match=r"has split 'val'; splits there: train"):
        manifest.select(split="val")
    with pytest.raises(ValueError, match="its rows have no split"):
        Manifest.build(rows_of(2), root="/d").select(split="val")


def test_holding_out_moves_no_video_when_others_are_added() -> None:
    small, large = (Manifest.build(rows_of(n), root="/d") for n in (200, 400))
    ids = [{small.table["video_id"][int(r)].as_py() for r in small.hold_out(0.1)[1]}]
    ids.append({large.table["video_id"][int(r)].as_py() for r in large.hold_out(0.1)[1]})
    assert ids[0] == {v for v in ids[1] if v < "v200"}


def test_holding_out_keeps_the_spans_of_a_video_together() -> None:
    rows = [
        {"video_id": f"film{i}", "size": 1, "start_s": float(s)}
        for i in range(40)
        for s in range(5)
    ]
    manifest = Manifest.build(rows, root="/d")
    training, held = manifest.hold_out(0.2)
    assert sorted([*training, *held]) == list(range(200))
    ids = manifest.table["video_id"].to_pylist()
    assert not {ids[r] for r in training} & {ids[r] for r in held}


@given(st.floats(0, 0.99))
def test_about_the_asked_share_is_held_out(fraction: float) -> None:
    share = np.mean([held_out(f"video {i}", fraction) for i in range(2000)])
    assert abs(share - fraction) < 0.06


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 5.0])
def test_an_impossible_share_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="it must be at least 0 and less than 1"):
        held_out("x", fraction)


def test_few_labels_are_so_many_of_each_class_and_depend_on_the_seed() -> None:
    rows = [{"video_id": f"{i:03d}", "size": 1, "label": "ab"[i % 2]} for i in range(100)]
    manifest = Manifest.build(rows, root="/d")
    every = manifest.select()
    drawn = [manifest.few_labels(every, per_class=4, seed=s) for s in range(2)]
    assert drawn[0].tolist() != drawn[1].tolist()
    assert drawn[0].tolist() == manifest.few_labels(every, per_class=4, seed=0).tolist()
    for chosen in drawn:
        assert chosen.dtype == np.int64
        assert np.bincount(manifest.label_indices()[chosen]).tolist() == [4, 4]


def test_too_few_labels_name_the_class() -> None:
    rows = [{"video_id": f"{i}", "size": 1, "label": "ab"[i > 0]} for i in range(9)]
    manifest = Manifest.build(rows, root="/d")
    with pytest.raises(
        ValueError, match=r"2 labels per class were asked for, but class 'a' has 1 rows"
    ):
        manifest.few_labels(manifest.select(), per_class=2, seed=0)


def test_the_schema_is_that_of_version_1() -> None:
    assert SCHEMA.names[:9] == [
        *("video_id", "size", "etag", "label", "labels", "split", "start_s", "end_s", "boxes")
    ]


def test_labels_are_paired_with_their_rows_whichever_column_names_them() -> None:
    rows = [
        {"video_id": "0.mp4", "label": "b"},
        {"video_id": "1.mp4", "labels": ["c", "a"]},
        {"video_id": "2.mp4"},
        {"video_id": "3.mp4", "label": "a", "labels": ["a", "b"]},
    ]
    manifest = Manifest.build([{"size": 1, **row} for row in rows], root="/")
    found, classes = manifest.label_pairs()
    named = [(int(r), manifest.classes[c]) for r, c in zip(found, classes, strict=True)]
    assert named == [(0, "b"), (1, "a"), (1, "c"), (3, "a"), (3, "b")]
    unlabelled = Manifest.build([{"video_id": "0.mp4", "size": 1}], root="/")
    assert [len(each) for each in unlabelled.label_pairs()] == [0, 0]

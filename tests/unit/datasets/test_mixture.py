"""Several manifests as one: rows, classes, records and the hash."""

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest

from clips import Manifest, Mixture, write_manifest


def manifest(folder: Path, name: str, labels: list[str | None]) -> Manifest:
    rows = [
        {"video_id": f"{i}.mp4", "size": i, "label": label, "labels": label and [label]}
        for i, label in enumerate(labels)
    ]
    made = Manifest.build(rows, root=str(folder / name))
    return write_manifest(made, str(folder / f"{name}.parquet"))


@pytest.fixture
def parts(tmp_path: Path) -> tuple[Manifest, Manifest, Manifest]:
    return (
        manifest(tmp_path, "films", ["swim", "run"]),
        manifest(tmp_path, "unlabelled", [None]),
        manifest(tmp_path, "clips", ["swim", None, "fly"]),
    )


def test_rows_follow_one_another_and_classes_are_those_of_all(parts: tuple[Manifest, ...]) -> None:
    mixture = Mixture(parts, (1.0, 0.5, 2.0))
    assert len(mixture) == 6
    assert mixture.starts == (0, 2, 3, 6)
    assert mixture.classes == ("fly", "run", "swim")
    assert mixture.label_indices().tolist() == [2, 1, -1, 2, -1, 0]
    assert mixture.label_indices().dtype == np.int64


def test_a_record_is_that_of_its_manifest_with_row_and_classes_of_the_mixture(
    parts: tuple[Manifest, ...], tmp_path: Path
) -> None:
    table = Mixture(parts, (1.0, 1.0, 1.0)).local_table(str(tmp_path / "cache"))
    assert len(table) == 6
    for row, (part, own) in enumerate([(0, 0), (0, 1), (1, 0), (2, 0), (2, 1), (2, 2)]):
        alone = parts[part].video(own)
        name = None if alone.label is None else parts[part].classes[alone.label]
        label = None if name is None else table.classes.index(name)
        assert table.video(row) == dataclasses.replace(
            alone, row=row, label=label, labels=() if label is None else (label,)
        )


def test_it_travels_as_the_addresses_of_its_parts(
    parts: tuple[Manifest, ...], tmp_path: Path
) -> None:
    table = Mixture(parts, (1.0, 1.0, 1.0)).local_table(str(tmp_path / "cache"))
    payload = pickle.dumps(table)
    for file in (tmp_path / "cache").iterdir():
        file.unlink()  # as on another node
    other = pickle.loads(payload)
    assert [other.video(row) for row in range(6)] == [table.video(row) for row in range(6)]


def test_numbered_classes_stay_their_own_indices(tmp_path: Path) -> None:
    parts = (manifest(tmp_path, "a", ["4"]), manifest(tmp_path, "b", ["10", "0"]))
    mixture = Mixture(parts, (1.0, 1.0))
    assert mixture.classes == tuple(str(i) for i in range(11))
    assert mixture.label_indices().tolist() == [4, 10, 0]


def test_the_hash_covers_parts_order_and_weights_and_never_changes(
    parts: tuple[Manifest, ...],
) -> None:
    a, b, _ = parts
    hashes = [
        Mixture(p, w).hash
        for p, w in (
            ((a, b), (1.0, 2.0)),
            ((b, a), (2.0, 1.0)),
            ((a, b), (1.0, 2.5)),
            ((a,), (1.0,)),
        )
    ]
    assert len({*hashes, a.hash}) == 5
    assert Mixture((a, b), (1, 2)).hash == hashes[0]
    # Runs are tied to it.
    assert hashes[0] == "bd8d7b22d541c15c5c810203c4af452866523a59993dcc5e14560b09b47f971b"


def test_the_same_manifest_twice_is_refused_wherever_it_lies(
    parts: tuple[Manifest, ...], tmp_path: Path
) -> None:
    copy = write_manifest(parts[0], str(tmp_path / "copy.parquet"))
    with pytest.raises(
        ValueError,
        match=r"films\.parquet and .*copy\.parquet hold the same manifest; name it once, with the sum",
    ):
        Mixture((parts[0], copy), (1.0, 1.0))


def test_labels_are_paired_with_rows_of_all_parts(tmp_path: Path) -> None:
    first = manifest(tmp_path / "a", "a", ["b", None, "c"])
    mixture = Mixture((first, manifest(tmp_path / "b", "b", ["a", "b"])), (1.0, 1.0))
    rows, classes = mixture.label_pairs()
    named = [(int(r), mixture.classes[c]) for r, c in zip(rows, classes, strict=True)]
    assert named == [(0, "b"), (2, "c"), (3, "a"), (4, "b")]

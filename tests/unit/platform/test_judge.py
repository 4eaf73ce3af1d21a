"""Which rows an evaluation looks at, and what it says when there are none."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clips import ClipConfig, DecodeConfig, Manifest
from motion import motion_manifest
from tubelet.config import UserError
from tubelet.evaluation import judge
from tubelet.evaluation.inference import Decoder, Views


def manifest_of(*rows: dict[str, Any]) -> Manifest:
    named = [{"video_id": f"v{n}.mp4", "size": 1, **row} for n, row in enumerate(rows)]
    return Manifest.build(named, root="/videos")


SPLITS = manifest_of(
    {"label": "a", "split": "train"},
    {"label": "b", "split": "test1"},
    {"labels": ["a", "b"], "split": "test1"},
    {"split": "test1"},
    {"split": "test2"},
)


def test_a_split_is_val_unless_another_is_named() -> None:
    assert judge.labelled_rows(SPLITS, held_out=0.5, split="test1").tolist() == [1, 2]
    named = manifest_of({"label": "a", "split": "val"}, {"label": "a", "split": "train"})
    assert judge.labelled_rows(named, held_out=0.5).tolist() == [0]


def test_without_splits_a_share_is_held_out_or_all_are_taken() -> None:
    plain = manifest_of(*({"label": "a"} for _ in range(40)))
    assert judge.labelled_rows(plain, held_out=0.25).tolist() == plain.hold_out(0.25)[1].tolist()
    assert len(judge.labelled_rows(plain, held_out=0)) == 40


@pytest.mark.parametrize(
    ("split", "text"),
    [
        (
            None,
            r"has the split 'val'; name one, split=NAME, of test1 \(3 rows\), test2 \(1 rows\), train \(1 rows\)",
        ),
        ("tset1", r"has the split 'tset1'; name one, split=NAME, of test1 \(3 rows\)"),
        (
            "test2",
            r"none of the 1 rows of .* to evaluate on has a label: make the manifest with labels=folders",
        ),
    ],
)
def test_a_split_that_gives_nothing_is_told(split: str | None, text: str) -> None:
    with pytest.raises(UserError, match=text):
        judge.labelled_rows(SPLITS, held_out=0.5, split=split)


def test_a_manifest_without_splits_says_so() -> None:
    plain = manifest_of({"label": "a"}, {"label": "a"})
    with pytest.raises(UserError, match="has the split 'test'; its rows have no split"):
        judge.labelled_rows(plain, held_out=0.0, split="test")
    with pytest.raises(
        UserError, match=r"held_out=1e-06 holds out none of the 2 rows of .*held_out=0$"
    ):
        judge.labelled_rows(plain, held_out=1e-6)


def test_spans_of_a_video_are_told_apart_by_their_start(tmp_path: Path) -> None:
    video = motion_manifest(tmp_path / "videos", training=1).table.to_pylist()[0]
    own = {"video_id": video["video_id"], "size": video["size"]}
    spans = Manifest.build(
        [{**own, "start_s": 0.5, "end_s": 1.0}, {**own, "start_s": 0.0, "end_s": 0.5}],
        root=str(tmp_path / "videos"),
    )
    decoder = Decoder(
        spans.local_table(str(tmp_path / "cache")),
        np.arange(2),
        (2, 16),
        Views(ClipConfig(stride=1)),
        DecodeConfig(),
    )
    found = decoder({"id": np.arange(2)})
    assert found["start_s"].tolist() == [0.0, 0.5]
    assert found["reason"].tolist() == ["", ""]
    assert not np.array_equal(found["clips"][0], found["clips"][1])

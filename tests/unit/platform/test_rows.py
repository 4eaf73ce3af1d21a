"""Which rows train and which judge."""

from pathlib import Path

import numpy as np
import pytest

from clips import Manifest, write_manifest
from tubelet import rows
from tubelet.config import UserError
from tubelet.items import DataConfig
from tubelet.rows import LabelConfig


def manifest_of(tmp_path: Path, *, splits: bool = False, labelled: int = 40) -> Manifest:
    entries = [
        {
            "video_id": f"{i:03d}.mp4",
            "size": 1,
            "label": "ab"[i % 2] if i < labelled else None,
            "split": ("val" if i % 4 == 0 else "train") if splits else None,
        }
        for i in range(40)
    ]
    return write_manifest(Manifest.build(entries, root=str(tmp_path)), str(tmp_path / "m.parquet"))


def test_named_splits_are_taken_at_their_word(tmp_path: Path) -> None:
    training, held_out = rows.split_rows(manifest_of(tmp_path, splits=True), DataConfig())
    assert held_out.tolist() == list(range(0, 40, 4))
    assert sorted([*training, *held_out]) == list(range(40))


def test_without_splits_a_share_is_held_out_by_name(tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path)
    training, held_out = rows.split_rows(manifest, DataConfig(held_out=0.3))
    assert sorted([*training, *held_out]) == list(range(40))
    assert held_out.tolist() == manifest.hold_out(0.3)[1].tolist()
    assert len(held_out) > 0


def test_nothing_held_out_is_an_error_unless_nothing_is_evaluated(tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path)
    with pytest.raises(
        UserError, match=r"raise data\.held_out \(0\), or set data\.held_out_clips=0"
    ):
        rows.split_rows(manifest, DataConfig(held_out=0.0))
    training, held_out = rows.split_rows(manifest, DataConfig(held_out=0.0, held_out_clips=0))
    assert (len(training), len(held_out)) == (40, 0)


def test_evaluations_look_at_the_same_rows_of_those_held_out() -> None:
    held_out = np.arange(100, 160)
    chosen = rows.evaluation_rows(held_out, clips=16, seed=3)
    assert len(set(chosen.tolist())) == 16
    assert set(chosen.tolist()) <= set(held_out.tolist())
    assert chosen.tolist() == rows.evaluation_rows(held_out, clips=16, seed=3).tolist()
    assert sorted(rows.evaluation_rows(held_out, clips=999, seed=3)) == held_out.tolist()
    assert len(rows.evaluation_rows(held_out, clips=0, seed=3)) == 0


def test_draws_are_balanced_and_differ(tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path)
    draws = rows.draws_of(manifest, np.arange(40), labels=LabelConfig(per_class=3, draws=4), seed=0)
    assert len(draws) == 4
    assert all((draw % 2).sum() == 3 and len(draw) == 6 for draw in draws)
    assert len({tuple(draw.tolist()) for draw in draws}) == 4


def test_rows_without_a_label_cannot_be_learned_from(tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path, labelled=30)
    with pytest.raises(UserError, match=r"10 of the 40 training rows .* have no label"):
        rows.draws_of(manifest, np.arange(40), labels=LabelConfig(), seed=0)


def test_too_few_labels_of_a_class_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"labels\.per_class: 25 labels per class .* class 'a' has 20 rows"
    ):
        rows.draws_of(
            manifest_of(tmp_path), np.arange(40), labels=LabelConfig(per_class=25), seed=0
        )


def test_no_manifest_is_a_mistake_with_the_way_out() -> None:
    with pytest.raises(
        UserError, match=r"data\.manifest names no manifest; make one with: python jobs/prepare"
    ):
        rows.open_manifest("")

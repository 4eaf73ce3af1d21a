"""Which rows train and which judge."""

from pathlib import Path

import numpy as np
import pytest

from clips import Manifest, Mixture, write_manifest
from tubelet import config, rows
from tubelet.config import ConfigError, UserError
from tubelet.items import DataConfig, MixedManifest
from tubelet.ledger import Part
from tubelet.recipes import Pretrain
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
        rows.open_data(DataConfig(manifest=""))
    with pytest.raises(UserError, match=r"^manifest names no manifest; make one with"):
        rows.open_manifest("")


# --- mixtures ----------------------------------------------------------------------------------


def part_of(tmp_path: Path, name: str, *, count: int, split: str | None = None) -> str:
    entries = [
        {
            "video_id": f"{name}{i:03d}.mp4",
            "size": 1,
            "label": name,
            "split": split if i % 2 else None,
        }
        for i in range(count)
    ]
    uri = str(tmp_path / f"{name}.parquet")
    write_manifest(Manifest.build(entries, root=str(tmp_path)), uri)
    return uri


def mixture_of(*parts: tuple[str, float]) -> DataConfig:
    return DataConfig(mixture=tuple(MixedManifest(uri, weight) for uri, weight in parts))


def test_each_manifest_of_a_mixture_is_split_by_its_own_word(tmp_path: Path) -> None:
    named = part_of(tmp_path, "a", count=10, split="val")
    hashed = part_of(tmp_path, "b", count=200)
    data = mixture_of((named, 0.5), (hashed, 2.0))
    mixture = rows.open_data(data)
    assert isinstance(mixture, Mixture)
    training, held_out = rows.split_rows(mixture, data)
    assert training[:5].tolist() == [0, 2, 4, 6, 8]
    assert held_out[:5].tolist() == [1, 3, 5, 7, 9]
    by_hash = rows.open_manifest(hashed).hold_out(0.05)
    assert training[5:].tolist() == (by_hash[0] + 10).tolist()
    assert held_out[5:].tolist() == (by_hash[1] + 10).tolist()
    assert rows.parts_of(mixture, training) == (Part(5, 0.5), Part(len(by_hash[0]), 2.0))
    assert rows.parts_of(rows.open_manifest(named), training) == ()


def test_labels_of_a_mixture_are_learned_from_and_few_of_them_are_refused(tmp_path: Path) -> None:
    data = mixture_of(
        (part_of(tmp_path, "a", count=9), 1.0), (part_of(tmp_path, "b", count=9), 1.0)
    )
    mixture = rows.open_data(data)
    every = np.arange(18)
    (draw,) = rows.draws_of(mixture, every, labels=LabelConfig(), seed=0)
    assert draw.tolist() == every.tolist()
    with pytest.raises(
        UserError,
        match=r"labels\.per_class draws labels of one manifest, but data\.mixture names 2: use data\.manifest, or",
    ):
        rows.draws_of(mixture, every, labels=LabelConfig(per_class=2), seed=0)


def test_a_manifest_of_a_mixture_with_nothing_to_train_on_is_named(tmp_path: Path) -> None:
    good, bad = part_of(tmp_path, "a", count=9), str(tmp_path / "bad.parquet")
    entries = [{"video_id": "x", "size": 1, "split": "val"}]
    write_manifest(Manifest.build(entries, root=str(tmp_path)), bad)
    data = mixture_of((good, 1.0), (bad, 1.0))
    with pytest.raises(
        UserError, match=r"no row of .*bad\.parquet is left to train on: its splits"
    ):
        rows.split_rows(rows.open_data(data), data)


def test_a_weight_too_small_for_any_visit_is_named_with_its_manifest(tmp_path: Path) -> None:
    small = part_of(tmp_path, "a", count=9)
    data = mixture_of((small, 0.01), (part_of(tmp_path, "b", count=9), 1.0))
    mixture = rows.open_data(data)
    with pytest.raises(
        UserError,
        match=r"data\.mixture: .*a\.parquet: weight 0\.01 of 9 rows gives no visit in an epoch; leave",
    ):
        rows.parts_of(mixture, np.arange(18))


def test_a_missing_manifest_of_a_mixture_is_named_by_its_place_in_the_list(tmp_path: Path) -> None:
    data = mixture_of((part_of(tmp_path, "a", count=9), 1.0), (str(tmp_path / "none.parquet"), 1.0))
    with pytest.raises(
        UserError,
        match=r"^data\.mixture\.1: there is nothing at .*none\.parquet; check the spelling$",
    ):
        rows.open_data(data)


def test_the_same_content_under_two_names_is_refused(tmp_path: Path) -> None:
    first = part_of(tmp_path, "a", count=9)
    again = str(tmp_path / "again.parquet")
    (tmp_path / "again.parquet").write_bytes(Path(first).read_bytes())
    with pytest.raises(UserError, match=r"^data\.mixture: .* hold the same manifest; name it once"):
        rows.open_data(mixture_of((first, 1.0), (again, 1.0)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "data.mixture=[{manifest: a.parquet, weight: 0}]",
            "data.mixture.0.weight: must be greater than 0, got 0",
        ),
        (
            "data.mixture=[{manifest: a.parquet, weight: -1.5}]",
            "data.mixture.0.weight: must be greater than 0, got -1.5",
        ),
        (
            "data.mixture=[{manifest: a.parquet, weight: .inf}]",
            "data.mixture.0.weight: must be less than or equal to 1000, got inf",
        ),
        ("data.mixture=[{weight: 2}]", "data.mixture.0.manifest: must be set"),
        (
            "data.mixture=[{manifest: a.parquet, wieght: 2}]",
            "data.mixture.0.wieght: unknown key; did you mean 'weight'?",
        ),
        (
            "data.mixture=[{manifest: a.parquet}, {manifest: a.parquet}]",
            "data.mixture: a.parquet is named 2 times; name it once, with the sum of the weights",
        ),
        ("data.mixture=a.parquet", "data.mixture: must be a list, got 'a.parquet'"),
    ],
)
def test_a_mixture_that_cannot_be_is_explained(given: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(Pretrain, overrides=[given])
    assert str(caught.value) == f"command line: {message}"


def test_a_manifest_and_a_mixture_exclude_each_other() -> None:
    both = ["data.manifest=b.parquet", "data.mixture=[{manifest: a.parquet}]"]
    with pytest.raises(
        ConfigError,
        match=r"data\.manifest and data\.mixture are both set; keep one \(data\.mixture=\[\] empties the list\)",
    ):
        config.load(Pretrain, overrides=both)


def test_a_mixture_survives_its_recipe_and_may_move() -> None:
    recipe = config.load(
        Pretrain,
        overrides=["data.mixture=[{manifest: a.parquet, weight: 2}, {manifest: b.parquet}]"],
    )
    assert recipe.data == mixture_of(("a.parquet", 2.0), ("b.parquet", 1.0))
    moved = config.load(Pretrain, overrides=["data.mixture=[{manifest: s3://b/a.parquet}]"])
    assert config.difference(recipe, moved) == []
    assert config.flatten(recipe)["data.mixture"] == [
        {"manifest": "a.parquet", "weight": 2.0},
        {"manifest": "b.parquet", "weight": 1.0},
    ]


def test_rows_with_several_labels_are_trained_on_when_that_is_said(tmp_path: Path) -> None:
    entries = [
        {"video_id": f"{i}.mp4", "size": 1, "label": "a" if i < 2 else None}
        | ({"labels": ["a", "b"]} if i in (2, 3) else {})
        for i in range(5)
    ]
    manifest = Manifest.build(entries, root=str(tmp_path))
    with pytest.raises(UserError, match=r"2 of the 4 training rows of .* have several labels"):
        rows.draws_of(manifest, np.arange(4), labels=LabelConfig(), seed=0)
    several = LabelConfig(several=True)
    (drawn,) = rows.draws_of(manifest, np.arange(4), labels=several, seed=0)
    assert drawn.tolist() == [0, 1, 2, 3]
    with pytest.raises(UserError, match=r"1 of the 5 training rows of .* have no label"):
        rows.draws_of(manifest, np.arange(5), labels=several, seed=0)
    assert rows.label_counts(manifest, np.arange(3)).tolist() == [3, 1]

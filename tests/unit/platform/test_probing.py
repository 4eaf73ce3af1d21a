"""Probes: who learns, who chooses, who is reported on; and that heads learn what there is to learn."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clips import Manifest, write_manifest
from tubelet import config, probes, probing
from tubelet.config import UserError
from tubelet.feature_set import FeatureFolder, FeatureSet, stretches
from tubelet.parts import keys_of
from tubelet.probing import Candidate, Sides
from tubelet.recipes import AttentiveConfig, LinearConfig, Probe

CPU = torch.device("cpu")
TOKENS, WIDTH, ROWS = 12, 8, 16


def nothing(done: int) -> None:
    pass


def manifest_of(count: int, *, splits: bool = False, clips: int = 1) -> Manifest:
    """Videos of two classes; every fourth is in the split ``val``; ``clips`` spans of each."""
    return Manifest.build(
        [
            {
                "video_id": f"v{n:04d}.mp4",
                "size": 1,
                "label": "ab"[n % 2],
                "split": ("val" if n % 4 == 3 else "train") if splits else None,
                "start_s": float(clip) if clips > 1 else None,
            }
            for n in range(count)
            for clip in range(clips)
        ],
        root="/videos",
    )


def asked(**keys: object) -> Probe:
    return config.load(
        Probe,
        overrides=["features=f", "manifest=m", *(f"{k}={json.dumps(v)}" for k, v in keys.items())],
    )


@pytest.mark.parametrize("splits", [False, True])
def test_no_video_is_on_two_sides(splits: bool) -> None:
    manifest = manifest_of(400, splits=splits, clips=2)
    known = np.arange(len(manifest))[5:]
    sides = probes.sides_of(asked(held_out=0.25, select=0.2), manifest, known)
    names = manifest.table["video_id"].to_pylist()
    seen = [{names[row] for row in rows} for rows in (sides.train, sides.select, sides.test)]
    for first, second in itertools.combinations(seen, 2):
        assert not first & second
    every = np.concatenate([sides.train, sides.select, sides.test])
    assert sorted(every) == known.tolist()
    assert len(sides.test) == pytest.approx(200, abs=60)
    assert len(sides.select) == pytest.approx(120, abs=50)


def test_a_side_without_videos_is_told() -> None:
    manifest = manifest_of(8, splits=True)
    with pytest.raises(
        UserError, match=r"to report on \(test, held_out\): its splits are train, val, 8 of 8 rows"
    ):
        probes.sides_of(asked(test="test"), manifest, np.arange(8))


def test_mistakes_in_the_recipe_are_told() -> None:
    for keys, text in (
        ({"features": []}, "features names no folder"),
        ({"linear": {"lr": []}}, "linear.lr and linear.weight_decay need at least one value each"),
        ({"probes": []}, "probes and knn.k need at least one value each"),
        ({"probes": ["liner"]}, "linear"),
    ):
        with pytest.raises(UserError, match=text):
            asked(**keys)


def sides_for(manifest: Manifest) -> Sides:
    return probes.sides_of(asked(held_out=0.3, select=0.3), manifest, np.arange(len(manifest)))


def test_a_linear_probe_and_neighbours_find_a_direction() -> None:
    manifest = manifest_of(300)
    sides = sides_for(manifest)
    generator = torch.Generator().manual_seed(0)
    means_RD = torch.randn(300, WIDTH, generator=generator)
    means_RD[:, 3] += 4 * torch.from_numpy(sides.class_of)
    grid = LinearConfig(lr=(1e-6, 1.0), weight_decay=(0.0,), epochs=20, warmup_epochs=1, batch=32)
    found = probing.linear(means_RD, sides, grid, seed=0, told=nothing)
    again = probing.linear(means_RD, sides, grid, seed=0, told=nothing)
    assert all(torch.equal(a.test_RK, b.test_RK) for a, b in zip(found, again, strict=True))
    chosen = probing.best(found, sides)
    assert chosen.setting == {"lr": 1.0, "weight_decay": 0.0}
    right = (chosen.test_RK.argmax(1) == sides.labels(sides.test)).float().mean()
    assert right > 0.9
    few, many = probing.nearest(means_RD, sides, (1, 20))
    assert (few.setting, many.setting) == ({"k": 1}, {"k": 20})
    assert (many.test_RK.argmax(1) == sides.labels(sides.test)).float().mean() > 0.85


def test_one_head_does_not_touch_another() -> None:
    manifest = manifest_of(60)
    sides = sides_for(manifest)
    means_RD = torch.randn(60, WIDTH, generator=torch.Generator().manual_seed(1))
    both = LinearConfig(lr=(0.1, 1.0), weight_decay=(0.0, 0.1), epochs=3, warmup_epochs=0, batch=16)
    alone = LinearConfig(lr=(1.0,), weight_decay=(0.1,), epochs=3, warmup_epochs=0, batch=16)
    *_, last = probing.linear(means_RD, sides, both, seed=0, told=nothing)
    (only,) = probing.linear(means_RD, sides, alone, seed=0, told=nothing)
    assert torch.equal(last.test_RK, only.test_RK)


def test_of_equals_the_surest_is_chosen_and_then_the_first() -> None:
    manifest = manifest_of(40)
    sides = sides_for(manifest)
    truth = torch.nn.functional.one_hot(sides.labels(sides.select), 2).float()
    empty = torch.empty(0, 2)
    unsure, sure, alike = (
        Candidate({"k": k}, torch.lerp(torch.full_like(truth, 0.5), truth, share), empty)
        for k, share in ((1, 0.1), (2, 0.9), (3, 0.9))
    )
    assert probing.best([unsure, sure, alike], sides) is sure


@given(st.lists(st.integers(0, 9), max_size=8), st.integers(1, 7))
def test_batches_are_whole_but_the_last(pieces: list[int], size: int) -> None:
    bounds = np.cumsum([0, *pieces])
    rows = np.arange(bounds[-1])
    some = [(rows[a:b], torch.from_numpy(rows[a:b])) for a, b in itertools.pairwise(bounds)]
    cut = list(probing._cut(some, size))
    assert [len(r) for r, _ in cut] == [size] * (len(rows) // size) + (
        [len(rows) % size] if len(rows) % size else []
    )
    assert [int(n) for r, _ in cut for n in r] == rows.tolist()
    assert all((r == x.numpy()).all() for r, x in cut)


@pytest.fixture
def told_by_one_token(tmp_path: Path) -> tuple[FeatureSet, Manifest]:
    """Features whose class shows in one of twelve tokens, and in the mean hardly."""
    manifest = write_manifest(manifest_of(400), str(tmp_path / "m.parquet"))
    folder = tmp_path / "features"
    folder.mkdir()
    said = {"rows": ROWS, "width": WIDTH, "clips": 1, "grid": [TOKENS, 1, 1], "tokens": True}
    (folder / "features.json").write_text(json.dumps(said))
    random = np.random.default_rng(0)
    marks = random.normal(size=(2, WIDTH)) * 5
    videos = keys_of(manifest.table)
    for part in stretches(videos, rows=ROWS):
        rows = []
        for row in part.rows:
            tokens = random.normal(size=(TOKENS, WIDTH))
            tokens[random.integers(TOKENS)] = marks[row % 2]
            mean = tokens.mean(0).astype(np.float32)
            video = {"video_id": videos[row].video_id, "start_s": None}
            rows.append({**video, "mean": mean, "tokens": tokens.astype(np.float16).ravel()})
        FeatureFolder(str(folder)).write(part.name, rows, [])
    return FeatureSet(str(folder), manifest), manifest


@pytest.mark.parametrize("kept", [True, False])
def test_an_attentive_probe_learns_from_tokens_in_memory_or_not(
    told_by_one_token: tuple[FeatureSet, Manifest], kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, manifest = told_by_one_token
    if not kept:
        monkeypatch.setattr(probing, "_KEPT_BYTES", 0)
    sides = sides_for(manifest)
    grid = AttentiveConfig(lr=(1e-5, 1e-2), weight_decay=(0.01,), epochs=12, batch=32)
    said: list[int] = []
    found = probing.attentive(
        probing.Tokens(features), WIDTH, sides, grid, seed=0, device=CPU, told=said.append
    )
    assert said == list(range(1, 13))
    chosen = probing.best(found, sides)
    assert chosen.setting["lr"] == 1e-2
    assert (chosen.test_RK.argmax(1) == sides.labels(sides.test)).float().mean() > 0.9


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")
def test_features_are_compared_in_a_table_a_picture_and_files(
    told_by_one_token: tuple[FeatureSet, Manifest],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    features, manifest = told_by_one_token
    recipe = asked(
        features=[features.folder, str(tmp_path / "again" / "features")],
        probes=["linear", "knn"],
        held_out=0.3,
        linear={"epochs": 3, "lr": [0.1, 1.0, 10.0]},
        knn={"k": [5, 10, 20]},
        storage=str(tmp_path / "runs"),
        output=str(tmp_path / "out"),
    )
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "features").symlink_to(features.folder)
    results = probes.probe(recipe, manifest)
    said = capsys.readouterr().out
    assert [(r.features.rsplit("_", 1)[0] != "", r.probe) for r in results] == [
        (True, "linear"),
        (True, "knn"),
    ] * 2
    names = [r.features for r in results]
    assert names[0] != names[2]
    assert results[0].accuracy.top1 == results[2].accuracy.top1  # of the same features
    for name in names:
        assert name in said
    told = json.loads((tmp_path / "out" / "probes.json").read_text())
    assert [each["features"] for each in told] == names
    assert {len(each["tried"]) for each in told} == {9, 3}
    assert (tmp_path / "out" / "probes.png").read_bytes().startswith(b"\x89PNG")
    heads = sorted(p.name for p in (tmp_path / "out").glob("*.safetensors"))
    assert heads == sorted(f"{name}.linear.safetensors" for name in {*names})
    with pytest.raises(UserError, match="features names a folder twice"):
        probes._names([features.folder, features.folder])

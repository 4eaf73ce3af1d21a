"""Features in a folder: which part holds what, and what is said when something is missing."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from clips import Manifest
from tubelet import feature_set
from tubelet.config import UserError
from tubelet.feature_set import FeatureFolder, FeatureSet, stretches
from tubelet.parts import keys_of

WIDTH, CLIPS, GRID, ROWS = 3, 2, (2, 1, 1), 4


def manifest_of(count: int, *, spans: bool = False) -> Manifest:
    rows = [
        {
            "video_id": f"v{n // 2 if spans else n:02d}.mp4",
            "size": 10 + n,
            "label": f"class{n % 2}",
            "start_s": float(n % 2) if spans else None,
            "end_s": float(n % 2 + 1) if spans else None,
        }
        for n in range(count)
    ]
    return Manifest.build(rows, root="/videos")


def write(
    folder: Path, manifest: Manifest, *, bad: tuple[int, ...] = (), tokens: bool = True
) -> None:
    """Features that say which row they are of: clip c of row r has mean r + c / 10."""
    said = {"rows": ROWS, "width": WIDTH, "clips": CLIPS, "grid": GRID, "tokens": tokens}
    folder.mkdir(exist_ok=True)
    (folder / "features.json").write_text(json.dumps(said))
    videos = keys_of(manifest.table)
    files = FeatureFolder(str(folder))
    for part in stretches(videos, rows=ROWS):
        good, undecodable = [], []
        for row in part.rows:
            known = {"video_id": videos[row].video_id, "start_s": videos[row].start_s}
            mean = np.repeat([row, row + 0.1], WIDTH).astype(np.float32)
            every = np.full(CLIPS * 2 * WIDTH, row, np.float16) if tokens else None
            if row in bad:
                undecodable.append({**known, "reason": "corrupt", "message": "no frame"})
            else:
                good.append({**known, "mean": mean, "tokens": every})
        files.write(part.name, good, undecodable)


def test_every_row_comes_back_as_its_own_and_bad_ones_are_left_out(tmp_path: Path) -> None:
    manifest = manifest_of(10)
    write(tmp_path / "f", manifest, bad=(2, 4, 5, 6, 7))  # the second part has none left
    features = FeatureSet(str(tmp_path / "f"), manifest)
    rows, mean_RD = features.means()
    assert rows.tolist() == [0, 1, 3, 8, 9]
    assert mean_RD.dtype == np.float32
    assert np.allclose(mean_RD, rows[:, None] + 0.05, atol=1e-6)
    for part in features.parts:
        rows, tokens_RND = features.tokens(part)
        assert tokens_RND.shape == (len(rows), CLIPS * 2, WIDTH)
        assert (tokens_RND == rows[:, None, None]).all()


def test_spans_of_a_video_are_told_apart(tmp_path: Path) -> None:
    manifest = manifest_of(6, spans=True)
    write(tmp_path / "f", manifest, bad=(3,))
    rows, mean_RD = FeatureSet(str(tmp_path / "f"), manifest).means()
    assert rows.tolist() == [0, 1, 2, 4, 5]
    assert np.allclose(mean_RD[:, 0], rows + 0.05, atol=1e-6)


def test_rows_added_at_the_end_leave_the_parts_before_them() -> None:
    few, more = (stretches(keys_of(manifest_of(n).table), rows=ROWS) for n in (10, 14))
    assert [p.name for p in few[:2]] == [p.name for p in more[:2]]
    assert few[2].name != more[2].name
    assert [row for part in more for row in part.rows] == list(range(14))


def test_a_change_of_size_is_another_part() -> None:
    table = manifest_of(4).table
    changed = table.set_column(1, table.schema.field("size"), pa.array([10, 11, 12, 14]))
    (before,), (after,) = (stretches(keys_of(t), rows=ROWS) for t in (table, changed))
    assert before.name != after.name


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    manifest = manifest_of(10)
    with pytest.raises(UserError, match=r"holds no features: make them with jobs/features\.py"):
        FeatureSet(str(tmp_path / "f"), manifest)
    write(tmp_path / "f", manifest, tokens=False)
    features = FeatureSet(str(tmp_path / "f"), manifest)
    with pytest.raises(
        UserError, match="holds means only, and an attentive probe needs all tokens"
    ):
        features.tokens(features.parts[0])
    other = manifest_of(12)
    with pytest.raises(
        UserError, match=r"lacks 1 of 3 parts of the features of .*again, which makes"
    ):
        FeatureSet(str(tmp_path / "f"), other)


def test_a_part_that_is_made_again_forgets_what_was_bad(tmp_path: Path) -> None:
    manifest = manifest_of(4)
    write(tmp_path / "f", manifest, bad=(1,))
    (name,) = {part.name for part in stretches(keys_of(manifest.table), rows=ROWS)}
    files = FeatureFolder(str(tmp_path / "f"))
    assert files.undecodable({name})[name]["video_id"].to_pylist() == ["v01.mp4"]
    assert files.undecodable(set()) == {}
    write(tmp_path / "f", manifest)
    assert files.undecodable({name}) == {}
    assert FeatureSet(str(tmp_path / "f"), manifest).means()[0].tolist() == [0, 1, 2, 3]
    files.clear()
    assert files.names() == set()
    assert feature_set.told_in(str(tmp_path / "f")) == f"{tmp_path}/f/features.json"

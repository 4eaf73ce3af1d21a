"""``tubelet promote`` with real models on real videos: a worse one stays challenger."""

from pathlib import Path

import pytest

import models_made
from clips import Manifest, write_manifest
from clips.ingest import Entry, examine
from clips.synthetic import MotionConfig, write_videos
from jobs import ROOT, run_jobs
from tubelet import registry, tracking
from tubelet.exits import DONE, MISTAKE, STOPPED

pytestmark = [
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
    pytest.mark.filterwarnings("ignore:Operation with range is deprecated"),
]
VIDEOS = 12


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """``run.storage`` with a registry, and a manifest of videos that are all labelled ``right``."""
    videos = tmp_path / "videos"
    config = MotionConfig(size=32, frames=8, fps=8, gop=8)
    found = []
    for name in write_videos(videos, range(VIDEOS), seed=1, config=config):
        entry = Entry(name, (videos / name).stat().st_size, None, label="right", split="val")
        row = examine(entry, root=str(videos))
        assert isinstance(row, dict)
        found.append(row)
    write_manifest(Manifest.build(found, root=str(videos)), str(tmp_path / "val.parquet"))
    run_id = models_made.start_run(tmp_path)
    models_made.register(tmp_path, run_id, says="right", alias="first")
    models_made.register(tmp_path, run_id, says="up", alias="challenger")
    models_made.register(tmp_path, run_id, says="right", alias="third", views=2)
    return tmp_path


def test_a_worse_challenger_is_refused_a_better_one_promoted(root: Path) -> None:
    keys = ["promote", "motion", f"manifest={root}/val.parquet", f"storage={root}"]
    command = [str(ROOT / "platform" / "tubelet" / "cli.py"), *keys]
    ended = run_jobs(
        {
            "first": [*command, "challenger=first"],
            "again": [*command, "challenger=first"],
            "worse": command,
            "forced": [*command, "force=true"],
            "better": [*command, "challenger=third", "metric=mean_class"],
            "unknown": [*command, "challenger=chalenger"],
        },
        cpus=2,
    )
    codes = [each.code for each in ended.values()]
    assert codes == [DONE, DONE, STOPPED, DONE, DONE, MISTAKE], ended
    assert "motion version 1 is champion now (there is no champion yet)" in ended["first"].out
    assert ended["again"].out == "version 1 of motion is champion already\n"
    worse = ended["worse"].out
    assert f"only the champion has {VIDEOS} videos right, only the challenger 0" in worse
    assert "not promoted: top1 100.00 % -> 0.00 %: the challenger is worse; force=true" in worse
    assert (
        "motion version 2 is champion now (top1 100.00 % -> 0.00 %, worse, but force=true, before: version 1)"
        in ended["forced"].out
    )
    assert "mean_class 0.00 % -> 100.00 %, before: version 2" in ended["better"].out
    assert "model 'motion' has no alias 'chalenger'; there is" in ended["unknown"].err
    uri = tracking.resolve_uri(str(root))
    assert registry.aliases("motion", uri=uri)["champion"] == "3"
    tags = tracking.connect(uri).get_model_version("motion", "2").tags
    assert (tags["promote/top1"], tags["promote/against"]) == ("0", "1")

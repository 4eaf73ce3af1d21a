"""A training set of which one file kills its decoder, one hangs it, and others are damaged: the run ends, exact."""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from clips import Manifest, read_manifest, synthetic, write_manifest
from hostile import BACKEND
from jobs import ROOT, Ended, environment, run_jobs
from motion import TINY_VIDEO
from tubelet import audit, config, quarantine, tracking
from tubelet.loops import pretrain
from tubelet.quarantine import Entry
from tubelet.recipes import Pretrain
from tubelet.run_directory import RunDirectory

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
]

VIDEOS, EPOCHS, BATCH = 200, 2, 16
HARMFUL = {"crashed": "class/segfault.mp4", "timeout": "class/hang.mp4"}
DAMAGED = ("class/cut.mp4", "class/text.mp4")
RECIPE = {
    "model": {"preset": "tiny", "frames": 4, "image_size": 16, "depth": 1, "decoder_depth": 1},
    "mask": {"ratio": 0.75},
    "data": {"clip": {"stride": 1}, "held_out_clips": 0},
    "decode": {"backend": BACKEND, "seconds": 1.0},
    "batch": {"size": BATCH, "micro": 4},
    "optim": {"precision": "float32"},
    "schedule": {"epochs": EPOCHS, "warmup_epochs": 1},
    "elastic": {"min_workers": 2, "max_workers": 2, "cpus_per_worker": 0.5},
    "track": {"pictures": False},
}


@dataclass
class Ran:
    ended: Ended
    run: RunDirectory
    recipe: Pretrain
    manifest: Manifest
    folder: Path

    @property
    def entries(self) -> list[Entry]:
        return quarantine.read(self.run, self.run.committed()[-1])


def dangerous_manifest(folder: Path) -> Manifest:
    """Many good videos, one of each kind of harm, and damaged ones: 2 %."""
    names = synthetic.write_videos(folder, range(VIDEOS), seed=3, config=TINY_VIDEO)
    for old, new in zip(names, (*HARMFUL.values(), *DAMAGED), strict=False):
        (folder / new).parent.mkdir(exist_ok=True)
        (folder / old).rename(folder / new)
    rows = [
        {"video_id": str(path.relative_to(folder)), "size": path.stat().st_size, "split": "train"}
        for path in folder.rglob("*.mp4")
    ]
    manifest = write_manifest(Manifest.build(rows, root=str(folder)), f"{folder}.parquet")
    whole = (folder / DAMAGED[0]).read_bytes()
    (folder / DAMAGED[0]).write_bytes(whole[: len(whole) // 3].ljust(len(whole), b"\0"))
    (folder / DAMAGED[1]).write_bytes(b"not a video at all".ljust(len(whole)))
    return manifest


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("hostile")
    manifest = dangerous_manifest(folder / "videos")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(RECIPE))
    arguments = [
        str(folder / "tiny.yaml"),
        f"data.manifest={manifest.uri}",
        f"run.storage={folder}/runs",
    ]
    path = f"{environment()['PYTHONPATH']}{os.pathsep}{ROOT / 'tests/support'}"
    ended = run_jobs({"run": ["pretrain", *arguments]}, variables={"PYTHONPATH": path})["run"]
    recipe = config.load(Pretrain, [folder / "tiny.yaml"], arguments[1:])
    run = RunDirectory(str(folder / "runs" / "tiny"))
    return Ran(ended, run, recipe, read_manifest(str(manifest.uri)), folder)


def test_the_run_ends_and_every_position_is_accounted_for(ran: Ran) -> None:
    assert ran.ended.code == 0, ran.ended.err
    plan = pretrain.job(ran.recipe).plan
    report = audit.verify(ran.run, ledger=plan.ledger, copies=plan.copies)
    assert (report.expected, report.consumed) == (VIDEOS * EPOCHS, VIDEOS * EPOCHS)
    assert report.exact
    bad = Counter(reason.split(":")[0] for reason in report.bad)
    assert bad == dict.fromkeys((*HARMFUL.values(), *DAMAGED), EPOCHS)


def test_the_quarantine_names_each_file_with_its_reason(ran: Ran) -> None:
    found = {entry.video_id: entry for entry in ran.entries}
    assert set(found) == {*HARMFUL.values(), *DAMAGED}
    for reason, name in HARMFUL.items():
        entry = found[name]
        assert (entry.reason, entry.stage, entry.clips) == (reason, "process", EPOCHS)
        assert entry.message.endswith(", 2 times")
        assert (
            entry.first_step < -(-VIDEOS // BATCH) == entry.from_step
        )  # it was not tried again in the second epoch
    for name in DAMAGED:
        assert (found[name].stage, found[name].clips, found[name].from_step) == ("opening", 2, None)


def test_people_are_told_where_the_list_is_and_mlflow_has_it(ran: Ran, tmp_path: Path) -> None:
    uri = quarantine.uri_of(ran.run, ran.run.committed()[-1])
    assert f"note: {quarantine.summary(ran.entries)}, listed in {uri}" in ran.ended.out
    record = ran.run.read_json("run.json")
    assert record is not None
    client = tracking.connect(tracking.resolve_uri(str(ran.folder / "runs")))
    client.download_artifacts(record["mlflow_run_id"], "quarantine", str(tmp_path))
    assert (tmp_path / "quarantine/quarantine.parquet").read_bytes() == Path(uri).read_bytes()

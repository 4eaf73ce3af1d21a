"""The whole path, small: 48 motion videos, then every job in turn on one Ray, and what they leave."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from clips.synthetic import MotionConfig, write_videos
from jobs import Ended, run_jobs

MODEL = "whole-path"
ALIAS = "champion"
DRAWS = 2
SMALL = MotionConfig(size=32, frames=16, fps=16, gop=16)
TRAINING, HELD_OUT = 40, 8

_DATA = "data.manifest={}/videos.parquet run.storage={}/runs"
_LINES = {
    "prepare": "prepare {}/videos manifest={}/videos.parquet labels=folders",
    "pretrain": f"pretrain jobs/recipes/demo/pretrain.yaml {_DATA} run.name=pretrain"
    " schedule.epochs=3 schedule.warmup_epochs=1 track.evaluate_every=5 batch.size=8 batch.micro=4 data.copies=2"
    " optim.lr=0.032 optim.min_lr=0",
    "finetune": f"finetune jobs/recipes/demo/finetune_pretrained.yaml {_DATA} run.name=finetune"
    " head.init={}/runs/pretrain labels.per_class=3 labels.draws=2 data.held_out_clips=8"
    " schedule.epochs=4 schedule.warmup_epochs=1 batch.size=8 batch.micro=4"
    " elastic.min_workers=1 elastic.max_workers=1",
    "evaluate": "evaluate model={}/runs/finetune manifest={}/videos.parquet storage={}/runs"
    " output={}/evaluate",
    "register": "{}/register.py {}/runs finetune draw_1",
    "predict": "predict {}/videos/val/up model=models:/whole-path@champion top_k=3 storage={}/runs"
    " output={}/predict",
}
_REGISTER = f"""
import json, sys
from pathlib import Path
from tubelet import config, models, registry, tracking

def main(arguments):
    root, name, draw = arguments
    run = Path(root, name)
    record = json.loads((run / "run.json").read_text())
    export = str(run / "export" / draw)
    (source,) = models.find(export, storage_root=root, folder=run)
    card = registry.Card(
        metrics={{"top1": 0.5}},
        manifest=record["manifest"],
        recipe=(run / "recipe.yaml").read_text(),
        lineage="the run pretrain",
    )
    registry.register(
        export, uri=tracking.resolve_uri(root), name="{MODEL}", alias="{ALIAS}",
        run_id=record["mlflow_run_id"], card=card, stride=source.stride,
    )
    return config.DONE

config.run_main(main)
"""


@dataclass(frozen=True)
class WholePath:
    """What is there afterwards."""

    folder: Path
    """``videos/``, ``videos.parquet``, ``runs/`` (with MLflow's store), ``evaluate/``, ``predict/``."""
    ended: dict[str, Ended]
    """How each job ended."""


def walk(folder: Path) -> WholePath:
    """Run everything in an empty folder."""
    for side, numbers in (
        ("train", range(TRAINING)),
        ("val", range(TRAINING, TRAINING + HELD_OUT)),
    ):
        write_videos(folder / "videos" / side, numbers, seed=7, config=SMALL, class_folders=True)
    (folder / "register.py").write_text(_REGISTER)
    lines = {n: shlex.split(line.replace("{}", str(folder))) for n, line in _LINES.items()}
    return WholePath(folder, run_jobs(lines))

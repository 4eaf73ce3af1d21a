"""An evaluation as its user sees it: progress, a table, the weakest classes, files, and a run in MLflow."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from clips import Manifest, storage
from tubelet import cluster, config, models, terminal, tracking
from tubelet.evaluation import confusion, judge, tables
from tubelet.evaluation.metrics import Accuracy
from tubelet.recipes import Evaluate

_WEAKEST = 5


def evaluate(
    recipe: Evaluate, manifest: Manifest, sources: Sequence[models.Source]
) -> judge.Judgement:
    """Judge every model, tell the user, and keep the result; connects to Ray once all is checked.

    Raises:
        UserError: the models and the data do not go together, or MLflow cannot be used.
    """
    chosen = judge.labelled_rows(manifest, held_out=recipe.held_out, split=recipe.split)
    judge.check(manifest, sources)
    root = storage.absolute(recipe.storage)
    uri = tracking.resolve_uri(root)
    gpus = cluster.connect(trainer_cpus=recipe.workers).gpus >= recipe.workers
    with terminal.progress("evaluate", len(chosen), unit="videos") as bar:
        judgement = judge.judge(
            manifest,
            chosen,
            sources=sources,
            views=recipe.views,
            crops=recipe.crops,
            stride=recipe.stride,
            decode=recipe.decode,
            gpus=gpus,
            workers=recipe.workers,
            progress=bar.update,
        )
    terminal.table(
        ("model", "videos", "top-1 %", "top-5 %", "mean class %", "mAP %"),
        [
            (
                s.name,
                str(a.videos),
                f"{a.top1:.2%}"[:-1],
                f"{a.top5:.2%}"[:-1],
                f"{a.mean_class:.2%}"[:-1],
                f"{a.mean_ap:.2%}"[:-1],
            )
            for s, a in zip(sources, judgement.accuracies, strict=True)
        ],
    )
    best = max(judgement.accuracies, key=lambda a: a.top1)
    terminal.say("weakest classes of the best: " + ", ".join(_weakest(best, sources[0].classes)))
    if judgement.undecodable:
        terminal.say(
            f"{len(judgement.undecodable)} videos could not be decoded: {judgement.undecodable[0]}, ..."
        )
    folder = Path(recipe.output)
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(judgement.predictions, folder / "predictions.parquet")
    for number, (s, a) in enumerate(zip(sources, judgement.accuracies, strict=True)):
        (folder / f"classes_{number}.csv").write_text(tables.by_class(a, s.classes))
        title = f"{s.name.rstrip('/').rsplit('/', 1)[-1]}: top-1 {a.top1:.1%}"
        picture = confusion.picture(a, s.classes, title=title)
        (folder / f"confusion_{number}.png").write_bytes(picture)
    metrics = {s.name: _plain(a) for s, a in zip(sources, judgement.accuracies, strict=True)}
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    _log(recipe, manifest, judgement.accuracies, folder, uri=uri, root=root)
    terminal.say(f"predictions, metrics, tables and pictures of the classes in {folder}")
    return judgement


def _log(
    recipe: Evaluate,
    manifest: Manifest,
    accuracies: Sequence[Accuracy],
    folder: Path,
    *,
    uri: str,
    root: str,
) -> None:
    run_id = tracking.start_run(
        uri,
        storage=root,
        job="evaluate",
        name=recipe.names[0].rstrip("/").rsplit("/", 1)[-1],
        parameters=config.flatten(recipe),
        recipe=config.to_yaml(recipe),
        manifest=manifest.hash,
        revision=cluster.revision(),
    )
    client = tracking.connect(uri)
    for number, each in enumerate(accuracies):
        for name in ("top1", "top5", "mean_class", "mean_ap"):
            client.log_metric(run_id, f"eval/{name}", getattr(each, name), step=number)
    tracking.log_artifacts(uri, run_id=run_id, folder=folder)
    tracking.finish_run(uri, run_id=run_id, status="FINISHED")


def _weakest(accuracy: Accuracy, classes: Sequence[str]) -> list[str]:
    present = np.flatnonzero(accuracy.videos_by_class)
    share = accuracy.right_by_class[present] / accuracy.videos_by_class[present]
    order = np.argsort(share, kind="stable")[:_WEAKEST]
    return [f"{classes[int(present[i])]} {share[i]:.0%}" for i in order]


def _plain(accuracy: Accuracy) -> dict[str, Any]:
    """As JSON: without the confusion matrix, which has a picture, and null for what is not a number."""
    found = {k: v for k, v in asdict(accuracy).items() if k != "confusion"}
    found["ap_by_class"] = [None if np.isnan(p) else p for p in accuracy.ap_by_class.tolist()]
    return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in found.items()}

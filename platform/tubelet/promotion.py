"""``tubelet promote``: the challenger becomes the champion if it is not worse on the same videos.

Both are asked as they are registered, each with its own views, about the same labelled rows of one manifest. What came
of it is kept as tags of the challenger's version. The alias moves last, and at once for everybody who loads it.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, get_args

import numpy as np
from annotated_types import Ge, Lt

from clips import DecodeConfig, Manifest, storage
from tubelet import cluster, models, registry, rows, terminal, tracking
from tubelet.evaluation import judge
from tubelet.evaluation.metrics import Accuracy

Metric = Literal["top1", "top5", "mean_class", "mean_ap"]


@dataclass(frozen=True)
class Promote:
    """Arguments of ``tubelet promote NAME``."""

    name: str
    """The registered model."""
    manifest: str
    """Parquet file with labels: the videos to compare on."""
    challenger: str = "challenger"
    """Alias of the version that wants to be champion."""
    champion: str = "champion"
    """Alias that is moved."""
    metric: Metric = "top1"
    """By which they are compared: share of videos right, among the five likeliest, the mean over classes, or mAP."""
    force: bool = False
    """Promote it even if it is worse."""
    split: str | None = None
    """Which rows: those of this split; null: of ``val``, if the manifest names splits."""
    held_out: Annotated[float, Ge(0), Lt(1)] = 0.05
    """Which rows, when the manifest names no split: the share that training with this value has held out; 0: all."""
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    storage: str = "build/runs"
    """Where MLflow's file is when MLFLOW_TRACKING_URI names no server."""


@dataclass(frozen=True)
class Decision:
    """Whether the alias moves, and why."""

    promote: bool
    reason: str


def decide(new: float, old: float | None, *, metric: str, force: bool) -> Decision:
    """Compare what both have reached on the same videos.

    Args:
        new: of the challenger, between 0 and 1.
        old: of the champion; None when there is none.
        metric: its name, for the reason.
        force: promote a worse one, too.
    """
    if old is None:
        return Decision(True, "there is no champion yet")
    change = f"{metric} {100 * old:.2f} % -> {100 * new:.2f} %"
    if new >= old:
        return Decision(True, change)
    if force:
        return Decision(True, f"{change}, worse, but force=true")
    return Decision(
        False, f"{change}: the challenger is worse; force=true promotes it all the same"
    )


def run(asked: Promote) -> bool:
    """Compare, tell the user, and move the alias; whether the challenger is the champion now.

    Raises:
        UserError: no such model, alias or manifest, or a model that does not know the manifest's classes.
    """
    uri = tracking.resolve_uri(storage.absolute(asked.storage))
    challenger = f"models:/{asked.name}@{asked.challenger}"
    _, new_version = registry.resolve(challenger, uri=uri)
    old_version = registry.aliases(asked.name, uri=uri).get(asked.champion)
    if old_version == new_version:
        terminal.say(f"version {new_version} of {asked.name} is {asked.champion} already")
        return True
    manifest = rows.open_manifest(asked.manifest)
    versions = [number for number in (old_version, new_version) if number is not None]
    with tempfile.TemporaryDirectory() as folder:
        sources = [
            models.find_one(
                f"models:/{asked.name}/{number}",
                storage_root=asked.storage,
                folder=Path(folder, number),
            )
            for number in versions
        ]
        judged = _judge(asked, manifest, sources)
    _tell(versions, judged)
    scores = [getattr(accuracy, asked.metric) for accuracy, _ in judged]
    decision = decide(
        scores[-1],
        scores[0] if old_version is not None else None,
        metric=asked.metric,
        force=asked.force,
    )
    client = tracking.connect(uri)
    for name, value in _tags(asked, manifest, judged[-1][0], decision, old_version).items():
        client.set_model_version_tag(asked.name, new_version, name, value)
    if decision.promote:
        client.set_registered_model_alias(asked.name, asked.champion, new_version)
    before = f", before: version {old_version}" if old_version is not None else ""
    terminal.say(
        f"{asked.name} version {new_version} is {asked.champion} now ({decision.reason}{before})"
        if decision.promote
        else f"not promoted: {decision.reason}"
    )
    return decision.promote


Judged = tuple[Accuracy, np.ndarray]
"""How good a model is, and which videos it has right."""


def _judge(asked: Promote, manifest: Manifest, sources: Sequence[models.Source]) -> list[Judged]:
    chosen = judge.labelled_rows(manifest, held_out=asked.held_out, split=asked.split)
    for source in sources:
        judge.check(manifest, [source])
    gpus = cluster.connect(trainer_cpus=1).gpus > 0
    judged: list[Judged] = []
    for number, source in enumerate(sources):
        with terminal.progress(f"model {number + 1}", len(chosen), unit="videos") as bar:
            made = judge.judge(
                manifest,
                chosen,
                sources=[source],
                views=source.views,
                crops=source.crops,
                stride=source.stride,
                decode=asked.decode,
                gpus=gpus,
                progress=bar.update,
            )
        judged.append((made.accuracies[0], made.right[0]))
    return judged


def _tell(versions: Sequence[str], judged: Sequence[Judged]) -> None:
    percent = [[f"{100 * getattr(a, m):.2f}" for m in get_args(Metric)] for a, _ in judged]
    terminal.table(
        ("version", "videos", "top-1 %", "top-5 %", "mean class %", "mAP %"),
        [
            (number, str(accuracy.videos), *shares)
            for number, (accuracy, _), shares in zip(versions, judged, percent, strict=True)
        ],
    )
    if len(judged) == 2:
        (_, old_V), (_, new_V) = judged
        terminal.say(
            f"only the champion has {int((old_V & ~new_V).sum())} videos right, only the challenger "
            f"{int((new_V & ~old_V).sum())}"
        )


def _tags(
    asked: Promote,
    manifest: Manifest,
    accuracy: Accuracy,
    decision: Decision,
    old_version: str | None,
) -> dict[str, str]:
    """What is written on the challenger's version."""
    return {
        **{f"promote/{m}": f"{getattr(accuracy, m):.6g}" for m in get_args(Metric)},
        "promote/videos": str(accuracy.videos),
        "promote/manifest": manifest.hash,
        "promote/against": old_version or "none",
        "promote/decision": decision.reason,
    }

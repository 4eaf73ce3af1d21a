"""``make demo``: all stages in one process and on one Ray, with a report at the end."""

import contextlib
import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clips import Found, storage
from clips.pipeline import Prepared
from tubelet import cluster, config, terminal, tracking
from tubelet.config import UserError
from tubelet.demo import stages
from tubelet.demo.memory import PeakMemory

_MOST_SHOWN = 40


@dataclass(frozen=True)
class Demo:
    """Arguments of ``jobs/demo.py``."""

    videos: str | None = None
    """Folder or ``s3://`` prefix with your own videos; null generates motion videos."""
    labels: str = "none"
    """``folders`` when your videos lie in class folders: then they are fine-tuned on as well."""
    study: bool = False
    """Compare pretrained and scratch thoroughly instead: more draws, several rates, two pretraining seeds."""
    folder: str = "build/demo"
    """Where everything goes."""

    def __post_init__(self) -> None:
        if self.labels not in ("none", "folders"):
            raise ValueError(f"labels is {self.labels!r}; allowed: none, folders")
        if self.labels == "folders" and self.videos is None:
            raise ValueError(
                "labels=folders is about your own videos: name them with videos=FOLDER"
            )
        if self.study and self.videos is not None:
            raise ValueError("study=true compares on the generated videos: leave out videos=")


class Stages:
    """Tells the user which stage runs and keeps how long each took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str, title: str) -> Iterator[None]:
        """Time one stage."""
        terminal.say(f"\n{title}")
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 1)


def run(demo: Demo) -> None:
    """Run the demo from where an earlier, interrupted one left off.

    Raises:
        UserError: the videos cannot be used.
        Interrupted: stopped; the same command goes on.
    """
    folder = Path(demo.folder).resolve()
    found = None
    if demo.videos is not None:
        found = stages.videos_of(demo.videos, labels=demo.labels == "folders")
    _open(folder, demo)
    memory = PeakMemory()
    timed = Stages()
    started = time.monotonic()
    with terminal.console_and_log(folder / "demo.log"):
        with timed("ray", "Starting Ray on this machine"):
            cluster.connect(trainer_cpus=1.0)
        if demo.study:
            from tubelet.demo import study

            study.run(folder, timed)
        elif demo.videos is None:
            _motion(folder, timed, memory)
        else:
            _own(demo, found, folder, timed, memory)
        timed.seconds["total"] = round(time.monotonic() - started, 1)
        terminal.say(f"\n{timed.seconds['total']:.0f} s in all; logs in {folder / 'demo.log'}")


def _open(folder: Path, demo: Demo) -> None:
    """Begin anew unless the folder holds the same demo, unfinished; never delete anything else.

    Raises:
        UserError: the folder is not the demo's, or the user's videos are in it.
    """
    if demo.videos and storage.is_local(demo.videos):
        videos = Path(storage.local_path(demo.videos)).resolve()
        if videos.is_relative_to(folder):
            raise UserError(
                f"videos={demo.videos} lies inside {folder}, which the demo clears when it begins anew: "
                "choose another folder="
            )
    if folder.exists() and not folder.is_dir():
        raise UserError(f"folder={demo.folder} is a file: choose another folder=")
    asked = {"videos": demo.videos, "labels": demo.labels, "study": demo.study}
    state, report = folder / "demo.json", folder / "report.json"
    before = _asked_before(state)
    if before == asked and not report.exists():
        return
    if folder.exists():
        foreign = [p.name for p in folder.iterdir()] if before.keys() != asked.keys() else []
        if foreign:
            raise UserError(f"{folder} holds {foreign[0]} and no demo: choose another folder=")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    state.write_text(json.dumps(asked))


def _asked_before(state: Path) -> dict[str, Any]:
    """What the demo in this folder was asked for; nothing when it is none of ours."""
    try:
        found = json.loads(state.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


# --- generated videos --------------------------------------------------------------------------------


def prepare_motion(folder: Path, timed: Stages) -> Path:
    """Generated videos and their manifest."""
    with timed(
        "generate",
        "Generating motion videos: eight directions, nothing in a single frame tells which",
    ):
        videos = stages.generate(folder / "videos", stages.Motion())
    manifest = folder / "manifest.parquet"
    with timed("manifest", "Building the manifest"):
        stages.make_manifest(str(videos), manifest, labels=True)
    return manifest


def _motion(folder: Path, timed: Stages, memory: PeakMemory) -> None:
    root = folder / "runs"
    manifest = prepare_motion(folder, timed)
    with timed("pretrain", "Pretraining: hide most of each clip, learn to reconstruct it"):
        encoder = stages.pretrain_run(root, manifest)
    sides = []
    for name, title, overrides in (
        (
            "finetune_pretrained",
            "Fine-tuning the pretrained encoder",
            [config.setting("head.init", encoder.run.uri)],
        ),
        ("finetune_scratch", "The same from random weights, for comparison", []),
    ):
        with timed(name, title):
            sides.append(stages.finetune_run(root, manifest, f"{name}.yaml", *overrides))
    with timed("evaluate", "Evaluating all of them on held-out videos"):
        (pretrained, scratch), data = stages.evaluate(manifest, sides)
    better = 0 if _mean(pretrained) >= _mean(scratch) else 1
    with timed("register", "Registering the better model, and loading it back by its alias"):
        champion = stages.register_best(
            root,
            sides[better],
            (pretrained, scratch)[better],
            data,
            lineage=f"pretraining run {encoder.mlflow_run_id}" if better == 0 else "random weights",
        )
        picture = folder / "pictures" / "prediction.png"
        video, label, share = stages.predict_one(root, champion, data, picture)
    terminal.say(f"  {champion} calls {video} {label!r} ({share:.0%})")
    held_out = pretrained[0].videos
    _tell(folder, root, pretrained, scratch, classes=len(data.classes), labels="few labels a class")
    _report(
        folder,
        timed,
        memory,
        pretrained_top1=[round(a.top1, 4) for a in pretrained],
        scratch_top1=[round(a.top1, 4) for a in scratch],
        held_out=held_out,
        champion_uri=champion,
        pictures=_pictures(folder, encoder, *sides),
    )


def _tell(
    folder: Path,
    root: Path,
    pretrained: Sequence[Any],
    scratch: Sequence[Any],
    *,
    classes: int,
    labels: str,
) -> None:
    terminal.say("")
    lines = [
        (f"draw {n}", f"{p.top1:.1%}"[:-1], f"{s.top1:.1%}"[:-1], f"{100 * (p.top1 - s.top1):+.1f}")
        for n, (p, s) in enumerate(zip(pretrained, scratch, strict=True), start=1)
    ]
    gains = [100 * (p.top1 - s.top1) for p, s in zip(pretrained, scratch, strict=True)]
    mean, _ = stages.mean_and_error(gains)
    lines.append(
        ("mean", f"{100 * _mean(pretrained):.1f}", f"{100 * _mean(scratch):.1f}", f"{mean:+.1f}")
    )
    terminal.table(("top-1 %", "pretrained", "scratch", "gain"), lines)
    videos = f"on {pretrained[0].videos} held-out videos of {classes} classes (chance {100 / classes:.1f} %)"
    terminal.say(f"{videos}, {labels}; {certainty(gains)}")
    terminal.say(f"\npictures   {folder / 'pictures'}")
    terminal.say(f"MLflow     {mlflow_command(root)}")


def certainty(gains: Sequence[float]) -> str:
    """How far the mean of the draws' gains, in points, is to be trusted."""
    if len(gains) == 1:
        return "a single draw, which proves little"
    return f"standard error of the mean gain {stages.mean_and_error(gains)[1]:.1f} points"


def _mean(accuracies: Sequence[Any]) -> float:
    return stages.mean_and_error([a.top1 for a in accuracies])[0]


# --- the user's videos -------------------------------------------------------------------------------


def _own(demo: Demo, found: Found | None, folder: Path, timed: Stages, memory: PeakMemory) -> None:
    assert demo.videos is not None
    root, manifest, labelled = (
        folder / "runs",
        folder / "manifest.parquet",
        demo.labels == "folders",
    )
    with timed("manifest", f"Looking at the videos of {demo.videos}"):
        made = stages.make_manifest(demo.videos, manifest, labels=labelled, found=found)
    if isinstance(made, Prepared):
        _tell_rejected(made)
        made = made.manifest
    enough = stages.can_hold_out(made)
    if labelled and not enough:
        raise UserError(
            f"the {len(made)} videos of {demo.videos} leave none to train on or none to evaluate on: "
            "add videos, put some into val/CLASS/, or leave out labels=folders"
        )
    epochs = max(1, -(-_OWN_VISITS // len(made)))
    overrides = [f"schedule.epochs={epochs}", f"schedule.warmup_epochs={epochs / 15:.3f}"]
    if not enough:
        terminal.say(
            f"  too few to hold any out: all {len(made)} are trained on, without evaluation"
        )
        overrides += ["data.held_out=0", "data.held_out_clips=0"]
    with timed("pretrain", f"Pretraining on {len(made)} videos"):
        encoder = stages.pretrain_run(root, manifest, *overrides, files=["own_videos.yaml"])
    report: dict[str, Any] = {
        "pretrained_top1": [],
        "scratch_top1": [],
        "held_out": 0,
        "champion_uri": None,
    }
    sides: list[stages.Trained] = []
    if labelled:
        for name, title, init in (
            (
                "finetune_pretrained",
                "Fine-tuning the pretrained encoder",
                [config.setting("head.init", encoder.run.uri)],
            ),
            ("finetune_scratch", "The same from random weights, for comparison", []),
        ):
            with timed(name, title):
                sides.append(
                    stages.finetune_run(
                        root, manifest, f"{name}.yaml", *init, files=["own_labels.yaml"]
                    )
                )
        with timed("evaluate", "Evaluating on held-out videos"):
            (pretrained, scratch), data = stages.evaluate(manifest, sides)
        with timed("register", "Registering the better model"):
            better = 0 if _mean(pretrained) >= _mean(scratch) else 1
            champion = stages.register_best(
                root, sides[better], (pretrained, scratch)[better], data, lineage=encoder.run.uri
            )
        _tell(
            folder, root, pretrained, scratch, classes=len(made.classes), labels="all their labels"
        )
        report |= {
            "pretrained_top1": [round(a.top1, 4) for a in pretrained],
            "scratch_top1": [round(a.top1, 4) for a in scratch],
            "held_out": pretrained[0].videos,
            "champion_uri": champion,
        }
    else:
        terminal.say(f"\npictures   {folder / 'pictures'}")
        terminal.say(f"MLflow     {mlflow_command(root)}")
    _report(folder, timed, memory, **report, pictures=_pictures(folder, encoder, *sides))


_OWN_VISITS = 2000
"""At least so many visits: 500 steps of the overlay's batch, and every video once."""


def _tell_rejected(made: Prepared) -> None:
    terminal.say(f"  {len(made.manifest)} videos can be used, {len(made.rejected)} files cannot")
    if made.rejected:
        terminal.table(
            ("rejected file", "reason", "details"),
            [(r.video_id, r.reason, r.message[:90]) for r in made.rejected[:_MOST_SHOWN]],
        )
        if len(made.rejected) > _MOST_SHOWN:
            terminal.say(f"  and {len(made.rejected) - _MOST_SHOWN} more in {made.rejected_uri}")


# --- the report --------------------------------------------------------------------------------------


def mlflow_command(root: Path) -> str:
    """How to look at the runs in a browser."""
    program = Path(sys.executable).with_name("mlflow")
    uri = tracking.resolve_uri(str(root))
    if uri.startswith("http"):
        return tracking.redact(uri)
    return f"{program} server --backend-store-uri {uri} --port 5000   (then open http://127.0.0.1:5000)"


def _pictures(folder: Path, *trained: stages.Trained) -> list[str]:
    """Collect all pictures in one place; returns their paths."""
    target = folder / "pictures"
    target.mkdir(exist_ok=True)
    for each in trained:
        name = each.run.uri.rsplit("/", 1)[-1]
        for path in sorted(each.pictures.glob("*.png")) + sorted(each.pictures.glob("*.mp4")):
            shutil.copyfile(path, target / f"{name}_{path.name}")
    return [str(path) for path in sorted(target.iterdir())]


def _report(folder: Path, timed: Stages, memory: PeakMemory, **content: Any) -> None:
    timed.seconds.setdefault("total", round(sum(timed.seconds.values()), 1))
    report = {**content, "seconds": timed.seconds, "peak_pss_bytes": memory.peak_bytes}
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    peak = f"{memory.peak_bytes / 2**30:.1f} GiB of memory at most; " if memory.peak_bytes else ""
    terminal.say(f"report     {folder / 'report.json'} ({peak}pictures of every run and in MLflow)")

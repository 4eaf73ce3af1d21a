"""The demo's stages, one function each; every one can be interrupted and goes on where it was."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from clips import ClipConfig, DecodeConfig, Found, Manifest, load_views, read_manifest
from clips.pipeline import PrepareConfig, Prepared, find, prepare
from clips.pipeline import Progress as Probing
from clips.synthetic import MotionConfig, write_videos
from tubelet import config, elastic, fit, models, registry, rows, terminal, tracking, visualize
from tubelet.evaluation import judge
from tubelet.evaluation.metrics import Accuracy
from tubelet.loops import finetune, pretrain
from tubelet.recipes import Finetune, Pretrain
from tubelet.run_directory import RunDirectory

RECIPES = Path("jobs/recipes/demo")
MODEL_NAME = "tubelet-demo"
ALIAS = "champion"
HELD_OUT = 0.2
"""Share of the user's videos to judge by; own_videos.yaml and own_labels.yaml say the same."""


@dataclass(frozen=True)
class Motion:
    """The generated data: how many videos, and what they look like."""

    training: int = 2000
    held_out: int = 640
    seed: int = 0
    config: MotionConfig = field(
        default_factory=lambda: MotionConfig(speed=(3.2, 5.6), wave=(25.0, 75.0), zoom=(1.0, 3.0))
    )


class Interrupted(Exception):
    """A training stage was stopped and can be resumed."""


@dataclass(frozen=True)
class Trained:
    """A finished training run."""

    run: RunDirectory
    mlflow_run_id: str
    metrics: dict[str, float]

    @property
    def pictures(self) -> Path:
        """Where its pictures are."""
        return Path(fit.spool_folder(self.run)).parent / "pictures"


def generate(folder: Path, motion: Motion) -> Path:
    """Write the motion videos in folders ``train/CLASS`` and ``val/CLASS``, on all cores."""
    import ray

    done = folder / "complete"
    if done.exists():
        return folder
    parts = [("train", 0, motion.training), ("val", motion.training, motion.held_out)]
    write = ray.remote(num_cpus=1)(_write_some)
    waiting = [
        write.remote(str(folder / part), range(start, min(start + _AT_ONCE, first + count)), motion)
        for part, first, count in parts
        for start in range(first, first + count, _AT_ONCE)
    ]
    total, made = motion.training + motion.held_out, 0
    with terminal.progress("generate", total, unit="videos") as bar:
        while waiting:
            (ready,), waiting = ray.wait(waiting)
            made += ray.get(ready)
            bar.update(made)
    done.touch()
    return folder


_AT_ONCE = 80


def _write_some(folder: str, indices: range, motion: Motion) -> int:
    write_videos(folder, indices, seed=motion.seed, config=motion.config, class_folders=True)
    return len(indices)


def videos_of(source: str, *, labels: bool) -> Found:
    """The user's videos; needs no Ray, so mistakes show before anything is touched."""
    return find(_manifest_of(source, Path("manifest.parquet"), labels=labels))


def _manifest_of(source: str, target: Path, *, labels: bool) -> PrepareConfig:
    return PrepareConfig(
        source=source, manifest=str(target), labels="folders" if labels else "none"
    )


def make_manifest(
    source: str, target: Path, *, labels: bool, found: Found | None = None
) -> Prepared | Manifest:
    """Probe the videos and write the manifest; the existing one when it was made already."""
    if target.exists():
        return read_manifest(str(target))
    wanted = _manifest_of(source, target, labels=labels)
    found = find(wanted) if found is None else found
    total = len(found.entries) + len(found.missing)
    with terminal.progress("probe", total, unit="files") as bar:

        def show(state: Probing) -> None:
            bar.update(state.done, f"{state.kept} kept, {state.rejected} rejected")

        return prepare(wanted, found=found, progress=show)


def can_hold_out(manifest: Manifest) -> bool:
    """Whether there are videos both to train on and to judge by."""
    if manifest.splits:
        return "val" in manifest.splits
    return all(len(side) for side in manifest.hold_out(HELD_OUT))


def pretrain_run(root: Path, manifest: Path, *overrides: str, files: Sequence[str] = ()) -> Trained:
    """Pretrain, or go on with it, or find it done."""
    recipe = config.load(
        Pretrain,
        [RECIPES / "pretrain.yaml", *(RECIPES / f for f in files)],
        _overrides(root, manifest, "pretrain", overrides),
    )
    return _train(pretrain.job(recipe))


def finetune_run(
    root: Path, manifest: Path, recipe_file: str, *overrides: str, files: Sequence[str] = ()
) -> Trained:
    """Fine-tune all draws of labels, or go on with it, or find it done."""
    recipe = config.load(
        Finetune,
        [RECIPES / recipe_file, *(RECIPES / f for f in files)],
        _overrides(root, manifest, recipe_file.removesuffix(".yaml"), overrides),
    )
    return _train(finetune.job(recipe))


def recipe_rate(recipe_file: str) -> float:
    """The learning rate that a demo recipe fixes."""
    return config.load(Finetune, [RECIPES / recipe_file]).optim.lr


def _overrides(root: Path, manifest: Path, name: str, more: Sequence[str]) -> list[str]:
    places = (
        config.setting("data.manifest", str(manifest)),
        config.setting("run.storage", str(root)),
    )
    return [*places, f"run.name={name}", *more]


def _train(job: fit.Job) -> Trained:
    section = job.recipe.run
    run = RunDirectory(f"{Path(section.storage).resolve()}/{section.name}")
    finished = run.read_json("finished.json")
    if finished is not None and finished.get("tracked", True):
        record = run.read_json("run.json")
        assert record is not None
        terminal.say(f"  {section.name} is finished already")
        return Trained(run, record["mlflow_run_id"], {})
    result = elastic.run(job)
    if result.code == config.INTERRUPTED:
        raise Interrupted(result.message)
    if result.code != config.DONE:
        raise elastic.TrainingStopped(result.message)
    if result.mlflow_run_id is None:
        raise elastic.TrainingStopped(
            f"{section.name} is trained, but the demo goes on only when MLflow answers, which is to keep its model: "
            "start the same command then"
        )
    return Trained(result.run, result.mlflow_run_id, result.metrics)


def evaluate(manifest: Path, trained: Sequence[Trained]) -> tuple[list[list[Accuracy]], Manifest]:
    """Accuracy on the held-out videos of every draw of every run, in one pass over them."""
    data = rows.open_manifest(str(manifest))
    chosen = judge.labelled_rows(data, held_out=HELD_OUT)
    with tempfile.TemporaryDirectory() as scratch:
        found = [models.find(t.run.uri, storage_root="", folder=Path(scratch)) for t in trained]
    with terminal.progress("evaluate", len(chosen), unit="videos") as bar:
        judgement = judge.judge(
            data,
            chosen,
            sources=[source for each in found for source in each],
            decode=DecodeConfig(),
            progress=bar.update,
        )
    accuracies = iter(judgement.accuracies)
    return [[next(accuracies) for _ in each] for each in found], data


def register_best(
    root: Path, trained: Trained, accuracies: Sequence[Accuracy], data: Manifest, *, lineage: str
) -> str:
    """Register the run's best draw under the alias, and say so in its MLflow run."""
    best = max(range(len(accuracies)), key=lambda i: accuracies[i].top1)
    export = finetune.exports(trained.run, len(accuracies))[best]
    recipe = Path(trained.run.path("recipe.yaml")).read_text()
    source = models.find(export, storage_root=str(root), folder=root)[0]
    return registry.register(
        export,
        uri=tracking.resolve_uri(str(root)),
        name=MODEL_NAME,
        alias=ALIAS,
        run_id=trained.mlflow_run_id,
        card=registry.Card(
            metrics={"top1": accuracies[best].top1, "top5": accuracies[best].top5},
            manifest=data.hash,
            recipe=recipe,
            lineage=lineage,
        ),
        stride=source.stride,
    )


def predict_one(root: Path, champion: str, data: Manifest, target: Path) -> tuple[str, str, float]:
    """Load the champion by its alias and let it name one held-out video; draws its frames.

    Returns:
        The video, the likeliest label, its probability.
    """
    import pandas

    uri = tracking.resolve_uri(str(root))
    model = registry.load(champion, uri=uri)
    chosen = judge.labelled_rows(data, held_out=HELD_OUT)
    video = data.video(int(chosen[len(chosen) // 3]))
    answer = model.predict(pandas.DataFrame({"video_path": [video.uri]}), params={"top_k": 3})[0]
    with tempfile.TemporaryDirectory() as folder:
        source = models.find(champion, storage_root=str(root), folder=Path(folder))[0]
    frames = load_views(
        video,
        ClipConfig(stride=source.stride),
        frames=source.export.config.frames,
        size=source.export.config.image_size,
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(
        visualize.prediction_picture(
            frames,
            title=video.video_id,
            labels=answer["labels"],
            probabilities=answer["probabilities"],
        )
    )
    return video.video_id, answer["labels"][0], answer["probabilities"][0]


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error (0 for a single value)."""
    array = np.asarray(values, float)
    error = array.std(ddof=1) / len(array) ** 0.5 if len(array) > 1 else 0.0
    return float(array.mean()), float(error)

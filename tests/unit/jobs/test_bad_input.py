"""Users' mistakes, on the real jobs: one message that names the thing, its place and what is allowed; exit code 2.

Each case says how its message begins and what else is in it. Cases that need no Ray must fail before Ray starts. All
share one folder, whose files must be the same afterwards.
"""

import hashlib
import json
import shlex
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from mlflow import MlflowClient

from clips import Manifest, read_manifest, write_manifest
from clips.synthetic import CLASSES, MotionConfig, write_videos
from jobs import Ended, run_jobs
from tubelet import config, handover, resuming, tracking
from tubelet.loops import pretrain
from tubelet.recipes import Pretrain
from tubelet.run_directory import RunDirectory
from videomae import ModelConfig, build_classifier, build_pretraining

# MLflow's own use of SQLAlchemy.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")

RECIPE = """\
model: {preset: tiny, frames: 8, image_size: 32, patch_size: 8, width: 64, depth: 4, heads: 2}
data: {held_out_clips: 64}
batch:
  size: 8
  micro: 4
optim: {lr: 0.032, min_lr: 0.0}
schedule: {epochs: 4, warmup_epochs: 1}
elastic: {min_workers: 2, max_workers: 2, cpus_per_worker: 0.5}
"""
NO_S3 = {  # a bucket whose server does not answer
    "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
    "AWS_ACCESS_KEY_ID": "somebody",
    "AWS_SECRET_ACCESS_KEY": "very-secret",
    "CLIPS_STORAGE_RETRY_SECONDS": "0.1",
}
RUN = "pretrain {}/recipe.yaml data.manifest={}/labelled.parquet run.storage={}/runs "
Case = tuple[str, list[str]]
"""A command line without ``python jobs/`` and ``.py``, and parts of its message; in both, {} is the folder."""

PREPARE_CASES: dict[str, Case] = {
    "wrong path": (
        "prepare {}/none manifest={}/m.parquet",
        ["there is nothing at {}/none; check the spelling"],
    ),
    "empty folder": (
        "prepare {}/empty manifest={}/m.parquet",
        ["no videos found in {}/empty: it holds no files; videos end in .mp4, "],
    ),
    "folder without videos": (
        "prepare {}/papers manifest={}/m.parquet",
        ["no videos found in {}/papers: it holds 1 other files, but no video; videos end in .mp4"],
    ),
    "unreadable bucket": (
        "prepare s3://bucket/videos manifest={}/m.parquet",
        ["cannot reach the storage of s3://bucket/videos", "check the network, and AWS_ENDPOINT"],
    ),
    "list with spaces in a path": (
        "prepare {}/spaces.txt manifest={}/m.parquet",
        [
            "{}/spaces.txt:2: more than one space in 'my film.mp4 3': a path with spaces needs the",
            "allowed: 'path label' (one space, no spaces in the path)",
        ],
    ),
    "list with a missing label": (
        "prepare {}/no_label.txt manifest={}/m.parquet",
        ["{}/no_label.txt:2: no label after 'b.mp4'", "allowed: 'path label'"],
    ),
    "video outside of class folders": (
        "prepare {}/flat manifest={}/m.parquet labels=folders",
        ["labels=folders: 000000.mp4 lies in no class folder of {}/flat; put it in CLASS/"],
    ),
    "path beyond the BMP": (
        "prepare '{}/\U0001f3ac #1: [x]' manifest={}/m.parquet",
        ["there is nothing at {}/\U0001f3ac #1: [x]; check the spelling"],
    ),
}
RECIPE_CASES: dict[str, Case] = {
    "unknown key": (
        "pretrain {}/recipe.yaml optim.learning_rate=1 optim.lrr=2",
        [
            "2 problems\n",
            "command line: optim.learning_rate: unknown key; ",
            "command line: optim.lrr: unknown key; did you mean 'lr'?",
        ],
    ),
    "unknown key in a file": (
        "pretrain {}/unknown.yaml",
        ["{}/unknown.yaml:3: model.frame: unknown key; did you mean 'frames'?"],
    ),
    "recipe that does not exist": (
        "pretrain jobs/recipes/pretrain/vit_b_k40.yaml",
        [
            "jobs/recipes/pretrain/vit_b_k40.yaml: no such file; did you mean ",
            "jobs/recipes/pretrain/vit_b_k400.yaml",
        ],
    ),
    "no recipe": (
        "finetune",
        [
            "command line: no recipe file is named; recipes: jobs/recipes/demo/",
            "jobs/recipes/demo/pretrain.yaml",
        ],
    ),
    "frames not divisible by the tubelet": (
        "pretrain {}/recipe.yaml model.frames=7",
        ["command line: model.frames=7 is not divisible by model.tubelet_size=2; use 6 or 8"],
    ),
    "size not divisible by the patch": (
        "pretrain {}/recipe.yaml model.image_size=36",
        [
            "command line, {}/recipe.yaml:1: model.image_size=36 is not divisible by model.patch_size=8; use 32 or 40",
        ],
    ),
    "more workers at least than at most": (
        "pretrain {}/recipe.yaml elastic.min_workers=3",
        [
            "command line, {}/recipe.yaml:8: elastic.min_workers (3) is greater than elastic.max_workers (2)",
        ],
    ),
    "batch not divisible by micro": (
        "pretrain {}/recipe.yaml batch.micro=3",
        [
            "{}/recipe.yaml:4, command line: batch.size (8) must be a multiple of batch.micro (3)",
        ],
    ),
    "name that is a path": (
        "pretrain {}/recipe.yaml data.manifest={}/labelled.parquet run.name=../elsewhere",
        ["command line: run.name is '../elsewhere': it is the name of one folder in run.storage"],
    ),
    "no name": (
        "pretrain {}/recipe.yaml data.manifest={}/labelled.parquet run.name=null",
        ["run.name is null: name the run"],
    ),
}
DATA_CASES: dict[str, Case] = {
    "no manifest": (
        "pretrain {}/recipe.yaml",
        ["data.manifest names no manifest; make one with: python jobs/prepare.py FOLDER manifest="],
    ),
    "missing manifest": (
        "pretrain {}/recipe.yaml data.manifest={}/none.parquet",
        ["data.manifest: there is nothing at {}/none.parquet; check the spelling"],
    ),
    "text for a manifest": (
        "pretrain {}/recipe.yaml data.manifest={}/papers/notes.txt",
        [
            "data.manifest: {}/papers/notes.txt is not a manifest; make one with: python jobs/prepare"
        ],
    ),
    "other Parquet file for a manifest": (
        "pretrain {}/recipe.yaml data.manifest={}/other.parquet",
        ["data.manifest: {}/other.parquet is not a manifest; make one with: python jobs/prepare"],
    ),
    "nothing held out": (
        "pretrain {}/recipe.yaml data.manifest={}/unlabelled.parquet data.held_out=0",
        [
            "none of the 8 rows of {}/unlabelled.parquet is held out: raise data.held_out (0), or set",
            "data.held_out_clips=0",
        ],
    ),
    "fine-tuning without labels": (
        "finetune {}/recipe.yaml data.manifest={}/unlabelled.parquet data.held_out_clips=0",
        [
            "8 of the 8 training rows of {}/unlabelled.parquet have no label: make the manifest with",
            "labels=folders",
        ],
    ),
    "too few labels of a class": (
        "finetune {}/recipe.yaml data.manifest={}/labelled.parquet labels.per_class=4",
        [
            "labels.per_class: 4 labels per class were asked for, but class 'down' has 3 rows; the",
            "manifest is {}/labelled.parquet",
        ],
    ),
    "starting weights that are not there": (
        "finetune {}/recipe.yaml data.manifest={}/labelled.parquet labels.per_class=2 head.init={}/none",
        ["head.init: {}/none: neither an export folder (model.safetensors and config.json), nor a"],
    ),
    "starting weights of another model": (
        "finetune {}/recipe.yaml data.manifest={}/labelled.parquet labels.per_class=2 head.init={}/wide",
        [
            "head.init: {}/wide: the weights do not fit the model of preset tiny:\n",
            "encoder.patch_embed.proj.bias is [96], the model has [64]",
        ],
    ),
}
RUN_CASES: dict[str, Case] = {
    "a run of another kind": (
        RUN.replace("pretrain", "finetune") + "run.name=begun labels.per_class=2",
        [
            "{}/runs/begun holds a pretrain run: choose another run.name, or run.fresh=true to delete"
        ],
    ),
    "a run on other data": (
        RUN + "run.name=begun data.manifest={}/unlabelled.parquet data.held_out=0.5",
        [
            "{}/runs/begun was started on other data (manifest ",
            "give it the manifest it began with",
        ],
    ),
    "another model than the run began with": (
        RUN + "run.name=begun model.depth=5 optim.lr=0.001",
        [
            "{}/runs/begun was started with another recipe:\n  ",
            "\n  model.depth: 4 -> 5\n",
            "\n  optim.lr: 0.032 -> 0.001\n",
            "run.fresh=true to delete it, or allow the change with 'resume.allow=[model.depth, optim",
        ],
    ),
    "a finished run": (
        RUN + "run.name=finished",
        [
            "{}/runs/finished is finished (12 steps): choose another run.name, run.fresh=true to",
            "or train on with more epochs: schedule.epochs=N 'resume.allow=[schedule.epochs]'",
        ],
    ),
    "a folder that is no run is not cleared": (
        "pretrain {}/recipe.yaml data.manifest={}/labelled.parquet run.storage={} run.name=papers run.fresh=true",
        ["run.fresh=true deletes a run, but {}/papers holds notes.txt and no run: choose another"],
    ),
    "runs in a bucket without a server for MLflow": (
        "pretrain {}/recipe.yaml data.manifest={}/labelled.parquet run.storage=s3://bucket/runs",
        [
            "run.storage is s3://bucket/runs, where an SQLite file cannot live: set MLFLOW_TRACKING_URI"
        ],
    ),
}
MODEL_CASES: dict[str, Case] = {
    "evaluating nothing": (
        "evaluate manifest={}/labelled.parquet",
        ["command line: model: must be set"],
    ),
    "evaluating a number": (
        "evaluate model=3 manifest={}/labelled.parquet",
        ["command line: model: must be a valid string or a list, got 3; for a text write '\"3\"'"],
    ),
    "evaluating an empty list": (
        "evaluate 'model=[]' manifest={}/labelled.parquet",
        ["command line: model names no model; allowed: folders of fine-tuned runs or exports,"],
    ),
    "evaluating a list with a number": (
        "evaluate 'model=[{}/classifier, 7]' manifest={}/labelled.parquet",
        ["command line: model.1: must be a valid string, got 7"],
    ),
    "evaluating a pretrained model": (
        "evaluate model={}/wide manifest={}/labelled.parquet output={}/out",
        [
            "{}/wide is a pretrain model, which has no classes: fine-tune it first (jobs/finetune.py)"
        ],
    ),
    "evaluating without labels": (
        "evaluate model={}/classifier manifest={}/unlabelled.parquet output={}/out held_out=0 storage={}/runs",
        [
            "none of the 8 rows of {}/unlabelled.parquet to evaluate on has a label: make the manifest with ",
            "labels=folders",
        ],
    ),
    "evaluating on unknown classes": (
        "evaluate model={}/classifier manifest={}/strange.parquet output={}/out held_out=0 storage={}/runs",
        ["{}/classifier knows 8 classes and not jumping, running of {}/strange.parquet"],
    ),
    "alias that does not exist": (
        "predict {}/flat model=models:/motion@chmpion storage={}/store output={}/out",
        ["model 'motion' has no alias 'chmpion'; there is champion"],
    ),
    "predicting with no model": (
        "predict {}/flat model={}/empty output={}/out",
        [
            "{}/empty holds no model: name a finished fine-tuning run, its export folder, or models:/"
        ],
    ),
    "predicting nothing": (
        "predict {}/empty model={}/classifier output={}/out",
        ["no videos found in {}/empty: it holds no files; videos end in .mp4"],
    ),
    "predicting something else into the same folder": (
        "predict {}/flat model={}/classifier top_k=3 output={}/out/predicted",
        [
            "{}/out/predicted holds predictions of another kind (model models:/motion@champion, now {}/classifier):",
            "  weights: 0123 -> ",
            "  top_k: 5 -> 3",
            "ask as before, choose another output=, or delete them with fresh=true",
        ],
    ),
    "predicting two sources": (
        "predict {}/flat {}/empty model={}/classifier",
        ["one SOURCE at a time, got 2: {}/flat {}/empty"],
    ),
    "features of no encoder": (
        "features encoder={}/papers manifest={}/labelled.parquet output={}/out/f storage={}/runs",
        ["encoder: {}/papers: neither an export folder (model.safetensors and config.json), nor"],
    ),
    "features of weights without sizes": (
        "features encoder={}/wide/model.safetensors manifest={}/labelled.parquet output={}/out/f storage={}/runs",
        [
            "encoder: {}/wide/model.safetensors: a weight file does not say the sizes of its model: give them, such as "
            "model.preset=vit_b"
        ],
    ),
    "features of an export with sizes": (
        "features encoder={}/wide manifest={}/labelled.parquet model.preset=vit_b output={}/out/f storage={}/runs",
        ["encoder: {}/wide: model gives the sizes of a weight file, but an export says its own"],
    ),
    "features at no stride": (
        "features encoder={}/wide manifest={}/labelled.parquet output={}/out/f storage={}/runs",
        ["encoder: {}/wide does not say the stride that it was trained with: give it, such as"],
    ),
    "features of no manifest": (
        "features encoder={}/wide manifest={}/none.parquet",
        ["manifest: there is nothing at {}/none.parquet; check the spelling"],
    ),
    "probing what are no features": (
        "probe features={}/papers manifest={}/labelled.parquet output={}/out/p storage={}/runs",
        ["{}/papers holds no features: make them with jobs/features.py"],
    ),
    "probing by no rate": (
        "probe features={}/papers manifest={}/labelled.parquet linear.lr=[]",
        ["command line: linear.lr and linear.weight_decay need at least one value each"],
    ),
    "a demo of no videos": (
        "demo videos={}/papers folder={}/finished_demo",
        ["no videos found in {}/papers: it holds 1 other files, but no video"],
    ),
    "a demo in the user's folder": (
        "demo folder={}/papers",
        ["{}/papers holds notes.txt and no demo: choose another folder="],
    ),
}
SWEEP_CASES: dict[str, Case] = {
    "sweep over an unknown key": (
        "sweep {}/sweep.yaml 'space.optim.lrr={uniform: [0, 1]}'",
        ["command line: space.optim.lrr: unknown key; did you mean 'optim.lr'?"],
    ),
    "sweep that sets an unknown key in its file": (
        "sweep {}/sweep.yaml {}/more.yaml",
        ["{}/more.yaml:2: set.batch.sise: unknown key; did you mean 'batch.size'?"],
    ),
    "sweep over nothing": (
        "sweep {}/nothing.yaml",
        ["{}/nothing.yaml: space is empty: name at least one recipe key with its values"],
    ),
    "sweep by a metric that does not exist": (
        "sweep {}/sweep.yaml metric=eval/top1",
        [
            "{}/sweep.yaml: metric is 'eval/top1', which a pretrain run does not measure: use eval/loss"
        ],
    ),
    "sweep without evaluations before the end": (
        "sweep {}/sweep.yaml",
        [
            "scheduler=asha needs evaluations before the end: track.evaluate_every is 500, a trial has 12 steps"
        ],
    ),
    "sweep over values that the recipe refuses": (
        "sweep {}/sweep.yaml 'space.batch.micro={choice: [3]}' scheduler=none",
        ["space.batch.micro: 3 does not do: batch.size (8) must be a multiple of batch.micro (3)"],
    ),
    "sweep of a recipe that does not exist": (
        "sweep {}/sweep.yaml recipe=[{}/none.yaml]",
        ["{}/none.yaml: no such file"],
    ),
    "sweep of a name that holds a run": (
        "sweep {}/sweep.yaml scheduler=none run.name=begun",
        ["{}/runs/begun holds run.json and no sweep: choose another run.name"],
    ),
}
CASES = {
    **PREPARE_CASES,
    **RECIPE_CASES,
    **DATA_CASES,
    **RUN_CASES,
    **MODEL_CASES,
    **SWEEP_CASES,
}

# --- what the cases are about ----------------------------------------------------------------------

TINY = ModelConfig(preset="tiny", frames=8, image_size=32, patch_size=8)
SMALL = MotionConfig(size=16, frames=8, fps=8, gop=8, wave=(8.0, 24.0))


def manifest(folder: Path, name: str, rows: list[dict[str, Any]]) -> str:
    uri = str(folder / f"{name}.parquet")
    numbered = [{"video_id": f"{n:02d}.mp4", "size": 1, **row} for n, row in enumerate(rows)]
    write_manifest(Manifest.build(numbered, root=str(folder / "flat")), uri)
    return uri


def begun(folder: Path, name: str, labelled: str) -> None:
    """What an interrupted pretraining run leaves, as far as the next start looks at it."""
    overrides = [f"data.manifest={labelled}", f"run.storage={folder / 'runs'}", f"run.name={name}"]
    job = pretrain.job(config.load(Pretrain, [folder / "recipe.yaml"], overrides))
    run = RunDirectory(str(folder / "runs" / name))
    run.write_json({**resuming.new(job), "mlflow_run_id": "0" * 32}, "run.json")
    if name == "finished":
        run.write_json({"step": job.plan.ledger.steps}, "finished.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    (folder / "empty").mkdir()
    (folder / "papers").mkdir()
    (folder / "papers" / "notes.txt").write_text("precious")
    (folder / "spaces.txt").write_text("a.mp4 1\nmy film.mp4 3\n")
    (folder / "no_label.txt").write_text("a.mp4 1\nb.mp4\n")
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "unknown.yaml").write_text("model:\n  preset: tiny\n  frame: 8\n")
    (folder / "finished_demo").mkdir()
    asked = {"videos": None, "labels": "none", "study": False}
    (folder / "finished_demo" / "demo.json").write_text(json.dumps(asked))
    (folder / "finished_demo" / "report.json").write_text("{}")
    (folder / "out" / "predicted").mkdir(parents=True)
    told = {"model": "models:/motion@champion", "source": f"{folder}/flat", "weights": "0123"}
    told |= {"stride": 1, "views": 1, "crops": 1, "top_k": 5}
    (folder / "out" / "predicted" / "predict.json").write_text(json.dumps(told))
    pq.write_table(pa.table({"prices": [1, 2]}), folder / "other.parquet")
    write_videos(folder / "flat", range(4), seed=3, config=SMALL)
    split = ["train"] * 24 + ["val"] * 8
    rows = [{"label": CLASSES[n % 8], "split": side} for n, side in enumerate(split)]
    labelled = manifest(folder, "labelled", rows)
    manifest(folder, "unlabelled", [{} for _ in range(8)])
    manifest(folder, "strange", [{"label": name} for name in ("jumping", "running", "up")])
    for name in ("begun", "finished"):
        begun(folder, name, labelled)
    sweep = f"job: pretrain\nrecipe: [{folder}/recipe.yaml]\nset: {{data.manifest: {labelled}}}\n"
    sweep += f"run: {{storage: {folder}/runs}}\n"
    space = "space:\n  optim.lr: {log_uniform: [0.01, 0.1]}\n"
    (folder / "sweep.yaml").write_text(sweep + space)
    (folder / "nothing.yaml").write_text(sweep)
    (folder / "more.yaml").write_text("set:\n  batch.sise: 4\n")
    torch.manual_seed(0)
    handover.write(str(folder / "wide"), build_pretraining(TINY).state_dict(), TINY, extra={})
    weights = build_classifier(TINY, num_classes=8).state_dict()
    handover.write(str(folder / "classifier"), weights, TINY, extra={}, class_names=CLASSES)
    _register(folder)
    return folder


def _register(folder: Path) -> None:
    client = MlflowClient(tracking.resolve_uri(str(folder / "store")))
    client.create_registered_model("motion")
    client.create_model_version("motion", source=str(folder / "classifier"))
    client.set_registered_model_alias("motion", "champion", "1")


def snapshot(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and "mlflow.db" not in path.name
    }


def command(line: str, folder: Path) -> list[str]:
    return shlex.split(line.replace("{}", str(folder)))


@pytest.fixture(scope="module")
def before(folder: Path) -> dict[str, str]:
    return snapshot(folder)


@pytest.fixture(scope="module")
def ended(folder: Path, before: dict[str, str]) -> dict[str, Ended]:
    return run_jobs(
        {name: command(line, folder) for name, (line, _) in CASES.items()}, variables=NO_S3
    )


# --- the mistakes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_one_message_and_exit_code_2(
    name: str, ended: dict[str, Ended], folder: Path
) -> None:
    case, parts = ended[name], [part.replace("{}", str(folder)) for part in CASES[name][1]]
    assert case.code == 2, case.err
    assert case.err.startswith(f"error: {parts[0]}"), case.err
    for part in parts:
        assert part in case.err
    assert "Traceback" not in case.err
    assert case.err.count("error: ") == 1
    assert case.out == ""
    assert "very-secret" not in case.err


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_shows_before_ray_starts(name: str, ended: dict[str, Ended]) -> None:
    assert not ended[name].ray


def test_mistakes_delete_and_change_nothing(
    ended: dict[str, Ended], folder: Path, before: dict[str, str]
) -> None:
    after = snapshot(folder)
    assert {path: after.get(path) for path in before} == before
    made = {path for path in after if path not in before}
    assert all(path.startswith("out/") and path.endswith(".log") for path in made), made


# --- what only a running Ray can tell --------------------------------------------------------------


@pytest.fixture(scope="module")
def on_two_cpus(folder: Path) -> dict[str, Ended]:
    """Jobs on a Ray of two CPUs that runs already, as on a cluster that is too small."""
    begun(folder, "precious", str(folder / "labelled.parquet"))
    write_videos(folder / "mixed", range(3), seed=5, config=SMALL)
    whole = (folder / "mixed" / "000001.mp4").read_bytes()
    (folder / "mixed" / "cut.mp4").write_bytes(whole[: len(whole) // 3])
    (folder / "broken").mkdir()
    (folder / "broken" / "a.mp4").write_bytes(b"no video" * 40)
    lines = {
        "room": RUN + "run.name=room elastic.cpus_per_worker=1",
        "fresh": RUN + "run.name=precious elastic.cpus_per_worker=1 run.fresh=true",
        "cuda": RUN + "run.name=room elastic.device=cuda",
        "mixed": "prepare {}/mixed manifest={}/mixed.parquet",
        "broken": "prepare {}/broken manifest={}/mixed.parquet",
    }
    return run_jobs({name: command(line, folder) for name, line in lines.items()}, cpus=2)


@pytest.mark.cluster
@pytest.mark.parametrize("name", ["room", "fresh"])
def test_a_group_that_leaves_no_cpu_for_decoding_is_refused(
    name: str, on_two_cpus: dict[str, Ended]
) -> None:
    case = on_two_cpus[name]
    assert (case.code, case.out) == (2, "")
    assert case.err == (
        "error: the cluster has 2 CPUs: elastic.min_workers (2) x elastic.cpus_per_worker (1) leaves 0 for decoding, "
        "which needs 1; lower one of the two, or add CPUs\n"
    )


@pytest.mark.cluster
def test_a_run_to_be_replaced_stays_when_its_successor_is_refused(
    on_two_cpus: dict[str, Ended], folder: Path
) -> None:
    record = RunDirectory(str(folder / "runs" / "precious")).read_json("run.json")
    assert record is not None
    assert record["mlflow_run_id"] == "0" * 32


@pytest.mark.cluster
def test_gpus_that_are_not_there_are_told(on_two_cpus: dict[str, Ended]) -> None:
    case = on_two_cpus["cuda"]
    assert (case.code, case.out) == (2, "")
    assert case.err == (
        "error: elastic.device=cuda, but this machine has 0 GPUs for elastic.min_workers (2): "
        "use elastic.device=auto, or fewer workers\n"
    )


@pytest.mark.cluster
def test_a_broken_video_is_listed_with_its_reason_and_the_others_stay(
    on_two_cpus: dict[str, Ended], folder: Path
) -> None:
    case = on_two_cpus["mixed"]
    assert (case.code, case.err) == (0, "")
    (line,) = [line for line in case.out.splitlines() if line.startswith("cut.mp4")]
    assert line.split()[1] == "corrupt"
    assert "3 videos accepted, 1 rejected, 0 classes" in case.out
    accepted = read_manifest(str(folder / "mixed.parquet")).table["video_id"].to_pylist()
    assert accepted == ["000000.mp4", "000001.mp4", "000002.mp4"]


@pytest.mark.cluster
def test_videos_that_are_all_broken_are_told_and_an_earlier_manifest_stays(
    on_two_cpus: dict[str, Ended], folder: Path
) -> None:
    case = on_two_cpus["broken"]
    assert case.code == 2
    assert case.err == (
        f"error: none of the 1 videos of {folder}/broken can be used (1 corrupt); "
        f"each is listed in {folder}/mixed.rejected.parquet\n"
    )
    assert len(read_manifest(str(folder / "mixed.parquet"))) == 3

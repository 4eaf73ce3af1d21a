"""Videos in, a pretrained, fine-tuned, evaluated, registered model out: every job on one Ray, and what it left."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from matplotlib import image
from mlflow import MlflowClient
from mlflow.entities import Run

import videomae
from clips import ClipConfig, Manifest, load_views, read_manifest
from clips.synthetic import CLASSES
from jobs import Ended
from tubelet import tracking
from tubelet.run_directory import RunDirectory
from whole_path import ALIAS, DRAWS, HELD_OUT, MODEL, TRAINING, WholePath

pytestmark = [
    pytest.mark.cluster,
    # MLflow's own use of SQLAlchemy.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
]

PRETRAIN_STEPS = 15  # 3 epochs of 40 videos in batches of 8
FINETUNE_STEPS = DRAWS * 12  # 4 epochs of 3 videos of each of 8 classes in batches of 8


@pytest.fixture(scope="module")
def manifest(whole_path: WholePath) -> Manifest:
    return read_manifest(str(whole_path.folder / "videos.parquet"))


@pytest.fixture(scope="module")
def client(whole_path: WholePath) -> MlflowClient:
    return MlflowClient(tracking.resolve_uri(str(whole_path.folder / "runs")))


def only_run(client: MlflowClient, job: str) -> Run:
    experiment = client.get_experiment_by_name(f"tubelet/{job}")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    return run


def lines_of(ended: Ended) -> list[str]:
    return [" ".join(line.split()) for line in ended.out.splitlines()]


@pytest.mark.parametrize(
    "job", ["prepare", "pretrain", "finetune", "evaluate", "register", "predict"]
)
def test_every_job_ends_well_and_keeps_libraries_out_of_the_terminal(
    whole_path: WholePath, job: str
) -> None:
    ended = whole_path.ended[job]
    assert (ended.code, ended.err) == (0, "")
    for noise in ("WARNING", "INFO", "Traceback", "(pid=", "alembic"):
        assert noise not in ended.out


def test_the_manifest_has_the_splits_and_classes_of_the_folders(
    whole_path: WholePath, manifest: Manifest
) -> None:
    assert lines_of(whole_path.ended["prepare"])[-1] == (
        f"48 videos accepted, 0 rejected, 8 classes: {manifest.uri} (hash {manifest.hash[:12]})"
    )
    assert manifest.classes == tuple(sorted(CLASSES))
    assert len(manifest.select(split="train")) == TRAINING
    assert len(manifest.select(split="val")) == HELD_OUT


def test_pretraining_says_what_it_does_and_where_it_left_it(whole_path: WholePath) -> None:
    run = whole_path.folder / "runs" / "pretrain"
    lines = lines_of(whole_path.ended["pretrain"])
    assert f"run pretrain in {run}" in lines
    assert "length 15 steps of 8 visits: 3 epochs of 40 videos" in lines
    assert "learning rate 0.001 at its peak" in lines
    assert "held out 8 of 8 videos looked at every 5 steps" in lines
    assert any(line.startswith("pretrain 15/15 steps 100% loss ") for line in lines)
    assert lines[-1] == f"finished after 15 steps; results in {run}"
    assert any("data wait" in line for line in lines)


def test_pretraining_leaves_a_model_and_a_finished_run(
    whole_path: WholePath, manifest: Manifest
) -> None:
    run = RunDirectory(str(whole_path.folder / "runs" / "pretrain"))
    export = videomae.load_export(run.path("export"))
    assert export.kind == "pretrain"
    pace = {"stride": 1, "sampling": "strided", "fps": None}
    assert export.extra == {"run": "pretrain", "job": "pretrain", **pace}
    assert run.read_json("finished.json") == {"step": PRETRAIN_STEPS}
    record = run.read_json("run.json") or {}
    assert (record["job"], record["manifest"], record["starts"]) == ("pretrain", manifest.hash, 1)
    tip = run.resume_point(run.newest_attempt())
    assert tip is not None
    assert (tip.step, tip.world_size) == (PRETRAIN_STEPS, 2)


@pytest.mark.parametrize(
    ("job", "steps", "evaluated"),
    [("pretrain", PRETRAIN_STEPS, [5, 10, 15]), ("finetune", FINETUNE_STEPS, [FINETUNE_STEPS])],
)
def test_a_runs_curve_is_whole_in_mlflow_each_step_once(
    client: MlflowClient, job: str, steps: int, evaluated: list[int]
) -> None:
    run = only_run(client, job)
    assert run.info.status == "FINISHED"
    losses = client.get_metric_history(run.info.run_id, "train/loss")
    assert sorted(point.step for point in losses) == list(range(1, steps + 1))
    held_out = client.get_metric_history(run.info.run_id, "eval/loss")
    assert sorted(point.step for point in held_out) == evaluated
    assert all(np.isfinite(point.value) for point in [*losses, *held_out])
    for metric in ("train/lr", "train/grad_norm", "data/clips_per_s", "data/wait"):
        assert metric in run.data.metrics
    assert run.data.params["batch.size"] == "8"
    assert run.data.tags["tubelet.run"] == job


def test_a_runs_pictures_are_in_its_folder_and_in_mlflow(
    whole_path: WholePath, client: MlflowClient
) -> None:
    for job, names in (
        ("pretrain", ["loss.png", "reconstructions.mp4", "reconstructions.png"]),
        ("finetune", ["loss.png"]),
    ):
        folder = whole_path.folder / "runs" / job / "pictures"
        run_id = only_run(client, job).info.run_id
        shown = [Path(file.path).name for file in client.list_artifacts(run_id, "pictures")]
        assert sorted(shown) == names
        for name in names:
            assert (folder / name).stat().st_size > 1000
            if name.endswith(".png"):
                assert image.imread(folder / name).std() > 0.01


def test_fine_tuning_starts_from_the_encoder_and_leaves_a_model_for_each_draw(
    whole_path: WholePath,
) -> None:
    lines = lines_of(whole_path.ended["finetune"])
    assert "labels 24 videos of 8 classes in each of 2 draws" in lines
    start = f"starts from {whole_path.folder}/runs/pretrain (loaded "
    (line,) = (line for line in lines if line.startswith(start))
    fresh = "100%; fresh: fc_norm.weight, fc_norm.bias, head.weight, head.bias; not used: "
    assert f" tensors that can match, {fresh}" in line
    folder = whole_path.folder / "runs" / "finetune" / "export"
    assert sorted(path.name for path in folder.iterdir()) == ["draw_1", "draw_2"]
    heads = []
    for draw in (1, 2):
        export = videomae.load_export(folder / f"draw_{draw}")
        assert (export.kind, export.class_names) == ("classifier", tuple(sorted(CLASSES)))
        assert (export.extra["draw"], export.extra["job"]) == (draw, "finetune")
        heads.append(export.state_dict["head.weight"])
    assert not torch.equal(*heads)


def probabilities(export: videomae.Export, video: Any) -> np.ndarray:
    """What the exported model says about the middle clip of a video, without Ray or the platform."""
    assert export.num_classes is not None
    model = videomae.build_classifier(export.config, num_classes=export.num_classes)
    model.load_state_dict(export.state_dict)
    frames = load_views(
        video,
        ClipConfig(stride=export.extra["stride"]),
        frames=export.config.frames,
        size=export.config.image_size,
    )
    with torch.inference_mode():
        logits = model.eval()(videomae.normalise(torch.from_numpy(frames)))
    return logits.softmax(-1)[0].numpy()


def test_evaluation_is_what_the_exported_models_say_about_the_held_out_videos(
    whole_path: WholePath, manifest: Manifest
) -> None:
    table = pq.read_table(whole_path.folder / "evaluate" / "predictions.parquet")
    rows = manifest.select(split="val")
    assert table["row"].to_pylist() == rows.tolist()
    assert set(table["reason"].to_pylist()) == {""}
    labels = manifest.label_indices()[rows]
    assert table["label"].to_pylist() == labels.tolist()
    metrics = json.loads((whole_path.folder / "evaluate" / "metrics.json").read_text())
    printed = lines_of(whole_path.ended["evaluate"])
    for draw in range(DRAWS):
        name = f"{whole_path.folder}/runs/finetune/export/draw_{draw + 1}"
        export = videomae.load_export(name)
        wanted = np.stack([probabilities(export, manifest.video(int(row))) for row in rows])
        found = np.stack(table[f"model_{draw}"].to_numpy())
        np.testing.assert_allclose(found, wanted, atol=1e-5)
        top1 = float((wanted.argmax(1) == labels).mean())
        assert metrics[name]["top1"] == pytest.approx(top1)
        assert metrics[name]["videos"] == HELD_OUT
        mean_class = metrics[name]["mean_class"]
        top5 = metrics[name]["top5"]
        shares = (top1, top5, mean_class, metrics[name]["mean_ap"])
        assert f"{name} 8 " + " ".join(f"{100 * share:.2f}" for share in shares) in printed


def test_evaluation_is_a_run_in_mlflow_with_a_point_for_each_model(
    whole_path: WholePath, client: MlflowClient
) -> None:
    run = only_run(client, "evaluate")
    metrics = json.loads((whole_path.folder / "evaluate" / "metrics.json").read_text())
    points = client.get_metric_history(run.info.run_id, "eval/top1")
    assert [point.value for point in sorted(points, key=lambda p: p.step)] == [
        each["top1"] for each in metrics.values()
    ]
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"metrics.json", "predictions.parquet", "recipe.yaml"} <= files


def test_a_model_is_found_by_its_alias_and_predicts_a_video(
    whole_path: WholePath, client: MlflowClient, manifest: Manifest
) -> None:
    version = client.get_model_version_by_alias(MODEL, ALIAS)
    assert version.run_id == only_run(client, "finetune").info.run_id
    (row,) = pq.read_table(whole_path.folder / "predict" / "predictions").to_pylist()
    up = manifest.label_indices() == manifest.classes.index("up")
    (place,) = (place for place in manifest.select(split="val") if up[place])
    export = videomae.load_export(whole_path.folder / "runs" / "finetune" / "export" / "draw_1")
    wanted = probabilities(export, manifest.video(int(place)))
    order = np.argsort(-wanted)[:3]
    assert row["labels"] == [manifest.classes[i] for i in order]
    assert row["probabilities"] == pytest.approx(wanted[order].tolist(), abs=1e-5)
    shown = ", ".join(
        f"{n} {p:.1%}" for n, p in zip(row["labels"], row["probabilities"], strict=True)
    )
    printed = lines_of(whole_path.ended["predict"])
    assert f"{row['video_id']}: {shown}" in printed
    folder = whole_path.folder / "predict"
    assert printed[-1] == (
        f"1 videos predicted, 0 files rejected: {folder}/predictions; "
        f"frames of the first in {folder}/prediction.png"
    )
    assert image.imread(folder / "prediction.png").std() > 0.01

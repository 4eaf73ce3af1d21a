"""What a run that exists already says to a job that would continue it, before Ray starts."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from clips import ClipConfig
from motion import motion_manifest
from tubelet import config, elastic, resuming, shipping, tracking
from tubelet.config import UserError
from tubelet.items import BatchConfig, DataConfig
from tubelet.loops import pretrain
from tubelet.recipes import Pretrain
from tubelet.run_directory import FORMAT_VERSION, ResumeConfig, RunConfig, RunDirectory
from tubelet.schedules import ScheduleConfig
from tubelet.spool import MetricSpool
from videomae import ModelConfig


@pytest.fixture
def recipe(tmp_path: Path) -> Pretrain:
    manifest = motion_manifest(tmp_path / "videos", training=4, held_out=2)
    return Pretrain(
        run=RunConfig(name="mine", storage=str(tmp_path / "runs")),
        model=ModelConfig(preset="tiny", frames=4, image_size=16),
        data=DataConfig(manifest=manifest.uri or "", clip=ClipConfig(stride=1)),
        batch=BatchConfig(size=2, micro=2),
        schedule=ScheduleConfig(epochs=2, warmup_epochs=0),
    )


def leave(
    recipe: Pretrain, *, finished: int | None = None, tracked: bool = True, **changes: Any
) -> Path:
    """Leave the record of a run of ``recipe``; returns its folder."""
    folder = Path(recipe.run.storage) / "mine"
    folder.mkdir(parents=True)
    record = {
        "version": FORMAT_VERSION,
        "job": "pretrain",
        "name": "mine",
        "manifest": pretrain.job(recipe).manifest_hash,
        "revision": "unknown",
        "starts": 1,
        "recipe": config.to_dict(recipe),
    }
    (folder / "run.json").write_text(json.dumps(record | changes))
    if finished is not None:
        (folder / "finished.json").write_text(json.dumps({"step": finished, "tracked": tracked}))
    return folder


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"version": FORMAT_VERSION + 1},
            "{} was written by a newer release (format version 2, this one reads 1): "
            "resume it with that release, or choose another run.name",
        ),
        (
            {"job": "finetune"},
            "{} holds a finetune run: choose another run.name, or run.fresh=true to delete it",
        ),
        ({"manifest": "0" * 64}, "{} was started on other data (manifest 000000000000, now "),
        (
            {"finished": 4},
            "{} is finished (4 steps): choose another run.name, run.fresh=true to delete it, or train "
            "on with more epochs: schedule.epochs=N 'resume.allow=[schedule.epochs]'",
        ),
    ],
)
def test_a_run_that_cannot_be_continued_says_why_and_stays(
    recipe: Pretrain, changes: dict[str, Any], said: str
) -> None:
    folder = leave(recipe, **changes)
    before = sorted(folder.rglob("*"))
    with pytest.raises(UserError) as error:
        elastic.run(pretrain.job(recipe))
    assert str(error.value).startswith(said.format(folder))
    assert sorted(folder.rglob("*")) == before


def test_a_run_that_ended_early_is_finished_until_it_is_given_more_patience(
    recipe: Pretrain,
) -> None:
    folder = leave(recipe)
    (folder / "finished.json").write_text(json.dumps({"step": 2, "patience": 3}))
    run = RunDirectory(str(folder))
    for patience, finished in ((2, True), (3, True), (4, False), (None, False)):
        schedule = replace(recipe.schedule, patience=patience)
        job = pretrain.job(replace(recipe, schedule=schedule))
        assert resuming.is_finished(run, job) == finished
        if finished:
            with pytest.raises(
                UserError, match=r"or train on with more patience: schedule\.patience=null$"
            ):
                elastic.run(job)
    resuming.everything_tracked(run)
    assert run.read_json("finished.json") == {"step": 2, "patience": 3}


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        (lambda r: replace(r, model=replace(r.model, depth=2)), ["model.depth"]),
        (lambda r: replace(r, schedule=replace(r.schedule, epochs=3)), ["schedule.epochs"]),
        (
            lambda r: replace(
                r,
                batch=replace(r.batch, micro=1),
                schedule=replace(r.schedule, epochs=3),
                resume=ResumeConfig(allow=["schedule.epochs"]),
            ),
            ["batch.micro"],
        ),
    ],
)
def test_changed_keys_are_named_with_both_values_unless_allowed(
    recipe: Pretrain, change: Callable[[Pretrain], Pretrain], refused: list[str]
) -> None:
    folder = leave(recipe)
    with pytest.raises(UserError) as error:
        elastic.run(pretrain.job(change(recipe)))
    first, *lines, advice = str(error.value).splitlines()
    assert first == f"{folder} was started with another recipe:"
    assert [line.split()[0].rstrip(":") for line in lines] == refused
    assert advice.endswith(f"allow the change with 'resume.allow=[{', '.join(refused)}]'")


# --- a finished run of which MLflow lacks something ------------------------------------------------

NOBODY = "http://127.0.0.1:9"
"""Where no server is."""


@pytest.fixture
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")
def test_what_mlflow_lacks_of_a_finished_run_the_same_command_sends_and_nothing_else(
    recipe: Pretrain, no_server: None
) -> None:
    folder = leave(recipe, finished=4, tracked=False, mlflow_key="k")
    spool = MetricSpool(folder / "spool", "k")
    spool.append([{"step": step, "metrics": {"train/loss": 1 / step}} for step in range(1, 5)])
    spool.close()
    result = elastic.run(pretrain.job(recipe))
    assert (result.code, result.message) == (
        0,
        f"MLflow now has everything of {folder}, finished after 4 steps",
    )
    client = MlflowClient(tracking.resolve_uri(recipe.run.storage))
    assert result.mlflow_run_id is not None
    history = client.get_metric_history(result.mlflow_run_id, "train/loss")
    assert [point.step for point in history] == [1, 2, 3, 4]
    assert json.loads((folder / "finished.json").read_text()) == {"step": 4}
    assert json.loads((folder / "run.json").read_text())["mlflow_run_id"] == result.mlflow_run_id
    with pytest.raises(UserError, match="is finished"):
        elastic.run(pretrain.job(recipe))


def test_while_the_server_is_down_the_run_stays_as_it_is(
    recipe: Pretrain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOBODY)
    monkeypatch.setattr(shipping, "REFUSED_S", 1.0)
    folder = leave(recipe, finished=4, tracked=False, mlflow_key="k")
    before = (folder / "run.json").read_bytes()
    result = elastic.run(pretrain.job(recipe))
    assert (result.code, result.mlflow_run_id) == (75, None)
    assert result.message == f"{folder} is finished after 4 steps, but for MLflow"
    assert json.loads((folder / "finished.json").read_text()) == {"step": 4, "tracked": False}
    assert (folder / "run.json").read_bytes() == before


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")
def test_a_machine_without_the_points_does_not_claim_that_mlflow_has_them(
    recipe: Pretrain, no_server: None
) -> None:
    folder = leave(recipe, finished=4, tracked=False, mlflow_key="k")
    result = elastic.run(pretrain.job(recipe))
    assert result.code == 75
    assert result.message == (
        f"{folder} is finished after 4 steps, but for MLflow: its points are on the machine that trained it, "
        f"in {folder / 'spool'}; the same command sends them from there"
    )
    assert json.loads((folder / "finished.json").read_text()) == {"step": 4, "tracked": False}

"""Real sweeps: one whose driver is killed in its middle, and a population that is interrupted.

Each story is told once; the tests look at what it left. ``make sweep-demo`` is the larger one of the first kind.
"""

import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

import sweeping
from jobs import run_jobs
from motion import motion_manifest
from sweeping import Seen
from tubelet import config
from tubelet.recipes import Finetune
from tubelet.run_directory import RunDirectory
from tubelet.sweep.journal import Journal

pytestmark = [
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
]

BASE = {
    "model": {"preset": "tiny", "frames": 4, "image_size": 16, "depth": 2},
    "data": {"clip": {"stride": 1}, "held_out_clips": 16},
    "batch": {"size": 16, "micro": 8},
    "optim": {"lr": 0.1, "min_lr": 0.0, "precision": "float32"},
    "schedule": {"epochs": 4, "warmup_epochs": 1},
    "elastic": {"cpus_per_worker": 0.5},
    "track": {"evaluate_every": 4, "pictures": False},
}
TOO_MUCH = 1e30
"""A rate at which the loss is no number after a step."""


def write(folder: Path, sweep: dict[str, Any], **changes: Any) -> list[str]:
    """Videos, the two files, and the sweep's command line."""
    motion_manifest(folder / "videos", training=64, held_out=16)
    data = {**BASE["data"], "manifest": f"{folder}/videos.parquet"}
    (folder / "base.yaml").write_text(yaml.safe_dump({**BASE, "data": data, **changes}))
    whole = {
        "recipe": [f"{folder}/base.yaml"],
        "run": {"name": "s", "storage": f"{folder}/runs"},
        **sweep,
    }
    (folder / "sweep.yaml").write_text(json.dumps(whole))
    (folder / "runs").mkdir()
    return [f"{folder}/sweep.yaml"]


@dataclass(frozen=True)
class Killed:
    """The story of the killed driver."""

    folder: Path
    arguments: list[str]
    before: Seen
    after: Seen
    code: int
    output: str


TRIALS = 6


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    folder = tmp_path_factory.mktemp("sweep")
    arguments = write(
        folder,
        {
            "space": {
                "optim.lr": {"choice": [0.01, 0.1, TOO_MUCH]},
                "head.dropout": {"uniform": [0.0, 0.5]},
            },
            "metric": "eval/loss",
            "trials": TRIALS,
            "search": "optuna",
            "concurrent": 2,
        },
    )
    storage, log = folder / "runs", folder / "log"
    driver = sweeping.start(arguments, log)
    sweeping.kill_after(driver, storage, "s", ended=2)
    before = sweeping.look(storage, "s")
    code = sweeping.finish(sweeping.start(arguments, log))
    return Killed(folder, arguments, before, sweeping.look(storage, "s"), code, log.read_text())


def test_a_killed_sweep_goes_on_to_its_end(killed: Killed) -> None:
    assert killed.code == 0, killed.output
    assert len(killed.after.ended) == TRIALS
    assert f"{len(killed.before.ended)} trials have ended, " in killed.output


def test_trials_that_had_ended_are_as_they_were(killed: Killed) -> None:
    assert len(killed.before.ended) >= 2
    for number, trial in killed.before.ended.items():
        assert killed.after.ended[number] == trial
        assert killed.after.mlflow[number] == killed.before.mlflow[number]


def test_each_rung_holds_what_it_held(killed: Killed) -> None:
    assert any(killed.before.rungs.values())
    for epochs, held in killed.before.rungs.items():
        assert killed.after.rungs[epochs].items() >= held.items()


def test_mlflow_has_one_parent_with_a_child_per_trial(killed: Killed) -> None:
    runs = sweeping.children(killed.folder / "runs", "s")
    assert sorted(run.data.tags["mlflow.runName"] for run in runs) == [
        f"s-{number:05d}" for number in range(TRIALS)
    ]
    for run in runs:
        status = killed.after.ended[int(run.data.tags["tubelet.trial"])]["status"]
        expected = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}[status]
        folder = killed.folder / "runs" / run.data.tags["mlflow.runName"]
        if status == "stopped" and (folder / "finished.json").exists():
            expected = "FINISHED"  # it was through before it heard
        assert run.info.status == expected


def test_a_failed_trial_does_not_end_the_sweep(killed: Killed) -> None:
    trials = killed.after.ended.values()
    failed = [t for t in trials if t["status"] == "failed"]
    assert failed
    for trial in failed:
        assert trial["values"]["optim.lr"] == TOO_MUCH
        assert "not finite" in trial["message"]
    assert all(t["values"]["optim.lr"] < 1 for t in trials if t["status"] == "finished")


def test_the_best_recipe_can_be_run_as_it_is(killed: Killed) -> None:
    results = killed.folder / "runs" / "s" / "results"
    recipe = config.load(Finetune, [results / "best.yaml"])
    best = Journal.read(RunDirectory(str(killed.folder / "runs" / "s"))).best("min")
    assert best is not None
    assert (recipe.run.name, recipe.optim.lr) == ("s-best", best.values["optim.lr"])
    assert recipe.head.dropout == best.values["head.dropout"]
    ended = run_jobs({"best": ["finetune", str(results / "best.yaml")]})["best"]
    assert (ended.code, ended.err) == (0, "")
    curve = _evaluations(killed.folder / "runs" / "s-best")
    assert curve == [pytest.approx(heard.value) for heard in best.results]


def test_the_results_are_artifacts_of_the_parent(killed: Killed) -> None:
    from tubelet import tracking

    client = tracking.connect(tracking.resolve_uri(str(killed.folder / "runs")))
    record = RunDirectory(str(killed.folder / "runs" / "s")).read_json("sweep.json") or {}
    run = client.get_run(record["mlflow_run_id"])
    names = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert names >= {"results.html", "results.png", "best.yaml", "recipe.yaml"}
    assert run.info.status == "FINISHED"
    assert "sweep/best" in run.data.metrics


def test_a_finished_sweep_is_refused_and_a_changed_one_too(killed: Killed) -> None:
    ended = run_jobs(
        {
            "again": ["sweep", *killed.arguments],
            "changed": ["sweep", *killed.arguments, "trials=9", "set.data.copies=2"],
        }
    )
    assert [each.code for each in ended.values()] == [2, 2]
    assert f"is finished ({TRIALS} trials): choose another run.name" in ended["again"].err
    assert "data.copies: 1 -> 2" in ended["changed"].err


def test_what_a_kill_left_open_is_closed_by_the_same_command(killed: Killed) -> None:
    from tubelet import tracking

    storage, (first, second) = killed.folder / "runs", list(killed.after.ended)[:2]
    (storage / "s" / "finished.json").unlink()  # killed after the last trial,
    client = tracking.connect(tracking.resolve_uri(str(storage)))
    runs = [client.get_run(killed.after.mlflow[number]) for number in (first, second)]
    for run in runs:
        client.update_run(run.info.run_id, status="RUNNING")  # and in the middle of leaving two,
    events = storage / f"s-{first:05d}" / "events.jsonl"  # one of which had not said so
    events.write_text("".join(events.read_text().splitlines(keepends=True)[:-1]))
    ended = run_jobs({"again": ["sweep", *killed.arguments]})["again"]
    assert (ended.code, ended.err) == (0, "")
    assert f"finished {TRIALS} trials" in ended.out
    for run in runs:
        assert client.get_run(run.info.run_id).info.status == run.info.status
    for number in (first, second):
        said = (storage / f"s-{number:05d}" / "events.jsonl").read_text()
        assert said.count('"event": "end"') == 1
    after = sweeping.look(storage, "s")
    assert (after.ended, after.mlflow) == (killed.after.ended, killed.after.mlflow)


# --- a population -------------------------------------------------------------------------------

EPOCHS = 15


@dataclass(frozen=True)
class Interrupted:
    """The story of the population."""

    folder: Path
    codes: list[int]
    output: str


@pytest.fixture(scope="module")
def population(tmp_path_factory: pytest.TempPathFactory) -> Interrupted:
    folder = tmp_path_factory.mktemp("population")
    arguments = write(
        folder,
        {
            "space": {"optim.lr": {"log_uniform": [1e-6, 1.0]}},
            "trials": 2,
            "scheduler": "pbt",
            "pbt": {"every_epochs": 5, "quantile": 0.5},
            "concurrent": 1,  # they take turns
        },
        schedule={"epochs": EPOCHS, "warmup_epochs": 1},
    )
    log, journal = folder / "log", folder / "runs" / "s" / "trials"
    driver = sweeping.start(arguments, log)
    deadline = time.monotonic() + 1200
    while not any('"changes": [\n' in path.read_text() for path in journal.glob("*.json")):
        assert driver.poll() is None, log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(driver.pid, signal.SIGINT)
    codes = [sweeping.finish(driver)]
    codes.append(sweeping.finish(sweeping.start(arguments, log)))
    return Interrupted(folder, codes, log.read_text())


def test_an_interrupted_population_says_so_and_goes_on(population: Interrupted) -> None:
    assert population.codes == [config.INTERRUPTED, config.DONE], population.output
    assert "the same command goes on with" in population.output


def test_in_a_population_the_worse_trial_goes_on_from_the_betters_checkpoint(
    population: Interrupted,
) -> None:
    storage = population.folder / "runs"
    known = Journal.read(RunDirectory(str(storage / "s")))
    assert {trial.status for trial in known.trials.values()} == {"finished"}
    changed = [trial for trial in known.trials.values() if trial.changes]
    assert changed
    for trial in changed:
        run = RunDirectory(str(storage / trial.run))
        assert not list((storage / "s").glob("grafts/*"))
        grafts = [event for event in run.events() if event["event"] == "graft"]
        assert len(grafts) == len(trial.changes)
        sources = [change.source for change in trial.changes]
        assert [graft["source"].rpartition("/")[2] for graft in grafts] == sources
        assert [graft["step"] for graft in grafts] == [change.step for change in trial.changes]
        assert all(1e-6 <= change.values["optim.lr"] <= 1.0 for change in trial.changes)


def test_every_trial_of_a_population_is_one_mlflow_run_with_one_curve(
    population: Interrupted,
) -> None:
    storage = population.folder / "runs"
    runs = sweeping.children(storage, "s")
    assert len(runs) == 2
    for run in runs:
        values = _evaluations(storage / run.data.tags["mlflow.runName"])
        assert EPOCHS - 5 <= len(values) <= EPOCHS  # some lie before what it went on from
        assert run.info.status == "FINISHED"


def _evaluations(run: Path) -> list[float]:
    (points,) = [p for p in (run / "spool").glob("*.jsonl") if p.name != "notices.jsonl"]
    entries = [json.loads(line) for line in points.read_text().splitlines()]
    return [entry["m"]["eval/loss"] for entry in entries if "eval/loss" in entry["m"]]

"""A sweep's parts without a cluster: journal, searcher, rules, the recipes of its trials, and its page."""

import dataclasses
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from clips import storage
from motion import motion_manifest
from tubelet import cluster, config
from tubelet.config import UserError
from tubelet.recipes import Finetune
from tubelet.run_directory import Attempt, Commit, RunDirectory, checkpoint_name
from tubelet.sweep import driver, grafting, page, record, rules, trials
from tubelet.sweep.journal import Change, Heard, Journal, Trial
from tubelet.sweep.picture import picture
from tubelet.sweep.recipe import Sweep
from tubelet.sweep.search import GRAFTS, NUMBER, JournalSearch
from tubelet.sweep.space import Dimension
from tubelet.sweep.trial import Evaluation, Evaluations

DIMENSIONS = [
    Dimension("optim.lr", "log_uniform", (0.001, 1.0)),
    Dimension("batch.micro", "integer", (1, 8)),
    Dimension("head.pooling", "choice", ("mean", "token0")),
]


def journal(folder: Path) -> Journal:
    return Journal.read(RunDirectory(str(folder)))


def search(known: Journal, *, kind: str = "random", seed: int = 3) -> JournalSearch:
    return JournalSearch(DIMENSIONS, known, name="s", kind=kind, mode="max", seed=seed)


def score(values: dict[str, Any]) -> float:
    """A made-up objective with its best at a rate of 0.1."""
    return -abs(values["optim.lr"] - 0.1)


def go_through(known: Journal, kind: str, trials: int, *, seed: int = 3) -> list[dict[str, Any]]:
    """A searcher that runs its trials one after another."""
    searcher, out = search(known, kind=kind, seed=seed), []
    while len(known.ended) < trials:
        name = f"id-{len(out)}"
        values = searcher.suggest(name)
        assert values is not None
        number = values[NUMBER]
        out.append({k: v for k, v in values.items() if k not in (NUMBER, GRAFTS)})
        known.hear(number, step=1, epochs=1.0, value=score(values), stop=False)
        known.update(number, status="finished")
        searcher.on_trial_complete(name, {"value": score(values)})
    return out


# --- the journal --------------------------------------------------------------------------------


def test_a_journal_reads_back_what_was_kept(tmp_path: Path) -> None:
    known = journal(tmp_path)
    known.keep(Trial(0, "s-00000", {"optim.lr": 0.1, "head.pooling": "mean"}))
    known.keep(Trial(1, "s-00001", {"optim.lr": 0.2, "head.pooling": "token0"}))
    known.hear(1, step=5, epochs=1.0, value=0.3, stop=False)
    known.hear(0, step=5, epochs=1.0, value=0.2, stop=True)
    change = Change(1.0, source="s-00001", step=5, values={"optim.lr": 0.12})
    known.update(0, status="stopped", message="why", changes=(change,))
    again = journal(tmp_path)
    assert again.trials == known.trials
    assert [(t.number, h.place) for t, h in again.in_order()] == [(1, 0), (0, 1)]
    assert [t.number for t in again.ended] == [0]
    assert [t.number for t in again.unfinished] == [1]


def test_the_best_trial_is_one_that_came_to_its_end_if_any_did(tmp_path: Path) -> None:
    known = journal(tmp_path)
    assert known.best("max") is None
    for number, status in enumerate(["stopped", "finished", "finished", "failed", "running"]):
        heard = Heard(number, 1, 1.0, [0.9, 0.5, 0.7, 1.0, 0.95][number])
        known.keep(Trial(number, f"s-{number}", {}, status=status, results=(heard,)))  # type: ignore[arg-type]
    assert [(known.best(mode) or Trial(-1, "", {})).number for mode in ("max", "min")] == [2, 1]
    for number in (1, 2):
        known.update(number, status="failed")
    assert (known.best("max") or Trial(-1, "", {})).number == 4


# --- the searcher -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["random", "optuna"])
def test_a_searcher_made_anew_suggests_what_the_old_one_would_have(
    tmp_path: Path, kind: str
) -> None:
    whole = go_through(journal(tmp_path / "whole"), kind, 24)
    parts = journal(tmp_path / "parts")
    first = go_through(parts, kind, 13)
    second = go_through(journal(tmp_path / "parts"), kind, 24)
    assert [*first, *second] == whole
    assert go_through(journal(tmp_path / "other"), kind, 3, seed=4) != whole[:3]


def test_optuna_comes_closer_than_chance(tmp_path: Path) -> None:
    def mean(kind: str) -> float:
        tried = go_through(journal(tmp_path / kind), kind, 40)
        return sum(score(values) for values in tried[20:]) / 20

    assert mean("optuna") > mean("random") + 0.05


def test_suggestions_lie_in_the_space(tmp_path: Path) -> None:
    for values in go_through(journal(tmp_path), "random", 30):
        assert 0.001 <= values["optim.lr"] <= 1.0
        assert values["batch.micro"] in range(1, 9)
        assert values["head.pooling"] in ("mean", "token0")


def test_trials_that_were_running_are_suggested_first_with_their_own_values(tmp_path: Path) -> None:
    known = journal(tmp_path)
    before = search(known)
    begun = [before.suggest(f"id-{n}") for n in range(3)]
    known.update(1, status="finished", results=(Heard(0, 1, 1.0, 0.5),))
    after = search(journal(tmp_path))
    assert [after.suggest("a"), after.suggest("b")] == [begun[0], begun[2]]
    fresh = after.suggest("c")
    assert fresh is not None
    assert fresh[NUMBER] == 3


def test_a_new_trial_is_in_the_journal_before_anyone_starts_it(tmp_path: Path) -> None:
    values = search(journal(tmp_path)).suggest("id")
    assert values is not None
    (written,) = journal(tmp_path).trials.values()
    assert {**written.values, NUMBER: 0, GRAFTS: 0} == values
    assert (written.run, written.status) == ("s-00000", "running")


def test_a_trial_whose_process_keeps_dying_has_failed_and_the_search_goes_on(
    tmp_path: Path,
) -> None:
    known = journal(tmp_path)
    searcher = search(known)
    searcher.suggest("id")
    searcher.on_trial_complete("id", error=True)
    assert (known.trials[0].status, known.trials[0].message) == (
        "failed",
        "its process died again and again",
    )
    assert searcher.suggest("next") is not None
    searcher.closed = True
    assert searcher.suggest("last") is None


# --- the rules ----------------------------------------------------------------------------------


class Asked:
    """A trial as Ray Tune has it."""

    def __init__(self, number: int) -> None:
        self.config = {NUMBER: number}


def tell(
    scheduler: rules.Judged, number: int, step: int, value: float, *, done: bool = False
) -> str:
    result = {"step": step, "epochs": step / 10, "value": value, "done": done}
    if done:
        scheduler.on_trial_complete(None, Asked(number), result)
        return "DONE"
    return scheduler.on_trial_result(None, Asked(number), result)


def halving() -> rules.Halving:
    return rules.Halving(grace_epochs=1.0, epochs=4.0, reduction=2.0, mode="max")


def begun(folder: Path, trials: int) -> Journal:
    known = journal(folder)
    for number in range(trials):
        known.keep(Trial(number, f"s-{number:05d}", {}))
    return known


def test_halving_stops_the_worse_half_of_a_rung_and_writes_that_down(tmp_path: Path) -> None:
    known = begun(tmp_path, 3)
    scheduler = rules.Judged(known, halving())
    assert tell(scheduler, 0, 10, 0.5) == "CONTINUE"
    assert tell(scheduler, 1, 10, 0.7) == "CONTINUE"
    assert tell(scheduler, 2, 10, 0.4) == "STOP"
    scheduler.on_trial_complete(
        None, Asked(2), {"step": 10, "epochs": 1.0, "value": 0.4, "done": False}
    )
    assert known.trials[2].status == "stopped"
    assert known.trials[2].message == "not among the best at epoch 1"
    assert json.loads((tmp_path / "rungs.json").read_text()) == {
        "1": {"0": 0.5, "1": 0.7, "2": 0.4},
        "2": {},
        "4": {},
    }


def test_rungs_hold_what_they_held_when_the_scheduler_is_made_anew(tmp_path: Path) -> None:
    known = begun(tmp_path, 6)
    judge = halving()
    scheduler = rules.Judged(known, judge)
    for step in (10, 20, 40):
        for number in range(6):
            if known.trials[number].status == "running":
                said = tell(
                    scheduler, number, step, (number * 7 % 5) / 10 + step / 100, done=step == 40
                )
                if said == "STOP":
                    tell(scheduler, number, step, 0.0, done=True)
    again = halving()
    rules.replay(journal(tmp_path), again)
    assert again.rungs == judge.rungs
    assert sum(map(len, again.rungs.values())) > 8
    assert 0 < len([t for t in known.trials.values() if t.status == "stopped"]) < 6


def test_a_result_that_is_told_again_changes_nothing(tmp_path: Path) -> None:
    known = begun(tmp_path, 2)
    judge = halving()
    scheduler = rules.Judged(known, judge)
    tell(scheduler, 0, 30, 0.9)
    before, rungs = dict(known.trials), judge.rungs
    assert tell(scheduler, 0, 10, 0.1) == "CONTINUE"
    assert tell(scheduler, 0, 30, 0.1) == "CONTINUE"
    assert (known.trials, judge.rungs) == (before, rungs)


def test_a_trial_that_fails_is_kept_out_of_the_rungs(tmp_path: Path) -> None:
    known = begun(tmp_path, 1)
    judge = halving()
    scheduler = rules.Judged(known, judge)
    result = {"step": 0, "epochs": 0.0, "value": float("nan"), "done": True, "failed": "diverged"}
    scheduler.on_trial_complete(None, Asked(0), result)
    assert (known.trials[0].status, known.trials[0].message) == ("failed", "diverged")
    assert not any(judge.rungs.values())


def test_a_trial_at_its_last_evaluation_is_finished_however_it_compares(tmp_path: Path) -> None:
    known = begun(tmp_path, 2)
    scheduler = rules.Judged(known, halving())
    tell(scheduler, 0, 40, 0.9, done=True)
    tell(scheduler, 1, 40, 0.1, done=True)
    assert [known.trials[n].status for n in (0, 1)] == ["finished", "finished"]


# --- trials' recipes ----------------------------------------------------------------------------


def sweep(folder: Path, **changes: Any) -> Sweep:
    (folder / "base.yaml").write_text("optim: {lr: 0.1}\nschedule: {epochs: 4, warmup_epochs: 1}\n")
    content: dict[str, Any] = {
        "recipe": [str(folder / "base.yaml")],
        "space": {"optim.lr": {"log_uniform": [0.01, 1.0]}, "head.dropout": {"choice": [0.0, 0.3]}},
        "run": {"name": "s", "storage": str(folder / "runs")},
    }
    (folder / "sweep.yaml").write_text(json.dumps({**content, **changes}))
    return config.load(Sweep, [folder / "sweep.yaml"])


def test_a_trials_recipe_is_the_base_with_its_values_and_its_own_name(tmp_path: Path) -> None:
    asked = sweep(tmp_path, set={"data": {"copies": 3}})
    recipe = trials.base(asked)
    found = trials.recipe_of(
        asked, recipe, run="s-00004", values={"optim.lr": 0.5, "head.dropout": 0.3}
    )
    assert isinstance(found, Finetune)
    assert (found.optim.lr, found.head.dropout, found.data.copies) == (0.5, 0.3, 3)
    assert (found.run.name, found.run.storage) == ("s-00004", str(tmp_path / "runs"))
    assert (found.schedule, found.resume.allow) == (recipe.schedule, [])


def test_a_populations_trials_may_change_and_save_as_often_as_they_are_compared(
    tmp_path: Path,
) -> None:
    space = {"optim.lr": {"log_uniform": [0.01, 1.0]}}
    asked = sweep(tmp_path, space=space, scheduler="pbt", set={"track.evaluate_every": 7})
    recipe = trials.base(asked)
    assert recipe.checkpoint.every_steps == 7
    found = trials.recipe_of(asked, recipe, run="s-0", values={})
    assert found.resume.allow == ["optim.lr"]


def test_what_is_set_wrongly_is_told_as_the_sweep_has_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"set\.optim\.lr: must be a valid number, got 'high'"):
        trials.base(
            sweep(
                tmp_path, space={"optim.beta2": {"uniform": [0.9, 0.99]}}, set={"optim.lr": "high"}
            )
        )


def test_a_value_that_the_recipe_refuses_is_told_with_the_reason(tmp_path: Path) -> None:
    recipe = trials.base(sweep(tmp_path))
    with pytest.raises(UserError, match=r"^head\.dropout: Input should be less than 1$"):
        trials.with_values(recipe, {"head.dropout": 1.5})
    with pytest.raises(
        UserError, match=r"^batch\.size \(1024\) must be a multiple of batch\.micro \(7\)$"
    ):
        trials.with_values(recipe, {"batch.micro": 7})


def test_the_best_recipe_is_a_file_that_its_job_reads_back(tmp_path: Path) -> None:
    asked = sweep(tmp_path)
    recipe = trials.recipe_of(asked, trials.base(asked), run="s-best", values={"optim.lr": 0.25})
    (tmp_path / "best.yaml").write_text(trials.as_file(asked, recipe, comment=["The best."]))
    assert config.load(Finetune, [tmp_path / "best.yaml"]) == recipe


@pytest.mark.parametrize(
    ("cpus", "gpus", "workers", "wanted", "expected"),
    [
        (2.0, 0.0, 1, None, 2),  # half a CPU each beside one that decodes
        (2.0, 0.0, 1, 1, 1),
        (64.0, 0.0, 4, None, 12),  # no more than trials
        (640.0, 64.0, 8, None, 8),  # GPUs decide
        (640.0, 64.0, 1, None, 12),
        (1.0, 0.0, 4, None, 1),  # one always runs, as large as fits
    ],
)
def test_as_many_trials_run_at_once_as_the_cluster_holds(
    tmp_path: Path, cpus: float, gpus: float, workers: int, wanted: int | None, expected: int
) -> None:
    size = {"elastic": {"max_workers": workers, "cpus_per_worker": 0.5}}
    asked = sweep(tmp_path, set=size, concurrent=wanted)
    found = cluster.Cluster(cpus=cpus, gpus=gpus, local=True)
    assert driver.at_once(asked, trials.base(asked), found) == expected


def test_a_finished_sweep_may_get_more_trials_and_nothing_else(tmp_path: Path) -> None:
    motion_manifest(tmp_path / "videos", training=8, held_out=8)
    data = {"data.manifest": f"{tmp_path}/videos.parquet", "batch": {"size": 8, "micro": 8}}

    def find(**changes: Any) -> dict[str, Any]:
        asked = sweep(tmp_path, **{"set": data, "trials": 2, **changes})
        recipe = trials.base(asked)
        job = trials.job_of(trials.recipe_of(asked, recipe, run="s-00000", values={}))
        return record.find(directory, asked, recipe, job)

    directory = RunDirectory(str(tmp_path / "runs" / "s"))
    first = find()
    directory.write_json(first, "sweep.json")
    assert find()["mlflow_key"] == first["mlflow_key"]
    directory.write_json({"trials": 2}, "finished.json")
    with pytest.raises(
        UserError, match=r"is finished \(2 trials\): .* or go on with more: trials=N$"
    ):
        find()
    assert find(trials=3)["mlflow_key"] == first["mlflow_key"]
    with pytest.raises(
        UserError, match=r"(?s)started otherwise:\n  mode: 'min' -> 'max'\n.*could not be"
    ):
        find(trials=3, mode="max")
    with pytest.raises(UserError, match=r"(?s)started otherwise:.*data\.copies: 1 -> 2"):
        find(trials=3, set={**data, "data.copies": 2})
    anew = find(run={"name": "s", "storage": str(tmp_path / "runs"), "fresh": True})
    assert anew["mlflow_key"] != first["mlflow_key"]


# --- runs ---------------------------------------------------------------------------------------


def run_with_checkpoint(folder: Path, *, step: int) -> RunDirectory:
    run = RunDirectory(str(folder))
    attempt = run.begin_attempt(ray_run="r", world_size=1)
    name = checkpoint_name(step, attempt.number)
    storage.write_bytes(run.path("checkpoints", name, "shard.distcp"), b"weights of %d" % step)
    commit = Commit(
        step,
        attempt.number,
        1,
        {"shard.distcp": {"size": 1, "sha256": ""}},
        {"a": {}},
        [{"step": 1}],
    )
    run.write_json(dataclasses.asdict(commit), "checkpoints", name, "commit.json")
    return run


def test_a_run_goes_on_from_what_was_anothers_newest_checkpoint_at_the_time(tmp_path: Path) -> None:
    source = run_with_checkpoint(tmp_path / "good", step=12)
    target = run_with_checkpoint(tmp_path / "bad", step=40)
    place = str(tmp_path / "aside")
    assert grafting.set_aside(source, place) == 12
    run_with_checkpoint(tmp_path / "good", step=30)  # it goes on meanwhile
    assert grafting.take(place, target) == 12
    assert (grafting.taken(source), grafting.taken(target)) == (0, 1)
    assert not Path(place).exists()
    found = target.resume_point(target.newest_attempt())
    assert found is not None
    assert (found.step, found.attempt, found.audit, found.points) == (12, 2, {}, [])
    shard = target.path("checkpoints", found.name, "shard.distcp")
    assert storage.read_bytes(shard) == b"weights of 12"
    following: Attempt = target.begin_attempt(ray_run="r", world_size=1)
    assert (following.step, following.parent) == (12, found.name)


def test_a_run_without_a_checkpoint_has_nothing_to_set_aside(tmp_path: Path) -> None:
    assert grafting.set_aside(RunDirectory(str(tmp_path / "none")), str(tmp_path / "aside")) is None
    assert not (tmp_path / "aside").exists()


def test_evaluations_are_read_in_turn_as_a_run_writes_them(tmp_path: Path) -> None:
    run = RunDirectory(str(tmp_path / "run"))
    told = Evaluations(run, "eval/top1")
    assert told.next() is None
    run.write_json({"mlflow_key": "k"}, "run.json")
    assert told.next() is None
    points = tmp_path / "run" / "spool" / "k.jsonl"
    points.parent.mkdir()
    lines = [
        {"s": 1, "m": {"train/loss": 2.0}},
        {"s": 2, "m": {"eval/top1": 0.5, "train/loss": 1.0}},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    points.write_text(text + '{"s": 4, "m": {"eval/top1"')
    assert told.next() == Evaluation(2, 0.5)
    assert told.next() is None
    points.write_text(text + '{"s": 4, "m": {"eval/top1": 0.75}}\n')
    assert told.next() == Evaluation(4, 0.75)
    assert told.next() is None


# --- the page -----------------------------------------------------------------------------------


def results(**changes: Any) -> page.Results:
    values = [
        {"optim.lr": 0.01, "batch.micro": 2, "head.pooling": "mean"},
        {"optim.lr": 0.1, "batch.micro": 4, "head.pooling": "token0"},
        {"optim.lr": 0.5, "batch.micro": 8, "head.pooling": "mean"},
    ]
    heard = [(Heard(0, 10, 1.0, 0.25, stop=True),), (Heard(1, 40, 4.0, 0.75),), ()]
    statuses: list[Any] = ["stopped", "finished", "failed"]
    shown = tuple(
        Trial(
            n, f"s-{n:05d}", values[n], statuses[n], "<b>diverged</b>" if n == 2 else "", heard[n]
        )
        for n in range(3)
    )
    whole: dict[str, Any] = {"name": "a & b", "metric": "eval/top1", "mode": "max"}
    whole |= {"dimensions": tuple(DIMENSIONS), "trials": shown, "best": 1, **changes}
    return page.Results(**whole)


class Parsed(HTMLParser):
    """Text and tags of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self._cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self._cell = tag in ("td", "th")

    def handle_endtag(self, tag: str) -> None:
        self._cell = False

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.rows[-1][-1] += data


def test_the_page_has_a_line_and_a_row_for_every_trial_the_best_first() -> None:
    parsed = Parsed(page.page(results()))
    lines = [attrs for tag, attrs in parsed.tags if tag == "polyline"]
    assert sorted(line["data-trial"] or "" for line in lines) == ["0", "1", "2"]
    assert lines[-1]["class"] == "line whole best"
    points = {line["data-trial"]: len((line["points"] or "").split()) for line in lines}
    assert points == {"0": 4, "1": 4, "2": 3}  # a failed trial has no place on the metric's axis
    assert parsed.rows == [
        [
            "trial",
            "run",
            "status",
            "epochs",
            "eval/top1",
            "optim.lr",
            "batch.micro",
            "head.pooling",
            "remarks",
        ],
        ["1", "s-00001", "finished", "4", "0.75", "0.1", "4", "token0", ""],
        ["0", "s-00000", "stopped", "1", "0.25", "0.01", "2", "mean", ""],
        ["2", "s-00002", "failed", "0", "", "0.5", "8", "mean", "<b>diverged</b>"],
    ]


def test_the_page_needs_nothing_else_and_runs_nothing_of_its_texts() -> None:
    text = page.page(results())
    assert "<b>" not in text
    assert "<title>a &amp; b</title>" in text
    assert not [word for word in ("http:", "https:", "src=", "@import", "url(") if word in text]


def test_dark_is_good_whichever_way_the_metric_goes() -> None:
    for mode, good in (("max", 1), ("min", 0)):
        colours = {t.trial.number: t.colour for t in page.threads(results(mode=mode))}
        assert colours[good] == "#440154"
        assert colours[1 - good] == "#c2df23"
        assert colours[2] == page.GREY


def test_a_page_without_any_result_is_a_page() -> None:
    none = results(trials=(Trial(0, "s-00000", results().trials[0].values),), best=None)
    assert len(Parsed(page.page(none)).rows) == 2
    assert picture(none).startswith(b"\x89PNG")


def test_the_picture_is_a_png_of_the_same_lines() -> None:
    assert picture(results()).startswith(b"\x89PNG")

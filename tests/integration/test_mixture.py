"""Two epochs of a mixture, from the recipe to the audit, with everything but decoding, models and Ray."""

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

import lineages
from clips import Manifest, write_manifest
from tubelet import audit, config
from tubelet.audit import AuditTrail
from tubelet.feed import Unit
from tubelet.items import DataPlan, clip_seeds, training_source
from tubelet.loops import plans, pretrain
from tubelet.recipes import Pretrain
from tubelet.run_directory import Commit, RunDirectory

COPIES = 2


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataPlan:
    """Three manifests of 30, 7 and 12 training rows, and three held out of each, at weights 0.5, 2.25 and 1."""
    monkeypatch.setattr("tubelet.rows.cache_folder", lambda: str(tmp_path / "cache"))
    entries: list[str] = []
    for name, training, weight in (("a", 30, 0.5), ("b", 7, 2.25), ("c", 12, 1.0)):
        rows = [
            {"video_id": f"{name}{i}.mp4", "size": 1, "split": "train" if i < training else "val"}
            for i in range(training + 3)
        ]
        uri = tmp_path / f"{name}.parquet"
        write_manifest(Manifest.build(rows, root=str(tmp_path / name)), str(uri))
        entries.append(f"{{manifest: {uri}, weight: {weight}}}")
    recipe = config.load(
        Pretrain,
        overrides=[
            f"data.mixture=[{', '.join(entries)}]",
            f"data.copies={COPIES}",
            "batch.size=16",
            "batch.micro=4",
            "schedule.epochs=2",
            "schedule.warmup_epochs=1",
        ],
    )
    job = pretrain.job(recipe)
    assert plans.step_plan(recipe, job.plan).warmup_steps == round(43 / 16)
    return pickle.loads(pickle.dumps(job.plan))


def test_every_visit_of_two_epochs_is_consumed_once_and_the_audit_says_so(
    plan: DataPlan, tmp_path: Path
) -> None:
    run = RunDirectory(str(tmp_path / "run"))
    attempt = run.begin_attempt(ray_run="r", world_size=1)
    trail = AuditTrail(attempt=attempt.number, rank=0)
    visits: Counter[tuple[int, str]] = Counter()
    seeds: set[int] = set()
    for number in range(plan.timetable.items):
        item = plan.timetable.item(number)
        if item.held_out:
            continue
        source = training_source(plan, item)
        clip, valid = clip_seeds(plan.ledger.seed, source, "clip"), source["valid"]
        seeds.update(clip[valid].tolist())
        first = valid & (source["copy"] == 0)
        for epoch, row in zip(source["epoch"][first], source["row"][first], strict=True):
            visits[int(epoch), plan.table.video(int(row)).video_id] += 1
        nothing = torch.zeros(len(valid))
        reason = np.full(len(valid), "", dtype=object)
        unit = Unit(item.number, nothing, nothing, nothing, source={**source, "reason": reason})
        trail.add(item.step, unit)

    for epoch in (0, 1):
        times = {n: Counter[int]() for n in "abc"}
        for (at, name), count in visits.items():
            if at == epoch:
                times[name[0]][count] += 1
        assert times == {"a": {1: 15}, "b": {2: 5, 3: 2}, "c": {1: 12}}
    assert len(seeds) == COPIES * plan.ledger.visits == COPIES * 2 * (15 + 16 + 12)

    commit = Commit(plan.ledger.steps, attempt.number, 1, {}, lineages.keep(run, trail), [])
    run.write_json(vars(commit), "checkpoints", commit.name, "commit.json")
    report = audit.verify(run, ledger=plan.ledger, copies=COPIES)
    assert report.exact
    assert report.consumed == report.expected == plan.ledger.visits == 86


def test_held_out_rows_are_those_of_all_parts_and_never_trained_on(plan: DataPlan) -> None:
    judged = {plan.table.video(int(row)).video_id for row in plan.held_out_rows}
    assert Counter(name[0] for name in judged) == {"a": 3, "b": 3, "c": 3}
    index = np.arange(plan.ledger.rows)
    (chosen,) = plan.rows
    trained = {plan.table.video(int(row)).video_id for row in chosen[index]}
    assert len(trained) == 30 + 7 + 12
    assert not trained & judged

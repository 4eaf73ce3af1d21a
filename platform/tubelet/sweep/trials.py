"""From a sweep to its trials' recipes and jobs: the recipe files, the keys that are set, one trial's values."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pydantic

from clips import storage
from tubelet import config
from tubelet.config import ConfigError, UserError
from tubelet.fit import Job
from tubelet.loops import finetune, pretrain
from tubelet.recipes import Finetune, Pretrain
from tubelet.sweep.recipe import SCHEMAS, Sweep
from tubelet.sweep.space import Dimension, dimensions, flat

Recipe = Pretrain | Finetune


def base(sweep: Sweep) -> Recipe:
    """The recipe that all trials share.

    Raises:
        UserError: the files, or what is set, do not fit the job.
    """
    settings = [f"{key}={json.dumps(value)}" for key, value in flat(sweep.set)]
    try:
        recipe = config.load(SCHEMAS[sweep.job], list(sweep.recipe), settings)
    except ConfigError as error:
        raise ConfigError(
            [text.replace("command line: ", "set.", 1) for text in error.problems]
        ) from error
    if sweep.scheduler == "pbt" and recipe.checkpoint.every_steps is None:
        # Others go on from its checkpoints; without this they would be as old as ten minutes.
        every = dataclasses.replace(recipe.checkpoint, every_steps=recipe.track.evaluate_every)
        recipe = dataclasses.replace(recipe, checkpoint=every)
    return recipe


def with_values(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """A recipe with some keys changed.

    Raises:
        UserError: it does not allow a value.
    """
    content = config.to_dict(recipe)
    for key, value in values.items():
        *sections, name = key.split(".")
        place = content
        for section in sections:
            place = place[section]
        place[name] = value
    try:
        schema = pydantic.TypeAdapter(type(recipe))
        return schema.validate_json(json.dumps(content), strict=True)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        said = first["msg"].removeprefix("Value error, ")
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{where}: {said}" if where in values else said) from error


def recipe_of(sweep: Sweep, recipe: Recipe, *, run: str, values: Mapping[str, Any]) -> Recipe:
    """The recipe of one trial.

    Args:
        sweep: whose trial.
        recipe: what all trials share.
        run: name of the trial's run.
        values: the trial's, by recipe key.
    """
    may_change = [key for key, _ in flat(sweep.space)] if sweep.scheduler == "pbt" else []
    ours = {
        "run.name": run,
        "run.storage": storage.absolute(sweep.run.storage),
        "run.fresh": False,
        "resume.allow": may_change,
    }
    return with_values(recipe, {**values, **ours})


def job_of(recipe: Recipe, tags: Mapping[str, str] | None = None) -> Job:
    """What a recipe asks for, checked against its data."""
    job = finetune.job(recipe) if isinstance(recipe, Finetune) else pretrain.job(recipe)
    return dataclasses.replace(job, tags=dict(tags or {}))


def tags(sweep: Sweep, number: int, *, parent: str) -> dict[str, str]:
    """What a trial's MLflow run says of where it belongs."""
    return {
        "mlflow.parentRunId": parent,
        "tubelet.sweep": sweep.run.name or "",
        "tubelet.trial": str(number),
    }


def check(sweep: Sweep, recipe: Recipe, job: Job) -> list[Dimension]:
    """Whether trials can be compared as asked; returns the dimensions.

    Raises:
        UserError: with every reason why not.
    """
    found = dimensions(sweep.space)
    problems = [text for d in found for text in _refused(recipe, d)]
    timetable, every = job.plan.timetable, recipe.track.evaluate_every
    if not timetable.held_out_units:
        problems.append(
            f"there is no {sweep.metric} to compare: the recipe holds nothing out (data.held_out_clips, "
            "data.held_out, or videos of the split val in the manifest)"
        )
    elif sweep.scheduler != "none" and every >= timetable.steps:
        problems.append(
            f"scheduler={sweep.scheduler} needs evaluations before the end: track.evaluate_every is {every}, a trial "
            f"has {timetable.steps} steps; set.track.evaluate_every=N, or scheduler=none"
        )
    if job.plan.ledger.draws > 1:
        problems.append(
            f"labels.draws is {job.plan.ledger.draws}: a trial is judged by one model; set.labels.draws=1"
        )
    if problems:
        raise ConfigError(problems)
    return found


def whole_epochs(recipe: Recipe, found: Sequence[Dimension]) -> float:
    """Epochs of the longest trial."""
    longest = [max(d.values) for d in found if d.key == "schedule.epochs"]
    return float(longest[0] if longest else recipe.schedule.epochs)


def as_file(sweep: Sweep, recipe: Recipe, *, comment: Sequence[str]) -> str:
    """A recipe as the text of a file that its job runs."""
    head = [f"# {line}" for line in comment]
    command = f"#   python jobs/{sweep.job}.py {Path('best.yaml')}"
    return "\n".join([*head, command, config.to_yaml(recipe)])


def _refused(recipe: Recipe, dimension: Dimension) -> list[str]:
    """What the recipe says to each end of a range, or each choice, alone."""
    found = []
    for value in dimension.values:
        try:
            with_values(recipe, {dimension.key: value})
        except UserError as error:
            found.append(f"space.{dimension.key}: {value!r} does not do: {error}")
    return found

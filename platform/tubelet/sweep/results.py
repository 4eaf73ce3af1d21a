"""What a sweep leaves for people: the page, the picture, the best trial's recipe, and a line per trial."""

from collections.abc import Sequence
from pathlib import Path

from clips import storage
from tubelet import tracking
from tubelet.fit import spool_folder
from tubelet.run_directory import RunDirectory
from tubelet.sweep import trials
from tubelet.sweep.journal import Journal, Trial
from tubelet.sweep.page import Results, page, short
from tubelet.sweep.picture import picture
from tubelet.sweep.recipe import Sweep
from tubelet.sweep.space import Dimension


def publish(
    sweep: Sweep, recipe: trials.Recipe, dimensions: Sequence[Dimension], journal: Journal
) -> None:
    """Write page, picture and the best trial's recipe, here and into the sweep's folder."""
    best = journal.best(sweep.mode)
    shown = Results(
        name=sweep.run.name or "",
        metric=sweep.metric,
        mode=sweep.mode,
        dimensions=tuple(dimensions),
        trials=tuple(trial for _, trial in sorted(journal.trials.items())),
        best=best.number if best else None,
    )
    files = {"results.html": page(shown).encode(), "results.png": picture(shown)}
    if best is not None:
        files["best.yaml"] = tracking.redact(best_recipe(sweep, recipe, journal, best)).encode()
    for name, content in files.items():
        storage.write_bytes(str(folder(journal.directory) / name), content)
        if not storage.is_local(journal.directory.uri):
            storage.write_bytes(journal.directory.path("results", name), content)


def best_recipe(sweep: Sweep, recipe: trials.Recipe, journal: Journal, best: Trial) -> str:
    """The best trial's recipe as a file that its job runs, with where it comes from."""
    found = trials.recipe_of(sweep, recipe, run=f"{sweep.run.name}-best", values=best.values)
    found = trials.with_values(found, {"resume.allow": []})
    told = (
        f"The best of {len(journal.trials)} trials of {sweep.run.name}: {line(best, sweep.metric)}."
    )
    changes = [
        f"It went on from {c.source} at epoch {c.epochs:g}; these are its last values."
        for c in best.changes
    ]
    return trials.as_file(sweep, found, comment=[told, *changes])


def line(trial: Trial, metric: str) -> str:
    """A trial in a line."""
    values = ", ".join(f"{key}={short(value)}" for key, value in trial.values.items())
    told = f"trial {trial.number} {trial.status} at epoch {trial.epochs:g}"
    if trial.value is not None and trial.status != "failed":
        told += f": {metric} {short(trial.value)}"
    told += f" ({values})"
    return f"{told}: {trial.message.splitlines()[0]}" if trial.status == "failed" else told


def local(directory: RunDirectory) -> Path:
    """Folder of this machine for the sweep's log and results: its own folder where that is local."""
    return Path(spool_folder(directory)).parent


def folder(directory: RunDirectory) -> Path:
    """Where the results are on this machine."""
    return local(directory) / "results"

"""What a sweep knows: one file per trial, written whole at every result, before anyone acts on it.

    <run.storage>/<run.name>/
        sweep.json  sweep.yaml  finished.json  owner.json (while a driver searches)
        trials/00003.json        values, results in the order of all results, how it ended
        grafts/00003-0/          a checkpoint on its way from one trial of a population to another
        rungs.json               of successive halving: who had which value there (to look at)
        results/                 results.html, results.png, best.yaml: the best trial's recipe, ready to run
        ray/ (Ray's own, disposable)
    <run.storage>/<run.name>-00003/      the trial's run, like any other

From it searcher and scheduler are made anew: replaying all results in their order leaves them as they were. A killed
driver loses at most what it had not heard yet, and hears that again, since the trials' own folders have it too.
"""

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from clips import storage
from tubelet.run_directory import RunDirectory

Status = Literal["running", "finished", "stopped", "failed"]
"""``stopped``: by the scheduler, before its end."""


@dataclass(frozen=True)
class Heard:
    """One result of a trial."""

    place: int
    """Among all results of the sweep."""
    step: int
    epochs: float
    value: float
    """Of the metric."""
    stop: bool = False
    """What the scheduler said to it."""


@dataclass(frozen=True)
class Change:
    """Where a trial of a population went on from another one's checkpoint."""

    epochs: float
    source: str
    """The other trial's run."""
    step: int
    """Of that checkpoint."""
    values: dict[str, Any]
    """By which it went on."""


@dataclass(frozen=True)
class Trial:
    """A trial as the journal has it."""

    number: int
    run: str
    """Name of its run."""
    values: dict[str, Any]
    """By recipe key; the present ones."""
    status: Status = "running"
    message: str = ""
    """Why it failed, or stopped."""
    results: tuple[Heard, ...] = ()
    changes: tuple[Change, ...] = ()

    @property
    def value(self) -> float | None:
        """The newest."""
        return self.results[-1].value if self.results else None

    @property
    def epochs(self) -> float:
        """How far it has come."""
        return self.results[-1].epochs if self.results else 0.0


@dataclass
class Journal:
    """The trials of a sweep, in memory and in its folder."""

    directory: RunDirectory
    trials: dict[int, Trial] = field(default_factory=dict)

    @classmethod
    def read(cls, directory: RunDirectory) -> "Journal":
        """What the folder has."""
        names = storage.list_names(directory.path("trials"))
        found = [_read(directory, name) for name in sorted(names) if name.endswith(".json")]
        return cls(directory, {trial.number: trial for trial in found})

    def keep(self, trial: Trial) -> Trial:
        """Write a trial down."""
        content = json.dumps(asdict(trial), indent=1, sort_keys=True)
        storage.write_bytes(
            self.directory.path("trials", f"{trial.number:05d}.json"), content.encode()
        )
        self.trials[trial.number] = trial
        return trial

    def update(self, number: int, **changed: Any) -> Trial:
        """Write a trial down with some of it changed."""
        return self.keep(replace(self.trials[number], **changed))

    def hear(self, number: int, *, step: int, epochs: float, value: float, stop: bool) -> Trial:
        """Write a result down."""
        trial = self.trials[number]
        place = sum(len(t.results) for t in list(self.trials.values()))
        heard = Heard(place, step, epochs, value, stop)
        return self.keep(replace(trial, results=(*trial.results, heard)))

    def run_of(self, trial: Trial) -> RunDirectory:
        """A trial's run, beside the sweep's folder."""
        return RunDirectory(storage.join(self.directory.uri.rsplit("/", 1)[0], trial.run))

    def graft(self, number: int, change: int) -> str:
        """Where the checkpoint waits from which a trial goes on after its n-th change (from 0)."""
        return self.directory.path("grafts", f"{number:05d}-{change}")

    def in_order(self) -> list[tuple[Trial, Heard]]:
        """All results in the order in which they came."""
        pairs = [(trial, heard) for trial in list(self.trials.values()) for heard in trial.results]
        return sorted(pairs, key=lambda pair: pair[1].place)

    @property
    def ended(self) -> list[Trial]:
        """Trials that will not go on."""
        return [trial for trial in list(self.trials.values()) if trial.status != "running"]

    @property
    def unfinished(self) -> list[Trial]:
        """Trials that will."""
        return [trial for trial in list(self.trials.values()) if trial.status == "running"]

    def best(self, mode: str) -> Trial | None:
        """The best newest value, of the trials that came to their end if there are any."""
        sign = 1 if mode == "max" else -1
        tried = [
            t for t in list(self.trials.values()) if t.value is not None and t.status != "failed"
        ]
        whole = [t for t in tried if t.status == "finished"]
        return max(whole or tried, key=lambda t: (sign * (t.value or 0.0), -t.number), default=None)


def _read(directory: RunDirectory, name: str) -> Trial:
    content = directory.read_json("trials", name)
    assert content is not None
    results = tuple(Heard(**each) for each in content.pop("results"))
    changes = tuple(Change(**each) for each in content.pop("changes"))
    return Trial(**content, results=results, changes=changes)

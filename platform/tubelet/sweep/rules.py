"""When a trial is stopped or changed: Ray Tune's schedulers, with the journal between them and the trials.

Every result is written down with the verdict on it before that is carried out. At a start all results are told to the
scheduler again in their order, which leaves it as it was: of successive halving every rung holds what it held. A
result that the journal has is not judged twice, so trials may repeat what they are not sure to have told.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar, cast

from ray import tune
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    PopulationBasedTraining,
    TrialScheduler,
)

from tubelet.sweep import grafting
from tubelet.sweep.journal import Change, Journal
from tubelet.sweep.recipe import Sweep
from tubelet.sweep.search import NUMBER, VALUE, names
from tubelet.sweep.space import Dimension
from tubelet.sweep.trials import Recipe, whole_epochs

EPOCHS = "epochs"
FAILED = "failed"
"""In a trial's last result: why it could not go on."""


class Halving:
    """Asynchronous successive halving over trials known by their numbers.

    Args:
        grace_epochs: first rung.
        epochs: of a whole trial.
        reduction: between rungs.
        mode: ``min`` or ``max``.
    """

    def __init__(self, *, grace_epochs: float, epochs: float, reduction: float, mode: str) -> None:
        self._asha = ASHAScheduler(
            time_attr=EPOCHS,
            metric=VALUE,
            mode=mode,
            max_t=epochs,  # type: ignore[arg-type]  # epochs are real numbers, which it compares only
            grace_period=grace_epochs,  # type: ignore[arg-type]
            reduction_factor=reduction,
            stop_last_trials=False,
        )
        self._known: set[int] = set()
        self._sign = 1 if mode == "max" else -1

    def judge(self, number: int, epochs: float, value: float) -> bool:
        """Whether a trial should stop at a result."""
        trial: Any = SimpleNamespace(trial_id=f"{number:05d}")
        if number not in self._known:
            self._known.add(number)
            self._asha.on_trial_add(None, trial)  # type: ignore[arg-type]  # it looks at the id only
        said = self._asha.on_trial_result(None, trial, {EPOCHS: epochs, VALUE: value})  # type: ignore[arg-type]
        return said == TrialScheduler.STOP

    @property
    def rungs(self) -> dict[float, dict[int, float]]:
        """Epochs of each rung, and the value that every trial had there."""
        (bracket,) = self._asha._brackets
        return {
            float(epochs): {int(name): self._sign * value for name, value in held.items()}
            for epochs, held in sorted(bracket._rungs, key=lambda rung: rung[0])
        }


class Never:
    """Lets every trial come to its end."""

    rungs: ClassVar[dict[float, dict[int, float]]] = {}

    def judge(self, number: int, epochs: float, value: float) -> bool:
        """Never."""
        return False


Judge = Halving | Never


def replay(journal: Journal, judge: Judge) -> None:
    """Tell a fresh judge everything that the journal has."""
    for trial, heard in journal.in_order():
        judge.judge(trial.number, heard.epochs, heard.value)


def take(journal: Journal, trial: Any, result: Mapping[str, Any], judge: Judge) -> bool | None:
    """Write a result down, judged; returns whether the trial stops, None where nothing was new."""
    number = trial.config[NUMBER]
    known = journal.trials[number]
    if result.get(FAILED):
        journal.update(number, status="failed", message=result[FAILED])
        return None
    if known.results and result["step"] <= known.results[-1].step:
        return None
    stop = judge.judge(number, result[EPOCHS], result[VALUE]) and not result["done"]
    journal.hear(number, step=result["step"], epochs=result[EPOCHS], value=result[VALUE], stop=stop)
    return stop


def end(journal: Journal, trial: Any, result: Mapping[str, Any]) -> None:
    """Write down how a trial ended."""
    number = trial.config[NUMBER]
    known = journal.trials[number]
    if known.status != "running":
        return
    if known.results and known.results[-1].stop:
        message = f"not among the best at epoch {known.epochs:g}"
        journal.update(number, status="stopped", message=message)
    else:
        journal.update(number, status="finished")


class Judged(FIFOScheduler):
    """Stops trials on a judge's word.

    Args:
        journal: of the sweep.
        judge: has been told what the journal has.
    """

    def __init__(self, journal: Journal, judge: Judge) -> None:
        super().__init__()
        self._journal, self._judge = journal, judge
        self._show()

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Called by Ray Tune at every result that is not the last."""
        stop = take(self._journal, trial, result, self._judge)
        self._show()
        return TrialScheduler.STOP if stop else TrialScheduler.CONTINUE

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Called by Ray Tune when a trial has come to its end, or was stopped."""
        take(self._journal, trial, result, self._judge)
        end(self._journal, trial, result)
        self._show()

    def _show(self) -> None:
        """Leave the rungs where people can look at them; nobody reads them back."""
        if self._judge.rungs:
            content = {f"{epochs:g}": held for epochs, held in self._judge.rungs.items()}
            self._journal.directory.write_json(content, "rungs.json")


@dataclass(frozen=True)
class _Bounds:
    """Keeps changed values inside the space (a factor of 1.2 knows no bounds)."""

    dimensions: tuple[Dimension, ...]

    def __call__(self, config: dict[str, Any]) -> dict[str, Any]:
        return {**config, **{d.key: d.clipped(config[d.key]) for d in self.dimensions}}


class Population(PopulationBasedTraining):
    """Population based training, with the journal.

    Args:
        journal: of the sweep.
        dimensions: of the space.
        mode: ``min`` or ``max``.
        options: of Ray Tune's class.
    """

    def __init__(
        self, journal: Journal, dimensions: list[Dimension], *, mode: str, **options: Any
    ) -> None:
        super().__init__(
            time_attr=EPOCHS,
            metric=VALUE,
            mode=mode,
            hyperparam_mutations={d.key: mutation(d) for d in dimensions},
            custom_explore_fn=_Bounds(tuple(dimensions)),
            log_config=False,
            **options,
        )
        self._journal, self._keys = journal, [d.key for d in dimensions]
        self._sign = 1 if mode == "max" else -1

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """A trial begins, or goes on (Ray refuses a searcher here; ours only draws at random)."""
        super().on_trial_add(cast(Any, SimpleNamespace(search_alg=None)), trial)
        state: Any = self._trial_state[trial]
        known = self._journal.trials[trial.config[NUMBER]]
        every = self._perturbation_interval
        for heard in known.results:  # what on_trial_result would have noted
            if heard.epochs - state.last_perturbation_time >= every:
                state.last_perturbation_time = state.last_train_time = heard.epochs
                state.last_score = self._sign * heard.value

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Called by Ray Tune at every result that is not the last."""
        if take(self._journal, trial, result, Never()) is None:
            return TrialScheduler.CONTINUE
        return super().on_trial_result(tune_controller, trial, result)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Called by Ray Tune when a trial has come to its end."""
        take(self._journal, trial, result, Never())
        end(self._journal, trial, result)

    def _exploit(self, tune_controller: Any, trial: Any, trial_to_clone: Any) -> None:
        number, source = trial.config[NUMBER], trial_to_clone.config[NUMBER]
        known, better = self._journal.trials[number], self._journal.trials[source]
        place = self._journal.graft(number, len(known.changes))
        step = grafting.set_aside(self._journal.run_of(better), place)
        if step is None:
            return  # too early: both go on as they are
        super()._exploit(tune_controller, trial, trial_to_clone)
        values = {key: trial.config[key] for key in self._keys}
        change = Change(known.epochs, better.run, step, values)
        known = self._journal.update(number, values=values, changes=(*known.changes, change))
        trial.set_config({**values, **names(known)})


def mutation(dimension: Dimension) -> Any:
    """Ray Tune's form of a dimension, for values drawn anew."""
    if not dimension.is_range:
        return list(dimension.values)
    low, high = dimension.values
    kinds = {
        "uniform": tune.uniform,
        "log_uniform": tune.loguniform,
        "integer": lambda a, b: tune.randint(a, b + 1),
        "log_integer": lambda a, b: tune.lograndint(a, b + 1),
    }
    return kinds[dimension.kind](low, high)


def scheduler(
    sweep: Sweep, recipe: Recipe, dimensions: list[Dimension], journal: Journal
) -> TrialScheduler:
    """What a sweep asks for, as the journal leaves it."""
    if sweep.scheduler == "pbt":
        return Population(
            journal,
            dimensions,
            mode=sweep.mode,
            perturbation_interval=sweep.pbt.every_epochs,
            quantile_fraction=sweep.pbt.quantile,
            resample_probability=sweep.pbt.resample,
        )
    judge = halving(sweep, recipe, dimensions) if sweep.scheduler == "asha" else Never()
    replay(journal, judge)
    return Judged(journal, judge)


def halving(sweep: Sweep, recipe: Recipe, dimensions: list[Dimension]) -> Halving:
    """The rungs of a sweep that has not begun."""
    return Halving(
        grace_epochs=sweep.asha.grace_epochs,
        epochs=max(whole_epochs(recipe, dimensions), sweep.asha.grace_epochs),
        reduction=sweep.asha.reduction,
        mode=sweep.mode,
    )

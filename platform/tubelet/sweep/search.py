"""What to try next: Ray Tune's Optuna searcher, made anew from the journal at every start.

The n-th suggestion follows from (seed, n, what is known by then), and from nothing that a process holds: the sampler
is seeded for each. So there is no state to save. Trials that a killed driver left unfinished are suggested first, with
their own values.
"""

import warnings
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from ray.tune.search.optuna import OptunaSearch

from tubelet.ledger import seed64
from tubelet.sweep.journal import Journal
from tubelet.sweep.journal import Trial as Known
from tubelet.sweep.space import Dimension

VALUE = "value"
"""Name of the metric in what trials tell Ray Tune."""
NUMBER = "trial"
"""Name of the trial's number in its configuration."""
GRAFTS = "grafts"
"""Name, there, of how often it has gone on from another trial's checkpoint."""


class JournalSearch(OptunaSearch):
    """Suggests values, and which trial gets them.

    Args:
        dimensions: of the space.
        journal: what is known; new trials are written there before anybody starts one.
        name: of the sweep; the trials' runs are named after it.
        kind: ``random`` or ``optuna``.
        mode: ``min`` or ``max``.
        seed: of the sweep.
    """

    def __init__(
        self,
        dimensions: list[Dimension],
        journal: Journal,
        *,
        name: str,
        kind: str,
        mode: str,
        seed: int,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        space = {d.key: distribution(d) for d in dimensions}
        super().__init__(space=space, metric=VALUE, mode=mode, sampler=_sampler(kind, seed, 0))
        self._choices = {d.key: d.values for d in dimensions if not d.is_range}
        self._journal, self._name, self._kind, self._run_seed = journal, name, kind, seed
        self._numbers: dict[str, int] = {}
        self._waiting: list[Known] = []
        self.closed = False
        """No more trials, since the driver is about to end."""
        for known in sorted(journal.trials.values(), key=lambda trial: trial.number):
            self._recall(known)

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Values for a trial that Ray Tune begins, and its number."""
        if self.closed:
            return None
        if self._waiting:
            known = self._waiting.pop(0)
            self._ot_trials[trial_id] = self._ot_trials.pop(_recalled(known.number))
            self._numbers[trial_id] = known.number
            return {**known.values, **names(known)}
        number = len(self._journal.trials)
        assert self._ot_study is not None
        self._ot_study.sampler = _sampler(self._kind, self._run_seed, number)
        drawn: dict[str, Any] = super().suggest(trial_id) or {}
        values = {key: self._value(key, value) for key, value in drawn.items()}
        known = self._journal.keep(Known(number, f"{self._name}-{number:05d}", values))
        self._numbers[trial_id] = number
        return {**values, **names(known)}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """A trial has ended; with ``error`` its process died once too often."""
        number = self._numbers[trial_id]
        if error:
            self._journal.update(
                number, status="failed", message="its process died again and again"
            )
        known = self._journal.trials[number]
        super().on_trial_complete(trial_id, _objective(known), error=known.status == "failed")

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: only how a trial ends counts."""

    def _recall(self, known: Known) -> None:
        """Make Optuna know a trial of the journal."""
        marks = {
            k: self._choices[k].index(v) if k in self._choices else v
            for k, v in known.values.items()
        }
        assert self._ot_study is not None
        self._ot_study.enqueue_trial(marks)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # values that an earlier start's space allowed
            super().suggest(_recalled(known.number))
        if known.status == "running":
            self._waiting.append(known)
        else:
            failed = known.status == "failed"
            super().on_trial_complete(_recalled(known.number), _objective(known), error=failed)

    def _value(self, key: str, drawn: Any) -> Any:
        return self._choices[key][drawn] if key in self._choices else drawn


def names(known: Known) -> dict[str, Any]:
    """What a trial's configuration holds beside its values."""
    return {NUMBER: known.number, GRAFTS: len(known.changes)}


def distribution(dimension: Dimension) -> BaseDistribution:
    """Optuna's form of a dimension; choices by their places, since they may be lists."""
    if not dimension.is_range:
        return CategoricalDistribution(range(len(dimension.values)))
    low, high = dimension.values
    if dimension.kind.endswith("integer"):
        return IntDistribution(low, high, log=dimension.is_log)
    return FloatDistribution(low, high, log=dimension.is_log)


def _sampler(kind: str, seed: int, number: int) -> optuna.samplers.BaseSampler:
    own = seed64(seed, number, 0, 0, 0, "sweep") % 2**32
    if kind == "random":
        return optuna.samplers.RandomSampler(seed=own)
    return optuna.samplers.TPESampler(seed=own)


def _objective(known: Known) -> dict[str, Any] | None:
    failed = known.status == "failed" or known.value is None
    return None if failed else {VALUE: known.value}


def _recalled(number: int) -> str:
    return f"recalled-{number}"

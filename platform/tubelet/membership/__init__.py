"""Ray Train as this project runs it: our own view of the cluster, our own verdicts, our hooks.

The only package that touches Ray's private interfaces; they were read in the version checked below. Ray Train's
controller does what it always does (start a group, poll it, shut it down); it asks us

    how many workers           ``scaling``    from nodes as they are, not from reservations
    what a failure means       ``failures``   a node taken away is none; the same step three times ends the run
    where a group resumes      ``attempts``   written down once, before it starts

and through ``group`` has workers save and hold before they are replaced, and ends those that no longer move.
"""

from typing import Any

import ray
from ray.train.torch import TorchTrainer

_READ_IN = "2.60."
if not ray.__version__.startswith(_READ_IN):
    raise ImportError(
        f"tubelet hooks into Ray {_READ_IN}x, found {ray.__version__}: install the pinned constraints"
    )

from tubelet.membership.attempts import Attempts, Reports  # noqa: E402  (after the check)
from tubelet.membership.failures import CountedFailures  # noqa: E402
from tubelet.membership.group import Group  # noqa: E402
from tubelet.membership.scaling import LiveScaling  # noqa: E402

__all__ = ["Attempts", "CountedFailures", "ElasticTrainer", "Group", "LiveScaling", "Reports"]


class ElasticTrainer(TorchTrainer):
    """Ray Train's trainer with our policies in place of its own.

    Args:
        scaling: how many workers.
        failures: what a failure means.
        options: of ``TorchTrainer``.
    """

    def __init__(
        self, *arguments: Any, scaling: LiveScaling, failures: CountedFailures, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self._scaling, self._failures = scaling, failures

    def _initialize_and_run_controller(self, **controller_init_kwargs: Any) -> Any:
        ours = {"scaling_policy": self._scaling, "failure_policy": self._failures}
        return super()._initialize_and_run_controller(**{**controller_init_kwargs, **ours})

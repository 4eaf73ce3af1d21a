"""The least held-out loss of a run, as it is carried from evaluation to evaluation."""

import json
from dataclasses import asdict

import pytest

from tubelet.best import Best


def after(*losses: float) -> Best:
    best = Best()
    for number, loss in enumerate(losses, start=1):
        best = best.after(10 * number, loss)
    return best


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ((), Best(None, 0, 0)),
        ((2.0,), Best(2.0, 10, 0)),
        ((2.0, 2.0, 3.0), Best(2.0, 10, 2)),
        ((2.0, 3.0, 1.0), Best(1.0, 30, 0)),
        ((float("nan"), 2.0), Best(2.0, 20, 0)),
        ((2.0, float("nan"), float("inf")), Best(2.0, 10, 2)),
        ((float("inf"),), Best(None, 0, 1)),
    ],
)
def test_only_a_smaller_number_is_better(losses: tuple[float, ...], best: Best) -> None:
    found = after(*losses)
    assert found == best
    assert Best(**json.loads(json.dumps(asdict(found), allow_nan=False))) == best


def test_patience_counts_evaluations_since_the_best() -> None:
    best = after(2.0, 3.0, 2.5)
    assert [best.exhausted(patience) for patience in (1, 2, 3, None)] == [True, True, False, False]

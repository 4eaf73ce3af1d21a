"""The rest of Ray Data's scheduling loop: taken when nothing is decoding, and only then."""

import time
from types import SimpleNamespace
from typing import Any

import pytest
from ray.data import DataContext

from tubelet import membership


def executor(*active: int) -> Any:
    """What the callback looks at: a topology of operators with so many tasks running."""
    operators = [
        SimpleNamespace(get_active_tasks=lambda count=count: [object()] * count) for count in active
    ]
    return SimpleNamespace(_topology=operators or None)


@pytest.mark.parametrize(("active", "rests"), [((0, 0), True), ((), True), ((0, 1), False)])
def test_the_loop_rests_when_no_task_is_running(
    monkeypatch: pytest.MonkeyPatch, active: tuple[int, ...], rests: bool
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    membership.Rest().on_execution_step(executor(*active))
    assert bool(slept) is rests
    assert all(0 < seconds <= 0.05 for seconds in slept), (
        "a trainer that is waiting must not notice"
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray's own defaults
def test_ray_data_still_takes_our_callback_and_has_what_it_reads() -> None:
    from ray.data._internal.execution.interfaces import PhysicalOperator
    from ray.data._internal.execution.streaming_executor import StreamingExecutor

    context = DataContext()
    context.custom_execution_callback_classes = [membership.Rest]
    assert membership.Rest in context.execution_callback_classes
    assert callable(PhysicalOperator.get_active_tasks)
    assert "_topology" in StreamingExecutor.__init__.__code__.co_names

"""How many workers, whether growing pays, when to give up: the decisions alone."""

import math
from typing import Any

import pytest

from tubelet.elasticity import (
    Failure,
    Node,
    Pace,
    growth_pays,
    reason_to_give_up,
    time_to_hold,
    workers_that_fit,
)


def node(cpus: float, *, gpus: float = 0.0, **more: Any) -> Node:
    return Node("id", "address", {"CPU": cpus, "GPU": gpus}, **more)


@pytest.mark.parametrize(
    ("nodes", "per_worker", "decode_cpus", "fit"),
    [
        ([node(4)], {"CPU": 1.0}, 1.0, 3),  # one stays for decoding
        ([node(4)], {"CPU": 1.0}, 0.0, 4),  # decoding has nodes of its own
        ([node(2), node(2)], {"CPU": 1.5}, 0.5, 2),  # no worker spans two nodes
        ([node(8, gpus=2), node(8, gpus=1)], {"CPU": 1.0, "GPU": 1.0}, 2.0, 3),
        ([node(2), node(2, answers=False), node(2, leaves_at_s=9.0)], {"CPU": 1.0}, 0.5, 1),
        ([node(0.9)], {"CPU": 0.3}, 0.0, 3),  # no rounding error
        ([node(100)], {"CPU": 1.0}, 1.0, 5),  # never more than the largest
        ([node(1)], {"CPU": 1.0}, 2.0, 0),
        ([], {"CPU": 1.0}, 1.0, 0),
    ],
)
def test_as_many_workers_as_usable_nodes_hold_beside_decoding(
    nodes: list[Node], per_worker: dict[str, float], decode_cpus: float, fit: int
) -> None:
    assert workers_that_fit(nodes, per_worker, largest=5, decode_cpus=decode_cpus) == fit


@pytest.mark.parametrize(
    ("now", "then", "left", "wait", "pays"),
    [
        (2, 4, 10_000, 0.0, True),  # 300 of the next 600 s, a restart costs 20
        (2, 4, 60, 0.0, False),  # 30 s to gain until the end
        (4, 5, 10_000, 0.0, False),  # 16 units take both four rounds
        (3, 4, 10_000, 0.0, True),  # six rounds become four
        (2, 4, 10_000, 0.95, False),  # workers only wait for data
    ],
)
def test_a_group_grows_when_that_saves_more_than_two_restarts(
    now: int, then: int, left: int, wait: float, pays: bool
) -> None:
    pace = Pace(step_s=1.0, restart_s=20.0, data_wait=wait)
    assert growth_pays(now, then, pace=pace, units_per_step=16, steps_left=left) is pays


def test_growth_looks_ten_minutes_ahead_and_no_further() -> None:
    pace = Pace(step_s=1.0, restart_s=151.0)
    assert not growth_pays(2, 4, pace=pace, units_per_step=16, steps_left=1_000_000)


def failures(*steps: int, charged: bool = True, slack: int = 1) -> list[Failure]:
    return [Failure(step, f"worker 0: broke at {step}", charged, slack) for step in steps]


def test_the_same_step_failing_three_times_ends_the_run_with_its_cause() -> None:
    assert reason_to_give_up(failures(41, 41), most=16) is None
    assert reason_to_give_up(failures(7, 41, 41, 41), most=16) == (
        "step 42 failed 3 times: worker 0: broke at 41"
    )


def test_a_step_that_is_known_roughly_counts_as_the_same() -> None:
    assert reason_to_give_up(failures(40, 43, 41), most=16) is None
    assert reason_to_give_up(failures(40, 43, 41, slack=3), most=16) is not None


def test_a_step_that_is_known_well_is_not_blurred_by_one_that_is_not() -> None:
    vague = failures(40, slack=30)
    assert reason_to_give_up([*failures(13, 26), *vague], most=16) is None
    assert reason_to_give_up([*vague, *failures(50, 50)], most=16) is not None


def test_a_run_that_moves_on_may_fail_as_often_as_the_recipe_says() -> None:
    assert reason_to_give_up(failures(10, 20, 30), most=3) is None
    assert reason_to_give_up(failures(10, 20, 30, 40), most=3) == (
        "workers failed 4 times, more than elastic.max_failures (3) allows: worker 0: broke at 40"
    )


def test_nodes_that_are_taken_away_are_no_failures() -> None:
    taken = failures(*[5] * 50, charged=False)
    assert reason_to_give_up(taken, most=0) is None
    assert reason_to_give_up([*failures(5, 5), *taken], most=16) is None


def test_saving_begins_when_the_time_left_is_what_it_needs() -> None:
    assert not time_to_hold(1030.0, now_s=1000.0, save_s=2.0)
    assert time_to_hold(1030.0, now_s=1000.0, save_s=8.0)
    assert time_to_hold(1012.0, now_s=1000.0, save_s=2.0)
    assert not time_to_hold(math.inf, now_s=1000.0, save_s=60.0)

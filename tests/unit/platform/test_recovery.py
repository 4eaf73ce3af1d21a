"""How recoveries are measured: by the group that replaces the lost one, and by nothing that the lost one still did."""

import pytest

from recovery import parts, recovery
from tubelet.run_directory import Attempt


def attempt(number: int, *, step: int, at: float) -> Attempt:
    return Attempt(number, step, None, 2, "driver", at)


def test_a_step_of_workers_that_die_slowly_is_no_recovery() -> None:
    steps = [(9.0, 19), (10.5, 20), (11.0, 21)]
    assert recovery(steps, [], fault_s=10.0) is None
    assert recovery(steps, [attempt(2, step=20, at=14.0)], fault_s=10.0) is None


def test_it_ends_with_the_first_step_beyond_all_that_was_reached() -> None:
    steps = [(9.0, 19), (10.5, 21), (20.0, 20), (20.0, 20), (20.5, 21), (21.0, 22), (21.5, 23)]
    found = recovery(steps, [attempt(2, step=20, at=14.0)], fault_s=10.0)
    assert found is not None
    assert (found.seconds, found.next_step_s, found.repeated) == (11.0, 10.0, 2)
    assert found.pause_s == 9.5


def test_a_group_that_goes_on_where_the_last_one_held_repeats_nothing() -> None:
    steps = [(9.0, 19), (12.0, 20), (20.0, 21)]
    found = recovery(steps, [attempt(2, step=21, at=14.0)], fault_s=10.0)
    assert found is not None
    assert (found.repeated, found.pause_s) == (0, 8.0)


def test_a_group_that_fails_before_its_first_step_counts_as_time_lost() -> None:
    steps = [(9.0, 19), (30.0, 20)]
    new = [attempt(2, step=20, at=14.0), attempt(3, step=20, at=24.0)]
    found = recovery(steps, new, fault_s=10.0)
    assert found is not None
    assert found.seconds == 20.0


def test_the_parts_of_a_recovery_are_all_of_it() -> None:
    steps = [(9.0, 19), (18.0, 19), (19.0, 20)]
    new = [attempt(2, step=19, at=12.0)]
    events = [{"event": "failure", "unix_s": 3.0}, {"event": "failure", "unix_s": 11.5}]
    starts = [(2.0, "load"), (16.0, "load"), (16.2, "load"), (16.5, "data"), (17.0, "data")]
    found = recovery(steps, new, fault_s=10.0)
    assert found is not None
    split = parts(new, events, starts, fault_s=10.0, found=found)
    assert split == {
        "detection": 1.5,
        "group start": 0.5,
        "train fn": 4.2,
        "restore": 0.8,
        "first step": 1.0,
        "steps again": 1.0,
    }
    assert sum(split.values()) == pytest.approx(found.seconds)

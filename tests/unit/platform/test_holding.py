"""A worker's side of being replaced."""

import pytest

from tubelet import holding, pulse


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "_POLL_S", 0.0)


def test_a_worker_that_holds_says_so_until_the_run_is_to_stop() -> None:
    answers = iter([False, False, True])
    holding.hold(7, until=lambda: next(answers))
    assert (pulse.read().step, pulse.read().phase) == (7, "hold")


def test_a_worker_that_nobody_replaces_ends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "_LONGEST_S", 0.0)
    with pytest.raises(holding.HeldTooLongError, match=r"saved at step 7 and held for 0 s in vain"):
        holding.hold(7, until=lambda: False)


def test_stacks_name_every_thread_and_where_it_is() -> None:
    text = holding.stacks()
    assert text.startswith("thread ") or "\nthread " in text
    assert "MainThread" in text
    assert "test_stacks_name_every_thread_and_where_it_is" in text


def test_each_beat_can_be_told_from_the_one_before() -> None:
    before = pulse.read()
    pulse.beat(3, "forward")
    pulse.beat(3, "forward")
    after = pulse.read()
    assert (after.step, after.phase, after.beats) == (3, "forward", before.beats + 2)
    assert after.at_s >= before.at_s

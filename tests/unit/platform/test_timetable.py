"""The stream's arithmetic against writing the whole stream down."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tubelet.timetable import Item, Timetable, rounds

timetables = st.builds(
    Timetable,
    steps=st.integers(1, 40),
    units_per_step=st.integers(1, 6),
    held_out_units=st.integers(0, 4),
    evaluate_every=st.integers(1, 50),
)


def written_down(table: Timetable) -> list[list[Item]]:
    """The items of every step, evaluations at the end of the step that asks for them."""
    stream: list[list[Item]] = []
    unit = 0
    for step in range(table.steps):
        items: list[Item] = []
        for _ in range(table.units_per_step):
            items.append(Item(step, unit, held_out=False))
            unit += 1
        due = (step + 1) % table.evaluate_every == 0 or step + 1 == table.steps
        if due:
            items += [Item(step + 1, n, held_out=True) for n in range(table.held_out_units)]
        stream.append(items)
    return stream


@settings(max_examples=400)
@given(timetables)
def test_items_are_those_of_the_stream_written_down(table: Timetable) -> None:
    steps = written_down(table)
    stream = [item for items in steps for item in items]
    assert table.items == len(stream)
    assert [table.item(n) for n in range(table.items)] == stream
    before = 0
    for step, items in enumerate(steps):
        assert table.first_item(step) == before
        assert table.evaluates_after(step + 1) == any(i.held_out for i in items)
        before += len(items)
    assert table.first_item(table.steps) == before


def test_nothing_is_evaluated_before_the_first_step() -> None:
    assert not Timetable(
        steps=4, units_per_step=1, held_out_units=1, evaluate_every=2
    ).evaluates_after(0)


@given(timetables)
def test_a_place_outside_the_stream_is_an_error(table: Timetable) -> None:
    for number in (-1, table.items):
        with pytest.raises(
            IndexError, match=f"item {number} lies outside the stream's {table.items}"
        ):
            table.item(number)


@given(st.integers(0, 200), st.integers(1, 20))
def test_rounds_are_what_the_busiest_rank_runs(items: int, world_size: int) -> None:
    dealt = [len(range(rank, items, world_size)) for rank in range(world_size)]
    assert rounds(items, world_size) == max(dealt)

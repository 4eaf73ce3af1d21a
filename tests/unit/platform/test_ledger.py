"""The plan of a run: every (epoch, row) once, whatever the world sizes, and an order that never changes."""

import hashlib
import math
import struct
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tubelet.ledger import Ledger, Part, permute, seed64, unit_seed
from tubelet.timetable import Timetable


@st.composite
def parts_of(draw: st.DrawFn, *, most_rows: int) -> Part:
    rows = draw(st.integers(1, most_rows))
    weight = draw(st.one_of(st.integers(1, 3).map(float), st.floats(1 / rows, 3.0)))
    return Part(rows, weight)


@st.composite
def ledgers(draw: st.DrawFn, *, most_rows: int = 40) -> Ledger:
    micro = draw(st.integers(1, 9))
    rows = draw(st.integers(1, most_rows))
    parts = tuple(draw(st.lists(parts_of(most_rows=most_rows // 3), max_size=3)))
    return Ledger(
        rows=sum(part.rows for part in parts) or rows,
        epochs=draw(st.integers(1, 4)),
        batch=micro * draw(st.integers(1, 6)),
        micro_batch=micro,
        seed=draw(st.integers(0, 2**62)),
        draws=draw(st.integers(1, 2)),
        parts=parts,
    )


def visited(ledger: Ledger, units: Iterator[int] | range) -> Counter[tuple[int, int, int]]:
    """How often each (epoch, index, visit) occurs among the valid positions of ``units``."""
    seen: Counter[tuple[int, int, int]] = Counter()
    for number in units:
        unit = ledger.unit(number)
        columns = (unit.epoch, unit.index, unit.visit)
        seen.update(zip(*(c[unit.valid].tolist() for c in columns), strict=True))
    return seen


@given(ledgers())
def test_a_steps_visits_are_its_valid_positions(ledger: Ledger) -> None:
    counts = [
        sum(
            ledger.unit(step * ledger.units_per_step + n).valid.sum()
            for n in range(ledger.units_per_step)
        )
        for step in range(ledger.steps)
    ]
    assert [ledger.visits_in(step) for step in range(ledger.steps)] == counts
    assert sum(counts) == ledger.visits


@given(ledgers())
def test_the_step_after_an_epoch_is_the_first_that_begins_in_another(ledger: Ledger) -> None:
    begins = [
        int(ledger.unit(step * ledger.units_per_step).epoch[0]) for step in range(ledger.steps)
    ]
    for step, epoch in enumerate(begins):
        later = (s for s in range(step + 1, ledger.steps) if begins[s] != epoch)
        assert ledger.epoch_after(step) == next(later, ledger.steps)


def units(ledger: Ledger) -> range:
    return range(ledger.steps * ledger.units_per_step)


@settings(max_examples=150)
@given(ledgers())
def test_every_row_is_visited_as_often_as_its_weight_says_in_every_epoch_of_every_draw(
    ledger: Ledger,
) -> None:
    seen = visited(ledger, units(ledger))
    assert set(seen.values()) == {1}, "a visit is repeated"
    assert len(seen) == ledger.visits == ledger.draws * ledger.epochs * ledger.visits_per_epoch
    for epoch in range(ledger.draws * ledger.epochs):
        first = 0
        for part in ledger.parts or (Part(ledger.rows),):
            rows = range(first, first + part.rows)
            numbers = {row: sorted(v for e, r, v in seen if (e, r) == (epoch, row)) for row in rows}
            floor = math.floor(part.weight)
            assert {len(n) for n in numbers.values()} <= {floor, floor + 1}
            assert all(n == list(range(len(n))) for n in numbers.values())
            more = sum(len(n) - floor for n in numbers.values())
            assert more == round((part.weight - floor) * part.rows)
            first += part.rows


def test_the_choice_for_a_fraction_differs_between_epochs_and_is_fair_over_many() -> None:
    parts = (Part(7), Part(60, 1.25), Part(8, 0.5))
    ledger = Ledger(rows=75, epochs=400, batch=86, micro_batch=86, seed=4, parts=parts)
    assert ledger.visits_per_epoch == 7 + 75 + 4 == ledger.batch
    chosen: Counter[int] = Counter()
    choices: set[frozenset[int]] = set()
    for number in units(ledger):
        unit = ledger.unit(number)
        again = frozenset(unit.index[unit.visit == 1].tolist())
        assert len(again) == 15
        assert again <= set(range(7, 67))
        chosen.update(again)
        choices.add(again)
    assert len(choices) == ledger.epochs
    spread = np.array([chosen[row] for row in range(7, 67)])
    assert spread.sum() == 15 * 400
    assert 60 < spread.min() <= spread.max() < 145, (
        "100 of 400 epochs each, give or take five deviations"
    )


def test_the_order_of_a_mixture_is_the_one_that_was_published() -> None:
    # Never to be changed, like the orders below: a run goes on in its order.
    parts = (Part(4, 1.5), Part(3, 2.0))
    ledger = Ledger(rows=7, epochs=2, batch=12, micro_batch=12, seed=3, parts=parts)
    first, second = ledger.unit(0), ledger.unit(1)
    assert first.index.tolist() == [5, 3, 4, 1, 0, 0, 2, 1, 6, 6, 5, 4]
    assert first.visit.tolist() == [1, 0, 1, 1, 0, 1, 0, 0, 0, 1, 0, 0]
    assert second.index.tolist() == [4, 4, 6, 5, 3, 0, 2, 5, 0, 6, 1, 1]
    assert second.visit.tolist() == [0, 1, 1, 0, 0, 1, 0, 1, 0, 0, 1, 0]


@given(ledgers().filter(lambda ledger: not ledger.parts))
def test_one_part_of_weight_one_changes_nothing(ledger: Ledger) -> None:
    mixed = Ledger(**{**vars(ledger), "parts": (Part(ledger.rows),)})
    for number in units(ledger):
        for field, array in vars(ledger.unit(number)).items():
            np.testing.assert_array_equal(array, getattr(mixed.unit(number), field))


def test_weights_that_give_no_visit_are_refused() -> None:
    for rows, weight in ((10, 0.04), (10, -1.0), (10, 0.0)):
        with pytest.raises(
            ValueError, match=rf"weight {weight:g} of {rows} rows gives no visit in an epoch; leave"
        ):
            Part(rows, weight)
    with pytest.raises(ValueError, match="the parts hold other rows than 5"):
        Ledger(rows=5, epochs=1, batch=4, micro_batch=2, seed=0, parts=(Part(4),))


@settings(max_examples=150)
@given(ledgers())
def test_positions_count_on_and_only_the_last_step_of_a_draw_is_padded(ledger: Ledger) -> None:
    plans = [ledger.unit(n) for n in units(ledger)]
    position = np.concatenate([p.position for p in plans])
    assert position.tolist() == list(range(ledger.steps * ledger.batch))
    valid = np.concatenate([p.valid for p in plans])
    assert valid.tolist() == [ledger.is_valid(p) for p in range(len(valid))]
    per_draw = valid.reshape(ledger.draws, ledger.steps_per_draw, ledger.batch)
    assert per_draw[:, :-1].all(), "a step before the last one is padded"
    last = ledger.epochs * ledger.visits_per_epoch - (ledger.steps_per_draw - 1) * ledger.batch
    assert 1 <= last <= ledger.batch
    assert (per_draw[:, -1] == (np.arange(ledger.batch) < last)).all(), "padding comes last"
    draw = np.concatenate([p.draw for p in plans]).reshape(ledger.draws, -1)
    assert (draw == np.arange(ledger.draws)[:, None]).all()
    index = np.concatenate([p.index for p in plans])
    assert (index[~valid] == 0).all()


@settings(max_examples=100)
@given(ledgers(), st.data())
def test_epochs_pass_in_order_and_a_unit_may_straddle_them(
    ledger: Ledger, data: st.DataObject
) -> None:
    unit = ledger.unit(data.draw(st.sampled_from(units(ledger))))
    per_draw = ledger.steps_per_draw * ledger.batch
    for position, valid, epoch in zip(unit.position, unit.valid, unit.epoch, strict=True):
        draw, local = divmod(int(position), per_draw)
        if valid:
            assert epoch == draw * ledger.epochs + local // ledger.visits_per_epoch


starts = st.tuples(st.integers(1, 7), st.floats(0, 1), st.floats(0, 1))
"""A start of a worker group: its size, when it dies and how much of that a checkpoint kept (as shares)."""


@settings(max_examples=1000)
@given(
    ledgers(most_rows=20),
    st.lists(starts, max_size=5),
    st.integers(1, 7),
    st.tuples(st.integers(0, 3), st.integers(1, 7)),
)
def test_any_path_of_world_sizes_and_resume_points_consumes_every_position_once(
    ledger: Ledger,
    deaths: list[tuple[int, float, float]],
    last_size: int,
    evaluation: tuple[int, int],
) -> None:
    """Workers die and come back in other numbers; only what a checkpoint kept counts."""
    timetable = Timetable(ledger.steps, ledger.units_per_step, *evaluation)
    kept: list[int] = []
    step = 0
    for world_size, dies, keeps in [*deaths, (last_size, 1.0, 1.0)]:
        reached = step + round(dies * (ledger.steps - step))
        commit = step + round(keeps * (reached - step))
        first = timetable.first_item(step)
        ranks: list[list[int]] = [[] for _ in range(world_size)]
        for number in range(first, timetable.first_item(commit)):
            item = timetable.item(number)
            if not item.held_out:
                assert step <= item.step < commit
                ranks[(number - first) % world_size].append(item.number)
        assert all(rank == sorted(rank) for rank in ranks)
        kept += [number for rank in ranks for number in rank]
        step = commit
    assert sorted(kept) == list(units(ledger))
    seen = visited(ledger, iter(kept))
    assert set(seen.values()) == {1}
    assert len(seen) == ledger.visits


@given(ledgers(), st.data())
def test_a_unit_is_the_same_whoever_asks_and_whatever_was_asked_before(
    ledger: Ledger, data: st.DataObject
) -> None:
    number = data.draw(st.sampled_from(units(ledger)))
    fresh = Ledger(**vars(ledger))
    for other in range(number):
        ledger.unit(other)
    for field, array in vars(ledger.unit(number)).items():
        np.testing.assert_array_equal(array, getattr(fresh.unit(number), field))


@pytest.mark.parametrize(
    "rows", [*range(1, 70), 127, 128, 129, 1000, 1023, 1024, 1025, 4097, 65537]
)
def test_the_order_of_an_epoch_is_a_permutation(rows: int) -> None:
    for seed, epoch in ((0, 0), (0, 1), (2**62, 799), (5, -1)):
        assert sorted(permute(np.arange(rows), rows, seed, epoch).tolist()) == list(range(rows))


def test_a_large_range_is_permuted_piecewise_without_collisions() -> None:
    rows = 3_000_000_017
    offsets = np.concatenate([np.arange(20_000), np.arange(rows - 20_000, rows)])
    out = permute(offsets, rows, 9, 4)
    assert len(np.unique(out)) == len(offsets)
    assert out.min() >= 0
    assert out.max() < rows


@pytest.mark.parametrize("rows", [2, 3, 5, 8, 16, 48])
def test_rows_come_at_every_place_equally_often(rows: int) -> None:
    epochs = 2000
    orders = np.array([permute(np.arange(rows), rows, 3, e) for e in range(epochs)])
    counts = np.array([np.bincount(orders[:, place], minlength=rows) for place in range(rows)])
    expected = epochs / rows
    freedom = (rows - 1) ** 2
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < freedom + 6 * (2 * freedom) ** 0.5 + 6


GOLDEN_ORDERS = {  # never to be changed: a run that resumes under a newer release must go on in its order
    (1, 0, 0): [0],
    (2, 0, 0): [1, 0],
    (10, 0, 0): [2, 4, 1, 9, 5, 6, 3, 0, 8, 7],
    (10, 0, 1): [2, 6, 3, 1, 4, 5, 0, 9, 8, 7],
    (10, 7, 0): [0, 6, 1, 8, 2, 3, 9, 7, 5, 4],
    (17, 2**40 + 3, 5): [2, 8, 10, 0, 7, 16, 11, 3, 9, 15, 5, 12, 1, 13, 14, 4, 6],
}


@pytest.mark.parametrize(("rows", "seed", "epoch"), GOLDEN_ORDERS)
def test_the_order_is_the_one_that_was_published(rows: int, seed: int, epoch: int) -> None:
    assert permute(np.arange(rows), rows, seed, epoch).tolist() == GOLDEN_ORDERS[rows, seed, epoch]


def test_the_order_of_large_manifests_is_the_one_that_was_published() -> None:
    kinetics = permute(np.array([0, 1, 2, 239_999]), 240_000, 0, 0)
    assert kinetics.tolist() == [120242, 130228, 140172, 33327]
    huge = permute(np.array([0, 1, 2, 2_999_999_999]), 3_000_000_000, 42, 799)
    assert huge.tolist() == [527771914, 1377101128, 1511059995, 2379733831]


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ((0, 0, 0, 0, 0, "clip"), 0x25B24C204E19C8A0),
        ((0, 0, 0, 0, 0, "mask"), 0x1E8C818A0F650D00),
        ((0, 0, 0, 0, 1, "clip"), 0xC3533310FFA7B69B),
        ((0, 0, 0, 1, 0, "clip"), 0x9B3B9AAE73D097A4),
        ((0, 0, 1, 0, 0, "clip"), 0x6A8BE31F743EFE01),
        ((0, 1, 0, 0, 0, "clip"), 0x0D97EB91ABAFEEB7),
        ((1, 0, 0, 0, 0, "clip"), 0x4C31EB21390AB7D8),
        ((2**62, 799, 10**9, 3, 15, "mask"), 0x32CE8C9539EEFE44),
    ],
)
def test_seeds_are_those_that_were_published(
    key: tuple[int, int, int, int, int, str], expected: int
) -> None:
    assert seed64(*key) == expected


def test_unit_seeds_are_those_that_were_published() -> None:
    assert [unit_seed(0, 0), unit_seed(0, 1), unit_seed(5, 123456)] == [
        0x21B71E730CBF70EF,
        0xAE564C4DD63E93F3,
        0xAA5D897247F38C77,
    ]


def test_the_permutation_is_the_network_that_its_description_says() -> None:
    """Written once more in Python's own integers, from the text of the module alone."""
    bits64 = (1 << 64) - 1

    def mix(x: int) -> int:
        x = (x + 0x9E3779B97F4A7C15) & bits64
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & bits64
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & bits64
        return x ^ (x >> 31)

    def walk(offset: int, rows: int, seed: int, epoch: int) -> int:
        half = max(1, ((rows - 1).bit_length() + 1) // 2)
        digest = hashlib.blake2b(struct.pack("<qq", seed, epoch), digest_size=48).digest()
        while True:
            left, right = offset >> half, offset & ((1 << half) - 1)
            for key in struct.unpack("<6Q", digest):
                left, right = right, left ^ (mix(right ^ key) & ((1 << half) - 1))
            offset = left << half | right
            if offset < rows:
                return offset

    for rows, seed, epoch in ((3, 1, 2), (100, 5, 0), (1000, 2**50, 7)):
        expected = [walk(o, rows, seed, epoch) for o in range(rows)]
        assert permute(np.arange(rows), rows, seed, epoch).tolist() == expected


def test_a_unit_outside_the_run_is_an_error() -> None:
    ledger = Ledger(rows=5, epochs=1, batch=4, micro_batch=2, seed=0)
    assert ledger.steps * ledger.units_per_step == 4
    for number in (-1, 4):
        with pytest.raises(IndexError, match=f"unit {number} lies outside the run's 4"):
            ledger.unit(number)


def test_impossible_plans_are_refused() -> None:
    good: dict[str, Any] = {
        "rows": 5,
        "epochs": 1,
        "batch": 4,
        "micro_batch": 2,
        "seed": 0,
        "draws": 1,
    }
    for name in ("rows", "epochs", "batch", "micro_batch", "draws"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            Ledger(**{**good, name: 0})
    with pytest.raises(
        ValueError, match=r"batch.size \(4\) must be a multiple of batch.micro \(3\)"
    ):
        Ledger(**{**good, "micro_batch": 3})


@settings(max_examples=1000)
@given(
    ledger=ledgers(),
    held_out=st.integers(0, 3),
    every=st.integers(1, 5),
    path=st.lists(st.tuples(st.integers(1, 7), st.integers(0, 6)), max_size=6),
)
def test_whatever_sizes_a_run_goes_through_and_wherever_it_resumes_each_position_counts_once(
    ledger: Ledger, held_out: int, every: int, path: list[tuple[int, int]]
) -> None:
    """Workers take items as the feed deals them out; what a group did after its last checkpoint is dropped.

    ``path`` is one entry an attempt: how many workers, and how many steps it commits; the last one goes to the end.
    """
    timetable = Timetable(ledger.steps, ledger.units_per_step, held_out, every)
    step, kept = 0, Counter[int]()
    for workers, commits in [*path, (len(path) % 5 + 1, ledger.steps)]:
        first = timetable.first_item(step)
        queues = [iter(range(first + rank, timetable.items, workers)) for rank in range(workers)]
        for done in range(step, min(step + commits, ledger.steps)):
            for item in dealt(queues, timetable.first_item(done), ledger.units_per_step, first):
                unit = timetable.item(item)
                assert (unit.step, unit.held_out) == (done, False)
                visits = ledger.unit(unit.number)
                kept.update(visits.position[visits.valid].tolist())
            if timetable.evaluates_after(done + 1):
                at = timetable.first_item(done + 1) - held_out
                judged = [timetable.item(i) for i in dealt(queues, at, held_out, first)]
                assert sorted(u.number for u in judged) == list(range(held_out))
        step = min(step + commits, ledger.steps)
    assert step == ledger.steps
    assert kept == Counter(p for p in range(ledger.steps * ledger.batch) if ledger.is_valid(p))


def dealt(queues: list[Iterator[int]], start: int, count: int, first: int) -> list[int]:
    """The items that all ranks take for a step or an evaluation, each from its own queue, in its order."""
    taken = []
    for rank, queue in enumerate(queues):
        mine = [i for i in range(start, start + count) if (i - first) % len(queues) == rank]
        received = [next(queue) for _ in mine]
        assert received == mine
        taken += received
    return taken

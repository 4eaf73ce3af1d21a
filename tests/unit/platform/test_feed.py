"""A rank's units: the expected ones or an error, dealt out so that every item arrives once, nothing pinned."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clips import ClipConfig, DecodeConfig, Manifest, synthetic, write_manifest
from motion import TINY_VIDEO, motion_manifest
from tubelet.feed import Feed, Unit
from tubelet.items import Batch, DataPlan, decode_item, load_item
from tubelet.ledger import Ledger
from tubelet.quarantine import Quarantine
from tubelet.timetable import Item, Timetable


def plan_of(steps: int = 4, units: int = 3, held_out: int = 0, every: int = 2) -> DataPlan:
    """A plan whose items are made up: nothing is decoded."""
    ledger = Ledger(rows=2 * units, epochs=steps, batch=2 * units, micro_batch=2, seed=0)
    timetable = Timetable(ledger.steps, units, held_out, every)
    return DataPlan(
        ledger=ledger,
        timetable=timetable,
        table=None,  # pyright: ignore[reportArgumentType]: nothing is looked up
        rows=(np.arange(2 * units),),
        held_out_rows=np.arange(2 * held_out),
        copies=1,
        clip=ClipConfig(),
        decode=DecodeConfig(),
        frames=2,
        size=4,
    )


def batch_of(number: int, attempt: int = 1, count: int = 2) -> dict[str, Any]:
    return {
        "item": np.full(count, number),
        "attempt": np.full(count, attempt),
        **{n: np.zeros(count) for n in ("decode_s", "read_bytes", "requests")},
        "frames": np.full((count, 2, 4, 4, 3), number % 256, np.uint8),
        "label": np.zeros(count, np.int64),
        **{n: np.full(count, "", dtype=object) for n in ("reason", "kind", "stage")},
        "valid": np.ones(count, bool),
        **{n: np.full(count, number) for n in ("position", "epoch", "row", "visit", "copy")},
    }


def feed_of(
    plan: DataPlan, batches: Iterator[Batch], *, step: int = 0, rank: int = 0, world_size: int = 1
) -> Feed:
    return Feed(
        plan,
        batches,
        start_step=step,
        attempt=1,
        rank=rank,
        world_size=world_size,
        device=torch.device("cpu"),
        make_masks=lambda seeds: (None, None),
        quarantine=Quarantine(plan.ledger),
    )


@settings(max_examples=60)
@given(
    world_size=st.integers(1, 7),
    units=st.integers(1, 5),
    held_out=st.integers(0, 4),
    every=st.integers(1, 3),
    start=st.integers(0, 3),
)
def test_every_item_reaches_one_rank_and_ranks_keep_pace(
    world_size: int, units: int, held_out: int, every: int, start: int
) -> None:
    plan = plan_of(units=units, held_out=held_out, every=every)
    first = plan.timetable.first_item(start)
    received: list[int] = []
    paces = []
    for rank in range(world_size):
        mine = (batch_of(i) for i in range(first + rank, plan.timetable.items, world_size))
        feed = feed_of(plan, mine, step=start, rank=rank, world_size=world_size)
        pace = []
        for step in range(start, plan.timetable.steps):
            groups = [list(feed.training_units(step))]
            assert len(groups[0]) == feed.training_rounds
            if plan.timetable.evaluates_after(step + 1):
                groups.append(list(feed.held_out_units(step + 1)))
            for group in groups:
                pace.append(len(group))
                received += [int(u.source["position"][0]) for u in group if u.source]
                assert all(not u.valid_B.any() for u in group if not u.source)
        paces.append(pace)
    assert sorted(received) == list(range(first, plan.timetable.items))
    assert all(pace == paces[0] for pace in paces)


def test_an_item_out_of_order_is_an_error_that_names_both() -> None:
    feed = feed_of(plan_of(), iter([batch_of(0), batch_of(2)]))
    with pytest.raises(
        RuntimeError, match=r"expected item 1 of attempt 1 with 2 clips, got items \{2\}"
    ):
        list(feed.training_units(0))


def test_an_item_of_another_attempt_is_an_error() -> None:
    feed = feed_of(plan_of(), iter([batch_of(0, attempt=2)]))
    with pytest.raises(RuntimeError, match=r"of attempts \{2\}"):
        list(feed.training_units(0))


def test_a_unit_with_too_few_clips_is_an_error() -> None:
    feed = feed_of(plan_of(), iter([batch_of(0, count=1)]))
    with pytest.raises(RuntimeError, match=r"with 2 clips, got .* with 1"):
        list(feed.training_units(0))


def test_a_feed_that_ends_early_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="ended before item 0: rank 0 of 1"):
        list(feed_of(plan_of(), iter([])).training_units(0))


def test_units_keep_nothing_of_the_transports_memory() -> None:
    batches = [batch_of(i) for i in range(3)]
    for batch in batches:
        for array in batch.values():
            array.flags.writeable = False  # as views of the object store are
    units: list[Unit] = list(feed_of(plan_of(), iter(batches)).training_units(0))
    for unit, batch in zip(units, batches, strict=True):
        assert not np.shares_memory(unit.frames_BTHWC.numpy(), batch["frames"])
        assert not any(
            np.shares_memory(a, batch[n]) for n, a in unit.source.items() if n != "reason"
        )


def test_an_undecodable_video_keeps_its_place_with_its_reason(tmp_path: Path) -> None:
    manifest = motion_manifest(tmp_path / "videos", training=6, broken=[1])
    plan = plan_of()
    plan = DataPlan(
        **{**vars(plan), "table": manifest.local_table(str(tmp_path)), "frames": 4, "size": 16}
    )
    loaded = [load_item(plan, Item(0, unit, held_out=False)) for unit in range(3)]
    rows = np.concatenate([item["row"] for item in loaded])
    valid = np.concatenate([item["valid"] for item in loaded])
    reasons = np.concatenate([item["reason"] for item in loaded])
    assert sorted(rows) == list(range(6))
    (bad,) = np.flatnonzero(~valid)
    assert manifest.video(int(rows[bad])).video_id in reasons[bad]
    frames = np.concatenate([item["frames"] for item in loaded])
    assert not frames[bad].any()
    assert all(frames[i].any() for i in np.flatnonzero(valid))


def test_an_item_is_stamped_with_its_number_and_attempt(tmp_path: Path) -> None:
    manifest = motion_manifest(tmp_path / "videos", training=6)
    plan = plan_of()
    plan = DataPlan(
        **{**vars(plan), "table": manifest.local_table(str(tmp_path)), "frames": 4, "size": 16}
    )
    made = decode_item(5, plan=plan, attempt=7, out={})
    assert set(made["item"]) == {5}
    assert set(made["attempt"]) == {7}
    assert {len(column) for column in made.values()} == {plan.clips_per_unit}


def test_several_labels_of_a_video_arrive_as_one_row_of_classes(tmp_path: Path) -> None:
    paths = synthetic.write_videos(tmp_path / "v", range(3), seed=1, config=TINY_VIDEO)
    named: list[dict[str, Any]] = [
        {"labels": ["run", "sing"]},
        {"label": "jump"},
        {"labels": ["jump"]},
    ]
    rows = [
        {"video_id": path, "size": (tmp_path / "v" / path).stat().st_size, **labels}
        for path, labels in zip(paths, named, strict=True)
    ]
    manifest = write_manifest(
        Manifest.build(rows, root=str(tmp_path / "v")), str(tmp_path / "m.parquet")
    )
    plan = replace(
        plan_of(steps=1, units=2),
        ledger=Ledger(rows=3, epochs=1, batch=4, micro_batch=2, seed=0),
        timetable=Timetable(1, 2),
        table=manifest.local_table(str(tmp_path)),
        rows=(np.arange(3),),
        clip=ClipConfig(stride=1),
        copies=2,
        size=16,
        classes=3,
    )
    items = [decode_item(n, plan=plan, attempt=1, out={}) for n in range(2)]
    units = list(feed_of(plan, iter(items)).training_units(0))
    wanted = {0: [0, 1, 1], 1: [1, 0, 0], 2: [1, 0, 0]}  # jump, run, sing
    for unit in units:
        assert unit.labels_BK is not None
        assert "labels" not in unit.source, "the audit has no use for them"
        for row, valid, labels in zip(
            unit.source["row"], unit.source["valid"], unit.labels_BK.tolist(), strict=True
        ):
            assert labels == (wanted[row] if valid else [0, 0, 0])
    idle = next(feed_of(plan, iter([]), rank=2, world_size=3).training_units(0))
    assert idle.labels_BK is not None
    assert idle.labels_BK.shape == (4, 3)

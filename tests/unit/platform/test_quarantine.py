"""What a run knows of videos it cannot decode: the same whoever met them, in whatever order it is told."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tubelet import quarantine
from tubelet.ledger import Ledger
from tubelet.quarantine import Entry, Failure, Quarantine, merged
from tubelet.run_directory import RunDirectory
from tubelet.timetable import Item

LEDGER = Ledger(rows=10, epochs=4, batch=4, micro_batch=2, seed=0)


class Names:
    def video(self, row: int) -> Any:
        return type("Video", (), {"video_id": f"v{row}.mp4"})


def failure(step: int, row: int, reason: str, position: int = 0) -> Failure:
    return Failure(step, position, 0, row, f"v{row}.mp4", reason, "process", "why", False)


def source_of(rows: list[int], kinds: list[str] | None = None) -> dict[str, Any]:
    kinds = kinds or [""] * len(rows)
    reason = [
        f"v{row}.mp4: {kind}: why" if kind else "" for row, kind in zip(rows, kinds, strict=True)
    ]
    return {
        "row": np.array(rows),
        "position": np.arange(len(rows)),
        "copy": np.zeros(len(rows), np.int64),
        "valid": np.array([not kind for kind in kinds]),
        "reason": np.array(reason, dtype=object),
        "kind": np.array(kinds, dtype=object),
        "stage": np.array(["decoding" if kind else "" for kind in kinds], dtype=object),
    }


@given(
    rows=st.integers(1, 50),
    epochs=st.integers(1, 4),
    batch=st.integers(1, 40),
    draws=st.integers(1, 3),
)
def test_the_next_epoch_begins_after_the_step_and_at_most_an_epoch_later(
    rows: int, epochs: int, batch: int, draws: int
) -> None:
    ledger = Ledger(rows=rows, epochs=epochs, batch=batch, micro_batch=1, seed=0, draws=draws)
    for step in range(ledger.steps):
        after = ledger.epoch_after(step)
        assert step < after <= step + -(-rows // batch)
        local = after % ledger.steps_per_draw
        assert local == 0 or (local - 1) * batch // rows < local * batch // rows
    assert sum(ledger.visits_in(s) for s in range(ledger.steps)) == ledger.visits


def test_a_harmful_file_is_out_from_the_next_epoch_and_others_never() -> None:
    found = merged({}, [failure(1, 5, "crashed"), failure(1, 6, "corrupt")], LEDGER)
    assert (found[5].from_step, found[6].from_step) == (3, None)  # 10 rows, 4 a step
    later = merged(found, [failure(4, 6, "timeout"), failure(4, 5, "quarantined")], LEDGER)
    assert later[5] == replace(found[5], clips=2)
    assert (later[6].reason, later[6].clips, later[6].first_step) == ("timeout", 2, 1)
    assert later[6].from_step == 5


@given(
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 3), st.booleans()), unique=True),
    st.randoms(),
)
def test_the_order_of_telling_does_not_matter_and_neither_does_telling_in_parts(
    met: list[tuple[int, int, bool]], chance: random.Random
) -> None:
    failures = [
        failure(s, r, "crashed" if h else "corrupt", position=p) for p, (s, r, h) in enumerate(met)
    ]
    expected = merged({}, failures, LEDGER)
    shuffled = chance.sample(failures, len(failures))
    assert merged({}, shuffled, LEDGER) == expected
    first = [f for f in shuffled if f.step < 5]  # as a commit at step 5 and a resume would have it
    rest = [f for f in shuffled if f.step >= 5]
    assert merged(merged({}, first, LEDGER), rest, LEDGER) == expected


def test_a_clip_of_a_video_that_is_out_weighs_nothing_even_where_a_task_decoded_it() -> None:
    known = Quarantine(LEDGER, merged({}, [failure(0, 5, "crashed")], LEDGER).values())
    before = source_of([5, 6])
    known.admit(Item(2, 4, held_out=False), before, Names())  # pyright: ignore[reportArgumentType]
    assert before["valid"].tolist() == [True, True]
    unit = source_of([5, 6, 7], ["", "", "corrupt"])
    known.admit(Item(3, 6, held_out=False), unit, Names())  # pyright: ignore[reportArgumentType]
    assert unit["valid"].tolist() == [False, True, False]
    assert unit["reason"][0] == "v5.mp4: quarantined: it cost decoders their processes"
    told = known.take_unshared()
    assert [(f.row, f.reason, f.message) for f in told] == [
        (5, "quarantined", "quarantined: it cost decoders their processes"),
        (7, "corrupt", "corrupt: why"),
    ]
    assert known.take_unshared() == []
    known.add(told)
    assert (known.clips, known.entries[5].clips, known.entries[7].video_id) == (3, 2, "v7.mp4")


def test_held_out_videos_are_listed_but_do_not_count_for_the_budget() -> None:
    known = Quarantine(LEDGER)
    known.admit(Item(2, 0, held_out=True), source_of([3], ["corrupt"]), Names())  # pyright: ignore[reportArgumentType]
    known.add(known.take_unshared())
    assert (known.entries[3].held_out, known.clips) == (True, 0)


def test_entries_travel_with_the_checkpoint_of_their_name(tmp_path: Path) -> None:
    run = RunDirectory(str(tmp_path))
    entries = list(
        merged({}, [failure(1, 5, "crashed"), failure(1, 6, "corrupt")], LEDGER).values()
    )
    quarantine.write(run, "step_0000000001-a00001", entries)
    assert quarantine.read(run, "step_0000000001-a00001") == entries
    assert quarantine.known_out(entries) == {5: 3}
    assert quarantine.summary(entries) == "2 videos could not be decoded (1 crashed, 1 corrupt)"
    assert quarantine.read(run, "step_0000000009-a00001") == []
    assert quarantine.read(run, None) == []
    quarantine.write(run, "step_0000000002-a00001", [])
    assert [p.name for p in (tmp_path / "quarantine").iterdir()] == [
        "step_0000000001-a00001.parquet"
    ]


def test_entry_columns_are_those_of_the_file() -> None:
    assert [f.name for f in quarantine._SCHEMA] == list(Entry.__dataclass_fields__)

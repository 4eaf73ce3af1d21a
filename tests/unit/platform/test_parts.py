"""Parts of predictions: which videos go together, and what is still true of what lies in a folder."""

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clips import storage
from tubelet.parts import Gathering, Key, Part, Parts, deal


def video(number: int, *, size: int = 7, etag: str | None = "e") -> Key:
    return Key(f"{number:04d}.mp4", None, None, size, etag)


VIDEOS = [video(n) for n in range(100)]


def predicted(*videos: Key) -> list[dict[str, Any]]:
    return [{**v._asdict(), "labels": ["up"], "probabilities": [1.0]} for v in videos]


def undecodable(reason: str, *videos: Key) -> list[dict[str, Any]]:
    return [{**v._asdict(), "reason": reason, "message": "why"} for v in videos]


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "out")
    fsspec.filesystem("memory").store.clear()
    return "memory://bucket/out"


def names_in(parts: Parts) -> list[str]:
    return [name for table in parts.predicted() for name in table["video_id"].to_pylist()]


@given(st.sets(st.integers(0, 99)), st.integers(32, 99))
def test_every_video_that_is_left_is_in_one_part(done: set[int], count: int) -> None:
    videos = VIDEOS[:count]
    parts = deal(videos, [video(n) for n in done])
    rows = [row for part in parts for row in part.rows]
    assert rows == [n for n in range(count) if n not in done]
    assert len({part.name for part in parts}) == len(parts)


def test_the_same_work_has_the_same_names_after_parts_of_it_are_done() -> None:
    first = deal(VIDEOS, [])
    done = [VIDEOS[row] for row in first[1].rows]
    assert deal(VIDEOS, done, taken=[first[1].name]) == [p for p in first if p != first[1]]


def test_other_videos_make_other_names() -> None:
    names = [
        {part.name for part in deal(videos, [])}
        for videos in (VIDEOS, VIDEOS[1:], [*VIDEOS[:-1], video(99, etag="new")])
    ]
    assert all(a.isdisjoint(b) for a, b in itertools.combinations(names, 2))


def test_a_name_that_is_taken_is_not_given_again() -> None:
    (first, *_) = deal(VIDEOS, [])
    (again, *_) = deal(VIDEOS, VIDEOS[:10], taken=[first.name, f"{first.name}-1"])
    assert again.name == f"{first.name}-2"
    assert again.rows == tuple(range(10, 32))


def test_there_are_at_most_two_thousand_parts() -> None:
    parts = deal([video(n) for n in range(200_001)], [])
    assert len(parts) == 1981
    assert {len(part.rows) for part in parts[:-1]} == {101}


@given(st.permutations(range(6)))
def test_rows_in_any_order_come_back_part_by_part(order: list[int]) -> None:
    parts = [Part("a", (0, 2, 3)), Part("b", (1, 4, 5))]
    gathering, made = Gathering(parts), []
    for row in order:
        made += list(gathering.add({row: f"row {row}"}))
    assert sorted(made, key=lambda pair: pair[0].name) == [
        (parts[0], ["row 0", "row 2", "row 3"]),
        (parts[1], ["row 1", "row 4", "row 5"]),
    ]


def test_a_row_that_comes_twice_counts_once() -> None:
    gathering = Gathering([Part("a", (0, 1))])
    assert list(gathering.add({0: "x"})) == []
    assert list(gathering.add({0: "x"})) == []
    assert list(gathering.add({1: "y"})) == [(Part("a", (0, 1)), ["x", "y"])]


def test_what_is_written_is_settled(folder: str) -> None:
    parts = Parts(folder)
    assert parts.settled(VIDEOS) == set()
    parts.write("part-x-00000", predicted(*VIDEOS[:3]), undecodable("corrupt", VIDEOS[3]))
    parts.write("part-x-00001", predicted(*VIDEOS[4:6]), [])
    assert parts.names() == ["part-x-00000", "part-x-00001"]
    assert parts.settled(VIDEOS) == set(VIDEOS[:6])
    assert names_in(parts) == [v.video_id for v in (*VIDEOS[:3], *VIDEOS[4:6])]
    assert parts.undecodable()["video_id"].to_pylist() == ["0003.mp4"]


def test_a_part_without_its_predictions_is_not_there(folder: str) -> None:
    parts = Parts(folder)
    parts.write("part-x-00000", predicted(VIDEOS[0]), undecodable("corrupt", VIDEOS[1]))
    storage.remove(f"{folder}/predictions/part-x-00000.parquet")
    storage.write_bytes(f"{folder}/predictions/.part-x-00001.parquet.draft", b"half")
    assert parts.settled(VIDEOS) == set()
    assert len(parts.undecodable()) == 0


def test_videos_that_have_changed_or_gone_are_taken_out(folder: str) -> None:
    parts = Parts(folder)
    parts.write("part-x-00000", predicted(*VIDEOS[:4]), undecodable("corrupt", *VIDEOS[4:6]))
    now = [VIDEOS[0], video(1, size=8), video(2, etag="new"), video(5, etag="new")]
    assert parts.settled(now) == {VIDEOS[0]}
    assert names_in(parts) == ["0000.mp4"]
    assert len(parts.undecodable()) == 0


@pytest.mark.parametrize(("retry", "left"), [(False, ["0001.mp4"]), (True, [])])
def test_what_was_undecodable_for_a_moment_is_tried_again_and_the_rest_when_asked(
    folder: str, retry: bool, left: list[str]
) -> None:
    parts = Parts(folder)
    bad: Iterable[dict[str, Any]] = (
        *undecodable("corrupt", VIDEOS[1]),
        *undecodable("io", VIDEOS[2]),
    )
    parts.write("part-x-00000", predicted(VIDEOS[0]), list(bad))
    done = parts.settled(VIDEOS[:3], retry=retry)
    assert sorted(v.video_id for v in done) == ["0000.mp4", *left]
    assert parts.undecodable()["video_id"].to_pylist() == left


def test_a_whole_folder_reads_as_one_table(tmp_path: Path) -> None:
    parts = Parts(str(tmp_path))
    parts.write("part-x-00000", predicted(VIDEOS[0]), [])
    parts.write("part-x-00001", [], undecodable("corrupt", VIDEOS[1]))
    (tmp_path / "predictions" / ".part-x-00002.parquet.draft").write_bytes(b"half")
    assert pq.read_table(parts.uri)["labels"].to_pylist() == [["up"]]
    parts.clear()
    assert parts.names() == []

"""Copies in shards: which videos go where, whole shards or none, and videos that cannot be copied."""

import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from clips import DecodeConfig, DecodeError, Entry, Rejected, open_video
from clips.shard_copies import Shard, deal, make_shard
from clips.synthetic import Encoding, encode, numbered_frames, read_number
from clips.transcode import Encoder

SMALL = Encoder(short_side=48, preset="ultrafast")
DECODE = DecodeConfig(seconds=60)
MIB = 1 << 20


def test_videos_are_dealt_in_order_and_each_once() -> None:
    sizes = {"a": 400, "c": 700, "b": 500, "d": 3000, "e": 1, "f": 2}
    shards = deal([Entry(name, size << 10) for name, size in sizes.items()], megabytes=1)
    assert [(s.video_id, [e.video_id for e in s.entries]) for s in shards] == [
        ("00000.tar", ["a", "b"]),
        ("00001.tar", ["c"]),
        ("00002.tar", ["d"]),
        ("00003.tar", ["e", "f"]),
    ]


@pytest.fixture
def shard(tmp_path: Path) -> Shard:
    names = ("x/a.mp4", "x/b.c.mp4", "y/d.avi")
    (tmp_path / "in" / "x").mkdir(parents=True)
    (tmp_path / "in" / "y").mkdir()
    entries: list[Entry] = []
    for number, name in enumerate(names):
        avi = Encoding(codec="mpeg4", container="avi")
        frames = numbered_frames(10 + number, width=96, height=64)
        data = encode(frames, avi if name.endswith("avi") else Encoding())
        (tmp_path / "in" / name).write_bytes(data)
        entries.append(Entry(name, len(data), "e", label="7"))
    return Shard("00000.tar", tuple(entries))


def make(shard: Shard, tmp_path: Path, encoder: Encoder = SMALL) -> list[Any]:
    target = str(tmp_path / "out")
    return make_shard(
        shard, root=str(tmp_path / "in"), target=target, encoder=encoder, decode=DECODE
    )


def test_a_shard_holds_every_copy_at_its_offset_with_its_label(
    shard: Shard, tmp_path: Path
) -> None:
    rows = make(shard, tmp_path)
    assert [row["source"] for row in rows] == [entry.video_id for entry in shard.entries]
    assert [row["video_id"] for row in rows] == [
        "00000.tar/x/a.mp4",
        "00000.tar/x/b%2Ec.mp4",
        "00000.tar/y/d%2Eavi.mp4",
    ]
    for number, row in enumerate(rows):
        uri = f"{tmp_path}/out/{row['video_id']}"
        with open_video(uri, size=row["size"], offset=row["offset"]) as reader:
            (clip,) = reader.read([range(reader.frames)])  # pyright: ignore
        assert [read_number(frame) for frame in clip] == list(range(10 + number))
        assert row["frames"] == 10 + number
        assert row["psnr_db"] > 20
    with tarfile.open(tmp_path / "out" / "00000.tar") as tar:
        names = tar.getnames()
        told = json.load(tar.extractfile("x/a.json"))  # pyright: ignore
    assert names[:2] == ["x/a.json", "x/a.mp4"]
    assert told == {"label": "7", "source": "x/a.mp4"}


def test_a_finished_shard_is_kept_and_a_stale_or_broken_one_is_not(
    shard: Shard, tmp_path: Path
) -> None:
    first = make(shard, tmp_path)
    path = tmp_path / "out" / "00000.tar"
    data, seen = path.read_bytes(), path.stat().st_mtime_ns
    assert make(shard, tmp_path) == [{**row, "kept": True} for row in first]
    assert path.stat().st_mtime_ns == seen

    def made_anew() -> bool:
        rows = make(shard, tmp_path)
        return [{**row, "etag": None} for row in rows] == [{**row, "etag": None} for row in first]

    path.write_bytes(data[:-1])
    assert made_anew()
    assert path.read_bytes() == data, "the same videos give the same bytes"
    path.unlink()
    assert made_anew()
    (tmp_path / "out" / "00000.tar.json").write_text("{}")
    assert made_anew()
    other = Encoder(short_side=32, preset="ultrafast")
    assert {row["height"] for row in make(shard, tmp_path, other)} == {32}
    fewer = Shard(shard.video_id, shard.entries[:2])
    assert len(make(fewer, tmp_path)) == 2


def test_a_video_that_cannot_be_copied_costs_itself_and_is_remembered(
    shard: Shard, tmp_path: Path
) -> None:
    (tmp_path / "in" / "x" / "b.c.mp4").write_bytes(b"text" * 100)
    made = make(shard, tmp_path)
    assert [m["source"] for m in made if not isinstance(m, Rejected)] == ["x/a.mp4", "y/d.avi"]
    (rejected,) = (m for m in made if isinstance(m, Rejected))
    assert (rejected.video_id, rejected.reason) == ("x/b.c.mp4", "corrupt")
    assert rejected in make(shard, tmp_path)


def test_an_interrupted_shard_leaves_nothing(
    shard: Shard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("clips.disposable.call", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(shard, tmp_path)
    assert os.listdir(tmp_path / "out") == []
    monkeypatch.undo()
    assert len(make(shard, tmp_path)) == 3


def test_a_video_that_kills_its_process_costs_itself(
    shard: Shard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clips import disposable

    real = disposable.call

    def call(function: Any, entry: Entry, *rest: Any, decode: DecodeConfig) -> Any:
        if entry.video_id == "x/a.mp4":
            raise DecodeError("crashed", "its decoder was ended by SIGSEGV, 2 times")
        return real(function, entry, *rest, decode=decode)

    monkeypatch.setattr(disposable, "call", call)
    made = make(shard, tmp_path)
    assert [m.reason for m in made if isinstance(m, Rejected)] == ["crashed"]
    assert len(made) == 3

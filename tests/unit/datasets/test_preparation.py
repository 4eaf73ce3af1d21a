"""The steps of a scan, without Ray: what is looked at again, what is kept, what stays when it ends early."""

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from clips import Manifest, StorageError, read_manifest, storage, write_manifest
from clips.earlier import Parts, read_rejected, result_of
from clips.ingest import Entry, Rejected, examine
from clips.manifest import SCHEMA
from clips.preparation import PrepareConfig, Progress, ScanStopped, compare, find, look
from clips.settling import Prepared, settle
from clips.storage.errors import storage_error
from clips.synthetic import Encoding, encode, numbered_frames

FOUND = {
    **{"container": "mp4", "codec": "h264", "pixel_format": "yuv420p", "width": 64, "height": 48},
    **{"rotation": 0, "fps": 25.0, "frames": 250, "duration_s": 10.0, "keyframe_spacing": 12},
}


def glance(entry: Entry, **_: Any) -> dict[str, Any] | Rejected:
    """A look inside that opens nothing: names tell."""
    for reason in ("corrupt", "io"):
        if reason in entry.video_id:
            return Rejected(entry.video_id, reason, "as its name says")
    return {**vars(entry), **FOUND}


class Scan:
    """Scans of one folder, and which videos each has looked at."""

    def __init__(self, folder: Path) -> None:
        self.source, self.manifest = folder / "in", folder / "m.parquet"
        self.looked: list[str] = []

    def put(self, **files: str) -> None:
        for name, content in files.items():
            path = self.source / f"{name}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)

    def config(self, **options: Any) -> PrepareConfig:
        asked: dict[str, Any] = {"source": str(self.source), "manifest": str(self.manifest)}
        return PrepareConfig(**asked | options)

    def run(
        self,
        look_inside: Callable[..., Any] = glance,
        *,
        progress: Callable[[Progress], None] | None = None,
        **options: Any,
    ) -> Prepared:
        config = self.config(**options)
        self.looked = []
        plan = compare(config, find(config))
        look(config, plan, spread=self.spread, examine=look_inside, progress=progress)
        return settle(config, plan)

    def spread(
        self, items: Any, work: Callable[[Any], Any], *, total: int, seconds: Any
    ) -> Iterator[list[tuple[Any, Any]]]:
        for count, item in enumerate(items, 1):
            assert count <= total
            assert seconds(item) > 0
            self.looked.append((item if isinstance(item, Entry) else item.entry).video_id)
            yield [(item, work(item))]

    def left(self) -> list[str]:
        return sorted(path.name for path in self.manifest.parent.iterdir())


@pytest.fixture
def scan(tmp_path: Path) -> Scan:
    return Scan(tmp_path)


def counts(prepared: Prepared) -> tuple[int, int, int, int]:
    return prepared.new, prepared.changed, prepared.unchanged, prepared.removed


# --- incremental ---------------------------------------------------------------------------


def test_only_new_and_changed_videos_are_looked_at_again_and_those_that_are_gone_go(
    scan: Scan,
) -> None:
    scan.put(a="1", b="22", c="333", corrupt="x")
    first = scan.run()
    assert scan.looked == ["a.mp4", "b.mp4", "c.mp4", "corrupt.mp4"]
    assert (first.before, counts(first)) == (False, (4, 0, 0, 0))
    again = scan.run()
    assert scan.looked == []
    assert (again.before, counts(again), again.hash) == (True, (0, 0, 4, 0), first.hash)
    assert again.manifest == first.manifest
    assert (
        again.rejected
        == first.rejected
        == (Rejected("corrupt.mp4", "corrupt", "as its name says"),)
    )

    scan.put(b="changed", d="new")
    os.utime(scan.source / "c.mp4", ns=(5, 5))  # written again, as long as before
    (scan.source / "a.mp4").unlink()
    third = scan.run()
    assert scan.looked == ["b.mp4", "c.mp4", "d.mp4"]
    assert counts(third) == (1, 2, 1, 1)
    assert third.summary() == (
        "compared with the manifest before: 1 new, 2 changed, 1 gone, 1 unchanged\n"
        f"3 videos accepted, 1 rejected, 0 classes: {scan.manifest} (hash {third.hash[:12]})"
    )
    assert third.manifest.table["video_id"].to_pylist() == ["b.mp4", "c.mp4", "d.mp4"]
    assert third.manifest.table["size"].to_pylist() == [7, 3, 3]
    assert scan.left() == ["in", "m.parquet", "m.rejected.parquet"]


def test_rejected_files_are_tried_again_when_they_have_changed_or_that_is_asked(
    scan: Scan,
) -> None:
    scan.put(a="1", corrupt="x", io="x")
    scan.run()
    scan.run()
    assert scan.looked == ["io.mp4"], "what could not be read says nothing of its bytes"
    scan.run(retry_rejected=True)
    assert scan.looked == ["corrupt.mp4", "io.mp4"]
    scan.put(corrupt="other")
    scan.run()
    assert scan.looked == ["corrupt.mp4", "io.mp4"]
    scan.run(fresh=True)
    assert scan.looked == ["a.mp4", "corrupt.mp4", "io.mp4"]
    assert counts(scan.run(lambda entry, **_: {**vars(entry), **FOUND}, fresh=True)) == (1, 0, 2, 0)


def test_labels_splits_and_spans_change_without_a_look(scan: Scan) -> None:
    scan.put(**{"run/a": "1", "run/b": "2", "jump/c": "3"})
    plain = scan.run()
    other = scan.run(labels="folders", split=0.5, clips_per_minute=12)
    assert scan.looked == []
    assert counts(other) == (0, 0, 3, 0)
    assert (other.classes, other.videos, other.rows) == (("jump", "run"), 3, 6)
    assert "\n3 videos (6 rows) accepted, 0 rejected, 2 classes: " in other.summary()
    table = other.manifest.table
    assert table["start_s"].to_pylist() == [0.0, 5.0] * 3
    assert table["end_s"].to_pylist() == [5.0, None] * 3
    splits = table["split"].to_pylist()
    assert splits[::2] == splits[1::2], "spans of a video stay on one side"
    assert other.hash != plain.hash
    assert scan.run().hash == plain.hash


def test_a_data_set_that_has_moved_is_looked_at_again_only_where_the_etag_tells_nothing(
    scan: Scan, tmp_path: Path
) -> None:
    scan.put(a="1", b="2")
    first = scan.run()
    shutil.copytree(scan.source, tmp_path / "moved")  # with the files' times
    scan.source = tmp_path / "moved"
    moved = scan.run()
    assert (scan.looked, counts(moved)) == ([], (0, 0, 2, 0))
    assert (moved.hash, moved.manifest.root) == (first.hash, str(tmp_path / "moved"))

    rows = [{**row, "etag": None} for row in moved.manifest.table.to_pylist()]
    write_manifest(Manifest.build(rows, root="/elsewhere"), str(scan.manifest))
    scan.run()
    assert scan.looked == ["a.mp4", "b.mp4"]


def test_a_manifest_of_another_tool_that_lacks_columns_is_completed(scan: Scan) -> None:
    scan.put(a="1", b="2")
    rows = scan.run().manifest.table.to_pylist()
    rows[1]["duration_s"] = None
    write_manifest(Manifest.build(rows, root=str(scan.source)), str(scan.manifest))
    made = scan.run(clips_per_minute=12)
    assert scan.looked == ["b.mp4"]
    assert (made.rows, counts(made)) == (4, (0, 0, 2, 0))


def test_a_content_hash_sees_a_change_that_time_and_size_hide(scan: Scan) -> None:
    scan.put(a="1", b="2", corrupt="x")
    looks: list[str] = []

    def look_inside(entry: Entry, **how: Any) -> Any:
        looks.append(entry.video_id)
        return glance(entry, **how)

    first = scan.run(look_inside, content_hash=True)
    assert all(tag.startswith("blake2b:") for tag in first.manifest.table["etag"].to_pylist())
    assert looks == ["a.mp4", "b.mp4", "corrupt.mp4"]
    times = os.stat(scan.source / "b.mp4")
    scan.put(b="3")
    os.utime(scan.source / "b.mp4", ns=(times.st_atime_ns, times.st_mtime_ns))
    looks.clear()
    second = scan.run(look_inside, content_hash=True)
    assert scan.looked == ["a.mp4", "b.mp4", "corrupt.mp4"], "all are read"
    assert looks == ["b.mp4"], "and only the one whose bytes are others is looked into"
    assert counts(second) == (0, 1, 2, 0)
    looks.clear()
    scan.run(look_inside, content_hash=True, retry_rejected=True)
    assert looks == ["corrupt.mp4"]


# --- interrupted ---------------------------------------------------------------------------


def interrupted_at(name: str, error: BaseException) -> Callable[..., Any]:
    def look_inside(entry: Entry, **how: Any) -> Any:
        if entry.video_id == name:
            raise error
        return glance(entry, **how)

    return look_inside


def test_ctrl_c_keeps_what_was_looked_at_and_the_same_command_goes_on(scan: Scan) -> None:
    scan.put(a="1", b="2", c="3", corrupt="x", d="4")
    with pytest.raises(KeyboardInterrupt):
        scan.run(interrupted_at("d.mp4", KeyboardInterrupt()))
    assert scan.left() == ["in", "m.parts"]
    plan = compare(scan.config(), find(scan.config()))
    assert (plan.videos, plan.resumed, plan.known, len(plan.todo)) == (5, 4, 0, 1)
    assert plan.summary() == "5 videos: 4 done by the scan that was interrupted, 1 to look at"
    resumed = scan.run()
    assert scan.looked == ["d.mp4"]
    assert (resumed.rows, resumed.reasons) == (4, {"corrupt": 1})
    assert scan.left() == ["in", "m.parquet", "m.rejected.parquet"]
    (scan.manifest).unlink()
    assert scan.run().hash == resumed.hash, "as if it had never been interrupted"


def test_a_scan_that_goes_on_sees_what_has_changed_meanwhile(scan: Scan) -> None:
    scan.put(a="1", b="2", c="3")
    with pytest.raises(KeyboardInterrupt):
        scan.run(interrupted_at("c.mp4", KeyboardInterrupt()))
    scan.put(a="changed")
    (scan.source / "b.mp4").unlink()
    resumed = scan.run()
    assert scan.looked == ["a.mp4", "c.mp4"]
    assert resumed.manifest.table["size"].to_pylist() == [7, 1]


def test_a_storage_that_fails_ends_the_scan_and_rejects_nothing(scan: Scan) -> None:
    scan.put(a="1", b="2", c="3")
    scan.run()
    scan.put(d="4", e="5", f="6")
    lost = storage_error("unreachable", "s3://videos/e.mp4", "ConnectionError")
    with pytest.raises(ScanStopped) as caught:
        scan.run(interrupted_at("e.mp4", lost))
    assert str(caught.value) == (
        "cannot reach the storage of s3://videos/e.mp4 (ConnectionError); check the network, and AWS_ENDPOINT_URL; "
        "1 of 3 videos were looked at until then and are kept: the same command goes on from there"
    )
    assert len(read_manifest(str(scan.manifest))) == 3, "the manifest before stays"
    assert read_rejected(str(scan.manifest.parent / "m.rejected.parquet")) == []
    assert scan.run().rows == 6
    assert scan.looked == ["e.mp4", "f.mp4"]


def test_what_was_asked_anew_goes_on_too_and_never_from_less(scan: Scan) -> None:
    scan.put(a="1", b="2", corrupt="x")
    with pytest.raises(KeyboardInterrupt):
        scan.run(interrupted_at("corrupt.mp4", KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):  # everything again, until here
        scan.run(interrupted_at("b.mp4", KeyboardInterrupt()), fresh=True)
    assert scan.looked == ["a.mp4", "b.mp4"]
    scan.run(fresh=True)
    assert scan.looked == ["b.mp4", "corrupt.mp4"]

    with pytest.raises(KeyboardInterrupt):
        scan.run(interrupted_at("corrupt.mp4", KeyboardInterrupt()), fresh=True)
    scan.run(retry_rejected=True)
    assert scan.looked == ["corrupt.mp4"]


def test_parts_are_few_for_a_long_scan_and_lose_little(tmp_path: Path) -> None:
    now = 0.0
    parts = Parts(str(tmp_path / "m.parquet"), root="/d", clock=lambda: now)
    written: list[float] = []
    for second in range(5_000):
        now = float(second)
        entry = Entry(f"{second:06d}.mp4", 1, "e")
        parts.add([result_of(entry, {**vars(entry), **FOUND})])
        if len(os.listdir(parts.folder) if second > 4 else []) > len(written):
            written.append(now)
    gaps = [after - before for before, after in itertools.pairwise(written)]
    assert 100 < len(written) < 200
    assert all(gap <= 6 + when / 40 for gap, when in zip(gaps, written[1:], strict=True))
    parts.write()
    assert len(parts.read()) == 5_000
    assert parts.read().ends() == ("000000.mp4", "004999.mp4")
    parts.remove()
    assert not Path(parts.folder).exists()
    assert len(parts.read()) == 0


def test_two_scans_of_one_manifest_do_not_mix_silently(scan: Scan) -> None:
    scan.put(a="1", b="2")
    config = scan.config()
    plan = compare(config, find(config))
    look(config, plan, spread=scan.spread, examine=glance)
    scan.run()  # goes on with what the first has found, and clears it away
    scan.manifest.unlink()
    with pytest.raises(
        ValueError, match=r"m.parts no longer has what this scan has found: does another"
    ):
        settle(config, plan)


def test_what_a_killed_writer_left_among_the_parts_is_passed_over(scan: Scan) -> None:
    scan.put(a="1", b="2")
    with pytest.raises(KeyboardInterrupt):
        scan.run(interrupted_at("b.mp4", KeyboardInterrupt()))
    (scan.manifest.parent / "m.parts" / ".x.parquet.a1b2").write_bytes(b"half")
    (scan.manifest.parent / "m.parts" / "1.trial").touch()
    scan.run()
    assert scan.looked == ["b.mp4"]


def test_progress_is_told_while_millions_are_compared_and_written(
    scan: Scan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clips.sources._TOLD_EVERY", 2)
    scan.put(a="1", b="2", c="3", d="4", e="5")
    config = scan.config()
    seen: list[int] = []
    states: list[Progress] = []
    plan = compare(config, find(config), progress=seen.append)
    look(config, plan, spread=scan.spread, examine=glance, progress=states.append)
    settle(config, plan, progress=seen.append)
    assert seen == [2, 4, 2, 4]
    assert states[-1] == Progress(kept=5, rejected=0)


# --- what a source says of its rows --------------------------------------------------------


def test_a_span_behind_the_end_is_rejected_and_others_of_the_video_stay(scan: Scan) -> None:
    scan.put(a="1", b="2")
    listing = scan.source / "l.csv"
    listing.write_text("path,start_s,end_s\na.mp4,2,4\na.mp4,11,12\na.mp4,1,9\nb.mp4,,\nc.mp4,,\n")
    made = scan.run(source=str(listing), clips_per_minute=30)
    rows = made.manifest.table.select(["video_id", "start_s", "end_s"]).to_pylist()
    assert [tuple(row.values()) for row in rows] == [
        *[("a.mp4", 1.0, 5.0 - 1.333), ("a.mp4", 2.0, 4.0)],
        *[("a.mp4", 3.667, 6.333), ("a.mp4", 6.333, 9.0)],
        *[("b.mp4", 0.0, 3.333), ("b.mp4", 3.333, 6.667), ("b.mp4", 6.667, None)],
    ]
    assert made.rejected == (
        Rejected("a.mp4", "missing_frames", "its span starts at 11 s, but the video lasts 10.0 s"),
        Rejected("c.mp4", "missing", "the list names it, but it is not there"),
    )
    assert (made.videos, made.rows) == (2, 7)
    listing.write_text("path,start_s,end_s\na.mp4,2,4\na.mp4,3,12\nb.mp4,,\n")
    assert scan.run(source=str(listing)).reasons == {}
    assert scan.looked == []


def test_splits_are_drawn_by_name_and_those_given_are_kept(scan: Scan) -> None:
    scan.put(**{f"v{i:03d}": "x" for i in range(200)}, **{"test/t": "x"})
    table = scan.run(labels="none", split=0.1).manifest.table
    splits = table["split"].to_pylist()
    assert 5 < splits.count("val") < 40
    assert set(splits) == {"train", "val"}
    for name in [f"v{i:03d}" for i in range(200)]:
        (scan.source / "c").mkdir(exist_ok=True)
        (scan.source / f"{name}.mp4").rename(scan.source / "c" / f"{name}.mp4")
    (scan.source / "test" / "c").mkdir()
    (scan.source / "test" / "t.mp4").rename(scan.source / "test" / "c" / "t.mp4")
    table = scan.run(labels="folders", split=0.1).manifest.table
    assert table["split"].to_pylist()[-1] == "test"


def test_no_usable_video_names_the_reasons_and_keeps_the_manifest_before(scan: Scan) -> None:
    scan.put(a="1")
    before = scan.run().manifest
    (scan.source / "a.mp4").unlink()
    scan.put(corrupt1="x", corrupt2="x")
    with pytest.raises(
        ValueError,
        match=r"^none of the 2 videos of .*/in can be used \(2 corrupt\); each is listed",
    ):
        scan.run()
    assert read_manifest(str(scan.manifest)) == before
    assert scan.left() == ["in", "m.parquet", "m.rejected.parquet"]


# --- places --------------------------------------------------------------------------------


def test_a_bucket_holds_source_manifest_and_parts(s3: Any, scan: Scan) -> None:
    s3.buckets["videos"] = {f"set/{n}.mp4": b"x" * n for n in range(1, 5)}
    place: dict[str, Any] = {"source": "s3://videos/set", "manifest": "s3://videos/lists/m.parquet"}
    with pytest.raises(KeyboardInterrupt):
        scan.run(interrupted_at("3.mp4", KeyboardInterrupt()), **place)
    (part,) = [key for key in s3.buckets["videos"] if key.startswith("lists/")]
    assert part.startswith("lists/m.parts/")
    made = scan.run(**place)
    assert scan.looked == ["3.mp4", "4.mp4"]
    assert made.manifest.table["etag"].to_pylist() == ["1", "2", "3", "4"]
    lists = {key for key in s3.buckets["videos"] if key.startswith("lists/")}
    assert lists == {"lists/m.parquet", "lists/m.rejected.parquet"}
    scan.run(**place)
    assert scan.looked == []


def test_a_manifest_that_cannot_be_written_shows_before_anything_is_listed(
    s3: Any, scan: Scan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan.put(a="1")
    (tmp_path / "file").write_text("text")
    (tmp_path / "folder.parquet").mkdir()
    cases = {
        str(
            tmp_path / "file" / "deep" / "m.parquet"
        ): f"cannot be written: {tmp_path}/file is no folder",
        str(tmp_path / "folder.parquet"): "/folder.parquet is a folder; name a file in it",
        "s3://nowhere/m.parquet": "the bucket does not exist: s3://nowhere/m.parts/",
    }
    for manifest, message in cases.items():
        with pytest.raises(ValueError, match=message):
            find(scan.config(manifest=manifest, source=str(tmp_path / "none")))
    monkeypatch.setattr(os, "access", lambda *_: False)  # these tests may run as root
    with pytest.raises(ValueError, match=rf"no permission to write in {tmp_path}$"):
        find(scan.config())
    assert s3.buckets == {"videos": {}}


def test_what_is_no_manifest_is_never_replaced_and_a_newer_one_only_when_asked(
    scan: Scan, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan.put(a="1")
    scan.manifest.write_text("prices")
    with pytest.raises(ValueError, match=r"m.parquet is there already and is no manifest: give an"):
        find(scan.config(fresh=True))
    scan.manifest.unlink()
    monkeypatch.setattr("clips.manifest.SCHEMA_VERSION", 99)
    scan.run()
    monkeypatch.undo()
    with pytest.raises(
        ValueError, match=r"is a manifest of format 99; this version reads up to 1. .*fresh=true$"
    ):
        scan.run()
    assert scan.run(fresh=True).rows == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": 1.0}, "split is 1.0; it must be at least 0 and less than 1"),
        ({"manifest": "m.csv"}, "manifest is 'm.csv'; its name must end in .parquet"),
        ({"clips_per_minute": -1.0}, "clips_per_minute is -1.0; it must be 0"),
        ({"clip_frames": 1}, "clip_frames is 1; it must be at least 2"),
        (
            {"source": "https://h/l.csv?token=abc"},
            "^source https://h/l.csv holds the parameter 'token'",
        ),
        (
            {"manifest": "s3://u:abc@b/m.parquet"},
            "^manifest s3://b/m.parquet holds a user or password",
        ),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        PrepareConfig(**{**options, **{n: options.get(n, d) for n, d in _LEAST.items()}})
    assert "abc" not in str(caught.value)


_LEAST = {"source": "s", "manifest": "m.parquet"}


def test_rejected_files_of_an_earlier_version_read_back(scan: Scan) -> None:
    scan.put(a="1", corrupt="x")
    made = scan.run()
    table = pq.read_table(made.rejected_uri).select(["video_id", "reason", "message"])
    pq.write_table(table, made.rejected_uri)
    assert read_rejected(made.rejected_uri) == list(made.rejected)
    scan.run()
    assert scan.looked == ["corrupt.mp4"]


def test_every_column_of_a_row_is_filled_by_its_source_or_by_the_look(scan: Scan) -> None:
    scan.put(**{"run/a": "1"})
    (row,) = scan.run(labels="folders").manifest.table.to_pylist()
    assert {name for name in SCHEMA.names if row[name] is None} == {
        *("labels", "split", "start_s", "end_s", "boxes", "offset")
    }


def test_a_bucket_that_vanishes_while_it_is_looked_at_costs_no_video(s3: Any, scan: Scan) -> None:
    video = encode(numbered_frames(12, width=64, height=48), Encoding(gop=12))
    s3.buckets["videos"] = {f"set/{n}.mp4": video for n in range(6)}

    def unplugged(entry: Entry, **how: Any) -> Any:
        if entry.video_id == "3.mp4":
            s3.failures = [(503, "ServiceUnavailable")] * 99
        return examine(entry, **how)

    with pytest.raises(
        ScanStopped, match=r"cannot reach .*set/3.mp4.* 3 of 6 videos were looked at"
    ):
        scan.run(unplugged, source="s3://videos/set")
    s3.failures = []
    made = scan.run(examine, source="s3://videos/set")
    assert scan.looked == ["3.mp4", "4.mp4", "5.mp4"]
    assert (made.rows, made.reasons) == (6, {})
    scan.manifest.unlink()
    whole = scan.run(examine, source="s3://videos/set")
    assert (len(scan.looked), whole.hash) == (6, made.hash)
    assert whole.manifest == made.manifest


def test_a_source_that_vanishes_while_it_is_listed_ends_the_scan(s3: Any, scan: Scan) -> None:
    s3.buckets["videos"] = {"set/1.mp4": b"x"}
    s3.failures = [(503, "ServiceUnavailable")] * 99
    with pytest.raises(StorageError, match="cannot reach the storage of s3://videos/set"):
        scan.run(source="s3://videos/set")
    assert storage.list_names(str(scan.manifest.parent)) == []


MILLIONS = """
import re, sys, tempfile
from clips import storage
from clips.preparation import PrepareConfig, compare, find, look
from clips.settling import settle
from clips.storage import FileInfo

def listing(place):
    for i in range(ROWS):
        yield FileInfo(f"{i % 10}/{i // 10:08d}.mp4" if SHUFFLED else f"{i:08d}.mp4", i, f"{i * 2654435761:032x}")

def spread(items, work, **_):
    for item in items:
        yield [(item, {**vars(item), **FOUND})]

storage.iterate_files = listing
storage.is_folder = lambda place: True
with tempfile.TemporaryDirectory() as folder:
    config = PrepareConfig(source="s3://bucket/set", manifest=f"{folder}/m.parquet", clips_per_minute=6)
    plan = compare(config, find(config))
    look(config, plan, spread=spread, examine=print)
    print(settle(config, plan).rows)
with open("/proc/self/status") as file:  # getrusage would count what our parent had, too
    print(int(re.search(r"VmHWM:\\s+(\\d+) kB", file.read())[1]) // 1024)
"""


@pytest.mark.slow  # half a minute
def test_three_hundred_thousand_videos_in_any_order_never_lie_in_memory() -> None:
    script = MILLIONS.replace("ROWS", "300_000").replace("SHUFFLED", "True")
    done = subprocess.run(
        [sys.executable, "-c", script.replace("FOUND", repr(FOUND))],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    rows, peak_mib = map(int, done.stdout.split())
    assert rows == 300_000
    assert peak_mib < 450, "as Python objects alone they are twice that"

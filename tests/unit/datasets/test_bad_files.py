"""No file is so bad that looking into it crashes, hangs, or eats memory: each is named with a reason, or usable."""

import json
import os
import select
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pytest

import bad_files
from clips.decode import Kind
from clips.synthetic import encode, numbered_frames

SECONDS = 2.0
HANG_SECONDS = (
    60.0  # by the clock of a busy machine; what takes SECONDS of its time is named a timeout
)
MEMORY_BYTES = 512 << 20  # of the whole process, 95 MB of which are Python and its libraries
REASONS = {*get_args(Kind), "one_frame"} - {"crashed", "quarantined", "changed"}

EXAMINER = f"""
import json, os, sys
from pathlib import Path
from clips import DecodeConfig
from clips.ingest import Entry, Rejected, examine
root, *names = sys.argv[1:]
for name in names:
    entry = Entry(name, os.path.getsize(os.path.join(root, name)))
    found = examine(entry, root=root, decode=DecodeConfig(seconds={SECONDS}))
    bad = isinstance(found, Rejected)
    status = Path("/proc/self/status").read_text().split()  # ru_maxrss would begin with the parent's memory
    peak = int(status[status.index("VmHWM:") + 1]) << 10
    print(json.dumps([found.reason if bad else None, found.message if bad else found["frames"], peak]), flush=True)
"""

USABLE = {
    "the beginning and the middle of what is left decode, and training reads what is there": (
        *("cut-half.first.mp4", "cut-half.mkv", "cut-half.ts", "cut-half.webm", "cut-tenth.ts"),
        *("zero-data.avi", "zero-data.ts", "zero-data.webm"),
        *(f"cut-last.{kind}" for kind in ("avi", "first.mp4", "mkv", "mp4", "ts", "webm")),
        *(f"zero-tail.{kind}" for kind in ("avi", "first.mp4", "mkv", "ts", "webm")),
    ),
    "the damage lies in headers that decoding does not need": (
        "zero-head.ts",
        "zero-head.avi",  # read as raw MPEG-4, which is inside
    ),
    "the codec's own header has the size, and rules": (
        *(
            "size-stsd.mp4",
            "size-tkhd.mp4",
            "size-header.avi",
            "size-stream.avi",
            "size-pixels.mkv",
        ),
    ),
    "the index says it all without the claim": (
        *("count-duration.mp4", "count-frames.avi", "count-rate.avi", "size-box.mp4"),
        *("count-stco-2e24.mp4", "count-stco-2e31.mp4"),
    ),
    "without an index the packets are found one behind the other": (
        *("index-zeros.avi", "index-noise.avi", "index-claim.avi"),
    ),
    "the second video behind the first is never looked at": ("odd-twice.mp4",),
}
"""Files of the corpus that are accepted, by why that is right. Those with flipped bits are left out: what a bit does
depends on those around it, and encoders write other ones on other CPUs."""


@dataclass(frozen=True)
class Seen:
    """What came of one file."""

    reason: str | None
    """None: accepted."""
    detail: object
    peak_bytes: int


def examine_all(folder: Path, names: list[str]) -> dict[str, Seen]:
    """Look into each file in a process that is watched: what crashes or hangs it is named so."""
    seen: dict[str, Seen] = {}
    while rest := names[len(seen) :]:
        child = subprocess.Popen(
            [sys.executable, "-c", EXAMINER, str(folder), *rest],
            stdout=subprocess.PIPE,
            bufsize=0,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        with child:
            assert child.stdout is not None
            for name in rest:
                ready, _, _ = select.select([child.stdout], [], [], HANG_SECONDS)
                line = child.stdout.readline() if ready else b""
                if not line:
                    child.kill()
                    seen[name] = Seen("crashed" if ready else "hung", child.wait(), 0)
                    break
                seen[name] = Seen(*json.loads(line))
    return seen


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Seen]:
    folder = tmp_path_factory.mktemp("bad")
    secret = folder.parent / "secret.mp4"
    secret.write_bytes(encode(numbered_frames(30, width=64, height=48)))
    files = bad_files.corpus(secret)
    assert len(files) > 100
    assert len({data for data, _ in files.values()}) > 100, "they differ"
    bad_files.write(files, folder)
    return examine_all(folder, sorted(files))


def test_no_bad_file_crashes_hangs_or_eats_memory(corpus: dict[str, Seen]) -> None:
    harmful = {n: s for n, s in corpus.items() if s.reason in ("crashed", "hung")}
    assert not harmful
    assert max(s.peak_bytes for s in corpus.values()) < MEMORY_BYTES


def test_each_bad_file_is_named_with_a_reason_or_is_known_to_be_usable(
    corpus: dict[str, Seen],
) -> None:
    accepted = {n for n, s in corpus.items() if s.reason is None and not n.startswith("flip-")}
    assert accepted == {name for names in USABLE.values() for name in names}
    assert {s.reason for s in corpus.values() if s.reason} <= REASONS
    assert all(s.detail for s in corpus.values()), "a message each"


def test_a_file_that_names_others_is_never_followed(corpus: dict[str, Seen]) -> None:
    lists = {name: s.reason for name, s in corpus.items() if name.startswith("list-")}
    assert len(lists) == 8
    assert set(lists.values()) <= {"unsupported", "corrupt", "no_video"}


def test_the_reason_says_what_is_wrong(corpus: dict[str, Seen]) -> None:
    reasons = {
        "odd-empty.mp4": "empty",
        "type-sound.mp4": "no_video",
        "type-png.mp4": "still_image",
        "type-zip.mp4": "corrupt",
        "odd-one-frame.mp4": "one_frame",
        "odd-size-change.ts": "size_change",
        "odd-no-first-key.mkv": "missing_frames",
        "odd-packed-index.mp4": "memory",
        "odd-endless.mkv": "timeout",
        "odd-endless.ts": "corrupt",
        "list-concat-file.mp4": "unsupported",
    }
    assert {name: corpus[name].reason for name in reasons} == reasons


def test_the_bad_files_of_others_are_named_too(videos: Path) -> None:
    names = sorted(path.name for path in (videos / "bad").iterdir())
    seen = examine_all(videos / "bad", names)
    assert {s.reason for s in seen.values() if s.reason} <= REASONS
    assert sorted(name for name, s in seen.items() if s.reason is None) == [
        *("decord_corrupted.mp4", "trunc.webm", "trunc50.avi", "trunc50.mkv"),
        "trunc50_faststart.mp4",
    ], "what is left of these can be read"
    assert max(s.peak_bytes for s in seen.values()) < MEMORY_BYTES

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clips import read_manifest
from clips.synthetic import write_videos
from jobs import environment, run_jobs

ROOT = Path(__file__).resolve().parents[3]


def prepare(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "jobs" / "prepare.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=180,
        env=environment(),
    )


@pytest.mark.cluster
def test_a_folder_becomes_a_manifest_and_the_rejected_files_are_listed(tmp_path: Path) -> None:
    write_videos(tmp_path / "in", range(16), seed=1, class_folders=True)
    for i in range(23):
        (tmp_path / "in" / "up" / f"bad{i:02d}.mp4").write_bytes(b"bad" * 50)
    manifest = str(tmp_path / "m.parquet")
    done = prepare(str(tmp_path / "in"), f"manifest={manifest}", "labels=folders", "split=0.3")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("probe  ")
    assert "/39 files  " in lines[0]
    assert "files/s" in lines[0]
    table = [line for line in lines if line.startswith("up/bad")]
    assert len(table) == 20
    assert table[0].split()[:2] == ["up/bad00.mp4", "corrupt"]
    assert lines[-3] == "and 3 more"
    assert lines[-2] == f"all of them (23 corrupt): {tmp_path}/m.rejected.parquet"
    hash_12 = read_manifest(manifest).hash[:12]
    assert lines[-1] == f"16 videos accepted, 23 rejected, 8 classes: {manifest} (hash {hash_12})"

    again = prepare(str(tmp_path / "in"), f"manifest={manifest}", "labels=folders", "split=0.3")
    assert (again.returncode, again.stderr) == (0, "")
    lines = again.stdout.splitlines()
    assert lines[0] == "39 videos: 39 known and unchanged, 0 to look at"
    assert lines[-2] == "compared with the manifest before: 0 new, 0 changed, 0 gone, 39 unchanged"
    assert lines[-1] == done.stdout.splitlines()[-1]


SLOWLY = """
import functools, runpy, sys, time
import clips.earlier, clips.pipeline
from clips.ingest import examine

clips.earlier.LEAST_SECONDS = 0.1

def slow(entry, **how):
    time.sleep(0.3)
    return examine(entry, **how)

clips.pipeline.look_inside = functools.partial(clips.pipeline.look_inside, examine=slow)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow  # 40 s: three jobs, each with a Ray of its own
@pytest.mark.cluster
def test_a_job_that_is_killed_or_interrupted_goes_on_where_it_was(tmp_path: Path) -> None:
    write_videos(tmp_path / "in", range(60), seed=1)
    (tmp_path / "slowly.py").write_text(SLOWLY)
    job = [
        str(ROOT / "jobs" / "prepare.py"),
        str(tmp_path / "in"),
        f"manifest={tmp_path}/m.parquet",
    ]
    parts = tmp_path / "m.parts"

    def started() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(tmp_path / "slowly.py"), *job],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
            start_new_session=True,
        )

    def end(running: subprocess.Popen[str], how: signal.Signals, *, parts_left: int) -> str:
        deadline = time.monotonic() + 120
        while not parts.exists() or len(os.listdir(parts)) < parts_left:
            assert running.poll() is None, running.communicate()
            assert time.monotonic() < deadline, "no part was written"
            time.sleep(0.05)
        running.send_signal(how)
        return running.communicate(timeout=60)[1]

    killed = started()
    end(killed, signal.SIGKILL, parts_left=1)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "m.parquet").exists()
    interrupted = started()
    errors = end(interrupted, signal.SIGINT, parts_left=len(os.listdir(parts)) + 1)
    assert errors == "interrupted; finished work stays, and the same command goes on from there\n"
    assert interrupted.returncode == 75
    done = prepare(*job[1:])
    assert (done.returncode, done.stderr) == (0, "")
    said = re.match(
        r"60 videos: (\d+) done by the scan that was interrupted, (\d+) to look at\n", done.stdout
    )
    assert said is not None, done.stdout
    resumed, rest = map(int, said.groups())
    assert resumed >= 4
    assert resumed + rest == 60
    assert f"/{rest} files  " in done.stdout
    assert len(read_manifest(f"{tmp_path}/m.parquet")) == 60
    assert not parts.exists()


MISTAKES: dict[str, tuple[tuple[str, ...], str]] = {
    "none": (
        (),
        "error: no SOURCE is named; usage: python jobs/prepare.py SOURCE manifest=FILE.parquet",
    ),
    "two": (("a", "b", "manifest=m.parquet"), "error: one SOURCE at a time, got 2: a b"),
    "two with secrets": (
        ("https://h/a.csv?sig=abc", "https://h/b.csv?sig=abc", "manifest=m.parquet"),
        "error: one SOURCE at a time, got 2: https://h/a.csv https://h/b.csv",
    ),
    "secret": (
        ("https://h/a.csv?sig=abc", "manifest=m.parquet"),
        "error: command line: source https://h/a.csv holds the parameter 'sig', which signs it",
    ),
    "no manifest": (("a",), "error: command line: manifest: must be set"),
    "typo": (
        ("a", "manifest=m.parquet", "lables=folders"),
        "error: command line: lables: unknown key; did you mean 'labels'?",
    ),
    "other word": (
        ("a", "manifest=m.parquet", "refresh=true"),
        "error: command line: refresh: unknown key; did you mean 'fresh'?",
    ),
    "labels": (
        ("a", "manifest=m.parquet", "labels=csv"),
        "error: command line: labels: must be 'none' or 'folders', got 'csv'",
    ),
    "split": (
        ("a", "manifest=m.parquet", "split=2.0"),
        "error: command line: split is 2.0; it must be at least 0 and less than 1",
    ),
    "backend": (("a", "manifest=m.parquet", "decode.backend=gpu"), "error: command line: decode."),
    "no such place": (
        ("{}/none", "manifest={}/m.parquet"),
        "error: there is nothing at {}/none; check the spelling",
    ),
    "no such place for the manifest": (
        ("{}/none", "manifest={}/prices.parquet/m.parquet"),
        "error: manifest: {}/prices.parquet/m.parquet cannot be written: {}/prices.parquet is no folder",
    ),
    "something else in the manifest's place": (
        ("{}/none", "manifest={}/prices.parquet"),
        "error: manifest: {}/prices.parquet is there already and is no manifest: give another name, or",
    ),
}


def test_mistakes_are_one_line_and_exit_code_2_before_ray_starts(tmp_path: Path) -> None:
    (tmp_path / "prices.parquet").write_text("prices")

    def filled(text: str) -> str:
        return text.replace("{}", str(tmp_path))

    ended = run_jobs(
        {name: ("prepare", *map(filled, given)) for name, (given, _) in MISTAKES.items()}
    )
    for name, (_, message) in MISTAKES.items():
        case = ended[name]
        assert (case.code, case.out, case.ray) == (2, "", False), name
        assert case.err.startswith(filled(message)), case.err
        assert len(case.err.splitlines()) == 1
        assert "abc" not in case.err
    assert [path.name for path in tmp_path.iterdir()] == ["prices.parquet"]

import os
import subprocess
import sys
from pathlib import Path

import pytest

from clips import read_manifest
from clips.synthetic import write_videos

ROOT = Path(__file__).resolve().parents[3]


def prepare(*arguments: str) -> subprocess.CompletedProcess[str]:
    shelves = os.pathsep.join(str(ROOT / shelf) for shelf in ("platform", "models", "datasets"))
    return subprocess.run(
        [sys.executable, str(ROOT / "jobs" / "prepare.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=180,
        env={**os.environ, "PYTHONPATH": shelves},
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (),
            "error: no SOURCE is named; usage: python jobs/prepare.py SOURCE manifest=FILE.parquet",
        ),
        (("a", "b", "manifest=m.parquet"), "error: one SOURCE at a time, got 2: a b"),
        (("a",), "error: command line: manifest: must be set"),
        (
            ("a", "manifest=m.parquet", "lables=folders"),
            "error: command line: lables: unknown key; did you mean 'labels'?",
        ),
        (
            ("a", "manifest=m.parquet", "labels=csv"),
            "error: command line: labels: must be 'none' or 'folders', got 'csv'",
        ),
        (
            ("a", "manifest=m.parquet", "split=2.0"),
            "split is 2.0; it must be at least 0 and less than 1",
        ),
        (("a", "manifest=m.parquet", "decode.backend=gpu"), "decode.backend"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line_and_exit_code_2(
    arguments: tuple[str, ...], message: str
) -> None:
    done = prepare(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_wrong_place_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    done = prepare(str(tmp_path / "none"), f"manifest={tmp_path}/m.parquet")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: there is nothing at {tmp_path}/none; check the spelling\n"

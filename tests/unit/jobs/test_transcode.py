"""``jobs/transcode.py`` as a user starts it: what it prints, and its mistakes."""

from pathlib import Path

import pytest

from clips import read_manifest
from clips.synthetic import write_videos
from jobs import run_jobs


@pytest.mark.slow  # 40 s: three jobs; test_pipeline.py does the same work without them
@pytest.mark.cluster
def test_a_manifests_videos_are_copied_and_the_quality_is_told(tmp_path: Path) -> None:
    write_videos(tmp_path / "in", range(9), seed=1, class_folders=True)
    copies = f"manifest={tmp_path}/out.parquet"
    transcode = ("transcode", f"{tmp_path}/in.parquet", f"target={tmp_path}/out", copies)
    ended = run_jobs(
        {
            "prepare": (
                "prepare",
                f"{tmp_path}/in",
                f"manifest={tmp_path}/in.parquet",
                "labels=folders",
            ),
            "first": (*transcode, "encoder.preset=ultrafast"),
            "again": (*transcode, "encoder.preset=ultrafast"),
        },
        cpus=2,
    )
    assert [(e.code, e.err) for e in ended.values()] == [(0, "")] * 3
    manifest = read_manifest(f"{tmp_path}/out.parquet")
    lines = ended["first"].out.splitlines()
    assert lines[0].startswith("transcode  ")
    assert "/9 videos  " in lines[0]
    assert " MiB became " in lines[-2]
    assert " dB in the mean, " in lines[-2]
    assert lines[-1] == (
        f"9 videos copied, 0 rejected: {tmp_path}/out.parquet (hash {manifest.hash[:12]})"
    )
    assert "; 9 copies were there already; " in ended["again"].out


def test_mistakes_on_the_command_line_are_one_line_and_exit_code_2(tmp_path: Path) -> None:
    cases = {
        "none": (
            (),
            "error: no MANIFEST is named; usage: python jobs/transcode.py MANIFEST target=FOLDER",
        ),
        "two": (("a", "b"), "error: one MANIFEST at a time, got 2: a b"),
        "typo": (
            ("a", "target=t", "manifest=m.parquet", "encoder.crv=2"),
            "error: command line: encoder.crv: unknown key; did you mean 'crf'?",
        ),
        "gone": (
            (f"{tmp_path}/none.parquet", "target=t", "manifest=m.parquet"),
            f"error: there is nothing at {tmp_path}/none.parquet; check the spelling",
        ),
    }
    ended = run_jobs({name: ("transcode", *arguments) for name, (arguments, _) in cases.items()})
    for name, (_, message) in cases.items():
        assert ended[name].code == 2
        assert ended[name].err.startswith(message), ended[name].err
        assert len(ended[name].err.splitlines()) == 1
        assert not ended[name].ray, "a mistake shows before Ray starts"

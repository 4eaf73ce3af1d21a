"""The benchmark of the feed on few units: what its report says, and that everything arrived in order."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import ROOT, environment

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def test_the_report_has_the_rates_and_the_store_stays_within_its_bound(tmp_path: Path) -> None:
    arguments = ["units=6", "warmup=2", "videos=3", "clips=4", f"folder={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "tests/benchmarks/bench_feed.py", *arguments],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "feed.json").read_text())
    assert (report["units"], report["clips_per_unit"]) == (6, 4)
    assert report["ratio"] == report["delivered_clips_s"] / report["decode_clips_s"] > 0
    assert 0 < report["store_peak_bytes"] <= report["store_bound_bytes"]
    assert report["seconds"] > 0
    for text in ("decoding alone", "through the feed", "ratio", "object store"):
        assert text in done.stdout

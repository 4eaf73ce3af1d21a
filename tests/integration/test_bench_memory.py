"""``make bench-memory`` over few decodes: the report has what its documentation promises."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "bench_memory.py"


@pytest.mark.slow  # 30 s: three processes that import a decoder each, and 780 decodes
def test_the_report_compares_the_memory_after_250_decodes_with_the_last(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), "decodes=260", f"folder={tmp_path}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "memory.json").read_text())
    cases = {case["backend"]: case for case in report["cases"]}
    absent = {failure["way"] for failure in report["failed"]} - set(cases)
    assert set(cases) | absent == {"pyav", "decord", "torchcodec"}
    for case in cases.values():
        assert case["decodes"] == 260
        assert case["ratio"] == round(case["rss_end_bytes"] / case["rss_after_250_bytes"], 4)
        assert case["rss_bytes"][-1] == [260, case["rss_end_bytes"]]
    assert not [f for f in report["failed"] if f["way"] == "pyav"]
    assert "MB at the end" in done.stdout
    assert (tmp_path / "memory.png").stat().st_size > 5000

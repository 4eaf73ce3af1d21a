"""``make bench-manifest`` on few rows: the report has what its documentation promises."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_report_says_what_each_stage_took_and_how_fast_rows_are_found(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "tests/benchmarks/bench_manifest.py")),
            *("rows=3000", "lookups=50", f"folder={tmp_path}"),
        ],
        capture_output=True,
        text=True,
        check=True,
        env={
            "PYTHONPATH": ":".join(map(str, (ROOT / s for s in ("platform", "models", "datasets"))))
        },
    )
    report = json.loads((tmp_path / "manifest.json").read_text())
    assert (report["rows"], report["lookups"]) == (3000, 50)
    assert list(report["stages"]) == ["make", "driver", "node"]
    assert list(report["stages"]["driver"]["seconds"]) == [
        *("read", "hold out", "node's copy", "plan pickled")
    ]
    for name in ("driver", "node"):
        stage = report["stages"][name]
        for what in ("position_to_row", "row_to_record", "both"):
            for clock in ("wall", "cpu"):
                figures = stage[f"{what}_{clock}_ms"]
                assert 0 < figures["p50"] <= figures["p99"]
        assert stage["peak_bytes"] > 10_000_000
    assert "3,000 rows, 50 random positions" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]

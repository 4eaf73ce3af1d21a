import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tubelet.spool import Acknowledged, MetricSpool, Point, beginning, points_file, read_line

KEY = "0123abcd"


def points(first: int, last: int, *, scale: float = 1.0) -> list[Point]:
    return [{"step": step, "metrics": {"train/loss": scale / step}} for step in range(first, last)]


def lines(folder: Path) -> list[dict[str, Any]]:
    return [read_line(line) for line in points_file(folder, KEY).read_bytes().splitlines()]


def kept(folder: Path, name: str = "train/loss") -> list[tuple[int, float]]:
    return [(line["s"], line["m"][name]) for line in lines(folder) if name in line["m"]]


def expected(last: int) -> list[tuple[int, float]]:
    return [(step, 1 / step) for step in range(1, last)]


def test_every_point_is_a_line_with_its_step_and_time(tmp_path: Path) -> None:
    before = int(time.time() * 1000)
    spool = MetricSpool(tmp_path / "spool", KEY)
    spool.append(points(1, 4))
    assert spool.close()
    assert kept(tmp_path / "spool") == expected(4)
    assert all(before <= line["t"] <= time.time() * 1000 for line in lines(tmp_path / "spool"))


def test_appending_is_quick(tmp_path: Path) -> None:
    spool = MetricSpool(tmp_path, KEY)
    began = time.process_time()
    for point in points(1, 1001):
        spool.append([point])
    assert time.process_time() - began < 1


def test_the_process_that_trains_does_not_import_mlflow(tmp_path: Path) -> None:
    code = (
        "import sys; from tubelet.spool import MetricSpool; "
        f"MetricSpool({str(tmp_path)!r}, 'k').append([]); print('mlflow' in sys.modules)"
    )
    assert python(code).communicate(timeout=60)[0] == "False\n"


def test_rolled_back_steps_leave_no_second_point(tmp_path: Path) -> None:
    spool = MetricSpool(tmp_path, KEY)
    spool.append(points(1, 21))
    spool.append(points(11, 31, scale=2.0))
    spool.append([{"step": 20, "metrics": {"train/loss": 9.0, "eval/loss": 5.0}}])
    assert spool.close()
    assert kept(tmp_path) == [(step, (1 if step < 21 else 2) / step) for step in range(1, 31)]
    assert kept(tmp_path, "eval/loss") == [(20, 5.0)]


def test_a_restarted_controller_repeats_no_point(tmp_path: Path) -> None:
    first = MetricSpool(tmp_path, KEY)
    first.append(points(1, 21))
    assert first.close()
    again = MetricSpool(tmp_path, KEY)
    again.append(points(11, 31, scale=2.0))
    assert again.close()
    assert kept(tmp_path) == [(s, (1 if s < 21 else 2) / s) for s in range(1, 31)]


def test_what_is_shipped_already_is_not_read_again_and_not_repeated(tmp_path: Path) -> None:
    first = MetricSpool(tmp_path, KEY)
    first.append(points(1, 21))
    assert first.close()
    size = points_file(tmp_path, KEY).stat().st_size
    Acknowledged(bytes=size, highest={"train/loss": 20}, beginning=beginning(tmp_path, KEY)).write(
        tmp_path, KEY
    )
    again = MetricSpool(tmp_path, KEY)
    again.append(points(11, 23))
    assert again.close()
    assert kept(tmp_path) == expected(23)


def test_an_attempt_is_a_point_where_it_starts_and_a_tag(tmp_path: Path) -> None:
    spool = MetricSpool(tmp_path, KEY)
    spool.attempt(1, step=0, workers=2)
    spool.append(points(1, 9))
    spool.attempt(2, step=4, workers=1)
    spool.attempt(3, step=4, workers=3)
    assert spool.close()
    assert kept(tmp_path, "sys/attempt") == [(0, 1), (4, 2)]
    assert kept(tmp_path, "sys/workers") == [(0, 2), (4, 1)]
    tags = [line["tags"]["tubelet.attempt"] for line in lines(tmp_path) if line["tags"]]
    assert tags == ["1", "2", "3"], "the third leaves no second point at step 4, but its number"


def test_a_line_that_a_kill_cut_off_is_not_a_point(tmp_path: Path) -> None:
    first = MetricSpool(tmp_path, KEY)
    first.append(points(1, 4))
    first.close()
    with points_file(tmp_path, KEY).open("ab") as file:
        file.write(b'{"t": 1, "s": 4, "m": {"train/lo')
    again = MetricSpool(tmp_path, KEY)
    again.append(points(3, 7))
    assert again.close()
    assert kept(tmp_path) == expected(7)


def test_a_line_that_a_power_cut_spoilt_is_told_and_passed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    points_file(tmp_path, KEY).write_bytes(b"\0\0\0\0\n")
    (tmp_path / f"{KEY}.shipped.json").write_bytes(b"")
    spool = MetricSpool(tmp_path, KEY)
    spool.append(points(1, 4))
    assert spool.close()
    assert kept(tmp_path) == expected(4)
    assert "unreadable line in the metric spool" in caplog.text


def test_non_finite_values_are_counted_at_their_step(tmp_path: Path) -> None:
    spool = MetricSpool(tmp_path, KEY)
    bad = {"train/loss": float("nan"), "train/norm": float("inf"), "train/lr": 1e-3}
    spool.append([*points(1, 3), {"step": 3, "metrics": bad}, *points(4, 5)])
    spool.append([{"step": 3, "metrics": bad}])
    assert spool.close()
    assert [step for step, _ in kept(tmp_path)] == [1, 2, 4]
    assert kept(tmp_path, "train/norm") == []
    assert kept(tmp_path, "train/lr") == [(3, 1e-3)]
    assert kept(tmp_path, "sys/nonfinite") == [(3, 2.0)]


def test_a_name_that_mlflow_refuses_does_not_hold_up_the_rest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = MetricSpool(tmp_path, KEY)
    spool.append([{"step": 1, "metrics": {"train/loss": 1.0, "top-1 [%]": 2.0}}])
    assert spool.close()
    assert kept(tmp_path) == [(1, 1.0)]
    assert "'top-1 [%]' is not one that MLflow takes" in caplog.text


def test_points_wait_in_memory_while_the_disk_refuses_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "spool"
    folder.write_text("a file where the folder should be")
    spool = MetricSpool(folder, KEY)
    spool.append(points(1, 4))
    assert "points wait in memory" in caplog.text
    folder.unlink()
    spool.append(points(4, 6))
    assert spool.close()
    assert kept(folder) == expected(6)


def test_points_that_the_disk_never_took_are_not_called_kept(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    folder.write_text("a file where the folder should be")
    spool = MetricSpool(folder, KEY)
    spool.append(points(1, 4))
    assert not spool.close()


FULL_DISK = """
import resource, signal, sys
from tubelet.spool import MetricSpool
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
spool = MetricSpool(sys.argv[1], sys.argv[2])
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
for step in range(1, 101):
    spool.append([{"step": step, "metrics": {"train/loss": 1 / step}}])
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
spool.append([{"step": 101, "metrics": {"train/loss": 1 / 101}}])
spool.close()
"""


def test_a_disk_that_fills_up_in_the_middle_of_a_line_spoils_none(tmp_path: Path) -> None:
    python(FULL_DISK, str(tmp_path), KEY).communicate(timeout=60)
    whole = [json.loads(line) for line in points_file(tmp_path, KEY).read_text().splitlines()]
    assert [line["s"] for line in whole] == list(range(1, 102))


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


# --- what MLflow has --------------------------------------------------------------------------------


@pytest.fixture
def noted(tmp_path: Path) -> Acknowledged:
    """A file of three points, all of them acknowledged."""
    spool = MetricSpool(tmp_path, KEY)
    spool.append(points(1, 4))
    spool.close()
    known = Acknowledged(
        bytes=points_file(tmp_path, KEY).stat().st_size,
        highest={"train/loss": 3},
        beginning=beginning(tmp_path, KEY),
        run_id="r",
        described="d",
        status="RUNNING",
        files={"recipe.yaml": "h"},
    )
    known.write(tmp_path, KEY)
    return known


def test_what_mlflow_has_is_read_as_it_was_written(tmp_path: Path, noted: Acknowledged) -> None:
    assert Acknowledged.read(tmp_path, KEY) == noted


@pytest.mark.parametrize("content", [b"", b"[]", b'{"bytes": "many"}', b'{"new": 1}', b"\0\0"])
def test_a_spoilt_note_of_what_mlflow_has_says_nothing(
    tmp_path: Path, noted: Acknowledged, content: bytes
) -> None:
    (tmp_path / f"{KEY}.shipped.json").write_bytes(content)
    assert Acknowledged.read(tmp_path, KEY) == Acknowledged()


def test_another_file_of_points_has_been_acknowledged_nothing(
    tmp_path: Path, noted: Acknowledged
) -> None:
    content = points_file(tmp_path, KEY).read_bytes()
    for other in (content[:-1], content.replace(b'"s": 1', b'"s": 7')):
        points_file(tmp_path, KEY).write_bytes(other)
        found = Acknowledged.read(tmp_path, KEY)
        assert (found.bytes, found.highest) == (0, {})
        assert (found.run_id, found.files) == ("r", {"recipe.yaml": "h"})

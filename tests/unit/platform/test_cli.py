"""The ``tubelet`` command, on run directories as training leaves them."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import lineages
from tubelet import cli
from tubelet.config import DONE, STOPPED, UserError
from tubelet.ledger import Ledger
from tubelet.run_directory import RunDirectory

LEDGER = Ledger(rows=10, epochs=2, batch=8, micro_batch=4, seed=3)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    made = RunDirectory(str(tmp_path / "run"))
    made.write_json({"plan": {**asdict(LEDGER), "copies": 1}}, "run.json")
    return made


def audited(
    run: RunDirectory, capsys: pytest.CaptureFixture[str], **left: Any
) -> tuple[int, list[str]]:
    lineages.leave_trained(run, LEDGER, **left)
    code = cli._command(["audit", run.uri])
    return code, capsys.readouterr().out.splitlines()


def test_an_exact_run_is_proved(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = audited(run, capsys)
    assert code == DONE
    assert said == [
        f"run        {run.uri}",
        "steps      3 of 3 up to the newest checkpoint",
        "positions  20 of 20 consumed, 0 lost, 0 repeated",
        "attempt  1 from step 0 with 1 workers; counts up to step 3; its driver ended",
        "exact: every position once",
    ]


def test_what_is_missing_is_named_with_its_place(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = audited(run, capsys, leave_out=2)
    assert code == STOPPED
    assert "positions  16 of 20 consumed, 4 lost, 0 repeated" in said
    row = LEDGER.unit(2).index[0]
    assert f"  lost 8: step 2, epoch 0, row {row} of the selected ones" in said
    assert said[-1] == "not exact: see above"


def test_what_came_twice_is_named_too(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = audited(run, capsys, twice=3)
    assert code == STOPPED
    assert sum(line.startswith("  repeated 1") for line in said) == 4


def test_an_audit_file_that_was_changed_proves_nothing(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    lineages.leave_trained(run, LEDGER)
    (file,) = Path(run.path("audit")).iterdir()
    file.write_bytes(file.read_bytes() + b" ")
    assert cli._command(["audit", run.uri]) == STOPPED
    assert capsys.readouterr().out == f"damaged    {file} is not what its commit says\n"


def test_bad_clips_are_counted_by_their_reason(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = audited(run, capsys, reason="x.mp4: corrupt: no frames")
    assert code == DONE
    assert "bad clips  1 kept their place and weighed nothing" in said
    assert "       1 x.mp4: corrupt: no frames" in said


def test_how_attempts_ended_is_told(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    run.begin_attempt(ray_run="r", world_size=3)
    run.record_event("failure", attempt=1, step=2, message="worker 1: its process has died")
    lineages.leave_trained(run, LEDGER)
    run.write_json({"kind": "finished", "step": 3, "message": ""}, "attempts", "00002.outcome")
    cli._command(["audit", run.uri])
    said = capsys.readouterr().out.splitlines()
    assert (
        "attempt  1 from step 0 with 3 workers; counts nothing; failed at step 2: worker 1: its process has died"
        in said
    )
    assert "attempt  2 from step 0 with 1 workers; counts up to step 3; finished" in said


def test_a_folder_without_a_run_says_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError) as refused:
        cli._command(["audit", str(tmp_path)])
    assert str(refused.value) == (
        f"{tmp_path} holds no run (no run.json; there is: mine); name a run's folder, <run.storage>/<run.name>"
    )


def test_commands_that_do_not_exist_and_missing_names_are_refused() -> None:
    with pytest.raises(
        UserError,
        match="tubelet audti: unknown command; there is: audit, register, promote, predict",
    ):
        cli._command(["audti"])
    with pytest.raises(UserError, match=r"takes one run's folder, got 0: tubelet audit RUN"):
        cli._command(["audit"])


def test_help_is_what_the_module_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli._command([]) == DONE
    assert "tubelet audit RUN" in capsys.readouterr().out

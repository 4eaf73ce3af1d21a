"""One driver a run: who may take it, who must wait, who has lost it. The other driver is a real process."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clips import storage
from tubelet import owner
from tubelet.config import UserError
from tubelet.owner import Ownership
from tubelet.run_directory import RunDirectory


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    monkeypatch.setattr(owner, "BEAT_S", 0.05)
    monkeypatch.setattr(owner, "PATIENCE_S", 0.5)
    return RunDirectory(str(tmp_path / "run"))


@pytest.fixture
def other(run: RunDirectory) -> Iterator[subprocess.Popen[str]]:
    """Another driver of this machine that owns the run."""
    code = (
        "import sys, time; from tubelet import owner; from tubelet.run_directory import RunDirectory\n"
        "held = owner.take(RunDirectory(sys.argv[1]), say=print); print('owns', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, run.uri],
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "owns\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def taken(run: RunDirectory) -> tuple[Ownership, list[str]]:
    said: list[str] = []
    return owner.take(run, say=said.append), said


def elsewhere(run: RunDirectory, **changes: object) -> None:
    """Let the file name an owner on another machine."""
    file = Path(run.path("owner.json"))
    content = json.loads(file.read_text()) | {"host": "other/boot", "name": "process 7 on other"}
    storage.write_bytes(
        str(file), json.dumps(content | changes).encode()
    )  # in one piece, as owners do


def test_a_released_run_is_free_and_leaves_no_file(run: RunDirectory) -> None:
    first, _ = taken(run)
    first.release()
    assert owner.read(run) is None
    second, said = taken(run)
    assert said == []
    second.release()


def test_a_second_driver_of_this_machine_is_refused_at_once(
    run: RunDirectory, other: subprocess.Popen[str]
) -> None:
    with pytest.raises(UserError) as refused:
        taken(run)
    assert str(refused.value).startswith(f"{run.uri} is being trained by process {other.pid} on ")
    assert str(refused.value).endswith(": stop that one first, or choose another run.name")


def test_a_killed_driver_of_this_machine_leaves_the_run_free_at_once(
    run: RunDirectory, other: subprocess.Popen[str]
) -> None:
    other.kill()
    other.wait()
    begun = time.monotonic()
    held, said = taken(run)
    assert said == []
    assert time.monotonic() - begun < owner.PATIENCE_S
    held.release()


def test_an_owner_elsewhere_that_counts_on_is_alive(run: RunDirectory) -> None:
    held, _ = taken(run)
    held._done.set()
    held._thread.join()
    elsewhere(run, token="theirs", unix_s=time.time())

    def count() -> None:
        for beats in range(1, 20):
            elsewhere(run, token="theirs", beats=beats)
            time.sleep(0.05)

    thread = threading.Thread(target=count)
    thread.start()
    with pytest.raises(UserError, match="process 7 on other: stop that one first"):
        taken(run)
    thread.join()


def test_an_owner_elsewhere_that_stands_still_is_dead(run: RunDirectory) -> None:
    first, _ = taken(run)
    first._done.set()
    first._thread.join()
    elsewhere(run, token="theirs", unix_s=time.time())
    held, said = taken(run)
    assert said == [
        f"note: {run.uri} is being trained by process 7 on other; looking for 0 s whether it lives"
    ]
    held.release()


def test_a_file_from_long_ago_is_not_waited_for(run: RunDirectory) -> None:
    first, _ = taken(run)
    first._done.set()
    first._thread.join()
    elsewhere(run, token="theirs", unix_s=time.time() - 1000)
    held, said = taken(run)
    assert said == []
    held.release()


def test_an_owner_learns_that_another_has_taken_its_run(run: RunDirectory) -> None:
    held, _ = taken(run)
    elsewhere(run, token="theirs")
    deadline = time.monotonic() + 5
    while held.lost_to is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert held.lost_to == "process 7 on other"
    held.release()
    assert owner.read(run) is not None, "the file is the other's"

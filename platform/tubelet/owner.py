"""Which driver a run belongs to: one at a time, and at once again when it has died.

The owner writes ``owner.json`` into the run's folder every few seconds, with a counter. Whoever finds one there takes
the run over at once when the owner was a process of this machine that is gone; otherwise it watches the counter for a
while, which needs no agreement of clocks: an owner that counts on lives, and the run is refused; one that does not is
dead. An owner that finds another's name in its file has lost the run, and its driver ends.

This keeps two people from training one run by mistake. That a stale driver cannot spoil it is the attempts' doing
(``run_directory``).
"""

import json
import os
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

from clips import storage
from tubelet.config import UserError
from tubelet.run_directory import RunDirectory

BEAT_S = 5.0
PATIENCE_S = 20.0
"""Without a beat for so long an owner is dead."""
_LONG_AGO_S = 900.0
"""A file that old needs no watching, whatever the clocks differ by."""


@dataclass(frozen=True)
class Owner:
    """A driver, as its file says."""

    token: str
    host: str
    """The machine: its boot, so that containers of one name differ."""
    pid: int
    started: float
    """Of the process, so that a reused process id is not taken for it."""
    name: str
    """For people."""
    beats: int = 0
    unix_s: float = 0.0


def this_process() -> Owner:
    """A new owner: this process."""
    process = psutil.Process()
    return Owner(
        token=uuid.uuid4().hex,
        host=_host(),
        pid=process.pid,
        started=process.create_time(),
        name=f"process {process.pid} on {os.uname().nodename}",
    )


def known_dead(owner: Owner) -> bool:
    """Whether an owner is certainly gone: a process of this machine that does not run any more."""
    if owner.host != _host():
        return False
    try:
        return psutil.Process(owner.pid).create_time() != owner.started
    except psutil.NoSuchProcess:
        return True


class Ownership:
    """This process's hold on a run, from ``take`` to ``release``.

    Args:
        run: which.
        owner: this process.
    """

    def __init__(self, run: RunDirectory, owner: Owner) -> None:
        self._run, self._owner = run, owner
        self._done = threading.Event()
        self.lost_to: str | None = None
        """Another driver that has taken the run."""
        self._thread = threading.Thread(target=self._beat, name="owner", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Let the next driver begin at once."""
        self._done.set()
        self._thread.join(BEAT_S)
        found = read(self._run)
        if found and found.token == self._owner.token:
            storage.remove(self._run.path("owner.json"))

    def _beat(self) -> None:
        beats = self._owner.beats
        while not self._done.wait(BEAT_S):
            try:
                found = read(self._run)
                if found and found.token != self._owner.token:
                    self.lost_to = found.name
                    return
                beats += 1
                _write(self._run, replace(self._owner, beats=beats))
            except Exception:  # a store that is down proves nothing; the next beat may come through
                continue


def take(run: RunDirectory, *, say: Callable[[str], None]) -> Ownership:
    """Become the run's owner.

    Args:
        run: which.
        say: tells the user why this takes a while.

    Raises:
        UserError: another driver lives.
    """
    found = read(run)
    if found and not known_dead(found) and time.time() - found.unix_s < _LONG_AGO_S:
        where = storage.redact(run.uri)
        alive = f"{where} is being trained by {found.name}"
        if found.host == _host():  # it runs
            raise UserError(f"{alive}: stop that one first, or choose another run.name")
        say(f"note: {alive}; looking for {PATIENCE_S:.0f} s whether it lives")
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            time.sleep(BEAT_S / 5)
            now = read(run)
            if now is None:
                break
            if (now.token, now.beats) != (found.token, found.beats):
                raise UserError(
                    f"{where} is being trained by {now.name}: stop that one first, or choose another run.name"
                )
    mine = this_process()
    _write(run, mine)
    won = read(run)
    if won and won.token != mine.token:
        raise UserError(
            f"{storage.redact(run.uri)} was taken by {won.name} at the same moment: one of the two is enough"
        )
    return Ownership(run, mine)


def read(run: RunDirectory) -> Owner | None:
    """The owner that a run's folder names."""
    content = run.read_json("owner.json")
    return Owner(**content) if content else None


def _write(run: RunDirectory, owner: Owner) -> None:
    content = asdict(replace(owner, unix_s=round(time.time(), 3)))
    storage.write_bytes(run.path("owner.json"), json.dumps(content).encode())


def _host() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{os.uname().nodename}/{boot.read_text().strip() if boot.exists() else ''}"

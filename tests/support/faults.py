"""Drivers in processes of their own, with a Ray of their own, and what can happen to them and their workers.

Everything that belongs to a ``Machine`` carries its Ray folder in its environment, by which it is found, killed in
part, and cleaned up in the end. A fault that finds nothing to hit is an error: it must never look as if survived.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
_POLL_S = 0.05
_FOREIGN = ("RAY_", "MLFLOW_", "OMP_", "PYTHON", "COV_", "PYTEST")
"""Variables of the test's own surroundings that a user's shell would not have."""


@dataclass(frozen=True)
class Machine:
    """Where drivers run: an environment, a working folder, and the folder of all their Rays."""

    folder: Path
    ray_folder: Path
    """Short, since sockets lie in it. What drivers say is written here too: not where they might pack it up."""

    @property
    def environment(self) -> dict[str, str]:
        """A user's, with Ray's folder."""
        kept = {n: v for n, v in os.environ.items() if not n.startswith(_FOREIGN)}
        return {**kept, "RAY_TMPDIR": str(self.ray_folder)}

    def processes(self, *, named: str = "") -> list[psutil.Process]:
        """All processes of this machine's drivers and Rays, but for the dead, with ``named`` in their command."""
        found: list[psutil.Process] = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                alive = process.status() != psutil.STATUS_ZOMBIE
                if alive and self._owns(process) and named in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def _owns(self, process: psutil.Process) -> bool:
        mark = f"RAY_TMPDIR={self.ray_folder}"
        block = Path(f"/proc/{process.pid}/environ")
        if block.parent.exists():  # psutil stops where Ray's process titles have written zeros
            return mark.encode() in block.read_bytes().split(b"\0")
        return mark in [f"{name}={value}" for name, value in process.environ().items()]

    def wait_until_empty(self, *, timeout_s: float = 120.0) -> None:
        """Wait until no process is left.

        Raises:
            AssertionError: some stay.
        """
        deadline = time.monotonic() + timeout_s
        while left := self.processes():
            names = [" ".join(p.cmdline())[:80] for p in left if p.is_running()]
            assert time.monotonic() < deadline, f"left behind: {names}"
            time.sleep(_POLL_S)


@contextlib.contextmanager
def machine(folder: Path) -> Iterator[Machine]:
    """A machine that is empty again afterwards."""
    made = Machine(folder, Path(tempfile.mkdtemp(prefix="rt", dir="/tmp")))
    try:
        yield made
    finally:
        for _ in range(10):  # some may be starting others
            left = made.processes()
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(left, timeout=10)
        assert not made.processes(), "processes survive SIGKILL"
        shutil.rmtree(made.ray_folder, ignore_errors=True)


class Driver:
    """A command that is running, in a process group of its own like that of a shell."""

    def __init__(
        self, machine: Machine, command: Sequence[str], *, more: Mapping[str, str] | None = None
    ) -> None:
        self.machine = machine
        self._log = Path(tempfile.mkstemp(dir=machine.ray_folder, prefix="output-")[1])
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=machine.folder,
                env={**machine.environment, **(more or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        """What it has written so far."""
        return self._log.read_text(errors="replace")

    def wait_for(self, what: str, condition: Callable[[], bool], *, timeout_s: float = 300) -> None:
        """Wait until ``condition`` holds.

        Raises:
            AssertionError: the driver ended before, or it took too long.
        """
        deadline = time.monotonic() + timeout_s
        while not condition():
            code = self._process.poll()
            assert code is None, f"ended with {code} before {what}:\n{self.output}"
            assert time.monotonic() < deadline, f"waited in vain for {what}:\n{self.output}"
            time.sleep(_POLL_S)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the driver alone, as a supervisor does."""
        assert self._process.poll() is None, f"nothing left to signal:\n{self.output}"
        self._process.send_signal(number)

    def press_ctrl_c(self) -> None:
        """Send SIGINT to the whole foreground group, as a terminal does."""
        assert self._process.poll() is None, f"nothing left to interrupt:\n{self.output}"
        os.killpg(self._process.pid, signal.SIGINT)

    def end(self, *, timeout_s: float = 300) -> int:
        """Wait for its end; returns the exit code."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"does not end:\n{self.output}") from None


def job(machine: Machine, script: str, *arguments: str) -> Driver:
    """Start ``jobs/<script>.py`` of this checkout."""
    return Driver(machine, [sys.executable, str(ROOT / "jobs" / f"{script}.py"), *arguments])


def kill_a_worker(machine: Machine) -> int:
    """SIGKILL one of the training workers; returns its process id.

    Raises:
        AssertionError: there is none, or it lives on.
    """
    workers = machine.processes(named="RayTrainWorker")
    assert workers, f"no worker to kill among {[p.name() for p in machine.processes()]}"
    victim = workers[-1]
    victim.send_signal(signal.SIGKILL)
    gone, _ = psutil.wait_procs([victim], timeout=30)
    assert gone or victim.status() == psutil.STATUS_ZOMBIE, f"worker {victim.pid} lives on"
    return victim.pid

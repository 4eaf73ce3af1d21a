"""Put on the PYTHONPATH of Ray's workers: faults at a given rank, step and phase, and a log of every step.

Python imports this in each process it starts. In those that import ``tubelet.pulse`` it wraps ``beat`` and
``background``; the product knows nothing of it. ``$CHAOS`` names a folder:

    armed.json      the fault that is due: ``{"id", "kind", "rank", "phase", "step"}``; a step at or beyond fires it
    fired-<id>      made by the one worker that it has hit, before the harm is done: once, over all restarts
    steps/<pid>     a line for each optimizer update: time and step
    starts/<pid>    when a worker began to load, and then had loaded: time and phase
"""

import contextlib
import importlib.abc
import importlib.util
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_HARM = {
    "worker_sigkill": signal.SIGKILL,
    "worker_sigstop": signal.SIGSTOP,
    "worker_sigterm": signal.SIGTERM,
}


class _Wrap(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != "tubelet.pulse":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        loader: Any = spec.loader
        execute = loader.exec_module

        def wrapped(module: Any) -> None:
            execute(module)
            injector = _Injector(Path(os.environ["CHAOS"]))
            module.beat = injector.before(module.beat)
            module.background = injector.before(module.background)

        loader.exec_module = wrapped
        return spec


class _Injector:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._armed = folder / "armed.json"
        self._seen: tuple[int, dict[str, Any] | None] = (0, None)
        self._log = _lines(folder / "steps")
        self._starts, self._begun = _lines(folder / "starts"), set[str]()

    def before(self, function: Callable[[int, Any], None]) -> Callable[[int, Any], None]:
        def beat(step: int, phase: Any) -> None:
            function(step, phase)
            rank = os.environ.get("RANK")
            if rank is None:  # a controller or driver
                return
            if phase == "update":
                self._log.write(f"{time.time()} {step}\n")
            if phase in ("load", "data") and phase not in self._begun:
                self._begun.add(phase)
                self._starts.write(f"{time.time()} {phase}\n")
            fault = self._due()
            here = fault and phase == fault["phase"] and int(rank) == fault["rank"]
            if fault and here and step >= fault["step"] and self._claim(fault, step):
                self._harm(fault)

        return beat

    def _due(self) -> dict[str, Any] | None:
        try:
            changed = self._armed.stat().st_mtime_ns
        except OSError:
            return None
        if changed != self._seen[0]:
            self._seen = changed, json.loads(self._armed.read_text())
        return self._seen[1]

    def _claim(self, fault: dict[str, Any], step: int) -> bool:
        try:
            made = os.open(self._folder / f"fired-{fault['id']}.part", os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            return False
        os.close(made)
        fired = {"unix_s": time.time(), "step": step, "pid": os.getpid(), "raylet": os.getppid()}
        part = self._folder / f"fired-{fault['id']}.json.new"
        part.write_text(json.dumps(fired))
        part.rename(self._folder / f"fired-{fault['id']}.json")
        return True

    def _harm(self, fault: dict[str, Any]) -> None:
        kind = fault["kind"]
        if kind in _HARM:
            os.kill(os.getpid(), _HARM[kind])
        elif kind == "node_kill":
            _kill_node(os.getppid())
        elif kind == "torn_checkpoint":
            _tear(Path(fault["run"]))
            os.kill(os.getpid(), signal.SIGKILL)


def _lines(folder: Path) -> Any:
    """A file of this process, to which whole lines are added."""
    folder.mkdir(exist_ok=True)
    return (folder / str(os.getpid())).open("a", buffering=1)


def _kill_node(raylet: int) -> None:
    """The raylet first, then everything on its node, this process last."""
    import psutil

    node = psutil.Process(raylet)
    others = [p for p in node.children(recursive=True) if p.pid != os.getpid()]
    for process in [node, *others]:
        with contextlib.suppress(psutil.Error):
            process.kill()
    os.kill(os.getpid(), signal.SIGKILL)


def _tear(run: Path) -> None:
    """Spoil a shard of the newest committed checkpoint, in the middle."""
    newest = max(p.parent for p in (run / "checkpoints").glob("*/commit.json"))
    shard = max(newest.glob("*.distcp"), key=lambda file: file.stat().st_size)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 0xFF
    shard.write_bytes(content)


if "CHAOS" in os.environ:
    sys.meta_path.insert(0, _Wrap())

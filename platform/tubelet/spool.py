"""A write-ahead spool between training and MLflow: no point lost, none twice, training never waits.

Why: a metric call to a dead MLflow server blocks for minutes and then raises, and MLflow's own
asynchronous mode loses points without a word. Here the process that drives the training (Ray
Train's controller) only appends a line to a local file, and never so much as imports MLflow.
`tubelet.shipping` reads the file in the driver, which Ray Train keeps on the same machine.

Guarantees:

* `MetricSpool.append` never raises and touches no network. What the disk refuses is kept in memory
  and written with the next points, in order.
* A point is (metric, step). A step at or below the highest one in the file for that metric is
  dropped, so steps that a restart rolls back and trains again leave no second point. (What the file
  does not know, because it is that of another machine, the shipping side asks the store.)
* Non-finite values are not sent: at a step where some were dropped, `sys/nonfinite` is their count.

Cost: one `write` per append (some 30 microseconds); the file grows by some 300 bytes a step.
"""

import hashlib
import json
import logging
import math
import os
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict

logger = logging.getLogger(__name__)

NONFINITE = "sys/nonfinite"
ATTEMPT = "tubelet.attempt"

_METRIC_NAME = re.compile(r"[\w.\-:/ ]{1,250}")  # what MLflow's stores accept


class Point(TypedDict):
    """Metrics of one optimizer step."""

    step: int
    metrics: Mapping[str, float]


class MetricSpool:
    """Append points to `<folder>/<key>.jsonl`.

    One process at a time writes a file; build it there, from plain values.
    """

    def __init__(self, folder: str | Path, key: str) -> None:
        """Open what is there already.

        Args:
            folder: local folder of the spool; made when missing.
            key: the run's, see `tracking.Identity`.
        """
        self._folder, self._key = Path(folder), key
        self._file = points_file(folder, key)
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        self._unwritten = bytearray()
        self._highest: dict[str, int] = {}
        self._refused = False  # by the disk
        with self._lock:
            self._write()

    def append(self, points: Sequence[Point]) -> None:
        """Keep the points that are new; never raises, never waits for the server."""
        with self._lock:
            for point in points:
                metrics = self._new(int(point["step"]), point["metrics"])
                if metrics:
                    self._add({"s": int(point["step"]), "m": metrics})
            self._write()

    def attempt(self, number: int, *, step: int, workers: int) -> None:
        """Note that a worker group starts: points at its step, and the tag of its number.

        An attempt at the step of one before leaves no second point; the tag and `events.jsonl` tell of it.
        """
        with self._lock:
            metrics = self._new(step, {"sys/attempt": number, "sys/workers": workers})
            self._add({"s": step, "m": metrics, "tags": {ATTEMPT: str(number)}})
            self._write()

    def close(self) -> bool:
        """Close the file; False when the disk has not taken everything."""
        with self._lock:
            self._write()
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None
            return not self._unwritten

    def _new(self, step: int, metrics: Mapping[str, float]) -> dict[str, float]:
        kept: dict[str, float] = {}
        nonfinite = 0
        for name, value in metrics.items():
            if not _METRIC_NAME.fullmatch(name):
                logger.warning("metric name %r is not one that MLflow takes: dropped", name)
            elif step > self._highest.get(name, -1):
                number = _number(value)
                if math.isfinite(number):
                    kept[name] = number
                else:
                    nonfinite += 1
        if nonfinite and step > self._highest.get(NONFINITE, -1):
            kept[NONFINITE] = float(nonfinite)
        self._highest.update(dict.fromkeys(kept, step))
        return kept

    def _add(self, entry: dict[str, Any]) -> None:
        self._unwritten += json.dumps({"t": int(time.time() * 1000), **entry}).encode() + b"\n"

    def _write(self) -> None:
        try:
            if self._descriptor is None:
                self._open()
            while self._unwritten:
                # A short write leaves half a line, which the next write completes.
                assert self._descriptor is not None
                del self._unwritten[: os.write(self._descriptor, self._unwritten)]
        except OSError as error:
            if not self._refused:
                logger.warning("cannot write %s: %s; points wait in memory", self._file, error)
            self._refused = True
        else:
            self._refused = False

    def _open(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        content = self._file.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):  # the last writer was killed in the middle of a line
            os.ftruncate(descriptor, whole)
        known = Acknowledged.read(self._folder, self._key)
        highest = dict(known.highest)
        for line in content[known.bytes : whole].splitlines():
            entry = read_line(line)
            for name in entry["m"]:
                highest[name] = max(highest.get(name, -1), entry["s"])
        self._highest = {
            name: max(highest.get(name, -1), self._highest.get(name, -1))
            for name in highest | self._highest
        }
        self._descriptor = descriptor


@dataclass
class Acknowledged:
    """What MLflow has of a run, as far as this machine knows; kept in `<folder>/<key>.shipped.json`.

    Losing or spoiling it does no harm: what is sent again is the same, or is found to be there.
    """

    bytes: int = 0
    """Of the file of points."""
    highest: dict[str, int] = field(default_factory=dict)
    """Highest step of each metric within those bytes."""
    beginning: str = ""
    """Hash of the file's first line: another file under this name has been acknowledged nothing."""
    run_id: str | None = None
    described: str = ""
    """Hash of the description."""
    status: str = ""
    files: dict[str, str] = field(default_factory=dict)
    """Hash of each artifact by its name."""

    @classmethod
    def read(cls, folder: str | Path, key: str) -> "Acknowledged":
        """What was written last, if it fits the file of points that is there now."""
        try:
            state = cls(**json.loads(_state_file(folder, key).read_bytes()))
            state.highest = {str(name): int(step) for name, step in state.highest.items()}
            state.files = {str(name): str(digest) for name, digest in state.files.items()}
            fits = 0 <= state.bytes <= points_file(folder, key).stat().st_size
        except (OSError, ValueError, TypeError, AttributeError):
            return cls()
        if state.bytes and (not fits or state.beginning != beginning(folder, key)):
            state.bytes, state.highest, state.beginning = 0, {}, ""
        return state

    def write(self, folder: str | Path, key: str) -> None:
        """Replace what was written before."""
        fresh = _state_file(folder, key).with_suffix(".tmp")
        fresh.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_text(json.dumps(asdict(self)))
        fresh.replace(_state_file(folder, key))


def points_file(folder: str | Path, key: str) -> Path:
    """Where a run's points are on this machine."""
    return Path(folder) / f"{key}.jsonl"


def waiting(folder: str | Path, key: str) -> bytes:
    """The lines of the file of points that MLflow is not known to have."""
    try:
        with points_file(folder, key).open("rb") as file:
            file.seek(Acknowledged.read(folder, key).bytes)
            return file.read()
    except FileNotFoundError:
        return b""


def beginning(folder: str | Path, key: str) -> str:
    """Hash of the first line of the file of points."""
    with points_file(folder, key).open("rb") as file:
        return hashlib.blake2b(file.readline(), digest_size=16).hexdigest()


def read_line(line: bytes) -> dict[str, Any]:
    """A line of the file; one that a power cut has spoilt holds no points."""
    try:
        entry = json.loads(line)
        return {"tags": {}, **entry, "t": int(entry["t"]), "s": int(entry["s"]), "m": entry["m"]}
    except (ValueError, KeyError, TypeError):
        logger.warning("unreadable line in the metric spool: %r", line[:80])
        return {"t": 0, "s": 0, "m": {}, "tags": {}}


def _state_file(folder: str | Path, key: str) -> Path:
    return Path(folder) / f"{key}.shipped.json"


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan

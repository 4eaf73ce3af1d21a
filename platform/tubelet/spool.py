"""A write-ahead spool between training and MLflow: no point lost, none twice, training never waits.

Why: a metric call to a dead MLflow server blocks for minutes and then raises, and MLflow's own
asynchronous mode loses points without a word. Here the process that drives the training (Ray
Train's controller) only appends a line to a local file; a daemon thread ships the lines in batches.

Guarantees:

* `MetricSpool.append` never raises and touches no network. What the disk refuses is kept in memory
  and written with the next points, in order.
* A point is (metric, step). A step at or below the highest one logged for that metric is dropped,
  so steps that a restart rolls back and trains again leave no second point. The highest steps come
  from the spool's own file, and, before anything is shipped, from the run in the store: the rule
  also holds when the controller comes back on another machine with an empty folder.
* Each point reaches the store exactly once, whatever is killed in between: lines are fsynced before
  they are shipped, the offset moves after the store has answered, and a batch sent twice is the
  same rows (MLflow keys a point by run, metric, step, timestamp and value, all from the file).
* Non-finite values are not sent: at a step where some were dropped, `sys/nonfinite` is their count.

Cost: one `write` per append (some 30 microseconds); one thread; the file grows by some 300 bytes a
step. While the server is down the thread asks again after 1, 2, 4 ... 30 seconds.
"""

import json
import logging
import math
import os
import re
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from tubelet.tracking import redact

logger = logging.getLogger(__name__)

SHIP_INTERVAL_S = 1.0
LONGEST_PAUSE_S = 30.0
PAUSE_WHILE_CLOSING_S = 0.2
METRICS_PER_BATCH = 500  # the store takes at most 1000
IMPATIENCE = {  # the thread has its own way of asking again
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
}
NONFINITE = "sys/nonfinite"

_METRIC_NAME = re.compile(r"[\w.\-:/ ]{1,250}")  # what MLflow's stores accept


class Point(TypedDict):
    """Metrics of one optimizer step."""

    step: int
    metrics: Mapping[str, float]


class MetricSpool:
    """Append points to `<folder>/<run_id>.jsonl` and ship them to the MLflow run in the background.

    One process at a time writes a folder's spool. Build it in the process that logs, from plain
    values: it owns a thread and a file, and until `close` makes MLflow's HTTP requests in this
    process give up after one attempt of five seconds.
    """

    def __init__(self, uri: str, run_id: str, folder: str | Path) -> None:
        """Start the shipping thread; asks nothing of the server.

        Args:
            uri: MLflow tracking URI.
            run_id: id of an existing run.
            folder: local folder of the spool; made when missing.
        """
        self._uri, self._run_id = uri, run_id
        self._file = Path(folder) / f"{run_id}.jsonl"
        self._state = Path(folder) / f"{run_id}.shipped.json"
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        self._unwritten = bytearray()
        self._highest: dict[str, int] = {}
        self._offset = 0  # bytes of the file that the store has acknowledged
        self._shipped: dict[str, int] = {}  # highest step per metric within those bytes
        self._stored: dict[str, int] | None = None  # the same, as the store says; None: not asked
        self._client: Any = None
        self._refused = False  # by the disk
        self._failing = False  # at the store
        self._closing, self._abandoned, self._wake = (threading.Event() for _ in range(3))
        # MLflow reads these from the environment only: they hold for the process, until `close`.
        self._environment = {name: os.environ.get(name) for name in IMPATIENCE}
        os.environ.update(IMPATIENCE)
        with self._lock:
            self._write()
        self._thread = threading.Thread(target=self._run, name="metric-spool", daemon=True)
        self._thread.start()

    def append(self, points: Sequence[Point]) -> None:
        """Keep the points that are new; never raises, never waits for the server."""
        now_ms = int(time.time() * 1000)
        with self._lock:
            for point in points:
                metrics = self._new(int(point["step"]), point["metrics"])
                if metrics:
                    line = {"t": now_ms, "s": int(point["step"]), "m": metrics}
                    self._unwritten += json.dumps(line).encode() + b"\n"
            self._write()

    def close(self, *, timeout: float = 10.0) -> bool:
        """Ship what is left, for at most `timeout` seconds.

        Returns:
            True when every point is in the store; otherwise the next spool on this folder ships
            the rest.
        """
        with self._lock:
            self._write()
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout)
        self._abandoned.set()
        for variable, value in self._environment.items():
            if value is None:
                os.environ.pop(variable, None)
            else:
                os.environ[variable] = value
        with self._lock:
            complete = not self._thread.is_alive() and not self._unwritten
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None
        if not complete:
            logger.warning(
                "MLflow does not have every point of run %s yet; the rest is in %s and is shipped "
                "when the run is resumed",
                self._run_id,
                self._file,
            )
        return complete

    # --- the writing side, in the caller's thread ------------------------------------------

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
        self._offset, self._shipped = self._saved_state(whole)
        highest = dict(self._shipped)
        for line in content[self._offset : whole].splitlines():
            entry = _entry(line)
            highest.update(dict.fromkeys(entry["m"], entry["s"]))
        self._highest = {
            name: max(highest.get(name, -1), self._highest.get(name, -1))
            for name in highest | self._highest
        }
        self._descriptor = descriptor  # last: the thread reads nothing before

    def _saved_state(self, size: int) -> tuple[int, dict[str, int]]:
        try:
            state = json.loads(self._state.read_bytes())
        except (FileNotFoundError, ValueError):  # without it everything is shipped again: harmless
            return 0, {}
        return (state["bytes"], state["highest"]) if state["bytes"] <= size else (0, {})

    # --- the shipping side, in the thread --------------------------------------------------

    def _run(self) -> None:
        pause = SHIP_INTERVAL_S
        while not self._abandoned.is_set():
            closing = self._closing.is_set()  # read first: lines before close() are then seen below
            try:
                sent = self._ship_batch()
            except Exception as error:
                if not self._failing:
                    logger.warning(
                        "MLflow does not answer, points wait in the spool: %s", redact(str(error))
                    )
                self._failing = True
                pause = min(2 * pause, LONGEST_PAUSE_S)
            else:
                if self._failing:
                    logger.warning("MLflow answers again")
                self._failing, pause = False, SHIP_INTERVAL_S
                if sent:
                    continue
                if closing:
                    return
            if closing:
                self._abandoned.wait(PAUSE_WHILE_CLOSING_S)
            else:
                self._wake.wait(pause)

    def _ship_batch(self) -> bool:
        """Ship the next lines; False when there are none."""
        lines, end = self._next_lines()
        if not lines:
            return False
        if self._client is None:
            self._client = _client(self._uri)
        if self._stored is None:
            run = self._client.get_run(self._run_id)
            self._stored = {metric.key: metric.step for metric in run.data.to_proto().metrics}
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, line["t"], line["s"])
            for line in lines
            for name, value in line["m"].items()
            if line["s"] > self._stored.get(name, -1)
        ]
        for first in range(0, len(metrics), METRICS_PER_BATCH):
            self._client.log_batch(
                self._run_id, metrics=metrics[first : first + METRICS_PER_BATCH], synchronous=True
            )
        for metric in metrics:
            self._stored[metric.key] = metric.step
        for line in lines:
            self._shipped.update(dict.fromkeys(line["m"], line["s"]))
        self._offset = end
        self._save_state()
        return True

    def _next_lines(self) -> tuple[list[dict[str, Any]], int]:
        lines: list[dict[str, Any]] = []
        count = 0
        if self._descriptor is None:
            return lines, self._offset
        with self._file.open("rb") as file:
            os.fsync(file.fileno())  # what is in the store must not be missing here after a crash
            file.seek(self._offset)
            end = self._offset
            while count < METRICS_PER_BATCH:
                line = file.readline()
                if not line.endswith(b"\n"):
                    break
                lines.append(_entry(line))
                count += len(lines[-1]["m"])
                end = file.tell()
        return lines, end

    def _save_state(self) -> None:
        fresh = self._state.with_suffix(".tmp")
        fresh.write_text(json.dumps({"bytes": self._offset, "highest": self._shipped}))
        fresh.replace(self._state)


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _entry(line: bytes) -> dict[str, Any]:
    """A line of the file; one that a power cut has spoilt holds no points."""
    try:
        return json.loads(line)
    except ValueError:
        logger.warning("unreadable line in the metric spool: %r", line[:80])
        return {"t": 0, "s": 0, "m": {}}


def _client(uri: str) -> Any:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    return MlflowClient(uri)

"""Ships a run to MLflow in the background: whatever the server does, training does not notice.

The driver tells a `Shipper` what the run's MLflow run is to hold: description, points (from the
spool's file), pictures and other artifacts, events, status. A daemon thread brings it there as the
server answers, and asks again after 1, 2, 4 ... 30 seconds while it does not. The server may be
down, slow, frozen or restarting at any time, also when the run begins: then the MLflow run is
created by whoever reaches the server first (`tracking.claim`).

Guarantees:

* Each point reaches the store exactly once, whatever is killed in between: lines are fsynced before
  they are shipped, the offset moves after the store has answered, and a batch sent twice is the
  same rows (MLflow keys a point by run, metric, step, timestamp and value, all from the file). A
  step at or below the highest one that the store has of a metric is not sent: the rule also holds
  when the driver comes back on another machine with an empty folder.
* Only `meet` and `end` wait, for bounded times. What `end` could not bring there stays on disk or
  in the run's folder, and the next start of the run sends it.

Cost: one thread; while it is at work MLflow's HTTP requests of this process are not repeated and
may take a minute each, since MLflow reads both from the environment only.
"""

import contextlib
import hashlib
import json
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tubelet import tracking
from tubelet.refusals import first_line, reason, redact, refusal
from tubelet.spool import ATTEMPT, Acknowledged, beginning, points_file, read_line, waiting

logger = logging.getLogger(__name__)

SHIP_INTERVAL_S = 1.0
LONGEST_PAUSE_S = 30.0
PAUSE_WHILE_ENDING_S = 0.2
EVENTS_INTERVAL_S = 30.0
ASIDE_INTERVAL_S = 30.0
METRICS_PER_BATCH = 500  # the store takes at most 1000
PATIENCE = {  # the thread has its own way of asking again; a slow server is better than none
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
}
MEETING_S = 10.0
"""How long the start of a run waits for a server's first answer, MLflow having been imported."""
CONNECTING_S, NEW_DATABASE_S = 60.0, 300.0
"""For the import, and for a database's tables."""
REFUSED_S, SILENT_S = 10.0, 60.0
"""How long the end of a run goes on asking a server that refuses, and waits for one that is silent."""


class Shipper:
    """Brings one run to MLflow; a context, outside of which nothing is sent.

    Args:
        uri: MLflow tracking URI.
        identity: of the run.
        folder: local folder of the spool.
        events: content of `events.jsonl`, once there is one; asked for in the thread, at the beginning and the end,
            and when attempts have begun.
        aside: takes the points that wait, now and then while the server does not answer; never raises.
    """

    def __init__(
        self,
        uri: str,
        identity: tracking.Identity,
        *,
        folder: str | Path,
        events: Callable[[], bytes | None],
        aside: Callable[[bytes], None] = lambda points: None,
    ) -> None:
        self.run_id = identity.run_id
        """Of the MLflow run; None while nobody knows it."""
        self._uri, self._identity, self._folder, self._read_events = uri, identity, folder, events
        self._aside, self._aside_due_at = aside, 0.0
        self._client: Any = None
        self._description: tracking.Description | None = None
        self._contents: dict[str, bytes] = {}
        self._folders: dict[str, Path] = {}  # artifact path -> local folder
        self._new_files = threading.Event()
        self._status: tracking.Status = "RUNNING"
        self._ended_ms: int | None = None
        self._known = Acknowledged()
        self._stored: dict[str, int] | None = None  # highest steps in the store; None: not asked
        self._claimed = False
        self._doubtful = False  # a request to create the run went without an answer
        self._events_due_at: float | None = None
        self._error: Exception | None = None  # of the last round
        self._answered_at = time.monotonic()
        self._connected, self._met, self._wake = (threading.Event() for _ in range(3))
        self._ending, self._abandoned = threading.Event(), threading.Event()
        self._environment = {name: os.environ.get(name) for name in PATIENCE}
        self._thread = threading.Thread(target=self._run, name="shipper", daemon=True)

    def __enter__(self) -> "Shipper":
        """Start the thread, which asks the server whether it is there and changes nothing yet."""
        os.environ.update(PATIENCE)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop asking; a request that is on its way is left to itself."""
        self._abandoned.set()
        self._wake.set()
        for variable, value in self._environment.items():
            if value is None:
                os.environ.pop(variable, None)
            else:
                os.environ[variable] = value

    def meet(self) -> str | None:
        """Wait for the first answer; returns why there is none, or None.

        Raises:
            TrackingError: the answer is that the user has to change something.
        """
        self._connected.wait(NEW_DATABASE_S if self._uri.startswith("sqlite") else CONNECTING_S)
        self._met.wait(MEETING_S)
        error = self._error
        if error is None:
            return None if self._met.is_set() else "no answer in time"
        refused = refusal(error, self._uri)
        if refused is not None:
            raise refused from error
        return reason(error)

    def begin(self, description: tracking.Description, *, recipe: str) -> None:
        """Create or continue the MLflow run, and ship from now on."""
        self._known = Acknowledged.read(self._folder, self._identity.key)
        self._known.status = ""  # it may have been changed elsewhere since
        self._events_due_at = 0.0
        self.keep("recipe.yaml", redact(recipe).encode())
        self._description = description  # last: the thread waits for it
        self._wake.set()

    def keep(self, name: str, content: bytes) -> None:
        """Keep an artifact with the run."""
        self._contents[name] = content
        self._new_files.set()

    def keep_folder(self, path: str, folder: Path) -> None:
        """Keep a folder's files as artifacts under a path, as they are when they are sent."""
        self._folders[path] = folder
        self._new_files.set()

    def end(self, status: tracking.Status, *, limit_s: float | None = 60.0) -> list[str]:
        """Set the run's status and ship what is left.

        Args:
            status: of the run.
            limit_s: give up after so long, even while the server answers.

        Returns:
            What MLflow does not have, in words; empty when it has everything.
        """
        self._status, self._ended_ms = status, int(time.time() * 1000)
        self._events_due_at = 0.0
        began = time.monotonic()
        self._ending.set()
        self._wake.set()
        while self._thread.is_alive():
            self._thread.join(0.1)
            now = time.monotonic()
            quiet = now - max(began, self._answered_at)
            if quiet > (REFUSED_S if self._error is not None else SILENT_S):
                break
            if limit_s is not None and now - began > limit_s:
                break
        self._abandoned.set()
        return self._missing() if self._thread.is_alive() or self._error is not None else []

    @property
    def trouble(self) -> str:
        """Why the last round failed, in a few words."""
        return reason(self._error) if self._error is not None else "no answer in time"

    # --- in the thread -----------------------------------------------------------------------

    def _run(self) -> None:
        pause = SHIP_INTERVAL_S
        while not self._abandoned.is_set():
            ending = self._ending.is_set()  # read first: lines before end() are then seen below
            try:
                sent = self._round()
            except Exception as error:
                if self._error is None:
                    logger.warning("MLflow does not answer, the run waits: %s", first_line(error))
                self._error = error
                self._stored = None
                self._put_aside()
                pause = min(2 * pause, LONGEST_PAUSE_S)
            else:
                if self._error is not None:
                    logger.warning("MLflow answers again")
                self._error, pause = None, SHIP_INTERVAL_S
                self._answered_at = time.monotonic()
                if sent:
                    continue
                if ending and self._description is not None:
                    return
            finally:
                self._met.set()
            if ending:
                self._abandoned.wait(PAUSE_WHILE_ENDING_S)
            elif self._wake.wait(pause):
                self._wake.clear()

    def _put_aside(self) -> None:
        if time.monotonic() >= self._aside_due_at:
            self._aside_due_at = time.monotonic() + ASIDE_INTERVAL_S
            self._aside(waiting(self._folder, self._identity.key))

    def _round(self) -> bool:
        """Bring one thing to the server; False when it has everything."""
        if self._client is None:
            try:
                self._client = tracking.connect(self._uri)
            finally:
                self._connected.set()
        if self._description is None:
            if not self._met.is_set() or self._error is not None:
                tracking.look(self._client, self._uri, self._identity)
            return False
        run_id = self._claim()
        return (
            self._ship_description(run_id, self._description)
            or self._ship_points(run_id)
            or self._ship_status(run_id)
            or self._ship_files(run_id)
        )

    def _claim(self) -> str:
        ending_in_doubt = self._ending.is_set() and self._doubtful
        if not self._claimed or ending_in_doubt:
            try:
                self.run_id = tracking.claim(self._client, self._uri, self._identity)
            except Exception:
                self._doubtful = True
                raise
            if ending_in_doubt:
                self._doubtful = False
            if (
                self._known.run_id != self.run_id
            ):  # what another one has says nothing about this one
                self._known = Acknowledged(run_id=self.run_id)
            self._claimed = True
        assert self.run_id is not None
        return self.run_id

    def _ship_description(self, run_id: str, description: tracking.Description) -> bool:
        digest = _digest(json.dumps(asdict(description), sort_keys=True, default=str).encode())
        if digest == self._known.described:
            return False
        tracking.describe(self._client, run_id, self._identity, description)
        self._known.described = digest
        self._save()
        return True

    def _ship_points(self, run_id: str) -> bool:
        from mlflow.entities import Metric

        lines, end = self._next_lines()
        if not lines:
            return False
        if self._stored is None:
            run = self._client.get_run(run_id)
            self._stored = {metric.key: metric.step for metric in run.data.to_proto().metrics}
        metrics = [
            Metric(name, value, line["t"], line["s"])
            for line in lines
            for name, value in line["m"].items()
            if line["s"] > self._stored.get(name, -1)
        ]
        for first in range(0, len(metrics), METRICS_PER_BATCH):
            self._client.log_batch(
                run_id, metrics=metrics[first : first + METRICS_PER_BATCH], synchronous=True
            )
            self._answered_at = time.monotonic()
        for metric in metrics:
            self._stored[metric.key] = max(metric.step, self._stored.get(metric.key, -1))
        tags = {name: value for line in lines for name, value in line["tags"].items()}
        for name, value in tags.items():
            self._client.set_tag(run_id, name, value)
        if ATTEMPT in tags and self._events_due_at is None:
            self._events_due_at = time.monotonic() + EVENTS_INTERVAL_S
        highest = self._known.highest
        for line in lines:
            for name in line["m"]:
                highest[name] = max(line["s"], highest.get(name, -1))
        if not self._known.bytes:
            self._known.beginning = beginning(self._folder, self._identity.key)
        self._known.bytes = end
        self._save()
        return True

    def _next_lines(self) -> tuple[list[dict[str, Any]], int]:
        lines: list[dict[str, Any]] = []
        count, end = 0, self._known.bytes
        try:
            file = points_file(self._folder, self._identity.key).open("rb")
        except FileNotFoundError:  # nobody has written a point yet
            return lines, end
        with file:
            os.fsync(file.fileno())  # what is in the store must not be missing here after a crash
            file.seek(end)
            while count < METRICS_PER_BATCH:
                line = file.readline()
                if not line.endswith(b"\n"):
                    break
                lines.append(read_line(line))
                count += max(1, len(lines[-1]["m"]))
                end = file.tell()
        return lines, end

    def _ship_status(self, run_id: str) -> bool:
        status, ended = self._status, self._ended_ms
        if status == self._known.status:
            return False
        if status == "RUNNING":
            self._client.update_run(run_id, status=status)
        else:
            self._client.set_terminated(run_id, status, ended)
        self._known.status = status
        self._save()
        return True

    def _ship_files(self, run_id: str) -> bool:
        """Ship one artifact that MLflow lacks."""
        if self._events_due_at is not None and time.monotonic() >= self._events_due_at:
            self._events_due_at = None
            try:
                events = self._read_events()
                if events is not None:
                    self.keep("events.jsonl", events)
            except Exception:  # the storage's trouble, not MLflow's
                logger.exception("events of %s", self._identity.name)
        if not self._new_files.is_set():
            return False
        self._new_files.clear()
        for name, content in self._files():
            digest = _digest(content)
            if self._known.files.get(name) != digest:
                self._new_files.set()  # first: more may follow, and this one may fail
                _log_artifact(self._client, run_id, name, content)
                self._known.files[name] = digest
                self._save()
                return True
        return False

    def _files(self) -> list[tuple[str, bytes]]:
        found = list(self._contents.items())
        for path, folder in list(self._folders.items()):
            for file in sorted(folder.rglob("*")):
                with contextlib.suppress(OSError):  # gone again, or a folder
                    found.append((f"{path}/{file.relative_to(folder)}", file.read_bytes()))
        return found

    def _save(self) -> None:
        self._answered_at = time.monotonic()
        try:
            self._known.write(self._folder, self._identity.key)
        except OSError as error:  # without it more is sent again, which does no harm
            logger.warning("cannot note in %s what MLflow has: %s", self._folder, error)

    # --- in the caller's thread, after the end --------------------------------------------------

    def _missing(self) -> list[str]:
        known = self._known
        lines = waiting(self._folder, self._identity.key).splitlines()
        points = sum(len(read_line(line)["m"]) for line in lines)
        files = sum(known.files.get(name) != _digest(content) for name, content in self._files())
        counts = ((points, "point"), (files, "file"))
        missing = [f"{count} {what}{'s' * (count > 1)}" for count, what in counts if count]
        if not known.described:
            missing.append("its description")
        if known.status != self._status:
            missing.append("its end")
        return missing


def _log_artifact(client: Any, run_id: str, name: str, content: bytes) -> None:
    path, _, file = name.rpartition("/")
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder, file)
        local.write_bytes(content)
        client.log_artifact(run_id, str(local), path or None)


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()

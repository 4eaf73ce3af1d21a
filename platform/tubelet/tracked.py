"""The driver's side of a run's MLflow run: how it begins, what is kept with it, how it ends.

Nothing here waits for the server but ``meet`` and ``end``, for bounded times, and nothing here ends a run but a mistake
of the user's that shows before it has begun. What MLflow lacks in the end, the same command brings there later.
"""

import contextlib
import logging
import uuid
from pathlib import Path
from typing import Any

from clips import storage
from tubelet import config, quarantine, terminal, tracking
from tubelet.fit import Job, spool_folder
from tubelet.run_directory import RunDirectory
from tubelet.shipping import Shipper
from tubelet.spool import points_file, waiting

_log = logging.getLogger(__name__)


class Tracked:
    """A run in MLflow, as a context: entered before anything of the run is written.

    Args:
        job: what is run.
        directory: of the run.
        record: the content of ``run.json``; gets the key by which the MLflow run is found, and its id once known.
        uri: MLflow tracking URI.
        root: ``run.storage``.

    Raises:
        TrackingError: MLflow cannot be used as asked; on entering, nothing was changed.
    """

    def __init__(
        self, job: Job, directory: RunDirectory, record: dict[str, Any], *, uri: str, root: str
    ) -> None:
        self._parameters = tracking.redacted(config.flatten(job.recipe))
        record.setdefault("mlflow_key", record.get("mlflow_run_id") or uuid.uuid4().hex)
        record.setdefault("began_with", self._parameters)
        self._job, self._directory, self._record = job, directory, record
        self.uri, self._folder = uri, Path(spool_folder(directory))
        self._shipper = Shipper(
            uri,
            tracking.Identity(
                job=job.kind,
                name=record["name"],
                storage=root,
                key=record["mlflow_key"],
                run_id=record.get("mlflow_run_id"),
            ),
            folder=self._folder,
            events=self._events,
            aside=self._put_aside,
        )
        if self._copy and not self.points.exists() and storage.exists(self._copy):
            self.points.parent.mkdir(parents=True, exist_ok=True)
            self.points.write_bytes(storage.read_bytes(self._copy))

    def __enter__(self) -> "Tracked":
        """Ask the server whether it is there, and tell the user if not."""
        self._shipper.__enter__()
        try:
            silence = self._shipper.meet()
        except BaseException:
            self._shipper.__exit__()
            raise
        if silence is not None:
            terminal.say(
                f"note: MLflow at {tracking.redact(self.uri)} does not answer ({silence}); "
                f"points wait in {self._folder} and are sent when it does"
            )
        return self

    def __exit__(self, *exception: object) -> None:
        """Send nothing more."""
        self._shipper.__exit__(*exception)

    @property
    def key(self) -> str:
        """What makes the run unlike all others."""
        return self._record["mlflow_key"]

    @property
    def points(self) -> Path:
        """File of the points on this machine."""
        return points_file(self._folder, self.key)

    @property
    def run_id(self) -> str | None:
        """Of the MLflow run; None while no server has given one."""
        return self._shipper.run_id

    def begin(self, *, revision: str) -> None:
        """Ship from now on; ``run.json`` has been written."""
        self._shipper.begin(
            tracking.Description(
                parameters=self._parameters,
                began_with=self._record["began_with"],
                manifest=self._job.manifest_hash,
                revision=revision,
                tags=self._job.tags,
            ),
            recipe=config.to_yaml(self._job.recipe),
        )

    def draw(self) -> None:
        """Make the pictures that are due and show them in MLflow; a failure here only warns."""
        if self._job.draw is None:
            return
        folder = self._folder.parent / "pictures"
        try:
            self._job.draw(self._job.recipe, self._directory, self.points, folder)
        except Exception:
            _log.exception("pictures of %s", self._directory.uri)
            log = self._folder.parent / "logs" / "driver.log"
            terminal.say(f"note: a picture could not be made; see {log}")
        self._shipper.keep_folder("pictures", folder)

    def keep_quarantine(self) -> None:
        """Tell of the videos that could not be decoded, and keep their list with the run in MLflow."""
        directory = self._directory
        tip = directory.resume_point(directory.newest_attempt())
        entries = quarantine.read(directory, tip.name) if tip else []
        if tip is None or not entries:
            return
        uri = quarantine.uri_of(directory, tip.name)
        self._shipper.keep("quarantine/quarantine.parquet", storage.read_bytes(uri))
        terminal.say(f"note: {quarantine.summary(entries)}, listed in {storage.redact(uri)}")

    def end(self, status: tracking.Status, *, limit_s: float | None = 60.0) -> bool:
        """Ship what is left, and say what stays behind; True when MLflow has everything."""
        missing = self._shipper.end(status, limit_s=limit_s)
        if missing:
            terminal.say(
                f"note: MLflow at {tracking.redact(self.uri)} does not have everything of this run "
                f"({', '.join(missing)}; {self._shipper.trouble}): the same command sends the rest when it answers"
            )
            self._put_aside(waiting(self._folder, self.key))
        elif self._copy:
            with contextlib.suppress(storage.StorageError):  # it is sent again, which does no harm
                storage.remove(self._copy)
        if self.run_id is not None and self._record.get("mlflow_run_id") != self.run_id:
            self._record["mlflow_run_id"] = self.run_id
            self._directory.write_json(self._record, "run.json")
        return not missing

    @property
    def _copy(self) -> str | None:
        """Where a run in a bucket has the points that wait, should this machine be lost."""
        uri = self._directory.path("spool", f"{self.key}.jsonl")
        return None if storage.is_local(uri) else uri

    def _put_aside(self, points: bytes) -> None:
        if self._copy and points:
            try:
                storage.write_bytes(self._copy, points)
            except storage.StorageError:
                _log.exception("points of %s", self._directory.uri)

    def _events(self) -> bytes | None:
        uri = self._directory.path("events.jsonl")
        if not storage.exists(uri):
            return None
        return tracking.redact(storage.read_bytes(uri).decode()).encode()

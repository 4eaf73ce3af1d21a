"""What others do to a run directory in its tests: processes that begin attempts, workers that keep their audit."""

from typing import Any

from clips import storage
from tubelet import checkpoint
from tubelet.audit import AuditTrail
from tubelet.run_directory import RunDirectory


def begin_attempts(task: tuple[str, int]) -> list[int]:
    """Begin so many attempts, one after another; returns their numbers."""
    uri, count = task
    run = RunDirectory(uri)
    return [run.begin_attempt(ray_run="other", world_size=1).number for _ in range(count)]


def keep(run: RunDirectory, trail: AuditTrail) -> dict[str, dict[str, Any]]:
    """Write what a trail has noted, as saving does; returns what the commit lists."""
    files = trail.take()
    for name, content in files.items():
        storage.write_bytes(run.path("audit", name), content)
    return {name: checkpoint.fingerprint(run.path("audit", name)) for name in files}

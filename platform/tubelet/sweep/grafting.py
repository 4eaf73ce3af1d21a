"""Let a run go on from another run's checkpoint: how a population's trial takes over a better one's weights.

Two steps, since the better run goes on meanwhile and deletes old checkpoints, and the other one has to leave first:
when the scheduler decides it, the checkpoint is set aside in the sweep's folder; when the trial starts again, it takes
it. It comes in under the number of a new attempt that descends from nothing: whatever the run did before is outside its
lineage from then on, and is never resumed from. ``tubelet audit`` cannot prove such a run from its own folder, since
another one made its first steps.
"""

import json
import time
from dataclasses import asdict, replace

from clips import storage
from tubelet.run_directory import Attempt, Commit, RunDirectory, checkpoint_name

_TRIES = 5


def set_aside(source: RunDirectory, place: str) -> int | None:
    """Copy a run's newest checkpoint to a folder; returns its step, None where there is none.

    Raises:
        StorageError: it cannot be copied.
    """
    for left in reversed(range(_TRIES)):
        commit = source.resume_point(source.newest_attempt())
        if commit is None:
            return None
        try:
            storage.remove(place)
            _copy(commit, source.path("checkpoints", commit.name), place)
        except storage.StorageError:  # deleted meanwhile: a newer one is there
            if not left:
                raise
            time.sleep(1.0)
        else:
            content = {"commit": asdict(commit), "source": source.uri}
            storage.write_bytes(f"{place}/{_WHOLE}", json.dumps(content).encode())
            return commit.step
    return None


def take(place: str, target: RunDirectory) -> int:
    """Let a run, which nobody drives now, go on from what was set aside; returns the step."""
    content = json.loads(storage.read_bytes(f"{place}/{_WHOLE}"))
    commit, newest = Commit(**content["commit"]), target.newest_attempt()
    number = newest.number + 1 if newest else 1
    own = checkpoint_name(commit.step, number)
    _copy(commit, place, target.path("checkpoints", own))
    taken = replace(commit, attempt=number, audit={}, points=[])
    target.write_json(asdict(taken), "checkpoints", own, "commit.json")
    attempt = Attempt(
        number=number,
        step=commit.step,
        parent=None,
        world_size=commit.world_size,
        ray_run=f"from {storage.redact(content['source'])}",
        started_unix_s=round(time.time(), 3),
    )
    encoded = json.dumps(asdict(attempt), indent=1, sort_keys=True).encode()
    assert storage.create_exclusive(target.path("attempts", f"{number:05d}.json"), encoded)
    target.record_event("graft", attempt=number, step=commit.step, source=content["source"])
    storage.remove(place)
    return commit.step


def taken(run: RunDirectory) -> int:
    """How often a run has gone on from another one's checkpoint."""
    return sum(event["event"] == "graft" for event in run.events())


_WHOLE = "set_aside.json"


def _copy(commit: Commit, source: str, target: str) -> None:
    for name in commit.files:
        storage.write_bytes(f"{target}/{name}", storage.read_bytes(f"{source}/{name}"))

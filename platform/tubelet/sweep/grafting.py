"""Let a run go on from another run's newest checkpoint: how a population's trial takes over a better one's weights.

The checkpoint is copied under the number of a new attempt of the taking run, which descends from nothing: whatever
that run did before is outside its lineage from then on, and is never resumed from. ``tubelet audit`` cannot prove such
a run from its own folder, since another one made its first steps.
"""

import json
import time
from dataclasses import asdict, replace

from clips import storage
from tubelet.run_directory import Attempt, RunDirectory, checkpoint_name

_TRIES = 5


def graft(source: RunDirectory, target: RunDirectory) -> int | None:
    """Copy the newest checkpoint of ``source``; returns its step, None where it has none.

    Raises:
        StorageError: it cannot be copied.
    """
    for left in reversed(range(_TRIES)):
        commit = source.resume_point(source.newest_attempt())
        if commit is None:
            break
        try:
            return _copy(source, target, commit.name)
        except storage.StorageError:  # deleted meanwhile: a newer one is there
            if not left:
                raise
            time.sleep(1.0)
    target.record_event("graft", source=source.uri, step=None)
    return None


def grafts(run: RunDirectory) -> int:
    """How often a run has gone on from another one's checkpoint."""
    return sum(event["event"] == "graft" for event in run.events())


def _copy(source: RunDirectory, target: RunDirectory, name: str) -> int:
    commit = source.commit(name)
    newest = target.newest_attempt()
    number = newest.number + 1 if newest else 1
    own = checkpoint_name(commit.step, number)
    for file in storage.list_names(source.path("checkpoints", name)):
        if file != "commit.json":
            content = storage.read_bytes(source.path("checkpoints", name, file))
            storage.write_bytes(target.path("checkpoints", own, file), content)
    attempt = Attempt(
        number=number,
        step=commit.step,
        parent=None,
        world_size=commit.world_size,
        ray_run=f"from {storage.redact(source.uri)}",
        started_unix_s=round(time.time(), 3),
    )
    taken = replace(commit, attempt=number, audit={}, points=[])
    target.write_json(asdict(taken), "checkpoints", own, "commit.json")
    content = json.dumps(asdict(attempt), indent=1, sort_keys=True).encode()
    assert storage.create_exclusive(target.path("attempts", f"{number:05d}.json"), content)
    target.record_event("graft", attempt=number, step=commit.step, source=source.uri)
    return commit.step

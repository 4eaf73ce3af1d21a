"""What a run leaves in storage, and the one decision about where it resumes.

    <run.storage>/<run.name>/
        run.json  recipe.yaml  finished.json  owner.json (while a driver trains)
        attempts/00001.json            one per start of a worker group: world size, parent checkpoint, step
        attempts/00001.stop            somebody asked this attempt to checkpoint and leave
        checkpoints/step_0000001200-a00001/{*.distcp, .metadata, commit.json}
        audit/  quarantine/  reconstructed/ (clips to draw)  pictures/  export/  spool/  stacks/  logs/  events.jsonl
        ray/ (Ray's own, disposable)

A checkpoint exists for readers once its ``commit.json`` does. Which one a worker group resumes from is decided once, by
the controller, and written as an attempt file that only one writer can create; feed and workers read nothing else.
Readers follow the lineage of the newest attempt, so that a stale worker's late commit is never seen: that is the fence.
"""

import json
import re
import time
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from annotated_types import Ge, Lt

from clips import storage

FORMAT_VERSION = 1
KEPT = ("logs", "owner.json")
"""What stays when a run is deleted to begin anew: who asks for that is writing them."""


@dataclass(frozen=True)
class RunConfig:
    """Section ``run``: which run this is and where it lives."""

    name: str | None = None
    """Default: the recipe's file name without its ending. An unfinished run of this name is resumed."""
    storage: str = field(default="build/runs", metadata={"resume": "free"})
    """Folder or ``s3://`` prefix that holds the run's own folder."""
    seed: Annotated[int, Ge(0), Lt(2**63)] = 0
    fresh: bool = field(default=False, metadata={"resume": "free"})
    """Delete what a run of this name left, and begin anew."""

    def __post_init__(self) -> None:
        if self.name is not None and (not self.name.strip(". ") or "/" in self.name):
            raise ValueError(
                f"run.name is {self.name!r}: it is the name of one folder in run.storage ({self.storage}), "
                "neither empty nor a path"
            )


@dataclass(frozen=True)
class ResumeConfig:
    """Section ``resume``: ways out of the rule that a run resumes as it was."""

    allow: list[str] = field(default_factory=list, metadata={"resume": "free"})
    """Fixed keys that may differ from the run's earlier start, such as ``[schedule.epochs]``."""


@dataclass(frozen=True)
class Attempt:
    """One start of a worker group."""

    number: int
    step: int
    """Optimizer steps already done when it starts."""
    parent: str | None
    """Name of the checkpoint it loads; None at the very beginning."""
    world_size: int
    ray_run: str
    """Ray Train's name of the driver's start that made it."""
    started_unix_s: float = 0.0


@dataclass(frozen=True)
class Commit:
    """Content of a checkpoint's ``commit.json``."""

    step: int
    attempt: int
    world_size: int
    files: dict[str, dict[str, Any]]
    """Name in the checkpoint's folder -> ``{"size": bytes, "sha256": hex}``."""
    audit: dict[str, dict[str, Any]]
    """The same for the audit files (names in ``audit/``) of the steps since the attempt's previous commit."""
    points: list[dict[str, Any]]
    """Metrics of those steps, and of earlier ones that may not have reached the controller when the workers died."""
    best: dict[str, Any] = field(default_factory=dict)
    """The least held-out loss so far, as keywords of ``best.Best``."""
    version: int = FORMAT_VERSION

    @property
    def name(self) -> str:
        """Name of the checkpoint's folder."""
        return checkpoint_name(self.step, self.attempt)


def checkpoint_name(step: int, attempt: int) -> str:
    """Folder of a checkpoint: sorts by step, and tells attempts apart."""
    return f"step_{step:010d}-a{attempt:05d}"


def parse_name(name: str) -> tuple[int, int]:
    """Step and attempt of a checkpoint's folder."""
    found = _NAME.fullmatch(name)
    assert found, name
    return int(found[1]), int(found[2])


_NAME = re.compile(r"step_(\d{10})-a(\d{5})")


class RunDirectory:
    """The folder of one run, on a local disk or an object store.

    Args:
        uri: ``<run.storage>/<run.name>``; local paths must be absolute, since workers have another working directory.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")

    def path(self, *parts: str) -> str:
        """URI of something in it."""
        return "/".join((self.uri, *parts))

    def read_json(self, *parts: str) -> dict[str, Any] | None:
        """A JSON file's content, or None when it does not exist."""
        uri = self.path(*parts)
        return json.loads(storage.read_bytes(uri)) if storage.exists(uri) else None

    def write_json(self, content: dict[str, Any], *parts: str) -> None:
        """Write (or replace) a JSON file in one piece."""
        storage.write_bytes(self.path(*parts), _json(content))

    def clear(self) -> None:
        """Delete the run, but for what its new driver has begun to write."""
        for name in storage.list_names(self.uri):
            if name not in KEPT:
                storage.remove(self.path(name))

    # --- attempts --------------------------------------------------------------------------------

    def attempts(self) -> list[Attempt]:
        """All attempts, oldest first."""
        names = storage.list_names(self.path("attempts"))
        numbers = sorted(int(n.removesuffix(".json")) for n in names if n.endswith(".json"))
        return [self.attempt(number) for number in numbers]

    def attempt(self, number: int) -> Attempt:
        """An attempt by its number."""
        return Attempt(
            **json.loads(storage.read_bytes(self.path("attempts", f"{number:05d}.json")))
        )

    def newest_attempt(self) -> Attempt | None:
        """The attempt whose lineage counts."""
        names = storage.list_names(self.path("attempts"))
        numbers = [int(n.removesuffix(".json")) for n in names if n.endswith(".json")]
        return self.attempt(max(numbers)) if numbers else None

    def begin_attempt(self, *, ray_run: str, world_size: int) -> Attempt:
        """Decide where the next worker group resumes, and write it down.

        Of several callers at once each gets a number of its own; the highest one counts.
        """
        while True:
            newest = self.newest_attempt()
            parent = self.resume_point(newest)
            attempt = Attempt(
                number=newest.number + 1 if newest else 1,
                step=parent.step if parent else 0,
                parent=parent.name if parent else None,
                world_size=world_size,
                ray_run=ray_run,
                started_unix_s=round(time.time(), 3),
            )
            uri = self.path("attempts", f"{attempt.number:05d}.json")
            if storage.create_exclusive(uri, _json(asdict(attempt))):
                return attempt

    def resume_point(self, newest: Attempt | None) -> Commit | None:
        """The newest commit in the lineage of ``newest``: its own last one, else one of those it descends from.

        Going further back than its parent happens when that was damaged and has been set aside, or was removed.
        """
        names, before = self.committed(), None
        while newest is not None:
            own = [n for n in names if parse_name(n)[1] == newest.number]
            own = [n for n in own if before is None or n <= before]
            if own:
                return self.commit(max(own))
            before = newest.parent
            newest = self.attempt(parse_name(before)[1]) if before else None
        return None

    def lineage(self) -> list[tuple[Attempt, int]]:
        """The attempts that the run's current state descends from, each with the step up to which it counts."""
        attempts = {a.number: a for a in self.attempts()}
        if not attempts:
            return []
        newest = attempts[max(attempts)]
        tip = self.resume_point(newest)
        out: list[tuple[Attempt, int]] = []
        name = tip.name if tip else None
        while name:
            step, number = parse_name(name)
            out.insert(0, (attempts[number], step))
            name = attempts[number].parent
        return out

    # --- checkpoints -----------------------------------------------------------------------------

    def begun(self) -> list[str]:
        """Names of all checkpoint folders, complete or not, oldest step first."""
        return [n for n in storage.list_names(self.path("checkpoints")) if _NAME.fullmatch(n)]

    def committed(self) -> list[str]:
        """Names of the checkpoints that exist for readers, oldest step first."""
        return [
            n for n in self.begun() if storage.exists(self.path("checkpoints", n, "commit.json"))
        ]

    def commit(self, name: str) -> Commit:
        """What a committed checkpoint holds.

        Raises:
            ValueError: when a newer release wrote it.
        """
        content = json.loads(storage.read_bytes(self.path("checkpoints", name, "commit.json")))
        if content["version"] > FORMAT_VERSION:
            raise ValueError(
                f"{self.path('checkpoints', name)}: format version {content['version']} is newer than"
                f" this release reads ({FORMAT_VERSION}); resume with the release that wrote it"
            )
        return Commit(**content)

    def set_aside(self, name: str, files: list[str]) -> None:
        """A committed checkpoint turned out damaged: from now on it does not exist for readers."""
        self.write_json({"files": files}, "checkpoints", name, "damaged.json")
        storage.remove(self.path("checkpoints", name, "commit.json"))
        self.record_event("damaged", checkpoint=name, files=files)

    # --- stopping and events ---------------------------------------------------------------------

    def request_stop(self, attempt: int, reason: str) -> None:
        """Ask an attempt to checkpoint and leave."""
        storage.write_bytes(self.path("attempts", f"{attempt:05d}.stop"), reason.encode())

    def stop_requested(self, attempt: int) -> bool:
        """Whether somebody asked an attempt to leave."""
        return storage.exists(self.path("attempts", f"{attempt:05d}.stop"))

    def record_event(self, kind: str, **details: Any) -> None:
        """Add a line to ``events.jsonl`` (few lines a run; the controller and the driver write it in turn)."""
        uri = self.path("events.jsonl")
        before = storage.read_bytes(uri) if storage.exists(uri) else b""
        line = json.dumps({"unix_s": round(time.time(), 3), "event": kind, **details})
        storage.write_bytes(uri, before + line.encode() + b"\n")

    def events(self) -> list[dict[str, Any]]:
        """All lines of ``events.jsonl``."""
        uri = self.path("events.jsonl")
        lines = storage.read_bytes(uri).splitlines() if storage.exists(uri) else []
        return [json.loads(line) for line in lines]

    def gave_up(self) -> str | None:
        """Why the newest attempt was the last one, if its failure was one too many."""
        failures = [event for event in self.events() if event["event"] in ("failure", "attempt")]
        return failures[-1].get("gave_up") if failures else None


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1, sort_keys=True).encode()

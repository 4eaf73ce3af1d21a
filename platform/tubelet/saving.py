"""Saving without stopping: training waits for a copy of the state, and goes on while that is written and committed.

Every rank copies its shards into buffers that are used again (``stage``), and hands them to a thread, which with the
threads of the other ranks and a process group of their own

    writes the shards, and what else the checkpoint names: its quarantine, the audit since the last one
    hashes what arrived
    gathers all hashes; rank 0 writes ``commit.json`` last

so a checkpoint exists for readers, whole, or does not. One save is under way at a time; the next waits for it. A save
that fails (the disk is full, the store gone) has the same verdict on every rank: nothing is committed, its parts are
removed, what it held of the audit goes with the next, and training goes on. (Parts stay when only the commit failed: a
store that gives no answer may still have it.)

Costs: the copy, and memory for it (three times the parameters, on the host).
"""

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from clips import storage
from tubelet import checkpoint, pulse, quarantine, retention
from tubelet.checkpoint import CheckpointConfig
from tubelet.node_copies import NodeCopies
from tubelet.optim import ShardedAdamW
from tubelet.quarantine import Entry
from tubelet.run_directory import Commit, RunDirectory, checkpoint_name

_log = logging.getLogger(__name__)

_NOTHING: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Verdict:
    """How a save ended; the same on every rank."""

    step: int
    error: str | None
    """Of the first rank that failed; None: committed."""
    seconds: float
    """From the copy to the commit, on this rank."""


@dataclass(frozen=True)
class _Contents:
    """What is written, besides shards."""

    audit: Mapping[str, bytes]
    points: Sequence[dict[str, Any]]
    bad: Sequence[Entry]
    best: Mapping[str, Any]


class Saver:
    """One rank's end of saving (made by all ranks at once: it opens a process group).

    Args:
        run: where.
        attempt: number of this attempt.
        config: the recipe's section.
        committed: step that is safe already.
    """

    def __init__(
        self, run: RunDirectory, *, attempt: int, config: CheckpointConfig, committed: int = 0
    ) -> None:
        self._run, self._attempt, self._config = run, attempt, config
        self._rank, self._world_size = dist.get_rank(), dist.get_world_size()
        self._copies = NodeCopies(run, config.node_dir)
        self._group: Any = dist.new_group(backend="gloo")
        self._stager = DefaultStager(
            StagingOptions(
                use_pinned_memory=False,
                use_shared_memory=False,
                use_async_staging=False,
                use_non_blocking_copy=False,
            )
        )
        self._thread: threading.Thread | None = None
        self._ended: Verdict | BaseException | None = None
        self._audit: dict[str, bytes] = {}  # not yet part of a commit
        self.committed = committed
        """Newest step that is safe."""
        self.failed = 0
        """Saves that failed since the last good one."""

    def begin(
        self,
        step: int,
        *,
        model: nn.Module,
        optimizer: ShardedAdamW,
        audit: Mapping[str, bytes],
        points: Sequence[dict[str, Any]],
        bad: Sequence[Entry],
        best: Mapping[str, Any] = _NOTHING,
    ) -> Verdict | None:
        """Copy the state and have it written; returns the verdict on the save before, if one was under way.

        Args:
            step: optimizer steps done.
            model: sharded.
            optimizer: over the same parameters.
            audit: this rank's audit files since the last call, name -> content.
            points: rank 0's metrics that are not certain to have arrived elsewhere.
            bad: what is known of videos that could not be decoded.
            best: how good the run has been on held-out clips.
        """
        before = self.finish()
        pulse.beat(step, "stage")
        begun = time.monotonic()
        state = self._stager.stage(checkpoint.state_of(model, optimizer))
        self._audit |= audit
        contents = _Contents(dict(self._audit), list(points), list(bad), dict(best))
        arguments = (step, state, contents, begun)
        if self._config.background:
            self._thread = threading.Thread(
                target=self._run_to_end, args=arguments, name="saving", daemon=True
            )
            self._thread.start()
        else:
            self._run_to_end(*arguments)
        return before

    def finish(self) -> Verdict | None:
        """Wait for the save that is under way; its verdict, or None when there was none.

        Raises:
            Exception: a rank has died in it.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        ended, self._ended = self._ended, None
        if isinstance(ended, BaseException):
            raise ended
        if ended is not None:
            self.failed = self.failed + 1 if ended.error else 0
            if ended.error is None:
                self._audit = {}
        return ended

    def _run_to_end(self, step: int, state: Any, contents: _Contents, begun: float) -> None:
        try:
            error = self._save(step, state, contents)
            self._ended = Verdict(step, error, time.monotonic() - begun)
        except BaseException as died:
            self._ended = died

    def _save(self, step: int, state: Any, contents: _Contents) -> str | None:
        name = checkpoint_name(step, self._attempt)
        errors: list[str] = []
        files: dict[str, Any] = {}
        audit: dict[str, Any] = {}
        pulse.background(step, "write")
        with _noting(errors):
            if self._rank == 0:
                quarantine.write(self._run, name, contents.bad)
            for file, content in contents.audit.items():
                storage.write_bytes(self._run.path("audit", file), content)
                audit[file] = storage.fingerprint(self._run.path("audit", file))
        with _noting(errors):  # fails on all ranks when it does on one
            writer = dcp.FileSystemWriter(self._copies.folder(name), single_file_per_rank=True)
            dcp.save(state, storage_writer=writer, process_group=self._group)
        with _noting(errors):
            for file in self._copies.written(name):
                if checkpoint.wrote(file, self._rank):
                    files[file] = self._copies.send(name, file)
        everyone: list[Any] = [None] * self._world_size
        dist.all_gather_object(everyone, (files, audit, errors), group=self._group)
        failed = [text for _, _, texts in everyone for text in texts]
        pulse.background(step, "commit")
        said = [failed[0] if failed else None]
        if failed:  # everyone has stopped writing: make room where the disk is full
            self._copies.drop(name)
            with _noting([]):
                if self._rank == 0:
                    storage.remove(self._run.path("checkpoints", name))
                    storage.remove(quarantine.uri_of(self._run, name))
        if self._rank == 0 and not failed:
            with _noting(failed):
                self._commit(step, everyone, contents.points, contents.best)
            said = [failed[0] if failed else None]
        dist.broadcast_object_list(said, src=0, group=self._group)
        if said[0] is None:
            self.committed = step
            self._copies.prune()
            if self._rank == 0:
                with _noting([]):
                    retention.prune(self._run, self._config)
        elif self._rank == 0:
            _log.warning("step %d could not be saved: %s", step, said[0])
        return said[0]

    def _commit(
        self,
        step: int,
        everyone: list[Any],
        points: Sequence[dict[str, Any]],
        best: Mapping[str, Any],
    ) -> None:
        commit = Commit(
            step=step,
            attempt=self._attempt,
            world_size=self._world_size,
            files={name: entry for files, _, _ in everyone for name, entry in files.items()},
            audit={name: entry for _, files, _ in everyone for name, entry in files.items()},
            points=list(points),
            best=dict(best),
        )
        self._run.write_json(vars(commit), "checkpoints", commit.name, "commit.json")


class _noting:
    """Turn an exception into a line for the verdict."""

    def __init__(self, errors: list[str]) -> None:
        self._errors = errors

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if not isinstance(error, (Exception, CheckpointException)):
            return False
        _log.debug("while saving", exc_info=error)
        self._errors.append(_line(error))
        return True


def _line(error: BaseException) -> str:
    """The cause in a line: DCP wraps what happened on each rank."""
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__

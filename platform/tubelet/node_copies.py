"""Copies of checkpoints on the node that wrote or read them: a bucket is written from them, and read into them.

A run in a bucket saves into a folder of the node and sends the files from there; it loads by bringing what the node
lacks into that folder, and reads there alone. So workers that start again where they were fetch nothing, requests have
the retries of `clips.storage`, and what is unpickled is the very file whose hash was checked. A run on a disk has no
copies.

Cost: room in ``checkpoint.node_dir`` for two checkpoints; a node that loads fetches the whole one.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clips import storage
from tubelet.run_directory import Commit, RunDirectory

_KEPT = 2
_PART_BYTES = 1 << 24


class NodeCopies:
    """The copies of one run on this node; every worker of the node has one of these.

    Args:
        run: whose checkpoints.
        folder: where this node may keep them; None: the system's temporary folder.
    """

    def __init__(self, run: RunDirectory, folder: str | None) -> None:
        self._run, self._remote = run, not storage.is_local(run.uri)
        root = Path(folder or tempfile.gettempdir()) / f"tubelet-{os.getuid()}"
        self._root = root / hashlib.sha256(run.uri.encode()).hexdigest()[:24]

    def folder(self, name: str) -> str:
        """Where a checkpoint is written to and read from on this node."""
        if not self._remote:
            return storage.local_path(self._run.path("checkpoints", name))
        (self._root / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        return str(self._root / name)

    def written(self, name: str) -> list[str]:
        """Files of a checkpoint that are here."""
        return sorted(os.listdir(self.folder(name)))

    def send(self, name: str, file: str) -> dict[str, Any]:
        """Bring a file from here to where the run is; returns the fingerprint of what arrived."""
        uri = f"{self._run.path('checkpoints', name)}/{file}"
        if self._remote:
            storage.upload(Path(self.folder(name), file), uri)
        return storage.fingerprint(uri)

    def fetch(self, commit: Commit, *, rank: int, world_size: int) -> list[str]:
        """Have a committed checkpoint's files here; each rank sees to a part of what its node reads.

        Returns:
            Names of the files of this rank's part that are missing or differ from what was committed.
        """
        if self._remote:  # ranks that know their place on the node share its work
            rank = int(os.environ.get("LOCAL_RANK", 0))
            world_size = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        part = sorted(commit.files.items())[rank::world_size]
        return [file for file, expected in part if not self._have(commit.name, file, expected)]

    def _have(self, name: str, file: str, expected: Mapping[str, Any]) -> bool:
        here = Path(self.folder(name), file)
        if storage.fingerprint(str(here)) == expected:
            return True
        uri = f"{self._run.path('checkpoints', name)}/{file}"
        if not self._remote or not storage.exists(uri):
            return False
        handle, part = tempfile.mkstemp(dir=here.parent, prefix=f".{file}.")
        with os.fdopen(handle, "wb") as target, storage.open_seekable(uri) as source:
            while block := source.read(_PART_BYTES):
                target.write(block)
        os.replace(part, here)  # whole, whoever else is fetching it
        return storage.fingerprint(str(here)) == expected

    def drop(self, name: str) -> None:
        """Forget a checkpoint that was not committed."""
        if self._remote:
            shutil.rmtree(self._root / name, ignore_errors=True)

    def prune(self) -> None:
        """Keep the copies that were made last."""
        if self._remote and self._root.exists():
            newest = sorted(self._root.iterdir(), key=lambda path: path.stat().st_mtime)
            for path in newest[:-_KEPT]:
                shutil.rmtree(path, ignore_errors=True)

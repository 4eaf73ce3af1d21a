"""Encoded objects kept on a node: 800 epochs must not read terabytes 800 times.

One folder, shared by all processes of the node; there is no server and nothing to start. What a
process may rely on:

* **Whole or not there.** An object is written beside the others and renamed. A process that is
  killed leaves a file that nobody holds (the kernel releases its lock); the next writer removes it.
* **Fetched once.** Who wants an object that another process is fetching waits for it (`turn`).
* **Bounded.** Objects, those being written included, never take more than the limit; the least
  recently used make room. Who has one open keeps its bytes (POSIX); who has only its path may find
  it gone, and fetches it again.
* **Never in the way.** A full or read-only disk is warned of once, and work goes on without it.

A hit costs a stat and a new time on the file, and takes no lock. A new object takes the folder's
lock twice, for microseconds: `lock` holds the bytes of each of the 256 folders that objects are
spread over, so nothing is listed. When room is needed, folders are listed in turn until some 2000
objects are known, and the oldest of them go, at most half of them: the least recently used
of a fair sample, which in a small cache is all of it. That also corrects the figures, should someone
have deleted files.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import secrets
import struct
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

_log = logging.getLogger(__name__)

FOLDERS = 256
SAMPLE = 2048
"""Objects that are compared when some must go."""
_INCOMING = "incoming"
_LEDGER = struct.Struct(f"={FOLDERS + 1}q")
"""In the lock file: bytes of each folder, and the folder to look through next."""

_given_up: set[str] = set()
"""Folders that this process no longer writes to."""


@dataclass(frozen=True)
class Kept:
    """One object of the cache."""

    used_ns: int
    """When it was last asked for."""
    size: int
    path: str
    folder: int
    """Number of the folder it lies in."""


@dataclass(frozen=True)
class Cache:
    """A bounded folder of objects. Travels to other processes of the node as its two fields."""

    folder: str
    limit_bytes: int

    def __post_init__(self) -> None:
        if not os.path.isabs(self.folder):
            raise ValueError(
                f"the cache folder {self.folder!r} is a relative path; give an absolute one: "
                "processes of one node work in different folders"
            )
        if self.limit_bytes < 1:
            raise ValueError(f"the cache may take {self.limit_bytes} bytes; give it at least 1")

    def takes(self, size: int) -> bool:
        """Return whether an object of `size` bytes is kept: none may take more than a quarter."""
        return size <= self.limit_bytes // 4

    def key(
        self, uri: str, *, size: int, etag: str | None = None, offset: int | None = None
    ) -> str:
        """Return the name under which that version of an object (or part of one) is kept."""
        named = repr((uri, offset, size, etag)).encode()
        return hashlib.blake2b(named, digest_size=20).hexdigest()

    def owns(self, path: str) -> bool:
        """Return whether `path` is, or was, an object of this cache."""
        return path.startswith(self.folder.rstrip("/") + "/")

    def find(self, key: str, *, size: int) -> str | None:
        """Return the path of an object of `size` bytes, now the most recently used; None: not here."""
        path = self._path(key)
        now = time.time_ns()
        try:
            if os.stat(path).st_size != size:  # written just before the machine went down
                os.unlink(path)
                return None
            os.utime(path, ns=(now, now))
        except OSError:
            return None
        return path

    @contextlib.contextmanager
    def turn(self, key: str) -> Iterator[None]:
        """Wait until no other process or thread fetches `key`, and keep them waiting within the block."""
        with contextlib.ExitStack() as held:
            try:
                name = os.path.join(self.folder, "turns", key[:3])
                lock = held.enter_context(_opened(name, os.O_RDWR | os.O_CREAT))
                fcntl.flock(lock, fcntl.LOCK_EX)
            except OSError as error:
                self._give_up(error)
            yield

    def store(self, key: str, pieces: Iterable[bytes], *, size: int) -> str | None:
        """Keep an object; return its path, or None where there is no room.

        Args:
            key: Its name.
            pieces: Its bytes, which together are `size`. What they raise passes through; an
                `OSError` counts as the disk's.
            size: Length of the object.
        """
        if self.folder in _given_up or not self.takes(size):
            return None
        path = self._path(key)
        try:
            with contextlib.ExitStack() as held:
                file = self._reserve(size, held)
                if file is None:
                    return None
                for piece in pieces:
                    file.write(piece)
                file.flush()  # here a full disk shows
                now = time.time_ns()
                os.utime(file.name, ns=(now, now))
                with self._ledger() as ledger:
                    ledger.taken[int(key[:2], 16)] += size
                    ledger.save()  # first: killed in between, we count too much
                    _renamed(file.name, path)
        except OSError as error:
            self._give_up(error)
            return None
        return path

    # --- room --------------------------------------------------------------------------------

    def _reserve(self, size: int, held: contextlib.ExitStack) -> BinaryIO | None:
        """Return a new file whose `size` bytes are counted from now on; None if there is no room."""
        with self._ledger() as ledger:
            most = self.limit_bytes - self._incoming_bytes() - size
            if ledger.total > most:
                self._evict(ledger, most)
            if ledger.total > most:
                return None  # others are writing that much just now
            name = os.path.join(self.folder, _INCOMING, f"{size}-{secrets.token_hex(8)}")
            file = held.enter_context(_opened(name, os.O_RDWR | os.O_CREAT | os.O_EXCL))
            held.callback(_unlink, name)
            fcntl.flock(file, fcntl.LOCK_EX)  # held until closed: by us, or by the kernel
            return file

    def _incoming_bytes(self) -> int:
        """Return what is being written takes; remove what dead processes have left."""
        total = 0
        for entry in _scanned(os.path.join(self.folder, _INCOMING)):
            with contextlib.suppress(FileNotFoundError), open(entry.path, "rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    total += int(entry.name.partition("-")[0])
                else:
                    os.unlink(entry.path)
        return total

    def _evict(self, ledger: "_Ledger", most: int) -> None:
        """Remove what was least recently used until the objects take `most` bytes, or all were seen."""
        looked_through = 0
        while ledger.total > most and looked_through < FOLDERS:
            sample: list[Kept] = []
            while looked_through < FOLDERS and len(sample) < SAMPLE:
                kept = self._listed(ledger.next)
                ledger.taken[ledger.next] = sum(one.size for one in kept)
                ledger.next = (ledger.next + 1) % FOLDERS
                looked_through += 1
                sample += kept
            part = len(sample) if looked_through == FOLDERS else len(sample) // 2
            excess, slack = ledger.total - most, self.limit_bytes // FOLDERS
            for one in oldest(sample, excess=excess, slack=slack)[:part]:
                _unlink(one.path)
                ledger.taken[one.folder] -= one.size
        ledger.save()

    def _listed(self, number: int) -> list[Kept]:
        found = []
        for entry in _scanned(os.path.join(self.folder, f"{number:02x}")):
            with contextlib.suppress(FileNotFoundError):
                stat = entry.stat()
                found.append(Kept(stat.st_mtime_ns, stat.st_size, entry.path, number))
        return found

    @contextlib.contextmanager
    def _ledger(self) -> Iterator["_Ledger"]:
        """Hold the folder's lock, and with it its ledger."""
        with _opened(os.path.join(self.folder, "lock"), os.O_RDWR | os.O_CREAT) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            data = file.read()
            if len(data) == _LEDGER.size:
                *taken, number = _LEDGER.unpack(data)
                yield _Ledger(file, taken, number)
            else:  # new, or somebody deleted the lock but not the objects
                taken = [sum(one.size for one in self._listed(n)) for n in range(FOLDERS)]
                yield _Ledger(file, taken, 0)

    def _path(self, key: str) -> str:
        return os.path.join(self.folder, key[:2], key)

    def _give_up(self, error: OSError) -> None:
        """Warn once; this process writes no more, and still reads what is there."""
        if self.folder not in _given_up:
            _given_up.add(self.folder)
            _log.warning(
                "the cache %s is no longer written to: %s; videos are read from their storage",
                self.folder,
                error,
            )


def oldest(sample: list[Kept], *, excess: int, slack: int) -> list[Kept]:
    """Return the least recently used objects that together take `excess` bytes, oldest first.

    A few more go where they fit into `slack`, so that the next ones find room.
    """
    chosen, freed = [], 0
    for one in sorted(sample, key=lambda kept: kept.used_ns):
        if freed >= excess and freed + one.size > excess + slack:
            break
        chosen.append(one)
        freed += one.size
    return chosen


@dataclass
class _Ledger:
    """What the lock file says, while it is locked."""

    file: BinaryIO
    taken: list[int]
    """Bytes of each folder."""
    next: int
    """Folder to look through next."""

    @property
    def total(self) -> int:
        return sum(self.taken)

    def save(self) -> None:
        os.pwrite(self.file.fileno(), _LEDGER.pack(*self.taken, self.next), 0)


def _opened(path: str, flags: int) -> BinaryIO:
    """Open a file for writing, and make its folder if need be."""

    def opener(path: str, _: int) -> int:
        return os.open(path, flags | os.O_CLOEXEC, 0o666)

    try:
        return open(path, "r+b", opener=opener)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return open(path, "r+b", opener=opener)


def _renamed(path: str, target: str) -> None:
    try:
        os.rename(path, target)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.rename(path, target)


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _scanned(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:
        return []

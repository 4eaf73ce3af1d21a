"""Decoding in a process that may die: a file that crashes it, hangs or eats memory costs a clip, not the run.

`take_clips` gives what `load_clips` and `load_views` give, but the video is read in a process beside the caller's,
which imports neither torch nor Ray, has bounds on time and memory, and is replaced when it dies. Resizing, the only
part that needs torch, stays with the caller.

A process that dies or is late while it reads a file may have been unlucky: killed from outside, on a stalled machine.
So the file is read once more, by a new process; a file that does it twice raises `DecodeError` like any other bad
file. What the process was reading is known here, not there, so no file is ever handed on by accident.

Cost: 0.2 ms a video, and one copy of its crops, which travel in memory that both processes map (a pipe would cost
10 ms of CPU a clip). A new process takes 0.1 s, since it is forked from one that has imported the decoder already.
"""

import contextlib
import ctypes
import faulthandler
import functools
import mmap
import os
import resource
import signal
import sys
import tempfile
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import TimeoutError as Late
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.util import Finalize
from typing import Any, TypeVar

import numpy as np
import pebble

from clips import storage
from clips.cache import Cache
from clips.decode import HARMFUL, DecodeConfig, DecodeError
from clips.decode.source import with_local_copy
from clips.load import Take, finish, read_crops
from clips.storage.traffic import count

_TRIES = 2
_ORPHAN_SECONDS = 60.0  # beyond the limit, a process whose parent has died with it ends itself
_FORK_SERVER_KNOWS = ["clips.load", "clips.decode.pyav"]
_SHARED_FOLDERS = ("/dev/shm", tempfile.gettempdir())

T = TypeVar("T")
Shapes = list[tuple[int, ...]]
Put = tuple[Shapes, list[np.ndarray] | None]
"""The shapes of what lies on the shelf, or where that had no room, the arrays themselves."""


def take_clips(take: Take, *, cache: Cache | None = None) -> np.ndarray:
    """Return the clips of a take, uint8 [R or V, T, S, S, 3], read by this process's decoding process.

    Args:
        take: Which clips.
        cache: The node's cache of remote videos.

    Raises:
        DecodeError: The video cannot be decoded; `crashed`, `timeout` or `memory` after two processes.
        StorageError: The storage cannot be reached: not the fault of the file.
    """
    video = take.video

    def read(source: str | bytes) -> np.ndarray:
        return _decoder(os.getpid()).take(take, source)

    if video.container == "frames":  # only the pictures that are wanted are fetched, over there
        return read(video.uri)
    return with_local_copy(
        read, video.uri, size=video.size, etag=video.etag, offset=video.offset, cache=cache
    )


def call(function: Callable[..., T], *arguments: Any, decode: DecodeConfig) -> T:
    """Return what `function(*arguments)` gives in this process's decoding process.

    Raises:
        DecodeError: It took two processes with it (`crashed`, `timeout`, `memory`), or raised this itself.
        Exception: Whatever else the function raises.
    """
    return _decoder(os.getpid()).call(function, *arguments, decode=decode)


@functools.lru_cache(maxsize=1)
def _decoder(process: int) -> "Decoder":
    """The one of this process; another process (forked from it) gets its own."""
    decoder = Decoder()
    # Not atexit: the children of `multiprocessing` do not run it, and would wait for the process for ever.
    Finalize(None, decoder.close, exitpriority=10)
    return decoder


class Decoder:
    """A decoding process and the memory it shares with this one. Not shared between threads."""

    def __init__(self) -> None:
        self._shelf = _Shelf()
        self._pool: pebble.ProcessPool | None = None
        self._memory = 0

    def take(self, take: Take, source: str | bytes) -> np.ndarray:
        """Return the clips of a take from what `local_copy` gave; see `take_clips`."""
        by_ranges = isinstance(source, str) and not storage.is_local(source)
        shapes, crops = self.call(
            _put,
            take,
            source,
            self._shelf.path,
            decode=take.decode,
            waits_s=storage.current_patience() if by_ranges else 0.0,
        )
        clips = finish(take, self._shelf.arrays(shapes) if crops is None else crops)
        # A crop that needed no resizing is still on the shelf, where the next video goes.
        return clips.copy() if self._shelf.holds(clips) else clips

    def call(
        self,
        function: Callable[..., T],
        *arguments: Any,
        decode: DecodeConfig,
        waits_s: float = 0.0,
    ) -> T:
        """Return what `function` gives in the decoding process, within the limits of `decode`; see `call`.

        `waits_s` is time that it may spend waiting for storage, beyond its limit.
        """
        failure: DecodeError | None = None
        for _ in range(_TRIES):
            try:
                return self._call_once(function, arguments, decode, waits_s)
            except DecodeError as error:
                if error.kind not in HARMFUL:
                    raise
                failure = error
        assert failure is not None
        raise DecodeError(failure.kind, f"{failure.message}, {_TRIES} times", stage=failure.stage)

    def close(self) -> None:
        """End the process and return the memory."""
        self._stop()
        self._shelf.close()

    def _stop(self) -> None:
        if self._pool is not None:
            self._pool.stop()
            self._pool.join()
            self._pool = None

    def _call_once(
        self,
        function: Callable[..., T],
        arguments: tuple[Any, ...],
        decode: DecodeConfig,
        waits_s: float,
    ) -> T:
        limit = decode.wall_seconds + waits_s
        pool = self._process(decode.memory_bytes)
        future = pool.schedule(_watched, (limit, waits_s, function, *arguments), timeout=limit)
        try:
            result, read = future.result()
            count(read)
            return result
        except Late:
            raise DecodeError(
                "timeout", f"not decoded within {limit:g} s", stage="process"
            ) from None
        except (pebble.ProcessExpired, BrokenProcessPool) as error:
            if isinstance(error, BrokenProcessPool):  # it died while it held the pipe
                self._pool = None
            code = getattr(error, "exitcode", None)
            raise DecodeError("crashed", f"its decoder {_ended(code)}", stage="process") from None

    def _process(self, memory: int) -> pebble.ProcessPool:
        if self._memory != memory:
            self._stop()
        if self._pool is None or not self._pool.active:
            context = _Context()
            context.set_forkserver_preload(_FORK_SERVER_KNOWS)
            self._pool = pebble.ProcessPool(
                max_workers=1, initializer=_restrict, initargs=(memory,), context=context
            )
            self._memory = memory
        return self._pool


def _ended(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}" if code is not None else "ended"


# --- the shared memory -----------------------------------------------------------------------


class _Shelf:
    """Memory that this process and its decoding process map: a file without a name, which dies with this process."""

    def __init__(self) -> None:
        folder = next(f for f in _SHARED_FOLDERS if os.path.isdir(f) and os.access(f, os.W_OK))
        if sys.platform == "linux":
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
            self.path = f"/proc/{os.getpid()}/fd/{self._file.fileno()}"
        else:
            self._file = tempfile.NamedTemporaryFile(dir=folder)  # noqa: SIM115
            self.path = self._file.name
        self._memory: np.ndarray | None = None

    def arrays(self, shapes: Shapes) -> list[np.ndarray]:
        """Return views of what the other process has put there."""
        sizes = [int(np.prod(shape)) for shape in shapes]
        if self._memory is None or len(self._memory) < sum(sizes):
            self._memory = _mapped(self._file.fileno(), sum(sizes))
        starts = np.cumsum([0, *sizes])
        return [
            self._memory[start : start + size].reshape(shape)
            for start, size, shape in zip(starts, sizes, shapes, strict=False)
        ]

    def holds(self, array: np.ndarray) -> bool:
        """Whether an array lies here."""
        return self._memory is not None and np.may_share_memory(array, self._memory)

    def close(self) -> None:
        """Return the memory."""
        self._memory = None
        self._file.close()


def _mapped(file: int, size: int) -> np.ndarray:
    """Map the file into memory, grown to `size` bytes first.

    Raises:
        OSError: There is no room: found out now, since a write into a hole of a full disk ends the process.
    """
    if os.fstat(file).st_size < size:
        if sys.platform == "linux":
            os.posix_fallocate(file, 0, size)
        else:
            os.ftruncate(file, size)
    return np.frombuffer(mmap.mmap(file, size), np.uint8)


# --- in the decoding process -----------------------------------------------------------------


def _restrict(memory: int) -> None:
    """Bound the process's memory, and let it die with the server that forked it (Linux knows both)."""
    if sys.platform != "linux":
        return
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * mmap.PAGESIZE
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    limit = now + memory
    resource.setrlimit(resource.RLIMIT_AS, (limit if most < 0 else min(limit, most), most))
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _watched(
    limit: float, waits_s: float, function: Callable[..., T], *arguments: Any
) -> tuple[T, storage.Traffic]:
    faulthandler.dump_traceback_later(limit + _ORPHAN_SECONDS, exit=True)
    before = storage.traffic()
    try:
        with storage.patience(waits_s or storage.current_patience()):
            return function(*arguments), storage.traffic().since(before)
    finally:
        faulthandler.cancel_dump_traceback_later()


def _put(take: Take, source: str | bytes, shelf: str) -> Put:
    """Read the crops and put them on the shelf."""
    crops = read_crops(take, source)
    try:
        memory = _shelf_memory(shelf, sum(crop.nbytes for crop in crops))
    except OSError:
        return [], crops
    start = 0
    for crop in crops:
        memory[start : start + crop.nbytes] = crop.reshape(-1)
        start += crop.nbytes
    return [crop.shape for crop in crops], None


_open_shelf: dict[str, np.ndarray] = {}


def _shelf_memory(path: str, size: int) -> np.ndarray:
    memory = _open_shelf.get(path)
    if memory is None or len(memory) < size:
        file = os.open(path, os.O_RDWR)
        try:
            memory = _open_shelf[path] = _mapped(file, size)
        finally:
            os.close(file)
    return memory


# --- starting it -----------------------------------------------------------------------------


class _Process(ForkServerProcess):
    """A process that does not run its parent's main script again: in Ray's workers that would import Ray."""

    def start(self) -> None:
        with _without_main():
            super().start()


class _Context(ForkServerContext):
    Process = _Process


_main_lock = threading.Lock()


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Hide the main module and give new processes this one's import path, which need not be in the environment."""
    with _main_lock:
        main, path = sys.modules["__main__"], os.environ.get("PYTHONPATH")
        sys.modules["__main__"] = types.ModuleType("__main__")
        os.environ["PYTHONPATH"] = os.pathsep.join(_absolute(sys.path))
        try:
            yield
        finally:
            sys.modules["__main__"] = main
            if path is None:
                del os.environ["PYTHONPATH"]
            else:
                os.environ["PYTHONPATH"] = path


def _absolute(path: Sequence[str]) -> list[str]:
    return [os.path.abspath(entry) for entry in path if entry]

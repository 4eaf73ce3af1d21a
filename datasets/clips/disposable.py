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
from typing import Any, TypeVar

import numpy as np
import pebble

from clips.decode import HARMFUL, DecodeConfig, DecodeError
from clips.load import Take, finish, read_crops

_TRIES = 2
_ORPHAN_SECONDS = 60.0  # beyond the limit, a process whose parent has died with it ends itself
_FORK_SERVER_KNOWS = ["clips.load", "clips.decode.pyav"]
_SHARED_FOLDERS = ("/dev/shm", tempfile.gettempdir())

T = TypeVar("T")
Shapes = list[tuple[int, ...]]
Put = tuple[Shapes, list[np.ndarray] | None]
"""The shapes of what lies on the shelf, or where that had no room, the arrays themselves."""


def take_clips(take: Take, source: str | bytes | None = None) -> np.ndarray:
    """Return the clips of a take, uint8 [R or V, T, S, S, 3], read by this process's decoding process.

    Args:
        take: Which clips.
        source: Where the video's bytes are, if not at its own address.

    Raises:
        DecodeError: The video cannot be decoded; `crashed`, `timeout` or `memory` after two processes.
        StorageError: The storage cannot be reached: not the fault of the file.
    """
    return _decoder(os.getpid()).take(take, source)


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
    return Decoder()


class Decoder:
    """A decoding process and the memory it shares with this one. Not shared between threads."""

    def __init__(self) -> None:
        self._shelf = _Shelf()
        self._pool: pebble.ProcessPool | None = None
        self._memory = 0

    def take(self, take: Take, source: str | bytes | None) -> np.ndarray:
        """Return the clips of a take; see `take_clips`."""
        shapes, crops = self.call(_put, take, source, self._shelf.path, decode=take.decode)
        clips = finish(take, self._shelf.arrays(shapes) if crops is None else crops)
        # A crop that needed no resizing is still on the shelf, where the next video goes.
        return clips.copy() if self._shelf.holds(clips) else clips

    def call(self, function: Callable[..., T], *arguments: Any, decode: DecodeConfig) -> T:
        """Return what `function` gives in the decoding process, within the limits of `decode`; see `call`."""
        failure: DecodeError | None = None
        for _ in range(_TRIES):
            try:
                return self._call_once(function, arguments, decode)
            except DecodeError as error:
                if error.kind not in HARMFUL:
                    raise
                failure = error
        assert failure is not None
        raise DecodeError(failure.kind, f"{failure.message}, {_TRIES} times", stage=failure.stage)

    def close(self) -> None:
        """End the process."""
        if self._pool is not None:
            self._pool.stop()
            self._pool.join()
            self._pool = None
        self._shelf.close()

    def _call_once(
        self, function: Callable[..., T], arguments: tuple[Any, ...], decode: DecodeConfig
    ) -> T:
        limit = decode.wall_seconds
        pool = self._process(decode.memory_bytes)
        future = pool.schedule(_watched, (limit, function, *arguments), timeout=limit)
        try:
            return future.result()
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
        if self._pool is not None and self._memory != memory:
            self.close()
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
        """Forget what is there."""
        self._memory = None


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


def _watched(limit: float, function: Callable[..., T], *arguments: Any) -> T:
    faulthandler.dump_traceback_later(limit + _ORPHAN_SECONDS, exit=True)
    try:
        return function(*arguments)
    finally:
        faulthandler.cancel_dump_traceback_later()


def _put(take: Take, source: str | bytes | None, shelf: str) -> Put:
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

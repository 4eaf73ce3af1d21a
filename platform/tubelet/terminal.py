"""What the user sees: the only place of the project that writes to the terminal.

Ray, MLflow, alembic, FFmpeg and their subprocesses write to file descriptors 1 and 2 as they
like.  ``console_and_log`` sends all of that to a log file, at the level of the descriptors, and
keeps the original ones for us: ``say``, ``complain``, ``table`` and ``progress`` still reach the
terminal, pipe or file that the job was started with.  Daemons that outlive us hold the log open,
not our caller's pipe.  On a terminal a progress is one live line with a bar; elsewhere it is a
plain line at most every ten seconds, plus the first and the last.  Outside ``console_and_log``
everything works on the process's own streams.  What is said never carries control characters.
"""

import contextlib
import ctypes
import functools
import logging
import os
import re
import shlex
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

logger = logging.getLogger(__name__)


class _Streams(NamedTuple):
    console: Console
    errors: TextIO
    closing: contextlib.ExitStack


_kept: _Streams | None = None  # the original streams while descriptors 1 and 2 are redirected


# --- writing ------------------------------------------------------------------------------


def say(text: str = "") -> None:
    """Write one text for the user, above a live bar if there is one."""
    _console().print(_printable(text), markup=False, highlight=False, emoji=False, soft_wrap=True)


def complain(text: str) -> None:
    """Write one text to the error stream, after all that was said."""
    sys.stdout.flush()
    print(_printable(text), file=_kept.errors if _kept else sys.stderr, flush=True)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a small table, its columns aligned."""
    say("\n".join(format_table(header, rows)))


def when_closing(action: Callable[[], object]) -> None:
    """Run ``action`` right before ``console_and_log`` gives the descriptors back; without one, nothing.

    For what would go on writing to them: a Ray that is still connected prints its workers' last words.
    """
    if _kept is not None:
        _kept.closing.callback(action)


@contextlib.contextmanager
def console_and_log(path: str | Path) -> Iterator[None]:
    """Send everything but our own output to the log file at ``path`` (appended) while it is open.

    Log records of INFO and above go there too, and so does the traceback of an exception that
    passes through.  Inside another ``console_and_log`` this does nothing: the outer log goes on.
    """
    global _kept
    if _kept is not None:
        yield
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    with contextlib.ExitStack() as stack:
        _flush()
        kept = [stack.enter_context(_duplicate(stream)) for stream in (1, 2)]
        for stream in (1, 2):
            stack.callback(os.dup2, kept[stream - 1].fileno(), stream)
        stack.callback(_flush)  # what is still buffered belongs to the log
        for stream in (1, 2):
            os.dup2(log, stream)
        os.close(log)
        errors = stack.enter_context(open(os.dup(2), "w", buffering=1, encoding="utf-8"))
        stack.enter_context(_records_to(errors))
        logger.info("started: %s", shlex.join(sys.argv))
        closing = contextlib.ExitStack()
        _kept = _Streams(Console(file=kept[0], width=_width(kept[0])), kept[1], closing)
        try:
            with closing:
                yield
        except Exception:
            with contextlib.suppress(OSError):
                errors.write(traceback.format_exc())
            raise
        finally:
            _kept = None


def tail(path: str | Path, *, lines: int = 20) -> str:
    """The last lines of a log, for the message about a failure; reads at most 64 KiB."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 2**16))
        text = file.read().decode("utf-8", errors="replace")
    return "\n".join(line for line in text.splitlines()[-lines:])


# --- progress -----------------------------------------------------------------------------


class Progress:
    """Tells how far a piece of work is; made by ``progress``."""

    def __init__(
        self,
        label: str,
        total: int | None,
        *,
        unit: str,
        done: int,
        every: float,
        clock: Callable[[], float],
        bar: Bar | None,
    ) -> None:
        self._label, self._total, self._unit = label, total, unit
        self._every, self._clock, self._bar = every, clock, bar
        self._task = bar.add_task(label, total=total, completed=done, line="") if bar else None
        self._times: deque[tuple[float, int]] = deque(maxlen=64)
        self._line, self._shown, self._shown_at = "", "", float("-inf")

    def update(self, done: int, facts: str = "") -> None:
        """Tell that ``done`` of the total are finished; ``facts`` replace the plain rate."""
        now = self._clock()
        if not self._times or now - self._times[-1][0] >= 0.5:
            self._times.append((now, done))  # from the first update on: starting up has no rate
        rate = _rate([*self._times, (now, done)])
        self._line = format_progress(done, self._total, self._unit, rate=rate, facts=facts)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, line=self._line)
        elif now - self._shown_at >= self._every:
            self._show(now)

    def close(self) -> None:
        """Show the last state if it has not been shown."""
        if self._bar is None and self._line != self._shown:
            self._show(self._clock())

    def _show(self, now: float) -> None:
        say(f"{self._label}  {self._line}")
        self._shown, self._shown_at = self._line, now


@contextlib.contextmanager
def progress(
    label: str,
    total: int | None,
    *,
    unit: str = "steps",
    done: int = 0,
    every: float = 10.0,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Progress]:
    """Show how far a piece of work is, while the context is open.

    Args:
        label: What is being done: ``pretrain``, ``scan``.
        total: How many there are, or None if that is not known.
        unit: What is counted, in the plural.
        done: How many were finished before (a resumed run).
        every: Seconds between two lines where there is no live bar.
        clock: Seconds on any rising scale.

    Yields:
        The progress; call its ``update``.
    """
    options = {"unit": unit, "done": done, "every": every, "clock": clock}
    if not _is_live(_console().file):
        shown = Progress(label, total, bar=None, **options)
        try:
            yield shown
        finally:
            shown.close()
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[line]}", markup=False),
    )
    with Bar(*columns, console=_console(), redirect_stdout=False, redirect_stderr=False) as bar:
        yield Progress(label, total, bar=bar, **options)


# --- texts (pure) -------------------------------------------------------------------------


def format_duration(seconds: float) -> str:
    """``0.4s``, ``59s``, ``2m 05s``, ``1h 02m``, ``3d 04h``: two figures, rounded."""
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60}h {minutes % 60:02d}m"
    hours = round(seconds / 3600)
    return f"{hours // 24}d {hours % 24:02d}h"


def format_rate(per_second: float, unit: str) -> str:
    """``0.25 clips/s``, ``3.1 clips/s``, ``312 clips/s``, ``12.3k clips/s``."""
    if per_second < 0.995:
        number = f"{per_second:.2f}"
    elif per_second < 9.95:
        number = f"{per_second:.1f}"
    elif per_second < 9999.5:
        number = f"{per_second:.0f}"
    else:
        number = f"{per_second / 1000:.1f}k"
    return f"{number} {unit}/s"


def format_facts(
    *, loss: float | None = None, clips_per_second: float | None = None, wait: float | None = None
) -> str:
    """The facts of a training step; ``wait`` is the share of its time spent waiting for data."""
    facts = []
    if loss is not None:
        facts.append(f"loss {loss:.4f}")
    if clips_per_second is not None:
        facts.append(format_rate(clips_per_second, "clips"))
    if wait is not None:
        facts.append(f"data wait {wait:.0%}")
    return "  ".join(facts)


def format_progress(
    done: int, total: int | None, unit: str, *, rate: float | None = None, facts: str = ""
) -> str:
    """One line: count, share, facts or else the rate, and the time left at ``rate`` per second."""
    parts = [f"{done} {unit}"] if total is None else [f"{done}/{total} {unit}"]
    if total:
        parts.append(f"{done / total:.0%}")
    if facts:
        parts.append(facts)
    elif rate:
        parts.append(format_rate(rate, unit))
    if total is not None and rate and done < total:
        parts.append(f"ETA {format_duration((total - done) / rate)}")
    return "  ".join(parts)


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: columns two blanks apart, those that hold only numbers to the right."""
    cells = [list(header), *map(list, rows)]
    assert all(len(row) == len(header) for row in cells), "every row has the header's columns"
    columns = list(zip(*cells, strict=True))
    widths = [max(map(len, column)) for column in columns]
    right = [all(text[:1] in "+-0123456789." for text in column[1:]) for column in columns]
    lines = [
        "  ".join(
            text.rjust(width) if to_right else text.ljust(width)
            for text, width, to_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in cells
    ]
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]


def _printable(text: str) -> str:
    """The text without what a file's name could do to a terminal: bytes that are no UTF-8, escapes."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", "?", text)


# --- streams ------------------------------------------------------------------------------


def _console() -> Console:
    return _kept.console if _kept else _plain_console()


@functools.cache
def _plain_console() -> Console:
    return Console()  # without a file it follows sys.stdout


def _is_live(stream: object) -> bool:
    isatty = getattr(stream, "isatty", lambda: False)
    return isatty() and os.environ.get("TERM") != "dumb"


def _width(stream: TextIO) -> int | None:
    """The terminal's width; rich would look at the descriptors that we redirect."""
    columns = os.get_terminal_size(stream.fileno()).columns if stream.isatty() else 0
    return columns or None  # some terminals do not know theirs


def _duplicate(stream: int) -> TextIO:
    """The original stream under a number of its own, which no subprocess inherits."""
    return open(os.dup(stream), "w", buffering=1, encoding="utf-8", errors="replace")


def _flush() -> None:
    """Flush Python's and C's buffers, so that each text ends where it was written."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # a full disk costs the log's lines, and nothing else
            stream.flush()
    ctypes.CDLL(None).fflush(None)


@contextlib.contextmanager
def _records_to(stream: TextIO) -> Iterator[None]:
    """Write log records of INFO and above to ``stream``."""
    root = logging.getLogger()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    level = root.level
    root.addHandler(handler)
    root.setLevel(min(level, logging.INFO))
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


def _rate(times: Sequence[tuple[float, int]]) -> float | None:
    (start, first), (end, last) = times[0], times[-1]
    return (last - first) / (end - start) if end > start and last > first else None

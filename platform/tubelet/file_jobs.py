"""What jobs over many files have in common: the one source they name without a key, log, progress, rejected files.

And that a folder holds the answers to one question: what was asked stands in a JSON file there.
"""

import contextlib
import getpass
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clips import Rejected, StorageError, storage
from clips.addresses import shown
from tubelet import config, terminal

if TYPE_CHECKING:  # it imports Ray, which reads the environment that tubelet.cluster sets first
    from clips.pipeline import Progress

_MOST_SHOWN = 20


class Stopped(Exception):
    """The storage of the videos has failed; what was done is kept, and the same command goes on from there."""


def name_source(
    arguments: Sequence[str], *, what: str, usage: str | None = None, key: str = "source"
) -> list[str]:
    """Return command-line arguments with the one that has no key spelt ``source=``, or another key.

    Args:
        arguments: as given.
        what: the source's name in messages (``MANIFEST``).
        usage: what to say when none is named; without it the missing key is reported like any other.
        key: the key it gets.

    Raises:
        UserError: no source, or several.
    """
    sources = [a for a in arguments if not a.startswith("-") and "=" not in a.split("/")[0]]
    if usage and not sources and not any(a.startswith((f"{key}=", "-")) for a in arguments):
        raise config.UserError(usage)
    if len(sources) > 1:
        raise config.UserError(
            f"one {what} at a time, got {len(sources)}: {' '.join(map(shown, sources))}"
        )
    named = [config.setting(key, source) for source in sources]
    return [*named, *(a for a in arguments if a not in sources)]


def log_file(job: str) -> Path:
    """Where a job without a run folder keeps what Ray and others say."""
    return Path(tempfile.gettempdir()) / f"tubelet-{job}-{getpass.getuser()}.log"


@contextlib.contextmanager
def progress(
    label: str, total: int, *, unit: str, kept: str
) -> Iterator[Callable[["Progress"], None]]:
    """A bar with the rate over the whole job; takes the states that ``clips.pipeline`` reports."""
    started = time.monotonic()
    with terminal.progress(label, total, unit=unit) as bar:

        def show(state: "Progress") -> None:
            rate = terminal.format_rate(state.done / (time.monotonic() - started), unit)
            bar.update(state.done, f"{state.kept} {kept}, {state.rejected} rejected  {rate}")

        yield show


@contextlib.contextmanager
def counting(label: str, total: int | None, *, unit: str) -> Iterator[Callable[[int], None]]:
    """A bar that appears with the first count it is told: what takes no time leaves no line."""
    with contextlib.ExitStack() as stack:
        bars: list[terminal.Progress] = []

        def show(done: int) -> None:
            if not bars:
                bars.append(stack.enter_context(terminal.progress(label, total, unit=unit)))
            bars[0].update(done)

        yield show


def show_rejected(
    rejected: Sequence[Rejected], uri: str, *, reasons: Mapping[str, int] | None = None
) -> None:
    """Print the first rejected files, how many there are of each kind, and where all of them are listed.

    Args:
        rejected: all of them, or the first.
        uri: where all of them are listed.
        reasons: how many there are of each kind, if these are not all.
    """
    if not rejected:
        return
    counts = Counter(r.reason for r in rejected) if reasons is None else Counter(reasons)
    terminal.table(
        ("rejected file", "reason", "details"),
        [(r.video_id, r.reason, r.message) for r in rejected[:_MOST_SHOWN]],
    )
    if counts.total() > _MOST_SHOWN:
        terminal.say(f"and {counts.total() - _MOST_SHOWN} more")
    kinds = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
    terminal.say(f"all of them ({kinds}): {storage.redact(uri)}")


def check_same(asked: Mapping[str, object], place: str, *, holds: str, by: str) -> None:
    """Refuse a folder that holds answers to another question.

    Args:
        asked: what makes answers those of one question, as JSON values.
        place: where ``told`` has written it.
        holds: what the folder holds, in the plural.
        by: who answers now.

    Raises:
        UserError: it does; the message lists old and new.
    """
    if not storage.exists(place):
        return
    before = json.loads(storage.read_bytes(place))
    changed = [
        f"  {name}: {before.get(name)} -> {value}"
        for name, value in asked.items()
        if before.get(name) != value
    ]
    if changed:
        folder = storage.redact(place.rpartition("/")[0])
        raise config.UserError(
            f"{folder} holds {holds} of another kind (model {before.get('model')}, now {storage.redact(by)}):\n"
            + "\n".join(changed)
            + "\nask as before, choose another output=, or delete them with fresh=true"
        )


def told(asked: Mapping[str, object], place: str, *, by: str) -> None:
    """Write what a folder's answers are answers to."""
    text = json.dumps({"model": storage.redact(by), **asked}, indent=1)
    storage.write_bytes(place, text.encode())


@contextlib.contextmanager
def stopping(kept: Callable[[], str]) -> Iterator[None]:
    """Turn the storage's failure inside of Ray's tasks into ``Stopped``; what else fails goes through.

    Args:
        kept: says what was done until then and stays.

    Raises:
        Stopped: the storage has failed.
    """
    try:
        yield
    except Exception as error:
        failed = storage_failure(error)
        if failed is None:
            raise
        raise Stopped(f"{failed}; {kept()}: the same command goes on from there") from error


def storage_failure(error: BaseException | None) -> StorageError | None:
    """The storage's failure that made a task of Ray's fail, if that is what it was."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        if isinstance(error, StorageError):
            return error
        seen.append(error)
        inner = getattr(error, "cause", None)
        error = inner if isinstance(inner, BaseException) else error.__cause__ or error.__context__
    return None

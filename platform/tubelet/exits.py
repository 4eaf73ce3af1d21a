"""How a job ends: the codes, and whose fault an error is."""

import dis
import errno
from collections.abc import Iterator

DONE, BUG, MISTAKE, STOPPED, INTERRUPTED = 0, 1, 2, 3, 75
"""Exit codes of every job; ``STOPPED`` is a diagnosis, ``INTERRUPTED`` can be resumed."""


def exit_code(error: BaseException) -> int:
    """2 for the user's mistakes, 3 for a full disk, 1 for everything else.

    A mistake is a ``ValueError`` that one of our three packages has raised on purpose: by a
    ``raise`` of its own, or of a class of its own (the lower packages cannot know ``UserError``,
    and an error that comes from another process has lost its traceback).  A ``ValueError`` from a
    library, or from a call such as ``int("x")`` in our code, is a bug.
    """
    if any(
        isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT) for e in _chain(error)
    ):
        return STOPPED
    if not isinstance(error, ValueError):
        return BUG
    own_class = any(_is_ours(kind.__module__) for kind in type(error).__mro__)
    return MISTAKE if own_class or _raised_by_us(error) else BUG


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was made from."""
    while error is not None:
        yield error
        error = error.__cause__


def _raised_by_us(error: ValueError) -> bool:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or not _is_ours(trace.tb_frame.f_globals.get("__name__", "")):
        return False
    instruction = trace.tb_frame.f_code.co_code[trace.tb_lasti]
    return dis.opname[instruction] == "RAISE_VARARGS"  # a raise statement, not a failing call


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] in ("tubelet", "videomae", "clips")

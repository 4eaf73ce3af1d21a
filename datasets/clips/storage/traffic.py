"""How much this process has read from remote storage: the figures behind bytes and requests per clip.

Counted is every request that asks a remote store for something to read (bytes, a size, a page of a
listing), tried-again ones included; a question for something that is not there may cost two and
counts as one. A decoding process counts for itself (see `plus`). Local files are read by the
decoders themselves and cost no request: they are not counted.
"""

import threading
from dataclasses import astuple, dataclass


@dataclass(frozen=True)
class Traffic:
    """What was read, since the process began or between two moments."""

    requests: int = 0
    """Requests that read, retries included."""
    bytes_read: int = 0
    cache_hits: int = 0
    """Objects found in the node's cache; see `clips.cache`."""
    cache_misses: int = 0
    retries: int = 0
    """Requests that had to be made again, also for credentials that were renewed."""

    def since(self, earlier: "Traffic") -> "Traffic":
        """Return what came after `earlier`."""
        pairs = zip(astuple(self), astuple(earlier), strict=True)
        return Traffic(*(now - then for now, then in pairs))

    def plus(self, other: "Traffic") -> "Traffic":
        """Return both together: what a decoding process read belongs to the one that asked it."""
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Traffic(*(mine + others for mine, others in pairs))


_lock = threading.Lock()
_total = Traffic()


def traffic() -> Traffic:
    """Return what this process has read since it began."""
    return _total


def count(more: Traffic) -> None:
    """Add to what this process has read."""
    global _total
    with _lock:
        _total = _total.plus(more)

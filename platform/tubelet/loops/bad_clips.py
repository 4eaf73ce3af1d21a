"""How many clips a run could not decode, and when that is too many to go on."""

from tubelet.ledger import Ledger
from tubelet.quarantine import Quarantine

_LEAST_CLIPS = 200
"""Clips before the share of bad ones means anything."""
_NAMED = 3


class BadClips:
    """The count, the same on every rank.

    Args:
        known: what this rank knows of videos that cannot be decoded.
        ledger: the run's.
        copies: clips per visit.
        most: share of clips that may be bad.
    """

    def __init__(self, known: Quarantine, ledger: Ledger, *, copies: int, most: float) -> None:
        self._known, self._ledger, self._copies, self._most = known, ledger, copies, most
        self._count = known.clips

    def too_many(self, done: int, clips: float) -> bool:
        """Whether there are more than allowed once a step ended with ``clips`` good ones.

        Only a step that adds some stops a run: where what was wrong is mended, the same command goes on.
        """
        new = self._ledger.visits_in(done - 1) * self._copies - round(clips)
        self._count += new
        seen = self._seen(done)
        return new > 0 and seen >= _LEAST_CLIPS and self._count > self._most * seen

    def diagnosis(self, done: int) -> str:
        """What the user should know, with the worst videos."""
        entries = sorted(self._known.entries.values(), key=lambda e: -e.clips)
        return (
            f"{self._count} of {self._seen(done)} clips could not be decoded, more than data.max_bad_fraction "
            f"({self._most:g}) allows; among them:\n"
            + "\n".join(f"  {e.video_id}: {e.message}" for e in entries[:_NAMED])
        )

    def _seen(self, done: int) -> int:
        return self._ledger.visits_before(done) * self._copies

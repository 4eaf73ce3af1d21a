"""Peak memory of this process and all it started, as the sum of their proportional set sizes (shared pages once).

The kernel walks every page table to tell that sum: each second, over Ray's two dozen processes, it took half a core of
the demo's two (measured). So what is looked at each second is how much they have grown since the sum was last told,
which costs next to nothing, and the sum is asked for only when it may have passed the peak.
"""

import os
import threading
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")
_SLACK = 0.005
"""Share of the peak that growth may reach before the sum is asked for: the peak is right to this share."""


class PeakMemory:
    """Looks once a second, in the background, until the process ends; 0 where the system has no such figure."""

    def __init__(self) -> None:
        self.peak_bytes = 0
        threading.Thread(target=self._watch, daemon=True, name="peak-memory").start()

    def _watch(self) -> None:
        import psutil

        me = psutil.Process()
        pause = threading.Event()
        told, resident_then = 0, dict[int, int]()
        while not pause.wait(1.0):
            family = [me.pid, *(child.pid for child in me.children(recursive=True))]
            resident = {pid: _resident_bytes(pid) for pid in family}
            if may_exceed(self.peak_bytes, told=told, before=resident_then, now=resident):
                told, resident_then = sum(map(_pss_bytes, family)), resident
                self.peak_bytes = max(self.peak_bytes, told)


def may_exceed(peak: int, *, told: int, before: dict[int, int], now: dict[int, int]) -> bool:
    """Whether the sum of proportional sizes can have passed ``peak`` since it was told.

    It grows by a page only when some process maps that page, so the growth of each process bounds it.

    Args:
        peak: highest sum so far, bytes.
        told: the sum when it was last asked for.
        before: resident bytes by process at that time.
        now: resident bytes by process at present.
    """
    grown = sum(max(0, size - before.get(pid, 0)) for pid, size in now.items())
    return told + grown > peak * (1 + _SLACK)


def _resident_bytes(pid: int) -> int:
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    except (OSError, IndexError):  # ended meanwhile, or not Linux
        return 0
    return int(pages) * _PAGE


def _pss_bytes(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:  # ended meanwhile, or not Linux
        return 0
    line = next((line for line in text.splitlines() if line.startswith("Pss:")), "Pss: 0")
    return int(line.split()[1]) * 1024

"""Peak memory of this process and all it started, as the sum of their proportional set sizes (shared pages once)."""

import threading
from pathlib import Path


class PeakMemory:
    """Samples once a second, in the background, until the process ends; 0 where the system has no such figure."""

    def __init__(self) -> None:
        self.peak_bytes = 0
        threading.Thread(target=self._watch, daemon=True, name="peak-memory").start()

    def _watch(self) -> None:
        import psutil

        me = psutil.Process()
        pause = threading.Event()
        while not pause.wait(1.0):
            family = [me.pid, *(child.pid for child in me.children(recursive=True))]
            self.peak_bytes = max(self.peak_bytes, sum(map(_pss_bytes, family)))


def _pss_bytes(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:  # ended meanwhile, or not Linux
        return 0
    line = next((line for line in text.splitlines() if line.startswith("Pss:")), "Pss: 0")
    return int(line.split()[1]) * 1024

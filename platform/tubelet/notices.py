"""What the controller has to tell the user: lines of a local file, which the driver beside it reads and shows."""

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path

_log = logging.getLogger(__name__)


class Notices:
    """The controller's end; the file lies beside the spool, on the machine of both.

    Args:
        file: JSON lines.
    """

    def __init__(self, file: str) -> None:
        self._file = Path(file)

    def say(self, text: str) -> None:
        """Tell the user; a disk that is full costs the line, not what is being told."""
        _log.info("%s", text)
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a") as file:
                file.write(json.dumps({"unix_s": round(time.time(), 3), "text": text}) + "\n")
        except OSError as error:
            _log.warning("%s: %s", self._file, error)


class NoticeReader:
    """The driver's end: what was said since it was made."""

    def __init__(self, file: str) -> None:
        self._file = Path(file)
        self._offset = self._file.stat().st_size if self._file.exists() else 0

    def __iter__(self) -> Iterator[str]:
        """What is new."""
        if not self._file.exists():
            return
        with self._file.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                yield json.loads(line)["text"]

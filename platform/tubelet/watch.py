"""What the driver sees of a run: the points that the controller writes ahead for MLflow, as they appear."""

import json
from pathlib import Path
from typing import Any

from tubelet.notices import NoticeReader
from tubelet.run_directory import RunDirectory
from tubelet.terminal import Progress, format_facts, say


class Watch:
    """Follows a run's spool file, for the progress line.

    Args:
        recipe: the training recipe.
        directory: the run's folder.
        spool: file that points are appended to, on this machine.
    """

    def __init__(self, recipe: Any, directory: RunDirectory, spool: Path) -> None:
        self._recipe, self._spool, self._offset = recipe, spool, 0
        self._notices = NoticeReader(str(spool.with_name("notices.jsonl")))
        tip = directory.resume_point(directory.newest_attempt())
        self.step = tip.step if tip else 0
        self.newest: dict[str, float] = {}
        self.new_pictures = False
        self._read()
        self.new_pictures = False

    def look(self, bar: Progress) -> None:
        """Read what is new and show it."""
        before = self.step
        self.new_pictures = False
        self._read()
        for text in self._notices:
            say(text)
        if self.step != before:
            bar.update(self.step, self._facts())

    def _read(self) -> None:
        if not self._spool.exists():
            return
        with self._spool.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                self._take(json.loads(line))

    def _take(self, entry: dict[str, Any]) -> None:
        self.step = max(self.step, int(entry["s"]))
        self.newest |= entry["m"]
        if any(name.startswith("eval/") for name in entry["m"]):
            self.new_pictures = True

    def _facts(self) -> str:
        newest = self.newest
        return format_facts(
            loss=newest.get("train/loss"),
            clips_per_second=newest.get("data/clips_per_s"),
            wait=newest.get("data/wait"),
        )

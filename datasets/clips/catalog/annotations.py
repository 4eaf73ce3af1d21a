"""Annotation files as they come: read whole, with the file's name in every complaint."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from clips import storage


@dataclass(frozen=True)
class Annotated:
    """A video as the annotations name it."""

    key: str
    """What tells it from all others, whatever folder its copy is in."""
    path: str
    """Where it would lie in the official layout: what is reported when it is nowhere."""
    label: str | None
    split: str


@dataclass(frozen=True)
class Annotations:
    """A folder of annotation files."""

    place: str
    title: str
    """Of the data set, for messages."""

    def first_of(self, *names: str) -> str:
        """The first of these files that is there.

        Raises:
            ValueError: None is.
        """
        for name in names:
            if storage.exists(storage.join(self.place, name)):
                return name
        there = storage.list_names(self.place)
        shown = ", ".join(there[:8]) + (", ..." if len(there) > 8 else "")
        raise ValueError(
            f"{storage.redact(self.place)} has no {' or '.join(names)}, which {self.title} ships as annotations; it "
            f"has {shown or 'nothing'}"
        )

    def has(self, name: str) -> bool:
        """Whether a file is there."""
        return storage.exists(storage.join(self.place, name))

    def names(self) -> list[str]:
        """All files, sorted."""
        return storage.list_names(self.place)

    def lines(self, name: str) -> Iterator[tuple[str, str]]:
        """Yield the lines of a text file that hold something, each with its place for messages.

        Raises:
            ValueError: It is no text.
        """
        for number, line in enumerate(self._text(name).splitlines(), start=1):
            if line.strip():
                yield self.at(name, number), line.strip()

    def table(self, name: str, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
        """Yield the rows of a CSV file, each with its place for messages.

        Raises:
            ValueError: It lacks one of these columns, or is no text.
        """
        rows = csv.DictReader(io.StringIO(self._text(name)))
        missing = [column for column in columns if column not in (rows.fieldnames or ())]
        if missing:
            raise ValueError(
                f"{self.at(name, 1)}: no column {', '.join(missing)}; it names {', '.join(rows.fieldnames or ())}"
            )
        for number, row in enumerate(rows, start=2):
            if None in row.values():
                raise ValueError(f"{self.at(name, number)}: fewer values than columns")
            yield self.at(name, number), row

    def json(self, name: str) -> Any:
        """The content of a JSON file.

        Raises:
            ValueError: It is none.
        """
        try:
            return json.loads(self._text(name))
        except json.JSONDecodeError as error:
            raise ValueError(f"{self.at(name, error.lineno)}: not JSON ({error.msg})") from error

    def at(self, name: str, line: int) -> str:
        """A place, for a message."""
        return f"{storage.redact(storage.join(self.place, name))}:{line}"

    def _text(self, name: str) -> str:
        data = storage.read_bytes(storage.join(self.place, name))
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.at(name, 1)}: not a text file") from error

"""List files: which videos make a data set, one per line, with their labels.

Three forms are read, told apart by their first line:

* the authors' V1 lists: `path label`, one space between;
* the authors' V2 lists: `path 0 -1` (start and number of frames; these values mean a video file);
* a CSV with a header: `path`, then any of `label`, `split`, `start_s`, `end_s`. The only form for
  paths with spaces.

A label of -1 means none. Every mistake is collected and reported with its line, together with what
is allowed.
"""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass

from clips import storage

_ALLOWED = (
    "allowed: 'path label' (one space, no spaces in the path), 'path 0 -1', or a CSV whose first "
    "line names its columns: path, and any of label, split, start_s, end_s"
)
_COLUMNS = ("path", "label", "split", "start_s", "end_s")
_MOST_SHOWN = 10


@dataclass(frozen=True)
class Listed:
    """One line of a list file."""

    path: str
    """As written: relative to the list's root, absolute, or a URI."""
    label: str | None = None
    split: str | None = None
    start_s: float | None = None
    end_s: float | None = None


class _Mistake(ValueError):
    """What is wrong with one line."""


def read_list(uri: str) -> list[Listed]:
    """Return the lines of a list file.

    Raises:
        ValueError: It is missing, empty, or no text, or has wrong lines (each named `file:line`).
    """
    name = storage.redact(uri)
    try:
        text = storage.read_bytes(uri).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not a text file; {_ALLOWED}") from error
    lines = [(n, line.strip()) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise ValueError(f"{name} is empty; {_ALLOWED}")
    columns = _header(lines[0][1])
    if columns:
        lines = lines[1:]
        unknown = [column for column in columns if column not in _COLUMNS]
        if unknown:
            raise ValueError(f"{name}:1: unknown column {', '.join(unknown)}; {_ALLOWED}")
    rows: list[Listed] = []
    mistakes: list[str] = []
    seen: dict[tuple[str, float | None], int] = {}
    for number, line in lines:
        try:
            row = _csv_row(line, columns) if columns else _plain_row(line)
            first = seen.setdefault((row.path, row.start_s), number)
            if first != number:
                raise _Mistake(f"{row.path!r} stands on line {first} already")
            rows.append(row)
        except _Mistake as mistake:
            mistakes.append(f"{name}:{number}: {mistake}")
    if mistakes:
        more = len(mistakes) - _MOST_SHOWN
        shown = mistakes[:_MOST_SHOWN] + ([f"and {more} more lines"] if more > 0 else [])
        raise ValueError("\n".join([*shown, _ALLOWED]))
    if not rows:
        raise ValueError(f"{name} has a header but no lines below it; {_ALLOWED}")
    return rows


def _header(line: str) -> list[str]:
    """Return the columns that a first line names, or nothing if it names none."""
    columns = [name.strip() for name in line.split(",")]
    return columns if "path" in columns else []


def _plain_row(line: str) -> Listed:
    path, *fields = line.split(" ")
    if not fields:
        raise _Mistake(f"no label after {path!r}")
    if len(fields) == 1:
        return Listed(path, label=_label(fields[0]))
    if fields == ["0", "-1"]:
        return Listed(path)
    if len(fields) == 2 and all(field.lstrip("-").isdigit() for field in fields):
        raise _Mistake(
            f"start {fields[0]} and total {fields[1]} describe a folder of frames, which cannot be "
            "read; a video has '0 -1'"
        )
    raise _Mistake(f"more than one space in {line!r}: a path with spaces needs the CSV form")


def _csv_row(line: str, columns: Sequence[str]) -> Listed:
    values = [value.strip() for value in next(csv.reader([line]))]
    if len(values) != len(columns):
        raise _Mistake(f"{len(values)} values for the {len(columns)} columns {','.join(columns)}")
    row = dict(zip(columns, values, strict=True))
    if not row["path"]:
        raise _Mistake("no path")
    if row.get("label") == "":
        raise _Mistake(f"no label for {row['path']!r} (-1 means none)")
    start_s, end_s = _seconds("start_s", row), _seconds("end_s", row)
    if end_s is not None and end_s <= (start_s or 0.0):
        raise _Mistake(f"end_s {end_s:g} is not after start_s {start_s or 0.0:g}")
    return Listed(
        row["path"],
        label=_label(row.get("label")),
        split=row.get("split") or None,
        start_s=start_s,
        end_s=end_s,
    )


def _label(text: str | None) -> str | None:
    return None if text == "-1" else text


def _seconds(column: str, row: dict[str, str]) -> float | None:
    text = row.get(column)
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise _Mistake(f"{column} is {text!r}; it must be a number of seconds, 0 or more")
    return value

"""List files: which videos make a data set, one per line, with their labels.

Three forms are read, told apart by their first line:

* the authors' V1 lists: `path label`, one space between;
* the authors' V2 lists: `path start total`, number of the first frame and how many: `0 -1` means a
  video file, others a folder of frames, whose numbers start at 0 or 1;
* a CSV with a header: `path`, then any of `label`, `split`, `start_s`, `end_s`. The only form for
  paths with spaces.

Paths may be relative, absolute, or URIs (`s3://`, `gs://`, `https://`), also of different places. An
address that holds a password or a signature is refused. A label of -1 means none. Every mistake is
collected and reported with its line, together with what is allowed.
"""

import codecs
import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from clips import storage
from clips.addresses import refusal, secret_in, shown

_ALLOWED = (
    "allowed: 'path label' (one space, no spaces in the path), 'path 0 -1', 'path 1 TOTAL' for a folder of "
    "frames, or a CSV whose first line names its columns: path, and any of label, split, start_s, end_s"
)
_COLUMNS = ("path", "label", "split", "start_s", "end_s")
_MOST_SHOWN = 10
_WHOLE_BYTES = 16 << 20  # longer lists are read in parts of this size


@dataclass(frozen=True)
class Listed:
    """One line of a list file."""

    path: str
    """As written: relative to the list's root, absolute, or a URI."""
    label: str | None = None
    split: str | None = None
    start_s: float | None = None
    end_s: float | None = None
    frames: int | None = None
    """How many pictures there are, of a folder of frames."""
    line: int = 0
    """Where it stands, from 1."""


class _Mistake(ValueError):
    """What is wrong with one line."""


class Mistakes:
    """The mistakes of a list file: all are counted, the first are kept for the message."""

    def __init__(self, uri: str) -> None:
        """Start without any; `uri` is the list."""
        self._name = storage.redact(uri)
        self._shown: list[str] = []
        self._count = 0

    def add(self, line: int, text: str) -> None:
        """Remember what is wrong with a line."""
        self._count += 1
        if len(self._shown) < _MOST_SHOWN:
            self._shown.append(f"{self._name}:{line}: {text}")

    def check(self) -> None:
        """Raise a ValueError if there are any: each with its line, and what is allowed."""
        if self._count:
            more = self._count - len(self._shown)
            rest = [f"and {more} more lines"] if more else []
            raise ValueError("\n".join([*self._shown, *rest, _ALLOWED]))


def read_list(uri: str) -> Iterator[Listed]:
    """Yield the lines of a list file, which may be longer than fits in memory.

    Raises:
        ValueError: It is missing, empty, or no text, or has wrong lines (each named `file:line`;
            raised after the last good line).
    """
    name = storage.redact(uri)
    mistakes = Mistakes(uri)
    columns: list[str] | None = None
    rows = 0
    try:
        for number, line in _numbered(uri):
            if columns is None:
                columns = _header(line)
                unknown = [column for column in columns if column not in _COLUMNS]
                if unknown:
                    raise ValueError(
                        f"{name}:{number}: unknown column {', '.join(unknown)}; {_ALLOWED}"
                    )
                if columns:
                    continue
            rows += 1
            try:
                row = _csv_row(line, columns, number) if columns else _plain_row(line, number)
                secret = secret_in(row.path)
                if secret:
                    raise _Mistake(f"{shown(row.path)} {refusal(secret)}")
            except _Mistake as mistake:
                mistakes.add(number, str(mistake))
            else:
                yield row
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not a text file; {_ALLOWED}") from error
    if columns is None:
        raise ValueError(f"{name} is empty; {_ALLOWED}")
    if not rows:
        raise ValueError(f"{name} has a header but no lines below it; {_ALLOWED}")
    mistakes.check()


def _numbered(uri: str) -> Iterator[tuple[int, str]]:
    """Yield the lines that hold something, with their numbers."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    number, rest = 0, ""
    for data in _parts(uri):
        *lines, rest = (rest + decoder.decode(data)).split("\n")
        for text in lines:
            number += 1
            if text.strip():
                yield number, text.strip()
    rest += decoder.decode(b"", final=True)
    if rest.strip():
        yield number + 1, rest.strip()


def _parts(uri: str) -> Iterator[bytes]:
    """Yield the file's bytes: whole if it is short, or where a web server may not know of ranges."""
    size = 0 if uri.startswith(("http://", "https://")) else storage.size(uri)
    if size <= _WHOLE_BYTES:
        yield storage.read_bytes(uri)
        return
    for start in range(0, size, _WHOLE_BYTES):
        yield storage.read_range(uri, start=start, length=_WHOLE_BYTES)


def _header(line: str) -> list[str]:
    """Return the columns that a first line names, or nothing if it names none."""
    columns = [name.strip() for name in line.split(",")]
    return columns if "path" in columns else []


def _plain_row(line: str, number: int) -> Listed:
    path, *fields = line.split(" ")
    if not fields:
        raise _Mistake(f"no label after {shown(path)!r}")
    if len(fields) == 1:
        return Listed(path, label=_label(fields[0]), line=number)
    if fields == ["0", "-1"]:
        return Listed(path, line=number)
    if len(fields) == 2 and all(field.lstrip("-").isdigit() for field in fields):
        if fields[0] not in ("0", "1") or int(fields[1]) < 1:
            raise _Mistake(
                f"start {fields[0]} and total {fields[1]}: a video has '0 -1', and a folder of frames "
                "starts at 0 or 1 and has one frame or more"
            )
        return Listed(path, frames=int(fields[1]), line=number)
    raise _Mistake(f"more than one space in {shown(line)!r}: a path with spaces needs the CSV form")


def _csv_row(line: str, columns: Sequence[str], number: int) -> Listed:
    values = [value.strip() for value in next(csv.reader([line]))]
    if len(values) != len(columns):
        raise _Mistake(f"{len(values)} values for the {len(columns)} columns {','.join(columns)}")
    row = dict(zip(columns, values, strict=True))
    if not row["path"]:
        raise _Mistake("no path")
    if row.get("label") == "":
        raise _Mistake(f"no label for {shown(row['path'])!r} (-1 means none)")
    start_s, end_s = _seconds("start_s", row), _seconds("end_s", row)
    if end_s is not None and end_s <= (start_s or 0.0):
        raise _Mistake(f"end_s {end_s:g} is not after start_s {start_s or 0.0:g}")
    return Listed(
        row["path"],
        label=_label(row.get("label")),
        split=row.get("split") or None,
        start_s=start_s,
        end_s=end_s,
        line=number,
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

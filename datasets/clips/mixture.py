"""Several manifests used as one data set: the rows of the first, then those of the second, and so on.

A row's number counts through all of them in their order. Classes are those of all labels together,
by the rule that a manifest has for its own; each manifest's indices are translated on look-up, so
that its copy on the node is the one that it has alone. The hash covers the manifests' hashes, their
weights and their order, since each of them decides what a run sees.
"""

import bisect
import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clips import storage
from clips.local_table import LocalTable, Video
from clips.manifest import Manifest, class_names


@dataclass(frozen=True)
class Mixture:
    """Manifests and how often a row of each is used, on average, in an epoch."""

    parts: tuple[Manifest, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        assert len(self.parts) == len(self.weights) > 0, self.weights
        first: dict[str, Manifest] = {}
        for part in self.parts:
            if part.hash in first:
                raise ValueError(
                    f"{_place(first[part.hash])} and {_place(part)} hold the same manifest; "
                    "name it once, with the sum of the weights"
                )
            first[part.hash] = part

    def __len__(self) -> int:
        return self.starts[-1]

    @functools.cached_property
    def starts(self) -> tuple[int, ...]:
        """Number of each part's first row, and of all rows."""
        return (0, *itertools.accumulate(map(len, self.parts)))

    @functools.cached_property
    def classes(self) -> tuple[str, ...]:
        """Class names of all parts; a label's index is its place here."""
        return class_names(name for part in self.parts for name in part.classes)

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 over the parts' hashes and weights in their order, as hex."""
        content = [[p.hash, float(w)] for p, w in zip(self.parts, self.weights, strict=True)]
        return hashlib.sha256(b"tubelet mixture v1" + json.dumps(content).encode()).hexdigest()

    @property
    def uri(self) -> str:
        """The parts' places, for messages."""
        return ", ".join(map(_place, self.parts))

    def label_indices(self) -> np.ndarray:
        """Return int64 [rows]: the class index of each row, -1 where it has none."""
        return np.concatenate(
            [
                np.append(_translation(part.classes, self.classes), -1)[part.label_indices()]
                for part in self.parts
            ]
        )

    def label_pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (rows, class indices), int64: one pair for each label of each row."""
        pairs = [part.label_pairs() for part in self.parts]
        rows = [first + of for first, (of, _) in zip(self.starts, pairs, strict=False)]
        classes = [
            _translation(part.classes, self.classes)[of]
            for part, (_, of) in zip(self.parts, pairs, strict=True)
        ]
        return np.concatenate(rows), np.concatenate(classes)

    def local_table(self, cache_dir: str) -> "MixedTable":
        """Return the look-up of all rows; every part has its memory-mapped file in `cache_dir`."""
        return MixedTable([part.local_table(cache_dir) for part in self.parts], self.classes)


class MixedTable:
    """Random access to the rows of several manifests; pickles as their addresses."""

    def __init__(self, tables: Sequence[LocalTable], classes: tuple[str, ...]) -> None:
        """Chain `tables`, whose labels become indices into `classes`."""
        self.classes = classes
        self._tables = tuple(tables)
        self._starts = (0, *itertools.accumulate(map(len, tables)))
        self._places = [_translation(table.classes, classes) for table in tables]

    def __len__(self) -> int:
        return self._starts[-1]

    def video(self, row: int) -> Video:
        """Return the record of one row."""
        assert 0 <= row < len(self), (row, len(self))
        part = bisect.bisect_right(self._starts, row) - 1
        video = self._tables[part].video(row - self._starts[part])
        place = self._places[part]
        return dataclasses.replace(
            video,
            row=int(row),
            label=None if video.label is None else int(place[video.label]),
            labels=tuple(int(place[label]) for label in video.labels),
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return MixedTable, (self._tables, self.classes)


def _translation(own: tuple[str, ...], all_: tuple[str, ...]) -> np.ndarray:
    """Where each of a part's classes stands among all."""
    place = {name: i for i, name in enumerate(all_)}
    return np.array([place[name] for name in own], np.int64)


def _place(part: Manifest) -> str:
    return storage.redact(part.uri or f"the manifest of {part.root}")

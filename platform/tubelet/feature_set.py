"""Features of a manifest's videos in a folder: what lies there, and how it is read.

    <output>/
        features.json               what was asked: encoder, weights, views, tokens
        features/part-*.parquet     a row a video: video_id, start_s, mean, tokens
        undecodable/part-*.parquet  the videos of a part that could not be decoded: video_id, start_s, reason, message

``mean`` has the mean token of each clip, float32 [V, D] in one list; ``tokens`` all of them, float16 [V, T, H, W, D],
or null. ``features.json`` says V, T, H, W and D.

A part is a stretch of the manifest's rows, named by what these rows are (video, span, size, etag): a part that is there
is whole and holds for every manifest with this stretch. So nothing need be read to know what is left to do, and rows
added at the end leave the parts before them as they are.

Shapes: R videos, V clips of each, T H W tokens along time, height and width of a clip, D features.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clips import Manifest, storage
from tubelet.config import UserError
from tubelet.parts import Key, Part, digest_of, in_threads, keys_of, read_table, write_table

_ROWS = [("video_id", pa.string()), ("start_s", pa.float64())]
FEATURES = pa.schema([*_ROWS, ("mean", pa.list_(pa.float32())), ("tokens", pa.list_(pa.float16()))])
UNDECODABLE = pa.schema([*_ROWS, ("reason", pa.string()), ("message", pa.string())])


def told_in(folder: str) -> str:
    """Where a folder says what it holds."""
    return storage.join(folder, "features.json")


def token_bytes(said: Mapping[str, Any]) -> int:
    """What all tokens of a video take, of features of which ``features.json`` says this."""
    return said["clips"] * int(np.prod(said["grid"])) * said["width"] * 2


def stretches(videos: Sequence[Key], *, rows: int) -> list[Part]:
    """Cut the rows of a manifest into parts of so many rows."""
    starts = range(0, len(videos), rows)
    return [
        Part(
            f"part-{digest_of(videos[start : start + rows])}",
            tuple(range(start, min(start + rows, len(videos)))),
        )
        for start in starts
    ]


@dataclass(frozen=True)
class FeatureFolder:
    """The files of a folder, local or remote."""

    folder: str

    def names(self) -> set[str]:
        """Parts that are there."""
        found = storage.list_names(storage.join(self.folder, "features"))
        return {n.removesuffix(".parquet") for n in found if n.endswith(".parquet")}

    def write(
        self, name: str, features: list[dict[str, Any]], undecodable: list[dict[str, Any]]
    ) -> None:
        """Write a part: rows of the two schemas; the features, written last, make it complete."""
        place = self._place("undecodable", name)
        if undecodable:
            write_table(pa.Table.from_pylist(undecodable, UNDECODABLE), place)
        else:
            storage.remove(place)  # of an earlier try
        write_table(pa.Table.from_pylist(features, FEATURES), self._place("features", name))

    def read(self, name: str, *columns: str) -> pa.Table:
        """Columns of a part's features, besides what tells the rows apart."""
        return read_table(self._place("features", name), ["video_id", "start_s", *columns])

    def undecodable(self, names: set[str]) -> dict[str, pa.Table]:
        """The undecodable videos of these parts, where there are some."""
        found = storage.list_names(storage.join(self.folder, "undecodable"))
        there = sorted(names & {n.removesuffix(".parquet") for n in found})
        tables = in_threads(lambda name: read_table(self._place("undecodable", name)), there)
        return dict(zip(there, tables, strict=True))

    def clear(self) -> None:
        """Delete all features."""
        for kind in ("features", "undecodable"):
            storage.remove(storage.join(self.folder, kind))

    def _place(self, kind: str, name: str) -> str:
        return storage.join(self.folder, f"{kind}/{name}.parquet")


class FeatureSet:
    """All features of a manifest, to be read."""

    def __init__(self, folder: str, manifest: Manifest) -> None:
        """Look at what there is.

        Raises:
            UserError: these are no features, or not of all of this manifest.
        """
        self.folder = storage.absolute(folder)
        shown = storage.redact(folder)
        if not storage.exists(told_in(self.folder)):
            raise UserError(f"{shown} holds no features: make them with jobs/features.py")
        self.said: dict[str, Any] = json.loads(storage.read_bytes(told_in(self.folder)))
        videos = keys_of(manifest.table)
        self.parts = stretches(videos, rows=self.said["rows"])
        self._identity = [(video.video_id, video.start_s) for video in videos]
        self._files = FeatureFolder(self.folder)
        missing = len({part.name for part in self.parts} - self._files.names())
        if missing:
            raise UserError(
                f"{shown} lacks {missing} of {len(self.parts)} parts of the features of {manifest.uri}: run "
                "jobs/features.py with this manifest and this output again, which makes what is missing"
            )

    @property
    def width(self) -> int:
        """Features of a token."""
        return self.said["width"]

    @property
    def tokens_each(self) -> int:
        """Tokens of a video, those of all its clips."""
        return self.said["clips"] * int(np.prod(self.said["grid"]))

    @property
    def token_bytes(self) -> int:
        """Of all tokens of all videos."""
        return len(self._identity) * token_bytes(self.said)

    def means(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Rows that have features, ascending, and the mean of each over its clips and tokens, [R, D]."""
        tables = in_threads(
            lambda name: self._files.read(name, "mean"), [p.name for p in self.parts]
        )
        rows = [self._rows(part, table) for part, table in zip(self.parts, tables, strict=True)]
        flat = [table["mean"].combine_chunks().flatten().to_numpy() for table in tables]
        mean_RVD = np.concatenate(flat).reshape(-1, self.said["clips"], self.width)
        return np.concatenate(rows), mean_RVD.mean(1)

    def tokens(self, part: Part) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
        """Rows of a part that have features, and all tokens of all their clips, [R, V * T * H * W, D].

        Raises:
            UserError: only means were kept.
        """
        if not self.said["tokens"]:
            raise UserError(
                f"{storage.redact(self.folder)} holds means only, and an attentive probe needs all tokens: make "
                "features with tokens=true, or leave the probe out (probes=[linear,knn])"
            )
        table = self._files.read(part.name, "tokens")
        flat = table["tokens"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return self._rows(part, table), flat.reshape(-1, self.tokens_each, self.width)

    def _rows(self, part: Part, table: pa.Table) -> NDArray[np.int64]:
        """Rows of the manifest that a part's features are of: those that could be decoded."""
        places = {self._identity[row]: row for row in part.rows}
        found = zip(table["video_id"].to_pylist(), table["start_s"].to_pylist(), strict=True)
        return np.array([places[each] for each in found], np.int64)

"""From an item's number to its clips: what a decoding task does, without torch or Ray.

A clip that cannot be decoded, or that is padding, keeps its place: zeros, ``valid`` false. Randomness is a hash of what
the clip is, never of who decodes it. Decoding processes import this file and not the model's side (``feed``): torch
alone would cost each of them two seconds and hundreds of megabytes.

A video that costs a process is not tried again from the next epoch on (``quarantine`` says why then). A task knows of
it from its attempt's start, or because its own process has met it.
"""

import dataclasses
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Gt, Le, Lt
from numpy.typing import NDArray

from clips import HARMFUL, ClipConfig, DecodeConfig, DecodeError, LocalTable, MixedTable, storage
from clips.cache import Cache
from clips.disposable import take_clips
from clips.load import Take
from tubelet.ledger import Ledger, seed64
from tubelet.selection import Selection
from tubelet.timetable import Item, Timetable

Batch = Mapping[str, NDArray[Any]]

_PATIENCE_S = 600.0
"""How long training waits for a storage that does not answer."""
_NOTHING: Mapping[int, int] = {}
_CENTRE: dict[str, Any] = {
    "time": "centre",
    "crop": "centre",
    "flip": False,
    "rand_augment": None,
}
"""Held-out clips are the same at every evaluation."""


@dataclass(frozen=True)
class MixedManifest:
    """One manifest of ``data.mixture``."""

    manifest: str
    """Parquet file that ``jobs/prepare.py`` wrote."""
    weight: Annotated[float, Gt(0), Le(1000)] = 1.0
    """Visits of each of its rows in an epoch: 2 for two, 0.25 for one in every fourth epoch or so."""


@dataclass(frozen=True)
class DataConfig:
    """Section ``data``: which clips."""

    manifest: str = field(default="", metadata={"resume": "free"})
    """Parquet file that ``jobs/prepare.py`` wrote; its content is part of the run, its place is not."""
    mixture: tuple[MixedManifest, ...] = field(default=(), metadata={"resume": "free"})
    """Several of them with weights, instead of ``data.manifest``; their order and weights are part of the run too."""
    copies: Annotated[int, Ge(1)] = 1
    """Clips per visit: R clips from one opened video (repeated augmentation)."""
    clip: ClipConfig = field(default_factory=ClipConfig)
    held_out: Annotated[float, Ge(0), Lt(1)] = 0.05
    """Share of the videos kept out of training, by hash of their id, when the manifest names no split."""
    held_out_clips: Annotated[int, Ge(0)] = 256
    """How many of them an evaluation looks at (one clip each); 0 for no evaluation."""
    decode_cpus: Annotated[float, Gt(0)] = field(default=1.0, metadata={"resume": "free"})
    """CPUs that Ray reserves for a decoding task."""
    decode_nodes: Literal["any", "labelled"] = field(default="any", metadata={"resume": "free"})
    """labelled: decode on nodes labelled ``ray-subcluster=data`` and on no others, train on the others."""
    prefetch: Annotated[int, Ge(0)] = field(default=2, metadata={"resume": "free"})
    """Units fetched ahead by each worker."""
    max_bad_fraction: Annotated[float, Ge(0), Le(1)] = field(
        default=0.05, metadata={"resume": "free"}
    )
    """Share of clips that cannot be decoded beyond which a run stops; looked at from the 200th clip on."""
    cache_dir: str | None = field(default=None, metadata={"resume": "free"})
    """Folder of each node that keeps remote videos, so that they are read once; null: they are read at every visit."""
    cache_gb: Annotated[float, Gt(0)] = field(default=100.0, metadata={"resume": "free"})
    """Most that it takes on a node; the least recently used videos make room."""

    def __post_init__(self) -> None:
        if self.cache_dir is not None and not os.path.isabs(self.cache_dir):
            raise ValueError(
                f"data.cache_dir is {self.cache_dir!r}; it must be an absolute path, the same on every node"
            )
        if self.manifest and self.mixture:
            raise ValueError(
                "data.manifest and data.mixture are both set; keep one (data.mixture=[] empties the list)"
            )
        places = [part.manifest for part in self.mixture]
        if twice := sorted({place for place in places if places.count(place) > 1}):
            raise ValueError(
                f"data.mixture: {twice[0]} is named {places.count(twice[0])} times; name it once, with the sum of "
                "the weights"
            )


@dataclass(frozen=True)
class BatchConfig:
    """Section ``batch``: counted in visits, the same at any number of workers."""

    size: Annotated[int, Ge(1)] = 1024
    """Visits per optimizer step."""
    micro: Annotated[int, Ge(1)] = 32
    """Visits per unit: what one worker handles at once. Fixed, since units are made of it."""

    def __post_init__(self) -> None:
        if self.size % self.micro:
            raise ValueError(
                f"batch.size ({self.size}) must be a multiple of batch.micro ({self.micro})"
            )


@dataclass(frozen=True)
class DataPlan:
    """Everything that a decoding task needs to turn an item's number into clips."""

    ledger: Ledger
    timetable: Timetable
    table: LocalTable | MixedTable
    """The manifest's rows; travels as a reference to a file of each node (one for each manifest of a mixture)."""
    rows: tuple[Selection | NDArray[np.int64], ...]
    """Manifest rows of each draw; the ledger's indices point into them."""
    held_out_rows: NDArray[np.int64]
    copies: int
    """Clips per visit (and videos per visit's place in a held-out unit)."""
    clip: ClipConfig
    decode: DecodeConfig
    frames: int
    """T of a clip."""
    size: int
    """Height and width of a clip, pixels."""
    cache: Cache | None = None
    """Of remote videos, on each node."""
    classes: int = 0
    """How many, where a clip may have several labels; 0 where it has one."""

    @property
    def clips_per_unit(self) -> int:
        """Clips of every unit."""
        return self.ledger.micro_batch * self.copies

    @property
    def unit_bytes(self) -> int:
        """Size of a unit's clips."""
        return self.clips_per_unit * self.frames * self.size * self.size * 3


def decode_item(
    number: int, *, plan: DataPlan, attempt: int, out: Mapping[int, int]
) -> dict[str, Any]:
    """What a decoding task does: an item's number in, its clips out.

    Args:
        number: of the item within the run.
        plan: the run's.
        attempt: stamped on every clip.
        out: rows known to cost processes, with the step from which they are not tried.
    """
    started, before = time.perf_counter(), storage.traffic()
    with storage.patience(_PATIENCE_S):
        clips = load_item(plan, plan.timetable.item(number), out={**out, **_met_in(attempt)})
    count, read = plan.clips_per_unit, storage.traffic().since(before)
    clips["item"] = np.full(count, number)
    clips["attempt"] = np.full(count, attempt)
    clips["decode_s"] = np.full(count, (time.perf_counter() - started) / count)
    clips["read_bytes"] = np.full(count, read.bytes_read / count)
    clips["requests"] = np.full(count, read.requests / count)
    return clips


_met: tuple[int, dict[int, int]] = (0, {})


def _met_in(attempt: int) -> dict[int, int]:
    """Rows that cost this process a decoder during an attempt, with the step from which they are out."""
    global _met
    if _met[0] != attempt:
        _met = (attempt, {})
    return _met[1]


def load_item(plan: DataPlan, item: Item, *, out: Mapping[int, int] = _NOTHING) -> dict[str, Any]:
    """The clips of an item and where they come from; every array has ``plan.clips_per_unit`` entries."""
    source = held_out_source(plan, item) if item.held_out else training_source(plan, item)
    count = plan.clips_per_unit
    frames = np.zeros((count, plan.frames, plan.size, plan.size, 3), np.uint8)
    label = np.full(count, -1, np.int64)
    labels = np.zeros((count, plan.classes), np.uint8)
    reason, kind, stage = (np.full(count, "", dtype=object) for _ in range(3))
    together = 1 if item.held_out else plan.copies
    config = dataclasses.replace(plan.clip, **_CENTRE) if item.held_out else plan.clip
    seeds = clip_seeds(plan.ledger.seed, source, "clip")
    for start in range(0, count, together):
        if not source["valid"][start]:
            continue
        here = slice(start, start + together)
        video = plan.table.video(int(source["row"][start]))
        label[here] = -1 if video.label is None else video.label
        if plan.classes:
            own = set(video.labels) | ({video.label} if video.label is not None else set())
            labels[here, sorted(own)] = 1
        take = Take(
            video,
            config,
            plan.frames,
            plan.size,
            plan.decode,
            seeds=tuple(int(seed) for seed in seeds[here]),
        )
        try:
            if is_out(video.row, item.step, out):
                raise quarantined()
            frames[here] = take_clips(take, cache=plan.cache)
        except DecodeError as error:
            source["valid"][here] = False
            kind[here], stage[here] = error.kind, error.stage
            reason[here] = f"{video.video_id}: {error}"
            if error.kind in HARMFUL:
                _met[1].setdefault(video.row, plan.ledger.epoch_after(item.step))
    failure = {"reason": reason, "kind": kind, "stage": stage}
    several = {"labels": labels} if plan.classes else {}
    return {**source, **failure, **several, "frames": frames, "label": label}


def is_out(row: int, step: int, out: Mapping[int, int]) -> bool:
    """Whether a row is no longer tried at a step; ``out`` says from which step on."""
    return out.get(row, step + 1) <= step


def quarantined() -> DecodeError:
    """What stands for a clip of such a row."""
    return DecodeError("quarantined", "it cost decoders their processes", stage="process")


def training_source(plan: DataPlan, item: Item) -> dict[str, NDArray[Any]]:
    """Position, epoch, row, visit, copy and validity of a training unit's clips."""
    visits = plan.ledger.unit(item.number)
    row = plan.rows[int(visits.draw[0])][visits.index]  # a unit lies within one draw
    columns = {
        "position": visits.position,
        "epoch": visits.epoch,
        "row": row,
        "visit": visits.visit,
        "valid": visits.valid,
    }
    source: dict[str, NDArray[Any]] = {n: np.repeat(c, plan.copies) for n, c in columns.items()}
    source["copy"] = np.tile(np.arange(plan.copies), len(row))
    return source


def held_out_source(plan: DataPlan, item: Item) -> dict[str, NDArray[Any]]:
    """The same for a held-out unit: other videos in every place, the same ones at every evaluation."""
    place = item.number * plan.clips_per_unit + np.arange(plan.clips_per_unit)
    valid = place < len(plan.held_out_rows)
    row = plan.held_out_rows[np.where(valid, place, 0)]
    nothing = np.zeros_like(row)
    return {
        "position": place,
        "epoch": nothing,
        "row": row,
        "visit": nothing,
        "valid": valid,
        "copy": nothing,
    }


def clip_seeds(run_seed: int, source: Batch, stream: str) -> NDArray[np.uint64]:
    """One seed per clip for a stream of random decisions."""
    columns = (source["epoch"], source["row"], source["visit"], source["copy"])
    return np.array(
        [
            seed64(run_seed, int(e), int(r), int(v), int(c), stream)
            for e, r, v, c in zip(*columns, strict=True)
        ],
        np.uint64,
    )

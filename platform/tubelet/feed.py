"""From manifest rows to this rank's units, in an order that only the step decides.

The transport is one Ray Data stream for the rest of the run. Its rows are numbers of the timetable's items; each
becomes exactly one block, decoded on any node with CPUs to spare, and blocks are dealt out in order: item i of the
stream goes to rank ``i % world size``. A clip that cannot be decoded or that is padding keeps its place (zeros,
``valid`` false), since the split balances by rows. The worker trusts none of this: every unit says which attempt and
item it is, and a unit that is not the expected one is an error, not a silently different run.

What crosses the object store are uint8 clips of the model's size; masks are made beside the model from each clip's
seed. Batches are views of the object store: each is copied to the device before the next is taken, or they would pin
it.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Gt, Lt
from numpy.typing import NDArray
from torch import Tensor

from clips import ClipConfig, DecodeConfig, DecodeError, LocalTable, load_clips
from tubelet.ledger import Ledger, seed64
from tubelet.timetable import Item, Timetable, rounds

Batch = Mapping[str, NDArray[Any]]

_CENTRE: dict[str, Any] = {"time": "centre", "crop": "centre", "flip": False}
"""Held-out clips are the same at every evaluation."""


@dataclass(frozen=True)
class DataConfig:
    """Section ``data``: which clips."""

    manifest: str = field(default="", metadata={"resume": "free"})
    """Parquet file that ``jobs/prepare.py`` wrote; its content is part of the run, its place is not."""
    copies: Annotated[int, Ge(1)] = 1
    """Clips per visit: R clips from one opened video (repeated augmentation)."""
    clip: ClipConfig = field(default_factory=ClipConfig)
    held_out: Annotated[float, Ge(0), Lt(1)] = 0.05
    """Share of the videos kept out of training, by hash of their id, when the manifest names no split."""
    held_out_clips: Annotated[int, Ge(0)] = 256
    """How many of them an evaluation looks at (one clip each); 0 for no evaluation."""
    decode_cpus: Annotated[float, Gt(0)] = field(default=1.0, metadata={"resume": "free"})
    """CPUs that Ray reserves for a decoding task."""
    prefetch: Annotated[int, Ge(0)] = field(default=2, metadata={"resume": "free"})
    """Units fetched ahead by each worker."""


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
    table: LocalTable
    """The manifest's rows; travels as a reference to a file of each node."""
    rows: tuple[NDArray[np.int64], ...]
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

    @property
    def clips_per_unit(self) -> int:
        """Clips of every unit."""
        return self.ledger.micro_batch * self.copies


@dataclass(frozen=True)
class Unit:
    """Clips of one unit, on the device."""

    number: int
    """Training: of the run; held-out: among the held-out units."""
    frames_BTHWC: Tensor
    valid_B: Tensor
    """float32: 1 for clips that count, 0 for padding and clips that could not be decoded."""
    label_B: Tensor
    """int64; -1 without a label."""
    mask_BN: Tensor | None = None
    """On the CPU, where the model turns masks into indices."""
    decoder_mask_BN: Tensor | None = None
    source: Batch = field(default_factory=dict)
    """Per clip: position, epoch, row, visit, copy, valid, reason; empty for a dummy."""


MaskMaker = Callable[[NDArray[np.uint64]], tuple[Tensor | None, Tensor | None]]
"""From the clips' seeds to the encoder's and the decoder's mask."""


def decode_item(batch: Batch, *, plan: DataPlan, first_item: int, attempt: int) -> dict[str, Any]:
    """Ray Data's map function: one item's number in, its clips out.

    Args:
        batch: one row, ``id`` counts from the start of the stream.
        plan: the run's.
        first_item: number of the stream's first item within the run.
        attempt: stamped on every clip.
    """
    number = first_item + int(batch["id"][0])
    started = time.perf_counter()
    clips = load_item(plan, plan.timetable.item(number))
    count = plan.clips_per_unit
    clips["item"] = np.full(count, number)
    clips["attempt"] = np.full(count, attempt)
    clips["decode_s"] = np.full(count, (time.perf_counter() - started) / count)
    return clips


def load_item(plan: DataPlan, item: Item) -> dict[str, Any]:
    """The clips of an item and where they come from; every array has ``plan.clips_per_unit`` entries."""
    source = held_out_source(plan, item) if item.held_out else training_source(plan, item)
    count = plan.clips_per_unit
    frames = np.zeros((count, plan.frames, plan.size, plan.size, 3), np.uint8)
    label = np.full(count, -1, np.int64)
    reason = np.full(count, "", dtype=object)
    together = 1 if item.held_out else plan.copies
    config = dataclasses.replace(plan.clip, **_CENTRE) if item.held_out else plan.clip
    seeds = clip_seeds(plan.ledger.seed, source, "clip")
    for start in range(0, count, together):
        if not source["valid"][start]:
            continue
        here = slice(start, start + together)
        video = plan.table.video(int(source["row"][start]))
        label[here] = -1 if video.label is None else video.label
        try:
            frames[here] = load_clips(
                video,
                config,
                seeds=seeds[here],
                frames=plan.frames,
                size=plan.size,
                decode=plan.decode,
            )
        except DecodeError as error:
            source["valid"][here] = False
            reason[here] = f"{video.video_id}: {error}"
    return {**source, "frames": frames, "label": label, "reason": reason}


def training_source(plan: DataPlan, item: Item) -> dict[str, NDArray[Any]]:
    """Position, epoch, row, visit, copy and validity of a training unit's clips."""
    visits = plan.ledger.unit(item.number)
    row = np.array(
        [plan.rows[d][i] for d, i in zip(visits.draw, visits.index, strict=True)], np.int64
    )
    columns = {
        "position": visits.position,
        "epoch": visits.epoch,
        "row": row,
        "visit": np.zeros_like(row),
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


class Feed:
    """This rank's units, step by step.

    Args:
        plan: the run's.
        batches: this rank's items in order, from the step it resumes at.
        start_step: that step.
        attempt: what every unit must be stamped with.
        rank: of ``world_size``.
        world_size: how many ranks share the stream.
        device: where tensors go.
        make_masks: from seeds to masks; returns (None, None) for models without.
    """

    def __init__(
        self,
        plan: DataPlan,
        batches: Iterator[Batch],
        *,
        start_step: int,
        attempt: int,
        rank: int,
        world_size: int,
        device: torch.device,
        make_masks: MaskMaker,
    ) -> None:
        self._plan, self._batches = plan, batches
        self._first = plan.timetable.first_item(start_step)
        self._attempt, self._rank, self._world_size = attempt, rank, world_size
        self._device, self._make_masks = device, make_masks
        self.wait_s = 0.0
        """Seconds spent waiting for data; the reader may reset it."""
        self.decode_s = 0.0
        """CPU-side seconds that the units received took to decode; the reader may reset it."""

    @property
    def training_rounds(self) -> int:
        """Units per step that every rank must run, dummies included."""
        return rounds(self._plan.timetable.units_per_step, self._world_size)

    def training_units(self, step: int) -> Iterator[Unit]:
        """This rank's units of a step, filled up with dummies to ``training_rounds``."""
        first = self._plan.timetable.first_item(step)
        return self._units(first, self._plan.timetable.units_per_step)

    def held_out_units(self, done: int) -> Iterator[Unit]:
        """This rank's units of the evaluation after ``done`` steps, filled up with dummies alike."""
        count = self._plan.timetable.held_out_units
        last = self._plan.timetable.first_item(done)
        return self._units(last - count, count)

    def _units(self, first: int, count: int) -> Iterator[Unit]:
        mine = [
            i
            for i in range(first, first + count)
            if (i - self._first) % self._world_size == self._rank
        ]
        for number in mine:
            yield self._receive(number)
        for _ in range(rounds(count, self._world_size) - len(mine)):
            yield self._dummy()

    def _receive(self, expected: int) -> Unit:
        waited = time.perf_counter()
        batch = next(self._batches, None)
        self.wait_s += time.perf_counter() - waited
        if batch is None:
            raise RuntimeError(
                f"the feed ended before item {expected}: rank {self._rank} of {self._world_size}"
            )
        got = (set(batch["item"].tolist()), set(batch["attempt"].tolist()), len(batch["item"]))
        if got != ({expected}, {self._attempt}, self._plan.clips_per_unit):
            raise RuntimeError(
                f"the feed is out of order: expected item {expected} of attempt {self._attempt} with "
                f"{self._plan.clips_per_unit} clips, got items {got[0]} of attempts {got[1]} with {got[2]}"
            )
        self.decode_s += float(batch["decode_s"].sum())
        source = {
            k: v for k, v in batch.items() if k not in ("frames", "item", "attempt", "decode_s")
        }
        seeds = clip_seeds(self._plan.ledger.seed, source, "mask")
        return self._unit(
            self._plan.timetable.item(expected).number, batch["frames"], source, seeds
        )

    def _dummy(self) -> Unit:
        """A unit that weighs nothing: ranks without work still take part in the collectives."""
        plan, count = self._plan, self._plan.clips_per_unit
        frames = np.zeros((count, plan.frames, plan.size, plan.size, 3), np.uint8)
        source = {"valid": np.zeros(count, bool), "label": np.full(count, -1, np.int64)}
        unit = self._unit(0, frames, source, np.zeros(count, np.uint64))
        return Unit(**{**vars(unit), "source": {}})

    def _unit(
        self, number: int, frames: NDArray[Any], source: Batch, seeds: NDArray[np.uint64]
    ) -> Unit:
        mask, decoder_mask = self._make_masks(seeds)
        return Unit(
            number=number,
            frames_BTHWC=torch.from_numpy(frames.copy()).to(self._device),
            valid_B=torch.from_numpy(source["valid"].astype(np.float32)).to(self._device),
            label_B=torch.from_numpy(source["label"].astype(np.int64)).to(self._device),
            mask_BN=mask,
            decoder_mask_BN=decoder_mask,
            source=source,
        )

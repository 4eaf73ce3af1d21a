"""From manifest rows to this rank's units, in an order that only the step decides.

The transport (``stream``) is one stream for the rest of the run. It numbers the timetable's items; item i of the
stream goes to rank ``i % world size``, decoded on any node with CPUs to spare. A clip that cannot be decoded or that is
padding keeps its place (zeros, ``valid`` false). The worker trusts none of this: every unit says which attempt and item
it is, and a unit that is not the expected one is an error, not a silently different run.

What crosses the object store are uint8 clips of the model's size; masks are made beside the model from each clip's
seed. Batches are views of the object store: each is copied to the device before the next is taken, or they would pin
it.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tubelet.items import Batch, DataPlan, clip_seeds
from tubelet.quarantine import Quarantine
from tubelet.timetable import rounds


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
    labels_BK: Tensor | None = None
    """uint8, 1 for each of a clip's classes, where it may have several."""
    mask_BN: Tensor | None = None
    """On the CPU, where the model turns masks into indices."""
    decoder_mask_BN: Tensor | None = None
    source: Batch = field(default_factory=dict)
    """Per clip: position, epoch, row, visit, copy, valid, reason, kind, stage; empty for a dummy."""


@dataclass
class Received:
    """What a rank received in some time, held-out clips included, and what it cost."""

    clips: int = 0
    wait_s: float = 0.0
    """Spent waiting for data."""
    decode_s: float = 0.0
    """Spent by the tasks that decoded, fetching included."""
    read_bytes: float = 0.0
    """Read from remote storage."""
    requests: float = 0.0
    """Made to remote storage."""

    def metrics(self, elapsed_s: float) -> dict[str, float]:
        """As MLflow has them: the share of time spent waiting, and what a clip costs."""
        each = max(1, self.clips)
        return {
            "data/wait": self.wait_s / elapsed_s,
            "data/decode_ms_per_clip": 1e3 * self.decode_s / each,
            "data/bytes_per_clip": self.read_bytes / each,
            "data/requests_per_clip": self.requests / each,
        }


_TRANSPORT = ("frames", "labels", "item", "attempt", "decode_s", "read_bytes", "requests")

MaskMaker = Callable[[NDArray[np.uint64]], tuple[Tensor | None, Tensor | None]]
"""From the clips' seeds to the encoder's and the decoder's mask."""


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
        quarantine: what this rank knows of videos that cannot be decoded; units are noted there.
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
        quarantine: Quarantine,
    ) -> None:
        self._plan, self._batches = plan, batches
        self._first = plan.timetable.first_item(start_step)
        self._attempt, self._rank, self._world_size = attempt, rank, world_size
        self._device, self._make_masks = device, make_masks
        self.quarantine = quarantine
        self._received = Received()

    def take_received(self) -> "Received":
        """What came since the last call."""
        received, self._received = self._received, Received()
        return received

    @property
    def training_rounds(self) -> int:
        """Units per step that every rank must run, dummies included."""
        return rounds(self._plan.timetable.units_per_step, self._world_size)

    def first_rank(self, step: int) -> int:
        """The rank that has a step's first unit; the next unit is on the next rank."""
        return (self._plan.timetable.first_item(step) - self._first) % self._world_size

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
        self._received.wait_s += time.perf_counter() - waited
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
        self._received.clips += len(batch["item"])
        for name in ("decode_s", "read_bytes", "requests"):
            total = getattr(self._received, name) + float(batch[name].sum())
            setattr(self._received, name, total)
        # Copies: the audit keeps them until the next commit, and views would pin every block in the object store.
        source = {name: batch[name].copy() for name in batch if name not in _TRANSPORT}
        seeds = clip_seeds(self._plan.ledger.seed, source, "mask")
        item = self._plan.timetable.item(expected)
        self.quarantine.admit(item, source, self._plan.table)
        return self._unit(item.number, batch["frames"], source, seeds, batch.get("labels"))

    def _dummy(self) -> Unit:
        """A unit that weighs nothing: ranks without work still take part in the collectives."""
        plan, count = self._plan, self._plan.clips_per_unit
        frames = np.zeros((count, plan.frames, plan.size, plan.size, 3), np.uint8)
        source = {"valid": np.zeros(count, bool), "label": np.full(count, -1, np.int64)}
        labels = np.zeros((count, plan.classes), np.uint8) if plan.classes else None
        unit = self._unit(0, frames, source, np.zeros(count, np.uint64), labels)
        return Unit(**{**vars(unit), "source": {}})

    def _unit(
        self,
        number: int,
        frames: NDArray[Any],
        source: Batch,
        seeds: NDArray[np.uint64],
        labels: NDArray[Any] | None,
    ) -> Unit:
        mask, decoder_mask = self._make_masks(seeds)
        frames = frames.copy()
        frames[~source["valid"]] = 0  # mixing must not see what a task decoded that did not know
        return Unit(
            number=number,
            frames_BTHWC=torch.from_numpy(frames).to(self._device),
            valid_B=torch.from_numpy(source["valid"].astype(np.float32)).to(self._device),
            label_B=torch.from_numpy(source["label"].astype(np.int64)).to(self._device),
            labels_BK=None if labels is None else torch.from_numpy(labels.copy()).to(self._device),
            mask_BN=mask,
            decoder_mask_BN=decoder_mask,
            source=source,
        )

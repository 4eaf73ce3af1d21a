"""Which sample is used when: pure functions of the recipe, the same at any world size.

A run *visits* ``epochs * rows`` positions. Position p lies in epoch ``p // rows``; the row visited there is a keyed
permutation of the rows, computed in O(1) without storing the order (a cycle-walking Feistel network). ``micro_batch``
consecutive positions make a *unit*, the atom of work that one rank receives; ``batch`` positions make an optimizer
step. The only state of a run is its step: no cursor, no sampler, no worker-local counter can go stale.

    steps = ceil(epochs * rows / batch)        nothing dropped, the last step padded with invalid positions
    unit u = positions [u * micro_batch, (u + 1) * micro_batch)    may straddle epochs

The rows may be those of several parts with weights (a mixture of manifests). An epoch then holds floor(w) visits of
every row of a part of weight w, and one more of so many of its rows as the fraction asks for: equally many in every
epoch, chosen by a further keyed permutation. What an epoch permutes is its visits, whichever part they belong to.

A run may repeat itself on other rows (``draws``: several draws of few labels trained one after another). A draw has its
own epochs, numbered on from those of the draw before it, and its own padded last step.

Guarantees (tested): every (epoch, row, visit) once; any world size, any sequence of restarts. Costs: half a millisecond
a unit, on the decoding side.
"""

import hashlib
import math
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 6  # four suffice for a pseudo-random permutation (Luby and Rackoff 1988); two more cost nothing here
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Visits:
    """What a run of positions stands for; arrays of one length, one entry a position."""

    position: NDArray[np.int64]
    valid: NDArray[np.bool_]
    """False for padding: it keeps its place and weighs nothing."""
    epoch: NDArray[np.int64]
    """Counted through all draws, so that randomness keyed by it never repeats."""
    draw: NDArray[np.int64]
    index: NDArray[np.int64]
    """Into the rows that the run selected from its manifest; 0 where not valid."""
    visit: NDArray[np.int64]
    """Number of the visit to this row within its epoch: 0 but for weights above 1."""


@dataclass(frozen=True)
class Part:
    """Rows that follow each other and are used equally often."""

    rows: int
    weight: float = 1.0
    """Visits of a row in an epoch, on average."""

    def __post_init__(self) -> None:
        if self.visits < 1:
            raise ValueError(
                f"weight {self.weight:g} of {self.rows} rows gives no visit in an epoch; "
                "leave the manifest out, or raise its weight"
            )

    @property
    def every(self) -> int:
        """Visits of every row in every epoch."""
        return math.floor(self.weight)

    @property
    def chosen(self) -> int:
        """Rows that have one visit more, others in each epoch."""
        return round((self.weight - self.every) * self.rows)

    @property
    def visits(self) -> int:
        """Visits in an epoch."""
        return self.every * self.rows + self.chosen


@dataclass(frozen=True)
class Ledger:
    """The plan of a run: how many steps and units it has and what each of them holds."""

    rows: int
    """Rows selected from the manifest (of each draw)."""
    epochs: int
    batch: int
    """Visits per optimizer step, at any world size."""
    micro_batch: int
    """Visits per unit."""
    seed: int
    draws: int = 1
    parts: tuple[Part, ...] = ()
    """How the rows are weighted, those of the first part first; none: every row once an epoch."""

    def __post_init__(self) -> None:
        if self.parts and sum(part.rows for part in self.parts) != self.rows:
            raise ValueError(f"the parts hold other rows than {self.rows}: {self.parts}")
        for name in ("rows", "epochs", "batch", "micro_batch", "draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.batch % self.micro_batch:
            raise ValueError(
                f"batch.size ({self.batch}) must be a multiple of batch.micro ({self.micro_batch})"
            )

    @property
    def visits_per_epoch(self) -> int:
        """Visits of every epoch; the rows, unless they are weighted."""
        return sum(part.visits for part in self.parts) if self.parts else self.rows

    @property
    def units_per_step(self) -> int:
        """Units of every step, the padded last one included."""
        return self.batch // self.micro_batch

    @property
    def steps_per_draw(self) -> int:
        """Optimizer steps of one draw."""
        return -(-self.epochs * self.visits_per_epoch // self.batch)

    @property
    def steps(self) -> int:
        """Optimizer steps of the run."""
        return self.draws * self.steps_per_draw

    @property
    def visits(self) -> int:
        """Valid positions of the run."""
        return self.draws * self.epochs * self.visits_per_epoch

    def is_valid(self, position: int) -> bool:
        """Whether a position holds a visit (else it pads the last step of its draw)."""
        return position % (self.steps_per_draw * self.batch) < self.epochs * self.visits_per_epoch

    def epoch_after(self, step: int) -> int:
        """The first step after ``step`` that begins in another epoch, or draw, than it does."""
        local = step % self.steps_per_draw
        epoch = local * self.batch // self.visits_per_epoch
        end = min(-(-(epoch + 1) * self.visits_per_epoch // self.batch), self.steps_per_draw)
        return step - local + end

    def visits_in(self, step: int) -> int:
        """How many of a step's positions hold a visit; fewer than ``batch`` in the last step of a draw."""
        return self.visits_before(step + 1) - self.visits_before(step)

    def visits_before(self, step: int) -> int:
        """How many positions of the steps before this one hold a visit."""
        draws, local = divmod(step, self.steps_per_draw)
        return draws * self.epochs * self.visits_per_epoch + min(
            local * self.batch, self.epochs * self.visits_per_epoch
        )

    def unit(self, unit: int) -> Visits:
        """The visits of a unit, counted from the start of the run.

        Raises:
            IndexError: for a unit outside the run.
        """
        units_per_draw = self.steps_per_draw * self.units_per_step
        if not 0 <= unit < self.draws * units_per_draw:
            raise IndexError(f"unit {unit} lies outside the run's {self.draws * units_per_draw}")
        draw, local = divmod(unit, units_per_draw)
        length = self.visits_per_epoch
        position = np.arange(local * self.micro_batch, (local + 1) * self.micro_batch)
        valid = position < self.epochs * length
        inside = np.where(valid, position, 0)
        epoch = draw * self.epochs + inside // length
        index, visit = np.zeros_like(position), np.zeros_like(position)
        for number in np.unique(epoch[valid]):
            here = valid & (epoch == number)
            place = permute(inside[here] % length, length, self.seed, int(number))
            index[here], visit[here] = self._row_and_visit(place, int(number))
        return Visits(
            position=position + draw * self.steps_per_draw * self.batch,
            valid=valid,
            epoch=epoch,
            draw=np.full_like(position, draw),
            index=index,
            visit=visit,
        )

    def _row_and_visit(
        self, place: NDArray[np.int64], epoch: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """What stands at these places of an epoch's list of visits before it is permuted.

        The list holds the parts one after another, of each all its rows as often as all are visited, then the chosen.
        """
        index, visit = place.copy(), np.zeros_like(place)
        first_row = first_place = 0
        for number, part in enumerate(self.parts):
            local = place - first_place
            here = (local >= 0) & (local < part.visits)
            visit[here], row = np.divmod(local[here], part.rows)
            extra = visit[here] == part.every
            row[extra] = permute(row[extra], part.rows, _part_seed(self.seed, number), epoch)
            index[here] = first_row + row
            first_row, first_place = first_row + part.rows, first_place + part.visits
        return index, visit


def permute(offsets: NDArray[np.int64], rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Where ``offsets`` of an epoch lead: the keyed permutation of ``range(rows)``.

    A balanced Feistel network over the smallest even number of bits that holds ``rows``; results outside the range
    walk on until they fall inside (Black and Rogaway 2002), four rounds of the network on average at worst.

    Args:
        offsets: numbers in ``range(rows)``.
        rows: size of the permuted range.
        seed: the run's seed.
        epoch: the epoch's number.
    """
    half = max(1, -(-int(rows - 1).bit_length() // 2))
    keys = _round_keys(seed, epoch)
    mask = np.uint64((1 << half) - 1)
    out = _feistel(offsets.astype(np.uint64), half, mask, keys)
    while (outside := out >= np.uint64(rows)).any():
        out[outside] = _feistel(out[outside], half, mask, keys)
    return out.astype(np.int64)


def seed64(run_seed: int, epoch: int, row: int, visit: int, copy: int, stream: str) -> int:
    """The seed of one random decision: a 64-bit hash of everything that may tell two of them apart.

    Args:
        run_seed: the run's seed.
        epoch: epoch of the visit.
        row: row of the manifest.
        visit: number of the visit to this row within its epoch (0 but for weighted mixtures).
        copy: number of the clip within the visit.
        stream: what is decided: ``"clip"``, ``"mask"``, ...
    """
    key = struct.pack("<5q", run_seed, epoch, row, visit, copy) + stream.encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")


def unit_seed(run_seed: int, unit: int) -> int:
    """What torch's generators are seeded with before a unit's forward pass (drop path, dropout, mixup)."""
    return seed64(run_seed, 0, unit, 0, 0, "unit")


def _part_seed(seed: int, part: int) -> int:
    """Another order for the choice within each part than for the epoch."""
    return seed64(seed, 0, part, 0, 0, "mixture") >> 1  # keys are signed


def _round_keys(seed: int, epoch: int) -> NDArray[np.uint64]:
    digest = hashlib.blake2b(struct.pack("<2q", seed, epoch), digest_size=8 * _ROUNDS).digest()
    return np.frombuffer(digest, dtype="<u8").astype(np.uint64)


def _feistel(
    value: NDArray[np.uint64], half: int, mask: np.uint64, keys: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    left, right = value >> np.uint64(half), value & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << np.uint64(half)) | right


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele et al. 2014): every input bit reaches every output bit."""
    value = value + _GOLDEN  # wraps: uint64 arithmetic is modulo 2**64
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))

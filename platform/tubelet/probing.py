"""Train heads on frozen features: many at once, the best of which is chosen on videos that none was trained on.

Every value of a grid is a head of its own; all of them see the same batches in the same order, so that the features are
read once for all (tokens of a large data set do not fit into memory, and reading them is what takes the time).

Deterministic on the CPU: heads and order are functions of the seed.

Shapes: B videos of a batch, R videos, N tokens, D features, K classes.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from tubelet.feature_set import FeatureSet
from tubelet.recipes import AttentiveConfig, LinearConfig
from tubelet.schedules import cosine, effective_lr
from videomae import AttentiveProbe, LinearProbe, neighbours

Rows = NDArray[np.int64]
Batches = Callable[[int], Iterable[tuple[Tensor, Tensor]]]
"""From the epoch to its batches: features and classes."""
_PARTS_AT_ONCE = 8
_KEPT_BYTES = 2 << 30
_MOMENTUM = 0.9
_ASKED = 256


@dataclass(frozen=True)
class Sides:
    """Rows of a manifest with their classes: what heads learn from, are chosen on, and are reported on."""

    train: Rows
    select: Rows
    test: Rows
    class_of: NDArray[np.int64]
    """Of each row of the manifest; -1 without one."""
    classes: int

    def labels(self, rows: Rows) -> Tensor:
        """Classes of rows."""
        return torch.from_numpy(self.class_of[rows])


@dataclass(frozen=True)
class Candidate:
    """A head, or a number of neighbours, with what it says of two sides."""

    setting: dict[str, float]
    """``lr`` and ``weight_decay``, or ``k``."""
    select_RK: Tensor
    """Scores of the videos to choose by."""
    test_RK: Tensor
    """Scores of the videos to report on."""
    head: nn.Module | None = None

    def top1(self, sides: Sides) -> float:
        """Share of the videos to choose by that it has right."""
        return float((self.select_RK.argmax(1) == sides.labels(sides.select)).float().mean())

    def loss(self, sides: Sides) -> float:
        """Cross-entropy on the same videos, which decides between equals."""
        shares_R = self.select_RK.gather(1, sides.labels(sides.select)[:, None])
        return float(-shares_R.clamp(min=1e-9).log().mean())


def best(candidates: Sequence[Candidate], sides: Sides) -> Candidate:
    """The one that is right most often on videos that it was not trained on; of equals the surest, then the first."""
    return max(candidates, key=lambda c: (c.top1(sides), -c.loss(sides)))


# --- on mean features ------------------------------------------------------------------------


def linear(
    means_RD: Tensor, sides: Sides, config: LinearConfig, *, seed: int, told: Callable[[int], None]
) -> list[Candidate]:
    """Train linear heads on the mean feature of each video.

    Args:
        means_RD: of every row of the manifest.
        sides: which rows are what.
        config: the grid and the schedule.
        seed: of the order of videos.
        told: told how many epochs are done.
    """
    device = means_RD.device
    train_RD = means_RD[torch.from_numpy(sides.train).to(device)]
    deviation_D, mean_D = torch.std_mean(train_RD, dim=0, correction=0)
    grid = list(itertools.product(config.lr, config.weight_decay))
    heads = [LinearProbe(mean_D, deviation_D, num_classes=sides.classes).to(device) for _ in grid]
    size = min(config.batch, len(sides.train))
    optimizer = torch.optim.SGD(_groups(heads, grid), lr=0.0, momentum=_MOMENTUM)

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in _dealt(sides.train, size=size, key=(seed, epoch)):
            yield means_RD[torch.from_numpy(rows).to(device)], sides.labels(rows).to(device)

    peaks = [effective_lr(lr, size) for lr, _ in grid]
    steps = -(-len(sides.train) // size)
    _train(heads, optimizer, peaks, batches, config, steps=steps, told=told)

    def asked(head: nn.Module, rows: Rows) -> Tensor:
        return head(means_RD[torch.from_numpy(rows).to(device)]).softmax(-1).cpu()

    with torch.no_grad():
        return [
            Candidate(
                {"lr": lr, "weight_decay": decay},
                asked(head, sides.select),
                asked(head, sides.test),
                head,
            )
            for head, (lr, decay) in zip(heads, grid, strict=True)
        ]


def nearest(means_RD: Tensor, sides: Sides, k: Sequence[int]) -> list[Candidate]:
    """Let the nearest training videos vote, ``k`` of them."""
    device = means_RD.device
    bank_RD = means_RD[torch.from_numpy(sides.train).to(device)]
    class_R = sides.labels(sides.train).to(device)

    def votes(rows: Rows) -> list[Tensor]:
        found: list[list[Tensor]] = []
        for start in range(0, len(rows), _ASKED):
            few = torch.from_numpy(rows[start : start + _ASKED]).to(device)
            asked = neighbours(
                means_RD[few], bank_RD, class_R, k=list(k), num_classes=sides.classes
            )
            found.append([each.cpu() for each in asked])
        return [torch.cat(each) for each in zip(*found, strict=True)]

    return [
        Candidate({"k": number}, select_RK, test_RK)
        for number, select_RK, test_RK in zip(
            k, votes(sides.select), votes(sides.test), strict=True
        )
    ]


# --- on all tokens ---------------------------------------------------------------------------


class Tokens:
    """All tokens of a feature set by rows; kept in memory if there are few, else read again for every epoch."""

    def __init__(self, features: FeatureSet) -> None:
        self._features = features
        self._keeps = features.token_bytes <= _KEPT_BYTES
        self._kept: dict[str, tuple[Rows, NDArray[np.float16]]] = {}

    def of(self, wanted: Rows, *, key: tuple[int, int] | None) -> Iterator[tuple[Rows, Tensor]]:
        """Yield rows with their tokens [R, N, D], some parts at a time.

        Args:
            wanted: ascending.
            key: seed and epoch of an order to give parts and rows in; None: as they lie.
        """
        parts = [p for p in self._features.parts if np.isin(p.rows, wanted).any()]
        random = None if key is None else np.random.default_rng([*key, 1])
        order = np.arange(len(parts)) if random is None else random.permutation(len(parts))
        for start in range(0, len(order), _PARTS_AT_ONCE):
            read = [self._read(parts[n]) for n in order[start : start + _PARTS_AT_ONCE]]
            rows = np.concatenate([rows for rows, _ in read])
            tokens = np.concatenate([tokens for _, tokens in read])
            chosen = np.flatnonzero(np.isin(rows, wanted))
            if random is not None:
                chosen = random.permutation(chosen)
            yield rows[chosen], torch.from_numpy(tokens[chosen])

    def _read(self, part: Any) -> tuple[Rows, NDArray[np.float16]]:
        if part.name in self._kept:
            return self._kept[part.name]
        read = self._features.tokens(part)
        if self._keeps:
            self._kept[part.name] = read
        return read


def attentive(
    tokens: Tokens,
    width: int,
    sides: Sides,
    config: AttentiveConfig,
    *,
    seed: int,
    device: torch.device,
    told: Callable[[int], None],
) -> list[Candidate]:
    """Train attentive heads on all tokens of each video.

    Args:
        tokens: of every row.
        width: features of a token.
        sides: which rows are what.
        config: the grid and the schedule.
        seed: of the heads and of the order of videos.
        device: where to train.
        told: told how many epochs are done.
    """
    grid = list(itertools.product(config.lr, config.weight_decay))
    heads: list[nn.Module] = []
    for _ in grid:  # all begin alike: what differs is the grid's
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            heads.append(AttentiveProbe(width, num_classes=sides.classes).to(device))
    optimizer = torch.optim.AdamW(_groups(heads, grid), lr=0.0)

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for rows, x_BND in _cut(tokens.of(sides.train, key=(seed, epoch)), config.batch):
            yield x_BND.to(device).float(), sides.labels(rows).to(device)

    steps = -(-len(sides.train) // config.batch)
    peaks = [lr for lr, _ in grid]
    _train(heads, optimizer, peaks, batches, config, steps=steps, told=told)
    select = _asked(heads, tokens, sides.select, config.batch, device=device)
    test = _asked(heads, tokens, sides.test, config.batch, device=device)
    return [
        Candidate({"lr": lr, "weight_decay": decay}, select[n], test[n], heads[n])
        for n, (lr, decay) in enumerate(grid)
    ]


@torch.no_grad()
def _asked(
    heads: Sequence[nn.Module], tokens: Tokens, rows: Rows, size: int, *, device: torch.device
) -> list[Tensor]:
    """What each head says of rows, [R, K] in their order."""
    said: list[list[Tensor]] = [[] for _ in heads]
    for _, few_BND in _cut(tokens.of(rows, key=None), size):
        x_BND = few_BND.to(device).float()
        for each, head in zip(said, heads, strict=True):
            each.append(head(x_BND).softmax(-1).cpu())
    return [torch.cat(each) for each in said]


def _cut(some: Iterable[tuple[Rows, Tensor]], size: int) -> Iterator[tuple[Rows, Tensor]]:
    """Cut what comes in pieces of any size into batches of ``size``; the last one may be smaller."""
    rows, x_RND = np.empty(0, np.int64), torch.empty(0)
    for more, more_RND in some:
        rows, x_RND = (
            np.concatenate([rows, more]),
            torch.cat([x_RND, more_RND]) if len(rows) else more_RND,
        )
        whole = len(rows) - len(rows) % size
        for start in range(0, whole, size):
            yield rows[start : start + size], x_RND[start : start + size]
        rows, x_RND = rows[whole:], x_RND[whole:]
    if len(rows):
        yield rows, x_RND


# --- training --------------------------------------------------------------------------------


def _groups(
    heads: Sequence[nn.Module], grid: Sequence[tuple[float, float]]
) -> list[dict[str, Any]]:
    """Parameter groups of heads with their weight decays; ``_train`` sets the rates."""
    return [
        {"params": list(head.parameters()), "weight_decay": decay}
        for head, (_, decay) in zip(heads, grid, strict=True)
    ]


def _train(
    heads: Sequence[nn.Module],
    optimizer: torch.optim.Optimizer,
    peaks: Sequence[float],
    batches: Batches,
    config: LinearConfig | AttentiveConfig,
    *,
    steps: int,
    told: Callable[[int], None],
) -> None:
    """Train all heads on the same batches; the gradient of one does not touch another."""
    done, total = 0, steps * config.epochs
    for epoch in range(config.epochs):
        for x, class_B in batches(epoch):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = cosine(
                    done,
                    peak=peak,
                    floor=0.0,
                    steps=total,
                    warmup_steps=int(steps * config.warmup_epochs),
                )
            optimizer.zero_grad(set_to_none=True)
            for head in heads:  # one after the other: of the activations one head's are kept
                F.cross_entropy(head(x), class_B).backward()
            optimizer.step()
            done += 1
        told(epoch + 1)


def _dealt(rows: Rows, *, size: int, key: tuple[int, int]) -> Iterator[Rows]:
    order = np.random.default_rng(key).permutation(rows)
    for start in range(0, len(order), size):
        yield order[start : start + size]

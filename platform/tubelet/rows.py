"""Which rows of a manifest a run trains on and which it is judged by.

A manifest that names splits is taken at its word: ``train`` (or no split) trains, ``val`` judges. Otherwise a share of
the videos is held out by a hash of their id, so that it stays the same when videos are added. Of a mixture, each
manifest is split by itself.
"""

import getpass
import os
import tempfile
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge, Le, Lt
from numpy.typing import NDArray

from clips import Manifest, Mixture, read_manifest
from clips.cache import Cache
from tubelet.config import UserError
from tubelet.items import DataConfig
from tubelet.ledger import Part, permute

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class LabelConfig:
    """Section ``labels``: which rows a classifier learns from."""

    per_class: Annotated[int, Ge(1)] | None = None
    """So many labelled videos of each class, drawn by the seed; null takes all."""
    draws: Annotated[int, Ge(1)] = 1
    """Independent draws, trained one after another in one run from the same start."""
    smoothing: Annotated[float, Ge(0), Lt(1)] = 0.1
    several: bool = False
    """A video may have several labels (the manifest's column ``labels``): binary cross-entropy of every class."""
    balance: Annotated[float, Ge(0), Le(1)] | None = None
    """Weigh classes in the loss: beta of Cui et al. 2019, such as 0.999; 1 is the inverse of a class's labels."""

    def __post_init__(self) -> None:
        if self.several and self.per_class is not None:
            raise ValueError(
                "labels.per_class draws videos with one label each, but labels.several is true: set it to null"
            )
        if self.draws > 1 and self.per_class is None:
            raise ValueError(
                "labels.draws above 1 needs labels.per_class: without it every draw is the same"
            )


def open_data(data: DataConfig) -> Manifest | Mixture:
    """Read the manifest that ``data.manifest`` names, or those of ``data.mixture``.

    Raises:
        UserError: none is named, one cannot be used, or two are the same.
    """
    if not data.mixture:
        return open_manifest(data.manifest, key="data.manifest")
    parts = [_read(p.manifest, key=f"data.mixture.{n}") for n, p in enumerate(data.mixture)]
    try:
        return Mixture(tuple(parts), tuple(part.weight for part in data.mixture))
    except ValueError as error:
        raise UserError(f"data.mixture: {error}") from error


def open_manifest(uri: str, *, key: str = "manifest") -> Manifest:
    """Read the manifest that a job's key names.

    Raises:
        UserError: none is named, or it cannot be used.
    """
    if not uri:
        raise UserError(
            f"{key} names no manifest; make one with: python jobs/prepare.py FOLDER manifest=FILE.parquet"
        )
    return _read(uri, key=key)


def _read(uri: str, *, key: str) -> Manifest:
    try:
        return read_manifest(uri)
    except ValueError as error:
        raise UserError(f"{key}: {error}") from error


def cache_of(data: DataConfig) -> Cache | None:
    """Each node's cache of remote videos."""
    if data.cache_dir is None:
        return None
    return Cache(data.cache_dir, int(data.cache_gb * 1e9))


def cache_folder() -> str:
    """Where every node keeps its memory-mapped copies of manifests."""
    return os.path.join(tempfile.gettempdir(), f"tubelet-manifests-{getpass.getuser()}")


def split_rows(data_set: Manifest | Mixture, data: DataConfig) -> tuple[Rows, Rows]:
    """Rows to train on and rows held out, ascending.

    Raises:
        UserError: a side that is needed is empty.
    """
    if isinstance(data_set, Mixture):
        sides = [
            [rows + start for rows in _split(part, data)]
            for part, start in zip(data_set.parts, data_set.starts, strict=False)
        ]
        training, held_out = (np.concatenate(side) for side in zip(*sides, strict=True))
    else:
        training, held_out = _split(data_set, data)
    if data.held_out_clips and not len(held_out):
        raise UserError(
            f"none of the {len(data_set)} rows of {data_set.uri} is held out: raise data.held_out "
            f"({data.held_out:g}), or set data.held_out_clips=0 to train without evaluation"
        )
    return training, held_out


def _split(manifest: Manifest, data: DataConfig) -> tuple[Rows, Rows]:
    if manifest.splits:
        training, held_out = manifest.in_split("train", None), manifest.in_split("val")
    else:
        training, held_out = manifest.hold_out(data.held_out)
    if not len(training):
        raise UserError(
            f"no row of {manifest.uri} is left to train on: its splits are {', '.join(manifest.splits) or 'unnamed'}, "
            f"data.held_out is {data.held_out:g}; rows of split 'train' or without one are trained on"
        )
    return training, held_out


def parts_of(data_set: Manifest | Mixture, training: Rows) -> tuple[Part, ...]:
    """How training rows are weighted: none for a manifest, one part for each of a mixture.

    Raises:
        UserError: a weight is so small that no row is visited.
    """
    if not isinstance(data_set, Mixture):
        return ()
    counts = np.diff(np.searchsorted(training, data_set.starts))
    parts: list[Part] = []
    for manifest, count, weight in zip(data_set.parts, counts, data_set.weights, strict=True):
        try:
            parts.append(Part(int(count), weight))
        except ValueError as error:
            raise UserError(f"data.mixture: {manifest.uri}: {error}") from error
    return tuple(parts)


def evaluation_rows(held_out: Rows, *, clips: int, seed: int) -> Rows:
    """The held-out rows that evaluations look at: ``clips`` of them, drawn once by the seed."""
    count = min(clips, len(held_out))
    return held_out[permute(np.arange(count), len(held_out), seed, -1)] if count else held_out[:0]


def label_counts(data_set: Manifest | Mixture, training: Rows) -> Rows:
    """How many labels of each class the training rows have."""
    rows, classes = data_set.label_pairs()
    return np.bincount(classes[np.isin(rows, training)], minlength=len(data_set.classes))


def draws_of(
    data_set: Manifest | Mixture, training: Rows, *, labels: LabelConfig, seed: int
) -> tuple[Rows, ...]:
    """The rows of each draw of labels; all have the same number.

    Raises:
        UserError: rows without a label, too few of a class, or few labels asked of a mixture.
    """
    unlabelled = data_set.label_indices()[training] < 0
    if unlabelled.any():
        labelled = np.isin(training[unlabelled], data_set.label_pairs()[0])
        if not labels.several and labelled.any():
            raise UserError(
                f"{int(labelled.sum())} of the {len(training)} training rows of {data_set.uri} have several labels: "
                "labels.several=true trains on them"
            )
        if not labelled.all():
            raise UserError(
                f"{int((~labelled).sum())} of the {len(training)} training rows of {data_set.uri} have no label: "
                f"make the manifest with labels=folders, or from a list file with labels"
            )
    if labels.per_class is None:
        return (training,)
    if isinstance(data_set, Mixture):
        raise UserError(
            "labels.per_class draws labels of one manifest, but data.mixture names "
            f"{len(data_set.parts)}: use data.manifest, or labels.per_class=null for all labels"
        )
    try:
        return tuple(
            data_set.few_labels(training, per_class=labels.per_class, seed=seed + draw)
            for draw in range(labels.draws)
        )
    except ValueError as error:
        raise UserError(f"labels.per_class: {error}") from error

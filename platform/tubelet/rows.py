"""Which rows of a manifest a run trains on and which it is judged by.

A manifest that names splits is taken at its word: ``train`` (or no split) trains, ``val`` judges. Otherwise a share of
the videos is held out by a hash of their id, so that it stays the same when videos are added.
"""

import getpass
import os
import tempfile
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge, Lt
from numpy.typing import NDArray

from clips import Manifest, read_manifest
from tubelet.config import UserError
from tubelet.items import DataConfig
from tubelet.ledger import permute

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class LabelConfig:
    """Section ``labels``: which rows a classifier learns from."""

    per_class: Annotated[int, Ge(1)] | None = None
    """So many labelled videos of each class, drawn by the seed; null takes all."""
    draws: Annotated[int, Ge(1)] = 1
    """Independent draws, trained one after another in one run from the same start."""
    smoothing: Annotated[float, Ge(0), Lt(1)] = 0.1

    def __post_init__(self) -> None:
        if self.draws > 1 and self.per_class is None:
            raise ValueError(
                "labels.draws above 1 needs labels.per_class: without it every draw is the same"
            )


def open_manifest(uri: str) -> Manifest:
    """Read the manifest that ``data.manifest`` names.

    Raises:
        UserError: none is named, or it cannot be used.
    """
    if not uri:
        raise UserError(
            "data.manifest names no manifest; make one with: python jobs/prepare.py FOLDER manifest=FILE.parquet"
        )
    try:
        return read_manifest(uri)
    except ValueError as error:
        raise UserError(f"data.manifest: {error}") from error


def cache_folder() -> str:
    """Where every node keeps its memory-mapped copies of manifests."""
    return os.path.join(tempfile.gettempdir(), f"tubelet-manifests-{getpass.getuser()}")


def split_rows(manifest: Manifest, data: DataConfig) -> tuple[Rows, Rows]:
    """Rows to train on and rows held out.

    Raises:
        UserError: a side that is needed is empty.
    """
    if manifest.splits:
        training, held_out = manifest.in_split("train", None), manifest.in_split("val")
    else:
        training, held_out = manifest.hold_out(data.held_out)
    if not len(training):
        raise UserError(
            f"no row of {data.manifest} is left to train on: its splits are {', '.join(manifest.splits) or 'unnamed'}, "
            f"data.held_out is {data.held_out:g}; rows of split 'train' or without one are trained on"
        )
    if data.held_out_clips and not len(held_out):
        raise UserError(
            f"none of the {len(manifest)} rows of {data.manifest} is held out: raise data.held_out "
            f"({data.held_out:g}), or set data.held_out_clips=0 to train without evaluation"
        )
    return training, held_out


def evaluation_rows(held_out: Rows, *, clips: int, seed: int) -> Rows:
    """The held-out rows that evaluations look at: ``clips`` of them, drawn once by the seed."""
    count = min(clips, len(held_out))
    return held_out[permute(np.arange(count), len(held_out), seed, -1)] if count else held_out[:0]


def draws_of(
    manifest: Manifest, training: Rows, *, labels: LabelConfig, seed: int
) -> tuple[Rows, ...]:
    """The rows of each draw of labels; all have the same number.

    Raises:
        UserError: rows without a label, or too few of a class.
    """
    unlabelled = int((manifest.label_indices()[training] < 0).sum())
    if unlabelled:
        raise UserError(
            f"{unlabelled} of the {len(training)} training rows of {manifest.uri} have no label: "
            f"make the manifest with labels=folders, or from a list file with labels"
        )
    if labels.per_class is None:
        return (training,)
    try:
        return tuple(
            manifest.few_labels(training, per_class=labels.per_class, seed=seed + draw)
            for draw in range(labels.draws)
        )
    except ValueError as error:
        raise UserError(f"labels.per_class: {error}") from error

"""Which class is taken for which, as a picture that stays of use with hundreds of classes.

Each cell is a whole number of pixels, and what occurred at all has a colour that is not white. Beside the matrix stand
the most frequent confusions by name. More classes than can be looked up by their alphabet are put in an order that
brings those together that are taken for each other; of names that do not fit, one of several is shown.

K classes, of these R that have videos and C that have videos or were answered.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tubelet.evaluation.metrics import Accuracy

_ALPHABETIC = 40
"""Classes that keep their order."""
_MOST = 1000
"""Classes of the matrix."""
_LISTED = 40
"""Confusions beside it."""
_SIDE, _SMALLEST_CELL, _LARGEST_CELL = 1200, 2, 70
"""Of the matrix and of a cell, in pixels."""
_COUNTED_CELL, _LINE = 28, 11
"""Of a cell with its count in it, and of a line of text."""
_LONGEST = 80
"""Letters of a name that are shown."""
_DPI = 100
_INK = "#1f2328"
_TICKS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0)
_COLOURS = LinearSegmentedColormap.from_list("seen", ["#ffd8a8", "#f08c00", "#c2255c", "#1e1e5a"])


@dataclass(frozen=True)
class Confusion:
    """Videos of one class that were taken for another."""

    own: int
    taken_for: int
    times: int
    videos: int
    """That the own class has."""


def most_frequent(accuracy: Accuracy, *, most: int) -> list[Confusion]:
    """The confusions that occurred most often; of equally many those of the larger share, then by number of class."""
    wrong_KK = accuracy.confusion.copy()
    np.fill_diagonal(wrong_KK, 0)
    found = [
        Confusion(own, other, int(wrong_KK[own, other]), int(accuracy.videos_by_class[own]))
        for own, other in np.argwhere(wrong_KK).tolist()
    ]
    found.sort(key=lambda c: (-c.times, c.videos, c.own, c.taken_for))
    return found[:most]


def neighbours(similar_CC: NDArray[np.floating]) -> list[int]:
    """An order that brings similar ones together: hierarchical clustering by average linkage, in numpy.

    The most similar two groups are joined, at their most similar ends, until none are similar; larger groups come
    first. Ties go to the lower number, so the order is a function of the matrix. Costs C matrices' maxima: 0.3 s for
    700 classes.
    """
    ends_CC = similar_CC + similar_CC.T
    np.fill_diagonal(ends_CC, 0)
    linked_CC = ends_CC.copy()
    groups = {k: [k] for k in range(len(ends_CC))}
    while linked_CC.any():
        a, b = sorted(map(int, np.unravel_index(linked_CC.argmax(), linked_CC.shape)))
        one, two = groups[a], groups.pop(b)
        of_both = (len(one) * linked_CC[a] + len(two) * linked_CC[b]) / (len(one) + len(two))
        linked_CC[a], linked_CC[:, a] = of_both, of_both
        linked_CC[b], linked_CC[:, b], linked_CC[a, a] = 0, 0, 0
        ways = [(x, y) for x in (one, one[::-1]) for y in (two, two[::-1])]
        first, second = max(ways, key=lambda way: ends_CC[way[0][-1], way[1][0]])
        groups[a] = first + second
    order = sorted(groups, key=lambda name: (-len(groups[name]), name))
    return [k for name in order for k in groups[name]]


def columns(accuracy: Accuracy) -> NDArray[np.int64]:
    """The classes of the matrix, in its order: those that have videos or were answered.

    Of more than 1000 these are the ones with the most videos that were taken for others.
    """
    found_C = np.flatnonzero(_occurs(accuracy))
    if len(found_C) <= _ALPHABETIC:
        return found_C
    wrong_K = accuracy.confusion.sum(1) - accuracy.confusion.diagonal()
    found_C = np.sort(found_C[np.argsort(-wrong_K[found_C], kind="stable")[:_MOST]])
    return found_C[neighbours(_shares(accuracy, found_C, found_C))]


def picture(accuracy: Accuracy, classes: Sequence[str], *, title: str) -> bytes:
    """PNG of the confusion matrix: a row for each class that occurs, its videos' answers as shares of them."""
    columns_C = columns(accuracy)
    rows_R = columns_C[accuracy.videos_by_class[columns_C] > 0]
    cell = min(_LARGEST_CELL, max(_SMALLEST_CELL, _SIDE // len(columns_C)))
    width, height = cell * len(columns_C), cell * len(rows_R)
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    FigureCanvasAgg(figure)
    # All else stands around the matrix, and the file becomes as large as that needs.
    axes = figure.add_axes((0, 0, 1, 1))
    for spine in axes.spines.values():
        spine.set_position(("outward", 1))  # or it hides half of the first row
    shares_RC = _shares(accuracy, rows_R, columns_C)
    image = axes.imshow(
        np.ma.masked_equal(shares_RC, 0),
        cmap=_COLOURS,
        norm=PowerNorm(0.5, 0, 1),
        interpolation="nearest",
        aspect="auto",
    )
    if len(columns_C) < np.count_nonzero(_occurs(accuracy)):
        title += f" (the {_MOST} classes with the most mistakes)"
    axes.set_title(title, color=_INK, loc="left", pad=12, parse_math=False)
    names = [_short(name) for name in classes]
    _name(axes, [names[k] for k in columns_C], [names[k] for k in rows_R], cell=cell)
    if cell >= _COUNTED_CELL:
        _count(axes, accuracy.confusion[np.ix_(rows_R, columns_C)], shares_RC, cell=cell)
    scale_height = max(height, 200)
    scale = figure.add_axes(
        (1 + 20 / width, 1 - scale_height / height, 14 / width, scale_height / height)
    )
    bar = figure.colorbar(image, cax=scale, label="share of the row's videos", ticks=_TICKS)
    bar.ax.set_yticklabels([f"{share:.0%}" for share in _TICKS])
    _list(figure, accuracy, names, left=1 + 130 / width)
    out = io.BytesIO()
    figure.savefig(out, format="png", bbox_inches="tight", pad_inches=0.15)
    return out.getvalue()


def _occurs(accuracy: Accuracy) -> NDArray[np.bool_]:
    """Whether a class has videos or was answered, [K]."""
    return accuracy.videos_by_class + accuracy.confusion.sum(0) > 0


def _shares(
    accuracy: Accuracy, rows_R: NDArray[np.int64], columns_C: NDArray[np.int64]
) -> NDArray[np.floating]:
    """Of the videos of each row's class, the share that each column's was answered for."""
    videos_R = np.maximum(1, accuracy.videos_by_class[rows_R])
    return accuracy.confusion[np.ix_(rows_R, columns_C)] / videos_R[:, None]


def _name(axes: Axes, columns: Sequence[str], rows: Sequence[str], *, cell: int) -> None:
    """Names along both sides, as many as have room."""
    step = -(-_LINE // cell)
    fontsize = min(10.0, 0.6 * cell * step)
    for set_ticks, names, angle in (
        (axes.set_xticks, columns, 90),
        (axes.set_yticks, rows, 0),
    ):
        places = range(0, len(names), step)
        set_ticks(places, names[::step], rotation=angle, fontsize=fontsize, parse_math=False)
    every = f" (one name of {step})" if step > 1 else ""
    axes.set_xlabel(f"answered{every}")
    axes.set_ylabel(f"is{every}")


def _count(
    axes: Axes, counts_RC: NDArray[np.int64], shares_RC: NDArray[np.floating], *, cell: int
) -> None:
    """Numbers of videos in the cells."""
    for row, column in np.argwhere(counts_RC).tolist():
        color = "white" if shares_RC[row, column] > 0.25 else _INK
        text = str(counts_RC[row, column])
        axes.text(
            column, row, text, ha="center", va="center", fontsize=min(10.0, cell / 4), color=color
        )


def _list(figure: Figure, accuracy: Accuracy, names: Sequence[str], *, left: float) -> None:
    """The most frequent confusions, by name, from the top down."""
    found = most_frequent(accuracy, most=_LISTED)
    lines = [f"{names[c.own]} -> {names[c.taken_for]}  {c.times} of {c.videos}" for c in found]
    text = "\n".join(["most frequent confusions", "", *(lines or ["none"])])
    figure.text(left, 1, text, va="top", fontsize=9, linespacing=1.5, color=_INK, parse_math=False)


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 3]}..."

"""What an evaluation leaves of each class: a table, and a picture of which class is taken for which."""

import csv
import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure

from tubelet.evaluation.metrics import Accuracy

_NAMED = 40
"""Classes whose names still fit beside the picture."""
_LISTED, _LONGEST, _LIST_WIDTH = 25, 56, 4.8
_INK = "#1f2328"


def by_class(accuracy: Accuracy, classes: Sequence[str]) -> str:
    """CSV with a row for each class that occurs, the weakest first.

    Columns: class, videos, right, accuracy, average_precision, taken_for (the wrong class most often answered, empty
    without one), times (that it was).
    """
    share = accuracy.right_by_class / np.maximum(1, accuracy.videos_by_class)
    wrong_KK = accuracy.confusion.copy()
    np.fill_diagonal(wrong_KK, 0)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(
        ("class", "videos", "right", "accuracy", "average_precision", "taken_for", "times")
    )
    for k in np.argsort(share, kind="stable").tolist():
        if accuracy.videos_by_class[k]:
            wrong = wrong_KK[k].tolist()
            times = max(wrong)
            other = wrong.index(times)
            table.writerow(
                (
                    classes[k],
                    int(accuracy.videos_by_class[k]),
                    int(accuracy.right_by_class[k]),
                    f"{share[k]:.4f}",
                    f"{accuracy.ap_by_class[k]:.4f}",
                    classes[other] if times else "",
                    times,
                )
            )
    return text.getvalue()


def confusion_picture(accuracy: Accuracy, classes: Sequence[str], *, title: str) -> bytes:
    """PNG of the confusion matrix: a row for each class that occurs, its videos' answers as shares of them.

    Where there are too many classes to name them at the axes, the most frequent confusions are listed beside it.
    """
    present = np.flatnonzero(accuracy.videos_by_class).tolist()
    columns = np.flatnonzero(accuracy.videos_by_class + accuracy.confusion.sum(0)).tolist()
    counts = accuracy.confusion[np.ix_(present, columns)]
    shares = counts / counts.sum(1, keepdims=True)
    named = len(columns) <= _NAMED
    side = 3.5 + 0.32 * len(columns) if named else 11.0
    beside = 1.0 if named else _LIST_WIDTH
    figure = Figure(figsize=(side + beside, side), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    if named:
        axes = figure.add_subplot()
    else:
        axes, listed = figure.subplots(1, 2, width_ratios=(side, beside))
        _list_confusions(listed, accuracy, classes)
    # Of many classes a confusion of a few videos is one pale pixel: the root makes it visible.
    norm = Normalize(0, 1) if named else PowerNorm(0.5, 0, 1)
    image = axes.imshow(shares, cmap="Blues", norm=norm, interpolation="nearest")
    figure.colorbar(
        image, ax=axes, fraction=0.046, label="share of the row's videos", format=_percent
    )
    axes.set_title(title, color=_INK)
    axes.set_xlabel("answered")
    axes.set_ylabel("is")
    if named:
        axes.set_xticks(range(len(columns)), [classes[k] for k in columns], rotation=90)
        axes.set_yticks(range(len(present)), [classes[k] for k in present])
    if len(columns) <= 12:
        for row, column in np.argwhere(counts).tolist():
            color = "white" if shares[row, column] > 0.5 else _INK
            text = str(counts[row, column])
            axes.text(column, row, text, ha="center", va="center", color=color)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def _list_confusions(axes: Axes, accuracy: Accuracy, classes: Sequence[str]) -> None:
    """The wrong answers that were given most often, by name."""
    axes.set_axis_off()
    wrong_KK = accuracy.confusion.copy()
    np.fill_diagonal(wrong_KK, 0)
    order = np.argsort(-wrong_KK, axis=None, kind="stable")[:_LISTED]
    lines = [
        f"{wrong_KK[k, other]} of {accuracy.videos_by_class[k]}  {_short(classes[k])}\n"
        f"        for {_short(classes[other])}"
        for k, other in (divmod(int(place), len(classes)) for place in order)
        if wrong_KK[k, other]
    ]
    axes.set_title("most often taken", color=_INK, loc="left")
    axes.text(0, 1, "\n".join(lines), va="top", fontsize=8, linespacing=1.4, color=_INK)


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else name[: _LONGEST - 3] + "..."


def _percent(share: float, _: int) -> str:
    return f"{share:.0%}"

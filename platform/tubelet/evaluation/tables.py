"""What an evaluation leaves of each class: a table, and a picture of which class is taken for which."""

import csv
import io
from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tubelet.evaluation.metrics import Accuracy

_NAMED = 40
"""Classes whose names still fit beside the picture."""
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
    """PNG of the confusion matrix: a row for each class that occurs, its videos' answers as shares of them."""
    present = np.flatnonzero(accuracy.videos_by_class).tolist()
    columns = np.flatnonzero(accuracy.videos_by_class + accuracy.confusion.sum(0)).tolist()
    counts = accuracy.confusion[np.ix_(present, columns)]
    shares = counts / counts.sum(1, keepdims=True)
    named = len(columns) <= _NAMED
    side = 3.5 + 0.32 * len(columns) if named else 11.0
    figure = Figure(figsize=(side + 1.0, side), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(image, ax=axes, fraction=0.046, label="share of the row's videos")
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

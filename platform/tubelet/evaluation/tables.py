"""What an evaluation leaves of each class: a table."""

import csv
import io
from collections.abc import Sequence

import numpy as np

from tubelet.evaluation.metrics import Accuracy


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

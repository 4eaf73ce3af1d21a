"""From probabilities of all classes to the likeliest ones, by name."""

import numpy as np
import pyarrow as pa
import pytest

from tubelet.predict import likeliest

CLASSES = ("ant", "bee", "cat")


def raw(*rows: tuple[str, str, list[float]]) -> pa.Table:
    names, reasons, probabilities = zip(*rows, strict=True)
    return pa.table(
        {
            "video_id": list(names),
            "reason": list(reasons),
            "model_0": pa.array([np.array(p, np.float32) for p in probabilities]),
        }
    )


def test_labels_come_likeliest_first_with_their_probabilities() -> None:
    table = likeliest(raw(("a.mp4", "", [0.2, 0.1, 0.7])), CLASSES, top_k=2)
    assert table.column_names == ["video_id", "labels", "probabilities", "reason"]
    (row,) = table.to_pylist()
    assert row["labels"] == ["cat", "ant"]
    assert row["probabilities"] == pytest.approx([0.7, 0.2])


def test_equal_probabilities_keep_the_order_of_the_classes() -> None:
    (row,) = likeliest(raw(("a.mp4", "", [0.25, 0.5, 0.25])), CLASSES, top_k=3).to_pylist()
    assert row["labels"] == ["bee", "ant", "cat"]


def test_more_labels_than_classes_gives_all_classes() -> None:
    (row,) = likeliest(raw(("a.mp4", "", [0.3, 0.5, 0.2])), CLASSES, top_k=50).to_pylist()
    assert row["labels"] == ["bee", "ant", "cat"]


def test_an_undecodable_video_keeps_its_row_and_reason_without_labels() -> None:
    table = raw(
        ("a.mp4", "", [0.3, 0.5, 0.2]),
        ("b.mp4", "damaged: nothing decodes", [float("nan")] * 3),
        ("c.mp4", "", [0.9, 0.05, 0.05]),
    )
    rows = likeliest(table, CLASSES, top_k=1).to_pylist()
    assert [row["video_id"] for row in rows] == ["a.mp4", "b.mp4", "c.mp4"]
    assert [row["labels"] for row in rows] == [["bee"], [], ["ant"]]
    assert rows[1]["probabilities"] == []
    assert rows[1]["reason"] == "damaged: nothing decodes"

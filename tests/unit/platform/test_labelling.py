"""From probabilities of all classes to the likeliest ones, by name."""

from typing import Any

import numpy as np
import pytest

from tubelet.labelling import likeliest

CLASSES = ("ant", "bee", "cat")


def named(*rows: tuple[str, list[float]], top_k: int) -> list[dict[str, Any]]:
    reasons, probabilities = zip(*rows, strict=True)
    table = likeliest(
        np.arange(len(rows)), reasons, np.array(probabilities, np.float32), CLASSES, top_k=top_k
    )
    assert table.column_names == ["row", "reason", "labels", "probabilities"]
    return table.to_pylist()


def test_labels_come_likeliest_first_with_their_probabilities() -> None:
    (row,) = named(("", [0.2, 0.1, 0.7]), top_k=2)
    assert row["labels"] == ["cat", "ant"]
    assert row["probabilities"] == pytest.approx([0.7, 0.2])


def test_equal_probabilities_keep_the_order_of_the_classes() -> None:
    (row,) = named(("", [0.25, 0.5, 0.25]), top_k=3)
    assert row["labels"] == ["bee", "ant", "cat"]


def test_more_labels_than_classes_gives_all_classes() -> None:
    (row,) = named(("", [0.3, 0.5, 0.2]), top_k=50)
    assert row["labels"] == ["bee", "ant", "cat"]


def test_an_undecodable_video_keeps_its_row_and_reason_without_labels() -> None:
    rows = named(
        ("", [0.3, 0.5, 0.2]),
        ("damaged: nothing decodes", [0.1, 0.2, 0.7]),
        ("", [0.9, 0.05, 0.05]),
        top_k=1,
    )
    assert [row["row"] for row in rows] == [0, 1, 2]
    assert [row["labels"] for row in rows] == [["bee"], [], ["ant"]]
    assert rows[1]["probabilities"] == []
    assert rows[1]["reason"] == "damaged: nothing decodes"

"""Kinetics-400, 600 and 700 by DeepMind's CSV files, and Kinetics-710 by the lists of VideoMAE V2.

A video is a span of ten seconds of an online video: ``label, youtube_id, time_start, time_end, split``. Files are named
by id and seconds, in class folders or not: ``ID_000010_000020.mp4``.
"""

from clips.catalog.annotations import Annotated, Annotations

_COLUMNS = ("youtube_id", "time_start", "time_end")
_SPLITS = {"train": ("train.csv",), "val": ("validate.csv", "val.csv"), "test": ("test.csv",)}


def key(path: str) -> str:
    """What a file's name says, without folders and ending."""
    return path.rsplit("/", 1)[-1].rsplit(".", 1)[0]


def read(annotations: Annotations, fold: int) -> list[Annotated]:
    """All videos of the splits whose files are there; training's must be.

    Raises:
        ValueError: A file is missing or says something else than it should.
    """
    found: list[Annotated] = []
    for split, names in _SPLITS.items():
        if split != "train" and not any(annotations.has(name) for name in names):
            continue
        name = annotations.first_of(*names)
        for place, row in annotations.table(name, _COLUMNS):
            try:
                start, end = (round(float(row[column])) for column in ("time_start", "time_end"))
            except ValueError:
                raise ValueError(
                    f"{place}: time_start {row['time_start']!r} and time_end {row['time_end']!r} are seconds"
                ) from None
            label = row.get("label") or None
            if label is None and split != "test":
                raise ValueError(f"{place}: no label")
            stem = f"{row['youtube_id']}_{start:06d}_{end:06d}"
            folder = f"{split}/{label}" if label else split
            found.append(Annotated(stem, f"{folder}/{stem}.mp4", label, split))
    return found


def read_lists(annotations: Annotations, fold: int) -> list[Annotated]:
    """All videos of ``train`` and ``val`` lists, ``path label``, with names for the labels' numbers.

    Raises:
        ValueError: A file is missing or says something else than it should.
    """
    names = [line for _, line in annotations.lines(annotations.first_of("label_map_k710.txt"))]
    found: list[Annotated] = []
    for split in ("train", "val"):
        name = annotations.first_of(f"{split}.csv", f"{split}.txt", f"k710_{split}.csv")
        for place, line in annotations.lines(name):
            path, _, number = line.rpartition(" ")
            if not path or not number.isdigit() or int(number) >= len(names):
                raise ValueError(
                    f"{place}: {line!r} is not `path label` with a label of 0 to {len(names) - 1}"
                )
            found.append(Annotated(key(path), path, names[int(number)], split))
    return found

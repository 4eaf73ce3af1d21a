"""Something-Something V2 by its JSON files: classes are templates, whose placeholders stand in brackets."""

from typing import Any

from clips.catalog.annotations import Annotated, Annotations
from clips.catalog.kinetics import key as key  # a file is named by its number

_PREFIX = "something-something-v2-"


def read(annotations: Annotations, fold: int) -> list[Annotated]:
    """All videos of the splits whose files are there; training's and the classes' must be.

    Raises:
        ValueError: A file is missing or says something else than it should.
    """
    labels_file = annotations.first_of("labels.json", f"{_PREFIX}labels.json")
    classes = annotations.json(labels_file)
    if not isinstance(classes, dict):
        raise ValueError(f"{annotations.at(labels_file, 1)}: not an object of class names")
    found: list[Annotated] = []
    for split, file in (("train", "train"), ("val", "validation"), ("test", "test")):
        names = (f"{file}.json", f"{_PREFIX}{file}.json")
        if split != "train" and not any(annotations.has(name) for name in names):
            continue
        name = annotations.first_of(*names)
        for number, video in enumerate(annotations.json(name)):
            found.append(
                _video(video, split, classes, at=f"{annotations.at(name, 1)} entry {number}")
            )
    return found


def _video(video: Any, split: str, classes: dict[str, Any], *, at: str) -> Annotated:
    if not isinstance(video, dict) or "id" not in video:
        raise ValueError(f"{at}: not an object with an id")
    label = None
    if split != "test":
        label = str(video.get("template", "")).replace("[", "").replace("]", "")
        if label not in classes:
            raise ValueError(f"{at}: its template {label!r} is none of the {len(classes)} classes")
    return Annotated(str(video["id"]), f"{video['id']}.webm", label, split)

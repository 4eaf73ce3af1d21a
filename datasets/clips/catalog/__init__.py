"""Published data sets: from their official annotation files and the videos' folder to a list that `prepare` reads.

What a data set ships as annotations says which videos there are, with class and split; where each one lies is found
out by looking, since copies differ in their folders. What the annotations name and the folder lacks stays in the list,
so that it is reported; what the folder has and they do not name is left out. Class names come from the user's
annotation files: none are shipped here.

    kinetics400 kinetics600 kinetics700   train.csv, validate.csv (val.csv), test.csv; files NAME_000010_000020.mp4
    kinetics710                           the authors' lists `path label`, and their label_map_k710.txt
    ssv2                                  labels.json, train.json, validation.json, test.json; files ID.webm
    ucf101                                classInd.txt, trainlist0N.txt, testlist0N.txt
    hmdb51                                CLASS_test_splitN.txt

The last two have three splits (`fold`); their test videos get the split `val`, which is evaluated on.
"""

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from clips import storage
from clips.catalog import action, kinetics, something
from clips.catalog.annotations import Annotated, Annotations
from clips.sources import VIDEO_SUFFIXES

Name = Literal[
    "kinetics400", "kinetics600", "kinetics700", "kinetics710", "ssv2", "ucf101", "hmdb51"
]
_SHOWN = 3


@dataclass(frozen=True)
class DataSet:
    """How a published data set is read."""

    title: str
    licence: str
    """Who may do what with it, in a line."""
    read: Callable[[Annotations, int], list[Annotated]]
    key: Callable[[str], str]
    """From a file's path to what the annotations call it."""
    counts: Mapping[int, Mapping[str, int]]
    """Published number of videos by fold and split; empty where no source was at hand."""
    folds: int = 1


_RESEARCH = "videos belong to those who put them online; the annotations are for research (see their licence)"
DATA_SETS: dict[str, DataSet] = {
    "kinetics400": DataSet(
        "Kinetics-400",
        f"annotations CC-BY 4.0; {_RESEARCH}",
        kinetics.read,
        kinetics.key,
        {1: {"train": 240_436, "val": 19_796}},  # of the copy that VideoMAE used
    ),
    "kinetics600": DataSet(
        "Kinetics-600",
        f"annotations CC-BY 4.0; {_RESEARCH}",
        kinetics.read,
        kinetics.key,
        {1: {"train": 366_006, "val": 27_935}},  # of the copy that VideoMAE V2 used
    ),
    "kinetics700": DataSet(
        "Kinetics-700",
        f"annotations CC-BY 4.0; {_RESEARCH}",
        kinetics.read,
        kinetics.key,
        {},
    ),
    "kinetics710": DataSet(
        "Kinetics-710",
        f"lists of VideoMAE V2; {_RESEARCH}",
        kinetics.read_lists,
        kinetics.key,
        {1: {"train": 658_340, "val": 66_803}},
    ),
    "ssv2": DataSet(
        "Something-Something V2",
        "Qualcomm's data licence: research, by agreement",
        something.read,
        something.key,
        {1: {"train": 168_913, "val": 24_777}},
    ),
    "ucf101": DataSet(
        "UCF101",
        "for research; videos belong to those who put them online",
        action.read_ucf101,
        action.key,
        {
            1: {"train": 9_537, "val": 3_783},
            2: {"train": 9_586, "val": 3_734},
            3: {"train": 9_624, "val": 3_696},
        },
        folds=3,
    ),
    "hmdb51": DataSet(
        "HMDB51",
        "CC-BY 4.0 (annotations); videos belong to their makers",
        action.read_hmdb51,
        action.key,
        {fold: {"train": 3_570, "val": 1_530} for fold in (1, 2, 3)},
        folds=3,
    ),
}


@dataclass(frozen=True)
class Catalogued:
    """A data set's videos, as they were found."""

    listing: bytes
    """A list file as `clips.lists` reads it: path, label, split."""
    notes: list[str] = field(default_factory=list)
    """What the user should know: licence, counts beside the published ones, what is missing."""


def catalogue(
    name: Name,
    *,
    annotations: str,
    videos: str,
    fold: int = 1,
    progress: Callable[[int], None] | None = None,
) -> Catalogued:
    """Bring annotations and videos together.

    Args:
        name: Which data set.
        annotations: Folder or prefix of its official files.
        videos: Folder or prefix of its videos.
        fold: Which of its splits, from 1.
        progress: Called with the number of files seen so far.

    Raises:
        ValueError: There are no such files, they say something else than they should, a video is in two splits or
            there twice, or none of the videos is there.
    """
    data_set = DATA_SETS[name]
    if not 1 <= fold <= data_set.folds:
        allowed = "1" if data_set.folds == 1 else f"1 to {data_set.folds}"
        raise ValueError(f"fold is {fold}; {data_set.title} has {allowed}")
    wanted = data_set.read(Annotations(annotations, data_set.title), fold)
    _refuse_overlap(wanted, data_set.title)
    places = _places(videos, data_set.key, {each.key for each in wanted}, progress)
    if not places:
        raise ValueError(
            f"{storage.redact(videos)} holds none of the {len(wanted)} videos that the annotations of {data_set.title} "
            f"name, such as {wanted[0].path}: name the folder that the videos are in or below"
        )
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("path", "label", "split"))
    for each in wanted:
        rows.writerow((places.get(each.key, each.path), each.label or "-1", each.split))
    return Catalogued(text.getvalue().encode(), _notes(data_set, fold, wanted, places))


def _refuse_overlap(wanted: list[Annotated], title: str) -> None:
    splits: dict[str, set[str]] = {}
    for each in wanted:
        splits.setdefault(each.key, set()).add(each.split)
    both = sorted(key for key, names in splits.items() if len(names) > 1)
    if both:
        raise ValueError(
            f"{len(both)} videos of {title} are in more than one split by its annotations "
            f"({', '.join(both[:_SHOWN])}): accuracy on videos that were trained on says nothing; mend the files"
        )
    twice = [key for key, count in Counter(each.key for each in wanted).items() if count > 1]
    if twice:
        raise ValueError(
            f"the annotations of {title} name {len(twice)} videos more than once ({', '.join(twice[:_SHOWN])})"
        )


def _places(
    videos: str,
    key: Callable[[str], str],
    wanted: set[str],
    progress: Callable[[int], None] | None,
) -> dict[str, str]:
    """Where each wanted video lies, relative to the folder of all."""
    places: dict[str, str] = {}
    for number, file in enumerate(storage.iterate_files(videos), start=1):
        if progress is not None:
            progress(number)
        if not file.path.lower().endswith(VIDEO_SUFFIXES):
            continue
        name = key(file.path)
        if name in wanted and places.setdefault(name, file.path) != file.path:
            raise ValueError(
                f"{storage.redact(videos)} has a video twice, {places[name]} and {file.path}: remove one of them"
            )
    return places


def _notes(
    data_set: DataSet, fold: int, wanted: Iterable[Annotated], places: Mapping[str, str]
) -> list[str]:
    notes = [f"{data_set.title}: {data_set.licence}"]
    published = data_set.counts.get(fold, {})
    named = Counter(each.split for each in wanted)
    missing = [each for each in wanted if each.key not in places]
    lost = Counter(each.split for each in missing)
    for split in sorted(named):
        line = f"{split}: {named[split]} videos annotated, {named[split] - lost[split]} there"
        if split in published:
            line += f", {published[split]} published"
        notes.append(line)
    if not published:
        notes.append("how many videos were published is not known here: nothing to compare with")
    if missing:
        first = ", ".join(each.path for each in missing[:_SHOWN])
        notes.append(f"{len(missing)} are not there ({first}, ...): all are listed as rejected")
    return notes

"""UCF101 and HMDB51: three splits each, by lists of files."""

from clips.catalog.annotations import Annotated, Annotations
from clips.catalog.kinetics import key as key  # a file's name is unlike all others'

_HMDB51 = {"1": "train", "2": "val"}  # 0: neither


def read_ucf101(annotations: Annotations, fold: int) -> list[Annotated]:
    """All videos of a split.

    Raises:
        ValueError: A file is missing or says something else than it should.
    """
    classes = {
        name
        for _, line in annotations.lines(annotations.first_of("classInd.txt"))
        for name in line.split()[1:]
    }
    found: list[Annotated] = []
    for split, file in (("train", f"trainlist0{fold}.txt"), ("val", f"testlist0{fold}.txt")):
        for place, line in annotations.lines(annotations.first_of(file)):
            path = line.split()[0]
            label = path.split("/")[0]
            if label not in classes:
                raise ValueError(
                    f"{place}: {label!r} is none of the {len(classes)} classes of classInd.txt"
                )
            found.append(Annotated(key(path), path, label, split))
    return found


def read_hmdb51(annotations: Annotations, fold: int) -> list[Annotated]:
    """All videos of a split.

    Raises:
        ValueError: A file is missing or says something else than it should.
    """
    ending = f"_test_split{fold}.txt"
    files = [name for name in annotations.names() if name.endswith(ending)]
    if not files:
        annotations.first_of(f"CLASS{ending}")
    found: list[Annotated] = []
    for file in files:
        label = file.removesuffix(ending)
        for place, line in annotations.lines(file):
            path, _, use = line.rpartition(" ")
            if not path or use not in ("0", *_HMDB51):
                raise ValueError(f"{place}: {line!r} is not a file and 0, 1 (training) or 2 (test)")
            if use in _HMDB51:
                name = path.strip()
                found.append(Annotated(key(name), f"{label}/{name}", label, _HMDB51[use]))
    return found

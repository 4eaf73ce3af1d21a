"""Numbered pictures by their names: `img_00001.jpg`, `frame_000001.jpg`, `0.png`, from 0 or 1, without gaps."""

import itertools
import re
from collections.abc import Iterable

from clips.decode import DecodeError

_PICTURE = re.compile(r"(.*?)(\d+)\.(jpg|jpeg|png)", re.IGNORECASE)


def is_picture(name: str) -> bool:
    """Return whether a file is a numbered picture, by its name."""
    return _PICTURE.fullmatch(name) is not None


def in_order(names: Iterable[str]) -> list[str]:
    """Return the pictures among the names of a folder, in the order of their numbers.

    Raises:
        DecodeError: There are none, several series, or one with a gap.
    """
    series: dict[tuple[str, str], dict[int, str]] = {}
    for name in names:
        if (match := _PICTURE.fullmatch(name)) is not None:
            start, number, end = match.groups()
            same = series.setdefault((start, end), {})
            if int(number) in same:
                raise DecodeError(
                    "unsupported", f"{same[int(number)]} and {name} have the same number"
                )
            same[int(number)] = name
    if not series:
        raise DecodeError("empty", "the folder holds no numbered pictures (img_00001.jpg)")
    if len(series) > 1:
        names = ", ".join(sorted(min(same.values()) for same in series.values()))
        raise DecodeError(
            "unsupported", f"the folder holds {len(series)} series of pictures: {names}"
        )
    (pictures,) = series.values()
    numbers = sorted(pictures)
    if numbers[0] > 1:
        raise DecodeError(
            "missing_frames",
            f"the first picture is {pictures[numbers[0]]}; numbers start at 0 or 1",
        )
    for before, after in itertools.pairwise(numbers):
        if after != before + 1:
            raise DecodeError(
                "missing_frames",
                f"number {before + 1} is missing: behind {pictures[before]} comes {pictures[after]}",
            )
    return [pictures[number] for number in numbers]

"""What a sweep searches over: recipe keys, each with the values it may take.

    space:
      optim:
        lr: {log_uniform: [0.01, 0.5]}
      head.dropout: {choice: [0.0, 0.3, 0.5]}

A key is written as lines below each other or with dots, whichever reads better. Everything here is checked before
anything starts; the problems name the key as the file has it, so that its line can be told.
"""

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tubelet.schema import keys_of

RANGES = ("uniform", "log_uniform", "integer", "log_integer")
KINDS = (*RANGES, "choice")
_SHAPES = (
    "{uniform: [low, high]}, {log_uniform: [low, high]}, {integer: [low, high]}, "
    "{log_integer: [low, high]} or {choice: [a, b, ...]}"
)


@dataclass(frozen=True)
class Dimension:
    """The values that one key may take."""

    key: str
    """In the recipe: ``optim.lr``."""
    kind: str
    """One of ``KINDS``; the ends of a range belong to it."""
    values: tuple[Any, ...]
    """The two ends of a range, or the choices."""

    @property
    def is_range(self) -> bool:
        """Whether it is a range of numbers."""
        return self.kind in RANGES

    @property
    def is_log(self) -> bool:
        """Whether steps are factors."""
        return self.kind.startswith("log")

    def clipped(self, value: Any) -> Any:
        """The nearest value that is allowed (of choices: the value, which must be one)."""
        if not self.is_range:
            return value
        low, high = self.values
        value = min(max(value, low), high)
        return round(value) if self.kind.endswith("integer") else float(value)

    def place(self, value: Any) -> float:
        """Where a value lies, from 0 (lower end, first choice) to 1: for axes."""
        if not self.is_range:
            return self.values.index(value) / max(1, len(self.values) - 1)
        low, high = (math.log(v) if self.is_log else float(v) for v in self.values)
        return ((math.log(value) if self.is_log else float(value)) - low) / (high - low)


def dimensions(space: Mapping[str, Any]) -> list[Dimension]:
    """The dimensions of a space that has no problems, in its order."""
    found = []
    for key, value in flat(space):
        kind = next(kind for kind in KINDS if value.get(kind) is not None)
        ends: Sequence[Any] = value[kind]
        if kind.endswith("uniform"):
            ends = [float(end) for end in ends]
        found.append(Dimension(key, kind, tuple(ends)))
    return found


def problems(space: Mapping[str, Any], recipe: type) -> list[str]:
    """What is wrong with a space over the keys of a recipe's schema; one text each, beginning with the key."""
    found = []
    for key, value in flat(space):
        above, _, name = key.rpartition(".")
        if above in keys_of(recipe):
            text = f"{name!r} is no kind of values: {above} takes {_SHAPES}"
        else:
            text = unknown(key, recipe) or _misshapen(value)
        if text:
            found.append(f"space.{key}: {text}")
    if not space:
        found.append(
            "space is empty: name at least one recipe key with its values, such as "
            "optim: {lr: {log_uniform: [0.01, 0.5]}}"
        )
    return found


def unknown(key: str, recipe: type) -> str | None:
    """Why a recipe has no such key, or None."""
    known = keys_of(recipe)
    if key in known:
        return None
    section, _, name = key.rpartition(".")
    same = [full for full in known if full.rpartition(".")[2] == name]
    beside = {full.rpartition(".")[2]: full for full in known if full.rpartition(".")[0] == section}
    close = same or [
        beside.get(each, each)
        for each in difflib.get_close_matches(name if beside else key, beside or known, n=1)
    ]
    if close:
        return f"unknown key; did you mean {' or '.join(map(repr, close))}?"
    if beside:
        return f"unknown key; expected one of {', '.join(beside.values())}"
    sections = dict.fromkeys(full.partition(".")[0] for full in known)
    return f"unknown key; sections are {', '.join(sections)}"


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and what stands there: of a space mappings of a kind, of settings values."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value and not set(value) & set(KINDS):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _misshapen(value: Any) -> str | None:
    if not isinstance(value, Mapping):
        return f"must be {_SHAPES}, got {value!r}"
    given = [kind for kind in value if value[kind] is not None]  # null takes a file's kind back
    if len(given) != 1 or given[0] not in KINDS:
        return f"must be one of {_SHAPES}, got {dict(value)!r}"
    kind, values = given[0], value[given[0]]
    if kind == "choice":
        if not isinstance(values, list) or not values:
            return f"choice must be a list of values, got {values!r}"
        return None
    whole = kind.endswith("integer")
    allowed = int if whole else (int, float)
    numbers = isinstance(values, list) and all(
        isinstance(v, allowed) and not isinstance(v, bool) and math.isfinite(v) for v in values
    )
    if not numbers or len(values) != 2 or values[0] >= values[1]:
        what = "whole numbers" if whole else "numbers"
        return f"{kind} must be two {what} [low, high], low < high, got {values!r}"
    if kind.startswith("log") and values[0] <= 0:
        return f"{kind} must begin above 0, got {values!r}"
    return None

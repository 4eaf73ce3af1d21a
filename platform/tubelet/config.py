"""A recipe: YAML files plus ``key.path=value``, checked against a tree of frozen dataclasses.

    recipe = from_command_line(Pretrain, ["vit_b_k400.yaml", "laptop.yaml", "optim.lr=3e-4"])

Later files win over earlier ones, the command line over both.  The schema is plain stdlib dataclasses beside the code
they configure: bounds as ``Annotated[float, Gt(0)]``, checks across fields as ``ValueError`` from ``__post_init__``
with full key names in the text.  pydantic checks the types (strictly: ``"16"`` is not 16); it ignores unknown keys of
stdlib dataclasses, so those are found here.  All mistakes are reported at once, each with the line where it stands.

One spelling, ``optim.lr``, serves overrides, MLflow parameters (``flatten``), error messages and the comparison of two
attempts of a run (``difference``).  ``run_main`` gives every job the same ends: 0 done, 2 the user's mistake in one
message, 3 a full disk, 1 a bug with its traceback, 75 interrupted.
"""

import difflib
import json
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

import pydantic

from tubelet import layers
from tubelet.exits import (
    BUG,
    DONE,
    INTERRUPTED,
    STOPPED,
    exit_code,
)
from tubelet.layers import COMMAND_LINE, KeyPath, Layer, dotted
from tubelet.schema import (
    describe,
    elements_of,
    fields_of,
    is_free,
    json_schema,
    keys_of,
    section_of,
)
from tubelet.terminal import complain, say

T = TypeVar("T")

_NO_ROOM = "; make room: what is done is kept, and the same command goes on from there"


class UserError(ValueError):
    """A mistake of the user: one message without traceback, exit code 2, never retried."""


class ConfigError(UserError):
    """A recipe that does not fit its schema; ``problems`` are all its mistakes, one text each."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return self.problems[0]
        return "\n".join((f"{len(self.problems)} problems", *self.problems))


# --- jobs ---------------------------------------------------------------------------------


def run_main(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Run a job's ``main`` on the command line's arguments and exit with the right code."""
    code: int | None
    try:
        code = main(sys.argv[1:])
    except KeyboardInterrupt:
        complain("interrupted; finished work stays, and the same command goes on from there")
        code = INTERRUPTED
    except Exception as error:
        code = exit_code(error)
        if code == BUG:
            traceback.print_exc()
            text = f"{type(error).__name__}: {error}".partition("\n")[0]
            complain(f"error: {text} (unexpected; traceback above)")
        else:
            complain(f"error: {error}{_NO_ROOM if code == STOPPED else ''}")
    sys.exit(code)


def from_command_line(
    schema: type[T],
    arguments: Sequence[str],
    *,
    default_recipe: str | Path | None = None,
    needs_recipe: bool = True,
) -> T:
    """The recipe that a job's command line asks for.

    Args:
        schema: The frozen dataclass to build.
        arguments: ``[RECIPE.yaml ...] [key.path=value ...] [--print | --schema | --help]``.  The
            three options print (the resolved recipe as YAML, the schema as JSON for editors, all
            keys with their meaning) and exit 0.
        default_recipe: Read when no file is named.
        needs_recipe: Whether a command line without any file is a mistake.

    Returns:
        The recipe.  A schema with ``run.name`` gets the first file's stem as its default.

    Raises:
        ConfigError: With every mistake in the files and on the command line.
    """
    options = [text for text in arguments if text.startswith("-")]
    others = [text for text in arguments if not text.startswith("-")]
    files: list[str | Path] = [text for text in others if _names_a_file(text)]
    overrides = [text for text in others if not _names_a_file(text)]
    if not files and default_recipe is not None:
        files = [default_recipe]
    if "--help" in options or "-h" in options:
        say(describe(schema, needs_recipe=needs_recipe and default_recipe is None))
        raise SystemExit(DONE)
    if "--schema" in options:
        say(json.dumps(json_schema(schema), indent=2))
        raise SystemExit(DONE)
    problems = [_unknown_option(text) for text in options if text != "--print"]
    if not files and needs_recipe:
        known = ", ".join(map(str, _recipes())) or "none in jobs/recipes of this folder"
        problems.append(f"{COMMAND_LINE}: no recipe file is named; recipes: {known}")
    asked = Layer(problems=tuple(problems), readable=bool(files) or not needs_recipe)
    config = _build(schema, files, overrides, asked)
    if "--print" in options:
        say(to_yaml(config).rstrip("\n"))
        raise SystemExit(DONE)
    return config


def load(schema: type[T], files: Sequence[str | Path] = (), overrides: Sequence[str] = ()) -> T:
    """Build ``schema`` from YAML files and ``a.b=c`` overrides, later ones winning.

    Raises:
        ConfigError: With all mistakes, each with ``file:line`` or ``command line``.
    """
    return _build(schema, files, overrides, Layer())


# --- other shapes of a recipe -------------------------------------------------------------


def to_dict(config: Any) -> dict[str, Any]:
    """The recipe as plain dicts and lists, ready for YAML or JSON."""
    return pydantic.TypeAdapter(type(config)).dump_python(config, mode="json")


def to_yaml(config: Any) -> str:
    """The whole recipe, defaults included, as YAML that ``load`` reads back unchanged."""
    return layers.dump(to_dict(config))


def setting(key: str, value: str) -> str:
    """``key=value`` for a command line or ``load``, whatever characters the text holds.

    Raises:
        UserError: it is the name of a file that is not UTF-8, which no recipe or manifest can hold.
    """
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{key}: {value!r} is not UTF-8; rename it") from error
    return f"{key}={layers.dump({'value': value}).partition(': ')[2]}".removesuffix("\n")


def flatten(config: Any) -> dict[str, Any]:
    """The recipe as ``{"optim.lr": 1.5e-4}``; lists stay values."""

    def walk(prefix: str, node: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(node, Mapping):
            for key, value in node.items():
                yield from walk(f"{prefix}{key}.", value)
        else:
            yield prefix[:-1], node

    return dict(walk("", to_dict(config)))


class Change(NamedTuple):
    """One value that differs between two attempts of a run."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key}: {self.old!r} -> {self.new!r}"


def difference(old: T, new: T) -> list[Change]:
    """The values that differ although they must not between two attempts of one run.

    A field, or a whole section, with ``field(metadata={"resume": "free"})`` may change; all others
    are fixed.  Both arguments are of the same schema: read the recorded recipe with ``load``.
    """
    assert type(old) is type(new), "two attempts of one run have one schema"
    before, after = flatten(old), flatten(new)
    return [
        Change(key, before.get(key), after.get(key))
        for key in before | after
        if before.get(key) != after.get(key) and not is_free(type(new), key)
    ]


# --- finding and explaining mistakes ------------------------------------------------------


def _build(
    schema: type[T], files: Sequence[str | Path], overrides: Sequence[str], first: Layer
) -> T:
    stack = [first, *map(_read, files), *map(layers.read_override, overrides)]
    if files and "run.name" in keys_of(schema):
        stem = layers.override(("run", "name"), Path(files[0]).stem, origin=str(files[0]))
        stack.insert(0, stem)
    merged = layers.merge([_without_empty_sections(schema, layer) for layer in stack])
    found = [*merged.problems, *_unknown(schema, schema, merged.values, merged)]
    try:
        config = pydantic.TypeAdapter(schema).validate_json(json.dumps(merged.values), strict=True)
    except pydantic.ValidationError as error:
        # What seems to be missing may stand in a file that could not be read.
        unsure = () if merged.readable else ("missing", "value_error")
        errors = error.errors(include_url=False)
        found += _explain([e for e in errors if e["type"] not in unsure], merged)
    else:
        if not found:
            return config
    raise ConfigError(found)


def _read(file: str | Path) -> Layer:
    if Path(file).exists():
        return layers.read_file(file)
    known = {str(path): path for path in _recipes()}
    close = [name for name, path in known.items() if path.match(str(Path(file).name))]
    close = close or difflib.get_close_matches(str(file), known, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    if not close and known:
        hint = f"; recipes: {', '.join(known)}"
    return Layer(problems=(f"{file}: no such file{hint}",), readable=False)


def _names_a_file(text: str) -> bool:
    before, equals, _ = text.partition("=")
    return "/" in before or (not equals and Path(text).suffix in (".yaml", ".yml"))


def _recipes() -> list[Path]:
    """Recipe files that could have been meant: those below the working folder's jobs/recipes."""
    return sorted(Path("jobs/recipes").rglob("*.yaml"))


def _unknown_option(text: str) -> str:
    key = text.lstrip("-")
    if "=" in key:
        return f"{COMMAND_LINE}: {text!r}: values have no dashes; write {key}"
    return f"{COMMAND_LINE}: {text!r}: unknown option; options are --print, --schema, --help"


def _explain(errors: Iterable[Any], merged: Layer) -> list[str]:
    """One text for each place that pydantic complains about, in our words."""
    alternatives: dict[KeyPath, list[Any]] = {}  # of a value that may be of several types
    lines: list[str] = []
    for error in errors:
        path = _existing(error["loc"], merged.values)
        if error["type"] == "value_error":  # from a __post_init__: it names the keys itself
            text = error["msg"].removeprefix("Value error, ")
            keys, places = _KEY.findall(text), {dotted(p): o for p, o in merged.origins.items()}
            named = dict.fromkeys(places[key] for key in keys if key in places)
            where = ", ".join(named) or merged.origin(path) or COMMAND_LINE
            lines.append(": ".join(filter(None, (where, "" if keys else dotted(path), text))))
        elif error["type"] == "missing":
            path = error["loc"][: len(path) + 1]
            lines.append(f"{merged.origin(path) or COMMAND_LINE}: {dotted(path)}: must be set")
        else:
            alternatives.setdefault(path, []).append(error)
    for path, several in alternatives.items():
        if any(len(other) > len(path) and other[: len(path)] == path for other in alternatives):
            continue  # one of several types fits but for something inside, which is told there
        where = merged.origin(path) or COMMAND_LINE
        text = " or ".join(dict.fromkeys(map(_expected, several)))
        value = several[0]["input"]
        advice = ""
        may_be_text = any(error["type"] == "string_type" for error in several)
        if may_be_text and isinstance(value, bool | int | float):
            quoted = f"'\"{value}\"'" if where == COMMAND_LINE else f"'{value}'"
            advice = f"; for a text write {quoted}"
        lines.append(f"{where}: {dotted(path)}: must be {text}, got {value!r}{advice}")
    return lines


_KEY = re.compile(r"\b[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")


def _expected(error: Any) -> str:
    if error["type"] == "dataclass_type":
        return "a section of keys and values"
    text = error["msg"].removeprefix("Input should be ")
    return text.replace("a valid array", "a list").replace("an object", "a mapping")


def _existing(loc: KeyPath, values: Any) -> KeyPath:
    """The part of pydantic's location that is a path in the values, without its union tags."""
    path: KeyPath = ()
    for part in loc:
        entries = _entries(values)
        if part in entries:
            values, path = entries[part], (*path, part)
    return path


def _entries(values: Any) -> dict[Any, Any]:
    """What lies in a mapping or a list, by key or place; nothing in a scalar."""
    if isinstance(values, list):
        return dict(enumerate(values))
    return values if isinstance(values, dict) else {}


def _unknown(
    schema: type, hint: Any, value: Any, merged: Layer, path: KeyPath = ()
) -> Iterator[str]:
    """Keys that no dataclass below ``hint`` has, each with the closest one that exists."""
    section = section_of(hint)
    if section is not None and isinstance(value, dict):
        fields = fields_of(section)
        for key, below in value.items():
            here = (*path, key)
            if key in fields:
                yield from _unknown(schema, fields[key], below, merged, here)
            else:
                where = merged.origin(here) or COMMAND_LINE
                yield f"{where}: {dotted(here)}: unknown key; {_hint(schema, fields, key)}"
    elif isinstance(value, list | dict):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, below in items:
            for element in elements_of(hint):
                if section_of(element) is not None:
                    yield from _unknown(schema, element, below, merged, (*path, key))


def _hint(schema: type, siblings: Iterable[str], key: str) -> str:
    everywhere = keys_of(schema)
    if key in everywhere:
        return "in a file, sections are nested: write the dots as indented lines"
    if same := [full for full in everywhere if full.rpartition(".")[2] == key]:
        return f"did you mean {' or '.join(map(repr, same))}?"
    if close := difflib.get_close_matches(key, siblings, n=1, cutoff=0.6):
        return f"did you mean {close[0]!r}?"
    return f"expected one of {', '.join(siblings)}"


def _without_empty_sections(schema: type, layer: Layer) -> Layer:
    """A section whose lines are all commented out (``optim:``) changes nothing."""

    def walk(hint: Any, values: dict[str, Any]) -> dict[str, Any]:
        section = section_of(hint)
        if section is None:
            return values
        fields, kept = fields_of(section), {}
        for key, value in values.items():
            if value is None and key in fields and fields[key] is section_of(fields[key]):
                continue
            below = fields.get(key)
            kept[key] = walk(below, value) if isinstance(value, dict) else value
        return kept

    return replace(layer, values=walk(schema, layer.values))

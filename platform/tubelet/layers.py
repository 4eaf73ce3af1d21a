"""Recipe files and ``key.path=value`` overrides, merged into one mapping that knows its lines.

A recipe is built in layers: YAML files in the order they were named, then the overrides of the
command line; the later layer wins, mappings are merged, everything else is replaced.  Each value
keeps its origin (``file:line`` or ``command line``), so that whoever checks the values can say
where a wrong one stands.  Nothing here knows a schema: see ``tubelet.config``.

The YAML read is the 1.2 core schema, not PyYAML's 1.1: ``3e-4`` is a number, ``no`` and ``on`` are
text, a date is text, ``010`` is ten.  Duplicate keys are an error, and so are aliases (a recipe has
no references, and without them a file cannot expand into gigabytes).  ``dump`` writes what
``read_file`` reads back unchanged, quoting whatever either version of YAML would take for a number.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

KeyPath = tuple[str | int, ...]

COMMAND_LINE = "command line"


@dataclasses.dataclass(frozen=True)
class Layer:
    """One source of values, or several merged; ``problems`` are complete sentences with origin."""

    values: dict[str, Any] = dataclasses.field(default_factory=dict)
    origins: Mapping[KeyPath, str] = dataclasses.field(default_factory=dict)
    problems: tuple[str, ...] = ()
    readable: bool = True
    """False where a source could not be read at all, so that missing values prove nothing."""

    def origin(self, path: KeyPath) -> str | None:
        """Where the value at ``path`` was given, or the nearest section around it."""
        while path and path not in self.origins:
            path = path[:-1]
        return self.origins.get(path)


def read_file(path: str | Path) -> Layer:
    """Read one YAML file; whatever is wrong with it ends up in ``problems``, nothing is raised."""
    try:
        text = Path(path).read_bytes().decode("utf-8")
    except IsADirectoryError:
        return _unreadable(path, "is a directory; a recipe is a YAML file")
    except UnicodeDecodeError as error:
        return _unreadable(path, f"is not UTF-8 text (byte {error.start})")
    except OSError as error:
        return _unreadable(path, f"cannot be read: {error.strerror}")
    try:
        root = _compose(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        return _unreadable(f"{path}{line}", f"not valid YAML: {error.problem or error.context}")
    except yaml.YAMLError as error:
        return _unreadable(path, f"not valid YAML: {str(error).splitlines()[0]}")
    if root is None:
        return Layer(origins={(): str(path)})
    if not isinstance(root, yaml.MappingNode):
        return _unreadable(f"{path}:{_line(root)}", "a recipe is a mapping of sections to values")
    origins: dict[KeyPath, str] = {(): str(path)}
    problems: list[str] = []
    values = _construct(root, (), str(path), origins, problems)
    return Layer(values, origins, tuple(problems))


def read_override(text: str) -> Layer:
    """Read ``key.path=value``, the value being YAML."""
    key, equals, raw = text.partition("=")
    path = tuple(key.split("."))
    if not equals or not all(path):
        return Layer(problems=(f"{COMMAND_LINE}: {text!r} is not of the form key.path=value",))
    problems: list[str] = []
    value: Any = None
    try:
        if (node := _compose(raw)) is not None:
            value = _construct(node, path, None, {}, problems)
    except yaml.YAMLError as error:
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        problems.append(
            f"{COMMAND_LINE}: {key}: {raw!r} is not valid YAML: {reason}; put it in quotes"
        )
    if problems:
        return Layer(problems=tuple(problems))
    return override(path, value, origin=COMMAND_LINE)


def override(path: Sequence[str], value: Any, *, origin: str) -> Layer:
    """A layer that sets the one value at ``path``."""
    assert path, "a value needs a key"
    tree: Any = value
    for key in reversed(path):
        tree = {key: tree}
    return Layer(tree, {tuple(path[:depth]): origin for depth in range(1, len(path) + 1)})


def merge(layers: Sequence[Layer]) -> Layer:
    """Lay later layers over earlier ones: mappings are merged, everything else is replaced."""
    values: dict[str, Any] = {}
    origins: dict[KeyPath, str] = {}
    for layer in layers:
        _merge_into(values, layer.values, (), origins, layer.origins)
    return Layer(
        values,
        origins,
        tuple(problem for layer in layers for problem in layer.problems),
        all(layer.readable for layer in layers),
    )


def dump(values: Mapping[str, Any]) -> str:
    """YAML text of plain values; ``read_file`` gives the same values back."""
    return yaml.dump(
        dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**31 - 1
    )


# --- YAML 1.2 core schema on PyYAML's parser ----------------------------------------------


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own name and type

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(
                problem="aliases (*name) are not read in recipes; write the value out",
                problem_mark=mark,
            )
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that also quotes text which only YAML 1.2 takes for a number."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_SCALARS: dict[str, tuple[str, str]] = {  # tag: (pattern, first characters)
    "null": (r"~|null|Null|NULL|", "~nN"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
}
_TAG = "tag:yaml.org,2002:"

for _name, (_pattern, _first) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(
            _TAG + _name, re.compile(rf"^(?:{_pattern})$"), [*_first, *([""] * (_name == "null"))]
        )

_Dumper.add_representer(
    str,  # quoted where PyYAML would write an exotic line break as it is, and read it as a blank
    lambda dumper, text: dumper.represent_scalar(
        _TAG + "str", text, style='"' if re.search("[\x85\u2028\u2029]", text) else None
    ),
)
_Dumper.add_representer(
    list,  # short lists of scalars on one line, as people write them
    lambda dumper, items: dumper.represent_sequence(
        _TAG + "seq", items, flow_style=not any(isinstance(item, dict | list) for item in items)
    ),
)


def _compose(text: str) -> yaml.Node | None:
    loader = _Loader(text)
    try:
        return loader.get_single_node()
    finally:
        loader.dispose()


def _construct(
    node: yaml.Node,
    path: KeyPath,
    file: str | None,
    origins: dict[KeyPath, str],
    problems: list[str],
) -> Any:
    """Plain values below ``node``; records each one's origin and every problem on the way."""
    here = f"{file}:{_line(node)}" if file else COMMAND_LINE
    origins.setdefault(path, here)
    if isinstance(node, yaml.SequenceNode):
        return [
            _construct(item, (*path, index), file, origins, problems)
            for index, item in enumerate(node.value)
        ]
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key, value in node.value:
            where = f"{file}:{_line(key)}" if file else COMMAND_LINE
            if not isinstance(key, yaml.ScalarNode):
                problems.append(f"{where}: a key must be plain text")
                continue
            below = (*path, key.value)
            if key.value in mapping:
                problems.append(
                    f"{where}: {dotted(below)}: given twice; it already stands at {origins[below]}"
                )
                continue
            origins[below] = where
            mapping[key.value] = _construct(value, below, file, origins, problems)
        return mapping
    tag = node.tag.removeprefix(_TAG)
    try:
        return _scalar(tag, node.value)
    except ValueError:
        problems.append(f"{here}: {dotted(path)}: {node.value!r} does not fit the tag {tag!r}")
        return node.value


def _scalar(tag: str, text: str) -> Any:
    match tag:
        case "str":
            return text
        case "null":
            return None
        case "bool":
            return {"true": True, "false": False}.get(text.lower(), text)
        case "int":
            prefix = text[:2].lower()
            return int(text, {"0o": 8, "0x": 16}.get(prefix, 10))
        case "float":
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        case _:
            raise ValueError(f"unknown tag {tag}")


def _merge_into(
    below: dict[str, Any],
    above: Mapping[str, Any],
    path: KeyPath,
    origins: dict[KeyPath, str],
    above_origins: Mapping[KeyPath, str],
) -> None:
    if path in above_origins:
        origins.setdefault(path, above_origins[path])
    for key, value in above.items():
        here = (*path, key)
        if isinstance(value, dict):
            if not isinstance(below.get(key), dict):
                _forget(origins, here)
                below[key] = {}
            _merge_into(below[key], value, here, origins, above_origins)
            continue
        _forget(origins, here)
        below[key] = value
        origins |= {at: text for at, text in above_origins.items() if at[: len(here)] == here}


def _forget(origins: dict[KeyPath, str], path: KeyPath) -> None:
    for known in [known for known in origins if known[: len(path)] == path]:
        del origins[known]


def dotted(path: KeyPath) -> str:
    """The path as people write it: ``optim.betas.0``."""
    return ".".join(str(part) for part in path)


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _unreadable(where: str | Path, reason: str) -> Layer:
    return Layer(problems=(f"{where}: {reason}",), readable=False)

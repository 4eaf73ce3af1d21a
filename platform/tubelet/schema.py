"""Questions about a recipe's schema: which keys it has, what they hold, which may change.

A schema is a frozen stdlib dataclass whose fields are values or further dataclasses (sections).
The answers come from the dataclasses and their type hints; pydantic only writes the JSON schema.
Keys keep the order of the source.
"""

import dataclasses
import json
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pydantic


def json_schema(schema: type) -> dict[str, Any]:
    """The JSON schema of a recipe file, with the fields' docstrings, for completion in editors."""
    model = pydantic.create_model(
        schema.__name__,
        __config__=pydantic.ConfigDict(use_attribute_docstrings=True, extra="forbid"),
        recipe=(schema, ...),
    )
    whole = model.model_json_schema()
    return {**whole["properties"]["recipe"], "$defs": whole["$defs"]}


def fields_of(section: type) -> dict[str, Any]:
    """Names and types of the fields that a recipe can set."""
    hints = typing.get_type_hints(section, include_extras=True)
    return {f.name: hints[f.name] for f in dataclasses.fields(section) if f.init}


def section_of(hint: Any) -> type | None:
    """The dataclass that ``hint`` is, or allows beside ``None``."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return hint
    if typing.get_origin(hint) in (typing.Annotated, typing.Union, types.UnionType):
        return next(filter(None, map(section_of, typing.get_args(hint))), None)
    return None


def elements_of(hint: Any) -> list[Any]:
    """Types of what a list, tuple or mapping field holds."""
    if typing.get_origin(hint) in (typing.Annotated, typing.Union, types.UnionType):
        return [element for arg in typing.get_args(hint) for element in elements_of(arg)]
    return [arg for arg in typing.get_args(hint) if arg is not Ellipsis]


def keys_of(schema: type, prefix: str = "") -> dict[str, dataclasses.Field[Any]]:
    """Every key of the schema that holds a value, as ``optim.lr``."""
    keys: dict[str, dataclasses.Field[Any]] = {}
    hints = fields_of(schema)
    for field in dataclasses.fields(schema):
        if not field.init:
            continue
        section = section_of(hints[field.name])
        if section is None:
            keys[prefix + field.name] = field
        else:
            keys |= keys_of(section, f"{prefix}{field.name}.")
    return keys


def is_free(schema: type, key: str) -> bool:
    """Whether ``key`` or a section around it says ``field(metadata={"resume": "free"})``."""
    hint: Any = schema
    for name in key.split("."):
        section = section_of(hint)
        if section is None:
            return False
        field = next(field for field in dataclasses.fields(section) if field.name == name)
        if field.metadata.get("resume") == "free":
            return True
        hint = fields_of(section)[name]
    return False


def describe(schema: type, *, needs_recipe: bool) -> str:
    """Usage, and every key with its default and docstring."""
    whole = json_schema(schema)

    def walk(prefix: str, node: Mapping[str, Any], defaults: Any) -> Iterator[str]:
        for name, entry in node.get("properties", {}).items():
            default = defaults.get(name) if isinstance(defaults, dict) else entry.get("default")
            target = entry.get("$ref", "").rpartition("/")[2]
            if target:
                yield from walk(f"{prefix}{name}.", whole["$defs"][target], default)
                continue
            shown = f" = {json.dumps(default)}"
            if name in node.get("required", ()):
                shown = " (required)"
            if choices := entry.get("enum"):
                shown += f" ({' | '.join(map(str, choices))})"
            text = " ".join(entry.get("description", "").replace("``", "").split())
            yield f"  {prefix}{name}{shown}" + (f"   # {text}" if text else "")

    root = whole["$defs"][whole["$ref"].rpartition("/")[2]]
    recipe = "RECIPE.yaml [more.yaml ...]" if needs_recipe else "[RECIPE.yaml ...]"
    job = Path(sys.argv[0]).name
    usage = f"usage: python jobs/{job} {recipe} [key.path=value ...] [--print | --schema | --help]"
    return "\n".join([usage, "", "keys and their defaults:", *walk("", root, None)])

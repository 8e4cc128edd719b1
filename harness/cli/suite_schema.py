"""A JSON Schema of suite files, made from the fields of all tasks and methods: for editors, and for services."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Annotated, Any

import typer

from harness import registry
from harness.cli.options import Plugins
from harness.cli.terminal import print_json

PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean"}


def schema(
    name: Annotated[
        str,
        typer.Argument(help="A task or method, for its fields alone; without it, whole suites.", show_default=False),
    ] = "",
    plugin: Plugins = None,
) -> None:
    """Print the JSON Schema of suite files, which editors use to complete and check them."""
    registry.add_plugins(plugin or [])
    if not name:
        print_json(suite_schema())
        return
    kind = "method" if name in registry.list_names("method") else "task"
    registry.load_class(kind, name)
    print_json({"$schema": "http://json-schema.org/draft-07/schema#"} | table_schema(kind, name))


def suite_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 07, which the TOML editors' taplo reads) of a suite file."""
    from harness.cli.describe import fields_of_class
    from harness.trials.suite import SUITE_KEYS, SuiteFile

    comments = {line.name: line.meaning for line in fields_of_class(SuiteFile)}
    types_of = {name: kind if isinstance(kind, tuple) else (kind,) for name, kind in SUITE_KEYS.items()}
    names = {list: "array", dict: "object"} | PLAIN
    properties: dict[str, Any] = {
        name: {"description": comments.get(name, ""), "type": [names[kind] for kind in kinds]}
        for name, kinds in types_of.items()
    }
    for kind in ("task", "method"):
        tables = [table_schema(kind, name) for name in registry.list_names(kind)]
        properties[f"{kind}s"] |= {"type": "array", "items": {"anyOf": tables}}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "A suite of ManyMinds",
        "type": "object",
        "properties": properties,
        "required": ["tasks"],
        "additionalProperties": False,
    }


def table_schema(kind: str, name: str) -> dict[str, Any]:
    """Return the schema of a suite's table for a task or method: its fields, each one value or a list of values."""
    from harness.cli.describe import fields_of_class

    cls = registry.load_class(kind, name)
    hints = typing.get_type_hints(cls)
    lines = {line.name: line for line in fields_of_class(cls)}
    fields: dict[str, Any] = {"name": {"const": name, "description": registry.list_names(kind)[name]}}
    for field in dataclasses.fields(cls):
        one = value_schema(hints[field.name])
        told = lines[field.name].meaning
        described = {"description": f"{told} (default {lines[field.name].default})".strip()}
        fields[field.name] = described | {"anyOf": [one, {"type": "array", "items": one, "minItems": 1}]}
    return {"type": "object", "properties": fields, "required": ["name"], "additionalProperties": False}


def value_schema(hint: Any) -> dict[str, Any]:
    """Return the schema of a field's value, from its annotation."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return {"enum": list(args)}
    if origin is tuple:
        return {"type": "array", "items": value_schema(args[0])}
    if origin in (typing.Union, types.UnionType):  # none is said by leaving the field out
        return value_schema(next(arg for arg in args if arg is not type(None)))
    return {"type": PLAIN[hint]}

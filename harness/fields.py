"""Fields of tasks and methods: their values, what they add to keys, and checks against their annotations."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from harness.errors import UserError, note_former_name


def renamed_field(default: Any, formerly: str) -> Any:
    """Return a field of a task or method that has been renamed.

    Keys of results keep the former name, and suites may still use it.
    """
    return dataclasses.field(default=default, metadata={"formerly": formerly})


def recorded_name(field: dataclasses.Field) -> str:
    """Return the name under which a field is part of a result's key: the first name that it had."""
    return field.metadata.get("formerly", field.name)


def names_by_recorded_name(cls: type) -> dict[str, str]:
    """Return recorded name -> current name for every field of a task or method class."""
    return {recorded_name(field): field.name for field in dataclasses.fields(cls)}


def name_at_version(thing: Any) -> str:
    """Return `name@version`."""
    return f"{thing.name}@{type(thing).version}"


def field_values(thing: Any) -> dict[str, object]:
    """Return every field with its value."""
    return {field.name: getattr(thing, field.name) for field in dataclasses.fields(thing)}


def recorded_values(thing: Any) -> dict[str, object]:
    """Return every field with its value, renamed fields under their first names: for hashes that must not change."""
    return {recorded_name(field): getattr(thing, field.name) for field in dataclasses.fields(thing)}


def identity_fields(thing: Any) -> dict[str, object]:
    """Return the fields that are part of a key, under the names recorded in keys.

    A field declared with metadata={"identity": False} is left out, for example a path, since `files_digest` covers the
    file's content. If "identity" is a function, its value for the field is used: a model's content instead of its
    folder, for example.
    """
    found = recorded_values(thing)
    for declared in dataclasses.fields(thing):
        counts, name = declared.metadata.get("identity", True), recorded_name(declared)
        if counts is False:
            del found[name]
        elif counts is not True:
            found[name] = counts(found[name])
    return found


def with_current_names(cls: type, table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Replace former names of fields by current ones in a table of values. Raises UserError where both are given."""
    current = names_by_recorded_name(cls)
    found: dict[str, Any] = {}
    for name, value in table.items():
        if (now := current.get(name, name)) != name:
            note_former_name(name, now, f"{where}: ")
        if now in found:
            raise UserError(f"{where}: {now} is given twice, once as {name}", f"leave out {name}")
        found[now] = value
    return found


def validate_fields(thing: Any) -> None:
    """Check and convert every field of a new task or method: the rules are the same in Python as in a suite file."""
    hints = typing.get_type_hints(type(thing))
    for field in dataclasses.fields(thing):
        value = coerce_value(getattr(thing, field.name), hints[field.name], f"{thing.name}.{field.name}")
        object.__setattr__(thing, field.name, value)  # 1 becomes 1.0 for a float


def coerce_value(value: object, hint: Any, where: str) -> Any:
    """Convert a value to the type of its annotation, so that one setting has one key: 1 becomes 1.0 for a float.

    Raises UserError, which names `where`, for a value of another type.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return coerce_value(value, next(a for a in args if a is not type(None)), where)
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(coerce_value(v, args[0], where) for v in value)
    if origin is tuple:
        name = where.rpartition(".")[2]
        hint = f"{name} = [{value!r}]" if type(value) is args[0] else f"write a list: {name} = [...]"
        raise UserError(f"{where} = {value!r} is not a list", hint)
    if origin is typing.Literal and value in args:
        return value
    if hint is float and isinstance(value, (int, float)) and type(value) is not bool and math.isfinite(value):
        return float(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    plain = {float: "a finite number", int: "a whole number", str: "text in quotes", bool: "true or false"}
    wanted = " or ".join(map(repr, args)) if origin is typing.Literal else plain.get(hint, str(hint))
    raise UserError(
        f"{where} = {value!r} is not {wanted}",
        f"set {where.rpartition(' ')[2].rpartition('.')[2]} to a value of that type",
    )

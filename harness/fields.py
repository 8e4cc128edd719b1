"""Checks of fields: a value becomes what its annotation wants, or is refused with its name."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from typing import Any

from harness.errors import Mistake


def settle(thing: Any) -> None:
    """Checks every field of a new task or method as `make` does, so that Python may say no more than a suite may."""
    hints = typing.get_type_hints(type(thing))
    for field in dataclasses.fields(thing):
        value = coerce(getattr(thing, field.name), hints[field.name], f"{thing.name}.{field.name}")
        object.__setattr__(thing, field.name, value)  # 1 becomes 1.0 for a float


def coerce(value: object, hint: Any, where: str) -> Any:
    """The value as its annotation wants it, so that one setting has one key: 1 becomes 1.0 for a float."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return coerce(value, next(a for a in args if a is not type(None)), where)
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(coerce(v, args[0], where) for v in value)
    if origin is tuple:
        raise Mistake(f"{where} = {value!r} is not a list", f"{where.rpartition('.')[2]} = [{value!r}]")
    if origin is typing.Literal and value in args:
        return value
    if hint is float and isinstance(value, (int, float)) and type(value) is not bool and math.isfinite(value):
        return float(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    plain = {float: "a finite number", int: "a whole number", str: "a text in quotes", bool: "true or false"}
    wanted = " or ".join(map(repr, args)) if origin is typing.Literal else plain.get(hint, str(hint))
    raise Mistake(f"{where} = {value!r} is not {wanted}", f"set {where.rpartition('.')[2]} to a value of that kind")

"""A name is a file name: finds tasks and methods, lists them without importing, and loads plug-ins named by path."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import re
import sys
import types
import typing
from pathlib import Path
from typing import Any

from harness.errors import Mistake, did_you_mean
from harness.fields import coerce

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"task": ("tasks", ROOT / "tasks"), "method": ("harness.methods", ROOT / "harness" / "methods")}
PLUGINS: dict[str, Path] = {}  # name -> file, filled by `add_plugins` from what the user named explicitly


def names(kind: str) -> dict[str, str]:
    """Name -> the first line of its file's docstring; built-ins are read without importing any."""
    files = [f for f in FOLDERS[kind][1].glob("*.py") if f.stem != "__init__"]
    files += [file for name, file in PLUGINS.items() if _members(_import(name), kind)]
    return {file.stem: _first_line(file) for file in sorted(files)}


def _first_line(file: Path) -> str:
    try:
        return (ast.get_docstring(ast.parse(file.read_text())) or "(no docstring)").splitlines()[0]
    except SyntaxError as error:
        raise Mistake(f"{file} is not Python: {error}", f"mend line {error.lineno}") from error


def add_plugins(files: typing.Iterable[str | Path]) -> None:
    """Makes files outside the project known by their stem."""
    for file in map(Path, files):
        if not file.is_file():
            raise Mistake(f"the plug-in {file} does not exist", "name a Python file: --plugin my_task.py")
        name = file.stem
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,63}", name) or file.suffix != ".py":
            raise Mistake(
                f"{file.name} cannot name a task or method",
                "use lower-case letters, digits and _, for example my_task.py",
            )
        if any((folder / file.name).exists() for _, folder in FOLDERS.values()):
            raise Mistake(f"the plug-in {file} has the name of a built-in", "rename the file")
        PLUGINS[name] = file.resolve()
        if not any(_members(_import(name), base) for base in ("task", "method")):
            raise Mistake(
                f"{file} holds neither a task nor a method",
                "write one class derived from harness.task.Task or harness.method.Method; README shows both",
            )


def load(kind: str, name: str) -> Any:
    """The Task or Method class of that name. Raises Mistake with the nearest names."""
    built_in = (FOLDERS[kind][1] / f"{name}.py").is_file() and name != "__init__"
    if not built_in and name not in PLUGINS:
        known = names(kind)
        hint = did_you_mean(name, known, f"manyminds list shows all; {kind}s: {', '.join(known)}")
        raise Mistake(f"there is no {kind} {name!r}", hint)
    found = _members(_import(name) if name in PLUGINS else importlib.import_module(f"{FOLDERS[kind][0]}.{name}"), kind)
    if len(found) != 1:
        raise Mistake(f"{name}.py holds {len(found)} {kind} classes", f"keep one {kind} per file")
    return found[0]


def _members(module: types.ModuleType, kind: str) -> list[type]:
    base = getattr(importlib.import_module(f"harness.{kind}"), kind.capitalize())
    own = [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == module.__name__]
    return [c for c in own if issubclass(c, base)]


def _import(name: str) -> types.ModuleType:
    file = PLUGINS[name]
    if name in sys.modules and getattr(sys.modules[name], "__file__", None) == str(file):
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise Mistake(f"{file} cannot be imported: it is no Python file", "name a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise Mistake(
            f"{file} cannot be imported: {type(error).__name__}: {error}", f"python {file} shows where"
        ) from error
    return module


def make(kind: str, name: str, fields: dict[str, object]) -> Any:
    """An instance, every field checked against its annotation. Raises Mistake for unknown names and wrong types."""
    cls = load(kind, name)
    known = {f.name for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    for field in fields:
        if field not in known:
            hint = did_you_mean(field, known, f"its fields: {', '.join(sorted(known)) or 'none'}")
            raise Mistake(f"{kind} {name!r} has no field {field!r}", hint)
    return cls(**{field: coerce(value, hints[field], f"{name}.{field}") for field, value in fields.items()})


def is_grid(kind: str, name: str, field: str, value: object) -> bool:
    """Whether a suite's list means several settings rather than one tuple."""
    if not isinstance(value, list):
        return False
    hint = typing.get_type_hints(load(kind, name)).get(field)
    return typing.get_origin(hint) is not tuple or (bool(value) and isinstance(value[0], list))

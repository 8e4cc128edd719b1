"""Tasks and methods by name, which is their file's stem: built-in ones, and plug-ins that are given by path."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import inspect
import json
import re
import sys
import traceback
import types
import typing
import warnings
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

from harness.errors import UserError, did_you_mean
from harness.fields import coerce_value, field_values, with_current_names

PROJECT_ROOT = Path(__file__).resolve().parent.parent
BUILT_IN_PACKAGES = {  # packages whose modules each define one task or method
    "task": ("tasks", "tasks.presets"),
    "method": ("harness.methods",),
}
FORMER_HOOKS = {  # of a task or method class: a class that still defines one of them is refused, not silently ignored
    "task": {"readings": "diagnostics", "utility": "text_attributes", "reads_texts": "has_text_attributes"},
    "method": {
        "ask": "questions",
        "asks": "asks_model",
        "guess": "estimated_seconds",
        "opened": "open_predictor",
        "read": "score_answers",
        "ready": "prepare_models",
        "together": "trains_model",
    },
}
NAME_PATTERN = r"[a-z][a-z0-9_]{0,63}"  # of a task or method
PLUGIN_PACKAGE = "manyminds_plugins"  # holds the modules of plug-ins, in memory alone
PLUGINS: dict[str, Path] = {}  # name -> file, filled by `add_plugins` with the files that the user named


def list_names(kind: str) -> dict[str, str]:
    """Return name -> first line of the file's docstring; built-in files are read without importing them."""
    files = list(_built_in_files(kind).values())
    files += [file for name, file in PLUGINS.items() if _classes_of_kind(_import_plugin(name), kind)]
    return {file.stem: _first_docstring_line(file) for file in sorted(files)}


def _built_in_files(kind: str) -> dict[str, Path]:
    """Return name -> file of the tasks or methods that the project ships."""
    folders = [PROJECT_ROOT.joinpath(*package.split(".")) for package in BUILT_IN_PACKAGES[kind]]
    return {file.stem: file for folder in folders for file in folder.glob("*.py") if file.stem != "__init__"}


def licence_of(name: str) -> str:
    """Return the licence of a shipped task's data, as its class says it, without an import; "" where it says none."""
    file = _built_in_files("task").get(name)
    statements = ast.walk(ast.parse(file.read_text("utf-8"))) if file else ()
    for node in statements:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "licence":
            return str(ast.literal_eval(node.value))
    return ""


def _module_name(file: Path) -> str:
    return ".".join(file.relative_to(PROJECT_ROOT).with_suffix("").parts)


def _first_docstring_line(file: Path) -> str:
    try:
        return (ast.get_docstring(ast.parse(file.read_text("utf-8"))) or "(no docstring)").splitlines()[0]
    except SyntaxError as error:
        raise UserError(f"{file} is not Python: {error}", f"fix line {error.lineno}") from error


def add_plugins(files: typing.Iterable[str | Path]) -> None:
    """Register files outside the project under their stems. Raises UserError for a missing or unusable file."""
    given: dict[str, Path] = {}
    for file in map(Path, files):
        if not file.is_file():
            raise UserError(f"the plug-in {file} does not exist", "give the path of a Python file, such as my_task.py")
        name = file.stem
        if not re.fullmatch(NAME_PATTERN, name) or file.suffix != ".py":
            raise UserError(
                f"{file.name} is not a valid name for a task or method",
                "use lower-case letters, digits and _, starting with a letter, for example my_task.py",
            )
        if any(name in _built_in_files(kind) for kind in BUILT_IN_PACKAGES):
            raise UserError(f"the plug-in {file} has the name of a built-in task or method", "rename the file")
        if given.setdefault(name, file.resolve()) != file.resolve():
            raise UserError(f"two plug-ins are named {name}: {given[name]} and {file}", "rename one of the files")
        PLUGINS[name] = file.resolve()
        try:
            known = any(_classes_of_kind(_import_plugin(name), base) for base in ("task", "method"))
        except UserError:
            del PLUGINS[name]
            raise
        if not known:
            del PLUGINS[name]
            raise UserError(
                f"{file} defines neither a task nor a method",
                "write one class derived from harness.task.Task or harness.method.Method; README shows both",
            )


def load_class(kind: str, name: str) -> Any:
    """Return the Task or Method class of that name.

    Raises UserError, with the closest known name, where there is none.
    """
    built_in = _built_in_files(kind)
    if name not in built_in and name not in PLUGINS:
        known = list_names(kind)
        hint = did_you_mean(name, known, f"`manyminds list` shows all names; {kind}s: {', '.join(known)}")
        raise UserError(f"there is no {kind} {name!r}", forgotten_plugin(name) or hint)
    found = _classes_of_kind(
        _import_plugin(name) if name in PLUGINS else importlib.import_module(_module_name(built_in[name])),
        kind,
    )
    if len(found) != 1:
        raise UserError(f"{name}.py defines {len(found)} {kind} classes", f"keep one {kind} per file")
    for former, current in FORMER_HOOKS[kind].items():
        if former in vars(found[0]):
            raise UserError(f"{name}.py: the hook `{former}` is now called `{current}`", f"rename it in {name}.py")
    _check_is_dataclass(found[0], name)
    return found[0]


def forgotten_plugin(name: str) -> str | None:
    """Return the option to type where a file of this name lies in this folder or in one below it, else None."""
    here = [*Path().glob(f"{name}.py"), *Path().glob(f"*/{name}.py")] if re.fullmatch(r"\w+", name) else []
    return f"add --plugin {here[0]}, in Python plugins=[{str(here[0])!r}]" if here else None


def _check_is_dataclass(cls: type, name: str) -> None:
    """Raise UserError where a class declares fields that are none, because the line that makes them so is missing."""
    declared = [
        field
        for field, hint in inspect.get_annotations(cls).items()
        if "ClassVar" not in (hint if isinstance(hint, str) else repr(hint))
    ]
    if declared and "__dataclass_params__" not in vars(cls):
        raise UserError(
            f"{name}.py: class {cls.__name__} declares {', '.join(declared)}, which would be ignored in suites and keys",
            f"write @dataclass(frozen=True) on the line above `class {cls.__name__}`",
        )


def _classes_of_kind(module: types.ModuleType, kind: str) -> list[type]:
    base = getattr(importlib.import_module(f"harness.{kind}"), kind.capitalize())
    own = [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == module.__name__]
    return [c for c in own if issubclass(c, base)]


def _import_plugin(name: str) -> types.ModuleType:
    """Import a plug-in under a name of its own, so that it replaces no other module; files beside it can be imported."""
    file, module_name = PLUGINS[name], f"{PLUGIN_PACKAGE}.{name}"
    if module_name in sys.modules and getattr(sys.modules[module_name], "__file__", None) == str(file):
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, file)
    if spec is None or spec.loader is None:
        raise UserError(f"{file} cannot be imported: it is not a Python file", "give a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))  # last, so that it hides no other module
    try:
        with warnings.catch_warnings():  # filters that a plug-in sets are its own
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        lines = [at.lineno for at in traceback.extract_tb(error.__traceback__) if at.filename == str(file)]
        lines += [error.lineno] if isinstance(error, SyntaxError) and error.filename == str(file) else []
        place = f"{file}, line {lines[-1]}" if lines else str(file)
        raise UserError(
            f"{place}: the plug-in cannot be imported: {type(error).__name__}: {error}", "fix that line"
        ) from error
    return module


def make_instance(kind: str, name: str, fields: dict[str, object]) -> Any:
    """Create an instance, with every field checked against its annotation.

    Raises UserError for unknown names and wrong types.
    """
    cls = load_class(kind, name)
    fields = with_current_names(cls, fields, name)
    known = {f.name for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    for field in fields:
        if field not in known:
            hint = did_you_mean(field, known, f"its fields: {', '.join(sorted(known)) or 'none'}")
            raise UserError(f"{kind} {name!r} has no field {field!r}", hint)
    return cls(**{field: coerce_value(value, hints[field], f"{name}.{field}") for field, value in fields.items()})


def parse_setting(kind: str, text: str) -> Any:
    """Make an instance from `name` or `name?field=value&field=value`; a value is JSON, or else text."""
    name, _, rest = text.partition("?")
    return make_instance(kind, name, {field: _plain_value(value) for field, value in parse_qsl(rest, True, True)})


def setting_text(thing: Any) -> str:
    """Return the text that `parse_setting` reads: a task's or method's name, and its fields that are not default."""
    default = field_values(type(thing)())
    changed = {name: value for name, value in field_values(thing).items() if value != default[name]}
    plain = {name: isinstance(value, str) and _plain_value(value) == value for name, value in changed.items()}
    given = {name: value if plain[name] else json.dumps(value) for name, value in changed.items()}
    return f"{thing.name}?{urlencode(given)}" if given else thing.name


def _plain_value(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


def lists_several_settings(kind: str, name: str, field: str, value: object) -> bool:
    """Return whether a list in a suite means several settings of the field, one for each entry.

    For a tuple field a list is one value, unless its first entry is a list as well.
    """
    if not isinstance(value, list):
        return False
    hint = typing.get_type_hints(load_class(kind, name)).get(field)
    return typing.get_origin(hint) is not tuple or (bool(value) and isinstance(value[0], list))

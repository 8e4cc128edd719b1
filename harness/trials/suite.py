"""TOML suite -> trials: which methods meet which tasks; lists are grids."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from harness import registry
from harness.errors import UnavailableError, UserError, did_you_mean
from harness.fields import with_current_names
from harness.method import Method
from harness.store.store import identity_hash
from harness.task import Task
from harness.trials.trial import field_values, identity_fields, name_at_version, recorded_values

CONTROL_METHODS = (
    "chance",
    "shared",
    "per_user",
    "spectral",
    "mixed_logit",
    "bayes",
)  # on every board, asked for or not
SUITE_KEYS: dict[str, Any] = {
    "title": str,
    "seeds": (list, int),
    "margin": (float, int),
    "controls": bool,
    "tasks": list,
    "methods": list,
}
SUITE_KEYS |= {"paper": str, "claims": list, "quick": dict}  # read by harness/claims/schema.py


@dataclass(frozen=True)
class Suite:
    """A title, seeds, and settings of tasks and methods.

    margin: the smallest gain in accuracy over `shared` worth having, stated before the run; a board's verdict uses it.
    """

    name: str
    title: str
    seeds: tuple[int, ...]
    tasks: tuple[Task, ...]
    methods: tuple[Method, ...]
    margin: float = 0.01

    @property
    def digest(self) -> str:
        """16 hex digits: the same for the same settings, whatever the file is called."""
        settings = [[name_at_version(x), recorded_values(x)] for x in self.tasks + self.methods]
        return identity_hash({"seeds": self.seeds, "settings": settings, "margin": self.margin})


def load_toml(path: Path) -> dict:
    """The file's tables. Raises UserError for a file that is missing or no TOML."""
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError as error:
        near = ", ".join(sorted(f.as_posix() for f in Path("jobs/suites").glob("*.toml")))
        raise UserError(f"the suite {path} does not exist", f"name a TOML file{f': {near}' if near else ''}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, IsADirectoryError) as error:
        raise UserError(f"{path} is not TOML: {error}", "compare with jobs/suites/quick.toml") from error


def read_suite(path: str | Path, quick: bool = False) -> Suite:
    """Raises UserError for a file that is missing or malformed, and for unknown names, fields and types.

    quick: with what the file's `[quick]` says instead: seeds, and fields of tasks and methods by name.
    """
    path = Path(path)
    content = load_toml(path)
    for key, value in content.items():
        if key not in SUITE_KEYS:
            raise UserError(
                f"{path}: unknown key {key!r}", did_you_mean(key, SUITE_KEYS, f"known: {', '.join(SUITE_KEYS)}")
            )
        if not isinstance(value, SUITE_KEYS[key]) or isinstance(value, bool) != (SUITE_KEYS[key] is bool):
            raise UserError(f"{path}: {key} = {value!r} has the wrong type", "compare with jobs/suites/quick.toml")
    _check_quick(path, content)
    less = content.get("quick", {}) if quick else {}
    seeds = less.get("seeds", content.get("seeds", 5))
    seeds = list(range(seeds)) if isinstance(seeds, int) else seeds
    if not seeds or not all(type(s) is int and s >= 0 for s in seeds) or len(set(seeds)) < len(seeds):
        raise UserError(f"{path}: seeds must be a count or a list of different whole numbers", "for example seeds = 5")
    tasks = _expand_settings(path, "task", content.get("tasks", []), less.get("tasks", {}))
    methods = _expand_settings(path, "method", content.get("methods", []), less.get("methods", {}))
    if not tasks or not (methods or content.get("controls", True)):
        raise UserError(
            f"{path} names no {'methods' if tasks else 'tasks'}",
            'add a table, for example [[tasks]] with name = "two_modes"',
        )
    if content.get("controls", True):
        named = {method.name for method in methods}
        methods = [
            registry.make_instance("method", name, {}) for name in CONTROL_METHODS if name not in named
        ] + methods
    margin = float(content.get("margin", Suite.margin))
    if not 0 <= margin < 1:
        raise UserError(f"{path}: margin = {margin} is no gain in accuracy", "for example margin = 0.01")
    return Suite(path.stem, content.get("title", path.stem), tuple(seeds), tuple(tasks), tuple(methods), margin)


def _check_quick(path: Path, content: dict) -> None:
    """Raises UserError where `[quick]` says something that no quick run would read."""
    hint = "for example quick = { seeds = 3, methods = { np_btl = { steps = 500 } } }"
    for key, value in content.get("quick", {}).items():
        if key not in ("seeds", "tasks", "methods"):
            raise UserError(f"{path}: unknown key {key!r} in quick", hint)
        if key == "seeds" and isinstance(value, (list, int)):
            continue
        if not isinstance(value, dict) or not all(isinstance(fields, dict) for fields in value.values()):
            raise UserError(f"{path}: quick.{key} = {value!r} is neither seeds nor fields by name", hint)
        names = [table.get("name") for table in content.get(key, []) if isinstance(table, dict)]
        if unknown := [name for name in value if name not in names]:
            raise UserError(f"{path}: quick.{key} names {unknown[0]!r}, which the suite does not have", hint)


def _expand_settings(path: Path, kind: str, tables: list, less: dict[str, dict]) -> list:
    """Make an instance for every combination of the lists in each table.

    less: fields by name that replace those of a table, as a quick run asks for.
    """
    found = []
    for table in tables:
        if not isinstance(table, dict) or not isinstance(table.get("name"), str):
            raise UserError(f"{path}: every {kind} is a table with a name", f'[[{kind}s]] and name = "..."')
        cls, where = registry.load_class(kind, table["name"]), f"{path}: {table['name']}"
        fields = with_current_names(cls, {k: v for k, v in table.items() if k != "name"}, where)
        fields |= with_current_names(cls, less.get(table["name"], {}), where)
        known = field_values(cls())
        if unknown := [name for name in fields if name not in known]:
            registry.make_instance(kind, table["name"], {unknown[0]: None})
        grids = [v if registry.lists_several_settings(kind, table["name"], k, v) else [v] for k, v in fields.items()]
        found += [
            registry.make_instance(kind, table["name"], dict(zip(fields, values, strict=True)))
            for values in product(*grids)
        ]
    if len(set(map(_setting_hash, found))) < len(found):
        raise UserError(f"{path} names the same {kind} setting twice", "remove one")
    return found


def _setting_hash(thing: Any) -> str:
    """The same for the same setting, however it is spelled; as it is spelled where its model is not at hand."""
    try:
        fields = identity_fields(thing)
    except UnavailableError:
        fields = recorded_values(thing)
    return identity_hash({"name": thing.name} | fields)

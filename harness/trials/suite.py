"""Suites: a TOML file names tasks and methods with their settings; a list of values is a grid of settings."""

from __future__ import annotations

import math
import tomllib
import typing
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from harness import registry
from harness.errors import UnavailableError, UserError, did_you_mean
from harness.fields import field_values, identity_fields, name_at_version, recorded_values, with_current_names
from harness.method import Method
from harness.registry import PROJECT_ROOT
from harness.store.store import identity_hash
from harness.task import Task

# on every board unless `controls = false`
CONTROL_METHODS = ("chance", "surface", "shared", "per_user", "spectral", "mixed_logit", "bayes")
# controls of texts, of ratings, of votes and of simulators, which other tasks silently go without
QUIET_CONTROLS = ("surface", "rater_mean", "majority", "bayes")


EXAMPLE_SUITE = PROJECT_ROOT / "jobs" / "suites" / "quick.toml"
MAX_SETTINGS = 10_000  # of one task or method in a suite: more are a mistyped list, and take minutes to make
MAX_TRIALS = 1_000_000  # of a suite: a board of more does not fit into memory


@dataclass(frozen=True)
class SuiteFile:
    """The keys that a suite file may hold."""

    tasks: list  # tables with a `name` and fields of that task; a list as a field's value makes one setting per entry
    methods: list = field(default_factory=list)  # the same for methods; controls are added automatically
    title: str = ""  # the heading of the board; the file's name where it is missing
    seeds: int | list = 5  # the number of seeds, or a list of seeds; five seeds hold every person out once
    margin: float | int = 0.01  # the smallest gain in accuracy over `shared` that matters; stated before the run
    controls: bool = True  # false leaves out chance, surface, shared, per_user, spectral, mixed_logit and bayes
    skip_unavailable: bool = (
        False  # true leaves out tasks whose data or model is not here, and says why; else nothing runs
    )
    paper: str = ""  # the paper that the file's claims are from, as `manyminds reproduce` names it
    claims: list = field(default_factory=list)  # published statements, see below
    # adds a tuned row for every method with a search space: `trials`, `seconds`, `sampler` as in `tuned`, and `methods`,
    # the names of those to tune
    tune: dict = field(default_factory=dict)
    quick: dict = field(
        default_factory=dict
    )  # under `--quick`: other seeds, other fields by task or method, other `tune`


SUITE_KEYS = {name: typing.get_args(hint) or hint for name, hint in typing.get_type_hints(SuiteFile).items()}


@dataclass(frozen=True)
class Suite:
    """A title, seeds, and settings of tasks and methods.

    margin: the smallest gain in accuracy over `shared` that matters, fixed before the run and used by the verdict.
    """

    name: str
    title: str
    seeds: tuple[int, ...]
    tasks: tuple[Task, ...]
    methods: tuple[Method, ...]
    margin: float = 0.01
    file: str = ""  # the path that it was read from, "" for one made in Python
    skip_unavailable: bool = False  # tasks whose data or model is not here are left out of the plan

    @cached_property
    def digest(self) -> str:
        """16 hex digits of the settings; the file's name has no influence."""
        settings = [[name_at_version(x), recorded_values(x)] for x in self.tasks + self.methods]
        return identity_hash({"seeds": self.seeds, "settings": settings, "margin": self.margin})


def load_toml(path: Path) -> dict:
    """Read the file's tables. Raises UserError for a file that is missing or not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # editors of Windows write a byte order mark
    except FileNotFoundError as error:
        raise UserError(f"the suite {path} does not exist", _nearest_suite(path)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, IsADirectoryError) as error:
        raise UserError(f"{path} is not TOML: {error}", f"compare with {_seen_from_here(EXAMPLE_SUITE)}") from error


def shipped_suite(path: Path) -> Path:
    """Return the path, or the shipped suite of that name where there is no such file and the name has no suffix."""
    if path.exists() or path.suffix or len(path.parts) != 1:
        return path
    folders = (PROJECT_ROOT / "jobs" / "suites", PROJECT_ROOT / "jobs" / "suites" / "claims")
    return next((file for folder in folders if (file := folder / f"{path}.toml").is_file()), path)


def _seen_from_here(file: Path) -> str:
    """Return a path as one would type it in the current folder."""
    here = Path.cwd()
    return (file.relative_to(here) if file.is_relative_to(here) else file).as_posix()


def _nearest_suite(path: Path) -> str:
    """Return a hint that names the shipped suite, or the TOML file in the current folder, of the most similar name."""
    shipped = [
        file for folder in ("jobs/suites", "jobs/suites/claims") for file in (PROJECT_ROOT / folder).glob("*.toml")
    ]
    files = {file.stem: file for file in [*shipped, *Path.cwd().glob("*.toml")]}
    shown = {stem: _seen_from_here(file) for stem, file in files.items()}
    every = ", ".join(sorted(shown[file.stem] for file in shipped if file.parent.name == "suites"))
    return did_you_mean(path.stem, shown, f"name a TOML file: {every}", shown=shown)


def read_suite(path: str | Path, quick: bool = False) -> Suite:
    """Read a suite from its file.

    quick: replace seeds, and fields of tasks and methods, by those in the file's `[quick]` table.

    Raises UserError for a file that is missing or malformed, and for unknown names, unknown fields and wrong types.
    """
    path = shipped_suite(Path(path))
    content = load_toml(path)
    for key, value in content.items():
        if key not in SUITE_KEYS:
            raise UserError(
                f"{path}: unknown key {key!r}", did_you_mean(key, SUITE_KEYS, f"known: {', '.join(SUITE_KEYS)}")
            )
        if not isinstance(value, SUITE_KEYS[key]) or isinstance(value, bool) != (SUITE_KEYS[key] is bool):
            raise UserError(
                f"{path}: {key} = {value!r} has the wrong type", f"compare with {_seen_from_here(EXAMPLE_SUITE)}"
            )
    _check_quick(path, content)
    less = content.get("quick", {}) if quick else {}
    seeds = less.get("seeds", content.get("seeds", 5))
    if isinstance(seeds, int):
        seeds = list(range(min(seeds, MAX_TRIALS + 1)))  # more are refused below
    if not seeds or not all(type(s) is int and 0 <= s < 2**32 for s in seeds) or len(set(seeds)) < len(seeds):
        raise UserError(
            f"{path}: seeds must be a number of seeds, or a list of different whole numbers from 0 to 2^32 - 1",
            "for example seeds = 5",
        )
    tasks = _expand_settings(path, "task", content.get("tasks", []), less.get("tasks", {}))
    methods = _expand_settings(path, "method", content.get("methods", []), less.get("methods", {}))
    if not tasks or not (methods or content.get("controls", True)):
        raise UserError(
            f"{path} has no {'methods' if tasks else 'tasks'}",
            'add a table, for example [[tasks]] with name = "two_modes"',
        )
    if content.get("controls", True):
        named = {method.name for method in methods}
        wanted = dict.fromkeys([*CONTROL_METHODS, *(name for task in tasks for name in task.controls)])
        methods = [registry.make_instance("method", name, {}) for name in wanted if name not in named] + methods
    methods += _tuned_methods(path, content.get("tune", {}) | less.get("tune", {}), methods)
    if (count := len(tasks) * len(methods) * len(seeds)) > MAX_TRIALS:
        raise UserError(
            f"{path} has {count:,} trials, more than {MAX_TRIALS:,}", "divide its tasks or methods among several suites"
        )
    margin = float(content.get("margin", Suite.margin))
    if not 0 < margin < 1:
        raise UserError(
            f"{path}: margin = {margin:g} is not between 0 and 1: it is the smallest gain that matters",
            "for example margin = 0.01",
        )
    title = content.get("title", path.stem)
    skips = content.get("skip_unavailable", False)
    return Suite(path.stem, title, tuple(seeds), tuple(tasks), tuple(methods), margin, str(path.absolute()), skips)


def _tuned_methods(path: Path, tune: dict, methods: list[Method]) -> list[Method]:
    """Return the tuned variant of every method with a search space, or of those that `[tune]` names."""
    if not tune:
        return []
    open_ = [m for m in methods if m.search_space and not m.searches]
    known_fields = ("methods", "sampler", "seconds", "trials")
    for name in tune:
        if name not in known_fields:
            hint = did_you_mean(name, set(known_fields), f"its fields: {', '.join(known_fields)}")
            raise UserError(f"{path}: [tune] has no field {name!r}", hint)
    names = tune.get("methods", [m.name for m in open_])
    fields = {name: value for name, value in tune.items() if name != "methods"}
    if unknown := [name for name in names if name not in {m.name for m in open_}]:
        known = ", ".join(dict.fromkeys(m.name for m in open_)) or "none of this suite"
        raise UserError(f"{path}: tune.methods names {unknown[0]!r}", f"methods with a search space: {known}")
    return [
        registry.make_instance("method", "tuned", fields | {"method": registry.setting_text(m)})
        for m in open_
        if m.name in names
    ]


def _check_quick(path: Path, content: dict) -> None:
    """Raise UserError where `[quick]` has keys, values or names that a quick run does not use."""
    hint = "for example quick = { seeds = 3, methods = { np_btl = { steps = 500 } } }"
    for key, value in content.get("quick", {}).items():
        if key == "tune" and isinstance(value, dict) and content.get("tune"):
            continue
        if key not in ("seeds", "tasks", "methods"):
            raise UserError(f"{path}: unknown key {key!r} in quick", hint)
        if key == "seeds" and isinstance(value, (list, int)):
            continue
        if not isinstance(value, dict) or not all(isinstance(fields, dict) for fields in value.values()):
            raise UserError(f"{path}: quick.{key} = {value!r} is neither seeds nor a table of fields by name", hint)
        names = [table.get("name") for table in content.get(key, []) if isinstance(table, dict)]
        if unknown := [name for name in value if name not in names]:
            raise UserError(f"{path}: quick.{key} names {unknown[0]!r}, which is not in the suite", hint)


def _expand_settings(path: Path, kind: str, tables: list, less: dict[str, dict]) -> list:
    """Make an instance for every combination of the listed values in each table.

    less: by the name of a task or method, fields of a quick run that replace those of the table.
    """
    found = []
    for table in tables:
        if not isinstance(table, dict) or not isinstance(table.get("name"), str):
            raise UserError(f"{path}: a {kind} is not a table with a name", f'write [[{kind}s]] and name = "..."')
        cls, where = registry.load_class(kind, table["name"]), f"{path}: {table['name']}"
        fields = with_current_names(cls, {k: v for k, v in table.items() if k != "name"}, where)
        fields |= with_current_names(cls, less.get(table["name"], {}), where)
        known = field_values(cls())
        if unknown := [name for name in fields if name not in known]:
            registry.make_instance(kind, table["name"], {unknown[0]: None})
        if empty := [
            k for k, v in fields.items() if v == [] and registry.lists_several_settings(kind, table["name"], k, v)
        ]:
            raise UserError(
                f"{where}.{empty[0]} = [] has no value, so there would be no {table['name']} at all",
                f"give {empty[0]} a value, or leave the line out",
            )
        grids = [v if registry.lists_several_settings(kind, table["name"], k, v) else [v] for k, v in fields.items()]
        if (count := math.prod(map(len, grids))) > MAX_SETTINGS:
            raise UserError(
                f"{where}: its lists make {count:,} settings, more than {MAX_SETTINGS:,}",
                "shorten the lists, or divide them among several suites",
            )
        found += [
            registry.make_instance(kind, table["name"], dict(zip(fields, values, strict=True)))
            for values in product(*grids)
        ]
    if len(set(map(_setting_hash, found))) < len(found):
        raise UserError(f"{path} has the same {kind} setting twice", "remove one of them")
    return found


def _setting_hash(thing: Any) -> str:
    """Return one hash for all spellings of a setting; if its model is unavailable, the spelling itself is hashed."""
    try:
        fields = identity_fields(thing)
    except UnavailableError:
        fields = recorded_values(thing)
    return identity_hash({"name": thing.name} | fields)

"""What `manyminds show` prints of a task, a method and a claim, and what `manyminds list` filters by."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import textwrap
import tokenize
import types
import typing
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import polars as pl

from harness import registry
from harness.errors import did_you_mean
from harness.fields import field_values, name_at_version, names_by_recorded_name, recorded_name
from harness.method import needs_of_method
from harness.scores.metrics import METRICS_VERSION
from harness.store.store import Store


@dataclasses.dataclass(frozen=True)
class FieldLine:
    """One field of a task or method: its type, its default, and the comment beside it in the source."""

    name: str
    type: str
    default: str
    meaning: str


def describe_setting(kind: str, name: str, store: Store) -> Iterator[str]:
    """Yield the lines that explain a task or method: what it is, its source, its fields, its scores in the store."""
    cls = registry.load_class(kind, name)
    module = inspect.getmodule(cls)
    yield f"{kind} {name}: {registry.list_names(kind)[name]}"
    yield ""
    yield textwrap.indent(inspect.getdoc(cls) or "", "  ")
    yield ""
    facts = {
        "family": cls.family,
        "paper": cls.paper,
        "licence": getattr(cls, "licence", ""),
        "needs": ", ".join(needs_of(kind, cls)) or "nothing",
    }
    facts |= {"version": str(cls.version), "source": inspect.getfile(module) if module else "unknown"}
    for fact, value in facts.items():
        if value or fact != "licence":
            yield f"{fact:8} {value or '-'}"
    lines = fields_of_class(cls)
    yield ""
    yield "fields, with their defaults:" if lines else f"this {kind} has no fields"
    width = max((len(f"{line.name} = {line.default}") for line in lines), default=0)
    for line in lines:
        yield f"  {f'{line.name} = {line.default}':{min(width, 40)}}  {line.type}{f'; {line.meaning}' if line.meaning else ''}"
    found = scores_in_store(kind, name_at_version(cls()), store)
    yield ""
    if found.is_empty():
        yield f"no finished trials in {store.root}"
        return
    other = "method" if kind == "task" else "task"
    yield f"mean accuracy on test people at the largest number of shots, in {store.root}:"
    width = max(len(row["setting"]) for row in found.iter_rows(named=True))
    for row in found.iter_rows(named=True):
        yield f"  {row[other]:20} {row['setting']:{width}}  {row['accuracy']:.3f}  ({row['seeds']} seeds)"


def fields_of_class(cls: type) -> list[FieldLine]:
    """Return the fields of a task or method class in their order, each explained by its comment in the source."""
    comments: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            comments |= field_comments(inspect.getsource(base))
    found, hints = [], typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        former = recorded_name(field)
        default = field.default_factory() if callable(field.default_factory) else field.default
        meaning = comments.get(field.name, "") + (f" (formerly {former})" if former != field.name else "")
        found.append(FieldLine(field.name, type_in_words(hints[field.name]), _toml_value(default), meaning.strip()))
    return found


def type_in_words(hint: Any) -> str:
    """Return the type of a field as a suite's author would say it: `list of int`, `"linear" or "mlp"`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return " or ".join(json.dumps(arg) for arg in args)
    if origin is tuple:
        return f"list of {type_in_words(args[0])}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join("none" if arg is type(None) else type_in_words(arg) for arg in args)
    if dataclasses.is_dataclass(hint):
        return f"a table: {typing.cast(type, hint).__name__}"
    words = {float: "number", int: "whole number", str: "text", bool: "true or false", list: "list", dict: "table"}
    return words.get(hint, "text or table" if hint is Any else str(hint))


def field_comments(source: str) -> dict[str, str]:
    """Return the comment of each annotated assignment of a class, by its name: the lines above it, or the end of it."""
    source = textwrap.dedent(source)
    fields = {
        node.target.id: node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    tokens = tokenize.generate_tokens(StringIO(source).readline)
    comments = {token.start[0]: token for token in tokens if token.type == tokenize.COMMENT}
    found = {}
    for name, node in fields.items():
        lines: list[str] = []
        above = node.lineno - 1
        while above in comments and not comments[above].line[: comments[above].start[1]].strip():
            lines.insert(0, comments[above].string)
            above -= 1
        if node.end_lineno in comments:
            lines = [comments[node.end_lineno].string]
        if lines:
            found[name] = " ".join(line.lstrip("# ").strip() for line in lines)
    return found


def _toml_value(value: object) -> str:
    if value is None or value is dataclasses.MISSING:
        return "none" if value is None else ""
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def needs_of(kind: str, cls: Any) -> list[str]:
    """Return what a task or method needs beyond this package.

    A task may need data files, the Hugging Face hub or an encoder.
    """
    if kind == "task":
        from harness.sources.public_files import PublicFile
        from harness.task import TextTask

        values = vars(inspect.getmodule(cls)).values()
        tables = [v for value in values for v in (value.values() if isinstance(value, dict) else [value])]
        needs = ["data files"] if any(isinstance(value, PublicFile) for value in tables) else []
        needs += ["hub"] if any(getattr(value, "__name__", "") == "hub_files" for value in values) else []
        return needs + (["encoder"] if issubclass(cls, TextTask) else [])
    return needs_of_method(cls())


def with_current_field_names(part: dict[str, Any]) -> dict[str, Any]:
    """Return a trial's identity with renamed fields under their current names, which suites use; facts as they are."""
    current = dict(part)
    for kind in ("task", "method"):
        name = str(part.get(kind, "")).partition("@")[0]
        if name in registry.list_names(kind):
            names = names_by_recorded_name(registry.load_class(kind, name))
            current[f"{kind}_fields"] = {names.get(k, k): v for k, v in part[f"{kind}_fields"].items()}
    return current


def accuracy_by_shots(store: Store, manifest: dict[str, Any]) -> dict[int, float]:
    """Return a finished trial's mean accuracy on test people by number of shots; {} where its metrics are older."""
    if manifest["facts"].get("metrics_version") != METRICS_VERSION:
        return {}
    table = pl.read_ipc(store.read_verified(manifest, "scores.arrow")).filter(panel="test", swapped=False)
    return dict(table.group_by("shots").agg(pl.col("accuracy").mean()).sort("shots").iter_rows())


def scores_in_store(kind: str, name: str, store: Store) -> pl.DataFrame:
    """Return a row per setting with finished trials: task, method, its fields that are not defaults, accuracy, seeds."""
    rows = []
    for key in store.committed_keys("trials"):
        manifest = store.read_manifest("trials", key)
        if manifest is None or manifest["identity"][kind] != name:
            continue
        if not (curve := accuracy_by_shots(store, manifest)):
            continue
        identity = manifest["identity"]
        fields = {f"{part}.{k}": v for part in ("task", "method") for k, v in identity[f"{part}_fields"].items()}
        rows.append(
            {
                "task": identity["task"].partition("@")[0],
                "method": identity["method"].partition("@")[0],
                "fields": json.dumps(fields, sort_keys=True),
                "seed": identity["seed"],
                "accuracy": curve[max(curve)],
                "committed": store.committed_at("trials", key),
            }
        )
    if not rows:
        return pl.DataFrame()
    defaults: dict[tuple[str, str, str], object] = {}
    for task, method in {(row["task"], row["method"]) for row in rows}:
        for part, thing in (("task", task), ("method", method)):
            if thing in registry.list_names(part):
                made = registry.load_class(part, thing)()
                names = {recorded_name(field): field.name for field in dataclasses.fields(made)}
                defaults |= {(part, thing, old): field_values(made)[new] for old, new in names.items()}
    for row in rows:
        changed = {
            name: value
            for name, value in json.loads(row.pop("fields")).items()
            if _toml_value(defaults.get((name.partition(".")[0], row[name.partition(".")[0]], name.partition(".")[2])))
            != _toml_value(value)
        }
        row["setting"] = ", ".join(f"{name.partition('.')[2]}={value}" for name, value in changed.items())
    other = "method" if kind == "task" else "task"
    # of results on data that have changed in between, the latest counts
    latest = pl.DataFrame(rows).sort("committed").unique([other, "setting", "seed"], keep="last")
    frame = latest.group_by(other, "setting").agg(pl.col("accuracy").mean(), seeds=pl.len())
    return frame.sort("accuracy", descending=True)


def describe_claim(name: str) -> Iterator[str] | None:
    """Yield the lines that explain a published claim; None where there is no claim of that id."""
    from harness.claims.reproduce import shipped_claims

    for file, (paper, claims) in shipped_claims().items():
        for claim in claims:
            if claim.id == name:
                return _claim_lines(file, paper, claim)
    return None


def _claim_lines(file: Path, paper: str, claim: Any) -> Iterator[str]:
    yield f"claim {claim.id} of {paper}: {claim.title}"
    yield ""
    for word in ("source", "published", "stand_in", "cannot", "note"):
        if value := getattr(claim, word):
            yield f"{word:10} {value}"
    yield f"{'suite':10} {file}"
    if claim.checks:
        yield ""
        yield "checks of this claim:"
    for check in claim.checks:
        low, high = check.expected or (None, None)
        yield f"  {check.says}: expected {low} to {high}, tolerance {check.tolerance:g}"
    yield ""
    yield f"manyminds reproduce {claim.id} runs the trials that the claim needs, and says whether the claim holds"


def near_names(word: str) -> str:
    """Return a hint for a name that is no task, method, claim or trial."""
    from harness.claims.reproduce import shipped_claims

    claims = [claim.id for _, listed in shipped_claims().values() for claim in listed]
    known = [*registry.list_names("task"), *registry.list_names("method"), *claims]
    otherwise = (
        "manyminds list shows tasks and methods, manyminds reproduce shows claims, "
        "manyminds board SUITE --json shows the keys of trials"
    )
    return did_you_mean(word, known, otherwise)

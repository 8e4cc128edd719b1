"""Findings, and the comparisons that make them."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from harness.data import Splits
from harness.errors import UserError
from harness.method import Method
from harness.task import Task

TOLERANCE = 1e-4  # log-odds: float32 answers to the same question asked in another order

NamedCheck = tuple[str, Callable[[], str | None]]  # what is asked, and a check that returns what is wrong, or None


@dataclass(frozen=True)
class ContractFinding:
    """One check that ran: what it asked, and what is wrong, if anything."""

    what: str
    problem: str | None


def split_arrays(splits: Splits) -> dict[str, np.ndarray]:
    """Who is shown and asked what, under stable names."""
    parts = {"train": splits.train}
    parts |= {f"{n}/{s}": getattr(p, s) for n, p in splits.panels.items() for s in ("context", "query")}
    columns = ("user", "people", "left", "right", "label", "seconds")
    found = {f"{name}.{c}": getattr(pairs, c) for name, pairs in parts.items() for c in columns}
    return {name: value for name, value in found.items() if value is not None}


def describe_difference(found: np.ndarray, wanted: np.ndarray) -> str | None:
    gap = float(np.abs(found - wanted).max(initial=0))
    allowed = TOLERANCE * max(1.0, float(np.abs(wanted).max(initial=0)))
    return None if gap <= allowed else f"answers differ by up to {gap:.3g}"


def describe_not_finite(z: np.ndarray) -> str | None:
    return None if np.isfinite(z).all() else f"{int((~np.isfinite(z)).sum())} of {len(z)} log-odds are not finite"


def describe_unequal_runs(a: str, b: str) -> str | None:
    return None if a == b else "two runs of one seed differ"


def joined_or_none(names: Iterable[Any]) -> str | None:
    return ", ".join(map(str, sorted(names))) or None


def describe_unchecked_field(thing: Task | Method) -> str | None:
    for field in dataclasses.fields(thing):
        try:
            replace(cast(Any, thing), **{field.name: object()})
        except UserError:
            continue
        except Exception:
            pass
        return f"{field.name} takes anything: begin __post_init__ with super().__post_init__()"
    return None


def describe_missing_docstring(thing: Task | Method) -> str | None:
    line = (inspect.getdoc(inspect.getmodule(thing)) or "").splitlines()
    return None if line and 10 <= len(line[0]) <= 130 else "begin the file with a docstring of one line"

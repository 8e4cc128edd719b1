"""Findings of the contract checks, and the comparisons behind them."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from harness.errors import UserError
from harness.method import Method
from harness.task import Task

# Largest difference at which two predictions count as equal, relative to the largest log-odds if that is above 1. Sums in
# another order change float32 results by about as much.
TOLERANCE = 1e-4

NamedCheck = tuple[str, Callable[[], str | None]]  # the rule, and a check that returns the problem, Measured or None


class Measured(str):
    """What a check measured where it found no problem: it is printed beside the rule, and is false like None."""

    def __bool__(self) -> bool:
        return False


@dataclass(frozen=True)
class ContractFinding:
    """The result of one check: `what` is the rule, `problem` the violation or None, `detail` what else was measured."""

    what: str
    problem: str | None
    detail: str = ""


def describe_difference(found: np.ndarray, wanted: np.ndarray) -> str | None:
    """Return the largest difference of predictions where TOLERANCE does not allow it, else None."""
    gap = float(np.abs(found - wanted).max(initial=0))
    allowed = TOLERANCE * max(1.0, float(np.abs(wanted).max(initial=0)))
    return None if gap <= allowed else f"predictions differ by up to {gap:.3g}"


def describe_not_finite(z: np.ndarray) -> str | None:
    """Return how many log-odds are not finite, or None."""
    return None if np.isfinite(z).all() else f"{int((~np.isfinite(z)).sum())} of {len(z)} log-odds are not finite"


def describe_unequal_runs(a: str, b: str) -> str | None:
    """Return a problem where the digests of two runs with the same seed differ, else None."""
    return None if a == b else "two runs with the same seed differ"


def problem_raised(check: Callable[[], object]) -> str | None:
    """Return the message of the UserError that a check raises, or None."""
    try:
        check()
    except UserError as mistake:
        return mistake.message
    return None


def joined_or_none(names: Iterable[Any]) -> str | None:
    """Join the names, sorted; return None where there are none."""
    return ", ".join(map(str, sorted(names))) or None


def describe_unchecked_field(thing: Task | Method) -> str | None:
    """Return the first field that accepts a value of any type, or None."""
    for field in dataclasses.fields(thing):
        try:
            replace(cast(Any, thing), **{field.name: object()})
        except UserError:
            continue
        except Exception:
            pass
        return f"{field.name} accepts any value: begin __post_init__ with super().__post_init__()"
    return None


def describe_missing_docstring(thing: Task | Method) -> str | None:
    """Return a problem where the file's docstring does not begin with a line of 10 to 130 characters, else None."""
    line = (inspect.getdoc(inspect.getmodule(thing)) or "").splitlines()
    return (
        None
        if line and 10 <= len(line[0]) <= 130
        else "begin the file with a docstring of one line, 10 to 130 characters long"
    )

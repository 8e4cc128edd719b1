"""What variants change: a tuned method beside the same method as it is, on the same people, pairs and seeds."""

from __future__ import annotations

import numpy as np
import polars as pl
from scipy.stats import norm

from harness.board.board import Point, TaskBoard, VariantChange


def changes_by_variants(tasks: tuple[TaskBoard, ...]) -> tuple[VariantChange, ...]:
    """Return each variant's change of accuracy at the largest number of shots, the largest mean change first.

    Only task settings on which both have a rank count, each alike.
    """
    changes: dict[tuple[str, str], dict[str, Point]] = {}
    errors: dict[tuple[str, str], list[float | None]] = {}
    for task in tasks:
        labels = {row.method: row.label for row in task.rows if row.rank}
        for method, label in labels.items():
            base = method.variant_of and labels.get(method.variant_of)
            if base:
                told = task.differences.row(
                    by_predicate=(pl.col("a") == label) & (pl.col("b") == base) & (pl.col("shots") == task.shots),
                    named=True,
                )
                changes.setdefault((label, base), {})[task.label] = Point(told["value"], told["low"], told["high"])
                errors.setdefault((label, base), []).append(told["se"])
    found = [
        VariantChange(label, base, _mean_change(list(points.values()), errors[label, base]), points)
        for (label, base), points in changes.items()
    ]
    return tuple(sorted(found, key=lambda change: -change.mean.value))


def _mean_change(points: list[Point], errors: list[float | None]) -> Point:
    """Return the mean with limits over people and seeds; without limits where one of the settings has none."""
    mean = float(np.mean([point.value for point in points]))
    known = [error for error in errors if error is not None]
    if len(known) < len(errors):
        return Point(mean)
    half = norm.ppf(0.975) * float(np.sqrt(np.sum(np.square(known)))) / len(points)
    return Point(mean, mean - half, mean + half)

"""What variants change: a tuned method beside the same method as it is, on the same people, pairs and seeds."""

from __future__ import annotations

import numpy as np

from harness.board.across import half_width
from harness.board.board import Point, TaskBoard, VariantChange


def changes_by_variants(tasks: tuple[TaskBoard, ...]) -> tuple[VariantChange, ...]:
    """Return each variant's change of accuracy at the largest number of shots, the largest mean change first.

    Only task settings on which both have a rank count, each alike.
    """
    found: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
    for task in tasks:
        labels = {row.method: row.label for row in task.rows if row.rank}
        for method, label in labels.items():
            if base := method.variant_of and labels.get(method.variant_of):
                found.setdefault((label, base), {})[task.label] = task.difference(label, base)
    changes = [
        VariantChange(
            label,
            base,
            _mean_change(list(told.values())),
            {task: Point(one["value"], one["low"], one["high"]) for task, one in told.items()},
        )
        for (label, base), told in found.items()
    ]
    return tuple(sorted(changes, key=lambda change: -change.mean.value))


def _mean_change(differences: list[dict[str, float]]) -> Point:
    """Return the mean with limits over people and seeds; without limits where one of the differences has none."""
    value, se, df = (np.array([one[name] for one in differences], float) for name in ("value", "se", "df"))
    mean, half = float(value.mean()), half_width(se / len(se), df)
    return Point(mean, mean - half, mean + half) if np.isfinite(half) else Point(mean)

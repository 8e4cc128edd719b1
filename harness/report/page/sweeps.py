"""The sweeps of a board, over one field of a task or over a pair, and their figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from harness.board.board import REFERENCE_METHOD, Board, Point, Row, TaskBoard
from harness.fields import field_values
from harness.report.page.marks import Chart, Looks, Values, channel, line_values, lines_spec, methods_in, rounded
from harness.report.words import format_number

Fields = tuple[str, ...]  # one field of a task, or a pair of fields


def find_sweeps(board: Board) -> list[tuple[str, Fields, list[TaskBoard]]]:
    """Return every sweep of a suite, over one field of a task or over a pair: task name, field names, settings.

    For each field or pair, a task's settings are put in groups that have the same values of all other varied fields.
    A pair of fields with a and b values is a sweep if its largest group has more than a + b - 1 settings: so many would
    two separate sweeps of the fields have, which cross in one setting. The sweep has the settings of this group, and of
    all groups with the same combinations of values. A single field is a sweep with the settings of its largest group,
    unless sweeps of pairs already have all of them.
    """
    found: list[tuple[str, Fields, list[TaskBoard]]] = []
    for name in dict.fromkeys(t.task.name for t in board.tasks):
        left = tasks = [t for t in board.tasks if t.task.name == name]
        varied = [f for f in field_values(tasks[0].task) if len({_field_value(t, f) for t in tasks}) > 1]
        pairs: list[Fields] = [*combinations(varied, 2)]
        for fields in [*pairs, *((f,) for f in varied)]:
            groups: dict[tuple, dict[tuple, TaskBoard]] = {}  # the other fields -> these fields -> setting
            for t in tasks:
                rest = tuple(_field_value(t, f) for f in varied if f not in fields)
                groups.setdefault(rest, {})[tuple(_field_value(t, f) for f in fields)] = t
            largest = max(groups.values(), key=len)
            counts = [len(set(values)) for values in zip(*largest, strict=True)]
            if len(fields) == 2 and min(counts) > 1 and len(largest) > sum(counts) - 1:
                whole = [t for group in groups.values() if group.keys() == largest.keys() for t in group.values()]
                left = [t for t in left if t not in whole]
                found.append((name, fields, whole))
            elif len(fields) == 1 and min(counts) > 1 and any(t in left for t in largest.values()):
                found.append((name, fields, list(largest.values())))
    return found


def _field_value(task: TaskBoard, field: str) -> Any:
    return getattr(task.task, field)


def sweep_charts(board: Board, looks: Looks) -> list[tuple[str, list[Chart]]]:
    """Return the heading of every sweep of a board, and its figures."""
    found = []
    for name, fields, tasks in find_sweeps(board):
        heading = f"{name}: {' and '.join(f.replace('_', ' ') for f in fields)}"
        if len(fields) == 1:
            caption = f"Accuracy at {_shots_text(tasks)} shots, with 95 % bands over people and seeds."
            charts = [Chart(caption, _sweep_curves(tasks, fields[0], looks))]
        else:
            charts = _heat_maps(tasks, fields, list(looks))
        found.append((heading, charts))
    return found


def _sweep_curves(tasks: list[TaskBoard], field: str, looks: Looks) -> dict:
    tasks = sorted(tasks, key=lambda t: _sort_key(_field_value(t, field)))
    found: dict[str, list[tuple[Row, Point]]] = {}
    for task in tasks:
        for row in task.rows:
            if row.curves:
                found.setdefault(row.label, []).append((row, row.curves["accuracy"][task.shots]))
    settings = [_field_value(t, field) for t in tasks]
    lines = [
        (own[0][0], dict(zip(settings, (point for _, point in own), strict=True)))
        for own in found.values()
        if len(own) == len(tasks)
    ]
    return lines_spec(*line_values(lines), looks, field.replace("_", " "), "accuracy")


def _heat_maps(tasks: list[TaskBoard], fields: Fields, methods: list[str]) -> list[Chart]:
    """Return heat maps, a panel per method: accuracy, and gain over the reference method."""
    cells = len({tuple(_field_value(t, f) for f in fields) for t in tasks})
    means = f" Means over {len(tasks) // cells} settings of other fields." if len(tasks) > cells else ""
    ticks = [[str(v) for v in sorted({_field_value(t, f) for t in tasks}, key=_sort_key)] for f in fields]
    found = []
    for what, score, signed in (
        (f"Accuracy at {_shots_text(tasks)} shots", row_accuracy, False),
        (f"Gain in accuracy over {REFERENCE_METHOD} at {_shots_text(tasks)} shots", row_gain, True),
    ):
        every = values_by_method(tasks, fields, score)
        values = [
            {"method": label, "x": ticks[0][x], "y": ticks[1][y], "value": rounded(value), "text": format_number(value, signed)}
            for label in methods
            if label in every
            for (y, x), value in np.ndenumerate(every[label])
            if np.isfinite(value)
        ]  # fmt: skip
        if values:
            caption = f"{what}, on one colour scale for all methods.{means}"
            found.append(Chart(caption, _heat_map(values, fields, ticks)))
    return found


def _heat_map(values: Values, fields: Fields, ticks: list[list[str]]) -> dict:
    """Return a panel per method on one colour scale of rising lightness, with the value in every cell."""
    middle = (min(v["value"] for v in values) + max(v["value"] for v in values)) / 2
    x, y = ({**channel(name, "ordinal"), "title": f.replace("_", " ")} for name, f in zip("xy", fields, strict=True))
    size = 10 if len(ticks[0]) <= 5 else 8 if len(ticks[0]) <= 8 else 6
    return {
        "data": {"values": values},
        "columns": 4,
        "facet": {**channel("method", "nominal"), "sort": methods_in(values), "title": None},
        "spec": {
            "width": 230,
            "height": {"step": 30},
            "encoding": {"x": {**x, "sort": ticks[0], "axis": {"labelAngle": 0}}, "y": {**y, "sort": ticks[1][::-1]}},
            "layer": [
                {"mark": "rect", "encoding": {"color": {**channel("value"), "title": None, "scale": {"scheme": "cividis"}}, "tooltip": [channel(name, "nominal") for name in ("method", "x", "y", "text")]}},
                {"mark": {"type": "text", "fontSize": size}, "encoding": {"text": channel("text", "nominal"), "color": {"condition": {"test": f"datum.value < {middle}", "value": "#ffffff"}, "value": "#000000"}}},
            ],
        },
    }  # fmt: skip


def _shots_text(tasks: list[TaskBoard]) -> str:
    return " or ".join(str(n) for n in sorted({t.shots for t in tasks}))


def _sort_key(value: object) -> tuple:
    """Return a sort key: numbers by size, then anything else by name."""
    return (0, value, "") if isinstance(value, (int, float)) else (1, 0, str(value))


def row_accuracy(row: Row, task: TaskBoard) -> float | None:
    """Return a row's accuracy at the largest number of shots; None where it has no result."""
    return row.curves["accuracy"][task.shots].value if row.curves else None


def row_gain(row: Row, task: TaskBoard) -> float | None:
    """Return a row's gain over the reference; None for the reference itself and where there is no result."""
    return None if row.worse is None or row.gain is None else row.gain.value


def values_by_method(
    tasks: Sequence[TaskBoard], fields: Fields, score: Callable[[Row, TaskBoard], float | None]
) -> dict[str, np.ndarray]:
    """Return the scores of every method by its label: float[values of the second field, values of the first].

    Scores are means over the settings of other fields, and NaN where there is none.
    """
    first, second = (sorted({_field_value(t, f) for t in tasks}, key=_sort_key) for f in fields)
    sums: dict[str, np.ndarray] = {}
    for task in tasks:
        x, y = first.index(_field_value(task, fields[0])), second.index(_field_value(task, fields[1]))
        for row in task.rows:
            if (value := score(row, task)) is not None:
                cell = sums.setdefault(row.label, np.zeros((2, len(second), len(first))))[:, y, x]
                cell += (value, 1)
    with np.errstate(invalid="ignore"):
        return {label: total / count for label, (total, count) in sums.items()}

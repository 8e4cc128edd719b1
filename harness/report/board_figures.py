"""The figures of a board."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.board.board import REFERENCE_METHOD, Across, Board, Point, Row, TaskBoard, setting_labels
from harness.fields import field_values
from harness.report.plots import (
    FIGURE_SIZE,
    PAGE_WIDTH,
    Look,
    add_legend,
    draw_grey_line,
    draw_svg,
    look_at_index,
    shorten,
    write_line_names,
)
from harness.report.words import format_number, largest_candidate_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Looks = dict[str, Look]  # of every ranked method, by its label
Fields = tuple[str, ...]  # one field of a task, or a pair of fields


def task_figures(task: TaskBoard, looks: Looks | None = None) -> list[tuple[str, str]]:
    """Return the caption and SVG of each figure for which the rows have data.

    looks: the looks of all methods of the board; without them, the looks are chosen for this task alone.
    """
    curves = "Accuracy against shots, with 95 % bands over people and seeds."
    if any(row.privileged for row in task.rows):
        curves += " Thin grey: privileged methods, which read the ground truth."
    ranks = "All ranks that are possible for each method, told apart at 95 % as the notes on this page say; the mark is the rank by score."
    gains = (
        f"Each person's gain over {REFERENCE_METHOD} at {task.shots} shots, people sorted; "
        "people below zero are worse off."
    )
    choosing = [row for row in task.rows if row.best_of]
    n = largest_candidate_count(choosing) if choosing else 0
    best = f"Best of n at {task.shots} shots: normalised gain against n, with 95 % bands over people and seeds."
    wins = f"Best of {n}: probability of being preferred to a random candidate, against shots, with 95 % bands."
    kl = (
        "Texts by policies: normalised gain against KL divergence from the reference model, at the smallest number of "
        f"shots (hollow) and at {task.shots} shots, with 95 % intervals. Dotted: the best of n by the same reward at "
        f"{task.shots} shots, at its largest possible KL divergence from the candidates' author, log n - (n - 1) / n."
    )
    cost = f"Quality against cost: accuracy at {task.shots} shots against seconds to fit."
    own = looks or {row.label: look_at_index(i) for i, row in enumerate(r for r in task.rows if not r.privileged)}

    def drawn(draw: Callable[[Axes, TaskBoard, Looks], None]) -> str:
        def on(figure: Figure) -> None:
            draw(figure.subplots(), task, own)
            add_legend(figure)

        return draw_svg(on)

    return [
        (caption, drawn(draw))
        for caption, draw, needed in (
            (curves, _draw_curves, any(r.curves for r in task.rows)),
            (ranks, _draw_ranks, any(r.rank for r in task.rows)),
            (gains, _draw_gains, any(r.worse is not None for r in task.rows)),
            (best, _draw_best_of_n, choosing),
            (wins, _draw_win_rates, choosing),
            (kl, _draw_written, any("normalised" in w.scores for r in task.rows for w in r.written.values())),
            (cost, _draw_cost, any(r.costs and r.curves for r in task.rows)),
        )
        if needed
    ]


def across_figures(board: Board, looks: Looks) -> list[tuple[str, str]]:
    """Return the caption and SVG of the figures across tasks: wins with limits, and gains by family."""
    assert board.across is not None
    across, wins, gains = (
        board.across,
        "Wins: how often a method has a higher accuracy than another one, on a task drawn at random, with 95 % limits over tasks.",
        "Interquartile mean of the gain over the reference in each family of tasks, with 95 % limits over people and seeds.",
    )
    tall = (FIGURE_SIZE[0], max(2.4, 0.6 + 0.3 * len(across.rows)))
    wide = (PAGE_WIDTH, tall[1])
    return [
        (wins, draw_svg(lambda figure: _draw_wins(figure.subplots(), across, looks), tall)),
        (gains, draw_svg(lambda figure: _draw_family_gains(figure, across, looks), wide)),
    ]


def _draw_wins(axes: Axes, across: Across, looks: Looks) -> None:
    for y, row in enumerate(across.rows):
        _draw_limits(axes, row.wins, y, looks[row.label])
    axes.axvline(0.5, color="#000000", lw=0.8)
    axes.set(xlabel="probability of beating another method", xlim=(0, 1))
    _name_rows(axes, across)


def _draw_family_gains(figure: Figure, across: Across, looks: Looks) -> None:
    panels = figure.subplots(1, len(across.families), squeeze=False, sharey=True)[0]
    for axes, family in zip(panels, across.families, strict=True):
        for y, row in enumerate(across.rows):
            _draw_limits(axes, row.families[family], y, looks[row.label])
        axes.axvline(0, color="#000000", lw=0.8)
        axes.set_title(f"{family} ({across.families[family]})", fontsize=11)
        axes.set_xlabel(across.units[family] if across.units[family] != "accuracy" else "gain in accuracy")
    _name_rows(panels[0], across)


def _draw_limits(axes: Axes, point: Point, y: int, look: Look) -> None:
    color, marker, _ = look
    if point.low is not None and point.high is not None:
        axes.plot([point.low, point.high], [y, y], color=color, lw=3, alpha=0.5, solid_capstyle="round")
    axes.plot(point.value, y, marker=marker, color=color, ms=7)


def _name_rows(axes: Axes, across: Across) -> None:
    axes.set_yticks(range(len(across.rows)), [shorten(row.label) for row in across.rows])
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)


def _draw_curves(axes: Axes, task: TaskBoard, looks: Looks) -> None:
    lines = [(row, list(row.curves["accuracy"].values())) for row in task.rows if row.curves]
    _draw_with_bands(axes, lines, task.task.shots, looks)
    axes.set(xlabel="shots: answers seen of each new user", ylabel="accuracy")


def _draw_best_of_n(axes: Axes, task: TaskBoard, looks: Looks) -> None:
    last = [(row, row.best_of[task.shots].gain) for row in task.rows if row.best_of]
    _draw_with_bands(axes, [(row, list(gain.values())) for row, gain in last], tuple(last[0][1]), looks)
    axes.set(xlabel="n: candidates to choose from", ylabel="normalised gain")


def _draw_win_rates(axes: Axes, task: TaskBoard, looks: Looks) -> None:
    rows = [row for row in task.rows if row.best_of]
    n = largest_candidate_count(rows)
    lines = [(row, [row.best_of[shots].win_random[n] for shots in task.task.shots]) for row in rows]
    _draw_with_bands(axes, lines, task.task.shots, looks)
    axes.set(xlabel="shots: answers seen of each new user", ylabel="win rate over a random candidate")


def _draw_written(axes: Axes, task: TaskBoard, looks: Looks) -> None:
    """Draw policies by KL divergence and normalised gain, and their own best of n beside them."""
    for row in task.rows:
        found = [w for w in row.written.values() if "normalised" in w.scores]
        if not found:
            continue
        color, marker, dash = ("#999999", "x", "-") if row.privileged else looks[row.label]
        x, y = ([w.scores[name] for w in found] for name in ("kl", "normalised"))
        kl, gain = ([p.value for p in points] for points in (x, y))
        axes.errorbar(
            kl,
            gain,
            _error_bars(y),
            _error_bars(x),
            color=color,
            marker=marker,
            ls=dash,
            ms=7,
            capsize=3,
            label=None if row.privileged else row.label,
        )
        if row.privileged:  # privileged methods are all grey, so each is named beside its mark
            axes.annotate(row.label, (kl[-1], gain[-1]), (4, 5), textcoords="offset points", fontsize=7, color=color)
        if found[0] != found[-1]:
            axes.plot(kl[0], gain[0], color=color, marker=marker, ls="", ms=7, mfc="#ffffff", zorder=3)
        if best := found[-1].best_of:
            bound = [np.log(n) - (n - 1) / n for n in best]
            axes.plot(bound, [p.value for p in best.values()], color=color, marker=".", ls=":", lw=1.2, alpha=0.8)
    axes.set(xlabel="KL from the reference model, nats per response", ylabel="normalised gain")
    axes.set_xscale("symlog", linthresh=1)  # KL of the best of n is of order 1, that of policies far larger
    axes.set_xlim(left=0)
    axes.axhline(0, color="#000000", lw=0.6)


def _limits_of_points(points: Sequence[Point]) -> np.ndarray | None:
    """Return float64[2, n], the lower and the upper limits; None where a point has no limits."""
    ends = [(p.low, p.high) for p in points if p.low is not None and p.high is not None]
    return np.array(ends).T if len(ends) == len(points) else None


def _error_bars(points: Sequence[Point]) -> np.ndarray | None:
    """Return float64[2, n], distances of the limits below and above the values; None where a point has no limits."""
    limits = _limits_of_points(points)
    return None if limits is None else np.abs(limits - [p.value for p in points])


def _draw_with_bands(axes: Axes, lines: list[tuple[Row, list[Point]]], ticks: Sequence, looks: Looks) -> None:
    """Draw a line with its band for each row, over evenly spaced ticks."""
    place = np.arange(len(ticks))
    ends: list[tuple[float, float, str]] = []
    for row, points in lines:
        values = [p.value for p in points]
        if row.privileged:
            draw_grey_line(axes, place, np.array(values))
            ends.append((place[-1], values[-1], row.label))
            continue
        color, marker, dash = looks[row.label]
        axes.plot(place, values, color=color, marker=marker, ls=dash, label=row.label, ms=6)
        if (limits := _limits_of_points(points)) is not None:
            axes.fill_between(place, *limits, color=color, alpha=0.15, lw=0)
    axes.set_xticks(place, ticks)
    axes.margins(x=0.12)
    write_line_names(axes, ends)


def _draw_ranks(axes: Axes, task: TaskBoard, looks: Looks) -> None:
    rows = [(row.label, row.rank) for row in task.rows if row.rank]
    for y, (label, rank) in enumerate(rows):
        color, marker, _ = looks[label]
        axes.plot(rank[1:], [y, y], color=color, lw=5, alpha=0.45, solid_capstyle="round")
        axes.plot(rank[0], y, marker=marker, color=color, ms=8)
    axes.set_yticks(range(len(rows)), [shorten(label) for label, _ in rows])
    axes.set_xticks(range(1, len(rows) + 1))
    axes.set(xlabel=f"rank at {task.shots} shots", xlim=(0.5, len(rows) + 0.5))
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)


def _draw_gains(axes: Axes, task: TaskBoard, looks: Looks) -> None:
    axes.axhline(0, color="#000000", lw=0.8)
    for row in task.rows:
        if row.worse is not None and row.users is not None:
            gain = np.sort(row.users["gain"].to_numpy())
            color, marker, dash = looks[row.label]
            axes.plot(
                (np.arange(len(gain)) + 0.5) / len(gain),
                gain,
                color=color,
                ls=dash,
                marker=marker,
                markevery=0.2,
                ms=5,
                label=row.label,
            )
    axes.set(xlabel="people, sorted by gain", ylabel=f"gain over {REFERENCE_METHOD}")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")


def _draw_cost(axes: Axes, task: TaskBoard, looks: Looks) -> None:
    for row in task.rows:
        if row.privileged or not (row.costs and row.curves):
            continue
        color, marker, _ = looks[row.label]
        x, y = max(row.costs["fit_seconds"], 1e-4), row.curves["accuracy"][task.shots]
        axes.errorbar(x, y.value, _error_bars([y]), color=color, marker=marker, ls="", ms=8, capsize=3, label=row.label)
    axes.set_xscale("log")
    axes.set(xlabel="seconds to fit, median over seeds (log)", ylabel=f"accuracy at {task.shots} shots")


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


def figures_of_sweeps(board: Board, looks: Looks) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return for every sweep of a board its heading, and the caption and SVG of each figure."""
    found = []
    for name, fields, tasks in find_sweeps(board):
        heading = f"{name}: {' and '.join(f.replace('_', ' ') for f in fields)}"
        if len(fields) == 1:
            caption = f"Accuracy at {_shots_text(tasks)} shots, with 95 % bands over people and seeds."
            found.append((heading, [(caption, _sweep_curves_svg(tasks, fields[0], looks))]))
        else:
            found.append(
                (heading, _heat_map_figures(tasks, fields, list(setting_labels(list(board.suite.methods)).values())))
            )
    return found


def _sweep_curves_svg(tasks: list[TaskBoard], field: str, looks: Looks) -> str:
    def on(figure: Figure) -> None:
        _draw_sweep_curves(figure.subplots(), tasks, field, looks)
        add_legend(figure)

    return draw_svg(on)


def _heat_map_figures(tasks: list[TaskBoard], fields: Fields, methods: list[str]) -> list[tuple[str, str]]:
    """Return caption and SVG of heat maps, a panel per method: accuracy, and gain over the reference method."""
    cells = len({tuple(_field_value(t, f) for f in fields) for t in tasks})
    means = f" Means over {len(tasks) // cells} settings of other fields." if len(tasks) > cells else ""
    ticks = [sorted({_field_value(t, f) for t in tasks}, key=_sort_key) for f in fields]

    def drawn(maps: dict[str, np.ndarray], signed: bool) -> str:
        rows, tall = -(-len(maps) // 4), max(m.shape[0] for m in maps.values())
        size = (PAGE_WIDTH, 0.6 + rows * (0.75 + 0.36 * max(tall, 2)))
        return draw_svg(lambda figure: _draw_heat_maps(figure, maps, fields, ticks, signed), size)

    found = []
    for what, score, signed in (
        (f"Accuracy at {_shots_text(tasks)} shots", _row_accuracy, False),
        (f"Gain in accuracy over {REFERENCE_METHOD} at {_shots_text(tasks)} shots", _row_gain, True),
    ):
        every = _values_by_method(tasks, fields, score)
        if maps := {label: every[label] for label in methods if label in every}:
            found.append((f"{what}, on one colour scale for all methods.{means}", drawn(maps, signed)))
    return found


def _shots_text(tasks: list[TaskBoard]) -> str:
    return " or ".join(str(n) for n in sorted({t.shots for t in tasks}))


def _sort_key(value: object) -> tuple:
    """Return a sort key: numbers by size, then anything else by name."""
    return (0, value, "") if isinstance(value, (int, float)) else (1, 0, str(value))


def _row_accuracy(row: Row, task: TaskBoard) -> float | None:
    return row.curves["accuracy"][task.shots].value if row.curves else None


def _row_gain(row: Row, task: TaskBoard) -> float | None:
    return None if row.worse is None or row.gain is None else row.gain.value


def _values_by_method(
    tasks: list[TaskBoard], fields: Fields, score: Callable[[Row, TaskBoard], float | None]
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


def _draw_heat_maps(
    figure: Figure, maps: dict[str, np.ndarray], fields: Fields, ticks: list[list], signed: bool
) -> None:
    """Draw a heat map per method, on one colour scale of rising lightness, with the value in every cell."""
    columns = min(4, len(maps))
    panels = figure.subplots(-(-len(maps) // columns), columns, squeeze=False, sharex=True, sharey=True)
    figure.set_layout_engine("constrained", hspace=0.08)
    every = np.concatenate([m.ravel() for m in maps.values()])
    low, high = np.nanmin(every), np.nanmax(every)
    size = 10 if len(ticks[0]) <= 5 else 8 if len(ticks[0]) <= 8 else 6
    for axes, (label, values) in zip(panels.flat, maps.items(), strict=False):
        image = axes.imshow(values, cmap="cividis", vmin=low, vmax=high, origin="lower", aspect="auto")
        for (y, x), value in np.ndenumerate(values):
            if np.isfinite(value):
                dark = value < (low + high) / 2
                axes.text(
                    x, y, format_number(value, signed), ha="center", va="center", fontsize=size,
                    color="#ffffff" if dark else "#000000",
                )  # fmt: skip
        axes.set_title(label, fontsize=10)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        for set_ticks, values_of in ((axes.set_xticks, ticks[0]), (axes.set_yticks, ticks[1])):
            set_ticks(range(len(values_of)), [f"{v:g}" if isinstance(v, float) else str(v) for v in values_of])
    for axes in panels.flat[len(maps) :]:
        axes.set_visible(False)
    for axes in panels.T.flat:  # also where the place below the panel is empty
        axes.tick_params(labelbottom=True)
    figure.supxlabel(fields[0].replace("_", " "), fontsize=11)
    figure.supylabel(fields[1].replace("_", " "), fontsize=11)
    figure.colorbar(image, ax=panels, pad=0.01, aspect=30)


def _draw_sweep_curves(axes: Axes, tasks: list[TaskBoard], field: str, looks: Looks) -> None:
    tasks = sorted(tasks, key=lambda t: _sort_key(_field_value(t, field)))
    found: dict[str, list[tuple[Row, Point]]] = {}
    for task in tasks:
        for row in task.rows:
            if row.curves:
                found.setdefault(row.label, []).append((row, row.curves["accuracy"][task.shots]))
    whole = [[row for row, _ in found[label]] for label in found if len(found[label]) == len(tasks)]
    lines = [(rows[0], [point for _, point in found[rows[0].label]]) for rows in whole]
    _draw_with_bands(axes, lines, [_field_value(t, field) for t in tasks], looks)
    axes.set(xlabel=field.replace("_", " "), ylabel="accuracy")

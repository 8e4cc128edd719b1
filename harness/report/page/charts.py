"""The figures of tasks, across tasks, and of costs, which the page draws when they come into view."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from harness.board.board import REFERENCE_METHOD, Across, Board, TaskBoard
from harness.report.page.marks import (
    GREY,
    ROW_HEIGHT,
    Chart,
    Looks,
    Values,
    channel,
    color_channel,
    forest_spec,
    line_values,
    lines_spec,
    look_scale,
    method_rows,
    point_channels,
    rounded,
    values_of_point,
    whole_width,
)
from harness.report.words import largest_candidate_count

# Steps in accuracy; a method that is .1 behind is out of the question.
PROFILE_STEPS = np.round(np.arange(0, 0.1001, 0.005), 3)
# People of a method in a figure: of more, every second, third ... of the sorted gains is drawn.
MAX_PEOPLE_TICKS = 400
PAIR_WIDTH = 25  # pixels of a cell that holds a number of three digits
# What a method costs, by the name of the fact: title of the axis, factor, and the smallest value that a log scale shows.
COSTS = {
    "fit_seconds": ("seconds to fit", 1.0, 1e-3),
    "adapt_seconds_per_user": ("microseconds to adapt to one person", 1e6, 0.1),
    "bytes_per_user": ("bytes kept per person", 1.0, 1.0),
}


def task_charts(task: TaskBoard, looks: Looks, with_people: bool = True) -> list[Chart]:
    """Return the figures for which a task's rows have data.

    with_people: whether people are named by their numbers.
    """
    shots = f"at {task.shots} shots"
    has_lines = any(row.privileged for row in task.rows)
    lines = " Thin grey lines: privileged methods, which read the ground truth." if has_lines else ""
    choosing = [row for row in task.rows if row.best_of]
    n = largest_candidate_count(choosing) if choosing else 0
    found = [
        (
            f"Accuracy against shots, with 95 % bands over people and seeds.{lines} Choose methods in the legend.",
            any(r.curves for r in task.rows),
            _curves_of_shots,
        ),
        (
            "All ranks that are possible for each method, told apart at 95 % as the notes on this page say; the mark is the rank by score.",
            any(r.rank for r in task.rows),
            _ranks,
        ),
        (
            f"Each person's gain over {REFERENCE_METHOD} {shots}: a tick is a person, the mark the mean. People left of 0 are worse off.",
            any(r.worse is not None for r in task.rows),
            lambda task, looks: _gains_of_people(task, looks, with_people),
        ),
        (
            f"Best of n {shots}: normalised gain against n, with 95 % bands over people and seeds.",
            bool(choosing),
            _best_of_n,
        ),
        (
            f"Best of {n}: probability of being preferred to a random candidate, against shots, with 95 % bands.",
            bool(choosing),
            _win_rates,
        ),
        (
            "Texts by policies: normalised gain against KL divergence from the reference model, at the smallest number of "
            f"shots (hollow) and {shots}, with 95 % intervals. Dotted: the best of n by the same reward {shots}, "
            "at its largest possible KL divergence from the candidates' author, log n - (n - 1) / n.",
            any("normalised" in w.scores for r in task.rows for w in r.written.values()),
            _written_texts,
        ),
    ]
    return [Chart(caption, draw(task, looks)) for caption, needed, draw in found if needed]


def across_charts(board: Board, looks: Looks) -> list[Chart]:
    """Return the figures across tasks: wins, the performance profile, and gains by family."""
    across = board.across
    assert across is not None
    has_variants = any(method.variants for method in across.rows)
    hollow = " Hollow: variants, each as if it stood in the place of the method as it is." if has_variants else ""
    alone = " Variants are left out." if has_variants else ""
    drawn: list[tuple[str, dict]] = [
        (
            "Wins: how often a method has a higher accuracy than another one, on a task drawn at random, with 95 % limits over tasks."
            + hollow,
            _wins(across, looks),
        ),
        (
            "Performance profile: on which share of the settings a method is at most so far behind the best one."
            + alone,
            _performance_profile(board, across, looks),
        ),
        (
            "Interquartile mean of the gain over the reference in each family of tasks, with 95 % limits over people and seeds.",
            _family_gains(across, looks),
        ),
        (
            "Pairs: on which share of the tasks the method of the row has a higher accuracy than that of the column; a tie is one "
            "half, and settings of one task count together as one. Framed: on tasks like these one of the two surely wins more "
            "against all methods, for all pairs at once." + alone,
            _pairs_of_methods(board, across),
        ),
    ]
    return [Chart(caption, spec) for caption, spec in drawn]


def part_chart(name: str, part: Across, looks: Looks) -> Chart:
    """Return the figure of wins in a part of the tasks."""
    return Chart(f"Wins on the {name} tasks alone, with 95 % limits over them.", _wins(part, looks))


def _wins(across: Across, looks: Looks) -> dict:
    values = [
        {"row": method.label, "method": row.label, **values_of_point(row.wins)}
        for method in across.rows
        for row in (method, *method.variants)
    ]
    return forest_spec(values, looks, "wins", middle=0.5, domain=[0, 1])


def variants_chart(board: Board, looks: Looks) -> Chart | None:
    """Return the figure of what variants change on average."""
    values = [{"method": change.label, **values_of_point(change.mean)} for change in board.variants]
    caption = (
        "Accuracy of a variant minus that of the method as it is, as the mean over the settings that both have run, with 95 % "
        "limits over people and seeds."
    )
    return Chart(caption, forest_spec(values, looks, "mean change in accuracy", middle=0.0)) if values else None


def cost_chart(board: Board, labels: list[str], looks: Looks) -> Chart | None:
    """Return the figure of accuracy against a cost that the reader chooses, with the methods that none beats in both.

    labels: a name for each task setting, as the page's headings have it.
    """
    values: Values = []
    for label, task in zip(labels, board.tasks, strict=True):
        own: Values = []
        for row in task.rows:
            if row.rank and row.costs:
                accuracy = row.curves["accuracy"][task.shots]
                costs = {name: max(f * row.costs[name], least) for name, (_, f, least) in COSTS.items()}
                own.append({"task": label, "method": row.label, **values_of_point(accuracy), **costs})
        for cost in COSTS:
            for place in frontier([v[cost] for v in own], [v["value"] for v in own]):
                own[place][f"front_{cost}"] = True
        values += own
    if not values:
        return None
    tasks = list(dict.fromkeys(v["task"] for v in values))
    caption = (
        "Accuracy at the largest number of shots against cost, for a task and a cost of your choice, on the machine that ran the trials "
        "and without preparing features. The dashed line joins the methods that no other one beats in both."
    )
    x = {
        "field": "cost",
        "type": "quantitative",
        "scale": {"type": "log"},
        "axis": {"title": "the chosen cost (log scale)", "format": "~g", "tickCount": 6, "grid": False},
    }
    y = {"field": "value", "type": "quantitative", "scale": {"zero": False}, "title": "accuracy"}
    spec = {
        **whole_width(320),
        "params": [
            {"name": "task", "value": tasks[0], "bind": {"input": "select", "options": tasks, "name": "task "}},
            {
                "name": "cost",
                "value": "fit_seconds",
                "bind": {
                    "input": "select",
                    "options": list(COSTS),
                    "labels": [title for title, *_ in COSTS.values()],
                    "name": "cost ",
                },
            },
        ],
        "data": {"values": values},
        "transform": [{"filter": "datum.task == task"}, {"calculate": "datum[cost]", "as": "cost"}],
        "encoding": {"x": x, "y": y},
        "layer": [
            {"transform": [{"filter": "datum['front_' + cost]"}], "mark": {"type": "line", "color": GREY, "strokeDash": [4, 3], "interpolate": "step-after"}},
            {"mark": {"type": "rule", "opacity": 0.5}, "encoding": {"y": channel("low"), "y2": {"field": "high"}, **color_channel(values, looks)}},
            {
                "mark": {"type": "point", "filled": True, "size": 90, "opacity": 1},
                "encoding": {**point_channels(values, looks), "tooltip": [channel("method", "nominal"), {"field": "text", "title": "accuracy"}, {"field": "cost", "format": ".3~g"}]},
            },
        ],
    }  # fmt: skip
    return Chart(caption, spec)


def frontier(cost: Sequence[float], score: Sequence[float]) -> list[int]:
    """Return the places of the pairs that no other pair beats: none is as cheap and better, or cheaper and as good."""
    best, found = -np.inf, []
    for place in np.lexsort([-np.asarray(score), np.asarray(cost)]):
        if score[place] > best:
            best = score[place]
            found.append(int(place))
    return found


def _family_gains(across: Across, looks: Looks) -> dict:
    """Return a panel per family of tasks, each with its own unit; the page names methods in the first panel of a row."""
    panels = []
    for family, count in across.families.items():
        values = [
            {"row": method.label, "method": row.label, **values_of_point(row.families[family])}
            for method in across.rows
            for row in (method, *method.variants)
        ]
        unit = "gain in accuracy" if across.units[family] == "accuracy" else across.units[family]
        panel = forest_spec(values, looks, unit, middle=0.0)
        panels.append({**panel, "width": 210, "title": f"{family} ({count})"})
    return {"concat": panels, "columns": 4}


def _performance_profile(board: Board, across: Across, looks: Looks) -> dict:
    """Return the share of settings on which each method is at most so far behind the best one."""
    labels = [row.label for row in across.rows]
    scores = np.stack([own for _, own in _accuracies(board, labels)])
    behind = scores.max(axis=1, keepdims=True) - scores
    share = (behind[..., None] <= PROFILE_STEPS + 1e-12).mean(0)
    values = [
        {"method": label, "x": float(x), "value": rounded(y), "text": f"{y:.0%}"}
        for label, own in zip(labels, share, strict=True)
        for x, y in zip(PROFILE_STEPS, own, strict=True)
    ]
    up = f"share of {len(scores)} settings"
    return lines_spec(values, [], looks, "accuracy behind the best method", up, ordinal=False)


def _accuracies(board: Board, labels: list[str]) -> list[tuple[str, np.ndarray]]:
    """Return for each setting on which all these methods have a rank its task's name, and their accuracies in this order."""
    found = []
    for task in board.tasks:
        own = {row.label: row.curves["accuracy"][task.shots].value for row in task.rows if row.rank}
        if own.keys() >= set(labels):
            found.append((task.task.name, np.array([own[label] for label in labels])))
    return found


def _pairs_of_methods(board: Board, across: Across) -> dict:
    """Return a cell for each two methods: how often the one has a higher accuracy than the other, and by how much on average."""
    labels = [row.label for row in across.rows]
    surely = {(row.label, other) for row in across.rows for other in row.better_than}
    of_task: dict[str, list[np.ndarray]] = {}
    for name, accuracy in _accuracies(board, labels):
        of_task.setdefault(name, []).append(accuracy[:, None] - accuracy)
    gaps = [np.stack(own) for own in of_task.values()]
    wins = np.mean([np.where(np.abs(gap) < 1e-12, 0.5, gap > 0).mean(0) for gap in gaps], axis=0)
    ahead = np.mean([gap.mean(0) for gap in gaps], axis=0)
    values = [
        {
            "method": one,
            "other": other,
            "value": rounded(wins[i, j]),
            "text": f"{100 * wins[i, j]:.0f}",
            "ahead": f"{ahead[i, j]:+.3f}",
            "sure": (one, other) in surely or (other, one) in surely,
        }
        for i, one in enumerate(labels)
        for j, other in enumerate(labels)
        if i != j
    ]
    columns = {
        **channel("other", "nominal"),
        "sort": labels,
        "title": None,
        "axis": {"orient": "top", "labelAngle": -90, "labelLimit": 140},
    }
    tooltip = [
        channel("method", "nominal"),
        {**channel("other", "nominal"), "title": "against"},
        {"field": "text", "title": f"wins, % of {len(gaps)} tasks"},
        {"field": "ahead", "title": "mean difference in accuracy"},
    ]
    color = {
        **channel("value"),
        "scale": {"domain": [0, 0.5, 1], "range": ["#e68f3c", "#ffffff", "#5b9dd6"], "interpolate": "rgb"},
        "legend": None,
    }
    framed = {"condition": {"test": "datum.sure", "value": "#000000"}, "value": None}
    return {
        "width": {"step": PAIR_WIDTH},
        "height": {"step": ROW_HEIGHT},
        "data": {"values": values},
        "encoding": {"x": columns, "y": {**method_rows(), "sort": labels}},
        "layer": [
            {
                "mark": {"type": "rect", "strokeWidth": 1.2},
                "encoding": {"color": color, "stroke": framed, "tooltip": tooltip},
            },
            {"mark": {"type": "text", "fontSize": 10}, "encoding": {"text": channel("text", "nominal")}},
        ],
    }


def _curves_of_shots(task: TaskBoard, looks: Looks) -> dict:
    lines = [(row, row.curves["accuracy"]) for row in task.rows if row.curves]
    return lines_spec(*line_values(lines), looks, "shots: answers seen of each new person", "accuracy")


def _best_of_n(task: TaskBoard, looks: Looks) -> dict:
    lines = [(row, row.best_of[task.shots].gain) for row in task.rows if row.best_of]
    return lines_spec(*line_values(lines), looks, "n: candidates to choose from", "normalised gain")


def _win_rates(task: TaskBoard, looks: Looks) -> dict:
    rows = [row for row in task.rows if row.best_of]
    n = largest_candidate_count(rows)
    lines = [(row, {shots: row.best_of[shots].win_random[n] for shots in task.task.shots}) for row in rows]
    return lines_spec(
        *line_values(lines), looks, "shots: answers seen of each new person", "win rate over a random candidate"
    )


def _ranks(task: TaskBoard, looks: Looks) -> dict:
    values = [
        {
            "method": row.label,
            "value": rank,
            "low": best,
            "high": worst,
            "text": f"{rank} ({best} to {worst})",
        }
        for row in task.rows
        if row.rank
        for rank, best, worst in [row.rank]
    ]
    spec = forest_spec(values, looks, f"rank at {task.shots} shots", middle=1, domain=[1, max(2, len(values))])
    spec["layer"] = spec["layer"][1:]
    return spec


def _gains_of_people(task: TaskBoard, looks: Looks, named: bool) -> dict:
    """Return a row per method: a tick for each person's gain, and a mark for the gain of the board.

    named: whether ticks say whose they are.
    """
    people: Values = []
    means: Values = []
    for row in task.rows:
        if row.worse is None or row.users is None or row.gain is None:
            continue
        means.append({"method": row.label, "value": rounded(row.gain.value)})
        shown = row.users.sort("gain")
        for person, gain in shown.select("person", "gain").gather_every(-(-len(shown) // MAX_PEOPLE_TICKS)).iter_rows():
            people.append({"method": row.label, "value": rounded(gain)} | ({"person": person} if named else {}))
    title = f"gain in accuracy over {REFERENCE_METHOD}"
    x = {"field": "value", "type": "quantitative", "title": title}
    color = color_channel(means, looks, legend=False)
    who = [{"field": "person"}] if named else []
    tooltip = [channel("method", "nominal"), *who, {"field": "value", "title": title, "format": "+.3f"}]
    return {
        **whole_width({"step": ROW_HEIGHT}),
        "data": {"values": people},
        "encoding": {"y": method_rows()},
        "layer": [
            {"mark": {"type": "rule", "color": "#000000"}, "encoding": {"x": {"datum": 0, "type": "quantitative"}, "y": None}},
            {"mark": {"type": "tick", "thickness": 1.5, "opacity": 0.45, "size": 14}, "encoding": {"x": x, **color, "tooltip": tooltip}},
            {"data": {"values": means}, "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1, "stroke": "#ffffff"}, "encoding": {"x": x, **point_channels(means, looks, legend=False)}},
        ],
    }  # fmt: skip


def _written_texts(task: TaskBoard, looks: Looks) -> dict:
    """Return policies by KL divergence and normalised gain, and their own best of n beside them."""
    values: Values = []
    best: Values = []
    grey = [row.label for row in task.rows if row.privileged]
    for row in task.rows:
        method = {"method": row.label}
        found = [(shots, w.scores) for shots, w in row.written.items() if "normalised" in w.scores]
        for shots, scores in found:
            kl, gain = values_of_point(scores["kl"]), values_of_point(scores["normalised"])
            filled = shots == found[-1][0]
            values.append(
                {**method, **gain, "shots": shots, "kl": kl["value"], "kl_low": kl["low"], "kl_high": kl["high"], "filled": filled}
            )  # fmt: skip
        for n, point in row.written[found[-1][0]].best_of.items() if found else ():
            best.append({**method, "n": n, "kl": float(np.log(n) - (n - 1) / n), "value": rounded(point.value)})
    scale = look_scale(values, looks, "color")
    scale = {"domain": scale["domain"] + grey, "range": scale["range"] + [GREY] * len(grey)}
    color = {"color": {**channel("method", "nominal"), "scale": scale, "title": None}}
    # KL of the best of n is of order 1, that of policies far larger
    x = {
        "type": "quantitative",
        "scale": {"type": "symlog", "constant": 1},
        "title": "KL from the reference model, nats per response",
    }
    y = {"type": "quantitative", "title": "normalised gain"}
    tooltip = [channel(name, "nominal") for name in ("method", "shots", "kl")] + [{"field": "text", "title": "gain"}]
    hollow = {"fillOpacity": {"condition": {"test": "datum.filled", "value": 1}, "value": 0}}
    return {
        **whole_width(300),
        "data": {"values": values},
        "layer": [
            {"data": {"values": best}, "mark": {"type": "line", "strokeDash": [2, 3], "point": {"size": 14}}, "encoding": {"x": {**x, "field": "kl"}, "y": {**y, "field": "value"}, **color}},
            {"mark": "rule", "encoding": {"x": {**x, "field": "kl"}, "y": {**y, "field": "low"}, "y2": {"field": "high"}, **color}},
            {"mark": "rule", "encoding": {"x": {**x, "field": "kl_low"}, "x2": {"field": "kl_high"}, "y": {**y, "field": "value"}, **color}},
            {"mark": {"type": "line", "strokeWidth": 1}, "encoding": {"x": {**x, "field": "kl"}, "y": {**y, "field": "value"}, **color}},
            {"mark": {"type": "circle", "size": 80, "opacity": 1, "strokeWidth": 2}, "encoding": {"x": {**x, "field": "kl"}, "y": {**y, "field": "value"}, **color, "stroke": color["color"], **hollow, "tooltip": tooltip}},
        ],
    }  # fmt: skip

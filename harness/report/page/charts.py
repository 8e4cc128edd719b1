"""The figures of a board as Vega-Lite specifications, which the page draws when they come into view."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from harness.board.board import REFERENCE_METHOD, Across, Board, Point, Row, TaskBoard
from harness.fields import field_values
from harness.report.page.looks import Look
from harness.report.words import format_interval, format_number, largest_candidate_count, shorten_label

Looks = dict[str, Look]  # of every ranked method, by its label
Fields = tuple[str, ...]  # one field of a task, or a pair of fields
Values = list[dict[str, Any]]

GREY = "#757575"  # lines of privileged methods; it has a contrast of 4.6 to 1 on white
NAMES_APART = 0.055  # of the height of a figure: names of lines that are closer would overlap
PROFILE_STEPS = np.round(
    np.arange(0, 0.1001, 0.005), 3
)  # in accuracy; a method that is .1 behind is out of the question
MAX_PEOPLE_TICKS = (
    400  # of a method in a figure of people: more are drawn as every second, third ... of the sorted gains
)
# What a method costs, by the name of the fact: title of the axis, factor, and the smallest value that a log scale shows.
COSTS = {
    "fit_seconds": ("seconds to fit", 1.0, 1e-3),
    "adapt_seconds_per_user": ("microseconds to adapt to one person", 1e6, 0.1),
    "bytes_per_user": ("bytes kept per person", 1.0, 1.0),
}


@dataclass(frozen=True)
class Chart:
    """A figure: what it shows, and its Vega-Lite specification with data."""

    caption: str
    spec: dict[str, Any]


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
    return [Chart(caption, _with_description(draw(task, looks), caption)) for caption, needed, draw in found if needed]


def across_charts(board: Board, looks: Looks) -> list[Chart]:
    """Return the figures across tasks: wins, gains by family, the performance profile, and quality against cost."""
    across = board.across
    assert across is not None
    wins = [{"method": shorten_label(row.label), **_limits_of(row.wins)} for row in across.rows]
    drawn: list[tuple[str, dict]] = [
        (
            "Wins: how often a method has a higher accuracy than another one, on a task drawn at random, with 95 % limits over tasks.",
            _forest(wins, looks, "wins", middle=0.5, domain=[0, 1]),
        ),
        *_performance_profile(board, across, looks),
        (
            "Interquartile mean of the gain over the reference in each family of tasks, with 95 % limits over people and seeds.",
            _family_gains(across, looks),
        ),
    ]
    return [Chart(caption, _with_description(spec, caption)) for caption, spec in drawn]


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
                own.append({"task": label, "method": shorten_label(row.label), **_limits_of(accuracy), **costs})
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
        **_whole_width(320),
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
            {"mark": {"type": "rule", "opacity": 0.5}, "encoding": {"y": _channel("low"), "y2": {"field": "high"}, **_colors(values, looks)}},
            {
                "mark": {"type": "point", "filled": True, "size": 90, "opacity": 1},
                "encoding": {**_colors(values, looks), **_shapes(values, looks), "tooltip": [_channel("method", "nominal"), {"field": "text", "title": "accuracy"}, {"field": "cost", "format": ".3~g"}]},
            },
        ],
    }  # fmt: skip
    return Chart(caption, _with_description(spec, caption))


def frontier(cost: Sequence[float], score: Sequence[float]) -> list[int]:
    """Return the places of the pairs that no other pair beats: none is as cheap and better, or cheaper and as good."""
    best, found = -np.inf, []
    for place in np.lexsort([-np.asarray(score), np.asarray(cost)]):
        if score[place] > best:
            best = score[place]
            found.append(int(place))
    return found


def _with_description(spec: dict, caption: str) -> dict:
    """Add the caption as the text that screen readers read in place of a figure."""
    return {"description": caption, **spec}


def _whole_width(height: int | dict) -> dict:
    return {"width": "container", "height": height, "autosize": {"type": "fit-x", "contains": "padding"}}


def _channel(field: str, kind: str = "quantitative") -> dict:
    return {"field": field, "type": kind}


def _limits_of(point: Point) -> dict:
    """Return the value of a point, its limits (the value itself where there are none), and its text."""
    low, high = (point.value if x is None else x for x in (point.low, point.high))
    return {
        "value": _rounded(point.value),
        "low": _rounded(low),
        "high": _rounded(high),
        "text": format_interval(point),
    }


def _rounded(value: float) -> float:
    return round(float(value), 4)  # a tenth of a pixel


def _methods_in(values: Values) -> list[str]:
    return list(dict.fromkeys(v["method"] for v in values))


def _look_scale(values: Values, looks: Looks, part: str) -> dict:
    short = {shorten_label(label): look for label, look in looks.items()}
    labels = [label for label in _methods_in(values) if label in short]
    return {"domain": labels, "range": [getattr(short[label], part) for label in labels]}


def _colors(values: Values, looks: Looks, legend: dict | None = {}) -> dict:  # noqa: B006 – read only
    scale = _look_scale(values, looks, "color")
    return {"color": {**_channel("method", "nominal"), "scale": scale, "legend": legend, "title": None}}


def _shapes(values: Values, looks: Looks, legend: dict | None = {}) -> dict:  # noqa: B006 – read only
    scale = _look_scale(values, looks, "shape")
    return {"shape": {**_channel("method", "nominal"), "scale": scale, "legend": legend, "title": None}}


def _dashes(values: Values, looks: Looks) -> dict:
    scale = _look_scale(values, looks, "dash")
    return {"strokeDash": {**_channel("method", "nominal"), "scale": scale, "legend": None}}


def _forest(
    values: Values, looks: Looks, title: str, middle: float, domain: list[float] | None = None, size: int = 20
) -> dict:
    """Return a row per method, in the order of the values: a mark with its limits, and a line at `middle`."""
    x = {"type": "quantitative", "title": title, "scale": {"domain": domain} if domain else {"zero": True}}
    tooltip = [_channel("method", "nominal"), {"field": "text", "title": title}]
    no_legend = {**_colors(values, looks, None), **_shapes(values, looks, None)}
    return {
        **_whole_width({"step": size}),
        "data": {"values": values},
        "encoding": {"y": {**_channel("method", "nominal"), "sort": None, "title": None, "axis": {"labelLimit": 220}}},
        "layer": [
            {"mark": {"type": "rule", "color": "#000000"}, "encoding": {"x": {"datum": middle, "type": "quantitative"}, "y": None}},
            {"mark": {"type": "rule", "strokeWidth": 4, "opacity": 0.5, "strokeCap": "round"}, "encoding": {"x": {**x, "field": "low"}, "x2": {"field": "high"}, **_colors(values, looks, None)}},
            {"mark": {"type": "point", "filled": True, "size": 90, "opacity": 1}, "encoding": {"x": {**x, "field": "value"}, **no_legend, "tooltip": tooltip}},
        ],
    }  # fmt: skip


def _family_gains(across: Across, looks: Looks) -> dict:
    """Return a panel per family of tasks, each with its own unit; the page names methods in the first panel of a row."""
    panels = []
    for family, count in across.families.items():
        values = [{"method": shorten_label(row.label), **_limits_of(row.families[family])} for row in across.rows]
        unit = "gain in accuracy" if across.units[family] == "accuracy" else across.units[family]
        panel = _forest(values, looks, unit, middle=0.0)
        panels.append({**panel, "width": 210, "title": f"{family} ({count})"})
    return {"concat": panels, "columns": 4}


def _performance_profile(board: Board, across: Across, looks: Looks) -> list[tuple[str, dict]]:
    """Return the share of settings on which each method is at most so far behind the best one; [] without settings."""
    labels = [row.label for row in across.rows]
    scores = []
    for task in board.tasks:
        own = {row.label: row.curves["accuracy"][task.shots].value for row in task.rows if row.rank}
        if all(label in own for label in labels):
            scores.append([own[label] for label in labels])
    if not scores:
        return []
    behind = np.max(scores, axis=1, keepdims=True) - scores
    share = (behind[..., None] <= PROFILE_STEPS + 1e-12).mean(0)
    values = [
        {"method": shorten_label(label), "x": float(x), "value": _rounded(y), "text": f"{y:.0%}"}
        for label, own in zip(labels, share, strict=True)
        for x, y in zip(PROFILE_STEPS, own, strict=True)
    ]
    spec = _lines(
        values, [], looks, "accuracy behind the best method", f"share of {len(scores)} settings", ordinal=False
    )
    return [
        ("Performance profile: on which share of the settings a method is at most so far behind the best one.", spec)
    ]


def _lines(values: Values, grey: Values, looks: Looks, x: str, y: str, ordinal: bool = True) -> dict:
    """Return lines with bands, a line per method; `grey` are points of lines of privileged methods, named at their ends."""
    ticks = list(dict.fromkeys(v["x"] for v in [*values, *grey]))
    across = {**_channel("x", "ordinal" if ordinal else "quantitative"), "title": x, "axis": {"labelAngle": 0}}
    if ordinal:
        across |= {"sort": ticks, "scale": {"type": "point", "padding": 0.3}}
    up = {"type": "quantitative", "scale": {"zero": False}, "title": y}
    picked = {"name": "picked", "select": {"type": "point", "fields": ["method"]}, "bind": "legend"}

    def if_picked(value: float) -> dict:
        return {"opacity": {"condition": {"param": "picked", "value": value}, "value": value / 8}}

    tooltip = [_channel("method", "nominal"), {"field": "x", "title": x}, {"field": "text", "title": y}]
    layers: list[dict[str, Any]] = [
        {"mark": "line", "encoding": {"y": {**up, "field": "value"}, **_colors(values, looks), **_dashes(values, looks), **if_picked(1)}},
        {"params": [picked], "mark": {"type": "point", "filled": True, "size": 60}, "encoding": {"y": {**up, "field": "value"}, **_colors(values, looks), **_shapes(values, looks), "tooltip": tooltip, **if_picked(1)}},
    ]  # fmt: skip
    if values and "low" in values[0]:
        band = {"y": {**up, "field": "low"}, "y2": {"field": "high"}, **_colors(values, looks), **if_picked(0.12)}
        layers.insert(0, {"mark": "area", "encoding": band})
    if grey:
        of_grey: dict[str, Any] = {"data": {"values": grey}}
        names: dict[str, Any] = {"data": {"values": _ends_of_lines(grey, values)}}
        layers += [
            {**of_grey, "mark": {"type": "line", "strokeWidth": 1, "color": GREY}, "encoding": {"y": {**up, "field": "value"}, "detail": _channel("method", "nominal")}},
            {**of_grey, "mark": {"type": "circle", "size": 12, "color": GREY}, "encoding": {"y": {**up, "field": "value"}, "tooltip": tooltip}},
            {**names, "mark": {"type": "text", "align": "left", "dx": 6, "color": GREY}, "encoding": {"y": {**up, "field": "place"}, "text": _channel("method", "nominal")}},
        ]  # fmt: skip
    return {**_whole_width(300), "data": {"values": values}, "encoding": {"x": across}, "layer": layers}


def _ends_of_lines(grey: Values, values: Values) -> Values:
    """Return the last point of each grey line, with a place for its name that overlaps no other name.

    Neighbouring names that are equal before their first comma are written once, without the part after it.
    """
    every = [v["value"] for v in [*grey, *values]]
    apart = NAMES_APART * (max(every) - min(every))
    ends: Values = []
    for last in sorted({v["method"]: v for v in grey}.values(), key=lambda v: v["value"]):
        name = last["method"]
        if ends and last["value"] - ends[-1]["until"] < apart and ends[-1]["stem"] == name.partition(",")[0]:
            ends[-1] |= {"method": ends[-1]["stem"], "until": last["value"]}
        else:
            place = max(last["value"], ends[-1]["place"] + apart) if ends else last["value"]
            ends.append({**last, "place": place, "stem": name.partition(",")[0], "until": last["value"]})
    return ends


def _line_values(lines: list[tuple[Row, dict[Any, Point]]]) -> tuple[Values, Values]:
    """Return the points of ranked and of privileged rows."""
    ranked: Values = []
    grey: Values = []
    for row, points in lines:
        own = grey if row.privileged else ranked
        own += [{"method": shorten_label(row.label), "x": str(x), **_limits_of(point)} for x, point in points.items()]
    return ranked, grey


def _curves_of_shots(task: TaskBoard, looks: Looks) -> dict:
    lines = [(row, row.curves["accuracy"]) for row in task.rows if row.curves]
    return _lines(*_line_values(lines), looks, "shots: answers seen of each new person", "accuracy")


def _best_of_n(task: TaskBoard, looks: Looks) -> dict:
    lines = [(row, row.best_of[task.shots].gain) for row in task.rows if row.best_of]
    return _lines(*_line_values(lines), looks, "n: candidates to choose from", "normalised gain")


def _win_rates(task: TaskBoard, looks: Looks) -> dict:
    rows = [row for row in task.rows if row.best_of]
    n = largest_candidate_count(rows)
    lines = [(row, {shots: row.best_of[shots].win_random[n] for shots in task.task.shots}) for row in rows]
    return _lines(
        *_line_values(lines), looks, "shots: answers seen of each new person", "win rate over a random candidate"
    )


def _ranks(task: TaskBoard, looks: Looks) -> dict:
    values = [
        {
            "method": shorten_label(row.label),
            "value": rank,
            "low": best,
            "high": worst,
            "text": f"{rank} ({best} to {worst})",
        }
        for row in task.rows
        if row.rank
        for rank, best, worst in [row.rank]
    ]
    spec = _forest(values, looks, f"rank at {task.shots} shots", middle=1, domain=[1, max(2, len(values))])
    spec["layer"] = spec["layer"][1:]
    return spec


def _gains_of_people(task: TaskBoard, looks: Looks, named: bool) -> dict:
    values: Values = []
    for row in task.rows:
        if row.worse is None or row.users is None:
            continue
        people = row.users.sort("gain")
        step = -(-len(people) // MAX_PEOPLE_TICKS)
        for person, gain in people.select("person", "gain").gather_every(step).iter_rows():
            values.append(
                {"method": shorten_label(row.label), "value": _rounded(gain)} | ({"person": person} if named else {})
            )
    title = f"gain in accuracy over {REFERENCE_METHOD}"
    x = {"field": "value", "type": "quantitative", "title": title}
    color = _colors(values, looks, None)
    who = [{"field": "person"}] if named else []
    tooltip = [_channel("method", "nominal"), *who, {"field": "value", "title": title, "format": "+.3f"}]
    return {
        **_whole_width({"step": 20}),
        "data": {"values": values},
        "encoding": {"y": {**_channel("method", "nominal"), "sort": None, "title": None, "axis": {"labelLimit": 220}}},
        "layer": [
            {"mark": {"type": "rule", "color": "#000000"}, "encoding": {"x": {"datum": 0, "type": "quantitative"}, "y": None}},
            {"mark": {"type": "tick", "thickness": 1.5, "opacity": 0.45, "size": 14}, "encoding": {"x": x, **color, "tooltip": tooltip}},
            {"mark": {"type": "point", "filled": True, "size": 70, "opacity": 1, "stroke": "#ffffff"}, "encoding": {"x": {**x, "aggregate": "mean"}, **color, **_shapes(values, looks, None)}},
        ],
    }  # fmt: skip


def _written_texts(task: TaskBoard, looks: Looks) -> dict:
    """Return policies by KL divergence and normalised gain, and their own best of n beside them."""
    values: Values = []
    best: Values = []
    grey = [shorten_label(row.label) for row in task.rows if row.privileged]
    for row in task.rows:
        method = {"method": shorten_label(row.label)}
        found = [(shots, w.scores) for shots, w in row.written.items() if "normalised" in w.scores]
        for shots, scores in found:
            kl, gain = _limits_of(scores["kl"]), _limits_of(scores["normalised"])
            filled = shots == found[-1][0]
            values.append(
                {**method, **gain, "shots": shots, "kl": kl["value"], "kl_low": kl["low"], "kl_high": kl["high"], "filled": filled}
            )  # fmt: skip
        for n, point in row.written[found[-1][0]].best_of.items() if found else ():
            best.append({**method, "n": n, "kl": float(np.log(n) - (n - 1) / n), "value": _rounded(point.value)})
    scale = _look_scale(values, looks, "color")
    scale = {"domain": scale["domain"] + grey, "range": scale["range"] + [GREY] * len(grey)}
    color = {"color": {**_channel("method", "nominal"), "scale": scale, "title": None}}
    # KL of the best of n is of order 1, that of policies far larger
    x = {
        "type": "quantitative",
        "scale": {"type": "symlog", "constant": 1},
        "title": "KL from the reference model, nats per response",
    }
    y = {"type": "quantitative", "title": "normalised gain"}
    tooltip = [_channel(name, "nominal") for name in ("method", "shots", "kl")] + [{"field": "text", "title": "gain"}]
    hollow = {"fillOpacity": {"condition": {"test": "datum.filled", "value": 1}, "value": 0}}
    return {
        **_whole_width(300),
        "data": {"values": values},
        "layer": [
            {"data": {"values": best}, "mark": {"type": "line", "strokeDash": [2, 3], "point": {"size": 14}}, "encoding": {"x": {**x, "field": "kl"}, "y": {**y, "field": "value"}, **color}},
            {"mark": "rule", "encoding": {"x": {**x, "field": "kl"}, "y": {**y, "field": "low"}, "y2": {"field": "high"}, **color}},
            {"mark": "rule", "encoding": {"x": {**x, "field": "kl_low"}, "x2": {"field": "kl_high"}, "y": {**y, "field": "value"}, **color}},
            {"mark": {"type": "line", "strokeWidth": 1}, "encoding": {"x": {**x, "field": "kl"}, "y": {**y, "field": "value"}, **color}},
            {"mark": {"type": "circle", "size": 80, "opacity": 1, "strokeWidth": 2}, "encoding": {"x": {**x, "field": "kl"}, "y": {**y, "field": "value"}, **color, "stroke": color["color"], **hollow, "tooltip": tooltip}},
        ],
    }  # fmt: skip


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
            charts = [Chart(caption, _with_description(_sweep_curves(tasks, fields[0], looks), caption))]
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
    return _lines(*_line_values(lines), looks, field.replace("_", " "), "accuracy")


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
            {"method": shorten_label(label), "x": ticks[0][x], "y": ticks[1][y], "value": _rounded(value), "text": format_number(value, signed)}
            for label in methods
            if label in every
            for (y, x), value in np.ndenumerate(every[label])
            if np.isfinite(value)
        ]  # fmt: skip
        if values:
            caption = f"{what}, on one colour scale for all methods.{means}"
            found.append(Chart(caption, _with_description(_heat_map(values, fields, ticks), caption)))
    return found


def _heat_map(values: Values, fields: Fields, ticks: list[list[str]]) -> dict:
    """Return a panel per method on one colour scale of rising lightness, with the value in every cell."""
    middle = (min(v["value"] for v in values) + max(v["value"] for v in values)) / 2
    x, y = ({**_channel(name, "ordinal"), "title": f.replace("_", " ")} for name, f in zip("xy", fields, strict=True))
    size = 10 if len(ticks[0]) <= 5 else 8 if len(ticks[0]) <= 8 else 6
    return {
        "data": {"values": values},
        "columns": 4,
        "facet": {**_channel("method", "nominal"), "sort": _methods_in(values), "title": None},
        "spec": {
            "width": 230,
            "height": {"step": 30},
            "encoding": {"x": {**x, "sort": ticks[0], "axis": {"labelAngle": 0}}, "y": {**y, "sort": ticks[1][::-1]}},
            "layer": [
                {"mark": "rect", "encoding": {"color": {**_channel("value"), "title": None, "scale": {"scheme": "cividis"}}, "tooltip": [_channel(name, "nominal") for name in ("method", "x", "y", "text")]}},
                {"mark": {"type": "text", "fontSize": size}, "encoding": {"text": _channel("text", "nominal"), "color": {"condition": {"test": f"datum.value < {middle}", "value": "#ffffff"}, "value": "#000000"}}},
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

"""The parts of figures: channels with the methods' looks, forests of intervals, and lines with bands, in Vega-Lite.

The field `method` of every value holds a method's whole label, since Vega-Lite takes values with equal labels for one method;
labels that are too long for their place are cut when they are drawn.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from harness.board.board import Point, Row
from harness.report.page.looks import Look
from harness.report.words import format_interval

Looks = dict[str, Look]  # of every ranked method, by its label
Values = list[dict[str, Any]]

GREY = "#757575"  # lines of privileged methods; it has a contrast of 4.6 to 1 on white
NAMES_APART = 0.055  # of the height of a figure: names of lines that are closer would overlap
ROW_HEIGHT = 20  # pixels of a method in a forest


@dataclass(frozen=True)
class Chart:
    """A figure: what it shows, and its Vega-Lite specification with data."""

    caption: str
    spec: dict[str, Any]

    @property
    def described_spec(self) -> dict[str, Any]:
        """The specification with the caption as the text that screen readers read in place of the figure."""
        return {"description": self.caption, **self.spec}


def whole_width(height: int | dict) -> dict:
    return {"width": "container", "height": height, "autosize": {"type": "fit-x", "contains": "padding"}}


def channel(field: str, kind: str = "quantitative") -> dict:
    return {"field": field, "type": kind}


def values_of_point(point: Point) -> dict:
    """Return the value of a point, its limits (the value itself where there are none), and its text."""
    low, high = (point.value if x is None else x for x in (point.low, point.high))
    return {
        "value": rounded(point.value),
        "low": rounded(low),
        "high": rounded(high),
        "text": format_interval(point),
    }


def rounded(value: float) -> float:
    return round(float(value), 4)  # a tenth of a pixel


def methods_in(values: Values) -> list[str]:
    return list(dict.fromkeys(v["method"] for v in values))


def look_scale(values: Values, looks: Looks, part: str) -> dict:
    labels = [label for label in methods_in(values) if label in looks]
    return {"domain": labels, "range": [getattr(looks[label], part) for label in labels]}


def color_channel(values: Values, looks: Looks, legend: bool = True) -> dict:
    scale = look_scale(values, looks, "color")
    return {"color": {**channel("method", "nominal"), "scale": scale, "legend": {} if legend else None, "title": None}}


def shape_channel(values: Values, looks: Looks, legend: bool = True) -> dict:
    scale = look_scale(values, looks, "shape")
    return {"shape": {**channel("method", "nominal"), "scale": scale, "legend": {} if legend else None, "title": None}}


def point_channels(values: Values, looks: Looks, legend: bool = True) -> dict:
    """Return colour and shape of marks, which are hollow for variants."""
    color = color_channel(values, looks, legend)
    channels = {**color, **shape_channel(values, looks, legend)}
    if hollow := [label for label in methods_in(values) if label in looks and looks[label].hollow]:
        channels["fillOpacity"] = {"condition": {"test": {"field": "method", "oneOf": hollow}, "value": 0}, "value": 1}
        channels["stroke"] = {**color["color"], "legend": None}
    return channels


def dash_channel(values: Values, looks: Looks) -> dict:
    scale = look_scale(values, looks, "dash")
    return {"strokeDash": {**channel("method", "nominal"), "scale": scale, "legend": None}}


def method_rows(field: str = "method") -> dict:
    """Return the channel that gives each method a row, in the order of the values."""
    return {**channel(field, "nominal"), "sort": None, "title": None}


def forest_spec(values: Values, looks: Looks, title: str, middle: float, domain: list[float] | None = None) -> dict:
    """Return a row per method, in the order of the values: a mark with its limits, and a line at `middle`.

    Values with a field `row` stand in the row of that method, those of variants below it.
    """
    x = {"type": "quantitative", "title": title, "scale": {"domain": domain} if domain else {"zero": True}}
    tooltip = [channel("method", "nominal"), {"field": "text", "title": title}]
    no_legend = point_channels(values, looks, legend=False)
    rows: dict[str, Any] = {"y": method_rows()}
    if shared := {v["row"] for v in values if v.get("row", v["method"]) != v["method"]}:
        places: Counter[str] = Counter()
        for v in values:  # the method as it is comes before its variants
            places[v["row"]] += 1
            v["place"] = places[v["row"]]
        rows = {"y": method_rows("row"), "yOffset": channel("place", "ordinal")}
    step = {"step": ROW_HEIGHT} | ({"for": "position"} if shared else {})
    return {
        **whole_width(step),
        "data": {"values": values},
        "encoding": rows,
        "layer": [
            {"mark": {"type": "rule", "color": "#000000"}, "encoding": {"x": {"datum": middle, "type": "quantitative"}, "y": None, **({"yOffset": None} if shared else {})}},
            {"mark": {"type": "rule", "strokeWidth": 4, "opacity": 0.5, "strokeCap": "round"}, "encoding": {"x": {**x, "field": "low"}, "x2": {"field": "high"}, **color_channel(values, looks, legend=False)}},
            {"mark": {"type": "point", "filled": True, "size": 90, "opacity": 1}, "encoding": {"x": {**x, "field": "value"}, **no_legend, "tooltip": tooltip}},
        ],
    }  # fmt: skip


def lines_spec(values: Values, grey: Values, looks: Looks, x: str, y: str, ordinal: bool = True) -> dict:
    """Return lines with bands, a line per method; `grey` are points of lines of privileged methods, named at their ends."""
    ticks = list(dict.fromkeys(v["x"] for v in [*values, *grey]))
    across = {**channel("x", "ordinal" if ordinal else "quantitative"), "title": x, "axis": {"labelAngle": 0}}
    if ordinal:
        across |= {"sort": ticks, "scale": {"type": "point", "padding": 0.3}}
    up = {"type": "quantitative", "scale": {"zero": False}, "title": y}
    picked = {"name": "picked", "select": {"type": "point", "fields": ["method"]}, "bind": "legend"}

    def if_picked(value: float) -> dict:
        return {"opacity": {"condition": {"param": "picked", "value": value}, "value": value / 8}}

    tooltip = [channel("method", "nominal"), {"field": "x", "title": x}, {"field": "text", "title": y}]
    layers: list[dict[str, Any]] = [
        {"mark": "line", "encoding": {"y": {**up, "field": "value"}, **color_channel(values, looks), **dash_channel(values, looks), **if_picked(1)}},
        {"params": [picked], "mark": {"type": "point", "filled": True, "size": 60}, "encoding": {"y": {**up, "field": "value"}, **point_channels(values, looks), "tooltip": tooltip, **if_picked(1)}},
    ]  # fmt: skip
    if values and "low" in values[0]:
        band = {"y": {**up, "field": "low"}, "y2": {"field": "high"}, **color_channel(values, looks), **if_picked(0.12)}
        layers.insert(0, {"mark": "area", "encoding": band})
    if grey:
        of_grey: dict[str, Any] = {"data": {"values": grey}}
        names: dict[str, Any] = {"data": {"values": _ends_of_lines(grey, values)}}
        layers += [
            {**of_grey, "mark": {"type": "line", "strokeWidth": 1, "color": GREY}, "encoding": {"y": {**up, "field": "value"}, "detail": channel("method", "nominal")}},
            {**of_grey, "mark": {"type": "circle", "size": 12, "color": GREY}, "encoding": {"y": {**up, "field": "value"}, "tooltip": tooltip}},
            {**names, "mark": {"type": "text", "align": "left", "dx": 6, "limit": 170, "color": GREY}, "encoding": {"y": {**up, "field": "place"}, "text": channel("method", "nominal")}},
        ]  # fmt: skip
    return {**whole_width(300), "data": {"values": values}, "encoding": {"x": across}, "layer": layers}


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


def line_values(lines: list[tuple[Row, dict[Any, Point]]]) -> tuple[Values, Values]:
    """Return the points of ranked and of privileged rows."""
    ranked: Values = []
    grey: Values = []
    for row, points in lines:
        own = grey if row.privileged else ranked
        own += [{"method": row.label, "x": str(x), **values_of_point(point)} for x, point in points.items()]
    return ranked, grey

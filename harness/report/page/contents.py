"""What a board's page shows beside its tables: results to explore, people, methods, the overview, and files to download."""

from __future__ import annotations

import base64
import io
import json
import sys
from dataclasses import dataclass
from statistics import median
from typing import Any

import polars as pl

from harness.board.board import REFERENCE_METHOD, Board, Point, Row, TaskBoard, VariantChange
from harness.fields import field_values
from harness.method import Method, needs_of_method
from harness.report.board_frames import curves_frame, scores_frame
from harness.report.page.cite import bibtex_of_board, link_of_paper
from harness.report.page.scripts import CONFIG
from harness.report.words import format_interval, format_number, format_p_value, format_rank, format_worse

MAX_CELLS_OF_PEOPLE = 300_000  # people times methods of all tasks; more would make the page larger than 2 MB
SHADES = 5  # of a gain in the overview, on each side of 0


@dataclass(frozen=True)
class GainCell:
    """A cell of the overview: a method's gain on one task setting."""

    text: str
    value: float  # the number to sort by
    shade: str  # class of the cell's colour: lost5 ... lost1, gained1 ... gained5, or ""
    sure: bool  # the limits exclude 0
    hint: str  # the whole sentence, shown on hover


def overview(board: Board) -> tuple[list[str], list[tuple[TaskBoard, list[GainCell | None]]]]:
    """Return the ranked methods' labels, and for every task setting each method's gain; None where there is none.

    Methods are in the order of their wins, or of their mean gain where a board has no table across tasks.
    """
    found = {(i, r.label): r for i, t in enumerate(board.tasks) for r in t.rows if r.gain and r.worse is not None}
    gains: dict[str, list[float]] = {}
    for (_, label), row in found.items():
        gains.setdefault(label, []).append(row.gain.value)  # type: ignore[union-attr]
    across = board.across.rows if board.across else ()
    order = [row.label for method in across for row in (method, *method.variants)]
    order = [label for label in order if label in gains]
    order += sorted(gains.keys() - set(order), key=lambda label: -sum(gains[label]) / len(gains[label]))
    largest = max((abs(g) for own in gains.values() for g in own), default=1.0) or 1.0
    cells = [
        (task, [_gain_cell(task, found.get((i, label)), largest) for label in order])
        for i, task in enumerate(board.tasks)
    ]
    return order, cells


def variant_cells(board: Board) -> list[tuple[VariantChange, list[GainCell | None]]]:
    """Return what each variant changes on every task setting; None where it or the method as it is has no rank."""
    largest = max((abs(p.value) for change in board.variants for p in change.settings.values()), default=1.0) or 1.0
    return [(change, [_change_cell(task, change, largest) for task in board.tasks]) for change in board.variants]


def _change_cell(task: TaskBoard, change: VariantChange, largest: float) -> GainCell | None:
    if task.label not in change.settings:
        return None
    told = f"{change.label} on {task.label}, {task.shots} shots"
    return _shaded_cell(told, change.settings[task.label], f"minus {change.base}", largest)


def _gain_cell(task: TaskBoard, row: Row | None, largest: float) -> GainCell | None:
    if row is None or row.gain is None:
        return None
    p = f", p {format_p_value(row.p)}" if row.p is not None else ""
    told = f"{row.label} on {task.label}, {task.shots} shots"
    return _shaded_cell(told, row.gain, f"over {REFERENCE_METHOD}{p}", largest)


def _shaded_cell(of: str, gain: Point, over: str, largest: float) -> GainCell:
    """Return a cell. of, over: what the gain is of and over, in words.  largest: the gain that has the darkest shade."""
    sure = gain.low is not None and gain.high is not None and (gain.low > 0 or gain.high < 0)
    # the square root tells small gains apart, which most are
    level = min(SHADES, round(SHADES * (abs(gain.value) / largest) ** 0.5))
    shade = f"{'gained' if gain.value > 0 else 'lost'}{level}" if level else ""
    hint = f"{of}: {format_interval(gain, True)} in accuracy {over}; higher is better"
    return GainCell(format_number(gain.value, signed=True), gain.value, shade, sure, hint)


@dataclass(frozen=True)
class MethodCard:
    """All that a board says of one method setting."""

    label: str
    purpose: str  # the first line of its file
    facts: dict[str, str]
    link: str  # to the paper, "" where there is none
    rows: list[tuple[TaskBoard, Row]]


def method_cards(board: Board, labels: dict[Method, str]) -> list[MethodCard]:
    """Return a card for each method setting with results."""
    rows: dict[Method, list[tuple[TaskBoard, Row]]] = {}
    for task in board.tasks:
        for row in task.rows:
            rows.setdefault(row.method, []).append((task, row))
    return [_method_card(method, label, rows[method]) for method, label in labels.items() if method in rows]


def _method_card(method: Method, label: str, rows: list[tuple[TaskBoard, Row]]) -> MethodCard:
    base = method.variant_of or method
    purpose = (sys.modules[type(base).__module__].__doc__ or "").strip().splitlines() or [""]
    costs = [row.costs for _, row in rows if row.costs]
    models = sorted({str(v) for k, v in field_values(base).items() if k == "model" and v})
    facts = {
        "kind": base.family,
        "paper": base.paper,
        "version": str(type(base).version),
        "needs of a task": ", ".join(needs_of_method(base)) or "choices alone",
        "language model": ", ".join(models),
        "seconds to fit": _median_cost(costs, "fit_seconds", 1.0),
        "microseconds to adapt to one person": _median_cost(costs, "adapt_seconds_per_user", 1e6),
        "bytes kept per person": _median_cost(costs, "bytes_per_user", 1.0),
        "fields": ", ".join(f"{k} = {v}" for k, v in field_values(method).items()),
    }
    return MethodCard(label, purpose[0], {k: v for k, v in facts.items() if v}, link_of_paper(base.paper), rows)


def _median_cost(costs: list[dict[str, float]], name: str, factor: float) -> str:
    """Return the median over tasks with the smallest and the largest value."""
    values = [factor * own[name] for own in costs if name in own]
    if not values:
        return ""
    return f"{median(values):.3g}" + (f" ({min(values):.3g} to {max(values):.3g})" if len(values) > 1 else "")


def page_data(board: Board, specs: dict[str, dict], labels: list[str], with_people: bool) -> str:
    """Return as JSON what the page's script reads: charts, results, people and files.

    specs: the charts' specifications by the names of their places.  labels: a name for each task setting, as the page's headings have it.
    """
    return json.dumps(
        {
            "config": CONFIG,
            "charts": specs,
            "results": _results(board, labels),
            "people": _people(board, labels) if with_people else {},
            "reference": REFERENCE_METHOD,
            "files": download_files(board),
        },
        separators=(",", ":"),
    )


def _results(board: Board, labels: list[str]) -> dict[str, Any]:
    """Return columns, and a row per task setting, method and number of shots: each cell is [number or text, text]."""
    columns = ["task", "family", "method", "state", "shots", "rank", "accuracy", f"gain over {REFERENCE_METHOD}", "p", "swapped", "worse %",
               "AUC", "log loss", "fit s", "adapt µs/person", "bytes/person"]  # fmt: skip
    rows = []
    for label, task in zip(labels, board.tasks, strict=True):
        gains = _gains_by_shots(task)
        for row in task.rows:
            for shots in task.task.shots if row.curves else (task.shots,):
                last = shots == task.shots
                rows.append(
                    {
                        "last": last,
                        "keys": row.keys,
                        "cells": _result_cells(label, task, row, shots, gains.get((row.label, shots)), last),
                    }
                )
    return {"columns": columns, "rows": rows}


def _gains_by_shots(task: TaskBoard) -> dict[tuple[str, int], Point]:
    """Return each method's gain over the reference, by its label and the number of shots, with limits for itself alone."""
    reference = next((r.label for r in task.rows if r.method.name == REFERENCE_METHOD and r.rank), None)
    if reference is None or task.differences.is_empty():
        return {}
    rows = task.differences.filter(pl.col("b") == reference).iter_rows(named=True)
    return {(d["a"], d["shots"]): Point(d["value"], d["low"], d["high"]) for d in rows}


def _result_cells(label: str, task: TaskBoard, row: Row, shots: int, gain: Point | None, last: bool) -> list[list]:
    curves = {name: curve[shots] for name, curve in row.curves.items()}
    gain = (row.gain if row.worse is not None else None) if last else gain
    state = row.incomplete or ("privileged" if row.privileged else "ranked")
    worse = row.worse if last else None
    costs = row.costs

    def number(value: float | None, text: str) -> list:
        return [None if value is None else round(value, 6), text]

    def score(name: str) -> list:
        return number(curves[name].value, format_interval(curves[name])) if name in curves else [None, ""]

    def cost(name: str, factor: float) -> list:
        return number(factor * costs[name], f"{factor * costs[name]:.3g}") if name in costs else [None, ""]

    return [
        [label, label],
        [task.task.family, task.task.family],
        [row.label, row.label],
        [state, state],
        [shots, str(shots)],
        number(row.rank[0] if row.rank and last else None, format_rank(row) if row.rank and last else ""),
        score("accuracy"),
        number(gain.value, format_interval(gain, signed=True)) if gain else [None, ""],
        number(row.p if last else None, format_p_value(row.p) if last and row.worse is not None else ""),
        number(row.swapped if last else None, format_number(row.swapped) if last else ""),
        number(worse.naive if worse else None, format_worse(worse)),
        score("auc"),
        score("log_loss"),
        cost("fit_seconds", 1.0),
        cost("adapt_seconds_per_user", 1e6),
        cost("bytes_per_user", 1.0),
    ]


def _people(board: Board, labels: list[str]) -> dict[str, Any]:
    """Return for each task setting its people, how much they were asked, and their accuracy under every method.

    Without any where a board has too many people times methods for one page.
    """
    cells = sum(len(row.users) for task in board.tasks for row in task.rows if row.users is not None)
    if cells > MAX_CELLS_OF_PEOPLE:
        return {}
    found = {}
    for place, (label, task) in enumerate(zip(labels, board.tasks, strict=True)):
        rows = [row for row in task.rows if row.users is not None]
        if rows:
            people = rows[0].users
            assert people is not None
            found[label] = {
                "part": f"task{place}",  # the id of the task's part of the page
                "shots": task.shots,
                "people": people["person"].to_list(),
                "asked": people["asked"].to_list(),
                "accuracy": {row.label: row.users["accuracy"].round(5).to_list() for row in rows},  # type: ignore[index]
            }
    return found


def download_files(board: Board) -> dict[str, dict[str, str]]:
    """Return the files that a page offers, by name: their type and content, in base64 where they are no text."""
    scores = scores_frame(board)
    lists = [name for name, kind in scores.schema.items() if kind == pl.List]
    curves = io.BytesIO()
    limits = [pl.col(name).cast(pl.Float32) for name in ("value", "low", "high")]  # half as large, seven digits
    curves_frame(board).with_columns(limits).write_parquet(curves, compression_level=19)
    return {
        "scores.csv": {
            "type": "text/csv",
            "text": scores.with_columns(
                pl.col(name).cast(pl.List(pl.String)).list.join(" ") for name in lists
            ).write_csv(),
        },
        "curves.parquet": {
            "type": "application/vnd.apache.parquet",
            "base64": base64.b64encode(curves.getvalue()).decode(),
        },
        "table.tex": {"type": "application/x-tex", "text": latex_table(board)},
        "references.bib": {"type": "application/x-bibtex", "text": bibtex_of_board(board)},
    }


def latex_table(board: Board) -> str:
    """Return a LaTeX table (booktabs) of gains over the reference: a line per task setting, a column per method."""
    labels, lines = overview(board)
    body = [
        " & ".join([_latex_text(task.label), *(_latex_gain(cell) for cell in cells)]) + r" \\" for task, cells in lines
    ]
    heads = " & ".join(["task", *map(_latex_text, labels)]) + r" \\"
    about = f"% Gain in accuracy over {REFERENCE_METHOD} at the largest number of shots; bold: 95 % limits exclude 0. Board {board.results_digest}."
    return "\n".join(
        [about, rf"\begin{{tabular}}{{l{'r' * len(labels)}}}", r"\toprule", heads, r"\midrule", *body, r"\bottomrule", r"\end{tabular}", ""]
    )  # fmt: skip


def _latex_gain(cell: GainCell | None) -> str:
    if cell is None:
        return "--"
    return rf"$\mathbf{{{cell.text}}}$" if cell.sure else f"${cell.text}$"


def _latex_text(text: str) -> str:
    special = {c: rf"\{c}" for c in "&%$#_{}"} | {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
    }
    return "".join(special.get(c, c) for c in text)

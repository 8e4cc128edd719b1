"""The board for people: a terminal table, and one self-contained HTML file with figures."""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.board import REFERENCE, Board, Point, Row, TaskBoard
from harness.store import Store

# Told apart by shape, dash and lightness as well as by hue (Okabe and Ito's palette), so that greyscale is enough.
LOOKS = [
    ("#0072b2", "o", "-"),
    ("#d55e00", "s", "--"),
    ("#009e73", "^", "-."),
    ("#000000", "D", ":"),
    ("#cc79a7", "v", (0, (5, 1))),
    ("#56b4e9", "P", (0, (1, 1))),
    ("#e69f00", "X", (0, (3, 1, 1, 1))),
    ("#7f7f7f", "*", (0, (8, 2))),
]
WORDS = {
    "rank": "as scored, and in brackets the ranks it may have (95 %, all methods at once)",
    "accuracy": "share of observed labels predicted, mean over people, 95 % interval over people and seeds; "
    "a tie scores one half",
    "gain": f"paired gain in accuracy over {REFERENCE}, 95 % interval; p adjusted over all methods (Holm)",
    "swapped": "accuracy when a user is answered with another user's state: "
    "a gain that survives the swap is not personal",
    "worse": f"share of people with lower accuracy than under {REFERENCE}",
    "AUC": "over both orders of each pair, mean over people",
    "log loss, Brier, ECE": "after one temperature fitted on validation users; log loss in nats; ECE is the debiased "
    "root mean square gap over ten bins of equal mass, its interval over seeds",
    "worst tenth": "mean accuracy of the worst tenth of people: as scored (selects on noise), what that would read if "
    "all people were alike, and by a beta-binomial model of true accuracies",
    "cost": "fit: seconds to train; adapt: microseconds per new user; bytes kept per user; peak memory of the process",
}


def print_board(board: Board) -> None:
    """One table per task on stdout."""
    console = Console(highlight=False, width=None if Console().is_terminal else 120)
    for task in board.tasks:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for name in ("rank", "method"):
            table.add_column(name, no_wrap=True)
        for shots in task.task.shots:
            table.add_column(f"{shots} shots" if shots == 0 else str(shots), justify="right", no_wrap=True)
        for name in (f"gain over {REFERENCE}", "p", "swapped", "worse"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in task.rows:
            accuracy = row.curves.get("accuracy", {})
            table.add_row(
                escape(rank_text(row)),
                escape(row.label),
                *(number(accuracy[s].value) if s in accuracy else "" for s in task.task.shots),
                "" if row.gain is None or row.worse is None else span(row.gain, signed=True),
                p_text(row.holm) if row.worse is not None else "",
                number(row.swapped),
                "" if row.worse is None else f"{row.worse:.0%}",
                style="dim" if row.line else None,
            )
        console.print(f"\n{escape(task.label)}  accuracy on {task.people} test people, {task.seeds} seeds")
        console.print(table)
        for line in remarks(task):
            console.print(line, markup=False)


def remarks(task: TaskBoard) -> list[str]:
    """The verdict and everything a reader must know before believing the table."""
    lines = [task.verdict]
    if task.note:
        lines.append(f"no interval: {task.note}")
    lines += [f"hole: {row.label}: {row.hole}" for row in task.rows if row.hole]
    lines += [f"sits out: {method}: {reason}" for method, reason in task.refusals.items()]
    return lines + [f"flag: {flag}" for flag in task.flags]


def write_html(board: Board, store: Store) -> Path:
    """Writes `boards/<suite>.html` in the store unless it shows this very board already; returns its path."""
    path = store.root / "boards" / f"{board.suite.name}.html"
    shown = hashlib.sha256(json.dumps([board.suite.title, board.as_dict()]).encode())
    for file in (Path(__file__), Path(__file__).with_name("report.html")):
        shown.update(file.read_bytes())
    stamp = f"<!-- {shown.hexdigest()} -->"
    if path.exists() and path.read_text().startswith(stamp):
        return path
    from jinja2 import Environment, PackageLoader, select_autoescape

    page = Environment(
        loader=PackageLoader("harness", "."),
        autoescape=select_autoescape(["html"]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    helpers = {
        "number": number,
        "span": span,
        "p_text": p_text,
        "rank_text": rank_text,
        "remarks": remarks,
        "words": WORDS,
    }
    html = page.get_template("report.html").render(board=board, reference=REFERENCE, figures=figures, **helpers)
    path.parent.mkdir(exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(f"{stamp}\n{html}")
    os.replace(part, path)
    return path


def number(value: float | None, signed: bool = False, digits: int = 3) -> str:
    """`.873`: no leading zero below one."""
    if value is None:
        return ""
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    return text.replace("0.", ".", 1) if abs(value) < 1 else text


def span(point: Point, signed: bool = False) -> str:
    """`.873 (.861 .884)`."""
    if point.low is None:
        return number(point.value, signed)
    return f"{number(point.value, signed)} ({number(point.low, signed)} {number(point.high, signed)})"


def p_text(p: float | None) -> str:
    return "" if p is None else "<.001" if p < 0.001 else number(p)


def rank_text(row: Row) -> str:
    if row.rank is None:
        return "hole" if row.hole else "line"
    rank, best, worst = row.rank
    return f"{rank}  [{best}]" if best == worst else f"{rank}  [{best}-{worst}]"


def figures(task: TaskBoard) -> list[tuple[str, str]]:
    """Caption and SVG of each figure that the rows allow."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    curves = "Accuracy against shots, with 95 % bands over people and seeds."
    if any(row.line for row in task.rows):
        curves += " Thin grey: lines that know the truth."
    ranks = "Ranks each method may have, 95 % for all methods at once; the mark is the rank as scored."
    gains = (
        f"Gain over {REFERENCE} of every person at {task.shots} shots, people sorted; below zero they are worse off."
    )
    cost = f"Quality against cost: accuracy at {task.shots} shots against seconds to fit."
    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": "manyminds",
        "font.size": 11,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    drawn = []
    with plt.rc_context(style | {"font.family": "sans-serif", "legend.frameon": False}):
        looks = {row.label: _look(i) for i, row in enumerate(r for r in task.rows if not r.line)}
        for caption, draw, needed in (
            (curves, _curves, any(r.curves for r in task.rows)),
            (ranks, _ranks, any(r.rank for r in task.rows)),
            (gains, _gains, any(r.worse is not None for r in task.rows)),
            (cost, _cost, any(r.costs and r.curves for r in task.rows)),
        ):
            if not needed:
                continue
            figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
            draw(axes, task, looks)
            sink = io.StringIO()
            figure.savefig(sink, format="svg", metadata={"Date": None})
            plt.close(figure)
            svg = sink.getvalue()
            drawn.append((caption, svg[svg.index("<svg") :]))
    return drawn


def _look(i: int) -> tuple:
    """Colour, marker and dash; past the eighth they combine anew."""
    again = i // len(LOOKS)
    return LOOKS[i % 8][0], LOOKS[(i + again) % 8][1], LOOKS[(i + 2 * again) % 8][2]


def _curves(axes, task: TaskBoard, looks: dict) -> None:
    place = np.arange(len(task.task.shots))
    for row in task.rows:
        points = list(row.curves.get("accuracy", {}).values())
        if not points:
            continue
        values = [p.value for p in points]
        if row.line:
            axes.plot(place, values, color="#999999", lw=1)
            axes.annotate(
                row.label,
                (place[-1], values[-1]),
                xytext=(4, 0),
                textcoords="offset points",
                color="#666666",
                fontsize=9,
                va="center",
            )
            continue
        color, marker, dash = looks[row.label]
        axes.plot(place, values, color=color, marker=marker, ls=dash, label=row.label, ms=6)
        if all(p.low is not None for p in points):
            axes.fill_between(place, [p.low for p in points], [p.high for p in points], color=color, alpha=0.15, lw=0)
    axes.set_xticks(place, task.task.shots)
    axes.set(xlabel="shots: answers seen of each new user", ylabel="accuracy")
    axes.margins(x=0.12)
    axes.figure.legend(fontsize=9, ncols=4, loc="outside upper center")


def _ranks(axes, task: TaskBoard, looks: dict) -> None:
    rows = [row for row in task.rows if row.rank]
    for y, row in enumerate(rows):
        color, marker, _ = looks[row.label]
        axes.plot(row.rank[1:], [y, y], color=color, lw=5, alpha=0.45, solid_capstyle="round")
        axes.plot(row.rank[0], y, marker=marker, color=color, ms=8)
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    axes.set_xticks(range(1, len(rows) + 1))
    axes.set(xlabel=f"rank at {task.shots} shots", xlim=(0.5, len(rows) + 0.5))
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)


def _gains(axes, task: TaskBoard, looks: dict) -> None:
    axes.axhline(0, color="#000000", lw=0.8)
    for row in task.rows:
        if row.worse is not None:
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
    axes.set(xlabel="people, from the one who loses most", ylabel=f"gain over {REFERENCE}")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
    axes.figure.legend(fontsize=9, ncols=4, loc="outside upper center")


def _cost(axes, task: TaskBoard, looks: dict) -> None:
    for row in task.rows:
        if row.line or not (row.costs and row.curves):
            continue
        color, marker, _ = looks[row.label]
        x, y = max(row.costs["fit_seconds"], 1e-4), row.curves["accuracy"][task.shots]
        error = None if y.low is None else [[y.value - y.low], [y.high - y.value]]
        axes.errorbar(x, y.value, error, color=color, marker=marker, ls="", ms=8, capsize=3, label=row.label)
    axes.set_xscale("log")
    axes.set(xlabel="seconds to fit, median over seeds (log)", ylabel=f"accuracy at {task.shots} shots")
    axes.figure.legend(fontsize=9, ncols=4, loc="outside upper center")

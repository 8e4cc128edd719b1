"""The board for people: a terminal table, and one self-contained HTML file with figures."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.board import learned_axes
from harness.board.board import REFERENCE, Board, Point, Row, TaskBoard, labels
from harness.board.learned_axes import Reading
from harness.inference import generate
from harness.store.store import Store
from harness.task import Task
from harness.trials.trial import fields_of
from harness.trials.write_texts import MAX_PROMPTS, WRITERS

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
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "manyminds",
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
SIZE = (6.4, 4.2)  # inches
WIDE = 12.8  # inches: the whole width of a page
TEXT = 200  # characters of a response on the page
MANY = (
    12  # settings of tasks: beyond, a line each on the terminal, and a folded table each, without figures, on the page
)
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
    "best of n": "a method chooses one of a prompt's n candidates for every person; all methods have the same ones, but "
    "those that ask a language model, which would be asked too often, choose none. "
    "Gain: in true utility over a random candidate, 1 where the best of all is always chosen (a ratio of means). Beats "
    f"random, beats {REFERENCE}: probability of being preferred to one of all candidates at random, or to what "
    f"{REFERENCE} chooses of as many; a tie is one half. Worse: share of people worse off than with those. Peak: the n "
    "beyond which choosing among more is surely worse, if any (over-optimisation)",
    "written": f"a policy writes to the first {WRITERS} people and the first {MAX_PROMPTS} of the candidates' prompts, and so "
    "does the model it started from, its reference, with the same random draws. Gain: in true utility to the person, "
    "over the reference's text; beats it: how often that is preferred to the reference's text, a tie one half; mean "
    "user: the same text's gain for the average of all users, what adapting to one costs or brings the others (left out where "
    "opposite users are as common, so that it is nothing); swapped: "
    "for this person, of the text that was written for another. Normalised: as for the best of n, of the same people and "
    "prompts, beside what the method's own reward gains by choosing among their candidates; above 1 is better than all of them. KL: nats of a response, of "
    "the policy from its reference. Fluency: log-probability of a token under the reference, in nats. Stopped: share of "
    "responses that ended by themselves. In brackets: the change against the reference",
    "cost": "fit: seconds to train; adapt: microseconds per new user; bytes kept per user; peak memory of the process",
}


def print_board(board: Board) -> None:
    """One table per task setting on stdout; of many settings a line each."""
    console = Console(highlight=False, emoji=False, width=None if Console().is_terminal else 120)
    if len(board.tasks) > MANY:
        print_many(board, console)
        return
    for task in board.tasks:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("rank", no_wrap=True)
        table.add_column("method", overflow="fold")  # takes several lines before numbers lose digits
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
        if steered := [row for row in task.rows if row.best_of]:
            print_best_of(task, steered, console)
        if policies := [row for row in task.rows if row.written]:
            print_written(task, policies, console)


def print_best_of(task: TaskBoard, rows: list[Row], console: Console) -> None:
    """What the methods' choices among candidates are worth."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("method", overflow="fold")
    for shots in task.task.shots:
        table.add_column(f"{shots} shots" if shots == 0 else str(shots), justify="right", no_wrap=True)
    for name in ("beats random", "worse", f"beats {REFERENCE}", "worse", "peak"):
        table.add_column(name, justify="right", no_wrap=True)
    n = most(rows)
    for row in rows:
        last = row.best_of[task.shots]
        table.add_row(
            escape(row.label),
            *(number(row.best_of[shots].gain[n].value) for shots in task.task.shots),
            span(last.win_random[n]),
            worse_text(last.worse_random),
            span(last.win_shared[n]) if last.win_shared else "",
            worse_text(last.worse_shared),
            "" if last.overoptimised is None else str(last.overoptimised),
            style="dim" if row.line else None,
        )
    console.print(f"\n{escape(task.label)}  normalised gain of the best of {n}")
    console.print(table)


def print_written(task: TaskBoard, rows: list[Row], console: Console) -> None:
    """What policies write: what it is worth to the people, where that is known, and what it costs."""
    console.print(f"\n{escape(task.label)}  written by policies")
    for title, heads, body in written_tables(rows):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for i, head in enumerate(heads):
            table.add_column(head, justify="right" if i else "left", no_wrap=i > 0, overflow="fold")
        for row, cells in body:
            table.add_row(*map(escape, cells), style="dim" if row.line else None)
        console.print(f"\n{title}")
        console.print(table)


Lines = list[tuple[Row, list[str]]]  # the row that a line of a table is of, and its cells


def written_tables(rows: list[Row]) -> list[tuple[str, list[str], Lines]]:
    """Title, column heads and lines of each table of what policies write: a line per method and number of shots."""
    texts = [(row, [row.label, str(shots)], row.written[shots]) for row in rows for shots in row.written]
    valued = [line for line in texts if "gain" in line[2].scores]
    normal = [line for line in texts if "normalised" in line[2].scores]
    counts = sorted({n for *_, found in normal for n in found.best_of})
    taxed = any("mean_user" in found.scores for *_, found in valued)
    gains = [
        (row, [*head, span(w.scores["gain"], True), span(w.scores["win"]), span(w.scores["swapped"], True) if "swapped" in w.scores else "",
               *([told(w.scores, "mean_user")] if taxed else [])])
        for row, head, w in valued
    ]  # fmt: skip
    beside = [
        (row, [*head, span(w.scores["normalised"]), *(number(w.best_of[n].value) if n in w.best_of else "" for n in counts)])
        for row, head, w in normal
    ]  # fmt: skip
    costs = [
        (row, [*head, span(w.scores["kl"]), changed(w.scores, "tokens", 1), changed(w.scores, "fluency", 2),
               changed(w.scores, "stopped", 2), number(row.costs.get("written_tokens_per_second"), digits=0)])
        for row, head, w in texts
    ]  # fmt: skip
    found = [
        ("utility over the reference model's text", ["gain", "beats it", "swapped", *(["mean user"] if taxed else [])], gains),
        ("normalised gain, beside the best of n by the same reward", ["written", *(f"best of {n}" for n in counts)], beside),
        ("what it costs, and the change against the reference", ["KL", "tokens", "fluency", "stopped", "tokens/s"], costs),
    ]  # fmt: skip
    return [(title, ["method", "shots", *heads], lines) for title, heads, lines in found if lines]


def told(scores: dict[str, Point], name: str) -> str:
    return number(scores[name].value, signed=True) if name in scores else ""


def changed(scores: dict[str, Point], name: str, digits: int) -> str:
    """`45.2 (+3.1)`: a value, and what is more than the reference's."""
    own, more = scores[name], scores[f"{name}_more"]
    return f"{number(own.value, digits=digits)} ({number(more.value, True, digits)})"


def most(rows: list[Row]) -> int:
    """The largest number of candidates that the rows' methods choose among."""
    return max(n for row in rows for best in row.best_of.values() for n in best.gain)


def worse_text(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def print_many(board: Board, console: Console) -> None:
    """A line per task setting: the best method, its accuracy and gain, what follows; then every remark once."""
    lines, names = [], told_apart([task.task for task in board.tasks])
    for task in board.tasks:
        best = next((row for row in task.rows if row.rank), None)
        scores = ["", "", ""] if best is None else [best.label, number(best.curves["accuracy"][task.shots].value), ""]
        if best is not None and best.gain is not None:
            scores[2] = span(best.gain, signed=True)
        lines.append([names[task.task], *scores, task.verdict.partition(":")[0]])
    lines.insert(0, ["task", "best", "accuracy", f"gain over {REFERENCE}", "verdict"])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        shown = "  ".join(f"{word:{width}}" for word, width in zip(line, widths, strict=True))
        console.print(shown.rstrip(), markup=False, soft_wrap=True)
    for remark, times in Counter(line for task in board.tasks for line in remarks(task)[1:]).items():
        console.print(f"{remark} ({times} of {len(board.tasks)} tasks)", markup=False, soft_wrap=True)


def remarks(task: TaskBoard) -> list[str]:
    """The verdict and everything a reader must know before believing the table."""
    lines = [task.verdict]
    if task.note:
        lines.append(f"no interval: {task.note}")
    lines += [f"hole: {row.label}: {row.hole}" for row in task.rows if row.hole]
    lines += [f"sits out: {method}: {reason}" for method, reason in task.refusals.items()]
    return lines + [f"flag: {flag}" for flag in task.flags]


def write_html(board: Board, store: Store, reader: str | None = None) -> Path:
    """Writes `boards/<suite>.html` in the store unless it shows this very board already; returns its path.

    reader: the language model that names the axes of what was learned. Raises Lacking where it has to be asked first.
    """
    path = store.root / "boards" / f"{board.suite.name}.html"
    named = generate.make_generator(learned_axes.with_options(reader)).canonical if reader else None
    shown = hashlib.sha256(json.dumps([board.suite.title, board.as_dict(), named]).encode())
    for file in (Path(__file__), Path(__file__).with_name("report.html"), Path(learned_axes.__file__)):
        shown.update(file.read_bytes())
    stamp = f"<!-- {shown.hexdigest()} -->"
    if path.exists() and path.read_text().startswith(stamp):
        return path
    html = page(board, {} if len(board.tasks) > MANY else learned_axes.read(board, store, reader), reader)
    path.parent.mkdir(exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(f"{stamp}\n{html}")
    os.replace(part, path)
    return path


def page(board: Board, readings: dict[Task, Reading] | None = None, reader: str | None = None) -> str:
    """The HTML page. Readings quote the data: without any it does not, and may leave the store."""
    from jinja2 import Environment, PackageLoader, select_autoescape

    environment = Environment(
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
        "names": told_apart([task.task for task in board.tasks]),
        "many": len(board.tasks) > MANY,
        "looks": looks_of(board),
        "readings": readings or {},
        "reader": reader,
        "shortened": shortened,
        "most": most,
        "worse_text": worse_text,
        "written_tables": written_tables,
    }
    return environment.get_template("report.html").render(
        board=board, reference=REFERENCE, figures=figures, sweeps=sweep_figures, **helpers
    )


def shortened(text: str) -> str:
    """At most TEXT characters, cut between words, on one line; what is cut says how long it was."""
    line = " ".join(text.split())
    if len(line) <= TEXT:
        return line
    return f"{line[:TEXT].rpartition(' ')[0] or line[:TEXT]} ... ({len(line.split())} words)"


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


def told_apart(tasks: list[Task]) -> dict[Task, str]:
    """Name of each task and those of its fields that differ between tasks of that name."""
    fields = {task: fields_of(task) for task in tasks}
    found = {}
    for task in tasks:
        alike = [fields[t] for t in tasks if t.name == task.name]
        varied = [f"{k.replace('_', ' ')} {v}" for k, v in fields[task].items() if any(t[k] != v for t in alike)]
        found[task] = f"{task.name}: {', '.join(varied)}" if varied else task.name
    return found


def svg_of(draw: Callable, size: tuple[float, float] = SIZE) -> str:
    """The SVG element of what `draw` puts on an empty matplotlib figure of `size` inches."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        sink = io.StringIO()
        figure.savefig(sink, format="svg", metadata={"Date": None})
    svg = sink.getvalue()
    svg = svg[svg.index("<svg") :]
    if size[0] > SIZE[0]:  # letters as large on the screen as in figures of the usual size
        svg = svg.replace("<svg", f'<svg class="wide" style="max-width: {92 * size[0]:.0f}px"', 1)
    return svg


def look(i: int) -> tuple:
    """Colour, marker and dash; past the eighth they combine anew."""
    again = i // len(LOOKS)
    return LOOKS[i % 8][0], LOOKS[(i + again) % 8][1], LOOKS[(i + 2 * again) % 8][2]


def looks_of(board: Board) -> dict[str, tuple]:
    """Label -> look of every method that is ranked, the same on all figures of a board."""
    methods = labels(list(board.suite.methods))
    return {label: look(i) for i, label in enumerate(label for m, label in methods.items() if not m.privileged)}


def legend(figure, handles: list | None = None) -> None:
    """Above the axes, in as many columns as the labels leave room for."""
    handles = [h for axes in figure.axes for h in axes.get_legend_handles_labels()[0]] if handles is None else handles
    if handles:
        longest = max(len(h.get_label()) for h in handles)
        columns = int(figure.get_figwidth() / (0.6 + 0.078 * longest))  # inches of a handle and of a letter
        figure.legend(handles=handles, fontsize=9, ncols=min(max(columns, 1), 8), loc="outside upper center")


def grey_line(axes, x: np.ndarray, y: list[float], dash: object = "-") -> None:
    """A line that is no rival: it knows the truth. `name_lines` writes its name beside its end."""
    axes.plot(x, y, color="#999999", lw=1, ls=dash)


def name_lines(axes, ends: list[tuple[float, float, str]]) -> None:
    """Writes each name beside the end (x, y) of its line, apart from each other.

    Neighbouring names that agree before a comma are written once, without what follows it.
    """
    low, high = axes.get_ylim()
    apart = 0.055 * (high - low)
    written: list[list] = []  # x, y, name, y of the last line it stands for
    for x, y, name in sorted(ends, key=lambda end: end[1]):
        if written and y - written[-1][3] < apart and written[-1][2].partition(",")[0] == name.partition(",")[0]:
            written[-1][2:] = name.partition(",")[0], y
        else:
            written.append([x, max(y, written[-1][1] + apart) if written else y, name, y])
    for x, y, name, _ in written:
        axes.annotate(
            name, (x, y), (5, 0), textcoords="offset points", color="#666666", fontsize=9, va="center",
            annotation_clip=False,
        )  # fmt: skip


def figures(task: TaskBoard, looks: dict[str, tuple] | None = None) -> list[tuple[str, str]]:
    """Caption and SVG of each figure that the rows allow; `looks` are those of the whole board."""
    curves = "Accuracy against shots, with 95 % bands over people and seeds."
    if any(row.line for row in task.rows):
        curves += " Thin grey: lines that know the truth."
    ranks = "Ranks each method may have, 95 % for all methods at once; the mark is the rank as scored."
    gains = (
        f"Gain over {REFERENCE} of every person at {task.shots} shots, people sorted; below zero they are worse off."
    )
    steered = [row for row in task.rows if row.best_of]
    n = most(steered) if steered else 0
    best = f"Best of n at {task.shots} shots: normalised gain against n, with 95 % bands over people and seeds."
    wins = f"Best of {n}: probability of being preferred to a candidate at random, against shots, with 95 % bands."
    kl = (
        f"What is written, against its KL from the reference model: normalised gain at the least (hollow) and at {task.shots} shots, "
        "with 95 % intervals. Dotted: the best of n at the same shots by the same reward, at its KL from whoever wrote the "
        "candidates, at most log n - (n - 1) / n."
    )
    cost = f"Quality against cost: accuracy at {task.shots} shots against seconds to fit."
    looks = looks or {row.label: look(i) for i, row in enumerate(r for r in task.rows if not r.line)}
    return [
        (caption, svg_of(lambda figure, draw=draw: draw(figure.subplots(), task, looks)))
        for caption, draw, needed in (
            (curves, _curves, any(r.curves for r in task.rows)),
            (ranks, _ranks, any(r.rank for r in task.rows)),
            (gains, _gains, any(r.worse is not None for r in task.rows)),
            (best, _best_of, steered),
            (wins, _wins, steered),
            (kl, _written, any("normalised" in w.scores for r in task.rows for w in r.written.values())),
            (cost, _cost, any(r.costs and r.curves for r in task.rows)),
        )
        if needed
    ]


def _curves(axes, task: TaskBoard, looks: dict) -> None:
    lines = [(row, list(row.curves["accuracy"].values())) for row in task.rows if row.curves]
    _banded(axes, lines, task.task.shots, looks)
    axes.set(xlabel="shots: answers seen of each new user", ylabel="accuracy")


def _best_of(axes, task: TaskBoard, looks: dict) -> None:
    last = [(row, row.best_of[task.shots].gain) for row in task.rows if row.best_of]
    _banded(axes, [(row, list(gain.values())) for row, gain in last], tuple(last[0][1]), looks)
    axes.set(xlabel="n: candidates chosen among", ylabel="normalised gain")


def _wins(axes, task: TaskBoard, looks: dict) -> None:
    rows = [row for row in task.rows if row.best_of]
    n = most(rows)
    lines = [(row, [row.best_of[shots].win_random[n] for shots in task.task.shots]) for row in rows]
    _banded(axes, lines, task.task.shots, looks)
    axes.set(xlabel="shots: answers seen of each new user", ylabel="win rate over a random candidate")


def _written(axes, task: TaskBoard, looks: dict) -> None:
    """Policies by KL and normalised gain, and their own best of n beside them."""
    for row in task.rows:
        found = [w for w in row.written.values() if "normalised" in w.scores]
        if not found:
            continue
        color, marker, dash = ("#999999", "x", "-") if row.line else looks[row.label]
        x, y = ([w.scores[name] for w in found] for name in ("kl", "normalised"))
        limits = [
            None if any(p.low is None for p in points)
            else [[p.value - p.low for p in points], [p.high - p.value for p in points]]
            for points in (x, y)
        ]  # fmt: skip
        values = [[p.value for p in points] for points in (x, y)]
        axes.errorbar(
            *values,
            limits[1],
            limits[0],
            color=color,
            marker=marker,
            ls=dash,
            ms=7,
            capsize=3,
            label=None if row.line else row.label,
        )
        if row.line:  # all grey: told apart by their names
            axes.annotate(
                row.label, (values[0][-1], values[1][-1]), (4, 5), textcoords="offset points", fontsize=7, color=color
            )
        if found[0] != found[-1]:
            axes.plot(values[0][0], values[1][0], color=color, marker=marker, ls="", ms=7, mfc="#ffffff", zorder=3)
        if best := found[-1].best_of:
            bound = [np.log(n) - (n - 1) / n for n in best]
            axes.plot(bound, [p.value for p in best.values()], color=color, marker=".", ls=":", lw=1.2, alpha=0.8)
    axes.set(xlabel="KL from the reference model, nats of a response", ylabel="normalised gain")
    axes.set_xscale("symlog", linthresh=1)  # the best of n lies below 1, policies far above
    axes.set_xlim(left=0)
    axes.axhline(0, color="#000000", lw=0.6)
    legend(axes.figure)


def _banded(axes, lines: list[tuple[Row, list[Point]]], ticks: tuple, looks: dict) -> None:
    """A line with its band per row over evenly spaced ticks."""
    place, ends = np.arange(len(ticks)), []
    for row, points in lines:
        values = [p.value for p in points]
        if row.line:
            grey_line(axes, place, values)
            ends.append((place[-1], values[-1], row.label))
            continue
        color, marker, dash = looks[row.label]
        axes.plot(place, values, color=color, marker=marker, ls=dash, label=row.label, ms=6)
        if all(p.low is not None for p in points):
            axes.fill_between(place, [p.low for p in points], [p.high for p in points], color=color, alpha=0.15, lw=0)
    axes.set_xticks(place, ticks)
    axes.margins(x=0.12)
    name_lines(axes, ends)
    legend(axes.figure)


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
    legend(axes.figure)


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
    legend(axes.figure)


def sweeps(board: Board) -> list[tuple[str, tuple[str, ...], list[TaskBoard]]]:
    """Every field of a task, or pair of fields, that a suite sweeps: task name, field names, settings.

    A pair needs more settings than a cross of two single sweeps. Where still other fields vary, a pair has all settings
    that repeat its whole grid; a single field has the settings that share the rest.
    """
    found = []
    for name in dict.fromkeys(t.task.name for t in board.tasks):
        left = tasks = [t for t in board.tasks if t.task.name == name]
        varied = [f for f in fields_of(tasks[0].task) if len({_value(t, f) for t in tasks}) > 1]
        for fields in [*combinations(varied, 2), *((f,) for f in varied)]:
            groups: dict[tuple, dict[tuple, TaskBoard]] = {}  # the other fields -> these fields -> setting
            for t in tasks:
                rest = tuple(_value(t, f) for f in varied if f not in fields)
                groups.setdefault(rest, {})[tuple(_value(t, f) for f in fields)] = t
            largest = max(groups.values(), key=len)
            counts = [len(set(values)) for values in zip(*largest, strict=True)]
            if len(fields) == 2 and min(counts) > 1 and len(largest) > sum(counts) - 1:
                whole = [t for group in groups.values() if group.keys() == largest.keys() for t in group.values()]
                left = [t for t in left if t not in whole]
                found.append((name, fields, whole))
            elif len(fields) == 1 and min(counts) > 1 and any(t in left for t in largest.values()):
                found.append((name, fields, list(largest.values())))
    return found


def _value(task: TaskBoard, field: str) -> object:
    return getattr(task.task, field)


def sweep_figures(board: Board, looks: dict[str, tuple]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Heading, and caption and SVG of each figure, of every sweep of a board."""
    found = []
    for name, fields, tasks in sweeps(board):
        heading = f"{name}: {' and '.join(f.replace('_', ' ') for f in fields)}"
        if len(fields) == 1:
            caption = f"Accuracy at {_shots(tasks)} shots, with 95 % bands over people and seeds."
            drawn = [(caption, svg_of(lambda figure, t=tasks, f=fields: _along(figure.subplots(), t, f[0], looks)))]
            found.append((heading, drawn))
            continue
        cells = len({tuple(_value(t, f) for f in fields) for t in tasks})
        means = f" Means over {len(tasks) // cells} settings of other fields." if len(tasks) > cells else ""
        drawn = []
        for what, score, signed in (
            (f"Accuracy at {_shots(tasks)} shots", _accuracy, False),
            (f"Gain in accuracy over {REFERENCE} at {_shots(tasks)} shots", _gain, True),
        ):
            maps = _maps(tasks, fields, score)
            maps = {label: maps[label] for label in labels(list(board.suite.methods)).values() if label in maps}
            if maps:
                caption = f"{what}, the same colours for all methods.{means}"
                rows, tall = -(-len(maps) // 4), max(m.shape[0] for m in maps.values())
                size = (WIDE, 0.6 + rows * (0.75 + 0.36 * max(tall, 2)))
                axes = (fields, [sorted({_value(t, f) for t in tasks}, key=_order) for f in fields])
                drawn.append((caption, svg_of(lambda figure, m=maps, a=axes, s=signed: _heat(figure, m, *a, s), size)))
        found.append((heading, drawn))
    return found


def _shots(tasks: list[TaskBoard]) -> str:
    return " or ".join(str(n) for n in sorted({t.shots for t in tasks}))


def _order(value: object) -> tuple:
    """Numbers by size, then anything else by name."""
    return (0, value, "") if isinstance(value, (int, float)) else (1, 0, str(value))


def _accuracy(row: Row, task: TaskBoard) -> float | None:
    return row.curves["accuracy"][task.shots].value if row.curves else None


def _gain(row: Row, task: TaskBoard) -> float | None:
    return None if row.worse is None else row.gain.value


def _maps(tasks: list[TaskBoard], fields: tuple[str, ...], score: Callable) -> dict[str, np.ndarray]:
    """Label of a method -> float[values of the second field, values of the first], NaN where there is none."""
    first, second = (sorted({_value(t, f) for t in tasks}, key=_order) for f in fields)
    sums: dict[str, np.ndarray] = {}
    for task in tasks:
        x, y = first.index(_value(task, fields[0])), second.index(_value(task, fields[1]))
        for row in task.rows:
            if (value := score(row, task)) is not None:
                cell = sums.setdefault(row.label, np.zeros((2, len(second), len(first))))[:, y, x]
                cell += (value, 1)
    with np.errstate(invalid="ignore"):
        return {label: total / count for label, (total, count) in sums.items()}


def _heat(figure, maps: dict[str, np.ndarray], fields: tuple[str, ...], ticks: list[list], signed: bool) -> None:
    """A heat map per method on one scale of colours that grows lighter throughout, the value in every cell."""
    columns = min(4, len(maps))
    panels = figure.subplots(-(-len(maps) // columns), columns, squeeze=False, sharex=True, sharey=True)
    figure.get_layout_engine().set(hspace=0.08)
    every = np.concatenate([m.ravel() for m in maps.values()])
    low, high = np.nanmin(every), np.nanmax(every)
    size = 10 if len(ticks[0]) <= 5 else 8 if len(ticks[0]) <= 8 else 6
    for axes, (label, values) in zip(panels.flat, maps.items(), strict=False):
        image = axes.imshow(values, cmap="cividis", vmin=low, vmax=high, origin="lower", aspect="auto")
        for (y, x), value in np.ndenumerate(values):
            if np.isfinite(value):
                dark = value < (low + high) / 2
                axes.text(
                    x, y, number(value, signed), ha="center", va="center", fontsize=size,
                    color="#ffffff" if dark else "#000000",
                )  # fmt: skip
        axes.set_title(label, fontsize=10)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        for set_ticks, values_of in ((axes.set_xticks, ticks[0]), (axes.set_yticks, ticks[1])):
            set_ticks(range(len(values_of)), [f"{v:g}" if isinstance(v, float) else str(v) for v in values_of])
    for axes in panels.flat[len(maps) :]:
        axes.set_visible(False)
    for axes in panels.T.flat:  # a panel with nothing below it shows its ticks
        axes.tick_params(labelbottom=True)
    figure.supxlabel(fields[0].replace("_", " "), fontsize=11)
    figure.supylabel(fields[1].replace("_", " "), fontsize=11)
    figure.colorbar(image, ax=panels, pad=0.01, aspect=30)


def _along(axes, tasks: list[TaskBoard], field: str, looks: dict) -> None:
    tasks = sorted(tasks, key=lambda t: _order(_value(t, field)))
    found: dict[str, list[tuple[Row, Point]]] = {}
    for task in tasks:
        for row in task.rows:
            if row.curves:
                found.setdefault(row.label, []).append((row, row.curves["accuracy"][task.shots]))
    whole = [[row for row, _ in found[label]] for label in found if len(found[label]) == len(tasks)]
    lines = [(rows[0], [point for _, point in found[rows[0].label]]) for rows in whole]
    _banded(axes, lines, [_value(t, field) for t in tasks], looks)
    axes.set(xlabel=field.replace("_", " "), ylabel="accuracy")

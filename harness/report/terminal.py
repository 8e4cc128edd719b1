"""The board in a terminal."""

from __future__ import annotations

from collections import Counter

from rich.console import Console
from rich.markup import escape

from harness.board.board import REFERENCE_METHOD, Across, Board, Row, TaskBoard
from harness.report.fitted_table import print_table
from harness.report.words import (
    MAX_TASKS_IN_FULL,
    across_remarks,
    across_table,
    distinct_task_labels,
    format_interval,
    format_number,
    format_p_value,
    format_rank,
    format_share,
    format_worse,
    largest_candidate_count,
    people_and_seeds,
    task_remarks,
    titles_of_rating_scores,
    variants_remarks,
    variants_table,
    written_tables,
)


def print_board(board: Board) -> None:
    """Print a table for each task setting, or a line each where there are many."""
    console = Console(highlight=False, emoji=False, width=None if Console().is_terminal else 120)
    for name, reason in board.unavailable.items():
        console.print(f"left out: {name}: {reason}", markup=False)
    if board.across:
        print_across(board.across, console)
    if board.variants:
        print_variants(board, console)
    if len(board.tasks) > MAX_TASKS_IN_FULL:
        print_short_board(board, console)
        return
    for task in board.tasks:
        shots = task.task.shots
        heads = ["rank", "method", *(f"{s} shots" if s == 0 else str(s) for s in shots)]
        heads += [f"gain over {REFERENCE_METHOD}", "p", "swapped", "worse %"]
        lines = []
        for row in task.rows:
            accuracy = row.curves.get("accuracy", {})
            lines.append(
                [
                    format_rank(row),
                    row.label,
                    *(format_number(accuracy[s].value) if s in accuracy else "" for s in shots),
                    "" if row.gain is None or row.worse is None else format_interval(row.gain, signed=True),
                    format_p_value(row.p) if row.worse is not None else "",
                    format_number(row.swapped),
                    format_worse(row.worse),
                ]
            )
        console.print(f"\n{escape(task.label)}  accuracy on {people_and_seeds(task)}")
        fewer_shots, last = range(2, 1 + len(shots)), 1 + len(shots)
        leave_out = [*fewer_shots, last + 3, last + 4, last + 2]
        print_table(console, heads, lines, [1], leave_out, [row.privileged for row in task.rows])
        for line in task_remarks(task):
            console.print(line, markup=False)
        if scored := titles_of_rating_scores(task):
            print_ratings(task, scored, console)
        if choosing := [row for row in task.rows if row.best_of]:
            print_best_of(task, choosing, console)
        if policies := [row for row in task.rows if row.written]:
            print_written(task, policies, console)


def print_across(across: Across, console: Console) -> None:
    """Print the table of methods across tasks, then what it says."""
    heads, lines = across_table(across, limits=False)
    console.print(f"\nacross {across.tasks} settings of tasks")
    print_table(console, heads, lines, [1], [3, *range(len(heads) - 1, 3, -1)])
    for remark in across_remarks(across):
        console.print(remark, markup=False)
    console.print()


def print_variants(board: Board, console: Console) -> None:
    """Print what variants change, in accuracy."""
    heads, lines = variants_table(board.variants)
    console.print("\nvariants minus the same methods as they are, in accuracy at the largest number of shots")
    print_table(console, heads, lines, [0, 3, 4], [4, 3, 1])
    for remark in variants_remarks(board.variants, board.suite.margin):
        console.print(remark, markup=False)


def print_ratings(task: TaskBoard, scored: dict[str, str], console: Console) -> None:
    """Print how well the methods predict ratings, at the largest number of shots."""
    rows = [row for row in task.rows if row.curves]
    lines = [[row.label, *(format_interval(row.curves[name][task.shots]) for name in scored)] for row in rows]
    console.print(f"\n{escape(task.label)}  ratings of test people at {task.shots} shots")
    print_table(console, ["method", *scored.values()], lines, [0], (), [row.privileged for row in rows])


def print_best_of(task: TaskBoard, rows: list[Row], console: Console) -> None:
    """Print the worth of the methods' best-of-n choices."""
    shots, n = task.task.shots, largest_candidate_count(rows)
    heads = ["method", *(f"{s} shots" if s == 0 else str(s) for s in shots)]
    heads += ["beats random", "worse", f"beats {REFERENCE_METHOD}", "worse", "peak"]
    lines = []
    for row in rows:
        last = row.best_of[task.shots]
        lines.append(
            [
                row.label,
                *(format_number(row.best_of[s].gain[n].value) for s in shots),
                format_interval(last.win_random[n]),
                format_share(last.worse_random),
                format_interval(last.win_shared[n]) if last.win_shared else "",
                format_share(last.worse_shared),
                "" if last.overoptimised_at is None else str(last.overoptimised_at),
            ]
        )
    console.print(f"\n{escape(task.label)}  normalised gain of the best of {n}")
    fewer_shots, last_column = range(1, len(shots)), len(heads) - 1
    leave_out = [*fewer_shots, *range(last_column, len(shots) + 1, -1)]
    print_table(console, heads, lines, [0], leave_out, [row.privileged for row in rows])


def print_written(task: TaskBoard, rows: list[Row], console: Console) -> None:
    """Print the worth of the policies' texts, where ground truth is available, and their costs."""
    console.print(f"\n{escape(task.label)}  texts written by policies")
    for title, heads, body in written_tables(rows):
        console.print(f"\n{title}")
        leave_out = range(len(heads) - 1, 2, -1)
        print_table(console, heads, [cells for _, cells in body], [0], leave_out, [row.privileged for row, _ in body])


def print_short_board(board: Board, console: Console) -> None:
    """Print a line per task setting with its best method, accuracy, gain and verdict, then every remark once."""
    lines, names = [], distinct_task_labels([task.task for task in board.tasks])
    for task in board.tasks:
        best = next((row for row in task.rows if row.rank), None)
        scores = (
            ["", "", ""] if best is None else [best.label, format_number(best.curves["accuracy"][task.shots].value), ""]
        )
        if best is not None and best.gain is not None:
            scores[2] = format_interval(best.gain, signed=True)
        lines.append([names[task.task], *scores, task.verdict.partition(":")[0]])
    lines.insert(0, ["task", "best", "accuracy", f"gain over {REFERENCE_METHOD}", "verdict"])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        shown = "  ".join(f"{word:{width}}" for word, width in zip(line, widths, strict=True))
        console.print(shown.rstrip(), markup=False, soft_wrap=True)
    for remark, times in Counter(line for task in board.tasks for line in task_remarks(task)[1:]).items():
        console.print(f"{remark} ({times} of {len(board.tasks)} tasks)", markup=False, soft_wrap=True)

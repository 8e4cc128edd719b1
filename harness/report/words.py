"""Numbers, intervals and remarks of a board as short texts."""

from __future__ import annotations

from harness.board.board import Point, Row, TaskBoard
from harness.task import Task
from harness.trials.trial import field_values

MAX_QUOTED_CHARACTERS = 200  # characters of a response on the page
MAX_TASKS_IN_FULL = (
    12  # settings of tasks: beyond, a line each on the terminal, and a folded table each, without figures, on the page
)


Lines = list[tuple[Row, list[str]]]  # the row that a line of a table is of, and its cells


def written_tables(rows: list[Row]) -> list[tuple[str, list[str], Lines]]:
    """Title, column heads and lines of each table of what policies write: a line per method and number of shots."""
    texts = [(row, [row.label, str(shots)], row.written[shots]) for row in rows for shots in row.written]
    valued = [line for line in texts if "gain" in line[2].scores]
    normal = [line for line in texts if "normalised" in line[2].scores]
    counts = sorted({n for *_, found in normal for n in found.best_of})
    taxed = any("mean_user" in found.scores for *_, found in valued)
    gains = [
        (row, [*head, format_interval(w.scores["gain"], True), format_interval(w.scores["win"]), format_interval(w.scores["swapped"], True) if "swapped" in w.scores else "",
               *([signed_score(w.scores, "mean_user")] if taxed else [])])
        for row, head, w in valued
    ]  # fmt: skip
    beside = [
        (row, [*head, format_interval(w.scores["normalised"]), *(format_number(w.best_of[n].value) if n in w.best_of else "" for n in counts)])
        for row, head, w in normal
    ]  # fmt: skip
    costs = [
        (row, [*head, format_interval(w.scores["kl"]), score_with_change(w.scores, "tokens", 1), score_with_change(w.scores, "fluency", 2),
               score_with_change(w.scores, "stopped", 2), format_number(row.costs.get("written_tokens_per_second"), digits=0)])
        for row, head, w in texts
    ]  # fmt: skip
    found = [
        ("utility over the reference model's text", ["gain", "beats it", "swapped", *(["mean user"] if taxed else [])], gains),
        ("normalised gain, beside the best of n by the same reward", ["written", *(f"best of {n}" for n in counts)], beside),
        ("what it costs, and the change against the reference", ["KL", "tokens", "fluency", "stopped", "tokens/s"], costs),
    ]  # fmt: skip
    return [(title, ["method", "shots", *heads], lines) for title, heads, lines in found if lines]


def signed_score(scores: dict[str, Point], name: str) -> str:
    return format_number(scores[name].value, signed=True) if name in scores else ""


def score_with_change(scores: dict[str, Point], name: str, digits: int) -> str:
    """`45.2 (+3.1)`: a value, and what is more than the reference's."""
    own, more = scores[name], scores[f"{name}_more"]
    return f"{format_number(own.value, digits=digits)} ({format_number(more.value, True, digits)})"


def largest_candidate_count(rows: list[Row]) -> int:
    """The largest number of candidates that the rows' methods choose among."""
    return max(n for row in rows for best in row.best_of.values() for n in best.gain)


def format_share(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def task_remarks(task: TaskBoard) -> list[str]:
    """The verdict and everything a reader must know before believing the table."""
    lines = [task.verdict]
    if task.note:
        lines.append(f"no interval: {task.note}")
    lines += [f"hole: {row.label}: {row.hole}" for row in task.rows if row.hole]
    lines += [f"sits out: {method}: {reason}" for method, reason in task.refusals.items()]
    return lines + [f"flag: {flag}" for flag in task.flags]


def shorten_text(text: str) -> str:
    """At most MAX_QUOTED_CHARACTERS characters, cut between words, on one line; what is cut says how long it was."""
    line = " ".join(text.split())
    if len(line) <= MAX_QUOTED_CHARACTERS:
        return line
    return f"{line[:MAX_QUOTED_CHARACTERS].rpartition(' ')[0] or line[:MAX_QUOTED_CHARACTERS]} ... ({len(line.split())} words)"


def format_number(value: float | None, signed: bool = False, digits: int = 3) -> str:
    """`.873`: no leading zero below one."""
    if value is None:
        return ""
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    return text.replace("0.", ".", 1) if abs(value) < 1 else text


def format_interval(point: Point, signed: bool = False) -> str:
    """`.873 (.861 .884)`."""
    if point.low is None:
        return format_number(point.value, signed)
    return (
        f"{format_number(point.value, signed)} ({format_number(point.low, signed)} {format_number(point.high, signed)})"
    )


def format_p_value(p: float | None) -> str:
    return "" if p is None else "<.001" if p < 0.001 else format_number(p)


def format_rank(row: Row) -> str:
    if row.rank is None:
        return "hole" if row.hole else "line"
    rank, best, worst = row.rank
    return f"{rank}  [{best}]" if best == worst else f"{rank}  [{best}-{worst}]"


def distinct_task_labels(tasks: list[Task]) -> dict[Task, str]:
    """Name of each task and those of its fields that differ between tasks of that name."""
    fields = {task: field_values(task) for task in tasks}
    found = {}
    for task in tasks:
        alike = [fields[t] for t in tasks if t.name == task.name]
        varied = [f"{k.replace('_', ' ')} {v}" for k, v in fields[task].items() if any(t[k] != v for t in alike)]
        found[task] = f"{task.name}: {', '.join(varied)}" if varied else task.name
    return found

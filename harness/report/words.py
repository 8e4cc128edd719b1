"""Short texts for a board's numbers, intervals and remarks."""

from __future__ import annotations

from harness.board.across import listed
from harness.board.board import Across, Point, Row, TaskBoard, VariantChange
from harness.fields import field_values
from harness.scores.worst_off import WorseOff
from harness.task import Task

MAX_LABEL = 30  # characters of a label in a figure: two then stand side by side
MAX_QUOTED_CHARACTERS = 200  # of a response on the page
# With more task settings than this, each has one line in the terminal, and its part of the page is folded.
MAX_TASKS_IN_FULL = 12


Lines = list[tuple[Row, list[str]]]  # lines of a table: the board's row, and the texts of the cells


def written_tables(rows: list[Row]) -> list[tuple[str, list[str], Lines]]:
    """Return title, column heads and lines of each table on policies' texts: a line per method and number of shots."""
    texts = [(row, [row.label, str(shots)], row.written[shots]) for row in rows for shots in row.written]
    valued = [line for line in texts if "gain" in line[2].scores]
    normalised = [line for line in texts if "normalised" in line[2].scores]
    counts = sorted({n for *_, found in normalised for n in found.best_of})
    has_mean_user = any("mean_user" in found.scores for *_, found in valued)
    gains = [
        (row, [*head, format_interval(w.scores["gain"], True), format_interval(w.scores["win"]), format_interval(w.scores["swapped"], True) if "swapped" in w.scores else "",
               *([signed_score(w.scores, "mean_user")] if has_mean_user else [])])
        for row, head, w in valued
    ]  # fmt: skip
    beside = [
        (row, [*head, format_interval(w.scores["normalised"]), *(format_number(w.best_of[n].value) if n in w.best_of else "" for n in counts)])
        for row, head, w in normalised
    ]  # fmt: skip
    costs = [
        (row, [*head, format_interval(w.scores["kl"]), score_with_change(w.scores, "tokens", 1), score_with_change(w.scores, "fluency", 2),
               score_with_change(w.scores, "stopped", 2), format_number(row.costs.get("written_tokens_per_second"), digits=0)])
        for row, head, w in texts
    ]  # fmt: skip
    found = [
        ("gain in utility over the reference model's text", ["gain", "win rate", "swapped", *(["mean user"] if has_mean_user else [])], gains),
        ("normalised gain of the texts, and of the best of n by the same reward", ["texts", *(f"best of {n}" for n in counts)], beside),
        ("costs, and in brackets the change from the reference model", ["KL", "tokens", "fluency", "stopped", "tokens/s"], costs),
    ]  # fmt: skip
    return [(title, ["method", "shots", *heads], lines) for title, heads, lines in found if lines]


def signed_score(scores: dict[str, Point], name: str) -> str:
    """Format a score with its sign, "" where it is missing."""
    return format_number(scores[name].value, signed=True) if name in scores else ""


def score_with_change(scores: dict[str, Point], name: str, digits: int) -> str:
    """Format a score and its difference from the reference model's, for example `45.2 (+3.1)`."""
    own, more = scores[name], scores[f"{name}_more"]
    return f"{format_number(own.value, digits=digits)} ({format_number(more.value, True, digits)})"


def largest_candidate_count(rows: list[Row]) -> int:
    """Return the largest number of candidates that the rows' methods choose from."""
    return max(n for row in rows for best in row.best_of.values() for n in best.gain)


def format_share(share: float | None) -> str:
    """Format a share in per cent, "" for None."""
    return "" if share is None else f"{share:.0%}"


def people_and_seeds(task: TaskBoard) -> str:
    """Return how many test people and seeds a table is of, and the encoder of the features where the task names one."""
    encoder = getattr(task.task, "encoder", "")
    return f"{task.people} test people, {task.seeds} seeds" + (f", features by {encoder}" if encoder else "")


RATING_SCORES = {
    "rank_correlation": "rank correlation",
    "scale_error": "error on the scale",
}  # of tasks made of ratings


def titles_of_rating_scores(task: TaskBoard) -> dict[str, str]:
    """Return the scores of predicted ratings, and their names in tables; {} for tasks that are not made of ratings."""
    return {k: v for k, v in RATING_SCORES.items() if any(k in row.curves for row in task.rows)}


def task_remarks(task: TaskBoard) -> list[str]:
    """Return the verdict, and warnings about the table: no interval, missing trials, refusals, flags, searches."""
    lines = [task.verdict]
    if task.note:
        lines.append(f"no interval: {task.note}")
    lines += [f"incomplete: {row.label}: {row.incomplete}" for row in task.rows if row.incomplete]
    lines += [f"does not run: {method}: {reason}" for method, reason in task.refusals.items()]
    return lines + [f"flag: {flag}" for flag in task.flags] + [f"searched: {line}" for line in task.searches]


def shorten_label(label: str) -> str:
    """Cut a label of many settings after its first ones, for figures; tables have it whole."""
    return label if len(label) <= MAX_LABEL else label[: MAX_LABEL - 1] + "…"


def shorten_text(text: str) -> str:
    """Put a text on one line, cut between words at MAX_QUOTED_CHARACTERS and then followed by its number of words."""
    line = " ".join(text.split())
    if len(line) <= MAX_QUOTED_CHARACTERS:
        return line
    return f"{line[:MAX_QUOTED_CHARACTERS].rpartition(' ')[0] or line[:MAX_QUOTED_CHARACTERS]} ... ({len(line.split())} words)"


def format_number(value: float | None, signed: bool = False, digits: int = 3) -> str:
    """Format a number without leading zero, for example `.873`; "" for None."""
    if value is None:
        return ""
    value = round(value, digits) + 0.0  # no -0
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    return text.replace("0.", ".", 1) if abs(value) < 1 else text


def format_interval(point: Point, signed: bool = False) -> str:
    """Format a score with its limits, for example `.873 (.861 .884)`."""
    if point.low is None:
        return format_number(point.value, signed)
    return (
        f"{format_number(point.value, signed)} ({format_number(point.low, signed)} {format_number(point.high, signed)})"
    )


def format_p_value(p: float | None) -> str:
    """Format a p-value, for example `.032` or `<.001`; "" for None."""
    if p is None or p < 0.001:
        return "" if p is None else "<.001"
    return format_number(p, digits=4 if abs(p - 0.05) < 0.0005 else 3)  # .0498 is not .050: the limits exclude 0


def format_rank(row: Row) -> str:
    """Format a rank and the ranks that are possible, for example `2  [1-3]`, or say why the row has no rank."""
    if row.rank is None:
        return "incomplete" if row.incomplete else "privileged"
    return format_rank_interval(row.rank)


def format_rank_interval(ranks: tuple[int, int, int]) -> str:
    """Format a rank with the best and the worst that are possible, for example `2  [1-3]`."""
    rank, best, worst = ranks
    return f"{rank}  [{best}]" if best == worst else f"{rank}  [{best}-{worst}]"


def across_table(across: Across, limits: bool = True) -> tuple[list[str], list[list[str]]]:
    """Return the heads and the lines of the table of methods across tasks; gains without limits are narrower."""
    heads = ["rank", "method", "wins", "mean rank"]
    heads += [
        f"{name} ({count}): {'gain' if across.units[name] == 'accuracy' else 'share'}"
        for name, count in across.families.items()
    ]
    lines = [
        [
            format_rank_interval(row.rank) if row is method else f"({format_rank_interval(row.rank)})",
            row.label,
            format_interval(row.wins),
            f"{row.mean_rank:.1f}",
            *(
                format_interval(gain, signed=True) if limits else format_number(gain.value, signed=True)
                for gain in row.families.values()
            ),
        ]
        for method in across.rows
        for row in (method, *method.variants)
    ]
    return heads, lines


def variants_remarks(variants: tuple[VariantChange, ...], margin: float) -> list[str]:
    """Return which variants are surely better, worse, and better by more than the margin, on the mean of the settings."""

    better: list[str] = []
    much_better: list[str] = []
    worse: list[str] = []
    for change in variants:
        low, high = change.mean.low, change.mean.high
        if low is None or high is None:
            return ["changes have no limits, which need three seeds"]
        told = f"{change.label} ({format_number(change.mean.value, signed=True)})"
        for found, belongs in ((better, low > 0), (much_better, low > margin), (worse, high < 0)):
            found.extend([told] if belongs else [])
    return [
        f"surely better on the mean of the settings: {', '.join(better) or 'none'}",
        f"by more than the margin of {margin:g}: {', '.join(much_better) or 'none'}",
        f"surely worse: {', '.join(worse) or 'none'}",
    ]


def variants_table(variants: tuple[VariantChange, ...]) -> tuple[list[str], list[list[str]]]:
    """Return the heads and the lines of the table of what variants change."""
    lines = []
    for change in variants:
        most, least = (choose(change.settings, key=lambda s: change.settings[s].value) for choose in (max, min))
        ends = [f"{format_interval(change.settings[s], signed=True)} on {s.partition('(')[0]}" for s in (most, least)]
        lines.append([change.label, str(len(change.settings)), format_interval(change.mean, signed=True), *ends])
    return ["variant", "settings", "mean change", "largest", "smallest"], lines


def across_remarks(across: Across) -> list[str]:
    """Return the verdict across tasks, and what families say of each other, who is served, and which methods are left out."""
    of = ", ".join(f"{n} {name}" for name, n in across.families.items())
    lines = [across.verdict, f"over {across.tasks} settings of tasks: {of}"]
    lines += [f"on the {part.tasks} {name} settings alone: {part.verdict}" for name, part in across.parts.items()]
    for found in across.transfers:
        how = format_interval(found.correlation)
        low = found.correlation.low
        sure = "" if low is not None and low > 0 else ", which may be none at all"
        lines.append(f"{found.families[0]} and {found.families[1]} order the methods with rank correlation {how}{sure}")
    for own in across.serving:
        lines.append(
            f"if people had {listed(own.labels)} alone, {own.left:.0%} of them would have had a higher accuracy with {own.other} (some by chance alone)"
        )
    alike: dict[str, list[str]] = {}
    for label, why in across.left_out.items():
        alike.setdefault(why, []).append(label)
    return lines + [f"left out: {', '.join(labels)}: {why}" for why, labels in alike.items()]


def distinct_task_labels(tasks: list[Task]) -> dict[Task, str]:
    """Return a label for each task: its name, and its fields that differ between tasks of that name."""
    fields = {task: field_values(task) for task in tasks}
    found = {}
    for task in tasks:
        alike = [fields[t] for t in tasks if t.name == task.name]
        varied = [f"{k.replace('_', ' ')} {v}" for k, v in fields[task].items() if any(t[k] != v for t in alike)]
        found[task] = f"{task.name}: {', '.join(varied)}" if varied else task.name
    return found


def format_worse(worse: WorseOff | None) -> str:
    """Format the per cent of people who are worse off, with the per cent to expect by chance: `37 (35)`."""
    return "" if worse is None else f"{100 * worse.naive:.0f} ({100 * worse.null:.0f})"

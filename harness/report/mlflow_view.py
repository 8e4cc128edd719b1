"""The screen that MLflow opens a suite's experiment with: the rows as a leaderboard, and a description above them."""

from __future__ import annotations

import json
from contextlib import suppress

from harness.board.board import REFERENCE_METHOD, Board
from harness.report.mlflow_records import RunRecord, cut_value, verdict_lines

VIEW_KEY = "leaderboard"  # names the view in the address of the experiment
MAX_VIEW_PARAMS = 6  # columns of parameters; more would hide the scores on a narrow screen
COLUMN_HELP = (
    "A row is one method on one task, best gain first. **accuracy**: share of a new person's choices predicted, at the "
    f"largest number of answers of that person. **gain**: accuracy over `{REFERENCE_METHOD}`, the one model for everybody, "
    "with limits at 95 %. **rank**, with the ranks that are possible. **p**: of the gain, adjusted. **worse**: share of "
    f"people with lower accuracy than under `{REFERENCE_METHOD}`. **swapped**: accuracy with another person's state. "
    "To come back to this screen: *Views*, *Leaderboard*."
)


def experiment_description(board: Board) -> str:
    """Return Markdown for above the runs. MLflow shows its first line, and the rest at a click."""
    verdicts = verdict_lines(board).replace("\n", "\n\n")
    return cut_value(f"**{board.suite.title}** – {verdicts}\n\n{COLUMN_HELP}")


def leaderboard_view(rows: list[RunRecord]) -> dict:
    """Return the state of MLflow's table of runs that shows the rows as a leaderboard.

    The fields and the names of columns are those of the interface of MLflow 3.17: a column of a metric, parameter or tag
    is named by its kind and its name in backticks. A column without a place in `columnOrder` comes last.
    """

    def column(kind: str, name: str) -> str:
        return f"{kind}.`{name}`"

    metrics = {name for row in rows for name in [*row.scalars, *(name for name, _, _ in row.curves)]}
    values: dict[str, set[str]] = {}
    for row in rows:
        for name, value in row.params.items():
            values.setdefault(name, set()).add(value)
    differing = sorted((n for n, found in values.items() if len(found) > 1), key=lambda n: not n.startswith("task."))
    params = list(dict.fromkeys([*(n for n in ("task.shots",) if n in values), *differing]))[:MAX_VIEW_PARAMS]
    widths = {  # in pixels, in the order of the columns
        column("metrics", "accuracy"): 86,
        column("metrics", "gain"): 86,
        column("tags", "gain_limits"): 130,
        column("metrics", "rank"): 60,
        column("tags", "rank_limits"): 92,
        **{column("params", name): 110 for name in params[:1]},  # the shots, at whose largest number the scores are
        column("metrics", "p"): 90,
        column("metrics", "worse"): 76,
        column("metrics", "swapped"): 80,
        **{column("params", name): 110 for name in params[1:]},
        column("tags", "state"): 150,
    }
    fixed = {column("attributes", "Run Name"): 250, "runDateAndNestInfo": 48}  # both are always shown
    return {
        "searchFilter": "tags.kind = 'row'",
        "orderByKey": column("metrics", "gain" if "gain" in metrics else "accuracy"),
        "orderByAsc": False,
        "selectedColumns": list(widths),
        "columnOrder": [*fixed, *widths, "duration"],
        "columnWidths": {**fixed, **widths, "duration": 76},
        "groupBy": {"aggregateFunction": "max", "groupByKeys": [{"mode": "tag", "groupByData": "task"}]},
    }


def view_value(state: dict, milliseconds: int) -> str:
    """Return a view as the value of an experiment's tag: a name, a time and the state, each readable text."""
    named = {"name": "Leaderboard", "createdAt": milliseconds, "updatedAt": milliseconds}
    return json.dumps({**named, "state": json.dumps(state)})


def state_of_view(value: str) -> dict:
    """Return the state in a view's value; {} where there is none, or where the interface has compressed it."""
    with suppress(ValueError, KeyError, TypeError):
        return dict(json.loads(json.loads(value)["state"]))
    return {}

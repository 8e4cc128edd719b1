"""What MLflow holds of a suite: the content of each run.

A *row* of the board, that is one method setting on one task setting with all its seeds, is one run. Its curves are metrics
whose step is the number of shots; a number that a row has only once is a metric of step 0. Limits are tags and tables,
because MLflow draws a chart of every metric. The board is one more run, the parent of the rows.

Nothing here imports MLflow: `to_mlflow` writes the records.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import math
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

import polars as pl

from harness.atomic import private_path
from harness.board.board import Board, Point, Row, TaskBoard, setting_labels
from harness.board.make import make_board
from harness.board.results import committed_manifest
from harness.fields import field_values, name_at_version, recorded_values
from harness.report.words import format_number
from harness.store.store import Store
from harness.trials.plan import Plan
from harness.trials.trial import Trial, identity_hash

PUBLISH_VERSION = 6  # raised whenever the same results would be published differently
MAX_VALUE_CHARACTERS = 5000  # of a tag or parameter: servers since MLflow 2.8 store that many
MAX_NAME_CHARACTERS = 250  # of a run's name
METRIC_DIGITS = 4  # more, such as .7477999999999999, do not fit a column; the run's tables have all digits
BOARD_ROW = "board"  # identity of the board's run
# No limits of these are published, to have fewer numbers; `manyminds board --json` prints them.
METRICS_WITHOUT_LIMITS = ("ece", "brier", "sign_accuracy", "rank_correlation", "scale_error")
NOT_COMPARED = "not compared yet"


@dataclass(frozen=True)
class RunRecord:
    """The content of one MLflow run.

    curves: (metric, value, shots).  scalars: metrics that a run has once.  tables: columns by name, which the UI shows as
    tables.  files: makes the artifacts, called only when the run is written.  datasets: (name, key of the prepared task,
    seed) of what the run read.
    """

    identity: str  # hash of the row's task, method and fields; BOARD_ROW for the board
    name: str
    tags: dict[str, str]
    params: dict[str, str] = dataclasses.field(default_factory=dict)
    curves: tuple[tuple[str, float, int], ...] = ()
    scalars: dict[str, float] = dataclasses.field(default_factory=dict)
    datasets: tuple[tuple[str, str, int], ...] = ()
    tables: dict[str, dict[str, list]] = dataclasses.field(default_factory=dict)
    files: Callable[[], dict[str, bytes]] = dict
    files_digest: str = ""  # of the content of `files`, before users' ids are salted
    seconds: float = 0.0  # that the row's trials took, which MLflow shows as the run's duration

    @property
    def compared(self) -> bool:
        """Whether the record holds all that the board says, rather than a row before other rows are finished."""
        return self.tags.get("state") != NOT_COMPARED

    @property
    def content_digest(self) -> str:
        """16 hex digits of the content, independent of the store's salt."""
        return identity_hash(
            {"version": PUBLISH_VERSION}
            | {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "files"}
        )

    @property
    def fixed_digest(self) -> str:
        """16 hex digits of the part that MLflow cannot change in a run: parameters, curves, data sets and duration."""
        fixed = {"params": self.params, "curves": self.curves, "datasets": self.datasets, "seconds": self.seconds}
        return identity_hash({"version": PUBLISH_VERSION} | fixed)


@dataclass(frozen=True)
class RecordMaker:
    """A maker of the records of one suite in one store."""

    plan: Plan
    store: Store

    def every_row(self, board: Board) -> list[RunRecord]:
        """Return a record for each row with a finished trial, in the board's order."""
        return [self.row_record(task, row) for task in board.tasks for row in task.rows if row.keys]

    def uncompared_record(self, pair: tuple) -> RunRecord | None:
        """Return the record of one task and method without comparing methods; None while trials are missing.

        The cost does not depend on the size of the suite.
        """
        trials = tuple(self._trials_of_pairs[pair])
        suite = dataclasses.replace(self.plan.suite, tasks=(pair[0],))
        (task,) = make_board(dataclasses.replace(self.plan, suite=suite, trials=trials), self.store).tasks
        (row,) = task.rows
        own = dataclasses.replace(row, rank=None, gain=None, p=None, worse=None, users=None)
        named = dataclasses.replace(task, label=self._task_labels[pair[0]])
        return None if row.incomplete else self.row_record(named, own, NOT_COMPARED)

    @cached_property
    def _trials_of_pairs(self) -> dict[tuple, list[Trial]]:
        found: dict[tuple, list[Trial]] = {}
        for trial in self.plan.trials:
            found.setdefault((trial.task, trial.method), []).append(trial)
        return found

    @cached_property
    def _trials_by_key(self) -> dict[str, Trial]:
        return {trial.key: trial for trial in self.plan.trials}

    @cached_property
    def _task_labels(self) -> dict:
        return setting_labels(list(self.plan.suite.tasks))

    def _short_task(self, task: TaskBoard) -> str:
        """Return a task's name without its fields, where no other setting of the suite has that name."""
        names = [setting.name for setting in self.plan.suite.tasks]
        return task.label if names.count(task.task.name) > 1 else task.task.name

    def row_record(self, task: TaskBoard, row: Row, state: str = "ranked") -> RunRecord:
        """Return the record of a row.

        state: whether the row is ranked; replaced where trials are missing or the method reads the ground truth.
        """
        facts = {key: committed_manifest(self.store, "trials", key)["facts"] for key in row.keys}
        fields = {"task": field_values(task.task), "method": field_values(row.method)}
        recorded = {"task": recorded_values(task.task), "method": recorded_values(row.method)}
        identity = identity_hash(
            {"task": name_at_version(task.task), "method": name_at_version(row.method), "fields": recorded}
        )
        known = [self._trials_by_key[key] for key in row.keys]
        tags = {
            "kind": "row",
            "task": task.label,
            "method": row.label,
            "seeds": " ".join(str(trial.seed) for trial in known),
            "trials": " ".join(row.keys),
            "code": " ".join(sorted({f["code"] for f in facts.values()})),
            "state": row_state(row, state),
            "mlflow.runType": "evaluation",  # the UI then opens with the rows below the board unfolded
        }
        users = row.users

        def files() -> dict[str, bytes]:
            told = [
                {"key": trial.key, "seed": trial.seed}
                | {name: value for name, value in facts[trial.key].items() if name != "curves"}
                for trial in known
            ]
            made = {"trials.json": json.dumps(told, indent=1).encode()}
            if users is not None:
                made["users.csv"] = with_salted_people(self.store, task, users).write_csv().encode()
            return made

        return RunRecord(
            identity=identity,
            name=f"{row.label} on {self._short_task(task)}",
            tags=tags | limit_tags(row, task),
            params={
                f"{kind}.{name}": value_text(value) for kind, values in fields.items() for name, value in values.items()
            },
            curves=tuple((name, _with_few_digits(value), shots) for name, value, shots in row_curves(row)),
            scalars={name: _with_few_digits(value) for name, value in row_scalars(row).items()},
            datasets=tuple(dict.fromkeys((task.task.name, trial.task_key, trial.seed) for trial in known)),
            tables={"curves.json": _rows_as_columns(curve_rows(row))} if row.curves else {},
            files=files,
            files_digest=hashlib.sha256(b"" if users is None else users.write_csv().encode()).hexdigest(),
            seconds=sum(told["seconds"] for told in facts.values()),
        )

    def board_record(self, board: Board, seconds: float) -> RunRecord:
        """Return the record of the whole board. seconds: that all trials took."""
        lines = [
            {"task": task.label, "rank": None, "method": row.label, "state": row_state(row), "shots": task.shots}
            | last_numbers(row, task)
            for task in board.tasks
            for row in task.rows
        ]
        tasks = [
            {
                "task": t.label,
                "verdict": t.verdict,
                "people": t.people,
                "seeds": t.seeds,
                "shots": t.shots,
                "note": t.note,
                "flags": "; ".join(t.flags),
                "refusals": "; ".join(f"{method}: {reason}" for method, reason in t.refusals.items()),
            }
            for t in board.tasks
        ]
        verdicts = verdict_lines(board)
        flags = "\n".join(f"{t.label}: {flag}" for t in board.tasks for flag in t.flags)
        return RunRecord(
            identity=BOARD_ROW,
            name=f"board of {self.plan.suite.name}",
            tags={
                "kind": "board",
                "verdicts": verdicts,
                "flags": flags or "none",
                "title": board.suite.title,
                "board": board.results_digest,
                "shows": board_version(board),
                "margin": f"{board.suite.margin:g}",
                "seeds": value_text(board.suite.seeds),
                "mlflow.note.content": verdicts.replace("\n", "\n\n"),
            },
            tables={"leaderboard.json": _rows_as_columns(lines), "tasks.json": _rows_as_columns(tasks)},
            files=lambda: board_files(board),
            seconds=seconds,
        )


def board_version(board: Board) -> str:
    """Return 64 hex digits that change with whatever MLflow shows of a board."""
    return hashlib.sha256(f"{PUBLISH_VERSION} {board.content_digest}".encode()).hexdigest()


def board_files(board: Board) -> dict[str, bytes]:
    """Return the board as a page and, where it has a figure, as an image, without texts of people and errors."""
    from harness.report.page.html import published_page

    # the page of a board with failed trials would show the errors' texts, which may quote the data
    failed = any(":" in (row.incomplete or "") for task in board.tasks for row in task.rows)
    page = "<p>Trials have failed, so the page is not published: <code>manyminds board</code> writes it.</p>"
    made = {"board.html": (page if failed else published_page(board)).encode()}
    image = board_image(board)
    return made if image is None else made | {"board.png": image}


def board_image(board: Board) -> bytes | None:
    """Return a figure as PNG: the wins across tasks, else the curves of the first task; None where there is no figure."""
    from harness.report.page.charts import across_charts, task_charts
    from harness.report.page.looks import looks_of_methods
    from harness.report.page.scripts import draw_static, picture

    looks = looks_of_methods(setting_labels(list(board.suite.methods)))
    charts = across_charts(board, looks)[:1] if board.across else []
    charts += [chart for task in board.tasks[:1] for chart in task_charts(task, looks, with_people=False)]
    return picture(draw_static(charts[0].described_spec)) if charts else None


def verdict_lines(board: Board) -> str:
    """Return the board's verdicts, a line for each task, that across tasks first."""
    across = [f"across tasks: {board.across.verdict}"] if board.across else []
    return "\n".join([*across, *(f"{task.label}: {task.verdict}" for task in board.tasks)])


def row_state(row: Row, state: str = "ranked") -> str:
    """Return whether a row is ranked, without the text of an error, which may quote the data."""
    if row.incomplete:
        return row.incomplete.partition(":")[0]
    if row.privileged:
        return "privileged: not ranked"
    return state


def row_curves(row: Row) -> Iterator[tuple[str, float, int]]:
    """Yield the metrics that a row has at several numbers of shots, as (name, value, shots)."""
    told: list[tuple[str, float | None, int]] = []
    for metric, curve in row.curves.items():
        told += [(metric, point.value, shots) for shots, point in curve.items()]
    for shots, best in row.best_of.items():
        n, gain = list(best.gain.items())[-1]
        told += [("best_of_gain", gain.value, shots), ("best_of_win", best.win_random[n].value, shots)]
    for shots, own in row.written.items():
        names = [name for name in ("gain", "win", "kl", "tokens") if name in own.scores]
        told += [(f"written_{name}", own.scores[name].value, shots) for name in names]
    return ((name, value, shots) for name, value, shots in told if value is not None and math.isfinite(value))


def row_scalars(row: Row) -> dict[str, float]:
    """Return the metrics that a row has once, such as its gain, its rank and its costs."""
    told: dict[str, float | None] = {
        "gain": row.gain.value if row.gain else None,
        "rank": float(row.rank[0]) if row.rank else None,
        "p": row.p,
        "swapped": row.swapped,
        "worse": row.worse.naive if row.worse else None,
        "worse_by_chance": row.worse.null if row.worse else None,
        "worst_fitted": row.worst.fitted if row.worst else None,
        **row.costs,
    }
    return {name: value for name, value in told.items() if value is not None and math.isfinite(value)}


def row_metrics(row: Row) -> Iterator[tuple[str, float, int]]:
    """Yield all metrics of a row as (name, value, step): at most 30 names, and five more for a policy."""
    yield from row_curves(row)
    yield from ((name, value, 0) for name, value in row_scalars(row).items())


def curve_rows(row: Row) -> list[dict]:
    """Return the row's scores with their limits, a line for each metric and number of shots."""
    return [
        {"metric": metric, "shots": shots} | dataclasses.asdict(point)
        for metric, curve in row.curves.items()
        for shots, point in curve.items()
    ]


def last_numbers(row: Row, task: TaskBoard) -> dict[str, float]:
    """Return the row's scores at the largest number of shots, with limits, and the numbers that it has once."""
    told: dict[str, float | None] = {}
    points: dict[str, Point] = {m: curve[task.shots] for m, curve in row.curves.items() if task.shots in curve}
    if row.gain:
        points["gain"] = row.gain
    for name, point in points.items():
        told[name] = point.value
        if name not in METRICS_WITHOUT_LIMITS:
            told |= {f"{name}_low": point.low, f"{name}_high": point.high}
    if row.rank:
        told |= dict(zip(("rank", "rank_low", "rank_high"), row.rank, strict=True))
    told |= {name: value for name, value, shots in row_curves(row) if shots == task.shots and name not in told}
    told |= {name: value for name, value in row_scalars(row).items() if name not in told}
    return {name: value for name, value in told.items() if value is not None and math.isfinite(value)}


def limit_tags(row: Row, task: TaskBoard) -> dict[str, str]:
    """Return the limits of the numbers on the first screen as short texts; without limits, no tag."""
    tags = {}
    accuracy = row.curves.get("accuracy", {}).get(task.shots)
    if accuracy and accuracy.low is not None:
        tags["accuracy_limits"] = f"{format_number(accuracy.low)} to {format_number(accuracy.high)}"
    if row.gain and row.gain.low is not None:
        tags["gain_limits"] = (
            f"{format_number(row.gain.low, signed=True)} to {format_number(row.gain.high, signed=True)}"
        )
    if row.rank:
        tags["rank_limits"] = f"{row.rank[1]} to {row.rank[2]}"
    return tags


def with_salted_people(store: Store, task: TaskBoard, users: pl.DataFrame) -> pl.DataFrame:
    """Replace users' ids by salted hashes: a person has one hash per task and store, and another one elsewhere."""
    salt = _read_salt(store)
    place = identity_hash({"task": name_at_version(task.task), "fields": recorded_values(task.task)})
    names = [hmac.new(salt, f"{place}/{person}".encode(), "sha256").hexdigest()[:16] for person in users["person"]]
    hidden = users.with_columns(pl.Series("person", names)).rename({"person": "user"})
    return hidden.sort("user")  # the original order would reveal the people


def _read_salt(store: Store) -> bytes:
    """Return 32 random bytes, made once per store and never published.

    A reader without the salt cannot find the person behind a published hash by hashing known ids.
    """
    path = store.salt_file
    if not path.exists():
        private = private_path(path)
        with os.fdopen(os.open(private, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(secrets.token_bytes(32))
        with suppress(FileExistsError):
            os.link(private, path)
        private.unlink()
    return path.read_bytes()


def _rows_as_columns(rows: list[dict]) -> dict[str, list]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _with_few_digits(value: float) -> float:
    """Round to METRIC_DIGITS decimals, and a number below 1 to that many significant digits."""
    return round(value, METRIC_DIGITS) if abs(value) >= 1 else float(f"{value:.{METRIC_DIGITS}g}")


def table_json(columns: dict[str, list]) -> bytes:
    """Return columns as a JSON file that MLflow's interface draws as a table."""
    rows = [
        [None if isinstance(value, float) and not math.isfinite(value) else value for value in row]
        for row in zip(*columns.values(), strict=True)
    ]
    return json.dumps({"columns": list(columns), "data": rows}).encode()


def value_text(value: object) -> str:
    """Return a field's value as text: a text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def cut_value(text: str) -> str:
    """Cut a text at the largest number of characters that MLflow stores."""
    return text if len(text) <= MAX_VALUE_CHARACTERS else f"{text[: MAX_VALUE_CHARACTERS - 4]} ..."

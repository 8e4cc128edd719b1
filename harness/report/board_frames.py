"""A board as polars frames."""

from __future__ import annotations

from typing import Any

import polars as pl

from harness.board.board import Board, Point, Row, TaskBoard

LIMITS = pl.Schema({"value": pl.Float64, "low": pl.Float64, "high": pl.Float64})


def scores_frame(board: Board) -> pl.DataFrame:
    """Return a row per task and method, best first, at the largest number of shots.

    state is `ranked`, `privileged` (knows the ground truth, never ranked) or the reason why trials are missing. gain is the
    paired gain in accuracy over `shared`; p its p-value, adjusted over all methods but controls; swapped the accuracy under
    another user's state; worse the share of people with a lower accuracy than under `shared`, worse_by_chance the share to expect if all people
    had the same true gain, truly_worse a model's estimate of the share with a truly lower accuracy.
    """
    return pl.DataFrame([_score_row(task, row) for task in board.tasks for row in task.rows], infer_schema_length=None)


def _score_row(task: TaskBoard, row: Row) -> dict[str, Any]:
    rank, best, worst = row.rank or (None, None, None)
    accuracy = row.curves["accuracy"][task.shots] if row.curves else None
    return {
        "task": task.label,
        "method": row.label,
        "state": row.incomplete or ("privileged" if row.privileged else "ranked"),
        "shots": task.shots,
        "rank": rank,
        "rank_low": best,
        "rank_high": worst,
        **_limits("accuracy", accuracy),
        **_limits("gain", row.gain),
        "p": row.p,
        "swapped": row.swapped,
        "worse": row.worse and row.worse.naive,
        "worse_by_chance": row.worse and row.worse.null,
        "truly_worse": row.worse and row.worse.fitted,
        "fit_seconds": row.costs.get("fit_seconds"),
        "adapt_seconds_per_user": row.costs.get("adapt_seconds_per_user"),
        "bytes_per_user": row.costs.get("bytes_per_user"),
        "peak_memory_mb": row.costs.get("peak_memory_mb"),
        "trials": list(row.keys),
    }


def _limits(name: str, point: Point | None) -> dict[str, float | None]:
    value, low, high = (None, None, None) if point is None else (point.value, point.low, point.high)
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def curves_frame(board: Board) -> pl.DataFrame:
    """Return a row per task, method, metric and number of shots, with 95 % limits."""
    rows = [
        {"task": task.label, "method": row.label, "metric": metric, "shots": shots, **_point(point)}
        for task in board.tasks
        for row in task.rows
        for metric, curve in row.curves.items()
        for shots, point in curve.items()
    ]
    names = {"task": pl.String, "method": pl.String, "metric": pl.String, "shots": pl.Int64}
    return pl.DataFrame(rows, schema=pl.Schema(names | dict(LIMITS)))


def _point(point: Point) -> dict[str, float | None]:
    return {"value": point.value, "low": point.low, "high": point.high}


def differences_frame(board: Board) -> pl.DataFrame:
    """Return a row per task, number of shots and ordered pair of methods: accuracy of `a` less that of `b`."""
    names = {"task": pl.String, "shots": pl.Int64, "a": pl.String, "b": pl.String}
    rows = [{"task": task.label, **row} for task in board.tasks for row in task.differences.to_dicts()]
    return pl.DataFrame(rows, schema=pl.Schema(names | dict(LIMITS)))


def verdicts_frame(board: Board) -> pl.DataFrame:
    """Return a row per task: the verdict, what it rests on, and warnings that a reader must know."""
    return pl.DataFrame(
        [
            {
                "task": task.label,
                "verdict": task.verdict,
                "people": task.people,
                "seeds": task.seeds,
                "no_interval": task.note,
                "warnings": list(task.flags),
                "left_out": [f"{method}: {reason}" for method, reason in task.refusals.items()],
            }
            for task in board.tasks
        ],
        schema_overrides={
            "no_interval": pl.String,
            "warnings": pl.List(pl.String),
            "left_out": pl.List(pl.String),
        },
    )

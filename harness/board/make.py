"""The maker of the leaderboard: stored scores become tables, with confidence intervals over people and seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from statistics import median

import numpy as np
import polars as pl

from harness.board.across import compare_across
from harness.board.board import REFERENCE_METHOD, Board, Point, Row, TaskBoard, setting_labels
from harness.board.cells import MethodCells, finite_or_none, means_by_person, read_cells, scores_of_methods
from harness.board.flags import (
    flag_changed_code,
    flag_code_versions,
    flag_equal_options,
    flag_judges,
    flag_leaking_form,
    flag_licence,
    flag_notes,
    flag_order_dependence,
    flag_other_builds,
    flag_reads_nobody,
    flag_reference_below_chance,
    flag_tied_labels,
    flag_tied_predictions,
    flag_uneven_sides,
    tell_searches,
)
from harness.board.results import committed_manifest
from harness.board.variants import changes_by_variants
from harness.board.verdict import judged_at_once, verdict_text
from harness.method import Method
from harness.scores import stats, worst_off
from harness.store.prepared import person_numbers
from harness.store.store import Store
from harness.task import Task
from harness.trials.plan import Plan
from harness.trials.prepare import MAX_EQUAL_OPTIONS, MAX_TIED_LABELS
from harness.trials.suite import QUIET_CONTROLS
from harness.trials.trial import Trial


def make_board(plan: Plan, store: Store) -> Board:
    """Read every finished trial of the plan, verify its files, and compare the methods.

    A method with missing trials is on the board without rank and intervals (`Row.incomplete`).
    """
    trials: dict[Task, dict[Method, list[Trial]]] = {task: {} for task in plan.suite.tasks}
    for trial in plan.trials:
        trials[trial.task].setdefault(trial.method, []).append(trial)
    methods, labels = setting_labels(list(plan.suite.methods)), setting_labels(list(plan.suite.tasks))
    tasks = tuple(_task_board(plan, store, task, own, methods, labels[task]) for task, own in trials.items())
    names = setting_labels([*plan.suite.tasks, *plan.unavailable])
    unavailable = {names[task]: reason for task, reason in plan.unavailable.items()}
    return Board(plan.suite, tasks, compare_across(tasks), unavailable, changes_by_variants(tasks))


def _task_board(
    plan: Plan, store: Store, task: Task, trials: dict[Method, list[Trial]], names: dict[Method, str], label: str
) -> TaskBoard:
    """Return one task setting's board. names: labels of the methods.  label: that of the task setting."""
    manifests = {
        t.key: found
        for method_trials in trials.values()
        for t in method_trials
        if (found := store.read_manifest("trials", t.key))
    }
    task_keys = {t.seed: t.task_key for wanted in trials.values() for t in wanted}
    tasks = {seed: committed_manifest(store, "tasks", key) for seed, key in task_keys.items()}
    numbers = dict(zip(tasks, person_numbers(store, list(tasks.values())), strict=True)) if tasks else {}
    equal_options, tied_labels = (_mean_fact(tasks.values(), name) for name in ("equal_options", "tied_labels"))
    cells = read_cells(store, trials, manifests, tasks, numbers)
    incomplete = {method: _why_incomplete(store, wanted, manifests) for method, wanted in trials.items()}
    scores = scores_of_methods(cells, task, {method for method, why in incomplete.items() if why is None})
    rows = {}
    for method, wanted in trials.items():
        done = [t.key for t in wanted if t.key in manifests]
        costs = _median_costs([manifests[key]["facts"] for key in done])
        own = scores.get(method, {})
        rows[method] = Row(
            method, names[method], tuple(done), method.privileged, incomplete[method], costs=costs, **own
        )
    compared = _compare_methods(plan.suite.margin, task, rows, cells)
    if equal_options > MAX_EQUAL_OPTIONS:
        verdict = (
            f"no verdict: both options have equal features in {equal_options:.0%} of the test pairs, "
            "so no method that reads features can learn them"
        )
        compared = dataclasses.replace(compared, verdict=verdict)
    elif tied_labels > MAX_TIED_LABELS:
        verdict = f"no verdict: {tied_labels:.0%} of the test labels are ties, which say nothing about people"
        compared = dataclasses.replace(compared, verdict=verdict)
    order = sorted(
        compared.rows, key=lambda r: (r.rank is None, r.rank or (0,), not r.privileged, -_final_accuracy(r, task))
    )
    diverged = [
        f"{r.label}: a second run of the trial {k} gave another result"
        for r in order
        for k in r.keys
        if store.has_diverged(k)
    ]
    return TaskBoard(
        task=task,
        task_keys=tuple(tasks[seed]["key"] for seed in plan.suite.seeds) if tasks else (),
        label=label,
        rows=tuple(order),
        people=plan.people[task],
        seeds=len(plan.suite.seeds),
        note=compared.note,
        verdict=compared.verdict,
        refusals={
            names[r.method]: r.reason for r in plan.refusals if r.task == task and r.method.name not in QUIET_CONTROLS
        },
        flags=(
            *filter(None, [task.caveat]),
            *flag_leaking_form(rows, task),
            *flag_licence(task),
            *(flag_notes(tasks[plan.suite.seeds[0]]) if tasks else ()),
            *flag_code_versions(manifests),
            *flag_changed_code(trials, manifests),
            *flag_order_dependence(manifests),
            *flag_equal_options(equal_options),
            *flag_tied_labels(tied_labels),
            *flag_judges(rows, manifests),
            *flag_reads_nobody(rows, manifests),
            *flag_tied_predictions(rows, manifests),
            *flag_uneven_sides(tasks.values()),
            *flag_other_builds(tasks.values()),
            *flag_reference_below_chance(rows, task),
            *diverged,
        ),
        searches=tuple(tell_searches(rows, manifests)),
        differences=compared.differences,
        code=tuple(sorted({str(found["facts"].get("code", "unknown")) for found in manifests.values()})),
    )


def _mean_fact(tasks: Collection[dict], name: str) -> float:
    """Return the mean of a fact of prepared tasks over seeds; 0 where an older store lacks it."""
    return sum(manifest["facts"].get(name, 0.0) for manifest in tasks) / max(1, len(tasks))


def _why_incomplete(store: Store, wanted: list[Trial], manifests: dict[str, dict]) -> str | None:
    """Return why some of a method's trials have no result; None where all have one."""
    missing = [t for t in wanted if t.key not in manifests]
    if not missing:
        return None
    failure = store.read_failure(missing[0].key)
    return f"{len(missing)} of {len(wanted)} seeds {'failed: ' + failure['reason'] if failure else 'not run yet'}"


@dataclass(frozen=True)
class _Comparison:
    """Rows with their ranks and gains, paired differences, and the task's verdict."""

    rows: list[Row]
    differences: pl.DataFrame
    note: str | None
    verdict: str


def _compare_methods(
    margin: float, task: Task, rows: dict[Method, Row], cells: dict[Method, MethodCells]
) -> _Comparison:
    """Compare the methods that have all their trials. Privileged methods have neither rank nor gain."""
    complete = [m for m in rows if m in cells and rows[m].incomplete is None]
    compared = [row for row in rows.values() if not row.privileged]
    waiting = sum((row.incomplete or "").endswith("not run yet") for row in compared)
    early = f"no verdict yet: {waiting} of {len(compared)} methods have trials that have not run" if waiting else None
    if not complete:
        verdict = early or "no verdict: no method has finished all its trials"
        return _Comparison(list(rows.values()), pl.DataFrame(), None, verdict)
    first, last, rows = cells[complete[0]], max(task.shots), dict(rows)
    accuracy = {k: np.stack([cells[m].blocks[k, False]["accuracy"] for m in complete]) for k in task.shots}
    names = [rows[m].label for m in complete]
    differences = pl.concat([_difference_table(accuracy[shots], first, shots, names) for shots in task.shots])
    ranked = [m for m in complete if not rows[m].privileged]
    top = accuracy[last][[complete.index(m) for m in ranked]]
    reference_has_trials = any(m.name == REFERENCE_METHOD for m in rows)
    why = "has missing trials" if reference_has_trials else "has no trials on this task"
    verdict = f"no verdict: {REFERENCE_METHOD}, the baseline of every gain, {why}"
    note = None
    reference = next((i for i, m in enumerate(ranked) if m.name == REFERENCE_METHOD), None)
    gains = None
    if reference is not None:
        gains = stats.gains_over_reference(top, first.person, first.seed, reference, family=judged_at_once(ranked))
    if ranked:
        found = stats.rank_intervals(top, first.person, first.seed, gains=gains)
        note = found.note
        for i, m in enumerate(ranked):
            rank = (int(found.rank[i]), int(found.best[i]), int(found.worst[i]))
            rows[m] = dataclasses.replace(rows[m], rank=rank)
    if gains is not None:
        per_person = means_by_person(first, top)
        for i, m in enumerate(ranked):
            users = _user_table(cells[m], last, per_person[i], per_person[i] - per_person[gains.reference])
            worse = None if i == gains.reference else _worse_off(cells, m, ranked[gains.reference], last)
            rows[m] = dataclasses.replace(rows[m], users=users, worse=worse, **_gain_fields(gains, i))
        verdict = f"no verdict: only {REFERENCE_METHOD} has a rank"
        if len(ranked) > 1:
            losses = _swap_losses(top, ranked, cells, last, gains)
            verdict = verdict_text(gains, losses, margin, [rows[m].label for m in ranked])
    return _Comparison(list(rows.values()), differences, note, early or verdict)


def _gain_fields(gains: stats.Gains, i: int) -> dict:
    """Return a ranked row's gain over the reference method, and its p-value."""
    low, high = np.clip([gains.joint_low[i], gains.joint_high[i]], -1, 1)  # no gain in accuracy is larger
    return {
        "gain": Point(float(gains.value[i]), finite_or_none(low), finite_or_none(high)),
        "p": finite_or_none(gains.adjusted[i]),
    }


def _worse_off(cells: dict[Method, MethodCells], method: Method, reference: Method, shots: int) -> worst_off.WorseOff:
    """Return the share of people worse off under a method than under the reference method."""
    of_both = [cells[m].blocks[shots, False]["credit"] for m in (method, reference)]
    credit, other = (column.explode().to_numpy().astype(np.float64) for column in of_both)
    return worst_off.worse_off(credit - other, np.repeat(cells[method].person, of_both[0].list.len().to_numpy()))


def _final_accuracy(row: Row, task: Task) -> float:
    return row.curves["accuracy"][max(task.shots)].value if row.curves else 0.0


def _median_costs(facts: list[dict]) -> dict[str, float]:
    names = ["fit_seconds", "adapt_seconds_per_user", "bytes_per_user", "peak_memory_mb"]
    if facts and all(f.get("written_tokens_per_second") for f in facts):
        names.append("written_tokens_per_second")
    return {name: median(f[name] for f in facts) for name in names} if facts else {}


def _user_table(cells: MethodCells, shots: int, accuracy: np.ndarray, gain: np.ndarray) -> pl.DataFrame:
    """Return a row per person, ascending, with their number of queries over all seeds.

    accuracy, gain: float64[people].
    """
    people, code = np.unique(cells.person, return_inverse=True)
    asked = np.bincount(code, cells.blocks[shots, False]["asked"].to_numpy()).astype(int)
    return pl.DataFrame({"person": people, "asked": asked, "accuracy": accuracy, "gain": gain})


def _difference_table(values: np.ndarray, cells: MethodCells, shots: int, names: list[str]) -> pl.DataFrame:
    found = stats.paired_differences(values, cells.person, cells.seed)
    low, high = np.clip(found.interval(), -1, 1)  # no difference in accuracy is larger
    a, b = np.nonzero(~np.eye(len(names), dtype=bool))
    columns = {"value": found.value, "se": found.se, "df": found.df, "low": low, "high": high}
    label = pl.Series(names, dtype=pl.String)
    table = pl.DataFrame({"shots": np.full(len(a), shots), "a": label[a], "b": label[b]})
    return table.with_columns(pl.Series(name, x[a, b]).fill_nan(None) for name, x in columns.items())


def _swap_losses(
    top: np.ndarray, ranked: list[Method], cells: dict[Method, MethodCells], last: int, gains: stats.Gains
) -> stats.SwapLosses | None:
    """Return what methods lose by the swap; None where not every cell has been swapped: a person who is alone has nobody."""
    swapped = [cells[m].blocks.get((last, True)) for m in ranked]
    first = cells[ranked[0]]
    if any(block is None or len(block) != len(first.person) for block in swapped):
        return None
    accuracy = np.stack([block["accuracy"].to_numpy() for block in swapped if block is not None])
    return stats.swap_losses(top, accuracy, first.person, first.seed, gains)

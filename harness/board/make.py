"""The maker of the leaderboard: stored scores become tables, with confidence intervals over people and seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from statistics import median
from typing import cast

import numpy as np
import polars as pl

from harness.board import best_of, text_worth
from harness.board.across import compare_across
from harness.board.board import REFERENCE_METHOD, BestOf, Board, Point, Row, TaskBoard, WrittenScores, setting_labels
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
    flag_searches,
    flag_tied_labels,
    flag_tied_predictions,
    flag_uneven_sides,
)
from harness.board.results import committed_manifest, load_scores
from harness.board.verdict import judged_at_once, verdict_text
from harness.method import Method
from harness.scores import stats
from harness.scores.metrics import calibration_error
from harness.store.prepared import person_numbers
from harness.store.store import Store
from harness.task import Task
from harness.trials.plan import Plan
from harness.trials.prepare import MAX_EQUAL_OPTIONS, MAX_TIED_LABELS
from harness.trials.suite import QUIET_CONTROLS
from harness.trials.trial import Trial

METRIC_LIMITS = {  # metrics, macro-averaged over users, with their smallest and largest possible values
    "accuracy": (0.0, 1.0),
    "sign_accuracy": (0.0, 1.0),  # only with ground truth
    "auc": (0.0, 1.0),
    "rank_correlation": (-1.0, 1.0),  # only with ratings
    "scale_error": (0.0, np.inf),  # only with ratings
    "log_loss": (0.0, np.inf),
    "brier": (0.0, 1.0),
}
BOARD_PANEL = "test"
# scores of policies' texts that are never negative, with their largest possible value; the others have no limits
WRITTEN_MAXIMA = {"win": 1.0, "win_random": 1.0, "stopped": 1.0, "kl": np.inf, "tokens": np.inf}


def make_board(plan: Plan, store: Store) -> Board:
    """Read every finished trial of the plan, verify its files, and compare the methods.

    A method with missing trials is on the board without rank and intervals (`Row.incomplete`).
    """
    tasks = tuple(_task_board(plan, store, task) for task in plan.suite.tasks)
    names = setting_labels([*plan.suite.tasks, *plan.unavailable])
    unavailable = {names[task]: reason for task, reason in plan.unavailable.items()}
    return Board(plan.suite, tasks, compare_across(tasks), unavailable)


@dataclass(frozen=True, eq=False)
class _MethodCells:
    """One method's scores by cell (a person under a seed); all complete methods have the same order of cells."""

    person: np.ndarray
    seed: np.ndarray
    blocks: dict[tuple[int, bool], pl.DataFrame]  # (shots, swapped) -> a row per cell
    best_of_n: pl.DataFrame | None  # `best_of.best_of_n_outcomes`, a row per (shots, n, cell)
    written: pl.DataFrame | None  # `text_worth.text_outcomes`, a row per (shots, cell of a person with texts)
    # best of n for the people with texts, reported next to the texts: `text_worth.best_of_n_with_texts`, a row per
    # (shots, n, cell of a person with texts)
    best_of_n_with_texts: pl.DataFrame | None


def _task_board(plan: Plan, store: Store, task: Task) -> TaskBoard:
    names = setting_labels(list(plan.suite.methods))
    trials: dict[Method, list[Trial]] = {}
    for trial in plan.trials:
        if trial.task == task:
            trials.setdefault(trial.method, []).append(trial)
    manifests = {
        t.key: found
        for method_trials in trials.values()
        for t in method_trials
        if (found := store.read_manifest("trials", t.key))
    }
    tasks = {t.seed: committed_manifest(store, "tasks", t.task_key) for wanted in trials.values() for t in wanted}
    numbers = dict(zip(tasks, person_numbers(store, list(tasks.values())), strict=True)) if tasks else {}
    equal_options, tied_labels = (_mean_fact(tasks.values(), name) for name in ("equal_options", "tied_labels"))
    cells = _cells_of_methods(store, trials, manifests, numbers)
    rows = {}
    for method, wanted in trials.items():
        done, incomplete = [t for t in wanted if t.key in manifests], _why_incomplete(store, wanted, manifests)
        costs = _median_costs([manifests[t.key]["facts"] for t in done])
        row = Row(method, names[method], tuple(t.key for t in done), method.privileged, incomplete, costs=costs)
        scores = _own_scores(cells[method], task, incomplete is None) if method in cells else {}
        rows[method] = dataclasses.replace(row, **scores)
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
        task_key=tasks[plan.suite.seeds[0]]["key"] if tasks else "",
        label=setting_labels(list(plan.suite.tasks))[task],
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
            *flag_searches(rows, manifests),
            *flag_tied_predictions(rows, manifests),
            *flag_uneven_sides(tasks.values()),
            *flag_other_builds(tasks.values()),
            *flag_reference_below_chance(rows, task),
            *diverged,
        ),
        differences=pl.DataFrame(compared.differences),
        code=tuple(sorted({str(found["facts"].get("code", "unknown")) for found in manifests.values()})),
    )


def _mean_fact(tasks: Collection[dict], name: str) -> float:
    """Return the mean of a fact of prepared tasks over seeds; 0 where an older store lacks it."""
    return sum(manifest["facts"].get(name, 0.0) for manifest in tasks) / max(1, len(tasks))


def _cells_of_methods(
    store: Store, trials: dict[Method, list[Trial]], manifests: dict[str, dict], numbers: dict[int, np.ndarray]
) -> dict[Method, _MethodCells]:
    """Return the cells of every method with a finished trial.

    numbers: by seed, each person's number (harness.store.prepared.person_numbers).
    """
    # of several settings of the reference method the first with all its trials, as for the gains
    settings = [found for method, found in trials.items() if method.name == REFERENCE_METHOD]
    complete = [found for found in settings if all(t.key in manifests for t in found)]
    reference_trials = next(iter(complete + settings), [])
    references = {t.seed: t for t in reference_trials if t.key in manifests}
    finished = {method: [t for t in wanted if t.key in manifests] for method, wanted in trials.items()}
    return {
        method: _method_cells(store, done, manifests, references, numbers) for method, done in finished.items() if done
    }


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
    differences: list[dict]
    note: str | None
    verdict: str


def _compare_methods(
    margin: float, task: Task, rows: dict[Method, Row], cells: dict[Method, _MethodCells]
) -> _Comparison:
    """Compare the methods that have all their trials. Privileged methods have neither rank nor gain."""
    complete = [m for m in rows if m in cells and rows[m].incomplete is None]
    waiting = sum((row.incomplete or "").endswith("not run yet") and not row.privileged for row in rows.values())
    early = f"no verdict yet: {waiting} of {len(rows)} methods have trials that have not run" if waiting else None
    if not complete:
        verdict = early or "no verdict: no method has finished all its trials"
        return _Comparison(list(rows.values()), [], None, verdict)
    first, last, rows = cells[complete[0]], max(task.shots), dict(rows)
    accuracy = {k: np.stack([cells[m].blocks[k, False]["accuracy"] for m in complete]) for k in task.shots}
    names = [rows[m].label for m in complete]
    differences = [found for shots in task.shots for found in _difference_rows(accuracy[shots], first, shots, names)]
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
        per_person = _means_by_person(first, top)
        for i, m in enumerate(ranked):
            users = _user_table(cells[m], last, per_person[i] - per_person[gains.reference])
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
        "gain": Point(float(gains.value[i]), _finite_or_none(low), _finite_or_none(high)),
        "p": _finite_or_none(gains.adjusted[i]),
    }


def _worse_off(cells: dict[Method, _MethodCells], method: Method, reference: Method, shots: int) -> stats.WorseOff:
    """Return the share of people worse off under a method than under the reference method."""
    of_both = [cells[m].blocks[shots, False]["credit"] for m in (method, reference)]
    credit, other = (column.explode().to_numpy().astype(np.float64) for column in of_both)
    return stats.worse_off(credit - other, np.repeat(cells[method].person, of_both[0].list.len().to_numpy()))


def _share_below_zero(values: np.ndarray | pl.Series) -> float:
    """Return the share of values below 0, not counting rounding errors."""
    return float((np.asarray(values) < -1e-12).mean())


def _final_accuracy(row: Row, task: Task) -> float:
    return row.curves["accuracy"][max(task.shots)].value if row.curves else 0.0


def _method_cells(
    store: Store,
    trials: list[Trial],
    manifests: dict[str, dict],
    references: dict[int, Trial],
    numbers: dict[int, np.ndarray],
) -> _MethodCells:
    tables: list[pl.DataFrame] = []
    others: dict[str, list[pl.DataFrame]] = {"best_of_n": [], "written": [], "best_of_n_with_texts": []}
    for trial in sorted(trials, key=lambda t: t.seed):
        table = load_scores(store, trial.task_key, manifests[trial.key]).filter(panel=BOARD_PANEL)
        tables.append(_with_persons(table, trial.seed, numbers))
        found = (
            best_of.best_of_n_outcomes(store, trial, references.get(trial.seed)),
            text_worth.text_outcomes(store, trial),
            text_worth.best_of_n_with_texts(store, trial),
        )
        for parts, outcomes in zip(others.values(), found, strict=True):
            if outcomes is not None:
                parts.append(_with_persons(outcomes, trial.seed, numbers))
    blocks = pl.concat(tables).sort("seed", "person").partition_by("shots", "swapped", as_dict=True)
    any_block = next(iter(blocks.values()))
    joined = {name: pl.concat(parts, how="diagonal") if parts else None for name, parts in others.items()}
    order = {"best_of_n": ("shots", "n"), "written": ("shots",), "best_of_n_with_texts": ("shots", "n")}
    joined = {k: None if t is None else t.sort(*order[k], "seed", "person") for k, t in joined.items()}
    return _MethodCells(any_block["person"].to_numpy(), any_block["seed"].to_numpy(), blocks, **joined)


def _with_persons(table: pl.DataFrame, seed: int, numbers: dict[int, np.ndarray]) -> pl.DataFrame:
    """Replace the column `person`, a row of one build's users, by numbers that are the same under all seeds."""
    person = pl.Series("person", numbers[seed][table["person"].to_numpy()], dtype=pl.Int64)
    return table.with_columns(person, seed=pl.lit(seed))


def _own_scores(cells: _MethodCells, task: Task, complete: bool) -> dict:
    """Return the row's scores that need no other row: curves, swap control, worst users, best of n and texts."""
    known = [m for m in METRIC_LIMITS if not cells.blocks[task.shots[0], False][m].null_count()]
    curves: dict[str, dict[int, Point]] = {metric: {} for metric in (*known, "ece")}
    for shots in task.shots:
        block = cells.blocks[shots, False]
        values = np.stack([block[metric] for metric in known])
        found = stats.estimate_means(values, cells.person, cells.seed)
        low, high = np.clip(found.interval(), *np.transpose([METRIC_LIMITS[metric] for metric in known]))
        for i, metric in enumerate(known):
            curves[metric][shots] = Point(
                float(found.value[i]), *(_finite_or_none(x[i]) if complete else None for x in (low, high))
            )
        seeds = np.unique(cells.seed)
        bins = [
            np.stack([block[c].to_numpy()[cells.seed == s].sum(0) for s in seeds]) for c in ("bin_n", "bin_p", "bin_y")
        ]
        error = calibration_error(*bins)[None]  # one value per seed, so its interval is over seeds
        found = stats.estimate_means(error, np.arange(len(seeds)), seeds)
        limits = np.clip(found.interval(), 0, 1)
        curves["ece"][shots] = Point(
            float(found.value[0]), *(_finite_or_none(x[0]) if complete else None for x in limits)
        )
    last = cells.blocks[max(task.shots), False]
    people = last.group_by("person").agg(
        correct=(pl.col("accuracy") * pl.col("asked")).sum(), asked=pl.col("asked").sum()
    )
    people = people.sort("person")
    swapped = cells.blocks.get((max(task.shots), True))
    return {
        "curves": curves,
        "swapped": None if swapped is None else cast(float, swapped["accuracy"].mean()),
        "worst": stats.worst_users_accuracy(people["correct"].to_numpy(), people["asked"].to_numpy()),
        "best_of": {} if cells.best_of_n is None else _best_of_n_scores(cells, cells.best_of_n, complete),
        "written": {}
        if cells.written is None
        else _written_scores(cells.written, cells.best_of_n_with_texts, complete),
    }


def _best_of_n_scores(cells: _MethodCells, outcomes: pl.DataFrame, complete: bool) -> dict[int, BestOf]:
    found = {}
    for (shots,), table in outcomes.partition_by("shots", as_dict=True, maintain_order=True).items():
        counts = table["n"].unique(maintain_order=True).to_list()

        def by_n(name: str, table=table, counts=counts) -> np.ndarray:
            """Return a column as float64[counts, cells]."""
            return table[name].to_numpy().reshape(len(counts), -1)

        def points(values: np.ndarray, least: float, counts=counts) -> dict[int, Point]:
            score = stats.estimate_means(values, cells.person, cells.seed)
            low, high = np.clip(score.interval(), least, 1)
            limits = [
                (_finite_or_none(a), _finite_or_none(b)) if complete else (None, None)
                for a, b in zip(low, high, strict=True)
            ]
            return {n: Point(float(v), *ends) for n, v, ends in zip(counts, score.value, limits, strict=True)}

        def worse(name: str) -> float:
            return _share_below_zero(_means_by_person(cells, by_n(name)[-1:]))

        # possible_gain: the utility of the best candidate minus the mean of all candidates, the same for every n
        gain, possible_gain = by_n("gain"), by_n("room")[0]
        if possible_gain.mean() <= 0:
            return {}  # all candidates are worth the same
        peak = best_of.overoptimisation_peak(gain, cells.person, cells.seed)
        # whether the choices of `shared`, the reference method, are known under every seed
        has_shared = "win_shared" in table.columns and not table["win_shared"].null_count()
        found[shots] = BestOf(
            gain=points(best_of.normalised_gain(gain, possible_gain), -np.inf),
            win_random=points(by_n("win_random"), 0),
            win_shared=points(by_n("win_shared"), 0) if has_shared else {},
            worse_random=worse("gain"),
            worse_shared=worse("over_shared") if has_shared else None,
            overoptimised_at=None if peak is None or not complete else counts[peak],
        )
    return found


def _written_scores(written: pl.DataFrame, best_of_n: pl.DataFrame | None, complete: bool) -> dict[int, WrittenScores]:
    """Return the scores of a policy's texts by shots, with intervals over people and seeds."""
    found = {}
    for (shots,), table in written.partition_by("shots", as_dict=True, maintain_order=True).items():
        person, seed = table["person"].to_numpy(), table["seed"].to_numpy()

        def points(values: dict, person=person, seed=seed) -> dict:
            score = stats.estimate_means(np.stack(list(values.values())), person, seed)
            least = [0 if name in WRITTEN_MAXIMA else -np.inf for name in values]
            low, high = np.clip(score.interval(), least, [WRITTEN_MAXIMA.get(name, np.inf) for name in values])
            limits = [
                (_finite_or_none(a), _finite_or_none(b)) if complete else (None, None)
                for a, b in zip(low, high, strict=True)
            ]
            return {k: Point(float(v), *ends) for k, v, ends in zip(values, score.value, limits, strict=True)}

        # above: utility of the text minus the mean of all candidates.  room: the same of the best candidate.  Both are
        # used for the normalised gain only (text_worth.worth_of_texts).
        known = [c for c in table.columns if c not in ("person", "seed", "shots", "above", "room")]
        scores = {name: table[name].to_numpy() for name in known if not table[name].null_count()}
        choices = {}
        if "room" in table.columns and (possible_gain := table["room"].to_numpy()).mean() > 0:
            scores["normalised"] = best_of.normalised_gain(table["above"].to_numpy(), possible_gain)
            if best_of_n is not None:
                chosen = best_of_n.filter(shots=shots).partition_by("n", as_dict=True, maintain_order=True)
                choices = {
                    n: best_of.normalised_gain(part["gain"].to_numpy(), possible_gain) for (n,), part in chosen.items()
                }
        found[shots] = WrittenScores(points(scores), points(choices) if choices else {})
    return found


def _median_costs(facts: list[dict]) -> dict[str, float]:
    names = ["fit_seconds", "adapt_seconds_per_user", "bytes_per_user", "peak_memory_mb"]
    if facts and all(f.get("written_tokens_per_second") for f in facts):
        names.append("written_tokens_per_second")
    return {name: median(f[name] for f in facts) for name in names} if facts else {}


def _means_by_person(cells: _MethodCells, values: np.ndarray) -> np.ndarray:
    """Return float64[rows of `values`, people]: each person's mean over the seeds that tested them, people ascending."""
    people, code = np.unique(cells.person, return_inverse=True)
    return np.stack([np.bincount(code, row, minlength=len(people)) for row in values]) / np.bincount(code)


def _user_table(cells: _MethodCells, shots: int, gain: np.ndarray) -> pl.DataFrame:
    block = cells.blocks[shots, False]
    users = block.group_by("person").agg(pl.col("asked").sum(), pl.col("accuracy").mean()).sort("person")
    return users.with_columns(gain=pl.Series(gain))


def _difference_rows(values: np.ndarray, cells: _MethodCells, shots: int, names: list[str]) -> list[dict]:
    found = stats.paired_differences(values, cells.person, cells.seed)
    low, high = np.clip(found.interval(), -1, 1)  # no difference in accuracy is larger
    return [
        {
            "shots": shots,
            "a": names[a],
            "b": names[b],
            "value": float(found.value[a, b]),
            "se": _finite_or_none(found.se[a, b]),
            "low": _finite_or_none(low[a, b]),
            "high": _finite_or_none(high[a, b]),
        }
        for a in range(len(names))
        for b in range(len(names))
        if a != b
    ]


def _swap_losses(
    top: np.ndarray, ranked: list[Method], cells: dict[Method, _MethodCells], last: int, gains: stats.Gains
) -> stats.SwapLosses | None:
    """Return what methods lose by the swap; None where not every cell has been swapped: a person who is alone has nobody."""
    swapped = [cells[m].blocks.get((last, True)) for m in ranked]
    first = cells[ranked[0]]
    if any(block is None or len(block) != len(first.person) for block in swapped):
        return None
    accuracy = np.stack([block["accuracy"].to_numpy() for block in swapped if block is not None])
    return stats.swap_losses(top, accuracy, first.person, first.seed, gains)


def _finite_or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None

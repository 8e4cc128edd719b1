"""The leaderboard: from stored scores to tables with intervals over people and seeds."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from statistics import median

import numpy as np
import polars as pl

from harness.board import best_of, text_worth
from harness.board.board import REFERENCE, BestOf, Board, Point, Row, TaskBoard, Written, labels
from harness.board.results import load_scores
from harness.method import Method
from harness.scores import stats
from harness.scores.metrics import calibration_error
from harness.store.store import Store
from harness.task import Task
from harness.trials.facts import source_state
from harness.trials.plan import Plan
from harness.trials.trial import Trial

MEANS = {
    "accuracy": 1.0,
    "sign_accuracy": 1.0,  # where the truth is known
    "auc": 1.0,
    "log_loss": np.inf,
    "brier": 1.0,
}  # macro over users; with the largest value there is
PANEL = "test"
LIMITS = {"win": 1.0, "win_random": 1.0, "stopped": 1.0, "kl": np.inf, "tokens": np.inf}  # of what is written, above 0


def make_board(plan: Plan, store: Store) -> Board:
    """Reads every finished trial of the plan, verified, and compares. Trials that are missing make holes."""
    return Board(plan.suite, tuple(_task_board(plan, store, task) for task in plan.suite.tasks))


@dataclass(frozen=True, eq=False)
class _Cells:
    """One method's scores on the cells (a person under a seed), cells in the same order for every complete method."""

    person: np.ndarray
    seed: np.ndarray
    blocks: dict[tuple[int, bool], pl.DataFrame]  # (shots, swapped) -> a row per cell
    steered: pl.DataFrame | None  # `steer.outcomes`, a row per (shots, n, cell)
    written: pl.DataFrame | None  # `written.outcomes`, a row per (shots, person written to under a seed)
    beside: pl.DataFrame | None  # `written.best_of`, a row per (shots, n, such a person)


def _task_board(plan: Plan, store: Store, task: Task) -> TaskBoard:
    method_labels = labels(list(plan.suite.methods))
    trials: dict[Method, list[Trial]] = {}
    for trial in plan.trials:
        if trial.task == task:
            trials.setdefault(trial.method, []).append(trial)
    manifests = {t.key: store.read("trials", t.key) for ts in trials.values() for t in ts}
    first_one = next((m for m in trials if m.name == REFERENCE), None)  # of several settings, as for gains
    references = {t.seed: t for t in trials.get(first_one, []) if manifests[t.key]}
    cells, rows, codes = {}, {}, Counter()
    for method, wanted in trials.items():
        done = [t for t in wanted if manifests[t.key]]
        hole = None
        if missing := [t for t in wanted if not manifests[t.key]]:
            note = store.failure(missing[0].key)
            hole = f"{len(missing)} of {len(wanted)} seeds {'failed: ' + note['reason'] if note else 'not run yet'}"
        facts = [manifests[t.key]["facts"] for t in done]
        codes.update(f["code"] for f in facts)
        rows[method] = Row(
            method, method_labels[method], tuple(t.key for t in done), method.privileged, hole, costs=_costs(facts)
        )
        if done:
            cells[method] = _cells(store, done, manifests, references)
    complete = [m for m in rows if m in cells and rows[m].hole is None]
    ranked = [m for m in complete if not rows[m].line]
    note = None
    for method in cells:
        rows[method] = dataclasses.replace(rows[method], **_own(cells[method], task, method in complete))
    differences, verdict = [], "nothing has run"
    if complete:
        first = cells[complete[0]]
        accuracy = {k: np.stack([cells[m].blocks[k, False]["accuracy"] for m in complete]) for k in task.shots}
        for shots in task.shots:
            differences += _differences(accuracy[shots], first, shots, [method_labels[m] for m in complete])
        top = accuracy[max(task.shots)][[complete.index(m) for m in ranked]]
        reference = next((i for i, m in enumerate(ranked) if m.name == REFERENCE), None)
        holed = any(m.name == REFERENCE for m in rows)
        verdict = f"no verdict: {REFERENCE} has a hole" if holed else f"no verdict: the suite has no {REFERENCE}"
        if ranked:
            found = stats.ranks(top, first.person, first.seed)
            note = found.note
            for i, m in enumerate(ranked):
                rows[m] = dataclasses.replace(
                    rows[m], rank=(int(found.rank[i]), int(found.best[i]), int(found.worst[i]))
                )
        if reference is not None:
            gains = stats.gains(top, first.person, first.seed, reference)
            per_person = _by_person(first, top)
            for i, m in enumerate(ranked):
                gain = Point(float(gains.value[i]), _or_none(gains.low[i]), _or_none(gains.high[i]))
                users = _users(cells[m], max(task.shots), per_person[i] - per_person[reference])
                worse = (
                    None if i == reference else float((users["gain"] < -1e-12).mean())
                )  # a tie up to rounding is a tie
                rows[m] = dataclasses.replace(
                    rows[m], gain=gain, holm=_or_none(gains.holm[i]), worse=worse, users=users
                )
            if len(ranked) > 1:
                own = [float(values.mean()) for values in top]
                verdict = _verdict(
                    gains, plan.suite.margin, [method_labels[m] for m in ranked], own, [rows[m].swapped for m in ranked]
                )
    order = sorted(rows.values(), key=lambda r: (r.rank is None, r.rank or (0,), not r.line, -_at(r, task)))
    flags = [f"results of {len(codes)} code states: {', '.join(sorted(codes))}"] if len(codes) > 1 else []
    flags += _changed(trials, manifests)
    readings = [m["facts"].get("readings", {}) for m in manifests.values() if m]
    if agree := [r["orders_agree"] for r in readings if "orders_agree" in r]:
        flags.append(f"a language model plays the users: in {np.mean(agree):.0%} of pairs both orders agree")
    flags += [
        f"{r.label}: a second run of {k} found something else" for r in order for k in r.keys if store.diverged(k)
    ]
    return TaskBoard(
        task=task,
        label=labels([task])[task],
        rows=tuple(order),
        people=plan.people[task],
        seeds=len(plan.suite.seeds),
        note=note,
        verdict=verdict,
        refusals={method_labels[r.method]: r.reason for r in plan.refusals if r.task == task},
        flags=tuple(flags),
        differences=pl.DataFrame(differences),
    )


def _changed(trials: dict[Method, list[Trial]], manifests: dict) -> list[str]:
    """Where the file of the task or of a method is not the one its results came from."""
    found = []
    for method, wanted in trials.items():
        done = [t for t in wanted if manifests[t.key]]
        now = source_state(wanted[0])
        changed = [k for k in now if any(manifests[t.key]["facts"]["source"][k] != now[k] for t in done)]
        found += [(("task", wanted[0].task.name) if kind == "task" else ("method", method.name)) for kind in changed]
    told = "changed since its results were made: if scores should change with it, raise its `version`"
    return [f"{kind} {name}: its file {told}" for kind, name in dict.fromkeys(found)]


def _at(row: Row, task: Task) -> float:
    return row.curves["accuracy"][max(task.shots)].value if row.curves else 0.0


def _cells(store: Store, trials: list[Trial], manifests: dict, references: dict[int, Trial]) -> _Cells:
    populations: dict[str, int] = {}
    tables, others = [], {"steered": [], "written": [], "beside": []}
    for trial in sorted(trials, key=lambda t: t.seed):
        population = store.read("tasks", trial.task_key)["facts"]["population"]
        number = populations.setdefault(population, len(populations))
        table = load_scores(store, trial, manifests[trial.key]).filter(panel=PANEL)
        person = pl.col("person").cast(pl.Int64) + number * 2**32  # seeds of a simulator draw new people
        tables.append(table.with_columns(person, seed=pl.lit(trial.seed)))
        found = best_of.outcomes(store, trial, references.get(trial.seed)), text_worth.outcomes(store, trial)
        for own, outcomes in zip(others.values(), (*found, text_worth.best_of(store, trial)), strict=True):
            if outcomes is not None:
                own.append(outcomes.with_columns(person, seed=pl.lit(trial.seed)))
    blocks = pl.concat(tables).sort("seed", "person").partition_by("shots", "swapped", as_dict=True)
    any_block = next(iter(blocks.values()))
    joined = {name: pl.concat(own, how="diagonal") if own else None for name, own in others.items()}
    order = {"steered": ("shots", "n"), "written": ("shots",), "beside": ("shots", "n")}
    joined = {k: None if t is None else t.sort(*order[k], "seed", "person") for k, t in joined.items()}
    return _Cells(any_block["person"].to_numpy(), any_block["seed"].to_numpy(), blocks, **joined)


def _own(cells: _Cells, task: Task, complete: bool) -> dict:
    """What a row says without regard to any other: curves, swap control, worst users."""
    known = [m for m in MEANS if not cells.blocks[task.shots[0], False][m].null_count()]
    curves: dict[str, dict[int, Point]] = {metric: {} for metric in (*known, "ece")}
    for shots in task.shots:
        block = cells.blocks[shots, False]
        values = np.stack([block[metric] for metric in known])
        found = stats.estimate(values, cells.person, cells.seed)
        low, high = np.clip(found.interval(), 0, [MEANS[metric] for metric in known])
        for i, metric in enumerate(known):
            curves[metric][shots] = Point(
                float(found.value[i]), *(_or_none(x[i]) if complete else None for x in (low, high))
            )
        seeds = np.unique(cells.seed)
        bins = [
            np.stack([block[c].to_numpy()[cells.seed == s].sum(0) for s in seeds]) for c in ("bin_n", "bin_p", "bin_y")
        ]
        error = calibration_error(*bins)[None]  # one per seed: the unit of its interval is the seed
        found = stats.estimate(error, np.arange(len(seeds)), seeds)
        limits = np.clip(found.interval(), 0, 1)
        curves["ece"][shots] = Point(float(found.value[0]), *(_or_none(x[0]) if complete else None for x in limits))
    last = cells.blocks[max(task.shots), False]
    people = last.group_by("person").agg(
        correct=(pl.col("accuracy") * pl.col("asked")).sum(), asked=pl.col("asked").sum()
    )
    people = people.sort("person")
    swapped = cells.blocks.get((max(task.shots), True))
    return {
        "curves": curves,
        "swapped": None if swapped is None else float(swapped["accuracy"].mean()),
        "worst": stats.worst_users(people["correct"].to_numpy(), people["asked"].to_numpy()),
        "best_of": {} if cells.steered is None else _best_of(cells, complete),
        "written": {} if cells.written is None else _written(cells, complete),
    }


def _best_of(cells: _Cells, complete: bool) -> dict[int, BestOf]:
    found = {}
    for (shots,), table in cells.steered.partition_by("shots", as_dict=True, maintain_order=True).items():
        counts = table["n"].unique(maintain_order=True).to_list()

        def by_n(name: str, table=table, counts=counts) -> np.ndarray:
            """float64[counts, C], cells in the order of all others."""
            return table[name].to_numpy().reshape(len(counts), -1)

        def points(values: np.ndarray, least: float, counts=counts) -> dict[int, Point]:
            score = stats.estimate(values, cells.person, cells.seed)
            low, high = np.clip(score.interval(), least, 1)
            limits = [(_or_none(a), _or_none(b)) if complete else (None, None) for a, b in zip(low, high, strict=True)]
            return {n: Point(float(v), *ends) for n, v, ends in zip(counts, score.value, limits, strict=True)}

        def worse(name: str) -> float:
            return float((_by_person(cells, by_n(name)[-1:]) < -1e-12).mean())  # a tie up to rounding is a tie

        gain, room = by_n("gain"), by_n("room")[0]
        if room.mean() <= 0:
            return {}  # no candidate is better than another
        peak = best_of.overoptimised(gain, cells.person, cells.seed)
        against = "win_shared" in table.columns and not table["win_shared"].null_count()
        found[shots] = BestOf(
            gain=points(best_of.normalised(gain, room), -np.inf),
            win_random=points(by_n("win_random"), 0),
            win_shared=points(by_n("win_shared"), 0) if against else {},
            worse_random=worse("gain"),
            worse_shared=worse("over_shared") if against else None,
            overoptimised=None if peak is None or not complete else counts[peak],
        )
    return found


def _written(cells: _Cells, complete: bool) -> dict[int, Written]:
    """Intervals are over people and seeds, as all others."""
    found = {}
    for (shots,), table in cells.written.partition_by("shots", as_dict=True, maintain_order=True).items():
        person, seed = table["person"].to_numpy(), table["seed"].to_numpy()

        def points(values: dict, person=person, seed=seed) -> dict:
            score = stats.estimate(np.stack(list(values.values())), person, seed)
            least = [0 if name in LIMITS else -np.inf for name in values]
            low, high = np.clip(score.interval(), least, [LIMITS.get(name, np.inf) for name in values])
            limits = [(_or_none(a), _or_none(b)) if complete else (None, None) for a, b in zip(low, high, strict=True)]
            return {k: Point(float(v), *ends) for k, v, ends in zip(values, score.value, limits, strict=True)}

        known = [c for c in table.columns if c not in ("person", "seed", "shots", "above", "room")]
        scores = {name: table[name].to_numpy() for name in known if not table[name].null_count()}
        beside = {}
        if "room" in table.columns and (room := table["room"].to_numpy()).mean() > 0:
            scores["normalised"] = best_of.normalised(table["above"].to_numpy(), room)
            chosen = cells.beside.filter(shots=shots).partition_by("n", as_dict=True, maintain_order=True)
            beside = {n: best_of.normalised(part["gain"].to_numpy(), room) for (n,), part in chosen.items()}
        found[shots] = Written(points(scores), points(beside) if beside else {})
    return found


def _costs(facts: list[dict]) -> dict[str, float]:
    names = ["fit_seconds", "adapt_seconds_per_user", "bytes_per_user", "peak_memory_mb"]
    if facts and all(f.get("written_tokens_per_second") for f in facts):
        names.append("written_tokens_per_second")
    return {name: median(f[name] for f in facts) for name in names} if facts else {}


def _by_person(cells: _Cells, values: np.ndarray) -> np.ndarray:
    """float64[M, people]: each person's mean over the seeds that tested him, people ascending."""
    people, code = np.unique(cells.person, return_inverse=True)
    return np.stack([np.bincount(code, row, minlength=len(people)) for row in values]) / np.bincount(code)


def _users(cells: _Cells, shots: int, gain: np.ndarray) -> pl.DataFrame:
    block = cells.blocks[shots, False]
    users = block.group_by("person").agg(pl.col("asked").sum(), pl.col("accuracy").mean()).sort("person")
    return users.with_columns(gain=pl.Series(gain))


def _differences(values: np.ndarray, cells: _Cells, shots: int, names: list[str]) -> list[dict]:
    found = stats.differences(values, cells.person, cells.seed)
    low, high = found.interval()
    return [
        {
            "shots": shots,
            "a": names[a],
            "b": names[b],
            "value": float(found.value[a, b]),
            "low": _or_none(low[a, b]),
            "high": _or_none(high[a, b]),
        }
        for a in range(len(names))
        for b in range(len(names))
        if a != b
    ]


def _verdict(gains: stats.Gains, margin: float, names: list[str], own: list[float], swapped: list[float | None]) -> str:
    """What follows for the task. A gain of which the swap control takes less than the margin is not personal.

    own, swapped: each method's accuracy, and with another user's state.
    """
    if gains.note:
        return f"no verdict: {gains.note}, no interval"
    found = stats.verdict(gains, margin)
    best = names[found.best]
    value, low, high = (np.clip(x[found.best], -1, 1) for x in (gains.value, gains.joint_low, gains.joint_high))
    limits = f"{value:+.3f} over {REFERENCE}, limits for all methods at once {low:+.3f} to {high:+.3f}"
    if found.text == "gain":
        sure = [i for i in range(len(names)) if i != gains.reference and gains.joint_low[i] > margin]
        personal = [i for i in sure if swapped[i] is None or own[i] - swapped[i] >= margin]
        if not personal:
            kept = f"{swapped[found.best]:.3f} of {own[found.best]:.3f}"
            return (
                f"better, but not personal: {best} gains {limits} (margin {margin:g}), and is as good when people are "
                f"answered with another's state ({kept})"
            )
        best = max(personal, key=lambda i: gains.value[i])
        value, low, high = (np.clip(x[best], -1, 1) for x in (gains.value, gains.joint_low, gains.joint_high))
        limits = f"{value:+.3f} over {REFERENCE}, limits for all methods at once {low:+.3f} to {high:+.3f}"
        return f"personalising pays: {names[best]} gains {limits} (margin {margin:g})"
    if found.text == "cannot tell":
        people = f"about {found.people} people could, or more seeds" if found.people else "more seeds might"
        return f"cannot tell: {best} is at {limits} (margin {margin:g}; {people})"
    highest = max(h for i, h in enumerate(gains.joint_high) if i != gains.reference)
    return f"nothing to personalise here: no method gains more than {highest:+.3f} over {REFERENCE} (margin {margin:g})"


def _or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None

"""The board across tasks: which method is best on a task drawn at random, and what each gains in each family of tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from math import comb
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata, t

from harness.board.board import (
    REFERENCE_METHOD,
    SIMULATED,
    Across,
    AcrossRow,
    Point,
    Row,
    ServingSet,
    TaskBoard,
    Transfer,
)
from harness.method import Method

LEAST_TASKS = 3  # tasks of different names: fewer give no interval over tasks
LINE = "bayes"  # the method that knows the most that can be reached
LEAST_ROOM = 0.02  # accuracy between the reference and the line: a share of less than that is mostly noise
SERVING_SETS = (1, 2, 3)  # sizes of the sets of methods that serve as many people as possible
MAX_SETS = 5000  # sets of one size that are tried: all of three of 31 methods
SHUFFLES = 2000  # of methods within tasks: the 95 % limit then has a standard error of half a percent
MAX_GAPS = 2**21  # differences of two methods on a task that are in memory at once: 16 MB
DRAWS = 2000  # of the interval of a rank correlation, whose limits then vary by about .01


def compare_across(tasks: tuple[TaskBoard, ...]) -> Across | None:
    """Compare the methods across tasks, and across the simulated ones and the others, as `_compare`."""
    whole = _compare(tasks)
    if whole is None:
        return None
    simulated = tuple(task for task in tasks if task.task.family == SIMULATED)
    others = tuple(task for task in tasks if task.task.family != SIMULATED)
    if not simulated or not others:
        return whole
    parts = {SIMULATED: _compare(simulated), "other": _compare(others)}
    return replace(whole, parts={name: part for name, part in parts.items() if part})


def _compare(tasks: tuple[TaskBoard, ...]) -> Across | None:
    """Compare the methods across tasks; None with fewer than LEAST_TASKS different tasks or fewer than three methods.

    Settings of one task count together as one. A method without a result on one of the tasks is left out of everything: a mean over the tasks that it can do would be
    a mean over easier ones. Tasks on which the reference has no rank are left out too.
    """
    tasks = tuple(one for one in tasks if any(r.method.name == REFERENCE_METHOD and r.rank for r in one.rows))
    if len({task.task.name for task in tasks}) < LEAST_TASKS:
        return None
    ranked = [{row.method: row for row in task.rows if row.rank} for task in tasks]
    labels = {row.method: row.label for task in tasks for row in task.rows if not row.privileged}
    complete = [m for m in labels if all(m in rows for rows in ranked)]
    # a variant takes no part in the comparison, in which several of one method would count as several opponents
    methods = [m for m in complete if m.variant_of not in complete]
    if len(methods) < 3:
        return None
    # neither those of the table nor the lines, which are never ranked
    elsewhere = {labels[m] for m in complete} | {r.label for task in tasks for r in task.rows if r.privileged}
    missing = {
        label: sum(all(row.label != label for row in rows.values()) for rows in ranked)
        for label in dict.fromkeys([*labels.values(), *(label for task in tasks for label in task.refusals)])
        if label not in elsewhere
    }

    def accuracies(method: Method) -> list[float]:
        return [rows[method].curves["accuracy"][task.shots].value for task, rows in zip(tasks, ranked, strict=True)]

    accuracy = np.array([accuracies(m) for m in methods])
    names = [task.task.name for task in tasks]
    family = np.array([task.task.family for task in tasks])
    families = {str(f): int((family == f).sum()) for f in dict.fromkeys(family)}
    units, gains = _gains_by_family(complete, tasks, family)

    def row_of(method: Method, place: int, found: _Standings, variants: tuple[AcrossRow, ...] = ()) -> AcrossRow:
        """Return the row of the method that stands at this place."""
        better = found.better
        return AcrossRow(
            labels[method],
            _mean_over_tasks(found.wins[place]),
            rank=(int(found.rank[place]), 1 + int(better[:, place].sum()), len(methods) - int(better[place].sum())),
            mean_rank=float(found.mean_rank[place]),
            families={f: gains[f][complete.index(method)] for f in families},
            better_than=tuple(labels[methods[k]] for k in np.flatnonzero(better[place])),
            variants=variants,
        )

    def variant_row(variant: Method, place: int) -> AcrossRow:
        """Return the row of a variant, as if it stood in the place of its method."""
        compared = accuracy.copy()
        compared[place] = accuracies(variant)
        return row_of(variant, place, _standings(compared, names))

    found = _standings(accuracy, names)
    rows = [
        row_of(method, i, found, tuple(variant_row(m, i) for m in complete if m.variant_of == method))
        for i, method in enumerate(methods)
    ]
    offered = [m for m in methods if m.family != "control"]
    rows.sort(key=lambda row: (row.rank, row.mean_rank))
    return Across(
        rows=tuple(rows),
        verdict=across_verdict(rows),
        tasks=len(tasks),
        families=families,
        units=units,
        left_out={label: f"no result on {n} of {len(tasks)} tasks" for label, n in missing.items()},
        transfers=tuple(_transfers(wins_by_task(accuracy), family, families)),
        serving=tuple(serving_sets([labels[m] for m in offered], _scores_of_people(offered, ranked))),
    )


class _Standings(NamedTuple):
    """How M methods compare on N tasks of different names."""

    wins: np.ndarray  # float64[M, N], the mean over a task's settings of `wins_by_task`
    rank: np.ndarray  # [M], by wins; tied methods share the best of their ranks
    mean_rank: np.ndarray  # float64[M], mean over settings of the rank by accuracy
    better: np.ndarray  # bool[M, M], see `surely_better`


def _standings(accuracy: np.ndarray, names: list[str]) -> _Standings:
    """Compare methods by their accuracy, float64[M, T], on T settings of tasks with these names."""
    wins = _means_by_name(wins_by_task(accuracy), names)
    rank = rankdata(-wins.mean(1).round(12), method="min")
    return _Standings(wins, rank, rankdata(-accuracy.round(12), axis=0).mean(1), surely_better(wins))


def _means_by_name(wins: np.ndarray, names: list[str]) -> np.ndarray:
    """Return float64[M, N]: the mean over the settings of each task of the wins, float64[M, T]; names: of the T settings."""
    return np.stack([wins[:, [n == name for n in names]].mean(1) for name in dict.fromkeys(names)], 1)


def _mean_over_tasks(wins: np.ndarray) -> Point:
    """Return the mean of float64[N] with t limits over tasks."""
    half = t.ppf(0.975, len(wins) - 1) * wins.std(ddof=1) / len(wins) ** 0.5
    low, high = np.clip([wins.mean() - half, wins.mean() + half], 0, 1)
    return Point(float(wins.mean()), float(low), float(high))


def wins_by_task(accuracy: np.ndarray) -> np.ndarray:
    """Return float64[M, T]: the share of the other methods that a method beats on each task; a tie is one half.

    accuracy: float64[M, T]. Rounding errors are no difference.
    """
    gap = accuracy[:, None] - accuracy[None]
    beaten = np.where(np.abs(gap) < 1e-12, 0.5, gap > 0)
    return (beaten.sum(1) - 0.5) / (len(accuracy) - 1)  # less the tie with itself


def surely_better(wins: np.ndarray) -> np.ndarray:
    """Return bool[M, M]: [a, b] is true where a is surely better than b on tasks like these, for all pairs at once.

    wins: float64[M, N], shares of wins on N tasks. Each pair's mean difference is divided by its standard error, whose
    variance is averaged with the mean variance of all pairs: a few tasks on which a pair happens to differ equally would
    otherwise have none. The limit is the largest such ratio in 95 % of draws that shuffle the methods within each task. In
    simulations of 8 or 14 equal methods on 3 to 12 tasks, 1 to 6 % of boards call any method better than another; ranks by
    t intervals do so on 8 to 24 %.
    """
    rng = np.random.default_rng(0)  # fixed, so that the same board has the same ranks
    count = len(wins)

    def ratios(wins: np.ndarray) -> np.ndarray:
        """Return float[..., M, M] for wins float[..., M, N]."""
        gap = wins[..., :, None, :] - wins[..., None, :, :]
        variance = gap.var(-1, ddof=1) / gap.shape[-1]
        pooled = variance.sum((-2, -1), keepdims=True) / (count * (count - 1))
        return gap.mean(-1) / np.sqrt((variance + pooled) / 2 + 1e-30)

    at_once = max(1, MAX_GAPS // (count * wins.size))  # bounds the memory
    largest = []
    for start in range(0, SHUFFLES, at_once):
        order = rng.random((min(at_once, SHUFFLES - start), *wins.shape)).argsort(1)
        largest.append(ratios(np.take_along_axis(wins[None], order, 1)).max((1, 2)))
    return ratios(wins) > np.quantile(np.concatenate(largest), 0.95)


def across_verdict(rows: list[AcrossRow]) -> str:
    """Return the sentence that says which methods may be the best on tasks like these; `rows` is sorted by rank."""
    first = [row for row in rows if row.rank[1] == 1]
    wins = rows[0].wins
    limits = "" if wins.low is None or wins.high is None else f", 95 % limits {wins.low:.0%} to {wins.high:.0%}"
    share = f"{wins.value:.0%}{limits}"
    if len(first) == 1:
        return (
            f"{first[0].label} is the best of {len(rows)} methods: on a task like these it beats another method with "
            f"probability {share}"
        )
    if len(first) == len(rows):
        among = f"all {len(rows)} methods"
        return f"no difference can be told among {among} on tasks like these ({rows[0].label} wins {share})"
    behind = [row for row in rows if row not in first]
    if len(behind) < len(first) / 2:
        among, others = f"{len(first)} of {len(rows)} methods", listed([row.label for row in behind])
    else:
        among, others = listed([row.label for row in first]), f"the other {len(behind)}"
    are = "is" if len(behind) == 1 else "are"
    return (
        f"no difference can be told among {among} on tasks like these ({rows[0].label} wins {share}); {others} {are} "
        "surely behind one of them"
    )


def listed(labels: Sequence[str]) -> str:
    """Return the labels as `a, b and c`."""
    return " and ".join([", ".join(labels[:-1]), labels[-1]] if labels[1:] else labels)


def interquartile_mean(values: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the mean of the middle half of the values, and float64[n]: the weight of each.

    A quarter of the weight is taken from each end, so a value at the edge may count in part.
    """
    n = len(values)
    order = np.argsort(values, kind="stable")
    edges = np.clip(np.arange(n + 1) / n, 0.25, 0.75)
    weight = np.empty(n)
    weight[order] = np.diff(edges) / 0.5
    return float(weight @ values), weight


def _gains_by_family(
    methods: list[Method], tasks: tuple[TaskBoard, ...], family: np.ndarray
) -> tuple[dict[str, str], dict[str, list[Point]]]:
    """Return each family's unit, and its gains in the methods' order.

    Where the best that can be reached is known on every task of a family, gains are shares of it, so that tasks with much
    to gain do not drown the others. Where it is not, they are accuracy.
    """
    units, gains = {}, {}
    for name in dict.fromkeys(family):
        own = [task for task, f in zip(tasks, family, strict=True) if f == name]
        room = [_room(task) for task in own]
        known = all(r is not None and r >= LEAST_ROOM for r in room)
        units[str(name)] = "share of the possible gain" if known else "accuracy"
        scale = np.array([r if known and r else 1.0 for r in room])
        of_family = []
        for method in methods:
            value, se, df = np.array([_gain_and_error(task, method) for task in own]).T
            mean, weight = interquartile_mean(value / scale)
            half = half_width(weight * se / scale, df)
            of_family.append(Point(mean, mean - half, mean + half) if np.isfinite(half) else Point(mean))
        gains[str(name)] = of_family
    return units, gains


def _row_of(task: TaskBoard, name: str) -> Row | None:
    return next((row for row in task.rows if row.method.name == name and row.curves), None)


def _room(task: TaskBoard) -> float | None:
    """Return by how much the line is above the reference, in accuracy; None where there is no line."""
    line, reference = _row_of(task, LINE), _row_of(task, REFERENCE_METHOD)
    if line is None or reference is None:
        return None
    return line.curves["accuracy"][task.shots].value - reference.curves["accuracy"][task.shots].value


def half_width(se: np.ndarray, df: np.ndarray) -> float:
    """Return half of the 95 % limits of a sum of independent estimates; NaN where a standard error is.

    se, df: float64[n], standard errors and their degrees of freedom, which are few with few seeds. Those of the sum are
    Satterthwaite's.
    """
    variance = float((se**2).sum())
    if not variance:
        return 0.0
    return float(t.ppf(0.975, variance**2 / (se**4 / df).sum()) * variance**0.5)


def _gain_and_error(task: TaskBoard, method: Method) -> tuple[float, float, float]:
    """Return a method's gain in accuracy over the reference, its standard error and degrees of freedom; NaN with few seeds."""
    row = next(row for row in task.rows if row.method == method)
    reference = next(r.label for r in task.rows if r.method.name == REFERENCE_METHOD and r.rank)
    if row.label == reference:
        return 0.0, 0.0, 1.0
    told = task.difference(row.label, reference)
    return tuple(np.nan if told[name] is None else told[name] for name in ("value", "se", "df"))  # type: ignore[return-value]


def _transfers(wins: np.ndarray, family: np.ndarray, families: dict[str, int]) -> list[Transfer]:
    """Return how alike each two families of at least two task settings order the methods."""
    rng = np.random.default_rng(0)  # fixed, so that the same board has the same limits
    found = []
    for one, other in combinations([f for f, n in families.items() if n > 1], 2):
        rows = rng.integers(len(wins), size=(DRAWS, len(wins)))
        drawn, whole = [], []
        for place in (np.flatnonzero(family == f) for f in (one, other)):
            tasks = place[rng.integers(len(place), size=(DRAWS, len(place)))]
            drawn.append(wins[rows[:, :, None], tasks[:, None]].mean(2))
            whole.append(wins[None, :, place].mean(2))
        low, high = np.nanquantile(rank_correlations(*drawn), [0.025, 0.975])
        found.append(Transfer((one, other), Point(float(rank_correlations(*whole)[0]), float(low), float(high))))
    return found


def rank_correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return float64[n]: Spearman's correlation of each row of a and of b, float64[n, M]; NaN where all of a row is equal."""
    ranks = [rankdata(x, axis=1) for x in (a, b)]
    one, other = (r - r.mean(1, keepdims=True) for r in ranks)
    with np.errstate(invalid="ignore"):
        return (one * other).sum(1) / np.sqrt((one**2).sum(1) * (other**2).sum(1))


def _scores_of_people(methods: list[Method], ranked: list[dict[Method, Row]]) -> list[np.ndarray]:
    """Return for every task float64[M, people]: each person's accuracy under each method."""
    return [np.stack([rows[m].users["accuracy"].to_numpy() for m in methods]) for rows in ranked]  # type: ignore[index]


def serving_sets(labels: list[str], scores: list[np.ndarray]) -> list[ServingSet]:
    """Return for each of SERVING_SETS the set of methods that leaves the smallest group (stable committees;
    Jiang, Munagala and Wang 2020).

    A group is all people who have a higher accuracy under one method outside the set than under each of its members. With
    few queries a person, chance alone makes such groups.
    Sizes of which there are more than MAX_SETS are left out.
    scores: for every task float64[M, people].
    """
    found = []
    for size in SERVING_SETS:
        if size >= len(labels) or comb(len(labels), size) > MAX_SETS:
            break
        best = None
        for chosen in combinations(range(len(labels)), size):
            own = list(chosen)
            # float64[M]: share of people who prefer each method to all members; of members it is 0
            left = np.mean([(s > s[own].max(0) + 1e-12).mean(1) for s in scores], axis=0)
            most = int(left.argmax())
            if best is None or left[most] < best.left - 1e-12:
                best = ServingSet(tuple(labels[i] for i in own), float(left[most]), labels[most])
        assert best is not None
        found.append(best)
    return found

"""Measurement of the checks of claims: a number for each check, with its confidence limits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from scipy.interpolate import make_interp_spline
from scipy.stats import t as t_distribution

from harness.claims.results import NoNumberError, Results, SelectedValues, paired_difference
from harness.claims.schema import Check, Selection
from harness.errors import UserError
from harness.fields import field_values
from harness.scores import stats

POWER_DRAWS = 20_000  # the standard error of a power is then below .004


class Measurement(NamedTuple):
    """A number with its confidence limits, None where there are none."""

    value: float
    low: float | None = None
    high: float | None = None
    note: str = ""
    se: float | None = None  # standard error, None where the limits are not those of a t interval
    df: float = np.inf  # degrees of freedom of the t interval
    logarithmic: bool = False  # the interval is that of the logarithm

    def power(self, truth: float, least: float, most: float, level: float) -> float | None:
        """Return how often an interval of this precision would lie between `least` and `most` if `truth` were true.

        The estimate varies by its standard error, and the standard error by its degrees of freedom, as measured here.
        None where the precision is unknown.
        """
        if self.se is None or not np.isfinite(self.se):
            return None
        rng = np.random.default_rng(0)
        values = self.se * rng.standard_normal(POWER_DRAWS)
        spread = np.sqrt(rng.chisquare(self.df, POWER_DRAWS) / self.df) if np.isfinite(self.df) else 1.0
        half = self.se * spread * t_distribution.ppf((1 + level) / 2, self.df)
        if self.logarithmic:
            with np.errstate(divide="ignore"):
                truth, least, most = (float(np.log(max(x, 0.0))) for x in (truth, least, most))
        return float(((truth + values - half >= least) & (truth + values + half <= most)).mean())


def measure_check(check: Check, results: Results, level: float = 0.95) -> Measurement:
    """Measure a check (schema.py explains the measures). Raises NoNumberError where the check has no number."""
    if check.measure == "trend":
        return _interval_over_seeds(*_trend_by_seed(check, results), level)
    if check.measure == "answers":
        return _answers_needed(check, results, level)
    a = results.selected_values(check.of)
    if check.over is not None:
        b = results.selected_values(check.over)
        return (
            _ratio_of_spreads(a.value, b.value, level) if check.measure == "spread" else _ratio_of_values(a, b, level)
        )
    found = a if check.minus is None else paired_difference(a, results.selected_values(check.minus))
    if found.cells is None:
        return _interval_over_seeds(found.value, found.seeds, level)
    values, person, seed = (found.cells[c].to_numpy() for c in ("value", "person", "seed"))
    return _with_limits(stats.estimate_means(values[None], person, seed), level)


def _interval_over_seeds(values: np.ndarray, seeds: np.ndarray, level: float) -> Measurement:
    """Return the mean of one value per seed, with its t interval."""
    return _with_limits(stats.estimate_means(np.asarray(values)[None], np.arange(len(seeds)), seeds), level)


def _with_limits(found: stats.Estimate, level: float) -> Measurement:
    if found.note:
        return Measurement(float(found.value[0]), note=found.note)
    low, high = (float(x[0]) for x in found.interval(level))
    return Measurement(float(found.value[0]), low, high, se=float(found.se[0]), df=float(found.df[0]))


def _ratio_of_values(a: SelectedValues, b: SelectedValues, level: float) -> Measurement:
    """Return the geometric mean of the seeds' ratios, with a t interval of their logarithms."""
    if min(a.value.min(), b.value.min()) <= 0:
        raise NoNumberError("a ratio needs numbers above 0 under every seed, and one is 0 or negative")
    found = _interval_over_seeds(np.log(a.value / b.value), a.seeds, level)
    low, high = (None if x is None else float(np.exp(x)) for x in (found.low, found.high))
    return found._replace(value=float(np.exp(found.value)), low=low, high=high, logarithmic=True)


def _ratio_of_spreads(a: np.ndarray, b: np.ndarray, level: float) -> Measurement:
    """Return the ratio of standard deviations of paired samples with the limits of Pitman (1939) and Morgan (1939).

    The limits enclose every ratio q at which the correlation of a / q + b and a / q - b is not significant. (For the
    true ratio it is zero.) This is their closed form.
    """
    if len(a) < 3 or a.std() == 0 or b.std() == 0:
        raise NoNumberError("the measure `spread` needs at least three seeds, with different values")
    ratio, r, n = float(a.std(ddof=1) / b.std(ddof=1)), np.corrcoef(a, b)[0, 1], len(a)
    k = 1 + 2 * (1 - r**2) * t_distribution.ppf((1 + level) / 2, n - 2) ** 2 / (n - 2)
    factor = float(np.sqrt(k + np.sqrt(k**2 - 1)))
    return Measurement(ratio, ratio / factor, ratio * factor)


def sweep_of_trend(check: Check, results: Results) -> tuple[list[float], list[Selection]]:
    """Return the values of the field `along` of a check with the measure `trend`, and the selection for each value.

    Raises UserError where the suite does not sweep that field, or sweeps other fields too.
    """
    tasks, methods = (
        results.matching_settings("task", check.of.task),
        results.matching_settings("method", check.of.method),
    )
    found: dict[str, list[Any]] = {
        kind: [field_values(s).get(str(check.along)) for s in every]
        for kind, every in (("task", tasks), ("method", methods))
    }
    kind = "task" if len(set(found["task"])) > 1 else "method"
    x, settings = found[kind], tasks if kind == "task" else methods
    if len(set(x)) < 2:
        raise UserError(f"there is no sweep along {check.along!r}", "give that field a list of values in the suite")
    if not all(type(v) in (int, float) for v in x):
        raise UserError(f"{check.along} has values that are not numbers", "set `along` to a field of numbers")
    if len(set(x)) < len(x):
        raise UserError(
            f"several {kind} settings have the same {check.along}", "select one of them by adding fields to `of`"
        )
    return list(map(float, x)), [replace(check.of, **{kind: setting}) for setting in settings]


def _trend_by_seed(check: Check, results: Results) -> tuple[np.ndarray, np.ndarray]:
    """Return for each seed the change over the whole range of the field, by a least-squares line, and the seeds."""
    along, selections = sweep_of_trend(check, results)
    found = [results.selected_values(selection) for selection in selections]
    x = (np.array(along) - min(along)) / (max(along) - min(along))
    return np.polyfit(x, np.stack([v.value for v in found]), 1)[0], found[0].seeds


def _answers_needed(check: Check, results: Results, level: float) -> Measurement:
    """Return how many answers `of` needs to reach the score of `over`, as a multiple of the shots of `over`.

    Scores are means over seeds, and the score of `of` is interpolated between its numbers of shots. The limits enclose
    the numbers of answers at which a paired t test over seeds finds no significant difference between the two scores
    (as Fieller's limits do). If `of` does not reach the goal at any of its numbers of shots, the value is a lower bound
    and has no upper limit.
    """
    assert check.over is not None  # Check requires `over` for this measure
    goal, task = results.selected_values(check.over), results.single_setting("task", check.of.task)
    goal_shots = check.over.shots
    if goal_shots is None:
        goal_shots = max(results.single_setting("task", check.over.task).shots)
    if goal_shots == 0 or len(task.shots) < 2:
        raise NoNumberError(
            "the measure `answers` needs `over` at one shot or more, and `of` on a task with several numbers of shots"
        )
    ahead = np.stack([results.selected_values(replace(check.of, shots=n)).value - goal.value for n in task.shots])
    steps = [np.linspace(*ends, 1001) for ends in zip(task.shots, task.shots[1:], strict=False)]
    shots = np.unique(np.concatenate(steps))
    found = stats.estimate_means(
        make_interp_spline(task.shots, ahead, k=1)(shots), np.arange(len(goal.seeds)), goal.seeds
    )
    reached = shots[found.value >= 0]
    value, note = (
        (reached[0], "") if len(reached) else (shots[-1], f"a lower bound: not reached with {shots[-1]:.0f} answers")
    )
    if found.note:
        return Measurement(float(value / goal_shots), note="; ".join(filter(None, (note, found.note))))
    low, high = found.interval(level)
    not_below, not_above = shots[high >= 0], shots[low <= 0]  # not significantly below, or above, the goal
    least = 0.0 if high[0] >= 0 else not_below[0] if len(not_below) else shots[-1]
    most = np.inf if low[-1] <= 0 else not_above[-1] if len(not_above) else shots[0]
    return Measurement(float(value / goal_shots), float(least / goal_shots), float(most / goal_shots), note)

"""Claims judged by finished trials: numbers with their limits, and verdicts; knows nothing of any one paper.

Every number has an interval. `value` of scores of the same people is paired over people and seeds (harness.stats); all
others are t intervals over seeds: `of / over` of logarithms, `answers` by inversion (see `_answers`), `spread` by Pitman
and Morgan. A check *holds* where its 95 % interval lies within `expected` (either end may be inf) widened by
`tolerance`, *does not reproduce* where it lies outside, and else one *cannot tell*. Where any one of g conditions
(`when`) is enough for a claim, there are g chances to be wrong: their limits are at 1 - 5 % / g.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, field, replace

import numpy as np
import polars as pl
from scipy.interpolate import make_interp_spline
from scipy.stats import t as t_distribution

from harness.board import best_of, text_worth
from harness.board.results import load_scores
from harness.claims import SHARES, STEERED, Check, Claim, Selection
from harness.errors import Mistake
from harness.method import Method
from harness.scores import stats
from harness.store.store import Store
from harness.task import Task
from harness.trials.plan import Plan
from harness.trials.suite import Suite
from harness.trials.trial import Trial, fields_of

WRITTEN = "written_"  # before the name of a column of written.outcomes, in a metric
HOLDS, CONDITION, NOT, UNKNOWN, CANNOT = (
    "holds",
    "holds with a condition",
    "does not reproduce",
    "cannot tell",
    "cannot be reproduced here",
)


@dataclass(frozen=True)
class Found:
    """What a check found: a number, its limits (None where there are none), and what follows."""

    says: str
    value: float | None
    low: float | None
    high: float | None
    expected: tuple[float, ...] | None
    tolerance: float
    when: str
    verdict: str
    note: str = ""
    level: float = 0.95  # of the limits


@dataclass(frozen=True)
class Judged:
    """A claim with its verdict and everything it rests on."""

    claim: Claim
    paper: str
    suite: str
    verdict: str
    condition: str
    checks: tuple[Found, ...] = ()
    beside: tuple[Found, ...] = ()
    seeds: int = 0

    def as_dict(self) -> dict:
        """For JSON, which has no infinity: None stands for it."""
        named = {k: getattr(self.claim, k) for k in ("id", "title", "source", "published", "note")}
        own = {k: getattr(self, k) for k in ("paper", "suite", "verdict", "condition", "seeds")}
        found = {
            k: [{n: _finite(v) for n, v in vars(f).items()} for f in getattr(self, k)] for k in ("checks", "beside")
        }
        return named | own | found


def _finite(value: object) -> object:
    if isinstance(value, tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_selections(suite: Suite, claims: tuple[Claim, ...]) -> None:
    """Raises Mistake where a claim selects what its suite lacks: all that can be told before anything has run."""
    nothing = Results(Plan(suite, (), (), {}), None)
    for claim in claims:
        for check in claim.checks + claim.beside:
            try:
                wanted = (check.of, check.minus, check.over)
                for selection in _sweep(check, nothing)[1] if check.measure == "trend" else filter(None, wanted):
                    for part in _parts(selection):
                        nothing.resolve(part)
                        if part.metric == "win_shared":
                            nothing.one("method", "shared")
                parts = [part for selection in filter(None, wanted) for part in _parts(selection)]
                scores = sorted({part.metric for part in parts if ":" not in part.metric})
                if len(scores) > 1:
                    raise Mistake(f"{' and '.join(scores)} do not compare", "give all its selections the same metric")
            except Mistake as mistake:
                raise Mistake(f"{suite.name}: {claim.id}, {check.says!r}: {mistake.message}", mistake.hint) from None


def check_panels(results: Results, claims: tuple[Claim, ...]) -> None:
    """Raises Mistake where a claim selects a panel that its task, now prepared, does not have."""
    for claim in claims:
        for check in claim.checks + claim.beside:
            for part in [p for s in filter(None, (check.of, check.minus, check.over)) for p in _parts(s)]:
                tasks = results.matching("task", part.task)
                keys = {t.task: t.task_key for t in results.plan.trials if t.task in tasks}.values()
                users = {name for key in keys for name in results.store.read("tasks", key)["facts"]["users"]}
                panels = sorted(name.removesuffix("/context") for name in users if name.endswith("/context"))
                if panels and ":" not in part.metric and part.panel not in panels:
                    near = difflib.get_close_matches(part.panel, panels, n=1)
                    raise Mistake(
                        f"{results.suite.name}: {claim.id}, {check.says!r}: {tasks[0].name} has no panel {part.panel!r}",
                        f"did you mean {near[0]!r}?" if near else f"its panels: {', '.join(panels)}",
                    )


def _parts(selection: Selection) -> list[Selection]:
    """The selections whose numbers are added and subtracted."""
    found = [replace(selection, less=())]
    for table in selection.less:
        found += [replace(part, **table) for part in found]
    return found


@dataclass(frozen=True, eq=False)
class Values:
    """A number for every seed, and where it is a score one for every cell (a person under a seed)."""

    seeds: np.ndarray
    value: np.ndarray
    cells: pl.DataFrame | None = None  # person, seed, value

    @classmethod
    def of_cells(cls, cells: pl.DataFrame) -> Values:
        means = cells.group_by("seed").agg(pl.col("value").mean()).sort("seed")
        return cls(means["seed"].to_numpy(), means["value"].to_numpy(), cells)


def difference(a: Values, b: Values) -> Values:
    """a - b, cell by cell where both have the same ones, and else seed by seed.

    Panels that hold the same people under different seeds, as the folds of a data set do, are paired over people and
    over seeds: a cell of the smaller panel stands against the person's mean on the larger, taken as if each seed were
    as easy as the others, plus what the cell's own seed adds there (tests/test_claims.py has the coverage).
    """
    if a.cells is not None and b.cells is not None:
        both = a.cells.join(b.cells, on=["person", "seed"], suffix="_b", maintain_order="left")
        if len(both) == len(a.cells) == len(b.cells):
            return Values.of_cells(both.select("person", "seed", value=pl.col("value") - pl.col("value_b")))
        few, many, sign = (a.cells, b.cells, 1) if len(a.cells) < len(b.cells) else (b.cells, a.cells, -1)
        value, own = pl.col("value"), pl.col("own")
        many = many.with_columns(own=value - value.mean().over("person")).with_columns(own=own.mean().over("seed"))
        people = many.group_by("person").agg(mean=(value - own).mean())
        both = few.join(people, on="person", maintain_order="left")
        both = both.join(many.group_by("seed").agg(own.first()), on="seed", maintain_order="left")
        if len(both) == len(few):
            found = sign * (value - pl.col("mean") - own)
            return Values.of_cells(both.select("person", "seed", value=found))
    return Values(a.seeds, a.value - b.value)


class Unfinished(Exception):
    """Why there is no number."""


@dataclass(frozen=True, eq=False)
class Results:
    """The finished trials of a plan, read once."""

    plan: Plan
    store: Store
    tables: dict = field(default_factory=dict)

    @property
    def suite(self) -> Suite:
        return self.plan.suite

    def matching(self, kind: str, wanted: object) -> list:
        """The suite's task or method settings that a name, or a table of a name and some fields, fits."""
        known = self.suite.tasks if kind == "task" else self.suite.methods
        if wanted is None:
            return list(known)
        if wanted in known:
            return [wanted]
        name, settings = (wanted, {}) if isinstance(wanted, str) else (wanted.get("name"), dict(wanted))
        settings.pop("name", None)
        fits = [
            x
            for x in known
            if (name is None or x.name == name)
            and all(_same(fields_of(x).get(k, Ellipsis), v) for k, v in settings.items())
        ]
        if not fits:
            names = list(dict.fromkeys(x.name for x in known))
            near = [] if name is None or name in names else difflib.get_close_matches(str(name), names, n=1)
            raise Mistake(
                f"it selects the {kind} {wanted!r}, which the suite does not have",
                f"did you mean {near[0]!r}?" if near else f"its {kind}s: {', '.join(names)}",
            )
        return fits

    def one(self, kind: str, wanted: object):
        """The setting that fits; of several of one name, that with all defaults."""
        fits = self.matching(kind, wanted)
        if len(fits) > 1:
            plain = [x for x in fits if fields_of(x) == fields_of(type(x)())]
            if len(plain) != 1 or len({x.name for x in fits}) > 1:
                told = f"it selects the {kind} {wanted!r}, which" if wanted is not None else f"it names no {kind}, and"
                raise Mistake(f"{told} fits {len(fits)} {kind} settings", f"add a field to `{kind}`")
            fits = plain
        return fits[0]

    def resolve(self, selection: Selection) -> tuple[Task, Method]:
        """The one task and method selected. Raises Mistake where there is none, or the task has no such shots."""
        task, method = self.one("task", selection.task), self.one("method", selection.method)
        if selection.shots not in (None, *task.shots):
            raise Mistake(f"{task.name} has no {selection.shots} shots", f"its shots: {list(task.shots)}")
        return task, method

    def values(self, selection: Selection) -> Values:
        """Raises Unfinished where a trial is missing, or has no such number."""
        if selection.less:
            *before, last = selection.less
            whole = replace(selection, less=tuple(before))
            return difference(self.values(whole), self.values(replace(whole, **last)))
        task, method = self.resolve(selection)
        trials = self.trials(task, method)
        kind, _, name = selection.metric.partition(":")
        if name:
            facts = [self._fact(t, "readings" if kind == "reading" else "curves", name) for t in trials]
            found = Values(np.array([t.seed for t in trials]), np.array(facts))
        else:
            shots = max(task.shots) if selection.shots is None else selection.shots
            found = Values.of_cells(self.cells(trials, selection, shots))
        if not np.isfinite(found.value).all():
            raise Unfinished(f"{selection.metric} of {method.name} on {task.name} is not finite")
        return found

    def trials(self, task: Task, method: Method) -> list[Trial]:
        """By seed. Raises Unfinished where the method sits the task out."""
        found = sorted((t for t in self.plan.trials if t.task == task and t.method == method), key=lambda t: t.seed)
        if not found:
            reason = next((r.reason for r in self.plan.refusals if r.task == task and r.method == method), "not in it")
            raise Unfinished(f"{method.name} sits out {task.name}: {reason}")
        return found

    def manifest(self, trial: Trial) -> dict:
        """Raises Unfinished where the trial has no result."""
        found = self.store.read("trials", trial.key)
        if found is None:
            failure = self.store.failure(trial.key)
            why = f"failed: {failure['reason']}" if failure else "has not run"
            raise Unfinished(f"{trial.method.name} on {trial.task.name}, seed {trial.seed}, {why}")
        return found

    def _fact(self, trial: Trial, kind: str, name: str) -> float:
        found = self.manifest(trial)["facts"].get(kind, {})
        if name not in found:
            known = ", ".join(sorted(found)) or "none"
            raise Unfinished(f"{trial.method.name} on {trial.task.name} has no {kind[:-1]} {name!r}; it has: {known}")
        return float(np.ravel(found[name])[-1])

    def cells(self, trials: list[Trial], selection: Selection, shots: int) -> pl.DataFrame:
        """The selected score of every person of the trials, one after the other: person, seed, value."""
        if selection.metric.startswith(WRITTEN):
            found = pl.concat([self._written(trial, selection, shots) for trial in trials])
            return found.select("person", "seed", value=selection.metric.removeprefix(WRITTEN))
        if selection.metric not in STEERED:
            return pl.concat([self._scored(trial, selection, shots) for trial in trials])
        found = pl.concat([self._steered(trial, selection, shots) for trial in trials])
        if selection.metric == "gain_of_n":
            value = best_of.normalised(found["gain"].to_numpy(), found["room"].to_numpy())
            found = found.with_columns(gain_of_n=value)
        return found.select("person", "seed", value=selection.metric)

    def _steered(self, trial: Trial, selection: Selection, shots: int) -> pl.DataFrame:
        self.manifest(trial)
        shared = None
        if selection.metric == "win_shared":
            shared = next(t for t in self.trials(trial.task, self.one("method", "shared")) if t.seed == trial.seed)
            self.manifest(shared)
        table = None if selection.panel != "test" else best_of.outcomes(self.store, trial, shared)
        if table is None or table["room"].mean() <= 0:
            raise Unfinished(
                f"panel {selection.panel} of {trial.task.name} has no candidates of known, different worth"
            )
        known = table["n"].unique().sort().to_list()
        n = known[-1] if selection.n is None else selection.n
        if n not in known:
            raise Unfinished(f"nothing was chosen among {n} candidates of {trial.task.name}, but among {known}")
        return self._apart(table.filter(n=n, shots=shots).with_columns(seed=pl.lit(trial.seed)), trial)

    def _written(self, trial: Trial, selection: Selection, shots: int) -> pl.DataFrame:
        self.manifest(trial)
        table = None if selection.panel != "test" else text_worth.outcomes(self.store, trial)
        if table is None:
            raise Unfinished(f"{trial.method.name} wrote nothing to panel {selection.panel} of {trial.task.name}")
        if selection.metric.removeprefix(WRITTEN) not in table.columns:
            raise Unfinished(f"nobody knows the {selection.metric} of {trial.task.name}")
        if shots not in (known := table["shots"].unique().sort().to_list()):
            raise Unfinished(f"nothing was written at {shots} shots of {trial.task.name}, but at {known}")
        return self._apart(table.filter(shots=shots).with_columns(seed=pl.lit(trial.seed)), trial)

    def _scored(self, trial: Trial, selection: Selection, shots: int) -> pl.DataFrame:
        table, rows = self.scores(trial), pl.col("panel") == selection.panel
        known = table.filter(rows)["shots"].unique().sort().to_list()
        if not known:
            panels = ", ".join(table["panel"].unique().sort())
            raise Unfinished(f"{trial.task.name} has no panel {selection.panel}; it has: {panels}")
        if shots not in known:
            raise Unfinished(
                f"people of panel {selection.panel} of {trial.task.name} have too few answers for {shots} shots"
            )
        value = 1 - pl.col("accuracy") if selection.metric == "error" else pl.col(selection.metric)
        found = table.filter(rows, shots=shots, swapped=False).select("person", seed=pl.lit(trial.seed), value=value)
        if found["value"].null_count():
            raise Unfinished(f"nobody knows the {selection.metric} of {trial.task.name}")
        return found

    def scores(self, trial: Trial) -> pl.DataFrame:
        """The trial's score table, with people of different worlds numbered apart."""
        if trial.key not in self.tables:
            self.tables[trial.key] = self._apart(load_scores(self.store, trial, self.manifest(trial)), trial)
        return self.tables[trial.key]

    def _apart(self, table: pl.DataFrame, trial: Trial) -> pl.DataFrame:
        population = self.store.read("tasks", trial.task_key)["facts"]["population"]
        return table.with_columns(person=pl.col("person").cast(pl.Int64) + int(population[:7], 16) * 2**32)


def _same(ours: object, wanted: object) -> bool:
    return ours == (tuple(wanted) if isinstance(wanted, list) else wanted)


def measured(check: Check, results: Results, level: float = 0.95) -> tuple[float, float | None, float | None, str]:
    """Value, lower and upper limit, and a note, of a check. Raises Unfinished."""
    if check.measure == "trend":
        return _over_seeds(*_trend(check, results), level)
    if check.measure == "answers":
        return _answers(check, results, level)
    a = results.values(check.of)
    if check.over is not None:
        b = results.values(check.over)
        return _spread(a.value, b.value, level) if check.measure == "spread" else _ratio(a, b, level)
    found = a if check.minus is None else difference(a, results.values(check.minus))
    if found.cells is None:
        return _over_seeds(found.value, found.seeds, level)
    values, person, seed = (found.cells[c].to_numpy() for c in ("value", "person", "seed"))
    return _limits(stats.estimate(values[None], person, seed), level)


def _over_seeds(values: np.ndarray, seeds: np.ndarray, level: float) -> tuple:
    return _limits(stats.estimate(np.asarray(values)[None], np.arange(len(seeds)), seeds), level)


def _limits(found: stats.Estimate, level: float) -> tuple:
    low, high = (None if found.note else float(x[0]) for x in found.interval(level))
    return float(found.value[0]), low, high, found.note or ""


def _ratio(a: Values, b: Values, level: float) -> tuple:
    """Geometric mean over seeds, and a t interval of logarithms."""
    if min(a.value.min(), b.value.min()) <= 0:
        raise Unfinished("a number is 0 or less under some seed, so there is no ratio")
    *found, note = _over_seeds(np.log(a.value / b.value), a.seeds, level)
    return *(None if x is None else float(np.exp(x)) for x in found), note


def _spread(a: np.ndarray, b: np.ndarray, level: float) -> tuple:
    """Ratio of standard deviations of paired samples with the limits of Pitman (1939) and Morgan (1939).

    They hold the ratios q for which a / q + b and a / q - b are not found correlated, in closed form.
    """
    if len(a) < 3 or a.std() == 0 or b.std() == 0:
        raise Unfinished("a spread needs three seeds that differ")
    ratio, r, n = float(a.std(ddof=1) / b.std(ddof=1)), np.corrcoef(a, b)[0, 1], len(a)
    k = 1 + 2 * (1 - r**2) * t_distribution.ppf((1 + level) / 2, n - 2) ** 2 / (n - 2)
    wide = float(np.sqrt(k + np.sqrt(k**2 - 1)))
    return ratio, ratio / wide, ratio * wide, ""


def _sweep(check: Check, results: Results) -> tuple[list[float], list[Selection]]:
    """The values of the field that a trend is along, and a selection for each. Raises Mistake where it is no sweep."""
    tasks, methods = results.matching("task", check.of.task), results.matching("method", check.of.method)
    found = {
        kind: [fields_of(s).get(check.along) for s in every] for kind, every in (("task", tasks), ("method", methods))
    }
    kind = "task" if len(set(found["task"])) > 1 else "method"
    x, settings = found[kind], tasks if kind == "task" else methods
    if len(set(x)) < 2:
        raise Mistake(f"there is no sweep along {check.along!r}", "give that field a list of values in the suite")
    if not all(type(v) in (int, float) for v in x):
        raise Mistake(f"{check.along} has values that are no numbers", "a trend is along a number")
    if len(set(x)) < len(x):
        raise Mistake(f"several {kind} settings have the same {check.along}", "add fields to `of` until one is left")
    return list(map(float, x)), [replace(check.of, **{kind: setting}) for setting in settings]


def _trend(check: Check, results: Results) -> tuple[np.ndarray, np.ndarray]:
    """For each seed, the least-squares change over the whole range of a task's or method's field."""
    x, selections = _sweep(check, results)
    found = [results.values(selection) for selection in selections]
    x = (np.array(x) - min(x)) / (max(x) - min(x))
    return np.polyfit(x, np.stack([v.value for v in found]), 1)[0], found[0].seeds


def _answers(check: Check, results: Results, level: float) -> tuple:
    """Answers that `of` needs until its mean over seeds, interpolated, reaches that of `over`, over the latter's shots.

    The limits hold the numbers of answers at which a paired t test over seeds finds the two apart in neither direction
    (as Fieller's do). A curve that ends below the goal gives a lower bound, and no upper limit.
    """
    goal, task = results.values(check.over), results.one("task", check.of.task)
    at = max(results.one("task", check.over.task).shots) if check.over.shots is None else check.over.shots
    if at == 0 or len(task.shots) < 2:
        raise Unfinished("a multiple of answers needs some, and a curve two points")
    ahead = np.stack([results.values(replace(check.of, shots=n)).value - goal.value for n in task.shots])
    steps = [np.linspace(*ends, 1001) for ends in zip(task.shots, task.shots[1:], strict=False)]
    shots = np.unique(np.concatenate(steps))
    found = stats.estimate(make_interp_spline(task.shots, ahead, k=1)(shots), np.arange(len(goal.seeds)), goal.seeds)
    reached = shots[found.value >= 0]
    value, note = (
        (reached[0], "") if len(reached) else (shots[-1], f"at least: not reached with {shots[-1]:.0f} answers")
    )
    if found.note:
        return float(value / at), None, None, "; ".join(filter(None, (note, found.note)))
    low, high = found.interval(level)
    least = 0.0 if high[0] >= 0 else shots[high >= 0][0] if (high >= 0).any() else shots[-1]  # first not surely below
    most = np.inf if low[-1] <= 0 else shots[low <= 0][-1] if (low <= 0).any() else shots[0]  # last not surely above
    return float(value / at), float(least / at), float(most / at), note


def judge(claim: Claim, paper: str, results: Results) -> Judged:
    """The verdict of a claim with checks, and what it rests on."""
    conditions = len({check.when for check in claim.checks} - {""})
    checks = tuple(_find(c, results, 1 - 0.05 / conditions if c.when else 0.95) for c in claim.checks)
    beside = tuple(_find(check, results) for check in claim.beside)
    text, condition = verdict(checks, claim.condition)
    return Judged(claim, paper, results.suite.name, text, condition, checks, beside, len(results.suite.seeds))


def _find(check: Check, results: Results, level: float = 0.95) -> Found:
    try:
        value, low, high, note = measured(check, results, level)
    except Unfinished as why:
        return Found(
            check.says, None, None, None, check.expected, check.tolerance, check.when, UNKNOWN, str(why), level
        )
    text = "" if check.expected is None else _inside(low, high, check.expected, check.tolerance)
    alone = check.measure == "value" and check.minus is check.over is None and not check.of.less
    if alone and check.of.metric in SHARES and low is not None:  # judged as they are, told as far as they mean anything
        low, high = max(low, 0.0), min(high, 1.0)
    return Found(check.says, value, low, high, check.expected, check.tolerance, check.when, text, note, level)


def _inside(low: float | None, high: float | None, expected: tuple[float, ...], tolerance: float) -> str:
    if low is None or np.isnan([low, high]).any():
        return UNKNOWN
    least, most = expected[0] - tolerance, expected[1] + tolerance
    return HOLDS if least <= low and high <= most else NOT if high < least or low > most else UNKNOWN


def verdict(checks: tuple[Found, ...], condition: str = "") -> tuple[str, str]:
    """What all checks say together, and under which condition.

    Checks without a `when` must all hold. Of those with one, it is enough that some condition's checks all hold: the
    claim then holds with that condition, and simply holds where every condition does.
    """
    plain = [c.verdict for c in checks if not c.when]
    if NOT in plain:
        return NOT, ""
    if UNKNOWN in plain:
        return UNKNOWN, ""
    under: dict[str, set[str]] = {}
    for check in checks:
        if check.when:
            under.setdefault(check.when, set()).add(check.verdict)
    hold = [when for when, found in under.items() if found == {HOLDS}]
    fail = [when for when, found in under.items() if NOT in found]
    open_ = [when for when in under if when not in hold + fail]
    if under and not hold:
        return (UNKNOWN if open_ else NOT), ""
    told = [condition] if condition else []
    if fail or open_:
        told.append(" and ".join(hold))
        told += [f"not {' or '.join(fail)}"] if fail else []
        told += [f"cannot tell: {' or '.join(open_)}"] if open_ else []
    return (CONDITION, "; ".join(told)) if told else (HOLDS, "")

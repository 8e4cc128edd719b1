"""Published statements, checked against finished trials by code that knows nothing of any one paper.

A claim is a `[[claims]]` table in a suite file:

    id, title, source, published     what was said, and where
    condition                        under what condition, if any, what is found here can hold at all
    cannot                           why it cannot be reproduced here; such a claim has no checks
    note                             what a reader should know
    [[claims.checks]]                says, measure, of, minus, over, along, expected, tolerance, when
    [[claims.beside]]                says, of, minus: controls, printed beside the checks and never judged
    [[claims.figures]]               see harness/figures.py

A *selection* (`of`, `minus`, `over`) names trials of the suite: `task` and `method` are a name or a table of the name and
some fields; `panel` (test), `shots` (the largest), `metric` (accuracy) say which number of theirs, and `less` what to
subtract: the number of the same selection but for the fields it gives, such as { panel = "shifted" }. A metric is a
column of the score table, `error` (1 - accuracy), `reading:NAME` or `curve:NAME` (its last point). Measures:

    value    of - minus, or of / over, for each seed
    answers  how many answers `of` needs to reach what `over` reaches at its shots, as a multiple of those shots
    spread   standard deviation over seeds of `of` as a multiple of that of `over`
    trend    how much `of` changes from the least to the largest value of the field `along`, by least squares

Every number has a 95 % interval. `value` of one panel of one task is paired over people and seeds (harness.stats); all
others are t intervals over seeds, `spread` by the F distribution. A check *holds* where its interval lies within
`expected` widened by `tolerance`, *does not reproduce* where it lies outside, and else one *cannot tell*.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
from scipy.stats import f as f_distribution

from harness import find, stats
from harness.method import Method
from harness.mistake import Mistake
from harness.run import load_scores
from harness.store import Store
from harness.suite import Plan, Suite, load_toml
from harness.task import Task
from harness.trial import fields_of

FOLDER = find.ROOT / "jobs" / "suites" / "claims"
HOLDS, CONDITION, NOT, UNKNOWN, CANNOT = (
    "holds",
    "holds with a condition",
    "does not reproduce",
    "cannot tell",
    "cannot be reproduced here",
)
MEASURES = ("value", "answers", "spread", "trend")


@dataclass(frozen=True)
class Selection:
    """Which trials of a suite, and which number of theirs; None stands for the only one there is, or the largest."""

    task: object = None
    method: object = None
    panel: str = "test"
    shots: int | None = None
    metric: str = "accuracy"
    less: dict | None = None


@dataclass(frozen=True)
class Check:
    """One number with the range it should lie in; `expected` is None for a control, which is never judged."""

    says: str
    of: Selection
    measure: str = "value"
    minus: Selection | None = None
    over: Selection | None = None
    along: str | None = None
    expected: tuple[float, float] | None = None
    tolerance: float = 0.0
    when: str = ""  # the condition under which this check is made


@dataclass(frozen=True)
class Claim:
    """A published statement with its source."""

    id: str
    title: str
    source: str
    published: str
    condition: str = ""
    cannot: str = ""
    note: str = ""
    checks: tuple[Check, ...] = ()
    beside: tuple[Check, ...] = ()
    figures: tuple[dict, ...] = ()


@dataclass(frozen=True)
class Found:
    """What a check found: a number, its limits (None where there are none), and what follows."""

    says: str
    value: float | None
    low: float | None
    high: float | None
    expected: tuple[float, float] | None
    tolerance: float
    when: str
    verdict: str
    note: str = ""


@dataclass(frozen=True)
class Judged:
    """A claim with its verdict and everything it rests on."""

    claim: Claim
    paper: str
    suite: str
    verdict: str
    condition: str
    checks: tuple[Found, ...]
    beside: tuple[Found, ...]
    seeds: int = 0

    def as_dict(self) -> dict:
        named = {k: getattr(self.claim, k) for k in ("id", "title", "source", "published", "note")}
        own = {k: getattr(self, k) for k in ("paper", "suite", "verdict", "condition", "seeds")}
        return named | own | {k: [vars(f) for f in getattr(self, k)] for k in ("checks", "beside")}


def read_claims(path: Path) -> tuple[str, tuple[Claim, ...]]:
    """The paper a suite file is about, and its claims. Raises Mistake for what is missing or misspelt."""
    content = load_toml(path)
    claims = tuple(_table(Claim, table, f"{path}: claim {i + 1}") for i, table in enumerate(content.get("claims", [])))
    for claim in claims:
        if bool(claim.cannot) == bool(claim.checks):
            raise Mistake(f"{path}: claim {claim.id} has neither checks nor a reason", 'add checks or cannot = "why"')
        for check in claim.checks:
            if check.expected is None:
                raise Mistake(
                    f"{path}: {claim.id}: {check.says!r} expects nothing", "for example expected = [0.8, 1.0]"
                )
    return str(content.get("paper", path.stem)), claims


def _table(kind: type, table: object, where: str) -> object:
    """A dataclass from a TOML table, every key known and everything without a default given."""
    if not isinstance(table, dict):
        raise Mistake(f"{where} is {table!r}, not a table", "harness/claims.py says what a claim holds")
    known = kind.__dataclass_fields__
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise Mistake(f"{where}: unknown key {key!r}", f"did you mean {near[0]!r}?" if near else ", ".join(known))
    values = dict(table)
    for key, value in table.items():
        if key in ("of", "minus", "over"):
            values[key] = _table(Selection, value, f"{where}, {key}")
            _table(Selection, value.get("less", {}), f"{where}, {key}, less")
        if key in ("checks", "beside"):
            values[key] = tuple(_table(Check, v, f"{where}, {key} {i + 1}") for i, v in enumerate(value))
        if key == "figures":
            values[key] = tuple(value)
        if key == "expected":
            values[key] = (float(value[0]), float(value[1]))
        if key == "measure" and value not in MEASURES:
            raise Mistake(f"{where}: there is no measure {value!r}", f"one of {', '.join(MEASURES)}")
    try:
        return kind(**values)
    except TypeError as error:
        raise Mistake(
            f"{where}: {str(error).partition('() ')[2]}", "harness/claims.py says what a claim holds"
        ) from None


@dataclass(frozen=True, eq=False)
class Values:
    """A number for every seed, and where it is a score one for every cell (a person under a seed)."""

    seeds: np.ndarray
    value: np.ndarray
    cells: pl.DataFrame | None  # person, seed, value
    where: tuple  # equal for selections whose cells are the same people's


class Unfinished(Exception):
    """Why a number is not there yet."""


@dataclass(frozen=True, eq=False)
class Results:
    """The finished trials of a plan, read once."""

    plan: Plan
    store: Store
    tables: dict = field(default_factory=dict)

    @cached_property
    def suite(self) -> Suite:
        return self.plan.suite

    def matching(self, kind: str, wanted: object) -> list:
        """The suite's task or method settings that a name, or a table of a name and some fields, fits."""
        known = self.suite.tasks if kind == "task" else self.suite.methods
        if wanted is None:
            return list(known)
        if wanted in known:
            return [wanted]
        name, fields = (wanted, {}) if isinstance(wanted, str) else (wanted.get("name"), dict(wanted))
        fields.pop("name", None)
        fits = [
            x
            for x in known
            if (name is None or x.name == name)
            and all(_same(fields_of(x).get(k, Ellipsis), v) for k, v in fields.items())
        ]
        if not fits:
            raise Mistake(
                f"{self.suite.name}: a claim selects the {kind} {wanted!r}, which the suite does not have",
                f"its {kind}s: {', '.join(dict.fromkeys(x.name for x in known))}",
            )
        return fits

    def one(self, kind: str, wanted: object):
        fits = self.matching(kind, wanted)
        if len(fits) > 1:
            plain = [x for x in fits if fields_of(x) == fields_of(type(x)())]
            if len(plain) != 1:
                raise Mistake(f"{self.suite.name}: {wanted!r} fits {len(fits)} {kind} settings", "add a field to it")
            fits = plain
        return fits[0]

    def values(self, selection: Selection) -> Values:
        task, method = self.one("task", selection.task), self.one("method", selection.method)
        return self.of(task, method, selection)

    def of(self, task: Task, method: Method, selection: Selection) -> Values:
        """Raises Unfinished where a trial is missing."""
        if selection.less:
            whole = self.of(task, method, replace(selection, less=None))
            part = self.values(replace(selection, **({"task": task} | selection.less), less=None))
            return Values(whole.seeds, whole.value - part.value, None, ())
        trials = sorted((t for t in self.plan.trials if t.task == task and t.method == method), key=lambda t: t.seed)
        if not trials:
            reason = next((r.reason for r in self.plan.refusals if r.task == task and r.method == method), "not in it")
            raise Unfinished(f"{method.name} sits out {task.name}: {reason}")
        seeds = np.array([t.seed for t in trials])
        kind, _, name = selection.metric.partition(":")
        if name:
            values = [self._fact(t, "readings" if kind == "reading" else "curves", name) for t in trials]
            return Values(seeds, np.array(values), None, ())
        shots = max(task.shots) if selection.shots is None else selection.shots
        if shots not in task.shots:
            raise Mistake(f"{self.suite.name}: a claim asks for {shots} shots", f"{task.name} has {list(task.shots)}")
        column, sign = (selection.metric, 1) if selection.metric != "error" else ("accuracy", -1)
        frames = []
        for trial in trials:
            table, population = self._scores(trial)
            rows = table.filter(panel=selection.panel, shots=shots, swapped=False)
            if not len(rows) or column not in rows.columns or rows[column].null_count():
                raise Mistake(
                    f"{self.suite.name}: {task.name} has no {selection.metric} on panel {selection.panel}",
                    f"panels: {', '.join(table['panel'].unique().sort())}; columns: {', '.join(table.columns)}",
                )
            value = pl.col(column) if sign > 0 else 1 - pl.col(column)
            frames.append(
                rows.select(person=pl.col("person").cast(pl.Int64) + population, seed=pl.lit(trial.seed), value=value)
            )
        cells = pl.concat(frames)
        means = cells.group_by("seed", maintain_order=True).agg(pl.col("value").mean())["value"].to_numpy()
        return Values(seeds, means, cells, (task, selection.panel))

    def _manifest(self, trial) -> dict:
        found = self.store.read("trials", trial.key)
        if found is None:
            failure = self.store.failure(trial.key)
            why = f"failed: {failure['reason']}" if failure else "has not run"
            raise Unfinished(f"{trial.method.name} on {trial.task.name}, seed {trial.seed}, {why}")
        return found

    def _fact(self, trial, kind: str, name: str) -> float:
        found = self._manifest(trial)["facts"].get(kind, {})
        if name not in found:
            known = ", ".join(sorted(found)) or "none"
            raise Unfinished(f"{trial.method.name} on {trial.task.name} has no {kind[:-1]} {name!r}; it has: {known}")
        return float(np.ravel(found[name])[-1])

    def _scores(self, trial) -> tuple[pl.DataFrame, int]:
        """The trial's score table, and an offset that keeps people of different worlds apart."""
        if trial.key not in self.tables:
            table = load_scores(self.store, trial, self._manifest(trial))
            population = self.store.read("tasks", trial.task_key)["facts"]["population"]
            self.tables[trial.key] = table, int(population[:7], 16) * 2**32
        return self.tables[trial.key]


def _same(ours: object, wanted: object) -> bool:
    return ours == (tuple(wanted) if isinstance(wanted, list) else wanted)


def measured(check: Check, results: Results) -> tuple[float, float | None, float | None, str]:
    """Value, lower and upper limit, and a note, of a check. Raises Unfinished."""
    if check.measure == "trend":
        return _over_seeds(*_trend(check, results))
    if check.measure == "answers":
        return _over_seeds(*_answers(check, results))
    a = results.values(check.of)
    if check.measure == "spread":
        b = results.values(check.over)
        ratio, n, m = float(a.value.std(ddof=1) / b.value.std(ddof=1)), len(a.value), len(b.value)
        low, high = (ratio / np.sqrt(f_distribution.ppf(q, n - 1, m - 1)) for q in (0.975, 0.025))
        return ratio, float(low), float(high), ""
    if check.over is not None:
        return _over_seeds(a.value / results.values(check.over).value, a.seeds)
    if check.minus is None:
        return _over_cells(a.cells) if a.cells is not None else _over_seeds(a.value, a.seeds)
    b = results.values(check.minus)
    if a.cells is not None and b.cells is not None and a.where == b.where:
        both = a.cells.join(b.cells, on=["person", "seed"], suffix="_b", maintain_order="left")
        return _over_cells(both.with_columns(value=pl.col("value") - pl.col("value_b")))
    return _over_seeds(a.value - b.value, a.seeds)


def _over_cells(cells: pl.DataFrame) -> tuple:
    found = stats.estimate(cells["value"].to_numpy()[None], cells["person"].to_numpy(), cells["seed"].to_numpy())
    return _limits(found)


def _over_seeds(values: np.ndarray, seeds: np.ndarray, note: str = "") -> tuple:
    return _limits(stats.estimate(np.asarray(values)[None], np.arange(len(seeds)), seeds), note)


def _limits(found: stats.Estimate, note: str = "") -> tuple:
    low, high = (None if found.note else float(x[0]) for x in found.interval())
    return float(found.value[0]), low, high, "; ".join(x for x in (note, found.note) if x)


def _trend(check: Check, results: Results) -> tuple[np.ndarray, np.ndarray]:
    """For each seed, the least-squares change over the whole range of a task's or method's field."""
    tasks, methods = results.matching("task", check.of.task), results.matching("method", check.of.method)
    on_task = check.along in fields_of(tasks[0])
    settings = tasks if on_task else methods
    if len(settings) < 2 or check.along not in fields_of(settings[0]):
        raise Mistake(f"{results.suite.name}: {check.says!r} has no sweep along {check.along!r}", "give it a list")
    other = (methods if on_task else tasks)[0]
    pairs = [(s, other) if on_task else (other, s) for s in settings]
    found = [results.of(task, method, check.of) for task, method in pairs]
    x = np.array([float(fields_of(s)[check.along]) for s in settings])
    x = (x - x.min()) / (x.max() - x.min())
    y = np.stack([v.value for v in found])
    return np.polyfit(x, y, 1)[0], found[0].seeds


def _answers(check: Check, results: Results) -> tuple[np.ndarray, np.ndarray, str]:
    """For each seed, interpolated answers that `of` needs to reach the score of `over`, over the latter's shots."""
    goal = results.values(check.over)
    at = check.over.shots or max(results.one("task", check.over.task).shots)
    shots = results.one("task", check.of.task).shots
    curve = np.stack([results.values(replace(check.of, shots=n)).value for n in shots])
    curve = np.maximum.accumulate(curve, axis=0)
    needed, never = np.empty(len(goal.value)), 0
    for i, target in enumerate(goal.value):  # a handful of seeds
        j = int(np.searchsorted(curve[:, i], target))
        if j == len(shots):
            needed[i], never = shots[-1], never + 1
        elif j == 0:
            needed[i] = shots[0]
        else:
            share = (target - curve[j - 1, i]) / (curve[j, i] - curve[j - 1, i])
            needed[i] = shots[j - 1] + share * (shots[j] - shots[j - 1])
    note = f"{never} of {len(needed)} seeds never reach it: at least" if never else ""
    return needed / at, goal.seeds, note


def judge(claim: Claim, paper: str, results: Results) -> Judged:
    """The claim's verdict and what it rests on."""
    if claim.cannot:
        return Judged(claim, paper, results.suite.name, CANNOT, claim.cannot, (), ())
    checks = tuple(_find(check, results) for check in claim.checks)
    beside = tuple(_find(check, results) for check in claim.beside)
    text, condition = verdict(checks, claim.condition)
    return Judged(claim, paper, results.suite.name, text, condition, checks, beside, len(results.suite.seeds))


def _find(check: Check, results: Results) -> Found:
    try:
        value, low, high, note = measured(check, results)
    except Unfinished as why:
        return Found(check.says, None, None, None, check.expected, check.tolerance, check.when, UNKNOWN, str(why))
    text = "" if check.expected is None else _inside(low, high, check.expected, check.tolerance)
    return Found(check.says, value, low, high, check.expected, check.tolerance, check.when, text, note)


def _inside(low: float | None, high: float | None, expected: tuple[float, float], tolerance: float) -> str:
    if low is None or not np.isfinite([low, high]).all():
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
    under: dict[str, list[str]] = {}
    for check in checks:
        if check.when:
            under.setdefault(check.when, []).append(check.verdict)
    hold = [when for when, found in under.items() if set(found) == {HOLDS}]
    if under and not hold:
        return (NOT if all(NOT in found for found in under.values()) else UNKNOWN), ""
    fails = [when for when in under if when not in hold]
    told = [condition] if condition else []
    if fails:
        told += [f"{' and '.join(hold)}; not {' or '.join(fails)}"]
    return (CONDITION, "; ".join(told)) if told else (HOLDS, "")

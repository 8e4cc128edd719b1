"""Claims of papers as data: the published statement, its source, and the trial results to compare it with.

A claim is a `[[claims]]` table in a suite file:

    id, title, source, published     the statement and where it was published
    stand_in                         what stands in for the paper's own material here; empty where nothing does
    cannot                           why the claim cannot be tested here; such a claim has no checks
    note                             anything else that readers should know
    [[claims.checks]]                says, measure, of, minus, over, along, expected, tolerance, part, published_value
    [[claims.beside]]                controls: checks without the last four fields, reported but never judged
    [[claims.figures]]               see harness/claims/figures/kinds.py

`expected` is a range; either end may be infinite, as in [0.8, inf]. A comparison needs a smallest difference that
counts: [0.01, inf] and not [0, inf], which two equal methods would meet. Checks with the same words in `part` are a part
of the claim, with a verdict of its own; checks without a part belong to every part. `published_value` is the published
number, if there is one for just this check: it gives the check's power. The file may also name its `paper`. A `quick`
table gives the seeds that a quick run uses instead, and, under the name of a task or method, the field values that it
uses instead.

A *selection* (`of`, `minus`, `over`) selects one result of the suite's trials. `task` and `method` are a name, or a
table of the name and some fields. If the suite has several settings of that task or method that match, the one whose
fields are all at their defaults is selected. `panel` (default: test), `shots` (default: the largest) and `metric`
(default: accuracy) select the result. `less` subtracts another result: that of the same selection with some fields
replaced. A list subtracts one after the other. With panel = "shifted", less = [{ panel = "test" }, { shots = 5 }] is the
gap between the panels shifted and test, minus the same gap at 5 shots.

Metrics:

    a column of the score table, or `error` (1 - accuracy)
    `diagnostic:NAME`, or `curve:NAME` (the curve's last point)
    `gain_of_n`: gain in true utility of the candidate that the method chooses among `n` (default: all) over a random
        one; 1 is the gain of the truly best of all candidates
    `win_random`, `win_shared`: how often the person prefers that candidate to a random one, or to the choice of
        `shared`, the baseline with one reward for everybody
    `written_gain` and the other WRITTEN_METRICS below (harness/board/text_worth.py), for policies that write texts;
        available at the smallest and the largest number of shots

Measures:

    value    of - minus, or of / over, for each seed
    answers  how many answers `of` needs to reach the score of `over`, divided by the number of shots of `over`
    spread   standard deviation of `of` over seeds, divided by that of `over`
    trend    how much `of` changes from the smallest to the largest value of the field `along`, by least squares

harness/claims/measures.py computes the numbers of the checks, with confidence limits, and harness/claims/judge.py decides
the verdicts.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from dataclasses import MISSING, dataclass, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from harness import registry
from harness.errors import UserError, did_you_mean
from harness.trials.suite import load_toml

T = TypeVar("T")
CLAIMS_FOLDER = registry.PROJECT_ROOT / "jobs" / "suites" / "claims"
MEASURE_OPERANDS = {  # measure -> the fields of a check that it takes besides `of`
    "value": ("minus", "over"),
    "answers": ("over",),
    "spread": ("over",),
    "trend": ("along",),
}
LARGER_IS_BETTER = ("accuracy", "sign_accuracy", "auc")  # columns of the score table
WIN_METRICS = ("win_random", "win_shared")
BEST_OF_N_METRICS = ("gain_of_n", *WIN_METRICS)  # of the choice among n candidates: harness/board/best_of.py
WRITTEN_METRICS = (
    "gain",
    "win",
    "swapped",
    "mean_user",
    "win_random",
    "kl",
    "tokens",
    "tokens_more",
    "fluency",
    "fluency_more",
)
METRICS = (
    *LARGER_IS_BETTER,
    "error",
    "log_loss",
    "brier",
    *BEST_OF_N_METRICS,
    *(f"written_{name}" for name in WRITTEN_METRICS),
)
# the part of a metric before the colon -> the fact of a trial that holds its numbers; `reading` is the old word for
# `diagnostic`
FACTS_OF_METRIC = {
    "diagnostic": "readings",
    "reading": "readings",
    "curve": "curves",
}
SHARE_METRICS = (*LARGER_IS_BETTER, "error", *WIN_METRICS, "written_win", "written_win_random")  # all between 0 and 1


@dataclass(frozen=True)
class Selection:
    """Which trials of a suite a claim uses, and which of their results.

    None stands for the only task or method, and for the largest number of shots or candidates.
    """

    task: Any = None  # a name, a table of the name and some fields, or the setting itself
    method: Any = None  # likewise; if several settings match, the one whose fields are all at their defaults
    panel: str = "test"  # `seen`, `validation`, `test`, or another panel of the task
    shots: int | None = None  # the largest if missing
    metric: str = "accuracy"  # a column of the score table, `error`, `diagnostic:NAME`, `curve:NAME`, `gain_of_n`, `win_random`, `win_shared`, or `written_gain` and the other `written_...`: see harness/claims/schema.py
    n: int | None = None  # number of candidates to choose from; all if missing
    less: tuple[dict, ...] = ()  # results to subtract: fields that replace those of this selection

    def __post_init__(self) -> None:
        kind, _, name = self.metric.partition(":")
        if self.metric not in METRICS and not (kind in FACTS_OF_METRIC and name):
            every = f"{', '.join(METRICS)}, diagnostic:NAME or curve:NAME"
            raise UserError(f"there is no metric {self.metric!r}", did_you_mean(self.metric, METRICS, every))
        if self.shots is not None and self.shots < 0:
            raise UserError(f"shots = {self.shots} is below 0", "0 is the smallest: no answer seen yet")
        if self.n is not None and self.metric not in BEST_OF_N_METRICS:
            raise UserError(
                f"{self.metric} takes no n, but n = {self.n}", f"drop n; metrics with n: {', '.join(BEST_OF_N_METRICS)}"
            )
        for table in self.less:
            if "less" in table:
                raise UserError(
                    "`less` contains another `less`", "less = [{ ... }, { ... }] subtracts one after the other"
                )
            dataclass_from_table(Selection, table, "less")


@dataclass(frozen=True)
class Check:
    """One number with the range it should lie in; `expected` is None for a control, which is never judged."""

    says: str  # what the number is, in words
    of: Selection  # the result that is measured
    measure: str = "value"  # value, answers, spread or trend: see harness/claims/schema.py
    minus: Selection | None = None  # what to subtract, paired over people and seeds
    over: Selection | None = None  # what to divide by; for `answers`, the score to reach
    along: str | None = None  # for a trend: the field of tasks or methods that the suite sweeps
    expected: tuple[float, ...] | None = None  # the range, either end may be inf; missing for a control
    tolerance: float = 0.0  # widens the range on both sides
    part: str = ""  # the part of the claim that the check belongs to, in any words; parts have verdicts of their own
    published_value: float | None = None  # the published number, which gives the check's power

    def __post_init__(self) -> None:
        if self.measure not in MEASURE_OPERANDS:
            raise UserError(f"there is no measure {self.measure!r}", f"one of {', '.join(MEASURE_OPERANDS)}")
        takes = MEASURE_OPERANDS[self.measure]
        given = [name for name in ("minus", "over", "along") if getattr(self, name) is not None]
        if wrong := [name for name in given if name not in takes]:
            raise UserError(
                f"the measure `{self.measure}` takes no `{wrong[0]}`",
                f"it takes {' or '.join(f'`{name}`' for name in takes)}",
            )
        if self.measure == "value" and len(given) > 1:
            raise UserError("the measure `value` takes `minus` or `over`, not both", "write two checks")
        if self.measure != "value" and not given:
            raise UserError(
                f"the measure `{self.measure}` needs `{takes[0]}`", "harness/claims/schema.py explains every measure"
            )
        if self.measure == "answers" and any(s.metric not in LARGER_IS_BETTER for s in (self.of, self.over) if s):
            raise UserError(
                "the measure `answers` needs a metric that is better when larger",
                f"one of {', '.join(LARGER_IS_BETTER)}",
            )
        if self.expected is not None and not (len(self.expected) == 2 and self.expected[0] <= self.expected[1]):
            raise UserError(f"expected = {list(self.expected)} is not a range", "for example expected = [0.8, inf]")
        if self.expected is not None and self.neutral in self.expected and not all(map(math.isfinite, self.expected)):
            raise UserError(
                f"expected = {list(self.expected)} is met by two that are equal, at {self.neutral:g}",
                f"state the smallest difference that counts, for example expected = [{self.neutral + 0.01:g}, inf]",
            )
        if not 0 <= self.tolerance < math.inf:
            raise UserError(
                f"tolerance = {self.tolerance} must be finite, and 0 or more", "for example tolerance = 0.01"
            )

    @property
    def neutral(self) -> float | None:
        """The value where the two that are compared are equal: 0, or 1 for a ratio; None where nothing is compared."""
        if self.measure in ("spread", "answers") or self.over is not None:
            return 1.0
        return 0.0 if self.measure == "trend" or self.minus is not None or self.of.less else None


@dataclass(frozen=True)
class Claim:
    """A published statement with its source."""

    id: str  # such as N1; unique within its file, and in jobs/suites/claims among all files
    title: str  # the statement in one line
    source: str  # paper, section, table
    published: str  # the published numbers
    stand_in: str = ""  # what stands in for the paper's own material here; empty where nothing does
    cannot: str = ""  # why it cannot be tested here; such a claim has no checks
    note: str = ""  # what a reader should know
    checks: tuple[Check, ...] = ()  # numbers that decide the verdict
    beside: tuple[Check, ...] = ()  # controls, reported next to the checks and never judged
    figures: tuple[dict, ...] = ()  # figures of the claims page

    def __post_init__(self) -> None:
        if bool(self.cannot) == bool(self.checks):
            raise UserError(
                f"{self.id} needs either checks or a reason why it cannot be tested",
                'add checks, or cannot = "why"',
            )
        for check in self.checks:
            if check.expected is None:
                raise UserError(f"{self.id}: {check.says!r} has no expected range", "for example expected = [0.8, inf]")
        for check in self.beside:
            if check.expected is not None or check.tolerance or check.part or check.published_value is not None:
                raise UserError(
                    f"{self.id}: {check.says!r} is a control (`beside`), which is never judged",
                    "drop expected, tolerance, part and published_value, or move it to the checks",
                )


def read_claims(path: Path) -> tuple[str, tuple[Claim, ...]]:
    """Read a suite file's paper and its claims. Raises UserError for missing, unknown and impossible entries."""
    content = load_toml(path)
    claims: tuple[Claim, ...] = value_from_toml(tuple[Claim, ...], content.get("claims", []), f"{path}: claim")
    ids = [claim.id for claim in claims]
    if twice := [i for i in ids if ids.count(i) > 1]:
        raise UserError(f"{path}: two claims are called {twice[0]}", "give each claim its own id")
    return str(content.get("paper", path.stem)), claims


def dataclass_from_table(kind: type[T], table: object, where: str) -> T:
    """Make a dataclass from a TOML table.

    where: the table's place, for messages. Raises UserError for unknown keys, wrong types and missing fields.
    """
    hint = f"{kind.__module__.replace('.', '/')}.py describes its fields"
    if not isinstance(table, dict):
        raise UserError(f"{where} is {table!r}, not a table", hint)
    hints = typing.get_type_hints(kind)
    for key in table:
        if key not in hints:
            raise UserError(f"{where}: unknown key {key!r}", did_you_mean(key, hints, ", ".join(hints)))
    for one in dataclasses.fields(typing.cast(Any, kind)):
        if one.name not in table and one.default is MISSING:
            raise UserError(f"{where}: {one.name} is missing", hint)
    values = {key: value_from_toml(hints[key], value, f"{where}, {key}") for key, value in table.items()}
    try:
        return kind(**values)
    except UserError as mistake:
        raise UserError(f"{where}: {mistake.message}", mistake.hint) from None


def value_from_toml(hint: Any, value: object, where: str) -> Any:
    """Convert a TOML value to the type of its annotation; a tuple with one entry may be written without brackets."""
    if isinstance(hint, types.UnionType):
        hint = typing.get_args(hint)[0]  # annotations are `X | None`, and TOML has no None
    if typing.get_origin(hint) is tuple:
        values = value if isinstance(value, list) else [value]
        return tuple(value_from_toml(typing.get_args(hint)[0], v, f"{where} {i + 1}") for i, v in enumerate(values))
    if isinstance(hint, type) and is_dataclass(hint):
        return dataclass_from_table(hint, value, where)
    if hint is float and type(value) is int:
        return float(value)
    kinds = (str, dict) if hint is Any else (hint,)
    if type(value) not in kinds:
        words = {str: "text", dict: "a table", int: "a whole number", float: "a number", bool: "true or false"}
        raise UserError(f"{where} is {value!r}", f"it should be {' or '.join(words[k] for k in kinds)}")
    return value

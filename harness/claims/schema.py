"""Published statements as data: what was said, where, and which numbers of which trials it is about.

A claim is a `[[claims]]` table in a suite file:

    id, title, source, published     what was said, and where
    condition                        under what condition, if any, what is found here can hold at all
    cannot                           why it cannot be reproduced here; such a claim has no checks
    note                             what a reader should know
    [[claims.checks]]                says, measure, of, minus, over, along, expected, tolerance, when
    [[claims.beside]]                the same less the last three: controls, printed beside the checks and never judged
    [[claims.figures]]               see harness/claims/figures/kinds.py

`expected` is a range, either end of which may be inf, such as [0.8, inf]; `when` names the condition under which a
check is made: of several conditions one is enough. The file may also say its `paper`, and under `quick` the seeds,
and the fields of tasks and methods by name, that a quick run takes instead.

A *selection* (`of`, `minus`, `over`) names trials of the suite: `task` and `method` are a name or a table of the name
and some fields (of several settings of one name, the one with all defaults is meant); `panel` (test), `shots` (the
largest), `metric` (accuracy) say which number of theirs, and `less` what to subtract: the number of the same
selection but for the fields it gives, such as { panel = "shifted" }. A list of such tables subtracts one after the
other: [{ panel = "test" }, { shots = 5 }] is a gap less the gap at 5 shots. A metric is a column of the score table,
`error` (1 - accuracy), `diagnostic:NAME` or `curve:NAME` (its last point); or, where the best of `n` candidates (None: of
all) is chosen, `gain_of_n`, the gain in true utility over a random candidate, 1 for the best of all, or `win_random`,
`win_shared`, the rate of wins over a random candidate, or over the one that `shared` chooses; or, where a policy
writes, `written_gain` and others of WRITTEN_METRICS below (harness/board/text_worth.py), known at the least and the largest number of shots.
Measures:

    value    of - minus, or of / over, for each seed
    answers  how many answers `of` needs to reach what `over` reaches at its shots, as a multiple of those shots
    spread   standard deviation over seeds of `of` as a multiple of that of `over`
    trend    how much `of` changes from the least to the largest value of the field `along`, by least squares

harness/claims/judge.py says what is found, with limits, and what follows.
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
MEASURE_OPERANDS = {
    "value": ("minus", "over"),
    "answers": ("over",),
    "spread": ("over",),
    "trend": ("along",),
}  # what each takes
RISING_METRICS = ("accuracy", "sign_accuracy", "auc")
WIN_METRICS = ("win_random", "win_shared")
BEST_OF_N_METRICS = ("gain_of_n", *WIN_METRICS)  # of the best of n candidates: harness/board/best_of.py
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
    *RISING_METRICS,
    "error",
    "log_loss",
    "brier",
    *BEST_OF_N_METRICS,
    *(f"written_{name}" for name in WRITTEN_METRICS),
)
FACTS_OF_METRIC = {  # metric before its colon -> the fact that holds such numbers; older suites say `reading`
    "diagnostic": "readings",
    "reading": "readings",
    "curve": "curves",
}
SHARE_METRICS = (
    *RISING_METRICS,
    "error",
    *WIN_METRICS,
    "written_win",
    "written_win_random",
)  # none lies outside 0 to 1


@dataclass(frozen=True)
class Selection:
    """Which trials of a suite, and which number of theirs; None stands for the only one there is, or the largest."""

    task: Any = None  # a name, a table of the name and some fields, or the setting itself
    method: Any = None
    panel: str = "test"
    shots: int | None = None
    metric: str = "accuracy"
    n: int | None = None
    less: tuple[dict, ...] = ()

    def __post_init__(self) -> None:
        kind, _, name = self.metric.partition(":")
        if self.metric not in METRICS and not (kind in FACTS_OF_METRIC and name):
            every = f"{', '.join(METRICS)}, diagnostic:NAME or curve:NAME"
            raise UserError(f"there is no metric {self.metric!r}", did_you_mean(self.metric, METRICS, every))
        if self.shots is not None and self.shots < 0:
            raise UserError(f"shots = {self.shots} is below 0", "0 is before any answer")
        if self.n is not None and self.metric not in BEST_OF_N_METRICS:
            raise UserError(f"{self.metric} is not of the best of {self.n}", f"n is for {', '.join(BEST_OF_N_METRICS)}")
        for table in self.less:
            if "less" in table:
                raise UserError(
                    "there is a less within less", "less = [{ ... }, { ... }] subtracts one after the other"
                )
            dataclass_from_table(Selection, table, "less")


@dataclass(frozen=True)
class Check:
    """One number with the range it should lie in; `expected` is None for a control, which is never judged."""

    says: str
    of: Selection
    measure: str = "value"
    minus: Selection | None = None
    over: Selection | None = None
    along: str | None = None
    expected: tuple[float, ...] | None = None
    tolerance: float = 0.0
    when: str = ""  # the condition under which this check is made

    def __post_init__(self) -> None:
        if self.measure not in MEASURE_OPERANDS:
            raise UserError(f"there is no measure {self.measure!r}", f"one of {', '.join(MEASURE_OPERANDS)}")
        takes = MEASURE_OPERANDS[self.measure]
        given = [name for name in ("minus", "over", "along") if getattr(self, name) is not None]
        if wrong := [name for name in given if name not in takes]:
            raise UserError(f"{self.measure} takes no {wrong[0]}", f"it takes {' or '.join(takes)}")
        if self.measure == "value" and len(given) > 1:
            raise UserError("a value has minus or over, not both", "make it two checks")
        if self.measure != "value" and not given:
            raise UserError(f"{self.measure} needs {takes[0]}", "harness/claims/schema.py says what each measure is")
        if self.measure == "answers" and any(s.metric not in RISING_METRICS for s in (self.of, self.over) if s):
            raise UserError(
                "answers are counted until a score is reached that rises", f"one of {', '.join(RISING_METRICS)}"
            )
        if self.expected is not None and not (len(self.expected) == 2 and self.expected[0] <= self.expected[1]):
            raise UserError(f"expected = {list(self.expected)} is no range", "for example expected = [0.8, inf]")
        if not 0 <= self.tolerance < math.inf:
            raise UserError(f"tolerance = {self.tolerance} does not widen a range", "for example tolerance = 0.01")


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

    def __post_init__(self) -> None:
        if bool(self.cannot) == bool(self.checks):
            raise UserError(f"{self.id} needs either checks or a reason", 'add checks, or cannot = "why"')
        for check in self.checks:
            if check.expected is None:
                raise UserError(f"{self.id}: {check.says!r} expects nothing", "for example expected = [0.8, inf]")
        for check in self.beside:
            if check.expected is not None or check.tolerance or check.when:
                raise UserError(f"{self.id}: {check.says!r} stands beside, and is not judged", "move it to the checks")


def read_claims(path: Path) -> tuple[str, tuple[Claim, ...]]:
    """The paper a suite file is about, and its claims. Raises UserError for what is missing, misspelt or impossible."""
    content = load_toml(path)
    claims: tuple[Claim, ...] = value_from_toml(tuple[Claim, ...], content.get("claims", []), f"{path}: claim")
    ids = [claim.id for claim in claims]
    if twice := [i for i in ids if ids.count(i) > 1]:
        raise UserError(f"{path}: two claims are called {twice[0]}", "give each an id of its own")
    return str(content.get("paper", path.stem)), claims


def dataclass_from_table(kind: type[T], table: object, where: str) -> T:
    """A dataclass from a TOML table: every key known and of its type, and everything without a default given."""
    hint = f"{kind.__module__.replace('.', '/')}.py says what it holds"
    if not isinstance(table, dict):
        raise UserError(f"{where} is {table!r}, not a table", hint)
    hints = typing.get_type_hints(kind)
    for key in table:
        if key not in hints:
            raise UserError(f"{where}: unknown key {key!r}", did_you_mean(key, hints, ", ".join(hints)))
    for one in dataclasses.fields(typing.cast(Any, kind)):
        if one.name not in table and one.default is MISSING:
            raise UserError(f"{where}: there is no {one.name}", hint)
    values = {key: value_from_toml(hints[key], value, f"{where}, {key}") for key, value in table.items()}
    try:
        return kind(**values)
    except UserError as mistake:
        raise UserError(f"{where}: {mistake.message}", mistake.hint) from None


def value_from_toml(hint: Any, value: object, where: str) -> Any:
    """A TOML value as its annotation wants it; a tuple of one needs no brackets."""
    if isinstance(hint, types.UnionType):
        hint = typing.get_args(hint)[0]  # the other is None
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

"""Verdicts on claims, from numbers of finished trials with their limits; independent of any particular paper.

Every number has an interval. For the measure `value` of people's scores, the interval is over people and seeds, and a
difference of two scores is paired (harness/scores/stats.py). For all other numbers the interval is over seeds. It is a t
interval, except for the measures `spread` (Pitman and Morgan) and `answers` (inversion, see `measures._answers_needed`).
For a ratio, `of / over`, it is the t interval of the ratio's logarithm.

A check *holds* where its 95 % interval lies within `expected` (either end may be inf) widened by `tolerance`. A check
*does not reproduce* where the interval lies wholly outside. Otherwise the verdict is *cannot tell*. Where any one of g
conditions (`when`) is enough for a claim, there are g chances to be wrong, so their limits are at 1 - 5 % / g.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from harness.board.results import committed_manifest
from harness.claims.measures import measure_check, sweep_of_trend
from harness.claims.results import NoNumberError, Results
from harness.claims.schema import SHARE_METRICS, Check, Claim, Selection
from harness.errors import UserError, did_you_mean
from harness.trials.suite import Suite

HOLDS, HOLDS_WITH_CONDITION, DOES_NOT_REPRODUCE, CANNOT_TELL, CANNOT_BE_REPRODUCED = (
    "holds",
    "holds with a condition",
    "does not reproduce",
    "cannot tell",
    "cannot be reproduced here",
)


@dataclass(frozen=True)
class CheckResult:
    """The result of a check: a number, its limits (None where there is no interval), and the verdict."""

    says: str
    value: float | None
    low: float | None
    high: float | None
    expected: tuple[float, ...] | None
    tolerance: float
    when: str
    verdict: str
    note: str = ""
    level: float = 0.95  # confidence level of the limits


@dataclass(frozen=True)
class JudgedClaim:
    """A claim with its verdict, and the checks and controls behind it."""

    claim: Claim
    paper: str
    suite: str
    verdict: str
    condition: str
    checks: tuple[CheckResult, ...] = ()
    beside: tuple[CheckResult, ...] = ()  # the controls: shown, but without influence on the verdict
    seeds: int = 0

    def as_dict(self) -> dict:
        """Return plain values for JSON; infinite numbers become None, since JSON has no infinity."""
        named = {k: getattr(self.claim, k) for k in ("id", "title", "source", "published", "note")}
        own = {k: getattr(self, k) for k in ("paper", "suite", "verdict", "condition", "seeds")}
        found = {
            k: [{n: _json_value(v) for n, v in vars(f).items()} for f in getattr(self, k)] for k in ("checks", "beside")
        }
        return named | own | found


def _json_value(value: object) -> object:
    if isinstance(value, tuple):
        return [_json_value(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_selections(suite: Suite, claims: tuple[Claim, ...]) -> None:
    """Raise UserError where a claim selects a task, method or shots that its suite lacks. Needs no finished trial."""
    unrun = Results.of_unrun_suite(suite)
    for claim in claims:
        for check in claim.checks + claim.beside:
            try:
                wanted = (check.of, check.minus, check.over)
                for selection in sweep_of_trend(check, unrun)[1] if check.measure == "trend" else filter(None, wanted):
                    for part in _added_selections(selection):
                        unrun.task_and_method(part)
                        if part.metric == "win_shared":
                            unrun.single_setting("method", "shared")
                parts = [part for selection in filter(None, wanted) for part in _added_selections(selection)]
                scores = sorted({part.metric for part in parts if ":" not in part.metric})
                if len(scores) > 1:
                    raise UserError(
                        f"{' and '.join(scores)} cannot be compared",
                        "use the same metric in all selections of the check",
                    )
            except UserError as mistake:
                raise UserError(f"{suite.name}: {claim.id}, {check.says!r}: {mistake.message}", mistake.hint) from None


def check_panels(results: Results, claims: tuple[Claim, ...]) -> None:
    """Raise UserError where a claim selects a panel that its prepared task does not have."""
    for claim in claims:
        for check in claim.checks + claim.beside:
            for part in [p for s in filter(None, (check.of, check.minus, check.over)) for p in _added_selections(s)]:
                tasks = results.matching_settings("task", part.task)
                keys = {t.task: t.task_key for t in results.plan.trials if t.task in tasks}.values()
                users = {
                    name for key in keys for name in committed_manifest(results.store, "tasks", key)["facts"]["users"]
                }
                panels = sorted(name.removesuffix("/context") for name in users if name.endswith("/context"))
                if panels and ":" not in part.metric and part.panel not in panels:
                    raise UserError(
                        f"{results.suite.name}: {claim.id}, {check.says!r}: {tasks[0].name} has no panel "
                        f"{part.panel!r}",
                        did_you_mean(part.panel, panels, f"its panels: {', '.join(panels)}"),
                    )


def _added_selections(selection: Selection) -> list[Selection]:
    """Return all selections whose numbers are added or subtracted: this one, and those of `less`."""
    found = [replace(selection, less=())]
    for table in selection.less:
        found += [replace(part, **table) for part in found]
    return found


def judge_claim(claim: Claim, paper: str, results: Results) -> JudgedClaim:
    """Judge a claim that has checks."""
    conditions = len({check.when for check in claim.checks} - {""})
    checks = tuple(_judge_check(c, results, 1 - 0.05 / conditions if c.when else 0.95) for c in claim.checks)
    beside = tuple(_judge_check(check, results) for check in claim.beside)
    text, condition = verdict_on_claim(checks, claim.condition)
    return JudgedClaim(claim, paper, results.suite.name, text, condition, checks, beside, len(results.suite.seeds))


def _judge_check(check: Check, results: Results, level: float = 0.95) -> CheckResult:
    try:
        value, low, high, note = measure_check(check, results, level)
    except NoNumberError as why:
        return CheckResult(
            check.says, None, None, None, check.expected, check.tolerance, check.when, CANNOT_TELL, str(why), level
        )
    text = "" if check.expected is None else _verdict_on_range(low, high, check.expected, check.tolerance)
    alone = check.measure == "value" and check.minus is check.over is None and not check.of.less
    if alone and check.of.metric in SHARE_METRICS and low is not None and high is not None:
        low, high = max(low, 0.0), min(high, 1.0)  # for display only: the verdict above uses the unclipped limits
    return CheckResult(check.says, value, low, high, check.expected, check.tolerance, check.when, text, note, level)


def _verdict_on_range(low: float | None, high: float | None, expected: tuple[float, ...], tolerance: float) -> str:
    if low is None or high is None or np.isnan([low, high]).any():
        return CANNOT_TELL
    least, most = expected[0] - tolerance, expected[1] + tolerance
    return HOLDS if least <= low and high <= most else DOES_NOT_REPRODUCE if high < least or low > most else CANNOT_TELL


def verdict_on_claim(checks: tuple[CheckResult, ...], condition: str = "") -> tuple[str, str]:
    """Return the verdict of all checks together, and the condition under which it holds ("" without one).

    Checks without a `when` must all hold. Among the conditions (`when`), one whose checks all hold is enough: the claim
    then holds with that condition, or without any condition where all conditions hold.
    """
    unconditional = [c.verdict for c in checks if not c.when]
    if DOES_NOT_REPRODUCE in unconditional:
        return DOES_NOT_REPRODUCE, ""
    if CANNOT_TELL in unconditional:
        return CANNOT_TELL, ""
    under: dict[str, set[str]] = {}
    for check in checks:
        if check.when:
            under.setdefault(check.when, set()).add(check.verdict)
    hold = [when for when, found in under.items() if found == {HOLDS}]
    fail = [when for when, found in under.items() if DOES_NOT_REPRODUCE in found]
    undecided = [when for when in under if when not in hold + fail]
    if under and not hold:
        return (CANNOT_TELL if undecided else DOES_NOT_REPRODUCE), ""
    parts = [condition] if condition else []
    if fail or undecided:
        parts.append(" and ".join(hold))
        parts += [f"not {' or '.join(fail)}"] if fail else []
        parts += [f"cannot tell: {' or '.join(undecided)}"] if undecided else []
    return (HOLDS_WITH_CONDITION, "; ".join(parts)) if parts else (HOLDS, "")

"""Verdicts on claims, from numbers of finished trials with their limits; independent of any particular paper.

Every number has an interval. For the measure `value` of people's scores, the interval is over people and seeds, and a
difference of two scores is paired (harness/scores/stats.py). For all other numbers the interval is over seeds. It is a t
interval, except for the measures `spread` (Pitman and Morgan) and `answers` (inversion, see `measures._answers_needed`).
For a ratio, `of / over`, it is the t interval of the ratio's logarithm.

A check *holds* where its interval lies within `expected` (either end may be inf) widened by `tolerance`. It *does not
hold* where the interval lies wholly outside. Otherwise nobody *can tell*. It is *vacuous* where it bounds a share by a
number of one or more, as every share is. A claim with m checks has m chances to be wrong, so its limits are at 1 - 5 % / m:
all of them hold at once with 95 %.

A part of a claim holds where all its checks do. A claim holds where all its parts do, and *in part* where some do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from harness.board.results import committed_manifest
from harness.claims.measures import Measurement, measure_check, sweep_of_trend
from harness.claims.results import NoNumberError, Results
from harness.claims.schema import SHARE_METRICS, Check, Claim, Selection
from harness.errors import UserError, did_you_mean
from harness.trials.suite import Suite

HOLDS = "holds"
HOLDS_IN_PART = "holds in part"
DOES_NOT_HOLD = "does not hold"
CANNOT_TELL = "cannot tell"
VACUOUS = "vacuous"
NOT_TESTABLE = "not testable here"
ENOUGH_POWER = 0.8  # the usual one: a published effect should be missed in at most one draw of five


@dataclass(frozen=True)
class CheckResult:
    """The result of a check: a number, its limits (None where there is no interval), and the verdict."""

    says: str
    value: float | None
    low: float | None
    high: float | None
    expected: tuple[float, ...] | None
    tolerance: float
    part: str
    verdict: str
    note: str = ""
    level: float = 0.95  # confidence level of the limits
    power: float | None = None  # how often the check would hold if the published value were true; None: not known


@dataclass(frozen=True)
class JudgedClaim:
    """A claim with its verdict, and the checks and controls behind it."""

    claim: Claim
    paper: str
    suite: str
    verdict: str
    reason: str = ""  # why there is no verdict on the whole claim: parts that hold and do not, or what is missing
    checks: tuple[CheckResult, ...] = ()
    beside: tuple[CheckResult, ...] = ()  # the controls: shown, but without influence on the verdict
    seeds: int = 0
    registered: str = ""  # when what the claim expects was last changed, and which results were known then

    @property
    def anchor(self) -> str:
        """The claim's place on a page of claims."""
        return f"{self.suite}-{self.claim.id}"

    @property
    def power_note(self) -> str:
        """Where the published effect would often be missed with these people and seeds, say so; "" elsewhere."""
        known = [check.power for check in self.checks if check.power is not None]
        if not known or min(known) >= ENOUGH_POWER:
            return ""
        return (
            f"if the published numbers were true, these people and seeds would show it in at most {min(known):.0%} of draws, "
            f"fewer than {ENOUGH_POWER:.0%}"
        )

    @property
    def ground(self) -> str:
        """What the verdict was reached on; "nothing was judged" for a claim that cannot be tested here."""
        if self.claim.cannot:
            return "nothing was judged"
        return f"on a stand-in: {self.claim.stand_in}" if self.claim.stand_in else "on the paper's own material"

    def as_dict(self) -> dict:
        """Return plain values for JSON; infinite numbers become None, since JSON has no infinity."""
        named = {k: getattr(self.claim, k) for k in ("id", "title", "source", "published", "note")}
        own = {
            k: getattr(self, k)
            for k in ("paper", "suite", "verdict", "ground", "reason", "seeds", "registered", "power_note")
        }
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
    """Judge a claim by its checks; one without checks cannot be tested, but may have controls."""
    level = 1 - 0.05 / max(1, len(claim.checks))
    checks = tuple(_judge_check(check, results, level) for check in claim.checks)
    beside = tuple(_judge_check(check, results) for check in claim.beside)
    verdict, reason = (NOT_TESTABLE, claim.cannot) if claim.cannot else verdict_on_claim(checks)
    return JudgedClaim(claim, paper, results.suite.name, verdict, reason, checks, beside, len(results.suite.seeds))


def _judge_check(check: Check, results: Results, level: float = 0.95) -> CheckResult:
    told = CheckResult(
        check.says, None, None, None, check.expected, check.tolerance, check.part, CANNOT_TELL, level=level
    )
    try:
        found = measure_check(check, results, level)
        verdict = "" if check.expected is None else _verdict_on_range(found, check.expected, check.tolerance)
        if verdict == HOLDS and _is_vacuous(check, results):
            verdict = VACUOUS
    except NoNumberError as why:
        return replace(told, note=str(why))
    low, high, power = found.low, found.high, None
    if check.neutral is None and check.of.metric in SHARE_METRICS and low is not None and high is not None:
        low, high = max(low, 0.0), min(high, 1.0)  # for display only: the verdict above uses the unclipped limits
    if check.published_value is not None and check.expected is not None:
        ends = check.expected[0] - check.tolerance, check.expected[1] + check.tolerance
        power = found.power(check.published_value, *ends, level)
    return replace(told, value=found.value, low=low, high=high, verdict=verdict, note=found.note, power=power)


def _is_vacuous(check: Check, results: Results) -> bool:
    """Return whether a check bounds a share from above by a number that no share can exceed."""
    if check.minus is None or check.of.metric not in SHARE_METRICS or check.expected is None:
        return False
    least = results.selected_values(check.minus).value.min() + check.expected[1] + check.tolerance
    return check.expected[0] == -math.inf and least >= 1


def _verdict_on_range(found: Measurement, expected: tuple[float, ...], tolerance: float) -> str:
    low, high = found.low, found.high
    if low is None or high is None or np.isnan([low, high]).any():
        return CANNOT_TELL
    least, most = expected[0] - tolerance, expected[1] + tolerance
    return HOLDS if least <= low and high <= most else DOES_NOT_HOLD if high < least or low > most else CANNOT_TELL


def verdict_on_claim(checks: tuple[CheckResult, ...]) -> tuple[str, str]:
    """Return the verdict of all checks together, and what it says of each part where the parts differ."""
    parts = verdicts_on_parts(checks)
    found = list(dict.fromkeys(parts.values()))
    if len(found) == 1:
        return found[0], ""
    told = "; ".join(f"{verdict}: {', '.join(p for p, v in parts.items() if v == verdict)}" for verdict in found)
    if HOLDS in found:
        return HOLDS_IN_PART, told
    return next(verdict for verdict in (DOES_NOT_HOLD, VACUOUS, CANNOT_TELL) if verdict in found), told


def verdicts_on_parts(checks: tuple[CheckResult, ...]) -> dict[str, str]:
    """Return the verdict on each part of a claim: of its own checks, and of those that belong to every part."""
    parts = list(dict.fromkeys(check.part for check in checks if check.part)) or [""]
    found = {part: {check.verdict for check in checks if check.part in ("", part)} for part in parts}
    order = (DOES_NOT_HOLD, CANNOT_TELL, VACUOUS, HOLDS)  # a part is as good as its worst check
    return {part: next(verdict for verdict in order if verdict in verdicts) for part, verdicts in found.items()}

"""Flags of a board: what a reader should know before believing a table."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np

from harness.board.board import REFERENCE_METHOD, Row
from harness.method import Method
from harness.scores.stats import resembles_coin_flips
from harness.task import Task
from harness.trials.code_used import is_unchanged
from harness.trials.prepare import MAX_FORM_ACCURACY
from harness.trials.suite import CONTROL_METHODS
from harness.trials.trial import Trial

# Of pairs, for which a judge gives the same answer in both orders: coins would agree in half of them, and so does a judge
# without an opinion and without a bias of place.
MIN_ORDERS_AGREE = 0.6
LEAST_EFFECT = 0.01  # share of queries; methods that gain a point of accuracy by reading people change more answers


def flag_code_versions(manifests: dict[str, dict]) -> list[str]:
    codes = sorted({m["facts"]["code"] for m in manifests.values()})
    if len(codes) < 2:
        return []
    return [f"the results come from {len(codes)} different versions of the code: {', '.join(codes)}"]


def flag_order_dependence(manifests: dict[str, dict]) -> list[str]:
    """Report how often a language model that plays the users answers the same in both orders of two responses."""
    readings = [m["facts"].get("readings", {}) for m in manifests.values()]
    agree = [r["orders_agree"] for r in readings if "orders_agree" in r]
    if not agree:
        return []
    return [f"a language model plays the users: its answers in both orders agree for {np.mean(agree):.0%} of the pairs"]


def flag_judges(rows: dict[Method, Row], manifests: dict[str, dict]) -> list[str]:
    """Report how a language model that judges pairs depends on their order, with a warning where it mostly does."""
    flags = []
    for row in rows.values():
        facts = [manifests[key]["facts"].get("answers") or {} for key in row.keys]
        agree = [found["orders_agree"] for found in facts if "orders_agree" in found]
        if agree:
            first = np.mean([found["first_named"] for found in facts if "first_named" in found])
            said = (
                f"{row.label}: its answers in both orders of two responses agree for {np.mean(agree):.0%} of the test "
                f"pairs, and it names the first response in {first:.0%}"
            )
            warning = ": it answers by place, and hardly judges" if np.mean(agree) < MIN_ORDERS_AGREE else ""
            flags.append(said + warning)
    return flags


def flag_equal_options(share: float) -> list[str]:
    """Report the share of test pairs that no method can decide, from one in two hundred on."""
    if share < 0.005:
        return []
    return [f"both options have equal features in {share:.1%} of the test pairs: there all methods score one half"]


def flag_other_builds(tasks: Collection[dict]) -> list[str]:
    """Report a task that built other data before under the same settings, whose results are no longer shown."""
    count = max((task["facts"].get("other_builds", 0) for task in tasks), default=0)
    if not count:
        return []
    return [
        f"this task has built other data before ({count} time{'s' if count > 1 else ''}) under the same settings: its input has "
        "changed, or `build` and `split` are not the same in every process; results of other data are not shown"
    ]


def flag_leaking_form(rows: dict[Method, Row], task: Task) -> list[str]:
    """Report where the control of form surely predicts more than human choices ever gave it."""
    found = []
    for method, row in rows.items():
        point = row.curves["accuracy"][max(task.shots)] if method.name == "surface" and row.curves else None
        if point and point.low is not None and point.low > MAX_FORM_ACCURACY and not task.form_matters:
            found.append(
                f"form alone predicts {point.value:.3f} (the row surface): chosen and rejected responses may be stored in "
                "different ways, and then no row of this board says anything about people"
            )
    return found


def flag_notes(task: dict) -> list[str]:
    """Report what the task says about its data, such as people and pairs that are left out."""
    return list(task["facts"].get("notes", ()))


def flag_licence(task: Task) -> list[str]:
    """Report whose data a board shows and under which licence, where they are not the project's own."""
    return [f"data: {task.paper}; licence: {task.licence}"] if task.licence else []


def flag_tied_labels(share: float) -> list[str]:
    """Report the share of test pairs whose label is one half, from one in two hundred on."""
    return [f"{share:.1%} of the test labels are ties, which say nothing"] if share >= 0.005 else []


def flag_reads_nobody(rows: dict[Method, Row], manifests: dict[str, dict]) -> list[str]:
    """Report methods that learn something of each person, and answer all the same for another one."""
    flags = []
    for method, row in rows.items():
        facts = [] if method.family == "control" else [manifests[key]["facts"] for key in row.keys]
        effects = [found["context_effect"] for found in facts if found.get("context_effect") is not None]
        if effects and np.mean(effects) < LEAST_EFFECT and all(found["bytes_per_user"] for found in facts):
            flags.append(
                f"{row.label} reads nobody: with another person's answers it gives another answer to {np.mean(effects):.1%} "
                "of the queries"
            )
    return flags


def tell_searches(rows: dict[Method, Row], manifests: dict[str, dict]) -> list[str]:
    """Report the budget of every tuned row, and the settings that it chose under the suite's seeds."""
    flags = []
    for method, row in rows.items():
        found = [manifests[key]["facts"].get("chosen") or {} for key in row.keys] if method.searches else []
        if not found:
            continue
        seconds, failed = (sum(each[name] for each in found) for name in ("seconds", "failed"))
        tried = max(each["tried"] for each in found)
        kept = sum(not each["setting"] for each in found)
        chose = settings_in_words([each["setting"] for each in found if each["setting"]])
        flags.append(
            f"{row.label}: {tried} settings a seed on validation users, {seconds:,.0f} s of a core in all"
            + (f", {failed} failed" if failed else "")
            + spread_of_losses([each["losses"] for each in found])
            + (f"; chose {chose}" if chose else "")
            + (f"; kept the method as it is under {kept} of {len(found)} seeds" if kept else "")
        )
    return flags


def spread_of_losses(losses: list[list[float | None]]) -> str:
    """Return the mean over seeds of the lowest loss, of the loss of the method as it is, and of the median and highest."""
    known = [[loss for loss in each if loss is not None] for each in losses]
    lowest, middle, highest = (np.mean([f(each) for each in known]) for f in (np.min, np.median, np.max))
    first = [each[0] for each in losses if each[0] is not None]
    as_it_is = f", as it is {np.mean(first):.3f}" if first else ""
    return f"; log loss there {lowest:.3f}{as_it_is}, median {middle:.3f}, worst {highest:.3f}"


def settings_in_words(settings: list[dict]) -> str:
    """Return the values of each field over several settings: `rank 4 to 11, variant angle or distance`."""
    found = []
    for name in dict.fromkeys(name for setting in settings for name in setting):
        values = sorted({setting[name] for setting in settings if name in setting})
        numbers = all(type(value) in (int, float) for value in values)
        shown = [f"{value:.3g}" if type(value) is float else str(value) for value in values]
        found.append(
            f"{name} " + (" to ".join(dict.fromkeys([shown[0], shown[-1]])) if numbers else " or ".join(shown))
        )
    return ", ".join(found)


def flag_tied_predictions(rows: dict[Method, Row], manifests: dict[str, dict]) -> list[str]:
    """Report methods that answer one half to more than a twentieth of the test pairs, as lost precision makes them."""
    flags = []
    for method, row in rows.items():
        ties = [manifests[key]["facts"].get("tied_predictions", 0.0) for key in row.keys]
        if ties and method.name not in CONTROL_METHODS and np.mean(ties) > 0.05:
            flags.append(f"{row.label} answers one half to {np.mean(ties):.0%} of the test pairs: each counts one half")
    return flags


def flag_uneven_sides(tasks: Iterable[dict]) -> list[str]:
    """Report test pairs whose left option wins so often, or so rarely, that its place tells the answer.

    tasks: manifests of one task's prepared data. Stores of older versions lack the share.
    """
    known = [task["facts"] for task in tasks if "left_wins" in task["facts"]]
    uneven = [f["left_wins"] for f in known if not resembles_coin_flips(f["left_wins"], f["pairs"]["test/query"])]
    if not uneven:
        return []
    return [
        f"the left option wins in {np.mean(uneven):.0%} of the test pairs: its place tells the answer, "
        "so draw at random which option is left"
    ]


def flag_reference_below_chance(rows: dict[Method, Row], task: Task) -> list[str]:
    """Report where the baseline of every gain is worse than guessing."""
    below = []
    for method, row in rows.items():
        if method.name == REFERENCE_METHOD and row.curves:
            point = row.curves["accuracy"][max(task.shots)]
            if point.high is not None and point.high < 0.5:
                below.append(
                    f"{row.label} is below chance ({point.value:.3f}): a gain over it may be none over guessing"
                )
    return below


def flag_changed_code(trials: dict[Method, list[Trial]], manifests: dict[str, dict]) -> list[str]:
    """Report in one line each the task and the methods whose code has changed since their results were made."""
    found: dict[str, list[str]] = {}
    used: dict[tuple[str, type, str], set[str]] = {}  # kind, class and name -> digests of code that made results
    for method, wanted in trials.items():
        sources = [manifests[t.key]["facts"]["source"] for t in wanted if t.key in manifests]
        for kind, thing in (("task", wanted[0].task), ("method", method)):
            used.setdefault((kind, type(thing), thing.name), set()).update(source[kind] for source in sources)
    for (kind, cls, name), digests in used.items():
        if not all(is_unchanged(digest, cls) for digest in digests):
            found.setdefault(kind, []).append(name)
    flags = []
    for kind, names in found.items():
        one = len(names) == 1
        which, its = f"{kind}{'' if one else 's'} {', '.join(names)}", "its" if one else "their"
        flags.append(
            f"{which}: {its} code, or code that it imports, has changed since {its} results were made; if scores should change, "
            "raise the version"
        )
    return flags

"""The verdict of a board on a task: whether personalising pays, and for whom the board can tell."""

from __future__ import annotations

import numpy as np

from harness.board.board import REFERENCE_METHOD
from harness.method import Method
from harness.scores import stats


def judged_at_once(methods: list[Method]) -> np.ndarray:
    """Return bool[methods]: those whose gains the verdict is about.

    These are the suite's methods other than controls, such as `chance`, or all where there are only controls. Another
    control on the board therefore changes no verdict.
    """
    judged = np.array([method.family != "control" for method in methods])
    return judged if judged.any() else np.array([method.name != REFERENCE_METHOD for method in methods])


def verdict_text(gains: stats.Gains, losses: stats.SwapLosses | None, margin: float, names: list[str]) -> str:
    """Return the task's verdict.

    A method personalises where its gain is surely above the margin, and so is its loss when people are answered with
    another person's state (the swap control): otherwise the gain may come from a better reward for everybody.

    losses: None where the swap control is not known, as with one person in a panel.
    """
    if gains.note:
        return f"no verdict: gains have no interval ({gains.note})"

    def gain_of(i: int) -> str:
        value, low, high = (np.clip(x[i], -1, 1) for x in (gains.value, gains.joint_low, gains.joint_high))
        return f"{value:+.3f} over {REFERENCE_METHOD}, simultaneous limits {low:+.3f} to {high:+.3f}"

    def loss_of(i: int) -> str:
        assert losses is not None
        value, low, high = (np.clip(x[i], -1, 1) for x in (losses.value, losses.low, losses.high))
        return f"{value:.3f} of accuracy, {low:.3f} to {high:.3f}, with another person's state"

    found = stats.gain_verdict(gains, margin)
    best = names[found.best]
    if found.text == "gain":
        better = f"{best} gains {gain_of(found.best)} (margin {margin:g})"
        if losses is None:
            return f"better, perhaps not personal: {better}, and there is nobody to swap people's states with"
        personal = np.flatnonzero((losses.gain_low > margin) & (losses.low > margin))
        if len(personal):
            most = int(personal[np.argmax(gains.value[personal])])
            return f"personalising pays: {names[most]} gains {gain_of(most)}, and loses {loss_of(most)} (margin {margin:g})"
        sure = np.flatnonzero(gains.family & (gains.joint_low > margin))
        if (losses.high[sure] < margin).all():
            return f"better, but not personal: {better}, and loses {loss_of(found.best)}"
        if losses.low[found.best] > margin:
            together = "that both exceed the margin cannot be told for all methods at once"
            return f"better, perhaps not personal: {better}, and loses {loss_of(found.best)}; {together}"
        return f"better, perhaps not personal: {better}, but loses {loss_of(found.best)}"
    if found.text == "cannot tell":
        enough = f"more seeds, or about {found.people} people," if found.people else "more seeds"
        return (
            f"cannot tell whether a gain exceeds the margin: {best} gains {gain_of(found.best)} "
            f"(margin {margin:g}; {enough} might be enough to tell)"
        )
    highest = gains.joint_high[gains.family].max()
    return (
        f"nothing to personalise here: no method gains more than {highest:+.3f} over {REFERENCE_METHOD} "
        f"(margin {margin:g})"
    )

"""Language models in the roles of PReF's `attributes` (appendix B.1): who writes by two traits, and who judges by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from harness import ask, lm
from harness.world import TRAITS

ANSWERS = ("A", "B")
SIDES = {  # trait -> its positive and its negative side, as responses have it (table 2 names the traits; words are ours)
    "length": ("long and detailed", "short and concise"),
    "formality": ("formal", "casual"),
    "humour": ("humorous", "serious"),
    "elicitation": ("engaging, with questions to the reader", "closed, without questions to the reader"),
    "politeness": ("polite", "rude"),
    "enthusiasm": ("enthusiastic", "unexcited"),
    "confidence": ("confident", "unsure of themselves"),
}
WRITER = "Write responses that are {}. Do not mention that you do."
JUDGE = (
    "You play a person with a taste of their own: you like responses that are {}, and nothing else about them matters "
    "to you. You are shown a prompt and two responses, A and B. Say which one you prefer: answer A or B."
)
QUESTION = "Prompt: {}\n\nA: {}\n\nB: {}\n\nWhich one do you prefer? Answer A or B."


def wanted(wants: np.ndarray) -> dict[str, int]:
    """{"formality": 1, "length": -1}: the traits that are not zero in `wants`, float[7] in the order of TRAITS."""
    return {trait: int(np.sign(w)) for trait, w in zip(TRAITS, wants, strict=True) if w}


def writer(wants: Mapping[str, int], generator: str) -> str:
    """The system prompt under which `generator` writes responses with these traits; our small model knows one of its own."""
    if lm.parse(generator.partition("?")[0], {}).model == "small":
        from harness.small_lm import system_line

        return system_line(dict(wants))
    return WRITER.format(sides(wants))


def judge(wants: Mapping[str, int]) -> str:
    """The system prompt of who plays a user that wants these traits."""
    return JUDGE.format(sides(wants))


def sides(wants: Mapping[str, int]) -> str:
    return " and ".join(SIDES[trait][sign < 0] for trait, sign in wants.items())


@dataclass(frozen=True)
class Judged:
    """What played users prefer. label: float32[n], the mean of two answers, one per order: 1 is left, 0 right.

    soft: float32[n], the mean of the two probabilities. agreement: of the pairs decided in both orders, the share in
    which both times the same response won: 1 where the order never matters, 0 where it decides; NaN without any.
    """

    label: np.ndarray
    soft: np.ndarray
    agreement: float


def role_played(
    name: str, wants: np.ndarray, prompts: Sequence[str], left: Sequence[str], right: Sequence[str]
) -> Judged:
    """Preferences of users who want `wants`, float[n, 7], a row for each pair, as the language model `name` plays them.

    Each pair is shown in both orders. Raises as ask.answers does.
    """
    roles, role = np.unique(np.asarray(wants), axis=0, return_inverse=True)
    systems = [judge(wanted(row)) for row in roles]
    asked = [systems[r] for r in role.ravel()]
    orders = [
        [QUESTION.format(*parts) for parts in zip(prompts, *responses, strict=True)]
        for responses in ((left, right), (right, left))
    ]
    log_odds = ask.answers(name, asked * 2, orders[0] + orders[1], ANSWERS)
    first, second = log_odds[: len(asked)], -log_odds[len(asked) :]
    votes = np.sign(np.stack([first, second]))
    decided = (votes != 0).all(0)
    return Judged(
        label=(0.5 + votes.mean(0) / 2).astype(np.float32),
        soft=((expit(first) + expit(second)) / 2).astype(np.float32),
        agreement=float((votes[0] == votes[1])[decided].mean()) if decided.any() else float("nan"),
    )

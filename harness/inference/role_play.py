"""Language models in the roles of PReF's `attributes` (appendix B.1): who writes by two traits, and who judges by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from harness.inference.answer import log_odds_of_both_orders, stored_log_odds
from harness.inference.jobs import require_store
from harness.models.names import parse_model
from harness.sources.text_world import TRAITS
from harness.store.store import Store

ANSWER_WORDS = ("A", "B")
TRAIT_DESCRIPTIONS = {  # trait -> its positive and its negative side, as responses have it (table 2 names the traits; words are ours)
    "length": ("long and detailed", "short and concise"),
    "formality": ("formal", "casual"),
    "humour": ("humorous", "serious"),
    "elicitation": ("engaging, with questions to the reader", "closed, without questions to the reader"),
    "politeness": ("polite", "rude"),
    "enthusiasm": ("enthusiastic", "unexcited"),
    "confidence": ("confident", "unsure of themselves"),
}
WRITER_PROMPT = "Write responses that are {}. Do not mention that you do."
PLAYER_PROMPT = (
    "You play a person with a taste of their own: you like responses that are {}, and nothing else about them matters "
    "to you. You are shown a prompt and two responses, A and B. Say which one you prefer: answer A or B."
)
PLAYER_QUESTION = "Prompt: {}\n\nA: {}\n\nB: {}\n\nWhich one do you prefer? Answer A or B."


def wanted_traits(wants: np.ndarray) -> dict[str, int]:
    """{"formality": 1, "length": -1}: the traits that are not zero in `wants`, float[7] in the order of TRAITS."""
    return {trait: int(np.sign(w)) for trait, w in zip(TRAITS, wants, strict=True) if w}


def writer_system_prompt(wants: Mapping[str, int], generator: str) -> str:
    """The system prompt under which `generator` writes responses with these traits; our small model knows one of its own."""
    if parse_model(generator.partition("?")[0], {}).model == "small":
        from harness.models.small import system_line

        return system_line(dict(wants))
    return WRITER_PROMPT.format(describe_traits(wants))


def player_system_prompt(wants: Mapping[str, int]) -> str:
    """The system prompt of who plays a user that wants these traits."""
    return PLAYER_PROMPT.format(describe_traits(wants))


def describe_traits(wants: Mapping[str, int]) -> str:
    return " and ".join(TRAIT_DESCRIPTIONS[trait][sign < 0] for trait, sign in wants.items())


def role_played_labels(
    name: str, wants: np.ndarray, prompts: Sequence[str], left: Sequence[str], right: Sequence[str], store: Store | None
) -> np.ndarray:
    """float32[n]: what users who want `wants`, float[n, 7], a row for each pair, prefer as the language model `name` plays them.

    The mean of two answers, one for each order of the pair: 1 is left, 0 right, and one half where the order decides, or
    where one of the two could not be answered. Raises as `answers` does.
    """
    roles, role = np.unique(np.asarray(wants), axis=0, return_inverse=True)
    systems = [player_system_prompt(wanted_traits(row)) for row in roles]
    asked = [systems[r] for r in role.ravel()]
    orders = [
        [PLAYER_QUESTION.format(*parts) for parts in zip(prompts, *responses, strict=True)]
        for responses in ((left, right), (right, left))
    ]
    log_odds = stored_log_odds(name, asked * 2, orders[0] + orders[1], ANSWER_WORDS, require_store(store, name))
    votes = np.sign(log_odds_of_both_orders(log_odds))
    return (0.5 + votes.mean(0) / 2).astype(np.float32)

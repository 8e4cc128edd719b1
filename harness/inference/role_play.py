"""Language models that write responses with two traits, or play users who want two traits (PReF, appendix B.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from harness.inference.answer import log_odds_of_both_orders, stored_log_odds
from harness.inference.jobs import require_store
from harness.models.names import parse_model
from harness.sources.text_world import TRAITS
from harness.store.store import Store

ANSWER_WORDS = ("A", "B")
# trait -> description of responses on its positive and on its negative side. Table 2 names the traits; the words are
# this project's own.
TRAIT_DESCRIPTIONS = {
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
    """Return the signs of the non-zero traits in `wants`, such as {"formality": 1, "length": -1}.

    wants: float[7] in the order of TRAITS.
    """
    return {trait: int(np.sign(w)) for trait, w in zip(TRAITS, wants, strict=True) if w}


def writer_system_prompt(wants: Mapping[str, int], generator: str) -> str:
    """Return the system prompt that makes `generator` write with these traits; the small model has its own form."""
    if parse_model(generator.partition("?")[0], {}, remote=True).model == "small":
        from harness.models.small import system_line

        return system_line(dict(wants))
    return WRITER_PROMPT.format(describe_traits(wants))


def player_system_prompt(wants: Mapping[str, int]) -> str:
    """Return the system prompt of a language model that plays a user who wants these traits."""
    return PLAYER_PROMPT.format(describe_traits(wants))


def describe_traits(wants: Mapping[str, int]) -> str:
    """Describe responses with these traits in words: "formal and short and concise"."""
    return " and ".join(TRAIT_DESCRIPTIONS[trait][sign < 0] for trait, sign in wants.items())


def role_played_labels(
    name: str, wants: np.ndarray, prompts: Sequence[str], left: Sequence[str], right: Sequence[str], store: Store | None
) -> np.ndarray:
    """Return float32[n]: the labels of users whom the language model `name` plays.

    wants: float[n, 7], for each pair the signed traits that its user wants. A label is the mean of two answers, one for each order of the pair: 1 for
    left, 0 for right, and one half where the answers disagree or one is missing. Raises the errors of
    `stored_log_odds`.
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

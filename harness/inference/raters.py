"""Raters that are no people: public text scorers, reward models, and personas as a language model knows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from harness.errors import UserError, error_prefix
from harness.inference import encode, scorers
from harness.inference.jobs import require_store
from harness.inference.likelihood import asked_likelihoods, canonical_reader
from harness.store.store import Store
from harness.table_files import filled_texts, read_table

BY_LIKELIHOOD = "likelihood:"  # before the name of a language model
PERSONA_PROMPT = "This answer is by {}.\n\nQuestion: {}\nAnswer:"
PERSONAS = {  # name -> description; written for this project
    "butler": "a butler, who is formal and exceedingly polite",
    "teenager": "a teenager, who writes slang and makes jokes",
    "professor": "a professor, who explains at length with technical terms",
    "soldier": "a soldier, who says as little as possible",
    "nurse": "a nurse, who is warm and comforting",
    "salesman": "a salesman, who is thrilled by everything and praises it",
    "lawyer": "a lawyer, who hedges every claim with conditions",
    "poet": "a poet, who speaks in images and feelings",
    "engineer": "an engineer, who lists steps and exact numbers",
    "grandmother": "a grandmother, who tells stories of the old days",
    "comedian": "a comedian, who makes fun of everything",
    "monk": "a monk, who is calm, modest and brief",
    "politician": "a politician, who promises much and says little",
    "teacher": "a teacher of small children, who uses simple words",
    "critic": "a critic, who is rude and finds fault with everything",
    "coach": "a coach, who gives orders and cheers people on",
    "sceptic": "a sceptic, who doubts everything and asks for evidence",
    "reporter": "a reporter, who states plain facts",
}
# Personas that rate nothing. What an answer is worth to them is taken from what it is worth to a rater, since fluent and
# short answers are likely under every persona. If the raters' own mean were taken, half of all pairs would be disputed
# whatever the model knows, and a left-out rater's scores would be part of the others'.
PLAIN_PERSONAS = ("a person", "a neighbour", "a writer", "somebody on the internet")


def canonical_rater(name: str) -> str:
    """Return the canonical name of a rater, for keys of results. Raises UserError for a name that is none."""
    if name.startswith(BY_LIKELIHOOD):
        return BY_LIKELIHOOD + canonical_reader(name.removeprefix(BY_LIKELIHOOD))
    if ":" in name:
        return encode.canonical_reward_model(name)
    scorers.check_scorer(name)
    return name


def canonical_rater_names(names: Sequence[str]) -> list[str]:
    """Return the canonical names of raters."""
    return [canonical_rater(name) for name in names]


def read_personas(file: str) -> dict[str, str]:
    """Return name -> description of personas: this project's, or those of a table with these two columns.

    Raises UserError where the table is unusable.
    """
    if not file:
        return PERSONAS
    with error_prefix(file):
        table = read_table(Path(file))
        hint = "a row is a persona, for example butler and: a butler, who is formal and polite"
        names, descriptions = (filled_texts(table, column, hint) for column in ("name", "description"))
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f"two personas are called {twice[0]!r}", "give each its own name")
    return dict(zip(names, descriptions, strict=True))


def rater_scores(
    name: str, prompts: Sequence[str], responses: Sequence[str], store: Store | None, personas: Mapping[str, str]
) -> dict[str, np.ndarray]:
    """Return the scores float64[n] that a rater gives to responses, by its name; of `likelihood:MODEL`, those of each persona.

    name: a text scorer, a reward model ENGINE:MODEL, or likelihood:ENGINE:MODEL. A persona's score, in nats, is
    log p(response | PERSONA_PROMPT with the persona and the prompt), minus the mean of the same for PLAIN_PERSONAS.
    Scores are NaN where a model could not read a response. Raises NotCachedError where it has not read some yet, and
    UserError for an unknown name.
    """
    if ":" not in name:
        scorer = scorers.open_scorer(name)
        return {name: np.array([scorer(text) for text in responses], dtype=np.float64)}
    store = require_store(store, name)
    if not name.startswith(BY_LIKELIHOOD):
        return {name: encode.asked_rewards(name, 0, prompts, responses, store).stored()}
    told = [*personas.values(), *PLAIN_PERSONAS]
    order = np.argsort(np.unique(np.asarray(prompts), return_inverse=True)[1], kind="stable").tolist()
    beginnings = [PERSONA_PROMPT.format(persona, prompts[i]) for persona in told for i in order]
    texts = [f" {responses[i]}" for i in order] * len(told)
    asked = asked_likelihoods(name.removeprefix(BY_LIKELIHOOD), beginnings, [""] * len(texts), texts, store)
    found = np.empty((len(told), len(order)))
    found[:, order] = asked.stored().reshape(len(told), -1)
    found = found[: len(personas)] - found[len(personas) :].mean(axis=0)
    return dict(zip(personas, found, strict=True))


def add_scores(found: dict[str, np.ndarray], scores: dict[str, np.ndarray]) -> None:
    """Add scores of raters to those found before. Raises UserError where two raters have one name."""
    if twice := found.keys() & scores.keys():
        raise UserError(
            f"two raters are called {min(twice)}",
            "name one model in likelihood:MODEL, and call no persona as a text scorer is called",
        )
    found |= scores

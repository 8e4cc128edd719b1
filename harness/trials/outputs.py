"""Checks of what methods return: one finite number for each pair, one text for each prompt."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch

from harness.data import Pairs
from harness.method import GENERATED_SCHEMA, Answerer, Method, Predictor, State, Users


def checked_per_pair(answer: torch.Tensor, n: int, who: str) -> np.ndarray:
    """Return the answer of the function `who` as float32[n], one number for each of n pairs.

    Raises ValueError for another shape and for numbers that are not finite.
    """
    values = answer.detach().to("cpu", torch.float32).numpy()
    if values.shape != (n,):
        raise ValueError(f"{who} returned shape {values.shape} for {n} pairs")
    if not np.isfinite(values).all():
        raise ValueError(f"{who} returned {int((~np.isfinite(values)).sum())} numbers that are not finite")
    return values


def score_queries(
    method: Method, predictor: Predictor, state: State, users: Users, query: Pairs, answer: Answerer | None
) -> np.ndarray:
    """Return float32[n queries]: log-odds that left is preferred.

    predictor: from `method.open_predictor`.  answer: answers the questions of a method that asks a language model
    (`Method.asks_model`); other methods need no answerer.
    """
    if not method.asks_model:
        return checked_per_pair(predictor.score(state, users, query), len(query), f"{method.name}.score")
    if answer is None:
        raise ValueError(f"{method.name} asks a language model, but there is no answerer: pass one as `answer`")
    log_odds = predictor.score_answers(answer(predictor.questions(state, users, query)), query)
    return checked_per_pair(log_odds, len(query), f"{method.name}.score_answers")


def checked_generated(made: pa.Table, n: int, who: str) -> pa.Table:
    """Return the n texts of the function `who` as rows of GENERATED_SCHEMA.

    Raises ValueError for other columns, another number of rows, and missing or infinite values.
    """
    if set(made.column_names) != set(GENERATED_SCHEMA.names) or len(made) != n:
        raise ValueError(f"{who} returned {len(made)} rows of {', '.join(made.column_names)} for {n} prompts")
    made = made.select(GENERATED_SCHEMA.names).cast(GENERATED_SCHEMA)
    for name in GENERATED_SCHEMA.names:
        if made[name].null_count or (name in ("kl", "reference") and not np.isfinite(made[name].to_numpy()).all()):
            raise ValueError(f"{who}: {name} is missing or not finite in some row")
    return made

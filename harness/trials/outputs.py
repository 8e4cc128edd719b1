"""What methods return, checked: one finite number for each pair, one text for each prompt."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch

from harness.data import Pairs
from harness.method import GENERATED_SCHEMA, Answerer, Method, Predictor, State, Users


def checked_per_pair(answer: torch.Tensor, n: int, who: str) -> np.ndarray:
    """float32[n]: what the function `who` answered, one finite number for each of n pairs."""
    values = answer.detach().to("cpu", torch.float32).numpy()
    if values.shape != (n,):
        raise ValueError(f"{who} returned shape {values.shape} for {n} pairs")
    if not np.isfinite(values).all():
        raise ValueError(f"{who} returned {int((~np.isfinite(values)).sum())} numbers that are not finite")
    return values


def score_queries(
    method: Method, predictor: Predictor, state: State, users: Users, query: Pairs, answer: Answerer | None
) -> np.ndarray:
    """float32[n queries]: log-odds that left is preferred; of a method that asks a language model by its answers.

    predictor: what `method.open_predictor` gave. answer: answers such questions; a method that asks none needs none.
    """
    if not method.asks_model:
        return checked_per_pair(predictor.score(state, users, query), len(query), f"{method.name}.score")
    if answer is None:
        raise ValueError(f"{method.name} asks a language model, and nothing answers: give a store, or an answerer")
    said = predictor.score_answers(answer(predictor.questions(state, users, query)), query)
    return checked_per_pair(said, len(query), f"{method.name}.read")


def checked_generated(made: pa.Table, n: int, who: str) -> pa.Table:
    """What the function `who` wrote: n rows of GENERATED_SCHEMA. Raises ValueError where it is something else."""
    if set(made.column_names) != set(GENERATED_SCHEMA.names) or len(made) != n:
        raise ValueError(f"{who} returned {len(made)} rows of {', '.join(made.column_names)} for {n} prompts")
    made = made.select(GENERATED_SCHEMA.names).cast(GENERATED_SCHEMA)
    for name in GENERATED_SCHEMA.names:
        if made[name].null_count or (name in ("kl", "reference") and not np.isfinite(made[name].to_numpy()).all()):
            raise ValueError(f"{who}: {name} is missing or not finite in some row")
    return made

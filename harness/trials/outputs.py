"""Checks of what methods return: tensors from `fit` and `adapt`, one finite number for each pair, one text for each prompt."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch

from harness.data import Pairs
from harness.method import GENERATED_SCHEMA, Answerer, Method, Predictor, State, Users


def checked_state(state: State, who: str) -> State:
    """Return what `fit` of the method `who` returned. Raises TypeError unless it is a dict of tensors."""
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise TypeError(f"{who}.fit returned {_described(state)}, not a dict of tensors")
    return state


def checked_users(users: Users, n_users: int, who: str) -> Users:
    """Return what `adapt` of the method `who` returned. Raises TypeError unless it is a tuple of tensors with a row a user."""
    if not isinstance(users, tuple) or not all(isinstance(t, torch.Tensor) and len(t) == n_users for t in users):
        raise TypeError(
            f"{who}.adapt returned {_described(users)}, not a tuple of tensors with {n_users} rows, one a user"
        )
    return users


def _described(value: object) -> str:
    """Describe a value by its type, its parts' types and their shapes."""
    if isinstance(value, torch.Tensor | np.ndarray):
        return f"{type(value).__name__}{list(value.shape)}"
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else None
    return type(value).__name__ + ("" if parts is None else f" of {', '.join(map(_described, parts)) or 'nothing'}")


def checked_per_pair(answer: torch.Tensor, n: int, who: str) -> np.ndarray:
    """Return the answer of the function `who` as float32[n], one number for each of n pairs.

    Raises TypeError for what is no tensor, ValueError for another shape and for numbers that are not finite.
    """
    if not isinstance(answer, torch.Tensor):
        raise TypeError(f"{who} returned {_described(answer)}, not a tensor with a number for each pair")
    if answer.is_complex():
        raise TypeError(f"{who} returned complex numbers, not log-odds")
    given = answer.detach().cpu()
    values = given.to(torch.float32).numpy()
    if values.shape != (n,):
        raise ValueError(f"{who} returned shape {values.shape} for {n} pairs")
    if not given.isfinite().all():
        raise ValueError(f"{who} returned {int((~given.isfinite()).sum())} numbers that are not finite")
    if not np.isfinite(values).all() or ((values == 0) & (given.numpy() != 0)).any():
        raise ValueError(f"{who} returned numbers beyond the range of single precision: scale them")
    return values


def score_queries(
    method: Method, predictor: Predictor, state: State, users: Users, query: Pairs, answer: Answerer | None
) -> np.ndarray:
    """Return float32[n queries]: log-odds that left is preferred; arguments as in `scores_and_answer_facts`."""
    return scores_and_answer_facts(method, predictor, state, users, query, answer)[0]


def scores_and_answer_facts(
    method: Method, predictor: Predictor, state: State, users: Users, query: Pairs, answer: Answerer | None
) -> tuple[np.ndarray, dict[str, float]]:
    """Return float32[n queries], log-odds that left is preferred, and facts of a language model's answers.

    predictor: from `method.open_predictor`.  answer: answers the questions of a method that asks a language model
    (`Method.asks_model`); other methods need no answerer, and have no such facts.
    """
    if not method.asks_model:
        return checked_per_pair(predictor.score(state, users, query), len(query), f"{method.name}.score"), {}
    if answer is None:
        raise ValueError(f"{method.name} asks a language model, but there is no answerer: pass one as `answer`")
    told = answer(predictor.questions(state, users, query))
    log_odds = checked_per_pair(predictor.score_answers(told, query), len(query), f"{method.name}.score_answers")
    return log_odds, predictor.answer_facts(told, query)


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

"""Best-of-n choices of a method: one candidate for every user and prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from harness.data import Pairs
from harness.method import Answerer, Method, Predictor, State, Users
from harness.trials.outputs import checked_per_pair, score_queries

MAX_SCORES_AT_ONCE = 2**15  # rewards or log-odds in one call; with 128 features in double precision that is 32 MB


def candidate_counts(n: int) -> list[int]:
    """Return the numbers of candidates to choose among: 1, 2, 4, ... up to n, and n itself."""
    return sorted({2**k for k in range(n.bit_length())} | {n})


def choose_candidates(
    method: Method,
    predictor: Predictor,
    state: State,
    users: Users,
    query: Pairs,
    choices: np.ndarray,
    answer: Answerer | None = None,
) -> np.ndarray:
    """Choose for each user the best of a prompt's first 1, 2, 4, ... candidates.

    Return uint8[n_users, prompts, len(candidate_counts(n))]: the place of the choice among the prompt's candidates.

    query: only its users and items are read, not its pairs.  choices: int32[prompts, n], rows of the query's items.
    answer: answers the questions of a method that asks a language model.

    The candidate with the largest reward is chosen. A tie goes to the lower place, since candidates are in no
    particular order. For a method that scores only pairs (`Method.has_rewards` is False) the candidates play a round
    robin: the one with the largest sum of log-odds against the others is chosen. Where log-odds are differences of
    rewards, that sum is n times the reward minus a constant of the prompt, so both rules choose the same candidate.
    Counting won duels instead would ignore their margins. log-odds(b, a) = -log-odds(a, b) is assumed, so each pair is
    scored once.

    A method that asks a language model about single items compares each candidate with the first of its prompt, which
    asks about each candidate once.
    """
    n = choices.shape[1]

    def parts(each: int) -> list[np.ndarray]:
        """Split the prompts into parts of at most MAX_SCORES_AT_ONCE scores, with `each` scores per user and prompt."""
        step = max(1, MAX_SCORES_AT_ONCE // (query.n_users * each))
        return [choices[start : start + step] for start in range(0, len(choices), step)]

    if method.asks_model:

        def score(pairs: Pairs) -> np.ndarray:
            return score_queries(method, predictor, state, users, pairs, answer)

        found = [_by_answers(score, query, part) for part in parts(n)]
    elif method.has_rewards:
        found = [_by_reward(method.name, predictor, state, users, query, part) for part in parts(n)]
    else:
        duels = parts(n * (n - 1) // 2)
        found = [_by_round_robin(method.name, predictor, state, users, query, part) for part in duels]
    return np.concatenate(found, axis=1).astype(np.min_scalar_type(choices.shape[1] - 1))


def _by_reward(
    name: str, predictor: Predictor, state: State, users: Users, query: Pairs, choices: np.ndarray
) -> np.ndarray:
    user = np.repeat(np.arange(query.n_users, dtype=np.int32), choices.size)
    item = np.tile(choices.ravel(), query.n_users)
    reward = checked_per_pair(predictor.reward(state, users, query.items, user, item), len(item), f"{name}.reward")
    return _largest(reward.reshape(query.n_users, *choices.shape))


def _by_answers(score: Callable[[Pairs], np.ndarray], query: Pairs, choices: np.ndarray) -> np.ndarray:
    """Choose by log-odds against each prompt's first candidate. score: returns the log-odds of pairs."""
    others = choices[:, 1:]
    user = np.repeat(np.arange(query.n_users, dtype=np.int32), others.size)
    first = np.repeat(choices[:, :1], others.shape[1], axis=1)
    left, right = (np.tile(side.ravel(), query.n_users) for side in (others, first))
    reward = np.zeros((query.n_users, *choices.shape))  # the first candidate's reward is the zero of its prompt
    reward[..., 1:] = score(_unjudged(query, user, left, right)).reshape(query.n_users, *others.shape)
    return _largest(reward)


def _largest(reward: np.ndarray) -> np.ndarray:
    """Return the place of the largest reward among the first n candidates; reward: float[n_users, prompts, candidates]."""
    return np.stack([reward[..., :n].argmax(2) for n in candidate_counts(reward.shape[2])], axis=2)


def _unjudged(query: Pairs, user: np.ndarray, left: np.ndarray, right: np.ndarray) -> Pairs:
    """Return pairs of the query's items, without labels."""
    label = np.full(len(user), np.nan, dtype=np.float32)
    return replace(query, user=user, left=left, right=right, label=label, seconds=None)


def _by_round_robin(
    name: str, predictor: Predictor, state: State, users: Users, query: Pairs, choices: np.ndarray
) -> np.ndarray:
    n = choices.shape[1]
    one, other = np.triu_indices(n, 1)
    left, right = (np.tile(choices[:, side].ravel(), query.n_users) for side in (one, other))
    user = np.repeat(np.arange(query.n_users, dtype=np.int32), len(choices) * len(one))
    pairs = _unjudged(query, user, left, right)
    log_odds = checked_per_pair(predictor.score(state, users, pairs), len(pairs), f"{name}.score")
    log_odds = log_odds.reshape(query.n_users, len(choices), len(one))
    table = np.zeros((query.n_users, len(choices), n, n))
    table[..., one, other], table[..., other, one] = log_odds, -log_odds
    return np.stack([table[..., :m, :m].sum(3).argmax(2) for m in candidate_counts(n)], axis=2)

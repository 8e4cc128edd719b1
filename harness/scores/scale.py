"""Scores of predicted ratings: from log-odds of pairs back to a score of each item, its rank, and its place on the scale."""

from __future__ import annotations

import numpy as np

from harness.data import Pairs

RIDGE = 1e-6  # makes the scores of items that no pair connects average zero; beside counts of pairs it changes nothing
RATED_USERS_PER_CHUNK = 256  # whose matrices of items by items are in memory at once


def rating_scores(query: Pairs, log_odds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rank correlation and error on the scale of each user's predicted ratings, float64[n_users] each.

    A user's items get the scores whose differences fit the log-odds of the pairs best, by least squares (HodgeRank,
    Jiang et al. 2011). The correlation is Spearman's between scores and ratings; 0 where all scores are equal. The error
    is the root mean square difference, in units of the scale, between each rating and its prediction by a line through
    the user's other ratings and scores: a method is judged on what it says, not on the unit that it says it in.

    NaN for users without ratings that differ.
    """
    rank, error = np.full((2, query.n_users), np.nan)
    if query.ratings is None:
        raise ValueError("these pairs have no ratings")
    for start in range(0, query.n_users, RATED_USERS_PER_CHUNK):
        stop = min(start + RATED_USERS_PER_CHUNK, query.n_users)
        rows = slice(query.offsets[start], query.offsets[stop])
        score, rating, known = item_scores(query, log_odds, rows, start, stop)
        rank[start:stop] = spearman(score, rating, known)
        error[start:stop] = left_out_error(score, rating, known)
    return rank, error


def item_scores(
    query: Pairs, log_odds: np.ndarray, rows: slice, start: int, stop: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return scores, ratings and whether there is one, [users, items], of the items of users start..stop-1.

    rows: the users' rows of `query`.
    """
    assert query.ratings is not None
    n, user = len(query.items), query.user[rows].astype(np.int64) - start
    key = np.concatenate([user * n + query.left[rows], user * n + query.right[rows]])
    found, first, of = np.unique(key, return_index=True, return_inverse=True)
    owner = found // n
    place = np.arange(len(found)) - np.searchsorted(owner, owner)
    left, right = np.split(place[of], 2)
    shape = stop - start, int(place.max(initial=-1)) + 1
    laplacian, flow = np.zeros((*shape, shape[1])), np.zeros(shape)
    z = log_odds[rows].astype(np.float64)
    for a, b, sign in ((left, right, 1.0), (right, left, -1.0)):
        np.add.at(laplacian, (user, a, a), 1.0)
        np.add.at(laplacian, (user, a, b), -1.0)
        np.add.at(flow, (user, a), sign * z)
    laplacian[:, range(shape[1]), range(shape[1])] += RIDGE
    score = np.linalg.solve(laplacian, flow[..., None])[..., 0]
    rating, known = np.zeros(shape), np.zeros(shape, dtype=bool)
    rating[owner, place] = query.ratings[rows].T.reshape(-1)[first]
    known[owner, place] = True
    return score, rating, known


def spearman(a: np.ndarray, b: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation of each row's known entries; 0 where `a` is constant, NaN where `b` is."""
    x, y = (centred(mean_ranks(values, known), known) for values in (a, b))
    above, below = (x * y).sum(1), np.sqrt((x**2).sum(1) * (y**2).sum(1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where((y**2).sum(1) == 0, np.nan, np.where(below > 0, above / below, 0.0))


def mean_ranks(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return the rank of each known entry among its row's known ones, equal values sharing their mean rank.

    Values that differ by rounding errors alone count as equal.
    """
    values = np.round(values, 9)
    both = known[:, :, None] & known[:, None, :]
    less = (values[:, None, :] < values[:, :, None]) & both
    equal = (values[:, None, :] == values[:, :, None]) & both
    return less.sum(2) + (equal.sum(2) + 1) / 2


def centred(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return known entries minus their row's mean, and 0 elsewhere."""
    count = np.maximum(known.sum(1, keepdims=True), 1)
    return np.where(known, values - np.where(known, values, 0).sum(1, keepdims=True) / count, 0.0)


def left_out_error(score: np.ndarray, rating: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return the root mean square error of each row's ratings, each predicted by a line through the row's others.

    With fewer than three entries, or equal scores, the line is the mean of the others. NaN for a single entry.
    """
    count = known.sum(1)
    x, y = centred(score, known), centred(rating, known)
    square = (x**2).sum(1, keepdims=True)
    sloped = (square[:, 0] > RIDGE**2) & (count > 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        slope = np.where(sloped, (x * y).sum(1) / square[:, 0], 0.0)[:, None]
        leverage = 1 / count[:, None] + np.where(sloped[:, None], x**2 / square, 0.0)
        miss = np.where(known, (y - slope * x) / np.maximum(1 - leverage, 1e-9), 0.0)
        return np.sqrt(np.where(count > 1, (miss**2).sum(1) / count, np.nan))

"""Predicted ratings: scores from log-odds, Spearman's correlation and the error by a line through the other ratings."""

import numpy as np
import pytest
from scipy import stats

from harness.data import Items, Pairs
from harness.scores.scale import left_out_error, rating_scores, spearman


def cycle(rng, sizes, ratings):
    """Return the pairs of users who compare each of their items with the next one of a circle."""
    user, left, right, seen = [], [], [], []
    for number, size in enumerate(sizes):
        order = rng.permutation(max(sizes))[:size]
        user += [number] * size
        left += list(order)
        right += list(np.roll(order, 1))
        seen += [(ratings[number, a], ratings[number, b]) for a, b in zip(order, np.roll(order, 1), strict=True)]
    as_int = (np.array(x, dtype=np.int32) for x in (user, left, right))
    user, left, right = as_int
    items = Items(np.zeros((max(sizes), 1), dtype=np.float32))
    label = np.zeros(len(user), dtype=np.float32)
    return Pairs(user, np.arange(len(sizes)), left, right, label, items, ratings=np.array(seen, dtype=np.float32))


def test_scores_of_consistent_log_odds_are_recovered():
    """Where log-odds are differences of scores, correlation and error are those of the scores themselves."""
    rng = np.random.default_rng(0)
    sizes = [5, 9, 12, 300] + [7] * 300  # more users than fit in a chunk
    ratings = rng.integers(1, 6, (len(sizes), max(sizes))).astype(float)
    scores = ratings + rng.normal(size=ratings.shape)
    pairs = cycle(rng, sizes, ratings)
    z = scores[pairs.user, pairs.left] - scores[pairs.user, pairs.right]
    rank, error = rating_scores(pairs, z.astype(np.float32))
    for user in (0, 1, 2, 3, 150):
        mine = np.unique(np.r_[pairs.left[pairs.user == user], pairs.right[pairs.user == user]])
        x, y = scores[user, mine], ratings[user, mine]
        assert rank[user] == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-4)
        left_out = [y[i] - np.polyval(np.polyfit(np.delete(x, i), np.delete(y, i), 1), x[i]) for i in range(len(y))]
        assert error[user] == pytest.approx(np.sqrt(np.mean(np.square(left_out))), rel=1e-3)


def test_a_method_that_says_nothing_has_no_correlation_and_the_error_of_the_mean():
    ratings = np.array([[1.0, 2.0, 3.0, 5.0]])
    pairs = cycle(np.random.default_rng(0), [4], ratings)
    rank, error = rating_scores(pairs, np.zeros(4, dtype=np.float32))
    left_out = [r - np.mean(np.delete(ratings[0], i)) for i, r in enumerate(ratings[0])]
    assert rank[0] == 0 and error[0] == pytest.approx(np.sqrt(np.mean(np.square(left_out))))


def test_the_unit_of_log_odds_does_not_matter_and_their_sign_does():
    rng = np.random.default_rng(1)
    ratings = rng.integers(1, 8, (3, 20)).astype(float)
    pairs = cycle(rng, [20] * 3, ratings)
    z = (ratings[pairs.user, pairs.left] - ratings[pairs.user, pairs.right] + rng.normal(size=60)).astype(np.float32)
    rank, error = rating_scores(pairs, z)
    assert np.allclose(rating_scores(pairs, 7 * z), [rank, error], atol=1e-5)
    assert np.allclose(rating_scores(pairs, -z)[0], -rank) and (rank > 0.5).all()


def test_equal_values_share_their_mean_rank():
    a, b = np.array([[1.0, 1.0, 2.0, 9.0]]), np.array([[4.0, 4.0, 4.0, 1.0]])
    known = np.array([[True, True, True, False]])
    assert np.isnan(spearman(a, b, known)[0])  # all ratings are equal
    assert spearman(b, a, known)[0] == 0  # all scores are equal
    every = np.ones((1, 4), dtype=bool)
    assert spearman(a, b, every)[0] == pytest.approx(stats.spearmanr(a[0], b[0]).statistic)
    assert np.isnan(left_out_error(a, b, np.array([[True, False, False, False]]))[0])

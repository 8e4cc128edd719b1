"""People whom a method serves badly: hand-worked cases, enumeration, and recovered distributions."""

from itertools import product

import numpy as np
import pytest
from scipy import integrate, special
from scipy import stats as scipy_stats

from harness.scores import worst_off


def test_equal_people_look_unequal():
    """For people with true accuracy 0.65 and 10 pairs each the naive value is 0.37, but the fitted one is above 0.6."""
    correct = np.random.default_rng(12).binomial(10, 0.65, 3000)
    naive, null, fitted = worst_off.worst_users_accuracy(correct, np.full(3000, 10))
    assert naive == pytest.approx(0.37, abs=0.015) and null == pytest.approx(naive, abs=0.02)
    assert fitted > 0.6


@pytest.mark.parametrize("a, b", [(8, 4), (30, 10), (0.8, 0.6)])
def test_beta_is_recovered(a, b):
    rng = np.random.default_rng(13)
    asked = rng.integers(5, 40, 5000)
    correct = rng.binomial(asked, rng.beta(a, b, 5000))
    assert worst_off.fit_beta_binomial(correct, asked) == pytest.approx((a, b), rel=0.12)
    edge = special.betaincinv(a, b, 0.1)
    truth = integrate.quad(lambda p: p * scipy_stats.beta.pdf(p, a, b), 0, edge)[0] / 0.1
    naive, _, fitted = worst_off.worst_users_accuracy(correct, asked)
    assert fitted == pytest.approx(truth, abs=0.015) and naive < truth - 0.01 * (a > 1)


@pytest.mark.parametrize("correct, asked", [([9, 8, 7, 3], 10), ([1, 0, 2, 0], 10), ([50, 20, 49, 1], 50)])
def test_the_fitted_tenth_is_the_mean_below_the_quantile(correct, asked):
    a, b = worst_off.fit_beta_binomial(correct, [asked] * 4)
    midpoints = (np.arange(200_000) + 0.5) / 200_000
    expected = special.betaincinv(a, b, 0.1 * midpoints).mean()
    assert worst_off.worst_users_accuracy(correct, [asked] * 4).fitted == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_beta_fit_is_the_likeliest():
    rng = np.random.default_rng(14)
    asked = np.full(60, 12)
    correct = rng.binomial(asked, rng.beta(6, 4, 60))
    a, b = worst_off.fit_beta_binomial(correct, asked)
    likely = scipy_stats.betabinom.logpmf(correct, asked, a, b).sum()
    for factor_a, factor_b in [(1.05, 1), (0.95, 1), (1, 1.05), (1, 0.95), (1.1, 1.1), (0.9, 0.9)]:
        assert scipy_stats.betabinom.logpmf(correct, asked, factor_a * a, factor_b * b).sum() < likely


def test_worst_users_of_small_and_extreme_groups():
    naive, null, fitted = worst_off.worst_users_accuracy([5, 5, 5], [5, 5, 5])
    assert (naive, null) == (1, 1) and fitted == pytest.approx(1, abs=0.01)
    assert (
        worst_off.worst_users_accuracy([0, 10, 10], [10, 10, 10]).naive == 0
    )  # a tenth of three people is the worst one
    accuracies = np.arange(25) / 25
    assert worst_off.worst_users_accuracy(100 * accuracies, np.full(25, 100)).naive == pytest.approx(
        (0 + 1 + 0.5 * 2) / 2.5 / 25
    )
    assert worst_off.worst_users_accuracy([4.5, 5, 5.5, 6], [10] * 4).naive == 0.45  # the halves come from ties
    assert worst_off.worst_users_accuracy([4, 5], [9, 9]) == worst_off.worst_users_accuracy([4, 5], [9, 9])
    with pytest.raises(ValueError, match="at least one query"):
        worst_off.worst_users_accuracy([0, 1], [0, 1])


@pytest.mark.parametrize(("people", "asked", "share"), [(3, 2, 0.1), (4, 3, 0.5), (5, 2, 0.3)])
def test_the_worst_tenth_to_expect_by_chance_is_exact(people, asked, share):
    """Where all are asked equally often: the mean over all outcomes, weighted by their probabilities."""
    correct = np.array([0, *[asked] * (people - 1)])
    rate = correct.sum() / people / asked
    expected = 0.0
    for outcome in product(range(asked + 1), repeat=people):
        chance = np.prod(scipy_stats.binom.pmf(outcome, asked, rate))
        weight = np.clip(share * people - np.arange(people), 0, 1)
        expected += chance * (np.sort(outcome) @ weight) / weight.sum() / asked
    found = worst_off.worst_users_accuracy(correct, np.full(people, asked), share)
    assert found.null == pytest.approx(expected, abs=1e-12)


def simulated_differences(rng, gains, queries, disagree=0.3):
    """Return the differences of credit -1, 0 or 1 of each query, and its person, at each person's true gain."""
    person = np.repeat(np.arange(len(gains)), queries)
    up = (disagree + gains[person]) / 2
    draw = rng.random(len(person))
    return np.where(draw < up, 1.0, np.where(draw < disagree, -1.0, 0.0)), person


@pytest.mark.parametrize("gain", [0.0, 0.03])
def test_chance_explains_who_is_worse_off_where_all_gain_alike(gain):
    """A quarter to half of the people score lower by chance alone; the null says so, and no difference is sure."""
    rng = np.random.default_rng(4)
    found = [
        worst_off.worse_off(*simulated_differences(rng, np.full(200, gain), rng.integers(5, 40, 200)))
        for _ in range(40)
    ]
    naive, null = (np.mean([getattr(f, name) for f in found]) for name in ("naive", "null"))
    assert 0.25 < naive < 0.5 and null == pytest.approx(naive, abs=0.015)
    assert np.mean([f.fitted is not None for f in found]) <= 0.125  # 5 %, and two standard errors of 40 draws


@pytest.mark.parametrize(("mean", "spread"), [(0.05, 0.08), (-0.02, 0.1), (0.15, 0.08)])
def test_the_share_of_people_truly_worse_off_is_found(mean, spread):
    rng, found, true = np.random.default_rng(5), [], []
    for _ in range(30):
        gains = np.clip(mean + spread * rng.standard_normal(300), -0.29, 0.29)
        found.append(worst_off.worse_off(*simulated_differences(rng, gains, 30)).fitted)
        true.append((gains < -worst_off.WORSE_BY).mean())
    assert np.mean(found) == pytest.approx(np.mean(true), abs=0.03)


def test_worse_off_by_hand():
    """Three people: one gains, one loses half an answer of two, one ties; no spare query tells noise from differences."""
    found = worst_off.worse_off(np.array([1.0, 0.0, -0.5, 0.0, 0.0]), np.array([7, 7, 3, 3, 9]))
    assert found.naive == pytest.approx(1 / 3) and found.fitted is None
    one_each = worst_off.worse_off(np.array([1.0, -1.0, -1.0, 0.0]), np.arange(4))
    assert one_each.naive == 0.5 and one_each.null == pytest.approx(0.5, abs=0.04) and one_each.fitted is None

"""People whom a method serves badly: the share who are worse off than with another one, and the accuracy of the worst tenth.

By chance alone some people score low. So each number stands beside the one to expect if all people were alike, and one that
a model of the true differences gives. Imports nothing of ours.
"""

from typing import NamedTuple

import numpy as np
from scipy import special, stats
from scipy.optimize import minimize, minimize_scalar


class WorseOff(NamedTuple):
    """Share of people whom a method serves worse than another one, estimated in three ways."""

    naive: float  # of people with a lower score: by chance alone many have one
    null: float  # expected `naive` if all people had the same true gain
    fitted: float | None  # of people with a lower true score, by a normal model; None where no difference is sure


WORSE_BY = 0.005  # accuracy: who loses less, one answer in two hundred, is not worse off


def worse_off(difference: np.ndarray, person: np.ndarray, draws: int = 2000, random_state: int = 0) -> WorseOff:
    """Return WorseOff from `difference`, float[n queries], the credit of one method minus that of another, in [-1, 1].

    person: int[n queries], whose query each is. A person's gain is the mean over the person's queries. If all people had the same true gain, a person's queries would
    be draws from the differences of all people, each person counted once. The model of true gains is normal; its spread
    is fitted by maximum likelihood, where Cochran's Q says at 5 % that people's true gains differ at all.
    """
    people, code = np.unique(person, return_inverse=True)
    asked = np.bincount(code)
    gain = np.bincount(code, difference) / asked
    values, place = np.unique(np.round(difference, 2), return_inverse=True)
    chance = np.bincount(place, (1 / asked)[code]) / len(people)
    rng, null = np.random.default_rng(random_state), 0.0
    for n, count in zip(*np.unique(asked, return_counts=True), strict=True):
        drawn = rng.multinomial(n, chance / chance.sum(), draws) @ values
        null += count / len(people) * float((drawn < -1e-9).mean())
    naive = float((gain < -1e-12).mean())
    spare = len(difference) - len(people)  # degrees of freedom within people
    within = ((difference - gain[code]) ** 2).sum() / spare if spare else 0.0
    if within <= 0 or len(people) < 2:
        return WorseOff(naive, null, None)
    noise = within / asked

    def mean_and_loss(spread: float) -> tuple[float, float]:
        total = noise + spread**2
        mean = (gain / total).sum() / (1 / total).sum()
        return mean, float((np.log(total) + (gain - mean) ** 2 / total).sum())

    q = ((gain - mean_and_loss(0)[0]) ** 2 / noise).sum()
    if stats.chi2.sf(q, len(people) - 1) > 0.05:
        return WorseOff(naive, null, None)
    spread = minimize_scalar(lambda x: mean_and_loss(x)[1], bounds=(0, 1), method="bounded").x
    fitted = stats.norm.cdf(-WORSE_BY, mean_and_loss(spread)[0], max(spread, 1e-9))
    return WorseOff(naive, null, float(fitted))


class WorstUsers(NamedTuple):
    """Mean accuracy of the worst-off share of people, estimated in three ways."""

    naive: float  # over those who scored lowest: selection on noise makes this too low
    null: float  # expected `naive` if all people had the mean accuracy
    fitted: float  # of that share in the Beta distribution of true accuracies that is fitted to all people


def worst_users_accuracy(
    correct: np.ndarray, asked: np.ndarray, share: float = 0.1, draws: int = 1000, random_state: int = 0
) -> WorstUsers:
    """Return WorstUsers from each person's number of correct answers, `correct`[U], and of queries, `asked`[U].

    A tie may count one half as correct. Raises ValueError where a person has no query.
    """
    correct, asked = np.asarray(correct, float), np.asarray(asked, int)
    if asked.min() < 1:
        raise ValueError("every person needs at least one query")
    accuracy = correct / asked
    if (asked == asked[0]).all():
        null = _expected_mean_of_lowest(len(asked), int(asked[0]), accuracy.mean(), share)
    else:
        chance = np.random.default_rng(random_state).binomial(asked, accuracy.mean(), (draws, len(asked))) / asked
        null = _mean_of_lowest(chance, share).mean()
    a, b = fit_beta_binomial(correct, asked)
    # the mean of the Beta distribution below its quantile: x times its density is a / (a + b) times that of Beta(a + 1, b)
    quantile = special.betaincinv(a, b, share)
    fitted = min(a / (a + b) * special.betainc(a + 1, b, quantile) / share, quantile)  # which may round to 1
    return WorstUsers(float(_mean_of_lowest(accuracy, share)), float(null), float(fitted))


def _expected_mean_of_lowest(people: int, asked: int, accuracy: float, share: float) -> float:
    """Return the expected mean accuracy of the lowest share of people who are all asked equally often and equally good.

    The j-th lowest number of correct answers is above x where fewer than j people have at most x.
    """
    count = int(np.ceil(share * people))
    at_most = stats.binom.cdf(np.arange(asked), asked, accuracy)
    fewer = special.bdtr(np.arange(count)[:, None], people, at_most)  # [j - 1, x]
    weight = np.clip(share * people - np.arange(count), 0, 1)
    return float(weight @ fewer.sum(1) / weight.sum() / asked)


def _mean_of_lowest(accuracy: np.ndarray, share: float) -> np.ndarray:
    """Return the mean of the lowest share of the last axis; the person at the edge of the share counts in part."""
    people = accuracy.shape[-1]
    count = int(np.ceil(share * people))
    weight = np.clip(share * people - np.arange(count), 0, 1)
    # only the person at the edge has to be in place, which is faster than sorting all
    return np.partition(accuracy, count - 1, axis=-1)[..., :count] @ weight / weight.sum()


def fit_beta_binomial(correct: np.ndarray, asked: np.ndarray) -> tuple[float, float]:
    """Fit the Beta distribution of people's accuracies by maximum likelihood and return its (a, b).

    `correct` may be fractional.
    """
    both = np.column_stack([np.asarray(correct, float), np.asarray(asked, float)])
    # many people have the same two numbers, which are computed once
    pairs, count = np.unique(both, axis=0, return_counts=True)
    correct, asked = pairs.T
    weight = count / count.sum()

    def shape(theta):
        mean, size = special.expit(theta[0]), np.exp(theta[1])
        return mean * size, (1 - mean) * size

    def loss_and_slope(theta):
        a, b = shape(theta)
        wrong = asked - correct
        loss = -weight @ (special.betaln(a + correct, b + wrong) - special.betaln(a, b))
        both = weight @ special.digamma(a + b + asked) - special.digamma(a + b)
        by_a, by_b = (
            weight @ special.digamma(x + n) - special.digamma(x) - both for x, n in ((a, correct), (b, wrong))
        )
        return loss, -np.array([(by_a - by_b) * a * b / (a + b), by_a * a + by_b * b])

    mean = np.clip(weight @ correct / (weight @ asked), 0.001, 0.999)
    limits = [(-9, 9), (np.log(0.01), np.log(1e4))]  # at a + b = 1e4 people differ by less than one pair in 200
    starts = ((special.logit(mean), np.log(size)) for size in (1, 10, 100, 1000))
    start = min(starts, key=lambda theta: loss_and_slope(theta)[0])
    return shape(minimize(loss_and_slope, start, jac=True, method="L-BFGS-B", bounds=limits).x)

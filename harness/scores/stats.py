"""Statistics of a board: intervals over people and seeds, gains, ranks, a verdict, and the worst-off people.

Everywhere `values` is float64[M, C]: the score of M methods (rows) on the same C *cells*, cell c holding one person
(`person[c]`) under one seed (`seed[c]`). A method's score is the mean over cells. Person ids are unique across seeds:
a simulator that draws new people for each seed must number them on. A seed may be a fold of a data set. Everything
is deterministic, and knows nothing of tasks, methods or Ray.

**Variance.** With e the deviations of a row from its mean and Σ² a sum of squared totals over C²,

    V = S/(S-1) · [ Σ²_seed  +  U/(U-1) · max(0, Σ²_person - Σ²_cell) ]      S seeds, U people

is the two-way clustered variance of Cameron, Gelbach and Miller (2011, "Robust inference with multiway clustering"),
written as what seeds carry plus what people seen under several seeds add, so it cannot turn negative. The two factors
undo the shrinkage of deviations from an estimated mean: crossed or nested in equal numbers, V is unbiased up to 1/U
and the floor at 0. Limits are value ± t·√V with Satterthwaite's degrees of freedom: S-1 for the first part, and for
the second the effective number of repeated people, less one. With people nested in seeds, each seed with as many, this
is the textbook t interval of the S seed means.

**Why not a percentile bootstrap.** Weighting a cell by w_person·w_seed (the pigeonhole bootstrap, Owen 2007) counts
the noise of a cell three times and knows no t: over equal methods its nominal 95 % covers 82 % where seeds differ most
and 99-100 % where noise is most. V covers 94-96 % in both (tests/scores/test_stats.py). Resampling people and seeds with
draws shared by all methods is kept for what it does well, the *joint* behaviour of many comparisons (`simultaneous_level`).

**What no interval can see.** Folds of one data set share training data, so their seeds are not quite independent
(Bengio and Grandvalet 2004: no unbiased estimate exists).
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import sparse, special, stats
from scipy.optimize import minimize
from scipy.spatial.distance import cdist

BOOTSTRAP_DRAWS = 2000  # the familywise 5 % is then within ±0.5 % (one standard error)


@dataclass(frozen=True, eq=False)
class Estimate:
    """Estimates of one shape with their standard errors; NaN errors, and so no limits, where `note` says why."""

    value: np.ndarray
    se: np.ndarray
    df: np.ndarray  # Satterthwaite's, from each estimate's own parts of variance
    family_df: np.ndarray  # at most that of all estimates pooled: of many, the one found too precise claims most df
    people: int
    note: str | None = None  # "one seed" or "one person"

    def interval(self, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper limits, each of the estimates' shape."""
        half = stats.t.ppf((1 + level) / 2, self.df) * self.se
        return self.value - half, self.value + half

    def p_values(self, df: np.ndarray | None = None) -> np.ndarray:
        """Two-sided p-values; 1 where a difference is exactly zero."""
        return 2 * special.stdtr(self.df if df is None else df, -_ratio_or_zero(np.abs(self.value), self.se))


def estimate_means(values: np.ndarray, person: np.ndarray, seed: np.ndarray) -> Estimate:
    """Mean of each row over cells, as an Estimate of shape [M]."""
    values = np.asarray(values, float)
    sums = _deviation_sums(values, person, seed)
    return _clustered_estimate(values.mean(1), [np.square(x).sum(1) for x in sums], person, seed)


def paired_differences(values: np.ndarray, person: np.ndarray, seed: np.ndarray) -> Estimate:
    """Paired differences on identical cells, as an Estimate of shape [M, M]: value[a, b] = score a - score b."""
    values = np.asarray(values, float)
    sums = _deviation_sums(values, person, seed)
    return _clustered_estimate(
        np.subtract.outer(values.mean(1), values.mean(1)), [cdist(x, x, "sqeuclidean") for x in sums], person, seed
    )


def _deviation_sums(
    values: np.ndarray, person: np.ndarray, seed: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Deviations from the row's mean over C, summed by person [M, U], by seed [M, S], and not at all [M, C]."""
    cells = values.shape[1]
    if len(person) != cells or len(seed) != cells or not np.isfinite(values).all():
        raise ValueError(f"need finite values [M, {cells}] with one person and one seed for each of the cells")
    deviations = (values - values.mean(1, keepdims=True)) / cells
    codes = [np.unique(ids, return_inverse=True)[1] for ids in (person, seed)]
    return *(deviations @ sparse.csr_array((np.ones(cells), (np.arange(cells), code))) for code in codes), deviations


def _clustered_estimate(value: np.ndarray, squares: list[np.ndarray], person: np.ndarray, seed: np.ndarray) -> Estimate:
    """Estimate from the squared totals (by person, by seed, by cell), each of the value's shape."""
    times = np.unique(person, return_counts=True)[1].astype(float)
    people, seeds = len(times), len(np.unique(seed))
    if seeds < 3 or people < 2:  # two seeds that happen to agree would give an interval of no width
        none = np.full(np.shape(value), np.nan)
        few = "one seed" if seeds == 1 else "two seeds"
        return Estimate(value, none, none, none, people, few if seeds < 3 else "one person")
    by_person, by_seed, by_cell = squares
    seed_part = by_seed * seeds / (seeds - 1)
    person_part = np.maximum(by_person - by_cell, 0) * seeds / (seeds - 1) * people / (people - 1)
    variance = seed_part + person_part
    repeats = times * (times - 1)  # pairs of cells that share a person; their spread tells how many people count
    person_df = max(_ratio_or_zero(repeats.sum() ** 2, (repeats**2).sum()) - 1, 1)

    def satterthwaite(share):
        return 1 / ((1 - share) ** 2 / (seeds - 1) + share**2 / person_df)

    df = satterthwaite(_ratio_or_zero(person_part, variance))
    pooled = satterthwaite(_ratio_or_zero(person_part.sum(), variance.sum()))
    return Estimate(value, np.sqrt(variance), df, np.minimum(df, pooled), people)


def _ratio_or_zero(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below; 0 for 0/0, NaN kept."""
    above, below = np.broadcast_arrays(np.asarray(above, float), np.asarray(below, float))
    with np.errstate(divide="ignore"):
        return np.divide(above, below, out=np.zeros(above.shape), where=(above != 0) | (below != 0))


def simultaneous_level(
    values: np.ndarray, person: np.ndarray, seed: np.ndarray, pairs: tuple[np.ndarray, np.ndarray], level: float = 0.95
) -> float:
    """The p-value below which any of the `pairs` (a, b), two int[K], falls with probability 1 - level if all are equal.

    Max-t by resampling: a draw gives every person and every seed one Gaussian weight, *shared by all methods*, and the
    weighted deviations make up its differences, correlated as the real ones are (a multiplier bootstrap; Owen and
    Eckles 2012 without the product of weights). Scaled to unit variance and divided by √(χ²/df), one χ² for each pair
    since each has its own variance, they are t-distributed as the real ones; the level is a quantile of the least p-value of a draw. The tails matter:
    the usual normal max-t, even widened by t/1.96, tells some of ten equal methods apart on a third of 5-seed boards.
    """
    values = np.asarray(values, float)
    first, second = pairs
    if len(first) == 0:
        return 1 - level
    rng = np.random.default_rng(0)  # the same board, the same limits
    totals = np.hstack(_deviation_sums(values, person, seed)[:2]).astype(
        np.float32
    )  # [M, U + S]; single: the weights are large
    drawn = rng.standard_normal((BOOTSTRAP_DRAWS, totals.shape[1]), dtype=np.float32) @ totals.T
    drawn = (drawn[:, first] - drawn[:, second]).astype(float)
    df = paired_differences(values, person, seed).family_df[first, second]
    t = _ratio_or_zero(np.abs(drawn), drawn.std(0)) / np.sqrt(rng.chisquare(df, drawn.shape) / df)
    return np.quantile(2 * special.stdtr(df, -t).min(1), 1 - level)


class Gains(NamedTuple):
    """Gains over the reference row, each float64[M]; the reference's own are 0 with p-value 1."""

    value: np.ndarray
    se: np.ndarray
    low: np.ndarray  # limits of each gain by itself
    high: np.ndarray
    joint_low: np.ndarray  # limits that hold for all gains at once (max-t over methods)
    joint_high: np.ndarray
    p: np.ndarray
    holm: np.ndarray  # p-values adjusted over the M - 1 comparisons
    reference: int
    people: int
    note: str | None


def gains_over_reference(
    values: np.ndarray, person: np.ndarray, seed: np.ndarray, reference: int = 0, level: float = 0.95
) -> Gains:
    """Paired gain of every method over the row `reference`."""
    every = paired_differences(values, person, seed)
    value, se, df, family_df = (x[:, reference] for x in (every.value, every.se, every.df, every.family_df))
    gain = Estimate(value, se, df, family_df, every.people)
    others = np.flatnonzero(np.arange(len(gain.value)) != reference)
    p = gain.p_values()
    if every.note:
        holm, half = np.full_like(p, np.nan), np.full_like(p, np.nan)
    else:
        holm = np.ones_like(p)
        holm[others] = _holm_adjusted(gain.p_values(gain.family_df)[others])
        each = simultaneous_level(values, person, seed, (others, np.full_like(others, reference)), level)
        half = stats.t.ppf(1 - each / 2, gain.family_df) * gain.se
    return Gains(
        gain.value, gain.se, *gain.interval(level), gain.value - half, gain.value + half, p, holm, reference,
        every.people, every.note,
    )  # fmt: skip


def _holm_adjusted(p: np.ndarray) -> np.ndarray:
    """Holm's adjusted p-values (statsmodels' `multipletests` gives the same, but collects garbage at every call)."""
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return adjusted


class Ranks(NamedTuple):
    """Ranks, 1 the best, each int[M]: as scored, and the limits that hold for all methods at once."""

    rank: np.ndarray  # ties share the best of their ranks
    best: np.ndarray  # 1 + number of methods surely better
    worst: np.ndarray  # M - number of methods surely worse
    note: str | None


def rank_intervals(values: np.ndarray, person: np.ndarray, seed: np.ndarray, level: float = 0.95) -> Ranks:
    """Simultaneous rank intervals from all pairs by max-t (Mogstad et al. 2024, "Inference for ranks").

    One seed tells nothing apart: every interval is then [1, M].
    """
    every = paired_differences(values, person, seed)
    count = len(every.value)
    rank = stats.rankdata(-np.round(np.mean(values, 1), 12), method="min")  # 12 digits: a tie up to rounding is a tie
    if every.note:
        surely_better = np.zeros((count, count), bool)
    else:
        each = simultaneous_level(values, person, seed, np.triu_indices(count, 1), level)
        surely_better = (every.p_values(every.family_df) < each) & (every.value > 0)  # [a, b]: a surely better than b
    return Ranks(rank, 1 + surely_better.sum(0), count - surely_better.sum(1), every.note)


class Verdict(NamedTuple):
    text: str  # "gain", "nothing to personalise here" or "cannot tell"
    best: int  # row of the largest gain; where the text is "gain", of the surest
    people: int | None  # only where it cannot tell: how many people could, None if no number would


def gain_verdict(gains: Gains, margin: float) -> Verdict:
    """What a board says of a task: is some gain over the reference above `margin` (>= 0), is none, or can it not tell?

    The number of people takes the gains as they are and limits that shrink as 1/√people; the part of the error that
    belongs to seeds shrinks with seeds only, so it is a lower bound where seeds differ much.
    """
    others = np.arange(len(gains.value)) != gains.reference
    if not others.any():
        raise ValueError("a verdict needs a method beside the reference")
    best = int(np.flatnonzero(others)[np.argmax(gains.value[others])])
    value, low, high = gains.value[others], gains.joint_low[others], gains.joint_high[others]
    if low.max() > margin:
        return Verdict("gain", int(np.flatnonzero(others)[np.argmax(low)]), None)
    if high.max() < margin:
        return Verdict("nothing to personalise here", best, None)
    with np.errstate(divide="ignore", invalid="ignore"):
        needed = gains.people * ((high - value) / (value - margin)) ** 2
    needed = needed[value > margin].min() if value.max() > margin else needed.max()  # one gain shows, or all are below
    return Verdict("cannot tell", best, int(np.ceil(needed)) if np.isfinite(needed) else None)


def detectable_difference(
    people: int, per_person: int, disagree: float, icc: float, alpha: float = 0.05, power: float = 0.8
) -> float:
    """Least difference in accuracy of two methods that a paired test of level `alpha` finds with probability `power`.

    `people` are asked `per_person` queries each; the methods disagree on a share `disagree` of queries, whose results
    correlate within a person by `icc` (Miller 2024, "Adding error bars to evals"; seeds are not in it).
    """
    z = stats.norm.isf(alpha / 2) + stats.norm.isf(1 - power)
    return z * np.sqrt(disagree * (1 + (per_person - 1) * icc) / (people * per_person))


class WorstUsers(NamedTuple):
    """Mean accuracy of the worst-off share of people, three ways."""

    naive: float  # of those who scored lowest: selects on noise, so it reads too low
    null: float  # what naive would read were all people truly at the mean accuracy
    fitted: float  # of the Beta distribution fitted to people's true accuracies


def worst_users_accuracy(
    correct: np.ndarray, asked: np.ndarray, share: float = 0.1, draws: int = 1000, random_state: int = 0
) -> WorstUsers:
    """WorstUsers from `correct`[U] of `asked`[U] queries, one entry a person; a tie may count one half as correct."""
    correct, asked = np.asarray(correct, float), np.asarray(asked, int)
    if asked.min() < 1:
        raise ValueError("every person needs at least one query")
    accuracy = correct / asked
    chance = np.random.default_rng(random_state).binomial(asked, accuracy.mean(), (draws, len(asked))) / asked
    a, b = fit_beta_binomial(correct, asked)
    fitted = special.betaincinv(a, b, share * (np.arange(1000) + 0.5) / 1000).mean()  # 1000 midpoints: error < 1e-4
    return WorstUsers(
        float(_mean_of_lowest(accuracy, share)), float(_mean_of_lowest(chance, share).mean()), float(fitted)
    )


def _mean_of_lowest(accuracy: np.ndarray, share: float) -> np.ndarray:
    """Mean of the lowest share of the last axis, the person at its edge counting in part."""
    people = accuracy.shape[-1]
    weight = np.clip(share * people - np.arange(people), 0, 1)
    return np.sort(accuracy, -1) @ weight / weight.sum()


def fit_beta_binomial(correct: np.ndarray, asked: np.ndarray) -> tuple[float, float]:
    """(a, b) of the Beta distribution of people's accuracies by maximum likelihood; fractions of `correct` allowed."""
    correct, asked = np.asarray(correct, float), np.asarray(asked, float)

    def shape(theta):
        mean, size = special.expit(theta[0]), np.exp(theta[1])
        return mean * size, (1 - mean) * size

    def loss(theta):
        a, b = shape(theta)
        return -(special.betaln(a + correct, b + asked - correct) - special.betaln(a, b)).mean()

    mean = np.clip(np.sum(correct) / np.sum(asked), 0.001, 0.999)
    limits = [(-9, 9), (np.log(0.01), np.log(1e4))]  # a + b = 1e4: people differ by less than a pair in 200
    start = min(((special.logit(mean), np.log(size)) for size in (1, 10, 100, 1000)), key=loss)
    return shape(minimize(loss, start, method="L-BFGS-B", bounds=limits).x)


def fixed_derangement(n: int) -> np.ndarray:
    """int64[n]: a fixed permutation without fixed points, the same for every method."""
    ring = np.random.default_rng(n).permutation(n)
    other = np.empty(n, dtype=np.int64)
    other[ring] = np.roll(ring, 1)
    return other

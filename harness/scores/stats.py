"""Statistics of a board: intervals over people and seeds, gains, ranks and verdicts.

Everywhere `values` is float64[M, C]: the score of M methods (rows) on the same C *cells*, cell c holding one person
(`person[c]`) under one seed (`seed[c]`). A method's score is the mean over cells. Person ids are unique across seeds:
a simulator that draws new people for each seed must continue their numbering. A seed may be a fold of a data set. All
functions are deterministic, and independent of tasks, methods and Ray.

**Variance.** Take each cell's deviation from the row's mean, and total the deviations by seed, by person or by cell.
With Σ² the sum of the squared totals divided by C²,

    V = f · Σ²_seed  +  S/(S-1) · U/(U-1) · max(0, Σ²_person - Σ²_cell)      S seeds, U people

is the two-way clustered variance of Cameron, Gelbach and Miller (2011, "Robust inference with multiway clustering"),
written as the part of seeds plus the part of people who appear under several seeds, so that V is never negative. The
factors correct for the shrinkage of deviations from an estimated mean. f is S/(S-1) where seeds have equally many
cells; where seeds have the shares w of the cells it is Σw² / (Σw² - 2Σw³ + (Σw²)²), which is exact where the spread of
seeds dominates. Where people are crossed with seeds, or nested in them in equal numbers, V is unbiased up to 1/U and the
floor at 0. Limits are value ± t·√V, with Satterthwaite's degrees of freedom: for the part of seeds 1/Σw² - 1 (Kish's
effective number minus one), which is S-1 for equal seeds, and for the part of people the effective number of people who
appear under several seeds, minus one. With people nested in seeds in equal numbers, this is the textbook t interval of
the S seed means. V is at least LEAST_VARIANCE of what independent cells would give.

**Why not a percentile bootstrap.** Weighting a cell by w_person·w_seed (the pigeonhole bootstrap, Owen 2007) counts
the noise of a cell three times and does not use the t distribution. With equal methods, its nominal 95 % interval
covers 82 % where the spread of seeds dominates and 99-100 % where noise dominates. V covers 94-96 % in both cases
(tests/scores/test_stats.py). Resampling people and seeds, with draws shared by all methods, is used only for the
*joint* behaviour of many comparisons (`simultaneous_level`).

**What the intervals do not include.** Folds of one data set share training data, so their seeds are not fully
independent (Bengio and Grandvalet 2004: no unbiased estimate exists).
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import sparse, special, stats
from scipy.optimize import brentq
from scipy.spatial.distance import cdist

# Least variance of a mean, as a share of what independent cells would give. Three seeds whose means agree by chance would
# otherwise have limits of no width; 5 % of draws without any effect of seeds lie below it.
LEAST_VARIANCE = 0.05
MAX_DRAWN_PAIRS = 2**21  # differences of two methods in memory at once: 16 MB in double precision
BOOTSTRAP_DRAWS = 2000  # the familywise error rate of 5 % then has a standard error of 0.5 %


@dataclass(frozen=True, eq=False)
class Estimate:
    """Estimates of one shape with their standard errors, which are NaN where `note` says why there are none."""

    value: np.ndarray
    se: np.ndarray
    df: np.ndarray  # Satterthwaite's degrees of freedom, from each estimate's own parts of variance
    # The smaller of df and the degrees of freedom of all estimates' summed variance; for many comparisons at once. There
    # an estimate whose error is underestimated by chance is likely to stand out, and its own df is then too large.
    family_df: np.ndarray
    people: int
    note: str | None = None  # "one seed", "two seeds" or "one person": why there are no standard errors

    def interval(self, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Return lower and upper limits, each of the estimates' shape."""
        half = stats.t.ppf((1 + level) / 2, self.df) * self.se
        return self.value - half, self.value + half

    def p_values(self, df: np.ndarray | None = None) -> np.ndarray:
        """Return two-sided p-values; 1 where a difference is exactly zero."""
        return 2 * special.stdtr(self.df if df is None else df, -_ratio_or_zero(np.abs(self.value), self.se))


def estimate_means(values: np.ndarray, person: np.ndarray, seed: np.ndarray) -> Estimate:
    """Return the mean of each row over cells, as an Estimate of shape [M]."""
    values = np.asarray(values, float)
    sums = _deviation_sums(values, person, seed)
    return _clustered_estimate(values.mean(1), [np.square(x).sum(1) for x in sums], person, seed)


def paired_differences(values: np.ndarray, person: np.ndarray, seed: np.ndarray) -> Estimate:
    """Return paired differences on identical cells, as an Estimate of shape [M, M]: value[a, b] = score a - score b."""
    values = np.asarray(values, float)
    sums = _deviation_sums(values, person, seed)
    return _clustered_estimate(
        np.subtract.outer(values.mean(1), values.mean(1)), [cdist(x, x, "sqeuclidean") for x in sums], person, seed
    )


def _deviation_sums(
    values: np.ndarray, person: np.ndarray, seed: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return deviations from the row's mean divided by C: summed by person [M, U], by seed [M, S], and unsummed [M, C].

    Raises ValueError where values are not finite, or persons or seeds are not one for each cell.
    """
    cells = values.shape[1]
    if len(person) != cells or len(seed) != cells or not np.isfinite(values).all():
        raise ValueError(f"values must be finite, of shape [M, {cells}], with one person and one seed for each cell")
    deviations = (values - values.mean(1, keepdims=True)) / cells
    codes = [np.unique(ids, return_inverse=True)[1] for ids in (person, seed)]
    return *(deviations @ sparse.csr_array((np.ones(cells), (np.arange(cells), code))) for code in codes), deviations


def _clustered_estimate(value: np.ndarray, squares: list[np.ndarray], person: np.ndarray, seed: np.ndarray) -> Estimate:
    """Return the Estimate from the squared totals (by person, by seed, by cell), each of the value's shape."""
    times = np.unique(person, return_counts=True)[1].astype(float)
    people, seeds = len(times), len(np.unique(seed))
    if seeds < 3 or people < 2:  # two seeds that agree by chance would give an interval of zero width
        none = np.full(np.shape(value), np.nan)
        few = "one seed" if seeds == 1 else "two seeds"
        return Estimate(value, none, none, none, people, few if seeds < 3 else "one person")
    by_person, by_seed, by_cell = squares
    share = np.unique(seed, return_counts=True)[1] / len(seed)
    square, cube = (share**2).sum(), (share**3).sum()
    seed_part = by_seed * square / (square - 2 * cube + square**2)
    seed_df = max(1 / square - 1, 1)
    person_part = np.maximum(by_person - by_cell, 0) * seeds / (seeds - 1) * people / (people - 1)
    variance = np.maximum(seed_part + person_part, LEAST_VARIANCE * by_cell)
    # Pairs of cells that share a person; their spread gives the effective number of people.
    repeats = times * (times - 1)
    person_df = max(_ratio_or_zero(repeats.sum() ** 2, (repeats**2).sum()) - 1, 1)

    def satterthwaite(share):
        return 1 / ((1 - share) ** 2 / seed_df + share**2 / person_df)

    df = satterthwaite(_ratio_or_zero(person_part, variance))
    pooled = satterthwaite(_ratio_or_zero(person_part.sum(), variance.sum()))
    return Estimate(value, np.sqrt(variance), df, np.minimum(df, pooled), people)


def _ratio_or_zero(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Return above / below; 0/0 is 0, and NaN stays NaN."""
    above, below = np.broadcast_arrays(np.asarray(above, float), np.asarray(below, float))
    with np.errstate(divide="ignore"):
        return np.divide(above, below, out=np.zeros(above.shape), where=(above != 0) | (below != 0))


def simultaneous_level(
    values: np.ndarray, person: np.ndarray, seed: np.ndarray, pairs: tuple[np.ndarray, np.ndarray], level: float = 0.95
) -> float:
    """Return the p-value below which any of the `pairs` falls with probability 1 - level if all methods are equal.

    pairs: (a, b), two int[K].
    """
    return float(np.quantile(smallest_p_draws(values, person, seed, pairs), 1 - level))


def smallest_p_draws(
    values: np.ndarray, person: np.ndarray, seed: np.ndarray, pairs: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """Return float64[BOOTSTRAP_DRAWS]: draws of the smallest p-value of the `pairs` if all methods are equal.

    pairs: (a, b), two int[K].

    Max-t by resampling: each draw gives every person and every seed one Gaussian weight, *shared by all methods*. The
    weighted deviations give differences that are correlated as the real ones are (a multiplier bootstrap; Owen and
    Eckles 2012 without the product of weights). The differences are scaled to unit variance and divided by √(χ²/df),
    with one χ² for each pair since each pair has its own variance. Then they are t-distributed as the real ones are.
    The tails matter: the usual normal max-t, even widened by t/1.96, declares some of ten equal methods different on a
    third of 5-seed boards.
    """
    values = np.asarray(values, float)
    first, second = pairs
    if len(first) == 0:
        return np.ones(BOOTSTRAP_DRAWS)
    rng = np.random.default_rng(0)  # fixed, so that the same board has the same limits
    # [M, U + S], in single precision, as the array of weights is large.
    totals = np.hstack(_deviation_sums(values, person, seed)[:2]).astype(np.float32)
    drawn = rng.standard_normal((BOOTSTRAP_DRAWS, totals.shape[1]), dtype=np.float32) @ totals.T
    df = paired_differences(values, person, seed).family_df[first, second]
    at_once = max(1, MAX_DRAWN_PAIRS // BOOTSTRAP_DRAWS)
    blocks = [slice(start, start + at_once) for start in range(0, len(first), at_once)]
    spread = np.concatenate([(drawn[:, first[b]] - drawn[:, second[b]]).astype(float).std(0) for b in blocks])
    smallest = []
    at_once = max(1, MAX_DRAWN_PAIRS // len(first))
    for start in range(0, BOOTSTRAP_DRAWS, at_once):
        block = drawn[start : start + at_once]
        gap = np.abs(block[:, first] - block[:, second]).astype(float)
        t = _ratio_or_zero(gap, spread) / np.sqrt(rng.chisquare(df, gap.shape) / df)
        smallest.append(_smallest_p(t, df))
    return np.concatenate(smallest)


def _smallest_p(t: np.ndarray, df: np.ndarray) -> np.ndarray:
    """Return float64[n]: the smallest two-sided p-value in each row of t, float64[n, K] >= 0, with df, float64[K].

    A t-value with a p-value below that of the largest one must be nearly as large, for no df is above the largest. So
    few p-values are computed.
    """
    largest = t.argmax(1)
    p = 2 * special.stdtr(df[largest], -t[np.arange(len(t)), largest])
    least = -special.stdtrit(df.max(), p / 2) * (1 - 1e-9)
    row, column = np.nonzero(t >= least[:, None])
    np.minimum.at(p, row, 2 * special.stdtr(df[column], -t[row, column]))
    return p


class Gains(NamedTuple):
    """Gains over the reference row, each float64[M]; the reference's own gain is 0 with p-value 1.

    Joint limits and adjusted p-values hold for all rows of the family at once, and agree: limits exclude 0 exactly where
    p is below 5 %. Outside the family, limits are those of each gain alone, and adjusted p-values are NaN.
    """

    value: np.ndarray
    se: np.ndarray
    low: np.ndarray  # limits that hold for each gain alone
    high: np.ndarray
    joint_low: np.ndarray  # limits that hold for all gains of the family at once (max-t)
    joint_high: np.ndarray
    p: np.ndarray  # of each gain alone
    adjusted: np.ndarray  # p-values adjusted over the family by the same max-t
    family: np.ndarray  # bool[M], the rows that are compared at once
    reference: int
    people: int
    note: str | None


def gains_over_reference(
    values: np.ndarray,
    person: np.ndarray,
    seed: np.ndarray,
    reference: int = 0,
    level: float = 0.95,
    family: np.ndarray | None = None,
) -> Gains:
    """Return the paired gain of every method over the row `reference`.

    family: bool[M], the rows whose gains are judged at once; by default all but the reference. Rows outside change
    nothing for those inside.
    """
    every = paired_differences(values, person, seed)
    value, se, df, family_df = (x[:, reference] for x in (every.value, every.se, every.df, every.family_df))
    others = np.arange(len(value)) != reference
    family = others if family is None else family & others
    rows = np.flatnonzero(family)
    if not every.note:  # degrees of freedom pooled over the family alone
        kept = np.append(rows, reference)
        family_df = family_df.copy()
        family_df[kept] = paired_differences(np.asarray(values)[kept], person, seed).family_df[:, -1]
    gain = Estimate(value, se, df, family_df, every.people)
    p, (low, high) = gain.p_values(), gain.interval(level)
    adjusted, half = np.full_like(p, np.nan), (high - low) / 2
    if not every.note and len(rows):
        last = np.full(len(rows), len(rows))
        drawn = smallest_p_draws(np.asarray(values)[kept], person, seed, (np.arange(len(rows)), last))
        within = gain.p_values(gain.family_df)[rows]
        adjusted[rows] = (1 + (drawn[:, None] <= within).sum(0)) / (1 + len(drawn))
        # the draw below which an adjusted p-value is below 1 - level, so that limits and p-values agree exactly
        each = np.sort(drawn)[int((1 - level) * (1 + len(drawn)) - 1)]
        half[rows] = (stats.t.ppf(1 - each / 2, gain.family_df) * gain.se)[rows]
    return Gains(
        value, se, low, high, value - half, value + half, p, adjusted, family, reference, every.people, every.note
    )


class SwapLosses(NamedTuple):
    """What methods lose when people are answered with another person's state, each float64[M]; NaN outside the family.

    All limits hold at once for the gains and the losses of the whole family.
    """

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    gain_low: np.ndarray  # lower limits of the gains


def swap_losses(
    values: np.ndarray, swapped: np.ndarray, person: np.ndarray, seed: np.ndarray, gains: Gains, level: float = 0.95
) -> SwapLosses:
    """Return every method's paired loss from the swap, with limits that hold together with those of the gains.

    swapped: float64[M, C], scores with another person's state; rows outside the family are not read.

    A method personalises where both its gain and its loss are surely large enough. Such a statement is false if one of the
    two is not, so over K methods it needs limits for 2 K comparisons at once.
    """
    rows = np.flatnonzero(gains.family)
    count = len(rows)
    stacked = np.vstack([np.asarray(values)[rows], np.asarray(swapped)[rows], np.asarray(values)[[gains.reference]]])
    own = np.arange(count)
    every = paired_differences(stacked, person, seed)
    first, second = np.concatenate([own, own]), np.concatenate([np.full(count, 2 * count), own + count])
    found = SwapLosses(*np.full((4, len(gains.value)), np.nan))
    if not every.note and count:
        each = simultaneous_level(stacked, person, seed, (first, second), level)
        value, se, df = (x[first, second] for x in (every.value, every.se, every.family_df))
        half = stats.t.ppf(1 - each / 2, df) * se
        (_, found.value[rows]), (gain_low, found.low[rows]) = np.split(value, 2), np.split(value - half, 2)
        found.high[rows], found.gain_low[rows] = np.split(value + half, 2)[1], gain_low
    return found


class Ranks(NamedTuple):
    """Ranks, each int[M], where 1 is the best: by score, and limits that hold for all methods at once."""

    rank: np.ndarray  # tied methods share the best of their ranks
    best: np.ndarray  # 1 + number of methods that are significantly better
    worst: np.ndarray  # M - number of methods that are significantly worse
    note: str | None


def rank_intervals(
    values: np.ndarray, person: np.ndarray, seed: np.ndarray, level: float = 0.95, gains: Gains | None = None
) -> Ranks:
    """Return simultaneous rank intervals from all pairs by max-t (Mogstad et al. 2024, "Inference for ranks").

    gains: gains of the same rows. The pairs of their family with the reference are then decided as the gains are, so that
    ranks never contradict them, and the other pairs are a second family. Each family errs on at most 1 - level of boards.

    Where there are no standard errors, as with one or two seeds, every interval is [1, M].
    """
    every = paired_differences(values, person, seed)
    count = len(every.value)
    # Means are rounded to 12 digits, so that means which differ by rounding alone are tied.
    rank = stats.rankdata(-np.round(np.mean(values, 1), 12), method="min")
    surely_better = np.zeros((count, count), bool)  # [a, b]: a is significantly better than b
    if not every.note:
        first, second = np.triu_indices(count, 1)
        if gains is not None:
            decided = gains.family[first] & (second == gains.reference) | gains.family[second] & (
                first == gains.reference
            )
            first, second = first[~decided], second[~decided]
        each = simultaneous_level(values, person, seed, (first, second), level)
        asked = np.zeros((count, count), bool)
        asked[first, second] = asked[second, first] = True
        surely_better = asked & (every.p_values(every.family_df) < each) & (every.value > 0)
        if gains is not None:
            surely_better[gains.family, gains.reference] = gains.joint_low[gains.family] > 0
            surely_better[gains.reference, gains.family] = gains.joint_high[gains.family] < 0
    return Ranks(rank, 1 + surely_better.sum(0), count - surely_better.sum(1), every.note)


class Verdict(NamedTuple):
    """Verdict of a board on a task: whether some method gains over the reference."""

    text: str  # "gain", "nothing to personalise here" or "cannot tell"
    best: int  # row of the largest gain; where the text is "gain", of the gain with the highest lower limit
    people: int | None  # for "cannot tell": the number of people needed, or None if no number is enough


def gain_verdict(gains: Gains, margin: float) -> Verdict:
    """Return whether some gain of the family is above `margin` (>= 0), none is, or the data cannot tell.

    The number of people needed assumes the observed gains, and limits that shrink as 1/√people. The part of the error
    that is due to seeds shrinks only with more seeds, so the number is a lower bound where seeds differ much. Raises
    ValueError where there is no method beside the reference.
    """
    others = gains.family
    if not others.any():
        raise ValueError("a verdict needs at least one method beside the reference")
    best = int(np.flatnonzero(others)[np.argmax(gains.value[others])])
    value, low, high = gains.value[others], gains.joint_low[others], gains.joint_high[others]
    if low.max() > margin:
        return Verdict("gain", int(np.flatnonzero(others)[np.argmax(low)]), None)
    if high.max() < margin:
        return Verdict("nothing to personalise here", best, None)
    with np.errstate(divide="ignore", invalid="ignore"):
        needed = gains.people * ((high - value) / (value - margin)) ** 2
    # People needed to show one gain, or to show that all gains are below the margin.
    needed = needed[value > margin].min() if value.max() > margin else needed.max()
    return Verdict("cannot tell", best, int(np.ceil(needed)) if np.isfinite(needed) else None)


def detectable_difference(
    people: int,
    per_person: int,
    disagree: float,
    icc: float,
    seeds: int,
    comparisons: int = 1,
    alpha: float = 0.05,
    power: float = 0.8,
) -> float:
    """Return the smallest accuracy difference whose joint limits exclude 0 with probability `power`; NaN below three seeds.

    `people` are asked `per_person` queries each, over all seeds. The two methods disagree on a share `disagree` of queries,
    whose results correlate within a person by `icc` (Miller 2024, "Adding error bars to evals"). The test is the board's: t
    with as many degrees of freedom as seeds allow, at level alpha / `comparisons`, which is at most a little stricter than
    max-t. A spread between seeds beyond that of their people is not included.
    """
    if seeds < 3:
        return np.nan
    df = seeds - 1
    critical = stats.t.isf(alpha / comparisons / 2, df)
    shift = brentq(lambda shift: stats.nct.sf(critical, df, shift) - power, 0, 100 + 10 * critical)
    return float(shift * np.sqrt(disagree * (1 + (per_person - 1) * icc) / (people * per_person)))


def fixed_derangement(n: int) -> np.ndarray:
    """Return int64[n]: a fixed permutation without fixed points, the same for every method."""
    ring = np.random.default_rng(n).permutation(n)
    other = np.empty(n, dtype=np.int64)
    other[ring] = np.roll(ring, 1)
    return other


def resembles_coin_flips(share: float, n: int) -> bool:
    """Return whether a share of n labels is within 4.5 standard errors of one half.

    The standard error is that of coin flips, the largest that labels in [0, 1] can have.
    """
    return bool(abs(share - 0.5) < 4.5 * 0.5 / np.sqrt(n))

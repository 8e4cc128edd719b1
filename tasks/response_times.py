"""Choices and response times of a drift-diffusion process, also for a shifted population (ICRA, sections 4 and 5.1)."""

from dataclasses import dataclass, replace

import numpy as np

from harness.data import Items, Panel, PreferenceDataset, Splits, Truth
from harness.errors import UserError
from harness.task import Task, split_in_order

CONDITION_NUMBER = 3.0  # condition number of the gaps' covariance


@dataclass(frozen=True)
class ResponseTimes(Task):
    """A simulation with gaps x ~ N(0, S), a user's theta, and the process dV = (xT theta / 2) dt + dB until |V| = 1.

    theta comes from one of two Gaussians with orthogonal means. S has eigenvalues from 1/4 to 3/4 in a random basis,
    and the three means lie along its leading eigenvectors. The paper specifies neither. At this scale choices are far
    from certain, and a choice alone says little about the size of a drift. The label is the mean answer of `annotators`
    people who share one theta, and `seconds` is the mean of their times. The panel `shifted` has people from a third
    Gaussian, whose mean is orthogonal to both others. A mean inside their span would be nothing new to a linear decoder.
    An annotator's answers and times depend only on the seed and the annotator's number. So a task with fewer annotators
    has the first ones of a task with more, on the same pairs.
    """

    family = "simulated"
    paper = "Sun et al. 2026, ICRA"

    n_users: int = 4000  # training users
    new_users: int = 200  # validation users, and as many in `test` and in `shifted`
    n_demonstrations: int = 200  # pairs of each training user
    annotators: int = 10
    spread: float = 0.3  # standard deviation of theta around its mean, in every direction
    norm: float = 3.0  # norm of each of the three means
    feature_dim: int = 5

    shots: tuple[int, ...] = (0, 5, 20, 60)

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = (self.n_users, self.new_users, self.n_demonstrations, self.annotators)
        if min(counts) < 1 or self.spread < 0 or self.norm < 0:
            raise UserError(
                "response_times: counts must be at least 1, spread and norm at least 0",
                "for example n_users = 4000, spread = 0.3, norm = 3.0",
            )
        if self.feature_dim < 3:
            raise UserError(
                f"response_times: feature_dim {self.feature_dim} is too small for three orthogonal means",
                "set feature_dim to 3 or more",
            )

    def build(self, seed: int) -> PreferenceDataset:
        rng = np.random.default_rng(seed)
        n_new, d = 3 * self.new_users, self.feature_dim
        counts = np.repeat([self.n_demonstrations, max(self.shots)], [self.n_users, n_new]) + self.queries
        user = np.repeat(np.arange(len(counts)), counts)
        basis = np.linalg.qr(rng.normal(size=(d, d)))[0]
        # along the leading eigenvectors, because results then differ by .004 between seeds instead of .02
        means = self.norm * basis.T[[-1, -2, -3]]
        kind = rng.integers(2, size=len(counts))
        kind[-self.new_users :] = 2  # the panel `shifted`
        theta = means[kind] + self.spread * rng.normal(size=(len(counts), d))
        variance = np.linspace(1, CONDITION_NUMBER, d) / (1 + CONDITION_NUMBER)
        scale = np.sqrt(variance / 2)  # sd of an item; a gap of two items has twice its variance
        x = ((rng.normal(size=(2 * len(user), d)) * scale) @ basis.T).astype(np.float32)
        population = means[rng.integers(2, size=20_000)] + self.spread * rng.normal(size=(20_000, d))
        left, right = np.arange(0, len(x), 2), np.arange(1, len(x), 2)
        drift = np.einsum("nd,nd->n", x[left] - x[right], theta[user]) / 2
        label, seconds = np.zeros((2, len(user)))
        for own in rng.spawn(self.annotators):
            answer, time = simulate_decisions(own, drift)
            label += answer
            seconds += time
        truth = Truth(theta.astype(np.float32), x, 1.0, population.astype(np.float32))
        return PreferenceDataset.from_pairs(
            user,
            left,
            right,
            label / self.annotators,
            Items(x, columns_share_unit=True),
            seconds / self.annotators,
            truth,
        )

    def split(self, data: PreferenceDataset, seed: int) -> Splits:
        n_known = data.pairs.n_users - self.new_users
        splits = split_in_order(replace(data, pairs=data.pairs.of(np.arange(n_known))), self.n_users, self.queries)
        others = data.pairs.of(np.arange(n_known, data.pairs.n_users))
        shown = others.rank < max(self.shots)
        return Splits(splits.train, dict(splits.panels) | {"shifted": Panel(others.take(shown), others.take(~shown))})


SERIES_TERMS = 8  # further terms would add less than 3e-5 to a time's variance, which is at most .67


def simulate_decisions(rng: np.random.Generator, drift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draw the side bool[n] and the time float64[n] at which the process dV = drift dt + dB, from 0, reaches +1 or -1.

    The side is True for +1. Between symmetric barriers the side is independent of the time, and P(+1) =
    sigmoid(2 drift). With mu = |drift|, the time's Laplace transform, cosh(mu) / cosh(sqrt(mu^2 + 2 s)), is the product
    over k = 1, 2, ... of rate_k / (rate_k + s) with rate_k = (mu^2 + (k - 1/2)^2 pi^2) / 2: the time is a sum of independent
    exponentials (Biane, Pitman and Yor 2001). The first SERIES_TERMS are drawn and the others replaced by their mean,
    so that E[time] = tanh(mu) / mu is exact.
    """
    mu = np.maximum(np.abs(drift), 1e-6)
    time = np.tanh(mu) / mu
    for k in range(SERIES_TERMS):
        rate = (mu**2 + ((k + 0.5) * np.pi) ** 2) / 2
        time += (rng.standard_exponential(len(mu)) - 1) / rate
    return rng.random(len(mu)) < 1 / (1 + np.exp(-2 * drift)), time

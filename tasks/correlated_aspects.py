"""Two hidden kinds of user, each following one of two correlated scores (Few-shot Steerable Alignment, section 4.3)."""

from dataclasses import dataclass

import numpy as np

from harness.data import Items, PreferenceDataset, Splits, Truth
from harness.errors import UserError
from harness.method import State, Users
from harness.task import Task, split_in_order
from tasks.two_modes import mode_diagnostics


@dataclass(frozen=True)
class CorrelatedAspects(Task):
    """A simulation of options y = [h0, h1] ~ N(0, [[1, rho], [rho, 1]]) for users who follow h0 or h1 (Example 4.3).

    A user prefers the option with the larger score. A pair is *conflicting* if the two scores disagree, which happens
    at the rate c = arccos(rho) / pi. The conflict rates below are such c, with rho = cos(pi c): the paper's rho of -1,
    -.7, 0 and .7 are rates of 1, .75, .5 and .25. At 1, the default of queries, h1 = -h0, so a query asks only which
    score the user follows. The Bayes error after one context pair is then the paper's
    1/4 + arcsin(rho) / (2 pi) = (1 - c) / 2, and after n context pairs (1 - c)^n / 2.
    """

    family = "simulated"
    paper = "Kobalczyk et al. 2024, Few-shot Steerable Alignment"

    n_users: int = 2000  # training users; there are a tenth as many validation users, and as many test users
    pairs_per_user: int = 40
    train_conflict_rate: float = 0.5
    context_conflict_rate: float = 0.5
    query_conflict_rate: float = 1.0

    shots: tuple[int, ...] = (0, 1, 3, 5, 10)

    def __post_init__(self) -> None:
        super().__post_init__()
        rates = (self.train_conflict_rate, self.context_conflict_rate, self.query_conflict_rate)
        if min(self.n_users, self.pairs_per_user) < 1 or not all(0 <= rate <= 1 for rate in rates):
            raise UserError(
                "correlated_aspects: counts must be 1 or more, and conflict rates in [0, 1]",
                "a conflict rate of 0.5 means uncorrelated scores, 1 means opposite scores",
            )

    def build(self, seed: int) -> PreferenceDataset:
        rng = np.random.default_rng(seed)
        n_new, n_context = 2 * max(1, self.n_users // 10), max(self.shots)
        counts = np.repeat([self.pairs_per_user, n_context], [self.n_users, n_new]) + self.queries
        user = np.repeat(np.arange(len(counts)), counts)
        place = np.arange(len(user)) - (np.cumsum(counts) - counts)[user]
        shown_rate = np.where(user < self.n_users, self.train_conflict_rate, self.context_conflict_rate)
        rate = np.where(place >= counts[user] - self.queries, self.query_conflict_rate, shown_rate)
        scores = draw_scores(rng, np.repeat(rate, 2))
        left, right = np.arange(0, 2 * len(user), 2), np.arange(1, 2 * len(user), 2)
        aspect = rng.integers(2, size=len(counts))
        truth = Truth(np.eye(2, dtype=np.float32)[aspect], scores, 0.0, np.eye(2, dtype=np.float32))
        label = scores[left, aspect[user]] > scores[right, aspect[user]]
        return PreferenceDataset.from_pairs(
            user, left, right, label, Items(scores, columns_share_unit=True), truth=truth
        )

    def split(self, data: PreferenceDataset, seed: int) -> Splits:
        return split_in_order(data, self.n_users, self.queries)

    def diagnostics(self, splits: Splits, truth: Truth | None, state: State, users: Users) -> dict[str, float]:
        return mode_diagnostics(splits, truth, users)


def draw_scores(rng: np.random.Generator, rate: np.ndarray) -> np.ndarray:
    """Draw float32[n, 2]: standard normal scores whose gaps in a pair have opposite signs at the given rates."""
    first, other = rng.normal(size=(2, len(rate)))
    rho = np.cos(np.pi * rate)
    return np.column_stack([first, rho * first + np.sqrt(1 - rho**2) * other]).astype(np.float32)
